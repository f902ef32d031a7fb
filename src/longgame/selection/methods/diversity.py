"""Diversity selection: cover the embedding space (paper §4, "Diversity-based")."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from sklearn.cluster import KMeans, MiniBatchKMeans
from threadpoolctl import threadpool_limits

from longgame.data.examples import Pool
from longgame.errors import RecipeError
from longgame.selection.algorithms.facility import facility_location
from longgame.selection.algorithms.farthest import farthest_first, farthest_first_partitioned
from longgame.selection.algorithms.nearest import threshold_diverse
from longgame.selection.base import Selector
from longgame.selection.budget import check_budget, choice, count, descending, fill_budget, flag, id_order
from longgame.selection.history import History, Selection
from longgame.signals.base import Signals

_MOST_CLUSTERS = 256
_MINI_BATCH_FROM = 10_000
_REFERENCES = 4096
_THRESHOLD = 0.9
METHODS: tuple[str, ...] = ("farthest-first", "k-means", "facility-location", "threshold")


class DiversitySelector(Selector):
    """Farthest-first traversal (exact), k-means clusters, facility location, or threshold-diverse filtering.

    Args:
        method: ``farthest-first`` takes, again and again, the candidate whose nearest pick is farthest away (Gonzalez
            1985; ties by id). ``k-means`` clusters the candidates and deals the picks over the clusters, in each the
            candidate nearest to the centre first, larger clusters first. ``facility-location`` takes what raises the
            candidates' mean cosine to their nearest pick most, per token (`facility_location`). ``threshold`` walks
            by falling quality and keeps what is unlike everything kept before (DEITA, `threshold_diverse`); where
            tokens are left, what it passed over follows, by quality.
        use_history: start from the embeddings of what was selected before (this stage's earlier rounds included), so
            that the first pick is the candidate farthest from them. By default, as in the paper, diversity looks at
            the current candidates alone. Farthest-first only.
        clusters: number of k-means clusters; by default as many as the budget holds examples of mean length, at
            most 256. k-means only.
        partitions: farthest-first in so many parts, for pools too large for one traversal
            (`farthest_first_partitioned`); by default 1. Farthest-first only.
        greedy: ``lazy`` (default) or ``stochastic``. Facility location only.
        references: how many candidates stand for all of them; by default 4096. Facility location only.
        threshold: cosine from which two candidates are too much alike; by default 0.9. Threshold only.
        device: where matrix products of farthest-first and threshold run (``cpu``, ``cuda``); it changes no pick.

    Without history the first pick of farthest-first is the candidate nearest to the mean embedding.

    ``scores["score"]`` is, for farthest-first, the distance to the nearest pick (or remembered embedding) when the
    candidate was picked or last considered; the first pick without history has no such distance and carries its
    distance to the farthest candidate. With partitions there is ``scores["within"]`` too: at most so far is the
    nearest pick. For k-means the score is 1 − place / n in the dealt order, and ``scores["centre_distance"]`` the
    distance to the centre of the candidate's cluster. For facility location it is the gain per token when picked or
    last evaluated. For threshold it is the quality, and ``scores["alike"]`` is 1 where the candidate was passed over.
    """

    name = "diversity"

    def __init__(
        self,
        method: Literal["farthest-first", "k-means", "facility-location", "threshold"] = "farthest-first",
        use_history: bool = False,
        clusters: int | None = None,
        partitions: int | None = None,
        greedy: Literal["lazy", "stochastic"] | None = None,
        references: int | None = None,
        threshold: float | None = None,
        device: str = "cpu",
    ) -> None:
        self.method = choice(self.name, "method", method, METHODS)
        self.use_history = flag(self.name, "use_history", use_history)
        self.clusters = None if clusters is None else count(self.name, "clusters", clusters)
        self.partitions = 1 if partitions is None else count(self.name, "partitions", partitions)
        self.greedy = choice(self.name, "greedy", "lazy" if greedy is None else greedy, ("lazy", "stochastic"))
        self.references = _REFERENCES if references is None else count(self.name, "references", references)
        self.threshold = _THRESHOLD if threshold is None else _cosine(threshold)
        self.device = choice(self.name, "device", device, ("cpu", "cuda"))
        belongs = {
            "use_history": ("farthest-first", use_history or None),
            "partitions": ("farthest-first", partitions),
            "clusters": ("k-means", clusters),
            "greedy": ("facility-location", greedy),
            "references": ("facility-location", references),
            "threshold": ("threshold", threshold),
        }
        for option, (where, value) in belongs.items():
            if value is not None and self.method != where:
                raise RecipeError(
                    f"selector 'diversity': {option} belongs to method: {where}, and method is {self.method}; "
                    "drop one of them."
                )
        self.requires = ("embedding", "quality") if self.method == "threshold" else ("embedding",)

    def select(
        self, pool: Pool, signals: Signals, history: History, budget: int, rng: np.random.Generator
    ) -> Selection:
        check_budget(pool.tokens, budget)
        if self.method == "threshold":
            return self._filter(pool, signals, budget)
        by_id = id_order(pool.ids)
        place = np.argsort(by_id)
        if self.method == "farthest-first":
            return self._traverse(pool, signals["embedding"], history, budget, place)
        embeddings, tokens = signals["embedding"][by_id], pool.tokens[by_id]
        if self.method == "k-means":
            order, distance = self._deal(embeddings, tokens, budget, rng)
            rows = fill_budget(order, tokens, budget)
            score = np.empty(len(pool))
            score[order] = 1.0 - np.arange(len(pool)) / len(pool)
            columns = {"score": score, "centre_distance": distance}
        else:
            greedy: Literal["lazy", "stochastic"] = "lazy" if self.greedy == "lazy" else "stochastic"
            found = facility_location(embeddings, tokens, budget, rng, greedy, self.references)
            rows, columns = found.rows, {"score": found.gain}
        return Selection.of(pool, by_id[rows], {key: column[place] for key, column in columns.items()})

    def _traverse(
        self,
        pool: Pool,
        embeddings: Float[np.ndarray, "n d"],
        history: History,
        budget: int,
        rank: Int[np.ndarray, " n"],
    ) -> Selection:
        known = history.embeddings if self.use_history and len(history.embeddings) else None
        if self.partitions == 1:
            rows, distance = farthest_first(embeddings, pool.tokens, budget, known, rank, self.device)
            return Selection.of(pool, rows, {"score": distance})
        found = farthest_first_partitioned(
            embeddings, pool.tokens, budget, self.partitions, known=known, rank=rank, device=self.device
        )
        return Selection.of(pool, found.rows, {"score": found.distance, "within": found.within})

    def _filter(self, pool: Pool, signals: Signals, budget: int) -> Selection:
        quality = signals["quality"]
        order = descending(quality, pool.ids)
        rows, alike = threshold_diverse(signals["embedding"], order, pool.tokens, budget, self.threshold, self.device)
        left = budget - int(pool.tokens[rows].sum())
        rest = order[~np.isin(order, rows)]
        if len(rest) and pool.tokens[rest].min() <= left:
            rows = np.concatenate([rows, rest[fill_budget(np.arange(len(rest)), pool.tokens[rest], left)]])
        return Selection.of(pool, rows, {"score": quality, "alike": alike.astype(np.float64)})

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


def _cosine(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1 < value <= 1 or math.isnan(value):
        raise RecipeError(f"selector 'diversity': threshold is {value!r}; give a cosine above −1, at most 1.")
    return float(value)
