"""Random selection: the baseline without an opinion (paper §4, "Random")."""

from __future__ import annotations

import numpy as np

from longgame.data.examples import Pool
from longgame.selection.base import Selection, Selector, fill_by_score, id_order
from longgame.selection.history import History
from longgame.signals.base import Signals


class RandomSelector(Selector):
    """Uniform without replacement.

    Each candidate draws one number in [0, 1), in the order of the sorted ids, and the largest are taken: the choice
    depends on the generator and on which candidates there are, not on how the pool is ordered. ``score`` is the number.
    """

    name = "random"

    def select(
        self,
        pool: Pool,
        signals: Signals,  # noqa: ARG002 - part of the contract
        history: History,  # noqa: ARG002
        budget: int,
        rng: np.random.Generator,
    ) -> Selection:
        score = np.empty(len(pool))
        score[id_order(pool.ids)] = rng.random(len(pool))
        return Selection.of(pool, fill_by_score(score, pool.ids, pool.tokens, budget), {"score": score})
