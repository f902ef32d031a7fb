"""Durable parts of a run: what is finished is complete on disk, what is not finished leaves no trace.

Every folder is written as ``NAME.PID.part``, flushed to disk, and renamed.
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
from longgame.errors import ResumeError
from longgame.storage import DONE, digests, durable_folder, read_done, sealed, unreadable

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

    def path(self, name: str) -> Path:
        return self.folder / name

    def has(self, name: str) -> bool:
        """Whether this part is finished; a finished part of another recipe is an error, never used.

        Raises:
            ResumeError: the part belongs to another recipe, or its mark cannot be read.
        """
        path = self.path(name) / DONE
        if not path.is_file():
            return False
        mark = read_done(path)
        if mark["key"] != self.key:
            raise ResumeError(
                f"{path.parent} was made by another recipe (key {mark['key']}, expected {self.key}). Use another --out."
            )
        if mark.get("part", name) != name:
            raise unreadable(path, ValueError(f"it is that of {mark['part']}"))
        return True

    def check(self, name: str) -> None:
        """Compare every file of a finished part with its digest.

        Raises:
            ResumeError: as `has`; or a file is missing or not what was written.
        """
        if not self.has(name):
            raise unreadable(self.path(name) / DONE, FileNotFoundError("it is missing"))
        expected = read_done(self.path(name) / DONE).get("sha256")
        if expected is None:  # of an older version
            return
        actual = digests(self.path(name))
        for file, digest in expected.items():
            if actual.get(file) != digest:
                reason = "its content is not what was written" if file in actual else "it is missing"
                raise unreadable(self.path(name) / file, ValueError(reason))

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Scratch folder that becomes the finished part ``name`` when the block ends well."""
        with durable_folder(self.path(name)) as part:
            yield part
            mark = {"key": self.key, "part": name, "sha256": digests(part), **self._contents}
            (part / DONE).write_text(sealed(mark), encoding="utf-8")

    def finished_stages(self, stages: int) -> int:
        """How many stages, from the first on, are durable."""
        done = 0
        while done < stages and self.has(f"stage-{done + 1}"):
            done += 1
        return done
