"""Per-example gradient norms and sketches, gathered weight by weight while one backward pass runs."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from longgame.signals.adapters import OneHot
from longgame.signals.preconditioning import AdamPreconditioner
from longgame.signals.projection import CountSketch, signs

SIDE = 64
"""Full fine-tuning: a weight's gradient is first projected to at most SIDE × SIDE, then count-sketched."""

LOSS_SCALE = 256.0
"""Float16: slope of the scaled loss by each token's NLL."""
_RETREAT = 64.0
"""Float16: by how much the scale falls after an overflow, at most `_RETREATS` times."""
_RETREATS = 3


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
        preconditioned: where Adam's step on each example is to be sketched too, with what; LoRA only.
    """

    def __init__(
        self,
        examples: int,
        sketch: GradientSketch | None,
        norm: bool,
        lora: bool,
        device: torch.device,
        preconditioned: tuple[GradientSketch, AdamPreconditioner] | None = None,
    ):
        self._sketch = sketch
        self._norm = norm
        self._lora = lora
        self._preconditioned = preconditioned
        self._unscale: Tensor | None = None
        self._square = torch.zeros(examples, dtype=torch.float32, device=device)
        self._vector = torch.zeros(examples, 0 if sketch is None else sketch.dim, device=device)
        self._step = torch.zeros(examples, 0 if preconditioned is None else preconditioned[0].dim, device=device)

    def add(self, name: str, delta: Float[Tensor, "b T o"], x: Float[Tensor, "b T i"] | OneHot) -> None:
        """Take one weight's output gradient and input; its gradient is Σ_t δ_t x_tᵀ (o × i) per example."""
        if self._unscale is not None:
            delta = delta.float() * self._unscale[:, None, None]
        if isinstance(x, OneHot):
            self._add_columns(name, delta.float(), x)
        elif self._lora:
            self._add_formed(name, _outer(delta, x).flatten(1))
        else:
            delta, x = delta.float(), x.float()
            if self._norm:
                self._square += _square_norms(delta, x)
            if self._sketch is not None:
                left, right = self._sketch.reduce(name, "out", delta), self._sketch.reduce(name, "in", x)
                self._vector += self._sketch.count.project(name, (left.mT @ right).flatten(1))

    def backward(
        self,
        hidden: Float[Tensor, "b T d"],
        inputs: list[Tensor],
        outward: Float[Tensor, "b T d"],
        scale: Float[Tensor, " b"] | None = None,
    ) -> None:
        """Drive the recorded backward pass from scale · ∂(loss)/∂hidden, and start again at less where that overflows.

        Args:
            hidden: what the recorded forward pass ended in.
            inputs: `Recording.inputs`.
            outward: scale · ∂(loss)/∂hidden.
            scale: `loss_scale` of the examples; None: not scaled.
        """
        if scale is None:
            torch.autograd.grad(hidden, inputs, outward)
            return
        for more in (*(True for _ in range(_RETREATS)), False):
            self._unscale = scale.reciprocal()
            torch.autograd.grad(hidden, inputs, outward, retain_graph=more)
            totals = (self._square, self._vector, self._step)
            if not more or all(bool(total.isfinite().all()) for total in totals):
                return
            for total in totals:
                total.zero_()
            outward, scale = outward / _RETREAT, scale / _RETREAT

    def _add_formed(self, name: str, gradient: Float[Tensor, "b n"]) -> None:
        if self._norm:
            self._square += torch.linalg.vector_norm(gradient, dim=1).square_()
        if self._sketch is not None:
            self._vector += self._sketch.count.project(name, gradient)
        if self._preconditioned is not None:
            sketch, adam = self._preconditioned
            self._step += sketch.count.project(name, adam(name, gradient))

    def _add_columns(self, name: str, delta: Float[Tensor, "b T o"], x: OneHot) -> None:
        """The gradient is zero but for the columns that the example's tokens look up."""
        index, columns = _sum_by_index(delta, x.index)
        size = columns.shape[2] * x.size
        row = torch.arange(columns.shape[2], device=delta.device)
        entry = (row * x.size + index[..., None]).where(index[..., None] >= 0, -1).flatten(1)
        value = columns.flatten(1)
        if self._norm:
            self._square += torch.linalg.vector_norm(value, dim=1).square_()
        if self._sketch is not None:
            self._vector += self._sketch.count.project_entries(name, size, entry, value)
        if self._preconditioned is not None:  # Γ is not zero elsewhere: Γ(0), corrected where tokens look
            sketch, adam = self._preconditioned
            still = adam(name, value.new_zeros(1, size))
            moved = adam.at(name, value, entry) - adam.at(name, torch.zeros_like(value), entry)
            self._step += sketch.count.project(name, still)
            self._step += sketch.count.project_entries(name, size, entry, moved)

    def norms(self) -> Float[np.ndarray, " b"]:
        """‖g‖₂ of each example."""
        return self._square.double().sqrt().cpu().numpy()

    def sketches(self) -> Float[np.ndarray, "b dim"]:
        """The sketch of each example's gradient (of width 0 where none was asked for)."""
        return self._vector.cpu().numpy()

    def step_sketches(self) -> Float[np.ndarray, "b dim"]:
        """The sketch of Adam's step on each example (of width 0 where none was asked for)."""
        return self._step.cpu().numpy()


