"""Which examples each step trains on: rounds of selection, the token ledger between them, and the dealing to steps.

Free of torch. A *round* selects once from its candidates; its picks are dealt over the round's steps. One offline
selection is one round; ``rounds="step"`` makes every step a round, with candidates of its own.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Container, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from longgame.data.examples import WEIGHT, Pool
from longgame.errors import BudgetError, RecipeError, ResumeError
from longgame.seeding import generator
from longgame.selection.policy import ComputeSignals, SelectionPolicy
from longgame.training.config import SelectionConfig

_Batch = tuple[Pool, list[int], Float[np.ndarray, " k"] | None]
"""A pool, rows of it, and their weights."""


class SelectionFeed:
    """Gives every optimizer step the examples that it trains on.

    Args:
        policy: selects, within the budget that the feed grants to each round.
        score: signals of candidates under the model as it is now.
        selection: budget, rounds, epochs (default 1) and the seed of the dealing (default 0).
        steps: optimizer steps of the whole training.
        pool: all candidates, for a number of rounds; with ``rounds="step"`` each step brings its own.

    Raises:
        RecipeError: there are more rounds than steps, or a number of rounds and no pool.
    """

    def __init__(
        self,
        policy: SelectionPolicy,
        score: ComputeSignals,
        selection: SelectionConfig,
        steps: int,
        pool: Pool | None = None,
    ) -> None:
        self.policy, self.score, self.steps = policy, score, steps
        self.rounds, self.budget, self.budget_of = selection.rounds, selection.budget, selection.budget_of
        self.repeat = selection.repeat
        policy.use_budget(selection.budget)
        self.pool = None if pool is None else self._priced(pool)
        self.epochs, self.seed = selection.epochs or 1, selection.seed or 0
        if self.rounds != "step" and self.rounds > steps:
            raise RecipeError(f"rounds is {self.rounds} but there are only {steps} steps; use at most one per step.")
        if self.rounds != "step" and pool is None:
            raise RecipeError(f"rounds is {self.rounds} but there is no pool; pass all candidates, or use 'step'.")
        self.spent = 0
        """Tokens selected so far."""
        self.scored = 0
        """Tokens of all candidates so far; a candidate counts again in every round that offers it."""
        self.learned = 0
        """Tokens trained on so far; a second pass counts again."""
        self.charged = self.offered = 0
        """What was selected and what was offered or skipped so far, as the budget counts (`Pool.costs`)."""
        self._selected = np.zeros(0 if pool is None else len(pool), dtype=bool)
        """Rows of `pool` that earlier rounds selected."""
        self.weights: Float[np.ndarray, " k"] | None = None
        """Of the last batch's rows, what their loss is multiplied by: the selection's weight times that of the pool
        (`WEIGHT`); None: 1 for all."""
        self._queue: list[_Batch] = []

    def batch(
        self, step: int, candidates: Pool | None = None, skip: Container[str] = frozenset()
    ) -> tuple[Pool, list[int]]:
        """Return a pool and the rows of it that this step trains on; where a round begins, select first.

        The pool is what the round selected from: its candidates, and behind them what the policy replays. `weights`
        are set.

        Args:
            step: 0-based optimizer step; steps must come in order.
            candidates: of this step, with ``rounds="step"``.
            skip: ids of candidates that are not offered again; their tokens count in the budget's share all the same.

        Raises:
            BudgetError: the budget holds no example, or fewer examples than the round has steps.
        """
        if not self._queue:
            self._queue = self._round(step) if candidates is None else self._step(step, self._priced(candidates), skip)
        pool, rows, self.weights = self._queue.pop(0)
        self.learned += int(pool.tokens[rows].sum())
        return pool, rows

    def _priced(self, pool: Pool) -> Pool:
        """The pool with the costs that this training's budget counts."""
        return pool if pool.budget_of == self.budget_of else dataclasses.replace(pool, budget_of=self.budget_of)

    def _step(self, step: int, candidates: Pool, skip: Container[str]) -> list[_Batch]:
        entitled = round(self.budget * (self.offered + int(candidates.costs.sum())))
        fresh = [row for row, sample_id in enumerate(candidates.ids) if sample_id not in skip]
        if len(fresh) < len(candidates):
            if not fresh:
                raise BudgetError(
                    f"all {len(candidates)} candidates of step {step + 1} were selected before, and repeat is False. "
                    "Train for fewer steps, give a step more candidates (candidate_ratio), or set repeat=True."
                )
            skipped = int(candidates.costs.sum())
            candidates = candidates.take(fresh)
            self.offered += skipped - int(candidates.costs.sum())
        pool, rows, weights = self._select(candidates, entitled, 1 if step + 1 < self.steps else None)
        return [(pool, rows.tolist(), weights)]

    def _round(self, step: int) -> list[_Batch]:
        if self.pool is None or self.rounds == "step":
            raise RecipeError(f"step {step} has no candidates; with rounds='step' pass those of every step.")
        number = round_of(step, self.steps, self.rounds)
        start, stop = (self.steps * number // self.rounds, self.steps * (number + 1) // self.rounds)
        if step != start:
            raise ResumeError(f"step {step} is inside round {number} but nothing is queued for it.")
        entitled = round(self.budget * int(self.pool.costs.sum()) * (number + 1) / self.rounds)
        open_rows = np.flatnonzero(~self._selected)
        least = -(-(stop - start) // self.epochs) if number + 1 < self.rounds else None
        pool, rows, weights = self._select(self.pool.take(open_rows), entitled, least)
        self._selected[open_rows[rows[rows < len(open_rows)]]] = True
        dealt = deal(pool.tokens[rows], stop - start, self.epochs, generator(self.seed, "deal", number))
        return [(pool, rows[picks].tolist(), None if weights is None else weights[picks]) for picks in dealt]

    def _select(
        self, candidates: Pool, entitled: int, least: int | None
    ) -> tuple[Pool, Int[np.ndarray, " k"], Float[np.ndarray, " k"] | None]:
        """Let the policy select at least so many picks (None: for the last time).

        Returns the pool with what it replays, the selected rows of it, and their weights.
        """
        granted = self._grant(candidates, entitled)
        pool, decision = self.policy.choose(candidates, granted - self.policy.carry, self.score, least)
        self.charged += decision.selection.tokens
        self.spent += int(pool.tokens[decision.selection.rows].sum())
        self.offered += int(candidates.costs.sum())
        self.scored += int(candidates.tokens.sum())
        rows, weights = decision.selection.rows, decision.selection.weights
        if WEIGHT in pool.info:
            weights = pool.info[WEIGHT][rows] * (1.0 if weights is None else weights)
        return pool, rows, weights

    def _grant(self, candidates: Pool, entitled: int) -> int:
        """Tokens that may be spent now: the share of the budget so far, minus what was spent.

        Where that holds not even the shortest candidate, its tokens are granted in advance and missing in the next
        rounds, so that a training never spends more than its share and one example.
        """
        if len(candidates) == 0:
            raise BudgetError("no candidates are left to select from; lower `rounds` or raise the pool.")
        left, shortest = entitled - self.charged, int(candidates.costs.min())
        if left >= shortest:
            return left
        if left <= 0:
            raise BudgetError(
                f"a share of {self.budget:g} of {len(candidates)} candidates leaves {left} tokens for this round, and "
                f"the shortest has {shortest}. Raise the budget, give each round more candidates, or use fewer rounds."
            )
        return shortest

    def state_dict(self) -> dict[str, Any]:
        """Return everything that later batches depend on, the policy's state included; examples by ``sample_id``."""
        ids = () if self.pool is None else self.pool.ids
        return {
            "policy": self.policy.state_dict(),
            "plan": self._plan(),
            "spent": self.spent,
            "scored": self.scored,
            "learned": self.learned,
            "charged": self.charged,
            "offered": self.offered,
            "selected": [ids[row] for row in np.flatnonzero(self._selected)],
            "queue": [[pool.ids[row] for row in rows] for pool, rows, _ in self._queue],
            "weights": [None if weights is None else weights.tolist() for _, _, weights in self._queue],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ResumeError: the state belongs to another plan (steps, rounds, budget, epochs, seed) or other candidates.
        """
        saved, now = state["plan"], self._plan()
        free = {"steps"} if self.rounds == "step" else set()  # a choice at every step is the same in a longer training
        saved = {"repeat": True, **saved}
        differing = [
            f"{key} was {saved.get(key)!r}, is {now[key]!r}"
            for key in now
            if saved.get(key) != now[key] and key not in free
        ]
        if differing:
            longer = " Rounds are laid over all steps; a training that may be prolonged needs rounds='step'."
            raise ResumeError(
                f"the checkpoint's selection belongs to another plan: {'; '.join(differing)}. "
                f"Resume with the arguments it was started with.{longer if saved.get('steps') != self.steps else ''}"
            )
        self.policy.load_state_dict(state["policy"])
        for name in ("spent", "scored", "learned", "charged", "offered"):
            setattr(self, name, state[name])
        if self.pool is None:
            return
        try:
            self._selected[[self.pool.index[sample_id] for sample_id in state["selected"]]] = True
            queue = [[self.pool.index[sample_id] for sample_id in ids] for ids in state["queue"]]
        except KeyError as error:
            raise ResumeError(
                f"the checkpoint selected example {error}, which is not among the {len(self.pool)} candidates. "
                "Resume with the dataset it was started with."
            ) from error
        saved = state.get("weights", [None] * len(queue))  # none in checkpoints of older versions
        weights = [None if values is None else np.asarray(values) for values in saved]
        self._queue = [(self.pool, rows, part) for rows, part in zip(queue, weights, strict=True)]

    def _plan(self) -> dict[str, Any]:
        names = ("rounds", "budget", "budget_of", "steps", "epochs", "seed", "repeat")
        return {"selector": self.policy.selector.name, **{name: getattr(self, name) for name in names}}


def round_of(step: int, steps: int, rounds: int) -> int:
    """Return the round a 0-based step belongs to; round r starts at step ⌊steps · r / rounds⌋."""
    return ((step + 1) * rounds - 1) // steps


def deal(tokens: Int[np.ndarray, " k"], steps: int, epochs: int, rng: np.random.Generator) -> list[list[int]]:
    """Deal k picks, ``epochs`` times each, over steps of nearly equal token counts.

    Every pass is shuffled anew. The passes are concatenated and cut where the running token count comes nearest to
    equal shares, so no pick comes a second time before all came once.

    Returns:
        ``steps`` non-empty lists of rows.

    Raises:
        BudgetError: there are fewer picks than steps.
    """
    order = np.concatenate([rng.permutation(len(tokens)) for _ in range(epochs)])
    if len(order) < steps:
        raise BudgetError(
            f"{len(tokens)} selected examples × {epochs} epochs cannot fill {steps} steps. "
            "Raise the budget or the epochs, or train for fewer steps."
        )
    ends = np.concatenate([[0], np.cumsum(np.asarray(tokens, dtype=np.int64)[order])])
    cuts = [0]
    for part in range(1, steps):
        target = ends[-1] * part / steps
        cut = int(np.searchsorted(ends, target))
        if cut > 0 and target - ends[cut - 1] <= ends[cut] - target:
            cut -= 1
        cuts.append(min(max(cut, cuts[-1] + 1), len(order) - (steps - part)))
    cuts.append(len(order))
    return [order[start:end].tolist() for start, end in itertools.pairwise(cuts)]


def epoch_steps(batches: int, accumulation: int) -> int:
    """Return the optimizer steps of an epoch of so many batches, as transformers' Trainer counts them."""
    return max(batches // accumulation + int(batches % accumulation > 0), 1)
