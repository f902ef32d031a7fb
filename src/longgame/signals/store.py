"""Signals of a pool of any size: one column file per signal on disk, written shard by shard, read as memory maps.

A store is a folder with ``manifest.json`` (format, columns, fingerprint, rows), ``ranges.jsonl`` (one line per shard,
with digests) and one ``.npy`` file per column and for the ids. Until it is finished the folder is named ``PATH.part``.
A kill at any moment loses at most the current shard.
"""

from __future__ import annotations

import fcntl
import io
import json
import math
import os
import shutil
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from hashlib import blake2b
from io import FileIO
from pathlib import Path
from tokenize import TokenError
from typing import Any, Self

import numpy as np
from jaxtyping import Float, Int

from longgame.data.examples import Pool
from longgame.errors import DataError, NumericalError, PluginError, ResumeError, StorageError, unknown
from longgame.signals.base import Engine, Signals, check_finite
from longgame.signals.cache import pool_fingerprint
from longgame.storage import flush, storage_errors, write_file

DTYPES = ("float32", "float16")
"""Of a signal."""
SKETCH_DTYPE = "uint32"
"""Of the columns of a sketch of texts."""
FORMAT = "longgame signals 1"
MANIFEST, RANGES = "manifest.json", "ranges.jsonl"
IDS, ENDS = "ids", "id_ends"
_BLOCK = 1 << 16
"""Ids decoded at a time."""


Mapper = Callable[[Iterable[Pool], Sequence[str]], Iterator[Mapping[str, np.ndarray]]]
"""(shards, signals) → the columns of each shard, in order."""


@dataclass(frozen=True, slots=True)
class Range:
    """Rows that are on disk, one line of ranges.jsonl; per file the shape that it gained and its digest."""

    start: int
    stop: int
    content: str
    """Digest of the examples."""
    shapes: Mapping[str, Sequence[int]]
    digests: Mapping[str, str]


class PackedIds(Sequence[str]):
    """Ids of a store, decoded on access."""

    def __init__(self, text: Int[np.ndarray, " bytes"], ends: Int[np.ndarray, " n"]) -> None:
        self._text, self._ends = text, ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            start, stop, step = row.indices(len(self))
            if step == 1:
                return tuple(self._decoded(start, stop))
            return tuple(self[index] for index in range(start, stop, step))
        row = range(len(self))[row]
        start = int(self._ends[row - 1]) if row else 0
        return self._text[start : int(self._ends[row])].tobytes().decode(errors="surrogatepass")

    def __iter__(self) -> Iterator[str]:
        return self._decoded(0, len(self))

    def fixed(self) -> np.ndarray:
        """Return the ids as an array of bytes of one width, in UTF-8, whose order is that of the ids."""
        lengths = np.diff(self._ends, prepend=0)
        fixed = np.zeros((len(self), int(lengths.max(initial=1))), dtype=np.uint8)
        for start in range(0, len(self), _BLOCK):
            part = lengths[start : start + _BLOCK]
            begin = int(self._ends[start - 1]) if start else 0
            inside = np.arange(fixed.shape[1]) < part[:, None]
            fixed[start : start + _BLOCK][inside] = self._text[begin : begin + int(part.sum())]
        return fixed.view(f"S{fixed.shape[1]}").ravel()

    def _decoded(self, start: int, stop: int) -> Iterator[str]:
        for first in range(start, stop, _BLOCK):
            ends = self._ends[first : min(stop, first + _BLOCK)].tolist()
            base = int(self._ends[first - 1]) if first else 0
            text = self._text[base : ends[-1]].tobytes()
            for begin, end in zip([base, *ends], ends, strict=False):
                yield text[begin - base : end - base].decode(errors="surrogatepass")


