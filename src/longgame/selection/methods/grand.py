"""GraNd, the norm of the example's gradient.

Paper: Paul, Ganguli & Dziugaite 2021, arXiv 2107.07075.
Formula: ‖∇ mean loss over response tokens‖₂, highest first.
Cost: B, one forward and backward pass.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from longgame.data.examples import Pool
from longgame.selection.base import Selector
from longgame.selection.history import History
from longgame.signals.base import Signals


class GraNdSelector(Selector):
    """Largest gradient norm first; ties by id (arXiv 2107.07075). Picks as ``gradient`` by ``norm``.

    The gradient is that of the trained parameters (LoRA's, or all of them) and exact per example, whatever the batch.
    """

    name = "grand"
    by_row = True
    requires = ("grad_norm",)

    def score(self, pool: Pool, signals: Signals, history: History) -> Float[np.ndarray, " n"]:  # noqa: ARG002
        return signals["grad_norm"]
