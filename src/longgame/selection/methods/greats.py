"""GREATS: greedily the candidates whose step lowers the loss on the target set most, given those picked before.

Paper: Wang et al. 2024, Online Selection of High-Quality Data for LLM Training in Every Iteration (NeurIPS 2024).
Formula: greedily the largest η · ⟨gᵢ, ḡ of the target⟩ − η² · Σ over earlier picks j of ⟨gᵢ, gⱼ⟩.
Cost: B, one forward and backward pass; the target set's gradient now and then.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from longgame.data.examples import Pool
from longgame.errors import PluginError
from longgame.selection.base import Selector
from longgame.selection.budget import check_budget, id_order, number, weight
from longgame.selection.history import History, Selection
from longgame.signals.base import Signals

_PAIRS = 1 << 22
"""Inner products of all pairs of candidates that are computed at once (32 MiB in float64)."""


class GREATSSelector(Selector):
    """Greedy picks by ⟨gᵢ, ḡ⟩ − η · Σ over earlier picks ⟨gᵢ, gⱼ⟩, which is the formula over η; ties by id.

    Gradients are sketches; the Hessian is the identity, as published. At the learning rates of fine-tuning η makes the
    second term vanish, and the picks are the candidates most alike. So η is by default ``redundancy`` / k, k the number
    of mean-length picks in the budget: the gradient of a full set of picks then counts as much as the target's.

    Args:
        redundancy: scale of the second term; 0 switches it off.
        learning_rate: the published η, instead of ``redundancy``.

    ``scores``: ``alignment`` = ⟨gᵢ, ḡ⟩; ``score`` = the whole, when picked or last considered.
    """

    name = "greats"
    requires = ("grad_sketch", "target_gradient")

    def __init__(self, redundancy: float = 1.0, learning_rate: float | None = None) -> None:
        self.redundancy = weight(self.name, "redundancy", redundancy)
        self.learning_rate = None
        if learning_rate is not None:
            self.learning_rate = number(self.name, "learning_rate", learning_rate, above=0)

    def select(
        self,
        pool: Pool,
        signals: Signals,
        history: History,  # noqa: ARG002
        budget: int,
        rng: np.random.Generator,  # noqa: ARG002
    ) -> Selection:
        check_budget(pool.costs, budget)
        by_id = id_order(pool.ids)
        sketches, target = signals["grad_sketch"][by_id].astype(np.float64), signals["target_gradient"]
        if sketches.shape[1] != len(target):
            raise PluginError(
                f"selector 'greats': the candidates' gradient sketches have {sketches.shape[1]} numbers and the "
                f"target's {len(target)}. Measure both with one sketch_dim."
            )
        alignment = sketches @ target.astype(np.float64)
        costs = pool.costs[by_id]
        eta = self.learning_rate
        if eta is None:
            eta = self.redundancy / max(1.0, min(len(pool), budget / float(costs.mean())))
        picks, score = _greedy(sketches, alignment, costs, budget, eta)
        place = np.argsort(by_id)
        terms = {"score": score[place], "alignment": alignment[place]}
        return Selection.of(pool, by_id[picks], terms)


def _greedy(
    sketches: Float[np.ndarray, "n d"], alignment: Float[np.ndarray, " n"], costs: np.ndarray, budget: int, eta: float
) -> tuple[np.ndarray, Float[np.ndarray, " n"]]:
    """The picks in order, and the score of each row when it was picked or last considered."""
    n = len(sketches)
    pairs = sketches @ sketches.T if n * n <= _PAIRS else None
    score, left = alignment.copy(), int(budget)
    open_score = np.where(costs <= left, score, -np.inf)
    """Of rows that may still be picked."""
    picks: list[int] = []
    while True:
        best = int(open_score.argmax())
        if open_score[best] == -np.inf:
            return np.asarray(picks, dtype=np.int64), score
        picks.append(best)
        score[best], open_score[best] = open_score[best], -np.inf
        left -= int(costs[best])
        open_score[costs > left] = -np.inf
        if eta:
            rows = np.flatnonzero(open_score > -np.inf)
            products = pairs[best, rows] if pairs is not None else sketches[rows] @ sketches[best]
            open_score[rows] -= eta * products
            score[rows] = open_score[rows]
