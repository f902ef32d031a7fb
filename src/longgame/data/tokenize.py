"""From text to tokens: the chat template applied, the border between prompt and response exact."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import jinja2
import numpy as np
from jaxtyping import Int
from transformers import PreTrainedTokenizerBase

from longgame.data.examples import Example, Pool
from longgame.errors import DataError, ModelError
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
    encoded = [encoded[row] for row in fitting]
    return Pool(
        tuple(examples[row] for row in fitting),
        tuple(item.ids for item in encoded),
        np.asarray([len(item.prompt_ids) for item in encoded], dtype=np.int64),
        np.asarray([len(item.response_ids) for item in encoded], dtype=np.int64),
    )


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

    Raises:
        ModelError: no chat template or EOS, or the template changes the response. DataError: the template refuses an
            example (its roles, say), or leaves one of its turns out.
    """
    texts = [row for row, example in enumerate(examples) if _is_text(example)]
    chats = [row for row, example in enumerate(examples) if not _is_text(example)]
    examples = [_without_end(example, tokenizer) for example in examples]
    result: list[Encoded | None] = [None] * len(examples)
    if texts:
        _eos(tokenizer)
        eos_id = cast(int, tokenizer.eos_token_id)
        for row, text in zip(texts, _tokens(tokenizer, [examples[row].response for row in texts], True), strict=True):
            if len(text) > 1 and text[0] == text[1] == tokenizer.bos_token_id:
                text = text[1:]  # the text begins with a BOS of its own
            tokens = text if len(text) > 1 and text[-1] == eos_id else [*text, eos_id]
            result[row] = _encoded(tokens[:1], tokens[1:], 1)
    if chats:
        rendered = [_render(examples[row], tokenizer) for row in chats]
        texts_of = [prompt for prompt, _, _ in rendered] + ["".join(parts) for parts in rendered]
        ids = _tokens(tokenizer, texts_of, False)
        prompts, turns = ids[: len(chats)], ids[len(chats) :]
        ends = {end: _tokens(tokenizer, [end], False)[0] for end in {end for _, _, end in rendered}}
        for row, (_, content, end), prompt, turn in zip(chats, rendered, prompts, turns, strict=True):
            if turn[: len(prompt)] == prompt:
                response = turn[len(prompt) :]
            else:
                response = _tokens(tokenizer, [content + end], False)[0]
            closing = ends[end]
            if len(response) <= len(closing) or response[-len(closing) :] != closing:
                response = _tokens(tokenizer, [content], False)[0] + closing
            result[row] = _encoded(prompt, response, len(closing))
    return [item for item in result if item is not None]


def prompt_ids(example: Example, tokenizer: PreTrainedTokenizerBase) -> Int[np.ndarray, " prompt"]:
    """Return the tokens to generate from; they do not depend on the response."""
    return encode_all([example], tokenizer)[0].prompt_ids


def _without_end(example: Example, tokenizer: PreTrainedTokenizerBase) -> Example:
    """The example without an EOS of its own at the end of its response, where it would stand twice."""
    end = tokenizer.eos_token
    response = example.response.rstrip()
    if not end or not response.endswith(str(end)) or not response.removesuffix(str(end)).strip():
        return example
    return dataclasses.replace(example, response=response.removesuffix(str(end)))


def _is_text(example: Example) -> bool:
    return example.messages is None and not example.prompt


def _render(example: Example, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str, str]:
    """Prompt, content and end of the turn as the chat template writes them."""
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
    if _left_out(example, prompt) is not None:  # Mistral's template drops the system prompt behind an answer
        prompt = _generation_prompt(example, prompt, tokenizer, blocks)
    end = end.strip() and end.rstrip()
    if not end:
        return prompt, content.rstrip(), _eos(tokenizer)
    cut = content.rstrip().removesuffix(end)  # a response that ends like the turn
    return prompt, cut if cut.strip() and content.rstrip().endswith(end) else content, end


def _content(
    example: Example, prompt: str, end: str, tokenizer: PreTrainedTokenizerBase, blocks: bool
) -> tuple[str, str]:
    """Prompt and content, where the template renders the marker between ``prompt`` and ``end``."""
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
    turns = example.messages if example.messages is not None else (("user", example.prompt),)
    for role, content in turns:
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


def _apply(example: Example, response: str | None, tokenizer: PreTrainedTokenizerBase, *, blocks: bool = False) -> str:
    """The conversation as the template renders it: with this response, or without it up to the generation prompt."""
    turns = example.messages if example.messages is not None else (("user", example.prompt),)
    turns = turns if response is None else (*turns, ("assistant", response))
    messages: list[dict[str, Any]] = [
        {"role": role, "content": [{"type": "text", "text": text}] if blocks else text} for role, text in turns
    ]
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
                    tokenize=False,
                    add_generation_prompt=response is None,
                    chat_template=_on_one_day(template) if isinstance(template, str) else None,
                )
            )
    except _TEMPLATE_FAULTS as error:
        if not blocks:
            try:
                return _apply(example, response, tokenizer, blocks=True)
            except DataError:
                pass  # the first refusal says more
        roles = ", ".join(role for role, _ in turns)
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


def _encoded(prompt: list[int], response: list[int], end_tokens: int) -> Encoded:
    return Encoded(np.asarray(prompt, dtype=np.int64), np.asarray(response, dtype=np.int64), end_tokens)


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
