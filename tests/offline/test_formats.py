"""Every format through select, with every flag: rows come back as they were, and a model reads them all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longgame.offline.options import SelectOptions
from longgame.offline.scorer import ModelOptions
from longgame.offline.selecting import select_to

from .conftest import jsonl


def talk(n: int) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": f"Say {n}."},
        {"role": "assistant", "content": f"It is {n}.", "train": n % 3 > 0},
        {"role": "user", "content": f"And {n + 1}?"},
        {"role": "assistant", "content": f"It is {n + 1}."},
    ]


def said(n: int) -> list[dict[str, str]]:
    return [{"from": {"user": "human"}.get(t["role"], "gpt"), "value": t["content"]} for t in talk(n)]


FORMATS: dict[str, Any] = {
    "messages": lambda n: {"messages": talk(n)},
    "blocks": lambda n: {"messages": [{**t, "content": [{"type": "text", "text": t["content"]}]} for t in talk(n)]},
    "sharegpt": lambda n: {"conversations": said(n), "id": f"x{n}"},
    "ms-swift": lambda n: {"conversation": [{"human": f"Say {n}.", "assistant": f"It is {n}."}]},
    "query": lambda n: {"query": f"Say {n}.", "response": f"It is {n}.", "history": [["Hi", "Hello"]]},
    "alpaca": lambda n: {"instruction": "Say it.", "input": f"{n}", "output": f"It is {n}.", "history": []},
    "prompt": lambda n: {"prompt": f"Say {n}.", "completion": f"It is {n}."},
    "prompt messages": lambda n: {"prompt": talk(n)[:3], "completion": talk(n)[3:]},
    "question": lambda n: {"question": f"What is {n} + 0?", "context": "Numbers.", "answer": f"{n}"},
    "text": lambda n: {"text": f"{n} is a number, and so is {n + 1}."},
    "preference": lambda n: {"prompt": f"Say {n}.", "chosen": f"It is {n}.", "rejected": "No."},
    "preference messages": lambda n: {"chosen": talk(n), "rejected": [*talk(n)[:3], {**talk(n)[3], "content": "No."}]},
    "tokens": lambda n: {"input_ids": [5, 6, 7 + n, 8], "labels": [-100, -100, 7 + n, 8]},
}  # fmt: skip
FLAGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "rows": ({"budget": "7rows"}, {}),
    "longest": ({"selector": "longest"}, {}),
    "quality": ({"selector": "quality", "quality_range": (0, 40)}, {}),
    "exact": ({"dedup": "exact"}, {}),
    "last": ({"turns": "last"}, {}),
    "where": ({"where": "quality < 20"}, {}),
    "explain": ({}, {"explain": True}),
    "history": ({}, {"history": True}),
    "replay": ({"budget": "20rows"}, {"replay": True}),
}


def rows_of(form: str) -> list[dict[str, Any]]:
    return [{**FORMATS[form](n), "note": f"n{n}", "quality": n} for n in range(40)]


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("form", FORMATS)
def test_rows_of_every_format_come_back_unchanged(form: str, flag: str, tmp_path: Path) -> None:
    rows, (options, further) = rows_of(form), FLAGS[flag]
    data = jsonl(tmp_path / "d.jsonl", rows)
    further = dict(further)
    if further.pop("replay", False):
        further["replay"] = jsonl(tmp_path / "old.jsonl", [{"prompt": f"old {n}", "response": "yes"} for n in range(9)])
    if further.pop("history", False):
        further["history"] = tmp_path / "history"
    settings = {"selector": "random", "budget": "30%rows", "quality_range": (0, 40), **options}
    outcome, manifest = select_to(data, tmp_path / "o.jsonl", SelectOptions(**settings), **further)
    result = [row for row in written(tmp_path / "o.jsonl") if not row.get("longgame_replayed")]
    plain = [{name: value for name, value in row.items() if not name.startswith("longgame_")} for row in result]
    assert plain == [row for row in rows if row in plain]
    assert len(plain) == len(outcome.picks) > 0
    assert sum(manifest["data"]["formats"].values()) == len(outcome.rows)
    assert len(manifest["data"]["formats"]) == 1


@pytest.mark.parametrize("form", FORMATS)
def test_a_model_reads_every_format(form: str, tmp_path: Path) -> None:
    data = jsonl(tmp_path / "d.jsonl", rows_of(form))
    options = SelectOptions(selector="loss", budget="25%", quality_range=(0, 40))
    outcome, manifest = select_to(data, tmp_path / "o.jsonl", options, model=ModelOptions(name="tiny"))
    assert manifest["budget"]["spent"] <= manifest["budget"]["asked"]
    assert 0 < manifest["picked"]["learned_share"] <= 1
    scores = outcome.terms["score"]
    assert scores[outcome.picks].tolist() == sorted(scores[outcome.picks], reverse=True)
    assert scores[outcome.picks[:3]].tolist() == sorted(scores, reverse=True)[:3]


def test_a_file_of_all_formats_is_counted(tmp_path: Path) -> None:
    rows = [FORMATS[form](n) for n, form in enumerate(FORMATS)]
    _, manifest = select_to(jsonl(tmp_path / "d.jsonl", rows), tmp_path / "o.jsonl", SelectOptions(budget="100%"))
    assert sum(manifest["data"]["formats"].values()) == len(FORMATS)
    assert len(manifest["data"]["formats"]) == 10
