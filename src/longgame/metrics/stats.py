"""Statistics over seeds. The seed is the replication unit; selectors are compared paired by seed.

Where several seeds share each of several base models, the base model is the unit: differences are averaged per base
model, and a test counts base models. Seeds of one base model vary too little for claims about base models.

NaN = not measured: such seeds are left out and ``n`` counts the others. Evaluation items are never counted as runs.

Use of each (their calibration on known truth: docs/calibration.md):

* Student's t (`paired`) decides marks and verdicts and gives the intervals, from two seeds on;
* the exact sign-flip test (`sign_flip_p`) is a column of its own: it assumes no normal distribution, but cannot fall
  below 2^(1−n), so it decides nothing below 6 seeds, and below 8 after Holm over six selectors;
* the bootstrap over seeds (`bootstrap_interval`) is an option and too narrow: its 95 % intervals hold the truth in
  about 75, 83, 90 and 92 % of audits of 3, 5, 10 and 20 seeds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.special
from jaxtyping import Float, Int

from longgame.errors import DataError

ALPHA = 0.05
"""Level of the tests after Holm, on which marks, verdicts and minimum detectable effects rest."""
EXACT_SEEDS = 16
"""Largest number of seeds for which the sign-flip test is enumerated (2^15 distinct flips); beyond, its p is NaN."""

PerRow = Float[np.ndarray, "..."]


@dataclass(frozen=True, slots=True)
class Paired:
    """Difference a − b over n seeds (or base models), one value per leading index."""

    n: Int[np.ndarray, ...]
    """Seeds (base models) in which both were measured."""
    mean: PerRow
    sd: PerRow
    """Sample sd of the difference; NaN for n < 2, 0 where all differences are equal up to rounding."""
    ci_low: PerRow
    ci_high: PerRow
    """Student-t interval of the mean difference."""
    p: PerRow
    """Two-sided paired t test."""
    p_permutation: PerRow
    """Two-sided exact sign-flip test of the mean; its smallest possible value is 2^(1−n)."""


def moments(values: Float[np.ndarray, "... seeds"]) -> tuple[Int[np.ndarray, ...], PerRow, PerRow]:
    """n, mean and sd (n − 1) over the measured seeds; mean NaN for n = 0, sd NaN for n < 2.

    An infinite value (a threshold not reached) makes the mean infinite and the sd NaN.
    """
    values = np.asarray(values, dtype=float)
    measured = ~np.isnan(values)
    n = measured.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(measured, values, 0.0).sum(axis=-1) / n
        squares = np.where(measured, values - mean[..., None], 0.0) ** 2
        sd = np.sqrt(np.where(n > 1, squares.sum(axis=-1) / (n - 1), np.nan))
    return n, mean, np.where(np.isinf(mean), np.nan, sd)


def unit_means(values: Float[np.ndarray, "... seeds"], unit_of: Int[np.ndarray, " seeds"]) -> np.ndarray:
    """Mean over the measured seeds of each replication unit, (..., units); NaN for a unit without any."""
    values = np.asarray(values, dtype=float)
    order = np.argsort(unit_of)
    if np.array_equal(unit_of[order], np.arange(len(unit_of))):  # one seed a unit, as almost always
        return values[..., order]
    units = [values[..., unit_of == unit] for unit in range(int(unit_of.max(initial=-1)) + 1)]
    return np.stack([moments(part)[1] for part in units], axis=-1)


def paired(
    a: Float[np.ndarray, "... seeds"],
    b: Float[np.ndarray, "... seeds"],
    confidence: float = 0.95,
    unit_of: Int[np.ndarray, " seeds"] | None = None,
) -> Paired:
    """The difference a − b, seed by seed.

    With one seed, interval and p are NaN. With an infinite value on either side everything but n is NaN: a mean over
    the other seeds would hide the censored one. If all differences are equal (scores on a coarse grid) there is no
    spread to estimate: the interval is NaN, and p is the sign-flip p (1 if they are all zero), not a spurious 0.

    Args:
        unit_of: replication unit of each seed (`longgame.metrics.tidy.Trials.unit_of`). Differences are averaged within
            a unit, and n counts units. Without it, every seed is one.

    Raises:
        DataError: shapes differ, or ``confidence`` is not between 0 and 1.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.shape != b.shape or a.ndim < 1:
        raise DataError(f"values of shapes {a.shape} and {b.shape} cannot be paired by seed.")
    _check_confidence(confidence)
    if unit_of is not None and len(np.unique(unit_of)) < a.shape[-1]:
        both = ~(np.isnan(a) | np.isnan(b))
        a, b = (unit_means(np.where(both, side, np.nan), unit_of) for side in (a, b))
    censored = (np.isinf(a) | np.isinf(b)).any(axis=-1)
    finite = np.isfinite(a) & np.isfinite(b)
    difference = np.where(finite, a - np.where(finite, b, 0.0), np.nan)
    scale = np.where(finite, np.maximum(np.abs(a), np.abs(b)), 0.0).max(axis=-1, initial=0.0)
    n, mean, sd = moments(difference)
    n = np.where(censored, (~np.isnan(a) & ~np.isnan(b)).sum(axis=-1), n)
    flat = sd <= 1e-12 * scale  # equal up to rounding
    mean = np.where(np.abs(mean) <= 1e-12 * scale, 0.0, mean)
    permutation = sign_flip_p(np.where(flat[..., None] & finite, mean[..., None], difference))
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.where(flat | (n < 2), np.nan, sd / np.sqrt(n))
        half = scipy.special.stdtrit(n - 1, 0.5 + confidence / 2) * error
        p = 2 * scipy.special.stdtr(n - 1, -np.abs(mean) / error)
        p = np.where(flat, np.where(mean == 0, 1.0, 2.0 ** (1 - n)), p)

    numbers = (mean, np.where(flat, 0.0, sd), mean - half, mean + half, p, permutation)
    return Paired(n, *(np.where(censored, np.nan, values) for values in numbers))


