"""Reading examples: every accepted format means the same example, every bad input ends in one sentence."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from longgame.data.score_files import read_scores
from longgame.data.sources import load_examples, open_source, source_name
from longgame.errors import DataError


def write(path: Path, *rows: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return str(path)


def load(path: str) -> list[Any]:
    return load_examples(path, data_dir=None, split="train")


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2+2?", "response": "4"},
        {"prompt": "2+2?", "completion": "4"},
        {"prompt": [user("2+2?")], "completion": [assistant("4")]},
        {"messages": [user("2+2?"), assistant("4")]},
        {"messages": [user("2+2?"), assistant("4"), user("thanks")]},
        {"instruction": "2+2?", "output": "4"},
        {"instruction": "2+2?", "input": "", "output": "4"},
        {"instruction": "", "input": "2+2?", "output": "4"},
        {"instruction": "2+2?", "context": "", "response": "4"},
        {"question": "2+2?", "response": "4"},
        {"question": "2+2?", "answer": "4"},
    ],
)
def test_every_format_of_one_turn_is_the_same_example(tmp_path: Path, row: dict[str, Any]) -> None:
    (example,) = load(write(tmp_path / "a.jsonl", row))
    (reference,) = load(write(tmp_path / "b.jsonl", {"prompt": "2+2?", "response": "4"}))
    assert (example.prompt, example.response, example.messages) == ("2+2?", "4", None)
    assert example.sample_id == reference.sample_id


def test_conversation_learns_every_assistant_turn(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, user("Hi"), assistant("Hello"), user("2+2?")]
    path = write(
        tmp_path / "a.jsonl",
        {"messages": [*turns, assistant("4")]},
        {"prompt": turns, "completion": [assistant("4")]},
        {"prompt": turns[:2], "completion": [*turns[2:], assistant("4")]},
    )
    first, second, third = load(path)
    assert first.response == "4"
    assert first.prompt == "2+2?"
    assert first.messages == (("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "2+2?"))
    assert (first.learned, second.learned, third.learned) == ((2,), (), (2,))  # what the prompt holds is context
    assert first == third
    last = load_examples(str(path), data_dir=None, split="train", turns="last")
    assert last == [second] * 3
    assert load_examples(str(path), data_dir=None, split="eval") == last


def test_instruction_and_input_are_joined_by_a_blank_line(tmp_path: Path) -> None:
    (example,) = load(write(tmp_path / "a.jsonl", {"instruction": "Add.", "input": "2, 2", "output": "4"}))
    assert example.prompt == "Add.\n\n2, 2"


def test_context_stands_under_what_is_asked(tmp_path: Path) -> None:
    rows = [{"instruction": "Add.", "response": "4"}, {"question": "Add.", "answer": "4"}]
    for example in load(write(tmp_path / "a.jsonl", *({**row, "context": "2, 2"} for row in rows))):
        assert (example.prompt, example.response) == ("Add.\n\n2, 2", "4")


@pytest.mark.parametrize(
    ("answer", "gold"),
    [("7", "7"), ("3 + 4 = 7\n#### 7", "7"), ("It is seven.\nSeven it is.", None), ("a\n####", None)],
)
def test_gold_of_a_response_is_its_mark_or_only_line(tmp_path: Path, answer: str, gold: str | None) -> None:
    (example,) = load(write(tmp_path / "a.jsonl", {"question": "3 + 4?", "answer": answer}))
    assert (example.prompt, example.response, example.answer) == ("3 + 4?", answer, gold)


def test_text_is_all_response(tmp_path: Path) -> None:
    (example,) = load(write(tmp_path / "a.jsonl", {"text": "Once upon a time."}))
    assert (example.prompt, example.response, example.messages) == ("", "Once upon a time.", None)


def test_optional_fields_reach_the_example(tmp_path: Path) -> None:
    row = {
        "prompt": "Which?",
        "response": "B. two",
        "skill": "s",
        "source": "set",
        "answer": "B",
        "choices": ["one", "two"],
        "quality": 0.25,
        "noisy": False,
        "difficulty": "easy",
        "verifier": {"task": "sum"},
    }
    example, listed, number = load(
        write(
            tmp_path / "a.jsonl",
            row,
            {**row, "answer": ["two", "2"]},
            {"prompt": "n?", "response": "7", "answer": 7, "quality": None, "choices": []},
        )
    )
    assert (example.skill, example.source, example.answer, example.choices) == ("s", "set", "B", ("one", "two"))
    assert (example.quality, example.noisy, example.difficulty, example.verifier) == (
        0.25,
        False,
        "easy",
        {"task": "sum"},
    )
    assert listed.answer == ("two", "2")
    assert (number.answer, number.quality, number.choices) == ("7", None, None)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
@pytest.mark.parametrize("split", ["train", "eval"])
def test_a_bare_name_is_found_in_its_split_with_any_suffix(tmp_path: Path, suffix: str, split: Any) -> None:
    path = tmp_path / split / f"math{suffix}"
    rows = [{"prompt": f"{i}?", "response": str(i)} for i in range(3)]
    if suffix == ".parquet":
        path.parent.mkdir()
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        write(path, *rows)
    assert [example.response for example in load_examples("math", data_dir=tmp_path, split=split)] == ["0", "1", "2"]
    assert load_examples(str(path), data_dir=None, split="train") == load_examples(
        "math", data_dir=tmp_path, split=split
    )


def test_parquet_keeps_nested_messages(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{"messages": [user("Hi"), assistant("Hello")]}]), tmp_path / "a.parquet")
    (example,) = load(str(tmp_path / "a.parquet"))
    assert (example.prompt, example.response) == ("Hi", "Hello")


def test_blank_lines_are_no_examples_but_count_as_lines(tmp_path: Path) -> None:
    good = {"prompt": "a", "response": "b"}
    assert len(load(write(tmp_path / "a.jsonl", good, "", good))) == 2
    with pytest.raises(DataError, match="line 3"):
        load(write(tmp_path / "b.jsonl", good, "  ", "{"))


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        ('{"prompt": "a", "respo', "not valid JSON"),
        ({"prompt": "a", "response": "  "}, "the response is empty"),
        ({"prompt": "a", "completion": ""}, "the response is empty"),
        ({"messages": [user("a"), assistant("\n")]}, "the response is empty"),
        ({"messages": [user("a")]}, "no assistant turn"),
        ({"messages": [{"role": "user"}]}, "without role and content"),
        (
            {"messages": [user("a"), {"role": "assistant", "content": [{"type": "image"}]}]},
            "content block of type 'image'",
        ),
        ({"prompt": "a"}, "has no response"),
        ({"prompt": 3, "response": "a"}, "'prompt' is a int"),
        ({"prompt": "a", "response": 5}, "'response' is a int"),
        ({"prompt": "a", "response": "b", "quality": 7}, "'quality' is 7"),
        ({"prompt": "a", "response": "b", "longgame_weight": 1e300}, "'longgame_weight' is 1e+300"),
        ({"prompt": "a", "response": "b", "longgame_weight": 1e-320}, "'longgame_weight' is 1e-320"),
        ('{"prompt": "a", "response": "b", "quality": NaN}', "'quality' is nan"),
        ('{"prompt": "a", "response": "b", "longgame_weight": NaN}', "'longgame_weight' is nan"),
        ({"prompt": "a", "response": "b", "choices": "xy"}, "'choices'"),
        ({"prompt": "a", "response": "b", "answer": {}}, "'answer'"),
        ({"prompt": "a", "response": "b", "noisy": "yes"}, "'noisy'"),
        ("[1, 2]", "holds a list"),
        ("[" * 100_000, "cannot be read as JSON"),
        ('{"prompt": ' + "9" * 5000 + "}", "cannot be read as JSON"),
    ],
)
def test_a_bad_line_is_named_with_its_number_and_how_many_more(tmp_path: Path, bad: Any, what: str) -> None:
    good = {"prompt": "a", "response": "b"}
    path = write(tmp_path / "a.jsonl", good, good, bad, good, bad, bad)
    with pytest.raises(DataError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line 3: ")
    assert what in message
    assert "2 more lines" in message


def test_one_bad_line_alone_speaks_of_no_others(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 1") as caught:
        load(write(tmp_path / "a.jsonl", "nonsense"))
    assert "more" not in str(caught.value)


def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "a", "response": "b"}\n{"prompt": "\xff", "response": "b"}\n')
    with pytest.raises(DataError, match="line 2: is not UTF-8"):
        load(str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("place", [20, 2_000_000])
def test_an_array_that_is_not_utf8_is_refused_in_a_sentence(place: int, tmp_path: Path) -> None:
    row = {"prompt": "a" * place, "response": "b"}
    (tmp_path / "a.json").write_bytes(json.dumps([row, row]).encode()[:-3] + b"\xff" + b'"}]')
    with pytest.raises(DataError, match=r"is not UTF-8 \(byte 0xff\). Save the file as UTF-8"):
        load(str(tmp_path / "a.json"))


@pytest.mark.parametrize("between", ["", "\n", " " * 3_000_000])
def test_nothing_behind_an_array_is_lost(between: str, tmp_path: Path) -> None:
    array = json.dumps([{"prompt": "a", "response": "b"}])
    path = tmp_path / "a.json"
    path.write_text(array + between + array)
    with pytest.raises(DataError, match=r"behind row 1: something stands behind the array \('\[\{.*Join the arrays"):
        load(str(path))
    path.write_text(array + between)
    assert len(load(str(path))) == 1


@pytest.mark.parametrize(
    ("completion", "read"),
    [
        ('[{"name": "Ana", "n": 3}]', '[{"name": "Ana", "n": 3}]'),
        ('[{"a"} is a set', '[{"a"} is a set'),
        ('[{"role": "assistant", "content": "Hi"}]', "Hi"),
    ],
)
def test_a_text_of_csv_is_messages_only_where_it_holds_turns(completion: str, read: str, tmp_path: Path) -> None:
    prompt = json.dumps([{"role": "user", "content": "Who?"}]) if read == "Hi" else "Who?"
    path = write_frame(tmp_path / "d.csv", pd.DataFrame({"prompt": [prompt], "completion": [completion]}))
    (example,) = load(str(path))
    assert (example.prompt, example.response) == ("Who?", read)


def test_masks_of_csv_are_lists(tmp_path: Path) -> None:
    cells = {"input_ids": "[5, 6, 7]", "attention_mask": "[1, 1, 1]", "completion_mask": "[0, 0, 1]"}
    (example,) = load(str(write_frame(tmp_path / "d.csv", pd.DataFrame([cells]))))
    assert example.tokens is not None
    assert example.tokens[1].tolist() == [False, False, True]


def test_a_stream_is_refused_in_a_sentence() -> None:
    with pytest.raises(DataError, match="is of type IterableDataset, a stream. Give a datasets.Dataset"):
        open_source(Dataset.from_list([{"prompt": "a", "response": "b"}]).to_iterable_dataset())


def test_a_cut_gzip_file_is_reported_as_damaged(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.jsonl.gz", *({"prompt": f"{i}", "response": f"{i * i}"} for i in range(500))))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="gzip data is damaged"):
        load(str(path))


def test_a_file_that_is_not_parquet_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("hello")
    with pytest.raises(DataError, match="cannot be read"):
        load(str(tmp_path / "a.parquet"))


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no examples"):
        load(write(tmp_path / "a.jsonl"))


def test_unknown_name_suggests_and_lists_the_folder(tmp_path: Path) -> None:
    good = {"prompt": "a", "response": "b"}
    write(tmp_path / "train" / "math_gsm8k.jsonl.gz", good)
    write(tmp_path / "train" / "code.jsonl", good)
    with pytest.raises(DataError) as caught:
        load_examples("math_gsm8", data_dir=tmp_path, split="train")
    assert "Did you mean 'math_gsm8k'?" in str(caught.value)
    assert "code, math_gsm8k" in str(caught.value)


def test_bad_references_say_how_to_write_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--data-dir"):
        load_examples("math", data_dir=None, split="train")
    with pytest.raises(DataError, match="does not exist"):
        load_examples("math", data_dir=tmp_path / "nowhere", split="train")
    with pytest.raises(DataError, match="hub:owner/name"):
        load_examples("owner/name", data_dir=tmp_path, split="train")
    with pytest.raises(DataError, match="hub:owner/name, optionally"):
        load_examples("hub:name", data_dir=None, split="train")
    write(tmp_path / "real.jsonl", {"text": "a"})
    with pytest.raises(DataError, match=r"Did you mean 'real.jsonl'"):
        load(str(tmp_path / "reel.jsonl"))


def test_a_name_that_fits_two_files_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train" / "a.jsonl", {"text": "x"})
    write(tmp_path / "train" / "a.jsonl.gz", {"text": "y"})
    with pytest.raises(DataError, match=r"a\.jsonl, a\.jsonl\.gz"):
        load_examples("a", data_dir=tmp_path, split="train")


def test_source_names_are_short() -> None:
    assert source_name("math") == "math"
    assert source_name("some/where/math.jsonl.gz") == "math"
    assert source_name("v1.5.parquet") == "v1.5"
    assert source_name("hub:openai/gsm8k:main") == "openai/gsm8k:main"


_HUB = """
import sys
from longgame.data.sources import load_examples
from longgame.errors import DataError
try:
    load_examples("hub:no-such-owner/no-such-data", data_dir=None, split="train")
