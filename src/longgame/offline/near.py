"""Near-duplicates of data that was scored in parts: sketches beside the scores, compared without any text in memory.

`write_sketches` puts the MinHash of every row into a store beside the scores, also of a row that could not be
tokenized. Its columns are the bands of the sketches, so that rows that share a band are found by reading one column at
a time. `Sketches.repeats` gives exactly what `near_duplicates_of` gives of the texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt8, UInt32, UInt64

from longgame.errors import ResumeError
from longgame.offline.rows import DataRows
from longgame.offline.score_folder import ScoreFolder, shard_folders
from longgame.selection.algorithms.repeats import repeated
from longgame.signals.store import SKETCH_DTYPE, SignalStore, SignalWriter
from longgame.signals.texts import BANDS, PERMUTATIONS, SKETCH, near_sketches, sketch_version

NEAR_SKETCH = "near_sketch"
"""Name of the sketches among the signals of `longgame score`, and of their folder."""
_WHOLE = "whole"
"""Column with a digest of the sketch."""
_BAND = tuple(f"band_{number}" for number in range(BANDS))
_WIDTH = PERMUTATIONS // BANDS
_SKETCHED = 256
"""Texts that are sketched together: their runs of words are in memory."""
_WRITTEN = 1 << 15
"""Rows that are written together."""
_READ = 1 << 20
"""Rows whose band is read together."""
_SLICE = 1 << 24
"""Rows whose keys are compared together, about: 24 bytes each."""


def write_sketches(folder: Path, rows: DataRows, progress: Callable[[int], None] | None = None) -> None:
    """Write the sketches of these rows into a folder of scores; finished ones stay, begun ones are resumed.

    Raises:
        RecipeError: the package rensa is missing. DataError: a row carries no text.
        ResumeError: begun ones are of another version of rensa. StorageError: the disk is full.
    """
    path = folder / NEAR_SKETCH
    if path.is_dir():
        return
    with SignalWriter(path, dict.fromkeys((*_BAND, _WHOLE), SKETCH_DTYPE), sketch_version()) as writer:
        examples = rows.examples(range(writer.rows, len(rows)))
        while batch := [near_sketches(part) for part in _batches(examples)]:
            sketches = np.concatenate(batch)
            start = writer.rows
            columns = {name: sketches[:, _WIDTH * b : _WIDTH * (b + 1)] for b, name in enumerate(_BAND)}
            columns[_WHOLE] = np.frombuffer(
                b"".join(blake2b(sketch.tobytes(), digest_size=4 * _WIDTH).digest() for sketch in sketches), np.uint32
            ).reshape(-1, _WIDTH)
            writer.append(rows.ids[start : start + len(sketches)], columns)
            if progress is not None:
                progress(writer.rows)
        writer.finish()


def _batches(examples: Iterator[Any]) -> Iterator[list[Any]]:
    """The next `_WRITTEN` examples, `_SKETCHED` at a time."""
    for _ in range(_WRITTEN // _SKETCHED):
        if not (batch := list(islice(examples, _SKETCHED))):
            return
        yield batch


@dataclass(frozen=True)
class Slice:
    """A question about a column of the sketches: which rows share their value with another row."""

    column: str
    number: int = 0
    count: int = 1
    """The values are spread over so many slices, of which this is the ``number``-th."""
    without: UInt8[np.ndarray, " bytes"] = field(default_factory=lambda: np.zeros(0, dtype=np.uint8))
    """Bit per row: 1 leaves it out. Empty: none."""


Ask = Callable[[Sequence[Slice]], Sequence[tuple[np.ndarray, np.ndarray]]]


class Sketches:
    """The sketches in a folder of scores, of one job or of all its shards.

    Raises:
        ResumeError: a folder lacks them, or they are of another version of longgame or rensa than the first one's.
    """

    def __init__(self, scores: str | Path) -> None:
        self.folder = Path(scores)
        self._stores = []
        for folder in shard_folders(self.folder) or [self.folder]:
            if not (folder / NEAR_SKETCH).is_dir():
                raise ResumeError(
                    f"'{folder}' lacks {NEAR_SKETCH}, by which near-duplicates are found. Compute it into that folder: "
                    f"longgame score … --signals {NEAR_SKETCH}."
                )
            self._stores.append(SignalStore(folder / NEAR_SKETCH))
        check_sketches(self._stores)
        self.version = self._stores[0].fingerprint
        self._ends = np.cumsum([len(store) for store in self._stores])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def rows_of(self, table: ScoreFolder) -> Int[np.ndarray, " n"]:
        """Return the row of each row of the scores among the sketches, which have rows without scores, too.

        Raises:
            ResumeError: the sketches are of other data.
        """
        parts = []
        starts = self._ends - [len(store) for store in self._stores]
        for folder, start, store, ids in zip(table.folders, starts, self._stores, table.ids_of_folders(), strict=True):
            if len(ids) == len(store) and np.array_equal(ids.fixed(), store.ids.fixed()):
                parts.append(start + np.arange(len(ids)))
                continue
            places = np.full(len(ids), -1, dtype=np.int64)
            sketched = enumerate(store.ids, int(start))
            for row, sample_id in enumerate(ids):
                places[row] = next((place for place, other in sketched if other == sample_id), -1)
            if len(places) and places.min() < 0:
                row = int(places.argmin())
                raise ResumeError(
                    f"'{folder / NEAR_SKETCH}' lacks the sketch of {ids[row]}, which was scored. Delete that folder, "
                    f"and run longgame score … --signals {NEAR_SKETCH} again."
                )
            parts.append(places)
        return np.concatenate(parts)

    def take(self, column: str, rows: Int[np.ndarray, " k"]) -> UInt32[np.ndarray, "k width"]:
        """Values of a column at these rows; digests are not checked."""
        if len(self._stores) == 1:
            return self._stores[0].column(column)[rows]
        values = np.empty((len(rows), _WIDTH), dtype=np.uint32)
        place = np.searchsorted(self._ends, rows, side="right")
        for number, store in enumerate(self._stores):
            inside = np.flatnonzero(place == number)
            if len(inside):
                values[inside] = store.column(column)[rows[inside] - (self._ends[number] - len(store))]
        return values

    def shared(self, question: Slice) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " g"]]:
        """Return rows that share their value, group after group, rising in each; and the sizes of the groups.

        Two values may share a group by chance (1 in 2⁶⁴ pairs). Digests of the column are checked with its first slice.

        Raises:
            ResumeError: the column is damaged.
        """
        rows, keys = [], []
        start = 0
        for store in self._stores:
            if not question.number:
                store.verify([question.column])
            for first in range(0, len(store), _READ):
                values = _keys(store.column(question.column)[first : first + _READ])
                chosen = values % np.uint64(question.count) == question.number
                chosen &= ~_bits(question.without, start + first, len(values))
                places = np.flatnonzero(chosen)
                rows.append(start + first + places)
                keys.append(values[places])
            start += len(store)
        row, key = np.concatenate(rows), np.concatenate(keys)
        del rows, keys
        order = np.argsort(key, kind="stable")
        key = key[order]
        same = key[1:] == key[:-1]
        member = (np.r_[False, same] | np.r_[same, False])[: len(key)]
        begins = np.flatnonzero(np.r_[True, ~same][: len(key)][member])
        return row[order[member]], np.diff(np.r_[begins, member.sum()])

    def repeats(self, threshold: float, ask: Ask, order: Int[np.ndarray, " m"] | None = None) -> Int[np.ndarray, " n"]:
        """Return for each row the first earlier one that stays and that it nearly repeats, −1 where there is none.

        Rows with equal sketches are set aside first; of the others only those are compared that share a band.

        Args:
            threshold: share of equal values of near-duplicates.
            ask: answers questions as `shared` does.
            order: rows in the order in which they are considered; others take no part. None: all, as they come.
        """
        place = np.arange(len(self)) if order is None else np.full(len(self), -1, dtype=np.int64)
        if order is not None:
            place[order] = np.arange(len(order))
        absent = place < 0
        twins, firsts = self._twins(ask(self._questions([_WHOLE], absent)), place)
        absent[twins] = True
        rows, places, groups = [], [], []
        count = 0
        for members, sizes in ask(self._questions(_BAND, absent)):
            rows.append(members)
            places.append(place[members])
            groups.append(count + np.repeat(np.arange(len(sizes)), sizes))
            count += len(sizes)
        row, position, group = (np.concatenate(parts) for parts in (rows, places, groups))
        del rows, places, groups
        in_order = np.argsort(position, kind="stable")
        row, group = row[in_order], group[in_order]
        last = np.r_[row[1:] != row[:-1], True][: len(row)]
        ends, row = np.flatnonzero(last) + 1, row[last]
        leaders = repeated(ends, group, lambda later, earlier: self._near(row[later], row[earlier], threshold))
        result = np.full(len(self), -1, dtype=np.int64)
        repeating = leaders >= 0
        result[row[repeating]] = row[leaders[repeating]]
        result[twins] = np.where(result[firsts] < 0, firsts, result[firsts])
        return result

    def _questions(self, columns: Sequence[str], absent: Bool[np.ndarray, " n"]) -> list[Slice]:
        count = -(-len(self) // _SLICE)
        without = np.packbits(absent) if absent.any() else np.zeros(0, dtype=np.uint8)
        return [Slice(column, number, count, without) for column in columns for number in range(count)]

    def _twins(
        self, answers: Sequence[tuple[np.ndarray, np.ndarray]], place: Int[np.ndarray, " n"]
    ) -> tuple[Int[np.ndarray, " t"], Int[np.ndarray, " t"]]:
        """Rows with the sketch of an earlier one, and the first of each."""
        twins, firsts = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
        for rows, sizes in answers:
            group = np.repeat(np.arange(len(sizes)), sizes)
            rows = rows[np.lexsort((place[rows], group))]
            first = rows[np.repeat(np.cumsum(sizes) - sizes, sizes)]
            equal = (self.take(_WHOLE, rows) == self.take(_WHOLE, first)).all(axis=1)
            twin = equal & (rows != first)
            twins.append(rows[twin])
            firsts.append(first[twin])
        return np.concatenate(twins), np.concatenate(firsts)

    def _near(
        self, rows: Int[np.ndarray, " p"], others: Int[np.ndarray, " p"], threshold: float
    ) -> Bool[np.ndarray, " p"]:
        """Which of these pairs share a band, and at least so many values."""
        equal = np.zeros(len(rows), dtype=np.int64)
        banded = np.zeros(len(rows), dtype=bool)
        for column in _BAND:
            same = self.take(column, rows) == self.take(column, others)
            equal += same.sum(axis=1)
            banded |= same.all(axis=1)
        return banded & (equal / PERMUTATIONS >= threshold)


def check_sketches(stores: Sequence[SignalStore]) -> None:
    """Raise ResumeError where sketches are of another version of longgame or rensa than the first ones."""
    for store in stores:
        if store.fingerprint.partition(", by ")[0] != SKETCH:
            raise ResumeError(
                f"'{store.path}' holds sketches of {store.fingerprint}; this longgame compares {SKETCH}. Delete that "
                f"folder, and run longgame score … --signals {NEAR_SKETCH} again."
            )
        if store.fingerprint != stores[0].fingerprint:
            raise ResumeError(
                f"'{store.path}' holds sketches of {store.fingerprint}; '{stores[0].path}' of {stores[0].fingerprint}. "
                f"Delete one of them, and run longgame score … --signals {NEAR_SKETCH} again, with the same rensa."
            )


def _keys(values: UInt32[np.ndarray, "m width"]) -> UInt64[np.ndarray, " m"]:
    """Hash the values of a band."""
    words = np.ascontiguousarray(values).view(np.uint64)
    keys = np.zeros(len(words), dtype=np.uint64)
    for column in words.T:
        keys = (keys ^ column) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(32)
    return keys


def _bits(packed: np.ndarray, start: int, n: int) -> Bool[np.ndarray, " n"]:
    """Bits ``start`` to ``start + n`` of a packed mask; an empty one has none."""
    if not len(packed):
        return np.zeros(n, dtype=bool)
    first = start // 8
    return np.unpackbits(packed[first : -(-(start + n) // 8)])[start - 8 * first :][:n].astype(bool)
