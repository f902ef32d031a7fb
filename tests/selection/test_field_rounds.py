"""Methods of the field with a state: curriculum, selective backprop, online coreset selection."""

from __future__ import annotations

import math

import numpy as np
import pytest

from longgame.errors import PluginError, RecipeError
from longgame.selection.base import build_selector
from longgame.selection.methods.curriculum import CurriculumSelector
from longgame.selection.methods.ocs import OCSSelector
from longgame.selection.methods.selective_backprop import SelectiveBackpropSelector

LEVELS = [0.9, 0.7, 0.5, 0.3, 0.1]
"""Difficulty of a, b, c, d, e."""


def test_curriculum_threshold_rises_by_the_published_pace(world) -> None:
    scene, selector = world([1] * 5, difficulty=LEVELS), CurriculumSelector(start=0.2, rounds=4)
    thresholds = [scene.select(selector, 2).scores["threshold"][0] for _ in range(6)]
    expected = [math.sqrt(t * (1 - 0.04) / 4 + 0.04) for t in range(5)]
    assert thresholds == pytest.approx([*expected[:4], 1.0, 1.0])


def test_curriculum_draws_below_the_threshold_only(world) -> None:
    scene = world([1] * 5, difficulty=LEVELS)
    for seed in range(20):
        assert set(scene.picks(CurriculumSelector(start=0.5), 2, seed=seed)) <= set("cde")
    firsts = [scene.picks(CurriculumSelector(start=0.5), 1, seed=seed) for seed in range(600)]
    counts = np.array([firsts.count(name) for name in "cde"])
    assert ((counts - 200) ** 2 / 200).sum() < 13.8  # chi-square, 2 degrees of freedom, p = .001


def test_curriculum_fills_up_with_the_nearest_above(world) -> None:
    scene = world([1] * 5, difficulty=LEVELS)
    assert scene.picks(CurriculumSelector(start=0.2), 4) == "edcb"


def test_anti_curriculum_is_hard_first(world) -> None:
    scene = world([1] * 5, difficulty=LEVELS)
    assert scene.picks(CurriculumSelector(order="hard-first", start=0.2), 3) == "abc"


def test_curriculum_starts_again_with_every_stage(world) -> None:
    scene, selector = world([1] * 5, difficulty=LEVELS), CurriculumSelector(start=0.2, rounds=1)
    scene.select(selector, 2)
    assert selector.threshold == 1.0
    selector.begin_stage()
    assert scene.picks(selector, 2) == "ed"


def test_curriculum_by_loss_ranks_the_candidates_of_the_round(world) -> None:
    scene = world([1] * 5, loss=[9.0, 4.0, 2.0, 1.0, 0.5])
    selection = scene.select(CurriculumSelector(by="loss", start=0.2), 2)
    assert selection.scores["difficulty"].tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert scene.names(selection) == "ed"


def test_selective_backprop_samples_in_proportion_to_percentiles(world) -> None:
    # percentiles ⅓, ⅔, 1; β = 2: weights 1 : 4 : 9
    scene = world([1] * 3, loss=[0.1, 0.2, 7.0])
    firsts = [scene.picks(SelectiveBackpropSelector(beta=2), 1, seed=seed) for seed in range(2800)]
    counts = np.array([firsts.count(name) for name in "abc"])
    expected = np.array([200, 800, 1800])
    assert ((counts - expected) ** 2 / expected).sum() < 13.8  # chi-square, 2 degrees of freedom, p = .001


def test_selective_backprop_is_no_top_k(world) -> None:
    scene = world([1] * 3, loss=[0.1, 0.2, 7.0])
    assert len({scene.picks(SelectiveBackpropSelector(), 1, seed=seed) for seed in range(50)}) == 3


def test_selective_backprop_ranks_among_earlier_losses(world) -> None:
    selector = SelectiveBackpropSelector()
    world([1] * 4, loss=[5.0, 6.0, 7.0, 8.0]).select(selector, 1)  # one is picked, all four are remembered
    low = world([1] * 2, loss=[1.0, 6.5]).select(selector, 2)
    assert low.scores["percentile"] == pytest.approx([1 / 6, 4 / 6])
    selector.begin_stage()
    assert world([1] * 2, loss=[1.0, 6.5]).select(selector, 2).scores["percentile"] == pytest.approx([0.5, 1.0])


