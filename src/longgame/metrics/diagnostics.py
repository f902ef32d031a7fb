"""Diagnostics of what was selected and how the model moved (paper §3, Table 2). They explain; nothing optimises them.

Every mean is weighted by tokens, because tokens are what a budget is made of. What cannot be told is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Bool, Float, Int

from longgame.errors import DataError, NumericalError

Tokens = Int[np.ndarray, " n"] | Float[np.ndarray, " n"]


def capability_entropy(tokens: Int[np.ndarray, " clusters"] | Float[np.ndarray, " clusters"]) -> float:
    """H = −Σ p_c ln p_c in nats, p_c = share of the selected tokens in skill cluster c (at most ln of the clusters).

    NaN when nothing was selected.

    Raises:
        DataError: a negative count.
    """
    counts = np.asarray(tokens, dtype=float)
    if (counts < 0).any():
        raise DataError(f"a cluster holds {counts.min():g} selected tokens; counts cannot be negative.")
    if not counts.sum() > 0:
        return float("nan")
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum()) + 0.0  # + 0.0: one cluster gives 0, not −0


def token_weighted_mean(values: Float[np.ndarray, " n"] | Bool[np.ndarray, " n"], tokens: Tokens) -> float:
    """Σ tokens·value / Σ tokens; NaN when nothing was selected or a value is NaN (not measured).

    Raises:
        DataError: lengths differ or a token count is negative.
    """
    weights = np.asarray(tokens, dtype=float)
    if weights.shape != np.shape(values) or weights.ndim != 1:
        raise DataError(f"{np.shape(values)} values cannot be weighted by {weights.shape} token counts.")
    if (weights < 0).any():
        raise DataError(f"an example has {weights.min():g} tokens; counts cannot be negative.")
    if not weights.sum() > 0:
        return float("nan")
    return float(weights @ np.asarray(values, dtype=float) / weights.sum())


def mean_difficulty(percentile: Float[np.ndarray, " n"], tokens: Tokens) -> float:
    """Token-weighted mean of the selected examples' pool percentile of base-model NLL, 0–1 (Table 2)."""
    return token_weighted_mean(percentile, tokens)


def mean_quality(quality: Float[np.ndarray, " n"], tokens: Tokens) -> float:
    """Token-weighted mean quality score of the selected examples, 0–1 (Table 2)."""
    return token_weighted_mean(quality, tokens)


def noisy_share(noisy: Bool[np.ndarray, " n"] | Float[np.ndarray, " n"], tokens: Tokens) -> float:
    """Share of the selected tokens that belong to examples damaged on purpose; NaN where that is not known."""
    return token_weighted_mean(noisy, tokens)


def _top_share(gram: Float[np.ndarray, "k k"], eps: float) -> float:
    trace = float(np.trace(gram))
    if not trace > 0:
        return float("nan")
    top = scipy.linalg.eigvalsh(gram, subset_by_index=[len(gram) - 1, len(gram) - 1])[0]
    return float(min(top, trace) / (trace + eps))


def selection_concentration(gradients: Float[np.ndarray, "n d"], eps: float = 0.0) -> float:
    """Selection concentration C(S) = λ_max(M)/(tr M + ε), M = mean of g gᵀ, not centred (Definition 1, eq. 4).

    From 1/min(n, d) (spread evenly) to 1 (one direction). Computed on the smaller of the n×n Gram and the d×d second
    moment matrix, whose non-zero eigenvalues agree. ε defaults to 0, so that the value does not depend on the
    gradients' scale; the case ε guards against, all gradients zero (or none), is NaN.

    Raises:
        NumericalError: a gradient is NaN or infinite. DataError: not a matrix, or ε negative.
    """
    g = np.asarray(gradients, dtype=np.float64)
    if g.ndim != 2 or eps < 0:
        raise DataError(f"gradients of shape {g.shape} with ε={eps}; a matrix n × d and ε ≥ 0 are needed.")
    if len(g) == 0:
        return float("nan")
    bad = np.flatnonzero(~np.isfinite(g).all(axis=1))
    if bad.size:
        raise NumericalError(f"{bad.size} of {len(g)} gradients are NaN or infinite (first: row {bad[0]}).")
    return _top_share((g @ g.T if len(g) < g.shape[1] else g.T @ g) / len(g), eps)


def update_concentration(gram: Float[np.ndarray, "steps steps"]) -> float:
    """Share of the largest eigenvalue of the optimiser updates' Gram matrix: eq. 4 over actual updates (Table 2).

    Args:
        gram: inner products of the updates with each other.

    NaN when there is no update or all are zero.

    Raises:
        NumericalError: an entry is NaN or infinite. DataError: not square, or not symmetric.
    """
    matrix = np.asarray(gram, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise DataError(f"a Gram matrix of shape {matrix.shape} is not square.")
    if not np.isfinite(matrix).all():
        raise NumericalError("the Gram matrix of the updates holds NaN or infinite entries.")
    if not np.allclose(matrix, matrix.T, rtol=1e-4, atol=1e-6 * float(np.abs(matrix).max(initial=0.0))):
        raise DataError("the Gram matrix of the updates is not symmetric.")
    return _top_share((matrix + matrix.T) / 2, 0.0)


# Adapter drift in effective weight space (paper §3, trajectory diagnostics).


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
