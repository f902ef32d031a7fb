"""FLOPs of computing signals and of learning examples, from a model's sizes and a pool's token counts (no torch)."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from jaxtyping import Float, Int

from longgame.data.examples import Pool
from longgame.models.flops import ModelFlops
from longgame.signals.base import SIGNALS, Signal


def training_flops(model: ModelFlops, pool: Pool) -> Float[np.ndarray, " n"]:
    """FLOPs of learning each example once: forward and backward."""
    return model.training(pool.tokens, predicted_tokens(pool))


def signal_flops(model: ModelFlops, pool: Pool, names: Collection[str]) -> Float[np.ndarray, " n"]:
    """FLOPs of the passes that give each example these signals (0 where none of them needs the model).

    All signals share one pass, but for those with tokens of their own (`Signal.reads`).

    A gradient signal costs a backward pass over activations and the weights' gradients, one per example instead of
    one per batch: as much as learning, but for the output head, whose gradient no signal reads. The nuclear norm
    costs 2 N d² + 2 N d min(N, d) (product with K, and the smaller Gram matrix) and the logit sketch of shape
    (r, c) 2 r d (N + c), neither of them the vocabulary; N counts all positions, or those of the
    response. Left out: eigenvalues and count sketches.
    """
    total = np.zeros(len(pool))
    shared = []
    for spec in (SIGNALS[name] for name in names if {"model", "base"} & {*SIGNALS[name].needs}):
        if spec.reads is None:
            shared.append(spec)
        else:
            total += _pass_flops(model, spec.reads(pool), [spec])
    return total + _pass_flops(model, pool, shared) if shared else total


def _pass_flops(model: ModelFlops, pool: Pool, specs: Collection[Signal]) -> Float[np.ndarray, " n"]:
    tokens, predicted = pool.tokens, predicted_tokens(pool)
    gradient = any(spec.cost == "backward" for spec in specs)
    headed = any("head" in spec.needs for spec in specs)
    total = model.forward(tokens, predicted if headed else np.zeros_like(predicted))
    if gradient:
        total = total + model.backward(tokens, predicted, head=False)
    for spec in specs:
        if not spec.name.removeprefix("response_").startswith(("logit_nuclear_norm", "logit_sketch")):
            continue
        length = (predicted if spec.name.startswith("response") else tokens).astype(np.float64)
        if model.capped:
            total = total + 2.0 * model.head * length
        elif spec.width:
            rows, columns = model.logit_sketch
            total = total + 2.0 * rows * model.hidden * (length + columns)
        else:
            total = total + 2.0 * length * model.hidden * (model.hidden + np.minimum(length, model.hidden))
    return total


def predicted_tokens(pool: Pool) -> Int[np.ndarray, " n"]:
    """P: response tokens that have a token before them (the first token of a text without prompt has none)."""
    return pool.tokens - np.maximum(pool.prompt_tokens, 1)
