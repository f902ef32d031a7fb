"""Per-example gradient norms and sketches, gathered weight by weight while one backward pass runs."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from longgame.signals.projection import CountSketch, signs

SIDE = 64
"""Full fine-tuning: a weight's gradient is first projected to at most SIDE × SIDE, then count-sketched."""


class GradientSketch:
    """Sketch of a model's whole gradient: every weight's share is added into the same ``dim`` numbers.

    A LoRA factor (r × d) is count-sketched as it is. A full weight matrix (o × i) would need tables as large as the
    model; its gradient is first multiplied from both sides by seeded ±1/√64 matrices (a side of ≤ 64 stays exact).

    Args:
        dim: numbers in the sketch.
        seed: with the weights' names and shapes it fixes the projection, on every machine.
    """

    def __init__(self, dim: int, seed: int) -> None:
        self.count = CountSketch(dim, seed)
        self.dim = self.count.dim
        self._sides: dict[tuple[str, str, int, torch.device], Tensor] = {}

    def reduce(self, name: str, side: str, states: Float[Tensor, "b T n"]) -> Float[Tensor, "b T m"]:
        """Project the last dimension to SIDE by signs, or leave it where it is no longer than that."""
        size = states.shape[-1]
        if size <= SIDE:
            return states
        key = (name, side, size, states.device)
        if key not in self._sides:
            matrix = signs(self.count.seed, "gradient-side", name, side, shape=(size, SIDE)) / SIDE**0.5
            self._sides[key] = matrix.to(states.device)
        return states @ self._sides[key]


class BatchGradients:
    """Accumulates ‖g‖² and the sketch of each example's gradient g; `add` is a `recording` receiver.

    Args:
        examples: b, examples in the batch.
        sketch: projection, or None where only the norm is asked for.
        norm: whether the norm is asked for.
        lora: whether gradients are of LoRA factors (small enough to be formed) or of full weights.
    """

    def __init__(self, examples: int, sketch: GradientSketch | None, norm: bool, lora: bool, device: torch.device):
        self._sketch = sketch
        self._norm = norm
        self._lora = lora
        self._square = torch.zeros(examples, dtype=torch.float32, device=device)
        self._vector = torch.zeros(examples, 0 if sketch is None else sketch.dim, device=device)

    def add(self, name: str, delta: Float[Tensor, "b T o"], x: Float[Tensor, "b T i"]) -> None:
        """Take one weight's output gradient and input; its gradient is Σ_t δ_t x_tᵀ (o × i) per example."""
        delta, x = delta.float(), x.float()
        if self._lora:
            gradient = (delta.mT @ x).flatten(1)
            if self._norm:
                self._square += torch.linalg.vector_norm(gradient, dim=1).square_()
            if self._sketch is not None:
                self._vector += self._sketch.count.project(name, gradient)
            return
        if self._norm:
            self._square += _square_norms(delta, x)
        if self._sketch is not None:
            left, right = self._sketch.reduce(name, "out", delta), self._sketch.reduce(name, "in", x)
            self._vector += self._sketch.count.project(name, (left.mT @ right).flatten(1))

    def norms(self) -> Float[np.ndarray, " b"]:
        """‖g‖₂ of each example."""
        return self._square.double().sqrt().cpu().numpy()

    def sketches(self) -> Float[np.ndarray, "b dim"]:
        """The sketch of each example's gradient (of width 0 where none was asked for)."""
        return self._vector.cpu().numpy()


def _square_norms(delta: Float[Tensor, "b T o"], x: Float[Tensor, "b T i"]) -> Float[Tensor, " b"]:
    """‖Σ_t δ_t x_tᵀ‖² of each example, by the cheaper of two exact ways."""
    tokens, rows, columns = delta.shape[1], delta.shape[2], x.shape[2]
    if tokens * (rows + columns) >= rows * columns:
        return torch.linalg.vector_norm((delta.mT @ x).flatten(1), dim=1).square_()
    # Ghost form Σ_{s,t} (δ_s·δ_t)(x_s·x_t): no o × i matrix. Its terms cancel, hence float64.
    delta, x = delta.double(), x.double()
    return ((delta @ delta.mT) * (x @ x.mT)).sum((1, 2)).clamp_min_(0).float()
