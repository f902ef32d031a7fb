"""From one value per trial to mean, spread and the paired comparison with the reference selector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import pandas as pd
from jaxtyping import Float

from longgame.errors import DataError, unknown
from longgame.metrics import longhorizon as ranking
from longgame.metrics import matrix
from longgame.metrics.association import association_table
from longgame.metrics.costs import (
    amount_notes,
    cost_values,
    missed_notes,
    spread_over_stages,
    unequal_amounts,
    with_amounts,
)
from longgame.metrics.curves import threshold_ratio
from longgame.metrics.longhorizon import long_horizon_score, weight_sensitivity
from longgame.metrics.stats import (
    Paired,
    bootstrap_interval,
    holm,
    minimum_detectable_effect,
    moments,
    paired,
    seeds_needed,
)
from longgame.metrics.tidy import (
    PROBES,
    Cube,
    Probe,
    Trials,
    over_measured,
    read_curves,
    read_scores,
    read_stagewise,
    read_trials,
    view_cube,
    view_probe,
)
from longgame.metrics.verdict import rank_reversals, verdict_table
from longgame.recipe import MetricSpec
from longgame.seeding import generator

ALPHA = 0.05
"""Level of the tests after Holm, on which marks, verdicts and what they could have shown rest."""

Key = TypeVar("Key", bound=tuple[object, ...])


def summarise(
    values: Mapping[Key, Float[np.ndarray, " trials"]],
    trials: Trials,
    reference: str,
    names: tuple[str, ...],
    *,
    bootstrap: int = 0,
) -> pd.DataFrame:
    """One row per key × selector: what the selector reached over its seeds, and how it differs from the reference.

    Args:
        values: per key (view, metric …), one value per trial.
        trials: who they belong to.
        reference: every other selector is compared with this one, paired by seed; if no trial has it, the comparison
            columns are NaN.
        names: column names of the key's parts.
        bootstrap: resamples of the seed bootstrap; 0 leaves its two columns out.

    Returns:
        selector, the key's columns, mean, sd (n − 1), n (seeds), diff_vs_reference, diff_n (pairs), ci_low, ci_high
        (95 % Student t), p (paired t), p_permutation (exact sign flip), p_holm (p adjusted over selectors, per key),
        mde (smallest true difference that diff_n seeds show with 80 % power whatever the other selectors show: at
        Holm's hardest level, 5 % / the key's tests), seeds_needed (by a true difference as large as the one seen, at
        the same level and power); with ``bootstrap``, boot_low and boot_high (95 %).
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
    pair = paired(table, against)
    columns: dict[str, np.ndarray] = {"selector": np.tile(np.asarray(trials.selectors, dtype=object), shape[0])}
    for position, name in enumerate(names):
        columns[name] = np.repeat(np.asarray([key[position] for key in keys], dtype=object), shape[1])
    numbers = {
        "mean": mean,
        "sd": sd,
        "n": n,
        "diff_vs_reference": pair.mean,
        "diff_n": pair.n,
        "ci_low": pair.ci_low,
        "ci_high": pair.ci_high,
        "p": pair.p,
        "p_permutation": pair.p_permutation,
        "p_holm": holm(pair.p),
    } | _planning(pair)
    if bootstrap:
        with np.errstate(invalid="ignore"):  # ∞ − ∞: a censored value stays one, see `paired`
            difference = np.where(np.isinf(table) | np.isinf(against), np.inf, table - against)
        low, high = bootstrap_interval(difference, bootstrap, generator(0, "seed bootstrap"))
        numbers |= {"boot_low": low, "boot_high": high}
    return pd.DataFrame(columns | {name: value.reshape(-1) for name, value in numbers.items()})


def _planning(pair: Paired) -> dict[str, np.ndarray]:
    """``mde`` and ``seeds_needed`` (keys × selectors), each key at its own family's level."""
    sd = np.where(np.isnan(pair.ci_low), np.nan, pair.sd)  # equal differences have no spread to plan with
    tests = (~np.isnan(pair.p)).sum(axis=-1)
    mde, needed = np.full(sd.shape, np.nan), np.full(sd.shape, np.nan)
    for family in np.unique(tests[tests > 0]):
        rows = tests == family
        level = ALPHA / int(family)
        mde[rows] = minimum_detectable_effect(sd[rows], pair.n[rows], level)
        needed[rows] = seeds_needed(pair.mean[rows], sd[rows], level)
    return {"mde": mde, "seeds_needed": needed}


