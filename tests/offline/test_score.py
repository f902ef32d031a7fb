"""Scores as a product: equal to the engine's, resumed to equal bytes, split over machines, refused by content."""

from __future__ import annotations

import dataclasses
import itertools
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

import longgame
from longgame.commands import score as score_command
from longgame.commands.score import row_progress
from longgame.data.sources import open_source
from longgame.data.tokenize import build_pool
from longgame.errors import DataError, ModelError, RecipeError, ResumeError, StorageError
from longgame.models.load import load_model
from longgame.offline import rows as offline_rows
from longgame.offline import scoring
from longgame.offline.options import SelectOptions
from longgame.offline.rows import DataRows, TokenizedRows
from longgame.offline.score_folder import ScoreFolder, shard_name
from longgame.offline.scorer import ModelOptions
from longgame.offline.scoring import score_into, shard_rows
from longgame.offline.selecting import choose
from longgame.recipe import ModelSpec
from longgame.signals.engine import SignalEngine

from .conftest import ROWS, jsonl

TINY = ModelOptions(name="tiny")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline_rows, "SHARD_ROWS", 16)
    monkeypatch.setattr(scoring, "SHARD_ROWS", 16)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "config.yaml"
    }


def test_columns_are_those_of_the_engine(data: Path, tmp_path: Path) -> None:
    table = score_into(
        DataRows(open_source(data)), ["loss", "base_loss", "embedding", "grad_norm"], tmp_path / "s", TINY
    )
    loaded = load_model(ModelSpec(name="tiny"))
    rows = DataRows(open_source(data))
    pool = build_pool(list(rows.examples()), loaded.tokenizer, 512)
    expected = SignalEngine(loaded.model, pad_token_id=loaded.pad_token_id)(pool, ["loss", "embedding", "grad_norm"])
    assert table.ids == pool.ids
    np.testing.assert_allclose(table.column("loss"), expected["loss"], rtol=1e-5)
    np.testing.assert_array_equal(table.column("loss"), table.column("base_loss"))
    np.testing.assert_allclose(table.column("embedding"), expected["embedding"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(table.column("grad_norm"), expected["grad_norm"], rtol=1e-4)
    frame = pd.read_parquet(tmp_path / "s" / "scores.parquet")
    assert frame["row"].tolist() == list(range(1, 61))
    assert frame["sample_id"].tolist() == list(pool.ids)
    assert (frame["prompt_tokens"] + frame["response_tokens"]).tolist() == pool.tokens.tolist()
    config = yaml.safe_load((tmp_path / "s" / "config.yaml").read_text(encoding="utf-8"))
    assert (config["rows"], config["versions"]["longgame"]) == (60, longgame.__version__)


def test_scores_under_another_chat_template_are_refused(tmp_path: Path) -> None:
    data = jsonl(tmp_path / "d.jsonl", ROWS[:8])
    template = tmp_path / "t.jinja"
    template.write_text("{% for turn in messages %}{{ turn.content }}{% endfor %}")
    options = ModelOptions(name="tiny", chat_template=str(template))
    score_into(DataRows(open_source(data)), ["loss"], tmp_path / "s", options)
    select = partial(choose, open_source(data), SelectOptions(selector="loss"), scores=tmp_path / "s")
    for model in (options, TINY):
        select(model=model)
    template.write_text("{% for turn in messages %}Say: {{ turn.content }}{% endfor %}")
    for call in (
        partial(score_into, DataRows(open_source(data)), ["loss"], tmp_path / "s", options),
        partial(select, model=options),
        partial(select, model=TINY),
    ):
        with pytest.raises(ResumeError, match="another chat template than 'tiny' has now"):
            call()
    select()


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_stopped_job_ends_with_equal_bytes(stop: int, data: Path, tmp_path: Path, monkeypatch) -> None:
    names = ["loss", "embedding"]
    score_into(DataRows(open_source(data)), names, tmp_path / "whole", TINY)
    calls = 0
    run = scoring._Engine.__call__

    def stopped(self: Any, pool: Any, columns: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > stop:
            raise KeyboardInterrupt
        return run(self, pool, columns)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(scoring._Engine, "__call__", stopped)
        score_into(DataRows(open_source(data)), names, tmp_path / "again", TINY)
    with pytest.raises(ResumeError, match="no finished scores"):
        ScoreFolder(tmp_path / "again")
    shards: list[int] = []
    monkeypatch.setattr(
        scoring._Engine, "__call__", lambda self, pool, columns: shards.append(len(pool)) or run(self, pool, columns)
    )
    score_into(DataRows(open_source(data)), names, tmp_path / "again", TINY)
    assert len(shards) == 4 - stop
    assert tree(tmp_path / "again") == tree(tmp_path / "whole")


def test_shards_of_a_job_are_read_as_one(data: Path, tmp_path: Path) -> None:
    rows = DataRows(open_source(data))
    whole = score_into(rows, ["loss"], tmp_path / "whole", TINY)
    for number in (3, 1):
        part = shard_rows(rows, number, 3)
        score_into(part, ["loss"], tmp_path / "parts" / shard_name(number, 3), TINY)
    with pytest.raises(ResumeError, match=r"missing: shard-0002-of-0003"):
        ScoreFolder(tmp_path / "parts")
    score_into(shard_rows(rows, 2, 3), ["loss"], tmp_path / "parts" / shard_name(2, 3), TINY)
    parts = ScoreFolder(tmp_path / "parts")
    assert parts.ids == whole.ids
    np.testing.assert_array_equal(parts.column("loss"), whole.column("loss"))
    subset = longgame.select(data, selector="loss", budget="10%", scores=tmp_path / "parts")
    assert subset.to_list() == longgame.select(data, selector="loss", budget="10%", scores=tmp_path / "whole").to_list()
    rated = DataRows(open_source(jsonl(tmp_path / "rated.jsonl", [{**row, "quality": 0.25} for row in ROWS])))
    part = score_into(shard_rows(rated, 1, 2), ["quality"], tmp_path / "rated", TINY)
    assert set(part.column("quality").tolist()) == {0.25}
    with pytest.raises(DataError, match="Use at most 4 shards"):
        shard_rows(rows, 1, 9)


def test_long_rows_are_cut_as_trl_cuts_them(tmp_path: Path) -> None:
    data = jsonl(tmp_path / "d.jsonl", [*ROWS[:3], {"prompt": "word " * 200, "response": "x"}, ROWS[4]])
    rows = DataRows(open_source(data))
    tokenizer = load_model(ModelSpec(name="tiny")).tokenizer
    cut = TokenizedRows(rows, tokenizer, 64, on_bad_row="skip")
    pools = list(cut.shards())
    assert sum(map(len, pools)) == 4
    assert cut.cut == 0  # what learns nothing is bad
    assert "hold nothing that is learned" in cut.bad[0].reason
    with pytest.raises(DataError, match="line 4: its first 64 tokens"):
        list(TokenizedRows(rows, tokenizer, 64).shards())
    skipped = TokenizedRows(rows, tokenizer, 16, "skip", "skip")
    assert all(pool.tokens.max() <= 16 for pool in skipped.shards())
    long = jsonl(tmp_path / "l.jsonl", [{"prompt": "Count.", "response": " ".join(map(str, range(300)))}])
    tokenized = TokenizedRows(DataRows(open_source(long)), tokenizer, 64)
    [pool] = tokenized.shards()
    assert tokenized.cut == 1
    assert pool.tokens.tolist() == [64]
    assert pool.response_tokens[0] > 32


def test_rows_without_tokens_are_left_out_and_listed(tmp_path: Path) -> None:
    data = jsonl(tmp_path / "d.jsonl", [*ROWS[:3], {"prompt": "word " * 900, "response": "x"}, *ROWS[4:9]])
    rows = DataRows(open_source(data))
    table = score_into(rows, ["loss"], tmp_path / "s", TINY, on_bad_row="skip")
    assert len(table.ids) == 8
    entry = json.loads((tmp_path / "s" / "bad-rows.jsonl").read_text(encoding="utf-8"))
    assert entry["number"] == 4
    options: dict[str, Any] = {"selector": "loss", "budget": "100%", "scores": tmp_path / "s", "on_bad_row": "skip"}
    for parts, name in (({}, "whole"), ({"partitions": 2}, "parts")):
        subset = longgame.select(data, out=tmp_path / f"{name}.jsonl", **options, **parts)
        assert len(subset) == 8
        assert (subset.manifest["data"]["usable"], subset.manifest["data"]["bad_rows"]) == (8, 1)
        assert json.loads((tmp_path / f"{name}.bad-rows.jsonl").read_text(encoding="utf-8")) == entry


def test_a_job_stopped_before_its_lists_writes_them_later(tmp_path: Path) -> None:
    data = jsonl(tmp_path / "d.jsonl", [*ROWS[:3], {"prompt": "word " * 900, "response": "x"}, *ROWS[4:9]])
    score_into(DataRows(open_source(data)), ["loss"], tmp_path / "s", TINY, on_bad_row="skip")
    whole = tree(tmp_path / "s")
    for name in ("bad-rows.jsonl", "tokenized.json", "scores.parquet"):
        (tmp_path / "s" / name).unlink()
    score_into(DataRows(open_source(data)), ["loss"], tmp_path / "s", TINY, on_bad_row="skip")
    assert tree(tmp_path / "s") == whole


@pytest.mark.parametrize("parts", [{}, {"partitions": 2}])
def test_a_selection_says_how_many_rows_were_cut(parts: dict[str, int], tmp_path: Path) -> None:
    long = {"prompt": "Count.", "response": " ".join(map(str, range(300)))}
    data = jsonl(tmp_path / "d.jsonl", [*ROWS[:8], long])
    score_into(DataRows(open_source(data)), ["loss"], tmp_path / "s", dataclasses.replace(TINY, max_length=64))
    subset = longgame.select(data, selector="loss", budget="50%", scores=tmp_path / "s", **parts)
    assert (subset.manifest["data"]["cut_rows"], subset.manifest["data"]["max_length"]) == (1, 64)
    assert "1 of 9 scored rows" in subset._repr_html_()


def test_bad_rows_of_both_kinds_stand_in_the_order_of_the_data(tmp_path: Path) -> None:
    long = {"prompt": "word " * 900, "response": "x"}
    data = jsonl(tmp_path / "d.jsonl", [long, *ROWS[:3], {"prompt": "a"}, ROWS[3], long])
    score_into(DataRows(open_source(data), on_bad_row="skip"), [], tmp_path / "s", TINY, on_bad_row="skip")
    options: dict[str, Any] = {"selector": "random", "scores": tmp_path / "s", "on_bad_row": "skip"}
    longgame.select(data, out=tmp_path / "o.jsonl", budget="50%", **options)
    listed = (tmp_path / "o.bad-rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["number"] for line in listed] == [1, 5, 7]


def test_an_adapter_scores_itself_and_its_base(data: Path, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(load_model(ModelSpec(name="tiny")).model, LoraConfig(target_modules="all-linear"))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path / "adapter")
    rows = DataRows(open_source(data))
    options = ModelOptions(name="tiny", adapter=str(tmp_path / "adapter"))
    adapted = score_into(rows, ["loss", "base_loss", "grad_norm"], tmp_path / "a", options)
    plain = score_into(rows, ["loss"], tmp_path / "b", TINY)
    np.testing.assert_allclose(adapted.column("base_loss"), plain.column("loss"), rtol=1e-4)
    assert np.abs(adapted.column("loss") - plain.column("loss")).max() > 0.01
    with pytest.raises(ModelError, match="holds no adapter_config.json"):
        score_into(rows, ["loss"], tmp_path / "c", ModelOptions(name="tiny", adapter=str(tmp_path)))


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["los"], Exception, "unknown signal 'los'.*Did you mean 'loss'"),
        (["adam_grad_sketch"], RecipeError, "needs Adam's moments"),
        (["evaluation_alignment"], RecipeError, "an audit's evaluation items"),
        (["earlier_alignment"], RecipeError, "an audit's earlier stages, which scoring has not"),
        (["adam_earlier_alignment"], RecipeError, "an audit's earlier stages"),
        (["target_alignment"], RecipeError, "there is none. Give one"),
        (["future_alignment"], RecipeError, "there is none. Give one"),
        (["future_proxy"], RecipeError, "there is none. Give one"),
    ],
)
def test_signals_that_cannot_be_had_are_named(names, error, message, data: Path, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        score_into(DataRows(open_source(data)), names, tmp_path / "s", TINY)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int4"}, "unknown dtype 'int4'"),
        ({"store_dtype": "float8"}, "unknown dtype of the stored columns"),
        ({"max_length": 2}, "max_length is 2"),
        ({"batch_tokens": 1}, "batch_tokens is 1"),
    ],
)
def test_options_of_the_model_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        ModelOptions(name="tiny", **options)


