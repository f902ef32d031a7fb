"""Floating-point operations of a decoder, counted from its sizes and the tokens it reads (no torch here).

One multiply-add is 2 FLOPs. With T tokens of an example, of which P are predicted (the response), W weights in linear
layers, A weights in LoRA factors, Q query width summed over the attention layers, and a d × V output head:

=========================  ============================================================================
forward                    2 (W + A) T + 4 Q T² + 2 d V P
backward, activations      2 (W + A) T + 8 Q T² + 2 d V P
backward, weights          2 A T with LoRA; 2 W T + 2 d V P in full fine-tuning
=========================  ============================================================================

A token costs about 2 FLOPs per weight forward; forward and backward together 4 with LoRA and 6 in full fine-tuning.
The head counts only where it runs: on response positions. Attention counts its T × T square, as
`torch.utils.flop_counter` does; a kernel that skips the masked half does less. Left out: padding, norms, activation
functions, softmax, embedding look-ups, the optimizer's arithmetic, and work done once for many tokens (merged weights,
DoRA's norms, sketch tables).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


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
    """Whether logits are soft-capped: then every function of them needs the whole vocabulary."""
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

    def training(self, tokens: Int[np.ndarray, " n"], predicted: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """FLOPs of learning each example once: forward and backward."""
        return self.forward(tokens, predicted) + self.backward(tokens, predicted)
