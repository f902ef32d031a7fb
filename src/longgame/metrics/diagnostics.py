"""Diagnostics of the picks and of the weight updates (paper §3, Table 2), and their association with forgetting.

Diagnostics explain; no selector optimizes them. Means are weighted by tokens, the unit of budgets. NaN = not measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass

import numpy as np
import pandas as pd
import scipy.linalg
import scipy.special
from jaxtyping import Bool, Float, Int

from longgame.errors import DataError, NumericalError
from longgame.metrics.tidy import Trials
from longgame.seeding import generator

SUBSAMPLES = 32
"""Samples behind `subsampled_concentration`, and draws behind `isotropic_concentration`."""
_DRAWN_WIDTH = 512
"""Widths up to which random directions are drawn in full."""

Tokens = Int[np.ndarray, " n"] | Float[np.ndarray, " n"]


def capability_entropy(tokens: Int[np.ndarray, " clusters"] | Float[np.ndarray, " clusters"]) -> float:
    """H = −Σ p_c ln p_c in nats, p_c = share of the selected tokens in skill cluster c (at most ln of the clusters).

    NaN when nothing was selected.

    Raises:
        DataError: a negative count.
    """
    counts = np.asarray(tokens, dtype=float)
    if (counts < 0).any():
        raise DataError(f"a cluster holds {counts.min():g} selected tokens; counts cannot be negative.")
    if not counts.sum() > 0:
        return float("nan")
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum()) + 0.0  # + 0.0: one cluster gives 0, not −0


def picks_entropy(
    tokens: Float[np.ndarray, "trials stages labels"],
) -> tuple[Float[np.ndarray, " trials"], Float[np.ndarray, " trials"]]:
    """Capability entropy of every trial: mean over its stages, and over the picks of all stages together, nats.

    The first cannot exceed what one stage offers: a stage that fills two labels has at most ln 2. Table 2's level (2.05
    of ln 8 = 2.08) can only be that of the second. NaN for a trial without a stage that another trial measured.
    """
    measured = ~np.isnan(tokens).all(axis=(0, 2))
    means, together = np.full(len(tokens), np.nan), np.full(len(tokens), np.nan)
    complete = ~np.isnan(tokens[:, measured]).any(axis=(1, 2))
    if measured.any() and complete.any():
        counts = tokens[:, measured][complete]
        means[complete] = _entropies(counts).mean(axis=-1)
        together[complete] = _entropies(counts.sum(axis=1))
    return means, together


def _entropies(tokens: Float[np.ndarray, "... labels"]) -> Float[np.ndarray, ...]:
    """`capability_entropy` of every row; rows that fill the same labels are computed at once."""
    rows = tokens.reshape(-1, tokens.shape[-1])
    if (rows < 0).any():
        capability_entropy(rows[(rows < 0).any(axis=1)][0])  # raises
    values = np.full(len(rows), np.nan)
    patterns, pattern_of = np.unique(rows > 0, axis=0, return_inverse=True)
    for number, filled in enumerate(patterns):
        if filled.any():
            some = pattern_of.reshape(-1) == number
            counts = np.ascontiguousarray(rows[some])
            share = np.ascontiguousarray(counts[:, filled] / counts.sum(axis=1, keepdims=True))
            values[some] = -(share * np.log(share)).sum(axis=1) + 0.0
    return values.reshape(tokens.shape[:-1])


def token_weighted_mean(values: Float[np.ndarray, " n"] | Bool[np.ndarray, " n"], tokens: Tokens) -> float:
    """Σ tokens·value / Σ tokens; NaN when nothing was selected or a value is NaN (not measured).

    Mean difficulty (pool percentile of base-model NLL), mean quality (Table 2) and the noisy share are such means.

    Raises:
        DataError: lengths differ or a token count is negative.
    """
    weights = np.asarray(tokens, dtype=float)
    if weights.shape != np.shape(values) or weights.ndim != 1:
        raise DataError(f"{np.shape(values)} values cannot be weighted by {weights.shape} token counts.")
    if (weights < 0).any():
        raise DataError(f"an example has {weights.min():g} tokens; counts cannot be negative.")
    if not weights.sum() > 0:
        return float("nan")
    return float(weights @ np.asarray(values, dtype=float) / weights.sum())


def _top_share(gram: Float[np.ndarray, "k k"], eps: float) -> float:
    trace = float(np.trace(gram))
    if not trace > 0:
        return float("nan")
    top = scipy.linalg.eigvalsh(gram, subset_by_index=[len(gram) - 1, len(gram) - 1])[0]
    return float(min(top, trace) / (trace + eps))


def selection_concentration(gradients: Float[np.ndarray, "n d"], eps: float = 0.0) -> float:
    """Selection concentration C(S) = λ_max(M)/(tr M + ε), M = mean of g gᵀ, not centred (Definition 1, eq. 4).

    From 1/min(n, d) (spread evenly) to 1 (one direction). Computed on the smaller of the n×n Gram and the d×d second
    moment matrix, whose non-zero eigenvalues agree. ε defaults to 0, so that the value does not depend on the
    gradients' scale; the case ε guards against, all gradients zero (or none), is NaN.

    Raises:
        NumericalError: a gradient is NaN or infinite. DataError: not a matrix, or ε negative.
    """
    g = np.asarray(gradients, dtype=np.float64)
    if g.ndim != 2 or eps < 0:
        raise DataError(f"gradients of shape {g.shape} with ε={eps}; a matrix n × d and ε ≥ 0 are needed.")
    if len(g) == 0:
        return float("nan")
    bad = np.flatnonzero(~np.isfinite(g).all(axis=1))
    if bad.size:
        raise NumericalError(f"{bad.size} of {len(g)} gradients are NaN or infinite (first: row {bad[0]}).")
    return _top_share((g @ g.T if len(g) < g.shape[1] else g.T @ g) / len(g), eps)


def subsampled_concentration(
    gradients: Float[np.ndarray, "n d"], size: int, rng: np.random.Generator
) -> tuple[float, float, float]:
    """Selection concentration at one |S|: mean over `SUBSAMPLES` samples of ``size`` gradients, drawn without return.

    The number of gradients alone changes eq. 4 (n directions at random give at least 1/n), and a few long gradients
    rule it; so selectors are compared at one size, and on gradients of unit length too.

    Returns:
        C of the gradients as they are; C of the same at unit length; C of ``size`` directions at random with unit
        length (`isotropic_concentration`). NaN with fewer than ``size`` gradients that are not zero.

    Raises:
        NumericalError, DataError: as `selection_concentration`.
    """
    g = np.asarray(gradients, dtype=np.float64)
    selection_concentration(g[:0] if g.ndim != 2 else g)  # checks
    lengths = np.linalg.norm(g, axis=1)
    g, lengths = g[lengths > 0], lengths[lengths > 0]
    if len(g) < size:
        return float("nan"), float("nan"), float("nan")
    unit = g / lengths[:, None]
    samples = [rng.permutation(len(g))[:size] for _ in range(SUBSAMPLES)]
    plain, directions = (np.mean([selection_concentration(rows[sample]) for sample in samples]) for rows in (g, unit))
    return float(plain), float(directions), isotropic_concentration(np.ones(size), g.shape[1])


def isotropic_concentration(lengths: Float[np.ndarray, " n"], width: int) -> float:
    """Expected concentration (eq. 4) of n vectors of these lengths whose directions are drawn at random in R^width.

    The null beside a measured concentration: what no common direction gives. Mean over `SUBSAMPLES` draws from a
    generator of its own, so equal arguments give equal values. NaN without a vector that is not zero.
    """
    lengths = np.asarray(lengths, dtype=np.float64)
    lengths = lengths[lengths > 0]
    if not len(lengths):
        return float("nan")
    rng = generator(0, "isotropic concentration", len(lengths), width)
    values = []
    for _ in range(SUBSAMPLES):
        if width <= _DRAWN_WIDTH:
            drawn = rng.standard_normal((len(lengths), width))
            drawn *= (lengths / np.linalg.norm(drawn, axis=1))[:, None]
            gram = drawn @ drawn.T
        else:  # cosines of directions in so many dimensions are normal with variance 1 / width
            noise = np.triu(rng.standard_normal((len(lengths), len(lengths))), 1) / np.sqrt(width)
            gram = (np.eye(len(lengths)) + noise + noise.T) * np.outer(lengths, lengths)
        values.append(_top_share(gram, 0.0))
    return float(np.mean(values))


@dataclass(frozen=True, slots=True)
class UpdateConcentration:
    """Eq. 4 over the gradients of a stage's steps, each with what directions at random give."""

    value: float
    null: float
    unit: float
    """At unit length: every step counts the same."""
    unit_null: float


