"""One exact cut over the parts of a pool: the picks of `fill_by_score`, with no part's rows gathered.

The rows of a part stay where they are. A part answers three questions, in bounded space: quantiles of its ranking with
their costs (`RankedPart.sketch`), the rows between two places of the ranking (`between`), and the first rows behind a
place that cost at most so much (`behind`). `exact_cut` asks all parts two to three times.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from longgame.errors import BudgetError
from longgame.selection.budget import by_score

_EDGES = 1024
"""Quantiles of a part: the cut lies between two neighbors, so a part sends about one row in so many."""
_TAIL = 1024
"""Rows of a part that are looked at together for what the budget still holds behind the cut."""

Place = tuple[float, str]
"""Place in the ranking of all rows: (−score, id); a smaller one is picked first."""


@dataclass(frozen=True)
class Sketch:
    """What a part says of its ranking."""

    places: tuple[Place, ...]
    """Rising; the last one is that of the part's last row."""
    costs: Int[np.ndarray, " edges"]
    """Cost of all rows up to each of these places."""
    least: int
    """Cost of the cheapest row; 0 where the part has none."""
    rows: int
    """That may be picked."""


@dataclass(frozen=True)
class Stretch:
    """Rows of a part, in the order of the ranking."""

    rows: Int[np.ndarray, " r"]
    places: tuple[Place, ...]
    costs: Int[np.ndarray, " r"]
    before: int
    """Cost of all rows of the part before the stretch."""
    complete: bool
    """Whether there is no further row of that kind."""


@dataclass(frozen=True)
class Cut:
    """What is picked: all rows up to a place, and some behind it."""

    place: Place | None
    """None: no row is picked for its place alone."""
    rows: tuple[Int[np.ndarray, " r"], ...]
    """Of each part, the further picks."""
    spent: int


class RankedPart:
    """The rows of one part by falling score, ties by id.

    Args:
        score: NaN: never picked.
        ids, costs: of the same rows.
    """

    def __init__(self, score: Float[np.ndarray, " n"], ids: tuple[str, ...], costs: Int[np.ndarray, " n"]) -> None:
        self._keys = -np.asarray(score, dtype=np.float64)
        self._ids = ids
        self._order = by_score(np.flatnonzero(~np.isnan(self._keys)), self._keys, ids)
        self._costs = np.asarray(costs, dtype=np.int64)[self._order]
        self._spent = np.cumsum(self._costs)

    def place(self, number: int) -> Place:
        """Place of the part's ``number``-th best row."""
        row = int(self._order[number])
        return float(self._keys[row]), self._ids[row]

    def sketch(self) -> Sketch:
        """Quantiles of the ranking."""
        n = len(self._order)
        edges = (
            np.unique(np.linspace(0, n - 1, min(n, _EDGES)).round().astype(np.int64)) if n else np.zeros(0, np.int64)
        )
        places = tuple(self.place(number) for number in edges.tolist())
        return Sketch(places, self._spent[edges], int(self._costs.min()) if n else 0, n)

    def count_to(self, place: Place | None) -> int:
        """Number of rows up to a place, this one included."""
        return 0 if place is None else bisect_right(range(len(self._order)), place, key=self.place)

    def rows_to(self, place: Place | None) -> Int[np.ndarray, " r"]:
        """The rows up to a place, in the order of the ranking."""
        return self._order[: self.count_to(place)]

    def between(self, low: Place | None, high: Place) -> Stretch:
        """The rows behind ``low`` and up to ``high``."""
        start, stop = self.count_to(low), self.count_to(high)
        return self._stretch(np.arange(start, stop), start, True)

    def behind(self, place: Place, most: int) -> Stretch:
        """The first rows behind a place that cost at most ``most``."""
        start = self.count_to(place)
        numbers = start + np.flatnonzero(self._costs[start:] <= most)
        return self._stretch(numbers[:_TAIL], start, len(numbers) <= _TAIL)

    def _stretch(self, numbers: Int[np.ndarray, " r"], start: int, complete: bool) -> Stretch:
        places = tuple(self.place(number) for number in numbers.tolist())
        before = int(self._spent[start - 1]) if start else 0
        return Stretch(self._order[numbers], places, self._costs[numbers], before, complete)


