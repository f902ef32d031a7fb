"""What the signals are measured against: the published ways, written from their formulas, and a library of today.

Each module runs in the benchmark's process, on the same model and the same `longgame.data.examples.Pool`, and returns
rows in the pool's order. None of them is part of the package.
"""

from __future__ import annotations

import time

import torch


def synchronised(device: torch.device) -> float:
    """Return the clock's seconds once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
