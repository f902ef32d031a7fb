"""Run an audit: plan it, check it, run the missing jobs with a progress display, write the tables."""

from __future__ import annotations

import datetime
import fcntl
import importlib.metadata
import logging
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from longgame.audit.checks import (
    candidates_in,
    check_files,
    check_models,
    check_plugins,
    check_scorers,
    check_scores,
    check_size,
    score_warnings,
    seed_warnings,
)
from longgame.audit.cluster import device_on, run_jobs
from longgame.audit.learner import learner_kind, make_learner, sequence_of
from longgame.audit.parts import FinishedPart
from longgame.audit.plan import REFERENCES, Plan, Trial
from longgame.audit.run import (
    ENVIRONMENT,
    LOCK,
    RECIPE,
    Run,
    holds_run,
    read_environment,
    write_environment,
    write_failures,
)
from longgame.audit.walk import Walk, prepare_seed, trial_located
from longgame.data.sequences import measure_contamination
from longgame.engines.choice import LOCAL
from longgame.engines.local import Job, Notify, run_here, run_local
from longgame.errors import LonggameError, RecipeError, ResumeError, StorageError
from longgame.limits import MOST_PROCESSES, located
from longgame.recipe import Recipe
from longgame.selection.interventions import selector_of
from longgame.signals.base import work_of
from longgame.storage import storage_errors

_log = logging.getLogger(__name__)


class RichDisplay:
    """A bar for the whole audit and a line for each running job; plain lines where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._lines: dict[str, TaskID] = {}
        self._shares: dict[str, float] = {}
        self._total: TaskID | None = None
        self._jobs = 0
        self._done = 0
        self._start = 0.0
        self._stages = 1

    def __enter__(self) -> RichDisplay:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def warn(self, text: str) -> None:
        """Print a warning."""
        self.console.print(f"Warning: {text}", style="yellow", markup=False, highlight=False)

    def begin(self, phase: str, jobs: list[str], stages: int) -> None:
        for line in [*self._lines.values(), *([self._total] if self._total is not None else [])]:
            self.bars.remove_task(line)
        self._lines, self._shares, self._total = {}, {}, None
        self._jobs, self._done, self._start, self._stages = len(jobs), 0, time.monotonic(), max(1, stages)
        if jobs:
            self._total = self.bars.add_task(phase, total=len(jobs), note="")
            if not self.console.is_terminal:
                self.console.print(f"{phase}: {len(jobs)}", markup=False)

    def progress(self, job: str, stage: int, activity: str, step: int, steps: int) -> None:
        if job not in self._lines:
            self._lines[job] = self.bars.add_task(job, total=steps, note="")
        where = f"stage {stage}/{self._stages} · {activity}" if stage else activity
        self.bars.update(self._lines[job], completed=step, total=steps, note=where)
        if not stage:  # the shared work of a seed has no measure of progress
            return
        inside = 0.6 * step / max(1, steps) if activity == "train" else 0.8
        self._shares[job] = max(self._shares.get(job, 0.0), (max(0, stage - 1) + inside) / self._stages)
        self._update_total()

    def finished(self, job: str) -> None:
        self._end(job)
        if not self.console.is_terminal:
            self.console.print(f"  {job} done ({self._done}/{self._jobs}), {self.time_left()}", markup=False)

    def failed(self, job: str, reason: str) -> None:
        self._end(job)
        self.console.print(f"  {job} failed: {reason}", style="red", markup=False, highlight=False, soft_wrap=True)

    def _end(self, job: str) -> None:
        """Count the job as ended and take its line away."""
        self._done += 1
        self._shares.pop(job, None)
        line = self._lines.pop(job, None)
        if line is not None:
            self.bars.remove_task(line)
        self._update_total()

    def time_left(self) -> str:
        """Time left by the share of the work that is done; empty until a twentieth is."""
        share = (self._done + sum(self._shares.values())) / max(1, self._jobs)
        if share < 0.05:
            return ""
        left = (time.monotonic() - self._start) * (1 - share) / share
        return f"{int(left // 60)}:{int(left % 60):02d} left"

    def _update_total(self) -> None:
        if self._total is not None:
            self.bars.update(self._total, completed=self._done, note=self.time_left())


SAVE_SECONDS = 10.0
"""Seconds between two writes of the session's time: a killed session loses at most so much."""


