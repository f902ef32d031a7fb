"""Small files that unpack to large ones end in one sentence, in bounded memory."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longgame import storage
from longgame.data import files
from longgame.data.score_files import read_scores
from longgame.data.sources import load_examples
from longgame.errors import DataError, ResumeError
from longgame.storage import table_of

MEBI = 2**20


def row(size):
    return json.dumps({"prompt": "p", "response": "r" * size}).encode() + b"\n"


def write_parquet(path, texts, rows):
    """Rows that repeat a few texts, which a dictionary stores once."""
    codes = pa.array([place % len(texts) for place in range(rows)], type=pa.int32())
    column = pa.DictionaryArray.from_arrays(codes, pa.array(texts))
    pq.write_table(pa.table({"prompt": pa.array(["p"] * rows), "response": column}), path, compression="zstd")


@pytest.fixture
def small(monkeypatch):
    """Limits of a thousandth, so that the files are made in no time."""
    monkeypatch.setattr(files, "_LONGEST_LINE", 64 * 2**10)
    monkeypatch.setattr(files, "_UNPACKED", 256 * 2**10)


def test_a_line_that_unpacks_without_end_is_refused(tmp_path, small):
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(row(MEBI)))
    with pytest.raises(DataError, match="line 1 has more than 65,536 bytes"):
        load_examples(str(path), data_dir=None, split="train")
    (tmp_path / "x.jsonl").write_bytes(row(10) + row(MEBI))
    with pytest.raises(DataError, match="line 2 has more than 65,536 bytes"):
        load_examples(str(tmp_path / "x.jsonl"), data_dir=None, split="train")


def test_many_lines_that_unpack_without_end_are_refused(tmp_path, small):
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(row(1000) * 2000))
    with pytest.raises(DataError, match="unpacks to more than"):
        load_examples(str(path), data_dir=None, split="train")


@pytest.mark.parametrize(("texts", "rows"), [(["r" * 20_000], 5000), (["r" * MEBI], 10), (["r", "s"], 300_000)])
def test_parquet_that_unpacks_without_end_is_refused(tmp_path, small, texts, rows):
    write_parquet(tmp_path / "x.parquet", texts, rows)
    with pytest.raises(DataError, match="unpacks to more than"):
        load_examples(str(tmp_path / "x.parquet"), data_dir=None, split="train")


def test_ordinary_packed_files_are_read(tmp_path):
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(b"".join(row(size) for size in range(1, 500))))
    assert len(load_examples(str(tmp_path / "x.jsonl.gz"), data_dir=None, split="train")) == 499
    write_parquet(tmp_path / "x.parquet", ["some text", "another"], 1000)
    read = load_examples(str(tmp_path / "x.parquet"), data_dir=None, split="train")
    assert [example.response for example in read[:3]] == ["some text", "another", "some text"]
    assert len(read) == 1000


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary()], ids=str)
@pytest.mark.parametrize(("values", "rows"), [(["r" * MEBI], 20), (["r" * 20_000, "s"], 2000), (["r"], 2_000_000)])
def test_a_table_of_a_run_that_unpacks_without_end_is_refused(tmp_path, monkeypatch, kind, values, rows):
    monkeypatch.setattr(storage, "_UNPACKED", MEBI)
    codes = pa.array([place % len(values) for place in range(rows)], type=pa.int32())
    column = pa.DictionaryArray.from_arrays(codes, pa.array(values, type=kind))
    path = tmp_path / "selection.parquet"
    pq.write_table(pa.table({"sample_id": column}), path, compression="zstd", store_schema=False)
    with pytest.raises(ResumeError, match=r"selection.parquet cannot be read \(it has [0-9,]+ bytes and unpacks to"):
        table_of(path.read_bytes(), path)


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"a": range(70_000), "s": [f"x{n % 7}" for n in range(70_000)], "e": [None, "t"] * 35_000}),
        pd.DataFrame({"a": np.array([], dtype=np.float32), "s": pd.array([], dtype="string")}),
        pd.DataFrame(
            {"c": pd.Categorical(["u", "v"] * 9), "b": [True, False] * 9, "s": pd.array(["w"] * 18, "string")}
        ),
    ],
    ids=["texts", "empty", "categories"],
)
def test_a_bounded_read_of_a_table_gives_what_was_written(tmp_path, frame):
    path = tmp_path / "t.parquet"
    path.write_bytes(storage.table_bytes(frame))
    pd.testing.assert_frame_equal(table_of(path.read_bytes(), path), pd.read_parquet(tmp_path / "t.parquet"))
    names = list(frame.columns[:0:-1])
    expected = pd.read_parquet(tmp_path / "t.parquet", columns=names)
    pd.testing.assert_frame_equal(table_of(path.read_bytes(), path, names), expected)


def test_a_score_file_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_UNPACKED", MEBI)
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(50, np.int32)), pa.array(["r" * MEBI]))
    scores = {"sample_id": column, "score": [1.0] * 50}
    pq.write_table(pa.table(scores), tmp_path / "s.parquet", store_schema=False)
    with pytest.raises(DataError, match="cannot be read: it has [0-9,]+ bytes and unpacks to more than"):
        read_scores(str(tmp_path / "s.parquet"))


def test_a_score_file_may_hold_columns_that_are_not_read(tmp_path):
    pq.write_table(pa.table({"a": [[1]], "id": ["x"], "score": [2]}), tmp_path / "s.parquet")
    assert read_scores(str(tmp_path / "s.parquet")).ids == ("x",)


def test_a_table_of_a_run_with_nested_columns_is_refused(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": [[1, 2], [3]]}), path)
    with pytest.raises(ResumeError, match="a column of lists or structs"):
        table_of(path.read_bytes(), path)


def test_a_bomb_of_gigabytes_stays_in_bounded_memory(tmp_path):
    path = tmp_path / "x.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(b'{"prompt": "p", "response": "')
        for _ in range(400):
            stream.write(b"r" * MEBI)
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
from longgame.data.score_files import read_scores
from longgame.data.sources import load_examples
from longgame.errors import DataError
try:
    load_examples({str(path)!r}, data_dir=None, split="train")
except DataError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert "line 1 has more than" in done.stdout, done.stderr
