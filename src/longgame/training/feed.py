"""What a step learns: the policy's decisions, the token ledger between them, and how picks are dealt over steps.

Free of torch. One path for one offline choice, n rounds and a choice every step: a *round* decides once over its
candidates, and what it picks is dealt over the round's steps (with a round per step there is one to deal to).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from longgame.data.examples import Pool
from longgame.errors import BudgetError, RecipeError, ResumeError
from longgame.seeding import generator
from longgame.selection.policy import Scorer, SelectionPolicy
from longgame.training.config import SelectionConfig


class SelectionFeed:
    """Gives every optimiser step the ids it learns from.

    Args:
        policy: decides; the budget is passed in each round by `SelectionFeed`, which counts the tokens.
        score: signals of candidates under the model as it is now.
        selection: budget, rounds, epochs (default 1) and the seed of the dealing (default 0).
        steps: optimiser steps of the whole run.

    Raises:
        RecipeError: there are more rounds than steps.
    """

    def __init__(self, policy: SelectionPolicy, score: Scorer, selection: SelectionConfig, steps: int) -> None:
        if selection.rounds != "step" and selection.rounds > steps:
            raise RecipeError(
                f"rounds is {selection.rounds} but there are only {steps} steps; use at most one round per step."
            )
        self.policy, self.score, self.steps = policy, score, steps
        self.rounds, self.budget = selection.rounds, selection.budget
        self.epochs, self.seed = selection.epochs or 1, selection.seed or 0
        self.spent = 0
        """Tokens the selector spent."""
        self.seen = 0
        """Tokens of the candidates that were scored."""
        self.learned = 0
        """Tokens handed to the optimiser."""
        self._stream = 0
        self._taken: dict[str, int] = {}
        self._queue: list[list[str]] = []
        self._costs: dict[str, int] = {}

    def batch(self, step: int, candidates: Callable[[Collection[str]], Pool]) -> list[str]:
        """Return the ids of this step's examples, deciding first where a round begins.

        Args:
            step: 0-based optimiser step; steps must be asked for in order.
            candidates: called where a round begins, with the ids that are out of the running (those earlier rounds
                picked; none with ``rounds="step"``, where the stream brings its own), gives the round's candidates.

        Raises:
            BudgetError: the budget holds no example, or fewer examples than the round has steps.
        """
        if not self._queue:
            self._decide(step, candidates(self._taken.keys() if self.rounds != "step" else ()))
        ids = self._queue.pop(0)
        self.learned += sum(self._costs[sample_id] for sample_id in ids)
        return ids

    def _decide(self, step: int, pool: Pool) -> None:
        offered = int(pool.tokens.sum())
        if self.rounds == "step":
            self._stream += offered
            entitled, first, last, number = round(self.budget * self._stream), step, step + 1, step
        else:
            number = round_of(step, self.steps, self.rounds)
            first, last = (self.steps * number // self.rounds, self.steps * (number + 1) // self.rounds)
            if step != first:
                raise ResumeError(f"step {step} is inside round {number} but nothing is queued for it.")
            total = offered + sum(self._taken.values())
            entitled = round(self.budget * total * (number + 1) / self.rounds)
        decision = self.policy.choose(pool, self._grant(pool, entitled) - self.policy.carry, self.score)
        self.spent += decision.selection.tokens
        self.seen += offered
        ids, costs = decision.picked_ids, decision.costs
        picked = dict(zip(ids, costs.tolist(), strict=True))
        if self.rounds == "step":
            self._costs = picked
            self._queue = [list(ids)]
            return
        self._taken |= {sample_id: cost for sample_id, cost in picked.items() if sample_id in pool.index}
        self._costs |= picked
        dealt = deal(costs, last - first, self.epochs, generator(self.seed, "deal", number))
        self._queue = [[ids[row] for row in rows] for rows in dealt]

    def _grant(self, pool: Pool, entitled: int) -> int:
        """Tokens that may be spent now: what the share allows so far, less what was spent.

        Where that holds not even the shortest candidate, this one is advanced and settled by the next rounds, so
        that a run never spends more than its share and one example.
        """
        if len(pool) == 0:
            raise BudgetError("no candidates are left to choose from; lower `rounds` or raise the pool.")
        left, shortest = entitled - self.spent, int(pool.tokens.min())
        if left >= shortest:
            return left
        if left <= 0:
            raise BudgetError(
                f"a share of {self.budget:g} of {len(pool)} candidates leaves {left} tokens for this round, and the "
                f"shortest has {shortest}. Raise the budget, give each round more candidates, or use fewer rounds."
            )
        return shortest

    def state_dict(self) -> dict[str, Any]:
        """Everything that later batches depend on, the policy's state included."""
        return {
            "policy": self.policy.state_dict(),
            "plan": self._plan(),
            "spent": self.spent,
            "seen": self.seen,
            "learned": self.learned,
            "stream": self._stream,
            "taken": dict(self._taken),
            "queue": [list(ids) for ids in self._queue],
            "costs": dict(self._costs),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned.

        Raises:
            ResumeError: the state belongs to another plan (steps, rounds, budget, epochs, seed).
        """
        old, new = state["plan"], self._plan()
        differing = [f"{key} was {old.get(key)!r}, is {new[key]!r}" for key in new if old.get(key) != new[key]]
        if differing:
            raise ResumeError(
                f"the checkpoint's selection belongs to another plan: {'; '.join(differing)}. "
                "Resume with the arguments it was started with."
            )
        self.policy.load_state_dict(state["policy"])
        self.spent, self.seen, self.learned = state["spent"], state["seen"], state["learned"]
        self._stream, self._taken, self._costs = state["stream"], dict(state["taken"]), dict(state["costs"])
        self._queue = [list(ids) for ids in state["queue"]]

    def _plan(self) -> dict[str, Any]:
        names = ("rounds", "budget", "steps", "epochs", "seed")
        return {"selector": self.policy.selector.name, **{name: getattr(self, name) for name in names}}


def round_of(step: int, steps: int, rounds: int) -> int:
    """Return the round a 0-based step belongs to; round r starts at step ⌊steps · r / rounds⌋."""
    return ((step + 1) * rounds - 1) // steps


def deal(tokens: Int[np.ndarray, " k"], steps: int, epochs: int, rng: np.random.Generator) -> list[list[int]]:
    """Deal k picks, ``epochs`` times each, over steps of nearly equal token counts.

    Every pass is shuffled anew; the passes stand behind each other and are cut where the running token count comes
    nearest to equal shares, so nothing is seen a second time before everything was seen once.

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


def split_micro(tokens: Sequence[int], parts: int) -> list[list[int]]:
    """Split a step's examples into micro-batches of nearly equal tokens (longest first into the lightest).

    Returns:
        ``parts`` lists of positions in pick order; some are empty where there are fewer examples than parts.
    """
    if parts == 1:
        return [list(range(len(tokens)))]
    bins: list[list[int]] = [[] for _ in range(parts)]
    load = [0] * parts
    for position in sorted(range(len(tokens)), key=lambda i: (-tokens[i], i)):
        lightest = load.index(min(load))
        bins[lightest].append(position)
        load[lightest] += tokens[position]
    return [sorted(found) for found in bins]
