"""A run: everything that an audit wrote, in one folder.

```
RUN/
  run.json               marks the directory as a run
  recipe.yaml            the resolved recipe; another recipe in the same directory is refused
  environment.json       versions, threads, machine
  seeds/seed-0/base.zip  frozen pass and row 0 of R, shared by all trials of the seed
  trials/loss-s0/stage-1.zip             records.parquet, selection.parquet, policy.json + .safetensors, done.json
  trials/loss-s0/stage-5.learner/        the adapter after the last finished stage
  trials/loss-s0@budget=0.1/…            the same under another condition (see `longgame.audit.plan`)
  results.parquet  picks.parquet  measured.safetensors  tables.json  failures.json  scorecard.md  report.html
```
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from rich.console import Console

from longgame.audit.checks import plugin_names
from longgame.audit.measured import measure_results, read_measured, write_measured
from longgame.audit.parts import SUFFIX, FinishedPart, finished_parts, has_parts, is_finished
from longgame.audit.picks import SELECTION, Picks, own_stages, read_selections, write_picks
from longgame.audit.plan import (
    FULL_DATA,
    REFERENCES,
    Plan,
    Trial,
    condition_label,
    measured_by,
    order_groups,
    value_at,
    value_name,
)
from longgame.audit.results import (
    MEASURED,
    PICKS,
    RESULTS,
    TABLES,
    of_condition,
    read_results,
    reference_scorecard,
    scorecards,
    stamp_of,
    write_results,
)
from longgame.audit.store import CONTAMINATION, StageStore, content_hash
from longgame.data.sequences import Contamination
from longgame.errors import LonggameError, RecipeError, ResumeError, StorageError, TrialError
from longgame.metrics.comparisons import Across
from longgame.metrics.scorecard import Scorecard
from longgame.metrics.tidy import Measured
from longgame.recipe import Recipe, load_recipe
from longgame.storage import (
    read_file,
    read_sealed,
    scratch_target,
    sealed,
    storage_errors,
    table_of,
    unreadable,
    write_file,
)

MARK, RECIPE, LOCK, ENVIRONMENT = "run.json", "recipe.yaml", "audit.lock", "environment.json"
FAILURES = "failures.json"
_MARK_CONTENT = {"format": 1, "made_by": "longgame audit"}
_SEAL = "# Recipe of a longgame run; SHA-256 of the lines below: "
"""First line of a run's recipe.yaml, before the digest: an edited recipe would rename what was measured."""
_WRITTEN = (
    MARK,
    RECIPE,
    ENVIRONMENT,
    RESULTS,
    PICKS,
    MEASURED,
    TABLES,
    FAILURES,
    "scorecard.md",
    "report.html",
    "report-trials.csv",
)
"""Files that an audit writes at the top of a run directory."""
_NAMED_FAILURES, _REASON = 5, 300
"""Failed trials that `Run.progress` names, and characters of a reason."""
_NAMED_CONDITIONS = 6
"""Unfinished conditions that `Run.progress` names; further ones are counted."""


