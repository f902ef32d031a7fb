"""LoRA on the input embedding, whose factor A is looked up by token id, against autograd one example at a time."""

import numpy as np
import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GPT2Config, GPT2LMHeadModel

from longgame.errors import ModelError
from longgame.signals import projection
from longgame.signals.engine import SignalEngine
from longgame.signals.projection import CountSketch
from support.signals import VOCABULARY, llama, perturb, random_pool, with_lora
from support.signals_exact import assert_exact, engine_of


def embedded(model, **changes):
    """LoRA on the embedding and on one linear layer; PEFT starts an embedding's A at 0, here it is moved."""
    adapted = with_lora(model, **({"target_modules": ["embed_tokens", "q_proj"]} | changes))
    perturb(adapted, "lora_embedding_A", 0.1, 5)
    return adapted


@pytest.mark.parametrize("changes", [{}, {"use_rslora": True}, {"target_modules": ["embed_tokens"]}])
def test_gradients_equal_the_autograd_loop(changes, pool):
    assert_exact(embedded(llama(), **changes), pool)


def test_tokens_that_occur_often_and_the_padding_token_are_counted_as_autograd_counts_them():
    """Seven different tokens; the row of the padding index gets no gradient, although the token occurs."""
    model = embedded(llama(pad_token_id=3))
    assert model.get_input_embeddings().base_layer.padding_idx == 3
    pool = random_pool(vocabulary=7)
    assert any((ids == 3).any() for ids in pool.input_ids)
    assert_exact(model, pool)


def test_untied_and_scaled_embeddings_are_exact(pool):
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


def test_batches_of_any_size_agree(pool):
    model = embedded(llama())
    whole, single = (engine_of(model, max_batch_tokens=size)(pool, ["grad_norm", "grad_sketch"]) for size in (4096, 1))
    for name in whole:
        np.testing.assert_allclose(single[name], whole[name], rtol=1e-5, atol=1e-6 * np.abs(whole[name]).max())


def test_a_sketch_of_few_entries_is_the_sketch_of_the_filled_out_vector(monkeypatch):
    monkeypatch.setattr(projection, "_BLOCK", 10)
    entry = torch.tensor([[0, 36, 17, 9], [10, -1, 5, 5]])
    value = torch.tensor([[1.0, -2.0, 3.0, 0.5], [4.0, 9.0, 1.0, 2.0]])
    dense = torch.zeros(2, 37)
    dense[0, [0, 36, 17, 9]] = value[0]
    dense[1, 10], dense[1, 5] = 4.0, 3.0  # −1 stands for nothing, and 5 came twice
    sketch = CountSketch(8, 3)
    torch.testing.assert_close(sketch.project_entries("w", 37, entry, value), sketch.project("w", dense))


def test_an_embedding_of_positions_is_refused(pool):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=24, n_layer=2, n_head=2))
    adapted = with_lora(model, target_modules=["wpe", "c_attn"], fan_in_fan_out=True)
    with pytest.raises(ModelError, match="'transformer.wpe' is another embedding"):
        SignalEngine(adapted, pad_token_id=0)(pool, ["grad_norm"])


def test_dora_on_an_embedding_is_refused(pool):
    adapted = with_lora(llama(), target_modules=["embed_tokens"], use_dora=True)
    with pytest.raises(ModelError, match="input embedding.*Dora"):
        SignalEngine(adapted, pad_token_id=0, sketch_dim=64)(pool, ["grad_norm"])
