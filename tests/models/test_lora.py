"""Faster ways through plain LoRA layers: fused for one pass, folded for many; both give PEFT's own numbers."""

import inspect

import numpy as np
import pytest
import torch

from longgame.errors import PluginError
from longgame.models.fused import folded_lora, fused_lora, plain_layers
from longgame.models.lora import Recording, canonical_name
from longgame.signals import engine as module
from longgame.signals.engine import BACKWARD, FORWARD, SignalEngine
from support.signals import llama, random_pool, with_lora

ALL = tuple(name for name in (*FORWARD, *BACKWARD) if name != "token_accuracy")  # counts, all 0 of such models


@pytest.fixture(scope="module")
def pool():
    return random_pool()


@pytest.fixture(scope="module")
def adapted():
    """A LoRA adapter with B ≠ 0; tests leave it as it is."""
    return with_lora(llama())


def layers_of(model):
    return plain_layers(dict(model.get_base_model().named_modules()))


def measure(model, pool):
    return SignalEngine(model, pad_token_id=0, sketch_dim=64)(pool, ALL)


def test_fused_are_all_linear_layers_of_a_float32_adapter(adapted):
    assert len(layers_of(adapted)) == 14


def test_fused_layers_give_the_signals_of_pefts_own(adapted, pool, monkeypatch):
    fused = measure(adapted, pool)
    monkeypatch.setattr(module, "plain_layers", lambda named: {})
    expected = measure(adapted, pool)
    for name in ALL:
        assert np.linalg.norm(fused[name] - expected[name]) < 1e-5 * np.linalg.norm(expected[name]), name


@pytest.mark.parametrize("factors", [torch.float32, torch.bfloat16])
def test_fused_bfloat16_is_as_near_to_float32_as_pefts_own(factors, pool, monkeypatch):
    model = with_lora(llama()).to(torch.bfloat16)
    truth = measure(model.float(), pool)
    for name, weight in model.to(torch.bfloat16).named_parameters():
        if "lora_" in name:
            weight.data = weight.data.to(factors)
    assert len(layers_of(model)) == 14
    fused = measure(model, pool)
    monkeypatch.setattr(module, "plain_layers", lambda named: {})
    expected = measure(model, pool)
    for name in ALL:
        size = np.linalg.norm(truth[name])
        allowed = 1.5 * np.linalg.norm(expected[name] - truth[name]) + 2**-9 * size  # half a last bit
        assert np.linalg.norm(fused[name] - truth[name]) < allowed, name
        assert not np.array_equal(fused[name], expected[name]), name


def test_fused_pass_moves_no_weight(pool):
    model = with_lora(llama())
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    measure(model, pool)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name


@pytest.mark.parametrize(
    "change", ["float16", "float64", "disabled", "merged", "dora", "autocast", "hooked", "patched"]
)
def test_fused_are_only_plain_layers(change):
    if change == "autocast":
        model = with_lora(llama())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layers_of(model) == {}
        return
    model = with_lora(llama(), use_dora=change == "dora")
    single = model.base_model.model.model.layers[0].mlp.up_proj
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
        single.base_layer.register_forward_hook(lambda *_: None)
        left = 13
    elif change == "patched":
        single.lora_A["default"].forward = single.lora_A["default"].forward
        left = 13
    assert len(layers_of(model)) == left


def test_signals_of_a_bfloat16_base_are_near_float32(pool):
    exact = measure(with_lora(llama()), pool)
    model = with_lora(llama().to(torch.bfloat16))
    factors = [weight for name, weight in model.named_parameters() if "lora_" in name]
    assert {weight.dtype for weight in factors} == {torch.float32}
    result = measure(model, pool)
    for name in ALL:
        assert np.linalg.norm(result[name] - exact[name]) < 0.05 * np.linalg.norm(exact[name]), name


def test_signals_of_eager_attention_are_those_of_sdpa(pool):
    single, other = (measure(with_lora(llama(attn_implementation=kind)), pool) for kind in ("sdpa", "eager"))
    for name in ALL:
        assert np.linalg.norm(single[name] - other[name]) < 1e-5 * np.linalg.norm(single[name]), name


