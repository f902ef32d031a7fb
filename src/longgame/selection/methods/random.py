"""Random selection: the baseline that looks at nothing.

Paper: arXiv 2605.30537, §4 ("Random").
Formula: a uniform number per candidate, highest first.
Cost: 0, nothing is computed.
"""

from __future__ import annotations

import numpy as np

from longgame.data.examples import Pool
from longgame.selection.base import Selector
from longgame.selection.budget import fill_by_score, uniform_by_id
from longgame.selection.history import History, Selection
from longgame.signals.base import Signals


class RandomSelector(Selector):
    """Uniform without replacement.

    Each candidate draws one number in [0, 1), in the order of the sorted ids, and the largest win. The choice depends
    on the generator and the set of candidates, not on the order of the pool. ``score`` is the number.
    """

    name = "random"
    two_rounds = "uniform in every part, then among their picks"
    family = "baseline"

    def select(
        self,
        pool: Pool,
        signals: Signals,  # noqa: ARG002 - part of the contract
        history: History,  # noqa: ARG002
        budget: int,
        rng: np.random.Generator,
    ) -> Selection:
        score = uniform_by_id(pool.ids, rng)
        return Selection.of(pool, fill_by_score(score, pool.ids, pool.costs, budget), {"score": score})
