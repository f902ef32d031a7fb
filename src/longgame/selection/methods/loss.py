"""Loss selection: what the model is worst at right now (paper §4, "Loss-based")."""

from __future__ import annotations

import numpy as np

from longgame.data.examples import Pool
from longgame.selection.base import Selection, Selector, fill_by_score
from longgame.selection.history import History
from longgame.signals.base import Signals


class LossSelector(Selector):
    """Highest mean NLL per response token first; ties by id."""

    name = "loss"
    requires = ("loss",)

    def select(
        self,
        pool: Pool,
        signals: Signals,
        history: History,  # noqa: ARG002 - part of the contract
        budget: int,
        rng: np.random.Generator,  # noqa: ARG002
    ) -> Selection:
        score = signals["loss"]
        return Selection.of(pool, fill_by_score(score, pool.ids, pool.tokens, budget), {"score": score})
