"""What the protocol needs of a model; it never learns whether torch is behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import numpy as np

from longgame.data.examples import Example, Pool, SequenceData, Task
from longgame.evaluation.base import Score
from longgame.selectors.policy import SelectionPolicy
from longgame.signals.base import Signals
from longgame.training.base import Schedule, StepInfo, TrainingReport


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

    def describe(self) -> dict[str, str]:
        """Where the weights came from and what they run on; a run does not go on under another description."""
        ...

    def save(self, directory: Path) -> None:
        """Write what is needed to be here again (safetensors, JSON)."""
        ...

    def load(self, directory: Path) -> None:
        """Take back what `save` wrote."""
        ...
