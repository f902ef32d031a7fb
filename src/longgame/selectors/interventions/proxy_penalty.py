"""Future-proxy penalty: candidates whose gradient opposes the proxy's fall behind."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from longgame.data.examples import Pool
from longgame.selectors.base import Selection, Selector, fill_by_score
from longgame.selectors.future import proxy_cosine
from longgame.selectors.history import History
from longgame.selectors.interventions.base import Intervention
from longgame.selectors.options import weight
from longgame.selectors.scale import scale
from longgame.signals.base import Signals


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
