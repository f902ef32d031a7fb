"""Adaptations: drift by low-rank traces against dense matrices, forks, the frozen base, files."""

import importlib.util

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from longgame.errors import ModelError
from longgame.models.adaptation import (
    ADAPTATIONS,
    QLoraAdaptation,
    adapt,
    adaptation_of,
    dense_movement,
    low_rank_movement,
)
from longgame.models.load import load_model
from longgame.models.lora import Factors
from longgame.recipe import ADAPTATION_KINDS, ModelSpec
from longgame.seeding import generator

SHAPES = [(12, 7, 3, 0.5), (5, 9, 2, 2.0)]


def adapter(name):
    rng = generator(0, name)
    return [Factors(rng.standard_normal((out, r)), rng.standard_normal((r, into)), s) for out, into, r, s in SHAPES]


def dense(modules):
    return [scale * B @ A for B, A, scale in modules]


def changes(before, after):
    return [(past, now - past) for past, now in zip(dense(before), dense(after), strict=True)]


def flat(matrices):
    return np.concatenate([matrix.ravel() for matrix in matrices])


def test_low_rank_movement_equals_the_dense_one():
    before, after = adapter("before"), adapter("after")
    past, update = flat(dense(before)), flat(dense(after)) - flat(dense(before))
    cosine = update @ past / np.linalg.norm(update) / np.linalg.norm(past)
    expected = (pytest.approx(1 - cosine), pytest.approx(np.linalg.norm(update)))
    assert low_rank_movement(before, after) == expected
    assert dense_movement(changes(before, after)) == expected


def test_drift_does_not_depend_on_the_gauge_of_the_factors():
    before, after = adapter("before"), adapter("after")
    rng = generator(1, "gauge")

    def turned(modules):
        result = []
        for B, A, scale in modules:
            G = rng.standard_normal((A.shape[0],) * 2) + 3 * np.eye(A.shape[0])
            result.append(Factors(B @ G / 2, np.linalg.solve(G, A), 2 * scale))
        return result

    assert low_rank_movement(turned(before), turned(after)) == pytest.approx(low_rank_movement(before, after))


def test_drift_is_0_onwards_1_across_2_back():
    def drift(first, second):
        before, after = ([Factors(np.eye(2), np.diag(at), 1.0)] for at in (first, second))
        return low_rank_movement(before, after).drift

    assert drift((1, 0), (3, 0)) == pytest.approx(0, abs=1e-12)
    assert drift((1, 0), (1, 5)) == pytest.approx(1)
    assert drift((1, 0), (0.5, 0)) == pytest.approx(2)
    # past (1, 0), update (1, 1): 1 − 1/√2
    assert drift((1, 0), (2, 1)) == pytest.approx(1 - np.sqrt(0.5))


def test_drift_is_unmeasured_at_stage_1_and_when_nothing_moved():
    before = adapter("before")
    start = [Factors(np.zeros_like(B), A, scale) for B, A, scale in before]
    assert np.isnan(low_rank_movement(start, before).drift)
    assert np.isnan(low_rank_movement(before, before).drift)
    assert np.isnan(dense_movement([(np.zeros(3), np.ones(3))]).drift)


def test_a_tiny_step_of_a_large_float32_adapter_keeps_its_length():
    B, A, _ = adapter("before")[0]
    B, A = (1e3 * B).astype(np.float32), A.astype(np.float32)
    step = np.zeros_like(B)
    step[0, 0] = 1.0
    exact = ((B + step)[0, 0].astype(float) - B[0, 0].astype(float)) * A[0].astype(float)
    found = low_rank_movement([Factors(B, A, 1.0)], [Factors(B + step, A, 1.0)])
    assert found.norm == pytest.approx(np.linalg.norm(exact), rel=1e-9)


def tiny(kind="lora"):
    """The tiny model, adapted."""
    spec = ModelSpec(name="tiny", adaptation=kind)
    return adapt(load_model(spec).model, spec, 0)


def step(adaptation, seed, size=0.02):
    """Move every trained weight."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adaptation.trained().values():
            parameter += size * torch.randn(parameter.shape, generator=noise)


@torch.no_grad()
def logits(adaptation):
    return adaptation.model(input_ids=torch.arange(3, 15)[None]).logits


KINDS = pytest.mark.parametrize("kind", ["full", "lora", "dora"])


def test_recipes_and_classes_name_the_same_adaptations():
    assert set(ADAPTATIONS) == set(ADAPTATION_KINDS)


@KINDS
def test_the_frozen_base_is_the_model_before_training(kind):
    adaptation = tiny(kind)
    base, kept = logits(adaptation), adaptation.copy()
    step(adaptation, 1)
    moved = logits(adaptation)
    assert not torch.allclose(moved, base, atol=1e-2)
    with adaptation.frozen_base():
        torch.testing.assert_close(logits(adaptation), base, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(adaptation), moved)
    adaptation.restore(kept)
    assert torch.equal(logits(adaptation), base)


@KINDS
def test_saved_weights_come_back_exactly(kind, tmp_path):
    adaptation = tiny(kind)
    step(adaptation, 1)
    adaptation.save(tmp_path)
    again = tiny(kind)
    again.load(tmp_path)
    assert torch.equal(logits(again), logits(adaptation))
    assert not list(tmp_path.glob("*.bin"))


@torch.no_grad()
def effective(adaptation):
    """Every linear layer's weight as it acts: an identity matrix sent through the layer."""
    parts = [part for part in adaptation.model.get_decoder().modules() if isinstance(part, LoraLayer)]
    return torch.cat([part(torch.eye(part.in_features)[None])[0].double().flatten() for part in parts])


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_movement_is_that_of_the_effective_weights(kind):
    adaptation = tiny(kind)
    weights, before = [effective(adaptation)], None
    for seed in (1, 2):
        before = adaptation.copy()
        step(adaptation, seed)
        weights.append(effective(adaptation))
    past, update = weights[1] - weights[0], weights[2] - weights[1]
    found = adaptation.movement(before)
    assert found.norm == pytest.approx(float(update.norm()), rel=1e-4)
    assert found.drift == pytest.approx(1 - float(update @ past / update.norm() / past.norm()), abs=1e-4)


def test_a_model_given_by_its_user_keeps_no_frozen_base_in_full():
    model = load_model(ModelSpec(name="tiny")).model
    with pytest.raises(ModelError, match="trained in full.*Train an adapter"), adaptation_of(model).frozen_base():
        pass


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_qlora_without_bitsandbytes_says_what_to_install():
    with pytest.raises(ModelError, match=r"needs bitsandbytes.*longgame\[qlora\]"):
        load_model(ModelSpec(name="tiny", adaptation="qlora"))


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_qlora_trains_float32_factors_on_a_four_bit_base(tmp_path):
    spec = ModelSpec(name="tiny", adaptation="qlora")
    adaptation = adapt(load_model(spec).model, spec, 0)
    assert isinstance(adaptation, QLoraAdaptation)
    assert "Linear4bit" in type(adaptation.model.get_decoder().layers[0].mlp.up_proj).__name__
    assert {weight.dtype for weight in adaptation.trained().values()} == {torch.float32}
    before = adaptation.copy()
    step(adaptation, 1)
    assert adaptation.movement(before).norm > 0
    adaptation.save(tmp_path)
    assert load_file(tmp_path / "adapter_model.safetensors")
