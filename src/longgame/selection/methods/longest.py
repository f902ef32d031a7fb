"""Longest responses first: a baseline that costs nothing ("Long is more for alignment").

Paper: Zhao et al. 2024, arXiv 2402.04833.
Formula: number of response tokens, highest first; a token budget holds few of them.
Cost: 0, the length alone.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from longgame.data.examples import Pool
from longgame.selection.base import Selector
from longgame.selection.history import History
from longgame.signals.base import Signals


class LongestSelector(Selector):
    """Most response tokens first; ties by id (arXiv 2402.04833, §2)."""

    name = "longest"
    by_row = True

    def score(self, pool: Pool, signals: Signals, history: History) -> Float[np.ndarray, " n"]:  # noqa: ARG002
        return np.asarray(pool.response_tokens, dtype=np.float64)
