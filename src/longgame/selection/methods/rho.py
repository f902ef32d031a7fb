"""RHO, the reducible holdout loss: what the model has not learned and a model of held-out data has.

Paper: Mindermann et al. 2022, arXiv 2206.07137.
Formula: loss − loss of a reference model that is trained on held-out data, highest first.
Cost: T, the reference model's training, its pass over the candidates once, and a forward pass.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from longgame.data.examples import Pool
from longgame.selection.base import Selector
from longgame.selection.history import History
from longgame.signals.auxiliary import AuxiliarySpec
from longgame.signals.base import Signals


class RHOSelector(Selector):
    """Largest reducible holdout loss first; ties by id (arXiv 2206.07137).

    The reference is never trained on the candidates: it is a model that is given (offline: ``--reference-model``), or
    the model itself after some epochs on the target set. One with another tokenizer counts, too: its nats are divided
    by the response tokens of the model that scores.

    Args:
        epochs: over the target set.
        learning_rate: peak; None: that of the audit's stages, and 2e-4 offline.
        batch: examples of a step; None: as in the audit's stages, and 16 offline.

    ``scores``: ``loss``, ``reference_loss`` and ``score``, their difference.
    """

    name = "rho"
    by_row = True
    requires = ("loss", "reference_loss")

    def __init__(self, epochs: int = 4, learning_rate: float | None = None, batch: int | None = None) -> None:
        self.auxiliary = AuxiliarySpec(epochs=epochs, learning_rate=learning_rate, batch=batch)

    def score(self, pool: Pool, signals: Signals, history: History) -> dict[str, Float[np.ndarray, " n"]]:  # noqa: ARG002
        loss, reference = signals["loss"], signals["reference_loss"]
        return {"score": loss - reference, "loss": loss, "reference_loss": reference}
