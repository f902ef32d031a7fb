"""Draws under a token budget whose weights make weighted sums over the draw unbiased (priority sampling)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int


def priority_sample(
    sizes: Float[np.ndarray, " n"],
    costs: Int[np.ndarray, " n"],
    budget: int,
    draws: Float[np.ndarray, " n"],
) -> tuple[Int[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """Draw rows without replacement by falling priority sizeᵢ / drawᵢ, each one that still fits into the budget.

    Priority sampling (Duffield, Lund & Thorup 2007), for rows of unequal costs. With all other draws as they are, a row
    is drawn exactly if its priority is above a threshold tᵢ that does not depend on its own draw, so with probability
    pᵢ = min(1, sizeᵢ / tᵢ). Returned are the drawn rows in order and 1/pᵢ: E[Σ over drawn rows of xᵢ / pᵢ] = Σ over all
    rows of xᵢ, for any x. Rows that cost more than the budget are never drawn and not counted.

    Args:
        sizes: > 0; a row is drawn about in proportion to its size.
        costs: of each row, ≥ 1.
        budget: at least ``costs.min()``.
        draws: independent uniform numbers in (0, 1].
    """
    priority = sizes / draws
    order = np.argsort(-priority, kind="stable")
    order = order[costs[order] <= budget]
    cost = costs[order].astype(np.int64)
    drawn, left = _walk(cost, int(budget))
    # The threshold of a pick is the priority of the first row behind it that would not leave the pick's cost: one that
    # was passed over and lacked no more than this cost.
    skipped = np.flatnonzero(~drawn)
    lacking = cost[skipped] - left[skipped]
    least = np.minimum.accumulate(lacking)
    places = np.flatnonzero(drawn)
    first_skip = skipped[0] if len(skipped) else len(order)
    before = places < first_skip
    threshold = np.zeros(len(places))
    found = np.searchsorted(-least, -cost[places[before]], side="left")
    inside = found < len(skipped)
    threshold[np.flatnonzero(before)[inside]] = priority[order[skipped[found[inside]]]]
    for number in np.flatnonzero(~before).tolist():  # the few that fill what is left
        start = int(np.searchsorted(skipped, places[number]))
        blocking = np.flatnonzero(lacking[start:] <= cost[places[number]])
        if len(blocking):
            threshold[number] = priority[order[skipped[start + blocking[0]]]]
    rows = order[places]
    return rows, np.maximum(1.0, threshold / sizes[rows])


def _walk(costs: Int[np.ndarray, " n"], budget: int) -> tuple[np.ndarray, Int[np.ndarray, " n"]]:
    """Which rows fit, walked in this order, and the budget left before each."""
    drawn = np.zeros(len(costs), dtype=bool)
    before = np.full(len(costs), budget, dtype=np.int64)
    start, left = 0, budget
    while start < len(costs):
        spent = np.cumsum(costs[start:])
        fit = int(np.searchsorted(spent, left, side="right"))
        drawn[start : start + fit] = True
        before[start : start + fit] = left - np.concatenate([[0], spent[: fit - 1]]) if fit else 0
        left -= int(spent[fit - 1]) if fit else 0
        start += fit
        fits = np.flatnonzero(costs[start:] <= left)
        stop = start + int(fits[0]) if len(fits) else len(costs)
        before[start:stop] = left
        start = stop
    return drawn, before
