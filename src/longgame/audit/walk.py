"""What a stage's selection and training took: tokens and FLOPs, told from what was decided (no torch here).

Counted is what would have to be computed, whoever computed it: signals that were read from a cache or that the trials
of a seed share count in full for every selector that reads them. Seconds (`TrainingReport.seconds`) are what was spent.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from longgame.audit.learner import Learner
from longgame.audit.picks import write_selection
from longgame.audit.plan import Trial
from longgame.audit.store import StageStore, records_table
from longgame.data.examples import Pool, SequenceData, Stage, Task
from longgame.errors import NumericalError, ResumeError
from longgame.evaluation.scorers import Score
from longgame.metrics.diagnostics import (
    capability_entropy,
    selection_concentration,
    token_weighted_mean,
    update_concentration,
)
from longgame.recipe import Recipe
from longgame.seeding import generator, stream_seed
from longgame.selection.base import Reserve, build_selector
from longgame.selection.history import History
from longgame.selection.interventions import selector_of
from longgame.selection.policy import SelectionPolicy
from longgame.signals.base import SIGNALS
from longgame.signals.flops import signal_flops, training_flops
from longgame.storage import read_arrays, read_json, read_state, write_arrays, write_state, write_table
from longgame.training.config import SelectionConfig
from longgame.training.schedule import StepInfo, TrainingReport, stage_order

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
        The cost of scores that another system made (`Selector.score_source`) is not known: NaN.
    """
    held = policy.learnable(pool)
    live = [name for name in policy.required if name in SIGNALS and SIGNALS[name].live]
    frozen = [name for name in policy.required if name in SIGNALS and "base" in SIGNALS[name].needs]
    scored = [held.take([held.index[name] for name in entry.candidate_ids]) for entry in policy.rounds] if live else []
    picked = [held.take([held.index[name] for name in entry.picked_ids]) for entry in policy.rounds]
    passes = report.proxy_passes if proxy is not None else 0
    tokens = sum(_tokens(part) for part in scored) + (_tokens(pool) if frozen else 0)
    tokens += passes * _tokens(proxy) if proxy is not None else 0
    known = np.nan if policy.selector.score_source else 1.0
    found = {"pool_tokens": float(_tokens(pool)), "scored_tokens": known * tokens}
    model = report.model
    if model is None:
        return found
    still = float(signal_flops(model, pool, frozen).sum())
    flops = still + sum(float(signal_flops(model, part, live).sum()) for part in scored)
    if passes and proxy is not None:
        flops += passes * float(signal_flops(model, proxy, GRADIENT).sum())
    measured = [
        part
        for part, entry in zip(picked, policy.rounds, strict=True)
        if entry.gradients is not None and GRADIENT[0] not in entry.signals
    ]
    return found | {
        "score_flops": known * flops,
        "frozen_flops": known * still,
        "train_flops": epochs * sum(float(training_flops(model, part).sum()) for part in picked),
        "diagnose_flops": sum((float(signal_flops(model, part, GRADIENT).sum()) for part in measured), 0.0),
    }


def _tokens(pool: Pool) -> int:
    return int(pool.tokens.sum())


# What a stage may replay: earlier stages' candidates and the proxy items, as pools of the learner.


def reserve_of(sequence: SequenceData, number: int, pool: Pool, recipe: Recipe, seed: int) -> Reserve:
    """The reserve of stage ``number`` (1-based), or of a probe on it, whose candidates are ``pool``.

    The order of replay hangs on the seed and the stage alone, so that all selectors of a seed replay alike.
    """
    return Reserve(
        candidates=pool,
        earlier=tuple(stage.pool for stage in sequence.stages[: number - 1]),
        proxy=sequence.proxy_pool,
        budget=round(recipe.budget * int(pool.tokens.sum())),
        rng=generator(seed, "replay", number),
    )


# How fast does the model still learn? A fork is trained briefly on the next stage and scored on the way.

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
    pool = probe_pool(following.pool, recipe, seed, stage)
    replayed = reserve_of(sequence, stage + 1, pool, recipe, seed) if policy.replays else None
    rows: list[dict[str, Any]] = []
    for kind in recipe.probe.kinds:
        chooser = _policy(kind, policy, seed, stage, replayed)
        with learner.fork() as fork:
            rows += _curve(fork, pool, following, kind, chooser, recipe, seed, stage, notify)
    return rows


