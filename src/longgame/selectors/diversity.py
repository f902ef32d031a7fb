"""Diversity selection: cover the embedding space (paper §4, "Diversity-based")."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from sklearn.cluster import KMeans, MiniBatchKMeans
from threadpoolctl import threadpool_limits

from longgame.data.examples import Pool
from longgame.errors import RecipeError
from longgame.selectors.base import Selection, Selector, check_budget, fill_budget, id_order
from longgame.selectors.farthest import farthest_first
from longgame.selectors.history import History
from longgame.selectors.options import choice, count, flag
from longgame.signals.base import Signals

_MOST_CLUSTERS = 256
_MINI_BATCH_FROM = 10_000


class DiversitySelector(Selector):
    """Farthest-first traversal (exact), or the most central examples of k-means clusters.

    Args:
        method: ``farthest-first`` takes, again and again, the candidate whose nearest pick is farthest away (Gonzalez
            1985; ties by id). ``k-means`` clusters the candidates and deals the picks over the clusters, in each the
            candidate nearest to the centre first, larger clusters first.
        use_history: start from the embeddings of what was selected before (this stage's earlier rounds included), so
            that the first pick is the candidate farthest from them. By default, as in the paper, diversity looks at
            the current candidates alone. Farthest-first only.
        clusters: number of k-means clusters; by default as many as the budget holds examples of mean length, at
            most 256. k-means only.

    Without history the first pick of farthest-first is the candidate nearest to the mean embedding.

    ``scores["score"]`` is, for farthest-first, the distance to the nearest pick (or remembered embedding) when the
    candidate was picked or last considered; the first pick without history has no such distance and carries its
    distance to the farthest candidate. For k-means it is 1 − place / n in the dealt order, and
    ``scores["centre_distance"]`` the distance to the centre of the candidate's cluster.
    """

    name = "diversity"
    requires = ("embedding",)

    def __init__(
        self,
        method: Literal["farthest-first", "k-means"] = "farthest-first",
        use_history: bool = False,
        clusters: int | None = None,
    ) -> None:
        self.method = choice(self.name, "method", method, ("farthest-first", "k-means"))
        self.use_history = flag(self.name, "use_history", use_history)
        self.clusters = None if clusters is None else count(self.name, "clusters", clusters)
        if self.method == "k-means" and self.use_history:
            raise RecipeError("selector 'diversity': use_history belongs to method: farthest-first; drop one of them.")
        if self.method == "farthest-first" and clusters is not None:
            raise RecipeError("selector 'diversity': clusters belongs to method: k-means; drop one of them.")

    def select(
        self, pool: Pool, signals: Signals, history: History, budget: int, rng: np.random.Generator
    ) -> Selection:
        by_id = id_order(pool.ids)
        embeddings, tokens = signals["embedding"][by_id], pool.tokens[by_id]
        check_budget(tokens, budget)
        if self.method == "k-means":
            order, distance = self._deal(embeddings, tokens, budget, rng)
            rows = fill_budget(order, tokens, budget)
            score = np.empty(len(pool))
            score[order] = 1.0 - np.arange(len(pool)) / len(pool)
            columns = {"score": score, "centre_distance": distance}
        else:
            known = history.embeddings if self.use_history and len(history.embeddings) else None
            rows, distance = farthest_first(embeddings, tokens, budget, known)
            columns = {"score": distance}
        place = np.argsort(by_id)
        return Selection.of(pool, by_id[rows], {key: column[place] for key, column in columns.items()})

    def _deal(
        self,
        embeddings: Float[np.ndarray, "n d"],
        tokens: Int[np.ndarray, " n"],
        budget: int,
        rng: np.random.Generator,
    ) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        n = len(embeddings)
        wanted = self.clusters or min(_MOST_CLUSTERS, max(1, round(budget / float(tokens.mean()))))
        distinct = len({row.tobytes() for row in embeddings})
        model_class = KMeans if n < _MINI_BATCH_FROM else MiniBatchKMeans
        model = model_class(min(wanted, distinct), n_init=1, random_state=int(rng.integers(2**31)))
        with threadpool_limits(limits=1):  # sums over threads end in any order, and then so would the picks
            labels = model.fit(embeddings.astype(np.float64)).labels_
        distance = np.sqrt(np.square(embeddings - model.cluster_centers_[labels]).sum(axis=1)).astype(np.float32)
        size = np.bincount(labels)[labels]
        inward = np.lexsort((np.arange(n), distance, labels))
        starts = np.flatnonzero(np.r_[True, np.diff(labels[inward]) > 0])
        turn = np.empty(n, dtype=np.int64)
        turn[inward] = np.arange(n) - np.repeat(starts, np.diff(np.r_[starts, n]))
        return np.lexsort((np.arange(n), labels, -size, turn)), distance