class Run:
    """One audit on disk, finished or not: folder, recipe, plan, environment, results.

    Each attribute is read from disk at its first use and then stays as it is: open the run again to see later stages.
    """

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder = folder
        self.recipe = recipe
        self._contents: dict[tuple[str, bool, str], str] = {}
        self._stamps: dict[tuple[tuple[str, int], ...], str] = {}
        self._scorers: dict[tuple[str, bool], tuple[str, ...]] = {}

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def _repr_html_(self) -> str:
        """The verdicts and the scores, as a notebook shows them."""
        return _views().notebook_html(self)

    def _repr_markdown_(self) -> str:
        return _views().notebook_markdown(self)

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """Open an existing run.

        Raises:
            ResumeError: the directory holds no run, or its recipe.yaml was edited.
        """
        folder = Path(folder)
        if not holds_run(folder):
            raise ResumeError(f"'{folder}' holds no run of longgame audit. Name the directory of a run.")
        _check_recipe(folder)
        return cls(folder, load_recipe(folder / RECIPE))

    @classmethod
    def create(cls, folder: Path, recipe: Recipe) -> Run:
        """Open the directory for this recipe, new or to be resumed; files that a kill left half-written are deleted.

        Raises:
            ResumeError, StorageError: as `check`; or it cannot be written.
        """
        old = cls.check(folder, recipe)
        marked = _is_marked(folder)
        if old is None:
            if not marked:
                write_file(folder / MARK, sealed(_MARK_CONTENT))
            with storage_errors(folder):
                (folder / ENVIRONMENT).unlink(missing_ok=True)
        if old is not None:
            folders = old.recipe.relative_to if old.finished else recipe.relative_to
            recipe = recipe.replace({"data.data_dir": old.recipe.data.data_dir, "relative_to": folders})
        run = cls(folder, recipe)
        text = _recipe_text(recipe.stored_in(folder))
        if old is None or _recipe_text(old.recipe.stored_in(folder)) != text or not (marked or old.finished):
            write_file(folder / RECIPE, text)
            if not marked and old is not None:  # of an older version: its recipe.yaml had no digest
                write_file(folder / MARK, sealed(_MARK_CONTENT))
        with storage_errors(folder):
            for stale in _stale(folder):
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
        return run

    @classmethod
    def check(cls, folder: Path, recipe: Recipe) -> Run | None:
        """The run in this directory that the recipe resumes; None where nothing could be lost.

        A recipe resumes a run if its own condition measures the same and it includes every trial that has a finished
        stage: selectors, seeds and values of axes may be added, weights of metrics may change. A recipe that failed
        before anything was finished (a misspelt file, say) leaves the directory to the next one. The data may lie
        in another folder than before (`data.data_dir`, `relative_to`): they are known by their content.

        Raises:
            ResumeError: it holds a run of another recipe (the differing keys are named), or something else.
            StorageError: it is a file.
        """
        with storage_errors(folder, "Choose another --out."):
            if folder.exists() and not folder.is_dir():
                raise StorageError(f"'{folder}' is a file; results need a directory. Choose another --out.")
            if not holds_run(folder):
                if folder.exists() and not _is_empty(folder):
                    raise ResumeError(f"{folder} is not empty and holds no run. Choose another --out.")
                return None
        if not has_parts(folder):
            return None
        run = cls.open(folder)
        places = {"data.data_dir": run.recipe.data.data_dir, "relative_to": run.recipe.relative_to}
        moved = recipe.replace(places)
        if moved == run.recipe:
            return run
        differing = _differences(*_comparable(run.recipe, moved))
        if differing:
            raise ResumeError(
                f"{folder} holds a run of another recipe. Differing: " + "; ".join(differing) + ". "
                "Use another --out, or delete the directory."
            )
        planned = {trial.name for trial in Plan(moved).trials}
        lost = [name for name, stages in run.finished_stages.items() if stages and name not in planned]
        if lost:
            raise ResumeError(
                f"{folder} holds trials that this recipe does not ask for: {', '.join(lost[:5])}"
                f"{f' and {len(lost) - 5} more' if lost[5:] else ''}. Selectors, seeds and values of axes can be added "
                "to a run, not taken from it. Name them all, or use another --out."
            )
        return run

    @cached_property
    def plan(self) -> Plan:
        return Plan(self.recipe)

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Versions, machine, threads and the seconds of every session (environment.json)."""
        return read_environment(self.folder)

    @cached_property
    def finished_stages(self) -> dict[str, int]:
        """Every planned trial → how many of its stages are finished."""
        stages, trials = range(len(self.plan.stages), 0, -1), f"{self.folder}/trials"

        def last(trial: str) -> int:
            return next((n for n in stages if is_finished(f"{trials}/{trial}", f"stage-{n}")), 0)

        return {trial.name: last(trial.name) for trial in self.plan.trials}

    @property
    def finished(self) -> bool:
        """Whether every planned trial is, in all conditions."""
        return all(stages == len(self.plan.stages) for stages in self.finished_stages.values())

    @property
    def progress(self) -> str:
        """How much is finished, as a sentence; empty when all is."""
        if self.finished:
            return ""
        stages, total = self.finished_stages, len(self.plan.stages)
        complete = sum(count == total for count in stages.values())
        text = (
            f"This run is not finished: {complete:,} of {len(stages):,} trials, {sum(stages.values()):,} of "
            f"{len(stages) * total:,} stages. What is missing counts as not measured."
        )
        if self.failures:
            text += f" {self.failed_sentence}"
        if len(self.plan.conditions) == 1:
            return text
        missing = Counter(trial.condition for trial in self.plan.trials if stages[trial.name] < total)
        labels = [f"{condition_label(name)} ({count:,})" for name, count in missing.items()]
        others = f" and {len(labels) - _NAMED_CONDITIONS} more" if len(labels) > _NAMED_CONDITIONS else ""
        return f"{text} Unfinished trials by condition: {'; '.join(labels[:_NAMED_CONDITIONS])}{others}."

    @cached_property
    def failures(self) -> dict[str, str]:
        """Trial → why it failed in the last session, of those that are not finished."""
        path = self.folder / FAILURES
        reasons = read_sealed(path, ["trials"])["trials"] if path.is_file() else {}
        total = len(self.plan.stages)
        return {
            name: reasons[name] for name, stages in self.finished_stages.items() if stages < total if name in reasons
        }

    @property
    def failed_sentence(self) -> str:
        """The failed trials with their reasons; those that share a reason stand together."""
        groups: dict[str, list[str]] = {}
        for name, reason in self.failures.items():
            groups.setdefault(reason.replace(name, "…"), []).append(name)
        parts = []
        for reason, names in list(groups.items())[:_NAMED_FAILURES]:
            others = f" and {len(names) - _NAMED_FAILURES} more" if len(names) > _NAMED_FAILURES else ""
            parts.append(f"{', '.join(names[:_NAMED_FAILURES])}{others}: {reason.removesuffix('.')}.")
        further = f" {len(groups) - _NAMED_FAILURES} more reasons." if len(groups) > _NAMED_FAILURES else ""
        return f"{len(self.failures):,} of {len(self.plan.trials):,} trials failed: {' '.join(parts)}{further}"

    def check_failures(self) -> None:
        """Raise TrialError if trials failed in the last session."""
        if self.failures:
            raise TrialError(
                f"{self.failed_sentence} The other trials are finished. Mend the cause and run the same command again; "
                "finished stages stay."
            )

    @cached_property
    def results(self) -> pd.DataFrame:
        """All finished measurements of all conditions, one row each (see docs/results-format.md)."""
        stages = self.finished_stages
        return read_results(self.folder, self.plan, stages, self.stores, self._stamp(stages))

    @cached_property
    def measured(self) -> dict[str, Measured]:
        """Condition → its measurements laid out by trial; read without ``results`` where a finished audit left them."""
        stored = read_measured(self.folder, self.plan, self._stamp(self.finished_stages))
        return measure_results(self.plan, self.results) if stored is None else stored

    def _stamp(self, stages: Mapping[str, int]) -> str:
        """`stamp_of` these stages; the marks of the same ones are read once."""
        key = tuple((name, count) for name, count in stages.items() if count)
        if key not in self._stamps:
            self._stamps[key] = stamp_of(self.folder, self.plan, stages)
        return self._stamps[key]

    @cached_property
    def own_results(self) -> pd.DataFrame:
        """The measurements of the recipe's own condition."""
        return of_condition(self.results, "")

    @cached_property
    def scorecards(self) -> dict[str, Scorecard]:
        """Condition → scorecard: the recipe's own, and those in which every selector has measurements."""
        return scorecards(self.plan, self.measured)

    @property
    def scorecard(self) -> Scorecard:
        """The scorecard of the recipe's own condition."""
        return self.scorecards[""]

    @cached_property
    def full_data(self) -> Scorecard | None:
        """The scorecard of the full-data trials; None where none has a finished stage."""
        return reference_scorecard(self.plan, self.measured, FULL_DATA)

    @cached_property
    def across(self) -> Across | None:
        """All conditions side by side; None for a recipe without axes."""
        if not self.plan.conditions.keys() - {"", *REFERENCES}:
            return None
        cards = self.scorecards
        groups = {name: names for name, names in order_groups(self.plan.conditions).items() if set(names) <= set(cards)}
        metrics = self.recipe.metrics
        return Across.build(cards, groups, bootstrap=metrics.bootstrap, margins=metrics.equivalence, holm=metrics.holm)

    @cached_property
    def places(self) -> pd.DataFrame | None:
        """condition, budget, rounds, adaptation, order and the varied keys: a row for each condition of `across`.

        A place is what the condition's name says (``adaptation=full-lr0.001``), else the recipe's own value.
        """
        return None if self.across is None else condition_places(self.plan, list(self.scorecards))

    @cached_property
    def contamination(self) -> Contamination | None:
        """How much of the evaluation items stands in the pools, over all seeds; None without texts or shared work."""
        folders = (self.folder / "seeds" / self.plan.base_name(seed, "") for seed in self.recipe.seeds)
        bases = [part for folder in folders if (part := FinishedPart.find(folder, "base")) and part.has(CONTAMINATION)]
        return Contamination.total([Contamination(**part.json(CONTAMINATION)) for part in bases]) if bases else None

    @cached_property
    def picks(self) -> Picks | None:
        """What the trials of the recipe's own condition selected; None before the first finished stage."""
        stages = self.finished_stages
        stamp = self._stamp(own_stages(self.plan, stages))
        return read_selections(self.folder, self.plan, stages, self.stores, stamp)

    def selection(self, trial: str, stage: int) -> pd.DataFrame:
        """Every candidate of every round of a trial's stage (1-based): ``picked``, ``tokens``, each term of its score.

        Raises:
            ResumeError: the stage is not finished, or its file cannot be read.
        """
        part = self.trial_store(next(t for t in self.plan.trials if t.name == trial)).part(f"stage-{stage}")
        return table_of(part.read(SELECTION), part.path / SELECTION)

    def write_tables(self) -> None:
        """Write results.parquet, picks.parquet and measured.safetensors, so that reports need not read the stages.

        Raises:
            ResumeError: a file of a stage cannot be read. StorageError: a table cannot be written.
        """
        stages = self.finished_stages
        stamp = self._stamp(stages)
        write_results(self.folder, stamp, self.results)
        write_picks(self.folder, self._stamp(own_stages(self.plan, stages)), self.picks)
        if any(stages.values()):
            write_measured(self.folder, self.plan, stamp, self.measured)

    def files_elsewhere(self) -> dict[str, bytes]:
        """Name → content of the files that a copy of the run on another machine begins with; its paths are absolute."""
        stored = self.recipe.stored_in(self.folder)
        places = tuple(str((self.folder.resolve() / place).resolve()) for place in stored.relative_to)
        text = _recipe_text(stored.replace({"relative_to": places}))
        return {MARK: sealed(_MARK_CONTENT).encode(), RECIPE: text.encode()}

    def seed_store(self, seed: int, condition: str = "") -> StageStore:
        """The store of a seed's shared work that this condition's trials start from."""
        key = content_hash(self._content(condition, True, seed), seed=seed)
        folder = self.folder / "seeds" / self.plan.base_name(seed, condition)
        return StageStore(folder, key, self._scorer_names(condition, True))

    def trial_store(self, trial: Trial) -> StageStore:
        """The store of a trial's stages."""
        content = self._content(trial.condition, False, trial.seed)
        selector = trial.selector.model_dump(mode="json")
        key = content_hash(content, selector=selector, seed=trial.seed)
        scorers = self._scorer_names(trial.condition, False)
        return StageStore(self.folder / "trials" / trial.name, key, (trial.selector.name, *scorers))

    def stores(self, trial: Trial) -> tuple[StageStore, StageStore]:
        """The store of the shared work that a trial starts from, and the trial's own."""
        return self.seed_store(trial.seed, trial.condition), self.trial_store(trial)

    def _scorer_names(self, condition: str, base: bool) -> tuple[str, ...]:
        if (condition, base) not in self._scorers:
            found = self.plan.conditions[condition]
            recipe = found.base_recipe if base else found.recipe
            self._scorers[condition, base] = plugin_names(recipe.replace({"selectors": ()}))
        return self._scorers[condition, base]

    def _content(self, condition: str, base: bool, seed: int) -> str:
        """What numbers depend on, as JSON, without the lists that trials are made from: siblings change nothing."""
        found = self.plan.conditions[condition]
        recipe = found.base_recipe if base else found.recipe
        key = (
            condition,
            base,
            recipe.model.per_seed[seed % len(recipe.model.per_seed)] if recipe.model.per_seed else "",
        )
        if key not in self._contents:
            content = {**measured_by(recipe.for_seed(seed)), "selectors": [], "seeds": [], "name": "run"}
            self._contents[key] = json.dumps(content, sort_keys=True)
        return self._contents[key]