def _curve(
    fork: Learner,
    pool: Pool,
    following: Stage,
    kind: str,
    policy: SelectionPolicy,
    recipe: Recipe,
    seed: int,
    stage: int,
    notify: Notify,
) -> list[dict[str, Any]]:
    selection = SelectionConfig.of_recipe(recipe, stream_seed(seed, "probe", stage))
    if kind == "common":
        selection = replace(selection, rounds="step", epochs=1)
    elif selection.rounds != "step":
        selection = replace(selection, rounds=min(selection.rounds, recipe.probe.steps))
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

    fork.train(pool, policy, selection, recipe.probe.steps, measure)
    return rows


def _point(sub_skill: str, scorer: str, value: float, kind: str, info: StepInfo, following: Stage) -> dict[str, Any]:
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


# The central walk: one selector, one seed, stage after stage, and what it did to the future.

Notify_trajectory = Callable[[str, int, str, int, int], None]
"""(trial, stage number, activity, step, steps) → nothing; for progress displays."""


def prepare_seed(seed: int, learner: Learner, sequence: SequenceData, store: StageStore) -> None:
    """Do once what all trials of a seed share: the frozen pass over every pool, and row 0 of R."""
    if store.has("base"):
        return
    with _numerics_located(lambda: f"seed {seed}, before any training"):
        frozen = learner.prepare(sequence)
        rows = score_rows(learner.score(sequence.tasks), sequence.tasks, 0)
    with store.writing("base") as folder:
        write_arrays(folder / "frozen.safetensors", frozen)
        (folder / "learner.json").write_text(json.dumps(_origin(learner, sequence), indent=1) + "\n")
        write_table(
            folder / "records.parquet",
            records_table([{"trial": "", "selector": "", "seed": seed, **row} for row in rows]),
        )


def run_trajectory(
    trial: Trial,
    recipe: Recipe,
    learner: Learner,
    sequence: SequenceData,
    shared: StageStore,
    store: StageStore,
    notify: Notify_trajectory,
    keep_models: bool = False,
    prepared: SequenceData | None = None,
) -> None:
    """Walk one trial through the stages that are not finished yet.

    Args:
        recipe: of the trial's condition.
        sequence: its stages in the order of the walk.
        shared: the seed's store, with the part ``base`` finished (see `prepare_seed`).
        store: the trial's store; finished stages are skipped, the walk goes on from the last one.
        keep_models: keep the model after every stage, not only after the last finished one.
        prepared: the stages that ``shared`` was made of, where they stood in another order than ``sequence``.
    """
    stages = sequence.stages
    done = store.finished_stages(len(stages))
    if done == len(stages):
        return
    prepared = prepared or sequence
    _same_origin(learner, prepared, shared)
    learner.use(prepared, read_arrays(shared.path("base") / "frozen.safetensors"))
    policy = SelectionPolicy(
        selector_of(trial.selector),
        History(seed=stream_seed(trial.seed, "history")),
        generator(trial.seed, "select", 0),
        gradient_every=recipe.metrics.gradient_every,
    )
    if done:
        last = store.path(f"stage-{done}")
        try:
            learner.load(last / "learner")
            policy.load_state_dict(read_state(last, "policy"))
        except ResumeError as error:
            raise ResumeError(
                f"{trial.name} cannot go on after stage {done}: {error} Delete {store.folder} and run the command "
                "again; only this trial is done anew."
            ) from error
    moment = ""

    def told(name: str, stage: int, activity: str, step: int, steps: int) -> None:
        nonlocal moment
        moment = f"stage {stage}, {activity}" + (f", after step {step} of {steps}" if steps > 1 else "")
        notify(name, stage, activity, step, steps)

    for number in range(done + 1, len(stages) + 1):
        with _numerics_located(lambda: f"{trial.name}, {moment}"):
            rows, picks = _stage(number, trial, recipe, learner, sequence, policy, told)
        who = {"trial": trial.name, "selector": trial.selector.key, "seed": trial.seed}
        with store.writing(f"stage-{number}") as folder:
            write_table(folder / "records.parquet", records_table([{**who, "stage": number, **row} for row in rows]))
            write_selection(folder / "selection.parquet", picks)
            write_state(folder, "policy", policy.state_dict(), flushed=False)
            (folder / "learner").mkdir()
            learner.save(folder / "learner")
        if number > 1 and not keep_models:
            shutil.rmtree(store.path(f"stage-{number - 1}") / "learner", ignore_errors=True)


