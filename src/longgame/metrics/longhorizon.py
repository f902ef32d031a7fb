"""The long-horizon score (eq. 2, normalised) and how much a ranking by it owes to its weights."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from longgame.errors import DataError

Values = Float[np.ndarray, "..."] | float


def long_horizon_score(
    final: Values,
    auc: Values,
    forgetting: Values,
    ood: Values,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
) -> Float[np.ndarray, ...]:
    """(final/100 + α·AUC − β·F/100 + γ·OOD/100) / (1 + α + γ): eq. 2 with means for sums, on the scale 0–1.

    Args:
        final: mean score over the stage tasks after the last stage, points.
        auc: mean future AUC, 0–1.
        forgetting: mean forgetting, points.
        ood: mean OOD score, points.
        alpha, beta, gamma: weights ≥ 0. A term of weight 0 is not needed: its NaN does not spread.

    Raises:
        DataError: a negative weight.
    """
    if min(alpha, beta, gamma) < 0:
        raise DataError(f"the weights are α={alpha}, β={beta}, γ={gamma}; none may be negative.")
    total = np.asarray(final, dtype=float) / 100
    terms = ((alpha, np.asarray(auc)), (-beta, np.asarray(forgetting) / 100), (gamma, np.asarray(ood) / 100))
    for weight, term in terms:
        if weight != 0:
            total = total + weight * term
    return total / (1 + alpha + gamma)


def weight_sensitivity(
    final: Float[np.ndarray, " k"],
    auc: Float[np.ndarray, " k"],
    forgetting: Float[np.ndarray, " k"],
    ood: Float[np.ndarray, " k"],
    *,
    total: float = 3.0,
) -> Float[np.ndarray, " k"]:
    """Share of the weight simplex {α, β, γ ≥ 0, α + β + γ = total} on which each selector ranks first.

    Exact: for fixed weights the score's denominator is common to all, so the score is affine in the weights and each
    selector wins on a convex polygon, whose area is measured. The default total puts α = β = γ = 1 at the centre.
    Selectors with the same score everywhere share their area. Units as in `long_horizon_score`; shares sum to 1.
    A selector with a NaN gets NaN, and the others share the simplex.

    Raises:
        DataError: ``total`` is not positive.
    """
    if not total > 0:
        raise DataError(f"the total weight is {total}; it must be positive.")
    base = np.asarray(final, dtype=float) / 100
    terms = (np.asarray(auc), -np.asarray(forgetting) / 100, np.asarray(ood) / 100)
    corners = np.stack([base + total * term for term in terms], axis=-1)  # score at (α, β, γ) = total · unit vector
    share = np.full(len(base), np.nan)
    measured = np.flatnonzero(~np.isnan(corners).any(axis=-1))
    if measured.size == 0:
        return share
    distinct, group, count = np.unique(corners[measured].round(12), axis=0, return_inverse=True, return_counts=True)
    areas = np.array([_winning_area(distinct, row) for row in range(len(distinct))])
    share[measured] = (areas / areas.sum() / count)[group.reshape(-1)]
    return share


def _winning_area(corners: Float[np.ndarray, "k 3"], row: int) -> float:
    """Area of the part of the triangle where this row's affine function is the largest (half-plane clipping)."""
    polygon = np.eye(3)  # vertices in barycentric coordinates
    for other in range(len(corners)):
        if other == row:
            continue
        ahead = polygon @ (corners[row] - corners[other])
        kept = []
        for here in range(len(polygon)):
            after = (here + 1) % len(polygon)
            if ahead[here] >= 0:
                kept.append(polygon[here])
            if ahead[here] * ahead[after] < 0:
                share = ahead[here] / (ahead[here] - ahead[after])
                kept.append(polygon[here] + share * (polygon[after] - polygon[here]))
        if len(kept) < 3:
            return 0.0
        polygon = np.stack(kept)
    x, y = polygon[:, 0], polygon[:, 1]
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)
