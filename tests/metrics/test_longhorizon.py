"""The long-horizon score by hand, and the weight simplex against a grid."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from longgame.errors import DataError
from longgame.metrics.longhorizon import long_horizon_score, weight_sensitivity


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


def test_a_dominating_selector_takes_all_and_equal_selectors_share():
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
def test_shares_agree_with_counting_winners_on_a_grid_and_sum_to_one(table):
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
