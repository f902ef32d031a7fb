"""A selector at work: it asks for signals, decides, remembers, and keeps the token ledger and the log."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from longgame.data.examples import Pool
from longgame.errors import ModelError, PluginError
from longgame.escape import visible
from longgame.registry import plugin_at_work
from longgame.selection.base import Reserve, Selector, eligible_of, real_numbers
from longgame.selection.budget import MOST_TIED, fitting_worse, share_tied_at_cut
from longgame.selection.history import History, Selection, checked_weights
from longgame.signals.base import Signals

_log = logging.getLogger(__name__)

_LEAST_OFFERED = 20
"""Candidates of a stage before ties are warned of: a few steps' exact copies are no reason to."""

ComputeSignals = Callable[[Pool, Sequence[str]], Signals]
"""(candidates, signal names) → signals under the model as it is now; a `SignalSource` is one."""


@dataclass(frozen=True)
class Round:
    """One decision, as logged."""

    number: int
    budget: int
    """Tokens that could be spent, including what earlier rounds left over."""
    candidate_ids: tuple[str, ...]
    selection: Selection
    signals: Signals
    """What the selector saw."""
    costs: Int[np.ndarray, " k"]
    """Tokens of each pick, in pick order."""
    gradients: Float[np.ndarray, "k d"] | None = None
    """Gradient sketches of the picks, where this round was measured for the diagnostics."""
    tied: float = math.nan
    """Share of the candidates that tie at the cut (`share_tied_at_cut`); NaN: the selector logs no score."""

    @property
    def picked_ids(self) -> tuple[str, ...]:
        """Ids of the picks, in pick order."""
        return tuple(self.candidate_ids[row] for row in self.selection.rows)


