"""Scores and keep flags that a user's own system gave to candidates, read from a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from longgame.errors import DataError

_IDS = ("sample_id", "id")
_READ: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".parquet": pd.read_parquet,
    ".csv": lambda path: pd.read_csv(path, dtype=dict.fromkeys(_IDS, str), keep_default_na=True),
    ".jsonl": lambda path: pd.read_json(path, lines=True, dtype=False),
}
"""How each kind of file is read; ids stay the text that they are (an id may consist of digits)."""


@dataclass(frozen=True)
class ScoreFile:
    """What a file says about m examples, in its order."""

    path: str
    ids: tuple[str, ...]
    score: Float[np.ndarray, " m"]
    """Higher is taken first; without a ``score`` column 1 − place / m, the order of the file."""
    keep: Bool[np.ndarray, " m"]
    """Whether the example may be taken at all; True for all without a ``keep`` column."""
    scored: bool = True
    """Whether there is a ``score`` column."""

    def digest(self, ids: Collection[str]) -> str:
        """Content hash of what the file says about these examples, whatever else it holds.

        Where the order of the file stands for a score it is the order of these examples among each other that counts,
        else no order does.
        """
        wanted = frozenset(ids)
        rows = [row for row, name in enumerate(self.ids) if name in wanted]
        ranks = self.score[rows].tolist() if self.scored else range(len(rows))
        said = sorted(zip([self.ids[row] for row in rows], ranks, self.keep[rows].tolist(), strict=True))
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def read_scores(path: str) -> ScoreFile:
    """Read a Parquet, CSV or JSON-lines file with a column ``sample_id`` (or ``id``) and ``score``, ``keep`` or both.

    Raises:
        DataError: the file is not there or unreadable; a column is missing or of the wrong kind; an id stands twice;
            a score is missing or infinite.
    """
    file = Path(path).expanduser()
    reader = _READ.get(file.suffix)
    if reader is None:
        raise DataError(f"score file '{path}' ends in '{file.suffix}'; give a {', '.join(_READ)} file.")
    try:
        frame = reader(file)
    except FileNotFoundError as error:
        raise DataError(f"score file '{path}' does not exist. Give the path of a {', '.join(_READ)} file.") from error
    except (OSError, ValueError) as error:  # pandas and pyarrow tell damaged content by kinds of ValueError
        raise DataError(f"score file '{path}' cannot be read: {' '.join(str(error).split())}.") from error
    return _checked(path, frame)


def _checked(path: str, frame: pd.DataFrame) -> ScoreFile:
    who = f"score file '{path}'"
    column = next((name for name in _IDS if name in frame), None)
    if column is None or not {"score", "keep"} & set(frame):
        held = ", ".join(map(str, frame.columns)) or "none"
        raise DataError(f"{who} has the columns {held}; it needs sample_id, and score or keep or both.")
    ids = frame[column].tolist()
    if not ids:
        raise DataError(f"{who} has no rows. Give one row for each example.")
    strange = [value for value in ids if not isinstance(value, str)]
    if strange:
        raise DataError(f"{who}: {column} holds {strange[0]!r}, which is no text; write ids as they were given.")
    twice = frame[column][frame[column].duplicated()].tolist()
    if twice:
        raise DataError(f"{who}: {len(twice)} ids stand twice, {_some(twice)}. Give one row for each example.")
    keep = np.ones(len(ids), dtype=bool) if "keep" not in frame else _flags(who, frame["keep"].tolist())
    score = 1 - np.arange(len(ids)) / max(1, len(ids))
    if "score" in frame:
        score = pd.to_numeric(frame["score"], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        bad = [name for name, value in zip(ids, score.tolist(), strict=True) if not np.isfinite(value)]
        if bad:
            raise DataError(f"{who}: {len(bad)} ids have no finite number as score, {_some(bad)}. Drop or mend them.")
    return ScoreFile(path, tuple(ids), score, keep, "score" in frame)


def _flags(who: str, values: list[Any]) -> Bool[np.ndarray, " m"]:
    words = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
    found = [words.get(str(value).lower()) for value in values]
    if None in found:
        raise DataError(f"{who}: keep holds {values[found.index(None)]!r}; write true or false, or 1 or 0.")
    return np.asarray(found, dtype=bool)


def _some(ids: list[str]) -> str:
    return ", ".join(ids[:5]) + (" …" if len(ids) > 5 else "")