def holds_run(folder: Path) -> bool:
    """Whether an audit made this directory: it bears the mark, or (of an older version) a recipe and a finished part.

    A recipe.yaml alone is a user's own file.
    """
    if _is_marked(folder):
        return True
    return (folder / RECIPE).is_file() and any(map(_has_mark, finished_parts(folder)))


def recipe_file(path: Path) -> tuple[Path, bool]:
    """The recipe file that a path gives, and whether it is that of a run directory.

    Raises:
        RecipeError: the path is a directory without a run.
    """
    is_run = path.is_dir() or (path.name == RECIPE and holds_run(path.parent))
    file = path / RECIPE if path.is_dir() else path
    if is_run and not (holds_run(file.parent) and file.is_file()):
        raise RecipeError(f"'{path}' is a directory without a run. Give a recipe (YAML) or a run directory.")
    return file, is_run


def _is_marked(folder: Path) -> bool:
    try:
        return read_sealed(folder / MARK, _MARK_CONTENT) == _MARK_CONTENT
    except ResumeError:  # absent, or a file of another program
        return False


def _has_mark(part: FinishedPart) -> bool:
    try:
        return bool(part.mark())
    except ResumeError:
        return False


def _is_empty(folder: Path) -> bool:
    """Whether the directory holds nothing but what a kill left before the mark was written."""
    return all(path.name == LOCK or scratch_target(path) == MARK for path in folder.iterdir())


