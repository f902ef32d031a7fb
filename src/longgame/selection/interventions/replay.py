"""Replay mixture: a share of the budget goes to examples of earlier stages, or to the proxy items."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from longgame.data.examples import Pool
from longgame.errors import PluginError, RecipeError
from longgame.selection.base import Reserve, Selector
from longgame.selection.budget import choice, id_order
from longgame.selection.history import History, Selection
from longgame.selection.interventions.constraints import Intervention
from longgame.signals.base import Signals

REPLAYED = "replayed"
"""Row-aligned key of `Pool.info` (and term of the log): which candidates are not the stage's own."""
_MOST_PROXY = Fraction(1, 2)
_TOKENS_MISSED, _ITEMS_MISSED = "replay_missed_tokens", "proxy_items_missed"


class _Queue:
    """Examples in a fixed random order, handed out one by one, each at most once a stage, as far as a share allows."""

    def __init__(self, pool: Pool, order: Int[np.ndarray, " m"], share: Fraction, items: bool) -> None:
        self.pool, self.share, self.items = pool, share, items
        self.waiting = order.tolist()
        self.spent = 0

    def owed(self, tokens: int) -> int:
        """Whole tokens that the share of these tokens of the stage still allows."""
        return int(self.share * tokens) - self.spent

    def draw(self, tokens: int, budget: int, left: int, least: int) -> list[int]:
        """Rows of the examples that are due and fit; those that do not stay where they are in the queue.

        Args:
            tokens: of the stage, this round's included.
            budget: of this round; what is longer is passed over.
            left: what is not drawn yet of it.
            least: to be left beside what is drawn; the first one drawn in a round may stand alone.
        """
        rows: list[int] = []
        for row in self.waiting:
            cost = self._cost(row)
            if cost > self.owed(tokens):
                break
            if cost > budget:
                continue
            if cost > left - least and left < budget:
                break
            rows.append(row)
            self.spent += cost
            left -= cost
        if rows:
            taken = set(rows)
            self.waiting = [row for row in self.waiting if row not in taken]
        return rows

    def saves(self, tokens: int, round_budget: int) -> int:
        """Tokens of this share to keep for the next example: all it has, where a round alone cannot hold that one."""
        return max(0, self.owed(tokens)) if self._cost(self.waiting[0]) > round_budget else 0

    def missing(self, tokens: int) -> int:
        """Tokens of the share of so many that are not spent, where they hold the next example; else 0.

        Where no example waits any more: where they are more than the longest there was. (0 for an empty pool.)
        """
        missing = self.owed(tokens)
        if self.waiting:
            return missing if missing >= self._cost(self.waiting[0]) else 0
        return missing if len(self.pool) and missing > self.pool.tokens.max() else 0

    def _cost(self, row: int) -> int:
        return int(self.pool.tokens[row])


