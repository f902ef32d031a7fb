"""Coverage constraint: a least share of the budget for every skill cluster."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from longgame.data.examples import Pool
from longgame.errors import RecipeError
from longgame.selection.base import Selection, Selector, fill_by_score
from longgame.selection.budget import scale, weight
from longgame.selection.history import History
from longgame.selection.interventions.base import Intervention
from longgame.selection.methods.lhas import proxy_cosine
from longgame.signals.base import Signals


class ClusterFloor(Intervention):
    """Every skill cluster gets at least ``share`` of a stage's tokens, as far as it has candidates.

    The floor is a debt over the stage: share × tokens spent so far (this round's budget included) less the tokens that
    the cluster got. It is paid in whole examples that fit into it, as every budget is, so that a cluster stays behind
    its floor by less than one example. What is replayed beside the picks counts for its clusters, too.

    Where the selector's own picks pay all debts, they stand as they are. Otherwise each cluster in debt, the deepest
    first, is filled by the selector among the candidates of that cluster alone, and the rest of the budget is the
    selector's, among all candidates left; what was picked first counts as history.

    Args:
        inner: the selector inside.
        share: of the tokens, in (0, 1); with k clusters among the candidates at most 1/k is asked for.

    ``scores``: the inner selector's, as they stood when it picked a candidate or last considered it; ``cluster_floor``,
    1 for what was picked to pay a debt and 0 for all others.
    """

    def __init__(self, inner: Selector, share: float) -> None:
        super().__init__(inner, f"min cluster {100 * share:g}%", ("cluster",))
        if not 0 < share < 1:
            raise RecipeError(f"selector '{inner.name}': min_cluster_share is {share}; give a share in (0, 1).")
        self.share = share
        self._forget()

    def begin_stage(self) -> None:
        super().begin_stage()
        self._forget()

    def _forget(self) -> None:
        self._spent: dict[int, int] = {}

    def beside(self, pool: Pool, signals: Signals, rows: Int[np.ndarray, " k"]) -> None:
        """Count what is replayed beside the picks: the floor is a share of all tokens of the stage."""
        super().beside(pool, signals, rows)
        self._count(signals["cluster"][rows], pool.tokens[rows])

    def _count(self, clusters: Int[np.ndarray, " k"], tokens: Int[np.ndarray, " k"]) -> None:
        for cluster, cost in zip(clusters.tolist(), tokens.tolist(), strict=True):
            self._spent[cluster] = self._spent.get(cluster, 0) + cost

    def select(
        self, pool: Pool, signals: Signals, history: History, budget: int, rng: np.random.Generator
    ) -> Selection:
        clusters = signals["cluster"]
        debts = self._debts(clusters, budget)
        state = self.kept_state()
        chosen = self.ask(pool, signals, history, budget, rng)
        forced = np.zeros(len(pool))
        if not self._paid(pool, clusters, chosen.rows, debts):
            self.undo(state)
            chosen, forced = self._constrained(pool, signals, history, budget, rng, debts, chosen)
        self._count(clusters[chosen.rows], pool.tokens[chosen.rows])
        return Selection.of(pool, chosen.rows, {**chosen.scores, "cluster_floor": forced})

    def _debts(self, clusters: Int[np.ndarray, " n"], budget: int) -> dict[int, int]:
        """Whole tokens that each cluster among the candidates is behind its floor, the deepest debt first."""
        met = np.unique(clusters).tolist()
        floor = min(self.share, 1 / len(met)) * (sum(self._spent.values()) + budget)
        debts = {cluster: int(floor - self._spent.get(cluster, 0)) for cluster in met}
        return dict(sorted(debts.items(), key=lambda item: (-item[1], item[0])))

    def _paid(
        self, pool: Pool, clusters: Int[np.ndarray, " n"], rows: Int[np.ndarray, " k"], debts: Mapping[int, int]
    ) -> bool:
        """Whether no further example fits into what these picks leave of any debt."""
        free = self.eligible(pool).copy()
        free[rows] = False
        for cluster, debt in debts.items():
            left = debt - int(pool.tokens[rows[clusters[rows] == cluster]].sum())
            if np.any(pool.tokens[free & (clusters == cluster)] <= left):
                return False
        return True

    def _constrained(
        self,
        pool: Pool,
        signals: Signals,
        history: History,
        budget: int,
        rng: np.random.Generator,
        debts: Mapping[int, int],
        plain: Selection,
    ) -> tuple[Selection, np.ndarray]:
        clusters = signals["cluster"]
        scores = {name: np.array(column, dtype=np.float64) for name, column in plain.scores.items()}
        known, forced = copy.deepcopy(history), np.zeros(len(pool))
        picks: list[int] = []
        left, free = int(budget), self.eligible(pool).copy()
        for cluster in (*debts, None):  # None: whoever is left, with what is left
            members = free if cluster is None else free & (clusters == cluster)
            limit = left if cluster is None else min(debts[cluster], left)
            if not np.any(pool.tokens[members] <= limit):
                continue
            rows = np.flatnonzero(members)
            found = self.ask(pool, signals, known, limit, rng, rows)
            if cluster is not None:
                known.update(found, pool, signals)
                forced[found.rows] = 1.0
            shown = found.rows if cluster is not None else rows
            for name, column in found.scores.items():
                scores.setdefault(name, np.full(len(pool), np.nan))[shown] = column[shown]
            picks += found.rows.tolist()
            free[found.rows] = False
            left -= found.tokens
        return Selection.of(pool, np.asarray(picks, dtype=np.int64), scores), forced

    def own_state(self) -> dict[str, Any]:
        """Tokens of each cluster in this stage."""
        return {"clusters": list(self._spent), "tokens": list(self._spent.values())}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `own_state` returned."""
        self._spent = {int(key): int(value) for key, value in zip(state["clusters"], state["tokens"], strict=True)}


# Future-proxy penalty: candidates whose gradient opposes the proxy's fall behind.


class ProxyPenalty(Intervention):
    """score = z(the selector's score) − penalty·z(misalignment), highest first; ties by id.

    misalignment = max(0, −cos(g, f)), g the candidate's gradient sketch and f the mean one of the future-proxy mixture:
    at first order, a step on a candidate raises the proxy loss just where it is positive (Prop. 1). z is the rank scale
    over the candidates of the round that the selector would pick at all: those that it finds eligible and scores, or
    picked itself. A score of NaN ranks behind all others, and only the selector itself picks it. For a selector that
    gives no ``score`` its order counts: 1 − place/n for its picks, 0 for the rest. Where no candidate opposes the
    proxy, the selector's own picks stand as they are.

    The score of a selector that decides pick by pick (farthest-first, LHAS) is the one that a candidate had when it was
    picked or last considered.

    Args:
        inner: the selector inside.
        penalty: weight, ≥ 0.

    ``scores``: the inner selector's own terms, its score as ``selector_score``; ``misalignment``; ``score``.
    """

    def __init__(self, inner: Selector, penalty: float) -> None:
        super().__init__(inner, f"proxy penalty {penalty:g}", ("grad_sketch", "future_proxy"))
        self.penalty = weight(self.name, "proxy_penalty", penalty)

    def select(
        self, pool: Pool, signals: Signals, history: History, budget: int, rng: np.random.Generator
    ) -> Selection:
        misalignment = np.maximum(0.0, -proxy_cosine(signals, self.name, "leave out proxy_penalty"))
        state = self.kept_state()
        plain = self.ask(pool, signals, history, budget, rng)
        own = _score_of(plain, len(pool))
        scored = ~np.isnan(own)
        scored[plain.rows] = True
        rows = np.flatnonzero(self.eligible(pool) & scored)
        score = np.full(len(pool), -2.0 - 2.0 * self.penalty)  # behind everyone
        ranked = np.where(np.isnan(own), -np.inf, own)[rows]
        score[rows] = scale(ranked, "rank") - self.penalty * scale(misalignment[rows], "rank")
        picks = plain.rows
        if misalignment[rows].any():
            picks = rows[pool.tokens[rows] <= budget]
            if len(picks):
                part = pool.take(picks)
                picks = picks[fill_by_score(score[picks], part.ids, part.tokens, budget)]
            if set(picks.tolist()) != set(plain.rows.tolist()):
                self.impress(pool, signals, history, picks, rng, state)
        terms = {**plain.scores, "selector_score": own, "misalignment": misalignment, "score": score}
        return Selection.of(pool, picks, terms)


def _score_of(chosen: Selection, n: int) -> Float[np.ndarray, " n"]:
    """The selector's own score of n candidates; without one, 1 − place/n of its picks in pick order, 0 for the rest."""
    if "score" in chosen.scores:
        return np.asarray(chosen.scores["score"], dtype=np.float64)
    score = np.zeros(n)
    score[chosen.rows] = 1 - np.arange(len(chosen.rows)) / n
    return score
