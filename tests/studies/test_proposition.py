import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from studies.theory.proposition import (
    largest_rate,
    loss_after_update,
    ordering_holds,
    ordering_margin,
    quadratic_loss,
    small_rate_ordering,
)


@st.composite
def cases(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    d = draw(st.integers(1, 6))
    root = rng.standard_normal((d, draw(st.integers(1, d))))  # H = root rootᵀ may be singular
    return (*rng.standard_normal((4, d)), root @ root.T)


@settings(max_examples=60, deadline=None)
@given(cases(), st.floats(1e-3, 10))
def test_expanded_loss_is_the_loss_at_the_updated_parameters(case, rate):
    gradient, _, theta, optimum, curvature = case
    direct = quadratic_loss(theta - rate * gradient, optimum, curvature)
    expanded = loss_after_update(theta, gradient, rate, optimum, curvature)
    assert expanded == pytest.approx(direct, rel=1e-9, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(cases(), st.floats(1e-3, 10))
def test_exact_condition_orders_next_stage_losses_at_every_rate(case, rate):
    first, second, theta, optimum, curvature = case
    gap = quadratic_loss(theta - rate * first, optimum, curvature) - quadratic_loss(
        theta - rate * second, optimum, curvature
    )
    margin = ordering_margin(first, second, theta, rate, optimum, curvature)
    assert margin == pytest.approx(gap, rel=1e-7, abs=1e-8)
    if abs(gap) > 1e-7:
        assert ordering_holds(first, second, theta, rate, optimum, curvature) == (gap > 0)


@settings(max_examples=60, deadline=None)
@given(cases(), st.floats(0.01, 0.99))
def test_paper_condition_is_exact_only_below_the_largest_rate(case, share):
    first, second, theta, optimum, curvature = case
    limit = largest_rate(first, second, theta, optimum, curvature)
    claim = small_rate_ordering(first, second, theta, optimum, curvature)
    inside = share * min(limit, 10.0)
    if limit > 1e-6:
        assert ordering_holds(first, second, theta, inside, optimum, curvature) == claim
    if 1e-6 < limit < 1e6:
        assert ordering_holds(first, second, theta, limit * (1 + share), optimum, curvature) != claim


def test_hand_computed_case_where_the_linear_condition_fails():
    # H = I, θ − θ* = (1, 0): second goes straight down (⟨g, H(θ−θ*)⟩ = 2) but overshoots; first goes half as far.
    theta, optimum, curvature = np.array([1.0, 0.0]), np.zeros(2), np.eye(2)
    first, second = np.array([1.0, 0.0]), np.array([2.0, 0.0])
    assert small_rate_ordering(first, second, theta, optimum, curvature)
    assert largest_rate(first, second, theta, optimum, curvature) == pytest.approx(2 / 3)
    assert ordering_holds(first, second, theta, 0.5, optimum, curvature)  # ½·½² = .125 > 0
    assert not ordering_holds(first, second, theta, 0.8, optimum, curvature)  # ½·.2² = .02 < ½·.6² = .18
    assert ordering_margin(first, second, theta, 0.8, optimum, curvature) == pytest.approx(0.02 - 0.18)


def test_equal_gain_can_leave_different_next_stage_losses():
    # the current stage sees only x, the next only y: equal x-steps, opposite y-steps
    theta, nxt = np.zeros(2), np.diag([0.0, 1.0])
    first, second = np.array([-1.0, 1.0]), np.array([-1.0, -1.0])
    current = np.diag([1.0, 0.0])
    rate, optimum = 0.1, np.array([1.0, 1.0])
    gains = [loss_after_update(theta, g, rate, optimum, current) for g in (first, second)]
    assert gains[0] == pytest.approx(gains[1])
    assert ordering_holds(first, second, theta, rate, optimum, nxt)
