"""Metrics of the score matrix R (paper §3, eq. 1; FORMULAS "Score matrix").

``R[i, j]`` is the score, in points 0–100, of the model after stage i (row 0 = before any stage) on column j: first the
T stages in order, then the OOD sets. T is ``rows − 1``. Every function takes leading axes (trials, seeds …) along.

NaN means *not measured* and never turns into 0:

* a column that is NaN in every cell of the whole array (exact match on an open-ended task, say) is left out of means,
  the same for every matrix in the array;
* a NaN in a cell that a metric needs makes the metric NaN;
* undefined metrics are NaN: transfer and forgetting with T = 1, forward transfer, forgetting from the best score ever
  and the first immediate gain without row 0, imbalance with fewer than two measured stages, OOD without OOD columns.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from longgame.errors import DataError, unknown

ForgettingReference = Literal["best-ever", "best", "first"]
Matrix = Float[np.ndarray, "... rows cols"]


def stage_count(R: Matrix) -> int:
    """Return T, the number of stages.

    Raises:
        DataError: R is not (T+1) × (≥ T) with T ≥ 1.
    """
    if R.ndim < 2 or R.shape[-2] < 2 or R.shape[-1] < R.shape[-2] - 1:
        raise DataError(
            f"a score matrix of shape {R.shape} is not (T+1) × C with T ≥ 1 and C ≥ T. "
            "Rows are the model before any stage and after each; columns are the stages, then the OOD sets."
        )
    return R.shape[-2] - 1


def measured_columns(R: Matrix) -> Bool[np.ndarray, " cols"]:
    """Whether each column holds at least one measurement anywhere in the array."""
    return ~np.isnan(R).all(axis=tuple(range(R.ndim - 1)))


def _mean(values: Float[np.ndarray, "... k"], keep: Bool[np.ndarray, " k"]) -> Float[np.ndarray, ...]:
    """Mean over the entries of the last axis marked in ``keep``; NaN without any, or where one of them is NaN."""
    if not keep.any():
        return np.full(values.shape[:-1], np.nan)
    return values[..., keep].mean(axis=-1)


def diagonal(R: Matrix) -> Float[np.ndarray, "... T"]:
    """``R[t, t]``: the score on each stage's task right after that stage, points."""
    T = stage_count(R)
    return np.diagonal(R[..., 1:, :T], axis1=-2, axis2=-1)


def stage_spread(R: Matrix) -> Float[np.ndarray, ...]:
    """Sample sd of R[t, t] over the stages, points; NaN with one stage, or where a stage was not measured."""
    current = diagonal(R)
    if current.shape[-1] < 2:
        return np.full(current.shape[:-1], np.nan)
    return current.std(axis=-1, ddof=1)


def final_row(R: Matrix) -> Float[np.ndarray, "... T"]:
    """``R[T, 1…T]``: the score on every stage's task after the last stage, points."""
    T = stage_count(R)
    return R[..., T, :T]


def immediate_gain(R: Matrix) -> Float[np.ndarray, "... T"]:
    """Per stage, U_imm(t) = R[t, t] − R[t−1, t] in points (eq. 1). Stage 1 needs row 0."""
    T = stage_count(R)
    return diagonal(R) - np.diagonal(R[..., :-1, :T], axis1=-2, axis2=-1)


def mean_immediate_gain(R: Matrix) -> Float[np.ndarray, ...]:
    """Mean over stages of U_imm(t), points; NaN without row 0."""
    return _mean(immediate_gain(R), measured_columns(R)[: stage_count(R)])


def current_score(R: Matrix) -> Float[np.ndarray, ...]:
    """Mean over stages of R[t, t], points."""
    return _mean(diagonal(R), measured_columns(R)[: stage_count(R)])


def final_score(R: Matrix) -> Float[np.ndarray, ...]:
    """Mean over stage tasks of R[T, j], points (the first term of eq. 2, as a mean)."""
    T = stage_count(R)
    return _mean(final_row(R), measured_columns(R)[:T])


