"""Rows by score, ties by id, and how a token budget is filled with them, in time linear in the pool."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from longgame.errors import BudgetError

_CHUNK = 4096


def check_budget(tokens: Int[np.ndarray, " n"], budget: int) -> None:
    """Raise BudgetError where the budget is not positive or holds none of the candidates."""
    if budget <= 0:
        raise BudgetError(f"the token budget is {budget}; it must be at least 1. Raise `budget`.")
    shortest = int(tokens.min()) if len(tokens) else 0
    if not len(tokens) or shortest > budget:
        raise BudgetError(
            f"a budget of {budget} tokens holds none of {len(tokens)} candidates (the shortest has {shortest}). "
            "Raise `budget`, use fewer rounds, or drop long examples."
        )


def fill_budget(order: Int[np.ndarray, " n"], tokens: Int[np.ndarray, " n"], budget: int) -> Int[np.ndarray, " k"]:
    """Walk the rows in pick order and keep each that still fits into the budget.

    A candidate that would overflow is passed over and the walk goes on, so that selectors at the same budget end
    within one short example of each other. Runs in O(n).

    Raises:
        BudgetError: nothing fits, or the budget is not positive.
    """
    check_budget(tokens, budget)
    order = np.asarray(order, dtype=np.int64)
    return order[_walk(tokens[order], int(budget), int(tokens.min()))[0]]


def _walk(costs: Int[np.ndarray, " n"], left: int, shortest: int) -> tuple[Int[np.ndarray, " k"], int]:
    """Places of the costs that are kept, and what is left; ``shortest`` is what must be left to look any further."""
    kept = []
    start = 0
    while start < len(costs) and left >= shortest:
        # the first stretch goes up to where the budget overflows; after that, short ones, with what fits in them
        stop = len(costs) if not start else start + _CHUNK
        places = start + np.flatnonzero(costs[start:stop] <= left)
        while len(places):
            spent = np.cumsum(costs[places])
            fit = int(np.searchsorted(spent, left, side="right"))
            kept.append(places[:fit])
            left -= int(spent[fit - 1])
            if not start and fit < len(places):
                stop = int(places[fit])
                break
            places = places[fit:][costs[places[fit:]] <= left]
        start = stop
    return (np.concatenate(kept) if kept else np.zeros(0, dtype=np.int64)), left


def id_order(ids: tuple[str, ...]) -> Int[np.ndarray, " n"]:
    """Rows in the order of their ids; where sums run in this order, the order of the pool changes no bit."""
    return np.asarray(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)


def descending(score: Float[np.ndarray, " n"], ids: tuple[str, ...]) -> Int[np.ndarray, " n"]:
    """Rows by falling score; ties by id, so that the order of the pool never decides (NaN last)."""
    return _by_score(np.arange(len(ids)), -np.asarray(score, dtype=np.float64), ids)


def _by_score(rows: Int[np.ndarray, " m"], keys: Float[np.ndarray, " n"], ids: tuple[str, ...]) -> np.ndarray:
    """These rows by rising key; only runs of equal keys are sorted by id."""
    order = rows[np.argsort(keys[rows], kind="stable")]
    sorted_keys = keys[order]
    same = (sorted_keys[1:] == sorted_keys[:-1]) | (np.isnan(sorted_keys[1:]) & np.isnan(sorted_keys[:-1]))
    edges = np.flatnonzero(np.diff(np.r_[False, same, False]))
    for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        order[start : stop + 1] = sorted(order[start : stop + 1].tolist(), key=ids.__getitem__)
    return order


def fill_by_score(
    score: Float[np.ndarray, " n"], ids: tuple[str, ...], tokens: Int[np.ndarray, " n"], budget: int
) -> Int[np.ndarray, " k"]:
    """`fill_budget` of `descending`, without sorting what is not reached: O(n), and k log k for the k picks.

    A partition by score splits off about as many rows as the budget holds; only they are sorted, and only where
    scores are equal by id. What does not fit when they are walked never will, so the next part is chosen among the
    rest that still fits. (A score that most of the pool shares makes the ids of all those be sorted.)

    Raises:
        BudgetError: nothing fits, or the budget is not positive.
    """
    check_budget(tokens, budget)
    keys = -np.asarray(score, dtype=np.float64)
    keys[np.isnan(keys)] = np.inf  # NaN comes last, with −∞, and then ids decide: split them off below
    unmeasured = np.isnan(np.asarray(score, dtype=np.float64))
    left, kept = int(budget), []
    for group in (~unmeasured, unmeasured):
        rest = np.flatnonzero(group & (tokens <= left))
        while len(rest):
            wanted = int(1.1 * left / float(tokens[rest].mean())) + 64
            head = rest
            if len(rest) > 2 * wanted:
                near = keys[rest] <= np.partition(keys[rest], wanted)[wanted]
                head, rest = rest[near], rest[~near]
            else:
                rest = rest[:0]
            head = _by_score(head, keys, ids)
            places, left = _walk(tokens[head], left, 0)
            kept.append(head[places])
            rest = rest[tokens[rest] <= left]
    return np.concatenate(kept)
