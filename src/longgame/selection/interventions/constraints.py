"""Interventions that change a selector's picks: cluster floor and proxy penalty, and their base `Intervention`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from longgame.data.examples import Pool
from longgame.errors import RecipeError
from longgame.selection.base import Selector, eligible_of
from longgame.selection.budget import fill_by_score, scale, weight
from longgame.selection.history import History, Selection
from longgame.selection.methods.lhas import proxy_cosine
from longgame.signals.base import CONTEXT, Signals


class Intervention(Selector):
    """Base class of a selector around a selector; state, stages and eligibility are those of the inner one.

    Args:
        inner: the selector inside.
        label: what tables append to its name ("replay 20%").
        needs: signals beside those of the inner one.
    """

    name = "intervention"

    def __init__(self, inner: Selector, label: str, needs: tuple[str, ...] = ()) -> None:
        self.inner = inner
        self.name = f"{inner.name} + {label}"  # type: ignore[misc]
        self.requires = tuple(dict.fromkeys((*inner.requires, *needs)))
        self.score_source = inner.score_source
        self.weighs = inner.weighs
        self.auxiliary = inner.auxiliary

    def begin_stage(self) -> None:
        self.inner.begin_stage()

    def use_budget(self, share: float) -> None:
        self.inner.use_budget(share)

    def eligible(self, pool: Pool) -> Bool[np.ndarray, " n"]:
        return eligible_of(self.inner, pool)

    def count_replayed(self, pool: Pool, signals: Signals, rows: Int[np.ndarray, " e"]) -> None:
        self.inner.count_replayed(pool, signals, rows)

    def remember(self, pool: Pool, signals: Signals, rows: Int[np.ndarray, " k"]) -> None:
        self.inner.remember(pool, self._visible(signals), rows)

    def _visible(self, signals: Signals) -> Signals:
        """Only the signals that the inner selector requires."""
        return Signals(
            signals.ids,
            {name: signals[name] for name in self.inner.requires if name not in CONTEXT},
            {name: signals[name] for name in self.inner.requires if name in CONTEXT and name in signals},
        )

    def select_inner(
        self,
        pool: Pool,
        signals: Signals,
        history: History,
        budget: int,
        rng: np.random.Generator,
        rows: Int[np.ndarray, " m"] | None = None,
    ) -> Selection:
        """Return what the inner selector picks from these rows (default: all), given only the signals it requires.

        The selection's rows are those of ``pool``; its scores are NaN for all other rows.
        """
        visible = self._visible(signals)
        if rows is None:
            return self.inner.select(pool, visible, history, budget, rng)
        selection = self.inner.select(pool.take(rows), visible.take(rows), history, budget, rng)
        scores = {}
        for term, column in selection.scores.items():
            scores[term] = np.full(len(pool), np.nan)
            scores[term][rows] = column
        return Selection.of(pool, rows[selection.rows], scores, selection.weights)

    def inner_state(self) -> Mapping[str, Any]:
        """Return a copy of the inner selector's state, for `restore_inner`."""
        return copy.deepcopy(self.inner.state_dict())

    def restore_inner(self, state: Mapping[str, Any]) -> None:
        """Reset the inner selector to this state."""
        if state:
            self.inner.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the inner selector (``inner``) and of the intervention (``own``)."""
        return {"inner": self.inner.state_dict(), "own": self.own_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.inner.load_state_dict(state["inner"])
        self.load_own_state(state["own"])

    def own_state(self) -> dict[str, Any]:
        """Return what the intervention itself remembers; by default nothing."""
        return {}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `own_state` returned."""


def _refuse_weights(inner: Selector, weighs: bool, key: str) -> None:
    """Raise RecipeError if the inner selector weighs its picks: a weight counts on the picks beside it."""
    if weighs:
        raise RecipeError(
            f"selector '{inner.name}' gives weights to its own picks, and {key} picks others. Leave out {key}, or use "
            "a selector without weights."
        )


