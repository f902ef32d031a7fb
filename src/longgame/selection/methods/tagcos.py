"""TAGCOS: gradient matching in every cluster of gradients, at equal shares of the budget.

Paper: Zhang et al. 2024, arXiv 2407.15235.
Formula: k-means of g / ‖g‖; in each cluster min ‖Σ wᵢ gᵢ − ḡ of the cluster‖² + λ · ‖w‖² over w ≥ 0.
Cost: B, one forward and backward pass.
"""

from __future__ import annotations

import numpy as np

from longgame.data.examples import Pool
from longgame.selection.algorithms.clusters import k_means
from longgame.selection.algorithms.nearest import unit_rows
from longgame.selection.algorithms.pursuit import gradient_matching
from longgame.selection.base import Selector
from longgame.selection.budget import check_budget, count, fill_rest, id_order, number
from longgame.selection.history import History, Selection
from longgame.signals.base import Signals


class TAGCOSSelector(Selector):
    """Each cluster of gradients gets its share of the tokens, and matches its own mean gradient (arXiv 2407.15235).

    A cluster whose share holds none of its candidates gets nothing. What is left of the budget goes to the candidates
    with the largest inner product with what the picks of their cluster leave of its mean (``score``). The weights of a
    cluster's picks sum to its number of candidates, and all are then scaled to a mean of 1; what fills the rest has its
    cluster's mean weight.

    Args:
        clusters: of the gradients. Default: the square root of the number of candidates, at most the paper's 100.
        ridge: λ, as of ``gradmatch``; above 0.

    ``scores``: ``score`` = inner product with the cluster's residual when picked or last considered, which is the
    cluster's mean where it got nothing; ``cell``.
    """

    name = "tagcos"
    weighs = True
    requires = ("grad_sketch",)

    def __init__(self, clusters: int | None = None, ridge: float = 0.5) -> None:
        self.clusters = None if clusters is None else count(self.name, "clusters", clusters)
        self.ridge = number(self.name, "ridge", ridge, above=0)

    def select(
        self,
        pool: Pool,
        signals: Signals,
        history: History,  # noqa: ARG002
        budget: int,
        rng: np.random.Generator,
    ) -> Selection:
        check_budget(pool.costs, budget)
        by_id = id_order(pool.ids)
        sketches, costs = signals["grad_sketch"][by_id], pool.costs[by_id]
        labels, _ = k_means(unit_rows(sketches), self.clusters or max(1, min(100, round(len(pool) ** 0.5))), rng)
        score, weights = np.zeros(len(pool)), np.ones(len(pool))
        picks = [np.zeros(0, dtype=np.int64)]
        total = int(costs.sum())
        for cell in np.unique(labels).tolist():
            rows = np.flatnonzero(labels == cell)
            members = sketches[rows].astype(np.float64)
            score[rows] = members @ members.mean(axis=0)
            share = min(budget, total) * int(costs[rows].sum()) // total
            if costs[rows].min() > share:
                continue
            matching = gradient_matching(members, costs[rows], share, self.ridge)
            score[rows] = matching.score
            mean = len(rows) / len(matching.rows)
            weights[rows] = mean
            weights[rows[matching.rows]] = matching.weights * mean
            picks.append(rows[matching.rows])
        chosen = fill_rest(np.concatenate(picks), np.argsort(-score, kind="stable"), costs, budget)
        factors = weights[chosen] / weights[chosen].mean()
        place = np.argsort(by_id)
        terms = {"score": score[place], "cell": labels[place].astype(np.float64)}
        return Selection.of(pool, by_id[chosen], terms, factors)
