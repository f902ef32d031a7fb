"""Threshold-diverse filtering: walk by score and keep what resembles nothing kept before (DEITA's repr filter)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from longgame.selectors.nearest import Nearest

_BLOCK = 1024
_CELLS = 4096


def unit_rows(rows: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m d"]:
    """Rows at length 1, float32, computed row by row in float64; a zero row stays zero."""
    wide = rows.astype(np.float64)
    wide /= np.maximum(np.abs(wide).max(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    norms = np.sqrt(np.square(wide).sum(axis=1, keepdims=True))
    return np.divide(wide, norms, out=wide, where=norms > 0).astype(np.float32)


def threshold_diverse(
    embeddings: Float[np.ndarray, "n d"],
    order: Int[np.ndarray, " n"],
    tokens: Int[np.ndarray, " n"],
    budget: int,
    threshold: float,
    device: str = "cpu",
) -> tuple[Int[np.ndarray, " k"], Bool[np.ndarray, " n"]]:
    """Keep, in this order, each row that fits and whose cosine with every row kept before is below the threshold.

    The filter of DEITA (Liu et al. 2024, arXiv 2312.15685, §2.4). The cosine of unit rows is 1 − ½·(squared
    distance), and the distance is evaluated by direct differences in float32, so the result is that of the loop over
    single rows (a zero row counts as 60° from every other); pairs that are provably far enough apart are excluded by
    one matrix product a block (`Nearest`).

    Args:
        embeddings: n candidates.
        order: the rows, best first.
        tokens: what each costs; what no longer fits when its turn comes is passed over.
        budget: tokens.
        threshold: cosine, in (−1, 1].
        device: where the products run; it changes no pick.

    Returns:
        The kept rows in order, and which rows were passed over because they resemble a kept one.
    """
    limit = np.nextafter(np.float32(2.0 - 2.0 * threshold), np.float32(np.inf))  # below it: not far enough apart
    width = embeddings.shape[1]
    centre = np.zeros(width, dtype=np.float32)
    kept = np.zeros((_BLOCK, width), dtype=np.float32)
    picks: list[int] = []
    alike = np.zeros(len(order), dtype=bool)
    left, shortest = int(budget), int(tokens.min()) if len(tokens) else 0
    for start in range(0, len(order), _BLOCK):
        if left < shortest:
            break
        block = order[start : start + _BLOCK]
        block = block[tokens[block] <= left]
        rows = unit_rows(embeddings[block])
        table = Nearest(rows, centre, kept[: len(picks)], device)
        table.squared[:] = limit
        if table.others is not None and len(picks):
            table.lower(np.arange(len(rows)), table.others, np.arange(len(picks)))
        blocked = table.squared < limit
        near = _pairs(table, rows, np.flatnonzero(~blocked), limit)
        for place in range(len(rows)):
            row = int(block[place])
            if tokens[row] > left:
                continue
            if blocked[place]:
                alike[row] = True
                continue
            if len(picks) == len(kept):
                kept = np.concatenate([kept, np.zeros_like(kept)])
            kept[len(picks)] = rows[place]
            picks.append(row)
            left -= int(tokens[row])
            blocked[near.get(place, [])] = True
    return np.asarray(picks, dtype=np.int64), alike


def _pairs(
    table: Nearest, rows: Float[np.ndarray, "m d"], places: Int[np.ndarray, " f"], limit: np.float32
) -> dict[int, list[int]]:
    """For each of these places the later ones that are nearer than the limit."""
    used = table.filters[table.base]
    left, right = used.candidates(table.cloud, places), used.picks(table.cloud, places)
    product = table.products.host(used.product(left, right))
    tau = used.thresholds(table.cloud.norms[places], np.full(len(places), limit))
    first, second = np.nonzero(np.triu(product >= tau[:, None], 1))
    found: dict[int, list[int]] = {}
    for start in range(0, len(first), _CELLS):
        one, other = places[first[start : start + _CELLS]], places[second[start : start + _CELLS]]
        difference = rows[one]
        np.subtract(difference, rows[other], out=difference)
        close = np.square(difference, out=difference).sum(axis=1) < limit
        for left, right in zip(one[close].tolist(), other[close].tolist(), strict=True):
            found.setdefault(left, []).append(right)
    return found
