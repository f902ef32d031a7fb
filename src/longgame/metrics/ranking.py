"""Ranks and the myopia gap (eq. 3). The last axis holds the K selectors."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from longgame.errors import DataError

TIE_DECIMALS = 9
"""Values that agree to this many decimals are tied: equal scores summed in another order must not be ranked."""


def ranks(values: Float[np.ndarray, "... k"]) -> Float[np.ndarray, "... k"]:
    """Rank 1 for the highest value; ties share the mean rank. NaN gets no rank (NaN) and takes none from the others."""
    rounded = np.round(np.asarray(values, dtype=float), TIE_DECIMALS)
    mine, theirs = rounded[..., :, None], rounded[..., None, :]
    rank = (theirs > mine).sum(axis=-1) + ((theirs == mine).sum(axis=-1) + 1) / 2
    return np.where(np.isnan(rounded), np.nan, rank)


def _rank_difference(
    immediate: Float[np.ndarray, "... k"], long: Float[np.ndarray, "... k"]
) -> Float[np.ndarray, "... k"]:
    """abs(rank_imm − rank_long)/(K−1); NaN for all where one selector is unmeasured, and for K = 1."""
    if immediate.shape[-1] != long.shape[-1]:
        raise DataError(f"{immediate.shape[-1]} immediate values but {long.shape[-1]} long-horizon values.")
    k = immediate.shape[-1]
    if k < 2:
        return np.full(np.broadcast_shapes(immediate.shape, long.shape), np.nan)
    difference = np.abs(ranks(immediate) - ranks(long)) / (k - 1)
    return np.where(np.isnan(difference).any(axis=-1, keepdims=True), np.nan, difference)


def myopia_gap(immediate: Float[np.ndarray, "... k"], long: Float[np.ndarray, "... k"]) -> Float[np.ndarray, ...]:
    """Myopia gap of a set of K selectors (eq. 3): 1/(K−1) · mean over selectors of abs(rank_imm − rank_long).

    0 = both views order the selectors alike. NaN with K = 1 or an unmeasured selector (its rank would be a guess).

    Raises:
        DataError: the two sides hold different numbers of selectors.
    """
    return _rank_difference(np.asarray(immediate), np.asarray(long)).mean(axis=-1)


def chance_gap(selectors: int) -> float:
    """Mean gap (K+1)/(3K) of two rankings that have nothing to do with each other; NaN for K = 1.

    For independent uniform permutations the mean of abs(i − j) is (K² − 1)/(3K), here over K − 1. Selectors that do not
    differ at all are ranked by noise and end near this value, not at 0.
    """
    return (selectors + 1) / (3 * selectors) if selectors > 1 else float("nan")


def seed_myopia_gap(
    immediate: Float[np.ndarray, "seeds transitions k"], long: Float[np.ndarray, "seeds k"]
) -> Float[np.ndarray, "seeds k"]:
    """Per seed and selector, abs(rank_imm(t) − rank_long)/(K−1) averaged over the stage transitions t → t+1.

    Args:
        immediate: U_imm(t) (eq. 1) of the stage before each transition, t = 1 … T−1.
        long: the seed's long-horizon score.

    A transition unmeasured for every seed and selector is left out. A seed in which a selector is unmeasured is NaN
    for all: ranks among fewer selectors are not comparable. Without transitions (T = 1) everything is NaN.

    Raises:
        DataError: the two sides hold different numbers of selectors.
    """
    immediate = immediate[:, ~np.isnan(immediate).all(axis=(0, 2))]
    if immediate.shape[1] == 0:
        return np.full(long.shape, np.nan)
    return _rank_difference(immediate, long[:, None, :]).mean(axis=1)


def selector_myopia_gap(
    immediate: Float[np.ndarray, "seeds transitions k"], long: Float[np.ndarray, "seeds k"]
) -> Float[np.ndarray, " k"]:
    """Myopia gap of each selector: `seed_myopia_gap` averaged over the seeds in which every selector was measured.

    The paper's eq. 3 gives one number per set; its Table 1 shows one per selector, which this definition supplies.
    """
    per_seed = seed_myopia_gap(immediate, long)
    complete = ~np.isnan(per_seed).any(axis=-1)
    return per_seed[complete].mean(axis=0) if complete.any() else np.full(long.shape[-1], np.nan)
