"""Every metric of a scorecard, named once: how it is computed, what it is called, and which tables show it.

To add a metric, add one entry to ``_TABLE``. The scorecard computes it, its tables have a column for it, and the
report and ``docs/metrics.md`` describe it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from longgame.metrics import longhorizon, matrix
from longgame.metrics.diagnostics import picks_entropy
from longgame.metrics.stats import moments
from longgame.metrics.tidy import PROBES, View, over_measured

PerTrial = Float[np.ndarray, " trials"]
ByStage = Float[np.ndarray, "trials stages"]
ShownIn = Literal["main", "level 1", "level 2", "more", "diagnostics", "costs", "interventions"]
"""Tables of a report: the scorecard (paper's Table 1), the two levels of §5.1, further scores, Table 2, costs, and what
each intervention buys."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric of the scorecard."""

    name: str
    label: str
    short: str
    """Label for narrow columns."""
    unit: str
    better: Literal["higher", "lower", ""]
    """Empty: a spread, a diagnostic or a cost, which explains and does not judge."""
    group: Literal["score", "diagnostic", "cost"]
    meaning: str
    tables: tuple[ShownIn, ...] = ()
    function: Callable[[View], PerTrial] | None = None
    """One value per trial of a view, for a score; it may read ``view.metrics`` of entries above its own. Without a
    function the records of this name are reduced: a diagnostic to its mean over stages, a cost to its sum."""
    by_stage: Callable[[View], ByStage] | None = None
    """Per trial, the values of stages 1, 2 …, where the metric has any."""
    share_of: tuple[str, str] | None = None
    """Two costs: the metric is the first over the second."""

    @property
    def shown_unit(self) -> str:
        """The unit that reports show: a score from 0 to 1 is shown in points of 100, like the scores of tasks."""
        return "points" if self.group == "score" and self.unit == "0–1" else self.unit

    @property
    def scale(self) -> float:
        """What a value is multiplied by to be in ``shown_unit``."""
        return 1.0 if self.shown_unit == self.unit else 100.0

    @property
    def largest_difference(self) -> float:
        """Largest difference of two values that the unit allows; ``inf`` where it has no bounds."""
        bounds = {"points": 100.0, "0–1": 1.0, "share": 1.0, "percentile": 1.0, "0–2": 2.0, "−1–1": 2.0}
        return bounds.get(self.unit, float("inf"))


def _score(
    name: str,
    label: str,
    unit: str,
    better: Literal["higher", "lower", ""],
    meaning: str,
    function: Callable[[View], PerTrial],
    *tables: ShownIn,
    by_stage: Callable[[View], ByStage] | None = None,
    short: str = "",
) -> Metric:
    return Metric(name, label, short or label, unit, better, "score", meaning, tables, function, by_stage)


def _diagnostic(name: str, label: str, short: str, unit: str, meaning: str, *tables: ShownIn) -> Metric:
    return Metric(name, label, short, unit, "", "diagnostic", meaning, tables)


def _cost(
    name: str,
    label: str,
    short: str,
    unit: str,
    meaning: str,
    *tables: ShownIn,
    share_of: tuple[str, str] | None = None,
) -> Metric:
    return Metric(name, label, short, unit, "", "cost", meaning, ("costs", *tables), share_of=share_of)


def _tokens_ratio(view: View, kind: str) -> PerTrial:
    """Tokens to threshold over the reference's mean over its measured seeds; NaN without the reference."""
    tokens, trials = view.metrics[f"tokens_to_threshold_{kind}"], view.trials
    unit = float("nan")
    if view.reference in trials.selectors:
        unit = float(moments(trials.grid(tokens)[trials.selectors.index(view.reference)])[1])
    return longhorizon.threshold_ratio(tokens, unit)


def _threshold_reached(view: View, kind: str) -> PerTrial:
    tokens = view.probes[kind].tokens
    return over_measured(np.where(np.isnan(tokens), np.nan, np.isfinite(tokens)))


def _median_task(view: View) -> PerTrial:
    final = matrix.final_row(view.R)[:, matrix.measured_columns(view.R)[: matrix.stage_count(view.R)]]
    return np.median(final, axis=1) if final.shape[1] else np.full(len(final), np.nan)


def _long_horizon(view: View) -> PerTrial:
    """Eq. 2 with the weights in force for this view; NaN with one stage, which has no future."""
    terms, metrics = view.terms, view.metrics
    if matrix.stage_count(view.R) == 1:
        return np.full(len(view.R), np.nan)
    return longhorizon.long_horizon_score(
        metrics["final"],
        metrics[f"auc_{terms.probe or 'common'}"],
        metrics["forgetting"],
        metrics["ood"],
        alpha=terms.alpha,
        beta=terms.beta,
        gamma=terms.gamma,
    )


def _myopia_gap(view: View, now: str) -> PerTrial:
    """The signed gap by this metric as the score of now."""
    trials = view.trials
    both = (trials.grid(view.metrics[name]).T for name in (now, "long_horizon"))
    return longhorizon.seed_myopia_gap(*both)[trials.seed_of, trials.selector_of]


def _imbalance(view: View) -> PerTrial:
    scale = matrix.best_seen(view.R) if view.task_scale is None else view.task_scale
    return matrix.capability_imbalance(view.R, scale)


# fmt: off
def _probe(kind: str) -> tuple[Metric, ...]:
    """Metrics of one kind of probe (`longgame.metrics.tidy.PROBES`)."""
    picks = "shared random picks" if kind == "common" else "the selector's own picks"
    tables: tuple[ShownIn, ...] = ("more",) if kind == "common" else ()
    return (
        _score(f"auc_{kind}", f"future AUC ({kind})", "0–1", "higher", f"adaptation on {picks}",
               lambda view: over_measured(view.probes[kind].auc), "main", "level 2",
               by_stage=lambda view: view.probes[kind].auc, short=f"AUC {kind}"),
        _score(f"auc_start_{kind}", f"AUC start ({kind})", "0–1", "higher", "part of the AUC owed to the start",
               lambda view: over_measured(view.probes[kind].start), *tables,
               by_stage=lambda view: view.probes[kind].start),
        _score(f"auc_gain_{kind}", f"AUC gain ({kind})", "0–1", "higher", "part of the AUC owed to learning",
               lambda view: over_measured(view.probes[kind].auc - view.probes[kind].start), *tables),
        _score(f"tokens_to_threshold_{kind}", f"tokens to threshold ({kind})", "tokens", "lower",
               "mean over transitions; a fork that starts above it needs 0",
               lambda view: over_measured(view.probes[kind].tokens), *tables,
               by_stage=lambda view: view.probes[kind].tokens),
        _score(f"tokens_ratio_{kind}", f"tokens / reference ({kind})", "ratio", "lower",
               "tokens to threshold over the reference's mean", lambda view: _tokens_ratio(view, kind), *tables),
        _score(f"threshold_reached_{kind}", f"threshold reached ({kind})", "share", "higher",
               "share of the transitions on which the threshold was reached",
               lambda view: _threshold_reached(view, kind), *tables),
    )


_TABLE = (
    _score("current", "current score", "points", "higher", "mean of R[t,t]",
           lambda view: matrix.current_score(view.R), "main", "level 1", "interventions",
           by_stage=lambda view: matrix.diagonal(view.R), short="current"),
    _score("ends", "ends", "points", "higher",
           "items on which the model ends its turn where the answer ends: mean of R[t,t] of the scorer `ends`",
           lambda view: matrix.current_score(view.ends), "main", "level 1",
           by_stage=lambda view: matrix.diagonal(view.ends)),
    _score("current_sd_stages", "sd over stages", "points", "",
           "stability: sd of R[t,t] over the stages (over seeds it is the ± of the current score)",
           lambda view: matrix.stage_spread(view.R), "level 1", short="sd stages"),
    _score("immediate_gain", "immediate gain", "points", "higher", "mean of R[t,t] − R[t−1,t] (eq. 1)",
           lambda view: matrix.mean_immediate_gain(view.R), "main", "level 1",
           by_stage=lambda view: matrix.immediate_gain(view.R), short="gain"),
    _score("final", "final score", "points", "higher", "mean of R[T,1…T]",
           lambda view: matrix.final_score(view.R), "more", by_stage=lambda view: matrix.final_row(view.R)),
    *(metric for kind in PROBES for metric in _probe(kind)),
    _score("forgetting", "forgetting", "points", "lower", "mean drop from the best earlier score, row 0 included",
           lambda view: matrix.forgetting(view.R, view.forgetting_reference), "main", "level 2", "interventions",
           by_stage=lambda view: matrix.forgetting_per_task(view.R, view.forgetting_reference)),
    _score("forward_transfer", "forward transfer", "points", "higher", "mean of R[j−1,j] − R[0,j], j ≥ 2",
           lambda view: matrix.forward_transfer(view.R), "more"),
    _score("backward_transfer", "backward transfer", "points", "higher", "mean of R[T,j] − R[j,j], j < T",
           lambda view: matrix.backward_transfer(view.R), "more"),
    _score("imbalance", "capability imbalance", "0–1", "lower",
           "population sd over tasks of R[T,j] / the task's all-data (else best seen) score", _imbalance, "more",
           short="imbalance"),
    _score("imbalance_gain", "imbalance of gains", "points", "lower", "population sd over tasks of R[T,j] − R[0,j]",
           lambda view: matrix.gain_imbalance(view.R), "more", short="imb. gains"),
    _score("imbalance_raw", "imbalance, raw", "points", "lower",
           "population sd of R[T,1…T]; also counts how hard the tasks are",
           lambda view: matrix.capability_imbalance(view.R), "more", short="imb. raw"),
    _score("ood", "OOD score", "points", "higher", "mean of the last row over the OOD sets",
           lambda view: matrix.ood_score(view.R), "main", "level 2", "interventions", short="OOD"),
    _score("worst_task", "worst task", "points", "higher", "min of R[T,1…T]",
           lambda view: matrix.worst_task(view.R), "main", "level 2"),
    _score("median_task", "median task", "points", "higher", "median of R[T,1…T]",
           _median_task, "more"),
    _score("long_horizon", "long-horizon score", "0–1", "higher", "eq. 2, normalized",
           _long_horizon, "main", "level 2", "interventions", short="long horizon"),
    _score("myopia_gap", "myopia gap", "−1–1", "",
           "(rank in the long run − rank by the current score)/(K−1): positive where a selector ranks worse later",
           lambda view: _myopia_gap(view, "current"), "main", "level 2"),
    _score("myopia_gap_gain", "myopia gap by gain", "−1–1", "", "the same with eq. 1's gain as the score of now",
           lambda view: _myopia_gap(view, "immediate_gain"), "more", short="gap by gain"),

    _diagnostic("capability_entropy", "capability entropy", "entropy", "nats",
                "spread of the picks over clusters, mean over stages", "diagnostics"),
    _diagnostic("capability_entropy_run", "capability entropy, run", "entropy run", "nats",
                "spread over clusters of the picks of all stages together (level of Table 2)", "diagnostics"),
    _diagnostic("sub_skill_entropy", "sub-skill entropy", "skill entropy", "nats",
                "spread of the picks over known sub-skills, mean over stages", "diagnostics"),
    _diagnostic("sub_skill_entropy_run", "sub-skill entropy, run", "skill run", "nats",
                "spread over known sub-skills of the picks of all stages together", "diagnostics"),
    _diagnostic("difficulty", "mean difficulty", "difficulty", "percentile", "pool percentile of base-model NLL",
                "diagnostics"),
    _diagnostic("quality", "mean quality", "quality", "0–1", "quality of the picks", "diagnostics"),
    _diagnostic("update_concentration", "update concentration", "update conc.", "0–1",
                "eq. 4 over the gradients of the steps", "diagnostics", "level 2"),
    _diagnostic("update_concentration_null", "update concentration, null", "update null", "0–1",
                "the same with directions at random", "diagnostics", "level 2"),
    _diagnostic("update_concentration_unit", "update concentration, unit", "update unit", "0–1",
                "the same at unit length", "diagnostics"),
    _diagnostic("update_concentration_unit_null", "update concentration, unit null", "update unit null", "0–1",
                "at unit length with directions at random", "diagnostics"),
    _diagnostic("selection_concentration", "selection concentration", "selection conc.", "0–1",
                "eq. 4 over picks, at one number of picks", "diagnostics"),
    _diagnostic("selection_concentration_unit", "selection concentration, unit", "selection unit", "0–1",
                "the same on gradients of unit length", "diagnostics"),
    _diagnostic("selection_concentration_null", "selection concentration, null", "selection null", "0–1",
                "at unit length with directions at random", "diagnostics"),
    _diagnostic("adapter_drift", "adapter drift", "drift", "0–2", "1 − cos of a stage's update with the past",
                "diagnostics"),
    _diagnostic("update_norm", "update norm", "update norm", "weight", "Frobenius norm of a stage's update", "level 1"),
    _diagnostic("noisy_share", "noisy share", "noisy share", "share", "share of picked tokens that are noise",
                "diagnostics"),
    _diagnostic("tied_share", "tied at the cut", "tied", "share",
                "candidates with the score at which the budget ends, among which ids decide", "diagnostics"),

    _cost("pool_tokens", "pool tokens", "pool", "tokens", "tokens of the candidates"),
    _cost("candidate_tokens", "candidate tokens", "offered", "tokens",
          "tokens offered to choose from, each time they were"),
    _cost("scored_tokens", "scored tokens", "scored", "tokens",
          "tokens that the model read in order to choose, each time it did"),
    _cost("selected_tokens", "selected tokens", "selected", "tokens", "tokens the selector spent", "level 1"),
    _cost("response_tokens", "response tokens", "response", "tokens",
          "response tokens of the picks: those that the loss is taken over", "level 1"),
    _cost("optimiser_tokens", "optimizer tokens", "optimizer", "tokens", "tokens that went through the optimizer"),
    _cost("score_flops", "scoring FLOPs", "scoring FLOPs", "FLOP",
          "signals, proxy gradients and frozen pass, cached or not", "level 1"),
    _cost("frozen_flops", "of these frozen", "of these frozen", "FLOP",
          "the pass over the pool that a seed's trials share"),
    _cost("replay_flops", "of these replay", "of these replay", "FLOP",
          "losses of earlier examples that the choice of replay reads"),
    _cost("warmup_flops", "of these warm-up", "of these warm-up", "FLOP",
          "a warm-up training, and gradients under its checkpoints (LESS)"),
    _cost("reference_flops", "of these reference", "of these reference", "FLOP",
          "the training of a reference model, and the losses under it (RHO)"),
    _cost("log_flops", "of these log", "of these log", "FLOP",
          "a training on the pool for its log, and the losses after each epoch"),
    _cost("scorer_flops", "of these scorer", "of these scorer", "FLOP", "losses under a scorer model"),
    _cost("embedder_flops", "of these embedder", "of these embedder", "FLOP", "the pool's texts through an embedder"),
    _cost("judge_tokens", "judge tokens", "judge tokens", "tokens", "tokens that a judge read and wrote"),
    _cost("train_flops", "training FLOPs", "train FLOPs", "FLOP", "forward and backward over the picks"),
    _cost("flops_share", "scoring / training FLOPs", "FLOPs share", "share", "scoring FLOPs over training FLOPs",
          "level 1", share_of=("score_flops", "train_flops")),
    _cost("diagnose_flops", "diagnostics FLOPs", "diagnose FLOPs", "FLOP", "gradients for selection concentration"),
    _cost("train_seconds", "training time", "train s", "s", "wall-clock of the training steps", "level 1"),
    _cost("select_seconds", "selection time", "select s", "s", "wall-clock of signals and selector", "level 1"),
    _cost("seconds_share", "selection / training time", "time share", "share", "selection time over training time",
          "level 1", share_of=("select_seconds", "train_seconds")),
    _cost("diagnose_seconds", "diagnostics time", "diagnose s", "s",
          "wall-clock of gradients for selection concentration"),
    _cost("evaluate_seconds", "evaluation time", "evaluate s", "s", "wall-clock of scoring"),
    _cost("replay_seconds", "replay time", "replay s", "s", "wall-clock of the losses that replay reads"),
    _cost("probe_seconds", "probe time", "probe s", "s", "wall-clock of the probes"),
)
# fmt: on
METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _TABLE}
"""Every metric by name, in the order in which tables show them. Records may name further diagnostics and costs."""


