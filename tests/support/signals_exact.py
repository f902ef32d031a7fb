"""Gradient signals held against a loop of whole-model autograd, one example at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from longgame.data.examples import Pool
from longgame.signals.engine import SignalEngine
from longgame.signals.projection import UpdateSketch
from support.signals import autograd_gradients

DIM = 64
SEED = 5


def engine_of(model: torch.nn.Module, **options: object) -> SignalEngine:
    return SignalEngine(model, **({"pad_token_id": 0, "sketch_dim": DIM, "seed": SEED} | options))


def is_lora(name: str) -> bool:
    return ".lora_" in name


def reference(
    model: torch.nn.Module, pool: Pool, keep: Callable[[str], bool] = is_lora
) -> tuple[np.ndarray, np.ndarray]:
    """Norms (n,) and sketches (n, DIM) of the per-example gradients of every parameter whose name is kept."""
    norms, sketches = [], []
    for gradient in autograd_gradients(model, pool, keep):
        norms.append(float(torch.stack([part.double().norm() for part in gradient.values()]).norm()))
        total = UpdateSketch(DIM, SEED)
        for name, part in gradient.items():
            total.add(name, part)
        sketches.append(total.vector())
    return np.array(norms), np.array(sketches)


def assert_exact(
    model: torch.nn.Module,
    pool: Pool,
    keep: Callable[[str], bool] = is_lora,
    tolerance: float = 1e-5,
    **options: object,
) -> None:
    """Every example's norm and sketch lie within ``tolerance`` (relative) of the loop's."""
    computed = engine_of(model, **options)(pool, ["grad_norm", "grad_sketch"])
    norms, sketches = reference(model, pool, keep)
    assert norms.min() > 0
    np.testing.assert_allclose(computed["grad_norm"], norms, rtol=tolerance)
    gaps = np.linalg.norm(computed["grad_sketch"] - sketches, axis=1) / np.linalg.norm(sketches, axis=1)
    assert gaps.max() < tolerance, gaps
