"""Methods of the field that pick one by one, GREATS and BADGE, each against its formula."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longgame.errors import PluginError, RecipeError
from longgame.selection.base import build_selector
from longgame.selection.methods import greats
from longgame.selection.methods.greats import GREATSSelector
from tests.selection.conftest import World


def many(n: int, tokens=None, **columns) -> World:
    return World([1] * n if tokens is None else tokens, ids=[f"{row:04}" for row in range(n)], **columns)


# GREATS


def slow_greats(sketches, target, costs, budget, eta) -> list[int]:
    """Every sum anew before every pick."""
    picks, left = [], budget
    while True:
        values = {
            row: eta * (sketches[row] @ target) - eta**2 * sum(sketches[row] @ sketches[other] for other in picks)
            for row in range(len(sketches))
            if row not in picks and costs[row] <= left
        }
        if not values:
            return picks
        pick = max(values, key=lambda row: (values[row], -row))
        picks.append(pick)
        left -= costs[pick]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 25), st.sampled_from([1e-4, 0.3, 2.0]), st.booleans())
def test_greats_picks_are_those_of_the_published_sum(seed: int, n: int, eta: float, in_pairs: bool) -> None:
    rng = np.random.default_rng(seed)
    sketches, target = rng.standard_normal((n, 4)).astype(np.float32), rng.standard_normal(4).astype(np.float32)
    costs = rng.integers(2, 9, n)
    budget = max(int(costs.min()), int(costs.sum()) // 2)
    scene = many(n, costs, grad_sketch=sketches, target_gradient=target)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(greats, "_PAIRS", 1 << 20 if in_pairs else 0)
        picked = scene.select(GREATSSelector(learning_rate=eta), budget)
    assert picked.rows.tolist() == slow_greats(sketches.astype(float), target.astype(float), costs, budget, eta)


def test_greats_numbers_by_hand(world) -> None:
    # alignment 3, 2.9, 1; with η = 1 the second pick pays 9 for b and 0 for c
    scene = world([1] * 3, grad_sketch=[[3, 0], [2.9, 0], [0, 1]], target_gradient=[1, 1])
    assert scene.picks(GREATSSelector(learning_rate=1.0), 2) == "ac"
    assert scene.picks(GREATSSelector(learning_rate=0.001), 2) == "ab"
    selection = scene.select(GREATSSelector(learning_rate=1.0), 2)
    assert selection.scores["alignment"] == pytest.approx([3, 2.9, 1])
    assert selection.scores["score"] == pytest.approx([3, 2.9 - 8.7, 1])


@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])
def test_greats_redundancy_does_not_vanish_with_the_scale(world, unit) -> None:
    """The fault of the published form: at a small learning rate, or small gradients, it is a top-k of alignments."""
    sketches = np.array([[3, 0], [2.9, 0], [0, 1]]) * unit
    scene = world([1] * 3, grad_sketch=sketches, target_gradient=np.array([1, 1]) * unit)
    assert scene.picks(GREATSSelector(redundancy=0), 2) == "ab"
    assert scene.picks(GREATSSelector(redundancy=2), 2) == "ac"


def test_greats_redundancy_counts_a_full_set_of_picks_as_the_target(world) -> None:
    # all candidates are the target's gradient: after k/2 picks half of the alignment is left
    scene = many(8, grad_sketch=[[2.0]] * 8, target_gradient=[2.0])
    score = scene.select(GREATSSelector(), 4).scores["score"]
    assert score[:4].tolist() == [4.0, 3.0, 2.0, 1.0]


@pytest.mark.parametrize("name", ["great", "GREATS", "greats-v2"])
def test_greats_under_another_name_is_no_empty_selection(name) -> None:
    """The fault of published code: a method that it does not know selects nothing, without a word."""
    with pytest.raises(RecipeError, match="unknown selector"):
        build_selector(name)


def test_greats_needs_one_sketch_for_candidates_and_target(world) -> None:
    scene = world([1] * 2, grad_sketch=[[1, 2], [2, 1]], target_gradient=[1])
    with pytest.raises(PluginError, match="2 numbers and the target's 1"):
        scene.select(GREATSSelector(), 2)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("greats", {"redundancy": -1}),
        ("greats", {"learning_rate": 0}),
        ("greats", {"learning_rate": float("nan")}),
    ],
)
def test_parameters_of_greedy_methods_are_checked(name, parameters) -> None:
    with pytest.raises(RecipeError, match=f"selector '{name}'"):
        build_selector(name, parameters)
