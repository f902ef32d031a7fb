"""Independent slow implementations: one row at a time, no padding, whole logits, transformers' own generate."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import log_softmax
from transformers import GenerationConfig

from longgame.data.examples import Example
from longgame.data.tokenize import encode


def response_log_probabilities(model, tokenizer, example: Example) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability and argmax-correctness of each response token."""
    encoded = encode(example, tokenizer, 10**6)
    ids = torch.tensor([[*encoded.prompt_ids.tolist(), *encoded.response_ids.tolist()]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0]
    border = len(encoded.prompt_ids)
    rows = logits[border - 1 : -1]
    target = ids[0, border:]
    return log_softmax(rows, dim=-1)[torch.arange(len(target)), target], rows.argmax(-1) == target


def token_accuracy(model, tokenizer, examples) -> float:
    """Without the last token, which ends the turn."""
    values = [response_log_probabilities(model, tokenizer, item)[1][:-1].double().mean().item() for item in examples]
    return 100 * sum(values) / len(values)


def likelihood(model, tokenizer, examples) -> float:
    values = [math.exp(response_log_probabilities(model, tokenizer, item)[0][:-1].mean().item()) for item in examples]
    return 100 * sum(values) / len(values)


def ends(model, tokenizer, examples) -> float:
    values = [response_log_probabilities(model, tokenizer, item)[1][-1].item() for item in examples]
    return 100 * sum(values) / len(values)


def greedy(model, tokenizer, example: Example, new_tokens: int) -> str:
    """Text that transformers' generate gives, one row, no padding."""
    prompt = torch.tensor([encode(example, tokenizer, 10**6).prompt_ids.tolist()])
    config = GenerationConfig(do_sample=False, max_new_tokens=new_tokens, eos_token_id=1, pad_token_id=0)
    with torch.no_grad():
        output = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
    return tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True).strip()
