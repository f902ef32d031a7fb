"""Quality selection: the best-looking examples, whatever the model knows.

Paper: arXiv 2605.30537, §4 ("Quality-based").
Formula: the quality column, rules where there is none, or another source that is named, highest first.
Cost: 0, the text alone.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from longgame.data.examples import Pool
from longgame.selection.base import Selector
from longgame.selection.budget import missing_last
from longgame.selection.history import History
from longgame.signals.base import Signals


class QualitySelector(Selector):
    """Highest quality first, by its source (a column or rules, if no other is named); missing ones last; ties by id."""

    name = "quality"
    by_row = True
    requires = ("quality",)

    def score(self, pool: Pool, signals: Signals, history: History) -> Float[np.ndarray, " n"]:  # noqa: ARG002
        return missing_last(signals["quality"])
