"""The course of a stage: candidate order, learning rate, and the report; free of torch, for every kind of learner."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from longgame.data.examples import Pool
from longgame.recipe import TrainingSpec

if TYPE_CHECKING:
    from longgame.models.flops import ModelFlops  # loads torch


@dataclass(frozen=True, slots=True)
class StepInfo:
    """What `on_step` receives; step 0 is before the first update."""

    step: int
    steps: int
    selected_tokens: int
    """Selected tokens trained on so far; a second pass counts again. The x-axis of an adaptation curve."""
    loss: float
    """Training loss of the step, nats/token; NaN at step 0."""


@dataclass(frozen=True)
class TrainingReport:
    """What one call of `Learner.train` did."""

    steps: int
    selected_tokens: int
    """Tokens that were selected."""
    optimiser_tokens: int
    """Tokens that went through the optimizer (selected × epochs)."""
    candidate_tokens: int
    """Tokens of the candidates of all rounds."""
    losses: Float[np.ndarray, " steps"]
    """Mean loss per step, nats/token."""
    gradient_gram: Float[np.ndarray, "steps steps"]
    """Inner products of the steps' gradients with each other, before clipping and optimizer (exact or sketched)."""
    gradient_width: int
    """Numbers in a gradient, or in its sketch."""
    drift: float
    """1 − cos of this stage's update with the sum of the earlier ones, in effective weight space; NaN at stage 1."""
    update_norm: float
    """Frobenius norm of this stage's update in effective weight space."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall-clock by part: ``train``, ``select`` (signals + selector), ``diagnose`` (gradients of the picks that only
    the diagnostics read), ``callbacks``."""
    model: ModelFlops | None = None
    """FLOPs of a token; None: a closed form, or a model whose FLOPs are not known."""
    proxy_passes: int = 0
    """Times that the model read the future-proxy mixture."""
    target_passes: int = 0
    """Times that the model read the stage's target set."""
    earlier_passes: int = 0
    """Times that the model read examples of earlier stages (`earlier_items`)."""
    auxiliary_tokens: int = 0
    """Tokens of trainings beside the stage's own, and of the passes under their epochs, that the selector needs, and
    those that a scorer model or an embedder reads for it."""
    auxiliary_flops: float = 0.0
    """FLOPs of them; NaN where they are not known."""
    embedded: bool = False
    """Whether embeddings are those of an embedder, not of the base model."""
    evaluation_passes: int = 0
    """Times that the model read the evaluation items, for a selector that looks at them."""


def stage_order(pool: Pool, rng: np.random.Generator) -> Int[np.ndarray, " n"]:
    """Return the candidate stream of a stage: a permutation of the pool, the same for every selector of a seed."""
    return rng.permutation(len(pool))


def learning_rate_share(step: int, steps: int, warmup: int, final: float) -> float:
    """Return the learning rate's factor at a 0-based step: linear to 1 at ``warmup`` − 1, then linear to ``final``.

    The first step already learns (1 / warmup) and the last one runs at ``final``.
    """
    if step < warmup:
        return (step + 1) / warmup
    return 1 - (1 - final) * (step - warmup + 1) / max(1, steps - warmup)


def warmup_of(spec: TrainingSpec, steps: int) -> int:
    """Return the warm-up steps of ``steps`` steps: a probe runs the stage's schedule, shortened in proportion."""
    return round(spec.warmup_steps * steps / spec.steps)