@dataclass
class SelectionPolicy:
    """One selector with its history through the rounds of one stage (`begin_stage` starts the next)."""

    selector: Selector
    history: History
    rng: np.random.Generator
    gradient_every: int = 0
    """Measure the gradient sketches of the picks in every n-th round, for selection concentration; 0 = never."""
    rounds: list[Round] = field(default_factory=list)
    carry: int = 0
    """Tokens that earlier rounds of the stage left over."""
    measuring: float = 0.0
    """Seconds of this stage spent on gradients that only the diagnostics read."""
    _warned: bool = False

    def begin_stage(self, rng: np.random.Generator, reserve: Reserve | None = None) -> None:
        """Forget the rounds of the last stage (not the history) and draw from ``rng`` from now on.

        Args:
            reserve: what may be replayed, for a selector that `replays`.
        """
        self.rng, self.rounds, self.carry, self.measuring = rng, [], 0, 0.0
        with plugin_at_work(self._subject, "begin_stage()"):
            self.selector.begin_stage()
        if reserve is not None:
            self.selector.use_reserve(reserve)

    def use_budget(self, share: float) -> None:
        """Tell the selector the share of the stage's tokens that may be selected, over all rounds."""
        with plugin_at_work(self._subject, "use_budget()"):
            self.selector.use_budget(share)

    def end_stage(self, signals: ComputeSignals) -> None:
        """Let replay measure what its choice needs in the next stage, under the model as it is now."""
        self.selector.end_stage(signals)

    @property
    def replays(self) -> bool:
        """Whether a stage may learn from more than its own candidates."""
        return self.selector.replays

    def learnable(self, pool: Pool) -> Pool:
        """Return all that a stage with these candidates may learn: what may be replayed stands behind them."""
        return self.selector.learnable(pool)

    @property
    def unmet(self) -> dict[str, int]:
        """By how much the stage missed what it should have replayed (`Replay.unmet`); empty without replay."""
        return self.selector.unmet()

    @property
    def required(self) -> tuple[str, ...]:
        """Signals to compute for every round."""
        return tuple(dict.fromkeys(self.selector.requires))

    def choose(self, pool: Pool, budget: int, signals: ComputeSignals, least: int | None = None) -> tuple[Pool, Round]:
        """Score the candidates, select at most ``budget`` tokens plus what earlier rounds left, and log it.

        Args:
            least: picks that the round needs, where another round follows: of the picks behind these, those that stand
                in for a better candidate, which the budget no longer held, are left out, and their tokens go to the
                next round (`fitting_worse`). None: no round follows, and the budget is filled.

        Returns:
            The candidates with what is replayed behind them (in the same budget), and the round, whose rows are of
            that pool.

        Raises:
            PluginError: the selector raised an error, or returned something that is no Selection, rows outside the
                pool, a row twice, more than the budget, terms that are no real numbers, or weights that are not
                finite and above 0; or the signals are not row-aligned with the pool.
        """
        available = int(budget) + self.carry
        pool = self.selector.offer(pool, available)
        columns = signals(pool, self.required)
        if columns.ids != pool.ids:
            raise PluginError(
                "the signals are not those of the candidates, row by row; return them in the pool's order."
            )
        with plugin_at_work(self._subject, "select()"):
            # of copies: what it does to them changes neither its costs nor what is learned
            answer = self.selector.select(copy.copy(pool), copy.copy(columns), self.history, available, self.rng)
            selection = self._checked(pool, answer, available)
        if least is not None:
            selection = self._without_stand_ins(pool, selection, available, least)
        with plugin_at_work(self._subject, "remember()"):
            self.selector.remember(copy.copy(pool), copy.copy(columns), selection.rows.copy())
        self.carry = available - selection.tokens
        self.history.update(selection, pool, columns)
        gradients = self._gradients(pool, selection, columns, signals)
        costs = pool.tokens[selection.rows]
        tied = self._tied(pool, selection)
        self.rounds.append(Round(len(self.rounds), available, pool.ids, selection, columns, costs, gradients, tied))
        self._warn_of_ties()
        return pool, self.rounds[-1]

    def _without_stand_ins(self, pool: Pool, selection: Selection, budget: int, least: int) -> Selection:
        """The selection without the last picks that are worse than a candidate the budget no longer held."""
        if "score" not in selection.scores:
            return selection
        score = np.where(eligible_of(self.selector, pool), selection.scores["score"], np.nan)
        worse = fitting_worse(score, pool.costs, selection.rows, budget)
        worse[:least] = False
        weights = None if selection.weights is None else selection.weights[~worse]
        return Selection.of(pool, selection.rows[~worse], selection.scores, weights)

    @property
    def tied_share(self) -> float:
        """Share of the stage's candidates, over all rounds, that tie at the cut; NaN without scores."""
        offered = sum(len(entry.candidate_ids) for entry in self.rounds)
        tied = sum(entry.tied * len(entry.candidate_ids) for entry in self.rounds)
        return tied / offered if offered else math.nan

    def _tied(self, pool: Pool, selection: Selection) -> float:
        if "score" not in selection.scores:
            return math.nan
        score = np.where(eligible_of(self.selector, pool), selection.scores["score"], np.nan)
        picked = np.zeros(len(pool), dtype=bool)
        picked[selection.rows] = True
        return share_tied_at_cut(score, picked)

    def _warn_of_ties(self) -> None:
        """Log once that most candidates tie at the cut."""
        offered = sum(len(entry.candidate_ids) for entry in self.rounds)
        if self._warned or offered < _LEAST_OFFERED or not self.tied_share > MOST_TIED:
            return
        self._warned = True
        _log.warning(
            "%s: %.0f %% of %d candidates share the score at which the budget ends, so their ids decide which are "
            "picked. Use a score that tells them apart.",
            visible(self._subject),
            100 * self.tied_share,
            offered,
        )

    def _gradients(
        self, pool: Pool, selection: Selection, columns: Signals, signals: ComputeSignals
    ) -> Float[np.ndarray, "k d"] | None:
        """Gradient sketches of the picks: the selector's own if it requires them, else measured here."""
        if not self.gradient_every or len(self.rounds) % self.gradient_every:
            return None
        if "grad_sketch" in columns:
            return columns["grad_sketch"][selection.rows]
        start = time.perf_counter()
        try:
            return signals(pool.take(selection.rows), ("grad_sketch",))["grad_sketch"]
        except (ModelError, PluginError) as error:  # only a diagnostic needs them
            self.gradient_every = 0
            _log.warning("selection concentration is not measured: %s", error)
            return None
        finally:
            self.measuring += time.perf_counter() - start

    def _checked(self, pool: Pool, selection: Any, budget: int) -> Selection:
        """The selection with copies of its arrays, its tokens counted by this pool.

        Raises:
            PluginError: as `choose`.
        """
        subject = self._subject
        if not isinstance(selection, Selection):
            raise PluginError(
                f"{subject} returned a {type(selection).__name__}; return Selection.of(pool, rows, scores)."
            )
        rows = Selection.of(pool, selection.rows).rows.copy()
        if len(rows) == 0:
            raise PluginError(self._why_empty(pool, budget))
        if len(set(rows.tolist())) != len(rows):
            raise PluginError(f"{subject} returned a row twice.")
        spent = int(pool.costs[rows].sum())
        if spent != selection.tokens or spent > budget:
            raise PluginError(
                f"{subject} spent {spent} tokens of {budget} and reported {selection.tokens}. "
                "Walk the rows with fill_budget(order, pool.costs, budget)."
            )
        if "weight" in selection.scores:  # in a subset its column would be that of the weights
            raise PluginError(
                f"{subject} has a term 'weight'. Name the term otherwise; factors of the loss belong into "
                "Selection.of(pool, rows, scores, weights)."
            )
        scores = {
            term: real_numbers(column, len(pool), f"the term '{term}'").copy()
            for term, column in dict(selection.scores).items()
        }
        try:
            weights = checked_weights(selection.weights, len(rows))
        except PluginError as error:
            raise PluginError(f"{subject}: {error}") from error
        return Selection(rows, spent, scores, weights)

    def _why_empty(self, pool: Pool, budget: int) -> str:
        """The error of a round in which nothing was selected: who decided, why, and the fix."""
        eligible = eligible_of(self.selector, pool)
        subject = self.selector.score_source or self._subject
        offered = f"the {len(pool)} candidates of round {len(self.rounds) + 1}"
        if not eligible.any():
            reason = f"keeps none of {offered}"
        elif pool.costs[eligible].min() > budget:
            shortest = int(pool.costs[eligible].min())
            reason = (
                f"keeps {int(eligible.sum())} of {offered}, the shortest of {shortest} tokens; {budget} may be spent"
            )
        else:
            return (
                f"{subject} selected nothing from {len(pool)} candidates with {budget} tokens to spend, although "
                f"{int(np.sum(eligible & (pool.costs <= budget)))} of them fit. Return at least one; a selector of a "
                "subset defines eligible(pool), and needs rounds that offer enough of it (rounds: 1 offers all)."
            )
        return (
            f"{subject} {reason}, so there is nothing to learn. Keep more, or set rounds: 1: then it chooses once, "
            "from all candidates of the stage."
        )

    @property
    def _subject(self) -> str:
        return f"selector '{self.selector.name}'"

    def state_dict(self) -> dict[str, Any]:
        """State that later stages depend on (selector, history, carried tokens)."""
        with plugin_at_work(self._subject, "state_dict()"):
            state = self.selector.state_dict()
        return {
            "selector": state,
            "history": self.history.state_dict(),
            "rng": self.rng.bit_generator.state,
            "carry": self.carry,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        with plugin_at_work(self._subject, "load_state_dict()"):
            self.selector.load_state_dict(state["selector"])
        self.history.load_state_dict(state["history"])
        self.rng.bit_generator.state = state["rng"]
        self.carry = int(state["carry"])