except DataError as error:
    print(error)
    sys.exit(7)
"""


@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_that_cannot_be_reached_ends_fast_with_help(tmp_path: Path, offline: bool) -> None:
    """Either told to be offline, or with an endpoint where nobody listens."""
    reach = {"HF_HUB_OFFLINE": "1"} if offline else {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    environment = {"HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **reach}
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _HUB], capture_output=True, text=True, env=environment, timeout=60, check=False
    )
    assert done.returncode == 7, done.stderr
    assert "no-such-owner/no-such-data" in done.stdout
    assert "--data-dir" in done.stdout
    assert ("or set HF_HUB_OFFLINE" in done.stdout) == (not offline)
    assert time.monotonic() - start < 30  # nearly all of it imports; the retries of `datasets` would add 23 s


# Files of scores

SCORE_ROWS = [
    ("0012", 0.5, True),
    ("12e4", -1.0, False),
    ("b#2", 3.0, True),
]  # ids look like numbers


def write_frame(path, frame):
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
    frame = pd.DataFrame(SCORE_ROWS, columns=[column, "score", "keep"])
    found = read_scores(write_frame(tmp_path / f"s.{kind}", frame))
    assert found.ids == ("0012", "12e4", "b#2")
    assert found.score.tolist() == [0.5, -1.0, 3.0]
    assert found.keep.tolist() == [True, False, True]


def test_score_file_defaults_are_order_and_keep_all(tmp_path):
    frame = pd.DataFrame(SCORE_ROWS, columns=["id", "score", "keep"])
    kept = read_scores(write_frame(tmp_path / "k.csv", frame[["id", "keep"]]))
    assert kept.score.tolist() == sorted(kept.score.tolist(), reverse=True)
    assert read_scores(write_frame(tmp_path / "s.csv", frame[["id", "score"]])).keep.all()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"sample_id": "a", "points": 1}], "has the columns sample_id, points; it needs sample_id, and score or keep"),
        ([{"name": "a", "score": 1}], "it needs sample_id"),
        ([{"id": "a", "score": 1}, {"id": "a", "score": 2}], "repeats 1 ids: a. Give one row"),
        ([{"id": 1, "score": 1}, {"id": 1, "score": 2}], "repeats 1 ids: 1. Give one row"),
        ([{"id": "a", "score": 1}, {"id": "b", "score": None}], "1 ids have no finite number as score: b"),
        ([{"id": "a", "score": "high"}], "no finite number as score: a"),
        ([{"sample_id": 7, "score": 1}], "sample_id holds 7, which is no text"),
        ([{"id": 7.5, "score": 1}], "id holds 7.5, which is no text"),
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


@pytest.mark.parametrize(
    ("name", "others", "near"),
    [
        ("nofile.jsonl", ["o9.jsonl", "a.jsonl", "profile.html"], ""),
        ("trian.jsonl", ["train.jsonl", "eval.jsonl"], "train.jsonl"),
        ("train.json", ["train.parquet", "train.jsonl"], "train.jsonl"),
        ("train.v1.2.jsonl", ["train.v1.1.jsonl.gz", "test.jsonl"], "train.v1.1.jsonl.gz"),
    ],
)
def test_a_shared_ending_makes_no_file_near(name, others, near, tmp_path):
    for other in others:
        (tmp_path / other).touch()
    with pytest.raises(DataError, match="does not exist") as caught:
        open_source(tmp_path / name)
    assert re.findall(r"Did you mean '(.*)'", str(caught.value)) == ([near] if near else [])
