"""Rows as people hold them → `Example`: formats known by their fields, turns that are learned, what is refused.

A format is a line of `FORMATS` and a reader: a function from the row to a `Conversation`. Nothing of a row that a
model would see is dropped in silence: it is read, or the row is refused by name.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Int

from longgame.data.benchmarks import BENCHMARKS, BenchmarkRowError
from longgame.data.examples import WEIGHT, Example, is_weight
from longgame.errors import DataError, did_you_mean, unknown

Turns = Literal["all", "last"]


class RowError(Exception):
    """The fault of one row, without its place; whoever reads the file adds file and line."""


@dataclass(frozen=True, slots=True)
class RowRules:
    """How rows become examples.

    Raises:
        DataError: ``turns`` is another word, or the range of quality is none.
    """

    turns: Turns = "all"
    """Assistant turns that are learned: ``all``, or the ``last`` one. A flag of a turn wins over ``all``."""
    quality_range: tuple[float, float] = (0.0, 1.0)
    """Lowest and highest value of the ``quality`` column; it is mapped to [0, 1]."""
    columns: tuple[str, ...] = ()
    """Columns whose numbers a quality source reads as they are; ``quality`` among them is not mapped."""

    def __post_init__(self) -> None:
        if self.turns not in get_args(Turns):
            raise DataError(unknown("choice of turns", str(self.turns), get_args(Turns)))
        low, high = self.quality_range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise DataError(f"the range of quality is {low:g} to {high:g}; give two numbers, the lower one first.")


@dataclass(slots=True)
class Conversation:
    """What a row says, before it is known which turns are learned."""

    turns: list[tuple[str, str]] = field(default_factory=list)
    """(role, content); roles by the names that chat templates use."""
    flags: dict[int, bool] = field(default_factory=dict)
    """Turn → whether a flag of the row says that it is learned."""
    fields: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Turn → what the template gets beside role and content."""
    first_learned: int = 0
    """Assistant turns before this place are context (the prompt of a completion)."""

    def add(self, role: str, content: str) -> None:
        self.turns.append((role, content))


def read_row(row: Any, rules: RowRules = RowRules()) -> tuple[Example, str]:
    """Return the example of a row, and the name of its format (see `FORMATS`).

    Raises:
        RowError: the row has no known format, nothing to learn, or something that would be lost.
    """
    if not isinstance(row, Mapping):
        raise RowError(f"holds a {type(row).__name__}, not an object of named fields")
    for value in row.values():
        if value.__class__ is float and value != value:
            row = {key: value for key, value in row.items() if key in _NUMBERS or not _is_nan(value)}
            break
    columns = _columns(tuple(row))
    for name in columns.refused:
        if _filled(row[name]):
            raise RowError(f"has '{name}', which is {_REFUSED[name]}")
    form = _format_of(row, columns.formats)
    if form.rewrite is not None:
        kept = {name: row[name] for name in (*_BESIDE_A_BENCHMARK, *rules.columns) if name in row}
        try:
            return read_row({**kept, **form.rewrite(row)}, rules)[0], form.name
        except BenchmarkRowError as error:
            raise RowError(str(error)) from error
    optional = _optional(row, rules) if columns.optional or rules.columns else {}
    if form.read is None:
        return _tokenized(row, optional), form.name
    conversation = form.read(row)
    _refuse_unused(row, columns.content, [content for _, content in conversation.turns])
    if columns.system:
        _put_system(row, conversation)
    chat: dict[str, Any] = {}
    if columns.tools and (tools := _tools(row)):
        chat["tools"] = tools
    is_chat = form.name != "text"  # a plain text is learned without a template
    if is_chat and row.get(_TEMPLATE) and (settings := _template_settings(row[_TEMPLATE])):
        chat["template"] = settings
    return _example(row, conversation, chat, optional, rules), form.name


def _format_of(row: Mapping[str, Any], formats: Sequence[Format]) -> Format:
    """The first of these formats whose columns are all filled, with values of its kinds."""
    for form in formats:
        for name in form.needs:
            if row[name] is None:
                break
        else:
            if form.fits is None or form.fits(row):
                return form
    raise _no_format(row)


@dataclass(frozen=True, slots=True)
class _Columns:
    """What the columns of a row allow, whatever stands in them; the same for most rows of a file."""

    formats: tuple[Format, ...]
    refused: tuple[str, ...]
    content: tuple[str, ...]
    system: bool
    tools: bool
    optional: bool


