"""Durable parts of a run: what is finished is complete on disk, what is not finished leaves no trace.

Every part is written as ``NAME.zip.PID.part``, flushed to disk, and renamed (`longgame.audit.parts`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from longgame.audit.checks import file_contents, row_contents
from longgame.audit.parts import SUFFIX, FinishedPart, writing_part
from longgame.errors import ResumeError
from longgame.storage import DONE, unreadable

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


RECORDS = "records.parquet"
"""File of a part: its tidy rows."""
CONTAMINATION = "contamination.json"
"""File of a seed's shared work: `longgame.data.sequences.Contamination` of its data."""


def records_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Make tidy records of these rows; absent text columns are "", absent counts −1."""
    full = [{**_DEFAULTS, **row} for row in rows]
    return pd.DataFrame(
        {name: pd.Series([row[name] for row in full], dtype=kind) for name, kind in RECORD_COLUMNS.items()}
    )


def content_hash(recipe: str, **more: Any) -> str:
    """Content hash of what a record depends on: a recipe as JSON (see `measured_by`), and more, by name behind it."""
    text = f'{{"recipe": {recipe}, {json.dumps(more, sort_keys=True)[1:]}'
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class StageStore:
    """The durable stages of one trial (or the shared work of one seed).

    Args:
        folder: where they are, each in a folder of its own.
        key: content hash of what they depend on.
        plugins: names of the selector and the scorers, of which some are files.
    """

    def __init__(self, folder: Path, key: str, plugins: Sequence[str] = ()) -> None:
        self.folder = folder
        self.key = key
        self._plugins = plugins
        self._contents: dict[str, dict[str, str]] = {}

    def noting_files(self, candidates: Collection[str] = ()) -> StageStore:
        """This store, which from now on writes the content hashes of selector and scorer files into finished parts.

        Call it before the files are read.

        Args:
            candidates: ids of all stages' candidates, whose rows in a file of scores are hashed, too.
        """
        contents = {"files": file_contents(self._plugins), "rows": row_contents(self._plugins, candidates)}
        self._contents = {kind: hashes for kind, hashes in contents.items() if hashes}
        return self

    def has(self, name: str) -> bool:
        """Whether this part is finished; a finished part of another recipe is an error, never used.

        Raises:
            ResumeError: the part belongs to another recipe, or its mark cannot be read.
        """
        part = FinishedPart.find(self.folder, name)
        if part is not None:
            self._check_mark(part, name)
        return part is not None

    def _check_mark(self, part: FinishedPart, name: str) -> None:
        mark = part.mark()
        if mark["key"] != self.key:
            raise ResumeError(
                f"{part.path} was made by another recipe (key {mark['key']}, expected {self.key}). Use another --out."
            )
        if mark.get("part", name) != name:
            raise unreadable(part.path / DONE, ValueError(f"it is that of {mark['part']}"))

    def part(self, name: str) -> FinishedPart:
        """A finished part, after its key was compared.

        Raises:
            ResumeError: as `has`, or it is missing.
        """
        part = FinishedPart.find(self.folder, name)
        if part is None:
            raise unreadable(self.folder / f"{name}{SUFFIX}", FileNotFoundError("it is missing"))
        self._check_mark(part, name)
        return part

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Scratch folder that becomes the finished part ``name`` when the block ends well."""
        with writing_part(self.folder, name, {"key": self.key, "part": name, **self._contents}) as part:
            yield part

    def finished_stages(self, stages: int) -> int:
        """How many stages, from the first on, are durable."""
        done = 0
        while done < stages and self.has(f"stage-{done + 1}"):
            done += 1
        return done
