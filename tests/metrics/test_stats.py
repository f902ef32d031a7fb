"""Statistics over seeds against SciPy and hand arithmetic, and their power."""

import itertools

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from longgame.errors import DataError
from longgame.metrics.stats import (
    MOST_SEEDS,
    bootstrap_interval,
    holm,
    minimum_detectable_effect,
    moments,
    paired,
    pooled_sd,
    seeds_needed,
    share_interval,
    sign_flip_p,
    t_power,
    unit_effect,
    unit_means,
)
from longgame.seeding import generator

NAN, INF = float("nan"), float("inf")


def test_moments_leave_unmeasured_seeds_out():
    n, mean, sd = moments(np.array([[1.0, 2.0, 3.0, 6.0], [1.0, NAN, 3.0, NAN], [NAN, 5.0, NAN, NAN], [NAN] * 4]))
    np.testing.assert_array_equal(n, [4, 2, 1, 0])
    np.testing.assert_array_equal(mean, [3, 2, 5, NAN])
    # row 0: squares 4 + 1 + 0 + 9 = 14, /3; row 1: squares 1 + 1, /1
    np.testing.assert_allclose(sd, [np.sqrt(14 / 3), np.sqrt(2), NAN, NAN])


def test_paired_t_equals_the_hand_computation():
    # differences 1, 2, 3: mean 2, sd 1, error 1/√3, t = 2√3 = 3.4641 with 2 degrees of freedom
    result = paired(np.array([11.0, 22.0, 33.0]), np.array([10.0, 20.0, 30.0]))
    assert (result.n, result.mean, result.sd) == (3, 2, 1)
    # two-sided p with 2 degrees of freedom is 1 − t/√(2 + t²) = 1 − √12/√14
    assert result.p == pytest.approx(1 - np.sqrt(12 / 14))
    # t_{.975, 2} = 4.302653
    assert result.ci_low == pytest.approx(2 - 4.302653 / np.sqrt(3))
    assert result.ci_high == pytest.approx(2 + 4.302653 / np.sqrt(3))
    # all three positive: only + + + and − − − are as extreme: 2 of 8
    assert result.p_permutation == 0.25


@settings(max_examples=50)
@given(hnp.arrays(float, (2, 7), elements=st.floats(-100, 100, width=16)))
def test_paired_t_agrees_with_scipy(values):
    difference = values[0] - values[1]
    if np.ptp(difference) < 1e-3:
        return
    result = paired(values[0], values[1])
    assert result.p == pytest.approx(scipy.stats.ttest_rel(values[0], values[1]).pvalue, abs=1e-9)
    interval = scipy.stats.ttest_rel(values[0], values[1]).confidence_interval()
    assert (result.ci_low, result.ci_high) == pytest.approx(tuple(interval), abs=1e-9)


@settings(max_examples=30)
@given(hnp.arrays(float, st.integers(2, 7), elements=st.integers(-6, 6).map(float)))
def test_sign_flip_p_equals_brute_force(difference):
    flips = [abs(sum(s * d for s, d in zip(signs, difference, strict=True)))
             for signs in itertools.product((1, -1), repeat=len(difference))]  # fmt: skip
    extreme = sum(value >= abs(difference.sum()) - 1e-9 for value in flips)
    assert sign_flip_p(difference) == pytest.approx(extreme / len(flips))


def test_sign_flip_skips_unmeasured_seeds_and_has_a_limit():
    np.testing.assert_allclose(sign_flip_p(np.array([[1.0, NAN, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0]])), [0.25, 0.125])
    assert np.isnan(sign_flip_p(np.ones(17)))
    assert np.isnan(sign_flip_p(np.array([1.0])))
    assert sign_flip_p(np.arange(1.0, 17.0)) == pytest.approx(2.0**-15)


def test_one_seed_has_a_difference_and_no_interval():
    result = paired(np.array([5.0, NAN]), np.array([3.0, 1.0]))
    assert (result.n, result.mean) == (1, 2)
    assert np.isnan([result.sd, result.ci_low, result.ci_high, result.p, result.p_permutation]).all()


def test_equal_differences_are_not_infinitely_significant():
    result = paired(np.array([[2.1, 3.1, 4.1], [2.0, 3.0, 4.0]]), np.array([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]]))
    np.testing.assert_allclose(result.mean, [1.1, 0])
    np.testing.assert_allclose(result.p, [0.25, 1.0])
    assert np.isnan(result.ci_low).all()


def test_a_threshold_not_reached_is_not_averaged_away():
    result = paired(np.array([10.0, INF, 30.0]), np.array([5.0, 10.0, 20.0]))
    assert result.n == 3
    assert np.isnan([result.mean, result.sd, result.p, result.p_permutation]).all()
    n, mean, sd = moments(np.array([10.0, INF, 30.0]))
    assert (n, mean) == (3, INF)
    assert np.isnan(sd)


