"""TSDS: candidates near the target set, but many different ones, by optimal transport.

Paper: Liu, Karbasi & Rekatsinas 2024, arXiv 2410.11303.
Formula: min over γ of α/C · Σ γ_ij d_ij + (1 − α) · M · max ρ_j γ_ij, each target's row of γ summing to 1/M.
Cost: E, one pass of the base model, or of an embedder, over candidates and target set.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from longgame.data.examples import Pool
from longgame.selection.algorithms.nearest import unit_rows
from longgame.selection.base import Selector
from longgame.selection.budget import fill_by_score, gumbel_by_id, id_order, number
from longgame.selection.history import History, Selection
from longgame.signals.base import Signals

_CELLS = 1 << 22
"""Cells of one block of distances."""
_FIRST_NEIGHBORS = 64


class TSDSSelector(Selector):
    """Draw without replacement in proportion to each candidate's share in an optimal transport (arXiv 2410.11303).

    M target items each spread a mass of 1/M over their nearest candidates, at most t / (M ρ) on each. The density ρ of
    a candidate counts itself and its near-duplicates, so that a group of these gets the share of one. A small t costs
    longer distances d, a large one leaves less variety; the optimum is where both costs meet, found exactly. The mass
    of a candidate is its sum over the target items. Embeddings are scaled to unit length.

    The published code draws with replacement, unseeded, with d and C in the units of its embeddings. Here C is the mean
    distance of the target items to the candidates, so that α means the same for any embedder.

    Args:
        alpha: weight of closeness to the target set against variety, in (0, 1).
        epsilon: ε in (0, 2]: a cosine above 1 − ε is that of near-duplicates.

    ``scores``: ``mass``, ``density`` (0 where no target item needs it) and ``distance`` to the nearest target item.
    ``score`` is log(mass) + a Gumbel number; candidates without mass come after all others, the nearest first.
    """

    name = "tsds"
    requires = ("embedding", "target_embedding")

    def __init__(self, alpha: float = 0.6, epsilon: float = 0.05) -> None:
        self.alpha = number(self.name, "alpha", alpha, above=0, most=1)
        self.epsilon = number(self.name, "epsilon", epsilon, above=0, most=2)

    def select(
        self,
        pool: Pool,
        signals: Signals,
        history: History,  # noqa: ARG002
        budget: int,
        rng: np.random.Generator,
    ) -> Selection:
        by_id = id_order(pool.ids)
        units = unit_rows(signals["embedding"][by_id].astype(np.float64))
        targets = unit_rows(signals["target_embedding"].astype(np.float64))
        mass, density, distance = transport_masses(units, targets, self.alpha, (2.0 * self.epsilon) ** 0.5)
        columns = {"mass": mass, "density": density, "distance": distance}
        place = np.argsort(by_id)
        terms = {name: column[place] for name, column in columns.items()}
        has_mass = terms["mass"] > 0
        with np.errstate(divide="ignore"):
            drawn = np.log(terms["mass"]) + gumbel_by_id(pool.ids, rng)
        behind = drawn[has_mass].min() - 1.0 - terms["distance"]
        terms["score"] = np.where(has_mass, drawn, behind)
        return Selection.of(pool, fill_by_score(terms["score"], pool.ids, pool.costs, budget), terms)


def transport_masses(
    units: Float[np.ndarray, "n d"], targets: Float[np.ndarray, "m d"], alpha: float, reach: float
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Return Σ_i γ_ij of the optimal γ, the densities ρ (0: not needed), and the distances to the nearest target.

    ρ_j = Σ over candidates j' within ``reach`` of 1 − d(j, j')² / reach². With s = 1/t, target i fills its nearest
    candidates up to a total of Σ 1/ρ = s. The cost falls with s by (1 − α)/s² and rises by α/(C M s²) times the sum
    over targets of Σ_k (d_next − d_k)/ρ_k over the k filled ones, so the optimum is the first s at which that sum
    reaches (1 − α) C M / α.
    """
    n, m = len(units), len(targets)
    nearest, mean = np.full(n, np.inf), 0.0
    neighbors = min(n, _FIRST_NEIGHBORS)
    density = np.zeros(n)
    while True:
        rows, gaps = np.empty((m, neighbors), dtype=np.int64), np.empty((m, neighbors))
        mean = 0.0
        step = max(1, _CELLS // n)
        for start in range(0, m, step):
            distances = _distances(targets[start : start + step], units)
            mean += float(distances.sum())
            np.minimum(nearest, distances.min(axis=0), out=nearest)
            order = np.sort(np.argpartition(distances, neighbors - 1, axis=1)[:, :neighbors], axis=1)
            near = np.take_along_axis(distances, order, axis=1)
            by_distance = np.argsort(near, axis=1, kind="stable")
            rows[start : start + step] = np.take_along_axis(order, by_distance, axis=1)
            gaps[start : start + step] = np.take_along_axis(near, by_distance, axis=1)
        needed = np.unique(rows)
        fresh = needed[density[needed] == 0]
        density[fresh] = _densities(units, fresh, reach)
        limit = (1.0 - alpha) * (mean / (n * m)) * m / alpha
        size, complete = _spread(gaps, density[rows], limit, neighbors == n)
        if complete:
            break
        neighbors = min(n, 4 * neighbors)
    mass = np.zeros(n)
    weights = 1.0 / (density[rows] * m * size)
    left = np.full(m, 1.0 / m)
    for place in range(neighbors):  # nearest first, each up to its cap, until the target's mass is spent
        share = np.minimum(left, weights[:, place])
        np.add.at(mass, rows[:, place], share)
        left -= share
    return mass, np.where(mass > 0, density, 0.0), nearest


def _spread(
    gaps: Float[np.ndarray, "m k"], density: Float[np.ndarray, "m k"], limit: float, every: bool
) -> tuple[float, bool]:
    """Return the optimal s, and whether these neighbors suffice to know it (``every``: there are no others)."""
    reach = np.cumsum(1.0 / density, axis=1)  # s at which a target has filled this neighbor
    spent = np.cumsum(gaps / density, axis=1)
    following = np.concatenate([gaps[:, 1:], gaps[:, -1:]], axis=1)
    slope = following * reach - spent  # Σ (d_next − d_k)/ρ_k once this neighbor is filled
    events = np.sort(reach, axis=None)
    low, high = 0, len(events) - 1
    top = float(reach[:, -1].min())  # beyond, a target has no further neighbor here

    def total(size: float) -> float:
        """Sum of the slopes just behind s."""
        places = (reach <= size * (1 + 1e-12)).sum(axis=1) - 1
        return float(np.where(places >= 0, slope[np.arange(len(slope)), np.maximum(places, 0)], 0.0).sum())

    while low < high:
        middle = (low + high) // 2
        if total(events[middle]) >= limit:
            high = middle
        else:
            low = middle + 1
    size = min(float(events[low]), top)
    return size, every or (events[low] < top and total(float(events[low])) >= limit)


def _densities(units: Float[np.ndarray, "n d"], rows: Int[np.ndarray, " u"], reach: float) -> Float[np.ndarray, " u"]:
    """ρ of these rows: at least 1, their own part."""
    result = np.empty(len(rows))
    step = max(1, _CELLS // len(units))
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        parts = np.maximum(0.0, 1.0 - np.square(_distances(units[block], units)) / reach**2)
        parts[np.arange(len(block)), block] = 1.0
        result[start : start + step] = parts.sum(axis=1)
    return result


def _distances(left: Float[np.ndarray, "a d"], right: Float[np.ndarray, "b d"]) -> Float[np.ndarray, "a b"]:
    """Distances of unit rows."""
    return np.sqrt(np.maximum(0.0, 2.0 - 2.0 * (left @ right.T)))
