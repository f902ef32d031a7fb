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
_DIRECTIONS, _SAMPLE = 64, 4096
"""Directions that exclude pairs, and rows that they are computed of."""
_MARGIN = 2e-5
"""More than the rounding of a float32 product of unit rows in `_DIRECTIONS` + 1 columns."""
_DENSE = 16
"""Above one close pair in so many, the whole product is computed."""
_PAIRS = 16_384
"""Pairs whose cosines are computed together."""


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
        Which rows are kept, and the largest cosine of each removed row with the rows kept before it in its cell (NaN
        for a kept row).
    """
    limit = np.float32(1.0 - epsilon)
    kept = np.zeros(len(embeddings), dtype=bool)
    closest = np.full(len(embeddings), np.nan, dtype=np.float32)
    by_cell = order[np.argsort(labels[order], kind="stable")]
    edges = np.flatnonzero(np.r_[True, np.diff(labels[by_cell]) != 0, True])
    directions = _main_directions(embeddings) if np.diff(edges).max(initial=0) > _BLOCK else None
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        rows = by_cell[start:stop]
        kept[rows], closest[rows] = _first_of_each(unit_rows(embeddings[rows]), limit, directions)
    return kept, closest


def _main_directions(embeddings: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "d p"] | None:
    """Orthonormal columns that hold most of the unit rows' second moment; None where p = d would be no saving."""
    width = embeddings.shape[1]
    if width < 2 * _DIRECTIONS:
        return None
    sample = unit_rows(embeddings[:: max(1, len(embeddings) // _SAMPLE)]).astype(np.float64)
    return np.linalg.eigh(sample.T @ sample)[1][:, -_DIRECTIONS:].astype(np.float32)


def _first_of_each(
    unit: Float[np.ndarray, "m d"], limit: np.float32, directions: Float[np.ndarray, "d p"] | None
) -> tuple[Bool[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """`without_near_duplicates` of one cell, whose unit rows are in order."""
    kept = np.zeros(len(unit), dtype=bool)
    closest = np.full(len(unit), -np.inf, dtype=np.float32)
    short = unit if directions is None or len(unit) <= _BLOCK else _shortened(unit, directions)
    for start in range(0, len(unit), _BLOCK):
        stop = min(len(unit), start + _BLOCK)
        earlier = np.r_[np.flatnonzero(kept[:start]), start:stop]
        later, others, cosines = _close_pairs(unit, short, start, stop, earlier, limit)
        before = others < start
        np.maximum.at(closest, later[before], cosines[before])
        kept[start:stop] = closest[start:stop] <= limit
        by_other = np.argsort(others[~before], kind="stable")
        for other, row, value in zip(
            others[~before][by_other].tolist(),
            later[~before][by_other].tolist(),
            cosines[~before][by_other].tolist(),
            strict=True,
        ):
            if kept[other]:  # every pair with an earlier row of the block has been seen
                kept[row] = False
                closest[row] = max(closest[row], value)
    return kept, np.where(kept, np.float32(np.nan), closest)


def _shortened(unit: Float[np.ndarray, "m d"], directions: Float[np.ndarray, "d p"]) -> Float[np.ndarray, "m p+1"]:
    """Rows whose inner products are at least those of the unit rows, up to rounding.

    ⟨x, y⟩ = ⟨Px, Py⟩ + ⟨Qx, Qy⟩ ≤ ⟨Px, Py⟩ + ‖Qx‖·‖Qy‖, with P the directions and Q what is orthogonal to them.
    """
    inside = unit @ directions
    outside = np.maximum(np.square(unit).sum(axis=1) - np.square(inside).sum(axis=1), 0.0)
    return np.c_[inside, np.sqrt(outside)]


def _close_pairs(
    unit: Float[np.ndarray, "m d"],
    short: Float[np.ndarray, "m s"],
    start: int,
    stop: int,
    earlier: Int[np.ndarray, " e"],
    limit: np.float32,
) -> tuple[Int[np.ndarray, " c"], Int[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Rows start … stop − 1, earlier ones, and their cosine, of each pair above the limit."""

    def above(rows: Float[np.ndarray, "m s"], bound: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        products = rows[start:stop] @ rows[earlier].T
        places, columns = np.divmod(np.flatnonzero(products > bound), len(earlier))
        behind = start + places > earlier[columns]
        places, columns = places[behind], columns[behind]
        return start + places, earlier[columns], products[places, columns]

    if short is not unit:
        later, others, _ = above(short, float(limit) - _MARGIN)
        if len(later) * _DENSE <= (stop - start) * len(earlier):
            cosines = np.empty(len(later), dtype=np.float32)
            for part in range(0, len(later), _PAIRS):
                pair = slice(part, part + _PAIRS)
                cosines[pair] = np.einsum("cd,cd->c", unit[later[pair]], unit[others[pair]])
            cosines = np.minimum(cosines, 1.0)
            close = cosines > limit
            return later[close], others[close], cosines[close]
    later, others, cosines = above(unit, float(limit))
    return later, others, np.minimum(cosines, 1.0)
