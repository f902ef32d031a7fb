"""TailSFT: leave out what the model has already learned.

Paper: arXiv 2608.25756.
Formula: loss − base_loss, highest first: what improved most on the base model comes last.
Cost: F, one forward pass, and one of the base model once per example.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from longgame.data.examples import Pool
from longgame.selection.base import Selector
from longgame.selection.history import History
from longgame.signals.base import Signals


class TailSFTSelector(Selector):
    """Smallest improvement on the base model, ``base_loss`` − ``loss``, first; ties by id (arXiv 2608.25756).

    Both losses are means over the same response tokens. Before the first step of a training they are equal up to
    rounding, so the picks of that round are nearly arbitrary; ``longgame select`` with an untrained model is such a
    round.
    """

    name = "tailsft"
    by_row = True
    requires = ("loss", "base_loss")

    def score(self, pool: Pool, signals: Signals, history: History) -> Float[np.ndarray, " n"]:  # noqa: ARG002
        return signals["loss"].astype(np.float64) - signals["base_loss"]