class Display(Protocol):
    """Shows the progress of an audit."""

    def warn(self, text: str) -> None: ...

    def begin(self, phase: str, jobs: list[str], stages: int) -> None: ...

    def progress(self, job: str, stage: int, activity: str, step: int, steps: int) -> None: ...

    def finished(self, job: str) -> None: ...

    def failed(self, job: str, reason: str) -> None: ...


class SessionClock:
    """A display that also keeps the time at work in ``environment.json`` up to date.

    Args:
        display: shows the progress.
        folder: the run directory.
        environment: its content; an entry of ``sessions`` (seconds) is added.
    """

    def __init__(self, display: Display, folder: Path, environment: dict[str, Any]) -> None:
        self._display, self._folder, self._environment = display, folder, environment
        self._start = self._saved = time.perf_counter()
        environment["sessions"].append(0.0)

    def warn(self, text: str) -> None:
        self._display.warn(text)

    def begin(self, phase: str, jobs: list[str], stages: int) -> None:
        self._display.begin(phase, jobs, stages)

    def progress(self, job: str, stage: int, activity: str, step: int, steps: int) -> None:
        self._display.progress(job, stage, activity, step, steps)
        if time.perf_counter() - self._saved >= SAVE_SECONDS:
            self.save()

    def finished(self, job: str) -> None:
        self._display.finished(job)

    def failed(self, job: str, reason: str) -> None:
        self._display.failed(job, reason)

    def save(self) -> None:
        """Write the seconds of this session so far."""
        self._saved = time.perf_counter()
        self._environment["sessions"][-1] = round(self._saved - self._start, 1)
        write_environment(self._folder, self._environment)


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


def seed_job(folder: str, data_dir: str | None, seed: int, condition: str, notify: Notify) -> None:
    """Worker function: the shared work of one seed (for a condition), with the data from where they lie now."""
    run = _opened(folder)
    store = run.seed_store(seed, condition)
    if store.has("base"):
        return
    recipe = run.plan.conditions[condition].base_recipe
    with recipe.paths():
        notify(store.folder.name, 0, "data", 0, 1)
        sequence = sequence_of(recipe.replace({"data.data_dir": data_dir}), seed)
        contamination = measure_contamination(sequence) if learner_kind(recipe).has_texts else None
        if contamination is not None and contamination.is_much:
            _log.warning("%s: %s.", store.folder.name, contamination)
        notify(store.folder.name, 0, "frozen pass", 0, 1)
        prepare_seed(seed, make_learner(recipe, seed), sequence, store.noting_files(), contamination)


def trial_job(folder: str, data_dir: str | None, trial: Trial, keep_models: bool, notify: Notify) -> None:
    """Worker function: one trial, resumed after its last finished stage, with the data from where they lie now."""
    run = _opened(folder)
    with run.recipe.paths():
        _walk_trial(run, data_dir, trial, keep_models, notify)


def _walk_trial(run: Run, data_dir: str | None, trial: Trial, keep_models: bool, notify: Notify) -> None:
    condition = run.plan.conditions[trial.condition]
    sequence, prepared = (
        sequence_of(recipe.replace({"data.data_dir": data_dir}), trial.seed)
        for recipe in (condition.recipe, condition.base_recipe)
    )
    with trial_located(lambda: f"{trial.name}, before its first stage"):
        learner = make_learner(condition.recipe, trial.seed)
    walk = Walk.start(trial, condition.recipe, learner, sequence, notify)
    shared = run.seed_store(trial.seed, trial.condition)
    store = run.trial_store(trial).noting_files(candidates_in(sequence))
    for number in walk.missing_stages(shared, store, prepared):
        with trial_located(lambda: f"{trial.name}, {walk.moment}"):
            rows, picks = walk.stage(number)
        walk.save(number, rows, picks, store)
        if number > 1 and not keep_models:
            before = FinishedPart.find(store.folder, f"stage-{number - 1}")
            if before is not None:
                shutil.rmtree(before.folder("learner"), ignore_errors=True)


