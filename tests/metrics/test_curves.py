"""Adaptation curves against hand arithmetic."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from longgame.errors import DataError
from longgame.metrics.longhorizon import adaptation_auc, curve_start, threshold_ratio, tokens_to_threshold

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


def test_leading_axes_hold_curves_with_their_own_tokens_and_thresholds():
    tokens, scores = np.stack([TOKENS, TOKENS * 2]), np.stack([SCORES, SCORES])
    np.testing.assert_allclose(adaptation_auc(tokens, scores), [0.4625, 0.4625])
    np.testing.assert_allclose(tokens_to_threshold(tokens, scores, np.array([45.0, 50.0])), [150, 400])


def test_ratio_is_infinite_only_where_the_threshold_was_not_reached():
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
def test_tokens_to_threshold_is_the_first_place_where_the_interpolated_curve_stands_that_high(curve, threshold):
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