@contextmanager
def _numerics_located(where: Callable[[], str]) -> Iterator[None]:
    """Put the trial and what it was about before a NumericalError, which itself names the example or item."""
    try:
        yield
    except NumericalError as error:
        raise NumericalError(f"{where()}: {error}") from error


def _origin(learner: Learner, sequence: SequenceData) -> dict[str, str]:
    """What the numbers of a seed come from besides the recipe: weights, device, and the content of the data."""
    pools = [[example.sample_id for example in (*stage.candidates, *stage.proxy)] for stage in sequence.stages]
    items = [[(item.sample_id, item.answer) for item in task.items] for task in sequence.tasks]
    digest = hashlib.sha256(json.dumps([pools, items]).encode()).hexdigest()[:16]
    return {**learner.describe(), "data": digest}


def _same_origin(learner: Learner, sequence: SequenceData, shared: StageStore) -> None:
    """Refuse to mix weights, devices or data within one run: equal names may hide two checkpoints or two files."""
    held, now = read_json(shared.path("base") / "learner.json"), _origin(learner, sequence)
    differing = [f"{key}: {held.get(key)} there, {value} now" for key, value in now.items() if held.get(key) != value]
    if differing:
        raise ResumeError(
            f"{shared.folder} was begun with another model or other data. Differing: {'; '.join(differing)}. "
            "Use the same weights, device and data files, or another --out."
        )


def _stage(
    number: int,
    trial: Trial,
    recipe: Recipe,
    learner: Learner,
    sequence: SequenceData,
    policy: SelectionPolicy,
    notify: Notify_trajectory,
) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """Select and train on one stage, score every task, probe the next stage; return records and picks."""
    stage = sequence.stages[number - 1]

    def tell(activity: str, info: StepInfo) -> None:
        notify(trial.name, number, activity, info.step, info.steps)

    pool = stage.pool
    selection = SelectionConfig.of_recipe(recipe, stream_seed(trial.seed, "stage", number))
    reserve = reserve_of(sequence, number, pool, recipe, trial.seed) if policy.replays else None
    policy.begin_stage(generator(trial.seed, "select", number), reserve)
    report = learner.train(pool, policy, selection, recipe.training.steps, lambda info: tell("train", info))
    clock = time.perf_counter()
    notify(trial.name, number, "evaluate", 0, 1)
    last = number == len(sequence.stages)
    tasks = sequence.tasks if last or recipe.data.ood_after == "every-stage" else [s.task for s in sequence.stages]
    rows = score_rows(learner.score(tasks), tasks, number)
    seconds = {**report.seconds, "evaluate": time.perf_counter() - clock}
    work = stage_work(
        report, policy, pool, sequence.proxy_pool if report.proxy_passes else None, recipe.training.epochs
    )
    learned = policy.learnable(pool)
    rows += _diagnostics(learner, learned, policy, report, recipe)
    if not last:
        clock = time.perf_counter()
        rows += run_probes(learner, sequence, number, policy, recipe, trial.seed, tell)
        seconds["probe"] = time.perf_counter() - clock
    rows += _costs(report, seconds, policy, work)
    return rows, selection_table(learned, policy)


def score_rows(scores: Sequence[Score], tasks: Sequence[Task], stage: int) -> list[dict[str, Any]]:
    """Tidy rows of one row of R (points 0–100; NaN = not measured)."""
    kinds = {task.name: task.kind for task in tasks}
    return [
        {
            "kind": "score",
            "stage": stage,
            "task": score.task,
            "task_kind": kinds[score.task],
            "sub_skill": score.sub_skill,
            "scorer": score.scorer,
            "name": "score",
            "value": score.value,
            "unit": "points",
        }
        for score in scores
    ]


