"""Full fine-tuning: gradients of the weight matrices."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from longgame.errors import ModelError
from longgame.signals.projection import CountSketch
from support.signals import VOCABULARY, autograd_gradients, llama, perturb, random_pool
from support.signals_exact import DIM, SEED, engine_of


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
def test_the_head_and_the_embedding_it_may_be_tied_to_are_left_out(tied):
    model = llama(tie_word_embeddings=tied)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    assert_full_exact(model, random_pool(), lambda name: name.endswith("proj.weight"))


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