class Replay(Intervention):
    """A share of every stage's tokens is spent on other examples than its own candidates; the selector has the rest.

    Replayed examples come in random order, none twice in a stage and none that is a candidate of the stage itself
    (known by id). The share is kept as a ledger of whole tokens over the stage's rounds: an example is replayed as soon
    as it fits into what the share allows so far, so that short examples have no advantage and the stage ends within one
    example of the share. In the first stage there is nothing to replay. Whatever a round does not replay belongs to the
    selector, and the stage spends the same number of tokens as any other. What is replayed is selected history like
    everything else.

    Where a round's budget is of the size of an example: one that is due and leaves no room for the shortest of the
    round's own candidates is the round's only pick, and what it leaves goes to the next round; for one that is longer
    than the budget of a round, the share's tokens are kept back (the selector has its own share meanwhile) until a
    round holds it; one that is due and still too long is passed over, and stays the next. What the stage cannot hold
    in the end is told by `unmet`.

    Args:
        inner: the selector inside; it sees its own candidates only.
        share: of the tokens, in [0, 1).
        source: ``pools``: uniformly from all candidates of earlier stages, whoever selected them; the same for every
            selector of a seed. ``selected``: uniformly from what this selector selected in earlier stages.
        proxy_as_data: also learn every item of the future-proxy mixture once a stage (at most half of the budget),
            spread evenly over it: for selectors without a future term, the information that LHAS has.

    ``scores``: the inner selector's, NaN for replayed examples, and ``replayed``, 1 or 0.
    """

    replays = True

    def __init__(
        self,
        inner: Selector,
        share: float = 0.0,
        source: Literal["pools", "selected"] = "pools",
        proxy_as_data: bool = False,
    ) -> None:
        self.source = choice(inner.name, "replay source", source, ("pools", "selected"))
        if not 0 <= share < 1 or not (share or proxy_as_data):
            raise RecipeError(f"selector '{inner.name}': replay is {share}; give a share in (0, 1), or leave it out.")
        self.share, self.proxy_as_data = share, proxy_as_data
        words = [f"replay {100 * share:g}%" + (" selected" if source == "selected" else "")] if share else []
        super().__init__(inner, " + ".join([*words, *(["proxy items"] if proxy_as_data else [])]))
        self._selected: dict[str, None] = {}
        self._reserve: Reserve | None = None
        self._queues: tuple[_Queue, ...] = ()
        self._spent = 0
        self._kept = 0
        """Tokens that this round keeps back for the next ones."""

    def begin_stage(self) -> None:
        super().begin_stage()
        self._reserve, self._queues, self._spent, self._kept = None, (), 0, 0

    def use_reserve(self, reserve: Reserve) -> None:
        """Take what this stage may replay (after `begin_stage`).

        Raises:
            RecipeError: the proxy items are to be learned and there are none.
        """
        queues = []
        if self.share:
            queues.append(self._queue(reserve, reserve.earlier, Fraction(str(self.share))))
        if self.proxy_as_data:
            if reserve.proxy is None or not len(reserve.proxy):
                raise RecipeError(
                    f"selector '{self.inner.name}' has proxy_as_data, but the proxy mixture is empty. Set "
                    "proxy.items_per_skill to 1 or more, or leave out proxy_as_data."
                )
            share = min(_MOST_PROXY, Fraction(int(reserve.proxy.tokens.sum()), max(1, reserve.budget)))
            queues.append(self._queue(reserve, (reserve.proxy,), share))
        self._reserve, self._queues = reserve, tuple(queues)

    def _queue(self, reserve: Reserve, pools: tuple[Pool, ...], share: Fraction) -> _Queue:
        pool = reserve.own.take([])
        for other in pools:
            pool = _joined(pool, other)
        rows = [row for row in id_order(pool.ids).tolist() if pool.ids[row] not in reserve.own.index]
        if pools is reserve.earlier and self.source == "selected":
            rows = [row for row in rows if pool.ids[row] in self._selected]
        order = reserve.rng.permutation(np.asarray(rows, dtype=np.int64))
        return _Queue(pool, order, share, items=pools is not reserve.earlier)

    def learnable(self, pool: Pool) -> Pool:
        """The stage's candidates and everything that may be replayed beside them."""
        for queue in self._queues:
            pool = _joined(pool, queue.pool)
        return pool

    def offer(self, pool: Pool, budget: int) -> Pool:
        """The round's candidates and behind them what this round replays, marked in ``info`` (`REPLAYED`).

        Raises:
            PluginError: no stage was begun with a reserve: outside an audit there are no earlier stages.
        """
        if self._reserve is None:
            raise PluginError(
                f"selector '{self.name}' replays examples of other stages, which only an audit has. In a trainer of "
                "your own, put them into the training dataset."
            )
        total, least = self._spent + budget, self._least(pool)
        round_budget, left = budget - self._kept, budget
        offered = pool
        for queue in sorted(self._queues, key=lambda queue: -queue.owed(total)):
            drawn = queue.pool.take(queue.draw(total, budget, left, least))
            left -= int(drawn.tokens.sum())
            offered = _joined(offered, drawn)
        self._kept = max(0, min(self._to_keep(total, round_budget), left - least))
        if len(offered) == len(pool):
            return pool
        marks = np.arange(len(offered)) >= len(pool)
        return dataclasses.replace(offered, info={**offered.info, REPLAYED: marks})

    def _to_keep(self, total: int, round_budget: int) -> int:
        """Tokens for later rounds: for an example longer than a round, and for what the last rounds could not pay."""
        later = (self._reserve.budget if self._reserve is not None else 0) - total
        if later <= 0:
            return 0
        waiting = [queue for queue in self._queues if queue.waiting]
        saved = sum(queue.saves(total, round_budget) for queue in waiting)
        return max(saved, sum(queue.missing(total + later) for queue in waiting) - later)

    def unmet(self) -> dict[str, int]:
        """What the stage did not replay of what it should have, by more than one example; 0 where it did.

        ``replay_missed_tokens``: tokens that lack to the share. ``proxy_items_missed``: proxy items not learned. Only
        what is asked for is told.
        """
        return {
            _ITEMS_MISSED if queue.items else _TOKENS_MISSED: (
                len(queue.waiting) if queue.items else queue.missing(self._spent)
            )
            for queue in self._queues
        }

    def _least(self, pool: Pool) -> int:
        """Tokens of the shortest candidate that the inner selector would pick at all."""
        could = pool.tokens[self.eligible(pool)]
        return int((could if len(could) else pool.tokens).min())

    def select(
        self, pool: Pool, signals: Signals, history: History, budget: int, rng: np.random.Generator
    ) -> Selection:
        marks = np.asarray(pool.info.get(REPLAYED, np.zeros(len(pool))), dtype=bool)
        own, extra = np.flatnonzero(~marks), np.flatnonzero(marks)
        extra = extra[id_order(tuple(pool.ids[row] for row in extra))]
        self.inner.count_replayed(pool, signals, extra)
        left = budget - int(pool.tokens[extra].sum()) - self._kept
        if len(extra) and left < self._least(pool.take(own)):
            chosen = Selection.of(pool, np.zeros(0, dtype=np.int64))
        else:
            chosen = self.select_inner(pool, signals, history, left, rng, own if len(extra) else None)
        if self.source == "selected":
            self._selected |= dict.fromkeys(pool.ids[row] for row in chosen.rows)
        rows = np.concatenate([chosen.rows, extra])
        self._spent += int(pool.tokens[rows].sum())
        return Selection.of(pool, rows, {**chosen.scores, "replayed": marks.astype(np.float64)})

    def own_state(self) -> dict[str, Any]:
        """What was selected so far (``source: selected``). An audit saves whole stages, so there is no more to it."""
        return {"selected": list(self._selected)}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `own_state` returned, between two stages."""
        self._selected = dict.fromkeys(state["selected"])


def _joined(pool: Pool, other: Pool) -> Pool:
    """The pool and behind it whatever of the other it does not hold yet."""
    fresh = [row for row, sample_id in enumerate(other.ids) if sample_id not in pool.index]
    return pool.join(other.take(fresh))
