"""A subset as files: input rows unchanged and complete, with what selected them in columns of its own."""

from __future__ import annotations

import base64
import datetime
import decimal
import gzip
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from longgame.data.files import JsonLine
from longgame.data.sources import BESIDE_A_SUBSET, RowSource
from longgame.errors import DataError, StorageError
from longgame.storage import flush, scratch, storage_errors

PREFIX = "longgame_"
"""Begins the name of every added column; columns of an earlier selection are replaced."""
MANIFEST, EXPLAINED, BAD = BESIDE_A_SUBSET
PAGE = ".html"
"""Endings of the files beside an output."""
Kind = Literal["jsonl", "parquet", "folder"]
_SAVED = ("state.json", "dataset_info.json")
"""Files of a saved data set beside its tables."""


def kind_of(out: Path) -> Kind:
    """What an output is, by its name.

    Raises:
        DataError: an ending that is not written.
    """
    name = out.name.lower()
    if name.endswith((".jsonl", ".jsonl.gz")):
        return "jsonl"
    if name.endswith(".parquet"):
        return "parquet"
    if out.suffix:
        raise DataError(
            f"the output '{out}' ends in '{out.suffix}'. Give a .jsonl, .jsonl.gz or .parquet file, or a folder."
        )
    return "folder"


def beside(out: Path, ending: str) -> Path:
    """A file beside an output: ``subset.jsonl`` → ``subset.manifest.json``."""
    name = out.name
    for suffix in (".jsonl.gz", ".jsonl", ".parquet"):
        name = name.removesuffix(suffix)
    return out.with_name(name + ending)


def refuse_existing(paths: Sequence[Path], overwrite: bool, out: Path | None = None, option: str = "--out") -> None:
    """Raise StorageError where an output exists and is not to be replaced, or cannot be written.

    Args:
        out: the output that ``paths`` stand beside; None: they are the output themselves.
        option: that names the output.
    """
    for path in paths:
        if path.exists() and not overwrite:
            which = "" if out in (None, path) else f"; it is written beside the output '{out}'"
            raise StorageError(
                f"'{path}' exists already{which}. Give another {option}, or replace it with --overwrite."
            )
        _refuse_foreign(path)
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise StorageError(f"cannot write '{path}': no permission for the folder. Give another {option}.")


def _refuse_foreign(path: Path) -> None:
    """Raise StorageError for a folder that is not empty and holds more than a saved data set."""
    if not path.is_dir():
        return
    names = sorted(entry.name for entry in path.iterdir())
    others = [name for name in names if name not in _SAVED and not name.endswith(".arrow")]
    if names and (others or "state.json" not in names):
        raise StorageError(
            f"'{path}' is a folder with '{(others or names)[0]}', and --overwrite replaces a saved data set alone. "
            "Give another --out, or move the folder away."
        )


def remove_beside(out: Path) -> None:
    """Remove what an earlier selection wrote beside this output; a page is one of its files where a manifest is, too.

    Raises:
        StorageError: no permission.
    """
    endings = (*BESIDE_A_SUBSET, *((PAGE,) if beside(out, MANIFEST).exists() else ()))
    for path in [beside(out, ending) for ending in endings]:
        with storage_errors(path):
            path.unlink(missing_ok=True)


SubsetPart = tuple[RowSource, Int[np.ndarray, " k"], Mapping[str, np.ndarray]]
"""(source, rising positions of the rows that are written, added columns in this order)."""


