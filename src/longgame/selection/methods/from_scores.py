"""Selection by what another system decided: scores or keep flags from a file (``scores:FILE``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from longgame.data.examples import Example, Pool
from longgame.data.score_files import read_scores
from longgame.errors import DataError
from longgame.selection.base import Selector
from longgame.selection.budget import choice
from longgame.selection.history import History
from longgame.signals.base import Signals

_NAMED = 5


class FromScores(Selector):
    """Highest score of the file first within the budget, ties by id; only what it keeps, where it has a keep flag.

    With a keep flag and no score, in the order of the file. What is kept may be less than the budget holds; the audit
    then compares unequal token counts, and reports them.

    Args:
        file: .parquet, .csv or .jsonl with ``sample_id`` (or the rows' own ``id``) and ``score``, ``keep`` or both (see
            `read_scores`).
        missing: what to do with a candidate that the file does not name: ``error``, or ``skip`` (never select it).

    ``scores``: ``score`` (NaN for what the file does not name) and ``keep``, 1 for what may be selected, else 0.

    Raises:
        DataError: the file is wrong (when the selector is made), or candidates are missing from it (when it selects).
    """

    name = "scores"
    by_row = True

    def __init__(self, file: str, missing: Literal["error", "skip"] = "error") -> None:
        self.missing = choice(self.name, "missing", missing, ("error", "skip"))
        self.file = read_scores(str(file))
        self.score_source = f"score file '{self.file.path}'"
        self._place = {sample_id: row for row, sample_id in enumerate(self.file.ids)}

    def score(self, pool: Pool, signals: Signals, history: History) -> dict[str, Float[np.ndarray, " n"]]:  # noqa: ARG002
        places = self.places(self.names(pool.ids, lambda: pool.examples))
        score = np.where(places >= 0, self.file.score[places], np.nan)
        return {"score": score, "keep": self.eligible(pool).astype(np.float64)}

    def eligible(self, pool: Pool) -> Bool[np.ndarray, " n"]:
        """Candidates that the file names and keeps."""
        return self.kept(self.names(pool.ids, lambda: pool.examples))

    def named(self, examples: Sequence[Example]) -> list[str]:
        """`names` of these examples."""
        return self.names([example.sample_id for example in examples], lambda: examples)

    def names(self, ids: Sequence[str], examples: Callable[[], Iterable[Example]]) -> list[str]:
        """What the file calls these candidates: their sample ids, or the ids of their rows where it has those.

        Raises:
            DataError: a row's id is that of several candidates.
        """
        if not self.file.own_ids or all(name in self._place for name in ids):
            return list(ids)
        names, first = [], dict[str, str]()
        for sample_id, example in zip(ids, examples(), strict=True):
            name = example.row_id
            if sample_id in self._place or name is None or name not in self._place:
                names.append(sample_id)
                continue
            if first.setdefault(name, sample_id) != sample_id:
                raise DataError(
                    f"score file '{self.file.path}': the id '{name}' is that of several candidates ({first[name]} and "
                    f"{sample_id}). Name candidates by sample_id (`longgame pools RECIPE` writes both)."
                )
            names.append(name)
        return names

    def kept(self, ids: Sequence[str]) -> Bool[np.ndarray, " n"]:
        """Whether the file names and keeps each of these examples.

        Raises:
            DataError: as `places`.
        """
        places = self.places(ids)
        return (places >= 0) & self.file.keep[places]

    def places(self, ids: Sequence[str]) -> Int[np.ndarray, " n"]:
        """Row of each candidate in the file, −1 for one that it does not name.

        Raises:
            DataError: it does not name one, and ``missing`` is ``error``.
        """
        self.check(ids)
        return np.fromiter((self._place.get(name, -1) for name in ids), dtype=np.int64, count=len(ids))

    def lacking(self, ids: Sequence[str]) -> list[str]:
        """Those of these examples that the file would have to name; none where ``missing`` is ``skip``."""
        return [name for name in ids if name not in self._place] if self.missing == "error" else []

    def check(self, ids: Sequence[str], where: str = "") -> None:
        """Refuse a file that lacks some of these candidates.

        Args:
            where: they are, in words that follow "candidates".

        Raises:
            DataError: it does not name one, and ``missing`` is ``error``.
        """
        lost = self.lacking(ids)
        if lost:
            named = ", ".join(lost[:_NAMED]) + (" …" if len(lost) > _NAMED else "")
            raise DataError(
                f"score file '{self.file.path}' does not name {len(lost)} of {len(ids)} candidates{where}: {named}. "
                "Score them too (`longgame pools RECIPE` with the audit's --seeds and --axis writes all candidates), "
                "or set missing: skip to never select them."
            )
