"""A whole audit: plan, run what is missing, and write results, scorecard and report."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from longgame.errors import ResumeError
from longgame.evaluation.base import build_scorer
from longgame.metrics.scorecard import Scorecard
from longgame.protocol.backends import Job, Notify, run_local, settle_garbage
from longgame.protocol.store import RunDirectory, durable_folder, read_table, write_file, write_json, write_table
from longgame.protocol.substrate import make_learner, make_sequence
from longgame.protocol.trajectory import prepare_seed, run_trajectory
from longgame.protocol.trial import Trial, plan_trials
from longgame.recipe import Recipe
from longgame.selectors.base import build_selector
from longgame.signals.base import SIGNALS

_PACKAGES = (
    "longgame",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "tokenizers",
    "datasets",
    "numpy",
    "reasoning-gym",
)


class Display(Protocol):
    """What shows the progress of an audit to a person."""

    def begin(self, phase: str, jobs: list[str], stages: int) -> None: ...

    def progress(self, job: str, stage: int, activity: str, step: int, steps: int) -> None: ...

    def finished(self, job: str) -> None: ...


@dataclass(frozen=True)
class AuditResult:
    """What a finished audit gives: everything a table or a page is made from."""

    run: RunDirectory
    results: pd.DataFrame
    scorecard: Scorecard
    environment: dict[str, Any]


def seed_job(folder: str, seed: int, notify: Notify) -> None:
    """Worker function: the shared work of one seed."""
    run = RunDirectory.open(Path(folder))
    store = run.seed_store(seed)
    if store.has("base"):
        return
    notify(f"seed {seed}", 0, "data", 0, 1)
    sequence = make_sequence(run.recipe.model_dump_json(), seed)
    notify(f"seed {seed}", 0, "frozen pass", 0, 1)
    prepare_seed(seed, make_learner(run.recipe, seed), sequence, store)


def trial_job(folder: str, trial: Trial, keep_models: bool, notify: Notify) -> None:
    """Worker function: one trial from where it stands to its end."""
    run = RunDirectory.open(Path(folder))
    sequence = make_sequence(run.recipe.model_dump_json(), trial.seed)
    store = run.trial_store(trial.name, trial.selector.model_dump(mode="json"), trial.seed)
    clock = time.perf_counter()
    learner = make_learner(run.recipe, trial.seed)
    settle_garbage()
    run_trajectory(trial, run.recipe, learner, sequence, run.seed_store(trial.seed), store, notify, keep_models)
    write_json(store.path("wall.json"), {"seconds": time.perf_counter() - clock, "pid": os.getpid()})


def run_audit(
    recipe: Recipe, folder: Path, *, workers: int, threads: int, display: Display, keep_models: bool = False
) -> AuditResult:
    """Run (or finish) an audit and write its results.

    Raises:
        ResumeError: the directory holds another recipe, or another process is at work in it.
        LonggameError: whatever a trial raised; finished stages stay.
    """
    for spec in recipe.selectors:  # a wrong name or parameter is told before any work is done
        build_selector(spec.name, spec.parameters)
    for task in (*recipe.data.stages, *recipe.data.ood):
        for scorer in task.scorers:
            build_scorer(scorer)
    run = RunDirectory.create(folder, recipe)
    with _only_one(folder):
        environment = _environment(run, workers, threads)
        stages = _stage_count(recipe)
        seeds = [seed for seed in recipe.seeds if not run.seed_store(seed).has("base")]
        trials = [trial for trial in plan_trials(recipe) if not _is_done(run, trial, stages)]
        begun = time.perf_counter()
        if recipe.model.name == "quadratic":
            _run_here(run, seeds, trials, display, stages)
        else:
            folder_name = str(folder.resolve())
            jobs = [Job(f"seed {seed}", seed_job, (folder_name, seed)) for seed in seeds]
            display.begin("shared work of each seed", [job.name for job in jobs], 0)
            run_local(jobs, workers, threads, display.progress, display.finished)
            jobs = [Job(trial.name, trial_job, (folder_name, trial, keep_models)) for trial in _costly_first(trials)]
            display.begin("trials", [job.name for job in jobs], stages)
            run_local(jobs, workers, threads, display.progress, display.finished)
        if seeds or trials:
            environment["sessions"].append(round(time.perf_counter() - begun, 1))
            write_json(folder / "environment.json", environment)
        return finish(run)


def _run_here(run: RunDirectory, seeds: list[int], trials: list[Trial], display: Display, stages: int) -> None:
    """The closed-form world needs no processes: a trial takes milliseconds."""
    folder = str(run.folder)
    for seed in seeds:
        seed_job(folder, seed, display.progress)
    display.begin("trials", [trial.name for trial in trials], stages)
    for trial in trials:
        trial_job(folder, trial, False, display.progress)
        display.finished(trial.name)


def _costly_first(trials: list[Trial]) -> list[Trial]:
    """Within each seed the selectors that need gradients come first, so that workers end close together."""

    def cost(trial: Trial) -> int:
        needs = build_selector(trial.selector.name, trial.selector.parameters).requires
        kinds = {SIGNALS[name].cost for name in needs if name in SIGNALS} | {"none"}
        return -max(("none", "forward", "backward").index(kind) for kind in kinds)

    seeds = list(dict.fromkeys(trial.seed for trial in trials))
    return sorted(trials, key=lambda trial: (seeds.index(trial.seed), cost(trial)))


def _stage_count(recipe: Recipe) -> int:
    if recipe.data.sequence == "files":
        return len(recipe.data.stages)
    return len(make_sequence(recipe.model_dump_json(), recipe.seeds[0]).stages)


def _is_done(run: RunDirectory, trial: Trial, stages: int) -> bool:
    store = run.trial_store(trial.name, trial.selector.model_dump(mode="json"), trial.seed)
    return store.finished_stages(stages) == stages


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold the directory's lock; the system lets go of it however the process ends."""
    with (folder / "audit.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ResumeError(f"another audit is at work in {folder}. Wait for it, or choose another --out.") from error
        yield


def _environment(run: RunDirectory, workers: int, threads: int) -> dict[str, Any]:
    """Versions and machine, written once; a resumed run keeps the thread count, on which the last bits depend."""
    path = run.folder / "environment.json"
    if path.is_file():
        held = json.loads(path.read_text())
        if held["threads"] != threads:
            raise ResumeError(
                f"{run.folder} was begun with {held['threads']} thread(s) per worker, now {threads}; the last bits of "
                f"every number depend on it. Use --threads {held['threads']}, or another --out."
            )
        return held
    environment: dict[str, Any] = {
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "workers": workers,
        "threads": threads,
        "sessions": [],
    }
    write_json(path, environment)
    return environment


def finish(run: RunDirectory) -> AuditResult:
    """Assemble the results of a run and write results.parquet, scorecard.md and report.html.

    Raises:
        ResumeError: a trial is not finished.
    """
    from longgame.report.html import write_html
    from longgame.report.markdown import scorecard_markdown

    recipe = run.recipe
    stages = _stage_count(recipe)
    missing = [trial.name for trial in plan_trials(recipe) if not _is_done(run, trial, stages)]
    if missing:
        raise ResumeError(
            f"{run.folder} is not finished ({len(missing)} trials left: {', '.join(missing[:5])}…). "
            "Give the recipe again to go on."
        )
    environment = json.loads((run.folder / "environment.json").read_text())
    path = run.folder / "results.parquet"
    results = run.records()
    if not path.is_file() or not read_table(path).equals(results):
        with durable_folder(run.folder / "assembled") as part:
            write_table(part / "results.parquet", results)
        (run.folder / "assembled" / "results.parquet").replace(path)
        (run.folder / "assembled").rmdir()
    sequence = make_sequence(recipe.model_dump_json(), recipe.seeds[0])
    scorecard = Scorecard.build(
        results,
        tasks=[stage.task.name for stage in sequence.stages],
        ood=[task.name for task in sequence.ood],
        primary={task.name: task.scorers[0] for task in sequence.tasks},
        metric_spec=recipe.metrics,
        threshold=recipe.probe.threshold,
    )
    text = scorecard_markdown(scorecard, results, recipe, environment)
    write_file(run.folder / "scorecard.md", text)
    write_html(run.folder / "report.html", scorecard, results, recipe, environment)
    return AuditResult(run, results, scorecard, environment)
