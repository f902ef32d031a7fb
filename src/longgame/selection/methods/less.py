"""LESS: what Adam's step on an example does for the target tasks, over the epochs of a warm-up.

Paper: Xia et al. 2024, arXiv 2402.04333.
Formula: max over target tasks of Σ over epochs of η̄ · cos(Γ(g), mean gradient of the task), highest first.
Cost: T, a warm-up on 5 % of the candidates, and a forward and backward pass of all for each of its epochs.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float

from longgame.data.examples import Pool
from longgame.selection.base import Selector
from longgame.selection.budget import COMPAT, choice
from longgame.selection.history import History
from longgame.signals.auxiliary import AuxiliarySpec
from longgame.signals.base import Signals


class LESSSelector(Selector):
    """Highest influence on the target task that gains most first; ties by id (arXiv 2402.04333).

    Γ(g) is Adam's step on the example, from the warm-up's own moments. Gradients are those of the adapter, as sketches.
    Target examples of one task (``skill``) are averaged; those without one are a task together.

    Args:
        share: of the candidates' tokens that the warm-up learns.
        epochs: of the warm-up; each one's checkpoint counts.
        learning_rate: peak of the warm-up; None: that of the audit's stages, and 2e-4 offline.
        batch: examples of a step; None: as in the audit's stages, and 16 offline.
        compat: ``reference``: as the published code, which adds ε under the root of Γ, does not correct the moments,
            and takes the mean of the cosines with a task's examples in place of the cosine with their mean.
    """

    name = "less"
    by_row = True
    requires = ("influence",)

    def __init__(
        self,
        share: float = 0.05,
        epochs: int = 4,
        learning_rate: float | None = None,
        batch: int | None = None,
        compat: Literal["paper", "reference"] = "paper",
    ) -> None:
        published = choice(self.name, "compat", compat, COMPAT) == "reference"
        self.auxiliary = AuxiliarySpec(
            share=share, epochs=epochs, learning_rate=learning_rate, batch=batch, published=published
        )

    def score(self, pool: Pool, signals: Signals, history: History) -> Float[np.ndarray, " n"]:  # noqa: ARG002
        return signals["influence"].max(axis=1)
