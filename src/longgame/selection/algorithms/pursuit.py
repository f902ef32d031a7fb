"""Gradient matching: few rows with weights ≥ 0 whose sum is near a target vector (orthogonal matching pursuit)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

_TOLERANCE = 1e-9
"""Correlation with the residual, relative to the largest possible one, that counts as none."""


@dataclass(frozen=True)
class Matching:
    """Picks of `gradient_matching`."""

    rows: Int[np.ndarray, " k"]
    """In pick order."""
    weights: Float[np.ndarray, " k"]
    """> 0, with a mean of 1."""
    score: Float[np.ndarray, " n"]
    """Inner product of each row with the residual, when it was picked or last considered."""


def nonnegative_pursuit(
    vectors: Float[np.ndarray, "n d"],
    target: Float[np.ndarray, " d"],
    costs: Int[np.ndarray, " n"],
    budget: int,
    ridge: float,
    atoms: int,
    tolerance: float,
    score: Float[np.ndarray, " n"],
) -> tuple[list[int], Float[np.ndarray, " m"]]:
    """Minimize ‖Σ wᵢ xᵢ − target‖² + ridge · ‖w‖² over w ≥ 0, a row at a time (OMP; Lawson & Hanson's inner loop).

    Each time the row with the largest inner product with the residual comes in, and all weights are solved for anew;
    rows whose weight would fall below 0 go out. Ends when no further row has a positive inner product or fits, when the
    residual is ``tolerance`` · ‖target‖, or with so many ``atoms``. The objective falls each time. Rows that went out
    may come in again; the number of turns is bounded.

    Args:
        vectors: n rows, float64.
        costs: what each costs; rows that do not fit beside those that are in are passed over.
        ridge: > 0, so that the weights are unique however alike the rows are.
        score: written to: the inner product when a row came in, or at the end.

    Returns:
        The rows that are in, in the order in which they came, and their weights (> 0).
    """
    active: list[int] = []
    weights = np.zeros(0)
    free: Bool[np.ndarray, " n"] = costs <= budget
    left, residual = int(budget), target
    scale = float(np.sqrt(np.einsum("nd,nd->n", vectors, vectors).max(initial=0.0)) * np.linalg.norm(target))
    for _ in range(3 * atoms + 8):
        correlation = vectors @ residual
        allowed = free & (costs <= left)
        allowed[active] = False
        score[allowed] = correlation[allowed]
        done = np.linalg.norm(residual) <= tolerance * np.linalg.norm(target) or len(active) >= atoms
        if done or not allowed.any():
            break
        best = int(np.where(allowed, correlation, -np.inf).argmax())
        if correlation[best] <= _TOLERANCE * scale:
            break
        active.append(best)
        active, weights, dropped = _solve(vectors, target, ridge, active, np.append(weights, 0.0))
        if best in dropped:  # rounding: it would not come in
            free[best] = False
        left = int(budget) - int(costs[active].sum())
        residual = target - weights @ vectors[active]
    return active, weights


def _solve(
    vectors: Float[np.ndarray, "n d"],
    target: Float[np.ndarray, " d"],
    ridge: float,
    active: list[int],
    weights: Float[np.ndarray, " m"],
) -> tuple[list[int], Float[np.ndarray, " m"], set[int]]:
    """The ridge solution on these rows with all weights > 0; rows that stand in the way go out, one at least a turn."""
    dropped: set[int] = set()
    while active:
        part = vectors[active]
        gram = part @ part.T
        gram[np.diag_indices_from(gram)] += ridge
        solution = np.linalg.solve(gram, part @ target)
        negative = solution <= 0
        if not negative.any():
            return active, solution, dropped
        with np.errstate(divide="ignore", invalid="ignore"):
            steps = np.where(negative, weights / np.maximum(weights - solution, np.finfo(np.float64).tiny), np.inf)
        weights = weights + steps.min() * (solution - weights)
        stays = (weights > np.finfo(np.float64).eps * weights.max(initial=0.0)) & (steps > steps.min())
        dropped |= {row for row, keep in zip(active, stays.tolist(), strict=True) if not keep}
        active = [row for row, keep in zip(active, stays.tolist(), strict=True) if keep]
        weights = weights[stays]
    return active, np.zeros(0), dropped


def gradient_matching(
    gradients: Float[np.ndarray, "n d"],
    costs: Int[np.ndarray, " n"],
    budget: int,
    ridge: float,
    atoms: int = 512,
    tolerance: float = 0.01,
) -> Matching:
    """Fill a budget with rows whose weighted sum is near the mean of all rows.

    One pursuit matches the mean with few rows; where the budget holds more, another one matches it with the rows that
    are left, and so on. Each has the same part of the weights for each of its picks. When no row that is left points to
    the mean, the rest of the budget is filled by falling inner product with it, at the least weight that a pick has.

    Args:
        gradients: n rows, in the order that ties follow.
        costs: of each row, ≥ 1.
        budget: at least ``costs.min()``.
        ridge: λ > 0, in units of the rows' mean squared length.
        atoms: most rows of one pursuit.
        tolerance: share of the mean's length at which a pursuit ends.
    """
    vectors = gradients.astype(np.float64)
    target = vectors.mean(axis=0)
    length = float(np.einsum("nd,nd->n", vectors, vectors).mean())
    score, left = vectors @ target, int(budget)
    picks: list[int] = []
    weights: list[float] = []
    open_rows = np.arange(len(vectors))
    while length > 0 and len(open_rows) and costs[open_rows].min() <= left:
        part = score[open_rows]
        active, solved = nonnegative_pursuit(
            vectors[open_rows], target, costs[open_rows], left, ridge * length, atoms, tolerance, part
        )
        score[open_rows] = part
        if not active:
            break
        rows = open_rows[active]
        picks += rows.tolist()
        weights += (solved * (len(solved) / solved.sum())).tolist()
        left -= int(costs[rows].sum())
        open_rows = np.delete(open_rows, active)
    least = min(weights, default=1.0)
    order = open_rows[np.argsort(-score[open_rows], kind="stable")]
    for row in order.tolist():
        if costs[row] <= left:
            picks.append(row)
            weights.append(least)
            left -= int(costs[row])
    array = np.asarray(weights)
    return Matching(np.asarray(picks, dtype=np.int64), array / array.mean(), score)