def long_form(
    values: Mapping[Key, Float[np.ndarray, " trials"]], trials: Trials, names: tuple[str, ...]
) -> pd.DataFrame:
    """One row per key × trial: trial, selector, seed, the key's columns, value."""
    keys = list(values)
    who = trials.frame()
    columns = {name: np.tile(who[name].to_numpy(), len(keys)) for name in ("trial", "selector", "seed")}
    for position, name in enumerate(names):
        columns[name] = np.repeat(np.asarray([key[position] for key in keys], dtype=object), len(who))
    value = np.concatenate([values[key] for key in keys]) if keys else np.empty(0)
    return pd.DataFrame(columns | {"value": value})


# The scorecard: from the tidy results of a run to tables, comparisons and verdicts.

PRIMARY = "primary"
SCORER_VIEWS = ("token_accuracy", "exact_match")
IMMEDIATE = "current"
"""The immediate score of verdicts and rank reversals: mean R[t,t], what a single-stage comparison would report."""


@dataclass(frozen=True)
class LongHorizonTerms:
    """What the long-horizon score of a view was made of."""

    probe: str
    """``common``; ``own`` where only that probe was run; "" where there was none."""
    alpha: float
    beta: float
    gamma: float
    """Weights in force: 0 for a term that no trial measured, so that it is missing for all selectors alike."""


@dataclass(frozen=True)
class View:
    """One view's arrays, trial-aligned."""

    cube: Cube
    R: Float[np.ndarray, "trials rows cols"]
    probes: Mapping[str, Probe]
    terms: LongHorizonTerms
    scorer: Mapping[str, str]
    """Task → the scorer that fills its column."""
    metrics: Mapping[str, Float[np.ndarray, " trials"]] = field(default_factory=dict)
    stagewise: Mapping[tuple[str, int], Float[np.ndarray, " trials"]] = field(default_factory=dict)


