"""Gradient selection: what moves the parameters most.

Paper: Katharopoulos & Fleuret 2018, arXiv 1803.00942; arXiv 2605.30537, §4 ("Gradient-based").
Formula: ‖g‖ of the example's gradient g, highest first; or cosine of g with the mean gradient of the candidates.
Cost: B, one forward and backward pass.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float

from longgame.data.examples import Pool
from longgame.selection.algorithms.nearest import cosine
from longgame.selection.base import Selector
from longgame.selection.budget import choice, id_order
from longgame.selection.history import History
from longgame.signals.base import Signals


class GradientSelector(Selector):
    """Largest gradient, or gradient most similar to the candidates' mean; ties by id.

    Args:
        mode: ``norm`` ranks by the exact per-example gradient norm; ``similarity`` by the similarity of the example's
            gradient sketch to the mean sketch of all candidates ("the current batch objective").
        similarity: ``cosine`` (direction alone) or ``dot`` (first-order decrease of the batch loss from a step on the
            example); used by ``mode="similarity"``.
        per: what a gradient is the gradient of. ``example``: its mean NLL per response token. ``step``: its share of
            the step's loss, a mean over all response tokens, so that a gradient counts as often as its example has
            response tokens. Of a cosine, which has no length, only the mean counts each candidate by its tokens.
    """

    name = "gradient"
    family = "gradient"

    def __init__(
        self,
        mode: Literal["norm", "similarity"] = "norm",
        similarity: Literal["cosine", "dot"] = "cosine",
        per: Literal["example", "step"] = "example",
    ) -> None:
        self.mode = choice(self.name, "mode", mode, ("norm", "similarity"))
        self.similarity = choice(self.name, "similarity", similarity, ("cosine", "dot"))
        self.per = choice(self.name, "per", per, ("example", "step"))
        self.requires = ("grad_norm",) if self.mode == "norm" else ("grad_sketch",)
        self.by_row = self.mode == "norm"

    def score(self, pool: Pool, signals: Signals, history: History) -> Float[np.ndarray, " n"]:  # noqa: ARG002
        tokens = np.asarray(pool.response_tokens, dtype=np.float64) if self.per == "step" else np.ones(len(pool))
        if self.mode == "norm":
            return tokens * signals["grad_norm"]
        by_id = id_order(pool.ids)  # sums run in this order, so the pool's order changes no bit
        gradients = tokens[by_id, None] * signals["grad_sketch"][by_id].astype(np.float64)
        mean = gradients.mean(axis=0)
        score = np.empty(len(pool), dtype=np.float32)
        score[by_id] = cosine(gradients, mean) if self.similarity == "cosine" else gradients @ mean
        return score
