"""Distances and cosines between candidates and what is remembered, in blocks of bounded memory.

Sums run in float64 and results are rounded to float32, the precision of the signals: two candidates with equal rows
get equal values, whatever their place in the matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from longgame.selection.algorithms.products import Level, Products, products_on

_BLOCK_CELLS = 1 << 21
"""Cells of one block of the candidates × references matrix (16 MiB in float64)."""
_COINCIDE = 1e-12
"""Squared distance, relative to the squared norms, below which two float32 rows are the same point."""


def _blocks(
    rows: Float[np.ndarray, "n d"], references: Float[np.ndarray, "m d"]
) -> Iterator[tuple[slice, Float[np.ndarray, "block m"]]]:
    """Squared distances of the rows to all references, block by block of rows."""
    wide = np.asarray(references, dtype=np.float64)
    reference_norms = np.einsum("md,md->m", wide, wide)
    step = max(1, _BLOCK_CELLS // max(len(wide), wide.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        block = np.asarray(rows[part], dtype=np.float64)
        norms = np.einsum("nd,nd->n", block, block)[:, None] + reference_norms
        squared = norms - 2.0 * (block @ wide.T)
        squared[squared < _COINCIDE * norms] = 0.0
        yield part, squared


def nearest_squared(rows: Float[np.ndarray, "n d"], references: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " n"]:
    """Squared L2 distance of each row to its nearest reference; infinity where there is no reference."""
    nearest = np.full(len(rows), np.inf, dtype=np.float32)
    if len(references):
        for part, squared in _blocks(rows, references):
            nearest[part] = squared.min(axis=1)
    return nearest


def mean_distance(rows: Float[np.ndarray, "n d"], references: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " n"]:
    """Mean L2 distance of each row to the references; zero for every row where there is no reference."""
    mean = np.zeros(len(rows), dtype=np.float32)
    if len(references):
        for part, squared in _blocks(rows, references):
            mean[part] = np.sqrt(squared, out=squared).mean(axis=1)
    return mean


def squared_to(
    rows: Float[np.ndarray, "n d"], point: Float[np.ndarray, " d"], step: int = 2048
) -> Float[np.ndarray, " n"]:
    """Squared L2 distance of each row to one point by direct differences (no cancellation), in the rows' dtype."""
    result = np.empty(len(rows), dtype=rows.dtype)
    for start in range(0, len(rows), step):
        difference = rows[start : start + step] - point
        result[start : start + step] = np.square(difference, out=difference).sum(axis=1)
    return result


def cosine(rows: Float[np.ndarray, "n d"], direction: Float[np.ndarray, " d"]) -> Float[np.ndarray, " n"]:
    """Cosine of each row with the direction, in [−1, 1]; zero where either of the two is the zero vector."""
    wide = np.asarray(rows, dtype=np.float64)
    axis = np.asarray(direction, dtype=np.float64)
    norms = np.sqrt(np.einsum("nd,nd->n", wide, wide)) * np.sqrt(axis @ axis)
    values = np.divide(wide @ axis, norms, out=np.zeros(len(wide)), where=norms > 0)
    return np.clip(values, -1.0, 1.0).astype(np.float32)


# Squared distance to the nearest of a growing set of points, exact to the last bit and in blocks.

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


# Which pairs of rows may be closer than a limit: matrix products with a proven rounding bound, as a filter.

_STEP = 2048
_UNSCALED = 2.0**30
"""Rows whose largest entry lies between this and its inverse are used as they are."""


