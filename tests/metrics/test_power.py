"""Power of the paired t test: textbook values, the distribution itself, and simulation."""

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from longgame.errors import DataError
from longgame.metrics.stats import MOST_SEEDS, minimum_detectable_effect, seeds_needed, t_power, unit_effect
from longgame.seeding import generator

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(("effect", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_pairs_needed_for_small_medium_and_large_effects_are_the_textbook_ones(effect, pairs):
    # Cohen's d of .2, .5, .8, two-sided 5 %, power 80 %, paired t test
    assert seeds_needed(effect, 1.0) == pairs
    assert seeds_needed(-3 * effect, 3.0) == pairs


@pytest.mark.parametrize(("n", "effect", "alpha"), [(3, 2.0, 0.05), (5, 1.2, 0.05 / 6), (12, 0.7, 0.05)])
def test_power_equals_the_integral_over_the_sample_sd(n, effect, alpha):
    # P(Z + √n·d > c·s), s² = χ²/(n−1), by quadrature instead of the noncentral t
    critical = scipy.stats.t.ppf(1 - alpha / 2, n - 1)

    def given_s(s):
        density = scipy.stats.chi2.pdf(s**2 * (n - 1), n - 1) * 2 * s * (n - 1)
        return density * scipy.stats.norm.sf(critical * s - np.sqrt(n) * effect)

    slow = scipy.integrate.quad(given_s, 0, 8, limit=200)[0]
    assert t_power(effect, n, alpha) == pytest.approx(slow, abs=1e-7)


def test_power_is_the_noncentral_t_however_little_is_left_below():
    n, effect = np.arange(2, 120)[:, None], np.linspace(0, 40, 81)[None]
    critical = scipy.stats.t.ppf(0.975, n - 1)
    np.testing.assert_allclose(
        t_power(effect, n), scipy.stats.nct.sf(critical, n - 1, np.sqrt(n) * effect), rtol=0, atol=1e-12
    )


def test_power_is_the_share_of_simulated_audits_that_show_the_difference():
    values = 0.9 + generator(3, "power").standard_normal((40_000, 8))
    result = scipy.stats.ttest_1samp(values, 0, axis=1)
    share = ((result.pvalue < 0.05) & (result.statistic > 0)).mean()
    assert t_power(0.9, 8) == pytest.approx(share, abs=0.01)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, MOST_SEEDS), st.sampled_from([0.05, 0.05 / 6]), st.sampled_from([0.5, 0.8, 0.95]))
def test_the_detectable_effect_has_just_the_power_it_was_asked_for(n, alpha, power):
    found = unit_effect(n, alpha, power)
    assert t_power(found, n, alpha) == pytest.approx(power, abs=1e-9)
    assert minimum_detectable_effect(2.5, n, alpha, power) == pytest.approx(2.5 * found)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.15, 50), st.sampled_from([0.05, 0.05 / 6]))
def test_seeds_needed_are_enough_and_one_fewer_is_not(effect, alpha):
    n = int(seeds_needed(effect, 1.0, alpha))
    assert t_power(effect, n, alpha) >= 0.8
    if n > 2:
        assert t_power(effect, n - 1, alpha) < 0.8


def test_detectable_effects_fall_with_the_seeds_and_go_on_beyond_the_table():
    n = np.array([2, 3, 10, MOST_SEEDS, MOST_SEEDS + 1, 5 * MOST_SEEDS])
    assert (np.diff(unit_effect(n)) < 0).all()
    assert unit_effect(5 * MOST_SEEDS) == pytest.approx((1.959964 + 0.841621) / np.sqrt(5 * MOST_SEEDS), rel=1e-3)


def test_what_is_unmeasured_or_has_no_spread_is_nan_and_no_effect_needs_infinitely_many_seeds():
    np.testing.assert_array_equal(minimum_detectable_effect(np.array([NAN, 0.0]), np.array([5, 5])), [NAN, NAN])
    assert np.isnan(minimum_detectable_effect(1.0, 1))
    np.testing.assert_array_equal(
        seeds_needed(np.array([NAN, 1.0, 1.0, 0.0, 1e-4]), np.array([1.0, NAN, 0.0, 1.0, 1.0])),
        [NAN, NAN, NAN, INF, INF],
    )
    np.testing.assert_array_equal(t_power(np.array([NAN, 1.0]), np.array([5, 1])), [NAN, NAN])


def test_levels_and_spreads_that_cannot_be_are_refused():
    with pytest.raises(DataError, match="level α is 5"):
        unit_effect(5, alpha=5)
    with pytest.raises(DataError, match="power is 1"):
        seeds_needed(1.0, 1.0, power=1.0)
    with pytest.raises(DataError, match="standard deviation is -1"):
        minimum_detectable_effect(-1.0, 5)
