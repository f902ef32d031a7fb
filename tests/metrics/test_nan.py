"""NaN means "not measured": no metric lets a hole count as a number.

The property: where a result is finite although something was not measured, it is the same whatever had stood there.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from longgame.metrics import diagnostics, longhorizon, matrix
from longgame.metrics.longhorizon import long_horizon_score, weight_sensitivity
from longgame.metrics.stats import (
    bootstrap_interval,
    holm,
    minimum_detectable_effect,
    moments,
    paired,
    seeds_needed,
    sign_flip_p,
    t_power,
)
from longgame.metrics.tidy import over_measured
from longgame.metrics.verdict import rank_reversals
from longgame.seeding import generator

T, OOD, P = 3, 2, 4
TOKENS = np.array([0.0, 10.0, 20.0, 40.0])
MATRIX = (
    matrix.immediate_gain,
    matrix.mean_immediate_gain,
    matrix.current_score,
    matrix.final_score,
    matrix.forgetting_per_task,
    matrix.forgetting,
    lambda R: matrix.forgetting(R, "first"),
    matrix.forward_transfer,
    matrix.backward_transfer,
    matrix.capability_imbalance,
    matrix.worst_task,
    matrix.ood_score,
)


def scores(*shape):
    return hnp.arrays(float, shape, elements=st.floats(0, 100, width=16))


def holes(*shape):
    return hnp.arrays(bool, shape)


def unchanged_where_finite(function, values, missing, other):
    """The result with holes, where finite, equals the result with either number in the holes."""
    seen = np.asarray(function(np.where(missing, np.nan, values)))
    finite = np.isfinite(seen)
    for filled in (values, np.where(missing, other, values)):
        full = np.broadcast_to(np.asarray(function(filled)), seen.shape)
        np.testing.assert_allclose(seen[finite], full[finite], atol=1e-9)
    return seen


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(MATRIX))
def test_matrix_metric_is_nan_or_independent_of_the_hole(data, metric):
    shape = (2, T + 1, T + OOD)
    values, other, missing = data.draw(scores(*shape)), data.draw(scores(*shape)), data.draw(holes(*shape))
    missing[0] = False  # every column is measured somewhere, so that none is left out for all
    unchanged_where_finite(metric, values, missing, other)


@settings(max_examples=60, deadline=None)
@given(scores(2, P), scores(2, P), holes(2, P))
def test_curve_metric_is_nan_or_independent_of_the_hole(values, other, missing):
    tokens = np.tile(TOKENS, (2, 1))
    metrics = (
        lambda y: longhorizon.adaptation_auc(tokens, y),
        longhorizon.curve_start,
        lambda y: longhorizon.tokens_to_threshold(tokens, y, 50.0),
    )
    for metric in metrics:
        unchanged_where_finite(metric, values, missing, other)
    reached = longhorizon.tokens_to_threshold(tokens, np.where(missing, np.nan, values), 50.0)
    assert np.isnan(reached[missing.any(axis=1)]).all()  # neither reached nor "not reached"
    assert np.isnan(longhorizon.threshold_ratio(np.nan, 10.0))
    assert np.isnan(longhorizon.threshold_ratio(10.0, np.nan))


@settings(max_examples=60, deadline=None)
@given(scores(4, 5), scores(4, 5), holes(4, 5))
def test_long_horizon_leaves_unmeasured_selectors_out(values, other, missing):
    unchanged_where_finite(lambda v: long_horizon_score(*v), values, missing, other)
    share = weight_sensitivity(*np.where(missing, np.nan, values))
    gone = missing.any(axis=0)
    assert np.isnan(share[gone]).all()
    if not gone.all():
        np.testing.assert_allclose(share[~gone], weight_sensitivity(*values[:, ~gone]), atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(scores(3, 6), scores(3, 6), holes(3, 6))
def test_statistics_equal_those_of_the_measured_seeds(a, b, missing):
    with_holes = np.where(missing, np.nan, a)
    n, mean, sd = moments(with_holes)
    pair, flip = paired(with_holes, b), sign_flip_p(with_holes - b)
    for row in range(3):
        keep = ~missing[row]
        alone = moments(a[row, keep])
        np.testing.assert_allclose((n[row], mean[row], sd[row]), alone, atol=1e-9)
        if not keep.any():
            assert np.isnan([pair.mean[row], pair.p[row], flip[row]]).all()
            continue
        few = paired(a[row, keep], b[row, keep])
        for name in ("n", "mean", "sd", "ci_low", "ci_high", "p", "p_permutation"):
            np.testing.assert_allclose(getattr(pair, name)[row], getattr(few, name), atol=1e-9, err_msg=name)
    low, high = bootstrap_interval(with_holes, 50, generator(0, "nan"))
    assert np.isnan(low[n < 2]).all()
    assert np.isnan(high[n < 2]).all()


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(float, 6, elements=st.floats(0, 1)), holes(6))
def test_holm_over_the_tests_made_equals_holm_without_the_others(p, missing):
    adjusted = holm(np.where(missing, np.nan, p))
    assert np.isnan(adjusted[missing]).all()
    np.testing.assert_allclose(adjusted[~missing], holm(p[~missing]))


@settings(max_examples=60, deadline=None)
@given(scores(4), holes(4), scores(4))
def test_ranks_of_an_unmeasured_selector_are_not_guessed(values, missing, long):
    ranks = longhorizon.ranks(np.where(missing, np.nan, values))
    assert np.isnan(ranks[missing]).all()
    np.testing.assert_array_equal(ranks[~missing], longhorizon.ranks(values[~missing]))
    gap = longhorizon.myopia_gap(np.where(missing, np.nan, values), long)
    assert np.isnan(gap) == missing.any()
    table = np.where(missing, np.nan, values)[None]
    assert np.isnan(longhorizon.seed_myopia_gap(table, long[None])).all() == missing.any()


@settings(max_examples=40, deadline=None)
@given(scores(6, 2), scores(6, 2), holes(6), st.booleans())
def test_rank_reversals_are_those_of_the_measured_seeds_alone(now, later, missing, first):
    now, later = now + np.array([300.0, 0.0]), later - np.array([300.0, 0.0])  # far apart, so that reversals do occur
    hole = missing[:, None] & np.array([first, not first])
    seen = rank_reversals(np.where(hole, np.nan, now), np.where(hole, np.nan, later), ["a", "b"])
    kept = rank_reversals(now[~missing], later[~missing], ["a", "b"])
    assert [(r.ahead, r.behind, r.immediate.n, r.long.n) for r in seen] == [
        (r.ahead, r.behind, r.immediate.n, r.long.n) for r in kept
    ]


@settings(max_examples=40, deadline=None)
@given(scores(3, 4), scores(3, 4), holes(3, 4), st.booleans())
def test_means_and_sums_over_stages_with_a_hole_are_nan(values, other, missing, total):
    missing[0] = False
    seen = unchanged_where_finite(lambda v: over_measured(v, total), values, missing, other)
    assert np.isnan(seen[missing.any(axis=1)]).all()


@pytest.mark.parametrize(
    "result",
    [
        diagnostics.token_weighted_mean(np.array([1.0, np.nan]), np.array([1, 1])),
        diagnostics.token_weighted_mean(np.array([np.nan, np.nan]), np.array([3, 4])),
        diagnostics.capability_entropy(np.zeros(3)),
        diagnostics.selection_concentration(np.zeros((0, 3))),
        diagnostics.update_concentration(np.zeros((0, 0)), 5).value,
        minimum_detectable_effect(np.nan, 5),
        seeds_needed(np.nan, 1.0),
        t_power(np.nan, 5),
    ],
)
def test_what_cannot_be_told_is_nan(result):
    assert np.isnan(result)
