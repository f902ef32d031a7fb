"""A subset of a data set: rows unchanged, budgets kept, every flag, and what goes wrong in one sentence."""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value, load_from_disk

import longgame
from longgame.data.formats import RowRules
from longgame.data.sources import open_source
from longgame.errors import BudgetError, DataError, LonggameError, RecipeError, ResumeError, StorageError
from longgame.offline import scoring
from longgame.offline.api import Subset
from longgame.offline.options import Budget, SelectOptions, parse_selector
from longgame.offline.rows import DataRows
from longgame.offline.scorer import ModelOptions
from longgame.offline.scoring import score_into
from longgame.offline.selecting import choose, select_to
from longgame.offline.summary import SubsetFacts
from longgame.selection.base import Selector
from longgame.selection.history import Selection
from longgame.storage import read_state
from support.cli import longgame_here

from .conftest import FILES, ROWS, jsonl

TINY = ModelOptions(name="tiny")


def lines(path: Path) -> list[dict[str, Any]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def original(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.startswith("longgame_")}


@pytest.mark.parametrize("kind", FILES)
def test_every_kind_of_file_gives_the_same_subset(kind: str, tmp_path: Path) -> None:
    name, write = FILES[kind]
    data = write(tmp_path / name, ROWS)
    outcome, _ = select_to(data, tmp_path / "out.jsonl", SelectOptions(selector="longest", budget="20rows"))
    rows = lines(tmp_path / "out.jsonl")
    assert all(original(row) in ROWS for row in rows)
    assert [original(row) for row in rows] == [row for row in ROWS if row in [original(other) for other in rows]]
    assert sorted(row["longgame_rank"] for row in rows) == list(range(1, 21))
    lengths = sorted((len(row["response"]) for row in ROWS), reverse=True)
    assert sorted((len(row["response"]) for row in rows), reverse=True) == lengths[:20]
    assert len(outcome.rows) == len(ROWS)


@pytest.mark.parametrize("out", ["s.jsonl", "s.jsonl.gz", "s.parquet", "s"])
def test_every_output_holds_complete_rows(out: str, data: Path, tmp_path: Path) -> None:
    select_to(data, tmp_path / out, SelectOptions(selector="random", budget="10rows"))
    path = tmp_path / out
    if out.endswith(".parquet"):
        rows = pd.read_parquet(path).to_dict("records")
    elif path.is_dir():
        dataset = load_from_disk(str(path))
        assert dataset._indices is None
        rows = dataset.to_list()
    else:
        rows = lines(path)
    assert [original(row) for row in rows] == [row for row in ROWS if row in [original(other) for other in rows]]
    assert len(rows) == 10


class Weighing(Selector):
    """Shortest first, with the weight of its length; a class in a file, as a stranger writes it."""

    name = "weighing"

    def select(self, pool, signals, history, budget, rng):
        rows = np.argsort(pool.tokens, kind="stable")[:budget]
        return Selection.of(pool, rows, {"score": -pool.tokens.astype(float)}, pool.tokens[rows] / pool.tokens.mean())


@pytest.mark.parametrize("out", ["s.jsonl", "s.parquet", "s"])
def test_weights_of_picks_are_a_column(out: str, data: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(SelectOptions, "build", lambda _self: Weighing())
    old = jsonl(tmp_path / "old.jsonl", [{**row, "prompt": f"Once more: {row['prompt']}"} for row in ROWS])
    outcome, manifest = select_to(data, tmp_path / out, SelectOptions(selector="random", budget="10rows"), replay=old)
    frame = subset_frame(tmp_path / out)
    picks = frame[~frame["longgame_replayed"].astype(bool)].sort_values("longgame_rank")
    assert picks["longgame_weight"].tolist() == pytest.approx(outcome.pick_weights.tolist())
    assert frame[frame["longgame_replayed"].astype(bool)]["longgame_weight"].tolist() == [1.0] * (
        len(frame) - len(picks)
    )
    assert "other trainers ignore it" in SubsetFacts.of(outcome, manifest).facts["weights"]


@pytest.mark.parametrize("weighing", [False, True])
def test_weights_of_an_earlier_selection_multiply(weighing: bool, tmp_path: Path, monkeypatch) -> None:
    if weighing:
        monkeypatch.setattr(SelectOptions, "build", lambda _self: Weighing())
    old = [{**row, "longgame_weight": 1.0 + place} for place, row in enumerate(ROWS)]
    old[3] |= {"longgame_weight": None}
    data = jsonl(tmp_path / "weighted.jsonl", old)
    again = jsonl(tmp_path / "old.jsonl", [{**row, "prompt": f"Once more: {row['prompt']}"} for row in old])
    outcome, _ = select_to(data, tmp_path / "s.jsonl", SelectOptions(selector="random", budget="10rows"), replay=again)
    rows = lines(tmp_path / "s.jsonl")
    earlier = {row["prompt"].removeprefix("Once more: "): row["longgame_weight"] or 1.0 for row in old}
    new = dict.fromkeys((row["longgame_sample_id"] for row in rows), 1.0)
    if weighing:
        fresh = outcome.tokens[outcome.picks] / outcome.tokens.mean()
        new |= {outcome.rows.ids[row]: weight for row, weight in zip(outcome.picks.tolist(), fresh, strict=True)}
    expected = [earlier[row["prompt"].removeprefix("Once more: ")] * new[row["longgame_sample_id"]] for row in rows]
    assert [row["longgame_weight"] for row in rows] == pytest.approx(expected)


def test_a_product_of_weights_beyond_float32_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(SelectOptions, "build", lambda _self: Weighing())
    data = jsonl(tmp_path / "weighted.jsonl", [{**row, "longgame_weight": 3e38} for row in ROWS])
    with pytest.raises(DataError, match="weighted.jsonl, line .* times the new one is .* Scale the column"):
        select_to(data, tmp_path / "s.jsonl", SelectOptions(selector="random", budget="40rows"))


def test_a_subset_without_weights_has_no_such_column(data: Path, tmp_path: Path) -> None:
    outcome, manifest = select_to(data, tmp_path / "s.jsonl", SelectOptions(budget="10rows"))
    assert "longgame_weight" not in lines(tmp_path / "s.jsonl")[0]
    assert "weights" not in SubsetFacts.of(outcome, manifest).facts


def subset_frame(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    return load_from_disk(str(path)).to_pandas() if path.is_dir() else pd.DataFrame(lines(path))


def test_lines_of_json_keep_their_bytes(tmp_path: Path) -> None:
    texts = ['{"prompt": "a",  "response": "b", "x": 1.0e5, "u": "\\u00e9"}', '{"prompt":"c","response":"d"}   ']
    (tmp_path / "d.jsonl").write_text("\n".join(texts), encoding="utf-8")
    select_to(tmp_path / "d.jsonl", tmp_path / "o.jsonl", SelectOptions(budget="100%"))
    written = (tmp_path / "o.jsonl").read_text(encoding="utf-8").splitlines()
    for text, line in zip(texts, written, strict=True):
        assert line.startswith(text.rstrip().removesuffix("}"))
        assert json.loads(line)["longgame_rank"] in (1, 2)


def test_a_schema_of_parquet_is_kept(tmp_path: Path) -> None:
    name, write = FILES["parquet"]
    data = write(tmp_path / name, [{**row, "number": np.int16(3), "when": pd.Timestamp("2026-01-01")} for row in ROWS])
    select_to(data, tmp_path / "o.parquet", SelectOptions(budget="5rows"))
    before, after = pd.read_parquet(data), pd.read_parquet(tmp_path / "o.parquet")
    assert after[list(before)].dtypes.tolist() == before.dtypes.tolist()


def _shards(folder: Path, *tables: pa.Table) -> Path:
    folder.mkdir()
    for number, table in enumerate(tables):
        pq.write_table(table, folder / f"{number}.parquet")
    return folder


@pytest.mark.parametrize("out", ["s.parquet", "s"])
def test_shards_of_several_schemas_become_one_table(out: str, tmp_path: Path) -> None:
    first = pa.table(
        {"prompt": ["a", "b"], "response": ["x", "y"], "n": [1, 2], "note": pa.nulls(2), "kind": ["u", "v"]}
    )
    first = first.cast(first.schema.set(2, pa.field("n", pa.int64(), nullable=False)).with_metadata({"k": "v"}))
    kind = pa.array(["w", "w"]).dictionary_encode()
    second = pa.table({"note": ["p", "q"], "response": ["z", "w"], "prompt": ["c", "d"], "kind": kind})
    third = pa.table({"prompt": ["e"], "response": ["t"], "n": [0.5], "more": [[1]]})
    data = _shards(tmp_path / "shards", first, second, third)
    select_to(data, tmp_path / out, SelectOptions(budget="100%"))
    frame = subset_frame(tmp_path / out)
    assert frame["prompt"].tolist() == list("abcde")
    assert frame["note"].dropna().tolist() == ["p", "q"]
    assert frame["kind"].dropna().tolist() == ["u", "v", "w", "w"]
    assert frame["n"].dropna().tolist() == [1.0, 2.0, 0.5]
    assert frame["more"].notna().tolist() == [False] * 4 + [True]


def test_shards_that_are_no_one_table_are_refused_before_scoring(tmp_path: Path, monkeypatch) -> None:
    rows = {"prompt": ["a"], "response": ["b"]}
    data = _shards(tmp_path / "shards", pa.table({**rows, "n": [1]}), pa.table({**rows, "n": ["one"]}))
    monkeypatch.setattr("longgame.offline.selecting.DataRows", lambda *_, **__: pytest.fail("the rows are read"))
    for act in (
        lambda: select_to(data, tmp_path / "o.parquet", SelectOptions(budget="100%")),
        lambda: longgame.select(data, budget="100%"),
        lambda: select_to(data / "0.parquet", tmp_path / "o", SelectOptions(), replay=[data / "1.parquet"]),
    ):
        with pytest.raises(DataError, match=r"do not fit into one table \(.*int64 vs string.*Give a .jsonl output"):
            act()
    monkeypatch.undo()
    select_to(data, tmp_path / "o.jsonl", SelectOptions(budget="100%"))
    assert [row["n"] for row in lines(tmp_path / "o.jsonl")] == [1, "one"]


def test_parquet_keeps_metadata_classes_and_dictionaries(tmp_path: Path) -> None:
    columns = {"prompt": [row["prompt"] for row in ROWS], "response": [row["response"] for row in ROWS]}
    labels = Features({name: Value("string") for name in columns} | {"label": ClassLabel(names=["no", "yes"])})
    Dataset.from_dict({**columns, "label": [0, 1] * 30}, features=labels).to_parquet(tmp_path / "c.parquet")
    kind = pa.field("kind", pa.dictionary(pa.int8(), pa.string()), nullable=False, metadata={"of": "field"})
    schema = pa.schema([("prompt", pa.string()), ("response", pa.string()), kind], metadata={"of": "schema"})
    values = pa.array(["u", "v"] * 30).dictionary_encode().cast(kind.type)
    pq.write_table(pa.table([*columns.values(), values], schema=schema), tmp_path / "d.parquet")
    for name in ("c", "d"):
        data, out = tmp_path / f"{name}.parquet", tmp_path / f"{name}-out.parquet"
        select_to(data, out, SelectOptions(budget="5rows"))
        before, after = pq.read_schema(data), pq.read_schema(out)
        assert pa.schema(list(after)[: len(before)], metadata=after.metadata).equals(before, check_metadata=True)
        select_to(data, tmp_path / name, SelectOptions(budget="5rows"))
    assert Dataset.from_parquet(str(tmp_path / "c-out.parquet")).features["label"] == labels["label"]
    assert load_from_disk(str(tmp_path / "c")).features["label"] == labels["label"]
    assert set(load_from_disk(str(tmp_path / "d"))["kind"]) <= {"u", "v"}


def test_half_a_surrogate_pair_in_another_column_is_kept(tmp_path: Path) -> None:
    rows = [*({**row, "note": "\ud83d"} for row in ROWS), {"prompt": "a", "\ud83d": "b"}]
    (tmp_path / "d.json").write_text(json.dumps(rows), encoding="utf-8")
    select_to(tmp_path / "d.json", tmp_path / "o.jsonl", SelectOptions(budget="5rows", on_bad_row="skip"))
    assert "\\ud83d" in lines(tmp_path / "o.bad-rows.jsonl")[0]["reason"]
    assert [row["note"] for row in lines(tmp_path / "o.jsonl")] == ["\ud83d"] * 5
    with pytest.raises(DataError, match="do not fit into one table .* Give a .jsonl output"):
        select_to(tmp_path / "d.json", tmp_path / "p.parquet", SelectOptions(budget="5rows", on_bad_row="skip"))


def test_picks_by_loss_are_the_highest_losses(data: Path, tmp_path: Path) -> None:
    outcome, manifest = select_to(data, tmp_path / "o.jsonl", SelectOptions(selector="loss", budget="25%"), model=TINY)
    scores = longgame.score(data, "loss", model="tiny")
    losses = np.asarray(scores["longgame_loss"])
    assert losses[outcome.picks].tolist() == sorted(losses, reverse=True)[: len(outcome.picks)] or (
        losses[outcome.picks].min() >= np.sort(losses)[::-1][len(outcome.picks) + 5]
    )
    assert manifest["budget"]["spent"] <= manifest["budget"]["asked"] == round(0.25 * int(outcome.tokens.sum()))
    assert manifest["picked"]["tokens"] == manifest["budget"]["spent"]
    rows = lines(tmp_path / "o.jsonl")
    assert np.allclose([row["longgame_score"] for row in rows], losses[np.sort(outcome.picks)])
    assert not (tmp_path / "o.jsonl.scores").exists()


def test_scores_are_used_and_filled_up(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "scores"
    longgame.score(data, ["loss"], model="tiny", out=folder)
    first, _ = select_to(data, tmp_path / "a.jsonl", SelectOptions(selector="loss"), scores=folder)
    direct, _ = select_to(data, tmp_path / "b.jsonl", SelectOptions(selector="loss"), model=TINY)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert first.picks.tolist() == direct.picks.tolist()
    with pytest.raises(RecipeError, match="lacks grad_norm.*Give --model"):
        select_to(data, tmp_path / "c.jsonl", SelectOptions(selector="gradient"), scores=folder)
    select_to(data, tmp_path / "c.jsonl", SelectOptions(selector="gradient"), model=TINY, scores=folder)
    monkeypatch.setattr(scoring.LoadedScorer, "load", None)  # nothing is left to compute
    select_to(data, tmp_path / "d.jsonl", SelectOptions(selector="gradient"), model=TINY, scores=folder)


def test_scores_of_other_data_are_refused(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scores"
    longgame.score(data, ["loss"], model="tiny", out=folder)
    other = jsonl(tmp_path / "other.jsonl", [{"prompt": "x", "response": "y"}, {"prompt": "x", "response": "z"}])
    with pytest.raises(DataError, match="scores of other data: none of 2 rows"):
        select_to(other, tmp_path / "a.jsonl", SelectOptions(selector="loss"), scores=folder)
    mixed = jsonl(tmp_path / "mixed.jsonl", [*ROWS[:3], {"prompt": "x", "response": "y"}])
    with pytest.raises(DataError, match=r"lacks the scores of 1 of 4 rows, first of row 4"):
        select_to(mixed, tmp_path / "b.jsonl", SelectOptions(selector="loss"), scores=folder)
    part, _ = select_to(
        data, tmp_path / "c.jsonl", SelectOptions(selector="loss", where='skill == "math"'), scores=folder
    )
    assert {row["skill"] for row in lines(tmp_path / "c.jsonl")} == {"math"}
    assert len(part.rows) == sum(row["skill"] == "math" for row in ROWS)


@pytest.mark.parametrize(("dedup", "left"), [("exact", 61), ("near", 60), (None, 62)])
def test_repeats_are_no_candidates(dedup: str | None, left: int, tmp_path: Path) -> None:
    words = " ".join(f"word{number}" for number in range(40))
    long = {"prompt": words, "response": "done"}
    rows = [*ROWS[:59], long, long, {**long, "response": "Done"}]
    if dedup == "near":
        pytest.importorskip("rensa")
        rows = [
            {"prompt": f"{number} {number + 1} {number + 2} {number * 7} x", "response": "r"} for number in range(59)
        ]
        rows += [long, long, {**long, "prompt": words + " more"}]
    data = jsonl(tmp_path / "d.jsonl", rows)
    outcome, manifest = select_to(data, tmp_path / "o.jsonl", SelectOptions(budget="100%", dedup=dedup))
    assert len(outcome.candidates) == left == len(outcome.picks)
    assert manifest["data"]["duplicates"] == 62 - left
    if dedup:
        assert outcome.repeats[60] == 59


def test_replay_spends_its_share(data: Path, tmp_path: Path) -> None:
    old = jsonl(tmp_path / "old.jsonl", [{"prompt": f"old {n}", "response": "yes"} for n in range(30)])
    options = SelectOptions(selector="random", budget="20rows", replay_share=0.25)
    outcome, manifest = select_to(data, tmp_path / "o.jsonl", options, replay=old)
    rows = lines(tmp_path / "o.jsonl")
    replayed = [row for row in rows if row["longgame_replayed"]]
    assert len(rows) == 20
    assert len(replayed) == 5 == manifest["replay"]["rows"]
    assert all(row["longgame_rank"] is None and row["prompt"].startswith("old") for row in replayed)
    assert len(outcome.picks) == 15
    with_tokens, _ = select_to(
        data, tmp_path / "t.jsonl", SelectOptions(budget="50%", replay_share=0.5), replay=old, model=TINY
    )
    assert with_tokens.unit == "tokens"
    assert with_tokens.replay is not None


def test_history_carries_what_earlier_stages_selected(tmp_path: Path) -> None:
    first, second = jsonl(tmp_path / "1.jsonl", ROWS[:30]), jsonl(tmp_path / "2.jsonl", ROWS[30:])
    options = SelectOptions(selector="diversity", budget="8rows")
    for data, out in ((first, "a.jsonl"), (second, "b.jsonl")):
        select_to(data, tmp_path / out, options, model=TINY, history=tmp_path / "history")
    state = read_state(tmp_path / "history", "history")
    assert [entry["rows"] for entry in state["stages"]] == [8, 8]
    assert int(state["history"]["n_selected"]) == 16
    alone, _ = select_to(second, tmp_path / "c.jsonl", options, model=TINY)
    with pytest.raises(RecipeError, match="is that of selector 'diversity'"):
        select_to(first, tmp_path / "d.jsonl", SelectOptions(selector="loss"), model=TINY, history=tmp_path / "history")
    assert len(alone.picks) == 8


@pytest.mark.parametrize("term", ["coverage=distance", "coverage=cluster"])
def test_a_history_counts_all_selections_by_the_clusters_of_the_last(term: str, tmp_path: Path) -> None:
    first, second = jsonl(tmp_path / "1.jsonl", ROWS[:30]), jsonl(tmp_path / "2.jsonl", ROWS[30:])
    options = SelectOptions(selector=f"lhas:future_weight=0,{term}", budget="8rows", clusters=3)
    for data, out in ((first, "a.jsonl"), (second, "b.jsonl")):
        _, manifest = select_to(data, tmp_path / out, options, model=TINY, history=tmp_path / "history")
    history = read_state(tmp_path / "history", "history")["history"]
    assert history["cluster_counts"].sum() == history["n_selected"] == 16
    assert history["cluster_tokens"].sum() == history["tokens"]
    assert len(history["cluster_counts"]) == 3
    assert manifest["picked"]["rows"] == 8


def test_every_decision_is_explained(data: Path, tmp_path: Path) -> None:
    outcome, _ = select_to(data, tmp_path / "o.jsonl", SelectOptions(selector="loss"), model=TINY, explain=True)
    entries = lines(tmp_path / "o.explain.jsonl")
    assert [entry["rank"] for entry in entries if entry["picked"]] == list(range(1, len(outcome.picks) + 1))
    assert len(entries) == len(ROWS)
    assert all("cut" in entry["why"] for entry in entries)
    assert all(0 <= entry["terms"]["score"]["percentile"] <= 100 for entry in entries)


def test_every_repeat_is_explained(tmp_path: Path) -> None:
    data = jsonl(tmp_path / "d.jsonl", [*ROWS[:3], *ROWS[:2] * 75])
    options = SelectOptions(budget="2rows", dedup="exact")
    select_to(data, tmp_path / "o.jsonl", options, explain=True)
    assert sum("repeats" in entry["why"] for entry in lines(tmp_path / "o.explain.jsonl")) == 150


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ("stars != 1", r"holds texts such as '1', as every cell.*Write stars.astype\(\"float\"\)"),
        ("2 < stars", "holds texts such as '1'"),
        ("not (stars in [1, 2])", "holds texts such as '1'"),
        ('stars.astype("float") > 2', 2),
        ("stars == '3'", 1),
        ("word != 1", 4),
        ("flag", 'is no condition. Write it like flag == "true"'),
        ("flag == 'true'", 2),
    ],
)
def test_texts_of_csv_are_not_compared_with_numbers(condition: str, kept: int | str, tmp_path: Path) -> None:
    rows = [f"q{n},a{n},{n},w{n},{'true' if n % 2 else 'false'},{n / 2}" for n in (1, 2, 3, 4)]
    data = tmp_path / "d.csv"
    data.write_text("\n".join(["prompt,response,stars,word,flag,longgame_weight", *rows, ""]))
    options = SelectOptions(budget="100%", where=condition)
    if isinstance(kept, str):
        with pytest.raises(DataError, match=kept):
            choose(open_source(data), options)
    else:
        outcome, _ = choose(open_source(data), options)
        assert len(outcome.picks) == kept
        assert outcome.pick_weights is not None


def test_grades_that_scores_hold_are_described_by_their_job(tmp_path: Path) -> None:
    rows = [row | ({"stars": number % 5} if number % 3 else {}) for number, row in enumerate(ROWS)]
    data = jsonl(tmp_path / "d.jsonl", rows)
    options = SelectOptions(selector="quality", quality="column:stars,low=0,high=4", budget="5rows")
    grading = options.grading()
    rules = RowRules(columns=grading.columns)
    score_into(DataRows(open_source(data), rules), ["quality"], tmp_path / "s", TINY, grading=grading)
    ways = {"a.jsonl": None, "b.jsonl": tmp_path / "s"}
    described = [select_to(data, tmp_path / out, options, scores=ways[out])[1]["grading"] for out in ways]
    assert len({json.dumps(entry, sort_keys=True) for entry in described}) == 1
    assert described[0]["quality"]["missing"] == 20


def test_a_data_set_goes_in_and_comes_out() -> None:
    dataset = Dataset.from_list(ROWS).shuffle(seed=1)
    subset = longgame.select(dataset, selector="longest", budget=0.1)
    assert isinstance(subset, Subset)
    assert subset._indices is None
    assert all(original(row) in ROWS for row in subset)
    assert subset.manifest["data"]["digest"] == longgame.select(dataset, budget="5rows").manifest["data"]["digest"]
    assert subset.explain()[0]["picked"]


def test_the_subset_trains_in_sft_trainer(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    conversations = [
        {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]}
        for row in ROWS
    ]
    subset = longgame.select(Dataset.from_list(conversations), selector="loss", budget="12rows", model="tiny")
    from importlib.resources import files

    arguments = trl.SFTConfig(str(tmp_path), max_steps=1, bf16=False, report_to=[], per_device_train_batch_size=4)
    model = str(files("longgame") / "assets/tiny")
    trainer = trl.SFTTrainer(model=model, args=arguments, train_dataset=Dataset.from_list(subset.to_list()))
    assert trainer.train().global_step == 1


@pytest.mark.parametrize(
    ("text", "kind", "value", "of"),
    [
        ("10%", "share", 0.1, "tokens"),
        (0.1, "share", 0.1, "tokens"),
        ("0.1", "share", 0.1, "tokens"),
        (1, "share", 1.0, "tokens"),
        ("10%rows", "share", 0.1, "rows"),
        ("2M", "amount", 2e6, "tokens"),
        ("1.5k tokens", "amount", 1500, "tokens"),
        ("500_000", "amount", 5e5, "tokens"),
        (5000, "amount", 5000, "tokens"),
        ("5000rows", "amount", 5000, "rows"),
        ("5k rows", "amount", 5000, "rows"),
    ],
)
def test_budgets_read_as_people_write_them(text: Any, kind: str, value: float, of: str) -> None:
    assert Budget.parse(text) == Budget(kind, value, of)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["0", 0, "0%", "101%", -1, "ten", "", "1.5", 2.5, "1e9x", True, None, float("nan"), "0rows"]
)
def test_other_budgets_are_refused_with_their_forms(text: Any) -> None:
    with pytest.raises(BudgetError, match="budget is"):
        Budget.parse(text)


@pytest.mark.parametrize(
    ("text", "name", "parameters"),
    [
        ("loss", "loss", {}),
        ("gradient:mode=similarity", "gradient", {"mode": "similarity"}),
        ("lhas:future_weight=0.5,coverage=false", "lhas", {"future_weight": 0.5, "coverage": False}),
        ("a/b.py:Mine", "a/b.py:Mine", {}),
        ("a/b.py:Mine:k=3", "a/b.py:Mine", {"k": 3}),
        ("scores:a.csv", "scores:a.csv", {}),
        ("scores:a.csv:missing=skip", "scores:a.csv", {"missing": "skip"}),
    ],
)
def test_selectors_read_with_their_parameters(text: str, name: str, parameters: dict[str, Any]) -> None:
    assert parse_selector(text) == (name, parameters)


@pytest.mark.parametrize("text", ["0", 0, 0.0, "0%", "0 %rows", "0rows", "0k", "-1", "-5%", -0.5])
def test_a_budget_of_nothing_is_named_as_it_was_written(text: Any) -> None:
    with pytest.raises(BudgetError, match=f"the budget is '?{re.escape(str(text))}'?; it must be above 0"):
        Budget.parse(text)


class Greedy(Selector):
    """Returns what its test says."""

    name = "greedy"

    def __init__(self, rows: Any = (), score: Any = None) -> None:
        self.rows, self.values = rows, score

    def select(self, pool, signals, history, budget, rng):
        if self.values is not None:
            return Selector.select(self, pool, signals, history, budget, rng)
        return Selection.of(pool, self.rows)

    def score(self, pool, signals, history):
        return self.values(pool)


FAULTS: list[tuple[dict[str, Any], type[LonggameError], str]] = [
    ({"selector": "lost"}, RecipeError, "unknown selector 'lost'.*Did you mean 'loss'"),
    ({"selector": "loss"}, RecipeError, "needs loss, which a model computes. Give --model"),
    ({"selector": "random", "budget": "2M"}, BudgetError, "no model is given that counts tokens"),
    ({"budget": "1", "selector": "gradient:mod=norm"}, RecipeError, "has no parameter 'mod'"),
    ({"selector": "loss:norm"}, RecipeError, "is not written as parameter=value"),
    ({"budget": "0.01%"}, BudgetError, "the shortest of 60 candidates has"),
    ({"where": "skil == 'math'"}, DataError, "unknown column 'skil'.*Did you mean 'skill'"),
    ({"where": "skill == 'poetry'"}, DataError, "60 rows are left out by --where"),
    (
        {"where": "skill == 'poetry'"},
        DataError,
        r"""Change the condition, --where "skill == 'poetry'"\. Values of 'skill': 'talk', 'math'\.$""",
    ),
    ({"where": "skill in ['a', 'b']"}, DataError, r"Values of 'skill': 'talk', 'math'\.$"),
    ({"where": "skill.str.len() > 90"}, DataError, r"Change the condition, --where 'skill.str.len\(\) > 90'\.$"),
    ({"where": "prompt == 'no'"}, DataError, r"Values of 'prompt': ('[^']+', ){5}…$"),
    ({"where": "skill +"}, DataError, "cannot be decided"),
    ({"where": "skill"}, DataError, 'is no condition. Write it like skill == "(math|talk)"'),
    ({"where": "index < 3"}, DataError, "unknown column 'index'.*The place of a row is no column"),
    ({"where": "note.rank() <= 5"}, DataError, r"looks at more than one row \('note.rank'\).*isin"),
    ({"where": "prompt.str.len() > response.str.len().quantile(0.9)"}, DataError, "looks at more than one row"),
    ({"where": "skill.str.cat() == 'x'"}, DataError, "looks at more than one row"),
    ({"where": "`the note`.mean() > 3"}, DataError, r"more than one row \('`the note`.mean'\)"),
    ({"where": "skill in note"}, DataError, "looks at more than one row"),
    ({"where": "skill.isin(note)"}, DataError, "looks at more than one row"),
    ({"where": "skill.fillna(method='ffill') == 'a'"}, DataError, "looks at more than one row"),
    ({"where": "skill[0] == 'math'"}, DataError, "looks at more than one row"),
    ({"dedup": "fuzzy"}, RecipeError, "use exact, near"),
    ({"dedup": "near:2"}, RecipeError, "use exact, near"),
    ({"replay_share": 1.5}, RecipeError, "between 0 and 1"),
    ({"budget_of": "words"}, RecipeError, "unknown budget_of 'words'"),
    ({"clusters": 0}, RecipeError, "clusters is 0"),
    ({"on_bad_row": "ignore"}, DataError, "unknown way of on_bad_row"),
    ({"selector": Greedy([0, 0]), "budget": "5rows"}, LonggameError, "returned a row twice"),
    ({"selector": Greedy([99]), "budget": "5rows"}, LonggameError, "rows outside"),
    ({"selector": Greedy(range(20)), "budget": "5rows"}, LonggameError, "spent 20 tokens of 5"),
    ({"selector": Greedy([]), "budget": "5rows"}, LonggameError, "selected nothing"),
    ({"selector": Greedy(score=lambda pool: np.full(len(pool), np.nan)), "budget": "5rows"}, LonggameError, "nothing"),
    ({"selector": Greedy(score=lambda pool: ["a"] * len(pool)), "budget": "5rows"}, LonggameError, "holds <U1 values"),
]


@pytest.mark.parametrize(("options", "error", "message"), FAULTS)
def test_faults_are_one_sentence_and_write_nothing(
    options: dict[str, Any], error: type[LonggameError], message: str, data: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=message) as caught:
        select_to(data, tmp_path / "o.jsonl", SelectOptions(**options))
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("where", "holds"),
    [
        ("skill == 'math' and n > 2", lambda row: row["skill"] == "math" and row.get("n", 0) > 2),
        ("n + 1 > 3", lambda row: row.get("n", 0) + 1 > 3),
        ("label.str.contains('b')", lambda row: "b" in (row.get("label") or "")),
        ("label.isnull() | label.str.startswith('a')", lambda row: (row.get("label") or "a").startswith("a")),
        ("`a note` in ['row 3', 'row 40'] and skill != 'a `b`'", lambda row: row["a note"] in ("row 3", "row 40")),
        ("n.between(1, 5) and prompt.str[0] == 'W'", lambda row: 1 <= row.get("n", 0) <= 5),
        ("label == 'ab' or n == 4", lambda row: row.get("label") == "ab" or row.get("n") == 4),
        ("~`a flag`", lambda row: not row.get("a flag")),
        ("not `a flag` & n > 2", lambda row: not row.get("a flag") and row.get("n", 0) > 2),
        ("`a flag` or n > 4", lambda row: row.get("a flag") or row.get("n", 0) > 4),
        (
            "`a flag`.isnull() | ~`a flag` & ~(n == 1)",
            lambda row: (not row.get("a flag") and row.get("n") != 1) or row.get("a flag") is None,
        ),
        ("not label.str.contains('b')", lambda row: "b" not in (row.get("label") or "")),
        ("label.str.contains('b') or n > 2", lambda row: "b" in (row.get("label") or "") or row.get("n", 0) > 2),
    ],
)
def test_conditions_do_not_depend_on_blocks(where: str, holds: Any, tmp_path: Path, monkeypatch) -> None:
    rows = [{**row, "a note": row["note"]} for row in ROWS]
    for place, row in enumerate(rows):
        row |= {"n": place % 7} if place > 20 else {}
        row |= {"a flag": (True, False, None)[place % 3]} if place > 15 else {}
        row |= {"label": "abc"[place % 2 :][:2] if place < 40 else None} if place > 10 else {}
    data = jsonl(tmp_path / "d.jsonl", rows)
    expected = [place for place, row in enumerate(rows) if holds(row)]
    assert expected
    for block in (1, 9, 100):
        monkeypatch.setattr("longgame.offline.rows._CHUNK", block)
        assert DataRows(open_source(data), where=where).positions.tolist() == expected


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no usable rows"),
        ([{"prompt": "a"}], "has no response"),
        ([{"prompt": "a", "response": " "}], "the response is empty"),
        ([{"prompt": "a", "responce": "b"}], "Did you mean 'response'"),
    ],
)
def test_data_that_cannot_be_used_is_named(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    data = jsonl(tmp_path / "d.jsonl", rows)
    with pytest.raises(DataError, match=message):
        select_to(data, tmp_path / "o.jsonl", SelectOptions())


def test_bad_rows_are_listed_with_line_and_reason(tmp_path: Path) -> None:
    data = jsonl(tmp_path / "d.jsonl", [*ROWS[:5], {"prompt": "a"}, *ROWS[5:8]])
    with data.open("a", encoding="utf-8") as stream:
        stream.write("{broken\n")
    with pytest.raises(DataError, match=r"line 6: has no response .* 1 more line cannot be used.*--on-bad-row skip"):
        select_to(data, tmp_path / "o.jsonl", SelectOptions())
    _, manifest = select_to(data, tmp_path / "o.jsonl", SelectOptions(on_bad_row="skip", budget="100%"))
    assert [(entry["number"], entry["reason"][:12]) for entry in lines(tmp_path / "o.bad-rows.jsonl")] == [
        (6, "has no respo"),
        (10, "is not valid"),
    ]
    assert manifest["data"]["bad_rows"] == 2
    assert len(lines(tmp_path / "o.jsonl")) == 8


def test_an_existing_output_stays(data: Path, tmp_path: Path) -> None:
    (tmp_path / "o.jsonl").write_text("mine", encoding="utf-8")
    with pytest.raises(StorageError, match="exists already.*--overwrite"):
        select_to(data, tmp_path / "o.jsonl", SelectOptions())
    assert (tmp_path / "o.jsonl").read_text(encoding="utf-8") == "mine"
    select_to(data, tmp_path / "o.jsonl", SelectOptions(), overwrite=True)
    assert lines(tmp_path / "o.jsonl")
    with pytest.raises(DataError, match="is the data itself"):
        select_to(data, data, SelectOptions(), overwrite=True)
    with pytest.raises(DataError, match=r"ends in '.csv'"):
        select_to(data, tmp_path / "o.csv", SelectOptions())


def test_types_that_datasets_lacks_are_refused_by_column(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([{"prompt": "a", "response": "b"}, {"prompt": "c", "response": "d"}])
    tags = pa.array([[("x", 1)], []], pa.map_(pa.string(), pa.int64()))
    path = tmp_path / "data.parquet"
    pq.write_table(table.append_column("tags", tags), path)
    refused = pytest.raises(DataError, match=r"column 'tags' has the Arrow type map<.*\.jsonl or \.parquet output")
    with refused:
        longgame.select(path, selector="random")
    with refused:
        longgame.score(path, ["loss"], model="no-such-model")  # before the model is asked for
    with refused:
        longgame.select(Dataset.from_list(ROWS), selector="random", replay=path)
    with refused:
        select_to(path, tmp_path / "folder", SelectOptions(budget="1rows"))
    select_to(path, tmp_path / "out.parquet", SelectOptions(budget="1rows"))
    assert pq.read_table(tmp_path / "out.parquet")["tags"].type == tags.type


@pytest.mark.parametrize("ending", [".html", ".explain.jsonl"])
def test_a_file_beside_an_output_is_refused_with_both_names(ending: str, data: Path, tmp_path: Path) -> None:
    (tmp_path / f"o{ending}").write_text("mine", encoding="utf-8")
    done = longgame_here("select", str(data), "--selector", "longest", "--out", "o.jsonl", cwd=tmp_path)
    message = f"'o{ending}' exists already; it is written beside the output 'o.jsonl'. Give another --out"
    assert message in " ".join(done.stderr.split())


def test_an_output_that_is_read_is_refused_and_stays(data: Path, tmp_path: Path) -> None:
    names = {"target": "t.jsonl", "replay": "old.jsonl"}
    paths = {name: jsonl(tmp_path / file, ROWS[:9]) for name, file in names.items()}
    shards = FILES["folder"][1](tmp_path / "shards", ROWS)
    saved = FILES["saved"][1](tmp_path / "saved", ROWS)
    scores = tmp_path / "scores"
    scores.mkdir()
    (scores / "scores.parquet").write_bytes(b"")
    state, log = tmp_path / "past" / "history.json", jsonl(tmp_path / "log.jsonl", [])
    state.parent.mkdir()
    listed = jsonl(tmp_path / "mine.jsonl", [{"sample_id": "a", "score": 1}])
    cases: list[tuple[Any, Path, dict[str, Any], str]] = [
        (data, data, {}, "is the data itself"),
        (shards, shards, {}, "is a folder that holds the data"),
        (saved, saved, {}, "is the data itself"),
        (load_from_disk(str(saved)), saved, {}, "is a folder that holds the data"),
        (data, paths["target"], {"target": paths["target"]}, "is the target set itself"),
        (data, paths["replay"], {"replay": [paths["target"], paths["replay"]]}, "is the replay data itself"),
        (data, scores / "scores.parquet", {"scores": scores}, "would replace a part of the folder of scores"),
        (data, scores, {"replay_scores": [scores]}, "is the scores of replay data itself"),
        (data, state.parent, {"history": state.parent}, "is a folder that holds the history"),
        (data, log, {"training_log": log}, "is the training log itself"),
        (data, listed, {"selector": f"scores:{listed}"}, "is the score file itself"),
        (jsonl(tmp_path / "n.bad-rows.jsonl", ROWS), tmp_path / "n.jsonl", {}, "bad-rows.jsonl' is the data itself"),
    ]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for source, out, inputs, message in cases:
        options = SelectOptions(selector=inputs.pop("selector", "random"))
        with pytest.raises((DataError, StorageError), match=message):
            select_to(source, out, options, overwrite=True, **inputs)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_only_a_saved_data_set_is_replaced_as_a_folder(data: Path, tmp_path: Path) -> None:
    options = SelectOptions(selector="longest", budget="5rows")
    for name in ("s", "empty"):
        (tmp_path / name).mkdir()
        select_to(data, tmp_path / name, options, overwrite=True)
        select_to(data, tmp_path / name, options, overwrite=True)
        assert len(load_from_disk(str(tmp_path / name))) == 5
    (tmp_path / "s" / "notes.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.arrow").write_bytes(b"")
    for name in ("s", "mine"):
        with pytest.raises(StorageError, match="replaces a saved data set alone"):
            select_to(data, tmp_path / name, options, overwrite=True)
    assert (tmp_path / "s" / "notes.txt").is_file()
    assert (tmp_path / "mine" / "a.arrow").is_file()


def test_files_of_an_earlier_selection_do_not_stay(data: Path, tmp_path: Path) -> None:
    bad = jsonl(tmp_path / "bad.jsonl", [*ROWS, {"prompt": "a"}])
    first = ["select", str(bad), "--selector", "longest", "--budget", "5rows", "--out", "st.jsonl"]
    done = longgame_here(*first, "--explain", "--on-bad-row", "skip", cwd=tmp_path)
    written = "st.jsonl, st.manifest.json, st.explain.jsonl, st.bad-rows.jsonl, st.html"
    assert f"Written: {written}\n" in done.stdout, done.stderr
    assert all((tmp_path / name).is_file() for name in written.split(", "))
    again = ["select", str(data), *first[2:], "--overwrite", "--no-page"]
    assert "Written: st.jsonl, st.manifest.json\n" in longgame_here(*again, cwd=tmp_path).stdout
    assert sorted(path.name for path in tmp_path.glob("st.*")) == ["st.jsonl", "st.manifest.json"]
    (tmp_path / "n.html").write_text("mine", encoding="utf-8")
    other = ["select", str(data), *first[2:-1], "n.jsonl"]
    assert "'n.html' exists already" in longgame_here(*other, cwd=tmp_path).stderr.replace("\n", " ")
    assert longgame_here(*other, "--overwrite", "--no-page", cwd=tmp_path).returncode == 0
    assert (tmp_path / "n.html").read_text(encoding="utf-8") == "mine"


def test_a_full_disk_leaves_no_half_output(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from longgame.offline import subset

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(subset, "flush", full)
    with pytest.raises(StorageError, match="No space left"):
        select_to(data, tmp_path / "o.jsonl", SelectOptions())
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]


def test_equal_seeds_give_equal_bytes(data: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        select_to(data, tmp_path / f"{name}.jsonl.gz", SelectOptions(seed=3))
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    select_to(data, tmp_path / "c.jsonl.gz", SelectOptions(seed=4))
    assert (tmp_path / "a.jsonl.gz").read_bytes() != (tmp_path / "c.jsonl.gz").read_bytes()


def test_columns_of_an_earlier_selection_are_replaced(data: Path, tmp_path: Path) -> None:
    select_to(data, tmp_path / "a.jsonl", SelectOptions(budget="20rows"))
    select_to(tmp_path / "a.jsonl", tmp_path / "b.jsonl", SelectOptions(selector="longest", budget="5rows"))
    rows = lines(tmp_path / "b.jsonl")
    assert sorted(row["longgame_rank"] for row in rows) == [1, 2, 3, 4, 5]
    assert all(original(row) in ROWS for row in rows)


def test_scores_that_another_command_left_are_named_with_the_way_out(data: Path, tmp_path: Path) -> None:
    longgame.score(data, "loss", model=TINY, out=tmp_path / "o.jsonl.scores")
    other = dataclasses.replace(TINY, max_length=64)
    with pytest.raises(ResumeError, match="unfinished command left this folder.*delete the folder"):
        select_to(data, tmp_path / "o.jsonl", SelectOptions(selector="loss", budget="5rows"), model=other)


def test_a_target_that_holds_rows_of_the_data_is_refused(data: Path, tmp_path: Path) -> None:
    target = jsonl(tmp_path / "target.jsonl", [*ROWS[7:10], {"prompt": "Other?", "response": "Yes."}])
    options = SelectOptions(selector="random", budget="5rows")
    with pytest.raises(DataError, match=r"share 3 rows, first row 8 of .*--allow-overlap"):
        select_to(data, tmp_path / "o.jsonl", options, target=target)
    select_to(data, tmp_path / "o.jsonl", dataclasses.replace(options, allow_overlap=True), target=target)


def test_a_target_serves_selectors_that_compare(data: Path, tmp_path: Path) -> None:
    target = jsonl(tmp_path / "target.jsonl", [{**row, "prompt": f"Say: {row['prompt']}"} for row in ROWS[:4]])
    with pytest.raises(RecipeError, match="compares with a target set"):
        select_to(data, tmp_path / "o.jsonl", SelectOptions(selector="lhas", budget="5rows"), model=TINY)
    outcome, _ = select_to(
        data, tmp_path / "o.jsonl", SelectOptions(selector="lhas", budget="5rows"), model=TINY, target=target
    )
    assert len(outcome.picks) == 5
    today = SelectOptions(selector="lhas", parameters={"future_weight": 0, "target_weight": 1}, budget="5rows")
    outcome, _ = select_to(data, tmp_path / "t.jsonl", today, model=TINY, target=target)
    assert len(outcome.picks) == 5
    earlier = SelectOptions(selector="lhas", parameters={"earlier_weight": 1}, budget="5rows")
    with pytest.raises(RecipeError, match="earlier stages, which scoring has not. Use it in a trainer or an audit"):
        select_to(data, tmp_path / "e.jsonl", earlier, model=TINY, target=target)


def test_options_of_the_model_need_a_model(data: Path) -> None:
    with pytest.raises(RecipeError, match="max_length is an option of the model"):
        longgame.select(data, max_length=32)
    with pytest.raises(RecipeError, match="unknown option 'max_lenght'.*Did you mean 'max_length'"):
        longgame.select(data, model="tiny", max_lenght=32)


def test_the_history_is_not_written_where_a_selection_fails(data: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError):
        select_to(data, tmp_path / "o.jsonl", SelectOptions(selector="loss"), history=tmp_path / "history")
    assert not (tmp_path / "history").exists()


def test_settings_are_compared_with_what_was_scored(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scores"
    longgame.score(data, ["loss"], model="tiny", out=folder)
    with pytest.raises(ResumeError, match="of another model, tokenizer or settings"):
        longgame.score(data, ["el2n"], model="tiny-1", out=folder)
    for model in (dataclasses.replace(TINY, name="tiny-1"), dataclasses.replace(TINY, max_length=64)):
        with pytest.raises(ResumeError, match="of another model, tokenizer or settings"):
            select_to(data, tmp_path / "o.jsonl", SelectOptions(selector="loss"), model=model, scores=folder)
    other = dataclasses.replace(TINY, max_length=64)
    with pytest.raises(ResumeError, match="of another model, tokenizer or settings"):
        select_to(data, tmp_path / "o.jsonl", SelectOptions(selector="gradient"), model=other, scores=folder)


def test_dsir_prefers_rows_that_read_like_the_target(data, tmp_path):
    target = tmp_path / "target.jsonl"
    target.write_text(
        "".join(json.dumps({"prompt": f"What is {row} + 4?", "response": "So it is."}) + "\n" for row in range(9))
    )
    subset = longgame.select(data, selector="dsir", parameters={"sample": False}, budget="15rows", target=target)
    repeated = [row["response"].count("So it is") for row in ROWS]
    assert np.mean([text.count("So it is") for text in subset["response"]]) > np.mean(repeated)
    options = {"selector": "dsir", "target": target, "budget": "50%"}
    first, again, other = (longgame.select(data, seed=seed, **options)["longgame_sample_id"][:] for seed in (1, 1, 2))
    assert first == again != other
    with pytest.raises(RecipeError, match="--target"):
        longgame.select(data, selector="dsir")


def test_dedup_selectors_need_no_model_and_fill_the_budget(tmp_path):
    rows = [{"prompt": f"p{number % 5}", "response": "the same answer " * 8} for number in range(20)]
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("dedup-exact", "dedup-minhash:by=quality"):
        subset = longgame.select(data, selector=name, budget="5rows")
        assert sorted(subset["prompt"]) == [f"p{number}" for number in range(5)], name
        assert len(longgame.select(data, selector=name, budget="100%")) == 20


def test_tsds_compares_embeddings_of_the_model(data, tmp_path):
    target = jsonl(tmp_path / "target.jsonl", [{"prompt": "What is 5 + 9?", "response": "So it is."}])
    folder = tmp_path / "s"
    options = {"selector": "tsds", "model": "tiny-1", "budget": "9rows", "scores": folder}
    first = longgame.select(data, target=target, **options)
    assert first["longgame_mass"][0] >= 0
    again = longgame.select(data, target=target, **options)
    assert first["longgame_sample_id"][:] == again["longgame_sample_id"][:]
    other = jsonl(tmp_path / "other.jsonl", [{"prompt": "Name a color.", "response": "Red."}])
    moved = longgame.select(data, target=other, **options)
    assert moved["longgame_distance"][:] != first["longgame_distance"][:]
