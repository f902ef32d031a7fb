"""How trajectory diagnostics go with forgetting over all trials (paper Fig. 4 (b); Fig. 3 (b) for the first two).

Trials of one seed share pools, items, order and base model, so they are not independent: n trials of k seeds are k
replications. The intervals leave out one seed at a time (jackknife on Fisher's z, Student's t with k − 1 degrees of
freedom). They hold for other seeds of *these* selectors; how much an r hangs on a single selector is told by its range
when any one of them is left out. A percentile bootstrap over seeds is not used: with 3–5 seeds it is far too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
import pandas as pd
import scipy.special
from jaxtyping import Float, Int

from longgame.errors import DataError

MIN_SEEDS = 3
"""With fewer seeds there is no interval."""
MOST_GROUPS = 50
"""More seeds than this are left out in so many groups of nearly equal size."""
PAIRS = (
    ("capability_entropy", "forgetting"),
    ("selection_concentration", "forgetting"),
    ("update_concentration", "forgetting"),
    ("adapter_drift", "forgetting"),
    ("capability_entropy", "update_concentration"),
)
"""Diagnostic and what it is set against."""

Column = Float[np.ndarray, " n"]
Codes = Int[np.ndarray, " n"]
Weights = Float[np.ndarray, "draws n"]


@dataclass(frozen=True, slots=True)
class Correlation:
    """A correlation with its 95 % interval over seeds; NaN where there is none."""

    r: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Association:
    """Two columns against each other, a trial a point."""

    trials: int
    """Trials in which both were measured."""
    seeds: int
    """Seeds that they come from: the replications."""
    pearson: Correlation
    spearman: Correlation
    """Pearson's r of the ranks over all trials, ties sharing the mean rank."""
    within: Correlation
    """Pearson's r after each group's (seed's) mean is taken off both: what is left when seeds differ as a whole."""
    least: float
    """Smallest Pearson's r with any one selector left out; NaN with fewer than three selectors."""
    greatest: float


def associate(
    x: Column, y: Column, seed: Codes, selector: Codes, group: Codes | None = None, confidence: float = 0.95
) -> Association:
    """Correlate two measurements over trials (see `Association`).

    r is NaN without spread; the interval is NaN with fewer than `MIN_SEEDS` seeds, where leaving out a seed leaves no
    spread, and where the points lie on a line. The order of the trials plays no part.

    Args:
        x, y: one value per trial, any unit; NaN = not measured, such trials are left out.
        seed: which trials are not independent of each other.
        selector: whose trial it is.
        group: whose means `Association.within` takes off; by default the seed's.

    Raises:
        DataError: lengths differ, a value is infinite, or ``confidence`` is not between 0 and 1.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    group = seed if group is None else group
    lengths = [np.shape(each) for each in (x, y, seed, selector, group)]
    if x.ndim != 1 or len(set(lengths)) > 1:
        raise DataError(f"columns of shapes {lengths} cannot be set against each other; all need one value per trial.")
    if np.isinf(x).any() or np.isinf(y).any():
        raise DataError("an infinite value has no correlation; leave such trials out or use another metric.")
    if not 0 < confidence < 1:
        raise DataError(f"the confidence is {confidence}; it must lie between 0 and 1, e.g. 0.95.")
    keep = ~(np.isnan(x) | np.isnan(y))
    x, y, group = x[keep], y[keep], group[keep]
    seeds, place = np.unique(seed[keep], return_inverse=True)
    draws = _leaving_out(place % MOST_GROUPS)
    each = _pearson(x, y, _leaving_out(selector[keep]))[1:]
    told = len(each) > 2 and not np.isnan(each).any()
    return Association(
        trials=len(x),
        seeds=len(seeds),
        pearson=_interval(_pearson(x, y, draws), confidence),
        spearman=_interval(_pearson(_midranks(x, draws), _midranks(y, draws), draws), confidence),
        within=_interval(_pearson(_centred(x, group), _centred(y, group), draws), confidence),
        least=float(each.min()) if told else float("nan"),
        greatest=float(each.max()) if told else float("nan"),
    )


def association_table(
    per_trial: pd.DataFrame, views: Sequence[str], pairs: Sequence[tuple[str, str]] = PAIRS
) -> pd.DataFrame:
    """`associate` for every view and pair of metrics that the trials measured.

    Args:
        per_trial: trial, selector, seed, view, metric, value (`Scorecard.per_trial`), and ``condition`` where trials of
            several conditions stand together; then `Association.within` takes off each condition's seed's mean.
        views: those of the scores; a pair of two diagnostics, which no scorer touches, has the view "".

    Returns:
        view, x, y, trials, seeds, pearson, pearson_low, pearson_high, spearman …, within …, least, greatest.
    """
    who = [name for name in ("condition", "trial", "selector", "seed") if name in per_trial.columns]
    wanted = per_trial[per_trial["metric"].isin({name for pair in pairs for name in pair})]
    wide = wanted.set_index([*who, "view", "metric"])["value"].unstack(["view", "metric"])
    trials = wide.index.to_frame(index=False)
    seed, selector = (np.unique(trials[name], return_inverse=True)[1] for name in ("seed", "selector"))
    by = [name for name in ("condition", "seed") if name in who]
    group = trials.groupby(by).ngroup().to_numpy(np.int64)
    held = set(wide.columns)
    rows = []
    for x, y in pairs:
        for view in views if ("", y) not in held else ("",):
            if ("", x) in held and (view, y) in held:
                columns = (wide["", x].to_numpy(float), wide[view, y].to_numpy(float))
                found = associate(*columns, seed, selector, group)
                if found.trials:
                    sizes = (found.trials, found.seeds, *astuple(found.pearson), *astuple(found.spearman))
                    rows.append((view, x, y, *sizes, *astuple(found.within), found.least, found.greatest))
    numbers = [f"{name}{end}" for name in ("pearson", "spearman", "within") for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["view", "x", "y", "trials", "seeds", *numbers, "least", "greatest"])


def _leaving_out(group: Codes) -> Weights:
    """1 for the trials that count: all of them in the first row, all but one group's in each row after it."""
    groups = np.unique(group)
    return np.vstack([np.ones((1, len(group))), (group != groups[:, None]).astype(float)])


