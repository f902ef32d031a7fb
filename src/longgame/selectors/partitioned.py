"""Farthest-first in parts, for pools whose embeddings are too many for one traversal, with a bound of what it costs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from longgame.errors import BudgetError
from longgame.selectors.farthest import farthest_first
from longgame.selectors.nearest import Nearest
from longgame.selectors.ranking import fill_budget


@dataclass(frozen=True)
class Partitioned:
    """What `farthest_first_partitioned` picked, and how well that covers the candidates."""

    rows: Int[np.ndarray, " k"]
    """Picks, in pick order."""
    distance: Float[np.ndarray, " n"]
    """For rows of the core-set as `farthest_first` over it returns it, for others as over their part."""
    within: Float[np.ndarray, " n"]
    """Each row is at most so far from a pick (or a known point); 0 for the picks. An upper bound, rounding included."""
    apart: float
    """Smallest distance of two picks as they were made: no k − 1 points can cover the candidates within ½·apart."""

    @property
    def radius(self) -> float:
        """Every candidate is within this distance of a pick (or a known point)."""
        return float(self.within.max(initial=0.0))


def farthest_first_partitioned(
    embeddings: Float[np.ndarray, "n d"],
    tokens: Int[np.ndarray, " n"],
    budget: int,
    parts: int,
    share: float = 4.0,
    known: Float[np.ndarray, "m d"] | None = None,
    rank: Int[np.ndarray, " n"] | None = None,
    device: str = "cpu",
) -> Partitioned:
    """Farthest-first within each part of the candidates, then over the union of what the parts picked (a core-set).

    Row number i in rank order goes to part i mod ``parts``. Only one part's rows, or the core-set's, are copied at a
    time, so the embeddings may be a memory map; the work is n·k·share/parts + k·share·k distances in place of n·k.

    Coverage. Let r_p be how far a row of part p can be from the part's picks, and R_p how far a pick of part p can be
    from the final picks; both are the largest distances that the two traversals end with (a traversal's distances
    only fall, so the last one seen is an upper bound). By the triangle inequality every row of part p is within
    r_p + R_p of a final pick: that is `Partitioned.within`, row by row.

    Against the optimum. With equal costs and ``share ≥ parts`` each part picks as many as the whole, k. k picks and
    the point farthest from them lie pairwise at least r apart, and two of those k + 1 share a centre of the optimal
    k-centre solution, so r ≤ 2·OPT; this holds for r_p, and for R_p since the core-set is a subset of the
    candidates: the radius is at most 4·OPT (2·OPT unpartitioned; Gonzalez 1985; Malkomes et al. 2015). A smaller
    share gives up that factor beforehand; afterwards ``radius / (apart / 2)`` bounds it for the case at hand.

    Args:
        embeddings, tokens, budget, known, rank, device: those of `farthest_first`.
        parts: how many, ≥ 1.
        share: each part may spend ``share / parts`` of the budget (at least its cheapest row, at most all of it).

    Raises:
        BudgetError: ``parts`` or ``share`` is not positive.
    """
    if parts < 1 or share <= 0:
        raise BudgetError(f"{parts} parts with a share of {share:g} of the budget; give at least 1 and more than 0.")
    order = np.arange(len(embeddings)) if rank is None else np.argsort(rank)
    allowed = min(budget, int(np.ceil(budget * share / parts)))
    distance = np.full(len(embeddings), np.inf, dtype=embeddings.dtype)
    chosen: list[np.ndarray] = []
    for part in (order[start::parts] for start in range(parts)):
        if not len(part) or tokens[part].min() > budget:
            continue
        spend = max(allowed, int(tokens[part].min()))
        rows, distance[part] = farthest_first(embeddings[part], tokens[part], spend, known, device=device)
        chosen.append(part[rows])
    core = np.concatenate(chosen)
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    core = core[np.argsort(place[core])]
    rows, distance[core] = farthest_first(embeddings[core], tokens[core], budget, known, device=device)
    picks = core[rows]
    made = distance[picks[1:]] if known is None else distance[picks]
    missed = distance[core].astype(np.float64)
    missed[rows] = 0.0
    lost = np.zeros(parts)
    np.maximum.at(lost, place[core] % parts, missed)
    unreached = np.flatnonzero(np.isinf(distance))
    distance[unreached] = _to_nearest(embeddings, unreached, picks)
    within = distance + lost[place % parts]
    within[core] = missed
    within *= 1.0 + (embeddings.shape[1] + 8) * float(np.finfo(distance.dtype).eps)
    picks = np.concatenate([picks, _rest(picks, distance, tokens, budget, place)])
    within[picks] = 0.0
    return Partitioned(picks, distance, within, float(made.min(initial=np.inf)))


def _to_nearest(
    embeddings: Float[np.ndarray, "n d"], rows: Int[np.ndarray, " m"], picks: Int[np.ndarray, " k"]
) -> Float[np.ndarray, " m"]:
    """Distances of these rows (of a part that could not afford any) to the nearest pick."""
    if not len(rows):
        return np.zeros(0)
    points = embeddings[picks]
    table = Nearest(embeddings[rows], points[0], points)
    if table.others is not None:
        table.lower(np.arange(len(rows)), table.others, np.arange(len(points)))
    return np.sqrt(table.squared)


def _rest(
    picks: Int[np.ndarray, " k"],
    distance: Float[np.ndarray, " n"],
    tokens: Int[np.ndarray, " n"],
    budget: int,
    place: Int[np.ndarray, " n"],
) -> Int[np.ndarray, " r"]:
    """What the tokens left over still hold of the rows that no part picked, farthest from its part's picks first."""
    left = budget - int(tokens[picks].sum())
    fits = tokens <= left
    fits[picks] = False
    rows = np.flatnonzero(fits)
    if not len(rows):
        return rows
    order = rows[np.lexsort((place[rows], -distance[rows]))]
    return order[fill_budget(np.arange(len(order)), tokens[order], left)]
