"""Exact and near-duplicates of rows (Lee et al. 2022, arXiv 2107.06499): the first of each group stays."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
from jaxtyping import Int

from longgame.data.examples import Example
from longgame.errors import RecipeError
from longgame.offline.rows import DataRows

NEAR = 0.8
"""Jaccard index of word triples from which two rows are near-duplicates."""
_PERMUTATIONS, _BANDS = 128, 32
"""Bands of four values find pairs from an index of 0.42 on with one chance in two, and from 0.8 on nearly all; what
they find is compared by all values."""
_WORDS = 3
_WORD = re.compile(r"\w+|[^\w\s]")


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


def near_duplicates_of(examples: Iterable[Example], n: int, threshold: float) -> Int[np.ndarray, " n"]:
    """As `duplicates` of kind ``near``, of n examples in their order."""
    try:
        from rensa import RMinHash, RMinHashLSH
    except ModuleNotFoundError as error:
        raise RecipeError(
            "near-duplicates are found by rensa, which is not installed. Run: pip install 'longgame[dedup]'"
        ) from error
    index = RMinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS, num_bands=_BANDS)
    hashes: dict[int, RMinHash] = {}
    result = np.full(n, -1, dtype=np.int64)
    for row, example in enumerate(examples):
        sketch = RMinHash(num_perm=_PERMUTATIONS, seed=0)
        sketch.update(shingles(example))
        near = [other for other in index.query(sketch) if hashes[other].jaccard(sketch) >= threshold]
        if near:
            result[row] = min(near)
        else:
            index.insert(row, sketch)
            hashes[row] = sketch
    return result


def shingles(example: Example) -> list[str]:
    """Runs of three words of a row's turns, without case; a shorter text is one run."""
    words = _WORD.findall(" ".join([*(text for _, text in example.turns), example.response]).lower())
    if example.tokens is not None:
        words = [str(token) for token in example.tokens[0].tolist()]
    return [" ".join(words[start : start + _WORDS]) for start in range(max(1, len(words) - _WORDS + 1))]
