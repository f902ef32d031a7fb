"""Nuclear norm and bilinear sketch of an example's logits (UDS), without the logits."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from longgame.errors import PluginError
from longgame.models.device import logit_entries, sketch_table_bytes
from longgame.models.head import LogitHead
from longgame.signals.projection import signs

_STREAM_ROWS = 256
"""Positions, or vocabulary entries, whose signs come from one stream."""


class PositionLogits:
    """Functions of L = scale · (H Wᵀ + b), an example's logits at some positions, from H alone.

    Parts that depend only on the head (K with K Kᵀ = WᵀW, and WᵀR₂) are computed once per state of its weights, and
    again on every `refresh` while the head is trainable. A bias is one more column of W, and of ones in H. A soft cap
    breaks the product form of L: both functions then use vocabulary chunks of the true logits, which is exact too and
    costs the whole projection.

    Args:
        head: the output head.
        shape: rows and columns of the sketch.
        seed: fixes the sketch's projections.

    Raises:
        PluginError: a side of ``shape`` is below 1.
    """

    def __init__(self, head: LogitHead, shape: tuple[int, int], seed: int) -> None:
        if min(shape) < 1:
            raise PluginError(f"logit_sketch_shape is {shape}; both sides must be at least 1, e.g. (8, 128).")
        self._head = head
        self._shape = (int(shape[0]), int(shape[1]))
        self._seed = seed
        self._version: tuple[int, ...] | None = None
        self._root: Tensor | None = None
        self._projected: Tensor | None = None
        self._left = torch.zeros(0, self._shape[0])
        self._right: Tensor | None = None
        """R₂, where it is needed more than once; its first `_right_rows` rows are drawn."""
        self._right_rows = 0

    @property
    def width(self) -> int:
        """Numbers in a sketch."""
        return self._shape[0] * self._shape[1]

    def refresh(self) -> None:
        """Drop what was derived from the head if its weights may have changed since."""
        if self._head.trainable or self._version != self._head.version:
            self._version, self._root, self._projected = self._head.version, None, None

    @torch.no_grad()
    def nuclear_norms(self, hidden: Float[Tensor, "b N d"], valid: Float[Tensor, "b N"]) -> Float[Tensor, " b"]:
        """Return ‖L‖_* of each example, float64 (FORMULAS: logit_nuclear_norm); NaN where a hidden state is not finite.

        The singular values of H Wᵀ are those of H K; they are the roots of the eigenvalues of the smaller Gram matrix
        of H K, in float64 because a Gram matrix squares the condition number.

        Args:
            hidden: hidden states of the positions; rows past an example's end are zero.
            valid: 1 where a row is a position, 0 past the end.
        """
        if self._head.cap is not None:
            gram = hidden.new_zeros(*valid.shape, valid.shape[1], dtype=torch.float64)
            for _, logits in self._logit_chunks(hidden, valid):
                wide = logits.double()
                gram += wide @ wide.mT
            return _nuclear(gram)
        if self._root is None:
            self._root = self._gram_root()
        reduced = _double(self._extended(hidden, valid)) @ self._root
        gram = reduced.mT @ reduced if reduced.shape[1] > reduced.shape[2] else reduced @ reduced.mT
        return _nuclear(gram) * abs(self._head.scale)

    @torch.no_grad()
    def sketches(self, hidden: Float[Tensor, "b N d"], valid: Float[Tensor, "b N"]) -> Float[Tensor, "b k"]:
        """Return R₁ L R₂ of each example, flattened, float32 (FORMULAS: logit_sketch).

        R₁ (rows × N, indexed by position) and R₂ (V × columns) hold ±1/√rows and ±1/√columns, so
        E⟨s(L), s(L')⟩ = ⟨L, L'⟩: distances keep the scale of the logits. Computed as (R₁ H)(Wᵀ R₂) · scale.

        Args:
            hidden, valid: as for `nuclear_norms`.
        """
        left = self._left_signs(valid.shape[1], hidden.device)
        if self._head.cap is not None:
            total = hidden.new_zeros(len(hidden), *self._shape, dtype=torch.float32)
            for start, logits in self._logit_chunks(hidden, valid):
                total += (left.T @ logits) @ self._right_signs(start, logits.shape[2], hidden.device)
            return total.flatten(1)
        if self._projected is None:
            parts = (
                weight.float().T @ self._right_signs(start, len(weight), weight.device)
                for start, weight in self._weight_chunks()
            )
            self._projected = self._head.scale * reduce(torch.add, parts)
        return ((left.T @ self._extended(hidden, valid).float()) @ self._projected).flatten(1)

    def _extended(self, hidden: Float[Tensor, "b N d"], valid: Float[Tensor, "b N"]) -> Float[Tensor, "b N e"]:
        """Hidden states, with a column of ones behind them where the head has a bias."""
        if self._head.module.bias is None:
            return hidden
        return torch.cat([hidden, valid[..., None].to(hidden.dtype)], dim=2)

    def _weight_chunks(self, entries: int | None = None) -> Iterator[tuple[int, Float[Tensor, "v e"]]]:
        """(first vocabulary entry, rows of [W, b]); chunks are whole sign streams."""
        weight, bias = self._head.module.weight.detach(), self._head.module.bias
        entries = logit_entries(weight.device) if entries is None else entries
        size = max(1, entries // (weight.shape[1] + 1) // _STREAM_ROWS) * _STREAM_ROWS
        for start in range(0, len(weight), size):
            rows = weight[start : start + size]
            if bias is not None:
                rows = torch.cat([rows, bias.detach()[start : start + size, None]], dim=1)
            yield start, rows

    def _logit_chunks(
        self, hidden: Float[Tensor, "b N d"], valid: Float[Tensor, "b N"]
    ) -> Iterator[tuple[int, Float[Tensor, "b N v"]]]:
        """(first vocabulary entry, true logits of a slice of the vocabulary, zero past an example's end)."""
        states = self._extended(hidden, valid)
        entries = logit_entries(hidden.device) // valid.numel() * (states.shape[2] + 1)
        for start, weight in self._weight_chunks(entries):
            yield start, self._head.finish((states @ weight.T).float()) * valid[..., None]

    def _gram_root(self) -> Float[Tensor, "e e"]:
        """K with K Kᵀ = Σ_v w_v w_vᵀ, float64, by eigenvalues (the Gram matrix may be singular).

        Eigenvectors of 4,096 × 4,096 take a GPU seconds, at every step where the head trains. There K is a Cholesky
        factor, unless the matrix is singular.
        """
        gram = reduce(torch.add, (_double(rows).T @ _double(rows) for _, rows in self._weight_chunks()))
        if gram.device.type != "cpu":
            factor, failed = torch.linalg.cholesky_ex(gram)
            if not int(failed):
                return factor
        values, vectors = torch.linalg.eigh(gram)
        return vectors * values.clamp_min(0).sqrt()

    def _left_signs(self, positions: int, device: torch.device) -> Float[Tensor, "N rows"]:
        """R₁ᵀ: the row of a position does not depend on how long any example is."""
        self._left = self._left.to(device)
        while len(self._left) < positions:
            block = len(self._left) // _STREAM_ROWS
            fresh = signs(self._seed, "logit-rows", block, shape=(_STREAM_ROWS, self._shape[0]))
            self._left = torch.cat([self._left, (fresh / self._shape[0] ** 0.5).to(device)])
        return self._left[:positions]

    def _right_signs(self, start: int, count: int, device: torch.device) -> Float[Tensor, "v columns"]:
        """Rows ``start`` … of R₂; ``start`` begins a stream.

        A trained head needs them at every step, a soft cap at every batch. They are kept then, as far as
        `sketch_table_bytes` allows: drawing those of 128,256 words takes a CPU as long as a step at 8B.
        """
        words, end = len(self._head.module.weight), start + count
        size = words * self._shape[1] * torch.float32.itemsize
        needed_again = self._head.trainable or self._head.cap is not None
        if not needed_again or size > sketch_table_bytes(device):
            return self._draw_right_signs(start, count).to(device)
        if self._right is None or len(self._right) != words or self._right.device != device:
            self._right, self._right_rows = torch.empty(words, self._shape[1], dtype=torch.float32, device=device), 0
        if end > self._right_rows:  # chunks come in order, so what is missing follows what is drawn
            first = self._right_rows
            self._right[first:end] = self._draw_right_signs(first, end - first).to(device)
            self._right_rows = end
        return self._right[start:end]

    def _draw_right_signs(self, start: int, count: int) -> Float[Tensor, "v columns"]:
        blocks = range(start // _STREAM_ROWS, -(-(start + count) // _STREAM_ROWS))
        shape = (_STREAM_ROWS, self._shape[1])
        drawn = torch.cat([signs(self._seed, "logit-columns", block, shape=shape) for block in blocks])
        return drawn[:count] / self._shape[1] ** 0.5


_BATCHED = 32
"""Sides up to which a GPU finds the eigenvalues of many matrices at once; larger ones it takes one by one."""


def _nuclear(gram: Float[Tensor, "b n n"]) -> Float[Tensor, " b"]:
    """Σ √λ of each Gram matrix; NaN where it is not finite, for which LAPACK would raise and name no example.

    Large matrices of a GPU are copied to the host, where one of 256 × 256 takes a core 8 ms.
    """
    moves = gram.device.type != "cpu" and gram.shape[1] > _BATCHED
    gram = gram.cpu() if moves else gram
    broken = ~gram.isfinite().flatten(1).all(1)
    safe = gram.masked_fill(broken[:, None, None], 0)
    if moves:
        with ThreadPoolExecutor(max_workers=max(1, min(len(safe), torch.get_num_threads()))) as threads:
            values = torch.stack(list(threads.map(torch.linalg.eigvalsh, safe)))
    else:
        values = torch.linalg.eigvalsh(safe)
    return values.clamp_min_(0).sqrt_().sum(1).masked_fill_(broken, torch.nan)


def _double(tensor: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """Float64, on the CPU where the device has none (MPS)."""
    return tensor.cpu().double() if tensor.device.type == "mps" else tensor.double()
