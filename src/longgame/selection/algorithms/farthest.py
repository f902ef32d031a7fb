"""Farthest-first traversal, exact and lazy: the picks of the textbook loop at the price of matrix products.

`farthest_first` is one traversal; `farthest_first_partitioned` bounds memory by traversing parts, then their picks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from longgame.errors import BudgetError
from longgame.selection.algorithms.nearest import Nearest, squared_to
from longgame.selection.budget import fill_budget

_ACTIVE = 4096
"""Candidates among which picks are made before all others are considered again."""
_AHEAD = 64
"""Likely next picks whose products with the active candidates are computed together."""
_TOLERATED = 64
"""One useless evaluation per pick for so many active rows is tolerated."""
_PATIENCE = 16
"""Useless evaluations per active row within one epoch after which a finer precision is used."""
_MEAN_STEP = 8192
_NEVER = np.iinfo(np.int64).max


def farthest_first(
    embeddings: Float[np.ndarray, "n d"],
    tokens: Int[np.ndarray, " n"],
    budget: int,
    start_points: Float[np.ndarray, "m d"] | None = None,
    rank: Int[np.ndarray, " n"] | None = None,
    device: str = "cpu",
) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, " n"]]:
    """Pick rows by farthest-first traversal (Gonzalez 1985) until no row fits into the budget.

    The picks are, bit for bit, those of the loop that after every pick lowers each row's distance to its nearest pick
    and takes the largest. Distances are direct differences in the embeddings' own precision, so equal rows have equal
    distances. Nothing is approximated, but most of the loop is postponed or excluded:

    - Lazy: a row's last distance is an upper bound, since distances only fall. Picks are made among the rows with the
      largest bounds, which are exact, as long as the best of them is above every other row's bound.
    - Blocked: rows that are behind are multiplied with all newer picks at once; pairs that a proven bound does not
      exclude, a few per row, are evaluated directly (`PairFilter`).

    Beside the embeddings it takes about 50 bytes per row and blocks of fixed size (60 MB at d = 384).

    Args:
        embeddings: n candidates, float32 or float64 (others become float32), finite.
        tokens: what each costs; a candidate that no longer fits is passed over for good.
        budget: tokens, at least ``tokens.min()``.
        start_points: points that count as picked already; without them the first pick is the row nearest to the mean.
        rank: order of the rows in sums and ties (a permutation of 0…n−1); default: their own order.
        device: where the products run; it changes no pick.

    Returns:
        The rows in pick order, and for each row the distance at which it was picked or last considered.
    """
    rows = np.ascontiguousarray(embeddings, dtype=np.float64 if embeddings.dtype == np.float64 else np.float32)
    return _Traversal(rows, np.asarray(tokens), int(budget), start_points, rank, device).run()


def mean_row(rows: Float[np.ndarray, "n d"], rank: Int[np.ndarray, " n"] | None = None) -> Float[np.ndarray, " d"]:
    """Mean in the rows' dtype, summed in float64 in rank order (so the order of the rows changes no bit)."""
    order = None if rank is None else np.argsort(rank)
    total = np.zeros(rows.shape[1])
    for start in range(0, len(rows), _MEAN_STEP):
        part = slice(start, start + _MEAN_STEP)
        total += rows[part if order is None else order[part]].sum(axis=0, dtype=np.float64)
    return (total / len(rows)).astype(rows.dtype)