def loss_scale(counts: Int[np.ndarray, " b"], hidden: Float[Tensor, "b T d"]) -> Float[Tensor, " b"] | None:
    """What each example's loss is multiplied by before its gradient is taken, so that float16 holds it; else None.

    A mean over ``counts`` tokens gives each of them a slope near 1/count, and softmax puts 1e-7 on most of the
    vocabulary: below float16's 6e-5 bits are lost, below 6e-8 all. bfloat16 and float32 have the range.
    """
    if hidden.dtype != torch.float16:
        return None
    return torch.from_numpy(counts * LOSS_SCALE).to(hidden.device, torch.float32)


def _sum_by_index(
    delta: Float[Tensor, "b T o"], index: Int[Tensor, "b T"]
) -> tuple[Int[Tensor, "b T"], Float[Tensor, "b T o"]]:
    """Sum each example's rows of equal index into the first of them; the others become zero, with index −1.

    By a product with the T × T table of equal indices: the same sum order every time, unlike a scatter on a GPU.
    """
    same = index[:, :, None] == index[:, None, :]
    first = same.int().argmax(2) == torch.arange(index.shape[1], device=index.device)
    first &= index >= 0
    total = (same & first[:, :, None]).to(delta.dtype) @ delta
    return index.where(first, -1), total


def _outer(delta: Float[Tensor, "b T o"], x: Float[Tensor, "b T i"]) -> Float[Tensor, "b o i"]:
    """Σ_t δ_t x_tᵀ of each example, float32; of two bfloat16 factors summed in float32 and rounded once."""
    if delta.dtype == x.dtype == torch.bfloat16:
        return (delta.mT @ x).float()
    return delta.float().mT @ x.float()


def _square_norms(delta: Float[Tensor, "b T o"], x: Float[Tensor, "b T i"]) -> Float[Tensor, " b"]:
    """‖Σ_t δ_t x_tᵀ‖² of each example, by the cheaper of two exact ways."""
    tokens, rows, columns = delta.shape[1], delta.shape[2], x.shape[2]
    if tokens * (rows + columns) >= rows * columns:
        return torch.linalg.vector_norm((delta.mT @ x).flatten(1), dim=1).square_()
    # Ghost form Σ_{s,t} (δ_s·δ_t)(x_s·x_t): no o × i matrix. Its terms cancel, hence float64.
    delta, x = delta.double(), x.double()
    return ((delta @ delta.mT) * (x @ x.mT)).sum((1, 2)).clamp_min_(0).float()
