"""Future-proxy penalty: candidates whose gradient opposes the proxy's fall behind."""

from __future__ import annotations

import numpy as np

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
    over the candidates of the round. Where no candidate opposes the proxy, the selector's own picks stand as they are.

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
        own = np.asarray(plain.scores["score"], dtype=np.float64)
        rows = np.flatnonzero(self.eligible(pool))
        score = np.full(len(pool), -2.0 - 2.0 * self.penalty)  # behind everyone
        score[rows] = scale(own[rows], "rank") - self.penalty * scale(misalignment[rows], "rank")
        picks = plain.rows
        if misalignment[rows].any():
            part = pool.take(rows)
            picks = rows[fill_by_score(score[rows], part.ids, part.tokens, budget)]
            if set(picks.tolist()) != set(plain.rows.tolist()):
                self.impress(pool, signals, history, picks, rng, state)
        terms = {**plain.scores, "selector_score": own, "misalignment": misalignment, "score": score}
        return Selection.of(pool, picks, terms)