def write_subset(out: Path, parts: Sequence[SubsetPart]) -> dict[str, str]:
    """Write the rows of the parts, one after the other, and return the SHA-256 of every file written.

    JSON lines keep the bytes of each input line; Parquet and folders keep the schema of Parquet, Arrow and saved data
    sets. The output is complete or absent.

    Raises:
        DataError: the rows do not fit into one table, or hold what JSON cannot say. StorageError: a full disk.
    """
    kind, part = kind_of(out), scratch(out)
    try:
        with storage_errors(out):
            if kind == "jsonl":
                _write_lines(part, out.name.endswith(".gz"), parts)
            elif kind == "parquet":
                _write_parquet(part, parts)
            else:
                _write_folder(part, parts)
            for path in [part, *part.rglob("*")]:
                flush(path)
            if out.is_dir():
                _refuse_foreign(out)  # it may have changed while the rows were scored
                shutil.rmtree(out)
            part.replace(out)
            flush(out.parent)
    except BaseException:
        shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
        raise
    files = sorted(path for path in out.rglob("*") if path.is_file()) if kind == "folder" else [out]
    return {str(path.relative_to(out.parent)): _sha256(path) for path in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_lines(part: Path, packed: bool, parts: Sequence[SubsetPart]) -> None:
    with ExitStack() as stack:
        raw = stack.enter_context(part.open("wb"))
        stream: Any = raw
        if packed:  # no name and no time in the header: equal rows give equal bytes
            stream = stack.enter_context(gzip.GzipFile("", "wb", fileobj=raw, mtime=0))
        for source, positions, added in parts:
            names = list(added)
            for place, read in _picked(source, positions):
                extra = {name: _plain(added[name][place]) for name in names}
                stream.write(_line(read, extra))


def _picked(source: RowSource, positions: Int[np.ndarray, " k"]) -> Iterator[tuple[int, Any]]:
    """(place among the picks, what reads the row) of the rows at these rising positions."""
    places = iter(enumerate(positions.tolist()))
    place, wanted = next(places, (0, None))
    for position, (_file, _number, read) in enumerate(source.rows()):
        if wanted is None:
            return
        if position == wanted:
            yield place, read
            place, wanted = next(places, (0, None))


def _line(read: Any, extra: Mapping[str, Any]) -> bytes:
    """The input's own bytes with the added fields before its last brace, where it came as a line of JSON."""
    addition = json.dumps(extra, ensure_ascii=False, allow_nan=False)
    if isinstance(read, JsonLine) and f'"{PREFIX}'.encode() not in read.raw:
        body = read.raw.strip().removeprefix(b"\xef\xbb\xbf")
        inner = body[:-1].rstrip()
        comma = b"" if inner.endswith(b"{") else b", "
        return inner + comma + addition[1:].encode() + b"\n"
    row = {name: value for name, value in read().items() if not str(name).startswith(PREFIX)} | dict(extra)
    try:
        try:
            return json.dumps(row, ensure_ascii=False, default=_jsonable).encode() + b"\n"
        except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write as an escape alone
            return json.dumps(row, default=_jsonable).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise DataError(f"a row cannot be written as JSON ({error}). Give a .parquet output.") from error


def _jsonable(value: Any) -> Any:
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no JSON value")


def _plain(value: Any) -> Any:
    """A number or text for JSON; NaN is none."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def tables_of(part: SubsetPart) -> Iterator[pa.Table]:
    """Yield the rows of a part with their added columns, as Arrow tables."""
    source, positions, added = part
    tables = source.tables()
    if tables is None:
        rows: list[dict[str, Any]] = []
        first = 0
        for place, read in _picked(source, positions):
            rows.append({name: value for name, value in read().items() if not str(name).startswith(PREFIX)})
            if place + 1 == len(positions):
                yield _with_columns(_table_of(rows), added, first)
        return
    start = place = 0
    for table in tables:
        stop = place + int(np.searchsorted(positions[place:], start + len(table)))
        if stop > place:
            yield _with_columns(table.take(pa.array(positions[place:stop] - start)), added, place)
        start, place = start + len(table), stop


def _table_of(rows: list[dict[str, Any]]) -> pa.Table:
    names = dict.fromkeys(name for row in rows for name in row)
    with _one_table():
        return pa.table({str(name): pa.array([row.get(name) for row in rows]) for name in names})


@contextmanager
def _one_table() -> Iterator[None]:
    """Turn what hinders rows from standing in one table into a DataError."""
    try:
        yield
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"the rows do not fit into one table ({(str(error).splitlines() or [''])[0]}). Give a .jsonl output."
        ) from error


def unified_schema(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Return one schema for the rows of tables with these, without columns of an earlier selection.

    Types are widened, a column that a table lacks may be empty, and a dictionary stays one where all tables have its
    type. Metadata are those of the first.

    Raises:
        DataError: a column has types in these tables that have no common one.
    """
    columns = [[field for field in schema if not field.name.startswith(PREFIX)] for schema in schemas]
    types: dict[str, set[pa.DataType]] = {}
    for field in chain.from_iterable(columns):
        types.setdefault(field.name, set()).add(field.type)

    def plain(field: pa.Field) -> pa.Field:
        decoded = len(types[field.name]) > 1 and pa.types.is_dictionary(field.type)
        return field.with_type(field.type.value_type) if decoded else field

    parts = [
        pa.schema([plain(field) for field in fields], metadata=schema.metadata)
        for fields, schema in zip(columns, schemas, strict=True)
    ]
    if any(not part.equals(parts[0]) for part in parts):
        with _one_table():
            merged = pa.unify_schemas(parts, promote_options="permissive")
    else:
        merged = parts[0]
    names = [{*part.names} for part in parts]
    fields = [field if all(field.name in part for part in names) else field.with_nullable(True) for field in merged]
    return pa.schema(fields, metadata=merged.metadata)


def refuse_foreign_types(schema: pa.Schema) -> None:
    """Raise DataError where a column has an Arrow type that a `datasets.Dataset` cannot hold."""
    from datasets import Features

    for field in schema:
        try:
            Features.from_arrow_schema(pa.schema([field]))
        except ValueError as error:
            raise DataError(
                f"column '{field.name}' has the Arrow type {field.type}, which datasets.Dataset cannot hold. Use "
                "'longgame select' with a .jsonl or .parquet output, or leave the column out."
            ) from error


def _fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table in this schema; columns that it lacks are empty."""
    if table.schema.names == schema.names:
        columns = table.columns
    else:
        columns = [table[name] if name in table.schema.names else pa.nulls(len(table)) for name in schema.names]
    with _one_table():
        fitted = [column.cast(field.type) for column, field in zip(columns, schema, strict=True)]
        return pa.Table.from_arrays(fitted, schema=schema)


def _with_columns(table: pa.Table, added: Mapping[str, np.ndarray], start: int) -> pa.Table:
    table = table.drop_columns([name for name in table.column_names if name.startswith(PREFIX)])
    for name, values in added.items():
        part = values[start : start + len(table)]
        table = table.append_column(name, pa.array(part, from_pandas=True))
    return table


def subset_table(parts: Sequence[SubsetPart]) -> pa.Table:
    """Return the rows of all parts as one table; columns that a part lacks are empty.

    Raises:
        DataError: the parts do not fit into one table.
    """
    tables = [table for part in parts for table in tables_of(part)]
    schema = _with_added(unified_schema([table.schema for table in tables]), tables)
    return pa.concat_tables([_fitted(table, schema) for table in tables])


def _write_parquet(path: Path, parts: Sequence[SubsetPart]) -> None:
    if len(parts) > 1 or parts[0][0].tables() is None:
        pq.write_table(subset_table(parts), path, compression="zstd")
        return
    rows = unified_schema(parts[0][0].schemas())
    schema: pa.Schema | None = None
    with ExitStack() as stack:
        for table in tables_of(parts[0]):
            if schema is None:
                schema = _with_added(rows, [table])
                writer = stack.enter_context(pq.ParquetWriter(path, schema, compression="zstd"))
            writer.write_table(_fitted(table, schema))


def _with_added(rows: pa.Schema, tables: Sequence[pa.Table]) -> pa.Schema:
    """The schema of the rows with the columns that these tables add."""
    added = [pa.schema([field for field in table.schema if field.name.startswith(PREFIX)]) for table in tables]
    with _one_table():
        columns = pa.unify_schemas(added, promote_options="permissive")
    return pa.schema([*rows, *columns], metadata=rows.metadata)


def _write_folder(path: Path, parts: Sequence[SubsetPart]) -> None:
    from datasets import Dataset

    table = subset_table(parts)
    refuse_foreign_types(table.schema)
    Dataset(table).save_to_disk(str(path))
