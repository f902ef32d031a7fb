"""Dataset cartography: examples whose confidence varies through a training (ambiguous), stays low, or high.

Paper: Swayamdipta et al. 2020, arXiv 2009.10795.
Formula: p = exp(−loss) at every epoch; confidence = mean of p, variability = its population standard deviation.
Cost: T, a training log of the candidates.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float

from longgame.data.examples import Pool
from longgame.selection.base import Selector
from longgame.selection.budget import choice
from longgame.selection.history import History
from longgame.signals.auxiliary import AuxiliarySpec
from longgame.signals.base import Signals


class CartographySelector(Selector):
    """Highest variability in a training log first (ambiguous), or lowest or highest confidence (arXiv 2009.10795).

    The paper's p is the probability of the gold class. Here it is the geometric mean of the probabilities of the
    response tokens, exp(−loss). Ties by id.

    Args:
        region: ``ambiguous``: highest variability first; ``hard``: lowest confidence first; ``easy``: highest
            confidence first.
        epochs: of the training on all candidates that gives the log, where no log is given.

    ``scores``: ``confidence``, ``variability``, and ``score``, which is one of them, or minus the confidence (hard).
    """

    name = "cartography"
    requires = ("loss_trajectory",)

    def __init__(self, region: Literal["ambiguous", "hard", "easy"] = "ambiguous", epochs: int = 4) -> None:
        self.auxiliary = AuxiliarySpec.of_log(epochs)
        self.region = choice(self.name, "region", region, ("ambiguous", "hard", "easy"))

    def score(self, pool: Pool, signals: Signals, history: History) -> dict[str, Float[np.ndarray, " n"]]:  # noqa: ARG002
        probability = np.exp(-signals["loss_trajectory"].astype(np.float64))
        confidence, variability = probability.mean(axis=1), probability.std(axis=1)
        score = {"ambiguous": variability, "hard": -confidence, "easy": confidence}[self.region]
        return {"score": score, "confidence": confidence, "variability": variability}
