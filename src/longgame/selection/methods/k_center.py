"""k-center: picks such that no candidate is far from all of them.

Paper: Sener & Savarese 2018, arXiv 1708.00489.
Formula: repeatedly the candidate whose nearest pick is farthest away (L2 distance of embeddings).
Cost: E, one pass of the base model for embeddings, once per example.
"""

from __future__ import annotations

from longgame.selection.methods.diversity import DiversitySelector


class KCenterSelector(DiversitySelector):
    """Greedy k-center by exact farthest-first traversal: ``diversity`` under its field name (arXiv 1708.00489).

    The start is fixed: the candidate nearest to the mean embedding. ``score`` is a plain distance, not its square.

    Args:
        use_history: the picks of earlier stages and rounds are centers already, as the paper's labeled pool.
        partitions: in so many parts, for pools too large for one traversal.
        device: where the matrix products run (``cpu``, ``cuda``); it changes no pick.
    """

    name = "k-center"

    def __init__(self, use_history: bool = False, partitions: int | None = None, device: str = "cpu") -> None:
        super().__init__("farthest-first", use_history=use_history, partitions=partitions, device=device)
