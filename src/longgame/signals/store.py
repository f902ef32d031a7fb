"""The files of a signal store: what is in them, how they are read, and when they are damaged (see `store`)."""

from __future__ import annotations

import fcntl
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from io import FileIO
from pathlib import Path
from tokenize import TokenError
from typing import Any, Self

import numpy as np
from jaxtyping import Float, Int

from longgame.data.examples import Pool
from longgame.errors import DataError, NumericalError, PluginError, ResumeError, StorageError, unknown
from longgame.signals.base import Engine, Signals
from longgame.signals.cache import pool_fingerprint
from longgame.storage import flush, storage_errors, write_file

DTYPES = ("float32", "float16")
FORMAT = "longgame signals 1"
MANIFEST, RANGES = "manifest.json", "ranges.jsonl"
IDS, ENDS = "ids", "id_ends"


@dataclass(frozen=True, slots=True)
class Range:
    """Rows that are on the disk, as one line of ranges.jsonl."""

    start: int
    stop: int
    content: str
    """Digest of the examples."""
    shapes: Mapping[str, Sequence[int]]
    """Of what each file gained."""
    digests: Mapping[str, str]
    """Of those bytes."""

    def line(self) -> str:
        fields = [self.start, self.stop, self.content, dict(self.shapes), dict(self.digests)]
        return json.dumps(fields, separators=(",", ":")) + "\n"


class PackedIds(Sequence[str]):
    """Ids of a store, decoded where they are asked for."""

    def __init__(self, text: Int[np.ndarray, " bytes"], ends: Int[np.ndarray, " n"]) -> None:
        self._text, self._ends = text, ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return tuple(self[k] for k in range(*row.indices(len(self))))
        row = range(len(self))[row]
        start = int(self._ends[row - 1]) if row else 0
        return self._text[start : int(self._ends[row])].tobytes().decode(errors="surrogatepass")

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), 1 << 16):
            ends = self._ends[first : first + (1 << 16)].tolist()
            base = int(self._ends[first - 1]) if first else 0
            text = self._text[base : ends[-1]].tobytes()
            for start, end in zip([base, *ends], ends, strict=False):
                yield text[start - base : end - base].decode(errors="surrogatepass")


def part_of(path: Path) -> Path:
    """Where a store stands until it is finished."""
    return path.with_name(f"{path.name}.part")


def digest(data: bytes) -> str:
    """BLAKE2b, 128 bits, as hex."""
    return blake2b(data, digest_size=16).hexdigest()


def write_at(file: FileIO, offset: int, data: bytes) -> None:
    """Write bytes at this place of an unbuffered file: what a full disk refuses does not linger in a buffer."""
    view = memoryview(data)
    while view:
        written = os.pwrite(file.fileno(), view, offset)
        view, offset = view[written:], offset + written


def descriptors(columns: Mapping[str, str]) -> dict[str, np.dtype]:
    """What the files of a store with these columns hold, little-endian."""
    stored = {name: np.dtype(dtype).newbyteorder("<") for name, dtype in columns.items()}
    return {IDS: np.dtype("|u1"), ENDS: np.dtype("<i8"), **stored}


def header_bytes(dtype: np.dtype, shape: Sequence[int]) -> bytes:
    """A .npy header, padded by NumPy to the same length whatever the number of rows."""
    text = io.BytesIO()
    fields = {"descr": dtype.str, "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(text, fields)
    return text.getvalue()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read manifest.json (``rows`` is None where the store is not finished).

    Raises:
        ResumeError: it cannot be read, or belongs to something else.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] == FORMAT and isinstance(manifest["columns"], dict) and "fingerprint" in manifest:
            return {"rows": None, **manifest}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(folder, f"{MANIFEST}: {type(error).__name__}: {error}") from error
    raise ResumeError(f"{folder / MANIFEST} is not that of a signal store ('{FORMAT}'). Choose another directory.")