@lru_cache(maxsize=1024)
def _columns(names: tuple[str, ...]) -> _Columns:
    present = {*names}
    return _Columns(
        formats=tuple(form for form in FORMATS if present.issuperset(form.needs)),
        refused=tuple(name for name in _REFUSED if name in present),
        content=tuple(name for name in (*_CONTENT, *_TALK) if name in present),
        system=not present.isdisjoint(_SYSTEM),
        tools=not present.isdisjoint(_TOOLS),
        optional=not present.isdisjoint(_OPTIONAL),
    )


def _is_nan(value: Any) -> bool:
    """Whether a cell is NaN, which tables write for a missing text."""
    return isinstance(value, float) and math.isnan(value)


def _filled(value: Any) -> bool:
    """Whether a cell holds something; of an array, its length decides."""
    return len(value) > 0 if hasattr(value, "__len__") else bool(value)


_MEDIA = "is not text; longgame selects text only. Remove the field, or select with a tool for it"
_REFUSED = {
    **dict.fromkeys(("images", "image", "audio", "audios", "video", "videos"), _MEDIA.removeprefix("is ")),
    **dict.fromkeys(
        ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking"),
        "read in a message only and would be lost here. Put it into the assistant's message",
    ),
}
"""Columns of a row that a model would see and that are not read."""


# Formats


def _messages(row: Mapping[str, Any]) -> Conversation:
    value = row["messages"]
    if isinstance(value, str):
        raise RowError("'messages' is a text, not a list of messages")
    return _append(Conversation(), value, "messages")


def _sharegpt(row: Mapping[str, Any]) -> Conversation:
    return _append(Conversation(), row["conversations"], "conversations")


def _pairs(row: Mapping[str, Any]) -> Conversation:
    """ms-swift's ``conversation``: a list of {human, assistant}."""
    conversation = Conversation()
    for pair in _list(row["conversation"], "conversation"):
        if isinstance(pair, Mapping) and ("role" in pair or "from" in pair):
            return _append(Conversation(), row["conversation"], "conversation")
        if not isinstance(pair, Mapping) or not {"human", "assistant"} <= pair.keys():
            raise RowError("'conversation' holds something else than {human, assistant}")
        conversation.add("user", plain_text(pair["human"], "human"))
        conversation.add("assistant", plain_text(pair["assistant"], "assistant"))
    return conversation


def _query(row: Mapping[str, Any]) -> Conversation:
    conversation = _history(row)
    conversation.add("user", plain_text(row["query"], "query"))
    conversation.add("assistant", plain_text(row["response"], "response"))
    return conversation


def _completion(row: Mapping[str, Any]) -> Conversation:
    """Prompt and completion (or response): texts or messages; what the prompt holds is context."""
    key = "completion" if row.get("completion") is not None else "response"
    prompt, answer = row.get("prompt"), row[key]
    if isinstance(prompt, str) and isinstance(answer, str) and row.get("history") is None:  # most rows
        return Conversation([("user", plain_text(prompt, "prompt")), ("assistant", plain_text(answer, key))])
    conversation = _history(row)
    if prompt is not None:
        _append(conversation, prompt, "prompt")
        if not isinstance(prompt, str):
            conversation.first_learned = len(conversation.turns)
    else:
        conversation.add("user", _request(row))
    if isinstance(answer, str):
        conversation.add("assistant", plain_text(answer, key))
    else:
        _append(conversation, answer, key)
    return conversation


def _alpaca(row: Mapping[str, Any]) -> Conversation:
    conversation = _history(row)
    conversation.add("user", _request(row))
    conversation.add("assistant", plain_text(row["output"], "output"))
    return conversation


def _question(row: Mapping[str, Any]) -> Conversation:
    _refuse_unseen_choices(row)
    conversation = _history(row)
    conversation.add("user", _request(row))
    conversation.add("assistant", plain_text(row["answer"], "answer"))
    return conversation


def _refuse_unseen_choices(row: Mapping[str, Any]) -> None:
    """Raise RowError where the answer is the letter of a choice that the question does not show."""
    choices, answer = row.get("choices") or row.get("options"), row["answer"]
    if not isinstance(choices, list | tuple) or not isinstance(answer, str):
        return
    letters = [chr(65 + place) for place in range(len(choices))]
    request = _request(row)
    if answer.strip().upper() in letters and not all(str(choice) in request for choice in choices):
        raise RowError(
            f"the answer is the letter {answer!r}, and the question does not show the choices; write them into it, or "
            "answer in words"
        )


