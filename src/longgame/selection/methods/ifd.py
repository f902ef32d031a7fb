"""IFD, instruction-following difficulty: how little the prompt helps the model to write the response.

Paper: Li et al. 2024, arXiv 2308.12032.
Formula: loss / loss_without_prompt, highest first; a ratio above 1 is rejected.
Cost: 2F, two forward passes: with the prompt and without it.
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

_SMALLEST = 1e-6
"""Nats per token; a response without any loss has no ratio."""


class IFDSelector(Selector):
    """Highest ratio of the loss with the prompt to the loss without it first; ties by id (arXiv 2308.12032).

    Both losses are means over the same response tokens (`loss`, `loss_without_prompt`), in all learned turns. A ratio
    above 1 means that the prompt makes the response less likely, so that the two do not fit together. Such candidates
    are rejected, whatever the budget; the budget counts all candidates, not those that are left.

    Args:
        rejected: ``last``: ratios above 1 are picked after all others, the lowest first, so that the budget is filled.
            ``never``: they are never picked, as in the paper, and fewer tokens than the budget may be spent.

    ``scores``: ``ifd`` is the ratio. ``score`` is the ratio, too; of a rejected candidate minus the ratio, or NaN
    (``never``).
    """

    name = "ifd"
    by_row = True
    requires = ("loss", "loss_without_prompt")

    def __init__(self, rejected: Literal["last", "never"] = "last") -> None:
        self.rejected = choice(self.name, "rejected", rejected, REJECTED)

    def score(self, pool: Pool, signals: Signals, history: History) -> dict[str, Float[np.ndarray, " n"]]:  # noqa: ARG002
        alone = np.maximum(signals["loss_without_prompt"].astype(np.float64), _SMALLEST)
        ratio = signals["loss"] / alone
        return {"score": np.where(ratio <= 1, ratio, -ratio if self.rejected == "last" else np.nan), "ifd": ratio}
