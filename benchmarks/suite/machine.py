"""What this machine can do at most: its parts, its memory bandwidth, its matrix products."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch


@dataclass(frozen=True)
class Machine:
    """Where a benchmark ran, and the limits that bound it."""

    processor: str
    threads: int
    device: str
    memory_gb_per_s: float
    """Read bandwidth of a large matrix-vector product, GB/s."""
    float32_gflops: float
    bfloat16_gflops: float
    """Rate of a 1024³ matrix product."""
    torch: str
    numpy: str
    python: str

    def __str__(self) -> str:
        return (
            f"{self.processor}, {self.threads} threads, {self.device}: {self.memory_gb_per_s:.1f} GB/s read, "
            f"{self.float32_gflops:.0f} GFLOP/s float32, {self.bfloat16_gflops:.0f} GFLOP/s bfloat16; "
            f"torch {self.torch}, NumPy {self.numpy}, Python {self.python}"
        )


def measure(device: torch.device | None = None) -> Machine:
    """Measure the limits of a device (default: the CPU), a second or two."""
    device = device or torch.device("cpu")
    return Machine(
        _processor(),
        torch.get_num_threads(),
        torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        _bandwidth(device),
        _product_rate(torch.float32, device),
        _product_rate(torch.bfloat16, device),
        torch.__version__,
        np.__version__,
        platform.python_version(),
    )


def _bandwidth(device: torch.device) -> float:
    matrix = torch.ones(1 << 16, 1 << 10, device=device)
    vector = torch.ones(1 << 10, device=device)
    return matrix.nbytes / _best(lambda: matrix @ vector, device) / 1e9


def _product_rate(dtype: torch.dtype, device: torch.device) -> float:
    square = torch.ones(1024, 1024, dtype=dtype, device=device)
    return 2 * 1024**3 / _best(lambda: square @ square, device) / 1e9


def _best(work: Callable[[], object], device: torch.device, repeats: int = 7) -> float:
    times = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begun)
    return min(times[1:])


def _processor() -> str:
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