@dataclass(frozen=True)
class Scorecard:
    """Tables of one run (build with `Scorecard.build`)."""

    tasks: tuple[str, ...]
    ood: tuple[str, ...]
    reference: str
    trials: Trials
    views: Mapping[str, View]
    """``primary``, then each of ``token_accuracy`` and ``exact_match`` that measured something."""
    per_trial: pd.DataFrame
    """trial, selector, seed, view, metric, value. ``myopia_gap`` is the seed's; the selector's is its mean."""
    summary: pd.DataFrame
    """selector, view, metric, mean, sd, n and the paired comparison with the reference (see `summarise`)."""
    per_stage: pd.DataFrame
    """trial, selector, seed, view, metric, stage, value: current, immediate_gain, final, forgetting, auc_* by stage
    (auc of stage t: learning stage t+1 after stage t)."""
    stage_summary: pd.DataFrame
    """As ``summary``, per stage."""
    set_gap: pd.DataFrame
    """view, immediate (``current`` or ``immediate_gain``), gap (eq. 3 on seed means), selectors, seeds (compared)."""
    verdicts: pd.DataFrame
    """view, selector, verdict, reason, power (what the seeds could have shown); without the reference, empty."""
    reversals: pd.DataFrame
    """view, ahead, behind, immediate_diff, immediate_p, long_diff, long_p, n: significant rank reversals."""
    sensitivity: pd.DataFrame
    """view, selector, share of the (α, β, γ) simplex on which the selector's seed mean ranks first."""
    thresholds: pd.DataFrame
    """view, probe, stage, task, points: the common threshold of each transition."""
    association: pd.DataFrame
    """Trajectory diagnostics against forgetting over all trials (see `association_table`)."""
    notes: tuple[str, ...]
    """What was left out or replaced, in words."""

    @classmethod
    def build(
        cls,
        results: pd.DataFrame,
        *,
        tasks: Sequence[str],
        ood: Sequence[str],
        primary: Mapping[str, str],
        metric_spec: MetricSpec,
        threshold: float,
        reference: str = "random",
    ) -> Scorecard:
        """Make the scorecard of one condition (one trial per selector and seed).

        Args:
            results: tidy records (columns of `longgame.audit.store.RECORD_COLUMNS`).
            tasks: the stages' tasks in order.
            ood: the OOD tasks.
            primary: each task's own scorer.
            metric_spec: weights of the long-horizon score, reference of forgetting.
            threshold: tokens-to-threshold asks for this share of the mean end-of-probe score.
            reference: the selector that the others are compared with.

        Raises:
            DataError: no measurement at all; an unknown task or stage; a measurement that stands twice; a task without
                primary scorer; two trials of one selector and seed.
        """
        columns = (*tasks, *ood)
        for task in columns:
            if task not in primary:
                raise DataError(f"task '{task}' has no primary scorer; known: {sorted(primary)}.")
        if not tasks or len(set(columns)) != len(columns):
            raise DataError(f"the columns of R are {list(columns)}; at least one stage and no name twice is needed.")
        trials = read_trials(results, reference)
        scores = read_scores(results, trials, columns, len(tasks))
        read = read_curves(results, trials, tasks)
        notes: list[str] = []
        if reference not in trials.selectors:
            notes.append(f"no trial of the reference selector '{reference}': nothing is compared with it.")
        views = {}
        for name in (PRIMARY, *SCORER_VIEWS):
            scorer = dict(primary) if name == PRIMARY else dict.fromkeys(columns, name)
            cube = view_cube(scores, trials, columns, len(tasks), scorer)
            R = cube.matrices(trials.seed_of)
            if np.isnan(R).all() and name != PRIMARY:
                continue
            probes = {kind: view_probe(read, trials, tasks, scorer, kind, threshold) for kind in PROBES}
            terms = _terms(name, R, probes, columns, metric_spec, notes)
            views[name] = _measure(View(cube, R, probes, terms, scorer), trials, reference, metric_spec)
        values = {(name, metric): value for name, view in views.items() for metric, value in view.metrics.items()}
        by_kind = read_stagewise(results, trials, len(tasks))
        values |= {("", name): over_measured(table) for (kind, name), table in by_kind.items() if kind == "diagnostic"}
        values |= {("", name): value for name, value in cost_values(by_kind).items()}
        stages = {(name, *key): value for name, view in views.items() for key, value in view.stagewise.items()}
        summary = summarise(values, trials, reference, ("view", "metric"), bootstrap=metric_spec.bootstrap)
        per_trial = long_form(values, trials, ("view", "metric"))
        by_stage = ("view", "metric", "stage")
        unequal = unequal_amounts(by_kind, trials, reference)
        verdicts = verdict_table(summary, tuple(views), trials.selectors, reference, IMMEDIATE)
        return cls(
            tasks=tuple(tasks),
            ood=tuple(ood),
            reference=reference,
            trials=trials,
            views=views,
            per_trial=per_trial,
            summary=summary,
            per_stage=long_form(stages, trials, by_stage),
            stage_summary=summarise(stages, trials, reference, by_stage),
            set_gap=_set_gap(views, trials),
            verdicts=with_amounts(verdicts, unequal),
            reversals=_reversals(views, trials),
            sensitivity=_sensitivity(views, trials, metric_spec),
            thresholds=_thresholds(views, tasks),
            association=association_table(per_trial, tuple(views)),
            notes=(*notes, *amount_notes(unequal), *missed_notes(by_kind, trials)),
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
        """Selectors × metrics of one summary column, e.g. mean; diagnostics and costs are found under any view.

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
            found = np.flatnonzero(of_selector & (self.trials.seed_of == self.trials.seeds.index(seed)))
            if found.size:
                return int(found[0])
        raise DataError(
            f"there is no trial of selector '{selector}' with seed {seed}. Selectors: "
            f"{', '.join(self.trials.selectors)}; seeds: {', '.join(map(str, self.trials.seeds))}."
        )


def _terms(
    view: str, R: np.ndarray, probes: Mapping[str, Probe], columns: Sequence[str], spec: MetricSpec, notes: list[str]
) -> LongHorizonTerms:
    """Decide, for all trials of a view alike, which terms its long-horizon score has; say what is left out."""
    T = matrix.stage_count(R)
    missing = [name for name, seen in zip(columns, matrix.measured_columns(R), strict=True) if not seen]
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
    return LongHorizonTerms(probe, alpha, spec.beta, gamma)


def _measure(view: View, trials: Trials, reference: str, spec: MetricSpec) -> View:
    """Compute every metric of a view for all trials at once."""
    R, T = view.R, matrix.stage_count(view.R)
    lost = matrix.forgetting_per_task(R, spec.forgetting_reference)
    gain = matrix.immediate_gain(R)
    metrics: dict[str, np.ndarray] = {
        "current": matrix.current_score(R),
        "current_sd_stages": spread_over_stages(matrix.diagonal(R)),
        "immediate_gain": matrix.mean_immediate_gain(R),
        "final": matrix.final_score(R),
    }
    stagewise = {("current", t + 1): column for t, column in enumerate(matrix.diagonal(R).T)}
    stagewise |= {("immediate_gain", t + 1): column for t, column in enumerate(gain.T)}
    stagewise |= {("final", t + 1): column for t, column in enumerate(R[:, T, :T].T)}
    stagewise |= {("forgetting", t + 1): column for t, column in enumerate(lost.T)}
    for kind, probe in view.probes.items():
        tokens = over_measured(probe.tokens)
        metrics[f"auc_{kind}"] = over_measured(probe.auc)
        metrics[f"auc_start_{kind}"] = over_measured(probe.start)
        metrics[f"auc_gain_{kind}"] = over_measured(probe.auc - probe.start)
        metrics[f"tokens_to_threshold_{kind}"] = tokens
        metrics[f"tokens_ratio_{kind}"] = threshold_ratio(tokens, _mean_of(tokens, trials, reference))
        reached = np.where(np.isnan(probe.tokens), np.nan, np.isfinite(probe.tokens))
        metrics[f"threshold_reached_{kind}"] = over_measured(reached)
        for name, table in (("auc", probe.auc), ("auc_start", probe.start), ("tokens_to_threshold", probe.tokens)):
            stagewise |= {(f"{name}_{kind}", t + 1): column for t, column in enumerate(table.T)}
    metrics |= {
        "forgetting": matrix.forgetting(R, spec.forgetting_reference),
        "forward_transfer": matrix.forward_transfer(R),
        "backward_transfer": matrix.backward_transfer(R),
        "imbalance": matrix.capability_imbalance(R),
        "worst_task": matrix.worst_task(R),
        "ood": matrix.ood_score(R),
    }
    terms = view.terms
    metrics["long_horizon"] = (
        np.full(len(R), np.nan)
        if T == 1
        else long_horizon_score(
            metrics["final"],
            metrics[f"auc_{terms.probe or 'common'}"],
            metrics["forgetting"],
            metrics["ood"],
            alpha=terms.alpha,
            beta=terms.beta,
            gamma=terms.gamma,
        )
    )
    by_seed = trials.grid(gain[:, : T - 1]).transpose(1, 2, 0)  # (seeds, transitions, selectors)
    gap = ranking.seed_myopia_gap(by_seed, trials.grid(metrics["long_horizon"]).T)
    metrics["myopia_gap"] = gap[trials.seed_of, trials.selector_of]
    return View(view.cube, R, view.probes, terms, view.scorer, metrics, stagewise)


def _mean_of(values: np.ndarray, trials: Trials, reference: str) -> float:
    """The reference's mean over its measured seeds; NaN where there is none."""
    if reference not in trials.selectors:
        return float("nan")
    return float(moments(trials.grid(values)[trials.selectors.index(reference)])[1])


def _complete(view: View, trials: Trials, immediate: str) -> tuple[np.ndarray, np.ndarray]:
    """Immediate and long-horizon score, seeds × selectors, of the seeds in which every selector has both."""
    now, later = trials.grid(view.metrics[immediate]).T, trials.grid(view.metrics["long_horizon"]).T
    complete = ~(np.isnan(now) | np.isnan(later)).any(axis=1)
    return now[complete], later[complete]


def _set_gap(views: Mapping[str, View], trials: Trials) -> pd.DataFrame:
    rows = []
    for name, view in views.items():
        for immediate in ("current", "immediate_gain"):
            now, later = _complete(view, trials, immediate)
            gap = float(ranking.myopia_gap(now.mean(axis=0), later.mean(axis=0))) if len(now) else float("nan")
            rows.append((name, immediate, gap, len(trials.selectors), len(now)))
    return pd.DataFrame(rows, columns=["view", "immediate", "gap", "selectors", "seeds"])


def _reversals(views: Mapping[str, View], trials: Trials) -> pd.DataFrame:
    rows = []
    for name, view in views.items():
        now, later = trials.grid(view.metrics[IMMEDIATE]).T, trials.grid(view.metrics["long_horizon"]).T
        for each in rank_reversals(now, later, trials.selectors):
            a, b = each.immediate, each.long
            rows.append((name, each.ahead, each.behind, a.mean, a.p, b.mean, b.p, min(a.n, b.n)))
    columns = ["view", "ahead", "behind", "immediate_diff", "immediate_p", "long_diff", "long_p", "n"]
    return pd.DataFrame(rows, columns=columns)


def _sensitivity(views: Mapping[str, View], trials: Trials, spec: MetricSpec) -> pd.DataFrame:
    """A term that the view leaves out counts the same for every selector, so it moves nobody's rank."""
    rows = []
    for name, view in views.items():
        terms = view.terms
        parts = [view.metrics[key] for key in ("final", f"auc_{terms.probe or 'common'}", "forgetting", "ood")]
        used = (True, terms.probe != "", True, not np.isnan(view.metrics["ood"]).all())
        tables = [trials.grid(part if keep else np.zeros(len(trials))) for part, keep in zip(parts, used, strict=True)]
        common = ~np.isnan(np.stack(tables)).any(axis=(0, 1))  # seeds in which every selector has every term
        means = [moments(table[:, common])[1] for table in tables]
        weight = spec.alpha + spec.beta + spec.gamma
        share = weight_sensitivity(*means, total=weight if weight > 0 else 3.0)
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
