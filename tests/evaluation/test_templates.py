"""Every chat template that TRL ships: a model that knows an item by heart has full marks."""

from __future__ import annotations

import dataclasses
import json
import re
from importlib.resources import files
from types import SimpleNamespace

import jinja2
import numpy as np
import pytest
import torch
import transformers.utils.chat_template_utils as rendering
from torch import nn
from transformers import LlamaConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from longgame.data.examples import Example, Task
from longgame.data.tokenize import TEMPLATE_DATE, encode
from longgame.errors import DataError
from longgame.evaluation.evaluator import Evaluator
from support.chat_model import chat_tokenizer

trl = pytest.importorskip("trl")
TEMPLATES = sorted(
    (file for file in (files("trl") / "chat_templates").iterdir() if file.name.endswith(".jinja")),
    key=lambda file: file.name,
)
SCORERS = ("token_accuracy", "ends", "likelihood", "exact_match")
ITEMS = (
    Example.make("Who wrote it?", "Ada Lovelace", answer="Ada Lovelace"),
    Example.make("One letter?", "e", answer="e"),
    Example.make("What is 3 + 4?", "First 3.\n\nThen 3 + 4 = 7.", answer="7"),
    Example.make("Blue?", "B. blue", answer="B", choices=("red", "blue")),
    Example.make("", "12", messages=(("user", "Hi"), ("assistant", "Hello"), ("user", "3 x 4?")), answer="12"),
)


class ByHeart(PreTrainedModel):
    """Gives the next token of every sequence that it knows, and the first token of the vocabulary elsewhere."""

    config_class = LlamaConfig

    def __init__(self, sequences: list[list[int]], vocabulary: int) -> None:
        super().__init__(LlamaConfig(vocab_size=vocabulary, max_position_embeddings=4096, num_hidden_layers=1))
        self.known = {tuple(ids[:end]): ids[end] for ids in sequences for end in range(1, len(ids))}
        self.embeddings = nn.Embedding(vocabulary, 1)
        self.head = nn.Linear(vocabulary, vocabulary, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(50 * torch.eye(vocabulary))

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids, **_: object) -> CausalLMOutputWithPast:
        hidden = torch.zeros(*input_ids.shape, self.config.vocab_size)
        for row, ids in enumerate(input_ids.tolist()):
            for end in range(len(ids)):
                hidden[row, end, self.known.get(tuple(ids[: end + 1]), 0)] = 1
        return CausalLMOutputWithPast(logits=self.head(hidden))


def tokenizer_for(template: str):
    """A tokenizer that knows the template's marks, such as <|im_end|>, as special tokens."""
    tokenizer = chat_tokenizer(template=template)
    marks = sorted({mark for mark in re.findall(r"<[^<>\s'\"{}]+>", template) if "think" not in mark})
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    return tokenizer


def rendered(tokenizer, item: Example) -> str:
    """The whole conversation by the template itself; templates of vision models take blocks only."""
    turns = [*(item.messages or (("user", item.prompt),)), ("assistant", item.response)]
    for blocks in (False, True):
        messages = [{"role": r, "content": [{"type": "text", "text": t}] if blocks else t} for r, t in turns]
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False)
        except jinja2.TemplateError:
            continue
        if all(content in text for _, content in turns):
            return text
    raise AssertionError("the template renders no response")


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda file: file.name.removesuffix(".jinja"))
def test_an_item_known_by_heart_scores_100(template, monkeypatch) -> None:
    monkeypatch.setattr(rendering, "datetime", SimpleNamespace(now=lambda: TEMPLATE_DATE))
    tokenizer = tokenizer_for(template.read_text(encoding="utf-8"))
    encoded = [encode(item, tokenizer, 4096) for item in ITEMS]
    for item, parts in zip(ITEMS, encoded, strict=True):
        content = len(parts.response_ids) - parts.end_tokens
        assert tokenizer.decode(parts.response_ids[:content]) == item.response
        text = rendered(tokenizer, item).rstrip()
        assert tokenizer.decode(parts.ids) in (text, text + tokenizer.eos_token)
    model = ByHeart([parts.ids.tolist() for parts in encoded], len(tokenizer))
    tasks = [Task("texts", ITEMS, scorers=SCORERS), Task("choices", ITEMS[3:4], scorers=("choice", *SCORERS))]
    scores = Evaluator(model, tokenizer, pad_token_id=0).score(tasks)
    assert {(score.scorer, round(score.value, 4)) for score in scores} == {
        (name, 100.0) for name in (*SCORERS, "choice")
    }


def test_another_prompt_is_not_known() -> None:
    tokenizer = chat_tokenizer()
    model = ByHeart([encode(ITEMS[0], tokenizer, 4096).ids.tolist()], len(tokenizer))
    scores = Evaluator(model, tokenizer, pad_token_id=0).score([Task("texts", ITEMS[1:2], scorers=SCORERS)])
    assert {score.value for score in scores if score.scorer != "likelihood"} == {0.0}


