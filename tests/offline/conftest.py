"""Rows of one small data set, and what they look like as every kind of file."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

ROWS = [
    {
        "prompt": f"What is {number} + {number % 7}?",
        "response": f"It is {number + number % 7}." + " So it is." * (number % 4),
        "skill": "math" if number % 3 else "talk",
        "note": f"row {number}",
    }
    for number in range(60)
]
"""Every row differs, in its length, too."""


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _packed(path: Path, rows: list[dict[str, Any]]) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def _zst(path: Path, rows: list[dict[str, Any]]) -> Path:
    with pa.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write("".join(json.dumps(row) + "\n" for row in rows).encode())
    return path


def _array(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return path


def _csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def _parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=16)
    return path


def _arrow(path: Path, rows: list[dict[str, Any]]) -> Path:
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return path


def _saved(path: Path, rows: list[dict[str, Any]]) -> Path:
    Dataset.from_list(rows).save_to_disk(str(path))
    return path


def _shards(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.mkdir()
    half = len(rows) // 2
    jsonl(path / "a.jsonl", rows[:half])
    _parquet(path / "b.parquet", rows[half:])
    return path


FILES: dict[str, tuple[str, Callable[[Path, list[dict[str, Any]]], Path]]] = {
    "jsonl": ("d.jsonl", jsonl),
    "gz": ("d.jsonl.gz", _packed),
    "zst": ("d.jsonl.zst", _zst),
    "json": ("d.json", _array),
    "csv": ("d.csv", _csv),
    "parquet": ("d.parquet", _parquet),
    "arrow": ("d.arrow", _arrow),
    "saved": ("saved", _saved),
    "folder": ("shards", _shards),
}
"""Kind of file → name, and what writes it."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The rows as JSON lines."""
    return jsonl(tmp_path / "data.jsonl", ROWS)
