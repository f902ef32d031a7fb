"""What each metric of a scorecard is called, its unit, and which way is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric of the scorecard."""

    name: str
    label: str
    unit: str
    better: Literal["higher", "lower", ""]
    """Empty: a spread, a diagnostic or a cost, which explains and does not judge."""
    group: Literal["score", "diagnostic", "cost"]
    meaning: str


def _probe(kind: str) -> tuple[Metric, ...]:
    say = "shared random" if kind == "common" else "the selector's own"
    return (
        Metric(f"auc_{kind}", f"future AUC ({kind})", "0–1", "higher", "score", f"adaptation on {say} picks"),
        Metric(f"auc_start_{kind}", f"AUC start ({kind})", "0–1", "higher", "score", "what it owes to the start"),
        Metric(f"auc_gain_{kind}", f"AUC gain ({kind})", "0–1", "higher", "score", "what it owes to learning"),
        Metric(
            f"tokens_to_threshold_{kind}", f"tokens to threshold ({kind})", "tokens", "lower", "score",
            "mean over transitions; a fork that starts above it needs 0",
        ),
        Metric(
            f"tokens_ratio_{kind}", f"tokens / reference ({kind})", "ratio", "lower", "score",
            "tokens to threshold over the reference's mean",
        ),
        Metric(
            f"threshold_reached_{kind}", f"threshold reached ({kind})", "share", "higher", "score",
            "share of the transitions on which the threshold was reached",
        ),
    )  # fmt: skip


_TABLE = (
    Metric("current", "current score", "points", "higher", "score", "mean of R[t,t]"),
    Metric(
        "current_sd_stages",
        "sd over stages",
        "points",
        "",
        "score",
        "stability: sd of R[t,t] over the stages (over seeds it is the ± of the current score)",
    ),
    Metric("immediate_gain", "immediate gain", "points", "higher", "score", "mean of R[t,t] − R[t−1,t] (eq. 1)"),
    Metric("final", "final score", "points", "higher", "score", "mean of R[T,1…T]"),
    *_probe("common"),
    *_probe("own"),
    Metric("forgetting", "forgetting", "points", "lower", "score", "mean drop from the best (or first) earlier score"),
    Metric("forward_transfer", "forward transfer", "points", "higher", "score", "mean of R[j−1,j] − R[0,j], j ≥ 2"),
    Metric("backward_transfer", "backward transfer", "points", "higher", "score", "mean of R[T,j] − R[j,j], j < T"),
    Metric("imbalance", "capability imbalance", "points", "lower", "score", "population sd of R[T,1…T]"),
    Metric("worst_task", "worst task", "points", "higher", "score", "min of R[T,1…T]"),
    Metric("ood", "OOD score", "points", "higher", "score", "mean of the last row over the OOD sets"),
    Metric("long_horizon", "long-horizon score", "0–1", "higher", "score", "eq. 2, normalised"),
    Metric("myopia_gap", "myopia gap", "0–1", "lower", "score", "mean rank difference over transitions, /(K−1)"),
    Metric("capability_entropy", "capability entropy", "nats", "", "diagnostic", "spread of the picks over clusters"),
    Metric("selection_concentration", "selection concentration", "0–1", "", "diagnostic", "eq. 4 over picks"),
    Metric("update_concentration", "update concentration", "0–1", "", "diagnostic", "eq. 4 over optimiser updates"),
    Metric("adapter_drift", "adapter drift", "0–2", "", "diagnostic", "1 − cos of a stage's update with the past"),
    Metric("update_norm", "update norm", "weight", "", "diagnostic", "Frobenius norm of a stage's update"),
    Metric("difficulty", "mean difficulty", "percentile", "", "diagnostic", "pool percentile of base-model NLL"),
    Metric("quality", "mean quality", "0–1", "", "diagnostic", "quality of the picks"),
    Metric("noisy_share", "noisy share", "share", "", "diagnostic", "share of picked tokens that are noise"),
    Metric("pool_tokens", "pool tokens", "tokens", "", "cost", "tokens of the candidates"),
    Metric(
        "scored_tokens",
        "scored tokens",
        "tokens",
        "",
        "cost",
        "tokens that the model read in order to choose, each time it did",
    ),
    Metric("selected_tokens", "selected tokens", "tokens", "", "cost", "tokens the selector spent"),
    Metric("optimiser_tokens", "optimiser tokens", "tokens", "", "cost", "tokens that went through the optimiser"),
    Metric(
        "candidate_tokens",
        "candidate tokens",
        "tokens",
        "",
        "cost",
        "tokens offered to choose from, each time they were",
    ),
    Metric(
        "score_flops", "scoring FLOPs", "FLOP", "", "cost", "signals, proxy gradients and frozen pass, cached or not"
    ),
    Metric("frozen_flops", "of these frozen", "FLOP", "", "cost", "the pass over the pool that a seed's trials share"),
    Metric("train_flops", "training FLOPs", "FLOP", "", "cost", "forward and backward over the picks"),
    Metric("flops_share", "scoring / training FLOPs", "share", "", "cost", "scoring FLOPs over training FLOPs"),
    Metric("diagnose_flops", "diagnostics FLOPs", "FLOP", "", "cost", "gradients for selection concentration"),
    Metric("train_seconds", "training time", "s", "", "cost", "wall-clock of the training steps"),
    Metric("select_seconds", "selection time", "s", "", "cost", "wall-clock of signals and selector"),
    Metric("seconds_share", "selection / training time", "share", "", "cost", "selection time over training time"),
    Metric(
        "diagnose_seconds", "diagnostics time", "s", "", "cost", "wall-clock of gradients for selection concentration"
    ),
    Metric("evaluate_seconds", "evaluation time", "s", "", "cost", "wall-clock of scoring"),
    Metric("probe_seconds", "probe time", "s", "", "cost", "wall-clock of the probes"),
)
METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _TABLE}
"""Every metric a scorecard computes, in the order tables show them; records may name further diagnostics and costs."""
