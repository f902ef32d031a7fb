"""The oracle: picks by the gradients of the evaluation items themselves. No method, but the head-room of selection."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from longgame.data.examples import Pool
from longgame.selection.base import Selector
from longgame.selection.history import History
from longgame.signals.base import Signals


class OracleSelector(Selector):
    """Highest mean cosine of the example's gradient with those of the audit's evaluation items first; ties by id.

    To first order, a step on the picks raises the scores of all tasks, of every stage and out of distribution, the
    most. It looks at what it is measured by, so an audit compares it with no method (``oracle: true``): it says how far
    choosing among these candidates can move the results at all.
    """

    name = "oracle"
    family = "reference"
    requires = ("evaluation_alignment",)

    def score(self, pool: Pool, signals: Signals, history: History) -> Float[np.ndarray, " n"]:  # noqa: ARG002
        return np.asarray(signals["evaluation_alignment"], dtype=np.float64).mean(axis=1)
