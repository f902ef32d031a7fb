"""Durable files: what a kill or a full disk cannot tear, states without pickle, and the files of a run.

A file or folder is written under a temporary name (``NAME.PID.part``), flushed to disk and renamed, so its final name
is complete or absent. Two processes that write the same file do not meet; the last rename wins.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.numpy import load, save, save_file

from longgame.errors import PluginError, ResumeError, StorageError

CACHE_VARIABLE = "LONGGAME_CACHE"
ADVICE = "Free the disk or choose another directory, and run the same command again; what was finished stays."


def cache_dir() -> Path:
    """Return ``$LONGGAME_CACHE``, else ``$XDG_CACHE_HOME/longgame``, else ``~/.cache/longgame``."""
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE]).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache")).expanduser() / "longgame"


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


def flush_all(paths: Sequence[Path]) -> None:
    """Flush files and folders side by side: a disk takes many at once in little more than the time of one."""
    with ThreadPoolExecutor(max_workers=min(8, len(paths))) as pool:
        for _ in pool.map(flush, paths):
            pass


@contextmanager
def open_file(path: str | Path) -> Iterator[BinaryIO]:
    """A regular file to read; a pipe, on which a reader would wait, or a device without end is an OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is a folder, a pipe or a device, not a file", str(path))
        yield file


def read_file(path: str | Path) -> bytes:
    """Content of a regular file (`open_file`)."""
    with open_file(path) as file:
        return file.read()


def scratch(path: Path) -> Path:
    """Name under which this process writes what will be ``path``."""
    return path.with_name(f"{path.name}.{os.getpid()}.part")


def scratch_target(path: Path) -> str | None:
    """Return the name that this scratch file or folder was to become; None for a path of another form."""
    match = re.fullmatch(r"(.+)\.[0-9]+\.part", path.name)
    return match[1] if match else None


