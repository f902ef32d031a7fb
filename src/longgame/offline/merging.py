"""The shards of a job as one folder of scores: checked against each other, copied in the order of the data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from longgame.errors import RecipeError, ResumeError, StorageError
from longgame.offline.near import NEAR_SKETCH, check_sketches
from longgame.offline.score_folder import (
    BAD_ROWS,
    CONFIG,
    CONTEXT_STATE,
    COUNTS,
    GRADING_FILE,
    STORE,
    TABLE,
    TOKENIZED_FILE,
    ScoreFolder,
    check_shards,
    is_free,
    read_config,
    shard_command,
    shared_context,
    stores_in,
    unfinished,
)
from longgame.signals.store import MANIFEST, RANGES, SignalStore, SignalWriter, begun_columns
from longgame.storage import durable_folder, scratch_target, write_file, write_json, write_state

_ROWS = 1 << 16
"""Rows that are copied together."""


def merge_scores(out: str | Path, folders: Sequence[str | Path], command: str = "") -> ScoreFolder:
    """Write the scores of all shards of a job into one folder, which serves as one that was scored without shards.

    Nothing is computed, and the shards stay as they are. Called again with the same shards it changes nothing. Memory
    holds `_ROWS` rows at a time, and 8 bytes a row.

    Args:
        out: the folder that is written.
        folders: of the shards, in any order, or folders that hold ``shard-…`` folders.
        command: stands in config.yaml.

    Raises:
        ResumeError: a shard is missing or not finished, is of other data, another model, other settings or versions,
            lacks a column that another one has, or holds another vector of the target set; a file is damaged.
        StorageError: ``out`` holds something else, or the disk is full.
    """
    path = Path(out)
    shards = check_shards(_expanded(folders))
    _check_finished(shards)
    content = _content_of([folder for folder, _ in shards])
    if (path / CONFIG).is_file():
        if (read_config(path).get("merged") or {}).get("content") == content:
            return ScoreFolder(path)
        raise StorageError(f"'{path}' holds other scores already. Give another folder, or delete it.")
    if not is_free(path):
        raise StorageError(f"'{path}' is not empty and holds no scores. Give another folder.")
    check_sketches([SignalStore(folder / NEAR_SKETCH) for folder, _ in shards if (folder / NEAR_SKETCH).is_dir()])
    with durable_folder(path) as part:
        sources = [folder for folder, _ in shards]
        names = sorted({name for folder in sources for name in _stores_apart(folder)})
        _copy_stores([stores_in(folder) for folder in sources], part / f"{STORE}{content[:8]}")
        for name in names:
            _copy_stores([[SignalStore(folder / name)] for folder in sources], part / name)
        for state in sorted({path.stem for folder in sources for path in folder.glob(f"{CONTEXT_STATE}*.json")}):
            write_state(part, state, shared_context(sources, state), flushed=False)
        _copy_table(shards, part / TABLE)
        _copy_notes(shards, part)
        first = dict(shards[0][1])
        job = first.pop("shard")
        merged = {"shards": job["total"], "content": content}
        config = first | {"command": command, "rows": job["rows"], "digest": job["digest"], "merged": merged}
        write_file(part / CONFIG, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    return ScoreFolder(path)


def _expanded(folders: Sequence[str | Path]) -> list[Path]:
    """The folders, and in place of a folder that holds shards these."""
    result: dict[Path, None] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise ResumeError(f"'{folder}' is no folder. Give the folders that longgame score --shard i/n wrote.")
        inside = [] if (folder / CONFIG).is_file() else sorted(folder.glob("shard-*-of-*"))
        result |= dict.fromkeys(inside or [folder])
    if not result:
        raise RecipeError("no shard is given. Give the folders that longgame score --shard i/n wrote.")
    return list(result)


def _check_finished(shards: Sequence[tuple[Path, Mapping[str, Any]]]) -> None:
    """Raise ResumeError where a shard lacks its table or a column that another one has."""
    columns = []
    for folder, config in shards:
        stores = stores_in(folder)
        if begun := sorted(part for part in folder.glob("*.part") if scratch_target(part) is None):
            signals = ", ".join(name for name in begun_columns(begun[0]) if name not in COUNTS) or "signals"
            raise ResumeError(
                f"'{folder}' is not finished: {begun[0].name} holds {signals} of some rows. Run its command again with "
                f"these signals, which resumes, or delete {begun[0].name}: {_command_of(config)}"
            )
        if reason := unfinished(folder) if stores else "it has no signals":
            raise ResumeError(
                f"'{folder}' is not finished: {reason}. Run its command again, which resumes: {_command_of(config)}"
            )
        columns.append({name for store in stores for name in store.names} | _stores_apart(folder))
    every = set[str]().union(*columns)
    for (folder, config), names in zip(shards, columns, strict=True):
        if lacking := sorted(every - names):
            raise ResumeError(
                f"'{folder}' lacks {', '.join(lacking)}, which another shard has. Score it, too, into the same folder: "
                f"{_command_of(config)}"
            )


def _command_of(config: Mapping[str, Any]) -> str:
    return shard_command(config, int(config["shard"]["number"]))


def _stores_apart(folder: Path) -> set[str]:
    """Stores of one target set or model."""
    names = {path.parent.name for path in folder.glob(f"*/{MANIFEST}")}
    return {name for name in names if not name.startswith(STORE)}


def _content_of(folders: Sequence[Path]) -> str:
    """Digest of all that the shards hold, told by the digests in their stores."""
    digest = blake2b(digest_size=8)
    for folder in folders:
        for journal in sorted(folder.glob(f"*/{RANGES}")):
            digest.update(journal.parent.name.encode() + b"\0" + journal.read_bytes())
    return digest.hexdigest()


def _copy_stores(shards: Sequence[Sequence[SignalStore]], path: Path) -> None:
    """Write the columns of these stores into one; the stores of a shard hold the same rows."""
    first = shards[0]
    columns = {name: store.column(name).dtype.name for store in first for name in store.names}
    with SignalWriter(path, columns, first[0].fingerprint) as writer:
        for stores in shards:
            ids = stores[0].ids
            for store in stores:
                store.verify()
            of_name = {name: store.column(name) for store in stores for name in store.names}
            for start in range(0, len(ids), _ROWS):
                rows = slice(start, start + _ROWS)
                writer.append(ids[rows], {name: column[rows] for name, column in of_name.items()})
        writer.finish()


@contextmanager
def _reading(path: Path, config: Mapping[str, Any], made_with: Path | None = None) -> Iterator[None]:
    """Turn an error of a shard's file into a ResumeError that says how it is made again.

    Args:
        config: config.yaml of the shard.
        made_with: the file whose absence lets the shard's command write this one; None: its own.
    """
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, pa.ArrowException) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ResumeError(
            f"'{path}' cannot be read ({type(error).__name__}: {reason}). Delete '{made_with or path}', and run the "
            f"shard's command again, which writes it anew: {_command_of(config)}"
        ) from error


def _copy_table(shards: Sequence[tuple[Path, Mapping[str, Any]]], path: Path) -> None:
    """scores.parquet, part by part."""
    with _reading(shards[0][0] / TABLE, shards[0][1]):
        schema = pq.read_schema(shards[0][0] / TABLE)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for folder, config in shards:
            for table in _tables(folder / TABLE, config, schema):
                writer.write_table(table)


def _tables(path: Path, config: Mapping[str, Any], schema: pa.Schema) -> Iterator[pa.Table]:
    """A shard's scores.parquet with these columns, `_ROWS` rows at a time."""
    with _reading(path, config), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_ROWS):
            yield pa.Table.from_batches([batch]).select(schema.names).cast(schema)


def _copy_notes(shards: Sequence[tuple[Path, Mapping[str, Any]]], out: Path) -> None:
    """Bad rows of all shards, how many examples were cut, and what each shard's quality sources did."""
    bad: list[str] = []
    counts = dict.fromkeys(("bad_rows", "cut"), 0)
    graded: dict[str, Any] = {}
    for folder, config in shards:
        if (folder / BAD_ROWS).is_file():
            with _reading(folder / BAD_ROWS, config, folder / TOKENIZED_FILE):
                bad.append((folder / BAD_ROWS).read_text(encoding="utf-8"))
        with _reading(folder / TOKENIZED_FILE, config):
            count = json.loads((folder / TOKENIZED_FILE).read_text(encoding="utf-8"))
            counts = {name: total + int(count[name]) for name, total in counts.items()}
        if (folder / GRADING_FILE).is_file():
            with _reading(folder / GRADING_FILE, config):
                graded[folder.name] = json.loads((folder / GRADING_FILE).read_text(encoding="utf-8"))
    if bad:
        write_file(out / BAD_ROWS, "".join(bad))
    write_json(out / TOKENIZED_FILE, counts)
    if graded:
        write_json(out / GRADING_FILE, {"shards": graded})
