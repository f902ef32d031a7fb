"""Ranks and myopia gaps."""

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from longgame.errors import DataError
from longgame.metrics.longhorizon import chance_gap, myopia_gap, ranks, seed_myopia_gap

NAN = float("nan")
values = hnp.arrays(float, st.integers(1, 8), elements=st.integers(-5, 5).map(float))


def test_ties_share_the_mean_rank():
    # 9 is first; the two 7s share places 2 and 3; 1 is last
    np.testing.assert_array_equal(ranks(np.array([7.0, 9.0, 1.0, 7.0])), [2.5, 1, 4, 2.5])


def test_an_unmeasured_value_has_no_rank_and_takes_none():
    np.testing.assert_array_equal(ranks(np.array([3.0, NAN, 5.0])), [2, NAN, 1])


def test_equal_scores_summed_in_another_order_are_tied():
    np.testing.assert_array_equal(ranks(np.array([0.1 + 0.2 + 0.3, 0.3 + 0.2 + 0.1])), [1.5, 1.5])


@pytest.mark.parametrize("k", [2, 3, 5])
def test_chance_gap_is_the_mean_over_all_pairs_of_rankings(k):
    orders = [np.array(order, dtype=float) for order in itertools.permutations(range(k))]
    assert chance_gap(k) == pytest.approx(np.mean([myopia_gap(orders[0], order) for order in orders]))
    assert np.isnan(chance_gap(1))


@given(values)
def test_ranks_sum_to_the_triangle_number_and_agree_with_scipy(v):
    k = len(v)
    assert ranks(v).sum() == pytest.approx(k * (k + 1) / 2)
    np.testing.assert_array_equal(ranks(v), scipy.stats.rankdata(-v, method="average"))


@given(values)
def test_gap_of_identical_rankings_is_zero(v):
    if len(v) > 1:
        assert myopia_gap(v, 3 * v + 1) == 0


@pytest.mark.parametrize(
    ("k", "hand"),
    [
        (2, 1.0),  # differences 1, 1: mean 1; /1
        (3, 2 / 3),  # 2, 0, 2: mean 4/3; /2
        (4, 2 / 3),  # 3, 1, 1, 3: mean 2; /3
        (7, 24 / 42),  # 6, 4, 2, 0, 2, 4, 6: sum 24, mean 24/7; /6
    ],
)
def test_gap_of_reversed_rankings_equals_the_hand_value(k, hand):
    assert myopia_gap(np.arange(k), -np.arange(k)) == pytest.approx(hand)


def test_gap_with_a_tie_equals_the_hand_value():
    # immediate ranks 1, 2.5, 2.5; long ranks 3, 1, 2: differences 2, 1.5, .5; mean 4/3; /2
    assert myopia_gap(np.array([9.0, 5.0, 5.0]), np.array([0.1, 0.3, 0.2])) == pytest.approx(2 / 3)


def test_gap_is_nan_for_one_selector_or_an_unmeasured_one():
    assert np.isnan(myopia_gap(np.array([1.0]), np.array([1.0])))
    assert np.isnan(myopia_gap(np.array([1.0, 2.0, NAN]), np.array([1.0, 2.0, 3.0])))


def test_sides_of_different_length_are_refused():
    with pytest.raises(DataError, match="3 immediate values but 2"):
        myopia_gap(np.arange(3.0), np.arange(2.0))


# 2 seeds × 2 transitions × 3 selectors
IMMEDIATE = np.array([[[5.0, 3.0, 1.0], [1.0, 3.0, 5.0]], [[5.0, 3.0, 1.0], [5.0, 1.0, 3.0]]])
LONG = np.array([[0.3, 0.2, 0.1], [0.1, 0.2, 0.3]])


def _over_seeds(immediate, long):
    """Gap of each selector: the mean over the seeds in which every selector was measured."""
    gap = seed_myopia_gap(immediate, long)
    complete = ~np.isnan(gap).any(axis=-1)
    return gap[complete].mean(axis=0) if complete.any() else np.full(long.shape[-1], NAN)


def test_selector_gap_averages_rank_differences_over_transitions_and_seeds_by_hand():
    # seed 0: long ranks 1 2 3. t=1: ranks 1 2 3 → 0 0 0. t=2: ranks 3 2 1 → 2 0 2. Mean 1 0 1; /2 = .5 0 .5
    # seed 1: long ranks 3 2 1. t=1: ranks 1 2 3 → 2 0 2. t=2: ranks 1 3 2 → 2 1 1. Mean 2 .5 1.5; /2 = 1 .25 .75
    np.testing.assert_allclose(seed_myopia_gap(IMMEDIATE, LONG), [[0.5, 0, 0.5], [1, 0.25, 0.75]])
    np.testing.assert_allclose(_over_seeds(IMMEDIATE, LONG), [0.75, 0.125, 0.625])


def test_a_seed_with_an_unmeasured_selector_is_left_out_for_all():
    long = LONG.copy()
    long[1, 2] = NAN
    np.testing.assert_allclose(_over_seeds(IMMEDIATE, long), [0.5, 0, 0.5])
    long[0, 0] = NAN
    assert np.isnan(_over_seeds(IMMEDIATE, long)).all()


def test_a_transition_nobody_measured_is_left_out():
    immediate = IMMEDIATE.copy()
    immediate[:, 1] = NAN
    np.testing.assert_allclose(seed_myopia_gap(immediate, LONG), [[0, 0, 0], [1, 0, 1]])


def test_without_transitions_the_selector_gap_is_nan():
    assert np.isnan(_over_seeds(np.empty((2, 0, 3)), LONG)).all()


cube = hnp.arrays(float, (3, 2, 5), elements=st.integers(0, 4).map(float))


@given(cube, hnp.arrays(float, (3, 5), elements=st.integers(0, 4).map(float)), st.permutations(range(5)))
def test_permuting_selectors_permutes_gaps_and_keeps_the_set_gap(immediate, long, order):
    order = list(order)
    np.testing.assert_allclose(
        _over_seeds(immediate[..., order], long[..., order]), _over_seeds(immediate, long)[order]
    )
    np.testing.assert_allclose(myopia_gap(immediate[:, 0, order], long[:, order]), myopia_gap(immediate[:, 0], long))


@given(cube, hnp.arrays(float, (3, 5), elements=st.integers(0, 4).map(float)))
def test_mean_of_selector_gaps_is_the_mean_of_set_gaps(immediate, long):
    sets = [myopia_gap(immediate[seed, t], long[seed]) for seed in range(3) for t in range(2)]
    assert _over_seeds(immediate, long).mean() == pytest.approx(np.mean(sets))
