"""The run directory: what is finished is durable, what is not finished leaves no trace.

```
RUN/
  recipe.yaml            the resolved recipe; another recipe in the same directory is refused
  environment.json       versions, threads, machine
  seeds/seed-0/          frozen pass and row 0 of R, shared by all trials of the seed
  trials/loss-s0/stage-1 records.parquet, selection.parquet, policy.json + .safetensors, learner/, done.json
  trials/loss-s0@budget=0.1/…            the same under another condition (see `longgame.audit.plan`)
  results.parquet  scorecard.md  report.html
```

Every folder is written as ``NAME.PID.part``, flushed to disk, and renamed: it is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from longgame.audit.checks import file_contents, plugin_names, row_contents
from longgame.audit.plan import Condition, Trial, expand, measured_by, plan_trials, selector_content
from longgame.errors import ResumeError, StorageError
from longgame.recipe import Recipe
from longgame.storage import durable_folder, read_json, storage_errors, write_file

RECORD_COLUMNS = {
    "trial": "string",
    "selector": "string",
    "seed": "int64",
    "kind": "string",
    "stage": "int64",
    "task": "string",
    "task_kind": "string",
    "sub_skill": "string",
    "scorer": "string",
    "probe": "string",
    "step": "int64",
    "tokens": "int64",
    "name": "string",
    "value": "float64",
    "unit": "string",
}
"""A trial's tidy records: one row per measurement (see docs/results-format.md)."""

CONDITION_COLUMNS = {
    "condition": "string",
    "budget": "float64",
    "rounds": "string",
    "adaptation": "string",
    "order": "string",
}
"""What a run's results add to the records: the condition of the trial, and its place on the axes with a name."""

RESULT_COLUMNS = RECORD_COLUMNS | CONDITION_COLUMNS

RECIPE, LOCK = "recipe.yaml", "audit.lock"

_DEFAULTS: dict[str, Any] = {
    "task": "",
    "task_kind": "",
    "sub_skill": "",
    "scorer": "",
    "probe": "",
    "step": -1,
    "tokens": -1,
    "name": "",
    "unit": "",
}


def records_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Make tidy records of these rows; absent text columns are "", absent counts −1."""
    full = [{**_DEFAULTS, **row} for row in rows]
    return pd.DataFrame(
        {name: pd.Series([row[name] for row in full], dtype=kind) for name, kind in RECORD_COLUMNS.items()}
    )


def content_hash(recipe: Mapping[str, Any], **more: Any) -> str:
    """Content hash of what a record depends on: a recipe (see `measured_by`) and more."""
    text = json.dumps({"recipe": recipe, **more}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class StageStore:
    """The durable stages of one trial (or the shared work of one seed).

    Args:
        folder: where they stand, each in a folder of its own.
        key: content hash of what they depend on.
        plugins: names of the selector and the scorers; the contents of those that are files are noted.
    """

    def __init__(self, folder: Path, key: str, plugins: Sequence[str] = ()) -> None:
        self.folder = folder
        self.key = key
        self._plugins = plugins
        self._contents: dict[str, dict[str, str]] = {}

    def begun(self, candidates: Collection[str] = ()) -> StageStore:
        """The store, when it has noted what is in the files of selector and scorers, before they are read.

        Args:
            candidates: ids of all stages' candidates; of a file of scores what it says about them is noted, too.
        """
        noted = {"files": file_contents(self._plugins), "rows": row_contents(self._plugins, candidates)}
        self._contents = {kind: held for kind, held in noted.items() if held}
        return self

    def path(self, name: str) -> Path:
        return self.folder / name

    def has(self, name: str) -> bool:
        """Whether this part is finished; a finished part of another recipe is an error, never used.

        Raises:
            ResumeError: the part belongs to another recipe, or its mark cannot be read.
        """
        mark = self.path(name) / "done.json"
        if not mark.is_file():
            return False
        found = read_json(mark)
        found = found.get("key") if isinstance(found, dict) else None
        if found != self.key:
            raise ResumeError(
                f"{mark.parent} was made by another recipe (key {found}, expected {self.key}). Use another --out."
            )
        return True

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Scratch folder that becomes the finished part ``name`` when the block ends well."""
        with durable_folder(self.path(name)) as part:
            yield part
            (part / "done.json").write_text(json.dumps({"key": self.key, **self._contents}) + "\n")

    def finished_stages(self, stages: int) -> int:
        """How many stages, from the first on, are durable."""
        done = 0
        while done < stages and self.has(f"stage-{done + 1}"):
            done += 1
        return done


def _differences(old: Any, new: Any, where: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted({*old, *new}):
            found += _differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
        return found
    if (
        isinstance(old, list)
        and isinstance(new, list)
        and len(old) == len(new)
        and any(isinstance(x, dict) for x in old)
    ):
        pairs = zip(old, new, strict=True)
        return [line for i, (a, b) in enumerate(pairs) for line in _differences(a, b, f"{where}.{i}")]
    return [] if old == new else [f"{where}: {old!r} there, {new!r} now"]


def _where_held(recipe: Recipe, held: Recipe) -> Recipe:
    """The recipe with the data folder that the run was begun with, by which finished stages are keyed."""
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"data_dir": held.data.data_dir})})


def _compared(held: Recipe, now: Recipe) -> tuple[dict[str, Any], dict[str, Any]]:
    """What must be equal for one run to go on as the other: selectors only where both have one of that name."""
    both = {spec.key for spec in held.selectors} & {spec.key for spec in now.selectors}
    sides = []
    for recipe in (held, now):
        own = {**measured_by(recipe), "axes": None, "seeds": None}
        own["selectors"] = {spec.key: spec.model_dump(mode="json") for spec in recipe.selectors if spec.key in both}
        sides.append(own)
    return sides[0], sides[1]


