"""Seeded sketches of long vectors whose inner products are kept in expectation.

A sketch is a *balanced count sketch*: a random permutation deals the n entries of a named vector into ``dim`` buckets
of equal size, each entry gets a random sign, and every bucket is summed. E⟨s(g), s(h)⟩ = ⟨g, h⟩ and
Var⟨s(g), s(h)⟩ ≤ (‖g‖²‖h‖² + ⟨g, h⟩²)/dim, the bound of a dense Gaussian matrix, at O(n) cost and without that matrix.
Named parts of one long vector (the parameters of a model) are added into the same ``dim`` numbers; their signs are
independent, so the parts do not disturb each other's expectation.

The tables depend on (seed, name, length, dim) alone and are integers, so every machine draws the same sketch.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from longgame.errors import PluginError
from longgame.models.device import sketch_table_bytes
from longgame.models.lora import canonical_name
from longgame.seeding import generator, stream_seed

_BLOCK = 1 << 18
"""Entries that share one permutation; longer vectors are sketched block by block."""
_CHUNK = 1 << 20
"""Entries that are dealt out at once, at most, unless one block is longer: the dealt copy takes as much memory."""
_ENTRY_BYTES = 8
"""Bytes of a table's entry: its index and its sign."""


def signs(seed: int, *path: str | int, shape: tuple[int, ...]) -> Float[Tensor, ...]:
    """Return a float32 tensor of independent ±1 for the stream named by ``(seed, *path)``."""
    bits = generator(seed, *path).integers(0, 2, size=shape, dtype=np.int8)
    return torch.from_numpy(2 * bits - 1).float()


_LAYER = re.compile(r"\.\d+(?=\.)")


def layer_of(name: str) -> str:
    """Return the part of a weight's name up to its layer's number; empty outside of layers."""
    match = _LAYER.search(name)
    return name[: match.end()] if match else ""


class _Block(NamedTuple):
    """Entries of a named vector that share one permutation."""

    name: str
    size: int
    """Of the whole vector."""
    start: int

    @property
    def length(self) -> int:
        return min(_BLOCK, self.size - self.start)


