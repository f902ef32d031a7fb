"""Superfiltering: the instruction-following difficulty, measured by a small model.

Paper: Li et al. 2024, arXiv 2402.00530.
Formula: perplexity with the prompt / perplexity without it, under a scorer model; a ratio above 1 is rejected.
Cost: 2F, two forward passes of the scorer model, which is smaller than the one that is trained.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float

from longgame.data.examples import Pool
from longgame.selection.base import Selector
from longgame.selection.budget import REJECTED, choice
from longgame.selection.history import History
from longgame.signals.base import Signals


class SuperfilteringSelector(Selector):
    """Highest ratio of perplexities under the scorer model first; ties by id (arXiv 2402.00530).

    `ifd` divides mean losses; this divides their exponentials, as published, which orders candidates otherwise:
    exp(loss − loss_without_prompt) does not depend on how long or hard the response is alone. Both are at most 1 for
    the same candidates.

    Args:
        rejected: ratios above 1: ``last``, after all others, the lowest first; ``never``, as in the paper.

    ``scores``: ``ratio``. ``score`` is the ratio, too; of a rejected candidate minus the ratio, or NaN (``never``).
    """

    name = "superfiltering"
    by_row = True
    requires = ("scorer_loss", "scorer_loss_without_prompt")

    def __init__(self, rejected: Literal["last", "never"] = "last") -> None:
        self.rejected = choice(self.name, "rejected", rejected, REJECTED)

    def score(self, pool: Pool, signals: Signals, history: History) -> dict[str, Float[np.ndarray, " n"]]:  # noqa: ARG002
        gap = signals["scorer_loss"].astype(np.float64) - signals["scorer_loss_without_prompt"]
        ratio = np.exp(np.minimum(gap, 700.0))  # beyond, a float64 overflows
        return {"score": np.where(ratio <= 1, ratio, -ratio if self.rejected == "last" else np.nan), "ratio": ratio}
