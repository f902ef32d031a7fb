"""Forgetting events: examples that a training learned and lost again, most often first.

Paper: Toneva et al. 2019, arXiv 1812.05159.
Formula: number of epochs in which an example is wrong after one in which it was right; never learned: +∞.
Cost: T, a training log of the candidates.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float

from longgame.data.examples import Pool
from longgame.selection.base import Selector
from longgame.selection.budget import choice, number
from longgame.selection.history import History
from longgame.signals.auxiliary import AuxiliarySpec
from longgame.signals.base import Signals


class ForgettingEventsSelector(Selector):
    """Most forgetting events in a training log first; ties by id (arXiv 1812.05159).

    The paper counts right classifications. A response has many tokens: an example is right at an epoch if its token
    accuracy there is at least ``threshold``. Many examples share a count, and then ids decide: more epochs and a
    threshold near the median accuracy tell more of them apart.

    Args:
        threshold: token accuracy from which an example counts as right, in (0, 1].
        never_learned: examples that are right at no epoch: ``first``, as in the paper, or ``last``.
        epochs: of the training on all candidates that gives the log, where no log is given.

    ``scores``: ``events``, and ``learned``: 1 if the example is right at any epoch, else 0. ``score`` is the number of
    events. For what was never learned it is the number of epochs, which no count reaches (``first``), or −1.
    """

    name = "forgetting-events"
    requires = ("accuracy_trajectory",)

    def __init__(
        self, threshold: float = 0.5, never_learned: Literal["first", "last"] = "first", epochs: int = 4
    ) -> None:
        self.auxiliary = AuxiliarySpec.of_log(epochs)
        self.threshold = number(self.name, "threshold", threshold, above=0, most=1)
        self.never_learned = choice(self.name, "never_learned", never_learned, ("first", "last"))

    def score(self, pool: Pool, signals: Signals, history: History) -> dict[str, Float[np.ndarray, " n"]]:  # noqa: ARG002
        right = signals["accuracy_trajectory"] >= np.float32(self.threshold)
        events = (right[:, :-1] & ~right[:, 1:]).sum(axis=1).astype(np.float64)
        learned = right.any(axis=1)
        above = float(right.shape[1]) if self.never_learned == "first" else -1.0
        return {"score": np.where(learned, events, above), "events": events, "learned": learned.astype(np.float64)}
