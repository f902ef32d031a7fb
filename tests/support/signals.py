"""Tiny models with an adapter away from its initial B = 0, pools of random tokens, and a slow reference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from longgame.data.examples import Example, Pool
from longgame.seeding import generator

VOCABULARY = 61


def perturb(model: torch.nn.Module, part: str, scale: float, seed: int) -> None:
    """Move every weight whose name contains ``part`` by Gaussian noise."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if part in name:
                weight += scale * torch.randn(weight.shape, generator=noise)


def llama(**changes: object) -> LlamaForCausalLM:
    """A Llama of 2 layers; weights drawn without touching the global generator's later draws."""
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 40,
        "tie_word_embeddings": True,
        "max_position_embeddings": 128,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**(shape | changes)))
    perturb(model, "", 0.05, 1)
    return model


def with_lora(model: PreTrainedModel, b_scale: float = 0.1, **changes: object) -> PeftModel:
    config = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.3, "target_modules": "all-linear"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wrapped = get_peft_model(model, LoraConfig(**(config | changes)))
    perturb(wrapped, "lora_B", b_scale, 2)
    return wrapped


def random_pool(n: int = 9, shortest: int = 4, longest: int = 23, seed: int = 0, vocabulary: int = VOCABULARY) -> Pool:
    """Examples of random tokens; the first has no prompt, the second a response of one token."""
    rng = generator(seed, "pool")
    lengths = rng.integers(shortest, longest + 1, n)
    prompts = np.asarray([rng.integers(1, length) for length in lengths])
    prompts[0], prompts[1] = 0, lengths[1] - 1
    examples = tuple(Example(sample_id=f"id{row:03d}", prompt="p", response="r") for row in range(n))
    ids = tuple(rng.integers(0, vocabulary, length) for length in lengths)
    return Pool(examples, ids, prompts, lengths - prompts)


def response_logits(model: torch.nn.Module, pool: Pool, row: int) -> tuple[Tensor, Tensor]:
    """Logits and targets of one example's response, from the whole model on that example alone."""
    ids = torch.tensor(pool.input_ids[row])
    start = max(1, int(pool.prompt_tokens[row]))
    return model(input_ids=ids[None]).logits[0, start - 1 : -1], ids[start:]


def autograd_gradients(model: torch.nn.Module, pool: Pool, keep: Callable[[str], bool]) -> list[dict[str, Tensor]]:
    """Per example, the gradient of its mean response NLL for every parameter whose name is kept: a plain loop."""
    model.eval()
    weights = {name: weight for name, weight in model.named_parameters() if keep(name)}
    result = []
    for row in range(len(pool)):
        logits, targets = response_logits(model, pool, row)
        loss = torch.nn.functional.cross_entropy(logits, targets)
        result.append(dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True)))
    return result
