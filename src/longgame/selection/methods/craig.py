"""CRAIG: examples such that every candidate's gradient is near a pick's, each pick weighted by how many it stands for.

Paper: Mirzasoleiman et al. 2020, arXiv 1906.01827.
Formula: greedily the largest gain of Σᵢ max over picks j of (c − ‖gᵢ − gⱼ‖); weight of j: candidates nearest to it.
Cost: B, one forward and backward pass.
"""

from __future__ import annotations

import numpy as np

from longgame.data.examples import Pool
from longgame.selection.algorithms.facility import facility_location, nearest_picks
from longgame.selection.base import Selector
from longgame.selection.budget import check_budget, count, id_order
from longgame.selection.history import History, Selection
from longgame.signals.base import Signals


class CRAIGSelector(Selector):
    """Facility location on gradient sketches, with the sizes of the picks' cells as weights (arXiv 1906.01827).

    The greedy takes the largest gain among the candidates that fit, not per token. Gains are measured on a sample of
    candidates; cells are counted over all of them. Weights are the cells' sizes, scaled to a mean of 1 as in the
    published code.

    Args:
        references: how many candidates represent all of them in the gain.

    ``scores``: ``score`` = gain when picked or last considered, divided by the largest gain of a first pick.
    """

    name = "craig"
    weighs = True
    requires = ("grad_sketch",)

    def __init__(self, references: int = 4096) -> None:
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
        sketches = signals["grad_sketch"][by_id]
        picked = facility_location(
            sketches,
            pool.costs[by_id],
            budget,
            rng,
            references=self.references,
            worth=np.zeros(len(pool)),
            similarity="distance",
        )
        sizes = np.bincount(nearest_picks(sketches, picked.rows), minlength=len(picked.rows))
        score = picked.gain[np.argsort(by_id)]
        return Selection.of(pool, by_id[picked.rows], {"score": score}, sizes / sizes.mean())
