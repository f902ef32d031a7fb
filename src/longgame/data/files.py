"""Rows and tables of one file: JSON lines, a JSON array, CSV, Parquet, Arrow; packed with gzip or zstd.

Everything is read as a stream, and what unpacks to far more than its size is refused.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from longgame.data.examples import WEIGHT
from longgame.data.formats import LOSS_MASKS, RowError
from longgame.errors import DataError

ReadRow = Callable[[], Any]
"""Parses one row; raises RowError where it cannot be read."""

SUFFIX_KINDS = {
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".jsonl.zst": "jsonl",
    ".json": "json",
    ".json.gz": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
"""Ending of a file → how it is read; a reference with one of them is a path."""
SUFFIXES = tuple(SUFFIX_KINDS)

_LONGEST_LINE = 64 * 2**20
"""Bytes of a line of JSON, or of one value of another kind of file."""
_UNPACKED, _RATIO = 256 * 2**20, 100
"""Bytes that any packed file may unpack to; a larger one may grow by this ratio."""
_BATCH = 64
"""Rows of a Parquet file that are unpacked at once."""
TABLE_ROWS = 1024
"""Rows of a table that are looked at together."""
_CHUNK = 1 << 20
"""Characters of a JSON array that are read at once."""


def file_kind(path: Path) -> str:
    """Return how a file is read, by its ending; empty where it is not."""
    name = path.name.lower()
    return next(
        (SUFFIX_KINDS[suffix] for suffix in sorted(SUFFIX_KINDS, key=len, reverse=True) if name.endswith(suffix)), ""
    )


def read_rows(path: Path) -> Iterator[tuple[int, ReadRow]]:
    """Yield the number of each row (a line for JSON lines and CSV) and what parses it.

    Raises:
        DataError: the file cannot be read, is damaged, or unpacks to far more than its size.
    """
    return _ROWS[file_kind(path)](path)


def read_tables(path: Path) -> Iterator[pa.Table]:
    """Yield the rows of a Parquet or Arrow file as tables of the file's own schema.

    Raises:
        DataError: as of `read_rows`.
    """
    return _TABLES[file_kind(path)](path)


def read_schema(path: Path) -> pa.Schema:
    """Return the schema of a Parquet or Arrow file."""
    try:
        if file_kind(path) == "parquet":
            return pq.read_schema(path)
        with pa.memory_map(str(path)) as stream:
            return _arrow_reader(stream).schema
    except (pa.ArrowException, MemoryError, OSError) as error:
        raise DataError(
            f"{file_kind(path).capitalize()} file '{path}' cannot be read: {first_line(error)}. Write it again."
        ) from error


def _unpacked_limit(path: Path) -> int:
    return max(_UNPACKED, _RATIO * path.stat().st_size)


def _too_large(path: Path, limit: int) -> DataError:
    return DataError(
        f"'{path}' has {path.stat().st_size:,} bytes and unpacks to more than {limit:,}. Unpack it and give the parts "
        "that you need."
    )


def _too_long(path: Path, place: str) -> DataError:
    return DataError(f"{path}, {place} has more than {_LONGEST_LINE:,} bytes. Give shorter rows.")


def _open(path: Path) -> Any:
    """A binary stream of the file's content, unpacked."""
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rb")
    if path.name.lower().endswith(".zst"):
        stream: Any = pa.input_stream(str(path), compression="zstd")
        return io.BufferedReader(stream, _CHUNK)
    return path.open("rb")


class _Damaged:
    """Turns what reading a damaged or forbidden file raises into a DataError."""

    def __init__(self, path: Path) -> None:
        self.path, self.unit, self.number = path, "line", 0

    def __enter__(self) -> _Damaged:
        return self

    def _place(self) -> str:
        return f"{self.unit} {self.number}" if self.number else "its beginning"

    def __exit__(self, kind: Any, error: BaseException | None, _trace: Any) -> None:
        if isinstance(error, EOFError | zlib.error | gzip.BadGzipFile):
            raise DataError(
                f"{self.path}, after {self._place()}: the gzip data is damaged ({error}). Copy it again."
            ) from error
        if isinstance(error, UnicodeDecodeError):
            byte = error.object[error.start]
            raise DataError(
                f"{self.path}, after {self._place()}: is not UTF-8 (byte {byte:#x}). Save the file as UTF-8."
            ) from error
        if isinstance(error, OSError) and error.strerror is None and self.path.name.lower().endswith(".zst"):
            raise DataError(
                f"{self.path}, after {self._place()}: the zstd data is damaged ({first_line(error)}). Copy it again."
            ) from error
        if isinstance(error, OSError):
            raise DataError(
                f"data file '{self.path}' cannot be read: {error.strerror or error}. Check its permissions."
            ) from error


