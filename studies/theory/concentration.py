"""The concentration corollary (paper, appendix B.2), made exact.

The selected gradients have the uncentred second moment M = mean g gᵀ, whose top-eigenvalue share is the concentration
C = λ_max(M)/tr M (eq. 4). A future task direction u gets the mean squared projection q(u) = mean (gᵀu)² = uᵀMu. For
random u with covariance Σ_f, centred and normal:

    E q = tr(M Σ_f),    Var q = 2 tr((M Σ_f)²).

So for directions without preference (Σ_f = I) the variance relative to the squared mean is 2·Σp², p = the eigenvalues'
shares of tr M: how unevenly future tasks are served depends on the spectrum of M alone, and C bounds it from both sides
(`relative_variance_bounds`; both bounds are attained and rise with C). All arrays are float64.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from longgame.errors import DataError

Matrix = Float[np.ndarray, "d d"]


def second_moment(gradients: Float[np.ndarray, "n d"]) -> Matrix:
    """M = mean g gᵀ, not centred.

    Raises:
        DataError: no gradient, or not a matrix.
    """
    if gradients.ndim != 2 or len(gradients) == 0:
        raise DataError(f"gradients of shape {gradients.shape}; a matrix of n ≥ 1 rows is needed.")
    return gradients.T @ gradients / len(gradients)


def projection_moments(moment: Matrix, future: Matrix) -> tuple[float, float]:
    """Mean and variance of q(u) = uᵀMu over future directions u ~ N(0, Σ_f).

    Args:
        moment: M.
        future: Σ_f, symmetric, positive semidefinite.
    """
    product = moment @ future
    return float(np.trace(product)), float(2 * np.trace(product @ product))


def relative_variance(moment: Matrix) -> float:
    """Var q / (E q)² over directions without preference: 2 tr(M²)/(tr M)²; from 2/d (flat) to 2 (one direction).

    NaN where M is zero: nothing was learned in any direction.
    """
    trace = float(np.trace(moment))
    return float(2 * (moment * moment).sum() / trace**2) if trace > 0 else float("nan")


def relative_variance_bounds(concentration: float, dimensions: int) -> tuple[float, float]:
    """Least and greatest `relative_variance` of any M of concentration C in d dimensions; both are attained.

    Least: the rest of the trace is spread evenly, 2(C² + (1 − C)²/(d − 1)). Greatest: as many eigenvalues as fit are as
    large as the first, 2(kC² + (1 − kC)²) with k = ⌊1/C⌋, at most 2C.

    Raises:
        DataError: C is not in [1/d, 1].
    """
    if not (1 - 1e-12) / dimensions <= concentration <= 1 + 1e-12:
        raise DataError(f"a concentration of {concentration} in {dimensions} dimensions; it lies in [1/d, 1].")
    c = float(np.clip(concentration, 1 / dimensions, 1.0))
    others = (1 - c) ** 2 / (dimensions - 1) if dimensions > 1 else 0.0
    many = np.floor(1 / c + 1e-12)
    return 2 * (c**2 + others), float(2 * (many * c**2 + max(1 - many * c, 0.0) ** 2))


def sample_projections(
    moment: Matrix, future: Matrix, count: int, rng: np.random.Generator
) -> Float[np.ndarray, " count"]:
    """q(u) of ``count`` random future directions u ~ N(0, Σ_f)."""
    values, vectors = np.linalg.eigh(future)
    root = vectors * np.sqrt(np.clip(values, 0, None))
    u = rng.standard_normal((count, len(moment))) @ root.T
    return np.einsum("nd,de,ne->n", u, moment, u, optimize=True)
