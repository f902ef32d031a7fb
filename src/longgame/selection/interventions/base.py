"""A selector around a selector."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from longgame.data.examples import Pool
from longgame.errors import PluginError
from longgame.selection.base import Selection, Selector, eligible_of
from longgame.selection.history import History
from longgame.signals.base import CONTEXT, Signals


class Intervention(Selector):
    """Base class of what stands around a selector; state, stages and the signals it sees are passed on to it.

    Args:
        inner: the selector inside.
        words: what is added, as it stands in tables ("replay 20%").
        needs: signals beside those of the inner one.
    """

    name = "intervention"

    def __init__(self, inner: Selector, words: str, needs: tuple[str, ...] = ()) -> None:
        self.inner = inner
        self.name = f"{inner.name} + {words}"  # type: ignore[misc]
        self.requires = tuple(dict.fromkeys((*inner.requires, *needs)))

    def begin_stage(self) -> None:
        if isinstance(self.inner, Selector):
            self.inner.begin_stage()

    def ask(
        self,
        pool: Pool,
        signals: Signals,
        history: History,
        budget: int,
        rng: np.random.Generator,
        rows: Int[np.ndarray, " k"] | None = None,
    ) -> Selection:
        """What the inner selector picks, shown these rows only and the signals that it requires.

        Its rows are those of ``pool``; its scores are NaN where it saw no candidate.
        """
        given = np.arange(len(pool)) if rows is None else rows
        shown = Signals(
            signals.ids,
            {name: signals[name] for name in self.inner.requires if name not in CONTEXT},
            {name: signals[name] for name in self.inner.requires if name in CONTEXT and name in signals},
        )
        if rows is None:
            return self.inner.select(pool, shown, history, budget, rng)
        chosen = self.inner.select(pool.take(rows), shown.take(rows), history, budget, rng)
        return Selection.of(pool, given[chosen.rows], spread(chosen.scores, rows, len(pool)))

    def beside(self, pool: Pool, signals: Signals, rows: Int[np.ndarray, " k"]) -> None:
        """Be told, before a round's `select`, what the round learns beside the picks: these rows of ``pool``."""
        if isinstance(self.inner, Intervention):
            self.inner.beside(pool, signals, rows)

    def eligible(self, pool: Pool) -> Bool[np.ndarray, " n"]:
        """Candidates that the inner selector would pick at all (`Selector.eligible`).

        Raises:
            PluginError: the inner selector's answer is no mask of the candidates.
        """
        return eligible_of(self.inner, pool)

    def kept_state(self) -> Mapping[str, Any]:
        """The inner selector's state as it is now, for `undo`."""
        return copy.deepcopy(self.inner.state_dict())

    def undo(self, state: Mapping[str, Any]) -> None:
        """Let the inner selector forget what it was asked since `kept_state`."""
        if state:
            self.inner.load_state_dict(state)

    def impress(
        self,
        pool: Pool,
        signals: Signals,
        history: History,
        rows: Int[np.ndarray, " k"],
        rng: np.random.Generator,
        state: Mapping[str, Any],
    ) -> None:
        """Let the inner selector remember these rows as its picks since ``state``: offered alone, it takes them all.

        Raises:
            PluginError: it does not.
        """
        if not state:
            return
        self.undo(state)
        taken = self.ask(pool, signals, history, int(pool.tokens[rows].sum()), rng, rows)
        if set(taken.rows.tolist()) != set(rows.tolist()):
            raise PluginError(
                f"selector '{self.inner.name}' left {len(rows) - len(taken.rows)} of {len(rows)} candidates although "
                "its budget held them all; an intervention around it needs a selector that fills its budget."
            )

    def state_dict(self) -> dict[str, Any]:
        """State of the selector inside (``inner``) and of the intervention (``own``)."""
        return {"inner": self.inner.state_dict(), "own": self.own_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.inner.load_state_dict(state["inner"])
        self.load_own_state(state["own"])

    def own_state(self) -> dict[str, Any]:
        """What the intervention itself remembers; by default nothing."""
        return {}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `own_state` returned."""


def spread(scores: Mapping[str, np.ndarray], rows: Int[np.ndarray, " k"], n: int) -> dict[str, np.ndarray]:
    """Columns of n rows that hold these values in these rows and NaN in all others."""
    found = {}
    for name, column in scores.items():
        found[name] = np.full(n, np.nan)
        found[name][rows] = column
    return found
