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
    assert_alignment_exact(model, pool, keep, tolerance, **options)


def assert_alignment_exact(
    model: torch.nn.Module,
    pool: Pool,
    keep: Callable[[str], bool] = is_lora,
    tolerance: float = 1e-5,
    **options: object,
) -> None:
    """Every example's cosine with two weighted sums of all gradients lies within ``tolerance`` of the sums' lengths."""
    rows = np.stack(
        [
            torch.cat([part.double().flatten() for part in gradient.values()]).numpy()
            for gradient in autograd_gradients(model, pool, keep)
        ]
    )
    weights = np.stack([np.linspace(0.1, 1, len(pool)), np.linspace(1, 0, len(pool)) ** 2], axis=1)
    directions = weights.T @ (rows / np.linalg.norm(rows, axis=1, keepdims=True))
    engine = engine_of(model, **options)
    engine.measure_directions(pool, weights)
    cosines = engine(pool, ["future_alignment"])["future_alignment"]
    expected = rows @ directions.T / np.linalg.norm(rows, axis=1, keepdims=True)
    gaps = np.abs(cosines - expected) / np.linalg.norm(directions, axis=1)
    assert gaps.max() < 10 * tolerance, gaps
