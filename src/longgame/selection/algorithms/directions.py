"""Summaries of what was selected: the main directions of all gradients, and a buffer of the latest sketches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from longgame.errors import PluginError, ResumeError
from longgame.selection.algorithms.nearest import mean_distance


class FrequentDirections:
    """A sketch B of at most ``2·rows`` rows with 0 ⪯ GᵀG − BᵀB ⪯ `error_bound`·I, where G stacks every row so far.

    Rows fill a buffer; when it is full, its squared singular values are lowered by the (rows+1)-th of them, which
    frees the lower half (Liberty 2013; Ghashami et al. 2016). The sum of these reductions is the certified bound; it is
    at most ‖G − G_k‖²_F / (rows + 1 − k) for any k ≤ rows. How the rows are batched changes nothing.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.count = 0
        """Rows so far."""
        self.energy = 0.0
        """tr GᵀG: the sum of their squared norms (exact)."""
        self.error_bound = 0.0
        """Largest possible spectral norm of GᵀG − BᵀB (absolute, in the units of the rows squared)."""
        self._buffer: Float[np.ndarray, "2*rows d"] = np.zeros((2 * rows, 0))
        self._filled = 0
        self._top: Float[np.ndarray, " d"] | None = None

    @property
    def matrix(self) -> Float[np.ndarray, "m d"]:
        """B, float64; m ≤ 2·rows. A copy."""
        return self._buffer[: self._filled].copy()

    def update(self, gradients: Float[np.ndarray, "k d"]) -> None:
        """Add k rows.

        Raises:
            PluginError: their width is not that of the rows before.
        """
        if not len(gradients):
            return
        if self._buffer.shape[1] != gradients.shape[1]:
            if self.count:
                raise PluginError(
                    f"a gradient sketch of width {gradients.shape[1]} came after ones of width "
                    f"{self._buffer.shape[1]}; keep the sketch size fixed through a run."
                )
            self._buffer = np.zeros((2 * self.rows, gradients.shape[1]))
        for row in np.asarray(gradients, dtype=np.float64):
            if self._filled == len(self._buffer):
                self._shrink()
            self._buffer[self._filled] = row
            self._filled += 1
            self.count += 1
            self.energy += float(row @ row)
        self._top = None

    def _shrink(self) -> None:
        """Lower the squared singular values, eigenvalues of the Gram matrix of the rows.

        A singular value decomposition of the rows takes the same time on one thread, and 30 to 200 times as long on
        several, which wait for each other.
        """
        scale = float(np.abs(self._buffer).max()) or 1.0
        rows = self._buffer / scale
        squares, vectors = np.linalg.eigh(rows @ rows.T)
        squares, vectors = squares[::-1], vectors[:, ::-1]
        squares = np.where(squares > squares[0] * len(rows) * np.finfo(np.float64).eps, squares, 0.0)  # else rounding
        reduction = float(squares[self.rows]) if len(squares) > self.rows else 0.0
        left = np.flatnonzero(squares[: self.rows] > reduction)
        shares = np.sqrt((squares[left] - reduction) / squares[left])
        self._buffer[:] = 0.0
        self._buffer[: len(left)] = scale * shares[:, None] * (vectors[:, left].T @ rows)
        self._filled = len(left)
        self.error_bound += reduction * scale**2

    def top_direction(self) -> Float[np.ndarray, " d"] | None:
        """Unit vector of largest BᵀB (its largest component positive); None before any non-zero row. Cached."""
        if self._top is None and self.energy > 0:
            rows = self._buffer[: self._filled]
            rows = rows / np.abs(rows).max()
            _, vectors = np.linalg.eigh(rows @ rows.T)
            top = vectors[:, -1] @ rows
            top /= np.linalg.norm(top)
            self._top = top * np.sign(top[np.argmax(np.abs(top))])
        return None if self._top is None else self._top.copy()

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs to continue bit for bit."""
        return {"buffer": self.matrix, "count": self.count, "energy": self.energy, "error_bound": self.error_bound}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ResumeError: the saved sketch has more rows than this one holds.
        """
        saved = np.asarray(state["buffer"], dtype=np.float64)
        if len(saved) > 2 * self.rows:
            raise ResumeError(
                f"the saved gradient sketch has {len(saved)} rows but gradient_rows is {self.rows} "
                f"(at most {2 * self.rows}); resume with the setting the run was started with."
            )
        self._buffer = np.zeros((2 * self.rows, saved.shape[1]))
        self._buffer[: len(saved)] = saved
        self._filled = len(saved)
        self.count, self.energy = int(state["count"]), float(state["energy"])
        self.error_bound = float(state["error_bound"])
        self._top = None


class SketchBuffer:
    """The last ``size`` sketches pushed (UDS keeps 1024), in float64 so that distances need no conversion."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._ring: Float[np.ndarray, "size d"] = np.zeros((0, 0))
        self._pushed = 0

    def __len__(self) -> int:
        return min(self._pushed, self.size)

    def push(self, sketches: Float[np.ndarray, "k d"]) -> None:
        """Append k sketches; the oldest leave.

        Raises:
            PluginError: their width is not that of the sketches before.
        """
        if not len(sketches):
            return
        if not self._pushed:
            self._ring = np.zeros((self.size, sketches.shape[1]))
        if sketches.shape[1] != self._ring.shape[1]:
            raise PluginError(
                f"a logit sketch of width {sketches.shape[1]} came after ones of width {self._ring.shape[1]}; "
                "keep the sketch size fixed through a run."
            )
        first = max(0, len(sketches) - self.size)
        places = (self._pushed + np.arange(first, len(sketches))) % self.size
        self._ring[places] = sketches[first:]
        self._pushed += len(sketches)

    def mean_distance(self, sketches: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """Mean L2 distance of each sketch to those in the buffer; zero while the buffer is empty."""
        return mean_distance(sketches, self._ring[: len(self)])

    def state_dict(self) -> dict[str, Any]:
        """Return the sketches (float32, as they came) in ring order, and how many were pushed."""
        return {"sketches": self._ring[: len(self)].astype(np.float32), "pushed": self._pushed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ResumeError: the state was saved by a buffer of another size.
        """
        saved, pushed = np.asarray(state["sketches"]), int(state["pushed"])
        if len(saved) != min(pushed, self.size):
            raise ResumeError(
                f"the saved buffer holds {len(saved)} of {pushed} sketches but buffer_size is {self.size}; "
                "resume with the setting the run was started with."
            )
        self._ring = np.zeros((self.size if pushed else 0, saved.shape[1]))
        self._ring[: len(saved)] = saved
        self._pushed = pushed
