"""Curriculum: easy examples first, then more and more of the hard ones (or the other way round).

Paper: Bengio et al. 2009; pace of Platanios et al. 2019, arXiv 1903.09848; for fine-tuning Xu et al. 2020.
Formula: a uniform draw of what is at most c(t) difficult, c(t) = min(1, √(t · (1 − c₀²) / T + c₀²)) in round t.
Cost: F, one forward pass of the base model, once per example.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from longgame.data.examples import Pool
from longgame.selection.base import Selector
from longgame.selection.budget import choice, count, fill_by_score, number, rank_scale, uniform_by_id
from longgame.selection.history import History, Selection
from longgame.signals.base import Signals


class CurriculumSelector(Selector):
    """Draw uniformly below a threshold of difficulty that rises over the rounds of a stage (arXiv 1903.09848).

    Difficulty is a percentile in [0, 1]. What is beyond the threshold comes last, the nearest first, so that the budget
    is filled. The first round of a stage is t = 0; a selection of one round sees c₀ alone.

    Args:
        order: ``easy-first``, or ``hard-first`` (anti-curriculum: 1 − difficulty is compared with the threshold).
        by: ``difficulty`` (of the base model, among all candidates of the stage) or ``loss`` (percentile under the
            model as it is, among the candidates of the round).
        start: c₀, share of the difficulties that round 0 may draw from, in (0, 1].
        rounds: T, the round from which every candidate may be drawn.

    ``scores``: ``difficulty`` as compared, ``threshold`` c(t), equal for all; ``score`` is the random number in [0, 1)
    below the threshold, and the (negative) distance to it above.
    """

    name = "curriculum"
    family = "curriculum"

    def __init__(
        self,
        order: Literal["easy-first", "hard-first"] = "easy-first",
        by: Literal["difficulty", "loss"] = "difficulty",
        start: float = 0.33,
        rounds: int = 16,
    ) -> None:
        self.order = choice(self.name, "order", order, ("easy-first", "hard-first"))
        self.by = choice(self.name, "by", by, ("difficulty", "loss"))
        self.start = number(self.name, "start", start, above=0, most=1)
        self.rounds = count(self.name, "rounds", rounds)
        self.requires = (self.by,)
        self.round = 0
        """t, rounds of the stage so far."""

    @property
    def threshold(self) -> float:
        """c(t)."""
        return min(1.0, math.sqrt(self.round * (1 - self.start**2) / self.rounds + self.start**2))

    def begin_stage(self) -> None:
        self.round = 0

    def select(
        self,
        pool: Pool,
        signals: Signals,
        history: History,  # noqa: ARG002
        budget: int,
        rng: np.random.Generator,
    ) -> Selection:
        values = signals[self.by].astype(np.float64)
        difficulty = values if self.by == "difficulty" else (rank_scale(values) + 1.0) / 2.0
        if self.order == "hard-first":
            difficulty = 1.0 - difficulty
        draws = uniform_by_id(pool.ids, rng)
        score = np.where(difficulty <= self.threshold, draws, self.threshold - difficulty)
        terms = {"score": score, "difficulty": difficulty, "threshold": np.full(len(pool), self.threshold)}
        return Selection.of(pool, fill_by_score(score, pool.ids, pool.costs, budget), terms)

    def remember(self, pool: Pool, signals: Signals, rows: Int[np.ndarray, " k"]) -> None:  # noqa: ARG002
        self.round += 1

    def state_dict(self) -> dict[str, Any]:
        return {"round": self.round}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.round = int(state["round"])
