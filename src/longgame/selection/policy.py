"""A selector at work: it asks for signals, decides, remembers, and keeps the token ledger and the log."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from longgame.data.examples import Pool
from longgame.errors import PluginError
from longgame.registry import plugin_at_work
from longgame.selection.base import Selection, Selector, eligible_of
from longgame.selection.history import History
from longgame.selection.interventions.base import Intervention
from longgame.selection.interventions.replay import Replay, Reserve
from longgame.selection.methods.from_scores import FromScores
from longgame.signals.base import Signals

Scorer = Callable[[Pool, Sequence[str]], Signals]
"""(candidates, signal names) → signals under the model as it is now."""


@dataclass(frozen=True)
class Round:
    """One decision, as logged."""

    number: int
    budget: int
    """Tokens that could be spent, what earlier rounds left over included."""
    candidate_ids: tuple[str, ...]
    selection: Selection
    signals: Signals
    """What the selector saw."""
    costs: Int[np.ndarray, " k"]
    """Tokens of each pick, in pick order."""
    gradients: Float[np.ndarray, "k d"] | None = None
    """Gradient sketches of the picks, where this round was measured for the diagnostics."""


@dataclass
class SelectionPolicy:
    """One selector with its history through the rounds of one stage (`begin_stage` starts the next)."""

    selector: Selector
    history: History
    rng: np.random.Generator
    extra_signals: tuple[str, ...] = ()
    """Signals to compute beside what the selector requires."""
    gradient_every: int = 0
    """Measure the gradient sketches of the picks in every n-th round, for selection concentration; 0 = never."""
    rounds: list[Round] = field(default_factory=list)
    carry: int = 0
    measuring: float = 0.0
    """Seconds of this stage that went into gradients which only the diagnostics read."""

    def begin_stage(self, rng: np.random.Generator, reserve: Reserve | None = None) -> None:
        """Forget the rounds of the last stage (not the history) and draw from ``rng`` from now on.

        Args:
            reserve: what may be replayed, for a selector that `replays`.
        """
        self.rng, self.rounds, self.carry, self.measuring = rng, [], 0, 0.0
        if isinstance(self.selector, Selector):
            with plugin_at_work(self._who, "begin_stage()"):
                self.selector.begin_stage()
        if isinstance(self.selector, Replay) and reserve is not None:
            self.selector.bring(reserve)

    @property
    def replays(self) -> bool:
        """Whether a stage may learn from more than its own candidates."""
        return isinstance(self.selector, Replay)

    def learnable(self, pool: Pool) -> Pool:
        """All that a stage with these candidates may learn: what is replayed stands behind them."""
        return self.selector.learnable(pool) if isinstance(self.selector, Replay) else pool

    @property
    def unmet(self) -> dict[str, int]:
        """What this stage should have replayed and did not (`Replay.unmet`); empty for a selector without replay."""
        return self.selector.unmet() if isinstance(self.selector, Replay) else {}

    @property
    def required(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.selector.requires, *self.extra_signals)))

    def choose(self, pool: Pool, budget: int, score: Scorer) -> Selection:
        """Score the candidates, select at most ``budget`` tokens plus what earlier rounds left, and remember it.

        What is replayed comes on top of the candidates, in the same budget: the picks' rows may lie behind the pool's
        (ids and costs tell what they are), and `learnable` holds them.

        Raises:
            PluginError: the selector raised an error, or returned something that is no Selection, rows outside the
                pool, a row twice, or more than the budget; or the signals are not row-aligned with the pool.
        """
        available = int(budget) + self.carry
        if isinstance(self.selector, Replay):
            pool = self.selector.offer(pool, available)
        signals = score(pool, self.required)
        if signals.ids != pool.ids:
            raise PluginError(
                "the signals are not those of the candidates, row by row; return them in the pool's order."
            )
        with plugin_at_work(self._who, "select()"):
            selection = self.selector.select(pool, signals, self.history, available, self.rng)
        self._check(pool, selection, available)
        self.carry = available - selection.tokens
        self.history.update(selection, pool, signals)
        gradients = self._gradients(pool, selection, signals, score)
        costs = pool.tokens[selection.rows]
        self.rounds.append(Round(len(self.rounds), available, pool.ids, selection, signals, costs, gradients))
        return selection

    def _gradients(
        self, pool: Pool, selection: Selection, signals: Signals, score: Scorer
    ) -> Float[np.ndarray, "k d"] | None:
        """Gradient sketches of the picks: the selector's own where it asked for them, else measured here."""
        if not self.gradient_every or len(self.rounds) % self.gradient_every:
            return None
        if "grad_sketch" in signals:
            return signals["grad_sketch"][selection.rows]
        begun = time.perf_counter()
        found = score(pool.take(selection.rows), ("grad_sketch",))["grad_sketch"]
        self.measuring += time.perf_counter() - begun
        return found

    def _check(self, pool: Pool, selection: Selection, budget: int) -> None:
        who = self._who
        if not isinstance(selection, Selection):
            raise PluginError(f"{who} returned a {type(selection).__name__}; return Selection.of(pool, rows, scores).")
        rows = np.asarray(selection.rows)
        if len(rows) == 0:
            raise PluginError(self._nothing(pool, budget))
        if len(set(rows.tolist())) != len(rows) or rows.min() < 0 or rows.max() >= len(pool):
            raise PluginError(f"{who} returned a row twice or outside 0…{len(pool) - 1}.")
        if tuple(pool.ids[row] for row in rows) != tuple(selection.ids):
            raise PluginError(f"{who} returned ids that do not belong to its rows; use Selection.of(pool, rows).")
        spent = int(pool.tokens[rows].sum())
        if spent != selection.tokens or spent > budget:
            raise PluginError(
                f"{who} spent {spent} tokens of {budget} and reported {selection.tokens}. "
                "Walk the rows with fill_budget(order, pool.tokens, budget)."
            )
        for term, column in selection.scores.items():
            if np.shape(column) != (len(pool),):
                raise PluginError(
                    f"{who} explains itself by '{term}' of shape {np.shape(column)}; give one number for each of the "
                    f"{len(pool)} candidates, in the pool's order."
                )

    def _nothing(self, pool: Pool, budget: int) -> str:
        """What to say of a round in which nothing was selected: who decided, why, and what to do about it."""
        inner = self.selector
        while isinstance(inner, Intervention):
            inner = inner.inner
        kept = eligible_of(inner, pool)
        who = f"score file '{inner.file.path}'" if isinstance(inner, FromScores) else self._who
        offered = f"the {len(pool)} candidates of round {len(self.rounds) + 1}"
        if not kept.any():
            why = f"keeps none of {offered}"
        elif pool.tokens[kept].min() > budget:
            shortest = int(pool.tokens[kept].min())
            why = f"keeps {int(kept.sum())} of {offered}, the shortest of {shortest} tokens; {budget} may be spent"
        else:
            return (
                f"{who} selected nothing from {len(pool)} candidates with {budget} tokens to spend, although "
                f"{int(np.sum(kept & (pool.tokens <= budget)))} of them fit. Return at least one; one that takes a "
                "subset says so in eligible(pool), and needs rounds that offer enough of it (rounds: 1 offers all)."
            )
        return (
            f"{who} {why}, so there is nothing to learn. Keep more, or set rounds: 1: then it chooses once, from all "
            "candidates of the stage."
        )

    @property
    def _who(self) -> str:
        return f"selector '{self.selector.name}'"

    def state_dict(self) -> dict[str, Any]:
        """State that later stages depend on (selector, history, carried tokens)."""
        with plugin_at_work(self._who, "state_dict()"):
            state = self.selector.state_dict()
        return {
            "selector": state,
            "history": self.history.state_dict(),
            "rng": self.rng.bit_generator.state,
            "carry": self.carry,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        with plugin_at_work(self._who, "load_state_dict()"):
            self.selector.load_state_dict(state["selector"])
        self.history.load_state_dict(state["history"])
        self.rng.bit_generator.state = state["rng"]
        self.carry = int(state["carry"])
