"""Loss selection: what the model is worst at right now (paper §4, "Loss-based")."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from longgame.data.examples import Pool
from longgame.selection.base import Selector
from longgame.selection.history import History
from longgame.signals.base import Signals


class LossSelector(Selector):
    """Highest mean NLL per response token first; ties by id."""

    name = "loss"
    requires = ("loss",)

    def score(self, pool: Pool, signals: Signals, history: History) -> Float[np.ndarray, " n"]:  # noqa: ARG002
        return signals["loss"]
