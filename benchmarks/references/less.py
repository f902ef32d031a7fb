"""Gradient features the LESS way: one backward pass per example, then a dense random projection of the flat gradient.

LESS (arXiv 2402.04333, § 4.1) takes the gradient g ∈ R^P of each example's mean response NLL with respect to the LoRA
factors at batch size 1, optionally turns it into Adam's update direction (§ 2), and stores Rᵀg with a dense random sign
matrix R ∈ {±1}^(P × 8192). R has billions of entries and is never held: its blocks are drawn from a seed, used and
dropped, as TRAK's projectors do. As in LESS, 16 gradients are gathered before R is drawn once for all of them, so the
cost per example of drawing it is a sixteenth.

R's signs can be drawn in two ways. ``randint`` is what runs where LESS has no GPU (TRAK's projector for the CPU): one
random number a sign. ``bits`` is as fast as PyTorch allows: 64 signs come from one random word, and a table of 256 × 8
floats turns each byte into eight of them, at about the cost of the matrix product that follows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks.references import synchronised
from longgame.data.examples import Pool
from longgame.errors import PluginError
from longgame.seeding import generator, stream_seed

BLOCK_ENTRIES = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Entries of R that exist at one time (16 MiB keeps a CPU's block in its caches; a GPU wants long launches)."""


Draw = Literal["bits", "randint"]


@dataclass(frozen=True)
class AdamState:
    """Adam's moments of the flat LoRA gradient (order of ``model.parameters()``), and its constants."""

    first: Float[Tensor, " P"]
    second: Float[Tensor, " P"]
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def direction(self, gradient: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        """(β₁m + (1−β₁)g) / (√(β₂v + (1−β₂)g²) + ε) (FORMULAS: Adam-aware variant)."""
        mean = torch.lerp(gradient, self.first, self.beta1)
        square = torch.lerp(gradient.square(), self.second, self.beta2)
        return mean.div_(square.sqrt_().add_(self.epsilon))


@dataclass(frozen=True)
class LessFeatures:
    """Features, and the seconds that each half of the work took."""

    features: Float[np.ndarray, "n dim"]
    """Rᵀg/√dim, float32: E⟨s(g), s(h)⟩ = ⟨g, h⟩ (LESS leaves out the constant 1/√dim)."""
    backward_seconds: float
    projection_seconds: float


def less_features(
    model: nn.Module,
    pool: Pool,
    *,
    dim: int = 8192,
    interval: int = 16,
    seed: int = 0,
    adam: AdamState | None = None,
    draw: Draw = "bits",
) -> LessFeatures:
    """Return the projected gradient of each example of the pool.

    Args:
        model: causal LM in evaluation mode; the gradient is of all parameters that require one.
        pool: the examples; one forward and backward pass each.
        dim: columns of R, a multiple of 64.
        interval: gradients gathered before R is drawn for all of them (``interval`` · P floats are held).
        seed: fixes R.
        adam: optimiser state, for the Adam-aware variant.
        draw: how R's signs are drawn (see the module's text); the two draw different matrices.

    Raises:
        PluginError: ``dim`` is not a positive multiple of 64.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    device = weights[0].device
    features = np.zeros((len(pool), dim), dtype=np.float32)
    backward = projection = 0.0
    for start in range(0, len(pool), interval):
        rows = range(start, min(start + interval, len(pool)))
        before = synchronised(device)
        gathered = torch.stack([_gradient(model, weights, pool, row, adam) for row in rows])
        between = synchronised(device)
        features[start : rows.stop] = project(gathered, dim, seed, draw).cpu().numpy()
        backward, projection = backward + between - before, projection + synchronised(device) - between
    return LessFeatures(features, backward, projection)


def project(gradients: Float[Tensor, "n P"], dim: int, seed: int, draw: Draw = "bits") -> Float[Tensor, "n dim"]:
    """Return gradients · R/√dim, drawing R block by block.

    Raises:
        PluginError: ``dim`` is not a positive multiple of 64.
    """
    total = gradients.new_zeros(len(gradients), dim)
    start = 0
    for block in sign_blocks(gradients.shape[1], dim, seed, gradients.device, draw):
        total.addmm_(gradients[:, start : start + len(block)], block)
        start += len(block)
    return total.mul_(dim**-0.5)


def sign_blocks(
    size: int, dim: int, seed: int, device: torch.device, draw: Draw = "bits"
) -> Iterator[Float[Tensor, "rows dim"]]:
    """Yield R's rows in blocks; a block is overwritten by the next. On the CPU, R does not depend on the block size."""
    if dim < 64 or dim % 64:
        raise PluginError(f"the projection has {dim} columns; it must be a positive multiple of 64, e.g. 8192.")
    fill = _from_bits if draw == "bits" else _from_integers
    limit = min(size, max(1, BLOCK_ENTRIES[device.type] // dim))
    signs = torch.empty(limit * dim, device=device)
    source = _source(seed, device)
    for start in range(0, size, limit):
        block = signs[: min(limit, size - start) * dim]
        fill(block, source)
        yield block.view(-1, dim)


@dataclass(frozen=True)
class _Source:
    """Random streams: NumPy's is the faster one for words on the CPU."""

    numpy: np.random.Generator
    torch: torch.Generator
    table: Float[Tensor, "256 8"]
    """The eight bits of each byte, as signs."""


def _source(seed: int, device: torch.device) -> _Source:
    bits = torch.arange(256, dtype=torch.int32)[:, None] >> torch.arange(8, dtype=torch.int32)
    stream = torch.Generator(device).manual_seed(stream_seed(seed, "less"))
    return _Source(generator(seed, "less"), stream, ((bits & 1) * 2 - 1).float().to(device))


def _from_bits(block: Float[Tensor, " entries"], source: _Source) -> None:
    if block.device.type == "cpu":
        words = source.numpy.integers(0, 1 << 64, size=len(block) // 64, dtype=np.uint64)
        octets = torch.from_numpy(words.view(np.uint8))
    else:
        octets = torch.randint(
            0, 256, (len(block) // 8,), dtype=torch.uint8, generator=source.torch, device=block.device
        )
    torch.index_select(source.table, 0, octets.int(), out=block.view(-1, 8))


def _from_integers(block: Float[Tensor, " entries"], source: _Source) -> None:
    torch.randint(0, 2, block.shape, generator=source.torch, out=block)
    block.mul_(2).sub_(1)


def _gradient(
    model: nn.Module, weights: Sequence[Tensor], pool: Pool, row: int, adam: AdamState | None
) -> Float[Tensor, " P"]:
    """One example's gradient of the loss that transformers computes from labels (the mean response NLL)."""
    ids = torch.from_numpy(np.asarray(pool.input_ids[row]))[None].to(weights[0].device)
    labels = ids.clone()
    labels[:, : int(pool.prompt_tokens[row])] = -100
    loss = model(input_ids=ids, labels=labels, use_cache=False).loss
    flat = torch.cat([part.flatten() for part in torch.autograd.grad(loss, weights)])
    return flat if adam is None else adam.direction(flat)
