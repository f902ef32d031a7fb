"""A tiny random Llama, a byte-level tokenizer made here, and tasks of mixed lengths."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from longgame.data.examples import Example, Task

_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}<e>"
    "{% else %}<u>{{ m['content'] }}<a>{% endif %}{% endfor %}"
)
_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFG0123456789 .,:;#=+-*/?()"


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per character; ``<p>`` pads, ``<e>`` ends."""
    specials = ["<p>", "<e>", "<u>", "<a>"]
    vocabulary = {token: index for index, token in enumerate([*specials, *_CHARACTERS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    raw.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<p>", eos_token="<e>", additional_special_tokens=["<u>", "<a>"]
    )
    made.chat_template = _TEMPLATE
    return made


def build(seed: int = 0, scale: float = 8.0, **changes: object) -> LlamaForCausalLM:
    """A Llama with peaked random predictions, so that argmax and stop tokens vary from row to row."""
    settings: dict[str, object] = {
        "vocab_size": 4 + len(_CHARACTERS),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
        **changes,
    }
    model = LlamaForCausalLM(LlamaConfig(**settings))  # type: ignore[arg-type]
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=source) * scale / 32)
    return model.eval()


@pytest.fixture(scope="session")
def build_model() -> Callable[..., LlamaForCausalLM]:
    return build


@pytest.fixture(scope="session")
def model() -> LlamaForCausalLM:
    return build()


@pytest.fixture(scope="session")
def tasks() -> tuple[Task, ...]:
    """Two tasks; prompts and responses of many lengths, two sub-skills, items without answer, items with choices."""
    sums = tuple(
        Example.make(f"{a}+{b}" + " please" * (a % 4), str(a + b), answer=str(a + b), skill="sum" if a % 2 else "add")
        for a in range(9)
        for b in (3, 40)
    )
    words = (
        Example.make("say hello to all of them now", "hello world, and more of it"),
        Example.make("x", "yes", answer="yes", choices=("yes", "no")),
        Example.make("which? A. red B. blue", "B. blue", answer="B", choices=("red", "blue")),
        Example.make("which one? A. red B. blue C. green", "A. red", answer="A", choices=("red", "blue", "green")),
    )
    return (
        Task("sums", sums, scorers=("token_accuracy", "exact_match", "likelihood", "ends"), max_new_tokens=24),
        Task("words", words, scorers=("token_accuracy", "exact_match", "choice"), max_new_tokens=40),
    )