def update_concentration(gram: Float[np.ndarray, "steps steps"], width: int) -> UpdateConcentration:
    """Share of the largest eigenvalue of the Gram matrix of the steps' gradients: eq. 4 over updates (Table 2).

    Args:
        gram: inner products of the gradients with each other, before the optimizer.
        width: numbers in a gradient, or in its sketch.

    NaN when there is no gradient or all are zero; at unit length, zero gradients are left out.

    Raises:
        NumericalError: an entry is NaN or infinite. DataError: not square, or not symmetric.
    """
    matrix = np.asarray(gram, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise DataError(f"a Gram matrix of shape {matrix.shape} is not square.")
    if not np.isfinite(matrix).all():
        raise NumericalError("the Gram matrix of the gradients holds NaN or infinite entries.")
    if not np.allclose(matrix, matrix.T, rtol=1e-4, atol=1e-6 * float(np.abs(matrix).max(initial=0.0))):
        raise DataError("the Gram matrix of the gradients is not symmetric.")
    matrix = (matrix + matrix.T) / 2
    lengths = np.sqrt(np.clip(np.diag(matrix), 0, None))
    steps = np.flatnonzero(lengths > 0)
    unit = matrix[np.ix_(steps, steps)] / np.outer(lengths[steps], lengths[steps])
    return UpdateConcentration(
        _top_share(matrix, 0.0),
        isotropic_concentration(lengths, width),
        _top_share(unit, 0.0),
        isotropic_concentration(np.ones(len(steps)), width),
    )


# Association of diagnostics with forgetting within seeds and conditions (paper Fig. 4 (b), and Fig. 3 (b) for the last
# pair). Seeds, base models and conditions move a diagnostic and forgetting together, whatever is selected, so each
# group's mean is taken off both sides first.
#
# Trials of one seed share pools, items, order and base model, so they are not independent: n trials of k seeds are k
# replications. The intervals leave out one seed at a time (jackknife on Fisher's z, Student's t with k − 1 degrees of
# freedom). They hold for other seeds of *these* selectors; the range of r with any one selector left out shows how much
# r depends on a single selector. With 3–5 seeds a percentile bootstrap over seeds would be far too narrow.

MIN_SEEDS = 3
"""With fewer seeds there is no interval."""
MOST_GROUPS = 50
"""More seeds than this are left out in this many groups of nearly equal size."""
PAIRS = (
    ("capability_entropy", "forgetting"),
    ("selection_concentration", "forgetting"),
    ("update_concentration", "forgetting"),
    ("adapter_drift", "forgetting"),
    ("capability_entropy", "update_concentration"),
)
"""Pairs of metrics that are correlated."""

_Values = Float[np.ndarray, " n"]
_Codes = Int[np.ndarray, " n"]
_Weights = Float[np.ndarray, "draws n"]


@dataclass(frozen=True, slots=True)
class Correlation:
    """A correlation with its 95 % interval over seeds; NaN where there is none."""

    r: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Association:
    """Two metrics against each other, one point per trial."""

    trials: int
    """Trials in which both were measured, in groups of two or more."""
    seeds: int
    """Seeds (or base models) of these trials: the replications."""
    pearson: Correlation
    """Pearson's r after subtracting each group's mean from both: differences of seeds and conditions drop out."""
    spearman: Correlation
    """The same of the ranks within each group, ties sharing the mean rank."""
    least: float
    """Smallest Pearson's r with any one selector left out; NaN with fewer than three selectors."""
    greatest: float


def associate(
    x: _Values, y: _Values, seed: _Codes, selector: _Codes, group: _Codes | None = None, confidence: float = 0.95
) -> Association:
    """Correlate two measurements over trials, within groups (see `Association`).

    r is NaN without spread; the interval is NaN with fewer than `MIN_SEEDS` seeds, where leaving out a seed leaves no
    spread, and where the points lie on a line.

    Args:
        x, y: one value per trial, any unit; NaN = not measured, such trials are left out.
        seed: seed of each trial; trials of one seed are not independent.
        selector: selector of each trial.
        group: groups whose means are subtracted, each within one seed; by default the seeds.

    Raises:
        DataError: lengths differ, a value is infinite, or ``confidence`` is not between 0 and 1.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    group = seed if group is None else group
    lengths = [np.shape(column) for column in (x, y, seed, selector, group)]
    if x.ndim != 1 or len(set(lengths)) > 1:
        raise DataError(f"columns of shapes {lengths} cannot be correlated; all need one value per trial.")
    if np.isinf(x).any() or np.isinf(y).any():
        raise DataError("an infinite value has no correlation; leave such trials out or use another metric.")
    if not 0 < confidence < 1:
        raise DataError(f"the confidence is {confidence}; it must lie between 0 and 1, e.g. 0.95.")
    keep = ~(np.isnan(x) | np.isnan(y))
    _, members = np.unique(group, return_inverse=True)
    keep &= np.bincount(members, keep, len(members))[members] > 1  # one trial alone says nothing within its group
    x, y, group, selector = x[keep], y[keep], group[keep], selector[keep]
    seeds, place = np.unique(seed[keep], return_inverse=True)
    draws = _leaving_out(place % MOST_GROUPS)
    without_one = np.array([_without(x, y, group, selector != one) for one in np.unique(selector)])
    has_range = len(without_one) > 2 and not np.isnan(without_one).any()
    return Association(
        trials=len(x),
        seeds=len(seeds),
        pearson=_interval(_pearson(_centered(x, group), _centered(y, group), draws), confidence),
        spearman=_interval(_pearson(_ranked(x, group), _ranked(y, group), draws), confidence),
        least=float(without_one.min()) if has_range else float("nan"),
        greatest=float(without_one.max()) if has_range else float("nan"),
    )


def association_table(
    per_trial: pd.DataFrame,
    views: Sequence[str],
    pairs: Sequence[tuple[str, str]] = PAIRS,
    units: Mapping[int, int] | None = None,
) -> pd.DataFrame:
    """`associate` for every view and pair of metrics that the trials measured.

    Args:
        per_trial: trial, selector, seed, view, metric, value (`Scorecard.per_trial`), and ``condition`` for trials of
            several conditions; the mean of each condition and seed is taken off.
        views: views of the scores; a pair of two diagnostics has the view "".
        units: seed → replication unit, where several seeds share each of several base models.

    Returns:
        view, x, y, trials, seeds, pearson, pearson_low, pearson_high, spearman …, least, greatest.
    """
    keys = [name for name in ("condition", "trial", "selector", "seed") if name in per_trial.columns]
    paired = per_trial[per_trial["metric"].isin({name for pair in pairs for name in pair})]
    wide = paired.set_index([*keys, "view", "metric"])["value"].unstack(["view", "metric"])
    trials = wide.index.to_frame(index=False)
    unit = trials["seed"].map(units) if units else trials["seed"]
    seed, selector = (np.unique(column, return_inverse=True)[1] for column in (unit, trials["selector"]))
    by = [name for name in ("condition", "seed") if name in keys]
    group = trials.groupby(by).ngroup().to_numpy(np.int64)
    values = {(str(key[0]), str(key[1])): wide[key].to_numpy(float) for key in wide.columns}
    return _associations(values, views, pairs, seed, selector, group)


def association_of(values: Mapping[tuple[str, str], _Values], trials: Trials, views: Sequence[str]) -> pd.DataFrame:
    """`association_table` of one condition.

    Args:
        values: (view, metric) → one value per trial.
        trials: the trials of the values.
        views: views of the scores.
    """
    order = np.array(sorted(range(len(trials)), key=trials.names.__getitem__))  # as `association_table` sums
    used = {name for pair in PAIRS for name in pair}
    by_name = {key: value[order] for key, value in values.items() if key[1] in used}
    seed = trials.seed_of[order]
    return _associations(by_name, views, PAIRS, trials.unit_of[seed], trials.selector_of[order], seed)


def _associations(
    values: Mapping[tuple[str, str], _Values],
    views: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    seed: _Codes,
    selector: _Codes,
    group: _Codes,
) -> pd.DataFrame:
    """`associate` for every view and pair of metrics that were measured (see `association_table`)."""
    rows = []
    for x, y in pairs:
        for view in views if ("", y) not in values else ("",):
            if ("", x) in values and (view, y) in values:
                result = associate(values["", x], values[view, y], seed, selector, group)
                if result.trials:
                    sizes = (result.trials, result.seeds, *astuple(result.pearson), *astuple(result.spearman))
                    rows.append((view, x, y, *sizes, result.least, result.greatest))
    numbers = [f"{name}{end}" for name in ("pearson", "spearman") for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["view", "x", "y", "trials", "seeds", *numbers, "least", "greatest"])


def _leaving_out(group: _Codes) -> _Weights:
    """1 for the trials that count: all of them in the first row, all but one group's in each row after it."""
    groups = np.unique(group)
    return np.vstack([np.ones((1, len(group))), (group != groups[:, None]).astype(float)])


def _pearson(x: np.ndarray, y: np.ndarray, draws: _Weights) -> Float[np.ndarray, " draws"]:
    """Pearson's r of the trials that count in each draw; NaN where one side has no spread beyond rounding."""
    parts, norms = [], []
    with np.errstate(invalid="ignore", divide="ignore"):
        for values in (x, y):
            mean = (draws * values).sum(axis=1, keepdims=True) / draws.sum(axis=1, keepdims=True)
            parts.append(draws * (values - mean))
            norm = np.sqrt((parts[-1] ** 2).sum(axis=1))
            norms.append(np.where(norm > 1e-12 * np.sqrt((draws * values**2).sum(axis=1)), norm, np.nan))
        return np.clip((parts[0] * parts[1]).sum(axis=1) / (norms[0] * norms[1]), -1.0, 1.0)


def _without(x: _Values, y: _Values, group: _Codes, keep: Bool[np.ndarray, " n"]) -> float:
    """Pearson's r within groups of the trials that are kept."""
    first, second = (_centered(values[keep], group[keep]) for values in (x, y))
    return float(_pearson(first, second, np.ones((1, int(keep.sum()))))[0])


def _ranked(values: _Values, group: _Codes) -> _Values:
    """Rank of each value within its group, lowest 1, ties sharing the mean rank; less the group's mean."""
    order = np.lexsort((values, group))
    ordered, of = values[order], group[order]
    new_group = np.append(True, of[1:] != of[:-1])[: len(order)]
    new = new_group | np.append(True, ordered[1:] != ordered[:-1])[: len(order)]
    first = np.flatnonzero(new)  # of each tie
    length = np.diff(np.append(first, len(order)))
    start = np.maximum.accumulate(np.where(new_group, np.arange(len(order)), 0))
    ranks = np.empty(len(values))
    ranks[order] = np.repeat(first - start[first] + (length + 1) / 2, length)
    return _centered(ranks, group)


def _centered(values: _Values, group: _Codes) -> _Values:
    groups, place = np.unique(group, return_inverse=True)
    mean = np.bincount(place, values, len(groups)) / np.bincount(place, minlength=len(groups))
    left = values - mean[place]
    return np.where(np.abs(left) > 1e-12 * np.abs(values), left, 0.0)  # equal up to rounding


def _interval(r: Float[np.ndarray, " draws"], confidence: float) -> Correlation:
    """r of all trials (first), with the jackknife interval from its values without each group."""
    total, without = float(r[0]), r[1:]
    n = len(without)
    if n < MIN_SEEDS or not (np.abs(r) < 1 - 1e-12).all():
        return Correlation(total, float("nan"), float("nan"))
    z = np.arctanh(without)
    error = float(np.sqrt((n - 1) / n * ((z - z.mean()) ** 2).sum()))
    half = float(scipy.special.stdtrit(n - 1, 0.5 + confidence / 2)) * error
    return Correlation(total, float(np.tanh(np.arctanh(total) - half)), float(np.tanh(np.arctanh(total) + half)))