def test_swapping_sides_flips_the_difference_and_keeps_p():
    a, b = np.array([3.0, 5.0, 4.0, 8.0]), np.array([1.0, 6.0, 2.0, 2.0])
    one, two = paired(a, b), paired(b, a)
    assert one.mean == -two.mean
    assert one.ci_low == pytest.approx(-two.ci_high)
    assert (one.p, one.p_permutation) == (two.p, two.p_permutation)


@given(hnp.arrays(float, st.integers(2, 12), elements=st.floats(0, 1)), st.floats(0.1, 8))
def test_interval_of_shares_lies_between_its_bounds(shares, top):
    n, mean, sd = moments(top * shares)
    low, high = share_interval(mean, sd, n, 0.95, top)
    mirrored = share_interval(top - mean, sd, n, 0.95, top)
    if np.ptp(shares) > 1e-6:
        assert 0 <= low <= mean <= high <= top
        np.testing.assert_allclose([top - mirrored[1], top - mirrored[0]], [low, high], atol=1e-6 * top)
    elif np.ptp(shares) == 0:
        assert np.isnan([low, high]).all()


def test_interval_of_shares_equals_the_hand_computation():
    low, high = share_interval(0.9, 0.3, 9, 0.95, 2.0)  # share 0.45, standard error 0.05
    half = 2.3060041352 * 0.05 / (0.45 * 0.55)
    middle = np.log(0.45 / 0.55)
    np.testing.assert_allclose(
        [low, high], [2 / (1 + np.exp(half - middle)), 2 / (1 + np.exp(-half - middle))], rtol=1e-9
    )
    assert np.isnan(share_interval(0.9, 0.3, 1, 0.95)[0])
    with pytest.raises(DataError, match="largest value is 0"):
        share_interval(0.5, 0.1, 3, 0.95, 0)


def test_holm_equals_the_hand_computation():
    # sorted .01 .02 .04 .05 × 4 3 2 1 = .04 .06 .08 .05 → running maximum .04 .06 .08 .08
    np.testing.assert_allclose(holm(np.array([0.04, 0.01, 0.05, 0.02])), [0.08, 0.04, 0.08, 0.06])


def test_holm_does_not_count_tests_that_were_not_made():
    np.testing.assert_allclose(holm(np.array([0.04, NAN, 0.01])), [0.04, NAN, 0.02])
    np.testing.assert_allclose(holm(np.array([[0.5, 0.9], [NAN, 0.3]])), [[1.0, 1.0], [NAN, 0.3]])
    assert holm(np.empty((2, 0))).shape == (2, 0)


@given(hnp.arrays(float, st.integers(1, 8), elements=st.floats(0, 1)))
def test_holm_keeps_order_within_bonferroni(p):
    adjusted = holm(p)
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(p * len(p), 1) + 1e-12).all()
    order = np.argsort(p, kind="stable")
    assert (np.diff(adjusted[order]) >= 0).all()


def test_bootstrap_of_three_seeds_equals_enumeration():
    values = np.array([1.0, 4.0, 13.0])
    means = np.array([np.mean(draw) for draw in itertools.product(values, repeat=3)])  # 27 equally likely draws
    low, high = bootstrap_interval(values, 40_000, generator(0, "bootstrap"), confidence=0.8)
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.1, 0.9], method="inverted_cdf")))


def test_bootstrap_agrees_with_scipy_on_measured_seeds():
    values = generator(1, "values").exponential(size=(3, 12))
    holed = np.concatenate([values, np.full((3, 2), NAN)], axis=1)
    low, high = bootstrap_interval(holed, 20_000, generator(2, "draws"))
    for row in range(3):
        found = scipy.stats.bootstrap(
            (values[row],), np.mean, n_resamples=20_000, method="percentile", rng=generator(3, row)
        ).confidence_interval
        assert (low[row], high[row]) == pytest.approx((found.low, found.high), abs=0.02)


def test_bootstrap_without_spread_has_no_interval():
    rows = np.array([[1.0, NAN, NAN], [2.0, 2.0, 2.0], [1.0, INF, 3.0], [INF, INF, 1.0]])
    low, high = bootstrap_interval(rows, 100, generator(0, "none"))
    assert np.isnan([low, high]).all()
    with pytest.raises(DataError, match="1 bootstrap resamples"):
        bootstrap_interval(rows, 1, generator(0, "none"))


def test_without_any_seed_there_is_nothing_to_say():
    none = np.empty((2, 0))
    assert np.isnan([*sign_flip_p(none), *paired(none, none).p, *bootstrap_interval(none, 10, generator(0))[0]]).all()


