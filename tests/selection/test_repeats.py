"""Repeats of earlier rows that stay, beside rows put one by one into an index."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longgame.selection.algorithms import repeats
from longgame.selection.algorithms.repeats import repeated


def one_by_one(rows, near):
    """For each row the first earlier one that stays, shares a bucket and is near."""
    result = []
    for row, buckets in enumerate(rows):
        matches = [
            other
            for other in range(row)
            if result[other] < 0 and set(buckets) & set(rows[other]) and (row, other) in near
        ]
        result.append(min(matches, default=-1))
    return result


def answer(rows, near):
    ends = np.cumsum([len(buckets) for buckets in rows])
    buckets = np.asarray([bucket for row in rows for bucket in row], dtype=np.int64)
    asked = []

    def among(later, earlier):
        pairs = list(zip(later.tolist(), earlier.tolist(), strict=True))
        asked.extend(pairs)
        return np.asarray([pair in near for pair in pairs], dtype=bool)

    return repeated(ends, buckets, among).tolist(), asked


@settings(max_examples=300, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, 6), max_size=4, unique=True), min_size=1, max_size=30),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
    block=st.sampled_from([1, 2, 5, 64]),
    pairs=st.sampled_from([1, 8, 1000]),
)
def test_repeats_are_those_of_rows_put_in_one_by_one(rows, share, seed, block, pairs):
    drawn = np.random.default_rng(seed).random((len(rows), len(rows))) < share
    near = {(later, earlier) for later, earlier in np.argwhere(drawn).tolist() if earlier < later}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeats, "_BLOCK", block)
        patch.setattr(repeats, "_PAIRS", pairs)
        result, _ = answer(rows, near)
    assert result == one_by_one(rows, near)


def test_rows_of_one_group_are_compared_with_its_first_alone(monkeypatch):
    monkeypatch.setattr(repeats, "_BLOCK", 1)
    rows = [[0, 1]] * 50
    near = {(later, earlier) for later in range(50) for earlier in range(later)}
    result, asked = answer(rows, near)
    assert result == [-1, *[0] * 49]
    assert asked == [(row, 0) for row in range(1, 50)]
