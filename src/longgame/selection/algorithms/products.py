"""Matrix products in several precisions on the CPU or a GPU, each with a bound of its rounding error."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from longgame.errors import RecipeError

if TYPE_CHECKING:
    import torch

_SMALL = 1 << 21
"""Smaller matrices (in numbers) are multiplied by NumPy on the CPU, without loading PyTorch."""
_MULTIPLE = 256
"""Sides are padded to a multiple of this many rows: oneDNN stores a compiled kernel, half a MiB, for every shape."""
_WORTH = 2.0
"""How many times faster a bfloat16 product must be before it is used."""


@dataclass(frozen=True)
class Level:
    """A precision of the products."""

    name: str
    """``bfloat16``, ``float32`` or ``float64``."""
    rounding: float
    """Largest relative error of a difference of two float32 (float64) values in this precision."""
    accumulation: float
    """Relative error of one addition inside a product, with a margin for hardware that truncates."""


BFLOAT16 = Level("bfloat16", 2.0**-8 + 2.0**-23, 2.0**-22)
FLOAT32 = Level("float32", 2.0**-23, 2.0**-23)
FLOAT64 = Level("float64", 2.0**-52, 2.0**-52)


class Products:
    """Where products run: here NumPy on the CPU. Matrices are opaque objects made by `put`."""

    levels: tuple[Level, ...] = (FLOAT32, FLOAT64)
    """Precisions to try, the fastest (and least exact) first."""
    rows: int = 1024
    """Good number of rows of either side."""

    def put(self, values: Float[np.ndarray, "m w"], level: Level) -> Any:
        """Values rounded to a precision."""
        return np.asarray(values, dtype=level.name)

    def part(self, matrix: Any, start: int, stop: int) -> Any:
        """Rows start … stop − 1 (fewer at the end)."""
        return matrix[start:stop]

    def product(self, left: Any, right: Any) -> Any:
        """left · rightᵀ, rounded to the precision of its sides or finer."""
        return left @ right.T

    def row_max(self, product: Any) -> Float[np.ndarray, " m"]:
        """Largest value of each row."""
        return product.max(axis=1)

    def host(self, product: Any, rows: Int[np.ndarray, " k"] | None = None) -> Float[np.ndarray, "k p"]:
        """These rows (or all) as a writable NumPy array."""
        return product if rows is None else product[rows]


def products_on(device: str, size: int) -> Products:
    """Return where to multiply matrices of ``size`` numbers: a ``cuda`` device, or the faster library on the CPU.

    Raises:
        RecipeError: the device is neither, or PyTorch sees no such device.
    """
    if device == "cpu":
        return Products() if size < _SMALL else _on_torch("cpu")
    if device.partition(":")[0] != "cuda":
        raise RecipeError(f"device is {device!r}. Allowed: cpu, cuda.")
    return _on_torch(device)


@functools.cache
def _on_torch(device: str) -> Products:
    return _Torch(device)


def _padded(rows: int) -> int:
    return -(-rows // _MULTIPLE) * _MULTIPLE


@dataclass(frozen=True)
class _Padded:
    """The first ``rows`` rows of a matrix count."""

    matrix: torch.Tensor
    rows: int


class _Torch(Products):
    """PyTorch products in the precisions that a short probe finds usable.

    bfloat16 if it is at least twice as fast as float32, which only units that accumulate in float32 are. float32 unless
    PyTorch is set to compute such products in less (TF32, bfloat16).
    """

    def __init__(self, device: str) -> None:
        import torch

        self._torch = torch
        self.device = torch.device(device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise RecipeError(f"device is {device!r} but PyTorch sees no CUDA device here; use 'cpu'.")
        self._types = {level.name: getattr(torch, level.name) for level in (BFLOAT16, FLOAT32, FLOAT64)}
        self.rows = 1024 if self.device.type == "cpu" else 8192
        close_to_one = torch.full((512,), 1.0 + 2.0**-12, device=self.device).diag()
        squared = (close_to_one @ close_to_one).diagonal()
        single = (FLOAT32,) if bool((squared == 1.0 + 2.0**-11).all()) else ()
        half = (BFLOAT16,) if self._seconds(BFLOAT16) * _WORTH < self._seconds(FLOAT32) else ()
        self.levels = (*half, *single, FLOAT64)

    def _seconds(self, level: Level) -> float:
        square = self._torch.ones(512, 512, dtype=self._types[level.name], device=self.device)
        best = np.inf
        for _ in range(5):
            start = time.perf_counter()
            (square @ square)[0, 0].item()
            best = min(best, time.perf_counter() - start)
        return best

    def put(self, values: Float[np.ndarray, "m w"], level: Level) -> _Padded:
        matrix = self._torch.zeros(
            _padded(len(values)), values.shape[1], dtype=self._types[level.name], device=self.device
        )
        matrix[: len(values)] = self._torch.from_numpy(np.require(values, requirements="W")).to(self.device)
        return _Padded(matrix, len(values))

    def part(self, matrix: _Padded, start: int, stop: int) -> _Padded:
        stop = min(stop, matrix.rows)
        return _Padded(matrix.matrix[start : start + _padded(stop - start)], stop - start)

    def product(self, left: _Padded, right: _Padded) -> torch.Tensor:
        if left.matrix.dtype is self._torch.bfloat16 and self.device.type == "cuda":  # else bfloat16 sums may be split
            product = self._torch.mm(left.matrix, right.matrix.T, out_dtype=self._torch.float32)
        else:
            product = left.matrix @ right.matrix.T
        return product[: left.rows, : right.rows]

    def row_max(self, product: torch.Tensor) -> np.ndarray:
        return self.host(product.amax(dim=1))

    def host(self, product: torch.Tensor, rows: Int[np.ndarray, " k"] | None = None) -> np.ndarray:
        if rows is not None:
            product = product[self._torch.from_numpy(rows).to(self.device)]
        return (product.float() if product.dtype is self._torch.bfloat16 else product).cpu().numpy()