def test_misshapen_input_is_refused():
    with pytest.raises(DataError, match="paired by seed"):
        paired(np.ones(3), np.ones(2))
    with pytest.raises(DataError, match="confidence is 95"):
        paired(np.ones(3), np.ones(3), confidence=95)


# Power of the paired t test


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(("effect", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_seeds_needed_equal_the_textbook(effect, pairs):
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


def test_power_equals_the_share_of_simulated_audits():
    values = 0.9 + generator(3, "power").standard_normal((40_000, 8))
    result = scipy.stats.ttest_1samp(values, 0, axis=1)
    share = ((result.pvalue < 0.05) & (result.statistic > 0)).mean()
    assert t_power(0.9, 8) == pytest.approx(share, abs=0.01)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, MOST_SEEDS), st.sampled_from([0.05, 0.05 / 6]), st.sampled_from([0.5, 0.8, 0.95]))
def test_detectable_effect_has_exactly_its_power(n, alpha, power):
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


def test_detectable_effects_fall_beyond_the_table():
    n = np.array([2, 3, 10, MOST_SEEDS, MOST_SEEDS + 1, 5 * MOST_SEEDS])
    assert (np.diff(unit_effect(n)) < 0).all()
    assert unit_effect(5 * MOST_SEEDS) == pytest.approx((1.959964 + 0.841621) / np.sqrt(5 * MOST_SEEDS), rel=1e-3)


def test_power_without_spread_is_nan_without_effect_inf():
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


def test_repeated_base_models_are_the_units_of_a_test():
    """Averages per base model, then a t test over base models, by scipy."""
    rng = generator(4, "bases")
    of_base = np.repeat(rng.normal(size=4), 3)
    difference = of_base + 0.1 * rng.normal(size=12)
    unit_of = np.repeat(np.arange(4), 3)
    a = rng.normal(size=12)
    result = paired(a + difference, a, unit_of=unit_of)
    per_base = difference.reshape(4, 3).mean(axis=1)
    expected = scipy.stats.ttest_1samp(per_base, 0.0)
    assert (int(result.n), float(result.mean)) == (4, pytest.approx(per_base.mean()))
    assert float(result.p) == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert [float(result.ci_low), float(result.ci_high)] == pytest.approx([interval.low, interval.high])
    assert float(paired(a + difference, a).p) < float(result.p)  # seeds of a base model are no replications


def test_a_missing_seed_leaves_the_others_of_its_base_model():
    a, b = np.array([1.0, 3.0, 5.0, np.nan]), np.array([0.0, 0.0, 0.0, 9.0])
    result = paired(a, b, unit_of=np.array([0, 0, 1, 1]))
    assert (int(result.n), float(result.mean)) == (2, 3.5)


@pytest.mark.parametrize("unit_of", [[0, 1, 2, 3], [2, 0, 3, 1], [0, 1, 1, 3]])
def test_unit_means_are_in_the_order_of_the_units(unit_of):
    values = np.array([[1.0, NAN, 3.0, INF]])
    of_units = [[values[0, seed] for seed in range(4) if unit_of[seed] == unit] for unit in range(4)]
    measured = [[value for value in part if value == value] for part in of_units]
    expected = [sum(part) / len(part) if part else NAN for part in measured]
    np.testing.assert_array_equal(unit_means(values, np.array(unit_of)), [expected])


def test_pooled_sd_is_the_mean_variance_by_degrees_of_freedom():
    sd, low, high = pooled_sd(np.array([3.0, 4.0, NAN, 0.0]), np.array([3, 5, 4, 6]))
    assert sd == pytest.approx(np.sqrt((2 * 9 + 4 * 16) / 6))
    freedom = 6 / 1.25
    tails = scipy.stats.chi2.ppf([0.95, 0.05], freedom)
    np.testing.assert_allclose([low, high], sd * np.sqrt(freedom / tails))
    assert np.isnan(pooled_sd(np.array([NAN, 0.0]), np.array([3, 3]))).all()


def test_range_of_the_pooled_sd_holds_the_true_one():
    """Six selectors and their reference with the same noise. The differences share the reference's, so χ² is near."""
    rng = np.random.default_rng(7)
    values = rng.normal(0, 1, (4_000, 7, 3))
    difference = values[:, 1:] - values[:, :1]
    _, low, high = pooled_sd(difference.std(axis=-1, ddof=1), np.full((4_000, 6), 3))
    covered = (low <= np.sqrt(2)) & (np.sqrt(2) <= high)
    assert covered.mean() == pytest.approx(0.92, abs=0.03)
    alone = pooled_sd(difference[:, :1].std(axis=-1, ddof=1), np.full((4_000, 1), 3))
    assert ((alone[1] <= np.sqrt(2)) & (np.sqrt(2) <= alone[2])).mean() == pytest.approx(0.9, abs=0.02)
    assert (high - low).mean() < 0.5 * (alone[2] - alone[1]).mean()