def _stale(folder: Path) -> list[Path]:
    """Scratch that a kill left in a run: names are compared in full, as a user's own files may end in .part, too."""
    top = [path for path in folder.glob("*.part") if scratch_target(path) in _WRITTEN]
    parts = [
        path
        for path in (*folder.glob("seeds/*/*.part"), *folder.glob("trials/*/*.part"))
        if re.fullmatch(rf"(base|stage-[0-9]+)({re.escape(SUFFIX)})?", scratch_target(path) or "")
    ]
    return top + parts


def _recipe_text(recipe: Recipe) -> str:
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    return f"{_SEAL}{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def _check_recipe(folder: Path) -> None:
    """Raise ResumeError if a run's recipe.yaml is not what was written; older versions wrote no digest, and no mark."""
    try:
        first, _, text = read_file(folder / RECIPE).partition(b"\n")
    except OSError as error:
        raise ResumeError(f"{folder / RECIPE} cannot be read ({error.strerror}). Put it back.") from error
    bare = not first.startswith(b"#") and not _is_marked(folder)
    if not bare and first.decode(errors="replace") != _SEAL + hashlib.sha256(text).hexdigest():
        raise ResumeError(
            f"{folder / RECIPE} was edited or damaged since the run wrote it, so it no longer says what was measured. "
            "Put it back; to change the run, give a recipe file of your own: longgame audit FILE --out "
            f"{folder}."
        )


