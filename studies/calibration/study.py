"""False alarms, power and coverage of an audit.

Every number comes from the functions behind the scorecard: `summarize` and `Comparisons` for false alarms and power,
`paired` and `bootstrap_interval` for coverage and what the minimum detectable effect promises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float

from longgame.metrics.longhorizon import largest_gap, myopia_gap
from longgame.metrics.scorecard import IMMEDIATE, summarize
from longgame.metrics.stats import (
    ALPHA,
    bootstrap_interval,
    holm,
    minimum_detectable_effect,
    moments,
    paired,
    share_interval,
    t_interval,
    t_power,
)
from longgame.metrics.tidy import Trials
from longgame.metrics.verdict import BETTER, EQUIVALENT, MYOPIC, WORSE, Comparisons, rank_reversals
from longgame.recipe import EquivalenceSpec
from longgame.seeding import generator
from studies.calibration.table import Table

LONG = "long_horizon"
REFERENCE = "random"
SEEDS = (3, 5, 10, 20)
"""Seeds per audit."""
FAMILY = 7
"""Selectors per audit, the reference among them."""
_CHUNK = 2_000

Groups = Float[np.ndarray, "audits selectors seeds"]


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of audits with its 95 % Clopper–Pearson interval."""

    hits: int
    of: int

    @property
    def value(self) -> float:
        return self.hits / self.of if self.of else float("nan")

    @property
    def low(self) -> float:
        return self.lower(0.025)

    def lower(self, tail: float) -> float:
        """Lower limit that lies above the true share with this chance at most."""
        return float(scipy.stats.beta.ppf(tail, self.hits, self.of - self.hits + 1)) if self.hits else 0.0

    @property
    def high(self) -> float:
        return float(scipy.stats.beta.ppf(0.975, self.hits + 1, self.of - self.hits)) if self.hits < self.of else 1.0

    @staticmethod
    def of_audits(hit: Bool[np.ndarray, " audits"]) -> Rate:
        return Rate(int(hit.sum()), len(hit))

    def columns(self) -> dict[str, float]:
        """``rate``, ``low``, ``high`` and the number of ``audits``."""
        return {"rate": self.value, "low": self.low, "high": self.high, "audits": self.of}


@dataclass(frozen=True)
class Outcome:
    """Verdicts and p values of many audits, for each selector but the reference."""

    words: np.ndarray
    """Verdicts, (audits, selectors − 1)."""
    p_now: Float[np.ndarray, "audits others"]
    p_long: Float[np.ndarray, "audits others"]
    """After Holm."""
    p_flip: Float[np.ndarray, "audits others"]
    """Exact sign-flip test of the long-horizon score after Holm; NaN beyond its limit of seeds."""


