"""Every chat template that TRL ships: a model that knows an item by heart has full marks."""

from __future__ import annotations

import re
from importlib.resources import files
from types import SimpleNamespace

import jinja2
import pytest
import torch
import transformers.utils.chat_template_utils as rendering
from torch import nn
from transformers import LlamaConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from longgame.data.examples import Example, Task
from longgame.data.tokenize import TEMPLATE_DATE, encode
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
