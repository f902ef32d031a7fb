"""Top-k under a token budget against sorting everything and walking row by row; scales of terms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from longgame.errors import PluginError
from longgame.selection import budget as budget_module
from longgame.selection.budget import (
    descending,
    fill_budget,
    fill_by_score,
    id_order,
    rank_scale,
    scale,
    share_tied_at_cut,
    z_scale,
)


def sorted_rows(score: np.ndarray, ids: tuple[str, ...]) -> list[int]:
    number = [(np.isnan(value), 0.0 if np.isnan(value) else -float(value)) for value in score]
    return sorted(range(len(ids)), key=lambda row: (number[row], ids[row]))


def walk(order: list[int], tokens: np.ndarray, budget: int) -> list[int]:
    kept = []
    for row in order:
        if tokens[row] <= budget:
            kept.append(row)
            budget -= int(tokens[row])
    return kept


@settings(max_examples=400, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from(["distinct", "levels", "constant", "nan", "infinite"]),
    st.sampled_from([2, 9, 100, 2000]),
)
def test_picks_and_order_are_those_of_a_full_sort_and_a_walk(seed: int, kind: str, dearest: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 500))
    score = rng.standard_normal(n)
    if kind == "levels":
        score = rng.integers(0, 5, n).astype(np.float32)
    elif kind == "constant":
        score = np.zeros(n) * rng.choice([-1.0, 1.0], n)  # 0.0 and −0.0 are equal
    elif kind in ("nan", "infinite"):
        score[rng.random(n) < 0.3] = np.nan if kind == "nan" else -np.inf
    ids = tuple(str(number) for number in rng.permutation(n))
    tokens = rng.integers(1, dearest, n)
    budget = int(max(tokens.min(), tokens.sum() * rng.random() ** 3))
    expected = sorted_rows(score, ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget_module, "_CHUNK", int(rng.integers(1, 50)))
        assert descending(score, ids).tolist() == expected
        assert fill_budget(np.array(expected), tokens, budget).tolist() == walk(expected, tokens, budget)
        measured = [row for row in expected if not np.isnan(score[row])]  # NaN is never picked
        assert fill_by_score(score, ids, tokens, budget).tolist() == walk(measured, tokens, budget)


def test_only_ids_of_equal_scores_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []

    class Watched(tuple):
        def __getitem__(self, row):
            looked.append(row)
            return tuple.__getitem__(self, row)

    score = np.arange(2000.0)
    score[[1990, 1995]] = 1990.0
    ids = Watched(str(row) for row in range(2000))
    rows = fill_by_score(score, ids, np.ones(2000, dtype=int), 20)
    assert set(looked) == {1990, 1995}
    assert rows.tolist() == [1999, 1998, 1997, 1996, 1994, 1993, 1992, 1991, 1990, 1995, *range(1989, 1979, -1)]


def test_the_budget_is_left_unused_only_where_nothing_fits() -> None:
    tokens = np.array([7, 5, 4, 3, 1])
    assert fill_by_score(np.array([5.0, 4, 3, 2, 1]), tuple("abcde"), tokens, 12).tolist() == [0, 1]
    assert fill_by_score(np.array([5.0, 4, 3, 2, 1]), tuple("abcde"), tokens, 11).tolist() == [0, 2]
    assert fill_by_score(np.array([1.0, 4, 3, 2, 5]), tuple("abcde"), tokens, 8).tolist() == [4, 1]


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=3), st.lists(st.text(max_size=12), max_size=20, unique=True))
def test_ids_are_in_the_order_that_python_sorts_them(prefix: str, rest: list[str]) -> None:
    ids = tuple(prefix + name for name in rest)
    assert [ids[row] for row in id_order(ids)] == sorted(ids)


def test_ids_that_agree_in_their_first_bytes_are_sorted_too() -> None:
    ids = (
        "b",
        "sample-00000000-z",
        "sample-00000000-a",
        "sample-00000000",
        "\U0001f600",
        "\uffff",
        "sample-00000000-\x00",
    )
    assert [ids[row] for row in id_order(ids)] == sorted(ids)


COLUMNS = hnp.arrays(np.float64, st.integers(1, 40), elements=st.integers(-5, 5).map(float))


def test_ranks_share_the_middle_of_a_tie() -> None:
    # ranks 1, 2.5, 2.5, 4 of 4 → (2r − 5) / 3
    assert rank_scale(np.array([0.0, 7.0, 7.0, 1e9])).tolist() == [-1.0, 0.0, 0.0, 1.0]


@given(
    column=hnp.arrays(np.float32, st.integers(2, 60), elements=st.sampled_from([-np.inf, -1.5, -0.0, 0.0, 2.0, 9.0]))
)
def test_ranks_are_those_of_counting_the_smaller_and_the_equal(column: np.ndarray) -> None:
    less, same = (column[:, None] > column).sum(axis=1), (column[:, None] == column).sum(axis=1)
    middle = less + (same + 1) / 2
    assert rank_scale(column).tolist() == ((2 * middle - (len(column) + 1)) / (len(column) - 1)).tolist()


def test_z_of_two_values_is_plus_and_minus_one() -> None:
    assert z_scale(np.array([3.0, 5.0])) == pytest.approx([-1.0, 1.0])


@pytest.mark.parametrize("how", ["rank", "z"])
@given(column=COLUMNS)
def test_mean_is_zero_and_order_is_kept(how: str, column: np.ndarray) -> None:
    scaled = scale(column, how)
    assert abs(scaled.mean()) < 1e-9
    assert (np.sign(column[:, None] - column) == np.sign(np.round(scaled[:, None] - scaled, 12))).all()


@pytest.mark.parametrize("how", ["rank", "z"])
@given(value=st.floats(-(2.0**90), 2.0**90, width=32), n=st.integers(1, 9))
def test_a_constant_column_gives_exact_zeros(how: str, value: float, n: int) -> None:
    assert scale(np.full(n, value, dtype=np.float32), how).tolist() == [0.0] * n


def test_an_outlier_moves_z_but_not_ranks() -> None:
    column = np.array([1.0, 2.0, 3.0, 4.0])
    heavy = np.array([1.0, 2.0, 3.0, 4e6])
    assert np.array_equal(rank_scale(column), rank_scale(heavy))
    assert z_scale(heavy)[2] < 0 < z_scale(column)[2]


@pytest.mark.parametrize("how", ["rank", "z"])
def test_what_is_no_number_has_no_place_in_an_order(how: str) -> None:
    with pytest.raises(PluginError, match="2 of 4 values .* are NaN"):
        scale(np.array([1.0, np.nan, 3.0, np.nan]), how)


# Ties at the cut


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, float("nan")]), st.booleans()), min_size=1, max_size=30))
def test_tie_at_the_cut_is_the_largest_split_group(candidates) -> None:
    groups = {}
    for score, picked in candidates:
        if score == score:  # NaN equals nothing
            groups.setdefault(score, []).append(picked)
    split = [len(picks) for picks in groups.values() if len(set(picks)) == 2]
    score, picked = (np.array(column) for column in zip(*candidates, strict=True))
    assert share_tied_at_cut(score, picked) == max(split, default=0) / len(candidates)