class _Traversal:
    """The state of one traversal.

    ``nearest[i]`` is the squared distance of row i to the nearest of the start points and the first ``met[i]`` picks. A
    row takes part until there are ``until[i]`` picks: then it was picked, or it no longer fitted.
    """

    def __init__(
        self,
        rows: Float[np.ndarray, "n d"],
        tokens: Int[np.ndarray, " n"],
        budget: int,
        start_points: Float[np.ndarray, "m d"] | None,
        rank: Int[np.ndarray, " n"] | None,
        device: str,
    ) -> None:
        n = len(rows)
        self.rows, self.tokens, self.left, self.rank = rows, tokens, budget, rank
        self.center = mean_row(rows, rank)
        self.table = Nearest(rows, self.center, start_points, device)
        self.nearest = self.table.squared
        self.met = np.zeros(n, dtype=np.int64)
        self.until = np.full(n, _NEVER, dtype=np.int64)
        self.picked = np.zeros(n, dtype=np.int64)
        self.count = 0
        self._by_cost = np.argsort(tokens, kind="stable")
        self._costs = tokens[self._by_cost]
        self._open = n

    def run(self) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, " n"]]:
        self._close()
        if self.table.others is not None:
            self.table.lower(np.arange(len(self.rows)), self.table.others, np.arange(len(self.table.others.rows)))
        elif self._open:
            self._start()
        while self._open and self._epoch():
            pass
        late = np.flatnonzero(self.met < np.minimum(self.until, self.count))
        self._catch_up(late)
        return self.picked[: self.count].copy(), np.sqrt(self.nearest)

    def _start(self) -> None:
        """Pick the row nearest to the mean; having no nearest pick, it gets its distance to the farthest row."""
        fits = np.flatnonzero(self.until == _NEVER)
        gap = squared_to(self.rows, self.center)[fits]
        tied = fits[gap == gap.min()]
        first = int(tied[np.argmin(self._ranks(tied))])
        self._take(first)
        self.nearest[:] = squared_to(self.rows, self.rows[first])
        self.nearest[first] = self.nearest.max()
        self.met[:] = 1
        self._close()

    def _take(self, row: int) -> None:
        self.picked[self.count] = row
        self.until[row] = self.met[row] = self.count
        self.count += 1
        self.left -= int(self.tokens[row])

    def _close(self) -> bool:
        """Retire rows that no longer fit; whether there were any."""
        if not self._open or self._costs[self._open - 1] <= self.left:
            return False
        fitting = int(np.searchsorted(self._costs[: self._open], self.left, side="right"))
        closing = self._by_cost[fitting : self._open]
        self.until[closing] = np.minimum(self.until[closing], self.count)
        self._open = fitting
        return True

    def _epoch(self) -> bool:
        """Make every pick that the rows with the largest bounds decide alone; whether rows are left."""
        active, (bound, bound_rank) = self._most_distant()
        if not len(active):
            return False
        self._catch_up(active[self.met[active] < self.count])
        front = _Front(self.table, active)
        while (place := front.best()) is not None:
            value = front.near[place]
            if value < bound or (value == bound and self._ranks(active[place : place + 1])[0] > bound_rank):
                break
            self.nearest[active[place]] = value
            self._take(int(active[place]))
            front.lower(place)
            if self._close():
                closed = np.flatnonzero((self.until[active] == self.count) & (front.near >= 0))
                self.nearest[active[closed]] = front.near[closed]
                self.met[active[closed]] = self.count
                front.drop(closed)
        going = front.near >= 0
        self.nearest[active[going]] = front.near[going]
        self.met[active[going]] = self.count
        return True

    def _ranks(self, rows: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
        return rows if self.rank is None else self.rank[rows]

    def _most_distant(self) -> tuple[Int[np.ndarray, " m"], tuple[float, int]]:
        """The rows with the largest bounds (ties by rank), in rank order; and bound and rank of the next row."""
        going = np.flatnonzero(self.until == _NEVER)
        if len(going) <= _ACTIVE:
            rows, following = going, (-1.0, 0)
        else:
            bounds = self.nearest[going]
            cut = np.partition(bounds, len(going) - _ACTIVE)[len(going) - _ACTIVE]
            tied = going[bounds == cut]
            tied = tied[np.argsort(self._ranks(tied), kind="stable")]
            above = going[bounds > cut]
            room = _ACTIVE - len(above)
            rows = np.concatenate([above, tied[:room]])
            if len(tied) > room:
                following = float(cut), int(self._ranks(tied[room : room + 1])[0])
            else:
                value = bounds[bounds < cut].max()
                following = float(value), int(self._ranks(going[bounds == value]).min())
        return rows[np.argsort(self._ranks(rows), kind="stable")], following

    def _catch_up(self, rows: Int[np.ndarray, " m"]) -> None:
        """Make the distances of these rows exact for all picks so far."""
        if len(rows):
            rows = rows[np.argsort(self.met[rows], kind="stable")]
            first = int(self.met[rows[0]])
            index = self.picked[first : self.count]
            self.table.lower(rows, self.table.cloud, index, self.met[rows] - first, self.until[rows] - first)
            self.met[rows] = np.minimum(self.until[rows], self.count)


class _Front:
    """The active rows of one epoch, in rank order; ``near`` is exact, and −1 once a row is done."""

    def __init__(self, table: Nearest, active: Int[np.ndarray, " m"]) -> None:
        self.table, self.active = table, active
        self.rows = table.cloud.rows[active]
        self.near = table.squared[active]
        self.norms = table.cloud.norms[active]
        self._place, self._spare = table.base, 0
        self._prepare()

    def _prepare(self) -> None:
        self._filter = self.table.filters[self._place]
        self._left = self._filter.candidates(self.table.cloud, self.active)
        self._tau = self._filter.thresholds(self.norms, np.maximum(self.near, 0))
        self._ahead: dict[int, int] = {}
        self._products = np.zeros((0, 0))

    def best(self) -> int | None:
        """Place of the largest distance; None if every row is done."""
        place = int(self.near.argmax())
        return place if self.near[place] >= 0 else None

    def drop(self, places: Int[np.ndarray, " m"]) -> None:
        self.near[places] = -1.0
        self._tau[places] = np.inf

    def lower(self, place: int) -> None:
        """Take the row at this place out and lower the distances of all others to it."""
        if place not in self._ahead:
            self._look_ahead(place)
        self.drop(np.array([place]))
        hit = np.flatnonzero(self._products[self._ahead[place]] >= self._tau)
        if not len(hit):
            return
        squared = squared_to(self.rows[hit], self.rows[place])
        closer = squared < self.near[hit]
        self._spare += len(hit) - int(closer.sum()) - len(self.near) // _TOLERATED
        hit = hit[closer]
        self.near[hit] = squared[closer]
        self._tau[hit] = self._filter.thresholds(self.norms[hit], self.near[hit])
        if self._spare > _PATIENCE * len(self.near) and self._place + 1 < len(self.table.filters):
            self._place, self._spare = self._place + 1, 0
            self._prepare()

    def _look_ahead(self, place: int) -> None:
        """Compute the products of this row, and of those likely to follow, with all active rows."""
        count = min(_AHEAD, len(self.near))
        likely = np.argpartition(self.near, len(self.near) - count)[-count:]
        likely = np.unique(np.append(likely, place))
        right, products = self._filter.picks(self.table.cloud, self.active[likely]), self.table.products
        self._products = products.host(products.product(right, self._left))
        self._ahead = {int(row): number for number, row in enumerate(likely)}


@dataclass(frozen=True)
class Partitioned:
    """What `farthest_first_partitioned` picked, and how well that covers the candidates."""

    rows: Int[np.ndarray, " k"]
    """Picks, in pick order."""
    distance: Float[np.ndarray, " n"]
    """As `farthest_first` returns it: over the core-set for its rows, over their part for all others."""
    within: Float[np.ndarray, " n"]
    """Upper bound (rounding included) of each row's distance to a pick or a start point; 0 for the picks."""
    lower_bound: float
    """No rows of the same budget (beside the start points) cover the candidates within less (`least_radius`)."""

    @property
    def radius(self) -> float:
        """Every candidate is within this distance of a pick (or a start point)."""
        return float(self.within.max(initial=0.0))


def farthest_first_partitioned(
    embeddings: Float[np.ndarray, "n d"],
    tokens: Int[np.ndarray, " n"],
    budget: int,
    parts: int,
    share: float = 4.0,
    start_points: Float[np.ndarray, "m d"] | None = None,
    rank: Int[np.ndarray, " n"] | None = None,
    device: str = "cpu",
) -> Partitioned:
    """Farthest-first within each part of the candidates, then over the union of what the parts picked (a core-set).

    Row i in rank order goes to part i mod ``parts``. Only the rows of one part, or of the core-set, are copied at a
    time, so the embeddings may be a memory map. The work is n·k·share/parts + k·share·k distances instead of n·k.

    Coverage: let r_p be the largest distance of a row of part p to the part's picks, and R_p that of a pick of part p
    to the final picks. Both are distances with which the two traversals end; a traversal's distances only fall, so its
    last ones are upper bounds. By the triangle inequality every row of part p is within r_p + R_p of a final pick:
    that is `Partitioned.within`, row by row.

    Compared with the optimum: with equal costs and ``share ≥ parts`` each part picks as many as the whole, k. k picks
    and the point farthest from them are pairwise at least r apart, and two of those k + 1 share a center of the optimal
    k-center solution, so r ≤ 2·OPT. This holds for r_p, and for R_p since the core-set is a subset of the candidates:
    the radius is at most 4·OPT (2·OPT unpartitioned; Gonzalez 1985; Malkomes et al. 2015). A smaller share has no such
    factor in advance; afterwards ``radius / lower_bound`` bounds it, where a lower bound is known.

    Args:
        embeddings, tokens, budget, start_points, rank, device: those of `farthest_first`.
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
    part_picks: list[np.ndarray] = []
    for part in (order[start::parts] for start in range(parts)):
        if not len(part) or tokens[part].min() > budget:
            continue
        spend = max(allowed, int(tokens[part].min()))
        rows, distance[part] = farthest_first(embeddings[part], tokens[part], spend, start_points, device=device)
        part_picks.append(part[rows])
    core = np.concatenate(part_picks)
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    core = core[np.argsort(place[core])]
    rows, distance[core] = farthest_first(embeddings[core], tokens[core], budget, start_points, device=device)
    picks = core[rows]
    pick_distance = distance[picks[1:]] if start_points is None else distance[picks]
    apart = float(pick_distance.min(initial=np.inf))
    core_distance = distance[core].astype(np.float64)
    core_distance[rows] = 0.0
    part_radius = np.zeros(parts)
    np.maximum.at(part_radius, place[core] % parts, core_distance)
    unreached = np.flatnonzero(np.isinf(distance))
    distance[unreached] = distances_to(embeddings[unreached], embeddings[picks])
    within = distance + part_radius[place % parts]
    within[core] = core_distance
    inexact = rounding(embeddings.shape[1], distance.dtype)
    within *= inexact
    centers = embeddings[picks] if start_points is None else np.concatenate([embeddings[picks], start_points])
    beyond = float(distances_to(embeddings[core[[core_distance.argmax()]]], centers)[0])
    lower = least_radius(apart, beyond, len(picks), budget // int(tokens.min())) / inexact
    picks = np.concatenate([picks, _remaining(picks, distance, tokens, budget, place)])
    within[picks] = 0.0
    return Partitioned(picks, distance, within, lower)


def least_radius(apart: float, beyond: float, picks: int, most: int) -> float:
    """Radius below which no ``most`` rows cover the candidates; 0 where none is known.

    The picks and a candidate that is ``beyond`` away from them are picks + 1 rows, pairwise at least s = min(apart,
    beyond) apart. At most as many rows as there are picks have two of those nearest to the same row, which is s/2 away
    from one of the two. More rows than that (cheaper ones, for the same budget) may cover the candidates within less.

    Args:
        apart: smallest distance of two picks (and of a pick to a start point).
        beyond: distance of one candidate to its nearest pick (or start point).
        picks: how many.
        most: rows that the budget holds, at most.
    """
    return min(apart, beyond) / 2 if picks >= most else 0.0


def rounding(width: int, dtype: np.dtype) -> float:
    """Factor by which distances of rows of this width, or a sum of two, are wrong at most."""
    return 1.0 + (width + 8) * float(np.finfo(dtype).eps)


def distances_to(embeddings: Float[np.ndarray, "m d"], points: Float[np.ndarray, "k d"]) -> Float[np.ndarray, " m"]:
    """Distance of each row to the nearest of these points."""
    if not len(embeddings):
        return np.zeros(0)
    table = Nearest(np.ascontiguousarray(embeddings), points[0], points)
    if table.others is not None:
        table.lower(np.arange(len(embeddings)), table.others, np.arange(len(points)))
    return np.sqrt(table.squared)


def _remaining(
    picks: Int[np.ndarray, " k"],
    distance: Float[np.ndarray, " n"],
    tokens: Int[np.ndarray, " n"],
    budget: int,
    place: Int[np.ndarray, " n"],
) -> Int[np.ndarray, " r"]:
    """Rows for the tokens left over, among those that no part picked: farthest from its part's picks first."""
    left = budget - int(tokens[picks].sum())
    fits = tokens <= left
    fits[picks] = False
    rows = np.flatnonzero(fits)
    if not len(rows):
        return rows
    order = rows[np.lexsort((place[rows], -distance[rows]))]
    return order[fill_budget(np.arange(len(order)), tokens[order], left)]
