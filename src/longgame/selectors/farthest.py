"""Farthest-first traversal, exact and lazy: the picks of the textbook loop for the price of matrix products."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int

from longgame.selectors.distance import squared_to
from longgame.selectors.pairs import Cloud, PairFilter, scale_of

_ACTIVE = 4096
"""Candidates among which picks are made before the rest is looked at again."""
_AHEAD = 64
"""Likely next picks whose products with the active candidates are computed together."""
_ROWS = {"cpu": 1024, "cuda": 8192}
"""Rows of one product, by device."""
_PICKS = {"cpu": 1024, "cuda": 8192}
_PREPARED = 8192
"""Picks that are held ready for products at once."""
_CELLS = 4096
"""Pairs evaluated directly at a time."""
_TOO_MANY = 64
"""A finer precision is worth its price where more than one pair in so many is evaluated directly in vain."""
_NEVER = np.iinfo(np.int64).max


def farthest_first(
    embeddings: Float[np.ndarray, "n d"],
    tokens: Int[np.ndarray, " n"],
    budget: int,
    known: Float[np.ndarray, "m d"] | None = None,
    rank: Int[np.ndarray, " n"] | None = None,
    device: str | torch.device = "cpu",
) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, " n"]]:
    """Pick rows by farthest-first traversal (Gonzalez 1985) until no row fits into the budget.

    The picks are, bit for bit, those of the loop that after every pick lowers each row's distance to its nearest pick
    and takes the largest. Distances are direct differences in the embeddings' own precision, so equal rows have equal
    distances. Nothing of that loop is approximated, but most of it is put off or excluded:

    - Lazy: a row's last known distance is an upper bound, since it only falls. Picks are made among the rows with the
      largest bounds, kept exact, for as long as the best of them is above every other row's bound.
    - Blocked: rows that must catch up with the picks since are multiplied with all of those at once; pairs that a
      proven bound does not exclude, a few per row, are evaluated directly (`PairFilter`).

    Beside the embeddings it takes about 50 bytes a row and blocks of fixed size.

    Args:
        embeddings: n candidates, float32 or float64 (others become float32), finite.
        tokens: what each costs; a candidate that no longer fits is passed over for good.
        budget: tokens, at least ``tokens.min()``.
        known: points that count as picked already; without them the first pick is the row nearest to the mean.
        rank: order of the rows in sums and ties (a permutation of 0…n−1); by default the order they stand in.
        device: where the products run; it changes no pick.

    Returns:
        The rows in pick order, and for each row the distance that it was picked (or last considered) with.
    """
    rows = np.ascontiguousarray(embeddings, dtype=np.float64 if embeddings.dtype == np.float64 else np.float32)
    walk = _Walk(rows, np.asarray(tokens), int(budget), known, rank, torch.device(device))
    return walk.run()


def mean_row(
    rows: Float[np.ndarray, "n d"], rank: Int[np.ndarray, " n"] | None = None, step: int = 8192
) -> Float[np.ndarray, " d"]:
    """Mean, summed in float64 in the order of the ranks (so the order of the rows changes no bit), in their dtype."""
    order = None if rank is None else np.argsort(rank)
    total = np.zeros(rows.shape[1])
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        total += rows[part if order is None else order[part]].sum(axis=0, dtype=np.float64)
    return (total / len(rows)).astype(rows.dtype)


class _Walk:
    """The state of one traversal.

    ``nearest[i]`` is the squared distance of row i to the nearest known point and of the first ``seen[i]`` picks. A row
    takes part until there are ``until[i]`` picks: then it was picked, or it no longer fitted.
    """

    def __init__(
        self,
        rows: Float[np.ndarray, "n d"],
        tokens: Int[np.ndarray, " n"],
        budget: int,
        known: Float[np.ndarray, "m d"] | None,
        rank: Int[np.ndarray, " n"] | None,
        device: torch.device,
    ) -> None:
        n = len(rows)
        self.rows, self.tokens, self.left, self.rank, self.device = rows, tokens, budget, rank, device
        self.centre = mean_row(rows, rank)
        points = None if known is None else np.ascontiguousarray(known, dtype=rows.dtype)
        scale = scale_of(rows) if points is None else scale_of(rows, points)
        self.cloud = Cloud(rows, self.centre, scale)
        self.known = None if points is None else Cloud(points, self.centre, scale)
        self.filter = PairFilter(rows.shape[1], rows.dtype, scale, device)
        self.nearest = np.full(n, np.inf, dtype=rows.dtype)
        self.seen = np.zeros(n, dtype=np.int64)
        self.until = np.full(n, _NEVER, dtype=np.int64)
        self.picked = np.zeros(n, dtype=np.int64)
        self.count = 0
        self._by_cost = np.argsort(tokens, kind="stable")
        self._costs = tokens[self._by_cost]
        self._open = n

    def run(self) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, " n"]]:
        self._close()
        if self.known is not None:
            self._lower(np.arange(len(self.rows)), self.known, np.arange(len(self.known.rows)), None)
        elif self._open:
            self._start()
        while self._open and self._epoch():
            pass
        late = np.flatnonzero(self.seen < np.minimum(self.until, self.count))
        self._catch_up(late)
        return self.picked[: self.count].copy(), np.sqrt(self.nearest)

    def _start(self) -> None:
        """Pick the row nearest to the mean; for want of a nearest pick it carries its distance to the farthest row."""
        gap = squared_to(self.rows, self.centre)
        gap[self.until == 0] = np.inf
        tied = np.flatnonzero(gap == gap.min())
        first = int(tied[0] if self.rank is None else tied[np.argmin(self.rank[tied])])
        self._take(first)
        self.nearest = squared_to(self.rows, self.rows[first])
        self.nearest[first] = self.nearest.max()
        self.seen[:] = 1
        self._close()

    def _take(self, row: int) -> None:
        self.picked[self.count] = row
        self.until[row] = self.seen[row] = self.count
        self.count += 1
        self.left -= int(self.tokens[row])

    def _close(self) -> bool:
        """Let rows that no longer fit take part no more; whether there were any."""
        if not self._open or self._costs[self._open - 1] <= self.left:
            return False
        fitting = int(np.searchsorted(self._costs[: self._open], self.left, side="right"))
        closing = self._by_cost[fitting : self._open]
        self.until[closing] = np.minimum(self.until[closing], self.count)
        self._open = fitting
        return True

    def _epoch(self) -> bool:
        """Make every pick that can be told from the rows with the largest bounds alone; whether rows are left."""
        active, (bound, bound_rank) = self._most_distant()
        if not len(active):
            return False
        self._catch_up(active[self.seen[active] < self.count])
        front = _Front(self, active)
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
                self.seen[active[closed]] = self.count
                front.drop(closed)
        going = front.near >= 0
        self.nearest[active[going]] = front.near[going]
        self.seen[active[going]] = self.count
        return True

    def _ranks(self, rows: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
        return rows if self.rank is None else self.rank[rows]

    def _most_distant(self) -> tuple[Int[np.ndarray, " m"], tuple[float, int]]:
        """The rows first in line (largest bound, then rank), by rank; and the bound and rank of the next one."""
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
            rows = rows[np.argsort(self.seen[rows], kind="stable")]
            first = int(self.seen[rows[0]])
            self._lower(rows, self.cloud, self.picked[first : self.count], first)
            self.seen[rows] = np.minimum(self.until[rows], self.count)

    def _lower(
        self, rows: Int[np.ndarray, " m"], cloud: Cloud, index: Int[np.ndarray, " p"], first: int | None
    ) -> None:
        """Lower the distances of the rows by these points of a cloud, pick number ``first`` and on (None: known)."""
        height = _ROWS[self.device.type]
        for begin in range(0, len(index), _PREPARED):
            piece = index[begin : begin + _PREPARED]
            right = self.filter.picks(cloud, piece)
            for start in range(0, len(rows), height):
                part = rows[start : start + height]
                valid = None
                if first is not None:
                    valid = self.until[part] - (first + begin)
                    if valid.max() <= 0 or self.seen[part].min() >= first + begin + len(piece):
                        continue
                    valid = None if valid.min() >= len(piece) else valid
                while not self._tile(part, cloud, piece, right, valid):
                    self.filter.sharpen()
                    right = self.filter.picks(cloud, piece)

    def _tile(
        self,
        rows: Int[np.ndarray, " m"],
        cloud: Cloud,
        index: Int[np.ndarray, " p"],
        right: torch.Tensor,
        valid: Int[np.ndarray, " m"] | None,
    ) -> bool:
        """`_lower` for one block of rows; False if a finer precision would exclude more pairs."""
        left = self.filter.candidates(self.cloud, rows)
        norms = self.cloud.norms[rows]
        tau = self.filter.thresholds(norms, self.nearest[rows])
        width = _PICKS[self.device.type]
        for start in range(0, len(index), width):
            product = self.filter.product(left, right[start : start + width])
            hit = np.flatnonzero(_host(product.amax(dim=1)) >= tau)
            if not len(hit):
                continue
            values = _host(product if len(hit) == len(rows) else product[torch.from_numpy(hit).to(self.device)])
            if valid is not None:
                values[np.arange(start, start + values.shape[1]) >= valid[hit, None]] = -np.inf
                kept = values.max(axis=1) >= tau[hit]
                hit, values = hit[kept], values[kept]
            likely = values.argmax(axis=1)
            self._evaluate(rows[hit], cloud, index[start + likely])
            tau[hit] = self.filter.thresholds(norms[hit], self.nearest[rows[hit]])
            values[np.arange(len(hit)), likely] = -np.inf
            at, column = np.nonzero(values >= tau[hit, None])
            if len(at) * _TOO_MANY > product.numel() and self.filter.finer:
                return False
            self._evaluate(rows[hit[at]], cloud, index[start + column])
            tau[hit] = self.filter.thresholds(norms[hit], self.nearest[rows[hit]])
        return True

    def _evaluate(self, rows: Int[np.ndarray, " c"], cloud: Cloud, index: Int[np.ndarray, " c"]) -> None:
        """Lower the distances of rows (a row may stand more than once) by one point each, directly."""
        for start in range(0, len(rows), _CELLS):
            part = rows[start : start + _CELLS]
            difference = self.rows[part]
            np.subtract(difference, cloud.rows[index[start : start + _CELLS]], out=difference)
            np.minimum.at(self.nearest, part, np.square(difference, out=difference).sum(axis=1))


class _Front:
    """The active rows of one epoch, in the order of their ranks; ``near`` is exact, and −1 where a row is done."""

    def __init__(self, walk: _Walk, active: Int[np.ndarray, " m"]) -> None:
        self.walk, self.active = walk, active
        self.rows = walk.rows[active]
        self.near = walk.nearest[active]
        self.norms = walk.cloud.norms[active]
        self._spare = 0
        self._prepare()

    def _prepare(self) -> None:
        self._left = self.walk.filter.candidates(self.walk.cloud, self.active)
        self._tau = self.walk.filter.thresholds(self.norms, np.maximum(self.near, 0))
        self._ahead: dict[int, int] = {}
        self._products = np.zeros((0, 0))

    def best(self) -> int | None:
        """Place of the largest distance; None where every row is done."""
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
        found = squared_to(self.rows[hit], self.rows[place])
        closer = found < self.near[hit]
        self._spare += len(hit) - int(closer.sum()) - len(self.near) // _TOO_MANY
        hit = hit[closer]
        self.near[hit] = found[closer]
        self._tau[hit] = self.walk.filter.thresholds(self.norms[hit], self.near[hit])
        if self._spare > len(self.near) and self.walk.filter.sharpen():
            self._spare = 0
            self._prepare()

    def _look_ahead(self, place: int) -> None:
        """Products of this row, and of those likely to follow, with all active rows."""
        count = min(_AHEAD, len(self.near))
        likely = np.argpartition(self.near, len(self.near) - count)[-count:]
        likely = np.unique(np.append(likely, place))
        right = self.walk.filter.picks(self.walk.cloud, self.active[likely])
        self._products = _host(self.walk.filter.product(right, self._left))
        self._ahead = {int(row): number for number, row in enumerate(likely)}


def _host(values: torch.Tensor) -> np.ndarray:
    return (values.float() if values.dtype is torch.bfloat16 else values).cpu().numpy()