class ClusterFloor(Intervention):
    """Every skill cluster gets at least ``share`` of a stage's tokens, as far as it has candidates.

    The floor is a debt over the stage: share × tokens spent so far (this round's budget included) minus the tokens that
    the cluster got. It is paid in whole examples that fit into it, as every budget is, so a cluster stays behind its
    floor by less than one example. Replayed examples count for their clusters too.

    If the selector's own picks pay all debts, they stand. Otherwise the selector first fills each cluster in debt, the
    deepest first, from the candidates of that cluster alone. The remaining budget is the selector's, among all
    candidates left; what was picked first counts as history.

    Args:
        inner: the selector inside.
        share: of the tokens, in (0, 1); with k clusters among the candidates a cluster is owed at most 1/k.

    ``scores``: the inner selector's, as of when a candidate was picked or last considered; ``cluster_floor``, 1 for
    picks that pay a debt and 0 for all others.

    Raises:
        RecipeError: the inner selector weighs its picks.
    """

    def __init__(self, inner: Selector, share: float) -> None:
        super().__init__(inner, f"min cluster {100 * share:g}%", ("cluster",))
        if not 0 < share < 1:
            raise RecipeError(f"selector '{inner.name}': min_cluster_share is {share}; give a share in (0, 1).")
        _refuse_weights(inner, inner.weighs, "min_cluster_share")
        self.share = share
        self._spent: dict[int, int] = {}
        """Tokens of each cluster in this stage."""

    def begin_stage(self) -> None:
        super().begin_stage()
        self._spent = {}

    def count_replayed(self, pool: Pool, signals: Signals, rows: Int[np.ndarray, " e"]) -> None:
        super().count_replayed(pool, signals, rows)
        self._count(signals["cluster"][rows], pool.costs[rows])

    def remember(self, pool: Pool, signals: Signals, rows: Int[np.ndarray, " k"]) -> None:
        super().remember(pool, signals, rows)
        self._count(signals["cluster"][rows], pool.costs[rows])

    def _count(self, clusters: Int[np.ndarray, " k"], tokens: Int[np.ndarray, " k"]) -> None:
        for cluster, cost in zip(clusters.tolist(), tokens.tolist(), strict=True):
            self._spent[cluster] = self._spent.get(cluster, 0) + cost

    def select(
        self, pool: Pool, signals: Signals, history: History, budget: int, rng: np.random.Generator
    ) -> Selection:
        clusters = signals["cluster"]
        debts = self._debts(clusters, budget)
        state = self.inner_state()
        selection = self.select_inner(pool, signals, history, budget, rng)
        _refuse_weights(self.inner, selection.weights is not None, "min_cluster_share")
        forced = np.zeros(len(pool))
        if not self._pays(pool, clusters, selection.rows, debts):
            self.restore_inner(state)
            selection, forced = self._pay(pool, signals, history, budget, rng, debts, selection)
        return Selection.of(pool, selection.rows, {**selection.scores, "cluster_floor": forced})

    def _debts(self, clusters: Int[np.ndarray, " n"], budget: int) -> dict[int, int]:
        """Whole tokens that each cluster among the candidates is behind its floor, the deepest debt first."""
        present = np.unique(clusters).tolist()
        floor = min(self.share, 1 / len(present)) * (sum(self._spent.values()) + budget)
        debts = {cluster: int(floor - self._spent.get(cluster, 0)) for cluster in present}
        return dict(sorted(debts.items(), key=lambda item: (-item[1], item[0])))

    def _pays(
        self, pool: Pool, clusters: Int[np.ndarray, " n"], rows: Int[np.ndarray, " k"], debts: Mapping[int, int]
    ) -> bool:
        """Whether no further example fits into what these picks leave of any debt."""
        free = self.eligible(pool).copy()
        free[rows] = False
        for cluster, debt in debts.items():
            left = debt - int(pool.costs[rows[clusters[rows] == cluster]].sum())
            if np.any(pool.costs[free & (clusters == cluster)] <= left):
                return False
        return True

    def _pay(
        self,
        pool: Pool,
        signals: Signals,
        history: History,
        budget: int,
        rng: np.random.Generator,
        debts: Mapping[int, int],
        unconstrained: Selection,
    ) -> tuple[Selection, Float[np.ndarray, " n"]]:
        """Fill the clusters in debt, then the rest of the budget; with 1 for every pick that paid a debt."""
        clusters = signals["cluster"]
        scores = {term: np.array(column, dtype=np.float64) for term, column in unconstrained.scores.items()}
        updated, forced = copy.deepcopy(history), np.zeros(len(pool))
        picks: list[int] = []
        left, free = int(budget), self.eligible(pool).copy()
        for cluster in (*debts, None):  # None: all candidates left, with the budget left
            members = free if cluster is None else free & (clusters == cluster)
            limit = left if cluster is None else min(debts[cluster], left)
            if not np.any(pool.costs[members] <= limit):
                continue
            rows = np.flatnonzero(members)
            selection = self.select_inner(pool, signals, updated, limit, rng, rows)
            if cluster is not None:
                updated.update(selection, pool, signals)
                forced[selection.rows] = 1.0
            scored = selection.rows if cluster is not None else rows
            for term, column in selection.scores.items():
                scores.setdefault(term, np.full(len(pool), np.nan))[scored] = column[scored]
            picks += selection.rows.tolist()
            free[selection.rows] = False
            left -= selection.tokens
        return Selection.of(pool, np.asarray(picks, dtype=np.int64), scores), forced

    def own_state(self) -> dict[str, Any]:
        return {"clusters": list(self._spent), "tokens": list(self._spent.values())}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        self._spent = {int(key): int(value) for key, value in zip(state["clusters"], state["tokens"], strict=True)}


