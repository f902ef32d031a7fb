"""The long run: adaptation curves, the long-horizon score (eq. 2, normalized), and the myopia gap (eq. 3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from longgame.errors import DataError

Points = Float[np.ndarray, "... p"]
PerCurve = Float[np.ndarray, "..."]
Values = Float[np.ndarray, "..."] | float

# Adaptation curves: how fast a fork of the model learns the next stage (paper §3, appendix A). A curve is p points:
# selected tokens spent by the probe, from 0 on, and the score on the next stage's task there (points 0–100). Leading
# axes hold many curves of equal length. A NaN score makes every metric that needs it NaN (not measured).
# `tokens_to_threshold` marks *not reached* with ``math.inf``, which is not NaN.


def _check(tokens: Points, scores: Points) -> None:
    if tokens.shape != scores.shape or tokens.ndim < 1 or tokens.shape[-1] < 2:
        raise DataError(
            f"a curve has tokens of shape {tokens.shape} and scores of shape {scores.shape}; "
            "both need the same shape with at least 2 points on the last axis."
        )
    if not (tokens[..., 0] == 0).all():
        raise DataError(f"a curve starts at {tokens[..., 0].max():g} tokens; score the fork at 0 tokens first.")
    if not (np.diff(tokens, axis=-1) >= 0).all() or not (tokens[..., -1] > 0).all():
        raise DataError("the token counts of a curve must not fall and must end above 0; sort its points by tokens.")


def adaptation_auc(tokens: Points, scores: Points) -> PerCurve:
    """Future AUC: (1/τ_max) ∫ score(τ)/100 dτ by trapezoids, 0–1 (eq. 2's AUC term).

    Args:
        tokens: selected tokens, from 0, not falling.
        scores: points 0–100.

    Raises:
        DataError: shapes differ, fewer than 2 points, or token counts that do not rise from 0.
    """
    _check(tokens, scores)
    return np.trapezoid(scores, tokens, axis=-1) / tokens[..., -1] / 100


def curve_start(scores: Points) -> PerCurve:
    """The part of the AUC that the model starts with: its score at 0 tokens, /100.

    The rest of the AUC is learned: a selector can leave a lower start without slowing learning.
    """
    return scores[..., 0] / 100


def tokens_to_threshold(tokens: Points, scores: Points, threshold: PerCurve | float) -> PerCurve:
    """Fewest probe tokens at which the curve, linear between its points, reaches ``threshold`` (points).

    Returns:
        Tokens; ``inf`` where the threshold is not reached within the probe; NaN where a score or the threshold is NaN.

    Raises:
        DataError: as `adaptation_auc`.
    """
    _check(tokens, scores)
    level = np.broadcast_to(np.asarray(threshold, dtype=float), scores.shape[:-1])[..., None]
    above = scores >= level
    first = above.argmax(axis=-1)[..., None]
    before = np.maximum(first - 1, 0)

    def at(points: Points, index: np.ndarray) -> PerCurve:
        return np.take_along_axis(points, index, axis=-1)[..., 0]

    rise = at(scores, first) - at(scores, before)
    share = np.divide(level[..., 0] - at(scores, before), rise, out=np.zeros_like(rise), where=rise > 0)
    crossing = at(tokens, before) + share * (at(tokens, first) - at(tokens, before))
    reached = np.where(above.any(axis=-1), crossing, np.inf)
    return np.where(np.isnan(scores).any(axis=-1) | np.isnan(level[..., 0]), np.nan, reached)


def threshold_ratio(tokens: PerCurve, reference: PerCurve | float) -> PerCurve:
    """How many times the reference's tokens were needed (paper §5: gradient ≈ 1.35 × LHAS).

    ``inf``: the threshold was not reached, though the reference reached it. NaN: one is unmeasured, or the reference
    gives no unit to count in, because it did not reach the threshold or needed no token at all.
    """
    first, second = np.broadcast_arrays(np.asarray(tokens, dtype=float), np.asarray(reference, dtype=float))
    unit = np.where(np.isfinite(second) & (second > 0), second, np.nan)
    return first / unit


# The long-horizon score and how much a ranking by it owes to its weights.


@dataclass(frozen=True)
class LongHorizonTerms:
    """What the long-horizon score of a view is made of."""

    probe: str
    """``common``; ``own`` where only that probe was run; "" where there was none."""
    alpha: float
    beta: float
    gamma: float
    """Weights in force: 0 for a term that no trial measured, so that it is missing for all selectors alike."""


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
    selector wins on a convex polygon, whose area is measured. The default total puts α = β = γ = 1 at the center.
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
        vertices = []
        for here in range(len(polygon)):
            after = (here + 1) % len(polygon)
            if ahead[here] >= 0:
                vertices.append(polygon[here])
            if ahead[here] * ahead[after] < 0:
                share = ahead[here] / (ahead[here] - ahead[after])
                vertices.append(polygon[here] + share * (polygon[after] - polygon[here]))
        if len(vertices) < 3:
            return 0.0
        polygon = np.stack(vertices)
    x, y = polygon[:, 0], polygon[:, 1]
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


# Ranks and the myopia gap (eq. 3). The last axis holds the K selectors.

TIE_DECIMALS = 9
"""Values that agree to this many decimals are tied: equal scores summed in another order must not be ranked."""


def ranks(values: Float[np.ndarray, "... k"]) -> Float[np.ndarray, "... k"]:
    """Rank 1 for the highest value; ties share the mean rank. NaN gets no rank (NaN) and takes none from the others."""
    rounded = np.round(np.asarray(values, dtype=float), TIE_DECIMALS)
    mine, theirs = rounded[..., :, None], rounded[..., None, :]
    rank = (theirs > mine).sum(axis=-1) + ((theirs == mine).sum(axis=-1) + 1) / 2
    return np.where(np.isnan(rounded), np.nan, rank)


def _rank_difference(now: Float[np.ndarray, "... k"], long: Float[np.ndarray, "... k"]) -> Float[np.ndarray, "... k"]:
    """(rank_long − rank_now)/(K−1); NaN for all where one selector is unmeasured, and for K = 1."""
    if now.shape[-1] != long.shape[-1]:
        raise DataError(f"{now.shape[-1]} immediate values but {long.shape[-1]} long-horizon values.")
    k = now.shape[-1]
    if k < 2:
        return np.full(np.broadcast_shapes(now.shape, long.shape), np.nan)
    difference = (ranks(long) - ranks(now)) / (k - 1)
    return np.where(np.isnan(difference).any(axis=-1, keepdims=True), np.nan, difference)


def myopia_gap(immediate: Float[np.ndarray, "... k"], long: Float[np.ndarray, "... k"]) -> Float[np.ndarray, ...]:
    """Myopia gap of a set of K selectors (eq. 3): 1/(K−1) · mean over selectors of abs(rank_imm − rank_long).

    0 = both views order the selectors alike. NaN with K = 1 or an unmeasured selector (its rank would be a guess).

    Raises:
        DataError: the two sides hold different numbers of selectors.
    """
    return np.abs(_rank_difference(np.asarray(immediate), np.asarray(long))).mean(axis=-1)


def chance_gap(selectors: int) -> float:
    """Mean gap (K+1)/(3K) of two rankings that have nothing to do with each other; NaN for K = 1.

    For independent uniform permutations the mean of abs(i − j) is (K² − 1)/(3K), here over K − 1. Selectors that do not
    differ at all are ranked by noise and end near this value, not at 0.
    """
    return (selectors + 1) / (3 * selectors) if selectors > 1 else float("nan")


def largest_gap(selectors: int) -> float:
    """Gap of a ranking and its reverse, the largest that eq. 3 gives: ⌊K²/2⌋ / (K(K − 1)); NaN for K = 1."""
    return selectors**2 // 2 / (selectors * (selectors - 1)) if selectors > 1 else float("nan")


def seed_myopia_gap(
    now: Float[np.ndarray, "seeds k"], long: Float[np.ndarray, "seeds k"]
) -> Float[np.ndarray, "seeds k"]:
    """Signed myopia gap of each selector in each seed: (rank_long − rank_now)/(K−1), from −1 to 1.

    Positive: the selector ranks worse in the long run than now. The gaps of a seed sum to 0. The paper's eq. 3 gives
    one number per set; its Table 1 shows one per selector, without a sign, which this definition supplies.

    Args:
        now: the score that ranks selectors now, as in verdicts and eq. 3: the current score.
        long: the seed's long-horizon score.

    A seed in which a selector is unmeasured is NaN for all: ranks among fewer selectors are not comparable.

    Raises:
        DataError: the two sides hold different numbers of selectors.
    """
    return _rank_difference(np.asarray(now), np.asarray(long))
