"""DEITA: complex, good, and unlike what is picked already.

Paper: Liu et al. 2024, arXiv 2312.15685.
Formula: complexity · quality, highest first; passed over if the cosine with an accepted one reaches 0.9.
Cost: F, one pass of the base model for loss and embedding, once per example; the quality column, or rules.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from longgame.data.examples import Pool
from longgame.selection.algorithms.nearest import threshold_diverse
from longgame.selection.base import Selector
from longgame.selection.budget import (
    REJECTED,
    check_budget,
    choice,
    descending,
    fill_rest,
    lowered,
    missing_last,
    number,
)
from longgame.selection.history import History, Selection
from longgame.signals.base import Signals


class DEITASelector(Selector):
    """By falling complexity · quality, what resembles no accepted candidate; ties by id (arXiv 2312.15685).

    The paper has both scores from fine-tuned graders, from 1 to 6: ``complexity: complexity, quality: grade`` with two
    named sources (judges with the rubrics ``deita-complexity`` and ``deita-quality``, or columns). By default
    complexity is a signal of the model, and quality a column or rules. A candidate without one of the scores comes
    last.

    Args:
        complexity: ``difficulty`` (percentile of the base loss in the stage), ``loss`` (under the model as it is), or
            ``complexity`` (by its source).
        quality: ``quality`` (in [0, 1]) or ``grade`` (on the scale of its source).
        threshold: cosine, in (−1, 1], with an accepted candidate from which one is passed over.
        rejected: what was passed over: ``last`` (picked after all others, by its score) or ``never``.
        device: where the matrix products run (``cpu``, ``cuda``); it changes no pick.

    ``scores``: ``complexity``, ``quality``, ``alike`` (1 if passed over). ``score`` is their product; lowered below all
    others, or NaN (``never``), for what was passed over.
    """

    name = "deita"

    def __init__(
        self,
        complexity: Literal["difficulty", "loss", "complexity"] = "difficulty",
        threshold: float = 0.9,
        rejected: Literal["last", "never"] = "last",
        device: str = "cpu",
        quality: Literal["quality", "grade"] = "quality",
    ) -> None:
        self.complexity = choice(self.name, "complexity", complexity, ("difficulty", "loss", "complexity"))
        self.quality = choice(self.name, "quality", quality, ("quality", "grade"))
        self.threshold = number(self.name, "threshold", threshold, above=-1, most=1)
        self.rejected = choice(self.name, "rejected", rejected, REJECTED)
        self.device = choice(self.name, "device", device, ("cpu", "cuda"))
        self.requires = (self.complexity, self.quality, "embedding")

    def select(
        self,
        pool: Pool,
        signals: Signals,
        history: History,  # noqa: ARG002
        budget: int,
        rng: np.random.Generator,  # noqa: ARG002
    ) -> Selection:
        check_budget(pool.costs, budget)
        complexity, quality = (signals[name].astype(np.float64) for name in (self.complexity, self.quality))
        missing = np.isnan(complexity * quality)
        product = missing_last(complexity * quality)
        order = descending(product, pool.ids)
        graded = order[~missing[order]]
        rows, alike = threshold_diverse(signals["embedding"], graded, pool.costs, budget, self.threshold, self.device)
        if self.rejected == "last":
            rows = fill_rest(rows, order, pool.costs, budget)
        behind = lowered(product) if self.rejected == "last" else np.nan
        terms = {"score": np.where(alike | missing, behind, product), "complexity": complexity, "quality": quality}
        return Selection.of(pool, rows, {**terms, "alike": alike.astype(np.float64)})