def read_ranges(folder: Path) -> tuple[list[Range], int]:
    """Whole lines of ranges.jsonl, and where they end; a last line without its end was not finished."""
    try:
        text = (folder / RANGES).read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        ranges = [Range(*json.loads(line)) for line in whole.splitlines()]
        stops = [0, *(part.stop for part in ranges)]
        if [part.start for part in ranges] == stops[:-1]:
            return ranges, len(whole)
    except (OSError, ValueError, TypeError) as error:
        raise damaged(folder, f"{RANGES}: {type(error).__name__}: {error}") from error
    raise damaged(folder, f"{RANGES} has a gap")


def compare(folder: Path, name: str, dtype: np.dtype, offset: int, ranges: Sequence[Range]) -> None:
    """Compare what a column file holds behind its header with the digests, shard by shard.

    Raises:
        ResumeError: the file is missing or too short, or some bytes are not those that were written.
    """
    try:
        with (folder / f"{name}.npy").open("rb") as file:
            file.seek(offset)
            for part in ranges:
                if digest(file.read(math.prod(part.shapes[name]) * dtype.itemsize)) != part.digests[name]:
                    raise damaged(folder, f"{name}.npy holds other bytes in rows {part.start}…{part.stop - 1}")
    except (OSError, KeyError) as error:
        raise damaged(folder, f"{name}.npy: {error}") from error


def damaged(folder: Path, what: str) -> ResumeError:
    """The error for files that do not fit together."""
    return ResumeError(f"{folder} is damaged ({what}). Delete it and compute the signals again.")


# Signals of a pool of any size: one column file per signal on disk, written shard by shard, read as memory maps.


class SignalStore:
    """A finished store, opened for reading.

    Args:
        path: the directory.

    Raises:
        ResumeError: there is no finished store, or its files do not fit together.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / MANIFEST).is_file():
            begun = part_of(self.path).is_dir()
            hint = " It was begun and not finished; run what writes it again." if begun else ""
            raise ResumeError(f"{self.path} holds no signal store (no {MANIFEST}).{hint}")
        manifest = read_manifest(self.path)
        self.fingerprint: str = manifest["fingerprint"]
        self.names: tuple[str, ...] = tuple(manifest["columns"])
        self.ranges = read_ranges(self.path)[0]
        rows = self.ranges[-1].stop if self.ranges else 0
        if not rows or manifest["rows"] != rows:
            raise damaged(self.path, f"{MANIFEST} says {manifest['rows']} rows, {RANGES} {rows}")
        self._dtypes = descriptors(manifest["columns"])
        self._maps = {name: self._load(name) for name in self._dtypes}

    @classmethod
    def open(cls, path: str | Path) -> SignalStore:
        """Open a finished store (see the class)."""
        return cls(path)

    def __len__(self) -> int:
        return len(self._maps[ENDS])

    @property
    def ids(self) -> PackedIds:
        """Ids of the rows."""
        return PackedIds(self._maps[IDS].view(np.ndarray), self._maps[ENDS].view(np.ndarray))

    def column(self, name: str) -> Float[np.ndarray, "n ..."]:
        """A signal as it lies on the disk: read-only, memory-mapped, float32 or float16, not compared with its digest.

        Raises:
            PluginError: it is not in the store.
        """
        if name not in self.names:
            raise PluginError(f"{self.path} was asked for an " + unknown("signal", name, self.names))
        return self._maps[name].view(np.ndarray)

    def signals(self, names: Sequence[str] | None = None, *, widen: bool = True) -> Signals:
        """The columns of these signals (default: all), each compared with its digest (about a second per GB).

        Args:
            names: which ones.
            widen: give float16 columns as float32 in memory, as `Signals` promises; False leaves them memory-mapped
                float16, at half the size and for readers that mind the range (a sum of 100 squares may overflow).
                float32 columns are memory-mapped either way.

        Raises:
            PluginError: a name that is not in the store. ResumeError: a file is damaged.
            NumericalError: a value is not finite.
        """
        wanted = self.names if names is None else tuple(dict.fromkeys(names))
        columns = {name: self.column(name) for name in wanted}
        self.verify(wanted)
        if widen:
            columns = {name: column.astype(np.float32, copy=False) for name, column in columns.items()}
        return Signals(tuple(self.ids), columns)

    def verify(self, names: Sequence[str] | None = None) -> None:
        """Read the files (ids, and these columns or all) and compare every shard with its digest.

        Raises:
            ResumeError: some bytes are not those that were written.
        """
        for name in (IDS, ENDS, *(self.names if names is None else names)):
            compare(self.path, name, self._dtypes[name], self._maps[name].offset, self.ranges)

    def _load(self, name: str) -> np.memmap:
        try:
            found = np.load(self.path / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            shapes = [part.shapes[name] for part in self.ranges]
        except (OSError, ValueError, SyntaxError, EOFError, TokenError, KeyError) as error:
            raise damaged(self.path, f"{name}.npy: {error}") from error
        expected = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        if found.dtype != self._dtypes[name] or found.shape != expected:
            raise damaged(self.path, f"{name}.npy is {found.dtype} {found.shape}, not {self._dtypes[name]} {expected}")
        return found


# Writing a signal store, shard by shard; a kill at any moment loses at most the shard at hand (see `store`).


class SignalWriter:
    """Appends shards to a store, durable one by one; opened again after a kill it goes on behind the last whole shard.

    Use it as a context manager; leaving it without `finish` keeps what was appended under ``PATH.part``.

    Args:
        path: directory of the finished store.
        columns: signal name → ``float32`` or ``float16``. float16 rounds to nearest: relative error ≤ 2⁻¹¹ from
            6.1e-5 up, absolute error ≤ 3e-8 below; values beyond ±65504 are refused.
        fingerprint: what gives the numbers (`longgame.signals.cache.signal_fingerprint`).

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