def json_lines(path: Path) -> Iterator[tuple[int, ReadRow]]:
    """Yield the filled lines of a file of JSON lines.

    Raises:
        DataError: the file cannot be read, is damaged, or unpacks to far more than its size.
    """
    with _Damaged(path) as guard:
        size, limit = 0, _unpacked_limit(path)
        with _open(path) as stream:
            for number, raw in enumerate(iter(partial(stream.readline, _LONGEST_LINE + 1), b""), start=1):
                length = len(raw)
                size += length
                guard.number = number
                if length > _LONGEST_LINE:
                    raise _too_long(path, f"line {number}")
                if size > limit:
                    raise _too_large(path, limit)
                if not raw.isspace():
                    yield number, JsonLine(raw)


class JsonLine:
    """Parses one line of JSON; ``raw`` is the line as it stands in the file."""

    __slots__ = ("raw",)

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def __call__(self) -> Any:
        raw = self.raw.removeprefix(codecs.BOM_UTF8)
        try:
            return _load_json(raw.decode())
        except UnicodeDecodeError as error:
            raise RowError(f"is not UTF-8 (byte {error.start + 1})") from error


def _load_json(text: str) -> Any:
    try:
        if text[:1] == "{":  # most rows: the decoder's own search for white space takes as long as a short row
            value, stop = _DECODER.raw_decode(text)
            if text[stop:] in _ENDS:
                return value
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise RowError(f"is not valid JSON ({error.msg}, column {error.colno})") from error
    except (RecursionError, ValueError) as error:  # brackets or digits without end
        raise RowError(f"cannot be read as JSON ({error})") from error


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise RowError(f"has the field {repeated!r} twice; keep one")
    return fields


_ENDS = ("\n", "", "\r\n")
"""What stands behind the object of most lines."""
_DECODER = json.JSONDecoder(object_pairs_hook=_unrepeated)
_SPACE = re.compile(r"[\s,]*")


def _json_rows(path: Path) -> Iterator[tuple[int, ReadRow]]:
    """Items of a JSON array, read piece by piece; a file of JSON lines under this name is read as such."""
    with _Damaged(path) as guard:
        with _open(path) as stream:
            first = stream.read(4096).decode("utf-8-sig", "replace").lstrip()[:1]
        if first != "[":
            yield from json_lines(path)
            return
        limit, size, number = _unpacked_limit(path), 0, 0
        with _open(path) as stream:
            text = io.TextIOWrapper(stream, encoding="utf-8-sig")
            buffer, place, ended = text.read(_CHUNK), 0, False
            place = buffer.index("[") + 1
            while True:
                place = _SPACE.match(buffer, place).end()  # type: ignore[union-attr]
                if buffer[place : place + 1] == "]":
                    rest = buffer[place + 1 :]
                    while not rest.strip() and (rest := text.read(_CHUNK)):
                        pass
                    if rest.strip():
                        raise DataError(
                            f"{path}, behind row {number}: something stands behind the array ({rest.strip()[:20]!r}). "
                            "Join the arrays to one, or write JSON lines."
                        )
                    return
                try:
                    value, stop = _DECODER.raw_decode(buffer, place)
                    if stop == len(buffer) and not ended:
                        raise json.JSONDecodeError("more may follow", buffer, stop)
                except json.JSONDecodeError as error:
                    if ended:
                        raise DataError(
                            f"{path}, behind row {number}: the array is not valid JSON ({error.msg}). Correct the file."
                        ) from error
                    if len(buffer) - place > _LONGEST_LINE:
                        raise _too_long(path, f"row {number + 1}") from error
                    more = text.read(_CHUNK)
                    size += len(more)
                    if size > limit:
                        raise _too_large(path, limit) from error
                    buffer, place, ended = buffer[place:] + more, 0, not more
                    continue
                except (RowError, RecursionError, ValueError) as error:
                    raise DataError(f"{path}, row {number + 1}: {error}. Correct the file.") from error
                place, number = stop, number + 1
                guard.unit, guard.number = "row", number
                yield number, lambda value=value: value  # type: ignore[misc]


