"""What a stage's selection and training took: tokens and FLOPs, told from what was decided (no torch here).

Counted is what would have to be computed, whoever computed it: signals that were read from a cache or that the trials
of a seed share count in full for every selector that reads them. Seconds (`TrainingReport.seconds`) are what was spent.
"""

from __future__ import annotations

import numpy as np

from longgame.data.examples import Pool
from longgame.selectors.base import Selector
from longgame.selectors.from_scores import FromScores
from longgame.selectors.interventions import Intervention
from longgame.selectors.policy import SelectionPolicy
from longgame.signals.base import SIGNALS
from longgame.training.base import TrainingReport

GRADIENT = ("grad_sketch",)
"""What the future proxy and the diagnostics are measured by."""


def stage_work(
    report: TrainingReport, policy: SelectionPolicy, pool: Pool, proxy: Pool | None, epochs: int
) -> dict[str, float]:
    """Tokens and FLOPs of one stage, after it was trained.

    Args:
        report: of the stage; without ``model`` (a closed form) there are no FLOPs among the results.
        policy: with the stage's rounds.
        pool: the stage's candidates.
        proxy: the future-proxy mixture, where there is one.
        epochs: passes over what a round picked.

    Returns:
        ``pool_tokens``; ``scored_tokens``, those that the model read in order to choose (candidates, each time they
        were scored, the frozen pass over the pool, and proxy items); ``score_flops`` for them, ``frozen_flops`` of
        these for the frozen pass; ``train_flops``; ``diagnose_flops`` for gradients that only the diagnostics read.
        What a `FromScores` selector's file cost is not known: NaN.
    """
    held = policy.learnable(pool)
    live = [name for name in policy.required if name in SIGNALS and SIGNALS[name].live]
    frozen = [name for name in policy.required if name in SIGNALS and not SIGNALS[name].live and name != "quality"]
    scored = [held.take([held.index[name] for name in entry.candidate_ids]) for entry in policy.rounds] if live else []
    picked = [held.take([held.index[name] for name in entry.selection.ids]) for entry in policy.rounds]
    passes = report.proxy_passes if proxy is not None else 0
    tokens = sum(_tokens(part) for part in scored) + (_tokens(pool) if frozen else 0)
    tokens += passes * _tokens(proxy) if proxy is not None else 0
    known = np.nan if _scored_elsewhere(policy.selector) else 1.0
    found = {"pool_tokens": float(_tokens(pool)), "scored_tokens": known * tokens}
    model = report.model
    if model is None:
        return found
    still = float(model.scoring(pool, frozen).sum())
    flops = still + sum(float(model.scoring(part, live).sum()) for part in scored)
    if passes and proxy is not None:
        flops += passes * float(model.scoring(proxy, GRADIENT).sum())
    measured = [
        part
        for part, entry in zip(picked, policy.rounds, strict=True)
        if entry.gradients is not None and GRADIENT[0] not in entry.signals
    ]
    return found | {
        "score_flops": known * flops,
        "frozen_flops": known * still,
        "train_flops": epochs * sum(float(model.training(part).sum()) for part in picked),
        "diagnose_flops": sum((float(model.scoring(part, GRADIENT).sum()) for part in measured), 0.0),
    }


def _tokens(pool: Pool) -> int:
    return int(pool.tokens.sum())


def _scored_elsewhere(selector: Selector) -> bool:
    """Whether the choice rests on scores that another system made."""
    while isinstance(selector, Intervention):
        selector = selector.inner
    return isinstance(selector, FromScores)
