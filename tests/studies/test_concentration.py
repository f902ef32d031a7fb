"""The concentration corollary: formulas against simulation and hand values, bounds against every spectrum."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from longgame.errors import DataError
from longgame.metrics.diagnostics import selection_concentration
from longgame.seeding import generator
from studies.theory.concentration import (
    projection_moments,
    relative_variance,
    relative_variance_bounds,
    sample_projections,
    second_moment,
)

spectra = hnp.arrays(float, st.integers(2, 8), elements=st.floats(0.01, 10))


def test_moments_of_a_diagonal_case_equal_hand_values():
    # q = 2u₁² + u₂² with var(u) = 1, 3: mean 2 + 3 = 5; variance 2·(2² + 3²) = 26
    assert projection_moments(np.diag([2.0, 1.0]), np.diag([1.0, 3.0])) == (5, 26)
    assert relative_variance(np.diag([2.0, 1.0])) == pytest.approx(2 * 5 / 9)
    assert relative_variance(np.eye(4)) == pytest.approx(2 / 4)
    assert relative_variance(np.diag([3.0, 0, 0])) == pytest.approx(2)
    assert np.isnan(relative_variance(np.zeros((2, 2))))


def test_moments_agree_with_simulated_future_directions():
    rng = generator(0, "concentration")
    roots = rng.standard_normal((2, 5, 5))
    moment, future = roots @ roots.transpose(0, 2, 1)
    q = sample_projections(moment, future, 200_000, rng)
    mean, variance = projection_moments(moment, future)
    assert q.mean() == pytest.approx(mean, rel=0.02)
    assert q.var() == pytest.approx(variance, rel=0.05)


@settings(max_examples=80, deadline=None)
@given(spectra)
def test_variance_lies_between_bounds_of_its_concentration(values):
    concentration = values.max() / values.sum()
    low, high = relative_variance_bounds(concentration, len(values))
    assert low - 1e-9 <= relative_variance(np.diag(values)) <= high + 1e-9
    assert high <= 2 * concentration + 1e-9


@settings(max_examples=40, deadline=None)
@given(st.floats(0.15, 1), st.integers(8, 20))
def test_both_bounds_are_attained(concentration, d):
    low, high = relative_variance_bounds(concentration, d)
    flat = np.full(d, (1 - concentration) / (d - 1))
    flat[0] = concentration
    assert relative_variance(np.diag(flat)) == pytest.approx(low)
    many = int(1 / concentration + 1e-12)
    steep = np.zeros(d)
    steep[:many] = concentration
    steep[many] = 1 - many * concentration
    assert relative_variance(np.diag(steep)) == pytest.approx(high)


def test_both_bounds_rise_with_the_concentration():
    bounds = np.array([relative_variance_bounds(c, 10) for c in np.linspace(0.1, 1, 50)])
    assert (np.diff(bounds, axis=0) > -1e-12).all()
    np.testing.assert_allclose(bounds[[0, -1]], [[0.2, 0.2], [2, 2]])
    with pytest.raises(DataError, match="concentration of 0.05 in 10"):
        relative_variance_bounds(0.05, 10)


@settings(max_examples=60, deadline=None)
@given(spectra, st.floats(0.01, 1))
def test_flattening_the_spectrum_lowers_the_variance(values, share):
    flatter = (1 - share) * values + share * values.mean()
    assert relative_variance(np.diag(flatter)) <= relative_variance(np.diag(values)) + 1e-12


def test_the_second_moment_has_the_concentration_of_eq_4():
    gradients = generator(1, "gradients").standard_normal((30, 6))
    values = np.linalg.eigvalsh(second_moment(gradients))
    assert values[-1] / values.sum() == pytest.approx(selection_concentration(gradients))
    with pytest.raises(DataError, match="n ≥ 1"):
        second_moment(np.zeros((0, 3)))
