"""S2L, small to large: equal shares of examples that a small model learned along the same curve.

Paper: Yang et al. 2024, arXiv 2403.07384.
Formula: k-means of loss trajectories; from the smallest cluster on, each gets (budget left) / (clusters left).
Cost: T, a training log of the candidates, of a small model.
"""

from __future__ import annotations

import numpy as np

from longgame.data.examples import Pool
from longgame.selection.algorithms.clusters import k_means
from longgame.selection.base import Selector
from longgame.selection.budget import check_budget, count, fill_rest, id_order
from longgame.selection.history import History, Selection
from longgame.signals.auxiliary import AuxiliarySpec
from longgame.signals.base import Signals


class S2LSelector(Selector):
    """Draw equal shares from the k-means clusters of loss trajectories, smallest clusters first (arXiv 2403.07384).

    A cluster that costs no more than its share is taken as a whole, and what it leaves goes to the clusters after it.
    From a larger one examples are drawn uniformly. Shares are shares of the token budget, where the paper counts
    examples; what the shares leave over is filled by a uniform draw. The paper's budgets hold many examples of every
    cluster. Where one does not, there are fewer clusters, so that a share holds an example of mean length.

    Args:
        clusters: k of the k-means, at most as many as there are different trajectories, and as the budget of the round
            holds examples of mean length.
        epochs: of the training on all candidates that gives the log, where no log is given.

    ``scores``: ``cluster`` is the place of the cluster, from the smallest (0) on. ``score`` is 1 for the first pick and
    falls to 1/k for the last one of k; 0 for what is not picked.
    """

    name = "s2l"
    requires = ("loss_trajectory",)

    def __init__(self, clusters: int = 100, epochs: int = 4) -> None:
        self.auxiliary = AuxiliarySpec.of_log(epochs)
        self.clusters = count(self.name, "clusters", clusters)

    def select(
        self,
        pool: Pool,
        signals: Signals,
        history: History,  # noqa: ARG002
        budget: int,
        rng: np.random.Generator,
    ) -> Selection:
        costs = pool.costs
        check_budget(costs, budget)
        by_id = id_order(pool.ids)
        clusters = min(self.clusters, max(1, round(budget / float(costs.mean()))))
        labels = k_means(signals["loss_trajectory"][by_id], clusters, rng)[0]
        sizes, first = np.bincount(labels), np.full(labels.max() + 1, len(labels))
        np.minimum.at(first, labels, np.arange(len(labels)))
        order = np.lexsort((first, sizes))  # of equal clusters the one with the smallest id
        place = np.empty(len(pool))
        picks = np.zeros(0, dtype=np.int64)
        for number, cluster in enumerate(order.tolist()):
            members = by_id[labels == cluster]
            place[members] = number
            share = (budget - int(costs[picks].sum())) // (len(order) - number)
            members = rng.permutation(members)
            picks = np.concatenate([picks, fill_rest(picks[:0], members, costs, share)])
        picks = fill_rest(picks, rng.permutation(by_id), costs, budget)
        score = np.zeros(len(pool))
        score[picks] = np.arange(len(picks), 0, -1) / len(picks)
        return Selection.of(pool, picks, {"score": score, "cluster": place})
