"""Metrics of an adaptation curve: how fast a fork of the model learns the next stage (paper §3, appendix A).

A curve is p points: selected tokens spent by the probe, from 0 on, and the score on the next stage's task there
(points 0–100). Leading axes hold many curves of equal length. A NaN score makes every metric that needs
it NaN (not measured). ``tokens_to_threshold`` says *not reached* with ``math.inf``, which is not NaN.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from longgame.errors import DataError

Points = Float[np.ndarray, "... p"]
PerCurve = Float[np.ndarray, "..."]


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
    """The part of the AUC that the model brings along: its score at 0 tokens, /100."""
    return scores[..., 0] / 100


def curve_gain(tokens: Points, scores: Points) -> PerCurve:
    """The part of the AUC that is learned: mean height of the curve above its start, /100.

    ``adaptation_auc = curve_start + curve_gain``: a selector can leave a lower start without slowing learning.

    Raises:
        DataError: as `adaptation_auc`.
    """
    return adaptation_auc(tokens, scores) - curve_start(scores)


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
    found = np.where(above.any(axis=-1), crossing, np.inf)
    return np.where(np.isnan(scores).any(axis=-1) | np.isnan(level[..., 0]), np.nan, found)


def threshold_ratio(tokens: PerCurve, reference: PerCurve | float) -> PerCurve:
    """How many times the reference's tokens were needed (paper §5: gradient ≈ 1.35 × LHAS).

    ``inf``: the threshold was not reached, though the reference reached it. NaN: one is unmeasured, or the reference
    gives no unit to count in, because it did not reach the threshold or needed no token at all.
    """
    first, second = np.broadcast_arrays(np.asarray(tokens, dtype=float), np.asarray(reference, dtype=float))
    unit = np.where(np.isfinite(second) & (second > 0), second, np.nan)
    return first / unit
