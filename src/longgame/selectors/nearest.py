"""Squared distance to the nearest of a growing set of points, exact to the last bit and in blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from longgame.products import products_on
from longgame.selectors.pairs import Cloud, PairFilter, scale_of

_PREPARED = 4096
"""Points that are held ready for products at once."""
_CELLS = 1024
"""Pairs evaluated directly at a time."""
_FEW = 8192
"""Fewer pairs than this are evaluated directly, whatever their share of a product."""
_TOO_MANY = 64
"""Otherwise a finer precision is tried where more than one pair in so many would be."""
_FAILURES = 8
"""Failures of a precision, most of the times it was tried, after which the next finer one comes first."""

_KEPT = 1 << 28
"""Bytes of prepared rows that `Nearest.lower_all` keeps from one call to the next."""


class Nearest:
    """For each row the squared distance to the nearest point met so far, bit for bit that of direct differences.

    Pairs that cannot lower a distance are excluded by matrix products (`PairFilter`); the few others are evaluated by
    the differences of the two rows in their own precision, so that nothing depends on blocks, device or threads.

    Args:
        rows: float32 or float64, C-contiguous, finite; not copied.
        centre: anything near the rows' mean; it changes the speed alone.
        others: points to be met that are not among the rows (`others` of the object).
        device: where products run.
    """

    def __init__(
        self,
        rows: Float[np.ndarray, "n d"],
        centre: Float[np.ndarray, " d"],
        others: Float[np.ndarray, "m d"] | None = None,
        device: str = "cpu",
    ) -> None:
        points = None if others is None else np.ascontiguousarray(others, dtype=rows.dtype)
        scale = scale_of(rows) if points is None else scale_of(rows, points)
        self.products = products_on(device, rows.size)
        self.cloud = Cloud(rows, centre, scale)
        """The rows."""
        self.others = None if points is None else Cloud(points, centre, scale)
        self.squared = np.full(len(rows), np.inf, dtype=rows.dtype)
        """The distances; infinite before the first point."""
        width = rows.shape[1]
        self.filters = [PairFilter(width, rows.dtype, scale, self.products, level) for level in self.products.levels]
        self.base = 0
        """The filter to begin with; finer ones stand behind it."""
        self._tried = self._failed = 0
        self._kept: dict[tuple[int, int], Any] = {}
        self._room = _KEPT

    def lower_all(self, cloud: Cloud, index: Int[np.ndarray, " p"]) -> None:
        """`lower` for all rows; up to 256 MiB of them are made ready for products once, for all calls.

        A row whose distance is 0 takes no part, so that setting it to 0 leaves a row out.
        """
        self.lower(np.arange(len(self.squared)), cloud, index, keep=True)

    def lower(
        self,
        rows: Int[np.ndarray, " m"],
        cloud: Cloud,
        index: Int[np.ndarray, " p"],
        since: Int[np.ndarray, " m"] | None = None,
        until: Int[np.ndarray, " m"] | None = None,
        keep: bool = False,
    ) -> None:
        """Let rows meet these points of ``cloud`` (the object's own or its others).

        Args:
            rows: different rows.
            cloud: where the points are.
            index: which they are.
            since: how many of them each row has met before; fastest where rows stand in the order of it.
            until: how many of them each row meets (more than there are: all).
            keep: blocks of rows are the same in every call that says so, and made ready for products once.
        """
        height = self.products.rows
        for begin in range(0, len(index), _PREPARED):
            piece = index[begin : begin + _PREPARED]
            right: dict[int, Any] = {}
            for start in range(0, len(rows), height):
                part = slice(start, start + height)
                if since is not None and since[part].min() >= begin + len(piece):
                    continue
                valid = None if until is None else until[part] - begin
                if valid is not None:
                    if valid.max() <= 0:
                        continue
                    valid = None if valid.min() >= len(piece) else valid
                self._sharpen()
                for place in range(self.base, len(self.filters)):
                    if place not in right:
                        right[place] = self.filters[place].picks(cloud, piece)
                    left = self._left(place, rows[part], start, keep)
                    if self._tile(place, rows[part], left, cloud, piece, right[place], valid):
                        break
                    self._failed += place == self.base
                self._tried += 1

    def _sharpen(self) -> None:
        """Begin with a finer filter where the present one failed most of the time."""
        if self._failed > _FAILURES and 2 * self._failed > self._tried:
            self.base, self._tried, self._failed = self.base + 1, 0, 0
            self._kept, self._room = {}, _KEPT

    def _left(self, place: int, rows: Int[np.ndarray, " m"], start: int, keep: bool) -> Any:
        """A block of rows ready for products: the one that was kept, or made now."""
        if keep and (place, start) in self._kept:
            return self._kept[place, start]
        left = self.filters[place].candidates(self.cloud, rows)
        size = len(rows) * self.cloud.rows.shape[1] * self.cloud.rows.itemsize
        if keep and size <= self._room:
            self._kept[place, start] = left
            self._room -= size
        return left

    def _tile(
        self,
        place: int,
        rows: Int[np.ndarray, " m"],
        left: Any,
        cloud: Cloud,
        index: Int[np.ndarray, " p"],
        right: Any,
        valid: Int[np.ndarray, " m"] | None,
    ) -> bool:
        """`lower` for one block of rows; False if a finer precision would exclude more pairs."""
        used = self.filters[place]
        norms = self.cloud.norms[rows]
        tau = used.thresholds(norms, self.squared[rows])
        width = self.products.rows
        for start in range(0, len(index), width):
            product = used.product(left, self.products.part(right, start, start + width))
            hit = np.flatnonzero(self.products.row_max(product) >= tau)
            if not len(hit):
                continue
            values = self.products.host(product, None if len(hit) == len(rows) else hit)
            if valid is not None:
                values[np.arange(start, start + values.shape[1]) >= valid[hit, None]] = -np.inf
                kept = values.max(axis=1) >= tau[hit]
                hit, values = hit[kept], values[kept]
            likely = values.argmax(axis=1)
            self._evaluate(rows[hit], cloud, index[start + likely])
            tau[hit] = used.thresholds(norms[hit], self.squared[rows[hit]])
            values[np.arange(len(hit)), likely] = -np.inf
            at, column = np.nonzero(values >= tau[hit, None])
            if len(at) > _FEW and len(at) * _TOO_MANY > len(rows) * width and place + 1 < len(self.filters):
                return False
            self._evaluate(rows[hit[at]], cloud, index[start + column])
            if start + width < len(index):
                tau[hit] = used.thresholds(norms[hit], self.squared[rows[hit]])
        return True

    def _evaluate(self, rows: Int[np.ndarray, " c"], cloud: Cloud, index: Int[np.ndarray, " c"]) -> None:
        """Lower the distances of rows (a row may stand more than once) by one point each, directly."""
        for start in range(0, len(rows), _CELLS):
            part = rows[start : start + _CELLS]
            difference = self.cloud.rows[part]
            np.subtract(difference, cloud.rows[index[start : start + _CELLS]], out=difference)
            np.minimum.at(self.squared, part, np.square(difference, out=difference).sum(axis=1))
