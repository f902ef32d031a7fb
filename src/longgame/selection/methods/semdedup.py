"""SemDeDup: of examples that mean the same, keep one.

Paper: Abbas et al. 2023, arXiv 2303.09540.
Formula: in each k-means cell, drop what has a cosine above 1 − ε with a kept one; the kept ones in random order.
Cost: E, one pass of the base model for embeddings, once per example.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from longgame.data.examples import Pool
from longgame.selection.algorithms.clusters import cells_for, k_means, without_near_duplicates
from longgame.selection.algorithms.nearest import unit_rows
from longgame.selection.base import Selector
from longgame.selection.budget import COMPAT, REJECTED, choice, count, fill_by_score, id_order, number
from longgame.selection.history import History, Selection
from longgame.signals.base import Signals


class SemDeDupSelector(Selector):
    """Drop near-duplicates, then draw uniformly from what is kept (arXiv 2303.09540).

    Embeddings are scaled to unit length and clustered by k-means. In each cell the candidates are considered from the
    farthest from the center to the nearest (ties by id). One is dropped if its cosine with a *kept* one is above 1 − ε:
    a dropped candidate drops no other.

    Args:
        epsilon: ε in (0, 2]: the larger, the more is dropped.
        clusters: k-means cells; default: the square root of the number of candidates.
        rejected: ``last``: dropped candidates are picked after all others, the least similar first; ``never``.
        compat: ``reference``: a dropped candidate drops others, too, as in the published code, which keeps fewer.

    ``scores``: ``similarity`` of what is dropped is its largest cosine with a candidate kept before it in its cell (NaN
    of what is kept). ``score`` of what is kept is its random number in [0, 1); of what is dropped −1 − ``similarity``,
    or NaN (``never``).
    """

    name = "semdedup"
    two_rounds = "near-duplicates are dropped in cells of a part, then in cells of the picks of all parts"
    requires = ("embedding",)

    def __init__(
        self,
        epsilon: float = 0.05,
        clusters: int | None = None,
        rejected: Literal["last", "never"] = "last",
        compat: Literal["paper", "reference"] = "paper",
    ) -> None:
        self.epsilon = number(self.name, "epsilon", epsilon, above=0, most=2)
        self.clusters = None if clusters is None else count(self.name, "clusters", clusters)
        self.rejected = choice(self.name, "rejected", rejected, REJECTED)
        self.compat = choice(self.name, "compat", compat, COMPAT)

    def select(
        self,
        pool: Pool,
        signals: Signals,
        history: History,  # noqa: ARG002
        budget: int,
        rng: np.random.Generator,
    ) -> Selection:
        by_id = id_order(pool.ids)
        units = unit_rows(signals["embedding"][by_id])
        stays, similarity = self._keep(units, rng)
        order, extra = self._rank(units, stays, rng)
        dropped = -1.0 - similarity if self.rejected == "last" else np.nan
        columns = {"score": np.where(stays, order, dropped), "similarity": similarity, **extra}
        place = np.argsort(by_id)
        terms = {name: column[place] for name, column in columns.items()}
        return Selection.of(pool, fill_by_score(terms["score"], pool.ids, pool.costs, budget), terms)

    def _keep(
        self, units: Float[np.ndarray, "n d"], rng: np.random.Generator
    ) -> tuple[Bool[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Which rows are kept, and the similarity of each dropped one to those kept before it."""
        labels, distance = k_means(units, self.clusters or cells_for(len(units)), rng)
        order = np.argsort(-distance, kind="stable")
        stays, similarity = without_near_duplicates(units, labels, order, self.epsilon, self.compat == "reference")
        return stays, similarity.astype(np.float64)

    def _rank(
        self,
        units: Float[np.ndarray, "n d"],
        stays: Bool[np.ndarray, " n"],  # noqa: ARG002 - for a subclass that ranks what is kept
        rng: np.random.Generator,
    ) -> tuple[Float[np.ndarray, " n"], dict[str, Float[np.ndarray, " n"]]]:
        """A number ≥ 0 per row, highest first, for what is kept; and further terms."""
        return rng.random(len(units)), {}