def _chosen(row: Mapping[str, Any]) -> Conversation:
    """The preferred answer; what it shares with the rejected one is its prompt.

    Where it is a whole conversation, the turns of ``history`` and ``prompt`` may stand in it, too; they are read once.
    """
    conversation, prompt, chosen = _history(row), row.get("prompt"), row["chosen"]
    asked = [] if prompt is None else _append(Conversation(), prompt, "prompt").turns
    if isinstance(chosen, str):
        if prompt is None:
            raise RowError("'chosen' is a text without 'prompt', so where the answer begins is unknown; add 'prompt'")
        _append(conversation, prompt, "prompt")
        conversation.first_learned = len(conversation.turns)
        conversation.add("assistant", plain_text(chosen, "chosen"))
        return conversation
    answer = _append(Conversation(), chosen, "chosen").turns
    start = _behind(answer, [*conversation.turns, *asked])
    if start:
        conversation = Conversation()
    else:
        start = _behind(answer, asked)
        if asked and not start:
            _append(conversation, prompt, "prompt")
    before = len(conversation.turns)
    _append(conversation, chosen, "chosen")
    other = row.get("rejected")
    rejected = [] if other is None or isinstance(other, str) else _append(Conversation(), other, "rejected").turns
    shared = 0
    for mine, theirs in zip(answer, rejected, strict=False):
        if mine != theirs:
            break
        shared += 1
    conversation.first_learned = before + max(start, shared if shared < len(answer) else 0)
    return conversation


def _behind(conversation: list[tuple[str, str]], turns: list[tuple[str, str]]) -> int:
    """The place behind these turns in a conversation that does not begin with an answer; 0 where it lacks them."""
    whole, part = ([(role, text.strip()) for role, text in some] for some in (conversation, turns))
    if not part or not whole or whole[0][0] == "assistant":
        return 0
    ends = range(len(part), len(whole) + 1)
    return next((end for end in ends if whole[end - len(part) : end] == part), 0)


def _plain_text(row: Mapping[str, Any]) -> Conversation:
    return Conversation([("user", ""), ("assistant", plain_text(row["text"], "text"))])


@dataclass(frozen=True, slots=True)
class Format:
    """One way in which people write rows."""

    name: str
    fields: str
    """As it is written in the docs and in errors."""
    needs: tuple[str, ...]
    """Columns that must be filled."""
    read: Callable[[Mapping[str, Any]], Conversation] | None = None
    """None: the row is tokenized already, or rewritten."""
    rewrite: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    """From a benchmark's row to one of another format."""
    fits: Callable[[Mapping[str, Any]], bool] | None = None
    """Whether the values are of its kinds; None: its columns decide."""


FORMATS = (
    *(Format(entry.name, entry.fields, entry.needs, rewrite=entry.rewrite, fits=entry.fits) for entry in BENCHMARKS),
    Format("messages", "messages (role, content, tool calls, tools)", ("messages",), read=_messages),
    Format("sharegpt", "conversations (from, value)", ("conversations",), read=_sharegpt),
    Format("ms-swift", "conversation (human, assistant)", ("conversation",), read=_pairs),
    Format("query-response", "query + response (+ system, history)", ("query", "response"), read=_query),
    Format("prompt-completion", "prompt + completion (texts or messages)", ("completion",), read=_completion),
    Format("prompt-response", "prompt, instruction or question + response", ("response",), read=_completion),
    Format("alpaca", "instruction (+ input or context, system, history) + output", ("output",), read=_alpaca),
    Format("preference", "chosen + rejected (+ prompt): chosen is learned", ("chosen",), read=_chosen),
    Format("text", "text", ("text",), read=_plain_text),
    Format("question-answer", "question (+ context) + answer", ("question", "answer"), read=_question),
    Format("tokens", "input_ids (+ labels, or completion_mask and assistant_masks)", ("input_ids",)),
)
"""Formats in the order in which they are tried."""


_PARTNERS = {"prompt": "completion", "instruction": "output", "question": "answer", "query": "response"}
"""Column of a request → column of its response."""


def _no_format(row: Mapping[str, Any]) -> RowError:
    return RowError(_lacks_response(tuple(row)))


