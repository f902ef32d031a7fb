"""Which pairs of rows may be closer than a limit: matrix products with a proven rounding bound, as a filter.

A squared distance is ‖x‖² + ‖p‖² − 2x·p, a matrix product for many pairs, but its last bits depend on the order of
the sums. `PairFilter` therefore only *excludes* pairs, those whose distance provably is not below a row's limit, and
the few that remain are evaluated by direct differences (`squared_to`), whose bits depend on the two rows alone. What
precision the product runs in, on which device and with how many threads, can then change no result.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

_STEP = 2048
_WORTH = 2.0
"""How many times faster a bfloat16 product must be before it is used."""
_UNSCALED = 2.0**30
"""Rows whose largest entry lies between this and its inverse are used as they are."""


@dataclass(frozen=True)
class Level:
    """A precision of the products."""

    dtype: torch.dtype
    rounding: float
    """Largest relative error of a centred value in this precision."""
    accumulation: float
    """Relative error of one addition inside a product, with a margin for hardware that truncates."""


_BFLOAT16 = Level(torch.bfloat16, 2.0**-8 + 2.0**-23, 2.0**-22)
_FLOAT32 = Level(torch.float32, 2.0**-23, 2.0**-23)
_FLOAT64 = Level(torch.float64, 2.0**-52, 2.0**-52)


@functools.cache
def levels(device: torch.device) -> tuple[Level, ...]:
    """Precisions worth trying on this device, the fastest (and loosest) first.

    bfloat16 where a short probe finds it at least twice as fast as float32, as only units that accumulate in float32
    are; float32 unless PyTorch was told to compute such products in less (TF32, bfloat16).
    """
    close_to_one = torch.full((512,), 1.0 + 2.0**-12, device=device).diag()
    found = (close_to_one @ close_to_one).diagonal()
    single = [_FLOAT32] if bool((found == 1.0 + 2.0**-11).all()) else []
    half = [_BFLOAT16] if _seconds(torch.bfloat16, device) * _WORTH < _seconds(torch.float32, device) else []
    return (*half, *single, _FLOAT64)


def _seconds(dtype: torch.dtype, device: torch.device) -> float:
    square = torch.ones(512, 512, dtype=dtype, device=device)
    best = np.inf
    for _ in range(5):
        begun = time.perf_counter()
        (square @ square)[0, 0].item()
        best = min(best, time.perf_counter() - begun)
    return best


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

    def centred(self, index: Int[np.ndarray, " m"], dtype: torch.dtype) -> Float[torch.Tensor, "m d"]:
        """Rows less the centre, on the CPU, correct to one rounding of float32 (of float64 where ``dtype`` is)."""
        block = self.rows[index]
        if self.scale != 1.0 or dtype is torch.float64:
            return torch.from_numpy(self._wide(block)).to(dtype)
        np.subtract(block, self.centre, out=block)
        return torch.from_numpy(block).to(dtype)


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
        device: where products run.
        level: their precision.
    """

    def __init__(self, width: int, dtype: np.dtype, scale: float, device: torch.device, level: Level) -> None:
        self.device, self.level = device, level
        self._width, self._square = width, scale * scale
        limits = np.finfo(dtype)
        self._slope = 0.5 / (1.0 - min((width + 3) * float(limits.eps) / 2, 0.5))
        self._tiny = 8 * width * (self._square * float(limits.tiny) + 2.0**-126)
        gamma = (width + 3) * level.accumulation
        kappa = (1 + level.rounding) ** 2 * (1 + gamma) - 1 + 1.02 * gamma + width * 2.0**-51
        self._norm_share = 0.5 * (1.0 - min(kappa, 1.0))

    def candidates(self, cloud: Cloud, index: Int[np.ndarray, " m"]) -> torch.Tensor:
        """Left side of a product, [m, d + 3]: centred rows and three ones."""
        block = self._block(cloud, index)
        block[:, self._width :] = 1.0
        return block

    def picks(self, cloud: Cloud, index: Int[np.ndarray, " m"]) -> torch.Tensor:
        """Right side of a product, [m, d + 3]: centred rows, then −β in as many parts as its precision needs."""
        block = self._block(cloud, index)
        rest = torch.from_numpy(-self._down(self._norm_share * cloud.norms[index])).to(self.device)
        for column in range(self._width, self._width + 3):
            block[:, column] = rest
            rest = rest - block[:, column].double()
        return block

    def _block(self, cloud: Cloud, index: Int[np.ndarray, " m"]) -> torch.Tensor:
        block = torch.empty(len(index), self._width + 3, dtype=self.level.dtype, device=self.device)
        block[:, : self._width] = cloud.centred(index, self.level.dtype).to(self.device)
        return block

    def product(self, left: torch.Tensor, right: torch.Tensor) -> Float[torch.Tensor, "m p"]:
        """ŝ − β of every pair."""
        if self.level.dtype is torch.bfloat16 and self.device.type == "cuda":
            return torch.mm(left, right.T, out_dtype=torch.float32)
        return left @ right.T

    def thresholds(self, norms: Float[np.ndarray, " m"], limit: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        """τ: a pair whose product is below it is at least ``limit`` (a squared distance) apart; ∞ where that is 0."""
        wide = limit.astype(np.float64)
        tau = self._down(self._norm_share * norms - self._slope * (wide * self._square + self._tiny))
        if self.level.dtype is torch.bfloat16:
            bits = tau.astype(np.float32).view(np.int32)
            bits = np.where(bits < 0, bits + 0xFFFF, bits) & np.int32(-0x10000)
            tau = bits.view(np.float32)
        tau[wide <= 0] = np.inf
        return tau

    def _down(self, values: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        """Values moved down by more than the error of their formula, to numbers that the product's precision holds."""
        if self.level.dtype is torch.float64:
            return values - np.abs(values) * 2.0**-48
        lower = (values - np.abs(values) * 2.0**-40).astype(np.float32)
        return np.nextafter(lower, np.float32(-np.inf)).astype(np.float64)
