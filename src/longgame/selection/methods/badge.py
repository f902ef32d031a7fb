"""BADGE: examples whose errors at the output head are large and unlike each other, by k-means++.

Paper: Ash et al. 2020, arXiv 1906.03671.
Formula: k-means++ draws on the mean of (softmax − one-hot of the label) ⊗ hidden state over response tokens.
Cost: F, one forward pass.
"""

from __future__ import annotations

import numpy as np

from longgame.data.examples import Pool
from longgame.selection.algorithms.clusters import kmeans_plus_plus
from longgame.selection.base import Selector
from longgame.selection.budget import check_budget, id_order
from longgame.selection.history import History, Selection
from longgame.signals.base import Signals


class BADGESelector(Selector):
    """Each next pick is drawn ∝ its squared distance to the nearest earlier pick (arXiv 1906.03671).

    What is compared is the gradient by the output head, through a sketch that keeps inner products in expectation. The
    paper selects unlabeled examples and takes the predicted label; in fine-tuning the label is known, and it is the
    gold token. The first pick is uniform, as in k-means++; the published code takes the largest gradient.

    ``scores``: ``distance`` to the nearest earlier pick (of those not picked: to the nearest pick); ``score`` = the
    place in pick order, from 1 down, 0 for those not picked.
    """

    name = "badge"
    family = "gradient"
    requires = ("logit_error_sketch",)

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
        picks, distance = kmeans_plus_plus(signals["logit_error_sketch"][by_id], pool.costs[by_id], budget, rng)
        score = np.zeros(len(pool))
        score[picks] = 1.0 - np.arange(len(picks)) / len(picks)
        place = np.argsort(by_id)
        return Selection.of(pool, by_id[picks], {"score": score[place], "distance": distance[place]})
