"""Full fine-tuning, and gradients of the last decoder layers only."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from longgame.errors import ModelError, PluginError
from longgame.signals.projection import CountSketch
from support.signals import VOCABULARY, autograd_gradients, llama, perturb, random_pool, with_lora
from support.signals_exact import DIM, SEED, assert_exact, engine_of, is_lora


def gpt2(**changes):
    shape = {"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 24, "n_layer": 2, "n_head": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(**(shape | changes)))
    perturb(model, "", 0.05, 3)
    return model


def assert_full_exact(model, pool, keep, transposed=False, **options):
    """Sides of at most 64 are not projected, so the sketch is the count sketch of the gradient itself."""
    result = engine_of(model, **options)(pool, ["grad_norm", "grad_sketch"])
    for row, gradient in enumerate(autograd_gradients(model, pool, keep)):
        norm = float(torch.stack([part.double().norm() for part in gradient.values()]).norm())
        assert result["grad_norm"][row] == pytest.approx(norm, rel=1e-5)
        count, total = CountSketch(DIM, SEED), torch.zeros(DIM)
        for name, part in gradient.items():
            total += count.project(name, (part.T if transposed else part).reshape(1, -1))[0]
        assert float((torch.from_numpy(result["grad_sketch"][row]) - total).norm() / total.norm()) < 1e-5


@pytest.mark.parametrize("longest", [23, 8])  # 8 tokens: the ghost norm is the cheaper form
def test_conv1d_weights_are_exact_by_either_norm(longest):
    model = gpt2(n_embd=20, n_inner=40)  # c_attn is then 60 wide: no side is projected
    assert_full_exact(model, random_pool(longest=longest), is_conv1d, transposed=True)


def is_conv1d(name):
    return ".h." in name and ".c_" in name and name.endswith("weight")


@pytest.mark.parametrize("tied", [True, False])
def test_head_and_tied_embedding_are_left_out(tied):
    model = llama(tie_word_embeddings=tied)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    assert_full_exact(model, random_pool(), lambda name: name.endswith("proj.weight"))


def test_the_last_layers_alone_equal_autograd_over_them():
    pool = random_pool()
    model = llama(num_hidden_layers=3)
    assert_full_exact(
        model, pool, lambda name: name.endswith("proj.weight") and ".layers.2." in name, gradient_layers=1
    )
    adapted = with_lora(llama(num_hidden_layers=3))
    assert_exact(adapted, pool, lambda name: is_lora(name) and ".layers.0." not in name, gradient_layers=2)
    assert_exact(adapted, pool, is_lora, gradient_layers=3)


def test_lora_on_conv1d_restricted_to_the_last_layer_is_exact(pool):
    adapted = with_lora(gpt2(), target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    assert_exact(adapted, pool, lambda name: is_lora(name) and ".h.1." in name, gradient_layers=1)


def test_layers_before_the_last_ones_keep_no_graph_and_the_callers_mode_stays(pool):
    adapted = with_lora(llama())
    graphs = {}
    handles = [
        layer.register_forward_hook(lambda _m, _a, out, k=k: graphs.update({k: out.requires_grad}))
        for k, layer in enumerate(adapted.get_base_model().model.layers)
    ]
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            engine_of(adapted, gradient_layers=1)(pool, ["grad_norm"])
            assert torch.is_grad_enabled() == grad
    assert graphs == {0: False, 1: True}
    for handle in handles:
        handle.remove()


def test_forward_signals_do_not_depend_on_the_layers_that_gradients_are_of(pool):
    adapted = with_lora(llama())
    names = ["loss", "el2n", "embedding", "grad_norm"]
    last, every = (engine_of(adapted, gradient_layers=count)(pool, names) for count in (1, None))
    for name in names[:3]:
        np.testing.assert_allclose(last[name], every[name], rtol=1e-5, atol=1e-6)
    assert (last["grad_norm"] < every["grad_norm"]).all()


@pytest.mark.parametrize("count", [0, 3, -1])
def test_a_count_of_layers_that_does_not_exist_is_refused(count, pool):
    with pytest.raises(PluginError, match=f"gradient_layers is {count}.* has 1 to 2"):
        engine_of(with_lora(llama()), gradient_layers=count)(pool, ["grad_norm"])


def test_last_layers_without_adapters_are_refused(pool):
    adapted = with_lora(llama(), target_modules=["q_proj"], layers_to_transform=[0])
    with pytest.raises(ModelError, match=r"in its last 1 decoder layer"):
        engine_of(adapted, gradient_layers=1)(pool, ["grad_norm"])


def test_a_weight_that_two_layers_share_is_refused(pool):
    model = llama()
    single, other = (layer.mlp.up_proj for layer in model.model.layers)
    other.weight = single.weight
    with pytest.raises(ModelError, match=r"up_proj.weight' is shared by 2 layers"):
        engine_of(model)(pool, ["grad_norm"])


def test_trainable_matrices_that_are_no_linear_layer_are_refused(pool):
    model = llama()
    model.model.layers[0].mlp.experts = nn.Parameter(torch.zeros(3, 4, 5))
    with pytest.raises(ModelError, match=r"layers.0.mlp.experts' is trainable and none"):
        engine_of(model)(pool, ["grad_norm"])
    model.model.layers[0].mlp.experts.requires_grad_(False)
    assert np.isfinite(engine_of(model)(pool, ["grad_norm"])["grad_norm"]).all()
