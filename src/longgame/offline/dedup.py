"""Exact and near-duplicates of rows (Lee et al. 2022, arXiv 2107.06499): the first of each group stays."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from longgame.errors import RecipeError
from longgame.offline.rows import DataRows
from longgame.signals.texts import NEAR, near_duplicates_of


def parse_dedup(text: str | None) -> tuple[str, float]:
    """Read ``exact``, ``near`` or ``near:0.7``; ("", 0) for None.

    Raises:
        RecipeError: another word, or a threshold outside of (0, 1].
    """
    if text is None:
        return "", 0.0
    kind, _, number = text.partition(":")
    try:
        threshold = float(number) if number else NEAR
    except ValueError:
        threshold = -1.0
    if kind not in ("exact", "near") or not 0 < threshold <= 1 or (number and kind == "exact"):
        raise RecipeError(f"dedup is '{text}'; use exact, near, or near:THRESHOLD with a number in (0, 1].")
    return kind, threshold


def duplicates(rows: DataRows, kind: str, threshold: float) -> Int[np.ndarray, " n"]:
    """Return for every row the earlier row that it repeats, −1 for a row that stays.

    Args:
        kind: ``exact`` (equal turns), or ``near``, which finds exact ones, too.
        threshold: Jaccard index of near-duplicates, as MinHash estimates it.

    Raises:
        RecipeError: near-duplicates need the package rensa.
    """
    return _exact(rows) if kind == "exact" else near_duplicates_of(rows.examples(), len(rows), threshold)


def _exact(rows: DataRows) -> Int[np.ndarray, " n"]:
    first: dict[str, int] = {}
    result = np.full(len(rows), -1, dtype=np.int64)
    for row, sample_id in enumerate(rows.ids):
        content = sample_id.partition("#")[0]
        earlier = first.setdefault(content, row)
        if earlier != row:
            result[row] = earlier
    return result