_RESPONSES = ("reply", "assistant", "bot", "target", "label", "solution", "generation", "generated", "model_output")
"""Other names that a response may stand under."""


@lru_cache(maxsize=256)
def _lacks_response(columns: tuple[str, ...]) -> str:
    """What is missing in a row of these columns; kept, as all rows of a file may be alike and the search is slow."""
    names = ", ".join(map(str, columns)) or "nothing"
    known = [name for form in FORMATS for name in form.needs]
    others = [str(name) for name in columns if name not in READ_COLUMNS]
    near = (text for name in others if (text := did_you_mean(name, known)))
    lacking = (f" '{_PARTNERS[name]}' is missing or empty beside '{name}';" for name in columns if name in _PARTNERS)
    renamed = (f" rename '{name}' to 'response' if it is one;" for name in others if name.lower() in _RESPONSES)
    hint = next(renamed, "") or next(near, "") or next(lacking, "")
    accepted = "; ".join(form.fields for form in FORMATS)
    return f"has no response (fields: {names};{hint} accepted: {accepted})"


# Turns

_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
_RESULTS = ("observation", "function_response", "tool_response")
_CALLS = "function_call"
_FLAGS = ("train", "loss", "weight")
_REASONING = ("reasoning_content", "thinking", "reasoning")
_PASSED_ON = ("name", "tool_call_id", *_REASONING)
"""Fields of a message that go to the chat template as they are."""


def _append(conversation: Conversation, value: Any, name: str) -> Conversation:
    """Add a text as the user's turn, or a list of messages (role/content or from/value)."""
    if isinstance(value, str):
        conversation.add("user", plain_text(value, name))
        return conversation
    for message in _list(value, name):
        if not isinstance(message, Mapping):
            raise RowError(f"'{name}' holds a {type(message).__name__}, not a message with role and content")
        _append_message(conversation, {key: item for key, item in message.items() if item is not None}, name)
    return conversation


def _append_message(conversation: Conversation, message: Mapping[str, Any], name: str) -> None:
    role_key, content_key = ("from", "value") if "from" in message and "role" not in message else ("role", "content")
    has_content = content_key in message or bool(message.get("tool_calls") or message.get(_CALLS))
    if role_key not in message or not has_content:
        raise RowError(f"'{name}' has a message without role and content")
    role = plain_text(message[role_key], "role").strip()
    if not role:
        raise RowError(f"'{name}' has a message whose role is blank")
    for key in message.keys() & _REFUSED.keys() - {"tool_calls", _CALLS, *_REASONING}:
        if _filled(message[key]):
            raise RowError(f"has '{key}' in a message of '{name}', which is {_REFUSED[key]}")
    content = _content(message.get(content_key), name)
    fields = {key: _json(message[key], key) for key in _PASSED_ON if message.get(key)}
    calls: list[dict[str, Any]] = []
    if role == _CALLS:
        role, calls, content = "assistant", _calls_of(content), ""
    elif role in _RESULTS:
        role = "tool"
    else:
        role = _ROLES.get(role, role)
    if message.get("tool_calls"):
        calls = [_json(call, "tool_calls") for call in _list(message["tool_calls"], "tool_calls")]
    elif message.get(_CALLS):
        calls = [{"type": "function", "function": _json(message[_CALLS], _CALLS)}]
    if calls:
        fields["tool_calls"] = [_parsed_call(call) for call in calls]
    place = len(conversation.turns)
    flag = _flag(message, role, name)
    if flag is not None:
        conversation.flags[place] = flag
    if fields:
        conversation.fields[place] = fields
    conversation.add(role, content)


def _content(value: Any, name: str) -> str:
    """The text of a message: a string, none, or content blocks of text."""
    if value is None:
        return ""
    if isinstance(value, str):
        return plain_text(value, "content")
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        raise RowError(f"'content' is a {type(value).__name__}, not a text")
    texts = []
    for block in value:
        kind = block.get("type", "text") if isinstance(block, Mapping) else type(block).__name__
        text = block.get("text") if isinstance(block, Mapping) else None
        if kind != "text" or text is None:
            raise RowError(f"'{name}' has a content block of type '{kind}', which {_MEDIA}")
        texts.append(plain_text(text, "text"))
    return "".join(texts)


