"""Diagnostics of what was selected and how the model moved (paper §3, Table 2). They explain; nothing optimises them.

Every mean is weighted by tokens, because tokens are what a budget is made of. What cannot be told is NaN.
"""

from __future__ import annotations

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
