"""Quality selection: the best-looking examples, whatever the model knows.

Paper: arXiv 2605.30537, §4 ("Quality-based").
Formula: the data's quality column, or rules where there is none, highest first.
Cost: 0, the text alone.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from longgame.data.examples import Pool
from longgame.selection.base import Selector
from longgame.selection.history import History
from longgame.signals.base import Signals


class QualitySelector(Selector):
    """Highest quality first (a column of the data, or the rules of `longgame.signals.quality`); ties by id."""

    name = "quality"
    requires = ("quality",)

    def score(self, pool: Pool, signals: Signals, history: History) -> Float[np.ndarray, " n"]:  # noqa: ARG002
        return signals["quality"]
