"""Copies of a run's folder on machines that do not see it, and the way of finished parts back into it."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longgame.storage import durable_folder, write_file


@dataclass(frozen=True)
class Store:
    """The folder that jobs write into, and what a node that does not see it needs of it."""

    folder: Path
    parts: Callable[[str], tuple[Sequence[str], str]]
    """Name of a job → the paths in the folder that it reads, and the folder in it that it writes."""
    texts: Mapping[str, bytes] = field(default_factory=dict)
    """Files that a copy has in place of the folder's."""


@dataclass(frozen=True)
class Copy:
    """What a job needs on a node that does not see the store."""

    folder: str
    """The driver's, as the job's arguments name it."""
    files: Sequence[Any]
    """References to (relative path → bytes)."""
    writes: str


class Parcel:
    """A copy of a run's folder on a node, and what a job adds to it.

    Args:
        contents: (relative path → bytes) of what `Copy.files` refers to.
        scratch: folder of the copy; what an earlier job of this process needed of it stays.
    """

    def __init__(self, copy: Copy, contents: Sequence[Mapping[str, bytes]], scratch: Path) -> None:
        self._copy, self._scratch = copy, scratch
        shutil.rmtree(scratch / copy.writes, ignore_errors=True)
        for files in contents:
            for name, content in files.items():
                path = scratch / name
                if not path.is_file() or path.stat().st_size != len(content) or path.read_bytes() != content:
                    write_file(path, content)
        self._sent = set(_files(scratch / copy.writes))

    def unpacked(self, arguments: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(str(self._scratch) if value == self._copy.folder else value for value in arguments)

    def finished(self) -> tuple[dict[str, bytes], list[str]]:
        """Files that were finished since the last call, and the names of all."""
        folder = self._scratch / self._copy.writes
        names = _files(folder)
        files = {name: (folder / name).read_bytes() for name in names if name not in self._sent}
        self._sent |= set(files)
        return files, names

    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        """Content of these files."""
        return {name: (self._scratch / self._copy.writes / name).read_bytes() for name in names}


def _files(folder: Path) -> list[str]:
    """Relative names of the files of finished entries."""
    return sorted(
        str(path.relative_to(folder))
        for entry in (folder.iterdir() if folder.is_dir() else ())
        if entry.suffix != ".part"
        for path in ([entry] if entry.is_file() else entry.rglob("*"))
        if path.is_file()
    )


def write_finished(
    folder: Path,
    files: Mapping[str, bytes],
    names: Sequence[str],
    read: Callable[[Sequence[str]], Mapping[str, bytes]] | None = None,
) -> None:
    """Write finished entries of a job, each as a whole, and delete what the job deleted.

    Args:
        names: all finished files of the job.
        read: gives files of which an earlier message was lost; None: they may still be missing.
    """
    missing = set(names) - set(files) - set(_files(folder))
    if missing and read is not None:
        files = {**files, **read(sorted(missing))}
    for entry, group in itertools.groupby(sorted(files), key=lambda name: name.partition("/")[0]):
        members = list(group)
        if members == [entry]:
            write_file(folder / entry, files[entry])
            continue
        with durable_folder(folder / entry) as part:
            for name in members:
                path = part.parent / part.name / name.partition("/")[2]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(files[name])
    for name in set(_files(folder)) - set(names):
        path = folder / name
        path.unlink()
        with suppress(OSError):  # not empty yet
            path.parent.rmdir()


def packed(folder: Path, path: str) -> dict[str, bytes]:
    """The finished files of a part of the store."""
    return {f"{path}/{name}": (folder / path / name).read_bytes() for name in _files(folder / path)}
