"""Put the terms of a score on one scale, so that a weight of 1 means the same for each of them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from longgame.errors import PluginError

NORMALISE: tuple[str, ...] = ("rank", "z")


def rank_scale(column: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Mid-ranks (ties share their mean rank), moved linearly to [−1, 1] with mean 0; a constant column gives zeros.

    Only the order counts, so a heavy-tailed term such as the loss cannot swamp the others (FORMULAS, "one scale").

    Raises:
        PluginError: a value is NaN, which has no rank.
    """
    n = len(column)
    _check(column)
    if n < 2:
        return np.zeros(n)
    order = np.argsort(column)
    ordered = column[order]
    first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])  # of every run of equal values
    last = np.append(first[1:], n)
    scaled = np.empty(n)
    scaled[order] = np.repeat((first + last - n) / (n - 1.0), last - first)
    return scaled


def z_scale(column: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """(x − mean) / population standard deviation; a constant column gives zeros.

    Raises:
        PluginError: a value is NaN.
    """
    values = np.asarray(column, dtype=np.float64)
    _check(values)
    if len(values) < 2 or values.max() == values.min():
        return np.zeros(len(values))
    values = values / np.abs(values).max()  # so that neither tiny nor huge units lose the variance
    return np.asarray((values - values.mean()) / values.std())


def _check(column: Float[np.ndarray, " n"]) -> None:
    missing = int(np.isnan(column).sum())
    if missing:
        raise PluginError(
            f"{missing} of {len(column)} values to be put on one scale are NaN, which has no place in an order. Give "
            "every candidate a number, or leave out those that are not to be picked."
        )


def scale(column: Float[np.ndarray, " n"], how: str) -> Float[np.ndarray, " n"]:
    """Apply `rank_scale` or `z_scale`, whichever ``how`` names."""
    return rank_scale(column) if how == "rank" else z_scale(column)