def _diagnostics(
    learner: Learner, pool: Pool, policy: SelectionPolicy, report: TrainingReport, recipe: Recipe
) -> list[dict[str, Any]]:
    """Table 2 of the paper for this stage; measured beside the training, never fed back into it."""
    rows = sorted({pool.index[name] for entry in policy.rounds for name in entry.picked_ids})
    chosen = pool.take(rows)
    frozen = learner.signals(chosen, ("cluster", "difficulty", "quality"))
    per_cluster = np.bincount(frozen["cluster"], weights=chosen.tokens, minlength=recipe.metrics.clusters)
    noisy = np.array([np.nan if example.noisy is None else example.noisy for example in chosen.examples], dtype=float)
    gradients = [entry.gradients for entry in policy.rounds if entry.gradients is not None]
    concentration = selection_concentration(np.concatenate(gradients)) if gradients else float("nan")
    values = {
        "capability_entropy": (capability_entropy(per_cluster), "nats"),
        "selection_concentration": (concentration, "share"),
        "update_concentration": (update_concentration(report.update_gram), "share"),
        "adapter_drift": (report.drift, "1-cos"),
        "update_norm": (report.update_norm, "frobenius"),
        "difficulty": (token_weighted_mean(frozen["difficulty"], chosen.tokens), "pool percentile"),
        "quality": (token_weighted_mean(frozen["quality"], chosen.tokens), "0-1"),
        "noisy_share": (token_weighted_mean(noisy, chosen.tokens), "share"),
        "final_loss": (float(report.losses[-1]), "nats/token"),
    }
    return [
        {"kind": "diagnostic", "name": name, "value": value, "unit": unit} for name, (value, unit) in values.items()
    ]


def _costs(
    report: TrainingReport, seconds: dict[str, float], policy: SelectionPolicy, work: dict[str, float]
) -> list[dict[str, Any]]:
    counts = {
        "selected_tokens": report.selected_tokens,
        "optimiser_tokens": report.optimiser_tokens,
        "candidate_tokens": report.candidate_tokens,
        "selected_examples": sum(len(entry.picked_ids) for entry in policy.rounds),
        **policy.unmet,
    }
    rows = [{"kind": "cost", "name": name, "value": float(value), "unit": "count"} for name, value in counts.items()]
    rows += [
        {"kind": "cost", "name": name, "value": value, "unit": "count" if name.endswith("_tokens") else "FLOP"}
        for name, value in work.items()
    ]
    return rows + [
        {"kind": "cost", "name": f"{part}_seconds", "value": value, "unit": "s"} for part, value in seconds.items()
    ]


def selection_table(pool: Pool, policy: SelectionPolicy) -> pd.DataFrame:
    """Every candidate of every round with each term of its score, and its place in pick order (−1 = not picked)."""
    rounds = policy.rounds
    ids = [sample_id for entry in rounds for sample_id in entry.candidate_ids]
    sizes = [len(entry.candidate_ids) for entry in rounds]
    picked = [np.full(size, -1, dtype=np.int64) for size in sizes]
    for place, entry in zip(picked, rounds, strict=True):
        place[entry.selection.rows] = np.arange(len(entry.selection.rows))
    rows = [pool.index[sample_id] for sample_id in ids]
    terms = dict.fromkeys(name for entry in rounds for name in entry.selection.scores)
    unscored = [np.full(size, np.nan, dtype=np.float32) for size in sizes]
    columns = {
        f"term_{name}": np.concatenate(
            [
                np.asarray(entry.selection.scores.get(name, nan), np.float32)
                for entry, nan in zip(rounds, unscored, strict=True)
            ]
        )
        for name in terms
    }
    return pd.DataFrame(
        {
            "round": np.repeat([entry.number for entry in rounds], sizes),
            "sample_id": ids,
            "picked": np.concatenate(picked),
            "tokens": pool.tokens[rows],
            "sub_skill": [pool.examples[row].skill or "" for row in rows],
            **columns,
        }
    )