_ENVIRONMENT: dict[str, type | tuple[type, ...]] = {"versions": dict, "threads": int, "sessions": list}
_MACHINE = ("python", "machine", "system", "cores", "device", "workers", "date", "keep_models")


def read_environment(folder: Path) -> dict[str, Any]:
    """Versions, machine, threads and the seconds of every session of a run.

    Raises:
        ResumeError: environment.json is missing, damaged, or was edited.
    """
    path = folder / ENVIRONMENT
    try:
        content = read_sealed(path, _ENVIRONMENT, _MACHINE)
        for key, kind in _ENVIRONMENT.items():
            if not isinstance(content[key], kind):
                raise unreadable(path, ValueError(f"'{key}' is {content[key]!r}"))
    except ResumeError as error:
        reason = str(error).partition(" Delete ")[0]
        raise ResumeError(
            f"{reason} It holds the versions and threads of the run. Put it back; or, if they are those of now, delete "
            f"{path} and run the audit again."
        ) from error
    return content


def write_environment(folder: Path, environment: Mapping[str, Any]) -> None:
    """Write environment.json, sealed.

    Raises:
        StorageError: it cannot be written; the one before stays.
    """
    write_file(folder / ENVIRONMENT, sealed(environment))


def write_failures(folder: Path, errors: Mapping[str, LonggameError]) -> None:
    """Write failures.json: trial → reason in one line. Without failures the file is deleted.

    Raises:
        StorageError: it cannot be written or deleted.
    """
    if errors:
        reasons = {name: " ".join(str(error).split()) for name, error in errors.items()}
        cut = {name: text if len(text) <= _REASON else text[:_REASON] + " …" for name, text in reasons.items()}
        write_file(folder / FAILURES, sealed({"trials": cut}))
        return
    with storage_errors(folder / FAILURES):
        (folder / FAILURES).unlink(missing_ok=True)


