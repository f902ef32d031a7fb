"""k-means of candidates, and the removal of near-duplicates within its cells (SemDeDup)."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.cluster import KMeans, MiniBatchKMeans
from threadpoolctl import ThreadpoolController

from longgame.selection.algorithms.nearest import unit_rows

_MINI_BATCH_FROM = 10_000
_MOST_CELLS = 4096
_BLOCK = 512
"""Rows of one block of similarities."""


@functools.cache
def _threads() -> ThreadpoolController:
    """The thread pools of the libraries behind k-means; looking for them takes longer than a small k-means."""
    return ThreadpoolController()


def k_means(
    embeddings: Float[np.ndarray, "n d"], clusters: int, rng: np.random.Generator
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Return the cluster of each row and its L2 distance to the cluster's center (k-means++, one start).

    Rows must be in the order of their ids, so that the order of the pool changes no bit. There are at most as many
    clusters as different rows. From 10,000 rows on, k-means runs on mini-batches.
    """
    distinct = len({row.tobytes() for row in embeddings})
    model_class = KMeans if len(embeddings) < _MINI_BATCH_FROM else MiniBatchKMeans
    model = model_class(min(clusters, distinct), n_init=1, random_state=int(rng.integers(2**31)))
    with _threads().limit(limits=1):  # sums over threads depend on their timing, and so would the picks
        labels = model.fit(embeddings.astype(np.float64)).labels_
    distance = np.sqrt(np.square(embeddings - model.cluster_centers_[labels]).sum(axis=1)).astype(np.float32)
    return labels, distance


def cells_for(n: int) -> int:
    """Number of k-means cells for n rows, √n: cells and their rows grow alike, so all pairs in cells are about n·√n."""
    return max(1, min(_MOST_CELLS, round(n**0.5)))


def without_near_duplicates(
    embeddings: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    order: Int[np.ndarray, " n"],
    epsilon: float,
) -> tuple[Bool[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Keep, in this order, each row whose cosine with every row kept before it in its cell is at most 1 − epsilon.

    SemDeDup (Abbas et al. 2023, arXiv 2303.09540). A row that was removed removes no other one. Cosines are float32
    products of unit rows, so a pair within about 1e−6 of the limit may fall on either side; equal rows have 1.

    Returns:
        Which rows are kept, and each row's largest cosine with the rows kept before it in its cell (−1: none).
    """
    limit = np.float32(1.0 - epsilon)
    kept = np.zeros(len(embeddings), dtype=bool)
    closest = np.full(len(embeddings), -1.0, dtype=np.float32)
    by_cell = order[np.argsort(labels[order], kind="stable")]
    edges = np.flatnonzero(np.r_[True, np.diff(labels[by_cell]) != 0, True])
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        rows = by_cell[start:stop]
        kept[rows], closest[rows] = _first_of_each(unit_rows(embeddings[rows]), limit)
    return kept, closest


def _first_of_each(
    unit: Float[np.ndarray, "m d"], limit: np.float32
) -> tuple[Bool[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """`without_near_duplicates` of one cell, whose unit rows are in order."""
    kept = np.zeros(len(unit), dtype=bool)
    closest = np.full(len(unit), -1.0, dtype=np.float32)
    for start in range(0, len(unit), _BLOCK):
        block = unit[start : start + _BLOCK]
        earlier = unit[:start][kept[:start]]
        best = closest[start : start + _BLOCK]
        if len(earlier):
            np.maximum(best, np.minimum(block @ earlier.T, 1.0).max(axis=1), out=best)
        similar = np.minimum(block @ block.T, 1.0)
        for place in range(len(block)):
            if best[place] <= limit:
                kept[start + place] = True
                np.maximum(best[place + 1 :], similar[place, place + 1 :], out=best[place + 1 :])
    return kept, closest
