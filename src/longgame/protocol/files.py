"""Files of a run: written durably, read with an error that says what to delete where one is damaged."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from longgame import durable
from longgame.errors import ResumeError

_ADVICE = "Finished stages are safe; free the disk (or change --out) and run the same command again."


def storage_errors(what: Path) -> AbstractContextManager[None]:
    """Turn whatever hinders writing into a StorageError that says what stays."""
    return durable.storage_errors(what, _ADVICE)


def durable_folder(folder: Path) -> AbstractContextManager[Path]:
    """Give a scratch folder; when the block ends well it becomes ``folder`` (see `longgame.durable`).

    Raises:
        StorageError: the disk is full or not writable.
    """
    return durable.durable_folder(folder, _ADVICE)


def write_file(path: Path, content: str | bytes) -> None:
    """Write one file durably.

    Raises:
        StorageError: the disk is full or not writable; an older file of that name stays as it was.
    """
    durable.write_file(path, content, _ADVICE)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file durably (sorted keys, so that equal values give equal bytes)."""
    write_file(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def table_bytes(frame: pd.DataFrame) -> bytes:
    """A Parquet file (zstd) of this table; equal tables give equal bytes."""
    return parquet_bytes(pa.Table.from_pandas(frame, preserve_index=False))


def parquet_bytes(table: pa.Table) -> bytes:
    """A Parquet file (zstd) of this Arrow table."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def refresh_file(path: Path, content: bytes) -> None:
    """Write a file unless it holds just that, so that a finished run can be printed where nothing can be written."""
    if not path.is_file() or path.read_bytes() != content:
        write_file(path, content)


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write a Parquet file inside a scratch folder."""
    path.write_bytes(table_bytes(frame))


def unreadable(path: Path, error: Exception) -> ResumeError:
    """The error for a damaged file, with what to delete: the whole trial, as earlier stages do not keep their model."""
    whole = next((parent for parent in path.parents if parent.parent.name in ("trials", "seeds")), path)
    return ResumeError(
        f"{path} cannot be read ({error}). Delete {whole} and run the command again; only what was in it is done anew."
    )


def read_table(path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Read a Parquet file of the run.

    Args:
        columns: those to read; None: all.

    Raises:
        ResumeError: the file cannot be read.
    """
    try:
        table = pq.read_table(path, columns=None if columns is None else list(columns))
        return table.to_pandas(split_blocks=True, self_destruct=True)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error


def read_narrow(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read these columns of a Parquet file of millions of rows: one after the other, integers as narrow as they may be.

    Raises:
        ResumeError: the file cannot be read.
    """
    try:
        return pd.DataFrame({name: _narrow(pq.read_table(path, columns=[name])) for name in columns}, copy=False)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error


def _narrow(table: pa.Table) -> pd.Series:
    column = table.column(0)
    if not (pa.types.is_integer(column.type) and len(column)):
        return table.to_pandas(split_blocks=True, self_destruct=True).iloc[:, 0]
    low, high = (value.as_py() for value in pc.min_max(column).values())
    held = np.empty(len(column), np.min_scalar_type(min(low, -1 - high)))  # signed, as codes are subtracted
    end = np.cumsum([len(chunk) for chunk in column.chunks])
    for chunk, stop in zip(column.chunks, end, strict=True):
        held[stop - len(chunk) : stop] = chunk.to_numpy()
    return pd.Series(held, copy=False)


def read_json(path: Path) -> Any:
    """Read a JSON file of the run.

    Raises:
        ResumeError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write NumPy arrays as safetensors."""
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read what `write_arrays` wrote.

    Raises:
        ResumeError: the file is missing or damaged.
    """
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise unreadable(path, error) from error
