"""QDIT: quality and diversity, weighed pick by pick.

Paper: Bukharin & Zhao 2023, arXiv 2311.14736.
Formula: greedily the largest (1 − α) · facility-location gain + α · quality, both on [0, 1].
Cost: E, one pass of the base model for embeddings, once per example; the quality column, or rules.
"""

from __future__ import annotations

import numpy as np

from longgame.data.examples import Pool
from longgame.selection.algorithms.facility import facility_location
from longgame.selection.base import Selector
from longgame.selection.budget import check_budget, count, id_order, missing_last, rank_scale, weight
from longgame.selection.history import History, Selection
from longgame.signals.base import Signals


class QDITSelector(Selector):
    """Greedy picks by (1 − α) · gain + α · quality; ties by id (arXiv 2311.14736).

    The gain is what the pick adds to the candidates' mean cosine to their nearest pick, divided by the largest gain of
    a first pick. Quality is its rank, from 0 to 1. Without a common scale, α would mean something else in each pool.

    Args:
        alpha: α, weight of the quality, in [0, 1].
        references: how many candidates represent all of them in the gain.

    ``scores``: ``quality`` as scaled; ``score`` is the sum when the candidate was picked or last evaluated.
    """

    name = "qdit"
    requires = ("embedding", "quality")

    def __init__(self, alpha: float = 0.5, references: int = 4096) -> None:
        self.alpha = weight(self.name, "alpha", alpha, most=1)
        self.references = count(self.name, "references", references)

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
        quality = (rank_scale(missing_last(signals["quality"])[by_id]) + 1.0) / 2.0
        picked = facility_location(
            signals["embedding"][by_id],
            pool.costs[by_id],
            budget,
            rng,
            references=self.references,
            worth=self.alpha * quality,
            coverage_weight=1.0 - self.alpha,
        )
        place = np.argsort(by_id)
        return Selection.of(pool, by_id[picked.rows], {"score": picked.gain[place], "quality": quality[place]})
