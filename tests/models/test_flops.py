"""FLOPs by hand, and against torch's own counter on the tiny model."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from longgame.data.examples import Example, Pool
from longgame.models.adaptation import adapt, adaptation_of
from longgame.models.flops import ModelFlops
from longgame.models.head import response_loss
from longgame.models.load import load_model
from longgame.recipe import ModelSpec
from longgame.signals.flops import predicted_tokens, signal_flops, training_flops
from tests.support.training import make_model

SIZES = ModelFlops(dense=10, lora=3, attention=4, hidden=2, head=14, logit_sketch=(2, 3))


def pool_of(*lengths):
    prompt, response = (np.array(side) for side in zip(*lengths, strict=True))
    ids = tuple(np.arange(total) % 5 for total in prompt + response)
    return Pool(tuple(Example(f"e{row}", "p", "r") for row in range(len(ids))), ids, prompt, response)


POOL = pool_of((3, 2), (0, 4))
"""T = 5 and 4; P = 2, and 3 because nothing stands before the first token."""


def test_predicted_tokens_have_a_token_before_them():
    assert predicted_tokens(POOL).tolist() == [2, 3]


def test_learning_costs_what_one_counts_by_hand():
    # T=5, P=2: forward 2·13·5 + 4·4·25 + 2·14·2 = 130 + 400 + 56; backward 130 + 8·4·25 + 56, and 2·3·5 for the factors
    # T=4, P=3: forward 2·13·4 + 4·4·16 + 2·14·3 = 104 + 256 + 84; backward 104 + 8·4·16 + 84, and 2·3·4
    assert training_flops(SIZES, POOL).tolist() == [586 + 986 + 30, 444 + 700 + 24]
    full = dataclasses.replace(SIZES, lora=0, trains_dense=True, trains_head=True)
    # forward 100 + 400 + 56; backward 100 + 800 + 56; weights 100 + 56
    assert training_flops(full, POOL)[0] == 556 + 956 + 156


@pytest.mark.parametrize(
    ("names", "first"),
    [
        ((), 0),
        (("quality",), 0),
        (("embedding",), 530),
        (("cluster", "embedding"), 530),
        (("loss",), 586),
        (("difficulty", "embedding"), 586),
        (("el2n", "loss", "quality"), 586),
        (("logit_error_sketch",), 586),
        (("grad_norm",), 586 + 986 + 30),
        (("grad_sketch", "loss"), 586 + 986 + 30),
        (("response_logit_nuclear_norm",), 530 + 2 * 2 * 4 + 2 * 2 * 2 * 2),
        (("response_logit_sketch",), 530 + 2 * 2 * 2 * (2 + 3)),
        (("response_logit_nuclear_norm", "response_logit_sketch", "loss"), 586 + 32 + 40),
        # all 5 positions instead of the response's 2
        (("logit_nuclear_norm", "logit_sketch", "loss"), 586 + 2 * 5 * 4 + 2 * 5 * 2 * 2 + 2 * 2 * 2 * (5 + 3)),
        # behind an empty prompt of 2 tokens: T=4, P=2
        (("loss", "loss_without_prompt"), 586 + 104 + 256 + 56),
    ],
)
def test_one_pass_serves_all_signals(names, first):
    assert signal_flops(SIZES, POOL, names)[0] == first


def test_gradient_signal_leaves_out_the_heads_gradient():
    full = dataclasses.replace(SIZES, lora=0, trains_dense=True, trains_head=True)
    assert training_flops(full, POOL)[0] - signal_flops(full, POOL, ("grad_norm",))[0] == 2 * 14 * 2


def test_soft_cap_makes_logit_signals_read_the_vocabulary():
    capped = dataclasses.replace(SIZES, capped=True)
    assert signal_flops(capped, POOL, ("response_logit_nuclear_norm", "logit_sketch"))[0] == 530 + 56 + 140


def test_sizes_of_a_small_model_are_those_of_its_layers():
    # two layers of 4 · 16² + 3 · 16 · 24; rank 4: 4 · (16 + 16) in four modules, 4 · (16 + 24) in three
    sizes = adaptation_of(make_model()).flops()
    assert sizes == ModelFlops(
        dense=2 * (4 * 256 + 3 * 384), lora=2 * (4 * 128 + 3 * 160), attention=2 * 16, hidden=16, head=16 * 61
    )
    full = adaptation_of(make_model(lora=False)).flops()
    assert full == dataclasses.replace(sizes, lora=0, trains_dense=True, trains_head=True)


def test_weights_outside_linear_layers_leave_a_model_uncounted(caplog):
    model = make_model(lora=False)
    model.model.layers[0].mlp.experts = torch.nn.Parameter(torch.zeros(2, 3, 4))
    assert adaptation_of(model).flops() is None
    assert "layers.0.mlp.experts" in caplog.text


@pytest.fixture(scope="module")
def tiny():
    spec = ModelSpec(name="tiny")
    model = adapt(load_model(spec).model, spec, 0).model
    model.set_attn_implementation("eager")  # the counter knows no kernel of fused attention on a CPU
    return model


def counted(work):
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def inputs_of(prompt, response):
    ids = torch.arange(prompt + response)[None] % 600
    labels = ids.clone()
    labels[:, :prompt] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


@pytest.mark.parametrize(("prompt", "response"), [(40, 24), (100, 60)])
def test_torch_counts_the_same_flops_on_the_tiny_model(tiny, prompt, response):
    sizes, pool = adaptation_of(tiny).flops(), pool_of((prompt, response))
    inputs = inputs_of(prompt, response)
    with torch.no_grad():
        forward = counted(lambda: response_loss(tiny, inputs, response))
    # beside the formula torch sees the rotary table, 2 · (head size / 2) · T: under 0.01 %
    assert forward == pytest.approx(float(signal_flops(sizes, pool, ("loss",))[0]), rel=1e-3)
    learned = counted(lambda: response_loss(tiny, inputs, response).backward())
    # autograd ends at the first layer's q, k and v, whose input asks for no gradient: 2 · 3 · (d² + r d) per token less
    spared = 2 * 3 * (96 * 96 + 16 * 96) * (prompt + response)
    ours = float(training_flops(sizes, pool)[0])
    assert learned == pytest.approx(ours - spared, rel=1e-3)
    assert learned == pytest.approx(ours, rel=0.03)
