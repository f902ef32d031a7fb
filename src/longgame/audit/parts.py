"""A finished part of a run (a trial's stage, or the shared work of a seed) as one file.

``stage-1.zip`` is an uncompressed ZIP archive whose first member is the mark (``done.json``): its key and the SHA-256
of every file of the part. A folder inside the part stands beside it as ``stage-1.NAME``, so that other programs can use
it (an adapter, say). Runs of older versions have a folder ``stage-1`` with the same files, which is read, too.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longgame.storage import (
    DONE,
    checked_mark,
    digests,
    flush_all,
    open_file,
    part_file,
    read_done,
    read_file,
    scratch,
    sealed,
    state_of,
    storage_errors,
    unreadable,
)

SUFFIX = ".zip"
_HEADER = struct.Struct("<4s5H3I2H")
"""Of a member of a ZIP archive: signature, version, flags, method, time, date, CRC, two sizes, two lengths."""
_HEAD_BYTES = 16_384
"""Read at once of a part's beginning, where its mark is."""
_DAMAGED = (OSError, zipfile.BadZipFile, zlib.error, LookupError, ValueError, RuntimeError, struct.error, EOFError)
_MARK_NAME = DONE.encode()
_DATE = (1980, 1, 1, 0, 0, 0)
"""Of every member, so that equal parts are equal bytes."""


@dataclass(frozen=True)
class FinishedPart:
    """A finished part on disk."""

    path: Path
    """The archive; of an older version, the folder."""

    @staticmethod
    def find(folder: Path, name: str) -> FinishedPart | None:
        """The part of this name in a trial's folder; None: it is not finished."""
        archive = folder / f"{name}{SUFFIX}"
        if archive.exists():
            return FinishedPart(archive)
        older = folder / name
        return FinishedPart(older) if (older / DONE).is_file() else None

    @property
    def name(self) -> str:
        return self.path.name.removesuffix(SUFFIX)

    @property
    def _is_archive(self) -> bool:
        return self.path.name.endswith(SUFFIX)

    @property
    def finished_at(self) -> float:
        """Seconds since the epoch."""
        return (self.path if self._is_archive else self.path / DONE).stat().st_mtime

    def folder(self, name: str) -> Path:
        """Where a folder of the part is."""
        return self.path.with_name(f"{self.name}.{name}") if self._is_archive else self.path / name

    def mark_bytes(self) -> bytes:
        """The mark as it is written.

        Raises:
            ResumeError: it cannot be read.
        """
        path = self.path / DONE
        try:
            return _first_member(self.path) if self._is_archive else read_file(path)
        except _DAMAGED as error:
            raise unreadable(path, error) from error

    def mark(self) -> dict[str, Any]:
        """Key, name and digests of the part's files.

        Raises:
            ResumeError: it is damaged or was edited.
        """
        path = self.path / DONE
        if not self._is_archive:
            return read_done(path)
        try:
            content = json.loads(self.mark_bytes())
        except (ValueError, RecursionError) as error:
            raise unreadable(path, error) from error
        return checked_mark(content, path)

    def read(self, name: str) -> bytes:
        """Content of a file of the part, compared with its digest.

        Raises:
            ResumeError: it cannot be read, or is not what was written.
        """
        path = self.path / name
        if not self._is_archive:
            return part_file(path)
        try:
            with open_file(self.path) as file, zipfile.ZipFile(file) as archive:
                info = archive.getinfo(name)
                if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                    raise ValueError("it is compressed")
                content = archive.read(info)
        except _DAMAGED as error:
            raise unreadable(path, error) from error
        if hashlib.sha256(content).hexdigest() != self.mark().get("sha256", {}).get(name):
            raise unreadable(path, ValueError("its content is not what was written"))
        return content

    def has(self, name: str) -> bool:
        """Whether the part has such a file; of an older version's mark without digests, whether it is there."""
        digests_of = self.mark().get("sha256")
        return name in digests_of if digests_of is not None else (self.path / name).is_file()

    def json(self, name: str) -> Any:
        """A JSON file of the part.

        Raises:
            ResumeError: as `read`, or it is no JSON.
        """
        try:
            return json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            raise unreadable(self.path / name, error) from error

    def state(self, name: str) -> Any:
        """What `longgame.storage.write_state` wrote.

        Raises:
            ResumeError: as `read`, or its two files do not belong together.
        """
        return state_of(self.read, name, self.path)

    def check(self) -> None:
        """Compare every file of the part, and of its folders, with its digest.

        Raises:
            ResumeError: a file is missing or not what was written.
        """
        expected = self.mark().get("sha256")
        if expected is None:  # of an older version
            return
        if not self._is_archive:
            _compare(expected, digests(self.path), self.path)
            return
        inside = {name: digest for name, digest in expected.items() if "/" not in name}
        for name in inside:
            self.read(name)
        for folder in dict.fromkeys(name.partition("/")[0] for name in expected.keys() - inside.keys()):
            files = {name: digest for name, digest in expected.items() if name.startswith(f"{folder}/")}
            place = self.folder(folder)
            actual = {f"{folder}/{name}": digest for name, digest in digests(place).items()} if place.is_dir() else {}
            _compare(files, actual, self.path)


