from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longgame.selection.algorithms import facility
from longgame.selection.algorithms.facility import facility_location
from longgame.selection.methods.diversity import DiversitySelector


def similarities(points: np.ndarray) -> np.ndarray:
    unit = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-300)
    return np.maximum(unit.astype(np.float64) @ unit.T, 0.0)


def check_greedy(points: np.ndarray, tokens: np.ndarray, budget: int, picks: list[int], forced: bool) -> None:
    """Every gain anew for every pick: none that fits is larger than that of the pick, and the budget is filled."""
    similar = similarities(points)
    reached, left, rest = np.zeros(len(points)), budget, set(range(len(points)))
    for number, pick in enumerate(picks):
        fits = [row for row in rest if tokens[row] <= left]
        gain = {row: np.maximum(similar[row] - reached, 0).sum() / tokens[row] for row in fits}
        if number or not forced:
            assert gain[pick] >= max(gain.values()) - 1e-5
        rest.discard(pick)
        reached = np.maximum(reached, similar[pick])
        left -= tokens[pick]
    assert all(tokens[row] > left for row in rest)


def value(points: np.ndarray, picks: list[int]) -> float:
    return similarities(points)[:, picks].max(axis=1).sum() if picks else 0.0


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_every_pick_has_the_largest_gain_per_token_of_what_fits(seed: int, copies: bool) -> None:
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((int(rng.integers(1, 40)), 5))
    if copies:
        points = points[rng.integers(0, len(points), len(points))]
    points, tokens = points.astype(np.float32), rng.integers(1, 9, len(points))
    budget = int(max(tokens.min(), tokens.sum() * rng.random()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(facility, "_BATCH", int(rng.integers(1, 6)))
        patch.setattr(facility, "_CELLS", 50)
        patch.setattr(facility, "_STORED", int(rng.choice([1, 100, 1 << 20])))
        found = facility_location(points, tokens, budget, rng)
    picks = found.rows.tolist()
    alone = similarities(points).sum(axis=1) * (tokens <= budget)
    check_greedy(points, tokens, budget, picks, forced=alone[picks[0]] >= alone.max() - 1e-5)
    got = value(points, picks)
    assert got >= alone.max() * (1 - 1e-5)
    assert found.value * len(points) == pytest.approx(got, rel=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31))
def test_the_value_is_above_its_share_of_the_optimum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points, tokens = rng.standard_normal((9, 3)).astype(np.float32), rng.integers(1, 9, 9)
    budget = int(max(tokens.min(), tokens.sum() // 3))
    every = (subset for size in range(1, 10) for subset in itertools.combinations(range(9), size))
    optimum = max(value(points, list(subset)) for subset in every if tokens[list(subset)].sum() <= budget)
    found = facility_location(points, tokens, budget, rng)
    assert found.value * 9 >= (1 - 1 / math.sqrt(math.e)) * optimum - 1e-5


def test_one_long_row_beats_a_short_one_that_leaves_it_no_room() -> None:
    # the short row is the better bargain (1 per token), but the long one is like all others (cosine ≥ 0.9)
    points = np.array([[0, 1], [1, 0], [1, 0.3], [1, -0.3], [1, 0.2], [1, -0.2]], dtype=np.float32)
    tokens = np.array([1, 6, 99, 99, 99, 99])
    found = facility_location(points, tokens, 6, np.random.default_rng(0))
    assert found.rows.tolist() == [1]


@pytest.mark.parametrize("greedy", ["lazy", "stochastic"])
def test_sampled_references_are_reproducible_and_close(greedy: str) -> None:
    rng = np.random.default_rng(0)
    blobs = rng.standard_normal((20, 16))[rng.integers(0, 20, 600)]
    points = (blobs + 0.3 * rng.standard_normal((600, 16))).astype(np.float32)
    tokens = np.ones(600, dtype=int)
    whole = value(points, facility_location(points, tokens, 20, rng).rows.tolist())
    first, second = (
        facility_location(points, tokens, 20, np.random.default_rng(1), greedy, references=200).rows for _ in range(2)
    )
    assert first.tolist() == second.tolist()
    assert value(points, first.tolist()) >= 0.9 * whole


def test_the_selector_covers_every_blob_before_it_takes_a_second(world) -> None:
    blobs = [[1, 0, 0], [1, 0.1, 0], [1, 0, 0.1], [0, 1, 0], [0.1, 1, 0], [0, 0, 1]]
    scene = world([1] * 6, embedding=blobs)
    chosen = scene.select(DiversitySelector("facility-location"), 3)
    assert sorted({"a": 0, "b": 0, "c": 0, "d": 1, "e": 1, "f": 2}[name] for name in scene.names(chosen)) == [0, 1, 2]
    assert scene.names(chosen)[0] in "abc"  # the largest blob first
