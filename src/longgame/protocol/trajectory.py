"""The central walk: one selector, one seed, stage after stage, and what it did to the future.

    base ──select/train──▶ M1 ──select/train──▶ M2 ─ … ─▶ MT
     │ row 0 of R           │ row 1               │ row 2
                            ├ probe on stage 2    ├ probe on stage 3      (forks: they leave no trace)

The walk knows a `Learner` and nothing else of the model; the same lines run the closed-form quadratic world in
milliseconds and real fine-tuning in minutes. Every finished stage is durable before the next one begins.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd

from longgame.data.examples import Pool, SequenceData, Task
from longgame.errors import NumericalError, ResumeError
from longgame.evaluation.base import Score
from longgame.metrics.diagnostics import (
    capability_entropy,
    mean_difficulty,
    mean_quality,
    noisy_share,
    selection_concentration,
    update_concentration,
)
from longgame.protocol.files import read_arrays, read_json, write_arrays, write_table
from longgame.protocol.learner import Learner
from longgame.protocol.picks import write_selection
from longgame.protocol.probes import run_probes
from longgame.protocol.reserve import reserve_of
from longgame.protocol.store import StageStore, records_table
from longgame.protocol.trial import Trial
from longgame.protocol.work import stage_work
from longgame.recipe import Recipe
from longgame.seeding import generator, stream_seed
from longgame.selectors.history import History
from longgame.selectors.interventions import selector_of
from longgame.selectors.policy import SelectionPolicy
from longgame.statefile import read_state, write_state
from longgame.training.base import Schedule, StepInfo, TrainingReport

Notify = Callable[[str, int, str, int, int], None]
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
    notify: Notify,
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
    notify: Notify,
) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """Select and train on one stage, score every task, probe the next stage; return records and picks."""
    stage = sequence.stages[number - 1]

    def tell(activity: str, info: StepInfo) -> None:
        notify(trial.name, number, activity, info.step, info.steps)

    pool = learner.pool(stage.candidates)
    schedule = Schedule(
        steps=recipe.training.steps,
        budget=recipe.budget,
        rounds=recipe.rounds,
        epochs=recipe.training.epochs,
        seed=stream_seed(trial.seed, "stage", number),
    )
    reserve = reserve_of(learner, sequence, number, pool, recipe, trial.seed) if policy.replays else None
    policy.begin_stage(generator(trial.seed, "select", number), reserve)
    report = learner.train(pool, policy, schedule, lambda info: tell("train", info))
    clock = time.perf_counter()
    notify(trial.name, number, "evaluate", 0, 1)
    last = number == len(sequence.stages)
    tasks = sequence.tasks if last or recipe.data.ood_after == "every-stage" else [s.task for s in sequence.stages]
    rows = score_rows(learner.score(tasks), tasks, number)
    seconds = {**report.seconds, "evaluate": time.perf_counter() - clock}
    items = [item for other in sequence.stages for item in other.proxy] if report.proxy_passes else []
    work = stage_work(report, policy, pool, learner.pool(items) if items else None, schedule.epochs)
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
    rows = sorted({pool.index[name] for entry in policy.rounds for name in entry.selection.ids})
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
        "difficulty": (mean_difficulty(frozen["difficulty"], chosen.tokens), "pool percentile"),
        "quality": (mean_quality(frozen["quality"], chosen.tokens), "0-1"),
        "noisy_share": (noisy_share(noisy, chosen.tokens), "share"),
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
        "selected_examples": sum(len(entry.selection.ids) for entry in policy.rounds),
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
