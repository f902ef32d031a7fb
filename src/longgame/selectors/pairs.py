"""Which pairs of rows may be closer than a limit: matrix products with a proven rounding bound, as a filter.

A squared distance is ‖x‖² + ‖p‖² − 2x·p, a matrix product for many pairs, but its last bits depend on the order of
the sums. `PairFilter` therefore only *excludes* pairs, those whose distance provably is not below a row's limit, and
the few that remain are evaluated by direct differences (`squared_to`), whose bits depend on the two rows alone. What
precision the product runs in, on which device and with how many threads, can then change no result.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from longgame.products import Level, Products

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