def test_selective_backprop_forgets_the_oldest_losses(world) -> None:
    selector = SelectiveBackpropSelector(memory=2)
    for loss in ([9.0, 9.0], [1.0, 1.0]):
        world([1] * 2, loss=loss).select(selector, 2)
    assert world([1], loss=[5.0]).select(selector, 1).scores["percentile"] == pytest.approx([1.0])


def slow_ocs(rows: np.ndarray, memory: np.ndarray | None, tau: float) -> list[float]:
    def cosine(left: np.ndarray, right: np.ndarray) -> float:
        lengths = math.sqrt(left @ left) * math.sqrt(right @ right)
        return float(left @ right / lengths) if lengths else 0.0

    mean = sum(rows) / len(rows)
    scores = []
    for place, row in enumerate(rows):
        others = [cosine(row, other) for number, other in enumerate(rows) if number != place]
        affinity = 0.0 if memory is None else cosine(row, memory)
        scores.append(cosine(row, mean) - (sum(others) / len(others) if others else 0.0) + tau * affinity)
    return scores


@pytest.mark.parametrize("seed", range(5))
def test_ocs_score_is_the_formula(world, seed: int) -> None:
    rng = np.random.default_rng(seed)
    selector = OCSSelector(memory_weight=2.0)
    first, second = rng.standard_normal((2, 8, 4)).astype(np.float32)
    second[0] = 0.0
    scene = world([1] * 8, grad_sketch=first)
    picked = scene.select(selector, 3)
    assert picked.scores["score"] == pytest.approx(slow_ocs(first.astype(float), None, 2.0), abs=1e-6)
    selector.begin_stage()
    memory = first[picked.rows].astype(float).mean(axis=0)
    scores = world([1] * 8, grad_sketch=second).select(selector, 3).scores["score"]
    assert scores == pytest.approx(slow_ocs(second.astype(float), memory, 2.0), abs=1e-6)


def test_ocs_diversity_leaves_out_the_candidate_itself(world) -> None:
    # orthogonal gradients have a mean cosine of 0 with the others; with itself it would be ⅓
    scores = world([1] * 3, grad_sketch=np.eye(3)).select(OCSSelector(), 3).scores
    assert scores["diversity"] == pytest.approx([0.0, 0.0, 0.0], abs=1e-7)
    assert world([1], grad_sketch=[[1.0, 0.0]]).select(OCSSelector(), 1).scores["diversity"].tolist() == [0.0]


def test_ocs_memory_is_of_earlier_stages_only(world) -> None:
    selector = OCSSelector()
    scene = world([1] * 2, grad_sketch=[[1.0, 0.0], [0.0, 1.0]])
    for _ in range(2):
        assert scene.select(selector, 1).scores["affinity"].tolist() == [0.0, 0.0]
    selector.begin_stage()
    assert scene.select(selector, 1).scores["affinity"].tolist() == [1.0, 0.0]
    restored = OCSSelector()
    restored.load_state_dict(selector.state_dict())
    assert scene.select(restored, 1).scores["affinity"].tolist() == [1.0, 0.0]


def test_ocs_refuses_sketches_of_another_width(world) -> None:
    selector = OCSSelector()
    world([1] * 2, grad_sketch=[[1.0, 0.0], [0.0, 1.0]]).select(selector, 1)
    selector.begin_stage()
    with pytest.raises(PluginError, match="width 3 came after ones of width 2"):
        world([1] * 2, grad_sketch=np.eye(3)[:2]).select(selector, 1)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("curriculum", {"order": "easy"}),
        ("curriculum", {"start": 0}),
        ("curriculum", {"rounds": 0}),
        ("selective-backprop", {"beta": -1}),
        ("selective-backprop", {"memory": 0}),
        ("ocs", {"memory_weight": math.inf}),
    ],
)
def test_parameters_out_of_range_are_refused(name, parameters) -> None:
    with pytest.raises(RecipeError, match=f"selector '{name}'"):
        build_selector(name, parameters)
