"""Adaptations: drift by low-rank traces against dense matrices, forks, the frozen base, files."""

import importlib.util
import re

import numpy as np
import pytest
import torch
from peft.tuners.lora import Embedding, LoraLayer
from safetensors.torch import load_file

from longgame.errors import ModelError
from longgame.models.adaptation import (
    ADAPTATIONS,
    PEFT_KINDS,
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


@pytest.mark.parametrize("init", ["pissa", "olora", "OLoRA"])
def test_a_base_that_the_adapter_moves_is_not_given_as_the_base(init):
    spec = ModelSpec(peft={"init_lora_weights": init})
    adaptation = adapt(load_model(spec).model, spec, 0)
    assert not adaptation.has_base
    with pytest.raises(ModelError, match=f"init_lora_weights is '{init}'.*measured before training"):
        adaptation.frozen_base()


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
    """Every adapted layer's weight as it acts: an identity matrix, or all token ids, sent through the layer."""
    parts = [part for part in adaptation.model.get_decoder().modules() if isinstance(part, LoraLayer)]
    inputs = [torch.arange(p.in_features) if isinstance(p, Embedding) else torch.eye(p.in_features) for p in parts]
    return torch.cat([part(x[None])[0].double().flatten() for part, x in zip(parts, inputs, strict=True)])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"adaptation": "dora"},
        *({"peft": {"init_lora_weights": init}} for init in ("gaussian", "pissa", "OLoRA", "orthogonal", "mica")),
        {"adaptation": "dora", "peft": {"init_lora_weights": "pissa"}},
        {"lora": {"target_modules": ["embed_tokens", "q_proj"]}},
        {"adaptation": "dora", "lora": {"target_modules": ["embed_tokens", "q_proj"]}},
    ],
    ids=str,
)
def test_movement_is_that_of_the_effective_weights(options):
    spec = ModelSpec.model_validate({"name": "tiny"} | options)
    adaptation = adapt(load_model(spec).model, spec, 0)
    weights, before = [effective(adaptation)], None
    for seed in (1, 2):
        before = adaptation.copy()
        assert np.isnan(adaptation.movement(before).drift)  # nothing moves yet
        step(adaptation, seed)
        weights.append(effective(adaptation))
        if seed == 1:
            assert np.isnan(adaptation.movement(before).drift)  # nothing moved before
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


SETTINGS = {"OFT": {"oft_block_size": 4, "r": 0}, "ROAD": {"group_size": 16}}
IDS = torch.arange(3, 15)[None]


def peft_spec(kind):
    layers = {} if kind == "LN_TUNING" else {"target_modules": ["q_proj", "v_proj"]}
    layers |= {"feedforward_modules": []} if kind == "IA3" else {}
    return ModelSpec(adaptation="peft", peft={"type": kind.lower(), **SETTINGS.get(kind, {}), **layers})


@torch.no_grad()
def shake(adaptation):
    for number, parameter in enumerate(adaptation.trained().values()):
        parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))


@pytest.mark.parametrize("kind", PEFT_KINDS)
def test_a_peft_kind_begins_at_the_base_and_comes_back(kind, tmp_path):
    spec = peft_spec(kind)
    with torch.no_grad():
        base = load_model(spec).model(IDS).logits
    adaptation = adapt(load_model(spec).model, spec, 0)
    assert adaptation_of(adaptation.model).trained().keys() == adaptation.trained().keys() != set()
    torch.testing.assert_close(logits(adaptation), base, rtol=0, atol=1e-4)
    before = adaptation.copy()
    shake(adaptation)
    moved = logits(adaptation)
    assert not torch.allclose(moved, base, atol=1e-3)
    with adaptation.frozen_base():
        torch.testing.assert_close(logits(adaptation), base, rtol=0, atol=0)
    adaptation.save(tmp_path)
    other = adapt(load_model(spec).model, spec, 0)
    other.load(tmp_path)
    torch.testing.assert_close(logits(other), moved, rtol=0, atol=0)
    adaptation.restore(before)
    torch.testing.assert_close(logits(adaptation), base, rtol=0, atol=1e-4)
    assert np.isnan(adaptation.movement(before)).all()
    assert adaptation.flops() is None
    assert spec.adaptation_label == kind.lower()


