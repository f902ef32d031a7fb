import numpy as np
import pytest
import torch

from longgame.errors import PluginError
from longgame.models.lora import Recording, fused_lora, plain_layers
from longgame.signals import engine as module
from longgame.signals.engine import BACKWARD, FORWARD, SignalEngine
from support.signals import llama, with_lora

ALL = (*FORWARD, *BACKWARD)


def layers_of(model):
    return plain_layers(dict(model.get_base_model().named_modules()))


def measure(model, pool):
    return SignalEngine(model, pad_token_id=0, sketch_dim=64)(pool, ALL)


def test_every_linear_layer_of_a_float32_adapter_runs_fused(adapted):
    assert len(layers_of(adapted)) == 14


def test_fused_layers_give_the_signals_of_pefts_own(adapted, pool, monkeypatch):
    fused = measure(adapted, pool)
    monkeypatch.setattr(module, "plain_layers", lambda named: {})
    own = measure(adapted, pool)
    for name in ALL:
        assert np.linalg.norm(fused[name] - own[name]) < 1e-5 * np.linalg.norm(own[name]), name


@pytest.mark.parametrize("factors", [torch.float32, torch.bfloat16])
def test_beside_a_bfloat16_base_fused_layers_are_as_near_to_float32_as_pefts_own(factors, pool, monkeypatch):
    model = with_lora(llama()).to(torch.bfloat16)
    truth = measure(model.float(), pool)
    for name, weight in model.to(torch.bfloat16).named_parameters():
        if "lora_" in name:
            weight.data = weight.data.to(factors)
    assert len(layers_of(model)) == 14
    fused = measure(model, pool)
    monkeypatch.setattr(module, "plain_layers", lambda named: {})
    own = measure(model, pool)
    for name in ALL:
        size = np.linalg.norm(truth[name])
        allowed = 1.5 * np.linalg.norm(own[name] - truth[name]) + 2**-9 * size  # half a unit in the last place more
        assert np.linalg.norm(fused[name] - truth[name]) < allowed, name
        assert not np.array_equal(fused[name], own[name]), name


def test_merging_for_the_moment_moves_no_weight(pool):
    model = with_lora(llama())
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    measure(model, pool)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name


@pytest.mark.parametrize(
    "change", ["float16", "float64", "disabled", "merged", "dora", "autocast", "hooked", "patched"]
)
def test_layers_that_are_not_plain_keep_their_own_forward(change):
    if change == "autocast":
        model = with_lora(llama())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layers_of(model) == {}
        return
    model = with_lora(llama(), use_dora=change == "dora")
    one = model.base_model.model.model.layers[0].mlp.up_proj
    left = 0
    if change == "float16":
        model.get_base_model().to(torch.float16)
    elif change == "float64":  # wider than the factors
        model.get_base_model().to(torch.float64)
    elif change == "disabled":
        model.base_model.disable_adapter_layers()
    elif change == "merged":
        model.merge_adapter()
    elif change == "hooked":
        one.base_layer.register_forward_hook(lambda *_: None)
        left = 13
    elif change == "patched":
        one.lora_A["default"].forward = one.lora_A["default"].forward
        left = 13
    assert len(layers_of(model)) == left


def test_a_bfloat16_base_with_a_float32_adapter_is_measured_through_pefts_own_forward(pool):
    exact = measure(with_lora(llama()), pool)
    model = with_lora(llama().to(torch.bfloat16))
    factors = [weight for name, weight in model.named_parameters() if "lora_" in name]
    assert {weight.dtype for weight in factors} == {torch.float32}
    found = measure(model, pool)
    for name in ALL:
        assert np.linalg.norm(found[name] - exact[name]) < 0.05 * np.linalg.norm(exact[name]), name


def test_eager_attention_gives_the_signals_of_sdpa(pool):
    one, other = (measure(with_lora(llama(attn_implementation=kind)), pool) for kind in ("sdpa", "eager"))
    for name in ALL:
        assert np.linalg.norm(one[name] - other[name]) < 1e-5 * np.linalg.norm(one[name]), name


def test_a_layer_used_twice_in_one_pass_is_refused_with_gradients_and_forward_is_restored():
    model = with_lora(llama()).eval()
    layers = layers_of(model)
    layer = next(iter(layers.values()))
    x = torch.zeros(2, 40, layer.in_features, requires_grad=True)
    record = Recording(lambda *_: None, inputs=[x])
    with pytest.raises(PluginError, match="used twice"), fused_lora(layers, record):
        layer(layer(x)[..., : layer.in_features])
    assert not any("forward" in vars(one) for one in layers.values())


def test_activations_without_a_batch_dimension_are_refused_with_gradients():
    model = with_lora(llama()).eval()
    layers = layers_of(model)
    layer = next(iter(layers.values()))
    x = torch.zeros(80, layer.in_features, requires_grad=True)
    with pytest.raises(PluginError, match="batch"), fused_lora(layers, Recording(lambda *_: None, inputs=[x])):
        layer(x)
