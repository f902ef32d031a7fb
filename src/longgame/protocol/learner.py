"""What the protocol needs of a model; it never learns whether torch is behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from jaxtyping import Float, Int

from longgame.data.examples import Example, Pool, SequenceData, Task
from longgame.selectors.policy import SelectionPolicy
from longgame.signals.base import Signals


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
    """Wall-clock by part: ``train``, ``select`` (signals + selector), ``callbacks``."""


@dataclass(frozen=True, slots=True)
class Score:
    """One measurement of a model."""

    task: str
    sub_skill: str
    scorer: str
    value: float
    """0–100, mean over the sub-skill's items; NaN = not measured."""
    items: int


class Learner(Protocol):
    """A model that can be asked for signals, trained, scored, forked and saved."""

    def pool(self, examples: Sequence[Example]) -> Pool:
        """Tokenise candidates (raises DataError for one longer than the context, naming it)."""
        ...

    def prepare(self, sequence: SequenceData) -> dict[str, np.ndarray]:
        """The seed's frozen pass over all candidates, as arrays to be saved and shared between trials."""
        ...

    def use(self, sequence: SequenceData, frozen: dict[str, np.ndarray]) -> None:
        """Adopt a frozen pass (of this or another process): embeddings, base loss, difficulty, quality, clusters."""
        ...

    def signals(self, pool: Pool, names: Sequence[str]) -> Signals:
        """Columns for these candidates under the model as it is now."""
        ...

    def train(
        self,
        pool: Pool,
        policy: SelectionPolicy,
        schedule: Schedule,
        on_step: Callable[[StepInfo], None] | None = None,
    ) -> TrainingReport:
        """Train through one stage with a fresh optimiser; the policy decides what is learned."""
        ...

    def score(self, tasks: Sequence[Task]) -> list[Score]:
        """Score the model as it is now; one entry per task × sub-skill × scorer."""
        ...

    def fork(self) -> AbstractContextManager[Learner]:
        """A learner in the same state; whatever is done to it leaves no trace here."""
        ...

    def save(self, directory: Path) -> None:
        """Write what is needed to be here again (safetensors, JSON)."""
        ...

    def load(self, directory: Path) -> None:
        """Take back what `save` wrote."""
        ...


def stage_order(pool: Pool, rng: np.random.Generator) -> Int[np.ndarray, " n"]:
    """The candidate stream of a stage: a permutation of the pool that is the same for every selector of a seed."""
    return rng.permutation(len(pool))
