"""Distances and cosines between candidates and what is remembered, in blocks of bounded memory.

Sums run in float64 and results are rounded to float32, the precision of the signals: two candidates with equal rows
get equal values, whatever their place in the matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

_BLOCK_CELLS = 1 << 21
"""Cells of one block of the candidates × references matrix (16 MiB in float64)."""
_COINCIDE = 1e-12
"""Squared distance, relative to the squared norms, below which two float32 rows are the same point."""


def _blocks(
    rows: Float[np.ndarray, "n d"], references: Float[np.ndarray, "m d"]
) -> Iterator[tuple[slice, Float[np.ndarray, "block m"]]]:
    """Squared distances of the rows to all references, block by block of rows."""
    wide = np.asarray(references, dtype=np.float64)
    reference_norms = np.einsum("md,md->m", wide, wide)
    step = max(1, _BLOCK_CELLS // max(len(wide), wide.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        block = np.asarray(rows[part], dtype=np.float64)
        norms = np.einsum("nd,nd->n", block, block)[:, None] + reference_norms
        squared = norms - 2.0 * (block @ wide.T)
        squared[squared < _COINCIDE * norms] = 0.0
        yield part, squared


def nearest_squared(rows: Float[np.ndarray, "n d"], references: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " n"]:
    """Squared L2 distance of each row to its nearest reference; infinity where there is no reference."""
    nearest = np.full(len(rows), np.inf, dtype=np.float32)
    if len(references):
        for part, squared in _blocks(rows, references):
            nearest[part] = squared.min(axis=1)
    return nearest


def mean_distance(rows: Float[np.ndarray, "n d"], references: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " n"]:
    """Mean L2 distance of each row to the references; zero for every row where there is no reference."""
    mean = np.zeros(len(rows), dtype=np.float32)
    if len(references):
        for part, squared in _blocks(rows, references):
            mean[part] = np.sqrt(squared, out=squared).mean(axis=1)
    return mean


def squared_to(
    rows: Float[np.ndarray, "n d"], point: Float[np.ndarray, " d"], step: int = 2048
) -> Float[np.ndarray, " n"]:
    """Squared L2 distance of each row to one point by direct differences (no cancellation), in the rows' dtype."""
    result = np.empty(len(rows), dtype=rows.dtype)
    for start in range(0, len(rows), step):
        difference = rows[start : start + step] - point
        result[start : start + step] = np.square(difference, out=difference).sum(axis=1)
    return result


def cosine(rows: Float[np.ndarray, "n d"], direction: Float[np.ndarray, " d"]) -> Float[np.ndarray, " n"]:
    """Cosine of each row with the direction, in [−1, 1]; zero where either of the two is the zero vector."""
    wide = np.asarray(rows, dtype=np.float64)
    axis = np.asarray(direction, dtype=np.float64)
    norms = np.sqrt(np.einsum("nd,nd->n", wide, wide)) * np.sqrt(axis @ axis)
    values = np.divide(wide @ axis, norms, out=np.zeros(len(wide)), where=norms > 0)
    return np.clip(values, -1.0, 1.0).astype(np.float32)
