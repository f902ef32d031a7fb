"""The long-horizon score, adaptation curves and myopia gaps against hand arithmetic."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import spearmanr

from longgame.errors import DataError
from longgame.metrics.longhorizon import (
    adaptation_auc,
    chance_gap,
    curve_start,
    largest_gap,
    long_horizon_score,
    myopia_gap,
    ranks,
    seed_myopia_gap,
    threshold_ratio,
    tokens_to_threshold,
    weight_sensitivity,
)
from longgame.report.tables import PAPER_LONG_HORIZON, PAPER_TABLES


def test_score_equals_hand_values():
    # (0.60 + 0.50 − 0.08 + 0.40) / 3 = 1.42 / 3
    assert long_horizon_score(60, 0.5, 8, 40) == pytest.approx(1.42 / 3)
    # (0.60 + 2·0.50 − 0.5·0.08 + 0) / (1 + 2) = 1.56 / 3
    assert long_horizon_score(60, 0.5, 8, 40, alpha=2, beta=0.5, gamma=0) == pytest.approx(0.52)


def test_unmeasured_terms_spread_only_when_they_count():
    assert np.isnan(long_horizon_score(60, 0.5, 8, np.nan))
    assert long_horizon_score(60, 0.5, 8, np.nan, gamma=0) == pytest.approx(1.02 / 2)


def test_a_negative_weight_is_refused():
    with pytest.raises(DataError, match="β=-1"):
        long_horizon_score(1, 1, 1, 1, beta=-1)


def test_the_simplex_is_halved_by_a_symmetric_trade_off():
    # a has the AUC, b the OOD, by the same amount; the tie line α = γ halves the triangle
    share = weight_sensitivity(
        np.array([50.0, 50.0]), np.array([0.6, 0.5]), np.array([5.0, 5.0]), np.array([40.0, 50.0])
    )
    np.testing.assert_allclose(share, [0.5, 0.5])


def test_a_head_start_in_the_final_score_cuts_a_corner_by_hand():
    # total 1. a − b = 0.05·(α+β+γ) − 0.10·γ > 0 ⇔ γ < 1/2: the corner γ > 1/2 has a quarter of the area
    share = weight_sensitivity(
        np.array([55.0, 50.0]), np.array([0.5, 0.5]), np.array([5.0, 5.0]), np.array([40.0, 50.0]), total=1.0
    )
    np.testing.assert_allclose(share, [0.75, 0.25])


def test_dominating_selector_wins_and_equals_share():
    one = np.array([60.0, 50.0]), np.array([0.6, 0.5]), np.array([4.0, 5.0]), np.array([50.0, 40.0])
    np.testing.assert_allclose(weight_sensitivity(*one), [1, 0])
    twins = tuple(np.append(values, values[0]) for values in one)
    np.testing.assert_allclose(weight_sensitivity(*twins), [0.5, 0, 0.5])


def test_an_unmeasured_selector_gets_nan_and_takes_no_area():
    share = weight_sensitivity(
        np.array([60.0, 50.0]), np.array([np.nan, 0.5]), np.array([4.0, 5.0]), np.array([50.0, 40.0])
    )
    np.testing.assert_array_equal(share, [np.nan, 1])


metrics = hnp.arrays(float, st.tuples(st.just(4), st.integers(1, 6)), elements=st.integers(0, 100).map(float))


@settings(max_examples=40)
@given(metrics)
def test_shares_agree_with_winners_on_a_grid(table):
    final, auc, forgetting, ood = table[0], table[1] / 100, table[2], table[3]
    share = weight_sensitivity(final, auc, forgetting, ood)
    n = 60
    points = np.array([(i, j, n - i - j) for i in range(n + 1) for j in range(n + 1 - i)]) + 1 / 3
    weights = 3 * points / points.sum(axis=1, keepdims=True)
    score = np.stack([long_horizon_score(final, auc, forgetting, ood, alpha=a, beta=b, gamma=g) for a, b, g in weights])
    winners = np.isclose(score, score.max(axis=1, keepdims=True), atol=1e-12, rtol=0)
    counted = (winners / winners.sum(axis=1, keepdims=True)).mean(axis=0)
    assert share.sum() == pytest.approx(1)
    np.testing.assert_allclose(share, counted, atol=0.05)


@given(metrics, st.randoms(use_true_random=False))
def test_permuting_selectors_permutes_shares(table, random):
    order = list(range(table.shape[1]))
    random.shuffle(order)
    table[1] /= 100
    np.testing.assert_allclose(weight_sensitivity(*table[:, order]), weight_sensitivity(*table)[order], atol=1e-9)


# Adaptation curves


TOKENS = np.array([0.0, 100.0, 300.0, 400.0])
SCORES = np.array([20.0, 40.0, 60.0, 50.0])


def test_auc_equals_the_trapezoids_by_hand():
    # 100·(20+40)/2 + 200·(40+60)/2 + 100·(60+50)/2 = 3000 + 10000 + 5500 = 18500; /400 = 46.25; /100
    assert adaptation_auc(TOKENS, SCORES) == pytest.approx(0.4625)


def test_auc_splits_into_the_start_and_what_was_learned():
    assert curve_start(SCORES) == 0.2
    assert adaptation_auc(TOKENS, SCORES) - curve_start(SCORES) == pytest.approx(0.2625)


def test_threshold_is_interpolated_between_points():
    # between (100, 40) and (300, 60): 45 is a quarter of the way up: 100 + 200/4
    assert tokens_to_threshold(TOKENS, SCORES, 45.0) == pytest.approx(150)


def test_threshold_met_at_a_point_at_the_start_and_never():
    assert tokens_to_threshold(TOKENS, SCORES, 40.0) == 100
    assert tokens_to_threshold(TOKENS, SCORES, 15.0) == 0
    assert tokens_to_threshold(TOKENS, SCORES, 60.5) == math.inf


def test_the_first_crossing_counts_even_if_the_curve_falls_again():
    falling = np.array([10.0, 50.0, 30.0, 90.0])
    # between (0, 10) and (100, 50): 40 is three quarters of the way up
    assert tokens_to_threshold(TOKENS, falling, 40.0) == pytest.approx(75)


def test_unmeasured_is_nan_and_not_reached_is_not_nan():
    holed = np.array([20.0, np.nan, 60.0, 50.0])
    assert np.isnan(adaptation_auc(TOKENS, holed))
    assert np.isnan(tokens_to_threshold(TOKENS, holed, 10.0))
    assert np.isnan(tokens_to_threshold(TOKENS, SCORES, np.nan))
    assert not np.isnan(tokens_to_threshold(TOKENS, SCORES, 99.0))


def test_leading_axes_hold_independent_curves():
    tokens, scores = np.stack([TOKENS, TOKENS * 2]), np.stack([SCORES, SCORES])
    np.testing.assert_allclose(adaptation_auc(tokens, scores), [0.4625, 0.4625])
    np.testing.assert_allclose(tokens_to_threshold(tokens, scores, np.array([45.0, 50.0])), [150, 400])


def test_ratio_is_infinite_only_if_not_reached():
    ratio = threshold_ratio(
        np.array([135.0, 0.0, np.inf, 50.0, np.inf, 50.0, 0.0, np.nan]),
        np.array([100, 100, 100, np.inf, np.inf, 0, 0, 1]),
    )
    np.testing.assert_array_equal(ratio, [1.35, 0.0, np.inf, *[np.nan] * 5])


@pytest.mark.parametrize(
    ("tokens", "scores"),
    [([0.0], [1.0]), ([10.0, 20.0], [1.0, 2.0]), ([0.0, 20.0, 10.0], [1.0] * 3), ([0.0, 0.0], [1.0, 1.0])],
)
def test_a_curve_that_does_not_rise_from_zero_tokens_is_refused(tokens, scores):
    with pytest.raises(DataError):
        adaptation_auc(np.array(tokens), np.array(scores))


steps = hnp.arrays(float, st.integers(1, 8), elements=st.floats(0.5, 500))


@st.composite
def drawn_curves(draw):
    tokens = np.concatenate([[0.0], np.cumsum(draw(steps))])
    scores = draw(hnp.arrays(float, len(tokens), elements=st.floats(0, 100)))
    return tokens, scores


@given(drawn_curves(), st.floats(0, 100))
def test_auc_of_a_constant_curve_is_the_constant(curve, level):
    tokens, _ = curve
    flat = np.full(len(tokens), level)
    assert adaptation_auc(tokens, flat) == pytest.approx(level / 100, abs=1e-12)
    assert curve_start(flat) == pytest.approx(level / 100, abs=1e-12)


@given(drawn_curves(), st.floats(0.1, 1000))
def test_auc_does_not_depend_on_the_unit_of_tokens(curve, unit):
    tokens, scores = curve
    assert adaptation_auc(tokens * unit, scores) == pytest.approx(adaptation_auc(tokens, scores), abs=1e-9)


@given(drawn_curves(), st.floats(0, 100))
def test_tokens_to_threshold_is_the_first_crossing(curve, threshold):
    tokens, scores = curve
    found = float(tokens_to_threshold(tokens, scores, threshold))
    if math.isinf(found):
        assert (scores < threshold).all()
        return
    if found == 0:
        assert scores[0] >= threshold
        return
    assert np.interp(found, tokens, scores) == pytest.approx(threshold, abs=1e-6)
    earlier = np.linspace(0, found, 50, endpoint=False)
    assert (np.interp(earlier, tokens, scores) <= threshold + 1e-6).all()


# Ranks and the myopia gap


NAN = float("nan")
values = hnp.arrays(float, st.integers(1, 8), elements=st.integers(-5, 5).map(float))


def test_ties_share_the_mean_rank():
    # 9 is first; the two 7s share places 2 and 3; 1 is last
    np.testing.assert_array_equal(ranks(np.array([7.0, 9.0, 1.0, 7.0])), [2.5, 1, 4, 2.5])


def test_an_unmeasured_value_has_no_rank_and_takes_none():
    np.testing.assert_array_equal(ranks(np.array([3.0, NAN, 5.0])), [2, NAN, 1])


def test_equal_scores_summed_in_another_order_are_tied():
    np.testing.assert_array_equal(ranks(np.array([0.1 + 0.2 + 0.3, 0.3 + 0.2 + 0.1])), [1.5, 1.5])


@pytest.mark.parametrize("k", [2, 3, 4, 5, 6])
def test_largest_gap_is_that_of_some_pair_of_rankings(k):
    orders = [np.array(order, dtype=float) for order in itertools.permutations(range(k))]
    assert largest_gap(k) == pytest.approx(max(myopia_gap(orders[0], order) for order in orders))
    assert np.isnan(largest_gap(1))


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


# 2 seeds × 3 selectors
NOW = np.array([[5.0, 3.0, 1.0], [5.0, 1.0, 3.0]])
LONG = np.array([[0.3, 0.2, 0.1], [0.1, 0.2, 0.3]])


def test_selector_gap_is_signed_and_equals_hand_values():
    # seed 0: ranks 1 2 3 now and later. seed 1: now 1 3 2, later 3 2 1: +2 −1 −1, over K − 1 = 2
    np.testing.assert_allclose(seed_myopia_gap(NOW, LONG), [[0, 0, 0], [1, -0.5, -0.5]])


def test_a_seed_with_an_unmeasured_selector_has_no_gaps():
    long = LONG.copy()
    long[1, 2] = NAN
    gap = seed_myopia_gap(NOW, long)
    np.testing.assert_allclose(gap[0], [0, 0, 0])
    assert np.isnan(gap[1]).all()


tables = hnp.arrays(float, (3, 5), elements=st.integers(0, 4).map(float))


@given(tables, tables, st.permutations(range(5)))
def test_permuting_selectors_permutes_gaps_and_keeps_the_set_gap(now, long, order):
    order = list(order)
    np.testing.assert_allclose(seed_myopia_gap(now[:, order], long[:, order]), seed_myopia_gap(now, long)[:, order])
    np.testing.assert_allclose(myopia_gap(now[:, order], long[:, order]), myopia_gap(now, long))


@given(tables, tables)
def test_gaps_of_a_seed_sum_to_zero_and_their_sizes_are_eq_3(now, long):
    gap = seed_myopia_gap(now, long)
    np.testing.assert_allclose(gap.sum(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(np.abs(gap).mean(axis=1), myopia_gap(now, long))


# The paper's own numbers


def test_orders_compare_with_the_papers_table_3_and_sizes_do_not():
    """Eq. 2 as normalized here, on Table 1 with five stages: forgetting is the mean over four of five tasks."""
    current, auc, lost, ood = (
        np.array(PAPER_TABLES[name][1]) for name in ("current", "auc_common", "forgetting", "ood")
    )
    ours, table = long_horizon_score(current - lost * 4 / 5, auc, lost, ood), np.array(PAPER_LONG_HORIZON[0.25])
    np.testing.assert_allclose(ours, [0.549, 0.495, 0.480, 0.568, 0.516, 0.564, 0.599], atol=6e-4)
    assert np.ptp(ours) == pytest.approx(0.119, abs=6e-4)
    assert np.ptp(table) == pytest.approx(0.19)
    assert spearmanr(ours, table).statistic == pytest.approx(0.964, abs=1e-3)
    assert ours.argmax() == table.argmax() == 6  # LHAS
    assert ours.argmin() == table.argmin() == 2  # gradient
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert " | ".join(f"{value:.3f}".lstrip("0") for value in ours[:6]) in page
    assert "compare orders with Table 3, never sizes" in page
