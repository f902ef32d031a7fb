"""Bytes that a pass keeps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass
class Bytes:
    """Of storages made since the block began."""

    now: int = 0
    peak: int = 0


class _Tracker(TorchDispatchMode):
    def __init__(self, counted: Bytes) -> None:
        super().__init__()
        self._counted = counted
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)}
        for leaf in tree_leaves(result):
            if torch.is_tensor(leaf) and leaf.untyped_storage()._cdata not in inputs:
                storage = leaf.untyped_storage()
                self._live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.sweep()
        return result

    def sweep(self) -> None:
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}
        self._counted.now = sum(size for _, size in self._live.values())
        self._counted.peak = max(self._counted.peak, self._counted.now)


@contextmanager
def live_bytes() -> Iterator[Bytes]:
    """Count the bytes of tensors that are made inside, as they come and go."""
    counted = Bytes()
    tracker = _Tracker(counted)
    with tracker:
        yield counted
    tracker.sweep()


def saved_bytes(work: Any) -> int:
    """Bytes that autograd keeps for the backward pass of what ``work`` computes, parameters left out."""
    storages: dict[int, tuple[Any, int]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            storages[storage._cdata] = (storage, storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(size for _, size in storages.values())
