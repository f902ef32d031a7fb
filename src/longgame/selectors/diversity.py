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
from longgame.selectors.distance import nearest_squared, squared_to
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


def farthest_first(
    embeddings: Float[np.ndarray, "n d"],
    tokens: Int[np.ndarray, " n"],
    budget: int,
    known: Float[np.ndarray, "m d"] | None = None,
) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, " n"]]:
    """Pick rows by exact farthest-first traversal until no row fits into the budget; ties go to the smaller row.

    A running minimum of squared distances is kept: O(n·d) a pick and O(n) memory beside the embeddings. Distances are
    direct differences in the embeddings' own precision, so equal rows have equal distances bit for bit.

    Args:
        embeddings: n candidates.
        tokens: what each costs; a candidate that no longer fits is passed over for good.
        budget: tokens, at least ``tokens.min()``.
        known: points that count as picked already; without them the first pick is the row nearest to the mean.

    Returns:
        The rows in pick order, and for each row the distance that it was picked (or last considered) with.
    """
    left = int(budget)
    fits = tokens <= left
    if known is not None:
        nearest = nearest_squared(embeddings, known).astype(embeddings.dtype)
    else:
        centre = embeddings.mean(axis=0, dtype=np.float64).astype(embeddings.dtype)
        first = int(np.argmin(np.where(fits, squared_to(embeddings, centre), np.inf)))
        nearest = np.full(len(embeddings), np.inf, dtype=embeddings.dtype)
    final = np.zeros(len(embeddings), dtype=embeddings.dtype)
    picks: list[int] = []
    running = np.ones(len(embeddings), dtype=bool)
    while True:
        closed = running & (tokens > left)
        final[closed] = nearest[closed]
        running &= ~closed
        if not running.any():
            break
        row = first if known is None and not picks else int(np.argmax(np.where(running, nearest, -1.0)))
        picks.append(row)
        left -= int(tokens[row])
        running[row] = False
        final[row] = nearest[row]
        np.minimum(nearest, squared_to(embeddings, embeddings[row]), out=nearest)
        if known is None and len(picks) == 1:
            final[~running] = nearest[~running]
            final[row] = nearest.max()
    return np.asarray(picks, dtype=np.int64), np.sqrt(final)