def shown_in(table: ShownIn) -> tuple[str, ...]:
    """Names of the metrics that a table of a report shows, in its order."""
    return tuple(name for name, metric in METRICS.items() if table in metric.tables)


def measure(view: View) -> View:
    """The view with every score metric in it, per trial and per stage."""
    for name, metric in METRICS.items():
        if metric.function is not None:
            view.metrics[name] = metric.function(view)
        if metric.by_stage is not None:
            view.stagewise.update({(name, t + 1): column for t, column in enumerate(metric.by_stage(view).T)})
    return view


def record_metrics(
    tables: Mapping[tuple[str, str], ByStage],
    picks: Mapping[str, Float[np.ndarray, "trials stages labels"]] | None = None,
) -> dict[str, PerTrial]:
    """Diagnostics and costs of every trial: means and sums over its stages, and one cost as a share of another.

    NaN where a stage was not measured that another trial measured, and for a share of nothing.

    Args:
        tables: (kind, name) → values by stage (`longgame.metrics.tidy.read_stagewise`).
        picks: selected tokens by cluster and sub-skill (`longgame.metrics.tidy.read_selected`).
    """
    values = {name: over_measured(table) for (kind, name), table in tables.items() if kind == "diagnostic"}
    values |= {name: over_measured(table, total=True) for (kind, name), table in tables.items() if kind == "cost"}
    for label, name in (("cluster", "capability_entropy"), ("sub_skill", "sub_skill_entropy")):
        if picks and label in picks:
            means, values[f"{name}_run"] = picks_entropy(picks[label])
            values.setdefault(name, means)
    for name, metric in METRICS.items():
        part, total = (values.get(cost) for cost in metric.share_of or ("", ""))
        if part is not None and total is not None:
            values[name] = part / np.where(total > 0, total, np.nan)
    return values


def metrics_table() -> str:
    """The catalog as a Markdown table (``docs/metrics.md``)."""
    lines = ["| metric | name in results | unit in results | better | meaning |", "|---|---|---|---|---|"]
    for metric in METRICS.values():
        unit = metric.unit if metric.scale == 1 else f"{metric.unit}, shown in {metric.shown_unit}"
        lines.append(f"| {metric.label} | `{metric.name}` | {unit} | {metric.better} | {metric.meaning} |")
    return "\n".join(lines)
