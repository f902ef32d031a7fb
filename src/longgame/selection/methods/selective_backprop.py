"""Selective backprop: train on examples in proportion to how high their loss ranks among recent losses.

Paper: Jiang et al. 2019, arXiv 1910.00762.
Formula: drawn with weights CDF(loss)^β, CDF over the losses offered lately.
Cost: F, one forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from longgame.data.examples import Pool
from longgame.selection.base import Selector
from longgame.selection.budget import count, fill_by_score, gumbel_by_id, id_order, weight
from longgame.selection.history import History, Selection
from longgame.signals.base import Signals


class SelectiveBackpropSelector(Selector):
    """Draw without replacement, each next pick with a probability ∝ CDF(loss)^β (arXiv 1910.00762).

    CDF(x) is the share of losses ≤ x among the candidates of the round and the losses offered before it in this stage,
    picked or not. The paper draws for each example on its own; under a budget the draw goes on until it is spent.

    Args:
        beta: β ≥ 0: the larger, the more a high loss counts; 0 draws uniformly.
        memory: losses remembered.

    ``scores``: ``percentile`` = CDF(loss); ``score`` = β · log(percentile) + a Gumbel number.
    """

    name = "selective-backprop"
    requires = ("loss",)

    def __init__(self, beta: float = 1.0, memory: int = 1024) -> None:
        self.beta = weight(self.name, "beta", beta)
        self.memory = count(self.name, "memory", memory)
        self._recent: Float[np.ndarray, " m"] = np.zeros(0, dtype=np.float32)

    def begin_stage(self) -> None:
        self._recent = self._recent[:0]

    def select(
        self,
        pool: Pool,
        signals: Signals,
        history: History,  # noqa: ARG002
        budget: int,
        rng: np.random.Generator,
    ) -> Selection:
        losses = np.sort(np.concatenate([self._recent, signals["loss"]]))
        percentile = np.searchsorted(losses, signals["loss"], side="right") / len(losses)
        score = self.beta * np.log(percentile) + gumbel_by_id(pool.ids, rng)
        picks = fill_by_score(score, pool.ids, pool.costs, budget)
        return Selection.of(pool, picks, {"score": score, "percentile": percentile})

    def remember(self, pool: Pool, signals: Signals, rows: Int[np.ndarray, " k"]) -> None:  # noqa: ARG002
        """Add the losses of all candidates that were offered; the oldest leave."""
        self._recent = np.concatenate([self._recent, signals["loss"][id_order(pool.ids)]])[-self.memory :]

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self._recent.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._recent = np.asarray(state["losses"], dtype=np.float32)[-self.memory :]