def _calls_of(content: str) -> list[dict[str, Any]]:
    """The calls that ShareGPT writes as JSON into a turn of role function_call."""
    try:
        value = json.loads(content)
    except ValueError as error:
        raise RowError(f"a turn 'function_call' holds no JSON ({error})") from error
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(call, dict) and "name" in call for call in calls):
        raise RowError("a turn 'function_call' holds no object with a name and arguments")
    return [{"type": "function", "function": call} for call in calls]


def _parsed_call(call: Any) -> dict[str, Any]:
    """The call with its arguments as an object, as chat templates expect them; OpenAI writes them as a text."""
    if not isinstance(call, dict):
        raise RowError("'tool_calls' holds something else than calls of a function")
    holder = call["function"] if isinstance(call.get("function"), dict) else call
    if not isinstance(holder.get("name"), str):
        raise RowError("a tool call has no name")
    arguments = holder.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except ValueError:
            return call  # the template gets the text as it is
        changed = {**holder, "arguments": arguments}
        return {**call, "function": changed} if holder is not call else changed
    return call


def _flag(message: Mapping[str, Any], role: str, name: str) -> bool | None:
    """Whether a flag of the turn says that it is learned; None: it has none."""
    values = {key: message[key] for key in _FLAGS if message.get(key) is not None}
    for key, value in values.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise RowError(f"'{key}' of a message of '{name}' is {value!r}; use 0 or 1 (parts of a loss are not taken)")
    learned = {bool(value) for value in values.values()}
    if len(learned) > 1:
        raise RowError(f"the flags {', '.join(values)} of a message of '{name}' contradict each other")
    if not learned:
        return None
    if role != "assistant" and True in learned:
        if "weight" in values and len(values) == 1:
            return None  # OpenAI's weight of 1 on another role is its default
        raise RowError(f"a turn of role '{role}' is to be learned; only assistant turns are")
    return learned.pop()


def _history(row: Mapping[str, Any]) -> Conversation:
    """The row's history of (user, assistant) pairs."""
    conversation, history = Conversation(), row.get("history")
    if history is None:
        return conversation
    for pair in _list(history, "history", "a list of pairs of user and assistant"):
        pair = pair.tolist() if hasattr(pair, "tolist") else pair
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowError("'history' holds something else than pairs of user and assistant")
        conversation.add("user", plain_text(pair[0], "history"))
        conversation.add("assistant", plain_text(pair[1], "history"))
    return conversation


def _request(row: Mapping[str, Any]) -> str:
    """Instruction or question, with the input or context below it; empty where a row has neither."""
    ask = next((plain_text(row[key], key) for key in ("instruction", "question") if row.get(key)), "")
    extra = next((plain_text(row[key], key) for key in ("input", "context") if row.get(key)), "")
    return f"{ask}\n\n{extra}" if ask and extra else ask or extra


_CONTENT = ("prompt", "instruction", "question", "input", "context", "query", "response", "completion", "output")
_TALK = ("history", "chosen")
"""Columns of turns that only some formats read."""
_SYSTEM = ("system", "system_prompt", "system_message")
_TOOLS = ("tools", "functions")
_TEMPLATE = "chat_template_kwargs"
"""What the chat template gets of a row in TRL, such as enable_thinking."""
_OF_THE_TRAINER = (
    *("messages", "conversation", "conversations", "tools", "documents", "chat_template", "add_generation_prompt"),
    *("continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
    *("return_assistant_tokens_mask", "tokenizer_kwargs"),
)
"""Arguments of a call of the chat template that are no settings of a row."""
_NUMBERS = ("quality", WEIGHT)
"""Columns in which NaN is no empty cell but a wrong number."""
_OPTIONAL = ("skill", "source", "difficulty", "choices", "answer", "quality", "noisy", "verifier", WEIGHT)
_BESIDE_A_BENCHMARK = (*_SYSTEM, *_TOOLS, *(name for name in _OPTIONAL if name not in ("choices", "answer")))
LOSS_MASKS = ("completion_mask", "assistant_masks")
"""Columns of TRL; without labels, a token has a loss where all of them that are there are 1."""


READ_COLUMNS = frozenset({name for form in FORMATS for name in form.needs}).union(
    _CONTENT, _TALK, _SYSTEM, _TOOLS, _OPTIONAL, ("rejected", "labels", "attention_mask", _TEMPLATE), LOSS_MASKS
)
"""Columns that say something to longgame; all others are the user's own."""


def _refuse_unused(row: Mapping[str, Any], names: Sequence[str], used: Sequence[str]) -> None:
    """Raise RowError for a text in these columns that is not read, unless what is read contains it."""
    for name in names:
        value = row[name]
        if value is None or (isinstance(value, str) and value in used):
            continue
        for text in _texts(value):
            if text not in used and text.strip() and not any(text.strip() in part for part in used):
                raise RowError(
                    f"has '{name}' beside the columns that are read, and it would be lost; remove or join it"
                )


def _texts(value: Any) -> Iterator[str]:
    """The texts in a text, in messages or in another list or object; not those of calls, which are read as JSON."""
    parts = [value]
    while parts:
        part = parts.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, Mapping):
            if _CALLS not in (part.get("from"), part.get("role")):
                content = [part[key] for key in ("content", "value", "text") if key in part]
                parts.extend(content or part.values())
        elif isinstance(part, list | tuple):
            parts.extend(part)
        elif hasattr(part, "tolist"):
            parts.append(part.tolist())