class SignalStore:
    """A finished store, opened for reading.

    Raises:
        ResumeError: there is no finished store, or its files do not fit together.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / MANIFEST).is_file():
            hint = " It is not finished; run the command that writes it again." if _part_of(self.path).is_dir() else ""
            raise ResumeError(f"{self.path} holds no signal store (no {MANIFEST}).{hint}")
        manifest = _read_manifest(self.path)
        self.fingerprint: str = manifest["fingerprint"]
        self.names: tuple[str, ...] = tuple(manifest["columns"])
        self.ranges = _read_ranges(self.path)[0]
        rows = self.ranges[-1].stop if self.ranges else 0
        if not rows or manifest.get("rows") != rows:
            raise _damaged(self.path, f"{MANIFEST} says {manifest.get('rows')} rows, {RANGES} {rows}")
        self._dtypes = _file_dtypes(manifest["columns"])
        self._maps = {name: self._load(name) for name in self._dtypes}

    def __len__(self) -> int:
        return len(self._maps[ENDS])

    @property
    def ids(self) -> PackedIds:
        return PackedIds(self._maps[IDS].view(np.ndarray), self._maps[ENDS].view(np.ndarray))

    def column(self, name: str) -> Float[np.ndarray, "n ..."]:
        """Return a signal as it is on disk: read-only, memory-mapped, float32 or float16, digest not checked.

        Raises:
            PluginError: it is not in the store.
        """
        if name not in self.names:
            raise PluginError(f"{self.path} was asked for an " + unknown("signal", name, self.names))
        return self._maps[name].view(np.ndarray)

    def signals(self, names: Sequence[str] | None = None, *, widen: bool = True) -> Signals:
        """Return these columns (default: all) after comparing them with their digests (about a second per GB).

        Args:
            names: signals to return.
            widen: convert float16 columns to float32 in memory. False leaves them memory-mapped float16, for readers
                that handle the range (a sum of 100 squares may overflow). float32 columns are always memory-mapped.

        Raises:
            PluginError: a name that is not in the store. ResumeError: a file is damaged.
            NumericalError: a value is not finite.
        """
        names = self.names if names is None else tuple(dict.fromkeys(names))
        columns = {name: self.column(name) for name in names}
        self.verify(names)
        if widen:
            columns = {name: column.astype(np.float32, copy=False) for name, column in columns.items()}
        return Signals(tuple(self.ids), columns)

    def verify(self, names: Sequence[str] | None = None, start: int = 0, stop: int | None = None) -> None:
        """Compare the shards of the ids and of these columns (default: all) with their digests.

        Args:
            names: columns.
            start, stop: only shards that hold some of these rows (default: all of them).

        Raises:
            ResumeError: some bytes are not those that were written.
        """
        rows = range(start, len(self) if stop is None else stop)
        for name in (IDS, ENDS, *(self.names if names is None else names)):
            _verify(self.path, name, self._dtypes[name], self._maps[name].offset, self.ranges, rows)

    def _load(self, name: str) -> np.memmap:
        try:
            array = np.load(self.path / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            expected = _joined_shape(self.ranges, name)
        except (OSError, ValueError, SyntaxError, EOFError, TokenError, KeyError) as error:
            raise _damaged(self.path, f"{name}.npy: {error}") from error
        if array.dtype != self._dtypes[name] or array.shape != expected:
            raise _damaged(self.path, f"{name}.npy is {array.dtype} {array.shape}, not {self._dtypes[name]} {expected}")
        return array


class SignalWriter:
    """Appends shards to a store; opened again after a kill it continues behind the last complete shard.

    Use it as a context manager. Leaving it without `finish` keeps what was appended under ``PATH.part``.

    Args:
        path: directory of the finished store.
        columns: signal name → ``float32`` or ``float16``; ``uint32`` for a sketch of texts. float16 rounds to nearest:
            relative error ≤ 2⁻¹¹ from 6.1e-5 up, absolute error ≤ 3e-8 below; values beyond ±65504 are refused.
        fingerprint: content of what gives the numbers (`longgame.signals.cache.signal_fingerprint`).

    Raises:
        StorageError: the store exists, another process is writing it, or it cannot be written.
        ResumeError: an unfinished store has other columns or another fingerprint, or is damaged.
        PluginError: a column's name or dtype is not allowed.
    """

    def __init__(self, path: str | Path, columns: Mapping[str, str], fingerprint: str) -> None:
        self.path = Path(path)
        self._part = _part_of(self.path)
        self._columns = dict(columns)
        for name, dtype in self._columns.items():
            if dtype not in (*DTYPES, SKETCH_DTYPE):
                raise PluginError(f"signal '{name}' is to be stored as an " + unknown("dtype", dtype, DTYPES))
            if not name.isidentifier() or name in (IDS, ENDS):
                raise PluginError(f"'{name}' cannot be a column's name; use letters, digits and underscores.")
        if not self._columns:
            raise PluginError("a signal store needs at least one column; name the signals to be stored.")
        self._manifest = {"format": FORMAT, "columns": self._columns, "fingerprint": fingerprint}
        self._dtypes = _file_dtypes(self._columns)
        self._files: dict[str, FileIO] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        """Shape of each complete file."""
        self._hashes: list[np.ndarray] = []
        """Sorted hashes of all ids, in a few runs of falling length: 8 bytes a row, log n look-ups."""
        self.ranges: list[Range] = []
        """Shards that are on disk already."""
        with ExitStack() as stack:
            with storage_errors(self.path):
                self._lock(stack)
            self._resume(stack)
            self._stack = stack.pop_all()

    @property
    def rows(self) -> int:
        """Rows on disk."""
        return self.ranges[-1].stop if self.ranges else 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def append(self, ids: Sequence[str], columns: Mapping[str, Float[np.ndarray, "m ..."]], content: str = "") -> None:
        """Add a shard; it is on disk when this returns. Thousands of rows a call keep the flushing cheap.

        Args:
            ids: of the m rows, new to the store.
            columns: every column of the store, [m] or [m, d].
            content: digest of the examples, by which a resumed run recognizes them.

        Raises:
            DataError: no rows, or a repeated id. PluginError: a column is missing, or its shape changes.
            NumericalError: a value is not finite, or too large for float16. StorageError: it cannot be written.
        """
        if not ids:
            raise DataError("a shard without examples was to be stored; leave it out.")
        hashes = self._check_new(ids)
        arrays = self._encoded(ids, columns)
        with storage_errors(self.path):
            if not self._files:
                self._create_files(arrays)
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
            digests = {name: _digest(part) for name, part in data.items()}
            shard = Range(self.rows, self.rows + len(ids), content, shapes, digests)
            line = json.dumps(astuple(shard), separators=(",", ":")).encode() + b"\n"
            self._journal.truncate(self._journal_end)
            write_at(self._journal, self._journal_end, line)
            os.fsync(self._journal.fileno())
        self._journal_end += len(line)
        self.ranges.append(shard)
        self._shapes = {name: _joined_shape(self.ranges[-1:], name, self._shapes[name]) for name in shapes}
        self._add_hashes(hashes)

    def finish(self) -> SignalStore:
        """Write headers and manifest with the number of rows, and rename ``PATH.part`` to ``PATH``.

        Raises:
            DataError: nothing was appended. StorageError: it cannot be written.
        """
        if not self.ranges:
            raise DataError(f"no example was given to {self.path}; a signal store needs at least one.")
        with storage_errors(self.path):
            for name, file in self._files.items():
                write_at(file, 0, _header(self._dtypes[name], self._shapes[name]))
                os.fsync(file.fileno())
            write_file(self._part / MANIFEST, json.dumps(self._manifest | {"rows": self.rows}, indent=1) + "\n")
            self._part.rename(self.path)
            flush(self.path.parent)
        self._stack.close()
        return SignalStore(self.path)

    def _lock(self, stack: ExitStack) -> None:
        """Create the scratch folder and lock its journal; the system unlocks it however the process ends."""
        if self.path.exists():
            raise StorageError(
                f"{self.path} exists already. Read it with SignalStore(), delete it, or choose another directory."
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
        if not same:  # locked, or finished and renamed since it was opened
            raise StorageError(f"another process is writing {self.path}. Wait for it, or choose another directory.")

    def _resume(self, stack: ExitStack) -> None:
        """Open what is durable, and cut off what is behind it."""
        self.ranges, self._journal_end = _read_ranges(self._part)
        resumed = (self._part / MANIFEST).is_file()
        if not resumed and self.ranges:
            raise _damaged(self._part, f"no {MANIFEST}")
        if resumed:
            manifest = _read_manifest(self._part)
            differing = [key for key, value in self._manifest.items() if manifest[key] != value]
            if differing:
                raise ResumeError(
                    f"{self._part} was begun with other {' and '.join(differing)}: the model, the tokenizer, the "
                    "settings or the software differ, and rows of both would be mixed. Delete it, or use another path."
                )
        for name, dtype in self._dtypes.items() if self.ranges else ():
            self._shapes[name] = _joined_shape(self.ranges, name)
            _verify(self._part, name, dtype, self._offset(name), self.ranges)
        with storage_errors(self.path):
            for stale in self._part.glob(f"{MANIFEST}.*.part"):
                stale.unlink()
            if not resumed:
                write_file(self._part / MANIFEST, json.dumps(self._manifest, indent=1) + "\n")
            self._journal.truncate(self._journal_end)
            for name in self._shapes:
                file = self._files[name] = stack.enter_context((self._part / f"{name}.npy").open("r+b", buffering=0))
                file.truncate(self._end(name))
        for start in range(0, self.rows, _BLOCK):
            self._add_hashes(_hashes_of(self._stored_ids()[start : start + _BLOCK]))

    def _create_files(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Create the column files, now that the widths are known."""
        files: dict[str, FileIO] = {}
        for name, array in arrays.items():
            files[name] = self._stack.enter_context((self._part / f"{name}.npy").open("w+b", buffering=0))
            write_at(files[name], 0, _header(array.dtype, (0, *array.shape[1:])))
        flush(self._part)
        self._files, self._shapes = files, {name: (0, *array.shape[1:]) for name, array in arrays.items()}

    def _offset(self, name: str) -> int:
        """Bytes of a file's header."""
        return len(_header(self._dtypes[name], self._shapes[name]))

    def _end(self, name: str) -> int:
        """End of the durable bytes of a file."""
        return self._offset(name) + math.prod(self._shapes[name]) * self._dtypes[name].itemsize

    def _encoded(self, ids: Sequence[str], columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        text = [sample_id.encode(errors="surrogatepass") for sample_id in ids]
        base = self._shapes[IDS][0] if self._shapes else 0
        ends = base + np.cumsum([len(item) for item in text], dtype="<i8")
        arrays = {IDS: np.frombuffer(b"".join(text), dtype=np.uint8), ENDS: ends}
        for name in self._columns:
            if name not in columns or np.ndim(columns[name]) not in (1, 2) or len(columns[name]) != len(ids):
                shape = np.shape(columns[name]) if name in columns else "missing"
                raise PluginError(
                    f"signal '{name}' of a shard of {len(ids)} rows is {shape}; it must be [rows] or [rows, d]."
                )
            arrays[name] = _narrowed(name, np.asarray(columns[name]), self._dtypes[name], ids)
        return arrays

    def _check_new(self, ids: Sequence[str]) -> np.ndarray:
        """Sorted hashes of these ids; a repeated id, in the shard or in the store, is refused."""
        hashes = np.sort(_hashes_of(ids))
        places = [np.searchsorted(run, hashes) for run in self._hashes]
        matches = [run[np.minimum(at, len(run) - 1)] == hashes for run, at in zip(self._hashes, places, strict=True)]
        if len(set(ids)) == len(ids) and not any(match.any() for match in matches):
            return hashes
        counted: set[str] = set()
        for sample_id in (*ids, *(self._stored_ids() if self.rows else ())):  # equal hashes may be chance: compare ids
            if sample_id in counted:
                raise DataError(
                    f"sample_id '{sample_id}' stands twice among the examples to be stored; make ids unique "
                    "(see with_unique_ids)."
                )
            counted.add(sample_id)
        return hashes

    def _add_hashes(self, hashes: np.ndarray) -> None:
        hashes = np.sort(hashes)
        while self._hashes and len(self._hashes[-1]) <= len(hashes):
            hashes = np.sort(np.concatenate([self._hashes.pop(), hashes]), kind="stable")
        self._hashes.append(hashes)

    def _stored_ids(self) -> PackedIds:
        text, ends = (
            np.memmap(self._part / f"{name}.npy", self._dtypes[name], "r", self._offset(name), self._shapes[name])
            for name in (IDS, ENDS)
        )
        return PackedIds(text, ends)


def stream_signals(
    engine: Engine,
    pools: Iterable[Pool],
    names: Sequence[str],
    path: str | Path,
    *,
    fingerprint: str,
    dtype: str | Mapping[str, str] = "float32",
    on_shard: Callable[[int], None] | None = None,
    mapper: Mapper | None = None,
) -> SignalStore:
    """Compute these signals shard by shard into a `SignalStore`, with one shard in memory at a time.

    Called again after a kill with the same arguments, it skips finished shards and ends with the same bytes.

    Args:
        engine: computes the columns of one shard.
        pools: the shards, in an order that is the same every time; thousands of examples each, ids unique over all.
        names: signals to store.
        path: directory of the store; named ``PATH.part`` until it is finished.
        fingerprint: content of what the engine computes with (`longgame.signals.cache.signal_fingerprint`).
        dtype: ``float32`` or ``float16`` (see `SignalWriter`), for all columns or by name (default: float32).
        on_shard: called with the number of finished rows after every shard.
        mapper: computes several shards at a time in place of the engine, and gives them back in their order.

    Raises:
        ResumeError: the unfinished store at ``path`` has other shards, columns or another fingerprint.
        StorageError: ``path`` exists, another process is writing it, or the disk is full.
        DataError: no example, or a repeated id. NumericalError: a value is not finite or too large for float16.
        LonggameError: whatever the engine or the source raises.
    """
    columns = {name: dtype if isinstance(dtype, str) else dtype.get(name, "float32") for name in names}
    names = list(columns)
    with SignalWriter(path, columns, fingerprint) as writer:
        finished = list(writer.ranges)
        number, ready = 0, sum(shard.stop - shard.start for shard in finished)
        begun: deque[tuple[Sequence[str], str]] = deque()

        def unfinished() -> Iterator[Pool]:
            nonlocal number
            rows = 0
            for number, pool in enumerate(pools, start=1):
                content = pool_fingerprint(pool)
                if number > len(finished):
                    begun.append((pool.ids, content))
                    yield pool
                    continue
                shard = finished[number - 1]
                if (shard.stop - shard.start, shard.content) != (len(pool), content):
                    raise _other_source(writer, f"rows {shard.start}…{shard.stop - 1} are other examples")
                rows += len(pool)
                if on_shard is not None:
                    on_shard(rows)
            if number < len(finished):
                raise _other_source(writer, f"{writer.rows} rows are stored, the source now ends after {rows}")

        fresh = unfinished()
        for values in (engine(pool, names) for pool in fresh) if mapper is None else mapper(fresh, names):
            ids, content = begun.popleft()
            writer.append(ids, values, content)
            ready += len(ids)
            if on_shard is not None:
                on_shard(ready)
        return writer.finish()


def _other_source(writer: SignalWriter, difference: str) -> ResumeError:
    return ResumeError(
        f"{writer.path}.part was begun with another source ({difference}). Give the same examples in the same shards, "
        "delete it, or use another path."
    )


def begun_columns(part: Path) -> tuple[str, ...]:
    """Columns of an unfinished store (its folder ``PATH.part``); empty where it holds nothing yet."""
    return tuple(_read_manifest(part)["columns"]) if (part / MANIFEST).is_file() else ()


def remove_begun(part: Path, names: Collection[str]) -> None:
    """Delete an unfinished store (its folder ``PATH.part``) whose columns are all among these.

    One that a process is writing stays.

    Raises:
        OSError: it cannot be deleted.
    """
    with (part / RANGES).open("a+b") as journal:
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        if {*begun_columns(part)} <= {*names}:
            shutil.rmtree(part)


def write_at(file: FileIO, offset: int, data: bytes) -> None:
    """Write bytes at this place of an unbuffered file: bytes that a full disk refuses must not stay in a buffer."""
    view = memoryview(data)
    while view:
        written = os.pwrite(file.fileno(), view, offset)
        view, offset = view[written:], offset + written


def _part_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()


def _file_dtypes(columns: Mapping[str, str]) -> dict[str, np.dtype]:
    """Little-endian dtype of every file of a store with these columns."""
    stored = {name: np.dtype(dtype).newbyteorder("<") for name, dtype in columns.items()}
    return {IDS: np.dtype("|u1"), ENDS: np.dtype("<i8"), **stored}


def _header(dtype: np.dtype, shape: Sequence[int]) -> bytes:
    """A .npy header; NumPy pads it to the same length for any number of rows."""
    text = io.BytesIO()
    np.lib.format.write_array_header_1_0(text, {"descr": dtype.str, "fortran_order": False, "shape": tuple(shape)})
    return text.getvalue()


def _joined_shape(ranges: Sequence[Range], name: str, before: Sequence[int] = (0,)) -> tuple[int, ...]:
    """Shape of a file that grows by these ranges."""
    shapes = [part.shapes[name] for part in ranges]
    return (before[0] + sum(shape[0] for shape in shapes), *shapes[0][1:])


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Read manifest.json; it has no ``rows`` where the store is not finished.

    Raises:
        ResumeError: it cannot be read, or belongs to something else.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] == FORMAT and isinstance(manifest["columns"], dict) and "fingerprint" in manifest:
            return manifest
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, f"{MANIFEST}: {type(error).__name__}: {error}") from error
    raise ResumeError(f"{folder / MANIFEST} is not that of a signal store ('{FORMAT}'). Choose another directory.")


