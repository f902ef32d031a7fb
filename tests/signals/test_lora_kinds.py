"""Gradient signals of LoRA's other kinds, against autograd one example at a time.

DoRA: A, B and the magnitude, with the weight's norm held constant as the paper and PEFT do. LoRA on the input
embedding: its factor A is looked up by token id.
"""

import numpy as np
import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GPT2Config, GPT2LMHeadModel

from longgame.errors import ModelError
from longgame.signals import projection
from longgame.signals.engine import FORWARD, SignalEngine
from longgame.signals.projection import CountSketch
from support.signals import VOCABULARY, autograd_gradients, llama, perturb, random_pool, with_lora
from support.signals_exact import assert_exact, engine_of


def dora(model, **changes):
    adapted = with_lora(model, use_dora=True, **changes)
    perturb(adapted, "lora_magnitude", 0.1, 6)
    return adapted


@pytest.mark.parametrize("attention_bias", [False, True])
def test_dora_gradients_equal_the_autograd_loop(attention_bias, pool):
    model = dora(llama(attention_bias=attention_bias))
    gradient = autograd_gradients(model, pool, lambda name: "magnitude" in name)[0]
    assert all(float(part.norm()) > 0 for part in gradient.values())
    assert_exact(model, pool)


def test_dora_gradients_on_conv1d_equal_the_autograd_loop(pool):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=24, n_layer=2, n_head=2))
    perturb(base, "", 0.05, 3)
    assert_exact(dora(base, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True), pool)


def test_dora_forward_signals_are_those_of_the_merged_model(pool):
    model = dora(llama())
    found = engine_of(model)(pool, FORWARD)
    merged = engine_of(model.merge_and_unload())(pool, FORWARD)
    for name in FORWARD:
        assert abs(found[name] - merged[name]).max() <= 1e-4 * abs(merged[name]).max(), name


def test_dora_magnitude_of_zero_is_refused(pool):
    model = dora(llama())
    with torch.no_grad():
        model.base_model.model.model.layers[1].mlp.up_proj.lora_magnitude_vector["default"].weight[3] = 0
    with pytest.raises(ModelError, match="layers.1.mlp.up_proj' holds a 0"):
        engine_of(model)(pool, ["grad_norm"])


def embedded(model, **changes):
    """LoRA on the embedding and on one linear layer; PEFT starts an embedding's A at 0, here it is moved."""
    adapted = with_lora(model, **({"target_modules": ["embed_tokens", "q_proj"]} | changes))
    perturb(adapted, "lora_embedding_A", 0.1, 5)
    return adapted


@pytest.mark.parametrize("changes", [{}, {"use_rslora": True}, {"target_modules": ["embed_tokens"]}])
def test_embedding_gradients_equal_the_autograd_loop(changes, pool):
    assert_exact(embedded(llama(), **changes), pool)


def test_embedding_repeated_and_padding_tokens_are_exact():
    """Seven different tokens; the row of the padding index gets no gradient, although the token occurs."""
    model = embedded(llama(pad_token_id=3))
    assert model.get_input_embeddings().base_layer.padding_idx == 3
    pool = random_pool(vocabulary=7)
    assert any((ids == 3).any() for ids in pool.input_ids)
    assert_exact(model, pool)


def test_embedding_untied_or_scaled_is_exact(pool):
    assert_exact(embedded(llama(tie_word_embeddings=False)), pool)
    config = Gemma3TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=12,
        intermediate_size=40,
        pad_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Gemma3ForCausalLM(config)
    perturb(model, "", 0.1, 4)
    assert float(model.get_input_embeddings().embed_scale) == pytest.approx(24**0.5, rel=1e-2)
    assert_exact(embedded(model), pool)


def test_embedding_batches_of_any_size_agree(pool):
    model = embedded(llama())
    full, single = (engine_of(model, max_batch_tokens=size)(pool, ["grad_norm", "grad_sketch"]) for size in (4096, 1))
    for name in full:
        np.testing.assert_allclose(single[name], full[name], rtol=1e-5, atol=1e-6 * np.abs(full[name]).max())


def test_sketch_of_few_entries_is_that_of_the_dense_vector(monkeypatch):
    monkeypatch.setattr(projection, "_BLOCK", 10)
    entry = torch.tensor([[0, 36, 17, 9], [10, -1, 5, 5]])
    value = torch.tensor([[1.0, -2.0, 3.0, 0.5], [4.0, 9.0, 1.0, 2.0]])
    dense = torch.zeros(2, 37)
    dense[0, [0, 36, 17, 9]] = value[0]
    dense[1, 10], dense[1, 5] = 4.0, 3.0  # −1 stands for nothing, and 5 came twice
    sketch = CountSketch(8, 3)
    torch.testing.assert_close(sketch.project_entries("w", 37, entry, value), sketch.project("w", dense))


def test_embedding_of_positions_is_refused(pool):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=24, n_layer=2, n_head=2))
    adapted = with_lora(model, target_modules=["wpe", "c_attn"], fan_in_fan_out=True)
    with pytest.raises(ModelError, match="'transformer.wpe' is another embedding"):
        SignalEngine(adapted, pad_token_id=0)(pool, ["grad_norm"])


def test_dora_on_an_embedding_is_refused(pool):
    adapted = with_lora(llama(), target_modules=["embed_tokens"], use_dora=True)
    with pytest.raises(ModelError, match="input embedding.*Dora"):
        SignalEngine(adapted, pad_token_id=0, sketch_dim=64)(pool, ["grad_norm"])
