"""Floating-point operations of a decoder, counted from its sizes and the tokens it reads (no torch here).

One multiply-add is 2 FLOPs. With T tokens of an example, of which P are predicted (the response), W weights in linear
layers, A weights in LoRA factors, Q query width summed over the attention layers, and a d × V output head:

=========================  ============================================================================
forward                    2 (W + A) T + 4 Q T² + 2 d V P
backward, activations      2 (W + A) T + 8 Q T² + 2 d V P
backward, weights          2 A T with LoRA; 2 W T + 2 d V P in full fine-tuning
=========================  ============================================================================

so that a token costs about 2 FLOPs per weight forward, 4 with LoRA and 6 in full forward and backward. The head counts
only where it runs: on response positions. Attention counts its whole T × T square, as `torch.utils.flop_counter` does;
a kernel that skips the masked half does less. Left out: padding, norms, activation functions, softmax, embedding
look-ups, the optimiser's own arithmetic, and work that is done once for many tokens (merged weights, sketch tables).
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import nn
from transformers.pytorch_utils import Conv1D

from longgame.data.examples import Pool
from longgame.models.head import LogitHead
from longgame.models.parts import decoder_of, unwrap
from longgame.signals.base import SIGNALS


@dataclass(frozen=True, slots=True)
class ModelFlops:
    """Sizes of a decoder-only LM that decide what a token costs."""

    dense: int
    """W: weights of the decoder's linear layers, without adapters, embeddings and output head."""
    lora: int
    """A: weights of the LoRA factors that multiply activations; 0 without an adapter."""
    attention: int
    """Q: heads × head size, summed over the attention layers."""
    hidden: int
    """d: width of the last hidden state."""
    head: int
    """d · V: weights of the output head."""
    trains_dense: bool = False
    """Whether training (and so a gradient signal) forms the gradient of the linear layers' own weights."""
    trains_head: bool = False
    """Whether training moves the output head."""
    capped: bool = False
    """Whether logits are soft-capped: then no function of them gets by without the vocabulary."""
    logit_sketch: tuple[int, int] = (8, 128)
    """Rows and columns of ``logit_sketch``."""

    def forward(self, tokens: Int[np.ndarray, " n"], projected: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """FLOPs of reading each example.

        Args:
            tokens: T, prompt and response.
            projected: P, positions at which the output head runs.
        """
        length = np.asarray(tokens, dtype=np.float64)
        return 2.0 * (self.dense + self.lora) * length + 4.0 * self.attention * length**2 + 2.0 * self.head * projected

    def backward(
        self, tokens: Int[np.ndarray, " n"], projected: Int[np.ndarray, " n"], *, head: bool | None = None
    ) -> Float[np.ndarray, " n"]:
        """FLOPs of each example's backward pass: activations, and the gradients of the weights that are trained.

        Args:
            head: whether the head's weights get a gradient too; default: where training moves them.
        """
        length = np.asarray(tokens, dtype=np.float64)
        weights = self.lora + (self.dense if self.trains_dense else 0)
        passed = (
            2.0 * (self.dense + self.lora) * length + 8.0 * self.attention * length**2 + 2.0 * self.head * projected
        )
        moved = self.trains_head if head is None else head
        return passed + 2.0 * weights * length + (2.0 * self.head * projected if moved else 0.0)

    def training(self, pool: Pool) -> Float[np.ndarray, " n"]:
        """FLOPs of learning each example once: forward and backward."""
        tokens, predicted = pool.tokens, predicted_tokens(pool)
        return self.forward(tokens, predicted) + self.backward(tokens, predicted)

    def scoring(self, pool: Pool, names: Collection[str]) -> Float[np.ndarray, " n"]:
        """FLOPs of the one pass that gives each example these signals (0 where none of them needs the model).

        A gradient signal costs a backward pass over activations and the weights' gradients, one per example instead of
        one per batch: as much as learning, but for the output head, whose gradient no signal reads. The nuclear norm
        costs 2 P d² + 2 P d min(P, d) (product with K, and the smaller Gram matrix) and the logit sketch of shape
        (r, c) 2 r d (P + c), neither of them the vocabulary. Left out: eigenvalues and count sketches.
        """
        specs = [SIGNALS[name] for name in names if {"model", "base"} & {*SIGNALS[name].needs}]
        if not specs:
            return np.zeros(len(pool))
        tokens, predicted = pool.tokens, predicted_tokens(pool)
        gradient = any(spec.cost == "backward" for spec in specs)
        logits = {spec.name for spec in specs} & {"logit_nuclear_norm", "logit_sketch"}
        headed = any("head" in spec.needs for spec in specs)
        total = self.forward(tokens, predicted if headed else np.zeros_like(predicted))
        if gradient:
            total = total + self.backward(tokens, predicted, head=False)
        if self.capped:
            return total + 2.0 * self.head * predicted * len(logits)
        d, length = float(self.hidden), predicted.astype(np.float64)
        if "logit_nuclear_norm" in logits:
            total = total + 2.0 * length * d**2 + 2.0 * length * d * np.minimum(length, d)
        if "logit_sketch" in logits:
            rows, columns = self.logit_sketch
            total = total + 2.0 * rows * d * (length + columns)
        return total


def predicted_tokens(pool: Pool) -> Int[np.ndarray, " n"]:
    """P: response tokens that have a token before them (the first token of a text without prompt has none)."""
    return pool.tokens - np.maximum(pool.prompt_tokens, 1)


# Reading a model's sizes for the FLOP count.

_FACTORS = ("lora_A", "lora_B")

_log = logging.getLogger(__name__)


def model_flops(model: nn.Module) -> ModelFlops | None:
    """Return what a token costs in this model, or None where its weights do not tell (then nothing is counted).

    Counted are linear layers, quantised ones by their nominal size. A weight matrix outside of them (experts, of which
    a token uses a few) leaves the model uncounted rather than counted wrongly.

    Args:
        model: a transformers causal LM, or a PeftModel around one, with the adapter and the ``requires_grad`` it is
            trained with.

    Raises:
        ModelError: not a causal LM with a decoder and a plain output head.
    """
    base = unwrap(model)
    head, decoder = LogitHead(base), decoder_of(base)
    dense = lora = 0
    trains_dense = False
    linear: set[int] = set()
    for name, module in decoder.named_modules():
        if isinstance(module, nn.Embedding):
            linear.add(id(module.weight))
        if isinstance(module, nn.ParameterDict) and name.endswith(("lora_embedding_A", "lora_embedding_B")):
            linear.update(id(factor) for factor in module.values())
            lora += sum(factor.numel() for factor in module.values()) if name.endswith("_B") else 0
        if not isinstance(module, nn.Linear | Conv1D):
            continue
        linear.add(id(module.weight))
        size = module.in_features * module.out_features if isinstance(module, nn.Linear) else module.weight.numel()
        if set(name.split(".")) & set(_FACTORS):
            lora += size
        else:
            dense += size
            trains_dense |= bool(module.weight.requires_grad)
    config = base.config.get_text_config()
    layers, heads = (getattr(config, name, None) for name in ("num_hidden_layers", "num_attention_heads"))
    odd = [name for name, weight in decoder.named_parameters() if weight.dim() > 1 and id(weight) not in linear]
    if odd or not layers or not heads:
        why = f"'{odd[0]}' is a weight outside linear layers" if odd else "its config names no attention heads"
        _log.warning("the FLOPs of %s are not counted: %s.", type(base).__name__, why)
        return None
    size_of_head = getattr(config, "head_dim", None) or config.hidden_size // heads
    return ModelFlops(
        dense=dense,
        lora=lora,
        attention=layers * heads * size_of_head,
        hidden=head.module.in_features,
        head=head.module.in_features * head.module.out_features,
        trains_dense=trains_dense,
        trains_head=head.trainable,
        capped=head.cap is not None,
    )
