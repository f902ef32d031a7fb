"""What a number of seeds can show: power of the paired t test, smallest difference it detects, seeds it needs.

A difference counts as shown when the two-sided test rejects *and* its sign is right. Under a true mean difference δ of
normal differences with standard deviation σ, t follows the noncentral t with n − 1 degrees of freedom and noncentrality
√n·δ/σ; everything here is solved on that distribution. Units: effects are in those of ``sd`` (the standard deviation of
the paired differences over seeds, n − 1 in the denominator). NaN = unmeasured, and stays NaN.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import scipy.special
from jaxtyping import Float, Int

from longgame.errors import DataError

POWER = 0.8
"""The chance that a difference is shown, on which `minimum_detectable_effect` and `seeds_needed` are built."""
MOST_SEEDS = 1_000
"""`seeds_needed` counts up to here; beyond, it says ``inf``."""

PerRow = Float[np.ndarray, "..."]
Seeds = Int[np.ndarray, "..."] | int


def t_power(effect: PerRow | float, seeds: Seeds, alpha: float = 0.05) -> PerRow:
    """Chance that the paired t test shows a true difference, with its sign.

    Args:
        effect: true mean difference over the sd of the differences; its sign does not matter.
        seeds: number of pairs; below 2 there is no test (NaN).
        alpha: two-sided level of the test; with Holm over m tests, α/m bounds it from below.

    Raises:
        DataError: ``alpha`` is not between 0 and 1.
    """
    _check(alpha, POWER)
    n = np.asarray(seeds)
    safe = np.maximum(n, 2)
    critical = scipy.special.stdtrit(safe - 1, 1 - alpha / 2)
    shown = _above(critical, safe - 1, np.sqrt(safe) * np.abs(effect))
    return np.where((n < 2) | np.isnan(effect), np.nan, shown)


def unit_effect(seeds: Seeds, alpha: float = 0.05, power: float = POWER) -> PerRow:
    """Smallest true difference, in sd of the differences, that ``seeds`` pairs show with probability ``power``.

    NaN below 2 seeds.

    Raises:
        DataError: ``alpha`` or ``power`` is not between 0 and 1, or the power is not above α/2.
    """
    _check(alpha, power)
    n = np.asarray(seeds)
    table = _table(alpha, power)
    known = np.take(table, np.clip(n, 0, MOST_SEEDS))
    beyond = n > MOST_SEEDS
    if beyond.any():
        values, place = np.unique(np.where(beyond, n, MOST_SEEDS + 1), return_inverse=True)
        known = np.where(beyond, _solve(values, alpha, power)[place.reshape(n.shape)], known)
    return known


def minimum_detectable_effect(sd: PerRow | float, seeds: Seeds, alpha: float = 0.05, power: float = POWER) -> PerRow:
    """Smallest true mean difference that these seeds show with probability ``power``, in the units of ``sd``.

    NaN where the sd is NaN or 0 (no spread to plan with) and below 2 seeds.

    Raises:
        DataError: as `unit_effect`, or a negative sd.
    """
    sd = _spread(sd)
    return sd * unit_effect(seeds, alpha, power)


def seeds_needed(effect: PerRow | float, sd: PerRow | float, alpha: float = 0.05, power: float = POWER) -> PerRow:
    """Fewest seeds (≥ 2) that show a true mean difference ``effect`` with probability ``power``.

    ``inf``: more than ``MOST_SEEDS``, or no effect at all. NaN where effect or sd is NaN or the sd is 0.

    Raises:
        DataError: as `minimum_detectable_effect`.
    """
    _check(alpha, power)
    sd = _spread(sd)
    wanted = np.abs(np.asarray(effect, dtype=float)) / sd
    falling = _table(alpha, power)[2:]
    first = np.searchsorted(-falling, -np.nan_to_num(wanted, nan=np.inf), side="left")
    counted = np.where(first < len(falling), first + 2.0, np.inf)
    return np.where(np.isnan(wanted), np.nan, counted)


def _spread(sd: PerRow | float) -> PerRow:
    values = np.asarray(sd, dtype=float)
    if (values < 0).any():
        raise DataError(f"a standard deviation is {values.min():g}; it cannot be negative.")
    return np.where(values > 0, values, np.nan)


def _check(alpha: float, power: float) -> None:
    if not 0 < alpha < 1:
        raise DataError(f"the level α is {alpha}; it must lie between 0 and 1, e.g. 0.05.")
    if not alpha / 2 < power < 1:
        raise DataError(f"the power is {power}; it must lie between α/2 = {alpha / 2:g} and 1, e.g. 0.8.")


@lru_cache(maxsize=64)
def _table(alpha: float, power: float) -> Float[np.ndarray, " n"]:
    """`unit_effect` of every n up to ``MOST_SEEDS`` (position = n; 0 and 1 are NaN), strictly falling from n = 2 on."""
    table = np.concatenate([[np.nan, np.nan], _solve(np.arange(2, MOST_SEEDS + 1), alpha, power)])
    table.flags.writeable = False
    return table


def _above(critical: np.ndarray, freedom: np.ndarray, noncentrality: np.ndarray) -> np.ndarray:
    """Chance that a noncentral t exceeds ``critical``; NaN only where an argument is.

    `scipy.special` alone, as importing `scipy.stats` takes as long as a small report. Its noncentral t gives NaN where
    the chance of less is below the smallest double.
    """
    less = scipy.special.nctdtr(freedom, noncentrality, critical)
    given = ~(np.isnan(critical) | np.isnan(freedom) | np.isnan(noncentrality))
    return 1 - np.where(given & np.isnan(less), 0.0, less)


def _solve(n: Int[np.ndarray, " k"], alpha: float, power: float) -> Float[np.ndarray, " k"]:
    """Bisection for the noncentrality; the power rises with it from α/2 towards 1."""
    critical = scipy.special.stdtrit(n - 1, 1 - alpha / 2)
    low, high = np.zeros(len(n)), 2 * critical + 2
    while (short := _above(critical, n - 1, high) < power).any():
        high = np.where(short, 2 * high, high)
    for _ in range(60):
        middle = (low + high) / 2
        enough = _above(critical, n - 1, middle) >= power
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return high / np.sqrt(n)
