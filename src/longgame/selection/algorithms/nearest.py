"""Distances and cosines between candidates and points, exact to the last bit and in blocks of bounded memory.

`Nearest` keeps each row's distance to the nearest of a growing set of points. `PairFilter` excludes most pairs by
matrix products with a proven rounding bound; the few others are evaluated by direct differences. `threshold_diverse` is
DEITA's filter on top of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from longgame.selection.algorithms.products import Level, Products, products_on

_BLOCK_CELLS = 1 << 21
"""Cells of one block of a candidates × references matrix (16 MiB in float64)."""
_COINCIDE = 1e-12
"""Squared distance, relative to the squared norms, below which two float32 rows are the same point."""
_STEP = 2048
"""Rows converted or subtracted at a time."""
_PREPARED = 4096
"""Points that are prepared for products at once."""
_PAIRS = 1024
"""Pairs evaluated directly at a time."""
_FEW = 8192
"""Fewer pairs than this are evaluated directly, whatever their share of a product."""
_TOO_MANY = 64
"""Above `_FEW`, a finer precision is tried if more than one pair in so many would be evaluated."""
_FAILURES = 8
"""After more failures than this, in most of its attempts, a precision gives way to the next finer one."""
_PREPARED_BYTES = 1 << 28
"""Bytes of prepared rows that `Nearest.lower` with ``keep`` reuses in later calls."""
_UNSCALED = 2.0**30
"""Rows whose largest entry lies between this and its inverse are used as they are."""
_THRESHOLD_BLOCK = 1024
"""Rows of one block of `threshold_diverse`."""


def mean_distance(rows: Float[np.ndarray, "n d"], references: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " n"]:
    """Mean L2 distance of each row to the references; zero for every row without references.

    Sums run in float64 and are rounded to float32, the precision of the signals, so equal rows get equal values
    wherever they stand in the matrix product.
    """
    mean = np.zeros(len(rows), dtype=np.float32)
    if not len(references):
        return mean
    points = np.asarray(references, dtype=np.float64)
    point_norms = np.einsum("md,md->m", points, points)
    step = max(1, _BLOCK_CELLS // max(len(points), points.shape[1]))
    for start in range(0, len(rows), step):
        block = np.asarray(rows[start : start + step], dtype=np.float64)
        norms = np.einsum("nd,nd->n", block, block)[:, None] + point_norms
        squared = norms - 2.0 * (block @ points.T)
        squared[squared < _COINCIDE * norms] = 0.0
        mean[start : start + step] = np.sqrt(squared, out=squared).mean(axis=1)
    return mean


def squared_to(rows: Float[np.ndarray, "n d"], point: Float[np.ndarray, " d"]) -> Float[np.ndarray, " n"]:
    """Squared L2 distance of each row to one point by direct differences (no cancellation), in the rows' dtype."""
    squared = np.empty(len(rows), dtype=rows.dtype)
    for start in range(0, len(rows), _STEP):
        difference = rows[start : start + _STEP] - point
        squared[start : start + _STEP] = np.square(difference, out=difference).sum(axis=1)
    return squared


def cosine(rows: Float[np.ndarray, "n d"], direction: Float[np.ndarray, " d"]) -> Float[np.ndarray, " n"]:
    """Cosine of each row with the direction, in [−1, 1]; zero if either of the two is the zero vector."""
    values = np.asarray(rows, dtype=np.float64)
    axis = np.asarray(direction, dtype=np.float64)
    norms = np.sqrt(np.einsum("nd,nd->n", values, values)) * np.sqrt(axis @ axis)
    cosines = np.divide(values @ axis, norms, out=np.zeros(len(values)), where=norms > 0)
    return np.clip(cosines, -1.0, 1.0).astype(np.float32)


