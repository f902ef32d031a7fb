"""Writing that a kill or a full disk cannot tear: scratch name, flush to disk, rename.

What stands under its final name is whole. A scratch name is ``NAME.PID.part``, so that two processes that write the
same thing do not meet; the last rename wins.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
from safetensors import SafetensorError

from longgame.errors import StorageError

ADVICE = "Free the disk or choose another directory, and run the same command again; what was finished stays."


@contextmanager
def storage_errors(what: Path, advice: str = ADVICE) -> Iterator[None]:
    """Turn whatever hinders writing (a full disk, no permission …) into a StorageError that says what to do.

    safetensors and Arrow have exceptions of their own for a failed write.
    """
    try:
        yield
    except (OSError, SafetensorError, pa.ArrowException) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise StorageError(f"cannot write {what}: {reason}. {advice}") from error


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_all(paths: Sequence[Path]) -> None:
    """Flush files and folders side by side: a disk takes many at once in little more than the time of one."""
    with ThreadPoolExecutor(max_workers=min(8, len(paths))) as pool:
        for _ in pool.map(flush, paths):
            pass


def scratch(path: Path) -> Path:
    """Name under which this process writes what will be ``path``."""
    return path.with_name(f"{path.name}.{os.getpid()}.part")


def write_file(path: Path, content: str | bytes, advice: str = ADVICE) -> None:
    """Write one file, making the folders above it.

    Raises:
        StorageError: the disk is full or not writable; an older file of that name stays as it was.
    """
    part = scratch(path)
    data = content.encode() if isinstance(content, str) else content
    with storage_errors(path, advice):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        flush(path.parent)


@contextmanager
def durable_folder(folder: Path, advice: str = ADVICE) -> Iterator[Path]:
    """Give a scratch folder; when the block ends well it becomes ``folder``, whole and flushed to disk.

    What stood under that name before gives way.

    Raises:
        StorageError: the disk is full or not writable.
    """
    part = scratch(folder)
    with storage_errors(folder, advice):
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            yield part
            _flush_all([*part.rglob("*"), part])
            if folder.exists():
                shutil.rmtree(folder)
            part.rename(folder)
            flush(folder.parent)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