class CountSketch:
    """Balanced count sketch into ``dim`` numbers; tables are drawn once per (name, length, device).

    Raises:
        PluginError: ``dim`` is below 1.
    """

    def __init__(self, dim: int, seed: int) -> None:
        if dim < 1:
            raise PluginError(f"a sketch of {dim} numbers was asked for; the size must be at least 1.")
        self.dim = int(dim)
        self.seed = int(seed)
        self._tables: dict[tuple[tuple[_Block, ...], torch.device], tuple[Tensor, Tensor]] = {}
        self._chunks: dict[tuple[tuple[str, int], ...], list[tuple[_Block, ...]]] = {}
        self._stored: Counter[torch.device] = Counter()
        """Bytes of tables on each device; those beyond `sketch_table_bytes` are drawn again when needed."""

    def project(self, name: str, rows: Float[Tensor, "b n"]) -> Float[Tensor, "b dim"]:
        """Sketch each row of a batch of vectors that all belong to the part called ``name``."""
        return self.project_parts({name: rows.shape[1]}, rows)

    def project_parts(self, lengths: Mapping[str, int], rows: Float[Tensor, "b n"]) -> Float[Tensor, "b dim"]:
        """Sketch each row of a batch of vectors made of these named parts, one behind the other.

        Their tables are joined, so that a layer takes as few kernels as one of its weights.
        """
        parts = tuple((canonical_name(name), length) for name, length in lengths.items())
        if parts not in self._chunks:
            self._chunks[parts] = _chunks(parts)
        total, start = None, 0
        for chunk in self._chunks[parts]:
            index, sign = self._table(chunk, rows.device)
            stop = start + sum(block.length for block in chunk)
            dealt = rows[:, start:stop].index_select(1, index).mul_(sign)
            sums = dealt.view(len(rows), -1, self.dim).sum(1)
            total, start = sums if total is None else total.add_(sums), stop
        return rows.new_zeros(len(rows), self.dim) if total is None else total

    def project_entries(
        self, name: str, size: int, entry: Int[Tensor, "b m"], value: Float[Tensor, "b m"]
    ) -> Float[Tensor, "b dim"]:
        """Sketch vectors of length ``size`` that are zero but for these entries (a repeated entry counts as a sum)."""
        name = canonical_name(name)
        total = value.new_zeros(len(value), self.dim)
        for start in range(0, size, _BLOCK):
            block = _Block(name, size, start)
            index, sign = self._table((block,), value.device)
            # spare slots, known by the sign 0, are put behind the last entry: to drop them, a GPU would be waited for
            slot = torch.empty(block.length + 1, dtype=torch.int64, device=value.device)
            slot[index.long().where(sign != 0, block.length)] = torch.arange(len(sign), device=value.device)
            place = entry - start
            inside = (place >= 0) & (place < block.length)
            at = slot[place.where(inside, 0)]
            _add_at(total, at % self.dim, value * sign[at] * inside)
        return total

    def _table(
        self, chunk: tuple[_Block, ...], device: torch.device
    ) -> tuple[Int[Tensor, " slots"], Float[Tensor, " slots"]]:
        """Entry and sign behind each slot (slot s feeds bucket s mod dim); spare slots carry the sign 0."""
        key = (chunk, device)
        if key in self._tables:
            return self._tables[key]
        entries, signs_, start = [], [], 0
        for block in chunk:
            entry, sign = self._draw(block)
            entries.append(entry + start)
            signs_.append(sign)
            start += block.length
        entry, sign = np.concatenate(entries), np.concatenate(signs_)
        table = (torch.from_numpy(entry.astype(np.int32)).to(device), torch.from_numpy(sign).to(device))
        if self._stored[device] + len(entry) * _ENTRY_BYTES <= sketch_table_bytes(device):
            self._tables[key] = table
            self._stored[device] += len(entry) * _ENTRY_BYTES
        return table

    def _draw(self, block: _Block) -> tuple[Int[np.ndarray, " slots"], Float[np.ndarray, " slots"]]:
        rng = generator(self.seed, "count-sketch", *block, self.dim)
        slots = -(-block.length // self.dim) * self.dim
        entry = rng.permutation(slots)
        sign = (2 * rng.integers(0, 2, size=slots, dtype=np.int8) - 1).astype(np.float32)
        spare = entry >= block.length
        entry[spare], sign[spare] = 0, 0.0
        return entry, sign


def _chunks(parts: tuple[tuple[str, int], ...]) -> list[tuple[_Block, ...]]:
    """Blocks of these (name, length), in order, in groups of at most `_CHUNK` entries."""
    groups: list[list[_Block]] = []
    entries = 0
    for name, size in parts:
        for start in range(0, size, _BLOCK):
            block = _Block(name, size, start)
            if not groups or entries + block.length > _CHUNK:
                groups.append([])
                entries = 0
            groups[-1].append(block)
            entries += block.length
    return [tuple(group) for group in groups]


def _add_at(total: Float[Tensor, "b dim"], bucket: Int[Tensor, "b m"], value: Float[Tensor, "b m"]) -> None:
    """Add values into their buckets, in the same order every time: on a GPU `scatter_add_` has none."""
    if total.device.type == "cpu":
        total.scatter_add_(1, bucket, value)
    else:
        row = torch.arange(len(total), device=total.device)[:, None].expand_as(bucket)
        total.index_put_((row, bucket), value, accumulate=True)


class OuterSketch:
    """Sketch of Σ_t x_t ⊗ y_t, a sum of outer products, without any of them (tensor sketch; Pham & Pagh 2013).

    The circular convolution of two count sketches is a count sketch of the outer product. Signs of both sides are
    independent, so E⟨s(A), s(B)⟩ = ⟨A, B⟩, the inner product of the matrices.

    Raises:
        PluginError: ``dim`` is below 1.
    """

    def __init__(self, dim: int, seed: int) -> None:
        self.dim = int(dim)
        self._left, self._right = (CountSketch(dim, stream_seed(seed, "outer-sketch", side)) for side in range(2))

    def spectrum(self, left: Float[Tensor, "m p"], right: Float[Tensor, "m q"]) -> Complex[Tensor, "m f"]:
        """Fourier transform of the sketch of each row's outer product; sums of outer products are sums of these."""
        first = torch.fft.rfft(self._left.project("left", left.float()))
        return first.mul_(torch.fft.rfft(self._right.project("right", right.float())))

    def sketch(self, spectrum: Complex[np.ndarray, "b f"]) -> Float[np.ndarray, "b dim"]:
        """The sketches behind Fourier transforms, float32."""
        return np.fft.irfft(spectrum, n=self.dim).astype(np.float32)


@lru_cache(maxsize=1)  # a trial has one seed; at 8B each holds 335 MB of tables
def _shared(dim: int, seed: int) -> CountSketch:
    return CountSketch(dim, seed)


class UpdateSketch:
    """Sketch of one long vector that arrives in named parts (the parameters' updates of one optimiser step).

    Two sketches of equal ``dim`` and ``seed`` can be compared: E⟨s(u), s(v)⟩ = ⟨u, v⟩, with a standard deviation of at
    most √(2/dim)·‖u‖‖v‖. In LoRA mode `SignalEngine`'s ``grad_sketch`` of the same ``dim`` and ``seed`` lives in the
    same space, when the parts carry their parameters' names.

    Args:
        dim: numbers in the sketch.
        seed: fixes the projection, on every machine.
    """

    def __init__(self, dim: int = 512, seed: int = 0) -> None:
        self._sketch = _shared(int(dim), int(seed))
        self._layer: dict[str, Tensor] = {}
        """Parts of one layer that are not sketched yet."""
        self._total: Tensor | None = None

    def add(self, name: str, tensor: Float[Tensor, ...]) -> None:
        """Add the part called ``name`` (any shape; flattened row by row). Adding twice sums."""
        if name in self._layer or layer_of(name) != layer_of(next(iter(self._layer), name)):
            self._take_layer()
        self._layer[name] = tensor.detach().to(torch.float32, copy=True).reshape(1, -1)

    def _take_layer(self) -> None:
        if not self._layer:
            return
        row = torch.cat([*self._layer.values()], dim=1)
        part = self._sketch.project_parts({name: part.shape[1] for name, part in self._layer.items()}, row)[0]
        part = part.cpu().double() if part.device.type == "mps" else part.double()
        self._total = part if self._total is None else self._total + part
        self._layer.clear()

    def tensor(self) -> Float[Tensor, " dim"]:
        """Return the sketch of everything added so far, float32, on the device of what was added."""
        self._take_layer()
        return torch.zeros(self._sketch.dim) if self._total is None else self._total.float()

    def vector(self) -> Float[np.ndarray, " dim"]:
        """Return `tensor` on the host, in the units of what was added."""
        return self.tensor().cpu().numpy()
