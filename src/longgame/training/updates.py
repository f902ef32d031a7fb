"""What the optimiser did to the weights, step by step: the Gram matrix of its updates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from longgame.signals.projection import UpdateSketch

EXACT_FLOATS = 64_000_000
"""Parameters × steps up to which the updates themselves are kept (float32, 256 MB)."""

SKETCH_DIM = 8192
"""Numbers per update above that; an inner product is then off by about √(2/8192) = 1.6 % of the two norms' product."""


class UpdateRecorder:
    """Collects Δθ of every step and gives their inner products (the input of update concentration).

    Exact while parameters × steps stay under `EXACT_FLOATS`; above, each update is projected to `SKETCH_DIM` numbers
    by a count sketch, whose inner products are unbiased.

    Args:
        parameters: (name, tensor) of everything the optimiser changes.
        steps: how many updates will be recorded.
    """

    def __init__(self, parameters: Sequence[tuple[str, Tensor]], steps: int, *, seed: int = 0) -> None:
        self._names = [name for name, _ in parameters]
        self._tensors = [tensor.detach() for _, tensor in parameters]
        self._sizes = [tensor.numel() for tensor in self._tensors]
        self.exact = sum(self._sizes) * steps <= EXACT_FLOATS
        self._seed = seed
        self._before = self._flat()
        width = sum(self._sizes) if self.exact else SKETCH_DIM
        self._updates = torch.zeros(steps, width, dtype=torch.float32, device=self._before.device)
        self._count = 0

    def _flat(self) -> Float[Tensor, " parameters"]:
        return torch.cat([tensor.reshape(-1) for tensor in self._tensors]).float()

    def record(self) -> None:
        """Note what changed since the last call (call it once after every optimiser step)."""
        after = self._flat()
        update = torch.sub(after, self._before, out=self._before)
        if self.exact:
            self._updates[self._count] = update
        else:
            sketch = UpdateSketch(SKETCH_DIM, self._seed)
            for name, part in zip(self._names, update.split(self._sizes), strict=True):
                sketch.add(name, part)
            self._updates[self._count] = torch.as_tensor(sketch.vector())
        self._before = after
        self._count += 1

    def gram(self) -> Float[np.ndarray, "steps steps"]:
        """Inner products of the recorded updates, float64, in squared parameter units."""
        updates = self._updates[: self._count]
        return (updates @ updates.T).double().cpu().numpy()
