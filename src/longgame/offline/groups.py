"""Groups of duplicates over all parts of a folder of scores, as a selection of the whole pool finds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from longgame.engines.choice import mapper
from longgame.offline.near import SharedValues, Sketches
from longgame.offline.options import SelectOptions
from longgame.offline.parts import EXACT_GROUP, Given, PoolPart, Question
from longgame.offline.score_folder import ScoreFolder
from longgame.seeding import generator
from longgame.selection.methods.dedup_exact import ExactDedupSelector
from longgame.signals.texts import NEAR


class GroupsOfParts:
    """Which rows of all parts are no candidates, and which are duplicates for a selector that keeps one of each group.

    Memory: 24 bytes a row for near-duplicates, and what `longgame.offline.near.Sketches.repeats` takes; for groups of a
    selector 24 bytes a row and twice the longest id.
    """

    def __init__(
        self, table: ScoreFolder, options: SelectOptions, parts: Sequence[PoolPart], engine: str, workers: int | None
    ) -> None:
        self._table, self._options, self._parts = table, options, parts
        self._engine, self._workers = engine, workers
        self.version = ""
        """What made the sketches; empty where none are read."""
        self._repeats: Bool[np.ndarray, " n"] | None = None
        self._duplicate: Bool[np.ndarray, " n"] | None = None
        self._draw: np.ndarray | None = None
        self._spread = 0.0
        none = np.zeros(0, dtype=np.int64)
        self._members, self._groups, self._places = none, none, none
        """Rows in groups of several, the group of each, and its place in the order of ids."""

    def of(self, part: PoolPart) -> Given | None:
        """What a worker needs to know of the rows of a part."""
        if self._repeats is None and self._duplicate is None:
            return None
        rows = slice(part.start, part.stop)
        inside = slice(*np.searchsorted(self._members, (part.start, part.stop)))
        return Given(
            repeats=None if self._repeats is None else np.packbits(self._repeats[rows]),
            duplicate=None if self._duplicate is None else np.packbits(self._duplicate[rows]),
            draw=None if self._draw is None else self._draw[rows],
            spread=self._spread,
            members=self._members[inside] - part.start,
        )

    def leave_out_repeats(self, threshold: float) -> None:
        """Make rows no candidates that nearly repeat an earlier row of the data, also one without scores.

        Raises:
            ResumeError: sketches are missing, damaged or of several versions.
        """
        self._repeats = self._near(threshold, None)[self._rows] >= 0

    def group(self, without_copies: bool) -> None:
        """Find the groups of the candidates for the selector.

        Args:
            without_copies: whether exact copies of an earlier row are no candidates.

        Raises:
            ResumeError: as `leave_out_repeats`.
        """
        selector = self._selector
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
        leaders = self._equal(ids[order]) if selector.group == EXACT_GROUP else self._alike(order)
        repeating = np.flatnonzero(leaders >= 0)
        places = np.union1d(repeating, leaders[repeating])
        groups = np.where(leaders[places] >= 0, leaders[places], places)
        rising = np.argsort(order[places])
        self._members, self._groups, self._places = order[places][rising], groups[rising], places[rising]
        self._duplicate = np.zeros(len(ids), dtype=bool)

    def keep_first(self, ask: Callable[[Sequence[Question]], Sequence[Any]]) -> None:
        """Make all of a group duplicates but the first in the order of picking.

        Args:
            ask: answers questions of kind ``ranks`` about parts.
        """
        if self._duplicate is None:
            raise RuntimeError("group() comes before keep_first()")
        if self._draw is not None:
            ranks = self._draw[self._members]
        else:
            low, high, numbers = zip(*ask([Question(part, "ranks") for part in self._parts]), strict=True)
            ranks, self._spread = np.concatenate(numbers), max(high) - min(low)
        order = np.lexsort((self._places, -ranks, self._groups))
        groups = self._groups[order]
        self._duplicate[self._members[order[1:][groups[1:] == groups[:-1]]]] = True

    @property
    def _selector(self) -> ExactDedupSelector:
        selector = self._options.build()
        if not isinstance(selector, ExactDedupSelector):
            raise TypeError(f"selector '{selector.name}' has no groups")
        return selector

    @cached_property
    def _sketches(self) -> Sketches:
        sketches = Sketches(self._table.folder)
        self.version = sketches.version
        return sketches

    @cached_property
    def _rows(self) -> Int[np.ndarray, " n"]:
        """Row among the sketches of each row of the scores, rising."""
        return self._sketches.rows_of(self._table)

    def _near(self, threshold: float, order: Int[np.ndarray, " m"] | None) -> Int[np.ndarray, " n"]:
        with mapper(SharedValues(self._table.folder), self._engine, workers=self._workers) as answers:
            return self._sketches.repeats(threshold, lambda questions: list(answers(questions)), order)

    def _alike(self, order: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
        """Place of the first candidate that each one nearly repeats, −1 where there is none."""
        rows = self._rows[order]
        place = np.full(len(self._sketches), -1, dtype=np.int64)
        place[rows] = np.arange(len(rows))
        leaders = self._near(NEAR, rows)[rows]
        return np.where(leaders < 0, -1, place[leaders])

    def _equal(self, ids: np.ndarray) -> Int[np.ndarray, " m"]:
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