def _put_system(row: Mapping[str, Any], conversation: Conversation) -> None:
    """Put the row's own system prompt before its turns."""
    systems = dict.fromkeys(plain_text(row[key], key) for key in _SYSTEM if row.get(key))
    if len(systems) > 1:
        raise RowError("has several system prompts; keep one")
    system = next(iter(systems), "")
    if not system.strip():
        return
    if any(role == "system" for role, _ in conversation.turns):
        raise RowError("has a system prompt of its own and one among its messages; keep one")
    conversation.turns.insert(0, ("system", system))
    conversation.flags = {place + 1: value for place, value in conversation.flags.items()}
    conversation.fields = {place + 1: value for place, value in conversation.fields.items()}
    conversation.first_learned += bool(conversation.first_learned)


def _tools(row: Mapping[str, Any]) -> list[Any]:
    """The row's tools, as a list of JSON schemas."""
    tools = next((row[key] for key in _TOOLS if _filled(row.get(key) or ())), None)
    if tools is None:
        return []
    if isinstance(tools, str):
        tools = _list(_parsed_tool(tools), "tools")
    else:
        tools = [_json(tool, "tools") for tool in _list(tools, "tools")]
    tools = [_parsed_tool(tool) if isinstance(tool, str) else tool for tool in tools]
    if not all(isinstance(tool, dict) for tool in tools):
        raise RowError("'tools' holds something else than objects that describe a function")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]