def p_above(mean: PerRow | float, sd: PerRow | float, n: Int[np.ndarray, ...] | int, bound: float = 0.0) -> PerRow:
    """One-sided p of the paired t test against "the true mean difference is at most ``bound``".

    NaN below 2 pairs. Equal differences (sd 0) leave no spread to estimate: p is 2^(−n), by sign flips, if they lie
    above the bound, else 1.

    Args:
        mean, sd, n: of the paired differences, as `Paired` has them.
    """
    gap, n = np.asarray(mean, dtype=float) - bound, np.asarray(n)
    sd = np.where(n < 2, np.nan, np.asarray(sd, dtype=float))
    with np.errstate(invalid="ignore", divide="ignore"):
        p = scipy.special.stdtr(np.maximum(n - 1, 1), -gap * np.sqrt(n) / np.where(sd > 0, sd, np.nan))
        return np.where(sd == 0, np.where(gap > 0, 2.0**-n, 1.0), np.where(np.isnan(gap), np.nan, p))


def p_equivalent(mean: PerRow | float, sd: PerRow | float, n: Int[np.ndarray, ...] | int, margin: float) -> PerRow:
    """P of the two one-sided tests (TOST) against "the true mean difference is ``margin`` or more, up or down".

    Below 5 % exactly where the 90 % Student-t interval lies within ±``margin``.

    Args:
        mean, sd, n: of the paired differences, as `Paired` has them.

    Raises:
        DataError: the margin is not positive.
    """
    if not margin > 0:
        raise DataError(f"the equivalence margin is {margin}; it must be positive, e.g. 0.02.")
    mean = np.asarray(mean, dtype=float)
    return np.maximum(p_above(mean, sd, n, -margin), p_above(-mean, sd, n, -margin))


def t_interval(
    mean: PerRow | float, sd: PerRow | float, n: Int[np.ndarray, ...] | int, confidence: float
) -> tuple[PerRow, PerRow]:
    """Student-t interval of a mean; NaN below 2 values and without spread.

    Raises:
        DataError: ``confidence`` is not between 0 and 1.
    """
    _check_confidence(confidence)
    n = np.asarray(n)
    error = _spread(sd) / np.sqrt(np.maximum(n, 1))
    half = scipy.special.stdtrit(np.maximum(n - 1, 1), 0.5 + confidence / 2) * np.where(n < 2, np.nan, error)
    return mean - half, mean + half


def share_interval(
    mean: PerRow | float, sd: PerRow | float, n: Int[np.ndarray, ...] | int, confidence: float, top: float = 1.0
) -> tuple[PerRow, PerRow]:
    """Student-t interval of the mean of values between 0 and ``top``, on the log-odds of mean/top (delta method).

    Both ends lie between 0 and ``top``. Near a bound the values are skewed, and the plain t interval misses on one
    side; this one widens away from the bound. NaN below 2 values and without spread.

    Raises:
        DataError: ``top`` is not positive, or ``confidence`` is not between 0 and 1.
    """
    if not top > 0:
        raise DataError(f"the largest value is {top}; it must be positive, e.g. 1.")
    share, spread = np.asarray(mean, dtype=float) / top, np.asarray(sd, dtype=float) / top
    with np.errstate(invalid="ignore", divide="ignore"):
        inside = (share > 0) & (share < 1) & (spread > 1e-12)  # equal values differ by rounding
        slope = np.where(inside, share * (1 - share), np.nan)
        ends = t_interval(np.log(share / np.where(inside, 1 - share, np.nan)), spread / slope, n, confidence)
    low, high = (top * scipy.special.expit(end) for end in ends)
    return low, high


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise DataError(f"the confidence is {confidence}; it must lie between 0 and 1, e.g. 0.95.")