class ProxyPenalty(Intervention):
    """score = z(the selector's score) − penalty·z(misalignment), highest first; ties by id.

    misalignment = max(0, −cos(g, f)), g the candidate's gradient sketch and f the mean one of the future-proxy mixture:
    at first order, a step on a candidate raises the proxy loss exactly where it is positive (Prop. 1). z is the rank
    scale over the candidates that the selector would pick at all: those that are eligible and have a score, and its
    picks. A score of NaN ranks behind all others, and only the selector itself picks it. A selector without ``score``
    is ranked by its pick order: 1 − place/n for its picks, 0 for all others. Where no candidate opposes the proxy, the
    selector's own picks stand.

    The score of a selector that decides pick by pick (farthest-first, LHAS) is that of when a candidate was picked or
    last considered.

    Args:
        inner: the selector inside.
        penalty: weight, ≥ 0.

    ``scores``: the inner selector's own terms, its score as ``selector_score``; ``misalignment``; ``score``.

    Raises:
        RecipeError: the inner selector weighs its picks.
    """

    def __init__(self, inner: Selector, penalty: float) -> None:
        super().__init__(inner, f"proxy penalty {penalty:g}", ("grad_sketch", "future_proxy"))
        _refuse_weights(inner, inner.weighs, "proxy_penalty")
        self.penalty = weight(self.name, "proxy_penalty", penalty)

    def select(
        self, pool: Pool, signals: Signals, history: History, budget: int, rng: np.random.Generator
    ) -> Selection:
        misalignment = np.maximum(0.0, -proxy_cosine(signals, self.name, "leave out proxy_penalty"))
        selection = self.select_inner(pool, signals, history, budget, rng)
        _refuse_weights(self.inner, selection.weights is not None, "proxy_penalty")
        selector_score = _score_of(selection, len(pool))
        scored = ~np.isnan(selector_score)
        scored[selection.rows] = True
        rows = np.flatnonzero(self.eligible(pool) & scored)
        score = np.full(len(pool), -2.0 - 2.0 * self.penalty)  # lower than any score below
        ranked = np.where(np.isnan(selector_score), -np.inf, selector_score)[rows]
        score[rows] = scale(ranked, "rank") - self.penalty * scale(misalignment[rows], "rank")
        picks = selection.rows
        if misalignment[rows].any():
            eligible = np.full(len(pool), np.nan)
            eligible[rows] = score[rows]
            picks = fill_by_score(eligible, pool.ids, pool.costs, budget)
        terms = {"selector_score": selector_score, "misalignment": misalignment, "score": score}
        return Selection.of(pool, picks, {**selection.scores, **terms})


def _score_of(selection: Selection, n: int) -> Float[np.ndarray, " n"]:
    """The selector's score of n candidates; without one, 1 − place/n of its picks in pick order, 0 for all others."""
    if "score" in selection.scores:
        return np.asarray(selection.scores["score"], dtype=np.float64)
    score = np.zeros(n)
    score[selection.rows] = 1 - np.arange(len(selection.rows)) / n
    return score