def write_file(path: Path, content: str | bytes, advice: str = ADVICE) -> None:
    """Write one file, making the folders above it.

    Raises:
        StorageError: the disk is full or not writable; an older file of that name stays as it was.
    """
    part = scratch(path)
    data = content.encode() if isinstance(content, str) else content
    with storage_errors(path, advice):
        if path.exists() and not path.is_file():
            kind = "a directory" if path.is_dir() else "a pipe or a device"
            raise StorageError(f"cannot write {path}: it is {kind}, not a file. {advice}")
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

    What stood under that name before gives way. Scratch of it that a killed process left is deleted.

    Raises:
        StorageError: the disk is full or not writable.
    """
    part = scratch(folder)
    with storage_errors(folder, advice):
        folder.parent.mkdir(parents=True, exist_ok=True)
        for stale in [path for path in folder.parent.glob("*.part") if scratch_target(path) == folder.name]:
            with suppress(OSError), _locked(stale) as free:
                if free:
                    shutil.rmtree(stale)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            with _locked(part):
                yield part
                flush_all([*part.rglob("*"), part])
                if folder.exists():
                    shutil.rmtree(folder)
                part.rename(folder)
            flush(folder.parent)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold a folder's lock, which the system releases however the process ends; whether it could be had."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another process has it, or the file system has no locks
            yield False
        else:
            yield True
    finally:
        os.close(handle)


# States: NumPy arrays in one .safetensors file, everything else in one .json file

_MARK = "$"
"""Key of an encoded node; a dict of the state that holds it itself is written as a list of items."""

_TENSOR_KINDS = "biuf"


def write_state(directory: str | Path, name: str, state: Any, *, flushed: bool = True) -> None:
    """Write a state to ``directory/name.json`` and ``directory/name.safetensors``, flushed to disk and renamed.

    The JSON file carries the digest of the tensor file, so a pair torn by a kill between the two renames is noticed.

    Args:
        flushed: False inside a folder that is flushed and renamed as a whole (`longgame.storage.durable_folder`).

    Raises:
        PluginError: the state holds something that is neither an array nor a plain value (the place is named).
        StorageError: the disk is full or not writable; nothing half-written stands under the final names.
    """
    directory = Path(directory)
    arrays: dict[str, np.ndarray] = {}
    tree = _encode(state, name, arrays)
    tensors = save(arrays)
    document = {"format": 1, "tensors": hashlib.sha256(tensors).hexdigest(), "state": tree}
    text = json.dumps(document, allow_nan=False)
    if flushed:
        write_file(directory / f"{name}.safetensors", tensors)
        write_file(directory / f"{name}.json", text)
    else:
        (directory / f"{name}.safetensors").write_bytes(tensors)
        (directory / f"{name}.json").write_text(text, encoding="utf-8")


def read_state(directory: str | Path, name: str) -> Any:
    """Read what `write_state` wrote.

    Raises:
        ResumeError: a file is missing or damaged, or the two do not belong together.
    """
    directory = Path(directory)
    return state_of(lambda file: read_file(directory / file), name, directory)


def state_of(read: Callable[[str], bytes], name: str, place: Path) -> Any:
    """What `write_state` wrote, of its two files.

    Args:
        read: name of a file → its content.
        place: named in errors.

    Raises:
        ResumeError: as `read_state`.
    """
    try:
        document = json.loads(read(f"{name}.json").decode("utf-8"))
        tensors = read(f"{name}.safetensors")
        if hashlib.sha256(tensors).hexdigest() != document["tensors"]:
            raise ResumeError(
                f"{name}.json and {name}.safetensors in {place} do not belong together (one of them was not "
                "written to the end). Go back to an earlier checkpoint."
            )
        return _decode(document["state"], load(tensors))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ResumeError(
            f"state '{name}' in {place} cannot be read ({type(error).__name__}: {error}). "
            "Go back to an earlier checkpoint, or start again."
        ) from error


def _encode(value: Any, place: str, arrays: dict[str, np.ndarray]) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if type(value) is int:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {_MARK: "float", "value": repr(value)}
    if isinstance(value, np.ndarray):
        return _encode_array(value, place, arrays)
    if isinstance(value, np.generic):
        return {_MARK: "scalar", "value": _encode_array(np.asarray(value), place, arrays)}
    if isinstance(value, Mapping):
        if _MARK not in value and all(type(key) is str for key in value):
            return {key: _encode(item, f"{place}.{key}", arrays) for key, item in value.items()}
        items = [
            [_encode(key, f"{place} key", arrays), _encode(item, f"{place}.{key}", arrays)]
            for key, item in value.items()
        ]
        return {_MARK: "dict", "items": items}
    if isinstance(value, list):
        return [_encode(item, f"{place}[{i}]", arrays) for i, item in enumerate(value)]
    if isinstance(value, tuple):
        return {_MARK: "tuple", "items": [_encode(item, f"{place}[{i}]", arrays) for i, item in enumerate(value)]}
    raise PluginError(
        f"state '{place}' is a {type(value).__name__}; a state dict holds NumPy arrays, None, bool, int, float, str, "
        "and lists, tuples and dicts of them. Convert it in state_dict()."
    )


def _encode_array(array: np.ndarray, place: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    if array.dtype.kind == "U":
        return {_MARK: "text", "dtype": array.dtype.str, "shape": list(array.shape), "values": array.ravel().tolist()}
    if array.dtype.kind not in _TENSOR_KINDS or array.dtype.itemsize > 8:
        raise PluginError(
            f"state '{place}' is an array of {array.dtype}; numbers, booleans and text can be saved. "
            "Convert it in state_dict()."
        )
    key = f"{len(arrays):05d}"
    arrays[key] = np.array(array, dtype=array.dtype.newbyteorder("="), order="C", copy=True)
    return {_MARK: "array", "key": key, "place": place}


def _decode(node: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(node, list):
        return [_decode(item, arrays) for item in node]
    if not isinstance(node, dict):
        return node
    kind = node.get(_MARK)
    if kind is None:
        return {key: _decode(item, arrays) for key, item in node.items()}
    if kind == "float":
        return float(node["value"])
    if kind == "array":
        return np.array(arrays[node["key"]], copy=True)
    if kind == "scalar":
        return _decode(node["value"], arrays)[()]
    if kind == "text":
        return np.array(node["values"], dtype=node["dtype"]).reshape(node["shape"])
    if kind == "tuple":
        return tuple(_decode(item, arrays) for item in node["items"])
    if kind == "dict":
        return {_decode(key, arrays): _decode(item, arrays) for key, item in node["items"]}
    raise ValueError(f"unknown node '{kind}'")


# Files of a run: reading a damaged one names what to delete


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file durably (sorted keys, so that equal values give equal bytes)."""
    write_file(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


SEAL = "sha256_of_rest"
"""Key of a sealed JSON file: the digest of its other entries."""


def sealed(value: Mapping[str, Any]) -> str:
    """The text of a JSON object with the digest of its entries, which `read_sealed` compares."""
    return json.dumps({**value, SEAL: _seal(value)}, indent=1, sort_keys=True) + "\n"


def _seal(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_sealed(path: Path, required: Collection[str], optional: Collection[str] = ()) -> dict[str, Any]:
    """Read a JSON object that `sealed` wrote; one of an older version has no digest, and its keys alone are compared.

    Raises:
        ResumeError: the file is missing or damaged, lacks a required key, holds an unknown one, or was edited.
    """
    return unsealed(read_json(path), path, required, optional)


def unsealed(content: Any, path: Path, required: Collection[str], optional: Collection[str] = ()) -> dict[str, Any]:
    """The entries of a sealed JSON object, after its digest was compared (`read_sealed`)."""
    if not isinstance(content, dict):
        raise unreadable(path, ValueError(f"it holds a {type(content).__name__}, not an object"))
    digest = content.pop(SEAL, None)
    lacking = [key for key in required if key not in content]
    surplus = [key for key in content if key not in required and key not in optional]
    if lacking or surplus:
        words = [f"it lacks '{key}'" for key in lacking] + [f"'{key}' is unknown" for key in surplus]
        raise unreadable(path, ValueError("; ".join(words)))
    if digest is not None and digest != _seal(content):
        raise unreadable(path, ValueError("its content is not what was written"))
    return content


def table_bytes(frame: pd.DataFrame) -> bytes:
    """A Parquet file (zstd) of this table; equal tables give equal bytes."""
    return parquet_bytes(pa.Table.from_pandas(frame, preserve_index=False))


def parquet_bytes(table: pa.Table) -> bytes:
    """A Parquet file (zstd) of this Arrow table."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


_UNPACKED, _RATIO, _ROWS = 2**30, 200, 65_536
"""Bytes that a table of a run may unpack to, whatever its size; else times its size; rows unpacked at once."""


def unpack_parquet(
    content: bytes, columns: Sequence[str] | None = None, dictionaries: Collection[str] = ()
) -> pa.Table:
    """The table of a Parquet file, unpacked in bounded memory: a few bytes may repeat a value without end.

    Args:
        columns: those to read; None: all.
        dictionaries: text columns that stay dictionaries.

    Raises:
        pa.ArrowException: it is damaged, nested, or unpacks to more than 1 GiB and 200 times its size.
    """
    limit, size, batches = max(_UNPACKED, _RATIO * len(content)), 0, []
    try:
        schema = pq.read_schema(pa.BufferReader(content))
        lacking = sorted({*(columns or ())} - {*schema.names})
        if lacking:
            raise pa.ArrowInvalid(f"it lacks the column {lacking[0]}")
        nested = any(pa.types.is_nested(schema.field(name).type) for name in columns or schema.names)
        texts = [field.name for field in schema if _is_text(field.type)]
        with pq.ParquetFile(pa.BufferReader(content), read_dictionary=texts) as file:
            groups = [file.metadata.row_group(place) for place in range(file.metadata.num_row_groups)]
            claimed = max(file.metadata.num_rows, sum(group.total_byte_size for group in groups))
            if claimed <= limit and not nested:
                names = None if columns is None else list(columns)
                for batch in file.iter_batches(batch_size=_ROWS, columns=names, use_threads=False):
                    size += sum(
                        column.nbytes if name in dictionaries else _unpacked_bytes(column)
                        for name, column in zip(batch.schema.names, batch.columns, strict=True)
                    )
                    if size > limit:
                        break
                    batches.append(batch)
                table = pa.Table.from_batches(batches) if batches else file.read(columns=names, use_threads=False)
    except MemoryError as error:
        raise pa.ArrowInvalid("it needs more memory than there is") from error
    if nested:
        raise pa.ArrowInvalid("it has a column of lists or structs; numbers and texts are read")
    if max(size, claimed) > limit:
        raise pa.ArrowInvalid(f"it has {len(content):,} bytes and unpacks to more than {limit:,}")
    for place, name in enumerate(table.schema.names):
        field = schema.field(name)
        if _is_text(field.type) and name not in dictionaries:
            table = table.set_column(place, field, table.column(place).cast(field.type))
    return table.replace_schema_metadata(schema.metadata)


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind)


def _unpacked_bytes(column: pa.Array) -> int:
    """Bytes of a column; of a dictionary of texts, when each row holds its own copy."""
    if not (pa.types.is_dictionary(column.type) and _is_text(column.type.value_type)):
        return int(column.nbytes)
    lengths = pc.take(pc.binary_length(column.dictionary), column.indices)
    return int(column.indices.nbytes) + (pc.sum(lengths).as_py() or 0)


def refresh_file(path: Path, content: bytes) -> None:
    """Write a file unless it holds just that, so that a finished run can be printed where nothing can be written."""
    if not path.is_file() or path.read_bytes() != content:
        write_file(path, content)


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write a Parquet file inside a scratch folder."""
    path.write_bytes(table_bytes(frame))


def unreadable(path: Path, error: Exception) -> ResumeError:
    """Return the error for a damaged file. The whole trial goes, as earlier stages do not keep their model."""
    folder = next((parent for parent in path.parents if _is_trial(parent, path)), path)
    return ResumeError(
        f"{path} cannot be read ({error}). Delete {folder} and run the command again; only its content is computed "
        "again."
    )


def _is_trial(folder: Path, path: Path) -> bool:
    """Whether the folder is that of a trial, or of a seed, in a run; a run itself may lie below a folder ``trials``."""
    run = folder.parent.parent
    if folder.parent.name not in ("trials", "seeds"):
        return False
    of_part = re.match(r"(stage-[0-9]+|base)\b", path.relative_to(folder).parts[0])
    return (run / "run.json").is_file() or bool(of_part and (run / "recipe.yaml").is_file())  # older runs had no mark


def table_of(content: bytes, path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The table of a Parquet file of the run.

    Args:
        path: named in errors.
        columns: those to read; None: all.

    Raises:
        ResumeError: it cannot be read.
    """
    try:
        return unpack_parquet(content, columns).to_pandas(split_blocks=True, self_destruct=True)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error


DONE = "done.json"
"""Mark of a finished part (a folder of a run): its key, and the SHA-256 of each of its files."""


def read_done(path: Path) -> dict[str, Any]:
    """Read the mark of a finished part.

    Raises:
        ResumeError: it is missing, damaged or edited.
    """
    return checked_mark(read_json(path), path)


def checked_mark(content: Any, path: Path) -> dict[str, Any]:
    """The entries of a mark, after its digest was compared.

    Raises:
        ResumeError: it is damaged or was edited.
    """
    mark = unsealed(content, path, ["key"], ["part", "sha256", "files", "rows"])
    if not isinstance(mark["key"], str) or not all(
        isinstance(mark.get(key, {}), dict) for key in ("sha256", "files", "rows")
    ):
        raise unreadable(path, ValueError("an entry is of another kind"))
    return mark


def digests(folder: Path) -> dict[str, str]:
    """Name → SHA-256 of every file in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def part_file(path: Path) -> bytes:
    """Content of a file of a finished part, compared with the digest in the part's mark (older versions have none).

    Raises:
        ResumeError: the file cannot be read, or is not what was written.
    """
    try:
        content = read_file(path)
    except OSError as error:
        raise unreadable(path, error) from error
    mark = path.parent / DONE
    digest = read_done(mark).get("sha256", {}).get(path.name) if mark.is_file() else None
    if digest is not None and digest != hashlib.sha256(content).hexdigest():
        raise unreadable(path, ValueError("its content is not what was written"))
    return content


def read_json(path: Path) -> Any:
    """Read a JSON file of the run.

    Raises:
        ResumeError: the file is missing or damaged.
    """
    try:
        return json.loads(read_file(path).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error) from error


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write NumPy arrays as safetensors."""
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)


def read_arrays(content: bytes, path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file that `write_arrays` wrote.

    Args:
        path: named in errors.

    Raises:
        ResumeError: it is damaged.
    """
    try:
        return dict(load(content))
    except SafetensorError as error:
        raise unreadable(path, error) from error
