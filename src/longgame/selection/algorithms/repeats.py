"""Which rows repeat an earlier one that stays, told by the buckets that rows share: the first of each group stays.

In a given order, a row repeats the first earlier row that stays, shares a bucket with it and is near it. That is what
an index gives into which rows are put one by one (Lee et al. 2022, arXiv 2107.06499). Here the buckets are known
beforehand, and blocks of rows are compared together.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Int

_BLOCK = 4096
"""Rows that are looked at together."""
_PAIRS = 1 << 19
"""Pairs of one block that are held at a time, about; blocks are made smaller for it."""

Near = Callable[[Int[np.ndarray, " p"], Int[np.ndarray, " p"]], Bool[np.ndarray, " p"]]
"""Which of these pairs of rows are near each other."""


def repeated(ends: Int[np.ndarray, " n"], buckets: Int[np.ndarray, " e"], near: Near) -> Int[np.ndarray, " n"]:
    """Return for each of n rows the row that it repeats, −1 for one that stays.

    A bucket lists the rows that stay, so the work grows with the pairs of a row and an earlier one that stays in one
    of its buckets. Memory: 24 bytes for each row in each of its buckets, and 16 for each bucket.

    Args:
        ends: rows in their order; row i has the buckets from ``ends[i - 1]`` to ``ends[i]``.
        buckets: numbers from 0.
        near: answers for pairs (row, earlier row).
    """
    owner = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
    known = _Known(owner, buckets)
    result = np.full(len(ends), -1, dtype=np.int64)
    start, size = 0, _BLOCK
    while start < len(ends):
        stop = min(start + size, len(ends))
        entries = np.arange(ends[start - 1] if start else 0, ends[stop - 1])
        if stop - start > 1 and _pairs_of(buckets[entries]) > _PAIRS:
            size = (stop - start) // 2
            continue
        known.match(entries, near, result)
        _match_within(entries[result[owner[entries]] < 0], owner, buckets, near, result)
        known.add(entries[result[owner[entries]] < 0])
        start, size = stop, min(_BLOCK, 2 * size)
    return result


class _Known:
    """The rows that stay, as a chain through each bucket, in their order."""

    def __init__(self, owner: Int[np.ndarray, " e"], buckets: Int[np.ndarray, " e"]) -> None:
        self._owner, self._buckets = owner, buckets
        self._first = np.full(int(buckets.max(initial=-1)) + 1, -1, dtype=np.int64)
        self._last = self._first.copy()
        self._next = np.full(len(buckets), -1, dtype=np.int64)

    def match(self, entries: Int[np.ndarray, " m"], near: Near, result: Int[np.ndarray, " n"]) -> None:
        """Set for the rows of these entries the first known one that they are near."""
        cursors = self._first[self._buckets[entries]]
        pairs: list[np.ndarray] = []
        count = 0
        while len(cursors):
            # what stands behind a match cannot be the first one
            best = result[self._owner[entries]]
            open_ends = (cursors >= 0) & ((best < 0) | (self._owner[cursors] < best))
            entries, cursors = entries[open_ends], cursors[open_ends]
            pairs.append(self._owner[entries] * len(result) + self._owner[cursors])
            count += len(cursors)
            cursors = self._next[cursors]
            if count > _PAIRS or not len(cursors):
                row, other = _near_pairs(pairs, len(result), near)
                row, first = np.unique(row, return_index=True)  # pairs rise, so the first one of a row is its smallest
                other = other[first]
                result[row] = np.where(result[row] < 0, other, np.minimum(result[row], other))
                pairs, count = [], 0

    def add(self, entries: Int[np.ndarray, " m"]) -> None:
        """Append the rows of these rising entries to the chains of their buckets."""
        entries = entries[np.argsort(self._buckets[entries], kind="stable")]
        buckets = self._buckets[entries]
        same = buckets[1:] == buckets[:-1]
        self._next[entries[:-1][same]] = entries[1:][same]
        begins, ends = (entries[np.r_[True, ~same]], entries[np.r_[~same, True]]) if len(entries) else (entries,) * 2
        numbers = self._buckets[begins]
        chained = self._last[numbers] >= 0
        self._next[self._last[numbers[chained]]] = begins[chained]
        self._first[numbers[~chained]] = begins[~chained]
        self._last[numbers] = ends


def _pairs_of(buckets: Int[np.ndarray, " m"]) -> int:
    """Number of pairs of entries that have the same bucket."""
    sizes = np.unique(buckets, return_counts=True)[1]
    return int((sizes * (sizes - 1) // 2).sum())


def _match_within(
    entries: Int[np.ndarray, " m"],
    owner: Int[np.ndarray, " e"],
    buckets: Int[np.ndarray, " e"],
    near: Near,
    result: Int[np.ndarray, " n"],
) -> None:
    """Set which rows of these rising entries repeat another of them."""
    entries = entries[np.argsort(buckets[entries], kind="stable")]
    rows, numbers = owner[entries], buckets[entries]
    pairs = []
    places = np.arange(len(entries))
    for step in range(1, len(entries)):
        places = places[places < len(entries) - step]
        places = places[numbers[places + step] == numbers[places]]
        if not len(places):
            break
        pairs.append(rows[places + step] * len(result) + rows[places])
    for later, earlier in zip(*(column.tolist() for column in _near_pairs(pairs, len(result), near)), strict=True):
        if result[later] < 0 and result[earlier] < 0:
            result[later] = earlier


def _near_pairs(
    pairs: list[Int[np.ndarray, " p"]], n: int, near: Near
) -> tuple[Int[np.ndarray, " q"], Int[np.ndarray, " q"]]:
    """Of pairs, written row · n + earlier row, those that are near; each once, rising."""
    if not pairs:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    row, other = np.divmod(np.unique(np.concatenate(pairs)), n)
    matches = near(row, other)
    return row[matches], other[matches]
