"""Replay mixture: a share of the budget goes to examples of earlier stages, or to the proxy items."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from longgame.data.examples import Pool
from longgame.errors import PluginError, RecipeError
from longgame.selection.base import Reserve, Selector
from longgame.selection.budget import choice as allowed_word
from longgame.selection.budget import id_order
from longgame.selection.history import History, Selection
from longgame.selection.interventions.choices import (
    EarlierExamples,
    ReplayChoice,
    build_choice,
    cells_of,
    first_of_each,
)
from longgame.selection.interventions.constraints import Intervention
from longgame.signals.base import Signals

REPLAYED = "replayed"
"""Row-aligned key of `Pool.info` (and term of the log): which examples of a round are not its own candidates."""
_MOST_PROXY = Fraction(1, 2)
_TOKENS_MISSED, _ITEMS_MISSED = "replay_missed_tokens", "proxy_items_missed"


class _Queue:
    """Examples in a fixed random order; each is due at most once a stage, as soon as it fits into the share."""

    def __init__(self, pool: Pool, order: Int[np.ndarray, " m"], share: Fraction, items: bool) -> None:
        self.pool, self.share, self.items = pool, share, items
        self.waiting = order.tolist()
        self.spent = 0

    def owed(self, tokens: int) -> int:
        """Whole tokens that the share of these tokens of the stage still allows."""
        return int(self.share * tokens) - self.spent

    def draw(self, tokens: int, budget: int, left: int, least: int) -> list[int]:
        """Return the rows that are due and fit; the others keep their place in the queue.

        Args:
            tokens: of the stage, including this round.
            budget: of this round; longer examples are passed over.
            left: tokens of the round that are not drawn yet.
            least: tokens to leave; the first example drawn in a round may leave fewer.
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
        drawn = set(rows)
        self.waiting = [row for row in self.waiting if row not in drawn]
        return rows

    def saved(self, tokens: int, round_budget: int) -> int:
        """Tokens of this share to save for the next example: all it has, if that one is longer than a round."""
        return max(0, self.owed(tokens)) if self._cost(self.waiting[0]) > round_budget else 0

    def missing(self, tokens: int) -> int:
        """Unspent tokens of the share of ``tokens``, if they hold the next example; else 0.

        When no example waits: if they are more than the longest example of the pool. (0 for an empty pool.)
        """
        missing = self.owed(tokens)
        if self.waiting:
            return missing if missing >= self._cost(self.waiting[0]) else 0
        return missing if len(self.pool) and missing > self.pool.costs.max() else 0

    def _cost(self, row: int) -> int:
        return int(self.pool.costs[row])