def cut(values: Float[np.ndarray, "selectors seeds"], size: int, limit: int) -> Groups:
    """Audits of ``size`` seeds each from independent seeds, without using one twice."""
    count = min(values.shape[1] // size, limit)
    return values[:, : count * size].reshape(len(values), count, size).transpose(1, 0, 2)


def run_audits(now: Groups, later: Groups, selectors: Sequence[str], bases: Sequence[str] = ()) -> Outcome:
    """Put many audits through the scorecard's summary and verdicts; the first selector is the reference.

    Args:
        bases: base model of each seed (`longgame.metrics.tidy.Trials.bases`).
    """
    _, k, size = now.shape
    names = tuple(f"{name}-s{seed}" for name in selectors for seed in range(size))
    trials = Trials(
        names,
        tuple(selectors),
        tuple(range(size)),
        np.repeat(np.arange(k), size),
        np.tile(np.arange(size), k),
        tuple(bases),
    )
    parts = []
    for low in range(0, len(now), _CHUNK):
        views = range(low, min(low + _CHUNK, len(now)))
        values = {(view, IMMEDIATE): now[view].reshape(-1) for view in views}
        values |= {(view, LONG): later[view].reshape(-1) for view in views}
        summary = summarize(values, trials, selectors[0], ("view", "metric"))
        tests = Comparisons.build(summary, views, selectors[0], IMMEDIATE, EquivalenceSpec())
        flip = summary["p_permutation"].to_numpy().reshape(2, len(views), k)[1, :, 1:]
        parts.append((tests.words, tests.now["p"], tests.later["p"], holm(flip)))
    return Outcome(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def false_alarms(
    table: Table, *, sizes: Sequence[int] = SEEDS, limit: int = 10_000, seed: int = 0
) -> list[dict[str, Any]]:
    """Audits of `FAMILY` exchangeable selectors (uniform selection under seven names): every claim is false.

    The long-horizon score has the package's default forgetting. A row per number of seeds and claim, by family: an
    audit with several false claims counts once.
    """
    walks = table.randoms(generator(seed, "calibrate", "exchangeable"), FAMILY)
    now = np.take_along_axis(table.values[IMMEDIATE], walks, axis=0)
    later = np.take_along_axis(table.values["long_horizon_best"], walks, axis=0)
    selectors = (REFERENCE, *(f"twin {i}" for i in range(1, FAMILY)))
    rows = []
    for size in sizes:
        groups = cut(now, size, limit), cut(later, size, limit)
        outcome = run_audits(*groups, selectors)
        reversals = np.array(
            [
                len(rank_reversals(a.T, b.T, selectors)) > 0
                for a, b in zip(*(g[: limit // 4] for g in groups), strict=True)
            ]
        )
        claims = {
            "myopic": (outcome.words == MYOPIC).any(axis=1),
            "long-horizon difference": (outcome.p_long < ALPHA).any(axis=1),
            "current difference": (outcome.p_now < ALPHA).any(axis=1),
            "rank reversal": reversals,
        }
        if not np.isnan(outcome.p_flip).all():
            claims["long-horizon difference (sign flip)"] = (outcome.p_flip < ALPHA).any(axis=1)
        rows += [{"seeds": size, "claim": name} | Rate.of_audits(hit).columns() for name, hit in claims.items()]
    return rows


def hardest_null(
    table: Table, selectors: Sequence[str], *, sizes: Sequence[int] = SEEDS, limit: int = 10_000, seed: int = 0
) -> list[dict[str, Any]]:
    """The null with the most false *myopic* verdicts: all selectors are far ahead now, none differs in the long run.

    Real selectors keep their spread and skew. Their long-horizon scores are shifted so that the true effect is exactly
    0, and their current scores are raised by 100 points.
    """
    now, later = _against_random(table, selectors, seed)
    now[1:] += 100
    later[1:] -= np.array([[table.effect(name, LONG)] for name in selectors])
    rows = []
    for size in sizes:
        outcome = run_audits(cut(now, size, limit), cut(later, size, limit), (REFERENCE, *selectors))
        claims = {
            "myopic": (outcome.words == MYOPIC).any(axis=1),
            "long-horizon difference": (outcome.p_long < ALPHA).any(axis=1),
        }
        rows += [{"seeds": size, "claim": name} | Rate.of_audits(hit).columns() for name, hit in claims.items()]
    return rows


BASE_VARIANCE = 3.9
"""Variance of paired long-horizon differences over base models (a seed each), over that of the seeds of one."""


def shared_bases(
    table: Table, *, sizes: Sequence[int] = SEEDS, limit: int = 10_000, seed: int = 0
) -> list[dict[str, Any]]:
    """False alarms as claims about base models, where base models move the differences and no selector has an effect.

    Exchangeable selectors, as in `false_alarms`. A base model adds to every selector's long-horizon score an effect of
    its own with mean 0, so that differences vary `BASE_VARIANCE` times as much over base models as over the seeds of
    one. The designs: *one* base model for all seeds; one of its *own* for every seed; base models *repeated* over two
    seeds each, analyzed per base model as the scorecard does, or *repeated, by seed* as if seeds were independent.
    ``any`` is the share of audits of `FAMILY` selectors with a long-horizon difference, ``single`` that of a single
    comparison.
    """
    walks = table.randoms(generator(seed, "calibrate", "shared bases"), FAMILY)
    later = np.take_along_axis(table.values["long_horizon_best"], walks, axis=0)
    within = float((later[1:] - later[0]).var(axis=1, ddof=1).mean())
    spread = np.sqrt((BASE_VARIANCE - 1) * within / 2)  # of one selector; a difference has twice its variance
    names = (REFERENCE, *(f"twin {i}" for i in range(1, FAMILY)))
    rng = generator(seed, "calibrate", "base effects")
    rows = []
    for size in sizes:
        groups = cut(later, size, limit)
        designs = {"one": np.zeros(size, dtype=int), "own": np.arange(size), "repeated": np.arange(size) // 2}
        for design, base_of in designs.items():
            if design == "repeated" and base_of.max() < 2:
                continue
            effects = rng.normal(0, spread, (*groups.shape[:2], int(base_of.max()) + 1))
            moved = groups + effects[..., base_of]
            analyses = {design: [f"base {place}" for place in base_of]}
            if design == "repeated":
                analyses["repeated, by seed"] = []
            for name, bases in analyses.items():
                family = run_audits(np.zeros_like(moved), moved, names, bases)
                alone = run_audits(np.zeros_like(moved[:, :2]), moved[:, :2], names[:2], bases)
                for claim, outcome in (("any", family), ("single", alone)):
                    rate = Rate.of_audits((outcome.p_long < ALPHA).any(axis=1))
                    rows.append({"seeds": size, "bases": name, "claim": claim} | rate.columns())
    return rows


def equivalence(
    table: Table, selectors: Sequence[str], *, sizes: Sequence[int] = SEEDS, limit: int = 10_000, seed: int = 0
) -> list[dict[str, Any]]:
    """How often *equivalent within ±δ* is said of a selector at the margin (false) and of an equal one (true).

    An audit compares random and one selector, whose true differences are shifted: 0 now, and in the long run the
    recipe's margin (``edge``) or 0 (``equal``). Real selectors keep their spread and skew.
    """
    margin = EquivalenceSpec().long_horizon
    rows = []
    for name in selectors:
        now, later = _against_random(table, (name,), seed)
        now[1] -= table.effect(name, IMMEDIATE)
        for truth, shift in (("edge", margin), ("equal", 0.0)):
            moved = later.copy()
            moved[1] += shift - table.effect(name, LONG)
            for size in sizes:
                words = run_audits(cut(now, size, limit), cut(moved, size, limit), (REFERENCE, name)).words[:, 0]
                rate = Rate.of_audits(words == EQUIVALENT)
                rows.append({"truth": truth, "selector": name, "seeds": size} | rate.columns())
    return rows


def power(
    table: Table, selectors: Sequence[str], *, sizes: Sequence[int] = SEEDS, limit: int = 5_000, seed: int = 0
) -> list[dict[str, Any]]:
    """How often an audit of random and one selector shows its true long-horizon effect, and the prediction of t.

    ``effect`` is the true difference, ``d`` the same over the sd of the paired differences, ``predicted`` the power by
    the noncentral t, and ``myopic`` the share of audits with that verdict.
    """
    rows = []
    for name in selectors:
        now, later = _against_random(table, (name,), seed)
        effect, sd = table.effect(name, LONG), float((later[1] - later[0]).std(ddof=1))
        right = [BETTER] if effect > 0 else [WORSE, MYOPIC]
        for size in sizes:
            words = run_audits(cut(now, size, limit), cut(later, size, limit), (REFERENCE, name)).words[:, 0]
            rows.append(
                {"selector": name, "seeds": size, "effect": effect, "d": effect / sd}
                | Rate.of_audits(np.isin(words, right)).columns()
                | {"predicted": float(t_power(effect / sd, size, ALPHA)), "myopic": float((words == MYOPIC).mean())}
            )
    return rows


def power_at_mde(
    table: Table, selectors: Sequence[str], *, sizes: Sequence[int] = SEEDS, limit: int = 10_000, seed: int = 0
) -> list[dict[str, Any]]:
    """How often a true long-horizon loss of exactly the minimum detectable effect is shown; 80 % is promised."""
    _, later = _against_random(table, selectors, seed)
    rows = []
    for row, name in enumerate(selectors, start=1):
        difference = later[row] - later[0]
        sd = float(difference.std(ddof=1))
        for size in sizes:
            lost = float(minimum_detectable_effect(sd, size, ALPHA))
            groups = cut((difference - table.effect(name, LONG) - lost)[None], size, limit)[:, 0]
            test = paired(groups, np.zeros_like(groups))
            shown = Rate.of_audits((test.p < ALPHA) & (test.mean < 0))
            rows.append({"selector": name, "seeds": size, "mde": lost} | shown.columns())
    return rows


def coverage(
    table: Table,
    selectors: Sequence[str],
    *,
    sizes: Sequence[int] = SEEDS,
    limit: int = 10_000,
    boot_limit: int = 3_000,
    resamples: int = 1_000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """How often a 95 % interval of the paired difference contains the true one, by Student's t and by the bootstrap."""
    now, later = _against_random(table, selectors, seed)
    rows = []
    for metric, values in ((IMMEDIATE, now), (LONG, later)):
        for row, name in enumerate(selectors, start=1):
            truth, difference = table.effect(name, metric), values[row] - values[0]
            skew = float(scipy.stats.skew(difference))
            for size in sizes:
                groups = cut(difference[None], size, limit)[:, 0]
                test = paired(groups, np.zeros_like(groups))
                rng = generator(seed, "calibrate", "bootstrap", name, metric, size)
                few = groups[:boot_limit]
                bounds = {"t": (test.ci_low, test.ci_high), "bootstrap": bootstrap_interval(few, resamples, rng)}
                for interval, (low, high) in bounds.items():
                    holds = Rate.of_audits((low <= truth) & (truth <= high))
                    rows.append(
                        {"metric": metric, "selector": name, "seeds": size, "interval": interval, "skew": skew}
                        | holds.columns()
                    )
    return rows


def gap_coverage(
    table: Table, selectors: Sequence[str], *, sizes: Sequence[int] = SEEDS, limit: int = 10_000, seed: int = 0
) -> list[dict[str, Any]]:
    """How often a 95 % interval of the set's myopia gap contains the mean gap of a single seed.

    The sets: random with these selectors, with the first three, with every walk of the table, with the diluted ones
    alone, and `FAMILY` exchangeable selectors. The intervals: `share_interval` (the scorecard's) and plain Student's t.
    The truth is the mean over all seeds. Audits in which all seeds have the same gap have no interval; ``without`` is
    their share, and ``rate`` is that of the others.
    """
    walks = table.names[table.random :]
    sets = {"selectors": tuple(selectors), "three": tuple(selectors[:3]), "all walks": walks}
    sets["diluted"] = tuple(name for name in walks if name not in selectors)
    scores = {name: _against_random(table, members, seed) for name, members in sets.items() if len(members) > 1}
    twins = table.randoms(generator(seed, "calibrate", "exchangeable"), FAMILY)
    scores["exchangeable"] = (
        np.take_along_axis(table.values[IMMEDIATE], twins, axis=0),
        np.take_along_axis(table.values[LONG], twins, axis=0),
    )
    rows = []
    for name, (now, later) in scores.items():
        gaps, top = myopia_gap(now.T, later.T), largest_gap(len(now))
        truth = float(gaps.mean())
        about = {"set": name, "members": len(now), "truth": truth, "skew": float(scipy.stats.skew(gaps))}
        for size in sizes:
            n, mean, sd = moments(cut(gaps[None], size, limit)[:, 0])
            bounds = {"log-odds": share_interval(mean, sd, n, 0.95, top), "t": t_interval(mean, sd, n, 0.95)}
            defined = ~np.isnan(bounds["log-odds"][0])
            for interval, (low, high) in bounds.items():
                holds = Rate.of_audits(((low <= truth) & (truth <= high))[defined])
                rows.append(
                    about
                    | {"seeds": size, "interval": interval, "without": float(1 - defined.mean())}
                    | holds.columns()
                    | {"width": float((high - low)[defined].mean()) if defined.any() else float("nan")}
                )
    return rows


def spread(rows: Sequence[dict[str, Any]], *by: str) -> list[dict[str, Any]]:
    """Lowest, mean and highest ``rate`` over the rows that agree in these columns."""
    groups: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(row["rate"])
    return [
        dict(zip(by, key, strict=True))
        | {"lowest": min(rates), "mean": float(np.mean(rates)), "highest": max(rates), "rows": len(rates)}
        for key, rates in groups.items()
    ]


def truth_errors(table: Table, selectors: Sequence[str], seed: int = 0) -> list[dict[str, Any]]:
    """Mean difference over all simulated seeds against the closed form, in standard errors: a check of the truth."""
    rows = []
    for metric, values in zip((IMMEDIATE, LONG), _against_random(table, selectors, seed), strict=True):
        for row, name in enumerate(selectors, start=1):
            difference, truth = values[row] - values[0], table.effect(name, metric)
            error = float(difference.std(ddof=1)) / np.sqrt(len(difference))
            mean = float(difference.mean())
            rows.append(
                {
                    "metric": metric,
                    "selector": name,
                    "truth": truth,
                    "simulated": mean,
                    "z": float((mean - truth) / error),
                }
            )
    return rows


def _against_random(table: Table, selectors: Sequence[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Current and long-horizon scores (1 + selectors, seeds): first a random walk drawn for each seed, then these."""
    walks = table.randoms(generator(seed, "calibrate", "reference"), 1)
    rows = [table.row(name) for name in selectors]

    def of(values: Mapping[str, np.ndarray], metric: str) -> np.ndarray:
        return np.concatenate([np.take_along_axis(values[metric], walks, axis=0), values[metric][rows]])

    return of(table.values, IMMEDIATE), of(table.values, LONG)
