"""Prototypes: easy examples are near the center of their cluster, hard ones far from it.

Paper: Sorscher et al. 2022, arXiv 2206.14486.
Formula: distance to the center of the k-means cluster; nearest first at small budgets, farthest first at large ones.
Cost: E, one pass of the base model for embeddings, once per example.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from longgame.data.examples import Pool
from longgame.selection.algorithms.clusters import cells_for, k_means
from longgame.selection.algorithms.nearest import unit_rows
from longgame.selection.base import Selector
from longgame.selection.budget import choice, count, fill_by_score, id_order, number
from longgame.selection.history import History, Selection
from longgame.signals.base import Signals


class PrototypesSelector(Selector):
    """Candidates near to the center of their k-means cluster first, or far from it; ties by id (arXiv 2206.14486).

    The paper finds that hard examples are best if many are learned, and easy ones if few are. Embeddings are scaled to
    unit length first. Clusters are those of the candidates of the round.

    Args:
        keep: ``easy``, ``hard``, or ``auto``: easy if the budget of the stage (offline: of the whole selection) is less
            than ``easy_below`` of its tokens, so that all rounds and parts decide alike.
        easy_below: share of the stage's tokens, in (0, 1].
        clusters: default: the square root of the number of candidates.

    ``scores``: ``distance`` to the center of the own cluster; ``score`` is the distance (hard) or minus it (easy).
    """

    name = "prototypes"
    two_rounds = "distances are to the centers of cells of a part, then of the picks of all parts"
    requires = ("embedding",)

    def __init__(
        self, keep: Literal["auto", "easy", "hard"] = "auto", easy_below: float = 0.15, clusters: int | None = None
    ) -> None:
        self.keep = choice(self.name, "keep", keep, ("auto", "easy", "hard"))
        self.easy_below = number(self.name, "easy_below", easy_below, above=0, most=1)
        self.clusters = None if clusters is None else count(self.name, "clusters", clusters)
        self._share: float | None = None
        """Of the stage's tokens, in its budget; None: the call is the whole stage."""

    def use_budget(self, share: float) -> None:
        self._share = share

    def select(
        self,
        pool: Pool,
        signals: Signals,
        history: History,  # noqa: ARG002
        budget: int,
        rng: np.random.Generator,
    ) -> Selection:
        by_id = id_order(pool.ids)
        distance = np.empty(len(pool))
        units = unit_rows(signals["embedding"][by_id])
        distance[by_id] = k_means(units, self.clusters or cells_for(len(pool)), rng)[1]
        share = budget / int(pool.costs.sum()) if self._share is None else self._share
        easy = self.keep == "easy" or (self.keep == "auto" and share < self.easy_below)
        score = -distance if easy else distance
        picks = fill_by_score(score, pool.ids, pool.costs, budget)
        return Selection.of(pool, picks, {"score": score, "distance": distance})