def unit_rows(rows: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m d"]:
    """Rows at length 1, float32, computed row by row in float64; a zero row stays zero."""
    unit = rows.astype(np.float64)
    unit /= np.maximum(np.abs(unit).max(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    norms = np.sqrt(np.square(unit).sum(axis=1, keepdims=True))
    return np.divide(unit, norms, out=unit, where=norms > 0).astype(np.float32)


def scale_of(*clouds: Float[np.ndarray, "n d"]) -> float:
    """1, or the power of two that brings the largest entry near 1 if it is far from it."""
    largest = max((max(abs(float(rows.max())), abs(float(rows.min()))) for rows in clouds if rows.size), default=0.0)
    if largest == 0.0 or 1.0 / _UNSCALED < largest < _UNSCALED:
        return 1.0
    return float(np.ldexp(1.0, min(-int(np.frexp(largest)[1]), 1000)))


class Cloud:
    """Rows and their norms about a center, prepared for products in blocks; never copied as a whole.

    Args:
        rows: float32 or float64, C-contiguous, finite.
        center: subtracted first, so that a common mean does not widen the bound.
        scale: a power of two that brings the rows near 1 (`scale_of`); distances are those of scaled rows.
    """

    def __init__(self, rows: Float[np.ndarray, "n d"], center: Float[np.ndarray, " d"], scale: float) -> None:
        self.rows, self.center, self.scale = rows, center, scale
        self.norms: Float[np.ndarray, " n"] = np.empty(len(rows))
        for start in range(0, len(rows), _STEP):
            block = self._centered(rows[start : start + _STEP])
            np.einsum("nd,nd->n", block, block, out=self.norms[start : start + _STEP])

    def _centered(self, rows: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m d"]:
        return rows.astype(np.float64) * self.scale - self.center.astype(np.float64) * self.scale

    def put_centered(self, index: Int[np.ndarray, " m"], into: Float[np.ndarray, "m d"]) -> None:
        """Write rows minus the center, correct to one rounding of ``into``'s precision."""
        block = self.rows[index]
        if self.scale != 1.0 or into.dtype == np.float64:
            into[:] = self._centered(block)
        else:
            np.subtract(block, self.center, out=into, casting="same_kind")


class PairFilter:
    """Products of the rows of two clouds about one center, with the bound that makes them a filter.

    With N the squared norms about the center and ŝ the computed product of x and p, the distance that `squared_to`
    computes is at least (1 − g)·[(1 − κ)(N_x + N_p) − 2ŝ] − tiny, where

    - κ = (1 + η)²(1 + γ) − 1 + γ + d·2⁻⁵¹, with η the error of a centered value in the level's precision and γ = (d +
      3)·(error of one addition): all rounding of a product together is at most κ·Σ|x_j p_j| ≤ κ(N_x + N_p)/2
      (Higham 2002, §3.1, and the inequality of the means);
    - g = (d + 3)·(unit roundoff of the rows' precision): direct differences, their squares, and the sum;
    - tiny: what underflow can take away.

    Solved for ŝ: the distance is not below a limit L unless ŝ − β_p ≥ τ_x, with β_p = ½(1 − κ)N_p and
    τ_x = ½[(1 − κ)N_x − (L + tiny)/(1 − g)]. −β_p is a column of the product itself. Rounding is monotone, so the
    comparison holds in whatever precision the product comes back, with τ rounded down to that.

    Args:
        width: d.
        dtype: precision of the rows and of their direct differences.
        scale: of the clouds.
        products: where they run.
        level: their precision.
    """

    def __init__(self, width: int, dtype: np.dtype, scale: float, products: Products, level: Level) -> None:
        self.products, self.level = products, level
        self._width, self._square = width, scale * scale
        limits = np.finfo(dtype)
        self._slope = 0.5 / (1.0 - min((width + 3) * float(limits.eps) / 2, 0.5))
        self._tiny = 8 * width * (self._square * float(limits.tiny) + 2.0**-126)
        gamma = (width + 3) * level.accumulation
        kappa = (1 + level.rounding) ** 2 * (1 + gamma) - 1 + 1.02 * gamma + width * 2.0**-51
        self._norm_share = 0.5 * (1.0 - min(kappa, 1.0))

    def candidates(self, cloud: Cloud, index: Int[np.ndarray, " m"]) -> Any:
        """Left side of a product, [m, d + 3]: centered rows and three ones."""
        block = self._block(cloud, index)
        block[:, self._width :] = 1.0
        return self.products.put(block, self.level)

    def picks(self, cloud: Cloud, index: Int[np.ndarray, " m"]) -> Any:
        """Right side of a product, [m, d + 3]: centered rows, then −β in three parts that bfloat16 holds exactly."""
        block = self._block(cloud, index)
        remainder = -self._down(self._norm_share * cloud.norms[index])
        for column in range(self._width, self._width + 3):
            block[:, column] = remainder if self.level.name != "bfloat16" else _cut(remainder)
            remainder = remainder - block[:, column]
        return self.products.put(block, self.level)

    def _block(self, cloud: Cloud, index: Int[np.ndarray, " m"]) -> np.ndarray:
        dtype = np.float64 if self.level.name == "float64" else np.float32
        block = np.empty((len(index), self._width + 3), dtype=dtype)
        cloud.put_centered(index, block[:, : self._width])
        return block

    def thresholds(self, norms: Float[np.ndarray, " m"], limit: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        """τ: a pair with a smaller product is at least ``limit`` (a squared distance) apart; ∞ where that is 0."""
        limits = limit.astype(np.float64)
        tau = self._down(self._norm_share * norms - self._slope * (limits * self._square + self._tiny))
        if self.level.name == "bfloat16":
            tau = -_cut(-tau, up=True)
        tau[limits <= 0] = np.inf
        return tau

    def _down(self, values: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        """Values moved down by more than the error of their formula, to numbers that the product's precision holds."""
        if self.level.name == "float64":
            return values - np.abs(values) * 2.0**-48
        lower = (values - np.abs(values) * 2.0**-40).astype(np.float32)
        return np.nextafter(lower, np.float32(-np.inf)).astype(np.float64)


def _cut(values: Float[np.ndarray, " m"], up: bool = False) -> Float[np.ndarray, " m"]:
    """The upper half of float32 numbers, which is a bfloat16: towards zero, or (``up``) the next above or equal."""
    bits = values.astype(np.float32).view(np.int32)
    if up:
        bits = np.where(bits >= 0, bits + 0xFFFF, bits)
    return (bits & np.int32(-0x10000)).view(np.float32)


class Nearest:
    """For each row the squared distance to the nearest point so far, bit for bit that of direct differences.

    Pairs that cannot lower a distance are excluded by matrix products (`PairFilter`). The few others are evaluated by
    the differences of the two rows in their own precision, so nothing depends on blocks, device or threads.

    Args:
        rows: float32 or float64, C-contiguous, finite; not copied.
        center: anything near the rows' mean; it changes only the speed.
        others: points that are not among the rows (`others` of the object).
        device: where products run.
    """

    def __init__(
        self,
        rows: Float[np.ndarray, "n d"],
        center: Float[np.ndarray, " d"],
        others: Float[np.ndarray, "m d"] | None = None,
        device: str = "cpu",
    ) -> None:
        points = None if others is None else np.ascontiguousarray(others, dtype=rows.dtype)
        scale = scale_of(rows) if points is None else scale_of(rows, points)
        self.products = products_on(device, rows.size)
        self.cloud = Cloud(rows, center, scale)
        """The rows."""
        self.others = None if points is None else Cloud(points, center, scale)
        self.squared = np.full(len(rows), np.inf, dtype=rows.dtype)
        """The squared distances; infinite before the first point."""
        width = rows.shape[1]
        self.filters = [PairFilter(width, rows.dtype, scale, self.products, level) for level in self.products.levels]
        self.base = 0
        """The filter to begin with; finer ones follow."""
        self._tried = self._failed = 0
        self._prepared: dict[tuple[int, int], Any] = {}
        self._room = _PREPARED_BYTES

    def lower(
        self,
        rows: Int[np.ndarray, " m"],
        cloud: Cloud,
        index: Int[np.ndarray, " p"],
        since: Int[np.ndarray, " m"] | None = None,
        until: Int[np.ndarray, " m"] | None = None,
        keep: bool = False,
    ) -> None:
        """Lower the distances of rows by these points of ``cloud`` (the object's own or its others).

        Args:
            rows: different rows; one whose distance is 0 takes no part.
            cloud: where the points are.
            index: their rows in the cloud.
            since: how many of the points each row has met before; fastest in rising order.
            until: how many of the points each row meets (more than there are: all).
            keep: reuse the prepared blocks of rows in later calls with the same rows.
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
                self._refine()
                for place in range(self.base, len(self.filters)):
                    if place not in right:
                        right[place] = self.filters[place].picks(cloud, piece)
                    left = self._left(place, rows[part], start, keep)
                    if self._lower_block(place, rows[part], left, cloud, piece, right[place], valid):
                        break
                    self._failed += place == self.base
                self._tried += 1

    def _refine(self) -> None:
        """Begin with a finer filter if the present one failed most of the time."""
        if self._failed > _FAILURES and 2 * self._failed > self._tried:
            self.base, self._tried, self._failed = self.base + 1, 0, 0
            self._prepared, self._room = {}, _PREPARED_BYTES

    def _left(self, place: int, rows: Int[np.ndarray, " m"], start: int, keep: bool) -> Any:
        """A block of rows prepared for products, now or in an earlier call."""
        if keep and (place, start) in self._prepared:
            return self._prepared[place, start]
        left = self.filters[place].candidates(self.cloud, rows)
        size = len(rows) * self.cloud.rows.shape[1] * self.cloud.rows.itemsize
        if keep and size <= self._room:
            self._prepared[place, start] = left
            self._room -= size
        return left

    def _lower_block(
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
        pairs = self.filters[place]
        norms = self.cloud.norms[rows]
        tau = pairs.thresholds(norms, self.squared[rows])
        width = self.products.rows
        for start in range(0, len(index), width):
            product = self.products.product(left, self.products.part(right, start, start + width))
            hit = np.flatnonzero(self.products.row_max(product) >= tau)
            if not len(hit):
                continue
            values = self.products.host(product, None if len(hit) == len(rows) else hit)
            if valid is not None:
                values[np.arange(start, start + values.shape[1]) >= valid[hit, None]] = -np.inf
                close = values.max(axis=1) >= tau[hit]
                hit, values = hit[close], values[close]
            likely = values.argmax(axis=1)
            self._evaluate(rows[hit], cloud, index[start + likely])
            tau[hit] = pairs.thresholds(norms[hit], self.squared[rows[hit]])
            values[np.arange(len(hit)), likely] = -np.inf
            at, column = np.nonzero(values >= tau[hit, None])
            if len(at) > _FEW and len(at) * _TOO_MANY > len(rows) * width and place + 1 < len(self.filters):
                return False
            self._evaluate(rows[hit[at]], cloud, index[start + column])
            if start + width < len(index):
                tau[hit] = pairs.thresholds(norms[hit], self.squared[rows[hit]])
        return True

    def _evaluate(self, rows: Int[np.ndarray, " c"], cloud: Cloud, index: Int[np.ndarray, " c"]) -> None:
        """Lower the distances of rows (one may appear more than once) by one point each, directly."""
        for start in range(0, len(rows), _PAIRS):
            part = slice(start, start + _PAIRS)
            squared = squared_differences(self.cloud.rows[rows[part]], cloud.rows[index[part]])
            np.minimum.at(self.squared, rows[part], squared)


def squared_differences(left: Float[np.ndarray, "c d"], right: Float[np.ndarray, "c d"]) -> Float[np.ndarray, " c"]:
    """Squared L2 distance of each pair of rows; ``left`` is overwritten."""
    np.subtract(left, right, out=left)
    return np.square(left, out=left).sum(axis=1)


def threshold_diverse(
    embeddings: Float[np.ndarray, "n d"],
    order: Int[np.ndarray, " m"],
    tokens: Int[np.ndarray, " n"],
    budget: int,
    threshold: float,
    device: str = "cpu",
) -> tuple[Int[np.ndarray, " k"], Bool[np.ndarray, " n"]]:
    """Pick, in this order, each row that fits and whose cosine with every pick so far is below the threshold.

    The filter of DEITA (Liu et al. 2024, arXiv 2312.15685, §2.4). The cosine of unit rows is 1 − ½·(squared distance),
    and the distance is evaluated by direct differences in float32, so the result is that of the loop over single rows
    (a zero row counts as 60° from every other). Pairs that are provably far enough apart are excluded by one matrix
    product per block (`Nearest`).

    Args:
        embeddings: n candidates.
        order: the rows that may be picked, best first.
        tokens: what each costs; a row that no longer fits at its turn is passed over.
        budget: tokens.
        threshold: cosine, in (−1, 1].
        device: where the products run; it changes no pick.

    Returns:
        The picks in order, and which rows were passed over because they resemble a pick.
    """
    limit = np.nextafter(np.float32(2.0 - 2.0 * threshold), np.float32(np.inf))  # below it: not far enough apart
    width = embeddings.shape[1]
    center = np.zeros(width, dtype=np.float32)
    picked_rows = np.zeros((_THRESHOLD_BLOCK, width), dtype=np.float32)
    picks: list[int] = []
    alike = np.zeros(len(tokens), dtype=bool)
    left, shortest = int(budget), int(tokens.min()) if len(tokens) else 0
    for start in range(0, len(order), _THRESHOLD_BLOCK):
        if left < shortest:
            break
        block = order[start : start + _THRESHOLD_BLOCK]
        block = block[tokens[block] <= left]
        rows = unit_rows(embeddings[block])
        table = Nearest(rows, center, picked_rows[: len(picks)], device)
        table.squared[:] = limit
        if table.others is not None and len(picks):
            table.lower(np.arange(len(rows)), table.others, np.arange(len(picks)))
        blocked = table.squared < limit
        close = _close_pairs(table, rows, np.flatnonzero(~blocked), limit)
        for place in range(len(rows)):
            row = int(block[place])
            if tokens[row] > left:
                continue
            if blocked[place]:
                alike[row] = True
                continue
            if len(picks) == len(picked_rows):
                picked_rows = np.concatenate([picked_rows, np.zeros_like(picked_rows)])
            picked_rows[len(picks)] = rows[place]
            picks.append(row)
            left -= int(tokens[row])
            blocked[close.get(place, [])] = True
    return np.asarray(picks, dtype=np.int64), alike


def _close_pairs(
    table: Nearest, rows: Float[np.ndarray, "m d"], places: Int[np.ndarray, " f"], limit: np.float32
) -> dict[int, list[int]]:
    """For each of these places the later ones that are nearer than the limit."""
    pairs = table.filters[table.base]
    left, right = pairs.candidates(table.cloud, places), pairs.picks(table.cloud, places)
    product = table.products.host(table.products.product(left, right))
    tau = pairs.thresholds(table.cloud.norms[places], np.full(len(places), limit))
    first, second = np.nonzero(np.triu(product >= tau[:, None], 1))
    close: dict[int, list[int]] = {}
    for start in range(0, len(first), _PAIRS):
        earlier, later = places[first[start : start + _PAIRS]], places[second[start : start + _PAIRS]]
        near = squared_differences(rows[earlier], rows[later]) < limit
        for place, other in zip(earlier[near].tolist(), later[near].tolist(), strict=True):
            close.setdefault(place, []).append(other)
    return close
