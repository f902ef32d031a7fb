"""Replay mixture: a share of the budget goes to examples of earlier stages, or to the proxy items."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from longgame.data.examples import Pool
from longgame.errors import PluginError, RecipeError
from longgame.selectors.base import Selection, Selector, id_order
from longgame.selectors.history import History
from longgame.selectors.interventions.base import Intervention
from longgame.selectors.options import choice
from longgame.signals.base import Signals

REPLAYED = "replayed"
"""Row-aligned key of `Pool.info` (and term of the log): which candidates are not the stage's own."""
_MOST_PROXY = 0.5


@dataclass(frozen=True)
class Reserve:
    """What a stage may learn beside its own candidates; the protocol gives it when the stage begins."""

    own: Pool
    """The stage's candidates: nothing of them is replayed."""
    earlier: tuple[Pool, ...]
    """Candidates of the stages before, in order; none before the first one."""
    proxy: Pool | None
    """Items of the future-proxy mixture, all stages together."""
    budget: int
    """Tokens that the stage may spend."""
    rng: np.random.Generator
    """Fixes the order of replay, the same for every selector of a seed."""


class _Queue:
    """Examples in a fixed random order, handed out one by one, each at most once a stage."""

    def __init__(self, pool: Pool, order: Int[np.ndarray, " m"], share: float) -> None:
        self.pool, self.order, self.share = pool, order, share
        self.place = 0
        self.spent = 0

    def draw(self, entitled: float, room: int) -> list[int]:
        """Rows of the next examples that both limits hold; the first one that they do not hold waits."""
        rows = []
        while self.place < len(self.order):
            row = int(self.order[self.place])
            cost = int(self.pool.tokens[row])
            if self.spent + cost > entitled or cost > room:
                break
            rows.append(row)
            self.place += 1
            self.spent += cost
            room -= cost
        return rows


class Replay(Intervention):
    """A share of every stage's tokens is spent on other examples than its own candidates; the selector has the rest.

    Replayed examples come in random order, none twice in a stage and none that is a candidate of the stage itself
    (known by id). The share is kept as a ledger over the stage's rounds: an example is replayed as soon as it fits into
    what the share allows so far, so that short examples have no advantage and the stage ends within one example of the
    share. In the first stage there is nothing to replay. Whatever a round does not replay belongs to the selector, and
    the stage spends the same number of tokens as any other; a round always leaves room for the shortest of its own
    candidates. What is replayed is selected history like everything else.

    Args:
        inner: the selector inside; it sees its own candidates only.
        share: of the tokens, in [0, 1).
        source: ``pools``: uniformly from all candidates of earlier stages, whoever selected them; the same for every
            selector of a seed. ``selected``: uniformly from what this selector selected in earlier stages.
        proxy_as_data: also learn every item of the future-proxy mixture once a stage (at most half of the budget),
            spread evenly over it: for selectors without a future term, the information that LHAS has.

    ``scores``: the inner selector's, NaN for replayed examples, and ``replayed``, 1 or 0.
    """

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

    def begin_stage(self) -> None:
        super().begin_stage()
        self._reserve, self._queues, self._spent = None, (), 0

    def bring(self, reserve: Reserve) -> None:
        """Take what this stage may replay (after `begin_stage`).

        Raises:
            RecipeError: the proxy items are to be learned and there are none.
        """
        queues = []
        if self.share:
            queues.append(self._queue(reserve, reserve.earlier, self.share))
        if self.proxy_as_data:
            if reserve.proxy is None or not len(reserve.proxy):
                raise RecipeError(
                    f"selector '{self.inner.name}' has proxy_as_data, but the proxy mixture is empty. Set "
                    "proxy.items_per_skill to 1 or more, or leave out proxy_as_data."
                )
            share = min(_MOST_PROXY, int(reserve.proxy.tokens.sum()) / max(1, reserve.budget))
            queues.append(self._queue(reserve, (reserve.proxy,), share))
        self._reserve, self._queues = reserve, tuple(queues)

    def _queue(self, reserve: Reserve, pools: tuple[Pool, ...], share: float) -> _Queue:
        pool = reserve.own.take([])
        for other in pools:
            pool = _joined(pool, other)
        rows = [row for row in id_order(pool.ids).tolist() if pool.ids[row] not in reserve.own.index]
        if pools is reserve.earlier and self.source == "selected":
            rows = [row for row in rows if pool.ids[row] in self._selected]
        return _Queue(pool, reserve.rng.permutation(np.asarray(rows, dtype=np.int64)), share)

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
        room = budget - int(pool.tokens.min())
        offered = pool
        for queue in self._queues:
            rows = queue.draw(queue.share * (self._spent + budget), room)
            drawn = queue.pool.take(rows)
            room -= int(drawn.tokens.sum())
            offered = _joined(offered, drawn)
        if len(offered) == len(pool):
            return pool
        marks = np.arange(len(offered)) >= len(pool)
        return dataclasses.replace(offered, info={**offered.info, REPLAYED: marks})

    def select(
        self, pool: Pool, signals: Signals, history: History, budget: int, rng: np.random.Generator
    ) -> Selection:
        marks = np.asarray(pool.info.get(REPLAYED, np.zeros(len(pool))), dtype=bool)
        own, extra = np.flatnonzero(~marks), np.flatnonzero(marks)
        extra = extra[id_order(tuple(pool.ids[row] for row in extra))]
        left = budget - int(pool.tokens[extra].sum())
        chosen = self.ask(pool, signals, history, left, rng, own if len(extra) else None)
        if self.source == "selected":
            self._selected |= dict.fromkeys(chosen.ids)
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
