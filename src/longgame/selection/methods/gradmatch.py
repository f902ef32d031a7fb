"""GradMatch: few examples with weights whose gradients sum to the mean gradient of all candidates.

Paper: Killamsetty et al. 2021, arXiv 2103.00123.
Formula: orthogonal matching pursuit on min ‖Σ wᵢ gᵢ − ḡ‖² + λ · ‖w‖² over w ≥ 0; the weights enter the loss.
Cost: B, one forward and backward pass.
"""

from __future__ import annotations

import numpy as np

from longgame.data.examples import Pool
from longgame.selection.algorithms.pursuit import gradient_matching
from longgame.selection.base import Selector
from longgame.selection.budget import check_budget, count, id_order, number
from longgame.selection.history import History, Selection
from longgame.signals.base import Signals


class GradMatchSelector(Selector):
    """Orthogonal matching pursuit to the candidates' mean gradient sketch; ties by id (arXiv 2103.00123).

    Weights are scaled to a mean of 1. The paper's code fills what the pursuit leaves of the budget with random examples
    of weight 1; here further pursuits fill it, and at last what points least away from the mean, at the least weight.

    Args:
        ridge: λ, in units of the candidates' mean squared gradient; above 0. A large one makes weights equal.
        atoms: most picks of one pursuit.

    ``scores``: ``score`` = inner product with the residual when picked or last considered.
    """

    name = "gradmatch"
    weighs = True
    requires = ("grad_sketch",)

    def __init__(self, ridge: float = 0.5, atoms: int = 512) -> None:
        self.ridge = number(self.name, "ridge", ridge, above=0)
        self.atoms = count(self.name, "atoms", atoms)

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
        matching = gradient_matching(signals["grad_sketch"][by_id], pool.costs[by_id], budget, self.ridge, self.atoms)
        score = matching.score[np.argsort(by_id)]
        return Selection.of(pool, by_id[matching.rows], {"score": score}, matching.weights)