_VIEWS = "longgame.report.render"
"""Module that shows a run; a report is made of runs, so it is imported when one is shown."""


def _views() -> Any:
    return importlib.import_module(_VIEWS)


def load_run(folder: str | Path) -> Run:
    """Open a run that has something to report.

    Raises:
        ResumeError: there is no run, or no stage of the recipe's own condition is finished.
    """
    run = Run.open(folder)
    if not any(run.finished_stages[trial.name] for trial in run.plan.own_trials):
        raise ResumeError(f"{folder} has no finished stage yet. Wait for one, or start it: longgame audit {folder}")
    return run


def print_left(plan: Plan, folder: Path, console: Console) -> None:
    """Print what is finished of a run and what is left, from the files of the run alone."""
    run = Run(folder, plan.recipe)
    stages = run.finished_stages
    total, finished = len(plan.stages), sum(stages.values())
    console.print(
        f"{folder}: {finished:,} of {len(stages) * total:,} stages of {len(stages):,} trials are finished. Nothing was "
        "written. The data, models and code that its recipe names were not read: add --trust-code for an estimate of "
        "the time left, which reads them.",
        markup=False,
        highlight=False,
    )


def condition_places(plan: Plan, names: list[str]) -> pd.DataFrame:
    """condition and its place on every axis and on every key of `axes.vary`, a row each."""
    recipe = plan.recipe.model_dump(mode="json")
    own = {**plan.conditions[""].values, **{key: _value_name(recipe, key) for key in sorted(plan.recipe.axes.vary)}}
    rows = [
        {"condition": name, **own, **dict(part.split("=", 1) for part in name.split(",") if part)} for name in names
    ]
    places = pd.DataFrame(rows).astype(object)
    places["budget"] = places["budget"].astype(float)
    return places


def _value_name(recipe: dict[str, Any], key: str) -> str:
    """The recipe's own value of a dotted key, as names of conditions write values."""
    value = value_at(recipe, key)
    return "default" if value is None else value_name(value)


def _differences(old: Any, new: Any, where: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in sorted({*old, *new}):
            lines += _differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
        return lines
    if (
        isinstance(old, list)
        and isinstance(new, list)
        and len(old) == len(new)
        and any(isinstance(x, dict) for x in old)
    ):
        pairs = zip(old, new, strict=True)
        return [line for i, (a, b) in enumerate(pairs) for line in _differences(a, b, f"{where}.{i}")]
    return [] if old == new else [f"{where}: {old!r} there, {new!r} now"]


def _comparable(old: Recipe, new: Recipe) -> tuple[dict[str, Any], dict[str, Any]]:
    """What must be equal for one recipe to resume the other's run: selectors only where both have one of that name."""
    shared = {spec.key for spec in old.selectors} & {spec.key for spec in new.selectors}
    contents = []
    for recipe in (old, new):
        selectors = {spec.key: spec.model_dump(mode="json") for spec in recipe.selectors if spec.key in shared}
        contents.append({**measured_by(recipe), "axes": None, "seeds": None, "selectors": selectors})
    return contents[0], contents[1]
