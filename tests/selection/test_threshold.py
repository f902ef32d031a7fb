from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longgame.selection.algorithms import nearest as module
from longgame.selection.algorithms.nearest import squared_to, threshold_diverse, unit_rows
from longgame.selection.methods.diversity import DiversitySelector


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
        patch.setattr(module, "_THRESHOLD_BLOCK", int(rng.integers(1, 40)))
        picks, alike = threshold_diverse(rows, order, tokens, budget, threshold)
    expected, passed = one_by_one(rows, order, tokens, budget, threshold)
    assert picks.tolist() == expected
    assert np.flatnonzero(alike).tolist() == sorted(passed)


def test_the_best_of_what_is_alike_is_kept_and_the_rest_only_fills_up(world) -> None:
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


def test_a_threshold_that_nothing_reaches_leaves_the_order_of_quality(world) -> None:
    scene = world([1] * 4, embedding=[[1, 0], [0, 1], [-1, 0], [0, -1]], quality=[0.1, 0.4, 0.3, 0.2])
    assert scene.picks(DiversitySelector("threshold", threshold=0.5), 4) == "bcda"
