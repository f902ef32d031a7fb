"""Gradient selection: what moves the parameters most (paper §4, "Gradient-based")."""

from __future__ import annotations

from typing import Literal

import numpy as np

from longgame.data.examples import Pool
from longgame.selection.algorithms.nearest import cosine
from longgame.selection.base import Selection, Selector, fill_by_score, id_order
from longgame.selection.budget import choice
from longgame.selection.history import History
from longgame.signals.base import Signals


class GradientSelector(Selector):
    """Largest gradient, or gradient most like the candidates' mean; ties by id.

    Args:
        mode: ``norm`` ranks by the exact per-example gradient norm; ``similarity`` by the likeness of the example's
            gradient sketch to the mean sketch of all candidates ("the current batch objective").
        similarity: ``cosine`` (direction alone) or ``dot`` (first-order fall of the batch loss when the example is
            stepped on); used by ``mode="similarity"``.
    """

    name = "gradient"

    def __init__(
        self, mode: Literal["norm", "similarity"] = "norm", similarity: Literal["cosine", "dot"] = "cosine"
    ) -> None:
        self.mode = choice(self.name, "mode", mode, ("norm", "similarity"))
        self.similarity = choice(self.name, "similarity", similarity, ("cosine", "dot"))
        self.requires = ("grad_norm",) if self.mode == "norm" else ("grad_sketch",)

    def select(
        self,
        pool: Pool,
        signals: Signals,
        history: History,  # noqa: ARG002 - part of the contract
        budget: int,
        rng: np.random.Generator,  # noqa: ARG002
    ) -> Selection:
        score = signals["grad_norm"] if self.mode == "norm" else self._likeness(pool, signals["grad_sketch"])
        return Selection.of(pool, fill_by_score(score, pool.ids, pool.tokens, budget), {"score": score})

    def _likeness(self, pool: Pool, sketches: np.ndarray) -> np.ndarray:
        by_id = id_order(pool.ids)  # sums run in this order, so the pool's order changes no bit
        gradients = sketches[by_id].astype(np.float64)
        mean = gradients.mean(axis=0)
        score = np.empty(len(pool), dtype=np.float32)
        score[by_id] = cosine(gradients, mean) if self.similarity == "cosine" else gradients @ mean
        return score
