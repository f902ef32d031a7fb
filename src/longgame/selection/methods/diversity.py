"""Diversity selection: cover the embedding space.

Paper: Sener & Savarese 2018, arXiv 1708.00489; arXiv 2605.30537, §4 ("Diversity-based").
Formula: repeatedly the candidate whose nearest pick is farthest away; or k-means, facility location, a threshold.
Cost: E, one pass of the base model for embeddings, once per example.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from longgame.data.examples import Pool
from longgame.errors import RecipeError
from longgame.selection.algorithms.clusters import k_means
from longgame.selection.algorithms.facility import facility_location
from longgame.selection.algorithms.farthest import farthest_first, farthest_first_partitioned
from longgame.selection.algorithms.nearest import threshold_diverse
from longgame.selection.base import Selector
from longgame.selection.budget import (
    check_budget,
    choice,
    count,
    descending,
    fill_budget,
    fill_rest,
    flag,
    id_order,
    lowered,
    missing_last,
    number,
)
from longgame.selection.history import History, Selection
from longgame.signals.base import Signals

_MOST_CLUSTERS = 256
_REFERENCES = 4096
_THRESHOLD = 0.9
METHODS: tuple[str, ...] = ("farthest-first", "k-means", "facility-location", "threshold")
_TWO_ROUNDS = {
    "farthest-first": "every candidate lies within the radius of a pick",
    "k-means": "clusters of every part, then of their picks: large clusters of the pool weigh less than in one round",
    "facility-location": "greedy in every part, then among their picks (GreeDi, Mirzasoleiman et al. 2013)",
    "threshold": "no two picks are alike; a row passed over may resemble a pick of its part alone",
}
"""What is true of picks in two rounds."""


class DiversitySelector(Selector):
    """Farthest-first traversal (exact), k-means clusters, facility location, or threshold-diverse filtering.

    Args:
        method: ``farthest-first`` repeatedly picks the candidate whose nearest pick is farthest away (Gonzalez 1985;
            ties by id). ``k-means`` clusters the candidates and deals the picks over the clusters: in each the
            candidate nearest to the center first, larger clusters first. ``facility-location`` picks what most raises
            the candidates' mean cosine to their nearest pick, per token (`facility_location`). ``threshold`` picks by
            falling quality what resembles no earlier pick (DEITA, `threshold_diverse`), then fills up by quality.
        use_history: start from the embeddings of what was selected before, earlier rounds of this stage included: the
            first pick is the candidate farthest from them. By default, as in the paper, diversity considers the current
            candidates alone. Farthest-first only.
        clusters: number of k-means clusters; default: the examples of mean length that the budget holds, at most 256.
            k-means only.
        partitions: farthest-first in so many parts, for pools too large for one traversal
            (`farthest_first_partitioned`); default: 1. Farthest-first only.
        greedy: ``lazy`` (default) or ``stochastic``. Facility location only.
        references: how many candidates represent all of them; default: 4096. Facility location only.
        threshold: cosine from which two candidates are too similar; default: 0.9. Threshold only.
        device: where matrix products of farthest-first and threshold run (``cpu``, ``cuda``); it changes no pick.

    Without history the first pick of farthest-first is the candidate nearest to the mean embedding.

    ``scores``:

    - farthest-first: ``score`` is the distance to the nearest pick (or remembered embedding) when the candidate was
      picked or last considered; for the first pick without history, the distance to the farthest candidate. With
      partitions also ``within``, an upper bound of the distance to the nearest pick.
    - k-means: ``score`` is 1 − place / n in the dealt order, ``centre_distance`` the distance to the cluster's center.
    - facility location: ``score`` is the gain per token when the candidate was picked or last evaluated.
    - threshold: ``score`` is the quality, lowered below all others for what was passed over; ``alike`` is 1 for that.
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
        self.threshold = number(
            self.name, "threshold", _THRESHOLD if threshold is None else threshold, above=-1, most=1
        )
        self.device = choice(self.name, "device", device, ("cpu", "cuda"))
        belongs = {
            "use_history": ("farthest-first", use_history or None),
            "partitions": ("farthest-first", partitions),
            "clusters": ("k-means", clusters),
            "greedy": ("facility-location", greedy),
            "references": ("facility-location", references),
            "threshold": ("threshold", threshold),
        }
        for option, (owner, value) in belongs.items():
            if value is not None and self.method != owner:
                raise RecipeError(
                    f"selector 'diversity': {option} belongs to method: {owner}, and method is {self.method}; "
                    "drop one of them."
                )
        self.requires = ("embedding", "quality") if self.method == "threshold" else ("embedding",)
        self.two_rounds = _TWO_ROUNDS[self.method]
        self.distance_term = ("score" if self.partitions == 1 else "within") if self.method == "farthest-first" else ""

    def select(
        self, pool: Pool, signals: Signals, history: History, budget: int, rng: np.random.Generator
    ) -> Selection:
        check_budget(pool.costs, budget)
        if self.method == "threshold":
            return self._filter(pool, signals, budget)
        by_id = id_order(pool.ids)
        place = np.argsort(by_id)
        if self.method == "farthest-first":
            return self._traverse(pool, signals["embedding"], history, budget, place)
        embeddings, tokens = signals["embedding"][by_id], pool.costs[by_id]
        if self.method == "k-means":
            order, distance = self._deal(embeddings, tokens, budget, rng)
            rows = fill_budget(order, tokens, budget)
            score = np.empty(len(pool))
            score[order] = 1.0 - np.arange(len(pool)) / len(pool)
            columns = {"score": score, "centre_distance": distance}
        else:
            greedy: Literal["lazy", "stochastic"] = "lazy" if self.greedy == "lazy" else "stochastic"
            picked = facility_location(embeddings, tokens, budget, rng, greedy, self.references)
            rows, columns = picked.rows, {"score": picked.gain}
        return Selection.of(pool, by_id[rows], {key: column[place] for key, column in columns.items()})

    def _traverse(
        self,
        pool: Pool,
        embeddings: Float[np.ndarray, "n d"],
        history: History,
        budget: int,
        rank: Int[np.ndarray, " n"],
    ) -> Selection:
        remembered = history.embeddings if self.use_history and len(history.embeddings) else None
        if self.partitions == 1:
            rows, distance = farthest_first(embeddings, pool.costs, budget, remembered, rank, self.device)
            return Selection.of(pool, rows, {"score": distance})
        parts = farthest_first_partitioned(
            embeddings, pool.costs, budget, self.partitions, start_points=remembered, rank=rank, device=self.device
        )
        return Selection.of(pool, parts.rows, {"score": parts.distance, "within": parts.within})

    def _filter(self, pool: Pool, signals: Signals, budget: int) -> Selection:
        quality = missing_last(signals["quality"])
        order = descending(quality, pool.ids)
        missing = np.isnan(signals["quality"])
        graded = order[~missing[order]]
        rows, alike = threshold_diverse(signals["embedding"], graded, pool.costs, budget, self.threshold, self.device)
        rows = fill_rest(rows, order, pool.costs, budget)
        score = np.where(alike | missing, lowered(quality), quality)
        return Selection.of(pool, rows, {"score": score, "alike": alike.astype(np.float64)})

    def _deal(
        self,
        embeddings: Float[np.ndarray, "n d"],
        tokens: Int[np.ndarray, " n"],
        budget: int,
        rng: np.random.Generator,
    ) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        n = len(embeddings)
        clusters = self.clusters or min(_MOST_CLUSTERS, max(1, round(budget / float(tokens.mean()))))
        labels, distance = k_means(embeddings, clusters, rng)
        size = np.bincount(labels)[labels]
        inward = np.lexsort((np.arange(n), distance, labels))
        starts = np.flatnonzero(np.r_[True, np.diff(labels[inward]) > 0])
        turn = np.empty(n, dtype=np.int64)
        turn[inward] = np.arange(n) - np.repeat(starts, np.diff(np.r_[starts, n]))
        return np.lexsort((np.arange(n), labels, -size, turn)), distance
