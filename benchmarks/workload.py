"""What signals are timed on: a causal LM with a LoRA adapter that has trained a little, examples of mixed length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from longgame.data.examples import Example, Pool
from longgame.data.sources import load_examples
from longgame.data.tokenize import build_pool
from longgame.errors import DataError, ModelError
from longgame.models.adaptation import adapt
from longgame.models.load import load_model
from longgame.recipe import LoraSpec, ModelSpec
from longgame.seeding import generator, stream_seed

FILES = ("math_gsm8k", "code_gpteacher", "general_dolly3k", "safety_hh_harmless", "reasoning_csqa")
"""Instruction data of five kinds; their examples alternate."""

SHAPES: dict[str, LlamaConfig] = {
    "smollm2-135m": LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
    "llama-8b": LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
    ),
}
"""Architectures with random weights; time and memory do not depend on the weights."""


@dataclass(frozen=True)
class Workload:
    """A model and a pool of its tokens."""

    model: PeftModel
    pool: Pool
    pad_token_id: int
    name: str
    """Which weights and which examples these are."""

    @property
    def base(self) -> PreTrainedModel:
        """The causal LM inside the adapter's wrapper."""
        return cast(PreTrainedModel, self.model.get_base_model())

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def product_parameters(self) -> int:
        """Weights of the decoder that every token is multiplied with (embeddings and output head left out)."""
        decoder = self.base.get_decoder()
        embeddings = self.base.get_input_embeddings()
        return sum(weight.numel() for weight in decoder.parameters() if weight.dim() == 2) - sum(
            weight.numel() for weight in embeddings.parameters()
        )


def shaped(
    config: LlamaConfig,
    *,
    dtype: torch.dtype,
    device: torch.device | None = None,
    lengths: Sequence[tuple[int, int]],
    rank: int = 16,
    name: str = "random weights",
    attention: str = "sdpa",
    adapter: Mapping[str, Any] | None = None,
) -> Workload:
    """Make a randomly initialised Llama of this shape with LoRA on its linear layers, and random examples.

    Args:
        lengths: (prompt, response) tokens of each example.
        rank: r of the adapter.
        attention: transformers' name of its kernels.
        adapter: further fields of `ModelSpec`, e.g. ``adaptation``.
    """
    with torch.random.fork_rng(), torch.device(device or "cpu"):
        torch.manual_seed(0)
        base = LlamaForCausalLM._from_config(config, dtype=dtype, attn_implementation=attention)
    lora = LoraSpec(r=rank, alpha=2 * rank)
    spec = ModelSpec.model_validate({"name": "random", "dtype": "float32", "lora": lora, **(adapter or {})})
    return Workload(_warm(base, spec), random_pool(lengths, config.vocab_size), 0, name)


def real(
    examples: int, *, dtype: str, data_dir: Path | None, model: str = "smollm2-135m", max_length: int = 512
) -> Workload:
    """Load a model by name and tokenise examples of mixed length from `FILES` (random tokens without a folder).

    Where the weights of ``smollm2-135m`` cannot be had, its shape with random weights takes their place (see ``name``).

    Raises:
        ModelError: another model cannot be loaded.
        DataError: the folder has not these files.
    """
    spec = ModelSpec.model_validate({"name": model, "dtype": dtype, "max_length": max_length})
    try:
        loaded = load_model(spec, attention="sdpa")
    except ModelError as error:
        if model not in SHAPES:
            raise
        why = str(error).splitlines()[0]
        return shaped(
            SHAPES[model],
            dtype=getattr(torch, dtype),
            lengths=mixed_lengths(examples, max_length),
            name=f"{model}'s shape with random weights and tokens ({why})",
        )
    if data_dir is None:
        adapted = _warm(loaded.model, spec)
        vocabulary = int(loaded.model.config.get_text_config().vocab_size)
        pool = random_pool(mixed_lengths(examples, max_length), vocabulary)
        return Workload(adapted, pool, loaded.pad_token_id, f"{loaded.source}, random tokens")
    share = -(-examples // len(FILES))
    columns = [load_examples(name, data_dir=data_dir, split="train")[: 4 * share] for name in FILES]
    mixed = [example for row in zip(*columns, strict=False) for example in row]
    pool = build_pool(mixed, loaded.tokenizer, max_length, "drop")
    if len(pool) < examples:
        raise DataError(f"only {len(pool)} of {examples} examples have at most {max_length} tokens; ask for fewer.")
    name = f"{loaded.source}, examples of {', '.join(FILES)}"
    return Workload(_warm(loaded.model, spec), pool.take(range(examples)), loaded.pad_token_id, name)


def mixed_lengths(count: int, longest: int) -> list[tuple[int, int]]:
    """(prompt, response) tokens of instruction data: log-normal around 80 and 50 tokens, cut to ``longest``."""
    draw = generator(0, "bench", "lengths")
    prompts = np.clip(np.exp(draw.normal(np.log(80), 0.6, count)), 8, longest - 8).astype(int)
    responses = np.clip(np.exp(draw.normal(np.log(50), 0.8, count)), 1, longest - prompts).astype(int)
    return [(int(prompt), int(response)) for prompt, response in zip(prompts, responses, strict=True)]


def random_pool(lengths: Sequence[tuple[int, int]], vocabulary: int) -> Pool:
    """Examples of random tokens with these (prompt, response) lengths."""
    draw = generator(0, "bench", "tokens")
    ids = tuple(draw.integers(1, vocabulary, size=prompt + response) for prompt, response in lengths)
    examples = tuple(Example(sample_id=f"{row:06d}", prompt="", response="") for row in range(len(ids)))
    prompts, responses = (np.asarray(column, dtype=np.int64) for column in zip(*lengths, strict=True))
    return Pool(examples, ids, prompts, responses)


def _warm(base: PreTrainedModel, spec: ModelSpec) -> PeftModel:
    """Attach an adapter and move B off zero, as training would: at B = 0 half of the gradient is zero."""
    model = cast(PeftModel, adapt(base, spec, 0).model)
    model.to(base.device)
    draw = torch.Generator().manual_seed(stream_seed(0, "bench", "adapter") % 2**63)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_B." in name:
                weight.copy_(torch.randn(weight.shape, generator=draw) * 0.02)
    return model.eval()