def test_fused_layer_used_twice_in_one_pass_is_refused():
    model = with_lora(llama()).eval()
    layers = layers_of(model)
    layer = next(iter(layers.values()))
    x = torch.zeros(2, 40, layer.in_features, requires_grad=True)
    record = Recording(lambda *_: None, inputs=[x])
    with pytest.raises(PluginError, match="used twice"), fused_lora(layers, record):
        layer(layer(x)[..., : layer.in_features])
    assert not any("forward" in vars(single) for single in layers.values())


def test_fused_activations_without_a_batch_are_refused():
    model = with_lora(llama()).eval()
    layers = layers_of(model)
    layer = next(iter(layers.values()))
    x = torch.zeros(80, layer.in_features, requires_grad=True)
    with pytest.raises(PluginError, match="batch"), fused_lora(layers, Recording(lambda *_: None, inputs=[x])):
        layer(x)


def scaled(model):
    """B large enough for folding to show."""
    return with_lora(model, b_scale=0.3).eval()


@pytest.fixture
def ids():
    return torch.randint(4, 40, (3, 11), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_folded_logits_equal_and_weights_come_back_bit_for_bit(ids):
    model = scaled(llama())
    before = {name: (value.data_ptr(), value.clone()) for name, value in model.state_dict().items()}
    expected = model(input_ids=ids).logits
    with folded_lora(model) as folded:
        assert folded
        assert model.base_model.model.model.layers[0].mlp.up_proj.merged
        inside = model(input_ids=ids).logits
    assert not torch.equal(inside, expected), "the adapters were not folded"
    torch.testing.assert_close(inside, expected, rtol=1e-4, atol=1e-5)
    for name, value in model.state_dict().items():
        pointer, original = before[name]
        assert value.data_ptr() == pointer, name
        assert torch.equal(value, original), name
    assert torch.equal(model(input_ids=ids).logits, expected)


def test_folded_weights_come_back_after_an_error():
    layer = (model := scaled(llama())).base_model.model.model.layers[0].mlp.up_proj
    original = layer.base_layer.weight.data
    with pytest.raises(KeyError), folded_lora(model):
        raise KeyError
    assert layer.base_layer.weight.data.data_ptr() == original.data_ptr()
    assert not layer.merged


def disabled():
    model = scaled(llama())
    model.base_model.disable_adapter_layers()
    return model


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: llama().eval(), id="no adapter"),
        pytest.param(lambda: with_lora(llama().to(torch.bfloat16)).eval(), id="bfloat16"),
        pytest.param(lambda: with_lora(llama(), use_dora=True).eval(), id="dora"),
        pytest.param(
            lambda: with_lora(llama(), target_modules=["q_proj", "lm_head"]).eval(),
            id="head tied to the embedding",
            marks=pytest.mark.filterwarnings("ignore"),
        ),
        pytest.param(disabled, id="disabled"),
    ],
)
@torch.no_grad()
def test_folding_leaves_other_models_as_they_are(ids, make):
    model = make()
    expected = model(input_ids=ids).logits
    with folded_lora(model) as folded:
        assert not folded
        assert torch.equal(model(input_ids=ids).logits, expected)


def test_peft_has_the_internals_that_lora_relies_on():
    layer = with_lora(llama(), use_dora=True).base_model.model.model.layers[0].mlp.up_proj
    names = "scaling lora_A lora_B lora_dropout lora_variant lora_magnitude_vector fan_in_fan_out base_layer"
    names += " active_adapters disable_adapters merged merged_adapters get_delta_weight"
    assert [name for name in names.split() if not hasattr(layer, name)] == []
    assert isinstance(layer.merged_adapters, list)
    taken = inspect.signature(layer.lora_magnitude_vector["default"].forward).parameters
    assert {"base_layer", "base_result"} <= set(taken)


def test_canonical_name_has_no_prefix_and_no_adapter():
    plain = "model.layers.0.self_attn.q_proj.lora_A.weight"
    assert canonical_name("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight") == plain
    assert canonical_name("base_model." + "model." + plain) == plain
    assert canonical_name(plain) == plain
    assert canonical_name("model.layers.0.mlp.up_proj.weight") == "model.layers.0.mlp.up_proj.weight"