def test_thinking_in_a_response_stays_part_of_it() -> None:
    [template] = [file for file in TEMPLATES if file.name == "qwen3.jinja"]
    tokenizer = tokenizer_for(template.read_text(encoding="utf-8"))
    item = Example.make("2 + 2?", "<think>\nTwo twos.\n</think>\n\n4")
    parts = encode(item, tokenizer, 4096)
    assert tokenizer.decode(parts.response_ids) == item.response + "<|im_end|>"
    assert tokenizer.decode(parts.prompt_ids).endswith("<|im_start|>assistant\n")
    plain = encode(Example.make("2 + 2?", "4"), tokenizer, 4096)
    assert tokenizer.decode(plain.prompt_ids).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


TALK = (("user", "Hi"), ("assistant", "Hello"), ("user", "3 x 4?"), ("assistant", "It is 12."), ("user", "+ 1?"))
SEVERAL = Example.make("+ 1?", "13.", messages=TALK, learned=(1, 3))


def runs(parts) -> list[list[int]]:
    """The learned tokens, turn by turn."""
    mask = parts.loss_mask
    edges = np.flatnonzero(np.diff(np.r_[0, mask.astype(int), 0]))
    return [parts.ids[start:stop].tolist() for start, stop in zip(edges[::2], edges[1::2], strict=True)]


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda file: file.name.removesuffix(".jinja"))
def test_every_turn_is_learned_with_its_end(template, monkeypatch) -> None:
    monkeypatch.setattr(rendering, "datetime", SimpleNamespace(now=lambda: TEMPLATE_DATE))
    tokenizer = tokenizer_for(template.read_text(encoding="utf-8"))
    parts = encode(SEVERAL, tokenizer, 4096)
    single = encode(Example.make("+ 1?", "13.", messages=TALK), tokenizer, 4096)
    assert parts.ids.tolist() == single.ids.tolist()
    end = single.response_ids[len(single.response_ids) - single.end_tokens :].tolist()
    contents = [tokenizer.decode(run).removesuffix(tokenizer.decode(end)).strip() for run in runs(parts)]
    assert contents == ["Hello", "It is 12.", "13."]
    if not re.search(r"{%-?\s*generation\b", tokenizer.chat_template):
        return
    # What the template marks contains what is learned, and words of its own.
    forms = [spans_of_generation(tokenizer, blocks=blocks) for blocks in (False, True)]
    assert any(
        len(texts) == 3 and all(content in text for content, text in zip(contents, texts, strict=True))
        for texts in forms
    )


def spans_of_generation(tokenizer, *, blocks: bool) -> list[str]:
    """The texts that the template marks with {% generation %}; templates of vision models read blocks only."""
    turns = (*TALK, ("assistant", "13."))
    messages = [{"role": r, "content": [{"type": "text", "text": t}] if blocks else t} for r, t in turns]
    try:
        whole = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    except (jinja2.TemplateError, TypeError):
        return []
    marked = np.asarray(whole["assistant_masks"], dtype=int)
    edges = np.flatnonzero(np.diff(np.r_[0, marked, 0])).reshape(-1, 2)
    return [tokenizer.decode(whole["input_ids"][start:stop]) for start, stop in edges]


TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}
WITH_TOOLS = Example.make(
    "2 + 2?",
    "It is 4.",
    messages=(("user", "2 + 2?"), ("assistant", ""), ("tool", "4")),
    learned=(1,),
    chat={"tools": [TOOL], "turns": {"1": {"tool_calls": [CALL]}}},
)


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "qwen3_instruct_2507", "glm4moe", "lfm2_2_5"])
def test_a_tool_call_is_learned_as_the_template_writes_it(name: str) -> None:
    [template] = [file for file in TEMPLATES if file.name == f"{name}.jinja"]
    tokenizer = tokenizer_for(template.read_text(encoding="utf-8"))
    parts = encode(WITH_TOOLS, tokenizer, 4096)
    call, answer = (tokenizer.decode(run) for run in runs(parts))
    assert "add" in call
    assert "2" in call
    assert "Adds." not in call
    assert answer.startswith("It is 4.")
    assert "Adds." in tokenizer.decode(parts.prompt_ids)
    last = dataclasses.replace(WITH_TOOLS, messages=WITH_TOOLS.messages[:1], learned=(), response=_text_of_call())
    alone = encode(last, tokenizer, 4096)
    assert (
        tokenizer.decode(alone.response_ids).removesuffix(tokenizer.eos_token).strip()
        == call.removesuffix(tokenizer.eos_token).strip()
    )


def _text_of_call() -> str:
    return json.dumps([CALL], ensure_ascii=False, sort_keys=True)


def test_tools_that_the_template_ignores_are_refused() -> None:
    with pytest.raises(DataError, match="leaves out the tool 'add'"):
        encode(WITH_TOOLS, chat_tokenizer(), 4096)


def test_an_earlier_turn_that_the_template_cuts_is_named() -> None:
    [template] = [file for file in TEMPLATES if file.name == "qwen3.jinja"]
    tokenizer = tokenizer_for(template.read_text(encoding="utf-8"))
    turns = (("user", "Hi"), ("assistant", "<think>\nGreet.\n</think>\n\nHello"), ("user", "Bye"))
    item = Example.make("Bye", "Bye.", messages=turns, learned=(1,))
    with pytest.raises(DataError, match=f"assistant turn 1 of example {item.sample_id}.*turns: last"):
        encode(item, tokenizer, 4096)
    assert encode(Example.make("Bye", "Bye.", messages=turns), tokenizer, 4096).loss_mask is None
