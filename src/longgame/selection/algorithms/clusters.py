"""k-means of candidates, and the removal of near-duplicates within its cells (SemDeDup)."""

from __future__ import annotations

import functools
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.cluster import KMeans, MiniBatchKMeans
from threadpoolctl import ThreadpoolController

_MINI_BATCH_FROM = 10_000
_MOST_CELLS = 4096
_BLOCK = 512
"""Rows of one block of similarities."""
_SMALL = 128
"""Rows of a cell up to which all products are computed at once."""
_DIRECTIONS, _SAMPLE = 64, 4096
"""Directions that exclude pairs, and rows that they are computed of."""
_MARGIN = 2e-5
"""More than the rounding of a float32 product of unit rows in `_DIRECTIONS` + 1 columns."""
_DENSE = 16
"""Above one close pair in so many, the whole product is computed."""
_PROPOSED = 0.25
"""Rows that k-means++ proposes at a time, for each row drawn so far: few are rejected then."""
_MOST_PROPOSED, _PROPOSED_ENTRIES = 256, 1 << 25
"""Rows that k-means++ proposes at most, and distances that it computes for them (128 MiB in float32)."""
_SAME = 4e-6
"""Squared distance, relative to the sum of both squared lengths, that float32 does not tell from 0."""
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


def kmeans_plus_plus(
    points: Float[np.ndarray, "n d"],
    costs: Int[np.ndarray, " n"],
    budget: int,
    rng: np.random.Generator,
) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, " n"]]:
    """Draw rows by k-means++ seeding until the budget holds no further one (Arthur & Vassilvitskii 2007).

    The first row is drawn uniformly, each further one with a probability ∝ its squared distance to the nearest row
    drawn before, among the rows that still fit. Rows at distance 0 are drawn last, uniformly.

    The draws are exact, and distances cost one matrix product for many of them: squared distances only fall, so a row
    proposed by older ones and accepted with the probability new / old is drawn by the new ones.

    Args:
        points: n rows, in an order that does not depend on that of the pool.
        costs: of each row, ≥ 1.
        budget: at least ``costs.min()``.

    Returns:
        The rows in the order in which they were drawn, and of each row the distance to the nearest row drawn before it
        (of rows that were not drawn: to the nearest of all). The first one's is that of the farthest row.
    """
    wide, scale = _centered(points)
    squares = np.einsum("nd,nd->n", wide, wide)
    fits, left = costs <= budget, int(budget)
    nearest, distance = np.full(len(wide), np.inf), np.zeros(len(wide))
    picks: list[int] = []

    def draw(row: int, squared: Float[np.ndarray, " n"]) -> None:
        nonlocal left
        picks.append(row)
        distance[row] = nearest[row]
        np.minimum(nearest, squared, out=nearest)
        nearest[row] = 0.0
        left -= int(costs[row])
        fits[row] = False
        np.logical_and(fits, costs <= left, out=fits)

    first = int(rng.choice(np.flatnonzero(fits)))
    draw(first, _squared_distances(wide, squares, np.array([first]))[0])
    distance[first] = nearest.max()
    while True:
        weights = np.where(fits, nearest, 0.0)
        total = float(weights.sum())
        if total <= 0:
            break
        count = max(1, min(int(_PROPOSED * len(picks)), _MOST_PROPOSED, _PROPOSED_ENTRIES // len(wide)))
        proposed = rng.choice(len(wide), size=count, p=weights / total)
        rows, places = np.unique(proposed, return_inverse=True)
        squared = _squared_distances(wide, squares, rows)
        for row, place in zip(proposed.tolist(), places.tolist(), strict=True):
            if fits[row] and rng.random() * weights[row] < nearest[row]:
                draw(row, squared[place])
    for row in rng.permutation(np.flatnonzero(fits)).tolist():  # all of them at distance 0
        if fits[row]:
            draw(row, nearest)
    undrawn = np.ones(len(wide), dtype=bool)
    undrawn[picks] = False
    distance[undrawn] = nearest[undrawn]
    return np.asarray(picks, dtype=np.int64), np.sqrt(distance) * scale


def _centered(points: Float[np.ndarray, "n d"]) -> tuple[Float[np.ndarray, "n d"], float]:
    """The rows around their mean, in float32 and in units that neither overflow nor underflow when squared."""
    wide = points.astype(np.float64)
    wide -= wide.mean(axis=0)
    scale = float(np.abs(wide).max(initial=0.0)) or 1.0
    return (wide / scale).astype(np.float32), scale


def _squared_distances(
    points: Float[np.ndarray, "n d"], squares: Float[np.ndarray, " n"], rows: Int[np.ndarray, " b"]
) -> Float[np.ndarray, "b n"]:
    """Squared distances of these rows to all; what rounding cannot tell from 0 is 0."""
    sums = squares[rows][:, None] + squares
    squared = sums - 2.0 * (points[rows] @ points.T)
    squared[squared < _SAME * sums] = 0.0
    return squared


def cells_for(n: int) -> int:
    """Number of k-means cells for n rows, √n: cells and their rows grow alike, so all pairs in cells are about n·√n."""
    return max(1, min(_MOST_CELLS, round(n**0.5)))


def without_near_duplicates(
    units: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    order: Int[np.ndarray, " n"],
    epsilon: float,
    count_removed: bool = False,
) -> tuple[Bool[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Keep, in this order, each row whose cosine with every row kept before it in its cell is at most 1 − epsilon.

    SemDeDup (Abbas et al. 2023, arXiv 2303.09540). A row that was removed removes no other one. Cosines are float32
    products, so a pair within about 1e−6 of the limit may fall on either side; equal rows have 1.

    Args:
        units: rows of length 1 (`unit_rows`).
        labels: cell of each row.
        order: the rows, in the order in which they are considered.
        epsilon: in (0, 2].
        count_removed: whether removed rows remove others, too, as in the published code.

    Returns:
        Which rows are kept, and the largest cosine of each removed row with the rows before it in its cell that could
        remove it (NaN for a kept row).
    """
    limit = np.float32(1.0 - epsilon)
    stays = np.zeros(len(units), dtype=bool)
    closest = np.full(len(units), np.nan, dtype=np.float32)
    by_cell = order[np.argsort(labels[order], kind="stable")]
    edges = np.flatnonzero(np.r_[True, np.diff(labels[by_cell]) != 0, True])
    directions = _main_directions(units) if np.diff(edges).max(initial=0) > _SMALL else None
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        rows = by_cell[start:stop]
        stays[rows], closest[rows] = _first_of_each(units[rows], limit, directions, count_removed)
    return stays, closest


def _main_directions(units: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "d p"] | None:
    """Orthonormal columns that hold most of the unit rows' second moment; None where p = d would be no saving."""
    if units.shape[1] < 2 * _DIRECTIONS:
        return None
    sample = units[:: max(1, len(units) // _SAMPLE)].astype(np.float64)
    return np.linalg.eigh(sample.T @ sample)[1][:, -_DIRECTIONS:].astype(np.float32)


def _first_of_each(
    unit: Float[np.ndarray, "m d"],
    limit: np.float32,
    directions: Float[np.ndarray, "d p"] | None,
    count_removed: bool,
) -> tuple[Bool[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """`without_near_duplicates` of one cell, whose unit rows are in order."""
    stays = np.zeros(len(unit), dtype=bool)
    closest = np.full(len(unit), np.nan, dtype=np.float32)
    short = unit if directions is None or len(unit) <= _SMALL else _shortened(unit, directions)
    for start in range(0, len(unit), _BLOCK):
        rows = np.arange(start, min(len(unit), start + _BLOCK))
        earlier = np.arange(start) if count_removed else np.flatnonzero(stays[:start])
        near, _, cosines = _close_pairs(unit, short, rows, earlier, limit)
        np.fmax.at(closest, near, cosines)
        open_rows = rows[np.isnan(closest[rows])]
        stays[open_rows] = True
        open_rows = rows if count_removed else open_rows
        first, second, _ = _close_pairs(unit, short, open_rows, open_rows, limit)
        first, second = first[first < second], second[first < second]
        for begin, end in pairwise(np.flatnonzero(np.diff(first, prepend=-1, append=-1)).tolist()):
            if count_removed or stays[first[begin]]:  # all rows before it are decided
                stays[second[begin:end]] = False
        fresh, removed = rows if count_removed else rows[stays[rows]], rows[~stays[rows]]
        cosines = np.where(fresh < removed[:, None], np.minimum(unit[removed] @ unit[fresh].T, 1.0), np.nan)
        if cosines.size:
            closest[removed] = np.fmax(closest[removed], np.fmax.reduce(cosines, axis=1))
    return stays, closest


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
    rows: Int[np.ndarray, " r"],
    others: Int[np.ndarray, " o"],
    limit: np.float32,
) -> tuple[Int[np.ndarray, " c"], Int[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """A row, another one and their cosine for each pair above the limit, in the order of the rows."""
    if not len(rows) or not len(others):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
    if short is not unit:
        pairs = np.flatnonzero(short[rows] @ short[others].T > limit - np.float32(_MARGIN))
        if len(pairs) * _DENSE <= len(rows) * len(others):
            places, columns = np.divmod(pairs, len(others))
            cosines = np.empty(len(pairs), dtype=np.float32)
            for start in range(0, len(pairs), _PAIRS):
                part = slice(start, start + _PAIRS)
                left, right = unit[rows[places[part]]], unit[others[columns[part]]]
                cosines[part] = np.einsum("cd,cd->c", left, right)
            close = cosines > limit
            return rows[places[close]], others[columns[close]], np.minimum(cosines[close], 1.0)
    products = unit[rows] @ unit[others].T
    pairs = np.flatnonzero(products > limit)
    places, columns = np.divmod(pairs, len(others))
    return rows[places], others[columns], np.minimum(products.ravel()[pairs], 1.0)
