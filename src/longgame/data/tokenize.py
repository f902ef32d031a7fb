"""From text to tokens: the chat template applied, the border between prompt and response exact."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import jinja2
import numpy as np
from jaxtyping import Bool, Int
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from longgame.data.examples import Example, Pool
from longgame.errors import DataError, LonggameError, ModelError
from longgame.limits import TEMPLATE_SECONDS, time_limit

TEMPLATE_DATE = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
"""What templates that write today's date get instead: the same example has the same tokens on every day."""
_DATE_CODES = re.findall(r"%\w", "%d %m %Y %y %B %b %A %a %H %M %S %F %T %D %I %p %j %Z %z")
_DATE_MACRO = (
    "{% macro strftime_now(format) %}{{ format|replace('%-d', '1')|replace('%-m', '1')"
    + "".join(f"|replace('{code}', '{TEMPLATE_DATE.strftime(code)}')" for code in _DATE_CODES)
    + " }}{% endmacro +%}"
)
"""Put before a template, it replaces transformers' function of this name, however the template calls it."""
_THOUGHT = re.compile(r"</(?:think|thinking|reasoning)>")
_TEMPLATE_FAULTS = (
    *(jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError),
)
"""What a template raises on a conversation that it was not written for."""
_MARKER = "\ue000\ue001\ue002"
"""Stands for the response while a template is rendered; of Unicode's private area. Longer if a text has it."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example as tokens; the model reads ``prompt_ids + response_ids`` and learns ``response_ids``."""

    prompt_ids: Int[np.ndarray, " prompt"]
    """Tokens on which no loss is taken; ≥ 1, so that every response token has a predecessor."""
    response_ids: Int[np.ndarray, " response"]
    """Tokens on which the loss is taken: the content, then the end of the turn."""
    end_tokens: int
    """How many of them, at the end, are the template's end of the turn; the others are the content. Both are ≥ 1."""
    earlier: tuple[tuple[int, int], ...] = ()
    """Spans (start, stop) of ``prompt_ids`` that are learned, too: earlier turns of the assistant."""

    @property
    def loss_mask(self) -> Bool[np.ndarray, " length"] | None:
        """On which tokens the loss is taken; None: on the response alone."""
        if not self.earlier:
            return None
        mask = np.zeros(len(self), dtype=bool)
        mask[len(self.prompt_ids) :] = True
        for start, stop in self.earlier:
            mask[start:stop] = True
        return mask

    @property
    def ids(self) -> Int[np.ndarray, " length"]:
        return np.concatenate([self.prompt_ids, self.response_ids])

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


