"""A training log that is none, of other examples, too short, with holes, or with numbers that are none."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import longgame
from longgame.data.examples import Example, Pool
from longgame.errors import DataError, LonggameError, RecipeError
from longgame.training.log import Parts, Trajectories, read_trajectories

IDS = ["a", "b", "c"]


def rows_of(ids=IDS, epochs=(0, 1, 2), accuracy=True):
    return [
        {
            "sample_id": name,
            "epoch": epoch,
            "loss": 1.0 + number + epoch,
            **({"token_accuracy": epoch / 100} if accuracy else {}),
        }
        for epoch in epochs
        for number, name in enumerate(ids)
    ]


def changed(row: int, **values):
    rows = rows_of()
    rows[row] |= values
    return rows


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    rows = ({"prompt": f"What is {row}?", "response": f"It is {row}."} for row in range(60))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pool_of(ids) -> Pool:
    examples = tuple(Example(name, "p", "r") for name in ids)
    ones = np.ones(len(examples), dtype=np.int64)
    return Pool(examples, (np.zeros(0, dtype=np.int64),) * len(examples), ones, ones)


FAULTS = {
    "no_rows": ([], "columns none"),
    "no_epoch": ([{"sample_id": "a", "loss": 1.0}], "lacks epoch"),
    "no_loss": ([{"sample_id": "a", "epoch": 0}], "lacks loss"),
    "one_epoch": (rows_of(epochs=[3]), r"one epoch only \(epoch 3\)"),
    "hole": (rows_of()[:-1], r"holes: 1 of 3 examples .* c lacks epoch 2"),
    "twice": (rows_of() + rows_of()[:1], "example a twice in epoch 0"),
    "text_epoch": (changed(4, epoch="checkpoint-100"), "'checkpoint-100', which is text"),
    "half_epoch": (changed(4, epoch=0.5), "0.5, which is no whole number"),
    "nan_loss": (changed(4, loss=math.nan), r"loss of example b is nan \(1 such rows\)"),
    "infinite_loss": (changed(4, loss=math.inf), "loss of example b is inf"),
    "text_loss": (changed(4, loss="high"), "loss of example b is 'high'"),
    "huge_loss": (changed(4, loss=1e308), r"loss of example b is 1e\+308"),
    "negative_loss": (changed(4, loss=-0.5), "from 0 on"),
    "percent": (changed(4, token_accuracy=40), r"token_accuracy of example b is 40.*in \[0, 1\]"),
    "numbers_as_ids": (changed(4, sample_id=7), "sample_id holds 7, which is no text"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_log_ends_in_one_sentence(tmp_path, fault) -> None:
    rows, message = FAULTS[fault]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=message):
        read_trajectories(path)


def test_a_log_of_other_examples_says_how_many_match() -> None:
    log = Trajectories.of(pd.DataFrame(rows_of()), "training log 'x'")
    with pytest.raises(DataError, match=r"names 1 of 3 candidates \(3 examples in all\); it lacks d"):
        log(pool_of(["d", "b", "e"]))


@settings(max_examples=30, deadline=None)
@given(st.permutations(rows_of(epochs=[2, 9, 10, 100])), st.booleans(), st.permutations(IDS))
def test_epochs_are_sorted_as_numbers(rows, as_text, order) -> None:
    # checkpoints sorted as strings would put 10 and 100 before 2
    frame = pd.DataFrame(rows)
    frame["epoch"] = frame["epoch"].map(str) if as_text else frame["epoch"]
    log = Trajectories.of(frame, "log")
    losses, accuracies = log(pool_of(order))
    assert log.epochs == (2, 9, 10, 100)
    expected = [[1.0 + IDS.index(name) + epoch for epoch in log.epochs] for name in order]
    assert losses.tolist() == expected
    assert accuracies.shape == losses.shape


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl", "folder"])
def test_every_kind_of_log_gives_the_same_picks(tmp_path, data, ending) -> None:
    ids = longgame.select(data, budget="100%")["longgame_sample_id"]
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "sample_id": np.tile(ids, 3),
            "epoch": np.repeat([0, 1, 2], len(ids)),
            "loss": rng.uniform(0, 3, 3 * len(ids)),
            "token_accuracy": rng.uniform(0, 1, 3 * len(ids)),
        }
    )
    expected = Trajectories.of(frame, "log")
    path = tmp_path / f"log.{ending}"
    if ending == "csv":
        frame.to_csv(path, index=False)
    elif ending == "parquet":
        frame.to_parquet(path)
    elif ending == "jsonl":
        frame.to_json(path, orient="records", lines=True, double_precision=15)
    else:
        table = Parts()
        table.append({name: frame[name].to_numpy() for name in frame} | {"seen": frame["epoch"].to_numpy() + 1})
        table.write(path / "checkpoint-3" / "training_log.parquet")
    subset = longgame.select(data, selector="cartography", budget="20rows", training_log=path)
    spread = np.exp(-expected.loss.astype(np.float64)).std(axis=1)
    best = {expected.ids[row] for row in np.argsort(-spread)[:20]}
    assert set(subset["longgame_sample_id"]) == best
    assert subset.manifest["training_log"]["label"] == f"training log '{path}'"


def test_a_log_method_without_a_log_names_the_fix(data) -> None:
    with pytest.raises(RecipeError, match="--training-log"):
        longgame.select(data, selector="forgetting-events")


def test_a_log_without_accuracies_names_the_column(tmp_path, data) -> None:
    ids = longgame.select(data, budget="100%")["longgame_sample_id"]
    path = tmp_path / "log.csv"
    pd.DataFrame(rows_of(ids, accuracy=False)).to_csv(path, index=False)
    with pytest.raises(DataError, match="token_accuracy"):
        longgame.select(data, selector="forgetting-events", training_log=path)
    assert len(longgame.select(data, selector="s2l", training_log=path))


def test_a_log_that_is_missing_ends_in_one_sentence(tmp_path, data) -> None:
    for path in (tmp_path / "none.csv", tmp_path / "log.txt", tmp_path, Path("/dev/null")):
        with pytest.raises(LonggameError):
            longgame.select(data, selector="cartography", training_log=path)


def test_signals_of_a_log_are_not_scored(data, tmp_path) -> None:
    with pytest.raises(RecipeError, match="longgame select makes it"):
        longgame.score(data, "loss_trajectory", model="tiny-1", out=tmp_path / "s")
