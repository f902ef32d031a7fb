"""EL2N, the length of the error: how far the predicted tokens are from the response.

Paper: Paul, Ganguli & Dziugaite 2021, arXiv 2107.07075.
Formula: mean over response tokens of ‖softmax − one-hot‖₂, highest first.
Cost: F, one forward pass.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from longgame.data.examples import Pool
from longgame.selection.base import Selector
from longgame.selection.history import History
from longgame.signals.base import Signals


class EL2NSelector(Selector):
    """Highest EL2N under the model as it is now first; ties by id (arXiv 2107.07075).

    The paper averages the scores of several models early in training. Here one model is asked: the model that trains,
    or, in ``longgame select``, the model that is given.
    """

    name = "el2n"
    by_row = True
    requires = ("el2n",)

    def score(self, pool: Pool, signals: Signals, history: History) -> Float[np.ndarray, " n"]:  # noqa: ARG002
        return signals["el2n"]