class Cloud:
    """Rows and their norms about a centre, handed to products in blocks; never copied as a whole.

    Args:
        rows: float32 or float64, C-contiguous, finite.
        centre: subtracted first, so that a common mean does not blur the bound.
        scale: a power of two that brings the rows near 1 (`scale_of`); distances are those of scaled rows.
    """

    def __init__(self, rows: Float[np.ndarray, "n d"], centre: Float[np.ndarray, " d"], scale: float) -> None:
        self.rows, self.centre, self.scale = rows, centre, scale
        self.norms: Float[np.ndarray, " n"] = np.empty(len(rows))
        for start in range(0, len(rows), _STEP):
            block = self._wide(rows[start : start + _STEP])
            np.einsum("nd,nd->n", block, block, out=self.norms[start : start + _STEP])

    def _wide(self, rows: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m d"]:
        return rows.astype(np.float64) * self.scale - self.centre.astype(np.float64) * self.scale

    def put_centred(self, index: Int[np.ndarray, " m"], into: Float[np.ndarray, "m d"]) -> None:
        """Rows less the centre, correct to one rounding of float32 (of float64 where that is given)."""
        block = self.rows[index]
        if self.scale != 1.0 or into.dtype == np.float64:
            into[:] = self._wide(block)
        else:
            np.subtract(block, self.centre, out=into, casting="same_kind")


def scale_of(*clouds: Float[np.ndarray, "n d"]) -> float:
    """1, or the power of two that brings the largest entry near 1 where it is far from it."""
    largest = max((max(abs(float(rows.max())), abs(float(rows.min()))) for rows in clouds if rows.size), default=0.0)
    if largest == 0.0 or 1.0 / _UNSCALED < largest < _UNSCALED:
        return 1.0
    return float(np.ldexp(1.0, min(-int(np.frexp(largest)[1]), 1000)))


class PairFilter:
    """Products of the rows of two clouds about one centre, with the bound that makes them a filter.

    With N the squared norms about the centre and ŝ the computed product of x and p, the distance that `squared_to`
    computes is at least (1 − g)·[(1 − κ)(N_x + N_p) − 2ŝ] − tiny, where

    - κ = (1 + η)²(1 + γ) − 1 + γ + d·2⁻⁵¹, with η the error of a centred value in the level's precision and γ = (d +
      3)·(error of one addition): all rounding of a product together is at most κ·Σ|x_j p_j| ≤ κ(N_x + N_p)/2
      (Higham 2002, §3.1, and the inequality of the means);
    - g = (d + 3)·(unit roundoff of the rows' precision): direct differences, their squares, and the sum;
    - tiny: what underflow can take away.

    Solved for ŝ: the distance is not below a limit L unless ŝ − β_p ≥ τ_x, with β_p = ½(1 − κ)N_p and
    τ_x = ½[(1 − κ)N_x − (L + tiny)/(1 − g)]. −β_p is a column of the product itself, and since rounding is monotone
    the comparison holds in whatever precision the product comes back, with τ rounded down to that.

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
        """Left side of a product, [m, d + 3]: centred rows and three ones."""
        block = self._block(cloud, index)
        block[:, self._width :] = 1.0
        return self.products.put(block, self.level)

    def picks(self, cloud: Cloud, index: Int[np.ndarray, " m"]) -> Any:
        """Right side of a product, [m, d + 3]: centred rows, then −β in three parts that bfloat16 holds exactly."""
        block = self._block(cloud, index)
        rest = -self._down(self._norm_share * cloud.norms[index])
        for column in range(self._width, self._width + 3):
            block[:, column] = rest if self.level.name != "bfloat16" else _cut(rest)
            rest = rest - block[:, column]
        return self.products.put(block, self.level)

    def _block(self, cloud: Cloud, index: Int[np.ndarray, " m"]) -> np.ndarray:
        dtype = np.float64 if self.level.name == "float64" else np.float32
        block = np.empty((len(index), self._width + 3), dtype=dtype)
        cloud.put_centred(index, block[:, : self._width])
        return block

    def product(self, left: Any, right: Any) -> Any:
        """ŝ − β of every pair."""
        return self.products.product(left, right)

    def thresholds(self, norms: Float[np.ndarray, " m"], limit: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        """τ: a pair whose product is below it is at least ``limit`` (a squared distance) apart; ∞ where that is 0."""
        wide = limit.astype(np.float64)
        tau = self._down(self._norm_share * norms - self._slope * (wide * self._square + self._tiny))
        if self.level.name == "bfloat16":
            tau = -_cut(-tau, up=True)
        tau[wide <= 0] = np.inf
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


# Threshold-diverse filtering: walk by score and keep what resembles nothing kept before (DEITA's repr filter).

_BLOCK = 1024
_CELLS_threshold = 4096


def unit_rows(rows: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m d"]:
    """Rows at length 1, float32, computed row by row in float64; a zero row stays zero."""
    wide = rows.astype(np.float64)
    wide /= np.maximum(np.abs(wide).max(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    norms = np.sqrt(np.square(wide).sum(axis=1, keepdims=True))
    return np.divide(wide, norms, out=wide, where=norms > 0).astype(np.float32)


def threshold_diverse(
    embeddings: Float[np.ndarray, "n d"],
    order: Int[np.ndarray, " n"],
    tokens: Int[np.ndarray, " n"],
    budget: int,
    threshold: float,
    device: str = "cpu",
) -> tuple[Int[np.ndarray, " k"], Bool[np.ndarray, " n"]]:
    """Keep, in this order, each row that fits and whose cosine with every row kept before is below the threshold.

    The filter of DEITA (Liu et al. 2024, arXiv 2312.15685, §2.4). The cosine of unit rows is 1 − ½·(squared
    distance), and the distance is evaluated by direct differences in float32, so the result is that of the loop over
    single rows (a zero row counts as 60° from every other); pairs that are provably far enough apart are excluded by
    one matrix product a block (`Nearest`).

    Args:
        embeddings: n candidates.
        order: the rows, best first.
        tokens: what each costs; what no longer fits when its turn comes is passed over.
        budget: tokens.
        threshold: cosine, in (−1, 1].
        device: where the products run; it changes no pick.

    Returns:
        The kept rows in order, and which rows were passed over because they resemble a kept one.
    """
    limit = np.nextafter(np.float32(2.0 - 2.0 * threshold), np.float32(np.inf))  # below it: not far enough apart
    width = embeddings.shape[1]
    centre = np.zeros(width, dtype=np.float32)
    kept = np.zeros((_BLOCK, width), dtype=np.float32)
    picks: list[int] = []
    alike = np.zeros(len(order), dtype=bool)
    left, shortest = int(budget), int(tokens.min()) if len(tokens) else 0
    for start in range(0, len(order), _BLOCK):
        if left < shortest:
            break
        block = order[start : start + _BLOCK]
        block = block[tokens[block] <= left]
        rows = unit_rows(embeddings[block])
        table = Nearest(rows, centre, kept[: len(picks)], device)
        table.squared[:] = limit
        if table.others is not None and len(picks):
            table.lower(np.arange(len(rows)), table.others, np.arange(len(picks)))
        blocked = table.squared < limit
        near = _pairs(table, rows, np.flatnonzero(~blocked), limit)
        for place in range(len(rows)):
            row = int(block[place])
            if tokens[row] > left:
                continue
            if blocked[place]:
                alike[row] = True
                continue
            if len(picks) == len(kept):
                kept = np.concatenate([kept, np.zeros_like(kept)])
            kept[len(picks)] = rows[place]
            picks.append(row)
            left -= int(tokens[row])
            blocked[near.get(place, [])] = True
    return np.asarray(picks, dtype=np.int64), alike


def _pairs(
    table: Nearest, rows: Float[np.ndarray, "m d"], places: Int[np.ndarray, " f"], limit: np.float32
) -> dict[int, list[int]]:
    """For each of these places the later ones that are nearer than the limit."""
    used = table.filters[table.base]
    left, right = used.candidates(table.cloud, places), used.picks(table.cloud, places)
    product = table.products.host(used.product(left, right))
    tau = used.thresholds(table.cloud.norms[places], np.full(len(places), limit))
    first, second = np.nonzero(np.triu(product >= tau[:, None], 1))
    found: dict[int, list[int]] = {}
    for start in range(0, len(first), _CELLS_threshold):
        one, other = places[first[start : start + _CELLS_threshold]], places[second[start : start + _CELLS_threshold]]
        difference = rows[one]
        np.subtract(difference, rows[other], out=difference)
        close = np.square(difference, out=difference).sum(axis=1) < limit
        for left, right in zip(one[close].tolist(), other[close].tolist(), strict=True):
            found.setdefault(left, []).append(right)
    return found