class RunDirectory:
    """One audit on disk."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder = folder
        self.recipe = recipe
        self._contents: dict[tuple[str, bool, str], dict[str, Any]] = {}

    @cached_property
    def conditions(self) -> dict[str, Condition]:
        """The recipe's conditions by name; the recipe's own comes first and is called ""."""
        return {condition.name: condition for condition in expand(self.recipe)}

    @cached_property
    def trials(self) -> list[Trial]:
        """Every trial that the recipe asks for, finished or not."""
        return plan_trials(self.recipe)

    @classmethod
    def create(cls, folder: Path, recipe: Recipe) -> RunDirectory:
        """Open the directory for this recipe, new or to be resumed; what a kill left half-written is cleared away.

        Raises:
            ResumeError, StorageError: as `check`; or it cannot be written.
        """
        held = cls.check(folder, recipe)
        if held is None:
            with storage_errors(folder):
                (folder / "environment.json").unlink(missing_ok=True)
        run = cls(folder, recipe if held is None else _where_held(recipe, held.recipe))
        if held is None or held.recipe != run.recipe:
            write_file(folder / RECIPE, yaml.safe_dump(run.recipe.model_dump(mode="json"), sort_keys=False))
        with storage_errors(folder):
            for stale in (path for depth in ("*.part", "*/*.part", "*/*/*.part") for path in folder.glob(depth)):
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
        return run

    @classmethod
    def check(cls, folder: Path, recipe: Recipe) -> RunDirectory | None:
        """Return the run that the directory holds and this recipe goes on with, None where nothing could be lost.

        A recipe goes on with a run if its own condition measures the same and it asks for every trial that has a
        finished stage: selectors, seeds and values of axes may be added, weights of metrics may change. A recipe that
        ended before anything was finished (a misspelt file, say) leaves the directory to the next one, and the data
        may lie elsewhere than before (`data.data_dir`): it is known by its content.

        Raises:
            ResumeError: it holds a run of another recipe (the differing keys are named), or something else.
            StorageError: it is a file.
        """
        if folder.exists() and not folder.is_dir():
            raise StorageError(f"'{folder}' is a file; results need a directory. Choose another --out.")
        if not (folder / RECIPE).is_file():
            if folder.exists() and any(path.name != LOCK for path in folder.iterdir()):
                raise ResumeError(f"{folder} is not empty and holds no run. Choose another --out.")
            return None
        if not any(folder.glob("*/*/*/done.json")):
            return None
        run = cls.open(folder)
        moved = _where_held(recipe, run.recipe)
        if moved == run.recipe:
            return run
        differing = _differences(*_compared(run.recipe, moved))
        if differing:
            raise ResumeError(
                f"{folder} holds a run of another recipe. Differing: " + "; ".join(differing) + ". "
                "Use another --out, or delete the directory."
            )
        run._check_none_lost(moved)
        return run

    def _check_none_lost(self, recipe: Recipe) -> None:
        """Raise ResumeError where a trial with a finished stage is not asked for any more."""
        wanted = {trial.name for trial in plan_trials(recipe)}
        lost = [
            trial.name
            for trial in self.trials
            if trial.name not in wanted and (self.folder / "trials" / trial.name / "stage-1" / "done.json").is_file()
        ]
        if lost:
            raise ResumeError(
                f"{self.folder} holds trials that this recipe does not ask for: {', '.join(lost[:5])}"
                f"{f' and {len(lost) - 5} more' if lost[5:] else ''}. Selectors, seeds and values of axes can be added "
                "to a run, not taken from it. Name them all, or use another --out."
            )

    @classmethod
    def open(cls, folder: Path) -> RunDirectory:
        """Open an existing run.

        Raises:
            ResumeError: the directory holds no readable recipe.yaml.
        """
        from longgame.recipe import load_recipe

        held = folder / RECIPE
        if not held.is_file():
            raise ResumeError(f"{folder} holds no run (no recipe.yaml).")
        return cls(folder, load_recipe(held))

    def seed_store(self, seed: int, condition: str = "") -> StageStore:
        """Where the shared work of a seed stands that this condition's trials start from."""
        base = self.conditions[condition].base
        name = f"seed-{seed}" + (f"@{base}" if base else "")
        key = content_hash(self._content(condition, True, seed), seed=seed)
        scorers = plugin_names(self.conditions[condition].base_recipe.model_copy(update={"selectors": ()}))
        return StageStore(self.folder / "seeds" / name, key, scorers)

    def trial_store(self, trial: str, selector: Mapping[str, Any], seed: int, condition: str = "") -> StageStore:
        key = content_hash(self._content(condition, False, seed), selector=selector_content(selector), seed=seed)
        scorers = plugin_names(self.conditions[condition].recipe.model_copy(update={"selectors": ()}))
        return StageStore(self.folder / "trials" / trial, key, (selector["name"], *scorers))

    def _content(self, condition: str, base: bool, seed: int) -> dict[str, Any]:
        """What numbers depend on, without the lists that trials are made from: siblings change nothing."""
        found = self.conditions[condition]
        recipe = (found.base_recipe if base else found.recipe).for_seed(seed)
        key = (condition, base, recipe.model.name)
        if key not in self._contents:
            self._contents[key] = {**measured_by(recipe), "selectors": [], "seeds": [], "name": "run"}
        return self._contents[key]

    def store_of(self, trial: Trial) -> StageStore:
        """The store of a planned trial."""
        return self.trial_store(trial.name, trial.selector.model_dump(mode="json"), trial.seed, trial.condition)

    def records(self) -> pd.DataFrame:
        """All finished measurements (see `longgame.audit.results.gather`)."""
        from longgame.audit.results import gather

        return gather(self)
