"""How fast does the model still learn? A fork is trained briefly on the next stage and scored on the way."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from longgame.data.examples import Pool, SequenceData, StageData
from longgame.protocol.learner import Learner
from longgame.protocol.reserve import reserve_of
from longgame.recipe import Recipe
from longgame.seeding import generator, stream_seed
from longgame.selectors.base import build_selector
from longgame.selectors.history import History
from longgame.selectors.interventions import Reserve
from longgame.selectors.policy import SelectionPolicy
from longgame.training.base import Schedule, StepInfo, stage_order

Notify = Callable[[str, StepInfo], None]
"""(activity, step) → nothing; told of every optimiser step."""


def probe_steps(steps: int, points: int) -> list[int]:
    """Optimiser steps after which a probe is scored: ``points`` of them, evenly from 0 to ``steps``."""
    return sorted({round(float(step)) for step in np.linspace(0, steps, points)})


def probe_pool(pool: Pool, recipe: Recipe, seed: int, stage: int) -> Pool:
    """The part of the next stage's pool that probes see: as many candidates a step as in the stage itself.

    It is the same for every selector of a seed, and drawn by a stream of its own.
    """
    share = min(1.0, recipe.probe.steps / recipe.training.steps)
    keep = max(recipe.probe.steps, round(share * len(pool)))
    return pool.take(np.sort(stage_order(pool, generator(seed, "probe-pool", stage))[:keep]))


def run_probes(
    learner: Learner,
    sequence: SequenceData,
    stage: int,
    policy: SelectionPolicy,
    recipe: Recipe,
    seed: int,
    notify: Notify,
) -> list[dict[str, Any]]:
    """Measure the early learning curve on the stage after ``stage`` (paper §4.1; FORMULAS: future AUC).

    ``common`` trains every selector's model on the same uniform sample and so isolates the state the selector left;
    ``own`` lets the selector pick, with copies of its state and history. The learner is left as it was.

    Returns:
        Tidy rows of kind ``curve``: points 0–100 at selected-token counts, per scorer and sub-skill, and their macro
        mean (sub-skill "").
    """
    following = sequence.stages[stage]
    pool = probe_pool(learner.pool(following.candidates), recipe, seed, stage)
    replayed = reserve_of(learner, sequence, stage + 1, pool, recipe, seed) if policy.replays else None
    rows: list[dict[str, Any]] = []
    for kind in recipe.probe.kinds:
        chooser = _policy(kind, policy, seed, stage, replayed)
        with learner.fork() as fork:
            rows += _curve(fork, pool, following, kind, chooser, recipe, seed, stage, notify)
    return rows


def _curve(
    fork: Learner,
    pool: Pool,
    following: StageData,
    kind: str,
    policy: SelectionPolicy,
    recipe: Recipe,
    seed: int,
    stage: int,
    notify: Notify,
) -> list[dict[str, Any]]:
    common = kind == "common"
    rounds = recipe.rounds if recipe.rounds == "step" else min(recipe.rounds, recipe.probe.steps)
    schedule = Schedule(
        steps=recipe.probe.steps,
        budget=recipe.budget,
        rounds="step" if common else rounds,
        epochs=1 if common else recipe.training.epochs,
        seed=stream_seed(seed, "probe", stage),
    )
    at = probe_steps(recipe.probe.steps, recipe.probe.points)
    rows: list[dict[str, Any]] = []

    def measure(info: StepInfo) -> None:
        notify(f"probe {kind}", info)
        if info.step in at:
            scores = fork.score([following.task])
            rows.extend(_point(score.sub_skill, score.scorer, score.value, kind, info, following) for score in scores)
            for scorer in dict.fromkeys(score.scorer for score in scores):
                measured = [s.value for s in scores if s.scorer == scorer and s.items]
                macro = float(np.mean(measured)) if measured else float("nan")
                rows.append(_point("", scorer, macro, kind, info, following))

    fork.train(pool, policy, schedule, measure)
    return rows


def _point(
    sub_skill: str, scorer: str, value: float, kind: str, info: StepInfo, following: StageData
) -> dict[str, Any]:
    return {
        "kind": "curve",
        "task": following.task.name,
        "task_kind": following.task.kind,
        "sub_skill": sub_skill,
        "scorer": scorer,
        "probe": kind,
        "step": info.step,
        "tokens": info.selected_tokens,
        "name": "score",
        "value": value,
        "unit": "points",
    }


def _policy(kind: str, policy: SelectionPolicy, seed: int, stage: int, replayed: Reserve | None) -> SelectionPolicy:
    """The policy of a probe: uniform and common to all selectors, or a copy of the trial's own."""
    rng = generator(seed, "probe-select", stage)
    if kind == "common":
        return SelectionPolicy(build_selector("random"), History(), rng)
    own = copy.deepcopy(policy)
    own.begin_stage(rng, replayed)
    own.gradient_every = 0
    return own