def _opened(folder: str) -> Run:
    """The run, read once per process and version of its recipe."""
    return _open_version(folder, (Path(folder) / RECIPE).stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _open_version(folder: str, _changed: int) -> Run:
    return Run.open(Path(folder))


def run_audit(
    recipe: Recipe,
    folder: Path,
    *,
    workers: int | None,
    threads: int,
    display: Display,
    keep_models: bool = False,
    fail_fast: bool = False,
    gpus: Sequence[str] = (),
    engine: str = LOCAL,
    gpu_count: int | None = None,
) -> Run:
    """Run (or finish) an audit and write its tables; the report is `longgame.report.render.write_report`.

    A trial that fails does not end the others: it is named in `Run.failures` (see `Run.check_failures`).

    Args:
        fail_fast: the first failed trial ends the audit.
        gpus: values of CUDA_VISIBLE_DEVICES that worker processes take in turn (`Placement`); empty: as here.
        engine: where jobs run (`longgame.engines.choice.check_engine`). On Ray ``workers`` may be None, which takes all
            that the cluster holds, and ``gpu_count`` bounds the GPUs.

    Raises:
        ResumeError: the directory holds another recipe, or another process is at work in it.
        StorageError: the disk is full or not writable; it ends all trials.
        LonggameError: what the first failed trial raised, where no trial has a finished stage; with ``fail_fast``, what
            any trial raised. Finished stages stay.
    """
    for name, count in (("workers", workers), ("threads", threads)):
        if count is None and name == "workers" and engine != LOCAL:
            continue
        if count is None or not 1 <= count <= MOST_PROCESSES:
            shown = "missing" if count is None else f"{count:,}"
            raise RecipeError(f"{name} is {shown}; give a number from 1 to {MOST_PROCESSES:,}.")
    plan = Plan(recipe)
    check_size(plan)
    with recipe.paths(), _locked(folder, plan), ExitStack() as stack:
        run = Run.create(folder, recipe)
        if run.recipe == recipe:
            run.plan = plan
        stages = len(plan.stages)
        finished = {trial.name: run.trial_store(trial).finished_stages(stages) for trial in run.plan.trials}
        trials = [trial for trial in run.plan.trials if finished[trial.name] < stages]
        jobs = _jobs(run, _data_dir(recipe), trials, keep_models)
        if jobs and engine != LOCAL:
            from longgame.engines.ray import connected

            stack.enter_context(connected(engine))
        if jobs or not (folder / ENVIRONMENT).is_file():
            device = check_models(plan) if engine == LOCAL or not jobs else device_on(engine, recipe, plan, threads)
            environment = _environment(run, workers, threads, device, keep_models)
        if not keep_models and run.environment.get("keep_models") is False:
            _remove_passed_models(run, finished)
        if jobs:
            check_plugins(recipe, {trial.selector.key: trial.selector for trial in trials}.values())
            check_scorers(recipe)
            check_scores(plan, trials)
            for text in (*seed_warnings(recipe), *score_warnings(plan, trials)):
                display.warn(text)
            clock = SessionClock(display, folder, environment)
            clock.begin("trials and what they share", [job.name for job in jobs], stages)
            errors: dict[str, LonggameError] = {}

            def failed(job: str, error: LonggameError) -> None:
                if fail_fast or isinstance(error, StorageError | ResumeError):
                    raise error
                clock.failed(job, str(error))
                errors[job] = error
                write_failures(folder, errors)

            write_failures(folder, errors)
            kind = learner_kind(recipe)
            if engine != LOCAL:
                run_jobs(
                    run,
                    jobs,
                    engine,
                    recipe.replace({"data.data_dir": _data_dir(recipe)}),
                    workers=workers,
                    threads=threads,
                    gpus=gpu_count,
                    notify=clock.progress,
                    finished=clock.finished,
                    failed=failed,
                    warn=clock.warn,
                )
            elif workers is None or workers == 1 or len(trials) < kind.process_trials:
                kind.load()  # before the threads of its libraries are bound
                try:
                    run_here(jobs, threads, clock.progress, clock.finished, failed, clock.warn)
                finally:
                    kind.release()
            else:
                run_local(jobs, workers, threads, clock.progress, clock.finished, failed, clock.warn, gpus)
            clock.save()
            if errors and not any(Run(folder, run.recipe).finished_stages[trial.name] for trial in run.plan.own_trials):
                raise next(iter(errors.values()))
        done = Run(run.folder, run.recipe)
        done.plan = run.plan
        if not (done.finished or done.failures):
            raise ResumeError(f"{done.folder}: {done.progress} Give the recipe again to go on.")
        done.write_tables()
        return done


def _data_dir(recipe: Recipe) -> str | None:
    """The folder of the data for workers, which look for relative paths where the run says, not the recipe of now."""
    name = recipe.data.data_dir
    place = None if name is None else located(name)
    return place if place is None or place == name else str(Path(place).absolute())


def _jobs(run: Run, data_dir: str | None, trials: list[Trial], keep_models: bool) -> list[Job]:
    """Seed by seed: the shared work that is not finished, then the trials that wait for it."""
    folder = str(run.folder.resolve())
    jobs: dict[str, Job] = {}
    finished: set[str] = set()
    for trial in _costly_first(trials):
        base = run.plan.base_name(trial.seed, trial.condition)
        if base not in jobs and base not in finished:
            if run.seed_store(trial.seed, trial.condition).has("base"):
                finished.add(base)
            else:
                jobs[base] = Job(base, seed_job, (folder, data_dir, trial.seed, trial.condition))
        jobs[trial.name] = Job(trial.name, trial_job, (folder, data_dir, trial, keep_models), after=base)
    for trial in run.plan.trials:  # shared work of finished trials that was deleted, row 0 with it
        base = run.plan.base_name(trial.seed, trial.condition)
        if base not in jobs and base not in finished:
            finished.add(base)
            if not run.seed_store(trial.seed, trial.condition).has("base"):
                jobs[base] = Job(base, seed_job, (folder, data_dir, trial.seed, trial.condition))
    return list(jobs.values())


def _costly_first(trials: list[Trial]) -> list[Trial]:
    """Within each seed whole pools and selectors that need gradients come first, so that workers end close together."""

    def cost(trial: Trial) -> int:
        return -("none", "forward", "backward").index(work_of(selector_of(trial.selector).requires))

    place = {seed: place for place, seed in enumerate(dict.fromkeys(trial.seed for trial in trials))}
    costs = {key: cost(trial) for key, trial in {trial.selector.key: trial for trial in trials}.items()}
    return sorted(
        trials, key=lambda trial: (place[trial.seed], trial.condition not in REFERENCES, costs[trial.selector.key])
    )


@contextmanager
def _locked(folder: Path, plan: Plan) -> Iterator[None]:
    """Hold the directory's lock; the system releases it however the process ends.

    The lock is opened for reading, so that a finished run can be printed where nothing can be written.
    """
    Run.check(folder, plan.recipe)
    check_files(folder, plan)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_RDONLY | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ResumeError(f"another audit is at work in {folder}. Wait for it, or choose another --out.") from error
        except OSError as error:
            raise StorageError(
                f"{folder} cannot be locked: {error.strerror or error}. Choose an --out on a file system with locks."
            ) from error
        yield
    finally:
        os.close(lock)


def run_threads(folder: Path) -> int | None:
    """Threads per worker of the run in this directory; None where there is none yet."""
    if not holds_run(folder) or not (folder / ENVIRONMENT).is_file():
        return None
    return int(read_environment(folder)["threads"])


def _remove_passed_models(run: Run, finished: Mapping[str, int]) -> None:
    """Delete the model of every stage before a trial's last finished one: a kill behind a stage leaves that before.

    Args:
        finished: trial → how many of its stages are.
    """
    for trial in run.plan.trials:
        folder = run.trial_store(trial).folder
        for number in range(1, finished[trial.name]):
            part = FinishedPart.find(folder, f"stage-{number}")
            if part is not None:
                shutil.rmtree(part.folder("learner"), ignore_errors=True)


def _environment(run: Run, workers: int | None, threads: int, device: str, keep_models: bool) -> dict[str, Any]:
    """Versions and machine, written once; a resumed run keeps versions and threads, on which the last bits depend.

    ``keep_models`` says whether any session kept the model of every stage.
    """
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    if (run.folder / ENVIRONMENT).is_file():
        environment = run.environment
        if environment["threads"] != threads:
            raise ResumeError(
                f"{run.folder} was begun with {environment['threads']} thread(s) per worker, now {threads}; the last "
                f"bits of every number depend on it. Use --threads {environment['threads']}, or another --out."
            )
        changed = {name: old for name, old in environment["versions"].items() if versions.get(name) != old}
        if changed:
            old, now = (
                ", ".join(f"{name}=={table.get(name, '(none)')}" for name in changed)
                for table in (environment["versions"], versions)
            )
            raise ResumeError(
                f"{run.folder} was begun with {old}, now {now}; numbers of two versions do not belong in one table. "
                "Install those, or use another --out."
            )
        if keep_models and environment.get("keep_models") is False:
            environment["keep_models"] = True
            write_environment(run.folder, environment)
        return environment
    environment = {
        "versions": versions,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "device": device,
        "workers": workers,
        "threads": threads,
        "keep_models": keep_models,
        "date": datetime.date.today().isoformat(),
        "sessions": [],
    }
    write_environment(run.folder, environment)
    return environment
