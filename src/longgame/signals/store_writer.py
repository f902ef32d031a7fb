"""Writing a signal store, shard by shard; a kill at any moment loses at most the shard at hand (see `store`)."""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import Float, Int

from longgame.durable import flush, storage_errors, write_file
from longgame.errors import DataError, NumericalError, PluginError, ResumeError, StorageError, unknown
from longgame.signals.store import SignalStore
from longgame.signals.store_format import (
    DTYPES,
    ENDS,
    FORMAT,
    IDS,
    MANIFEST,
    RANGES,
    PackedIds,
    Range,
    compare,
    damaged,
    descriptors,
    digest,
    header_bytes,
    part_of,
    read_manifest,
    read_ranges,
    write_at,
)


class SignalWriter:
    """Appends shards to a store, durable one by one; opened again after a kill it goes on behind the last whole shard.

    Use it as a context manager; leaving it without `finish` keeps what was appended under ``PATH.part``.

    Args:
        path: directory of the finished store.
        columns: signal name → ``float32`` or ``float16``. float16 rounds to nearest: relative error ≤ 2⁻¹¹ from
            6.1e-5 up, absolute error ≤ 3e-8 below; values beyond ±65504 are refused.
        fingerprint: what gives the numbers (`longgame.signals.fingerprint.signal_fingerprint`).

    Raises:
        StorageError: a finished store stands there, another process is writing it, or it cannot be written.
        ResumeError: what was begun there has other columns or another fingerprint, or is damaged.
        PluginError: a column's name or dtype is not allowed.
    """

    def __init__(self, path: str | Path, columns: Mapping[str, str], fingerprint: str) -> None:
        self.path = Path(path)
        self._part = part_of(self.path)
        self._columns = dict(columns)
        for name, dtype in self._columns.items():
            if dtype not in DTYPES:
                raise PluginError(f"signal '{name}' is to be stored as an " + unknown("dtype", dtype, DTYPES))
            if not name.isidentifier() or name in (IDS, ENDS):
                raise PluginError(f"'{name}' cannot be a column's name; use letters, digits and underscores.")
        if not self._columns:
            raise PluginError("a signal store needs at least one column; name the signals to be stored.")
        self._manifest = {"format": FORMAT, "columns": self._columns, "fingerprint": fingerprint}
        self._dtypes = descriptors(self._columns)
        self._files: dict[str, FileIO] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        """Of the whole files."""
        self._seen: list[np.ndarray] = []
        self.ranges: list[Range] = []
        """What is on the disk already."""
        with ExitStack() as stack:
            with storage_errors(self.path):
                self._lock(stack)
            self._resume(stack)
            self._stack = stack.pop_all()

    @property
    def rows(self) -> int:
        """Rows on the disk."""
        return self.ranges[-1].stop if self.ranges else 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def append(self, ids: Sequence[str], columns: Mapping[str, Float[np.ndarray, "m ..."]], content: str = "") -> None:
        """Add a shard; when this returns it is on the disk. Thousands of rows a call keep the flushing cheap.

        Args:
            ids: of the m rows, new to the store.
            columns: every column of the store, [m] or [m, d].
            content: digest of the examples, by which a resumed walk knows them again.

        Raises:
            DataError: no rows, or an id stands twice. PluginError: a column is missing, or its shape changes.
            NumericalError: a value is not finite, or too large for float16. StorageError: it cannot be written.
        """
        if not ids:
            raise DataError("a shard without examples was to be stored; leave it out.")
        fresh = self._new_ids(ids)
        arrays = self._encoded(ids, columns)
        with storage_errors(self.path):
            if not self._files:
                self._begin(arrays)
            for name, array in arrays.items():
                before = self._shapes[name][1:]
                if before != array.shape[1:]:
                    raise PluginError(
                        f"signal '{name}' has rows of shape {array.shape[1:]}, earlier shards {before}. "
                        "Use one configuration of the engine for the whole store."
                    )
            data = {name: array.tobytes() for name, array in arrays.items()}
            for name, part in data.items():
                write_at(self._files[name], self._end(name), part)
            for file in self._files.values():
                os.fsync(file.fileno())
            shapes = {name: array.shape for name, array in arrays.items()}
            digests = {name: digest(part) for name, part in data.items()}
            done = Range(self.rows, self.rows + len(ids), content, shapes, digests)
            line = done.line().encode()
            self._journal.truncate(self._journal_end)
            write_at(self._journal, self._journal_end, line)
            os.fsync(self._journal.fileno())
        self._journal_end += len(line)
        for name, shape in shapes.items():
            self._shapes[name] = (self._shapes[name][0] + shape[0], *shape[1:])
        self.ranges.append(done)
        self._remember(fresh)

    def finish(self) -> SignalStore:
        """Close the store: headers and manifest get the number of rows, ``PATH.part`` becomes ``PATH``.

        Raises:
            DataError: nothing was appended. StorageError: it cannot be written.
        """
        if not self.ranges:
            raise DataError(f"no example was given to {self.path}; a signal store needs at least one.")
        with storage_errors(self.path):
            for name, file in self._files.items():
                write_at(file, 0, header_bytes(self._dtypes[name], self._shapes[name]))
                os.fsync(file.fileno())
            write_file(self._part / MANIFEST, json.dumps(self._manifest | {"rows": self.rows}, indent=1) + "\n")
            self._part.rename(self.path)
            flush(self.path.parent)
        self._stack.close()
        return SignalStore(self.path)

    def _lock(self, stack: ExitStack) -> None:
        """Make the scratch folder and hold its journal; the system lets go of it however the process ends."""
        if self.path.exists():
            raise StorageError(
                f"{self.path} exists already. Read it with SignalStore.open(), delete it, or choose another directory."
            )
        self._part.mkdir(parents=True, exist_ok=True)
        place = self._part / RANGES
        others = [file.name for file in self._part.iterdir() if file != place and not file.name.startswith(MANIFEST)]
        if others and not (self._part / MANIFEST).is_file():
            raise StorageError(f"{self._part} is needed to write {self.path}, and holds '{others[0]}'. Move it away.")
        place.touch()
        self._journal = stack.enter_context(place.open("r+b", buffering=0))
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            same = os.path.samestat(os.fstat(self._journal.fileno()), place.stat())
        except (BlockingIOError, FileNotFoundError):
            same = False
        if not same:  # held, or finished and renamed since it was opened
            raise StorageError(f"another process is writing {self.path}. Wait for it, or choose another directory.")

    def _resume(self, stack: ExitStack) -> None:
        """Take up what is durable, and cut off what is behind it."""
        self.ranges, self._journal_end = read_ranges(self._part)
        begun = (self._part / MANIFEST).is_file()
        if not begun and self.ranges:
            raise damaged(self._part, f"no {MANIFEST}")
        if begun:
            held = {**read_manifest(self._part)}
            held.pop("rows", None)
            differing = [key for key, value in self._manifest.items() if held[key] != value]
            if differing:
                raise ResumeError(
                    f"{self._part} was begun with other {' and '.join(differing)}: the model, the tokenizer, the "
                    "settings or the software differ, and rows of both would be mixed. Delete it, or use another path."
                )
        if self.ranges:
            for name, dtype in self._dtypes.items():
                shapes = [part.shapes[name] for part in self.ranges]
                self._shapes[name] = (sum(shape[0] for shape in shapes), *shapes[0][1:])
                compare(self._part, name, dtype, self._offset(name), self.ranges)
        with storage_errors(self.path):
            for stale in self._part.glob(f"{MANIFEST}.*.part"):
                stale.unlink()
            if not begun:
                write_file(self._part / MANIFEST, json.dumps(self._manifest, indent=1) + "\n")
            self._journal.truncate(self._journal_end)
            for name in self._shapes:
                file = self._files[name] = stack.enter_context((self._part / f"{name}.npy").open("r+b", buffering=0))
                file.truncate(self._end(name))
        for start in range(0, self.rows, 1 << 16):
            self._remember(_hashes(self._held_ids()[start : start + (1 << 16)]))

    def _begin(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Make the column files, now that the widths are known."""
        files: dict[str, FileIO] = {}
        for name, array in arrays.items():
            files[name] = self._stack.enter_context((self._part / f"{name}.npy").open("w+b", buffering=0))
            write_at(files[name], 0, header_bytes(array.dtype, (0, *array.shape[1:])))
        flush(self._part)
        self._files, self._shapes = files, {name: (0, *array.shape[1:]) for name, array in arrays.items()}

    def _offset(self, name: str) -> int:
        """Bytes of a file's header."""
        return len(header_bytes(self._dtypes[name], self._shapes[name]))

    def _end(self, name: str) -> int:
        """Where the durable bytes of a file end."""
        return self._offset(name) + math.prod(self._shapes[name]) * self._dtypes[name].itemsize

    def _encoded(self, ids: Sequence[str], columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        text = [sample_id.encode(errors="surrogatepass") for sample_id in ids]
        base = self._shapes[IDS][0] if self._shapes else 0
        ends = base + np.cumsum([len(item) for item in text], dtype="<i8")
        arrays = {IDS: np.frombuffer(b"".join(text), dtype=np.uint8), ENDS: ends}
        for name in self._columns:
            if name not in columns or np.ndim(columns[name]) not in (1, 2) or len(columns[name]) != len(ids):
                seen = np.shape(columns[name]) if name in columns else "missing"
                raise PluginError(
                    f"signal '{name}' of a shard of {len(ids)} rows is {seen}; it must be [rows] or [rows, d]."
                )
            arrays[name] = _narrowed(name, np.asarray(columns[name]), self._dtypes[name], ids)
        return arrays

    def _new_ids(self, ids: Sequence[str]) -> np.ndarray:
        """Hashes of these ids, sorted; an id that stands twice is refused, be it in the shard or before it."""
        fresh = np.sort(_hashes(ids))
        places = [np.searchsorted(held, fresh) for held in self._seen]
        met = [held[np.minimum(at, len(held) - 1)] == fresh for held, at in zip(self._seen, places, strict=True)]
        if len(set(ids)) == len(ids) and not any(found.any() for found in met):
            return fresh
        counted: set[str] = set()
        for sample_id in (*ids, *(self._held_ids() if self.rows else ())):  # hashes may meet by chance: look closely
            if sample_id in counted:
                raise DataError(
                    f"sample_id '{sample_id}' stands twice among the examples to be stored; make ids unique "
                    "(see with_unique_ids)."
                )
            counted.add(sample_id)
        return fresh

    def _remember(self, fresh: np.ndarray) -> None:
        """Keep sorted hashes in a few runs of falling length: 8 bytes a row, and log n look-ups."""
        fresh = np.sort(fresh)
        while self._seen and len(self._seen[-1]) <= len(fresh):
            fresh = np.sort(np.concatenate([self._seen.pop(), fresh]), kind="stable")
        self._seen.append(fresh)

    def _held_ids(self) -> PackedIds:
        text, ends = (
            np.memmap(self._part / f"{name}.npy", self._dtypes[name], "r", self._offset(name), self._shapes[name])
            for name in (IDS, ENDS)
        )
        return PackedIds(text, ends)


def _hashes(ids: Sequence[str]) -> Int[np.ndarray, " m"]:
    """Python's own hashes, never kept beyond the process."""
    return np.fromiter((hash(sample_id) for sample_id in ids), dtype=np.int64, count=len(ids))


def _narrowed(name: str, values: Float[np.ndarray, "m ..."], dtype: np.dtype, ids: Sequence[str]) -> np.ndarray:
    """These values in the column's dtype, little-endian."""
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(values.astype(dtype))
    good = np.isfinite(found.reshape(len(found), -1)).all(axis=1)
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        worst = values[row].ravel()[np.argmax(~np.isfinite(found[row].ravel()))]
        if np.isfinite(worst):
            raise NumericalError(
                f"signal '{name}' of example {ids[row]} is {worst:.6g}, beyond what {dtype.name} holds "
                f"(±{np.finfo(dtype).max:.5g}). Store it as float32, or look at the model's weights."
            )
        raise NumericalError(
            f"signal '{name}' is NaN or infinite for example {ids[row]}. "
            "Check the example's text and the model's weights, or use float32."
        )
    return found