def _read_ranges(folder: Path) -> tuple[list[Range], int]:
    """Complete lines of ranges.jsonl, and where they end; a last line without a line end was not finished."""
    try:
        text = (folder / RANGES).read_bytes()
        complete = text[: text.rfind(b"\n") + 1]
        ranges = [Range(*json.loads(line)) for line in complete.splitlines()]
        stops = [0, *(part.stop for part in ranges)]
        if [part.start for part in ranges] == stops[:-1]:
            return ranges, len(complete)
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(folder, f"{RANGES}: {type(error).__name__}: {error}") from error
    raise _damaged(folder, f"{RANGES} has a gap")


def _verify(
    folder: Path, name: str, dtype: np.dtype, offset: int, ranges: Sequence[Range], rows: range | None = None
) -> None:
    """Compare a column file behind its header with the digests, shard by shard; ``rows``: only shards that hold some.

    Raises:
        ResumeError: the file is missing or too short, or some bytes are not those that were written.
    """
    try:
        with (folder / f"{name}.npy").open("rb") as file:
            file.seek(offset)
            for part in ranges:
                size = math.prod(part.shapes[name]) * dtype.itemsize
                if rows is not None and (part.stop <= rows.start or part.start >= rows.stop):
                    file.seek(size, os.SEEK_CUR)
                elif _digest(file.read(size)) != part.digests[name]:
                    raise _damaged(folder, f"{name}.npy has other bytes in rows {part.start}…{part.stop - 1}")
    except (OSError, KeyError) as error:
        raise _damaged(folder, f"{name}.npy: {error}") from error


def _damaged(folder: Path, problem: str) -> ResumeError:
    return ResumeError(f"{folder} is damaged ({problem}). Delete it and compute the signals again.")


def _hashes_of(ids: Sequence[str]) -> Int[np.ndarray, " m"]:
    """Python's own hashes; they differ between processes and are never written."""
    return np.fromiter((hash(sample_id) for sample_id in ids), dtype=np.int64, count=len(ids))


def _narrowed(name: str, values: Float[np.ndarray, "m ..."], dtype: np.dtype, ids: Sequence[str]) -> np.ndarray:
    """These values in the column's dtype, little-endian."""
    check_finite(name, values, ids)
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(values.astype(dtype))
    overflow = np.isinf(narrow.reshape(len(narrow), -1))  # NaN passed the check above where it may stand
    if overflow.any():
        row, entry = np.argwhere(overflow)[0]
        raise NumericalError(
            f"signal '{name}' of example {ids[row]} is {values.reshape(len(values), -1)[row, entry]:.6g}, beyond "
            f"{dtype.name}'s ±{np.finfo(dtype).max:.5g}. Store it as float32, or check the model's weights."
        )
    return narrow
