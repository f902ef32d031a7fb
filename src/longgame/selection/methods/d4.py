"""D4: drop near-duplicates, then drop what is most typical of its cluster.

Paper: Tirumala et al. 2023, arXiv 2308.12284.
Formula: SemDeDup, k-means again over what is kept, then farthest from the center of the own cluster first.
Cost: E, one pass of the base model for embeddings, once per example.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from longgame.selection.algorithms.clusters import cells_for, k_means
from longgame.selection.methods.semdedup import SemDeDupSelector


class D4Selector(SemDeDupSelector):
    """Kept by `SemDeDupSelector`, clustered again, farthest from the center first; ties by id (arXiv 2308.12284).

    Without the second clustering, the cells of duplicates would decide what is typical.

    Args:
        epsilon, clusters, rejected, compat: those of `SemDeDupSelector`; ``clusters`` holds for both times.

    ``scores``: ``similarity`` as in `SemDeDupSelector`; ``distance`` to the center of the second cluster (0 of what
    was dropped). ``score`` of what is kept is the distance; of what is dropped −1 − ``similarity``, or NaN.
    """

    name = "d4"
    family = "diversity"

    def _rank(
        self, units: Float[np.ndarray, "n d"], stays: Bool[np.ndarray, " n"], rng: np.random.Generator
    ) -> tuple[Float[np.ndarray, " n"], dict[str, Float[np.ndarray, " n"]]]:
        distance = np.zeros(len(units))
        distance[stays] = k_means(units[stays], self.clusters or cells_for(int(stays.sum())), rng)[1]
        return distance, {"distance": distance}
