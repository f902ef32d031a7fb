"""Middle perplexity: neither the easiest nor the hardest texts of the base model.

Paper: Marion et al. 2023, arXiv 2309.04564.
Formula: −|percentile of base_loss − middle of the band|, highest first.
Cost: F, one forward pass of the base model, once per example.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float

from longgame.data.examples import Pool
from longgame.errors import RecipeError
from longgame.selection.base import Selector
from longgame.selection.budget import REJECTED, choice, weight
from longgame.selection.history import History
from longgame.signals.base import Signals


class MiddlePerplexitySelector(Selector):
    """Candidates whose base loss is nearest to the middle of a band of percentiles first; ties by id.

    The percentile is `difficulty`: the rank of ``base_loss`` (mean NLL per response token, without padding) among all
    candidates of the stage, also where a round offers a few of them. Perplexity is exp(loss), so it has the same ranks.

    Args:
        low, high: the band, percentiles in 0 … 100; by default the middle half.
        rejected: what happens outside the band: ``last``: picked after all others, the nearest first; ``never``.

    ``scores``: ``percentile`` of the base loss, 0 … 100; ``score`` is minus the distance to the middle of the band.
    """

    name = "ppl-mid"
    requires = ("difficulty",)

    def __init__(self, low: float = 25.0, high: float = 75.0, rejected: Literal["last", "never"] = "last") -> None:
        self.low, self.high = weight(self.name, "low", low), weight(self.name, "high", high)
        if not self.low < self.high <= 100:
            raise RecipeError(
                f"selector '{self.name}': low is {low!r} and high is {high!r}; give percentiles, 0 ≤ low < high ≤ 100."
            )
        self.rejected = choice(self.name, "rejected", rejected, REJECTED)

    def score(self, pool: Pool, signals: Signals, history: History) -> dict[str, Float[np.ndarray, " n"]]:  # noqa: ARG002
        percentile = 100.0 * signals["difficulty"].astype(np.float64)
        score = -np.abs(percentile - (self.low + self.high) / 2)
        if self.rejected == "never":
            score = np.where((percentile >= self.low) & (percentile <= self.high), score, np.nan)
        return {"score": score, "percentile": percentile}
