"""Proposition 1: what one update on the current stage does to the loss of the next (paper §3.1, appendix B.1).

The next stage has the loss L(θ) = ½ (θ − θ*)ᵀ H (θ − θ*) with H ⪰ 0; the current stage updates θ' = θ − η ḡ, where ḡ
is the mean gradient of what was selected. All arrays are float64; losses carry the unit of the stage's loss.

Unlike the paper, which orders two selections by the linear term alone, `ordering_holds` is exact for every η; the
paper's statement is its limit η → 0 (`small_rate_ordering`), and `largest_rate` says up to which η the two agree.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

Vector = Float[np.ndarray, " d"]
Matrix = Float[np.ndarray, "d d"]


def quadratic_loss(theta: Vector, optimum: Vector, curvature: Matrix) -> float:
    """Next-stage loss ½ ‖θ − θ*‖²_H (eq. 6)."""
    away = theta - optimum
    return float(0.5 * away @ curvature @ away)


def alignment(gradient: Vector, theta: Vector, optimum: Vector, curvature: Matrix) -> float:
    """⟨ḡ, H(θ − θ*)⟩: how far the update goes along the next stage's own descent direction."""
    return float(gradient @ curvature @ (theta - optimum))


def loss_after_update(theta: Vector, gradient: Vector, rate: float, optimum: Vector, curvature: Matrix) -> float:
    """Next-stage loss after θ' = θ − η ḡ, in the expanded form of eq. 8.

    Args:
        theta: parameters before the update.
        gradient: ḡ, mean gradient of the selection.
        rate: learning rate η.
        optimum: θ* of the next stage.
        curvature: H of the next stage, symmetric, positive semidefinite.
    """
    linear = alignment(gradient, theta, optimum, curvature)
    second = float(gradient @ curvature @ gradient)
    return quadratic_loss(theta, optimum, curvature) - rate * linear + 0.5 * rate**2 * second


def ordering_margin(
    first: Vector, second: Vector, theta: Vector, rate: float, optimum: Vector, curvature: Matrix
) -> float:
    """How much higher the next-stage loss is after ``first`` than after ``second``: L(θ − η ḡ_a) − L(θ − η ḡ_b).

    Equals η · (⟨ḡ_b − ḡ_a, H(θ − θ*)⟩ − (η/2)(ḡ_bᵀHḡ_b − ḡ_aᵀHḡ_a)): FORMULAS "Theory", from eq. 8.
    """
    linear = alignment(second - first, theta, optimum, curvature)
    curved = float(second @ curvature @ second - first @ curvature @ first)
    return rate * (linear - 0.5 * rate * curved)


def ordering_holds(
    first: Vector, second: Vector, theta: Vector, rate: float, optimum: Vector, curvature: Matrix
) -> bool:
    """Whether ``first`` leaves the higher next-stage loss: the exact condition, for every η > 0.

    ⟨ḡ_b − ḡ_a, H(θ − θ*)⟩ > (η/2)(ḡ_bᵀHḡ_b − ḡ_aᵀHḡ_a).
    """
    return ordering_margin(first, second, theta, rate, optimum, curvature) > 0


def small_rate_ordering(first: Vector, second: Vector, theta: Vector, optimum: Vector, curvature: Matrix) -> bool:
    """The paper's condition (eq. 9): ⟨ḡ_a, H(θ − θ*)⟩ < ⟨ḡ_b, H(θ − θ*)⟩; exact only as η → 0."""
    return alignment(first, theta, optimum, curvature) < alignment(second, theta, optimum, curvature)


def largest_rate(first: Vector, second: Vector, theta: Vector, optimum: Vector, curvature: Matrix) -> float:
    """Largest η below which the paper's condition and the exact one order the two selections alike.

    Infinite where the second-order terms never turn the order round; 0 where the linear terms are equal.
    """
    linear = alignment(second - first, theta, optimum, curvature)
    curved = float(second @ curvature @ second - first @ curvature @ first)
    if linear == 0:
        return 0.0
    return 2 * linear / curved if linear * curved > 0 else float("inf")


def equal_gain_rate(
    first: Vector, rate: float, second: Vector, theta: Vector, optimum: Vector, curvature: Matrix
) -> float:
    """Step of ``second`` that lowers the *current* stage's loss by just as much as ``first`` does at ``rate``.

    The proposition compares selections of equal current improvement; ordering two of them after steps η ḡ_a and s ḡ_b
    is `ordering_holds` with these displacements at rate 1, and so is a whole stage (θ − θ' of all its steps).

    Args:
        optimum, curvature: θ* and H of the current stage.

    Returns:
        The smallest step s > 0, or NaN where no step along ``second`` improves as much.
    """
    gain = quadratic_loss(theta, optimum, curvature) - loss_after_update(theta, first, rate, optimum, curvature)
    linear = alignment(second, theta, optimum, curvature)
    second_order = float(second @ curvature @ second)
    if second_order == 0:
        return gain / linear if linear * gain > 0 else float("nan")
    inside = linear**2 - 2 * second_order * gain
    if inside < 0:
        return float("nan")
    roots = [(linear - np.sqrt(inside)) / second_order, (linear + np.sqrt(inside)) / second_order]
    return float(min((root for root in roots if root > 0), default=np.nan))
