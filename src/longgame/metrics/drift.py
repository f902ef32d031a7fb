"""Adapter drift in effective weight space (paper §3, trajectory diagnostics).

A LoRA module's effective weight is W = scale · B A. Only W is compared, never B or A: (B G, G⁻¹ A) is the same
adapter for every invertible G. Inner products come from low-rank traces, ⟨B₁A₁, B₂A₂⟩ = Σ (B₁ᵀB₂) ∘ (A₁A₂ᵀ), so no
out × in matrix is ever formed. A model is a sequence of such modules, in the same order at every time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from longgame.errors import DataError


class Factors(NamedTuple):
    """One LoRA module: effective weight ``scale · B @ A``."""

    B: Float[np.ndarray, "out r"]
    A: Float[np.ndarray, "r in"]
    scale: float


Adapter = Sequence[Factors | tuple[np.ndarray, np.ndarray, float]]


def _unit(module: Factors | tuple[np.ndarray, np.ndarray, float]) -> tuple[np.ndarray, np.ndarray]:
    """Float64 factors with the scale folded into B."""
    B, A, scale = module
    if B.ndim != 2 or A.ndim != 2 or B.shape[1] != A.shape[0]:
        raise DataError(
            f"LoRA factors of shapes {B.shape} and {A.shape} do not multiply; give B (out, r) and A (r, in)."
        )
    return float(scale) * B.astype(np.float64), A.astype(np.float64)


def _same_modules(first: Sequence[object], second: Sequence[object]) -> None:
    if len(first) != len(second):
        raise DataError(f"one adapter has {len(first)} modules, the other {len(second)}; list the same modules.")


def adapter_difference(before: Adapter, after: Adapter) -> list[Factors]:
    """Factors of W_after − W_before, of rank 2r.

    For equal ranks they are [B' − B, B] and [A'; A' − A]: small steps do not drown in the rounding of large weights.

    Raises:
        DataError: the adapters do not have the same modules.
    """
    _same_modules(before, after)
    modules = []
    for old, new in zip(before, after, strict=True):
        (B0, A0), (B1, A1) = _unit(old), _unit(new)
        if (B0.shape[0], A0.shape[1]) != (B1.shape[0], A1.shape[1]):
            raise DataError(f"a module is {B0.shape[0]}×{A0.shape[1]} before and {B1.shape[0]}×{A1.shape[1]} after.")
        if B0.shape == B1.shape:
            modules.append(Factors(np.hstack([B1 - B0, B0]), np.vstack([A1, A1 - A0]), 1.0))
        else:
            modules.append(Factors(np.hstack([B1, -B0]), np.vstack([A1, A0]), 1.0))
    return modules


def adapter_inner(first: Adapter, second: Adapter) -> float:
    """Σ over modules of the Frobenius inner product ⟨W₁, W₂⟩, by low-rank traces.

    Raises:
        DataError: the adapters do not have the same modules.
    """
    _same_modules(first, second)
    total = 0.0
    for one, two in zip(first, second, strict=True):
        (B1, A1), (B2, A2) = _unit(one), _unit(two)
        if (B1.shape[0], A1.shape[1]) != (B2.shape[0], A2.shape[1]):
            raise DataError(f"modules of {B1.shape[0]}×{A1.shape[1]} and {B2.shape[0]}×{A2.shape[1]} do not compare.")
        total += float(((B1.T @ B2) * (A1 @ A2.T)).sum())
    return total


def update_norm(before: Adapter, after: Adapter) -> float:
    """Frobenius norm of W_after − W_before over all modules."""
    difference = adapter_difference(before, after)
    return float(np.sqrt(max(adapter_inner(difference, difference), 0.0)))


def adapter_drift(before: Adapter, after: Adapter, start: Adapter | None = None) -> float:
    """Drift of stage t: 1 − cos(ΔW_t, Σ_{s<t} ΔW_s), from 0 (on in the same direction) to 2 (straight back).

    Args:
        before: the adapter before stage t, W_{t−1}.
        after: the adapter after stage t; ΔW_t = W_t − W_{t−1}.
        start: the adapter before the first stage, W_0; None where W_0 = 0, as at LoRA's own start (B = 0).

    Returns:
        NaN where one of the two does not exist: at stage 1, or when nothing moved.

    Raises:
        DataError: the adapters do not have the same modules.
    """
    update = adapter_difference(before, after)
    past = list(before) if start is None else adapter_difference(start, before)
    return _one_minus_cosine(adapter_inner(update, past), adapter_inner(update, update), adapter_inner(past, past))


def dense_drift(past: Sequence[Float[np.ndarray, ...]], update: Sequence[Float[np.ndarray, ...]]) -> float:
    """`adapter_drift` for full fine-tuning, from the weight changes themselves.

    Args:
        past: per parameter, the sum of the earlier stages' changes, W_{t−1} − W_0.
        update: per parameter, this stage's change, W_t − W_{t−1}.

    Raises:
        DataError: the two do not have the same parameters.
    """
    _same_modules(past, update)
    inner = squared_update = squared_past = 0.0
    for old, new in zip(past, update, strict=True):
        if old.shape != new.shape:
            raise DataError(f"a parameter changed by {old.shape} before and {new.shape} now; list the same ones.")
        a, b = old.astype(np.float64).ravel(), new.astype(np.float64).ravel()
        inner += float(a @ b)
        squared_past += float(a @ a)
        squared_update += float(b @ b)
    return _one_minus_cosine(inner, squared_update, squared_past)


def _one_minus_cosine(inner: float, squared_first: float, squared_second: float) -> float:
    if not (squared_first > 0 and squared_second > 0):
        return float("nan")
    return 1.0 - float(np.clip(inner / np.sqrt(squared_first) / np.sqrt(squared_second), -1.0, 1.0))
