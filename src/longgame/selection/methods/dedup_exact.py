"""Exact deduplication: of candidates with equal turns, learn one.

Paper: Lee et al. 2022, arXiv 2107.06499.
Formula: a uniform number, or a signal, highest first; all but the first of each group of duplicates come last.
Cost: 0, texts only; a signal that ranks has its own cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from longgame.data.examples import Pool
from longgame.errors import RecipeError, unknown
from longgame.selection.base import Selector
from longgame.selection.budget import REJECTED, choice, descending, fill_by_score, missing_last, uniform_by_id
from longgame.selection.history import History, Selection
from longgame.signals.base import SIGNALS, Signals


class ExactDedupSelector(Selector):
    """Keep one of each group of equal candidates, and pick uniformly or by a signal (arXiv 2107.06499).

    The kept one is the first in the order of picking. A group of which an earlier round of the stage picked one has no
    further one to keep.

    Args:
        by: ``random``, or a signal of one number per candidate, such as ``quality`` or ``loss``: highest first.
        rejected: duplicates: ``last``, after all others, so that the budget is filled; or ``never``.

    ``scores``: ``duplicate``: 1 for all but the kept one of a group, else 0. ``score`` is the number that ranks; of
    duplicates it is lowered below all others, or NaN (``never``).
    """

    name = "dedup-exact"
    two_rounds = "no two picks are equal while the budget holds others"
    group: ClassVar[str] = "exact_group"

    def __init__(self, by: str = "random", rejected: Literal["last", "never"] = "last") -> None:
        ranking = [name for name, signal in SIGNALS.items() if not signal.width and signal.unit != "index"]
        if by not in ("random", *ranking):
            raise RecipeError(f"selector '{self.name}': " + unknown("by", str(by), ("random", *ranking)))
        self.by = by
        self.rejected = choice(self.name, "rejected", rejected, REJECTED)
        self.requires = (self.group,) if by == "random" else (self.group, by)
        self._learned: set[int] = set()
        """Groups of which one was picked in this stage."""

    def begin_stage(self) -> None:
        self._learned = set()

    def select(
        self,
        pool: Pool,
        signals: Signals,
        history: History,  # noqa: ARG002
        budget: int,
        rng: np.random.Generator,
    ) -> Selection:
        rank = (
            uniform_by_id(pool.ids, rng) if self.by == "random" else missing_last(signals[self.by]).astype(np.float64)
        )
        groups = signals[self.group]
        order = descending(rank, pool.ids)
        first = order[np.unique(groups[order], return_index=True)[1]]
        duplicate = np.ones(len(pool), dtype=bool)
        duplicate[first] = np.isin(groups[first], np.asarray(sorted(self._learned), dtype=np.int64))
        score = self.score_of(rank, duplicate, float(rank.max()) - float(rank.min()))
        picks = fill_by_score(score, pool.ids, pool.costs, budget)
        return Selection.of(pool, picks, {"score": score, "duplicate": duplicate.astype(np.float64)})

    def score_of(
        self, rank: Float[np.ndarray, " n"], duplicate: Bool[np.ndarray, " n"], spread: float
    ) -> Float[np.ndarray, " n"]:
        """Return the score of candidates by their numbers that rank, which lie within ``spread`` in the whole pool."""
        return np.where(duplicate, rank - (spread + 1.0) if self.rejected == "last" else np.nan, rank)

    def remember(self, pool: Pool, signals: Signals, rows: Int[np.ndarray, " k"]) -> None:  # noqa: ARG002
        self._learned.update(signals[self.group][rows].tolist())

    def state_dict(self) -> dict[str, Any]:
        return {"learned": np.asarray(sorted(self._learned), dtype=np.int64)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._learned = set(np.asarray(state["learned"]).tolist())
