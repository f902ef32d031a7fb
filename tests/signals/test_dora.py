"""DoRA: A, B and the magnitude, with the weight's norm held constant as the paper and PEFT do."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from longgame.errors import ModelError
from longgame.signals.engine import FORWARD
from support.signals import VOCABULARY, autograd_gradients, llama, perturb, with_lora
from support.signals_exact import assert_exact, engine_of


def dora(model, **changes):
    adapted = with_lora(model, use_dora=True, **changes)
    perturb(adapted, "lora_magnitude", 0.1, 6)
    return adapted


@pytest.mark.parametrize("attention_bias", [False, True])
def test_gradients_of_factors_and_magnitude_equal_the_autograd_loop(attention_bias, pool):
    model = dora(llama(attention_bias=attention_bias))
    gradient = autograd_gradients(model, pool, lambda name: "magnitude" in name)[0]
    assert all(float(part.norm()) > 0 for part in gradient.values())
    assert_exact(model, pool)


def test_dora_on_conv1d_is_exact(pool):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=24, n_layer=2, n_head=2))
    perturb(base, "", 0.05, 3)
    assert_exact(dora(base, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True), pool)


def test_forward_signals_of_dora_are_those_of_the_merged_model(pool):
    model = dora(llama())
    found = engine_of(model)(pool, FORWARD)
    merged = engine_of(model.merge_and_unload())(pool, FORWARD)
    for name in FORWARD:
        assert abs(found[name] - merged[name]).max() < 1e-4 * abs(merged[name]).max(), name


def test_a_magnitude_of_zero_is_refused(pool):
    model = dora(llama())
    with torch.no_grad():
        model.base_model.model.model.layers[1].mlp.up_proj.lora_magnitude_vector["default"].weight[3] = 0
    with pytest.raises(ModelError, match="layers.1.mlp.up_proj' holds a 0"):
        engine_of(model)(pool, ["grad_norm"])