def sign_flip_p(difference: Float[np.ndarray, "... seeds"]) -> PerRow:
    """Exact two-sided p of the mean under all 2^n sign flips of the paired differences; NaN seeds are left out.

    NaN for fewer than 2 seeds, and for more than ``EXACT_SEEDS``.
    """
    difference = np.asarray(difference, dtype=float)
    shape = difference.shape[:-1]
    rows = difference.reshape(math.prod(shape), difference.shape[-1])
    rows = rows[:, ~np.isnan(rows).all(axis=0)]
    n, seeds = (~np.isnan(rows)).sum(axis=-1), rows.shape[1]
    result = np.full(len(rows), np.nan)
    if 2 <= seeds <= EXACT_SEEDS:
        values = np.nan_to_num(rows, nan=0.0)  # flipping a 0 changes nothing, so an absent seed does not count
        # By symmetry the first sign is fixed: 2^(seeds−1) flips stand for all.
        flips = 1.0 - 2.0 * ((np.arange(2 ** (seeds - 1))[:, None] >> np.arange(seeds)[None, :]) & 1)
        step = max(1, 2**21 // len(flips))
        for low in range(0, len(rows), step):
            part = values[low : low + step]
            bound = np.abs(part.sum(axis=1)) - 1e-9 * np.abs(part).sum(axis=1)
            result[low : low + step] = (np.abs(part @ flips.T) >= bound[:, None]).mean(axis=1)
    return np.where(n >= 2, result, np.nan).reshape(shape)


def bootstrap_interval(
    values: Float[np.ndarray, "... seeds"], resamples: int, rng: np.random.Generator, confidence: float = 0.95
) -> tuple[PerRow, PerRow]:
    """Percentile interval of the mean over seeds, from ``resamples`` draws of the seeds with replacement.

    NaN seeds are left out; fewer than 2 seeds, an infinite value, or equal values only give NaN, as in `paired`.
    Rows with the same seeds share their draws, so the interval of a sum lies where those of its parts put it.

    Args:
        values: paired differences (or anything measured once per seed).
        rng: the only source of randomness.

    Raises:
        DataError: fewer than 2 resamples, or ``confidence`` is not between 0 and 1.
    """
    _check_confidence(confidence)
    if resamples < 2:
        raise DataError(f"{resamples} bootstrap resamples give no interval; use 1,000 or more.")
    values = np.asarray(values, dtype=float)
    shape = values.shape[:-1]
    rows = values.reshape(math.prod(shape), values.shape[-1])
    bounds = np.full((2, len(rows)), np.nan)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    patterns, pattern_of = np.unique(~np.isnan(rows), axis=0, return_inverse=True)
    for number, measured in enumerate(patterns):
        n = int(measured.sum())
        if n < 2:
            continue
        of_pattern = np.flatnonzero(pattern_of.reshape(-1) == number)
        weights = rng.multinomial(n, np.full(n, 1 / n), size=resamples) / n
        step = max(1, 2**22 // resamples)
        for low in range(0, len(of_pattern), step):
            some = of_pattern[low : low + step]
            part = rows[np.ix_(some, measured)]
            with np.errstate(invalid="ignore"):  # ∞ − ∞
                usable = np.isfinite(part).all(axis=1) & (np.ptp(part, axis=1) > 1e-12 * np.abs(part).max(axis=1))
            bounds[:, some[usable]] = np.quantile(part[usable] @ weights.T, tails, axis=1)
    return bounds[0].reshape(shape), bounds[1].reshape(shape)


def holm(p: Float[np.ndarray, "... m"]) -> Float[np.ndarray, "... m"]:
    """Holm's step-down adjustment over the last axis; NaN (a test that was not made) stays NaN and does not count."""
    p = np.asarray(p, dtype=float)
    order = np.argsort(p, axis=-1, kind="stable")  # NaN last
    tests = (~np.isnan(p)).sum(axis=-1, keepdims=True)
    factors = np.maximum(tests - np.arange(p.shape[-1]), 1)
    stepped = np.maximum.accumulate(np.take_along_axis(p, order, axis=-1) * factors, axis=-1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(stepped, 1.0), axis=-1)
    return np.where(np.isnan(p), np.nan, adjusted)


# Power of the paired t test: the smallest difference that a number of seeds detects, and the seeds a difference needs.

POWER = 0.8
"""Chance of showing a difference that `minimum_detectable_effect` and `seeds_needed` assume."""
MOST_SEEDS = 1_000
"""Largest answer of `seeds_needed`; beyond, it is ``inf``."""

Seeds = Int[np.ndarray, "..."] | int


def t_power(effect: PerRow | float, seeds: Seeds, alpha: float = ALPHA) -> PerRow:
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


def unit_effect(seeds: Seeds, alpha: float = ALPHA, power: float = POWER) -> PerRow:
    """Smallest true difference, in sd of the differences, that ``seeds`` pairs show with probability ``power``.

    NaN below 2 seeds.

    Raises:
        DataError: ``alpha`` or ``power`` is not between 0 and 1, or the power is not above α/2.
    """
    _check(alpha, power)
    n = np.asarray(seeds)
    table = _table(alpha, power)
    effect = np.take(table, np.clip(n, 0, MOST_SEEDS))
    beyond = n > MOST_SEEDS
    if beyond.any():
        values, place = np.unique(np.where(beyond, n, MOST_SEEDS + 1), return_inverse=True)
        effect = np.where(beyond, _solve(values, alpha, power)[place.reshape(n.shape)], effect)
    return effect


def minimum_detectable_effect(sd: PerRow | float, seeds: Seeds, alpha: float = ALPHA, power: float = POWER) -> PerRow:
    """Smallest true mean difference that these seeds show with probability ``power``, in the units of ``sd``.

    NaN where the sd is NaN or 0 (no spread to plan with) and below 2 seeds.

    Raises:
        DataError: as `unit_effect`, or a negative sd.
    """
    sd = _spread(sd)
    return sd * unit_effect(seeds, alpha, power)


def seeds_needed(effect: PerRow | float, sd: PerRow | float, alpha: float = ALPHA, power: float = POWER) -> PerRow:
    """Fewest seeds (≥ 2) that show a true mean difference ``effect`` with probability ``power``.

    ``inf``: more than ``MOST_SEEDS``, or no effect at all. NaN where effect or sd is NaN or the sd is 0.

    Raises:
        DataError: as `minimum_detectable_effect`.
    """
    _check(alpha, power)
    sd = _spread(sd)
    unit = np.abs(np.asarray(effect, dtype=float)) / sd
    falling = _table(alpha, power)[2:]
    first = np.searchsorted(-falling, -np.nan_to_num(unit, nan=np.inf), side="left")
    seeds = np.where(first < len(falling), first + 2.0, np.inf)
    return np.where(np.isnan(unit), np.nan, seeds)


def pooled_sd(
    sd: Float[np.ndarray, "... k"], n: Int[np.ndarray, "... k"], confidence: float = 0.9
) -> tuple[PerRow, PerRow, PerRow]:
    """One sd of the paired differences of k selectors from one reference, with an interval for the true one.

    From three seeds a selector's own sd is off by a factor of 2 or more; selectors differ less than that. Pooled is the
    mean variance by degrees of freedom, Σ (n−1)·sd² / Σ (n−1). Differences from one reference correlate by ½ where all
    have the same spread, and their squares by ¼, so k selectors are worth k/(1 + (k−1)/4) independent ones: 1, 1.6,
    2, …, at most 4. The interval is the χ² one with so many degrees of freedom.

    Args:
        sd: of the paired differences; NaN and 0 (no spread to plan with) are left out.
        n: pairs behind each.

    Returns:
        sd, low, high; NaN where no selector has a spread.

    Raises:
        DataError: a negative sd, or ``confidence`` is not between 0 and 1.
    """
    _check_confidence(confidence)
    spread = _spread(sd)
    freedom = np.where(np.isnan(spread), 0, np.asarray(n) - 1)
    total = freedom.sum(axis=-1)
    count = np.maximum((freedom > 0).sum(axis=-1), 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        pooled = np.sqrt((freedom * np.nan_to_num(spread) ** 2).sum(axis=-1) / np.where(total > 0, total, np.nan))
        effective = np.where(total > 0, total / (1 + (count - 1) / 4), np.nan)
        tails = ((1 - confidence) / 2, (1 + confidence) / 2)  # χ² that is exceeded with these chances
        low, high = (pooled * np.sqrt(effective / scipy.special.chdtri(effective, tail)) for tail in tails)
    return pooled, low, high


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

    `scipy.special` alone, because importing `scipy.stats` takes as long as a small report. Its noncentral t gives NaN
    where the chance of less is below the smallest double.
    """
    less = scipy.special.nctdtr(freedom, noncentrality, critical)
    defined = ~(np.isnan(critical) | np.isnan(freedom) | np.isnan(noncentrality))
    return 1 - np.where(defined & np.isnan(less), 0.0, less)


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