def _pearson(x: np.ndarray, y: np.ndarray, draws: Weights) -> Float[np.ndarray, " draws"]:
    """Pearson's r of the trials that count in each draw; NaN where one side has no spread beyond rounding."""
    parts, norms = [], []
    with np.errstate(invalid="ignore", divide="ignore"):
        for values in (x, y):
            mean = (draws * values).sum(axis=1, keepdims=True) / draws.sum(axis=1, keepdims=True)
            parts.append(draws * (values - mean))
            norm = np.sqrt((parts[-1] ** 2).sum(axis=1))
            norms.append(np.where(norm > 1e-12 * np.sqrt((draws * values**2).sum(axis=1)), norm, np.nan))
        return np.clip((parts[0] * parts[1]).sum(axis=1) / (norms[0] * norms[1]), -1.0, 1.0)


def _midranks(values: Column, draws: Weights) -> Weights:
    """Rank of each value among those that count in a draw, lowest 1, ties sharing the mean rank."""
    _, place = np.unique(values, return_inverse=True)
    order = np.argsort(place, kind="stable")
    if not len(order):
        return draws
    first = np.flatnonzero(np.diff(place[order], prepend=-1))
    count = np.add.reduceat(draws[:, order], first, axis=1)
    return (np.cumsum(count, axis=1) - (count - 1) / 2)[:, place]


def _centred(values: Column, group: Codes) -> Column:
    groups, place = np.unique(group, return_inverse=True)
    mean = np.bincount(place, values, len(groups)) / np.bincount(place, minlength=len(groups))
    left = values - mean[place]
    return np.where(np.abs(left) > 1e-12 * np.abs(values), left, 0.0)  # equal up to rounding


def _interval(r: Float[np.ndarray, " draws"], confidence: float) -> Correlation:
    """r of all trials, with the interval that its values without each group give."""
    whole, without = float(r[0]), r[1:]
    n = len(without)
    if n < MIN_SEEDS or not (np.abs(r) < 1 - 1e-12).all():
        return Correlation(whole, float("nan"), float("nan"))
    z = np.arctanh(without)
    error = float(np.sqrt((n - 1) / n * ((z - z.mean()) ** 2).sum()))
    half = float(scipy.special.stdtrit(n - 1, 0.5 + confidence / 2)) * error
    return Correlation(whole, float(np.tanh(np.arctanh(whole) - half)), float(np.tanh(np.arctanh(whole) + half)))