def _compare(expected: Mapping[str, str], actual: Mapping[str, str], path: Path) -> None:
    for file, digest in expected.items():
        if actual.get(file) != digest:
            reason = "its content is not what was written" if file in actual else "it is missing"
            raise unreadable(path / file, ValueError(reason))


def _first_member(path: str | Path) -> bytes:
    """Content of the mark, which is the first member of the archive: the archive's directory is not read."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a report opens thousands: no file object
    try:
        state = os.fstat(handle)
        if not stat.S_ISREG(state.st_mode):
            raise ValueError("it is a folder, a pipe or a device, not a file")
        head = os.read(handle, _HEAD_BYTES)
        signature, _, _, method, _, _, crc, packed, size, name, extra = _HEADER.unpack_from(head)
        start = _HEADER.size + name + extra
        if signature != b"PK\x03\x04" or head[_HEADER.size : _HEADER.size + name] != _MARK_NAME or method:
            raise ValueError("it does not begin with a mark")
        if packed != size or start + size > state.st_size:
            raise ValueError("it is cut off")
        content = head[start : start + size]
        while len(content) < size and (more := os.read(handle, size - len(content))):
            content += more
    finally:
        os.close(handle)
    if zlib.crc32(content) != crc:
        raise ValueError("its content is not what was written")
    return content


@contextmanager
def writing_part(folder: Path, name: str, mark: Mapping[str, Any]) -> Iterator[Path]:
    """Give a scratch folder that becomes the finished part when the block ends well.

    Its own folders are put into their places first and its archive last, so that a part that is there is complete.

    Args:
        folder: of the trial.
        mark: entries of the mark besides the digests.

    Raises:
        StorageError: the disk is full or not writable.
    """
    target = folder / f"{name}{SUFFIX}"
    part, packed = scratch(folder / name), scratch(target)
    with storage_errors(target):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            yield part
            inner = sorted(path for path in part.iterdir() if path.is_dir())
            files = {path.name: path.read_bytes() for path in sorted(part.iterdir()) if path.is_file()}
            beside = {name: digest for name, digest in digests(part).items() if "/" in name}
            write_archive(packed, mark, files, beside)
            flush_all([packed, *(path for place in inner for path in (*place.rglob("*"), place))])
            for place in inner:
                final = folder / f"{name}.{place.name}"
                shutil.rmtree(final, ignore_errors=True)
                place.rename(final)
            if inner:
                flush_all([folder])
            packed.replace(target)
            flush_all([folder])
            if (folder / name).is_dir():  # what a kill left of an older version
                shutil.rmtree(folder / name)
        finally:
            packed.unlink(missing_ok=True)
            shutil.rmtree(part, ignore_errors=True)


def write_archive(
    path: Path, mark: Mapping[str, Any], files: Mapping[str, bytes], beside: Mapping[str, str] | None = None
) -> None:
    """Write an archive of a part: its mark, which holds the digests of all files, and the files.

    Args:
        mark: its other entries.
        beside: digests of the files in the part's folders, which stand beside the archive.
    """
    inside = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    members: dict[str, str | bytes] = {DONE: sealed({**mark, "sha256": {**inside, **(beside or {})}}), **files}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, _DATE), content)


def is_finished(folder: str, name: str) -> bool:
    """Whether a part is finished: `FinishedPart.find` without a path object, of which a report would make thousands.

    Raises:
        OSError: its folder may not be read.
    """
    return _mode(f"{folder}/{name}{SUFFIX}") != 0 or stat.S_ISREG(_mode(f"{folder}/{name}/{DONE}"))


def _mode(path: str) -> int:
    """Mode of a file; 0 where there is none, and of a link that leads nowhere."""
    try:
        return os.stat(path).st_mode  # noqa: PTH116
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return 0
        raise


def mark_of(folder: str, name: str) -> bytes | None:
    """The mark of a part as it is written (`FinishedPart.mark_bytes`); None: the part is not finished.

    Raises:
        ResumeError: it cannot be read.
    """
    path = f"{folder}/{name}{SUFFIX}"
    try:
        return _first_member(path)
    except FileNotFoundError:
        part = FinishedPart.find(Path(folder), name)
        return part.mark_bytes() if part else None
    except _DAMAGED as error:
        raise unreadable(Path(path) / DONE, error) from error


def _paths(run: Path) -> Iterator[Path]:
    for kind in ("seeds", "trials"):
        yield from run.glob(f"{kind}/*/*{SUFFIX}")
        yield from (mark.parent for mark in run.glob(f"{kind}/*/*/{DONE}"))


def finished_parts(run: Path) -> list[FinishedPart]:
    """All finished parts of a run, in the order of their paths."""
    return [FinishedPart(path) for path in sorted(_paths(run))]


def has_parts(run: Path) -> bool:
    """Whether anything of a run is finished."""
    return next(_paths(run), None) is not None
