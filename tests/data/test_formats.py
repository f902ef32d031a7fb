"""Rows of every format people hold: what they say, which turns are learned, what is refused by name."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from longgame.data import formats
from longgame.data.examples import Example
from longgame.data.formats import FORMATS, RowError, RowRules, read_row
from longgame.errors import DataError

TALK = (("user", "Hi"), ("assistant", "Hello"), ("user", "2+2?"))
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def message(role: str, content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **fields}


def said(sender: str, value: str) -> dict[str, str]:
    return {"from": sender, "value": value}


def read(row: Any, **rules: Any) -> Example:
    return read_row(row, RowRules(**rules))[0]


MESSAGES = [message(role, content) for role, content in (*TALK, ("assistant", "4"))]
SHAREGPT = [said("human", "Hi"), said("gpt", "Hello"), said("human", "2+2?"), said("gpt", "4")]
ONE_CONVERSATION: list[tuple[str, dict[str, Any]]] = [
    ("messages", {"messages": MESSAGES}),
    ("messages", {"messages": [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in MESSAGES]}),
    ("messages", {"messages": np.asarray(MESSAGES, dtype=object)}),
    ("sharegpt", {"conversations": SHAREGPT}),
    ("sharegpt", {"conversations": MESSAGES}),
    ("ms-swift", {"conversation": [{"human": "Hi", "assistant": "Hello"}, {"human": "2+2?", "assistant": "4"}]}),
    ("query-response", {"query": "2+2?", "response": "4", "history": [["Hi", "Hello"]]}),
    ("alpaca", {"instruction": "2+2?", "input": "", "output": "4", "history": [["Hi", "Hello"]]}),
    ("prompt-completion", {"prompt": "Hi", "completion": [*MESSAGES[1:]]}),
    ("preference", {"chosen": MESSAGES, "rejected": [MESSAGES[0], message("assistant", "5")]}),
]


@pytest.mark.parametrize(("name", "row"), ONE_CONVERSATION)
def test_one_conversation_is_one_example_in_every_format(name: str, row: dict[str, Any]) -> None:
    example, form = read_row(row)
    assert form == name
    assert (example.messages, example.response, example.learned) == (TALK, "4", (1,))
    assert example.sample_id == read({"messages": MESSAGES}).sample_id


@pytest.mark.parametrize(
    ("row", "prompt", "response"),
    [
        ({"instruction": "Add.", "input": "2, 2", "output": "4"}, "Add.\n\n2, 2", "4"),
        ({"question": "2+2?", "context": "Numbers.", "answer": "4"}, "2+2?\n\nNumbers.", "4"),
        ({"prompt": "2+2?", "chosen": "4", "rejected": "5"}, "2+2?", "4"),
        ({"prompt": "2+2?", "completion": "4"}, "2+2?", "4"),
        ({"prompt": "2+2?", "response": "4"}, "2+2?", "4"),
        ({"text": "four"}, "", "four"),
        ({"messages": [message("assistant", "four")]}, "", "four"),
    ],
)
def test_rows_of_one_turn(row: dict[str, Any], prompt: str, response: str) -> None:
    example = read(row)
    assert (example.prompt, example.response, example.messages, example.learned) == (prompt, response, None, ())


def test_a_system_prompt_stands_first_in_every_format() -> None:
    for name, row in ONE_CONVERSATION:
        example, form = read_row({**row, "system": "Be brief."})
        assert form == name
        assert example.messages == (("system", "Be brief."), *TALK)
        assert example.learned == (2,)


def test_what_a_prompt_holds_is_context() -> None:
    assert read({"prompt": MESSAGES[:3], "completion": MESSAGES[3:]}).learned == ()
    assert read({"prompt": MESSAGES[:1], "completion": MESSAGES[1:]}).learned == (1,)


def test_a_preference_learns_what_the_rejected_answer_lacks() -> None:
    rejected = [*MESSAGES[:3], message("assistant", "5")]
    assert read({"chosen": MESSAGES, "rejected": rejected}).learned == ()


@pytest.mark.parametrize(
    "before",
    [
        {"prompt": "Hi"},
        {"prompt": " 2+2?\n"},
        {"prompt": MESSAGES[:1]},
        {"prompt": MESSAGES[:3]},
        {"prompt": "2+2?", "history": [["Hi", "Hello"]]},
    ],
)
def test_a_prompt_that_chosen_repeats_is_read_once(before: dict[str, Any]) -> None:
    rejected = [*MESSAGES[:3], message("assistant", "5")]
    for row in ({"rejected": rejected}, {"rejected": rejected, "messages": MESSAGES}):
        example = read({"chosen": MESSAGES, **row, **before})
        assert (example.messages, example.response) == (TALK, "4")
    system = [message("system", "Be brief."), *MESSAGES]
    assert read({"chosen": system, **before}).messages == (("system", "Be brief."), *TALK)
    assert read({"chosen": system, "prompt": MESSAGES[:3]}).learned == ()


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
        {"prompt": "2+2?", "chosen": MESSAGES[3:]},
        {"prompt": "2+2?", "chosen": MESSAGES[2:]},
        {"chosen": MESSAGES[2:]},
        {"question": "2+2?", "answer": "4"},
    ],
)
def test_history_stands_before_every_request(row: dict[str, Any]) -> None:
    example = read({**row, "history": [["Hi", "Hello"]]})
    assert (example.messages, example.response) == (TALK, "4")


@pytest.mark.parametrize("flag", ["train", "loss", "weight"])
def test_flags_switch_turns_off(flag: str) -> None:
    turns = [dict(turn) for turn in MESSAGES]
    turns[1][flag] = 0
    assert read({"messages": turns}).learned == ()
    turns[1][flag], turns[3][flag] = True, False
    example = read({"messages": turns})
    assert (example.response, example.messages, example.learned) == ("Hello", TALK[:1], ()) or (
        example.response,
        example.prompt,
    ) == ("Hello", "Hi")


def test_last_keeps_only_the_last_turn() -> None:
    example = read({"messages": MESSAGES}, turns="last")
    assert (example.messages, example.response, example.learned) == (TALK, "4", ())
    assert example.sample_id != read({"messages": MESSAGES}).sample_id


TOOL_TURNS = [
    message("user", "2+2?"),
    {"role": "assistant", "content": None, "tool_calls": [{**CALL, "id": "c1"}]},
    {"role": "tool", "content": "4", "tool_call_id": "c1"},
    message("assistant", "It is 4."),
]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TOOL_TURNS, "tools": [TOOL]},
        {"messages": TOOL_TURNS, "tools": json.dumps([TOOL])},
        {
            "messages": [
                TOOL_TURNS[0],
                {
                    "role": "assistant",
                    "tool_calls": [
                        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 2}'}}
                    ],
                },
                *TOOL_TURNS[2:],
            ],
            "tools": [TOOL["function"]],
        },
    ],
)
def test_tool_calls_reach_the_template_as_objects(row: dict[str, Any]) -> None:
    example = read(row)
    assert example.messages == (("user", "2+2?"), ("assistant", ""), ("tool", "4"))
    assert example.learned == (1,)
    assert example.chat is not None
    assert example.chat["tools"] == [TOOL]
    assert example.chat["turns"]["1"]["tool_calls"][0]["function"] == CALL["function"]
    assert example.chat["turns"]["2"]["tool_call_id"] == "c1"


def test_sharegpt_calls_and_observations() -> None:
    call = json.dumps({"name": "add", "arguments": {"a": 2, "b": 2}})
    turns = [said("human", "2+2?"), said("function_call", call), said("observation", "4"), said("gpt", "It is 4.")]
    example = read({"conversations": turns, "tools": json.dumps([TOOL["function"]])})
    assert [role for role, _ in example.messages or ()] == ["user", "assistant", "tool"]
    assert example.chat is not None
    assert example.chat["turns"]["1"]["tool_calls"] == [CALL]
    assert example.chat["tools"] == [TOOL]


def test_a_call_may_be_the_last_turn() -> None:
    example = read({"messages": TOOL_TURNS[:2], "tools": [TOOL]})
    assert "add" in example.response
    assert example.chat is not None
    assert "1" in example.chat["turns"]


NULL = {"name": "f", "arguments": {"city": "Paris", "unit": None}}
PADDED = {"name": "f", "arguments": {"city": "Paris"}}


@pytest.mark.parametrize(
    ("turn", "call"),
    [
        (
            message("assistant", None, tool_calls=[{"function": {**NULL, "arguments": json.dumps(NULL["arguments"])}}]),
            NULL,
        ),
        (message("assistant", None, function_call={**NULL, "arguments": json.dumps(NULL["arguments"])}), NULL),
        (said("function_call", json.dumps(NULL)), NULL),
        (message("assistant", None, tool_calls=[{"id": None, "function": NULL}]), PADDED),
    ],
)
def test_nulls_of_a_text_stay_and_padding_goes(turn: Any, call: Any) -> None:
    for turns in ([TOOL_TURNS[0], turn], [TOOL_TURNS[0], turn, TOOL_TURNS[2], turn]):
        example = read({"messages": turns})
        assert example.chat is not None
        calls = example.chat["turns"][str(len(turns) - 1)]["tool_calls"]
        assert [one["function"] for one in calls] == [call]
        assert example.chat["turns"]["1"]["tool_calls"] == calls
        assert json.loads(example.response) == calls  # by this the template knows that the calls are the whole turn


def test_nulls_of_a_schema_stay_where_it_is_a_text() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"a": {"default": None}}}}
    row = {"messages": MESSAGES}
    for tools in (json.dumps([tool]), [json.dumps(tool)]):
        assert (read({**row, "tools": tools}).chat or {})["tools"] == [tool]
    padded = {"type": "function", "function": {"name": "f", "parameters": {"a": {}}}}
    assert (read({**row, "tools": [tool]}).chat or {})["tools"] == [padded]


def test_tokens_keep_ids_and_labels() -> None:
    example, form = read_row({"input_ids": [5, 6, 7, 8], "labels": [-100, 6, -100, 8]})
    assert form == "tokens"
    assert example.tokens is not None
    assert example.tokens[0].tolist() == [5, 6, 7, 8]
    assert example.tokens[1].tolist() == [False, True, False, True]
    assert read({"input_ids": [5, 6]}).sample_id != read({"input_ids": [5, 7]}).sample_id
    padded = read({"input_ids": [5, 6, 0], "attention_mask": [1, 1, 0]})
    assert padded.tokens is not None
    assert padded.tokens[1].tolist() == [False, True]


@pytest.mark.parametrize(
    ("columns", "learned"),
    [
        ({"completion_mask": [0, 0, 1, 1]}, [False, False, True, True]),
        ({"assistant_masks": [0, 1, 0, 1]}, [False, True, False, True]),
        ({"completion_mask": [0, 0, 1, 1], "assistant_masks": [0, 1, 0, 1]}, [False, False, False, True]),
        ({"completion_mask": [0, 0, 1, 1], "labels": [-100, 6, 7, 8]}, [False, True, True, True]),
        ({"completion_mask": [0, 0, 1, 1], "attention_mask": [1, 1, 1, 0]}, [False, False, True]),
    ],
)
def test_masks_of_trl_say_which_tokens_are_learned(columns: dict[str, Any], learned: list[bool]) -> None:
    example = read({"input_ids": [5, 6, 7, 8], **columns})
    assert example.tokens is not None
    assert example.tokens[1].tolist() == learned


@pytest.mark.parametrize(("value", "bounds", "result"), [(3, (1, 5), 0.5), (0.25, (0, 1), 0.25), (-1.0, (-1, 1), 0.0)])
def test_quality_is_mapped_to_the_unit_range(value: float, bounds: Any, result: float) -> None:
    assert read({"text": "a", "quality": value}, quality_range=bounds).quality == result


IMAGE = [{"type": "image_url", "image_url": {"url": "x"}}]
REFUSED: list[tuple[Any, str]] = [
    (7, "int, not an object"),
    ({"input_ids": [5, 6], "completion_mask": [1]}, "masks are not equally long"),
    ({"input_ids": [5, 6], "completion_mask": [0, 0]}, "no token is learned"),
    ({"instruction": "x"}, "has no response"),
    ({"prompt": "x", "reply": "y"}, "rename 'reply' to 'response' if it is one"),
    ({"txet": "x"}, "Did you mean 'text'"),
    ({"question": "x", "context": "y", "answers": "z"}, "Did you mean 'answer'"),
    ({"question": "x"}, "'answer' is missing or empty beside 'question'"),
    ({"prompt": "x", "completion": None}, "'completion' is missing or empty beside 'prompt'"),
    ({"instruction": "x", "outptu": "y"}, "Did you mean 'output'"),
    ({"messages": "Hi"}, "is a text, not a list"),
    ({"messages": []}, "no assistant turn (its roles: none)"),
    ({"messages": [message("user", "Hi")]}, "no assistant turn (its roles: user)"),
    ({"messages": ["Hi"]}, "holds a str"),
    ({"messages": [{"role": "user"}]}, "without role and content"),
    ({"messages": [message("user", IMAGE), message("assistant", "x")]}, "content block of type 'image_url'"),
    ({"messages": MESSAGES, "images": ["a.png"]}, "has 'images'"),
    ({"text": "x", "audio": {"path": "a.wav"}}, "has 'audio'"),
    ({"messages": [*MESSAGES[:3], message("assistant", "4", images=["a"])]}, "has 'images' in a message"),
    (
        {"messages": [message("user", "a"), message("assistant", "b", weight=0)]},
        "no turn of the conversation is learned",
    ),
    ({"messages": [message("user", "a"), message("assistant", "b", weight=0.5)]}, "use 0 or 1"),
    ({"messages": [message("user", "a"), message("assistant", "b", train=1, loss=0)]}, "contradict"),
    ({"messages": [message("user", "a", loss=True), message("assistant", "b")]}, "only assistant turns"),
    ({"messages": [message("user", "a"), message("assistant", " ")]}, "the response is empty"),
    ({"messages": [message("user", "a"), message("assistant", ""), *MESSAGES[2:]]}, "assistant turn 1 is empty"),
    ({"conversations": [said("human", "a"), said("function_call", "add(2)"), said("gpt", "b")]}, "holds no JSON"),
    ({"conversation": [{"user": "a"}]}, "something else than {human, assistant}"),
    ({"query": "a", "response": "b", "history": [["x"]]}, "pairs of user and assistant"),
    ({"prompt": "a", "completion": "b", "tools": "add"}, "is no JSON"),
    ({"chosen": "a", "rejected": "b"}, "add 'prompt'"),
    ({"prompt": "a", "completion": "b", "reasoning_content": "c"}, "Put it into the assistant's message"),
    ({"prompt": "a", "completion": "b", "output": "c"}, "would be lost"),
    ({"messages": MESSAGES, "history": [["a", "b"]]}, "has 'history'"),
    ({"text": "a", "history": [["b", "c"]]}, "has 'history'"),
    ({"messages": MESSAGES, "chosen": "other"}, "has 'chosen'"),
    ({"messages": MESSAGES, "chosen": [*MESSAGES[:3], message("assistant", "5")]}, "has 'chosen'"),
    ({"messages": MESSAGES, "completion": [message("assistant", "5")]}, "has 'completion'"),
    ({"conversations": SHAREGPT, "response": np.asarray(["lost"], dtype=object)}, "has 'response'"),
    ({"system": "a", "messages": [message("system", "b"), *MESSAGES]}, "keep one"),
    ({"text": "a", "quality": 3}, "--quality-range"),
    ({"text": "a\ud800"}, "surrogate"),
    ({"question": "Blue?", "choices": ["red", "blue"], "answer": "B"}, "does not show the choices"),
    ({"question": "Blue?", "options": ["red", "blue"], "answer": "b"}, "does not show the choices"),
    ({"input_ids": [1, 2], "labels": [1]}, "equally long"),
    ({"input_ids": [1, 2], "labels": [-100, -100]}, "no token is learned"),
    ({"input_ids": [1, 2], "labels": [1, 3]}, "differ"),
    ({"input_ids": ["a"]}, "no list of whole numbers"),
]


@pytest.mark.parametrize(("row", "reason"), REFUSED)
def test_refusals_name_field_and_value(row: Any, reason: str) -> None:
    with pytest.raises(RowError, match=re.escape(reason)):
        read(row)


def test_columns_that_repeat_what_is_read_are_no_loss() -> None:
    row = {"messages": MESSAGES, "prompt": MESSAGES[:1], "history": [["Hi", "Hello"]], "chosen": SHAREGPT, "input": []}
    assert read(row) == read({"messages": MESSAGES})
    calls = [
        said("human", "2+2?"),
        said("function_call", '{"name": "add"}'),
        said("observation", "4"),
        said("gpt", "4"),
    ]
    assert read({"chosen": calls}).messages == read({"conversations": calls}).messages


def test_each_format_is_named_in_the_error() -> None:
    with pytest.raises(RowError) as caught:
        read({})
    assert all(form.fields in str(caught.value) for form in FORMATS)


def test_a_range_of_quality_without_width_is_refused() -> None:
    with pytest.raises(DataError, match="the lower one first"):
        RowRules(quality_range=(1, 1))
    with pytest.raises(DataError, match="unknown choice of turns 'first'"):
        RowRules(turns="first")  # type: ignore[arg-type]


def test_rows_alike_without_a_response_are_searched_once(monkeypatch) -> None:
    searched: list[str] = []
    monkeypatch.setattr(formats, "did_you_mean", lambda name, known: searched.append(name) or "")
    formats._lacks_response.cache_clear()
    for _ in range(50):
        with pytest.raises(RowError, match="has no response"):
            read_row({"alpha": 1, "beta": 2, "gamma": 3})
    assert searched == ["alpha", "beta", "gamma"]
    formats._lacks_response.cache_clear()