def encode(example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
    """Tokenize one example (see `encode_all` for the rules).

    Raises:
        DataError: it is longer than ``max_length`` tokens. ModelError: as `encode_all`.
    """
    encoded = encode_all([example], tokenizer)[0]
    if len(encoded) > max_length:
        raise _too_long([example], [len(encoded)], max_length)
    return encoded


def build_pool(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    too_long: Literal["error", "drop"] = "error",
) -> Pool:
    """Tokenize candidates; ids must be unique (see `with_unique_ids`).

    Raises:
        DataError: an example is too long and ``too_long`` is ``error``, all are too long, or an id is repeated.
        ModelError: as `encode_all`.
    """
    encoded = encode_all(examples, tokenizer)
    fitting = [row for row, item in enumerate(encoded) if len(item) <= max_length]
    if len(fitting) < len(encoded) and (too_long == "error" or not fitting):
        raise _too_long(examples, [len(item) for item in encoded], max_length)
    return pool_of_encoded([examples[row] for row in fitting], [encoded[row] for row in fitting])


def pool_of_encoded(examples: Sequence[Example], encoded: Sequence[Encoded]) -> Pool:
    """Return tokenized examples as a pool; ids must be unique."""
    masks = tuple(item.loss_mask for item in encoded)
    learned = [
        len(item.response_ids) if mask is None else int(mask.sum()) for item, mask in zip(encoded, masks, strict=True)
    ]
    lengths = np.asarray([len(item) for item in encoded], dtype=np.int64)
    responses = np.asarray(learned, dtype=np.int64)
    return Pool(
        tuple(examples),
        tuple(item.ids for item in encoded),
        lengths - responses,
        responses,
        loss_masks=None if all(mask is None for mask in masks) else masks,
    )


def truncated(encoded: Encoded, max_length: int) -> Encoded | None:
    """Return the first ``max_length`` tokens, as TRL cuts what is longer; None if none of them is learned."""
    if len(encoded) <= max_length:
        return encoded
    ids = encoded.ids[:max_length]
    mask = encoded.loss_mask
    if mask is None:
        mask = np.arange(len(encoded)) >= len(encoded.prompt_ids)
    places = np.flatnonzero(mask[:max_length])
    if not len(places[places > 0]):
        return None
    edges = np.flatnonzero(np.diff(places) > 1)
    start, stop = int(places[edges[-1] + 1] if len(edges) else places[0]), int(places[-1]) + 1
    earlier = tuple(span for span in encoded.earlier if span[1] <= start)
    return Encoded(ids[:start], ids[start:stop], 0, earlier)


def fits_within(example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int) -> bool:
    """Whether prompt + response are at most ``max_length`` tokens.

    Every option of a multiple-choice item has to fit too, because it is scored in place of the response.
    """
    options = [f"{chr(65 + place)}. {text}" for place, text in enumerate(example.choices or ()) if text.strip()]
    versions = [example, *(dataclasses.replace(example, response=option) for option in options)]
    return all(len(item) <= max_length for item in encode_all(versions, tokenizer))


def encode_all(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    """Tokenize examples of any length in a few calls of the tokenizer.

    The chat template renders a conversation with its response, and with a marker in the response's place. What stands
    before the marker is the prompt: also what the template puts at the head of an answer (an empty think block, a
    channel). What stands behind it is the end of the turn. White space at its end belongs to the next turn and is cut;
    a template without an end of turn gets the tokenizer's EOS. A response that ends with EOS has it once. A template
    that writes today's date gets `TEMPLATE_DATE`. The prompt is tokenized alone, as in generation. If the
    tokens of the full text begin with it, the others are the response; otherwise a token would straddle the border,
    and the response is tokenized alone. So is the end of the turn.

    Some templates write a finished turn otherwise than it is generated: they cut its thinking out (DeepSeek, Nemotron),
    or leave the system prompt out (Mistral). Then the generation prompt is the prompt, and the response follows it as
    it was given.

    An example without prompt is plain text: its tokens and EOS. Nothing predicts the first token (BOS, if the
    tokenizer adds one), so it counts as prompt and all others as response.

    Where several turns are learned (`Example.learned`), the conversation is rendered with markers in place of the
    earlier ones, too. What stands there must be the turn as it was given; the end of the turn is learned with it.
    Where a template writes a turn otherwise, the spans are those that it marks with ``{% generation %}``.

    An example that came as tokens keeps them.

    Raises:
        ModelError: no chat template or EOS, or the template changes the response. DataError: the template refuses an
            example (its roles, say), leaves one of its turns out, or changes an earlier turn that is to be learned; or
            a tokenized one has tokens that the tokenizer has not.
    """
    result = encode_each(examples, tokenizer)
    for item in result:
        if isinstance(item, LonggameError):
            raise item
    return cast(list[Encoded], result)


def encode_each(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase
) -> list[Encoded | DataError | ModelError]:
    """As `encode_all`, with the error of an example in its place.

    Raises:
        ModelError: the tokenizer cannot be used at all (no chat template or EOS).
    """
    result: list[Encoded | DataError | ModelError | None] = [None] * len(examples)
    texts = [row for row, example in enumerate(examples) if _is_text(example)]
    chats = [row for row, example in enumerate(examples) if not _is_text(example) and example.tokens is None]
    examples = [_without_end(example, tokenizer) for example in examples]
    for row, example in enumerate(examples):
        if example.tokens is not None:
            result[row] = _of_tokens(example, len(tokenizer))
    if texts:
        _eos(tokenizer)
        eos_id = cast(int, tokenizer.eos_token_id)
        for row, text in zip(texts, _tokens(tokenizer, [examples[row].response for row in texts], True), strict=True):
            if len(text) > 1 and text[0] == text[1] == tokenizer.bos_token_id:
                text = text[1:]  # the text begins with a BOS of its own
            tokens = text if len(text) > 1 and text[-1] == eos_id else [*text, eos_id]
            result[row] = _encoded(tokens[:1], tokens[1:], 1)
    rendered: list[tuple[str, str, str]] = []
    spans: list[list[tuple[int, int]]] = []
    good = []
    for row in chats:
        try:
            parts, blocks = _render(examples[row], tokenizer)
            spans.append(_earlier_spans(examples[row], parts[0], parts[2], tokenizer, blocks))
            rendered.append(parts)
            good.append(row)
        except (DataError, ModelError) as error:
            if isinstance(error, ModelError) and not tokenizer.chat_template:
                raise
            result[row] = error
    if good:
        texts_of = [prompt for prompt, _, _ in rendered] + ["".join(parts) for parts in rendered]
        ids = _tokens(tokenizer, texts_of, False)
        prompts, turns = ids[: len(good)], ids[len(good) :]
        ends = {end: _tokens(tokenizer, [end], False)[0] for end in {end for _, _, end in rendered}}
        earlier = _token_spans([prompt for prompt, _, _ in rendered], prompts, spans, tokenizer)
        for row, (_, content, end), prompt, turn, learned in zip(good, rendered, prompts, turns, earlier, strict=True):
            if turn[: len(prompt)] == prompt:
                response = turn[len(prompt) :]
            else:
                response = _tokens(tokenizer, [content + end], False)[0]
            closing = ends[end]
            if len(response) <= len(closing) or response[-len(closing) :] != closing:
                response = _tokens(tokenizer, [content], False)[0] + closing
            result[row] = _encoded(prompt, response, len(closing), learned)
    return [item for item in result if item is not None]


def _of_tokens(example: Example, vocabulary: int) -> Encoded | DataError:
    """A row that came tokenized: what stands behind its last learned token is cut, as no loss depends on it."""
    assert example.tokens is not None
    ids, mask = example.tokens
    if int(ids.max()) >= vocabulary:
        return DataError(
            f"example {example.sample_id} holds token {int(ids.max())}, and the tokenizer has {vocabulary}. Tokenize "
            "the rows with the model's own tokenizer."
        )
    places = np.flatnonzero(mask)
    edges = np.flatnonzero(np.diff(places) > 1) + 1
    spans = [(int(part[0]), int(part[-1]) + 1) for part in np.split(places, edges)]
    start, stop = spans[-1]
    return Encoded(ids[:start], ids[start:stop], 0, tuple(spans[:-1]))


def prompt_ids(example: Example, tokenizer: PreTrainedTokenizerBase) -> Int[np.ndarray, " prompt"]:
    """Return the tokens to generate from; they do not depend on the response."""
    return encode_all([example], tokenizer)[0].prompt_ids


def _without_end(example: Example, tokenizer: PreTrainedTokenizerBase) -> Example:
    """The example without an EOS of its own at the end of the assistant's turns, where it would stand twice."""
    end = str(tokenizer.eos_token or "")
    answers = [example.response, *(text for role, text in example.messages or () if role == "assistant")]
    if not end or not any(text.rstrip().endswith(end) for text in answers):
        return example

    def without(text: str) -> str:
        bare = text.rstrip().removesuffix(end)
        return bare if text.rstrip().endswith(end) and bare.strip() else text

    messages = example.messages
    if messages is not None:
        messages = tuple((role, without(text) if role == "assistant" else text) for role, text in messages)
    return dataclasses.replace(example, response=without(example.response), messages=messages)


def _is_text(example: Example) -> bool:
    return example.messages is None and not example.prompt and example.tokens is None


def _render(example: Example, tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[str, str, str], bool]:
    """Prompt, content and end of the turn as the chat template writes them; and whether it reads content blocks."""
    if not tokenizer.chat_template:
        raise ModelError(
            "the tokenizer has no chat template. Set model.chat_template to the path of a Jinja template, or 'plain'."
        )
    marker, texts = _MARKER, "".join([example.prompt, *(text for _, text in example.messages or ())])
    while marker in texts:
        marker += _MARKER[-1]
    marked = _apply(example, marker, tokenizer)
    blocks = marked.count(marker) != 1  # templates of vision models read lists of content blocks only
    if blocks:
        marked = _apply(example, marker, tokenizer, blocks=True)
    prompt, _, end = marked.rpartition(marker)
    prompt, content = _content(example, prompt, end, tokenizer, blocks)
    _refuse_lost(example, prompt, content)
    if _left_out(example, prompt) is not None:  # Mistral's template drops the system prompt behind an answer
        prompt = _generation_prompt(example, prompt, tokenizer, blocks)
    end = end.strip() and end.rstrip()
    if not end:
        return (prompt, content.rstrip(), _eos(tokenizer)), blocks
    cut = content.rstrip().removesuffix(end)  # a response that ends like the turn
    return (prompt, cut if cut.strip() and content.rstrip().endswith(end) else content, end), blocks


def _content(
    example: Example, prompt: str, end: str, tokenizer: PreTrainedTokenizerBase, blocks: bool
) -> tuple[str, str]:
    """Prompt and content, where the template renders the marker between ``prompt`` and ``end``."""
    if _fields(example, len(example.turns)):
        return _structured(example, prompt, end, tokenizer, blocks)
    rendered, response = _apply(example, example.response, tokenizer, blocks=blocks), example.response.strip()
    content = rendered[len(prompt) : len(rendered) - len(end)]
    if rendered == prompt + content + end and content.strip() == response:
        return prompt, content
    # The response decides what the template writes before it: its thinking, for instance, is rendered anew.
    generation = _apply(example, None, tokenizer, blocks=blocks)
    at = rendered.find(response + end, len(generation)) if rendered.startswith(generation) else -1
    if at >= 0 and (end or rendered.endswith(response)):
        return rendered[:at], response
    if _THOUGHT.search(response):
        return _before_thinking(prompt, generation, response), response
    if not (prompt.startswith(generation) or generation.startswith(prompt)):
        return _generation_prompt(example, prompt, tokenizer, blocks), response
    raise ModelError(
        f"the chat template changes the response of example {example.sample_id}: it is not in the rendered turn as it "
        "was given. Set model.chat_template to a template that writes the assistant's words as they are, or to 'plain'."
    )


def _structured(
    example: Example, prompt: str, end: str, tokenizer: PreTrainedTokenizerBase, blocks: bool
) -> tuple[str, str]:
    """Prompt and content of a response with fields of its own (tool calls, reasoning), which the template writes."""
    rendered = _apply(example, example.response, tokenizer, blocks=blocks)
    before = prompt if rendered.startswith(prompt) else _apply(example, None, tokenizer, blocks=blocks)
    if not rendered.startswith(before):
        before = rendered[: _shared(rendered, prompt)]
    body = rendered.rstrip() if end.strip() else rendered
    content = body[len(before) :].removesuffix(end.rstrip())
    if not content.strip() or not body.endswith(end.rstrip()):
        raise DataError(
            f"the chat template writes nothing for the last turn of example {example.sample_id} "
            f"({', '.join(_fields(example, len(example.turns)))}). Use the template that belongs to the model's tools."
        )
    return before, content


def _refuse_lost(example: Example, prompt: str, content: str) -> None:
    """Raise DataError for a tool, a call or a learned reasoning that the template does not write."""
    if example.chat is None:
        return
    last, text = len(example.turns), prompt + content
    lost = [f"tool '{name}'" for name in map(_called, example.chat.get("tools", ())) if name and name not in text]
    for place in range(last + 1):
        fields = _fields(example, place)
        lost += [f"call of '{_called(call)}'" for call in fields.get("tool_calls", ()) if _called(call) not in text]
        if place == last or place in example.learned:
            lost += [key for key in ("reasoning_content", "thinking", "reasoning") if not _has(text, fields.get(key))]
    if lost:
        raise DataError(
            f"the chat template leaves out the {lost[0]} of example {example.sample_id}. Use a template that writes "
            "it, or remove the field from the row."
        )


def _has(text: str, part: str | None) -> bool:
    return part is None or part.strip() in text


def _called(tool: Mapping[str, Any]) -> str:
    """Name of the function of a tool or of a call."""
    return str(tool.get("function", tool).get("name", ""))


def _fields(example: Example, place: int) -> Mapping[str, Any]:
    """What the template gets of this turn beside role and content."""
    fields: Mapping[str, Any] = (example.chat or {}).get("turns", {}).get(str(place), {})
    return fields


def _earlier_spans(
    example: Example, prompt: str, end: str, tokenizer: PreTrainedTokenizerBase, blocks: bool
) -> list[tuple[int, int]]:
    """Where in the prompt the earlier learned turns stand, each with its end of the turn, in characters."""
    if not example.learned:
        return []
    try:
        return _marked_spans(example, prompt, end, tokenizer, blocks)
    except DataError:
        spans = _generation_spans(example, prompt, tokenizer, blocks)
        if spans is None:
            raise
        return spans


def _marked_spans(
    example: Example, prompt: str, end: str, tokenizer: PreTrainedTokenizerBase, blocks: bool
) -> list[tuple[int, int]]:
    """The spans in which the template writes markers that stand in place of the turns."""
    marker = _MARKER
    while any(marker in text for _, text in example.turns):
        marker += _MARKER[-1]
    pieces = _apply(example, marker, tokenizer, blocks=blocks, marked=marker).split(marker)
    if len(pieces) != len(example.learned) + 2:
        raise _changed(example, example.learned[0], "its words are not written, or twice")
    end, spans, place = end.rstrip(), [], len(pieces[0])
    if not prompt.startswith(pieces[0]):
        raise _changed(example, example.learned[0], "what stands before it depends on the last turn")
    for number, turn in enumerate(example.learned):
        following = pieces[number + 1]
        if number + 1 == len(example.learned):  # what the template writes before the last answer may depend on it
            text = example.turns[-1][1].strip()
            following = following[: following.rfind(text) + len(text)] if text in following else following
        if _fields(example, turn):
            stop = prompt.find(following, place)
        else:
            given = example.turns[turn][1]
            versions = (given, given.strip(), given.rstrip(), given.lstrip())
            stop = next((place + len(v) for v in versions if prompt.startswith(v + following, place)), -1)
        if stop <= place:
            raise _changed(example, turn, "it is not written as it was given (templates cut old thinking out, say)")
        tail = end if end and following.startswith(end) else ""
        spans.append((place, stop + len(tail)))
        place = stop + len(following)
    return spans


def _generation_spans(
    example: Example, prompt: str, tokenizer: PreTrainedTokenizerBase, blocks: bool
) -> list[tuple[int, int]] | None:
    """The spans that ``{% generation %}`` marks; None where they are not one for each assistant turn of this prompt."""
    template: Any = tokenizer.chat_template
    if not isinstance(template, str) or not re.search(r"{%-?\s*generation\b", template):
        return None
    try:
        render: Any = render_jinja_template
        rendered, spans = render(
            [_messages(example, example.response, blocks)],
            tools=(example.chat or {}).get("tools"),
            **(example.chat or {}).get("template", {}),
            chat_template=_on_one_day(template),
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )
    except _TEMPLATE_FAULTS:
        return None
    turns = [place for place, (role, _) in enumerate(example.turns) if role == "assistant"]
    if len(spans[0]) != len(turns) + 1 or not rendered[0].startswith(prompt):
        return None
    return [(int(start), int(stop)) for start, stop in (spans[0][turns.index(place)] for place in example.learned)]


def _token_spans(
    texts: list[str], ids: list[list[int]], spans: list[list[tuple[int, int]]], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[tuple[int, int], ...]]:
    """Spans of characters as spans of tokens.

    A token that straddles the beginning of a span belongs to it, one that straddles its end does not.
    """
    rows = [row for row, found in enumerate(spans) if found]
    cuts = {row: [0, *(edge for span in spans[row] for edge in span), len(texts[row])] for row in rows}
    pieces = {row: [texts[row][a:b] for a, b in itertools.pairwise(cuts[row])] for row in rows}
    tokens = iter(_tokens(tokenizer, [piece for row in rows for piece in pieces[row]], False))
    result: list[tuple[tuple[int, int], ...]] = [()] * len(texts)
    for row in rows:
        parts = [next(tokens) for _ in pieces[row]]
        edges = np.cumsum([len(part) for part in parts])[:-1].tolist()
        if [token for part in parts for token in part] != ids[row]:
            heads = _tokens(tokenizer, [texts[row][:cut] for cut in cuts[row][1:-1]], False)
            edges = [_shared(head, ids[row]) for head in heads]
        result[row] = tuple(zip(edges[0::2], edges[1::2], strict=True))
    return result


def _shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Length of what both begin with."""
    return next(
        (n for n, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other))
    )


def _changed(example: Example, turn: int, reason: str) -> DataError:
    number = sum(role == "assistant" for role, _ in example.turns[: turn + 1])
    return DataError(
        f"the chat template changes assistant turn {number} of example {example.sample_id}, which is to be learned: "
        f"{reason}. Learn the last turn alone (turns: last), switch that turn off (weight: 0), or use another template."
    )


def _before_thinking(prompt: str, generation: str, response: str) -> str:
    """The prompt of a response that thinks, without the tag that opens its thinking."""
    tag = re.match(r"<(\w+)>", response)
    if tag is None:  # the generation prompt opens the thinking
        return generation
    opened = re.compile(rf"<{tag[1]}>\s*(?:</{tag[1]}>\s*)?$")
    finished, fresh = opened.sub("", prompt), opened.sub("", generation)
    return finished if finished.rstrip() == fresh.rstrip() else fresh


def _left_out(example: Example, prompt: str) -> str | None:
    """The first turn whose text, without its thinking, is not in the prompt (as it is, or as JSON); or None."""
    for role, content in example.turns:
        text = _THOUGHT.split(content)[-1].strip()
        if text not in prompt and json.dumps(text, ensure_ascii=False)[1:-1] not in prompt:
            return f"the {role} turn {text[:40]!r}"
    return None


def _generation_prompt(example: Example, prompt: str, tokenizer: PreTrainedTokenizerBase, blocks: bool) -> str:
    """The prompt as it is generated from, ending in the white space that a finished turn has before its content."""
    generation = _apply(example, None, tokenizer, blocks=blocks)
    turn = _left_out(example, generation)
    if turn is not None:
        raise DataError(
            f"the chat template leaves out or changes {turn} of example {example.sample_id}. "
            "Correct the conversation, or set model.chat_template."
        )
    return generation if generation[-1:].isspace() else generation + prompt[len(prompt.rstrip()) :]


def _messages(example: Example, response: str | None, blocks: bool, marked: str | None = None) -> list[dict[str, Any]]:
    """The conversation as the template gets it; with ``marked``, this text in place of the earlier learned turns."""
    messages: list[dict[str, Any]] = []
    turns = example.turns if response is None else (*example.turns, ("assistant", response))
    for place, (role, text) in enumerate(turns):
        fields: Mapping[str, Any] = _fields(example, place)
        if place == len(example.turns):
            fields = fields if response == example.response else {}
            text = "" if fields.get("tool_calls") and text == _calls_text(fields) else text
        elif marked is not None and place in example.learned:
            fields, text = {}, marked
        messages.append({"role": role, "content": [{"type": "text", "text": text}] if blocks else text, **fields})
    return messages


def _calls_text(fields: Mapping[str, Any]) -> str:
    """What stands for a response that consists of tool calls alone (`longgame.data.formats`)."""
    return json.dumps(fields["tool_calls"], ensure_ascii=False, sort_keys=True)


def _apply(
    example: Example,
    response: str | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    blocks: bool = False,
    marked: str | None = None,
) -> str:
    """The conversation as the template renders it: with this response, or without it up to the generation prompt."""
    messages = _messages(example, response, blocks, marked)
    template: Any = tokenizer.chat_template
    endless = DataError(
        f"the chat template did not render example {example.sample_id} within {TEMPLATE_SECONDS:g} seconds. "
        "Correct its loops, or set model.chat_template."
    )
    try:
        with time_limit(TEMPLATE_SECONDS, endless):
            return str(
                tokenizer.apply_chat_template(
                    messages,
                    tools=(example.chat or {}).get("tools"),
                    **(example.chat or {}).get("template", {}),
                    tokenize=False,
                    add_generation_prompt=response is None,
                    chat_template=_on_one_day(template) if isinstance(template, str) else None,
                )
            )
    except _TEMPLATE_FAULTS as error:
        if not blocks:
            try:
                return _apply(example, response, tokenizer, blocks=True, marked=marked)
            except DataError:
                pass  # the first refusal says more
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(
            f"the chat template refuses example {example.sample_id} (roles: {roles}): {error}. "
            "Correct the conversation, or set model.chat_template."
        ) from error


def _on_one_day(template: str) -> str:
    """The template with `TEMPLATE_DATE` in place of today's date."""
    return _DATE_MACRO + template if "strftime_now" in template else template


def _tokens(tokenizer: PreTrainedTokenizerBase, texts: list[str], special: bool) -> list[list[int]]:
    if not texts:
        return []
    encoding = tokenizer(texts, add_special_tokens=special, return_attention_mask=False, verbose=False)
    return cast(list[list[int]], encoding["input_ids"])


def _eos(tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.eos_token is None:
        raise ModelError("the tokenizer has no EOS token, so a response has no end. Use a tokenizer with `eos_token`.")
    return str(tokenizer.eos_token)


def _encoded(
    prompt: list[int], response: list[int], end_tokens: int, earlier: tuple[tuple[int, int], ...] = ()
) -> Encoded:
    return Encoded(np.asarray(prompt, dtype=np.int64), np.asarray(response, dtype=np.int64), end_tokens, earlier)


def _too_long(examples: Sequence[Example], lengths: list[int], max_length: int) -> DataError:
    bad = [row for row, length in enumerate(lengths) if length > max_length]
    example, length = examples[bad[0]], lengths[bad[0]]
    origin = f" ({example.source or example.skill})" if example.source or example.skill else ""
    begins = " ".join((example.prompt or example.response)[:200].split())[:40]
    others = f"; {len(bad) - 1} more of {len(examples)} are too long" if len(bad) > 1 else ""
    return DataError(
        f"example {example.sample_id}{origin} has {length} tokens, model.max_length is {max_length}{others}. It begins "
        f"with {begins!r}. Raise model.max_length (the longest has {max(lengths)}) or set data.too_long: drop."
    )