@pytest.mark.parametrize("adaptation", ["lora", "dora"])
def test_modules_to_save_train_move_and_come_back(adaptation, tmp_path):
    spec = ModelSpec(adaptation=adaptation, peft={"modules_to_save": ["lm_head"]})
    with torch.no_grad():
        base = load_model(spec).model(IDS).logits
    first = adapt(load_model(spec).model, spec, 0)
    plain = adapt(load_model(ModelSpec(adaptation=adaptation)).model, ModelSpec(adaptation=adaptation), 0)
    saved = [name for name in first.trained() if "modules_to_save" in name]
    assert len(saved) == 1
    before = first.copy()
    shake(first)
    with first.frozen_base():
        torch.testing.assert_close(logits(first), base, rtol=0, atol=0)
    start = plain.copy()
    plain.restore({name: first.trained()[name].detach() for name in start})
    head = (first.trained()[saved[0]] - before[saved[0]]).norm().item()
    whole, factors = first.movement(before), plain.movement(start)
    assert whole.norm == pytest.approx(np.hypot(factors.norm, head), rel=1e-5)
    first.save(tmp_path)
    second = adapt(load_model(spec).model, spec, 0)
    second.load(tmp_path)
    torch.testing.assert_close(logits(second), logits(first), rtol=0, atol=0)
    assert (first.flops().dense, first.flops().trains_head) == (plain.flops().dense, True)


def test_rank_stabilized_lora_scales_by_the_root_of_the_rank():
    spec = ModelSpec(peft={"use_rslora": True})
    plain, scaled = adapt(load_model(ModelSpec()).model, ModelSpec(), 0), adapt(load_model(spec).model, spec, 0)
    start = plain.copy()
    shake(plain)
    shake(scaled)
    factor = spec.lora.r**0.5
    assert scaled.movement(start).norm == pytest.approx(factor * plain.movement(start).norm, rel=1e-5)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"peft": {"use_rslra": True}}, "no key 'use_rslra'. Did you mean 'use_rslora'?"),
        ({"peft": {"r": 4}}, "model.peft.r is written as model.lora.r"),
        ({"peft": {"use_dora": True}}, "written as model.adaptation: dora"),
        ({"peft": {"task_type": "SEQ_CLS"}}, "no key 'task_type'"),
        ({"peft": {"bias": "all"}}, "so the base is lost"),
        ({"peft": {"init_lora_weights": False}}, "would not begin at the base"),
        ({"peft": {"init_lora_weights": "pisssa"}}, "init_lora_weights"),
        ({"peft": {"type": "LOHA"}}, "set it to peft"),
        ({"adaptation": "peft", "peft": {"type": "LOHAA"}}, "Did you mean 'LOHA'?"),
        ({"adaptation": "peft", "peft": {"type": "LORA"}}, "Use adaptation: lora"),
        ({"adaptation": "peft", "peft": {"type": "PREFIX_TUNING"}}, "no kind that is audited"),
        ({"adaptation": "peft", "peft": {"type": "LOHA", "rnk": 4}}, "no key 'rnk'"),
        (
            {"adaptation": "peft", "peft": {"type": "LOHA", "target_modules": ["none"]}},
            "PEFT cannot put loha",
        ),
        (
            {"peft": {"modules_to_save": ["lm_haed"]}},
            "which no layer of LlamaForCausalLM is called. Did you mean 'lm_head'?",
        ),
    ],
)
def test_a_peft_key_that_cannot_be_used_is_one_sentence(spec, message):
    with pytest.raises(ModelError, match=re.escape(message)):
        adapt(load_model(ModelSpec()).model, ModelSpec(**spec), 0)