def test_places_that_hold_something_else_are_refused(data: Path, tmp_path: Path) -> None:
    rows = DataRows(open_source(data))
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(StorageError, match="is not empty and holds no scores"):
        score_into(rows, ["loss"], tmp_path / "s", TINY)
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "config.yaml.7.part").write_text("a job that was killed", encoding="utf-8")
    score_into(rows, ["loss"], tmp_path / "killed", TINY)
    with pytest.raises(ModelError, match="takes at most 512 tokens"):
        score_into(rows, ["loss"], tmp_path / "t", ModelOptions(name="tiny", max_length=4096))
    with pytest.raises(ModelError, match="device 'cuda:7' cannot be used"):
        score_into(rows, ["loss"], tmp_path / "t", ModelOptions(name="tiny", device="cuda:7"))
    score_into(rows, ["loss"], tmp_path / "u", TINY)
    other = DataRows(open_source(jsonl(tmp_path / "other.jsonl", ROWS[:9])))
    with pytest.raises(ResumeError, match="holds scores of other data"):
        score_into(other, ["loss"], tmp_path / "u", TINY)
    column = next((tmp_path / "u").glob("signals-*/loss.npy"))
    content = bytearray(column.read_bytes())
    content[-3] ^= 1
    column.write_bytes(content)
    with pytest.raises(ResumeError, match="is damaged"):
        longgame.select(data, selector="loss", scores=tmp_path / "u")


def test_progress_in_a_log_is_a_line_a_minute_with_the_time_left(capsys, monkeypatch):
    clock = itertools.accumulate([0, 30, 30, 45, 15, 60])  # start, then one reading per call
    monkeypatch.setattr(score_command, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with row_progress("scoring") as progress:
        for done in (100, 200, 300, 400, 700):
            progress(done, 1_000)
    assert capsys.readouterr().err.splitlines() == [
        "scoring: 200 of 1,000 rows (20 %), 4:00 left",
        "scoring: 400 of 1,000 rows (40 %), 3:00 left",
        "scoring: 700 of 1,000 rows (70 %), 1:15 left",
    ]
