"""The scorecard of one condition: every metric over seeds, compared with the reference selector, and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import pandas as pd
from jaxtyping import Float

from longgame.errors import DataError, unknown
from longgame.metrics import longhorizon, matrix
from longgame.metrics.catalog import METRICS, measure, record_metrics
from longgame.metrics.diagnostics import association_of
from longgame.metrics.stats import (
    ALPHA,
    Paired,
    bootstrap_interval,
    holm,
    minimum_detectable_effect,
    moments,
    paired,
    pooled_sd,
    seeds_needed,
    share_interval,
    unit_means,
)
from longgame.metrics.tidy import (
    PROBES,
    Measured,
    Probe,
    Trials,
    View,
    over_measured,
    view_cube,
    view_probe,
)
from longgame.metrics.verdict import (
    amount_notes,
    missed_notes,
    rank_reversals,
    tied_notes,
    unequal_amounts,
    verdict_table,
    with_amounts,
)
from longgame.recipe import MetricSpec
from longgame.seeding import generator

PRIMARY = "primary"
"""The view in which each task is scored by its own scorer; the other views use one scorer for all tasks."""
SCORER_VIEWS = ("token_accuracy", "exact_match")
IMMEDIATE = "current"
"""The immediate score of verdicts and rank reversals: mean R[t,t], what a single-stage comparison would report."""

_Key = TypeVar("_Key", bound=tuple[object, ...])


@dataclass(frozen=True)
class Scorecard:
    """Tables of one condition (build with `Scorecard.build`)."""

    tasks: tuple[str, ...]
    ood: tuple[str, ...]
    reference: str
    trials: Trials
    views: Mapping[str, View]
    """``primary`` (each task's own scorer) and each scorer of `SCORER_VIEWS` that measured anything."""
    values: Mapping[tuple[str, str], Float[np.ndarray, " trials"]]
    """(view, metric) → one value per trial; view "" for diagnostics and costs. ``myopia_gap`` is the seed's."""
    summary: pd.DataFrame
    """Over seeds, by view, metric and selector (see `summarize`)."""
    stage_values: Mapping[tuple[str, str, int], Float[np.ndarray, " trials"]]
    """(view, metric, stage) → one value per trial, for the metrics that have a stage (auc of stage t: learning stage
    t+1 after it)."""
    stage_summary: pd.DataFrame
    """``stage_values`` over seeds, by view, metric, stage and selector."""
    set_gap: pd.DataFrame
    """view, immediate (``current`` or ``immediate_gain``), gap (eq. 3 on seed means), selectors, seeds (compared),
    seed_gap (mean of the gaps of single seeds), ci_low, ci_high (its 95 % interval over seeds or bases by
    `share_interval`: Student's t on the log-odds of the gap's share of `longgame.metrics.longhorizon.largest_gap`).
    """
    verdicts: pd.DataFrame
    """view, selector, verdict, reason, power (what the seeds could have shown), family (what p values are corrected
    over); without the reference, empty."""
    unequal: Mapping[str, str]
    """Selector → how the tokens it learned differ from the reference's, in words (`unequal_amounts`)."""
    reversals: pd.DataFrame
    """view, ahead, behind, immediate_diff, immediate_p, long_diff, long_p, n: significant rank reversals."""
    sensitivity: pd.DataFrame
    """view, selector, share of the (α, β, γ) simplex on which the selector's seed mean ranks first."""
    thresholds: pd.DataFrame
    """view, probe, stage, task, points: the common threshold of each transition."""
    association: pd.DataFrame
    """Trajectory diagnostics against forgetting over all trials (see `association_table`)."""
    head_room: pd.DataFrame
    """view, metric, diff, ci_low, ci_high, n: the oracle against the reference, paired; empty without oracle trials."""
    notes: tuple[str, ...]
    """What was left out or replaced, in words."""

    @cached_property
    def per_trial(self) -> pd.DataFrame:
        """``values`` as rows: trial, selector, seed, view, metric, value."""
        return long_form(self.values, self.trials, ("view", "metric"))

    @cached_property
    def per_stage(self) -> pd.DataFrame:
        """``stage_values`` as rows: trial, selector, seed, view, metric, stage, value."""
        return long_form(self.stage_values, self.trials, ("view", "metric", "stage"))

    @classmethod
    def build(
        cls,
        results: pd.DataFrame | Measured,
        *,
        tasks: Sequence[str],
        ood: Sequence[str],
        primary: Mapping[str, str],
        metric_spec: MetricSpec,
        threshold: float,
        reference: str = "random",
        bases: Mapping[int, str] | None = None,
        all_data: Scorecard | None = None,
        oracle: Scorecard | None = None,
    ) -> Scorecard:
        """Make the scorecard of one condition (one trial per selector and seed).

        Args:
            results: tidy records (columns of `longgame.audit.store.RECORD_COLUMNS`), or what was read of them with the
                same tasks and reference.
            tasks: the stages' tasks in order.
            ood: the OOD tasks.
            primary: each task's own scorer.
            metric_spec: weights of the long-horizon score, reference of forgetting.
            threshold: share of the mean end-of-probe score that tokens-to-threshold asks for.
            reference: the selector that the others are compared with.
            bases: seed → base model (see `longgame.metrics.tidy.read_trials`). Where base models repeat, tests count
                base models instead of seeds.
            all_data: trials that learned all data in the same condition; the imbalance divides by their scores.
            oracle: trials that picked by the evaluation items in the same condition.

        Raises:
            DataError: no measurement at all; an unknown task or stage; a repeated measurement; a task without primary
                scorer; two trials of one selector and seed.
        """
        columns = (*tasks, *ood)
        for task in columns:
            if task not in primary:
                raise DataError(f"task '{task}' has no primary scorer; tasks with one: {sorted(primary)}.")
        if not tasks or len(set(columns)) != len(columns):
            raise DataError(f"the columns of R are {list(columns)}; give at least one stage, and every name once.")
        if isinstance(results, pd.DataFrame):
            results = Measured.read(results, tasks, ood, reference, bases)
        trials, scores, curves = results.trials, results.scores, results.curves
        notes: list[str] = []
        if reference not in trials.selectors:
            notes.append(f"no trial of the reference selector '{reference}': nothing is compared with it.")
        views = {}
        ends = view_cube(scores, columns, dict.fromkeys(columns, "ends")).matrices(trials.seed_of)
        for name in (PRIMARY, *SCORER_VIEWS):
            scorer = dict(primary) if name == PRIMARY else dict.fromkeys(columns, name)
            cube = view_cube(scores, columns, scorer)
            R = cube.matrices(trials.seed_of)
            if np.isnan(R).all() and name != PRIMARY:
                continue
            probes = {kind: view_probe(curves, trials, tasks, scorer, kind, threshold) for kind in PROBES}
            terms = _terms(name, R, probes, columns, metric_spec, notes)
            scale = _task_scale(all_data, name, tasks)
            reference_score = metric_spec.forgetting_reference
            view = View(trials, reference, scorer, cube, R, ends, probes, terms, reference_score, scale)
            views[name] = measure(view)
        by_kind = results.stagewise
        values = {(name, metric): value for name, view in views.items() for metric, value in view.metrics.items()}
        values |= {("", name): value for name, value in record_metrics(by_kind, results.selected).items()}
        stages = {(name, *key): value for name, view in views.items() for key, value in view.stagewise.items()}
        summary = summarize(values, trials, reference, ("view", "metric"), bootstrap=metric_spec.bootstrap)
        by_stage = ("view", "metric", "stage")
        head_room = _head_room(views, oracle, trials, reference)
        unequal = unequal_amounts(by_kind, trials, reference)
        verdicts = verdict_table(summary, tuple(views), reference, IMMEDIATE, metric_spec.equivalence, trials)
        return cls(
            tasks=tuple(tasks),
            ood=tuple(ood),
            reference=reference,
            trials=trials,
            views=views,
            values=values,
            summary=summary,
            stage_values=stages,
            stage_summary=summarize(stages, trials, reference, by_stage),
            set_gap=_set_gap(views, trials),
            verdicts=with_amounts(verdicts, {("", name): text for name, text in unequal.items()}).drop(
                columns="condition"
            ),
            unequal=unequal,
            reversals=_reversals(views, trials),
            sensitivity=_sensitivity(views, trials, metric_spec),
            thresholds=_thresholds(views, tasks),
            association=association_of(values, trials, tuple(views)),
            head_room=head_room,
            notes=(
                *notes,
                *_head_room_notes(head_room, reference),
                *amount_notes(unequal),
                *missed_notes(by_kind, trials),
                *tied_notes(by_kind, trials),
                *_floor_notes(views, trials, metric_spec.equivalence.now),
            ),
        )

    def R(self, view: str, selector: str, seed: int) -> Float[np.ndarray, "T+1 C"]:  # noqa: N802
        """Score matrix of one trial, points; columns are ``tasks``, then ``ood``.

        Raises:
            DataError: no such view or trial.
        """
        return self._view(view).R[self._trial(selector, seed)].copy()

    def sub_skills(self, view: str, selector: str, seed: int) -> pd.DataFrame:
        """Scores of one trial before averaging: stage, task, sub_skill, value (points; NaN = not measured).

        Raises:
            DataError: no such view or trial.
        """
        cube = self._view(view).cube
        values = cube.values[self._trial(selector, seed)]
        names = np.asarray((*self.tasks, *self.ood), dtype=object)[cube.column]
        return pd.DataFrame(
            {
                "stage": np.repeat(np.arange(values.shape[0]), values.shape[1]),
                "task": np.tile(names, values.shape[0]),
                "sub_skill": np.tile(np.asarray(cube.sub_skill, dtype=object), values.shape[0]),
                "value": values.reshape(-1),
            }
        )

    def wide(self, metrics: Sequence[str], view: str = PRIMARY, column: str = "mean") -> pd.DataFrame:
        """Selectors × metrics of one summary column, e.g. mean; diagnostics and costs are in every view.

        Raises:
            DataError: a metric that this run does not have.
        """
        self._view(view)
        table = self.summary[self.summary["view"].isin([view, ""])]
        wide = table.pivot(index="selector", columns="metric", values=column)
        for metric in metrics:
            if metric not in wide.columns:
                raise DataError(unknown("metric", metric, wide.columns))
        return wide.loc[list(self.trials.selectors), list(metrics)]

    def _view(self, name: str) -> View:
        if name not in self.views:
            raise DataError(unknown("view", name, self.views))
        return self.views[name]

    def _trial(self, selector: str, seed: int) -> int:
        if selector in self.trials.selectors and seed in self.trials.seeds:
            of_selector = self.trials.selector_of == self.trials.selectors.index(selector)
            rows = np.flatnonzero(of_selector & (self.trials.seed_of == self.trials.seeds.index(seed)))
            if rows.size:
                return int(rows[0])
        raise DataError(
            f"there is no trial of selector '{selector}' with seed {seed}. Selectors: "
            f"{', '.join(self.trials.selectors)}; seeds: {', '.join(map(str, self.trials.seeds))}."
        )


def summarize(
    values: Mapping[_Key, Float[np.ndarray, " trials"]],
    trials: Trials,
    reference: str,
    names: tuple[str, ...],
    *,
    bootstrap: int = 0,
) -> pd.DataFrame:
    """One row per key × selector: mean and spread over seeds, and the paired comparison with the reference selector.

    Args:
        values: per key (view, metric …), one value per trial.
        trials: the trials of the values.
        reference: every other selector is compared with this one, paired by seed; if no trial has it, the comparison
            columns are NaN.
        names: column names of the key's parts.
        bootstrap: resamples of the seed bootstrap; 0 leaves its two columns out.

    Returns:
        selector, the key's columns, mean, sd (n − 1), n (seeds), diff_vs_reference, diff_sd, diff_n (pairs: seeds,
        or base models where these repeat; sd, intervals and tests of the difference are over them), ci_low,
        ci_high (95 % Student t), p (paired t), p_permutation (exact sign flip), p_holm (p adjusted over selectors, per
        key), mde (smallest true difference that diff_n seeds show with 80 % power whatever the other selectors show: at
        Holm's hardest level, 5 % / the key's tests, with the sd pooled over the key's selectors), seeds_needed (by a
        true difference as large as the measured one, at the same level, power and sd), each with ``_low`` and
        ``_high``: the same at both ends of the sd's 90 % interval. An mde beyond the metric's scale is NaN (it cannot
        be told), and ``mde_high`` there inf. With ``bootstrap``, boot_low and boot_high (95 %).
    """
    keys = list(values)
    table = np.stack([trials.grid(values[key]) for key in keys])  # (keys, selectors, seeds)
    n, mean, sd = moments(table)
    shape = n.shape
    base = np.full((shape[0], 1, table.shape[2]), np.nan)
    if reference in trials.selectors:
        row = trials.selectors.index(reference)
        base = table[:, row : row + 1].copy()
    against = np.broadcast_to(base, table.shape).copy()
    if reference in trials.selectors:
        against[:, row] = np.nan  # the reference is not compared with itself
    pair = paired(table, against, unit_of=trials.unit_of)
    columns: dict[str, np.ndarray] = {"selector": np.tile(np.asarray(trials.selectors, dtype=object), shape[0])}
    for position, name in enumerate(names):
        columns[name] = np.repeat(np.asarray([key[position] for key in keys], dtype=object), shape[1])
    numbers = {
        "mean": mean,
        "sd": sd,
        "n": n,
        "diff_vs_reference": pair.mean,
        "diff_sd": pair.sd,
        "diff_n": pair.n,
        "ci_low": pair.ci_low,
        "ci_high": pair.ci_high,
        "p": pair.p,
        "p_permutation": pair.p_permutation,
        "p_holm": holm(pair.p),
    }
    metric_of = [key[names.index("metric")] if "metric" in names else "" for key in keys]
    largest = [METRICS[name].largest_difference if name in METRICS else np.inf for name in map(str, metric_of)]
    numbers |= _planning(pair, np.array(largest))
    if bootstrap:
        with np.errstate(invalid="ignore"):  # ∞ − ∞: a censored value stays one, see `paired`
            difference = np.where(np.isinf(table) | np.isinf(against), np.inf, table - against)
        difference = unit_means(difference, trials.unit_of)
        low, high = bootstrap_interval(difference, bootstrap, generator(0, "seed bootstrap"))
        numbers |= {"boot_low": low, "boot_high": high}
    return pd.DataFrame(columns | {name: value.reshape(-1) for name, value in numbers.items()})


def _planning(pair: Paired, largest: Float[np.ndarray, " keys"]) -> dict[str, np.ndarray]:
    """``mde`` and ``seeds_needed`` with their ranges (keys × selectors), each key at its own family's level.

    Args:
        largest: largest difference that each key's metric allows.
    """
    tests = (~np.isnan(pair.p)).sum(axis=-1)
    columns = {f"{name}{end}": np.full(pair.sd.shape, np.nan) for name in ("mde", "seeds_needed") for end in _ENDS}
    for family in np.unique(tests[tests > 0]):
        rows = tests == family
        level = ALPHA / int(family)
        n = np.where(np.isnan(pair.p[rows]), 0, pair.n[rows])
        for end, sd in zip(_ENDS, pooled_sd(pair.sd[rows], pair.n[rows]), strict=True):
            spread = np.where(n > 1, sd[:, None], np.nan)
            columns[f"mde{end}"][rows] = minimum_detectable_effect(spread, n, level)
            columns[f"seeds_needed{end}"][rows] = seeds_needed(pair.mean[rows], spread, level)
    beyond = columns["mde"] > largest[:, None]
    columns["mde_high"] = np.where(columns["mde_high"] > largest[:, None], np.inf, columns["mde_high"])
    for end in _ENDS:
        columns[f"mde{end}"] = np.where(beyond, np.nan, columns[f"mde{end}"])
    return columns


_ENDS = ("", "_low", "_high")
"""Suffixes of a planning column and of the ends of its range."""


def long_form(
    values: Mapping[_Key, Float[np.ndarray, " trials"]], trials: Trials, names: tuple[str, ...]
) -> pd.DataFrame:
    """One row per key × trial: trial, selector, seed, the key's columns, value."""
    keys = list(values)
    frame = trials.frame()
    columns = {name: np.tile(frame[name].to_numpy(), len(keys)) for name in ("trial", "selector", "seed")}
    for position, name in enumerate(names):
        columns[name] = np.repeat(np.asarray([key[position] for key in keys], dtype=object), len(frame))
    value = np.concatenate([values[key] for key in keys]) if keys else np.empty(0)
    return pd.DataFrame(columns | {"value": value})


def _task_scale(all_data: Scorecard | None, view: str, tasks: Sequence[str]) -> Float[np.ndarray, " T"] | None:
    """Mean final score of the all-data trials on each stage task; None where one was not measured."""
    if all_data is None or view not in all_data.views or all_data.tasks != tuple(tasks):
        return None
    scale = moments(matrix.final_row(all_data.views[view].R).T)[1]
    return None if np.isnan(scale).any() else scale


def _terms(
    view: str, R: np.ndarray, probes: Mapping[str, Probe], columns: Sequence[str], spec: MetricSpec, notes: list[str]
) -> longhorizon.LongHorizonTerms:
    """The terms of a view's long-horizon score, the same for all trials; a note for every term left out."""
    T = matrix.stage_count(R)
    measured = matrix.measured_columns(R)
    missing = [name for name, is_measured in zip(columns, measured, strict=True) if not is_measured]
    if missing:
        notes.append(f"{view}: {', '.join(missing)} not measured by this scorer in any trial; left out for all.")
    probe = next((kind for kind in PROBES if not np.isnan(probes[kind].auc).all()), "")
    alpha, gamma = spec.alpha, spec.gamma
    if T == 1:
        notes.append(f"{view}: one stage has no future; the long-horizon score is not defined.")
    elif probe == "" and alpha > 0:
        alpha = 0.0
        notes.append(
            f"{view}: no adaptation curve was measured; the long-horizon score leaves the AUC term out (α = 0)."
        )
    elif probe == "own" and alpha > 0:
        notes.append(f"{view}: only the own probe was measured; the long-horizon score uses its AUC.")
    if gamma > 0 and np.isnan(R[:, T, T:]).all():
        gamma = 0.0
        notes.append(f"{view}: no OOD set was measured; the long-horizon score leaves the OOD term out (γ = 0).")
    return longhorizon.LongHorizonTerms(probe, alpha, spec.beta, gamma)


def _head_room(views: Mapping[str, View], oracle: Scorecard | None, trials: Trials, reference: str) -> pd.DataFrame:
    """`Scorecard.head_room`, over the seeds that both have."""
    rows = []
    for name in views if oracle is not None and reference in trials.selectors else ():
        if oracle is None or name not in oracle.views:
            continue
        for metric in (IMMEDIATE, "long_horizon"):
            plain = trials.grid(views[name].metrics[metric])[trials.selectors.index(reference)]
            looking = dict(
                zip(oracle.trials.seeds, oracle.trials.grid(oracle.views[name].metrics[metric])[0], strict=True)
            )
            pair = paired(np.array([looking.get(seed, np.nan) for seed in trials.seeds]), plain, unit_of=trials.unit_of)
            rows.append((name, metric, *(float(x) for x in (pair.mean, pair.ci_low, pair.ci_high)), int(pair.n)))
    return pd.DataFrame(rows, columns=["view", "metric", "diff", "ci_low", "ci_high", "n"])


def _head_room_notes(table: pd.DataFrame, reference: str) -> list[str]:
    """What the oracle gains, in words, by each task's own scorer."""
    rows = table[(table["view"] == PRIMARY) & (table["n"] > 0)].set_index("metric").to_dict("index")
    if not rows:
        return []

    def words(metric: str) -> str:
        row = rows[metric]
        mean, low, high = (METRICS[metric].scale * float(row[name]) for name in ("diff", "ci_low", "ci_high"))
        interval = f", 95 % interval {low:+.1f} to {high:+.1f}" if np.isfinite([low, high]).all() else ""
        return f"{mean:+.1f} points (n = {int(row['n'])}{interval})"

    return [
        f"Head-room of selection: an oracle, which picks by the gradients of the evaluation items, differs from "
        f"{reference} by {words('long_horizon')} in the long run and {words(IMMEDIATE)} now."
    ]


def _floor_notes(views: Mapping[str, View], trials: Trials, margin: float) -> list[str]:
    """A note for each view in which no selector learns anything: nobody is ``margin`` points above the base model."""
    notes = []
    for name, view in views.items():
        above = over_measured(matrix.diagonal(view.R) - view.R[:, 0, : matrix.stage_count(view.R)])
        means = moments(trials.grid(above))[1]
        if not np.isnan(means).all() and np.nanmax(means) < margin:
            notes.append(
                f"{name}: right after the stages no selector is {margin:g} point(s) above the base model "
                f"({trials.selectors[int(np.nanargmax(means))]} has the most: {np.nanmax(means):+.1f}). Nothing is "
                "learned by this score, so its differences show forgetting and noise."
            )
    return notes


def _set_gap(views: Mapping[str, View], trials: Trials) -> pd.DataFrame:
    """`Scorecard.set_gap`, over the seeds in which every selector has both scores."""
    rows = []
    for name, view in views.items():
        later = trials.grid(view.metrics["long_horizon"]).T  # (seeds, selectors)
        for immediate in ("current", "immediate_gain"):
            now = trials.grid(view.metrics[immediate]).T
            complete = ~(np.isnan(now) | np.isnan(later)).any(axis=1)
            gap = float("nan")
            if complete.any():
                gap = float(longhorizon.myopia_gap(now[complete].mean(axis=0), later[complete].mean(axis=0)))
            single = unit_means(longhorizon.myopia_gap(now, later), trials.unit_of)
            n, mean, sd = moments(single)
            interval = [float(mean), float("nan"), float("nan")]
            if len(trials.selectors) > 1:
                top = longhorizon.largest_gap(len(trials.selectors))
                interval[1:] = map(float, share_interval(mean, sd, n, 0.95, top))
            rows.append((name, immediate, gap, len(trials.selectors), int(complete.sum()), *interval))
    columns = ["view", "immediate", "gap", "selectors", "seeds", "seed_gap", "ci_low", "ci_high"]
    return pd.DataFrame(rows, columns=columns)


def _reversals(views: Mapping[str, View], trials: Trials) -> pd.DataFrame:
    rows = []
    for name, view in views.items():
        now, later = trials.grid(view.metrics[IMMEDIATE]).T, trials.grid(view.metrics["long_horizon"]).T
        for pair in rank_reversals(now, later, trials.selectors, unit_of=trials.unit_of):
            a, b = pair.immediate, pair.long
            rows.append((name, pair.ahead, pair.behind, a.mean, a.p, b.mean, b.p, min(a.n, b.n)))
    columns = ["view", "ahead", "behind", "immediate_diff", "immediate_p", "long_diff", "long_p", "n"]
    return pd.DataFrame(rows, columns=columns)


def _sensitivity(views: Mapping[str, View], trials: Trials, spec: MetricSpec) -> pd.DataFrame:
    """`Scorecard.sensitivity`; a term that the view leaves out counts the same for every selector."""
    rows = []
    for name, view in views.items():
        terms = view.terms
        parts = [view.metrics[key] for key in ("final", f"auc_{terms.probe or 'common'}", "forgetting", "ood")]
        used = (True, terms.probe != "", True, not np.isnan(view.metrics["ood"]).all())
        tables = [trials.grid(part if use else np.zeros(len(trials))) for part, use in zip(parts, used, strict=True)]
        common = ~np.isnan(np.stack(tables)).any(axis=(0, 1))  # seeds in which every selector has every term
        means = [moments(table[:, common])[1] for table in tables]
        weight = spec.alpha + spec.beta + spec.gamma
        share = longhorizon.weight_sensitivity(*means, total=weight if weight > 0 else 3.0)
        rows += [(name, selector, float(value)) for selector, value in zip(trials.selectors, share, strict=True)]
    return pd.DataFrame(rows, columns=["view", "selector", "share"])


def _thresholds(views: Mapping[str, View], tasks: Sequence[str]) -> pd.DataFrame:
    rows = [
        (name, kind, t + 1, tasks[t + 1], float(points))
        for name, view in views.items()
        for kind, probe in view.probes.items()
        for t, points in enumerate(probe.threshold)
    ]
    return pd.DataFrame(rows, columns=["view", "probe", "stage", "task", "points"])