# Signals of a pool that comes in shards, in memory that does not grow with it.


def stream_signals(
    engine: Engine,
    pools: Iterable[Pool],
    names: Sequence[str],
    path: str | Path,
    *,
    fingerprint: str,
    dtype: str | Mapping[str, str] = "float32",
    on_shard: Callable[[int], None] | None = None,
) -> SignalStore:
    """Compute these signals shard by shard into a `SignalStore`; one shard is in memory at a time.

    Killed and called again with the same arguments, it walks through the finished shards without the engine and goes on
    behind them: the store ends with the same bytes.

    Args:
        engine: computes the columns of one shard.
        pools: the shards, in an order that is the same every time; thousands of examples each, ids unique over all.
        names: signals to store.
        path: directory of the store; it stands under ``PATH.part`` until it is finished.
        fingerprint: what the engine computes with (`longgame.signals.cache.signal_fingerprint`); another one
            does not go on with what this one began.
        dtype: ``float32`` or ``float16`` (see `SignalWriter`), for all columns or by name (the rest: float32).
        on_shard: told the rows that are done, after every shard.

    Raises:
        ResumeError: what was begun at ``path`` came from other shards, columns or another fingerprint.
        StorageError: ``path`` exists, another process is writing it, or the disk is full.
        DataError: no example, or an id stands twice. NumericalError: a value is not finite or too large for float16.
        LonggameError: whatever the engine or the source raises.
    """
    columns = {name: dtype if isinstance(dtype, str) else dtype.get(name, "float32") for name in names}
    with SignalWriter(path, columns, fingerprint) as writer:
        done = list(writer.ranges)
        rows = number = 0
        for number, pool in enumerate(pools, start=1):
            content = pool_fingerprint(pool)
            if number <= len(done):
                held = done[number - 1]
                if (held.stop - held.start, held.content) != (len(pool), content):
                    raise _other_source(writer, f"rows {held.start}…{held.stop - 1} hold other examples")
            else:
                writer.append(pool.ids, engine(pool, list(columns)), content)
            rows += len(pool)
            if on_shard is not None:
                on_shard(rows)
        if number < len(done):
            raise _other_source(writer, f"{writer.rows} rows are stored, the source now ends after {rows}")
        return writer.finish()


def _other_source(writer: SignalWriter, what: str) -> ResumeError:
    return ResumeError(
        f"{writer.path}.part was begun with another source ({what}). Give the same examples in the same shards, delete "
        "it, or use another path."
    )
