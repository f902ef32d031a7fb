import json

import pandas as pd
import pytest

from longgame.data.sources import read_scores
from longgame.errors import DataError

ROWS = [("0012", 0.5, True), ("12e4", -1.0, False), ("b#2", 3.0, True)]  # ids that are no numbers, though they look it


def write(path, frame):
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
    return str(path)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("column", ["sample_id", "id"])
def test_every_kind_of_file_says_the_same(tmp_path, kind, column):
    frame = pd.DataFrame(ROWS, columns=[column, "score", "keep"])
    found = read_scores(write(tmp_path / f"s.{kind}", frame))
    assert found.ids == ("0012", "12e4", "b#2")
    assert found.score.tolist() == [0.5, -1.0, 3.0]
    assert found.keep.tolist() == [True, False, True]


def test_without_scores_the_order_of_the_file_counts_and_without_flags_everything_is_kept(tmp_path):
    frame = pd.DataFrame(ROWS, columns=["id", "score", "keep"])
    kept = read_scores(write(tmp_path / "k.csv", frame[["id", "keep"]]))
    assert kept.score.tolist() == sorted(kept.score.tolist(), reverse=True)
    assert read_scores(write(tmp_path / "s.csv", frame[["id", "score"]])).keep.all()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"sample_id": "a", "points": 1}], "has the columns sample_id, points; it needs sample_id, and score or keep"),
        ([{"name": "a", "score": 1}], "it needs sample_id"),
        ([{"id": "a", "score": 1}, {"id": "a", "score": 2}], "repeats 1 ids: a. Give one row"),
        ([{"id": "a", "score": 1}, {"id": "b", "score": None}], "1 ids have no finite number as score: b"),
        ([{"id": "a", "score": "high"}], "no finite number as score: a"),
        ([{"id": 7, "score": 1}], "id holds 7, which is no text"),
        ([{"id": "a", "keep": "maybe"}], "keep holds 'maybe'; write true or false"),
    ],
)
def test_what_a_file_lacks_is_named(tmp_path, rows, message):
    path = tmp_path / "s.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError) as caught:
        read_scores(str(path))
    assert message in str(caught.value)


def test_a_file_that_is_not_there_or_not_readable_is_named(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_scores(str(tmp_path / "no.csv"))
    with pytest.raises(DataError, match=r"ends in '\.txt'; give a \.parquet, \.csv, \.jsonl file"):
        read_scores(str(tmp_path / "no.txt"))
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="cannot be read"):
        read_scores(str(tmp_path / "bad.parquet"))
