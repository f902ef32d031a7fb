"""What `check` reports of every format, of bad rows, and of chat templates with habits."""

import gzip
import json
import re
from importlib.resources import files

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from longgame.data.formats import FORMATS, READ_COLUMNS
from longgame.errors import LonggameError
from longgame.offline.check_report import Spread
from longgame.offline.checking import check
from support.chat_model import CHATML, SPECIAL, chat_tokenizer, llama
from support.cli import longgame_here

TALK = [("user", "what is one"), ("assistant", "one"), ("user", "what is two"), ("assistant", "two of two")]
MESSAGES = [{"role": role, "content": text} for role, text in TALK]
ROWS = {
    "humaneval": {
        "prompt": "def one():\n",
        "canonical_solution": "    return 1",
        "test": "def check(f):\n    assert f() == 1",
        "entry_point": "one",
    },
    "mbpp": {"text": "what is one", "code": "def one(): return 1", "test_list": ["assert one() == 1"]},
    "truthfulqa": {
        "question": "what is one",
        "mc1_targets": {"choices": ["one", "two"], "labels": [1, 0]},
        "mc2_targets": {"choices": ["one", "two"], "labels": [1, 0]},
    },
    "arc": {"question": "what is one", "choices": {"text": ["two", "one"], "label": ["A", "B"]}, "answerKey": "B"},
    "mmlu": {"question": "what is one", "choices": ["two", "one"], "answer": 1, "subject": "math"},
    "messages": {"messages": MESSAGES},
    "sharegpt": {"conversations": [{"from": "human", "value": "what is one"}, {"from": "gpt", "value": "one"}]},
    "ms-swift": {"conversation": [{"human": "what is one", "assistant": "one"}]},
    "query-response": {"query": "what is one", "response": "one"},
    "prompt-completion": {"prompt": "what is one", "completion": "one"},
    "prompt-response": {"prompt": "what is one", "response": "one"},
    "alpaca": {"instruction": "what is one", "input": "", "output": "one"},
    "preference": {"prompt": "what is one", "chosen": "one", "rejected": "two"},
    "text": {"text": "what is one"},
    "question-answer": {"question": "what is one", "answer": "one"},
    "tokens": {"input_ids": [3, 4, 5, 6], "labels": [-100, -100, 5, 6]},
}
SYSTEM = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe good.<|im_end|>\n{% endif %}" + CHATML
NO_THOUGHTS = CHATML.replace("message['content']", "message['content'].split('</think>')[-1]")
OLD_THOUGHTS = CHATML.replace(
    "message['content']", "(message['content'] if loop.last else message['content'].split('</think>')[-1])"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
DATED = "{{ strftime_now('%d %b %Y') }}\n" + CHATML
BOS = "{{ bos_token }}" + CHATML.replace("<|im_start|>", "")


def llama_config():
    return llama(len(SPECIAL) + 300).config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    llama_config().save_pretrained(path)
    return path


def model(folder, **options):
    """A directory with a tokenizer and a configuration, and no weights."""
    chat_tokenizer(**options).save_pretrained(folder)
    for name in ("chat_template.jinja",):
        if options.get("template", CHATML) is None:
            (folder / name).unlink(missing_ok=True)
    return str(folder)


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_rows_of_the_tests_are_all_formats():
    assert list(ROWS) == [form.name for form in FORMATS]


@pytest.mark.parametrize("name", ROWS)
def test_every_format_is_named_and_shown(name, tmp_path, folder):
    path = write(tmp_path / "data.jsonl", [ROWS[name]])
    for report in (check(path), check(path, model(folder))):
        assert (report.rows, report.usable, report.bad) == (1, 1, ())
        assert report.formats == {name: 1}
        assert set(report.columns) == {key for key, value in ROWS[name].items() if value}
    assert report.unit == "tokens"
    assert report.lengths.total == report.example.tokens
    assert report.learned.median == pytest.approx(report.example.learned / report.example.tokens)


def test_learned_parts_are_the_answers_and_ends(tmp_path, folder):
    report = check(write(tmp_path / "data.jsonl", [ROWS["messages"]]), model(folder))
    learned = [text for text, is_learned in report.example.parts if is_learned]
    assert learned == ["one<|im_end|>", "two of two<|im_end|>"]
    assert report.multi_turn == 1
    last = check(tmp_path / "data.jsonl", model(folder), turns="last")
    assert [text for text, is_learned in last.example.parts if is_learned] == ["two of two<|im_end|>"]
    assert last.multi_turn == 0


def test_bad_rows_stand_in_order_with_reasons(tmp_path, folder):
    refused = {"messages": [{"role": "system", "content": "x"}, *MESSAGES[:2]]}
    off = {"messages": [{**MESSAGES[0]}, {**MESSAGES[1], "weight": 0}]}
    path = write(tmp_path / "data.jsonl", [ROWS["alpaca"], refused, "{", {"a": 1}, off, ROWS["text"]])
    report = check(path, model(folder, template=NO_SYSTEM))
    assert [row.number for row in report.bad] == [2, 3, 4, 5]
    for row, reason in zip(report.bad, ("no system", "not valid JSON", "no response", "no turn"), strict=True):
        assert reason in row.reason
    assert (report.rows, report.usable) == (6, 2)
    assert "4 rows cannot be used" in report.warnings[0]


def test_bad_rows_are_grouped_by_kind(tmp_path):
    rows = [ROWS["text"], *({"prompt": "x", "completion": ""} for _ in range(3)), "{", "{{", {"b": 1}, {"c": 1, "d": 2}]
    kinds = check(write(tmp_path / "data.jsonl", rows)).kinds_of_bad()
    assert [(row.number, count) for row, count in kinds] == [(2, 3), (5, 2), (7, 2)]


def test_progress_counts_all_rows(tmp_path, folder):
    calls = []
    check(write(tmp_path / "data.jsonl", [ROWS["text"]] * 9), model(folder), progress=lambda *done: calls.append(done))
    assert calls == [(9, 9)]


def test_counts_of_columns_groups_and_duplicates(tmp_path):
    rows = [{"prompt": f"what is {n}", "completion": "one " * 9, "skill": "ab"[n % 2]} for n in range(6)]
    rows = [{**rows[1], "quality": 4, "source": "web"}, rows[0], *rows]
    report = check(Dataset.from_list(rows), quality_range=(1, 5))
    assert report.columns == {"prompt": 8, "completion": 8, "skill": 8, "quality": 1, "source": 1}
    assert report.groups == {"skill": {"a": 4, "b": 4}, "source": {"": 7, "web": 1}}
    assert (report.exact_duplicates, report.rated) == (2, 1)
    part = check(Dataset.from_list(rows), where="skill == 'a'", quality_range=(1, 5), near=False)
    assert (part.rows, part.usable, part.filtered) == (8, 4, 4)
    assert part.near_duplicates is None


def test_lengths_over_the_limit_are_counted(tmp_path, folder):
    rows = [{"prompt": "one", "completion": "two"}, {"prompt": "one", "completion": "two " * 40}]
    rows.append({"prompt": "one " * 40, "completion": "two"})  # its first 20 tokens are all prompt
    path = write(tmp_path / "data.jsonl", rows)
    report = check(path, model(folder), max_length=20)
    assert (report.over_limit, report.lost, report.max_length) == (2, 1, 20)
    assert check(path, model(folder)).max_length == 256  # the model's context
    assert any("more than 20 tokens" in warning for warning in report.warnings)


def test_rows_that_would_learn_nothing_cannot_be_used(tmp_path, folder):
    rows = [{"prompt": "one", "completion": "two " * 40}, {"prompt": "one " * 40, "completion": "two"}]
    path = write(tmp_path / "data.jsonl", rows)
    report = check(path, model(folder), max_length=20)
    assert report.usable == 1
    assert [(row.number, row.reason[:24]) for row in report.bad] == [(2, "its first 20 tokens (of ")]
    assert check(path, model(folder), max_length=20, example=2).example.number == 2
    options = ["--model", model(folder), "--max-length", "20", "--bad-rows", "bad.jsonl"]
    assert command(tmp_path, "data.jsonl", *options, "--strict").returncode == 1
    assert [json.loads(line)["number"] for line in (tmp_path / "bad.jsonl").read_text().splitlines()] == [2]


def test_extreme_shares_of_learned_tokens_are_counted(tmp_path, folder):
    rows = [{"prompt": "one two three " * 60, "completion": "two"}, {"text": "one two three"}]
    report = check(write(tmp_path / "data.jsonl", rows), model(folder))
    assert (report.mostly_prompt, report.all_learned) == (1, 1)
    assert sum(report.learned.counts) == 2


TEMPLATES = {
    "plain habits": (CHATML, {"added_system": "", "system": "written", "cuts_thinking": "", "writes_bos": True}),
    "system added": (SYSTEM, {"added_system": "Be good.", "system": "written"}),
    "thinking cut": (NO_THOUGHTS, {"cuts_thinking": "all turns"}),
    "old thinking cut": (OLD_THOUGHTS, {"cuts_thinking": "earlier turns"}),
    "system refused": (NO_SYSTEM, {"system": "refused"}),
    "date": (DATED, {"writes_date": True}),
    "trims": (CHATML.replace("message['content']", "message['content'] | trim"), {"trims": True}),
    "think block": (
        CHATML.replace("'\n' + message['content']", "'\n<think>\n\n</think>\n\n' + message['content']"),
        {"opens_thinking": True},
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_habits_of_the_template_are_named(name, tmp_path, folder):
    template, facts = TEMPLATES[name]
    report = check(write(tmp_path / "data.jsonl", [ROWS["alpaca"]]), model(folder, template=template))
    assert {key: getattr(report.template, key) for key in facts} == facts
    words = report.facts()["chat template"]
    assert ("adds a system prompt" in words) == bool(report.template.added_system)
    if name in ("system added", "date"):
        assert report.warnings


OWN_SYSTEM = {
    "qwen2_5": "You are Qwen, created by Alibaba Cloud",
    "llama3_2": "Cutting Knowledge Date: December 2023",
    "gptoss": "You are ChatGPT",
    **dict.fromkeys(("qwen3", "llama3", "gemma", "gemma3", "phi3", "deepseek_r1_distill", "smolvlm", "lfm2"), ""),
}
"""Template of TRL → how the system prompt begins that it adds."""


@pytest.mark.parametrize("name", OWN_SYSTEM)
def test_habits_of_published_templates_are_named(name, tmp_path, folder):
    trl = pytest.importorskip("trl")
    template = (files(trl) / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
    marks = sorted({mark for mark in re.findall(r"<[^<>\s'\"{}]+>", template) if "think" not in mark})
    tokenizer = chat_tokenizer(template=template)
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.save_pretrained(folder)
    facts = check(write(tmp_path / "data.jsonl", [ROWS["alpaca"]]), str(folder)).template
    assert facts.added_system.startswith(OWN_SYSTEM[name])
    assert bool(facts.added_system) == bool(OWN_SYSTEM[name])
    assert facts.writes_date == (name in ("llama3_2", "gptoss"))
    assert facts.system == ("refused" if name == "gemma" else "written")
    assert bool(facts.cuts_thinking) == (name in ("qwen3", "deepseek_r1_distill"))
    assert facts.opens_thinking == (name == "qwen3")


def test_cut_thinking_is_reported_where_rows_think(tmp_path, folder):
    name = model(folder, template=OLD_THOUGHTS)
    plain = check(write(tmp_path / "data.jsonl", [ROWS["messages"]]), name)
    assert not any("thinking" in warning for warning in plain.warnings)
    thought = [{**message, "content": f"<think>one</think>{message['content']}"} for message in MESSAGES]
    report = check(write(tmp_path / "data.jsonl", [{"messages": [MESSAGES[0], thought[1]]}]), name)
    assert (report.with_thinking, report.usable) == (1, 1)
    assert any("thinking out of earlier turns" in warning for warning in report.warnings)


def test_a_default_system_prompt_counts_rows_without_one(tmp_path, folder):
    rows = [ROWS["alpaca"], {**ROWS["alpaca"], "system": "of my own"}, ROWS["text"]]
    report = check(write(tmp_path / "data.jsonl", rows), model(folder, template=SYSTEM))
    assert report.without_system == 1
    assert any("'Be good.'" in warning and "1 row " in warning for warning in report.warnings)


def test_a_doubled_bos_is_counted_by_row(tmp_path, folder):
    path = write(tmp_path / "data.jsonl", [ROWS["alpaca"]] * 2)
    assert check(path, model(folder, template="{{ bos_token }}" + CHATML)).doubled_bos == 2
    assert check(path, model(folder, template=BOS)).doubled_bos == 0


def test_a_tokenizer_without_padding_is_a_warning(tmp_path, folder):
    report = check(write(tmp_path / "data.jsonl", [ROWS["alpaca"]]), model(folder, pad=False))
    assert (report.pad_token, report.usable) == (None, 1)
    assert any("--pad-token" in warning for warning in report.warnings)
    mended = check(tmp_path / "data.jsonl", model(folder, pad=False), pad_token="<|endoftext|>")
    assert (mended.pad_token, mended.warnings) == ("<|endoftext|>", ())


def test_without_a_template_conversations_cannot_be_used(tmp_path, folder):
    name = model(folder, template=None)
    report = check(write(tmp_path / "data.jsonl", [ROWS["alpaca"]]), name)
    assert (report.usable, report.unit, report.template, report.learned) == (0, "characters", None, None)
    assert "--chat-template" in report.warnings[0]
    assert check(tmp_path / "data.jsonl", name, chat_template="plain").usable == 1
    assert check(write(tmp_path / "text.jsonl", [ROWS["text"]]), name).usable == 1


@pytest.mark.parametrize(
    ("rows", "options", "reason"),
    [
        ([], {}, "holds no rows"),
        ([ROWS["alpaca"]], {"example": 2}, "number 2, and .* has 1 rows"),
        ([ROWS["alpaca"]], {"example": 0}, "counted from 1"),
        ([ROWS["alpaca"], {"a": 1}], {"example": 2}, "row 2 .* no response"),
        ([ROWS["alpaca"]], {"turns": "first"}, "unknown choice of turns 'first'"),
        ([ROWS["alpaca"]], {"model": "tiny", "max_length": 3}, "use 8 or more"),
        ([ROWS["alpaca"]], {"max_length": 99}, "max_length: of the model, and no model is given"),
        ([ROWS["alpaca"]], {"where": "skil == 1"}, "unknown column 'skil'"),
        ([ROWS["alpaca"]], {"quality_range": (1, 1)}, "range of quality"),
        ([ROWS["alpaca"]], {"model": "tiny", "chat_template": "no.jinja"}, "--chat-template 'no.jinja' does not exist"),
        ([ROWS["alpaca"]], {"model": "tiny", "max_length": 4096}, "'tiny' takes at most 512 tokens"),
        ([ROWS["alpaca"]], {"model": "tiny", "pad_token": "<padd>"}, "--pad-token '<padd>' is not in the vocabulary"),
    ],
)
def test_wrong_options_are_refused_in_one_sentence(rows, options, reason, tmp_path):
    with pytest.raises(LonggameError, match=reason):
        check(write(tmp_path / "data.jsonl", rows), **options)


def test_the_chosen_example_counts_bad_rows(tmp_path):
    path = write(tmp_path / "data.jsonl", [{"a": 1}, ROWS["text"], {"text": "two"}])
    assert check(path).example.number == 2
    assert check(path, example=3).example.parts == (("two", True),)


def test_nothing_is_written_and_no_weights_are_read(tmp_path, folder, monkeypatch):
    monkeypatch.setattr("longgame.models.load._model", None)
    path = write(tmp_path / "data.jsonl", [ROWS["alpaca"]])
    before = sorted(tmp_path.rglob("*"))
    assert check(path, model(folder)).usable == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_the_notebook_view_escapes_texts(tmp_path, folder):
    row = {"prompt": "<script>alert(1)</script>\x1b[31m", "completion": "<b>one</b>", "skill": "<i>"}
    view = check(write(tmp_path / "data.jsonl", [row]), model(folder))._repr_html_()
    assert "<script>" not in view
    assert "<b>one" not in view
    assert "<i>" not in view
    assert "\x1b" not in view
    assert "<mark>" in view


@pytest.mark.parametrize("values", [[5], [0, 0, 0], [1, 2, 3, 1000], list(range(1000)), [0.2, 0.4]])
def test_a_histogram_counts_every_value(values):
    spread = Spread.of(np.asarray(values, dtype=float))
    assert sum(spread.counts) == len(values)
    assert len(spread.counts) <= 12
    assert spread.minimum <= spread.median <= spread.p95 <= spread.maximum
    assert Spread.of(np.zeros(0)) is None


def command(tmp_path, *arguments):
    return longgame_here("check", *arguments, cwd=tmp_path)


def test_the_command_shows_facts_example_and_notes(tmp_path, folder):
    write(tmp_path / "data.jsonl", [ROWS["messages"], ROWS["alpaca"], {"a": 1}])
    done = command(tmp_path, "data.jsonl", "--model", model(folder), "--bad-rows", "bad.jsonl")
    assert done.returncode == 0, done.stderr
    for text in ("messages 1, alpaca 1", "data.jsonl:3:", "⟦one<|im_end|>⟧", "1 row cannot be used", "duplicates"):
        assert text in done.stdout, text
    (entry,) = map(json.loads, (tmp_path / "bad.jsonl").read_text().splitlines())
    assert (entry["file"], entry["number"]) == ("data.jsonl", 3)


def test_the_command_prints_json_alone(tmp_path):
    write(tmp_path / "data.jsonl", [ROWS["messages"], {"a": 1}])
    done = command(tmp_path, "data.jsonl", "--json")
    report = json.loads(done.stdout)
    assert (report["rows"], report["usable"], report["bad_rows"]) == (2, 1, 1)


@pytest.mark.parametrize(
    ("rows", "arguments", "code", "text"),
    [
        ([], [], 1, "holds no rows"),
        ([{"a": 1}], [], 1, "0 can be used"),
        ([ROWS["text"], {"a": 1}], [], 0, "1 can be used"),
        ([ROWS["text"], {"a": 1}], ["--strict"], 1, "1 can be used"),
        ([ROWS["text"]], ["--strict"], 0, "1 can be used"),
        ([ROWS["text"]], ["--quality-range", "5"], 2, "lowest and the highest"),
        ([ROWS["text"]], ["--model", "nowhere/at/all"], 1, "does not exist"),
    ],
)
def test_exit_codes_say_whether_rows_can_be_used(rows, arguments, code, text, tmp_path):
    write(tmp_path / "data.jsonl", rows)
    done = command(tmp_path, "data.jsonl", *arguments)
    assert done.returncode == code
    assert text in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_the_list_of_bad_rows_replaces_no_file(tmp_path):
    before = write(tmp_path / "data.jsonl", [ROWS["text"], {"a": 1}]).read_bytes()
    done = command(tmp_path, "data.jsonl", "--bad-rows", "data.jsonl")
    assert done.returncode == 1
    assert "'data.jsonl' exists already. Give another --bad-rows" in done.stderr
    assert (tmp_path / "data.jsonl").read_bytes() == before


def test_the_terminal_shows_no_control_characters(tmp_path, folder):
    hostile = "\x1b[31m\x07[bold]\u202e"
    row = {"prompt": hostile, "completion": f"one {hostile}", "skill": hostile, hostile: 1}
    write(tmp_path / "data.jsonl", [row, {hostile: 1}])
    for arguments in ((), ("--model", model(folder))):
        done = command(tmp_path, "data.jsonl", *arguments)
        assert done.returncode == 0, done.stderr
        assert not {"\x1b", "\x07", "\u202e"} & set(done.stdout + done.stderr)
        assert "[bold]" in done.stdout


def test_packed_files_and_folders_are_checked(tmp_path):
    (tmp_path / "part-1.jsonl.gz").write_bytes(gzip.compress(json.dumps(ROWS["text"]).encode()))
    Dataset.from_list([ROWS["text"]] * 2).to_parquet(tmp_path / "part-2.parquet")
    assert check(tmp_path).rows == 3
    assert check([tmp_path / "part-1.jsonl.gz", tmp_path / "part-2.parquet"]).exact_duplicates == 2


def test_a_tokenizer_without_eos_is_reported(tmp_path, folder):
    tokenizer = chat_tokenizer(template="{% for m in messages %}{{ m.content }} {% endfor %}")
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    report = check(write(tmp_path / "data.jsonl", [ROWS["text"], ROWS["alpaca"]]), str(folder))
    assert (report.eos_token, report.usable) == (None, 0)
    assert "no EOS token" in report.warnings[0]
    assert "padding" in report.facts()


TEXT = st.text(max_size=8) | st.sampled_from(["one", "<|im_end|>", "</think>", "", " "])
VALUE = st.recursive(
    TEXT | st.none() | st.booleans() | st.integers(-9, 9) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "from"]), inner),
    max_leaves=6,
)
TURN = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "x"]), "content": TEXT})
ROW = st.dictionaries(st.sampled_from([*READ_COLUMNS]), VALUE, max_size=4) | st.one_of(
    st.fixed_dictionaries({"prompt": TEXT, "completion": TEXT}),
    st.fixed_dictionaries({"messages": st.lists(TURN, max_size=4)}),
    st.fixed_dictionaries({"input_ids": st.lists(st.integers(-1, 999), max_size=5)}),
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Three templates' models."""
    folders = [tmp_path_factory.mktemp("model") for _ in range(3)]
    for path, template in zip(folders, (CHATML, OLD_THOUGHTS, NO_SYSTEM), strict=True):
        llama_config().save_pretrained(path)
        model(path, template=template)
    return [str(path) for path in folders]


@settings(max_examples=60)
@given(rows=st.lists(ROW, min_size=1, max_size=8), number=st.integers(0, 2))
def test_every_row_is_usable_or_bad(rows, number, models, tmp_path_factory):
    path = write(tmp_path_factory.mktemp("rows") / "data.jsonl", rows)
    for name in (None, models[number]):
        report = check(path, name)
        assert report.usable + len(report.bad) == report.rows == len(rows)
        assert sum(report.formats.values()) >= report.usable
        assert (report.lengths is None) == (
            sum(report.formats.values()) == 0 or (not report.usable and name is not None)
        )
        assert report.facts()
        assert report._repr_html_()
        json.dumps(report.as_dict(), allow_nan=False)
