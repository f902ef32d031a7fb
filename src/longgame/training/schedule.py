"""How a stage is trained and what is told about it; free of torch, so that every substrate speaks it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from longgame.data.examples import Pool
from longgame.models.flops import ModelFlops
from longgame.recipe import TrainingSpec
from longgame.signals.projection import UpdateSketch


@dataclass(frozen=True, slots=True)
class Schedule:
    """How one stage (or probe) is trained and how often it selects."""

    steps: int
    """Optimiser steps."""
    budget: float
    """Share of the pool's tokens that may be selected, in (0, 1]."""
    rounds: int | Literal["step"] = "step"
    """1 = one offline choice; n = the rest of the pool is re-scored before each of n shares; "step" = each step
    scores a fresh share of the candidate stream."""
    epochs: int = 1
    """Passes over what a round selected, dealt over the round's steps."""
    seed: int = 0
    """Seed of this stage's streams (candidate order, dealing); the same for every selector of a trial's seed."""


@dataclass(frozen=True, slots=True)
class StepInfo:
    """Told to `on_step`: step 0 is before the first update."""

    step: int
    steps: int
    selected_tokens: int
    """Selected tokens learned from so far (a second pass counts again): the x-axis of an adaptation curve."""
    loss: float
    """Training loss of the step, nats/token; NaN at step 0."""


@dataclass(frozen=True)
class TrainingReport:
    """What one call of `Learner.train` did."""

    steps: int
    selected_tokens: int
    """Tokens the selector spent."""
    optimiser_tokens: int
    """Tokens that went through the optimiser (selected × epochs)."""
    candidate_tokens: int
    """Tokens that were scored to choose."""
    losses: Float[np.ndarray, " steps"]
    """Mean loss per step, nats/token."""
    update_gram: Float[np.ndarray, "steps steps"]
    """Inner products of the optimiser updates with each other (exact or sketched), for update concentration."""
    drift: float
    """1 − cos of this stage's update with the sum of the earlier ones, in effective weight space; NaN at stage 1."""
    update_norm: float
    """Frobenius norm of this stage's update in effective weight space."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall-clock by part: ``train``, ``select`` (signals + selector), ``diagnose`` (gradients of the picks that only
    the diagnostics read), ``callbacks``."""
    model: ModelFlops | None = None
    """What a token costs in the model; None: a closed form, or a model whose FLOPs cannot be told."""
    proxy_passes: int = 0
    """Times that the future-proxy mixture was measured for the choice."""


def stage_order(pool: Pool, rng: np.random.Generator) -> Int[np.ndarray, " n"]:
    """The candidate stream of a stage: a permutation of the pool that is the same for every selector of a seed."""
    return rng.permutation(len(pool))


def learning_rate_share(step: int, steps: int, warmup: int, final: float) -> float:
    """Share of the learning rate at a 0-based step: linear up to 1 at step ``warmup`` − 1, then linear to ``final``.

    The first step already learns (1 / warmup) and the last one runs at ``final``.
    """
    if step < warmup:
        return (step + 1) / warmup
    return 1 - (1 - final) * (step - warmup + 1) / max(1, steps - warmup)


def warmup_of(spec: TrainingSpec, steps: int) -> int:
    """Warm-up steps of a run of ``steps``: a probe goes through the stage's whole schedule, shortened in proportion."""
    return round(spec.warmup_steps * steps / spec.steps)


# What the optimiser did to the weights, step by step: the Gram matrix of its updates.

EXACT_FLOATS = 64_000_000
"""Parameters × steps up to which the updates themselves are kept (float32, 256 MB)."""

SKETCH_DIM = 8192
"""Numbers per update above that; an inner product is then off by about √(2/8192) = 1.6 % of the two norms' product."""


class UpdateRecorder:
    """Collects Δθ of every step and gives their inner products (the input of update concentration).

    Exact while parameters × steps stay under `EXACT_FLOATS`; above, each update is projected to `SKETCH_DIM` numbers
    by a count sketch, whose inner products are unbiased.

    Args:
        parameters: (name, tensor) of everything the optimiser changes.
        steps: how many updates will be recorded.
    """

    def __init__(self, parameters: Sequence[tuple[str, Tensor]], steps: int, *, seed: int = 0) -> None:
        self._names = [name for name, _ in parameters]
        self._tensors = [tensor.detach() for _, tensor in parameters]
        self._sizes = [tensor.numel() for tensor in self._tensors]
        self.exact = sum(self._sizes) * steps <= EXACT_FLOATS
        self._seed = seed
        self._before = self._flat()
        width = sum(self._sizes) if self.exact else SKETCH_DIM
        self._updates = torch.zeros(steps, width, dtype=torch.float32, device=self._before.device)
        self._count = 0

    def _flat(self) -> Float[Tensor, " parameters"]:
        return torch.cat([tensor.reshape(-1) for tensor in self._tensors]).float()

    def record(self) -> None:
        """Note what changed since the last call (call it once after every optimiser step)."""
        after = self._flat()
        update = torch.sub(after, self._before, out=self._before)
        if self.exact:
            self._updates[self._count] = update
        else:
            sketch = UpdateSketch(SKETCH_DIM, self._seed)
            for name, part in zip(self._names, update.split(self._sizes), strict=True):
                sketch.add(name, part)
            self._updates[self._count] = torch.as_tensor(sketch.vector())
        self._before = after
        self._count += 1

    def gram(self) -> Float[np.ndarray, "steps steps"]:
        """Inner products of the recorded updates, float64, in squared parameter units."""
        updates = self._updates[: self._count]
        return (updates @ updates.T).double().cpu().numpy()
