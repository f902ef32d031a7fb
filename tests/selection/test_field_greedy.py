"""Methods of the field that pick one by one, GREATS and BADGE, each against its formula."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longgame.errors import PluginError, RecipeError
from longgame.selection.algorithms import clusters
from longgame.selection.algorithms.clusters import kmeans_plus_plus
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


# BADGE


def draws_of(points: np.ndarray, budget: int, times: int, costs=None) -> list[tuple[int, ...]]:
    costs = np.ones(len(points), dtype=np.int64) if costs is None else costs
    return [
        tuple(kmeans_plus_plus(points, costs, budget, np.random.default_rng(seed))[0].tolist()) for seed in range(times)
    ]


def test_badge_draws_by_squared_distance_neither_rooted_nor_squared_twice() -> None:
    """The fault of published code: D² taken of a distance that is already rooted, or squared already."""
    points = np.array([[0.0], [1.0], [3.0]])
    pairs = [pick for pick in draws_of(points, 2, 4500) if pick[0] == 0]
    share = np.mean([pick[1] == 2 for pick in pairs])
    # 9 : 1; rooted it would be .75, squared twice .988
    assert share == pytest.approx(0.9, abs=0.02)
    assert len(pairs) == pytest.approx(1500, abs=130)  # the first is uniform


def textbook(points: np.ndarray, count: int, rng: np.random.Generator) -> tuple[int, ...]:
    picks = [int(rng.integers(len(points)))]
    while len(picks) < count:
        squared = ((points[:, None] - points[picks][None]) ** 2).sum(axis=2).min(axis=1)
        picks.append(int(rng.choice(len(points), p=squared / squared.sum())))
    return tuple(picks)


@pytest.mark.parametrize("share", [0.25, 5.0])
def test_badge_proposals_draw_as_the_textbook_does(monkeypatch, share) -> None:
    points = np.array([[0, 0], [0, 1], [2, 0], [2.5, 0.5], [5, 1], [5, 3.0]])
    monkeypatch.setattr(clusters, "_PROPOSED", share)  # of rows proposed at a time
    ours = [frozenset(picks) for picks in draws_of(points, 3, 2500)]
    theirs = [frozenset(textbook(points, 3, np.random.default_rng(10_000 + seed))) for seed in range(2500)]
    for chosen in set(ours) | set(theirs):
        counts = ours.count(chosen), theirs.count(chosen)
        assert abs(counts[0] - counts[1]) < 4.5 * (sum(counts) + 1) ** 0.5


def test_badge_rejects_what_an_earlier_proposal_came_near_to() -> None:
    # 40 groups of 5 near points: after 40 picks each group should have one, however many were proposed together
    rng = np.random.default_rng(0)
    centers = 10 * rng.standard_normal((40, 8))
    points = np.repeat(centers, 5, axis=0) + 1e-2 * rng.standard_normal((200, 8))
    picks = kmeans_plus_plus(points, np.ones(200, dtype=np.int64), 40, rng)[0]
    assert len(set((picks // 5).tolist())) == 40


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 30))
def test_badge_distance_is_that_to_the_nearest_earlier_pick(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    points, costs = rng.standard_normal((n, 3)), rng.integers(1, 6, n)
    budget = max(int(costs.min()), int(costs.sum()) // 2)
    picks, distance = kmeans_plus_plus(points, costs, budget, rng)
    apart = np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=2))
    for place, pick in enumerate(picks.tolist()):
        expected = apart[pick, picks[:place]].min() if place else apart[pick].max()
        assert distance[pick] == pytest.approx(expected, abs=2e-3)
    others = np.setdiff1d(np.arange(n), picks)
    np.testing.assert_allclose(distance[others], apart[others][:, picks].min(axis=1), atol=2e-3)
    assert costs[picks].sum() <= budget
    assert not len(others) or costs[others].min() > budget - costs[picks].sum()


@pytest.mark.parametrize("unit", [1e-30, 1.0, 1e30])
def test_badge_draws_do_not_depend_on_the_unit(unit) -> None:
    points = np.random.default_rng(1).standard_normal((30, 4))
    assert draws_of(points * unit, 10, 3) == draws_of(points, 10, 3)


def test_badge_draws_copies_last() -> None:
    points = np.array([[1.0, 2.0]] * 5 + [[0.0, 0.0], [7.0, 1.0]])
    for picks in draws_of(points, 7, 30):
        assert len(set(picks)) == 7
        assert {5, 6} <= set(picks[:3])


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
