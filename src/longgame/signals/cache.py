"""Signals kept by content: what was computed once for the same weights, examples and settings is read from disk."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from longgame.data.examples import Pool
from longgame.durable import write_file
from longgame.errors import StorageError
from longgame.signals.base import SIGNALS
from longgame.signals.fingerprint import pool_fingerprint

Engine = Callable[[Pool, Sequence[str]], Mapping[str, np.ndarray]]
"""What computes signals: `SignalEngine`, or anything that is called like it."""

_SUFFIX = ".safetensors"
_STALE_SECONDS = 3600.0
"""Age from which a half-written file is taken for that of a killed process."""
_log = logging.getLogger(__name__)


class SignalCache:
    """A directory of signal columns, one file each, at most ``max_bytes`` in all; the longest unused go first.

    A column's name on disk is the digest of all it depends on: weights, adapter state, configuration, tokenizer,
    settings, code and software (`signal_fingerprint`), the examples' ids, tokens and prompt lengths
    (`pool_fingerprint`), the signal, and whether gradients were taken in the same pass. There is nothing to
    invalidate. Processes may share a directory: files appear whole, and equal names hold equal bytes.

    A cache is never needed: a file that is damaged is computed again and one that cannot be written is left out, both
    with a warning in the log.

    Args:
        directory: made when something is first kept.
        max_bytes: bound of the directory's size.
    """

    def __init__(self, directory: str | Path, max_bytes: int = 2 << 30) -> None:
        self.directory = Path(directory)
        self.max_bytes = int(max_bytes)
        self._writable = True

    def __call__(
        self, engine: Engine, pool: Pool, names: Sequence[str], fingerprint: str | None
    ) -> dict[str, np.ndarray]:
        """Give ``engine(pool, names)``, from disk where all of these columns are there.

        Args:
            fingerprint: what ``engine`` computes with, as it is now (`signal_fingerprint`); None keeps nothing.

        Raises:
            LonggameError: whatever the engine raises.
        """
        if fingerprint is None:
            return dict(engine(pool, names))
        content = pool_fingerprint(pool)
        backward = any(name in SIGNALS and SIGNALS[name].cost == "backward" for name in names)
        keys = {name: _key(fingerprint, content, name, backward) for name in names}
        held = {name: self._read(key, len(pool)) for name, key in keys.items()}
        kept = {name: column for name, column in held.items() if column is not None}
        if len(kept) == len(keys):
            return kept
        found = dict(engine(pool, names))
        for name, column in found.items():
            if name not in kept:
                self._write(keys[name], column)
        if self._writable:
            try:
                self._shrink()
            except OSError as error:
                self._give_up(error)
        return found

    def _read(self, key: str, rows: int) -> np.ndarray | None:
        path = self.directory / f"{key}{_SUFFIX}"
        try:
            if not path.is_file():
                return None
            with safe_open(path, framework="numpy") as file:
                column = file.get_tensor("column")
                intact = (file.metadata() or {}).get("digest") == _digest(column) and len(column) == rows
        except FileNotFoundError:  # another process made room
            return None
        except (OSError, SafetensorError, ValueError) as error:
            _log.warning("%s cannot be read (%s); the signal is computed again.", path, error)
            return None
        if not intact:
            _log.warning("%s is damaged; the signal is computed again.", path)
            return None
        with suppress(OSError):  # gone meanwhile, or not ours to change: then its age decides
            os.utime(path)
        return column

    def _write(self, key: str, column: np.ndarray) -> None:
        column = np.ascontiguousarray(column)
        if not self._writable or column.nbytes > self.max_bytes:
            return
        try:
            data = save({"column": column}, metadata={"digest": _digest(column)})
            write_file(self.directory / f"{key}{_SUFFIX}", data)
        except StorageError as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._writable = False
        _log.warning("signals are not kept: %s", error)

    def _shrink(self) -> None:
        """Delete the longest unused columns until the rest fits, and what killed processes left half-written."""
        if not self.directory.is_dir():
            return
        found = []
        for path in self.directory.iterdir():
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            if path.name.endswith(_SUFFIX):
                found.append((status.st_mtime_ns, path.name, status.st_size))
            elif path.name.endswith(".part") and time.time() - status.st_mtime > _STALE_SECONDS:
                path.unlink(missing_ok=True)
        total = sum(size for _, _, size in found)
        for _, name, size in sorted(found):
            if total <= self.max_bytes:
                return
            (self.directory / name).unlink(missing_ok=True)
            total -= size


def _key(fingerprint: str, content: str, name: str, backward: bool) -> str:
    text = "\x1e".join([fingerprint, content, name, "backward" if backward else "forward"])
    return blake2b(text.encode(), digest_size=20).hexdigest()


def _digest(column: np.ndarray) -> str:
    kind = f"{column.dtype.str} {column.shape} ".encode()
    return blake2b(kind + column.tobytes(), digest_size=16).hexdigest()