Between = Callable[[Place | None, Place], Sequence[Stretch]]
Behind = Callable[[Place, int], Sequence[Stretch]]


def exact_cut(sketches: Sequence[Sketch], budget: int, between: Between, behind: Behind) -> Cut:
    """Return what `fill_by_score` picks of the rows of all parts together, ties by id.

    The costs at the quantiles bound the cost of all rows up to any place from both sides. So two quantiles are known
    between which the budget ends: what lies before is picked, what lies between is gathered and walked. Behind it only
    rows that cost at most what is left may still be picked; they are asked for in stretches.

    Args:
        sketches: of every part.
        budget: what may be spent.
        between, behind: the answers of all parts to `RankedPart.between` and `RankedPart.behind`.

    Raises:
        BudgetError: no row fits, or the budget is not positive.
    """
    least = min((sketch.least for sketch in sketches if sketch.rows), default=0)
    if budget <= 0 or not least or least > budget:
        rows = sum(sketch.rows for sketch in sketches)
        raise BudgetError(
            f"a budget of {budget} holds none of {rows} candidates (the shortest has {least}). Raise `budget`."
        )
    low, high = _bracket(sketches, budget)
    picks: list[list[int]] = [[] for _ in sketches]
    if high is None:  # the budget holds all rows
        return Cut(low, tuple(np.zeros(0, dtype=np.int64) for _ in sketches), _total(sketches))
    stretches = between(low, high)
    left = budget - sum(stretch.before for stretch in stretches)
    left, place = _walk(stretches, left, picks, high)
    while left >= least:
        stretches = behind(place, left)
        if not any(len(stretch.rows) for stretch in stretches):
            break
        open_ends = [stretch.places[-1] for stretch in stretches if not stretch.complete]
        left, place = _walk(stretches, left, picks, min(open_ends) if open_ends else None)
        if not open_ends:
            break
    return Cut(low, tuple(np.asarray(rows, dtype=np.int64) for rows in picks), budget - left)


def _total(sketches: Sequence[Sketch]) -> int:
    return sum(int(sketch.costs[-1]) for sketch in sketches if sketch.rows)


def _bracket(sketches: Sequence[Sketch], budget: int) -> tuple[Place | None, Place | None]:
    """The last quantile up to which all rows fit for certain, and the first up to which they cannot.

    Between two quantiles of a part its cost is at least that at the first and at most that at the second.
    """
    edges = heapq.merge(
        *([(place, part, number) for number, place in enumerate(sketch.places)] for part, sketch in enumerate(sketches))
    )
    at_least = at_most = 0
    low: Place | None = None
    for place, part, number in edges:
        costs = sketches[part].costs
        cost, last = int(costs[number]), number + 1 == len(costs)
        at_least += cost - (int(costs[number - 1]) if number else 0)
        if at_least > budget:
            return low, place
        at_most += cost if not number else 0
        if at_most <= budget:
            low = place
        at_most += 0 if last else int(costs[number + 1]) - cost
    return low, None


def _walk(stretches: Sequence[Stretch], left: int, picks: list[list[int]], end: Place | None) -> tuple[int, Place]:
    """Pick in the order of the ranking what still fits, up to a place; return what is left, and that place."""
    merged = heapq.merge(
        *(
            zip(stretch.places, [part] * len(stretch.rows), stretch.rows.tolist(), stretch.costs.tolist(), strict=True)
            for part, stretch in enumerate(stretches)
        )
    )
    place: Place = (np.inf, "")
    for place, part, row, cost in merged:
        if end is not None and place > end:
            break
        if cost <= left:
            picks[part].append(row)
            left -= cost
    return left, place if end is None else end
