"""Distances, cosines and threshold-diverse filtering against loops over single rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from longgame.selection.algorithms import nearest
from longgame.selection.algorithms.nearest import (
    Nearest,
    cosine,
    mean_distance,
    squared_to,
    threshold_diverse,
    unit_rows,
)
from longgame.selection.methods.diversity import DiversitySelector

MATRIX = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5)).flatmap(
    lambda shape: st.tuples(
        hnp.arrays(np.float32, (shape[0], shape[2]), elements=st.floats(-100, 100, width=16)),
        hnp.arrays(np.float32, (shape[1], shape[2]), elements=st.floats(-100, 100, width=16)),
    )
)


def table(rows: np.ndarray, references: np.ndarray) -> np.ndarray:
    return np.array([[np.linalg.norm(row.astype(float) - other.astype(float)) for other in references] for row in rows])


def nearest_squared(rows: np.ndarray, references: np.ndarray) -> np.ndarray:
    near = Nearest(rows, rows.mean(axis=0), references)
    assert near.others is not None
    near.lower(np.arange(len(rows)), near.others, np.arange(len(references)))
    return near.squared


@settings(max_examples=60)
@given(MATRIX)
def test_nearest_and_mean_agree_with_a_loop_over_pairs(pair: tuple[np.ndarray, np.ndarray]) -> None:
    rows, references = pair
    expected = table(rows, references)
    assert np.allclose(np.sqrt(nearest_squared(rows, references)), expected.min(axis=1), rtol=1e-5, atol=1e-3)
    assert np.allclose(mean_distance(rows, references), expected.mean(axis=1), rtol=1e-5, atol=1e-3)
    assert np.allclose(np.sqrt(squared_to(rows, references[0])), expected[:, 0], rtol=1e-5)


def test_a_point_that_is_remembered_has_distance_exactly_zero() -> None:
    rows = np.random.default_rng(0).standard_normal((50, 64)).astype(np.float32) * 1e3
    assert (nearest_squared(rows, rows[::-1]) == 0).all()


def test_blocks_change_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    rows, references = rng.standard_normal((2, 30, 7)).astype(np.float32)
    whole = nearest_squared(rows, references), mean_distance(rows, references), squared_to(rows, references[0])
    monkeypatch.setattr(nearest, "_BLOCK_CELLS", 90)
    monkeypatch.setattr(nearest, "_STEP", 4)
    parts = nearest_squared(rows, references), mean_distance(rows, references), squared_to(rows, references[0])
    for first, second in zip(whole, parts, strict=True):
        assert np.allclose(first, second, rtol=1e-6)


def test_equal_rows_get_equal_values_wherever_they_stand() -> None:
    rng = np.random.default_rng(2)
    references = rng.standard_normal((1024, 96)).astype(np.float32)
    rows = np.repeat(rng.standard_normal((1, 96)).astype(np.float32), 37, axis=0)
    for values in (nearest_squared(rows, references), mean_distance(rows, references), cosine(rows, references[0])):
        assert len(np.unique(values)) == 1


def test_no_references_give_mean_zero_and_nearest_infinity() -> None:
    rows = np.ones((3, 2), dtype=np.float32)
    assert np.isinf(Nearest(rows, rows[0]).squared).all()
    assert mean_distance(rows, np.zeros((0, 0), dtype=np.float32)).tolist() == [0.0, 0.0, 0.0]


def test_cosine_of_a_zero_vector_is_zero() -> None:
    rows = np.array([[3.0, 4.0], [0.0, 0.0], [-1.0, 0.0]])
    assert cosine(rows, np.array([2.0, 0.0])).tolist() == pytest.approx([0.6, 0.0, -1.0])
    assert cosine(rows, np.zeros(2)).tolist() == [0.0, 0.0, 0.0]


def one_by_one(
    rows: np.ndarray, order: np.ndarray, tokens: np.ndarray, budget: int, threshold: float
) -> tuple[list[int], list[int]]:
    """DEITA's loop; 1 − cosine is half the squared distance of the unit rows."""
    unit, picks, alike, left = unit_rows(rows), [], [], budget
    least = np.float32(2 - 2 * threshold)
    for row in order.tolist():
        if tokens[row] > left:
            continue
        if picks and (squared_to(unit[picks], unit[row]) <= least).any():
            alike.append(row)
            continue
        picks.append(row)
        left -= int(tokens[row])
    return picks, alike


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.99, 0.9, 0.5, 0.0, 1.0]), st.booleans())
def test_what_is_kept_is_what_the_loop_over_single_rows_keeps(seed: int, threshold: float, copies: bool) -> None:
    rng = np.random.default_rng(seed)
    n, d = int(rng.integers(1, 120)), int(rng.integers(1, 12))
    rows = rng.standard_normal((n, d)) if seed % 2 else rng.integers(-1, 2, (n, d))
    rows = (rows[rng.integers(0, max(1, n // 3), n)] if copies else rows).astype(np.float32)
    order, tokens = rng.permutation(n), rng.integers(1, 9, n)
    budget = int(max(tokens.min(), tokens.sum() * rng.random()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "_THRESHOLD_BLOCK", int(rng.integers(1, 40)))
        picks, alike = threshold_diverse(rows, order, tokens, budget, threshold)
    expected, passed = one_by_one(rows, order, tokens, budget, threshold)
    assert picks.tolist() == expected
    assert np.flatnonzero(alike).tolist() == sorted(passed)


def test_threshold_picks_the_best_of_similar_candidates(world) -> None:
    # a and b are alike, and so are c and d; by quality: b, d, a, c, e
    scene = world(
        [1] * 5,
        embedding=[[1, 0], [1, 0.01], [0, 2], [0, 1], [-1, -1]],
        quality=[0.7, 0.9, 0.3, 0.8, 0.1],
    )
    selector = DiversitySelector("threshold", threshold=0.9)
    assert scene.picks(selector, 3) == "bde"
    full = scene.select(selector, 5)
    assert scene.names(full) == "bdeac"
    assert full.scores["alike"].tolist() == [1, 0, 1, 0, 0]


def test_unreached_threshold_keeps_the_order_of_quality(world) -> None:
    scene = world([1] * 4, embedding=[[1, 0], [0, 1], [-1, 0], [0, -1]], quality=[0.1, 0.4, 0.3, 0.2])
    assert scene.picks(DiversitySelector("threshold", threshold=0.5), 4) == "bcda"
