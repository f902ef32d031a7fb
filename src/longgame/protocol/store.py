"""The run directory: what is finished is durable, what is not finished leaves no trace.

```
RUN/
  recipe.yaml            the resolved recipe; another recipe in the same directory is refused
  environment.json       versions, threads, machine
  seeds/seed-0/          frozen pass and row 0 of R, shared by all trials of the seed
  trials/loss-s0/stage-1 records.parquet, selection.parquet, policy.json + .safetensors, learner/, done.json
  results.parquet  scorecard.md  report.html
```

Every folder is written as ``NAME.PID.part``, flushed to disk, and renamed: it is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from longgame import durable
from longgame.errors import ResumeError, StorageError
from longgame.recipe import Recipe

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
"""The tidy results: one row per measurement (see docs/results-format.md)."""

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


_ADVICE = "Finished stages are safe; free the disk (or change --out) and run the same command again."


def storage_errors(what: Path) -> AbstractContextManager[None]:
    """Turn whatever hinders writing into a StorageError that says what stays."""
    return durable.storage_errors(what, _ADVICE)


def durable_folder(folder: Path) -> AbstractContextManager[Path]:
    """Give a scratch folder; when the block ends well it becomes ``folder`` (see `longgame.durable`).

    Raises:
        StorageError: the disk is full or not writable.
    """
    return durable.durable_folder(folder, _ADVICE)


def write_file(path: Path, content: str | bytes) -> None:
    """Write one file durably.

    Raises:
        StorageError: the disk is full or not writable; an older file of that name stays as it was.
    """
    durable.write_file(path, content, _ADVICE)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file durably (sorted keys, so that equal values give equal bytes)."""
    write_file(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def records_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Make tidy records of these rows; absent text columns are "", absent counts −1."""
    frame = pd.DataFrame([{**_DEFAULTS, **row} for row in rows], columns=list(RECORD_COLUMNS))
    return frame.astype(RECORD_COLUMNS)


def table_bytes(frame: pd.DataFrame) -> bytes:
    """A Parquet file (zstd) of this table; equal tables give equal bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write a Parquet file inside a scratch folder."""
    path.write_bytes(table_bytes(frame))


def _unreadable(path: Path, error: Exception) -> ResumeError:
    """The error for a damaged file, with what to delete: the whole trial, as earlier stages do not keep their model."""
    whole = next((parent for parent in path.parents if parent.parent.name in ("trials", "seeds")), path)
    return ResumeError(
        f"{path} cannot be read ({error}). Delete {whole} and run the command again; only what was in it is done anew."
    )


def read_table(path: Path) -> pd.DataFrame:
    """Read a Parquet file of the run.

    Raises:
        ResumeError: the file cannot be read.
    """
    try:
        return pq.read_table(path).to_pandas()
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def read_json(path: Path) -> Any:
    """Read a JSON file of the run.

    Raises:
        ResumeError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def recipe_hash(recipe: Recipe, **more: Any) -> str:
    """Content hash of a recipe and what else a record depends on."""
    text = json.dumps({"recipe": recipe.model_dump(mode="json"), **more}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class StageStore:
    """The durable stages of one trial (or the shared work of one seed)."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self.key = key

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
            (part / "done.json").write_text(json.dumps({"key": self.key}) + "\n")

    def finished_stages(self, stages: int) -> int:
        """How many stages, from the first on, are durable."""
        done = 0
        while done < stages and self.has(f"stage-{done + 1}"):
            done += 1
        return done


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write NumPy arrays as safetensors."""
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read what `write_arrays` wrote.

    Raises:
        ResumeError: the file is missing or damaged.
    """
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


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


class RunDirectory:
    """One audit on disk."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder = folder
        self.recipe = recipe

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
            write_file(folder / RECIPE, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
        with storage_errors(folder):
            for stale in folder.rglob("*.part"):
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
        return held or cls(folder, recipe)

    @classmethod
    def check(cls, folder: Path, recipe: Recipe) -> RunDirectory | None:
        """Return the run of this recipe that the directory holds, None where it holds nothing that could be lost.

        A recipe that ended before anything was finished (a misspelt file, say) leaves the directory to the next one,
        and the data may lie elsewhere than before (`data.data_dir`): it is known by its content.

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
        moved = recipe.model_copy(
            update={"data": recipe.data.model_copy(update={"data_dir": run.recipe.data.data_dir})}
        )
        differing = _differences(run.recipe.model_dump(mode="json"), moved.model_dump(mode="json"))
        if differing:
            raise ResumeError(
                f"{folder} holds a run of another recipe. Differing: " + "; ".join(differing) + ". "
                "Use another --out, or delete the directory."
            )
        return run

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

    def seed_store(self, seed: int) -> StageStore:
        return StageStore(self.folder / "seeds" / f"seed-{seed}", recipe_hash(self._shared_recipe(), seed=seed))

    def trial_store(self, trial: str, selector: Mapping[str, Any], seed: int) -> StageStore:
        key = recipe_hash(self._shared_recipe(), selector=dict(selector), seed=seed)
        return StageStore(self.folder / "trials" / trial, key)

    def _shared_recipe(self) -> Recipe:
        """The recipe without the lists that trials are made from: a trial's numbers do not depend on its siblings."""
        return self.recipe.model_copy(update={"selectors": (), "seeds": (), "name": "run"})

    def records(self) -> pd.DataFrame:
        """All finished measurements, sorted; row 0 of R stands once for every trial of its seed."""
        trials = [read_table(path) for path in sorted(self.folder.glob("trials/*/stage-*/records.parquet"))]
        if not trials:
            return records_table([])
        frame = pd.concat(trials, ignore_index=True)
        who = frame[["trial", "selector", "seed"]].drop_duplicates()
        bases = [read_table(path) for path in sorted(self.folder.glob("seeds/seed-*/base/records.parquet"))]
        base = pd.concat(bases, ignore_index=True).drop(columns=["trial", "selector"]) if bases else records_table([])
        row0 = who.merge(base, on="seed", how="inner")[list(RECORD_COLUMNS)]
        frame = pd.concat([row0, frame], ignore_index=True).astype(RECORD_COLUMNS)
        order = ["trial", "kind", "stage", "probe", "task", "scorer", "sub_skill", "name", "step"]
        return frame.sort_values(order, kind="stable", ignore_index=True)
