"""Groups of duplicates over all parts of a folder of scores, as a selection of the whole pool finds them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from longgame.offline.near import Sketches
from longgame.offline.options import SelectOptions
from longgame.offline.parts import EXACT_GROUP, Given, PoolPart, Question
from longgame.offline.score_folder import ScoreFolder
from longgame.seeding import generator
from longgame.selection.methods.dedup_exact import ExactDedupSelector
from longgame.signals.texts import NEAR

Ask = Callable[[Iterable[Any]], list[Any]]
"""Questions → the answers of workers, in order."""


class GroupsOfParts:
    """Which rows of all parts are no candidates, and which are duplicates for a selector that keeps one of each group.

    Memory: for near-duplicates what `Sketches.repeats` takes, and 9 bytes a row; for groups of a selector 40 bytes a
    row and four times the longest id.

    Args:
        table: the scores.
        options: what is selected; the selector keeps one of each group, if `group` is called.
        parts: of the rows of the scores.
        sketches: of the rows; None where no near-duplicates are asked for.
    """

    def __init__(
        self, table: ScoreFolder, options: SelectOptions, parts: Sequence[PoolPart], sketches: Sketches | None
    ) -> None:
        self._table, self._options, self._parts, self._sketches = table, options, parts, sketches
        self._repeats: Bool[np.ndarray, " n"] | None = None
        self._duplicate: Bool[np.ndarray, " n"] | None = None
        self._draw: np.ndarray | None = None
        self._spread = 0.0
        self._members = np.zeros(0, dtype=np.int64)
        """Rows in groups of several."""
        self._rows: Int[np.ndarray, " n"] | None = None

    def known(self, question: Question) -> Question:
        """The question with what a worker needs to know of the rows of its part."""
        if self._repeats is None and self._duplicate is None:
            return question
        part = question.part
        rows = slice(part.start, part.stop)
        inside = slice(*np.searchsorted(self._members, (part.start, part.stop)))
        given = Given(
            repeats=None if self._repeats is None else np.packbits(self._repeats[rows]),
            duplicate=None if self._duplicate is None else np.packbits(self._duplicate[rows]),
            draw=None if self._draw is None else self._draw[rows],
            spread=self._spread,
            members=self._members[inside] - part.start if question.kind == "ranks" else None,
        )
        return replace(question, given=given)

    def leave_out_repeats(self, threshold: float, ask: Ask) -> None:
        """Make rows no candidates that nearly repeat an earlier row of the data, also one without scores.

        Raises:
            ResumeError: the sketches are damaged, or of other data.
        """
        sketches, rows = self._near()
        self._repeats = sketches.repeats(threshold, ask)[rows] >= 0

    def group(self, without_copies: bool, ask: Ask) -> None:
        """Find the groups of the candidates, and the row of each that the selector keeps.

        Args:
            without_copies: whether exact copies of an earlier row are no candidates.
            ask: answers questions about parts and slices.

        Raises:
            ResumeError: as `leave_out_repeats`.
        """
        selector = self._options.build()
        if not isinstance(selector, ExactDedupSelector):
            raise TypeError(f"selector '{selector.name}' has no groups")
        ids = np.concatenate([part.fixed() for part in self._table.ids_of_folders()])
        candidate = np.ones(len(ids), dtype=bool) if self._repeats is None else ~self._repeats
        if without_copies:
            candidate[_copies(ids)] = False
        order = np.flatnonzero(candidate)
        order = order[np.argsort(ids[order], kind="stable")]
        if selector.by == "random":
            draws = generator(self._options.seed, "selection", "select").random(len(order))
            self._draw = np.full(len(ids), np.nan)
            self._draw[order] = draws
            self._spread = float(draws.max(initial=-np.inf)) - float(draws.min(initial=np.inf))
        leaders = _equal(ids[order]) if selector.group == EXACT_GROUP else self._alike(order, ask)
        repeating = np.flatnonzero(leaders >= 0)
        places = np.union1d(repeating, leaders[repeating])
        places = places[np.argsort(order[places])]
        groups = np.where(leaders[places] >= 0, leaders[places], places)
        self._members = order[places]
        self._duplicate = np.zeros(len(ids), dtype=bool)
        ranks = self._ranks(ask)
        kept_first = np.lexsort((places, -ranks, groups))
        later = groups[kept_first][1:] == groups[kept_first][:-1]
        self._duplicate[self._members[kept_first[1:][later]]] = True

    def _ranks(self, ask: Ask) -> Float[np.ndarray, " m"]:
        """Numbers that rank the members."""
        if self._draw is not None:
            return self._draw[self._members]
        low, high, numbers = zip(*ask([self.known(Question(part, "ranks")) for part in self._parts]), strict=True)
        self._spread = max(high) - min(low)
        return np.concatenate(numbers)

    def _near(self) -> tuple[Sketches, Int[np.ndarray, " n"]]:
        """The sketches, and the row among them of each row of the scores, rising."""
        if self._sketches is None:
            raise RuntimeError("near-duplicates need sketches")
        if self._rows is None:
            self._rows = self._sketches.rows_of(self._table)
        return self._sketches, self._rows

    def _alike(self, order: Int[np.ndarray, " m"], ask: Ask) -> Int[np.ndarray, " m"]:
        """Place of the first candidate that each one nearly repeats, −1 where there is none."""
        sketches, rows = self._near()
        rows = rows[order]
        place = np.full(len(sketches), -1, dtype=np.int64)
        place[rows] = np.arange(len(rows))
        leaders = sketches.repeats(NEAR, ask, rows)[rows]
        return np.where(leaders < 0, -1, place[leaders])


def _equal(ids: np.ndarray) -> Int[np.ndarray, " m"]:
    """Place of the first of these rising ids with the same content, −1 for that one."""
    copies = _copies(ids)
    contents = ids.copy()
    contents[copies] = [sample_id.partition(b"#")[0] for sample_id in ids[copies].tolist()]
    first = np.r_[True, contents[1:] != contents[:-1]][: len(ids)]
    leaders = np.maximum.accumulate(np.where(first, np.arange(len(ids)), 0))
    return np.where(first, -1, leaders)


def _copies(ids: np.ndarray) -> Int[np.ndarray, " c"]:
    """Rows whose id says that they are copies of an earlier row."""
    return np.flatnonzero((ids.view(np.uint8).reshape(len(ids), -1) == ord("#")).any(axis=1))
