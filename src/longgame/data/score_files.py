"""Files of a user's own system about candidates: scores and keep flags, and tables with other columns."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float

from longgame.data.files import json_lines
from longgame.data.formats import RowError, plain_text
from longgame.errors import DataError
from longgame.limits import located, why_no_file
from longgame.storage import unpack_parquet

_IDS = ("sample_id", "id")


def _parquet_frame(path: Path, names: Sequence[str]) -> pd.DataFrame:
    columns = pq.read_schema(path).names
    needed = [name for name in names if name in columns]
    return unpack_parquet(path.read_bytes(), needed).to_pandas() if needed else pd.DataFrame(columns=columns)


def _csv_frame(path: Path, names: Sequence[str]) -> pd.DataFrame:
    frame = pd.read_csv(path, dtype=dict.fromkeys(_IDS, str), keep_default_na=True)
    if not isinstance(frame.index, pd.RangeIndex):
        raise ValueError("a row has more fields than the first one names")
    twice = [name for name in names if f"{name}.1" in frame]
    if twice:
        raise ValueError(f"the column {twice[0]} stands twice")
    return frame


def _jsonl_frame(path: Path, names: Sequence[str]) -> pd.DataFrame:  # noqa: ARG001
    rows = []
    for number, read in json_lines(path):
        try:
            row = read()
            if not isinstance(row, dict):
                raise RowError(f"holds a {type(row).__name__}, not an object of named fields")
            for name in _IDS:
                if isinstance(row.get(name), str):
                    plain_text(row[name], name)
        except RowError as error:
            raise ValueError(f"line {number}: {error}") from error
        rows.append(row)
    return pd.DataFrame(rows)


_READ: dict[str, Callable[[Path, Sequence[str]], pd.DataFrame]] = {
    ".parquet": _parquet_frame,
    ".csv": _csv_frame,
    ".jsonl": _jsonl_frame,
}
"""Reader of each kind of file; ids stay text (an id may consist of digits)."""


@dataclass(frozen=True)
class ScoreFile:
    """Scores and keep flags of m examples, in the order of the file."""

    path: str
    ids: tuple[str, ...]
    score: Float[np.ndarray, " m"]
    """Higher is selected first; without a ``score`` column 1 − place / m, the order of the file."""
    keep: Bool[np.ndarray, " m"]
    """Whether the example may be selected; True for all without a ``keep`` column."""
    scored: bool = True
    """Whether there is a ``score`` column."""
    own_ids: bool = False
    """Whether the ids may be those of the rows (column ``id``), not ``sample_id`` alone."""

    def digest(self, ids: Collection[str]) -> str:
        """Content hash of the file's rows of these examples.

        Their order in the file counts only where it replaces a score.
        """
        names = frozenset(ids)
        rows = [row for row, name in enumerate(self.ids) if name in names]
        ranks = self.score[rows].tolist() if self.scored else range(len(rows))
        content = sorted(zip([self.ids[row] for row in rows], ranks, self.keep[rows].tolist(), strict=True))
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def read_frame(path: str | PathLike[str], label: str, names: Sequence[str]) -> pd.DataFrame:
    """Read a Parquet, CSV or JSON-lines file; ids are text. Columns beside ``names`` may be there or not.

    Args:
        label: names the file in errors ("score file 'x.csv'").

    Raises:
        DataError: another kind of file, or one that is missing or cannot be read.
    """
    file = Path(located(str(path))).expanduser()
    reader = _READ.get(file.suffix)
    if reader is None:
        raise DataError(f"{label} ends in '{file.suffix}'; give a {', '.join(_READ)} file.")
    if reason := why_no_file(file):
        raise DataError(f"{label} {reason}. Give the path of a {', '.join(_READ)} file.")
    try:
        return reader(file, names)
    except (OSError, ValueError, pa.ArrowException) as error:  # pandas reports damaged content as a ValueError
        raise DataError(f"{label} cannot be read: {' '.join(str(error).split())}.") from error


def read_scores(path: str) -> ScoreFile:
    """Read a Parquet, CSV or JSON-lines file with a column ``sample_id`` or ``id``, and ``score``, ``keep`` or both.

    ``id`` holds sample ids, or the ids of the rows that the examples were read from.

    Raises:
        DataError: a missing or unreadable file; a column that is missing or of the wrong kind; a repeated id; a missing
            or infinite score.
    """
    label = f"score file '{path}'"
    frame = read_frame(path, label, (*_IDS, "score", "keep"))
    column = next((name for name in _IDS if name in frame), None)
    if column is None or not {"score", "keep"} & set(frame):
        names = ", ".join(map(str, frame.columns)) or "none"
        raise DataError(f"{label} has the columns {names}; it needs sample_id, and score or keep or both.")
    ids = frame[column].tolist()
    if column == "id":
        ids = [str(value) if isinstance(value, int) and not isinstance(value, bool) else value for value in ids]
    if not ids:
        raise DataError(f"{label} has no rows. Give one row for each example.")
    not_text = [value for value in ids if not isinstance(value, str) or not value.isprintable()]
    if not_text:
        raise DataError(f"{label}: {column} holds {not_text[0]!r}, which is no text; write ids as they were given.")
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    if repeated:
        raise DataError(f"{label} repeats {len(repeated)} ids: {_some(repeated)}. Give one row for each example.")
    keep = np.ones(len(ids), dtype=bool) if "keep" not in frame else _flags(label, frame["keep"].tolist())
    score = 1 - np.arange(len(ids)) / max(1, len(ids))
    if "score" in frame:
        if any(isinstance(value, bool) for value in frame["score"].tolist()):
            raise DataError(f"{label}: score holds true or false; write numbers, or name the column keep.")
        try:
            score = pd.to_numeric(frame["score"], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        except OverflowError as error:
            raise DataError(f"{label}: a score has too many digits for a number. Write it as 1e300, say.") from error
        bad = [name for name, value in zip(ids, score.tolist(), strict=True) if not np.isfinite(value)]
        if bad:
            raise DataError(f"{label}: {len(bad)} ids have no finite number as score: {_some(bad)}. Drop or set them.")
    return ScoreFile(path, tuple(ids), score, keep, "score" in frame, column == "id")


def _flags(label: str, values: list[Any]) -> Bool[np.ndarray, " m"]:
    meanings = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
    flags = [meanings.get(str(value).lower()) for value in values]
    if None in flags:
        raise DataError(f"{label}: keep holds {values[flags.index(None)]!r}; write true or false, or 1 or 0.")
    return np.asarray(flags, dtype=bool)


def _some(ids: list[str]) -> str:
    return ", ".join(ids[:5]) + (" …" if len(ids) > 5 else "")