class Replay(Intervention):
    """A share of every stage's tokens goes to examples of other stages; the inner selector spends the rest.

    Replayed examples come in the order of ``choice``, none twice in a stage, and none that is a candidate of the stage
    itself (by id). The share is kept as a ledger of whole tokens over the stage's rounds: an example is replayed as
    soon as it fits into what the share allows so far. So short examples have no advantage, and the stage ends within
    one example of the share. The first stage has nothing to replay. The selector spends what a round does not replay,
    and the stage spends as many tokens as any other. Replayed examples are selected history like everything else.

    If a round's budget is of the size of an example:

    - an example that is due and leaves no room for the shortest candidate is the round's only pick, and what it leaves
      goes to the next round;
    - for an example longer than a round's budget, the share's tokens are saved until a round holds it (the selector has
      its own share meanwhile);
    - an example that is due and still too long is passed over and stays the next one.

    `unmet` says what the stage could not hold in the end.

    Args:
        inner: the selector inside; it sees the stage's own candidates only.
        share: of the tokens, in [0, 1).
        source: ``pools``: from all candidates of earlier stages, whoever selected them; a uniform draw is the same for
            every selector of a seed. ``selected``: from what this selector selected in earlier stages.
        proxy_as_data: also learn every item of the future-proxy mixture once a stage (at most half of the budget),
            spread evenly over it: for selectors without a future term, the information that LHAS has.
        choice: what of the source comes first (`REPLAY_CHOICES`); None: all alike, in random order. A choice by losses
            measures them when a stage ends (`end_stage`).

    ``scores``: the inner selector's, NaN for replayed examples, and ``replayed``, 1 or 0.
    """

    replays = True

    def __init__(
        self,
        inner: Selector,
        share: float = 0.0,
        source: Literal["pools", "selected"] = "pools",
        proxy_as_data: bool = False,
        choice: ReplayChoice | None = None,
    ) -> None:
        self.choice = choice or build_choice()
        self.source = allowed_word(inner.name, "replay source", source, ("pools", "selected"))
        if not 0 <= share < 1 or not (share or proxy_as_data):
            raise RecipeError(f"selector '{inner.name}': replay is {share}; give a share in (0, 1), or leave it out.")
        self.share, self.proxy_as_data = share, proxy_as_data
        words = [self.choice.name] * (self.choice.name != "uniform") + ["selected"] * (source == "selected")
        labels = [" ".join([f"replay {100 * share:g}%", *words])] if share else []
        super().__init__(inner, " + ".join([*labels, *(["proxy items"] if proxy_as_data else [])]))
        names = {"base": "base_loss", "embedding": "embedding"}
        self.frozen_signals = tuple(name for column, name in names.items() if share and column in self.choice.columns)
        self._selected: dict[str, None] = {}
        self._losses: dict[str, dict[str, float]] = {"end": {}, "now": {}}
        """``end`` and ``now`` of `EarlierExamples.measured`, as of the end of the last stage."""
        self._clear()

    def _clear(self) -> None:
        self._budget: int | None = None
        """Tokens of the stage; None without a reserve."""
        self._queues: list[_Queue] = []
        self._spent = 0
        self._saved = 0
        """Tokens that this round saves for the next ones."""
        self._pools: tuple[Pool, ...] = ()
        """Candidates of the earlier stages, and of this one."""
        self._sample: Int[np.ndarray, " n"] = np.zeros(0, dtype=np.int64)
        """Random order of the stage's candidates, from which those are taken whose losses are measured."""
        self._learned: set[str] = set()
        self.measured: Pool | None = None

    def begin_stage(self) -> None:
        super().begin_stage()
        self._clear()

    def use_reserve(self, reserve: Reserve) -> None:
        """Take what this stage may replay (after `begin_stage`).

        Raises:
            RecipeError: the proxy items are to be learned and there are none.
        """
        self._budget = reserve.budget
        if self.share:
            self._queues.append(self._earlier_queue(reserve))
        if self.proxy_as_data:
            if reserve.proxy is None or not len(reserve.proxy):
                raise RecipeError(
                    f"selector '{self.inner.name}' has proxy_as_data, but the proxy mixture is empty. Set "
                    "proxy.items_per_skill to 1 or more, or leave out proxy_as_data."
                )
            share = min(_MOST_PROXY, Fraction(int(reserve.proxy.costs.sum()), max(1, reserve.budget)))
            pool = _joined(reserve.candidates.take([]), reserve.proxy)
            order = reserve.rng.permutation(_others(pool, reserve.candidates))
            self._queues.append(_Queue(pool, order, share, items=True))

    def _earlier_queue(self, reserve: Reserve) -> _Queue:
        self._pools = (*reserve.earlier, reserve.candidates)
        pool, stages = self._all_earlier()
        every = rows = _others(pool, reserve.candidates)
        if self.source == "selected":
            rows = rows[[pool.ids[row] in self._selected for row in rows.tolist()]] if len(rows) else rows
        # a stream of its own: the uniform draws of a seed do not depend on the choice
        rng = reserve.rng if self.choice.name == "uniform" else reserve.rng.spawn(1)[0]
        if len(rows):
            examples = self._examples(reserve, pool.take(rows), stages[rows], rng)
            if len(rows) < len(every):
                others = pool.take(every)
                known = EarlierExamples(others.ids, others.costs, stages[every], cells_of(others), examples.measured)
                examples = dataclasses.replace(examples, every=known)
            rows = rows[self.choice.order(examples, rng)]
        if self.choice.measures:
            self._sample = rng.permutation(len(reserve.candidates))
        return _Queue(pool, rows, Fraction(str(self.share)), items=False)

    def _all_earlier(self) -> tuple[Pool, Int[np.ndarray, " n"]]:
        """All candidates of the earlier stages, each once, and the stage of each (the first one that offers it)."""
        pool, stages = self._pools[-1].take([]), list[int]()
        for number, other in enumerate(self._pools[:-1]):
            pool = _joined(pool, other)
            stages += [number] * (len(pool) - len(stages))
        return pool, np.asarray(stages, dtype=np.int64)

    def _examples(
        self, reserve: Reserve, pool: Pool, stages: Int[np.ndarray, " n"], rng: np.random.Generator
    ) -> EarlierExamples:
        """What the choice knows of these examples.

        Raises:
            PluginError: it reads signals, and the reserve has none.
        """
        names, measured = self.frozen_signals, dict(self._losses)
        embeddings: tuple[np.ndarray, ...] = ()
        if names and reserve.signals is None:
            raise PluginError(f"replay choice '{self.choice.name}' needs {', '.join(names)}; give the reserve signals.")
        if reserve.signals is not None and "base_loss" in names:
            measured["base"] = _by_id(pool, reserve.signals(pool, names)["base_loss"])
        if reserve.signals is not None and "embedding" in names:
            parts = [part.take(rng.permutation(len(part))[: self.choice.items]) for part in self._pools]
            embeddings = tuple(reserve.signals(part, names)["embedding"] for part in parts)
        return EarlierExamples(pool.ids, pool.costs, stages, cells_of(pool), measured, embeddings)

    def end_stage(self, signals: Callable[[Pool, Sequence[str]], Signals]) -> None:
        """Measure the losses that the choice of the next stage needs, under the model at the end of this one.

        ``every``: of all that may be replayed. ``cell`` and ``stage``: of ``items`` examples of each skill cell or
        stage, the same in every later stage; where they are held back, of those first that were not learned.
        """
        if not self._pools or not self.choice.measures:
            return
        earlier, _ = self._all_earlier()
        pool = _joined(earlier, self._pools[-1])
        if self.choice.measures == "every":
            names = [name for name in pool.ids if self.source == "pools" or name in self._selected]
        else:
            names = [*self._losses["end"], *self._fresh_sample(earlier)]
        if not names:
            return
        self.measured = pool.take([pool.index[name] for name in names])
        self._losses["now"] = losses = _by_id(self.measured, signals(self.measured, ("loss",))["loss"])
        if "end" in self.choice.columns:
            self._losses["end"] = {**losses, **self._losses["end"]}

    def _fresh_sample(self, earlier: Pool) -> list[str]:
        """Ids of this stage's candidates whose losses are measured from now on."""
        pool = self._pools[-1]
        order = np.asarray([row for row in self._sample.tolist() if pool.ids[row] not in earlier.index], dtype=np.int64)
        items = self.choice.items
        if self.choice.holds_back:
            items = min(items, len(pool) // 2)
            learned = [pool.ids[row] in self._learned for row in order.tolist()]
            order = order[np.argsort(learned, kind="stable")]
        keys = cells_of(pool) if self.choice.measures == "cell" else ("",) * len(pool)
        return [pool.ids[row] for row in first_of_each(keys, order, items).tolist()]

    def learnable(self, pool: Pool) -> Pool:
        for queue in self._queues:
            pool = _joined(pool, queue.pool)
        return pool

    def offer(self, pool: Pool, budget: int) -> Pool:
        """Return the round's candidates and, behind them, what is due, marked in ``info`` (`REPLAYED`).

        Raises:
            PluginError: no reserve was given: outside an audit there are no earlier stages.
        """
        if self._budget is None:
            raise PluginError(
                f"selector '{self.name}' replays examples of other stages, which only an audit has. In a trainer of "
                "your own, put them into the training dataset."
            )
        total = self._spent + budget
        least = self._least(pool) if total < self._budget else 0  # the last round keeps no room: nothing comes after it
        round_budget, left = budget - self._saved, budget
        offered = pool
        for queue in sorted(self._queues, key=lambda queue: -queue.owed(total)):
            drawn = queue.pool.take(queue.draw(total, budget, left, least))
            left -= int(drawn.costs.sum())
            offered = _joined(offered, drawn)
        self._saved = max(0, min(self._to_save(self._budget - total, total, round_budget), left - least))
        if len(offered) == len(pool):
            return pool
        marks = np.arange(len(offered)) >= len(pool)
        return dataclasses.replace(offered, info={**offered.info, REPLAYED: marks})

    def _to_save(self, later: int, total: int, round_budget: int) -> int:
        """Tokens to save: for an example longer than a round, and for what the ``later`` tokens cannot pay."""
        if later <= 0:
            return 0
        waiting = [queue for queue in self._queues if queue.waiting]
        saved = sum(queue.saved(total, round_budget) for queue in waiting)
        return max(saved, sum(queue.missing(total + later) for queue in waiting) - later)

    def unmet(self) -> dict[str, int]:
        """Return what the stage did not replay of its share, if that is more than one example; else 0.

        ``replay_missed_tokens``: tokens missing to the share. ``proxy_items_missed``: proxy items not learned.
        """
        return {
            _ITEMS_MISSED if queue.items else _TOKENS_MISSED: (
                len(queue.waiting) if queue.items else queue.missing(self._spent)
            )
            for queue in self._queues
        }

    def _least(self, candidates: Pool) -> int:
        """Tokens of the shortest candidate that the inner selector would pick at all."""
        eligible = candidates.costs[self.eligible(candidates)]
        return int((eligible if len(eligible) else candidates.costs).min())

    def select(
        self, pool: Pool, signals: Signals, history: History, budget: int, rng: np.random.Generator
    ) -> Selection:
        marks = _marks(pool)
        candidates, replayed = np.flatnonzero(~marks), np.flatnonzero(marks)
        replayed = replayed[id_order(tuple(pool.ids[row] for row in replayed))]
        self.inner.count_replayed(pool, signals, replayed)
        left = budget - int(pool.costs[replayed].sum()) - self._saved
        if len(replayed) and left < self._least(pool.take(candidates)):
            selection = Selection.of(pool, np.zeros(0, dtype=np.int64))
        else:
            selection = self.select_inner(pool, signals, history, left, rng, candidates if len(replayed) else None)
        rows = np.concatenate([selection.rows, replayed])
        weights = selection.weights  # replayed examples have the weight 1
        if weights is not None:
            weights = np.concatenate([weights, np.ones(len(replayed))])
        return Selection.of(pool, rows, {**selection.scores, "replayed": marks.astype(np.float64)}, weights)

    def remember(self, pool: Pool, signals: Signals, rows: Int[np.ndarray, " k"]) -> None:
        marks = _marks(pool)
        own = rows[~marks[rows]]
        if marks.any():
            offered = np.flatnonzero(~marks)
            super().remember(pool.take(offered), signals.take(offered), np.searchsorted(offered, own))
        else:
            super().remember(pool, signals, own)
        if self.source == "selected":
            self._selected |= dict.fromkeys(pool.ids[row] for row in own)
        self._learned |= {pool.ids[row] for row in rows}
        self._spent += int(pool.costs[rows].sum())

    def own_state(self) -> dict[str, Any]:
        """Return what was selected so far (``source: selected``) and the losses that the choice reads.

        An audit saves state between stages only.
        """
        losses = {kind: values for kind, values in self._losses.items() if values}
        return {"selected": list(self._selected), **({"losses": losses} if losses else {})}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        self._selected = dict.fromkeys(state["selected"])
        losses = state.get("losses", {})
        self._losses = {kind: dict(losses.get(kind, {})) for kind in ("end", "now")}


def _by_id(pool: Pool, column: Float[np.ndarray, " n"]) -> dict[str, float]:
    return dict(zip(pool.ids, np.asarray(column, dtype=np.float64).tolist(), strict=True))


def _others(pool: Pool, candidates: Pool) -> Int[np.ndarray, " m"]:
    """Rows of the pool that are no candidates, in id order."""
    rows = [row for row in id_order(pool.ids).tolist() if pool.ids[row] not in candidates.index]
    return np.asarray(rows, dtype=np.int64)


def _marks(pool: Pool) -> Bool[np.ndarray, " n"]:
    """Which examples of a round's pool are replayed."""
    return np.asarray(pool.info.get(REPLAYED, np.zeros(len(pool))), dtype=bool)


def _joined(pool: Pool, other: Pool) -> Pool:
    """The pool and, behind it, what the other holds in addition."""
    return pool.join(other.take([row for row, name in enumerate(other.ids) if name not in pool.index]))