def forgetting_per_task(R: Matrix, reference: ForgettingReference = "best-ever") -> Float[np.ndarray, "... T-1"]:
    """Per earlier stage j < T, how many points were lost by the end; negative = gained.

    ``best-ever``: F_j = max over 0 ≤ i < T of R[i, j], minus R[T, j] (§4.1's best previous score; needs row 0).
    ``best``: the maximum over j ≤ i < T only, from the task's own stage on.
    ``first``: F_j = R[j, j] − R[T, j].

    Each needs every cell that it names.

    Raises:
        DataError: another reference.
    """
    T = stage_count(R)
    if reference == "first":
        before = diagonal(R)[..., : T - 1]
    elif reference in ("best-ever", "best"):
        first = [0 if reference == "best-ever" else j + 1 for j in range(T - 1)]
        best = [R[..., first[j] : T, j].max(axis=-1) for j in range(T - 1)]
        before = np.stack(best, axis=-1) if best else np.empty((*R.shape[:-2], 0))
    else:
        raise DataError(unknown("forgetting reference", reference, ("best-ever", "best", "first")))
    return before - R[..., T, : T - 1]


def forgetting(R: Matrix, reference: ForgettingReference = "best-ever") -> Float[np.ndarray, ...]:
    """Mean over j < T of F_j in points (see `forgetting_per_task`); NaN for T = 1: nothing came before."""
    return _mean(forgetting_per_task(R, reference), measured_columns(R)[: stage_count(R) - 1])


def forward_transfer(R: Matrix) -> Float[np.ndarray, ...]:
    """Mean over stages j ≥ 2 of R[j−1, j] − R[0, j] in points: what earlier stages taught about later ones.

    NaN for T = 1 and without row 0.
    """
    T = stage_count(R)
    before = np.diagonal(R[..., :-1, :T], axis1=-2, axis2=-1)
    return _mean((before - R[..., 0, :T])[..., 1:], measured_columns(R)[1:T])


def backward_transfer(R: Matrix) -> Float[np.ndarray, ...]:
    """Mean over stages j < T of R[T, j] − R[j, j] in points; NaN for T = 1."""
    T = stage_count(R)
    return _mean((final_row(R) - diagonal(R))[..., : T - 1], measured_columns(R)[: T - 1])


def best_seen(R: Matrix) -> Float[np.ndarray, " T"]:
    """Highest score of each stage task in the whole array, all rows and leading axes, points; NaN if unmeasured."""
    T = stage_count(R)
    scores = R[..., :T].reshape(-1, T)
    measured = ~np.isnan(scores)
    highest = np.where(measured, scores, -np.inf).max(axis=0)
    return np.where(measured.any(axis=0), highest, np.nan)


def capability_imbalance(R: Matrix, scale: Float[np.ndarray, " T"] | None = None) -> Float[np.ndarray, ...]:
    """Population sd over stage tasks of R[T, j] / ``scale[j]`` (§4.1's normalized task scores).

    Raw scores also differ because tasks differ in difficulty, so their sd measures the tasks as much as the selector.

    Args:
        scale: points that count as 1 on each task: its all-data score, or `best_seen`. A task whose scale is 0 or not
            measured is left out. Without a scale: raw scores, in points.

    NaN with fewer than two tasks.
    """
    T = stage_count(R)
    scale = np.ones(T) if scale is None else np.asarray(scale, dtype=float)
    return _spread(final_row(R), measured_columns(R)[:T], scale)


def gain_imbalance(R: Matrix) -> Float[np.ndarray, ...]:
    """Population sd over stage tasks of the gains R[T, j] − R[0, j], points; NaN with fewer than two tasks."""
    T = stage_count(R)
    return _spread(final_row(R) - R[..., 0, :T], measured_columns(R)[:T], np.ones(T))


def _spread(
    values: Float[np.ndarray, "... T"], keep: Bool[np.ndarray, " T"], scale: Float[np.ndarray, " T"]
) -> Float[np.ndarray, ...]:
    keep = keep & (scale > 0)
    if keep.sum() < 2:
        return np.full(values.shape[:-1], np.nan)
    return (values[..., keep] / scale[keep]).std(axis=-1)


def worst_task(R: Matrix) -> Float[np.ndarray, ...]:
    """Smallest R[T, j] over the stage tasks, points."""
    T = stage_count(R)
    keep = measured_columns(R)[:T]
    if not keep.any():
        return np.full(R.shape[:-2], np.nan)
    return final_row(R)[..., keep].min(axis=-1)


def ood_score(R: Matrix) -> Float[np.ndarray, ...]:
    """Mean of the last row over the OOD columns, points; NaN where there are none."""
    T = stage_count(R)
    return _mean(R[..., T, T:], measured_columns(R)[T:])
