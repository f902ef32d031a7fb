"""OCS, online coreset selection: typical of the batch, unlike each other, and in line with what was learned before.

Paper: Yoon et al. 2022, arXiv 2106.01085.
Formula: cos(g, ḡ) − mean cosine with the other candidates + τ · cos(g, mean g of earlier stages' picks).
Cost: B, one forward and backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from longgame.data.examples import Pool
from longgame.errors import PluginError
from longgame.selection.algorithms.nearest import cosine
from longgame.selection.base import Selector
from longgame.selection.budget import id_order, weight
from longgame.selection.history import History
from longgame.signals.base import Signals


class OCSSelector(Selector):
    """Highest similarity + diversity + τ · affinity first; ties by id (arXiv 2106.01085).

    Gradients are sketches. The memory is the mean sketch of what was picked in earlier stages, as measured when it was
    picked; the paper measures it again on stored examples. In the first stage its term is zero.

    Args:
        memory_weight: τ; 0 switches the memory off.

    ``scores``: ``similarity`` (cosine with the candidates' mean), ``diversity`` (minus the mean cosine with the *other*
    candidates), ``affinity`` (cosine with the memory) and ``score``, their sum with τ.
    """

    name = "ocs"
    family = "gradient"
    requires = ("grad_sketch",)

    def __init__(self, memory_weight: float = 1.0) -> None:
        self.memory_weight = weight(self.name, "memory_weight", memory_weight)
        self._stage: tuple[int, Float[np.ndarray, " d"]] = (0, np.zeros(0))
        """Number of this stage's picks, and the sum of their sketches."""
        self._past: tuple[int, Float[np.ndarray, " d"]] = (0, np.zeros(0))
        """The same of earlier stages."""

    def begin_stage(self) -> None:
        self._past, self._stage = _added(self._past, self._stage), (0, np.zeros(0))

    def score(self, pool: Pool, signals: Signals, history: History) -> dict[str, Float[np.ndarray, " n"]]:  # noqa: ARG002
        by_id = id_order(pool.ids)  # sums run in this order, so the pool's order changes no bit
        place = np.argsort(by_id)
        sketches = signals["grad_sketch"][by_id].astype(np.float64)
        similarity = cosine(sketches, sketches.mean(axis=0))
        diversity = -_mean_cosine_with_others(sketches)
        affinity = np.zeros(len(pool), dtype=np.float32)
        if self._past[0]:
            if len(self._past[1]) != sketches.shape[1]:
                raise PluginError(
                    f"a gradient sketch of width {sketches.shape[1]} came after ones of width {len(self._past[1])}; "
                    "keep the sketch size fixed through a run."
                )
            affinity = cosine(sketches, self._past[1] / self._past[0])
        score = similarity.astype(np.float64) + diversity + self.memory_weight * affinity
        terms = {"score": score, "similarity": similarity, "diversity": diversity, "affinity": affinity}
        return {name: column[place] for name, column in terms.items()}

    def remember(self, pool: Pool, signals: Signals, rows: Int[np.ndarray, " k"]) -> None:  # noqa: ARG002
        if len(rows):
            picked = signals["grad_sketch"][rows].astype(np.float64)
            self._stage = _added(self._stage, (len(rows), picked.sum(axis=0)))

    def state_dict(self) -> dict[str, Any]:
        (picks, stage), (past_picks, past) = self._stage, self._past
        return {"picks": picks, "stage": stage.copy(), "past_picks": past_picks, "past": past.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._stage = (int(state["picks"]), np.asarray(state["stage"], dtype=np.float64))
        self._past = (int(state["past_picks"]), np.asarray(state["past"], dtype=np.float64))


def _added(left: tuple[int, np.ndarray], right: tuple[int, np.ndarray]) -> tuple[int, np.ndarray]:
    if not left[0] or not right[0]:
        return left if left[0] else right
    return left[0] + right[0], left[1] + right[1]


def _mean_cosine_with_others(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """Mean cosine of each row with all rows but itself, float32; 0 for a row alone. A zero row has the cosine 0."""
    if len(rows) < 2:
        return np.zeros(len(rows), dtype=np.float32)
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    units = np.divide(rows, norms[:, None], out=np.zeros_like(rows), where=norms[:, None] > 0)
    return ((units @ units.sum(axis=0) - (norms > 0)) / (len(rows) - 1)).astype(np.float32)
