"""Quality selection: what looks best, whatever the model knows already (paper §4, "Quality-based")."""

from __future__ import annotations

import numpy as np

from longgame.data.examples import Pool
from longgame.selection.base import Selection, Selector, fill_by_score
from longgame.selection.history import History
from longgame.signals.base import Signals


class QualitySelector(Selector):
    """Highest quality score first (a column of the data, or the rules of `longgame.signals.quality`); ties by id."""

    name = "quality"
    requires = ("quality",)

    def select(
        self,
        pool: Pool,
        signals: Signals,
        history: History,  # noqa: ARG002 - part of the contract
        budget: int,
        rng: np.random.Generator,  # noqa: ARG002
    ) -> Selection:
        score = signals["quality"]
        return Selection.of(pool, fill_by_score(score, pool.ids, pool.tokens, budget), {"score": score})