def _parsed_tool(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise RowError(f"'tools' holds a text that is no JSON ({error})") from error


def _json(value: Any, name: str) -> Any:
    """The value as plain JSON, without the empty fields that tables add to make objects alike.

    What a text of JSON says is no object of a table, so its nulls stay: parse it after this.
    """
    try:
        return json.loads(json.dumps(_without_none(value)))
    except (TypeError, ValueError) as error:
        raise RowError(f"'{name}' cannot be written as JSON ({error})") from error


def _without_none(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value


# From a conversation to an example


def _example(
    row: Mapping[str, Any],
    conversation: Conversation,
    chat: dict[str, Any],
    optional: dict[str, Any],
    rules: RowRules,
) -> Example:
    turns = conversation.turns
    if len(turns) == 2 and turns[0][0] == "user" and turns[1][0] == "assistant" and _is_plain(conversation, chat):
        response = turns[1][1]
        if not _has_words(response):
            raise RowError("the response is empty")
        if not optional:
            return Example.make(turns[0][1], response)
        return Example.make(turns[0][1], response, **_with_gold(row, response, optional))
    places = [
        place
        for place, (role, _) in enumerate(turns)
        if role == "assistant" and place >= conversation.first_learned and conversation.flags.get(place, True)
    ]
    if not places:
        if any(role == "assistant" for role, _ in turns):
            raise RowError("no turn of the conversation is learned; its flags switch all of them off")
        roles = ", ".join(dict.fromkeys(role for role, _ in turns)) or "none"
        raise RowError(f"the conversation has no assistant turn (its roles: {roles})")
    last = places[-1]
    before, fields = turns[:last], {place: value for place, value in conversation.fields.items() if place <= last}
    response = turns[last][1]
    if not _has_words(response):
        if not fields.get(last, {}).get("tool_calls"):
            raise RowError("the response is empty")
        response = json.dumps(fields[last]["tool_calls"], ensure_ascii=False, sort_keys=True)
    learned = tuple(places[:-1]) if rules.turns == "all" else ()
    for place in learned:
        if not _has_words(turns[place][1]) and not fields.get(place, {}).get("tool_calls"):
            raise RowError(
                f"assistant turn {places.index(place) + 1} is empty; remove it, or switch it off (weight: 0)"
            )
    optional = _with_gold(row, response, optional)
    if fields:
        chat["turns"] = {str(place): value for place, value in fields.items()}
    if chat:
        optional["chat"] = chat
    if not chat and all(not content for _, content in before):
        return Example.make("", response, **optional)
    if not chat and len(before) == 1 and before[0][0] == "user":
        return Example.make(before[0][1], response, **optional)
    request = next((content for role, content in reversed(before) if role == "user"), "")
    return Example.make(request, response, messages=tuple(before), learned=learned, **optional)


def _is_plain(conversation: Conversation, chat: Mapping[str, Any]) -> bool:
    return not (chat or conversation.flags or conversation.fields or conversation.first_learned)


def _with_gold(row: Mapping[str, Any], response: str, optional: dict[str, Any]) -> dict[str, Any]:
    """The optional fields; an answer that is the whole response gives the gold answer (after ``####``)."""
    if "question" not in row or optional.get("answer") != response:
        return optional
    answer = response.rpartition("####")[2].strip()
    return optional | {"answer": answer if answer and "\n" not in answer else None}


def _has_words(text: str) -> bool:
    if text[:1].isalnum():
        return True
    stripped = text.strip()
    return bool(stripped) and (stripped[0].isprintable() or any(map(_is_word, stripped)))


def _is_word(character: str) -> bool:
    return character.isprintable() and not character.isspace()


def _tokenized(row: Mapping[str, Any], optional: dict[str, Any]) -> Example:
    """The example of a row that came as token ids, with labels where it has them."""
    try:
        ids = np.asarray(row["input_ids"], dtype=np.int64)
        labels = labels_of_masks(row, ids) if row.get("labels") is None else np.asarray(row["labels"], dtype=np.int64)
        mask = np.ones(ids.shape) if row.get("attention_mask") is None else np.asarray(row["attention_mask"])
    except (TypeError, ValueError, OverflowError) as error:
        raise RowError(
            f"'input_ids', 'labels', 'attention_mask' or a mask of TRL holds no list of whole numbers ({error})"
        ) from error
    if ids.ndim != 1 or labels.shape != ids.shape or mask.shape != ids.shape:
        raise RowError("'input_ids', 'labels' and masks are not equally long lists of numbers")
    ids, labels = ids[mask != 0], labels[mask != 0]
    learned = labels != -100
    if (ids < 0).any() or (labels[learned] != ids[learned]).any():
        raise RowError("'labels' differ from 'input_ids' where they are not -100; only plain causal labels are read")
    learned[:1] = False
    if not learned.any():
        raise RowError("no token is learned (all labels are -100, or all masks 0)")
    text = f"{ids.tobytes().hex()} {np.packbits(learned).tobytes().hex()} {len(ids)}"
    return dataclasses.replace(Example.make("", text, **optional), response="", tokens=(ids, learned))


def labels_of_masks(row: Mapping[str, Any], ids: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The labels that TRL's collator makes of token ids without labels: the ids, but where one of its masks is 0.

    Empty where a mask is not as long as the ids.
    """
    masks = [np.asarray(row[name], dtype=bool) for name in LOSS_MASKS if row.get(name) is not None]
    if any(mask.shape != ids.shape for mask in masks):
        return ids[:0]
    return np.where(np.logical_and.reduce(masks), ids, -100) if masks else ids


def _template_settings(value: Any) -> dict[str, Any]:
    """What the row gives to the chat template, without empty fields."""
    settings = _json(value, _TEMPLATE)
    if not isinstance(settings, Mapping):
        raise RowError(f"'{_TEMPLATE}' is a {type(settings).__name__}, not an object of names and values")
    for name in settings:
        if name in _OF_THE_TRAINER or name.endswith("_token"):
            raise RowError(f"'{_TEMPLATE}' holds '{name}', which is no setting of a template; remove it")
    return dict(sorted(settings.items()))


# Fields beside the text


def _list(value: Any, name: str, what: str = "a text or a list of messages") -> list[Any]:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        raise RowError(f"'{name}' is a {type(value).__name__}, not {what}")
    return list(value)


def plain_text(value: Any, field: str) -> str:
    """Return ``value``, a text that UTF-8 can write; else raise RowError, which names ``field``."""
    if not isinstance(value, str):
        raise RowError(f"'{field}' is a {type(value).__name__}, not a text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise RowError(
                f"'{field}' holds half of a surrogate pair ({value[error.start]!r}), which is no character; remove it"
            ) from error
    return value


def _optional(row: Mapping[str, Any], rules: RowRules) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key in ("skill", "source", "difficulty"):
        if row.get(key) is not None:
            fields[key] = plain_text(row[key], key) or None
    choices = row.get("choices")
    if choices is not None:
        if not isinstance(choices, list | tuple) or not all(isinstance(item, str) for item in choices):
            raise RowError("'choices' is not a list of texts")
        if not all(item.strip() for item in choices):
            raise RowError("'choices' holds an empty text")
        fields["choices"] = tuple(plain_text(item, "choices") for item in choices) or None
    if row.get("answer") is not None:
        fields["answer"] = _answer(row["answer"], fields.get("choices"))
    numbers = {name: _column_number(row[name], name) for name in rules.columns if row.get(name) not in (None, "")}
    if numbers:
        fields["columns"] = {name: value for name, value in numbers.items() if not math.isnan(value)} or None
    quality = row.get("quality")
    if quality is not None and "quality" not in rules.columns:
        fields["quality"] = _quality(quality, rules.quality_range)
    weight = row.get(WEIGHT)
    if weight is not None:
        fields["weight"] = _weight(weight)
    noisy = row.get("noisy")
    if noisy is not None:
        if not isinstance(noisy, bool):
            raise RowError(f"'noisy' is {noisy!r}, not true or false")
        fields["noisy"] = noisy
    verifier = row.get("verifier")
    if verifier is not None:
        if not isinstance(verifier, Mapping):
            raise RowError("'verifier' is not an object")
        fields["verifier"] = verifier
    return fields


def _column_number(value: Any, name: str) -> float:
    """The number in a cell, which a CSV file has as text; NaN stands for none."""
    try:
        if not isinstance(value, bool | list | dict):
            number = float(value)
            if not math.isinf(number):
                return number
    except (TypeError, ValueError):
        pass
    raise RowError(f"'{name}' is {value!r}, not a number, and quality is read from it")


def _quality(value: Any, bounds: tuple[float, float]) -> float:
    low, high = bounds
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or math.isnan(value) or not low <= value <= high:
        hint = (
            ""
            if bounds != (0.0, 1.0)
            else "; give its scale with --quality-range LOW,HIGH (data.quality_range in a recipe)"
        )
        raise RowError(f"'quality' is {value!r}, not a number from {low:g} to {high:g}{hint}")
    return (float(value) - low) / (high - low)


def _weight(value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not is_weight(value):
        raise RowError(f"'{WEIGHT}' is {value!r}, not a finite number above 0; remove the column for equal weights")
    return float(value)


def _answer(value: Any, choices: tuple[str, ...] | None) -> str | tuple[str, ...] | None:
    """The gold answer of a row: a text, several, or None where it is empty; a whole number may number the choices."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    answers = []
    for item in values:
        if item is None or item == "" or _is_nan(item):
            continue
        if not isinstance(item, str | int | float) or (isinstance(item, float) and math.isinf(item)):
            raise RowError("'answer' is neither a text, a number nor a list of them")
        answers.append(plain_text(_choice(item, choices) if choices else str(item), "answer"))
    if choices and answers and all(answer.strip().isdigit() and answer not in choices for answer in answers):
        raise RowError(
            f"'answer' is the text {answers[0]!r}, none of the choices; write a letter, a choice, or a number (0 is "
            "the first)"
        )
    return None if not answers else answers[0] if len(answers) == 1 else tuple(answers)


def _choice(item: str | float, choices: tuple[str, ...]) -> str:
    """The answer of an item with choices; a whole number that is none of their texts is the place of one."""
    whole = not isinstance(item, str | bool) and float(item).is_integer()
    text = str(int(item)) if whole else str(item)
    if not whole or text in choices:
        return text
    if not 0 <= int(item) < len(choices):
        raise RowError(f"'answer' is {text}, the number of none of {len(choices)} choices (0 is the first)")
    return choices[int(item)]
