"""Loss selection: what the model is worst at right now.

Paper: Loshchilov & Hutter 2015, arXiv 1511.06343; arXiv 2605.30537, §4 ("Loss-based").
Formula: mean negative log-likelihood per response token, highest first.
Cost: F, one forward pass.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float

from longgame.data.examples import Pool
from longgame.selection.base import Selector
from longgame.selection.budget import choice
from longgame.selection.history import History
from longgame.signals.base import Signals


class LossSelector(Selector):
    """Highest NLL of the response first; ties by id.

    Args:
        per: ``example``: the mean per response token. ``step``: the sum over response tokens, the example's share of
            the step's loss, which is a mean over all response tokens.
    """

    name = "loss"
    by_row = True
    requires = ("loss",)

    def __init__(self, per: Literal["example", "step"] = "example") -> None:
        self.per = choice(self.name, "per", per, ("example", "step"))

    def score(self, pool: Pool, signals: Signals, history: History) -> Float[np.ndarray, " n"]:  # noqa: ARG002
        return signals["loss"] * pool.response_tokens if self.per == "step" else signals["loss"]