def _csv_rows(path: Path) -> Iterator[tuple[int, ReadRow]]:
    """Rows of a CSV file with a header; an empty cell is missing, and a cell that holds JSON is read as such."""
    with _Damaged(path) as guard:
        csv.field_size_limit(_LONGEST_LINE)
        with path.open(encoding="utf-8-sig", errors="strict", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            number = 1
            try:
                names = next(reader, [])
                repeated = next((name for name in names if names.count(name) > 1), None)
                if repeated is not None:
                    raise DataError(f"'{path}' has the column {repeated!r} twice. Keep one.")
                for cells in reader:
                    number = reader.line_num
                    guard.number = number
                    if cells:
                        yield number, lambda cells=cells: _csv_row(names, cells)  # type: ignore[misc]
            except csv.Error as error:
                raise DataError(f"{path}, line {number + 1}: is not valid CSV ({error}). Correct the file.") from error
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}, behind line {number}: is not UTF-8 (byte {error.object[error.start]:#x}). Save the file "
                    "as UTF-8."
                ) from error


_JSON_CELLS = (
    *("messages", "conversations", "conversation", "history", "choices"),
    *("input_ids", "labels", "attention_mask", *LOSS_MASKS),
)


_TEXT_OR_MESSAGES = ("prompt", "completion", "chosen", "rejected")


def _csv_row(names: Sequence[str], cells: Sequence[str]) -> dict[str, Any]:
    if len(cells) != len(names):
        raise RowError(f"has {len(cells)} fields; the header names {len(names)}")
    row: dict[str, Any] = {}
    for name, cell in zip(names, cells, strict=True):
        if cell == "":
            continue
        row[name] = cell
        if name in ("quality", WEIGHT):
            with suppress(ValueError):  # reported with the value
                row[name] = float(cell)
        elif name == "noisy":
            row[name] = {"true": True, "false": False}.get(cell.lower(), cell)
        elif name in _JSON_CELLS and cell.startswith("["):
            row[name] = _load_json(cell)
        elif name in _TEXT_OR_MESSAGES and cell.startswith("[{"):
            with suppress(RowError):  # a text that begins like messages
                value = _load_json(cell)
                if all(isinstance(turn, dict) and turn.keys() & {"role", "from"} for turn in value):
                    row[name] = value
    return row


def _table_rows(path: Path) -> Iterator[tuple[int, ReadRow]]:
    number = 0
    for table in read_tables(path):
        for row in table.to_pylist():
            number += 1
            yield number, lambda row=row: row  # type: ignore[misc]


def _parquet_tables(path: Path) -> Iterator[pa.Table]:
    """A few rows unpacked at a time; texts stay in dictionaries, which a value may repeat at no cost, until then."""
    size = 0
    try:
        limit = _unpacked_limit(path)
        schema = pq.read_schema(path)
        texts = [field.name for field in schema if pa.types.is_string(field.type)]
        with pq.ParquetFile(path, read_dictionary=texts) as file:
            groups = [file.metadata.row_group(place) for place in range(file.metadata.num_row_groups)]
            if max(file.metadata.num_rows, sum(group.total_byte_size for group in groups)) > limit:
                raise _too_large(path, limit)
            for batch in file.iter_batches(batch_size=_BATCH, use_threads=False):
                step = max(1, min(_BATCH, _LONGEST_LINE // max(1, batch.nbytes)))
                for start in range(0, len(batch), step):
                    part = batch.slice(start, step)
                    decoded = [_decoded(column) for column in part.columns]
                    size += sum(column.nbytes for column in decoded)
                    if size > limit:
                        raise _too_large(path, limit)
                    columns = [
                        column if pa.types.is_dictionary(field.type) else values
                        for column, values, field in zip(part.columns, decoded, schema, strict=True)
                    ]
                    yield pa.Table.from_arrays(columns, schema=schema)
    except (pa.ArrowException, MemoryError, OSError) as error:
        raise DataError(f"Parquet file '{path}' cannot be read: {first_line(error)}. Write it again.") from error


def _decoded(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _arrow_tables(path: Path) -> Iterator[pa.Table]:
    """Tables of an Arrow IPC file, in the stream or the file format, memory-mapped."""
    try:
        with pa.memory_map(str(path)) as stream:
            file = _arrow_reader(stream)
            batches: Iterable[pa.RecordBatch] = file
            if isinstance(file, pa.ipc.RecordBatchFileReader):
                batches = (file.get_batch(n) for n in range(file.num_record_batches))
            for batch in batches:
                for start in range(0, len(batch), TABLE_ROWS):
                    yield pa.Table.from_batches([batch.slice(start, TABLE_ROWS)])
    except (pa.ArrowException, MemoryError, OSError) as error:
        raise DataError(f"Arrow file '{path}' cannot be read: {first_line(error)}. Write it again.") from error


def _arrow_reader(stream: pa.NativeFile) -> pa.ipc.RecordBatchFileReader | pa.ipc.RecordBatchStreamReader:
    """The reader of an open Arrow IPC file."""
    if stream.read(6) == b"ARROW1":
        return pa.ipc.open_file(stream)
    stream.seek(0)
    return pa.ipc.open_stream(stream)


_ROWS: dict[str, Callable[[Path], Iterator[tuple[int, ReadRow]]]] = {
    "jsonl": json_lines,
    "json": _json_rows,
    "csv": _csv_rows,
    "parquet": _table_rows,
    "arrow": _table_rows,
}
_TABLES: dict[str, Callable[[Path], Iterator[pa.Table]]] = {"parquet": _parquet_tables, "arrow": _arrow_tables}


def first_line(error: BaseException) -> str:
    """Return what an error of a library says, without its further lines."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")
