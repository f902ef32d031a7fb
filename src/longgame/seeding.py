"""Named, independent random streams.

A stream is known by the run's seed and a path of names, never by how many numbers were drawn before it, so a
trial that resumes at stage 4 draws what an undisturbed one draws. The global generators are never touched.
"""

from __future__ import annotations

import hashlib

import numpy as np


def stream_seed(seed: int, *path: str | int) -> int:
    """Return a 63-bit integer that depends on ``seed`` and every element of ``path``."""
    text = "\x1f".join([str(int(seed)), *(f"{type(part).__name__}:{part}" for part in path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *path: str | int) -> np.random.Generator:
    """Return a NumPy generator of its own for the stream named by ``(seed, *path)``."""
    return np.random.default_rng(stream_seed(seed, *path))
