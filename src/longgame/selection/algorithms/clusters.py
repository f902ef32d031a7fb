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
_SMALL = 64
"""Mean number of rows in a row's cell from which few directions exclude most pairs before any product is computed."""
_FEW_PAIRS = 2_000_000
"""Pairs whose products take no longer than finding these directions."""
_DIRECTIONS, _SAMPLE = 32, 1024
"""Directions that exclude pairs, and rows that they are computed of."""
_LENGTH = np.float32(1 + 4e-6)
"""At least the squared length of a unit row in float32."""
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
    clusters as different rows. From 10,000 rows on, k-means runs on mini-batches, in float32.
    """
    large = len(embeddings) >= _MINI_BATCH_FROM
    model_class = MiniBatchKMeans if large else KMeans
    model = model_class(_at_most_distinct(embeddings, clusters), n_init=1, random_state=int(rng.integers(2**31)))
    with _threads().limit(limits=1):  # sums over threads depend on their timing, and so would the picks
        labels = model.fit(embeddings.astype(np.float32 if large else np.float64, copy=False)).labels_
    distance = np.empty(len(embeddings), dtype=np.float32)
    for start in range(0, len(embeddings), _BLOCK):
        part = slice(start, start + _BLOCK)
        away = embeddings[part] - model.cluster_centers_[labels[part]]
        distance[part] = np.sqrt(np.square(away).sum(axis=1))
    return labels, distance


def _at_most_distinct(rows: Float[np.ndarray, "n d"], limit: int) -> int:
    """Number of different rows, or the limit where there are more."""
    different: set[bytes] = set()
    for row in rows:
        different.add(row.tobytes())
        if len(different) >= limit:
            break
    return len(different)


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
    few = np.square(np.diff(edges)).sum() <= max(_SMALL * len(units), _FEW_PAIRS)
    short = None if few else _shortened(units)
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        rows = by_cell[start:stop]
        stays[rows], closest[rows] = _first_of_each(units, short, rows, limit, count_removed)
    return stays, closest


def _shortened(units: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n p+1"] | None:
    """Rows whose inner products are at least those of the unit rows, up to rounding; None where p is no less than d.

    ⟨x, y⟩ = ⟨Px, Py⟩ + ⟨Qx, Qy⟩ ≤ ⟨Px, Py⟩ + ‖Qx‖·‖Qy‖, with P the directions that hold most of the rows' second
    moment, and Q what is orthogonal to them.
    """
    if units.shape[1] < 2 * _DIRECTIONS:
        return None
    sample = units[:: max(1, len(units) // _SAMPLE)].astype(np.float64)
    directions = np.linalg.eigh(sample.T @ sample)[1][:, -_DIRECTIONS:].astype(np.float32)
    short = np.empty((len(units), _DIRECTIONS + 1), dtype=np.float32)
    np.matmul(units, directions, out=short[:, :-1])
    inside = np.einsum("np,np->n", short[:, :-1], short[:, :-1])
    short[:, -1] = np.sqrt(np.maximum(_LENGTH - inside, 0.0))
    return short


def _first_of_each(
    units: Float[np.ndarray, "n d"],
    short: Float[np.ndarray, "n s"] | None,
    rows: Int[np.ndarray, " m"],
    limit: np.float32,
    count_removed: bool,
) -> tuple[Bool[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """`without_near_duplicates` of one cell, whose rows are in order."""
    stays = np.zeros(len(rows), dtype=bool)
    closest = np.full(len(rows), np.nan, dtype=np.float32)
    for start in range(0, len(rows), _BLOCK):
        block = np.arange(start, min(len(rows), start + _BLOCK))
        if start:
            earlier = np.arange(start) if count_removed else np.flatnonzero(stays[:start])
            near, _, cosines = _close_pairs(units, short, rows[block], rows[earlier], limit)
            np.fmax.at(closest, block[near], cosines)
        stays[block] = np.isnan(closest[block])
        first, second, cosines = _close_pairs(units, short, rows[block], rows[block], limit)
        pairs = np.flatnonzero(first < second)
        first, second = block[first[pairs]], block[second[pairs]]
        for begin, end in pairwise(np.flatnonzero(np.diff(first, prepend=-1, append=-1)).tolist()):
            if count_removed or stays[first[begin]]:  # all rows before it are decided
                stays[second[begin:end]] = False
        if not count_removed:
            remove = stays[first]
            second, pairs = second[remove], pairs[remove]
        np.fmax.at(closest, second, cosines[pairs])
    return stays, closest


def _close_pairs(
    units: Float[np.ndarray, "n d"],
    short: Float[np.ndarray, "n s"] | None,
    rows: Int[np.ndarray, " r"],
    others: Int[np.ndarray, " o"],
    limit: np.float32,
) -> tuple[Int[np.ndarray, " c"], Int[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Places of a row and of another one, and their cosine, for each pair above the limit, in the order of the rows."""
    size = len(rows) * len(others)
    if short is not None and size:
        right = short[others]
        products = (right if rows is others else short[rows]) @ right.T
        pairs = np.flatnonzero(products > limit - np.float32(_MARGIN))
        if len(pairs) * _DENSE <= size:
            first, second = np.divmod(pairs, len(others))
            cosines = np.empty(len(pairs), dtype=np.float32)
            for start in range(0, len(pairs), _PAIRS):
                part = slice(start, start + _PAIRS)
                cosines[part] = np.einsum("cd,cd->c", units[rows[first[part]]], units[others[second[part]]])
            close = cosines > limit
            return first[close], second[close], np.minimum(cosines[close], 1.0)
    products = units[rows] @ units[others].T
    pairs = np.flatnonzero(products > limit)
    first, second = np.divmod(pairs, max(1, len(others)))
    return first, second, np.minimum(products.ravel()[pairs], 1.0)
