"""Tools of selectors: order rows by score (ties by id), fill a token budget, draw, scale terms, check parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from longgame.errors import BudgetError, PluginError, RecipeError, did_you_mean

NORMALISE: tuple[str, ...] = ("rank", "z")
"""Scales of the terms of a score (`scale`), so that a weight of 1 means the same for each."""
REJECTED: tuple[str, ...] = ("last", "never")
"""What a method does with candidates that it rejects: pick them after all others, or never."""
COMPAT: tuple[str, ...] = ("paper", "reference")
"""Whether a method follows its paper, or the published code where that deviates and people rely on it."""
MOST_TIED = 0.5
"""Share of the candidates that may tie at the cut; above it, ids make most of a selector's choice."""
_CHUNK = 4096


def missing_last(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return the values, with a number below all of them where one is missing (NaN).

    All missing ones are equal, so that ids decide among them. Without any, the values are returned as they are.
    """
    missing = np.isnan(values)
    if not missing.any():
        return values
    wide = values.astype(np.float64)
    lowest, highest = (0.0, 0.0) if missing.all() else (np.nanmin(wide), np.nanmax(wide))
    return np.where(missing, lowest - 1.0 - (highest - lowest), wide)


def lowered(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return numbers in the same order, all below all of the values."""
    wide = values.astype(np.float64)
    return np.asarray(wide - wide.max() - 1.0 + min(0.0, float(wide.min())))


def check_budget(tokens: Int[np.ndarray, " n"], budget: int) -> None:
    """Raise BudgetError if the budget is not positive or holds none of the candidates."""
    if budget <= 0:
        raise BudgetError(f"the token budget is {budget}; it must be at least 1. Raise `budget`.")
    shortest = int(tokens.min()) if len(tokens) else 0
    if not len(tokens) or shortest > budget:
        raise BudgetError(
            f"a budget of {budget} tokens holds none of {len(tokens)} candidates (the shortest has {shortest}). "
            "Raise `budget`, use fewer rounds, or drop long examples."
        )


def fill_budget(order: Int[np.ndarray, " n"], tokens: Int[np.ndarray, " n"], budget: int) -> Int[np.ndarray, " k"]:
    """Return, in this order, each row that still fits into the budget.

    A row that does not fit is passed over and the walk continues, so selectors at the same budget end within one short
    example of each other. Runs in O(n).

    Raises:
        BudgetError: nothing fits, or the budget is not positive.
    """
    check_budget(tokens, budget)
    order = np.asarray(order, dtype=np.int64)
    return order[_walk(tokens[order], int(budget), int(tokens.min()))[0]]


def _walk(costs: Int[np.ndarray, " n"], left: int, shortest: int) -> tuple[Int[np.ndarray, " k"], int]:
    """Places of the costs that fit, and the budget left; the walk ends when less than ``shortest`` is left."""
    fitting = [np.zeros(0, dtype=np.int64)]
    start = 0
    while start < len(costs) and left >= shortest:
        # the first stretch ends where the budget overflows; short ones follow, each with only what fits
        stop = len(costs) if not start else start + _CHUNK
        places = start + np.flatnonzero(costs[start:stop] <= left)
        while len(places):
            spent = np.cumsum(costs[places])
            fit = int(np.searchsorted(spent, left, side="right"))
            fitting.append(places[:fit])
            left -= int(spent[fit - 1])
            if not start and fit < len(places):
                stop = int(places[fit])
                break
            places = places[fit:][costs[places[fit:]] <= left]
        start = stop
    return np.concatenate(fitting), left


def fill_rest(
    rows: Int[np.ndarray, " k"], order: Int[np.ndarray, " n"], tokens: Int[np.ndarray, " n"], budget: int
) -> Int[np.ndarray, " m"]:
    """Return these picks and, behind them, each other row of ``order`` that still fits, in this order."""
    others = order[~np.isin(order, rows)]
    places, _ = _walk(tokens[others], int(budget) - int(tokens[rows].sum()), 0)
    return np.concatenate([rows, others[places]])


def uniform_by_id(ids: tuple[str, ...], rng: np.random.Generator) -> Float[np.ndarray, " n"]:
    """Draw a number in [0, 1) for each id, in the order of the sorted ids, so that the order of the pool never counts.

    Rows by falling number are a uniform draw without replacement.
    """
    draws = np.empty(len(ids))
    draws[id_order(ids)] = rng.random(len(ids))
    return draws


def gumbel_by_id(ids: tuple[str, ...], rng: np.random.Generator) -> Float[np.ndarray, " n"]:
    """Draw a standard Gumbel number for each id, in the order of the sorted ids.

    Rows by falling ``log(weight) + number`` are a draw without replacement in which each next pick has a probability
    proportional to its weight (Gumbel top-k; Efraimidis & Spirakis 2006).
    """
    draws = np.empty(len(ids))
    draws[id_order(ids)] = rng.gumbel(size=len(ids))
    return draws


def id_order(ids: tuple[str, ...]) -> Int[np.ndarray, " n"]:
    """Rows in the order of their ids; sums in this order do not depend on the order of the pool.

    Sorts by the 8 bytes after the prefix that all ids share (UTF-8 preserves the order of characters), and by full ids
    only if those are equal.
    """
    if not ids:
        return np.zeros(0, dtype=np.int64)
    first, last = min(ids), max(ids)
    start = next((place for place, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    heads = [name[start : start + 8].encode("utf-8", "surrogatepass") for name in ids]
    keys = np.array(heads, dtype="S8").view(">u8").astype(np.uint64)
    order = np.argsort(keys, kind="stable")
    _sort_runs(order, keys[order], ids)
    return order


def descending(score: Float[np.ndarray, " n"], ids: Sequence[str]) -> Int[np.ndarray, " n"]:
    """Rows by falling score, NaN last; ties by id, so the order of the pool never decides."""
    return by_score(np.arange(len(ids)), -np.asarray(score, dtype=np.float64), ids)


def by_score(rows: Int[np.ndarray, " m"], keys: Float[np.ndarray, " n"], ids: Sequence[str]) -> np.ndarray:
    """These rows by rising key; only runs of equal keys are sorted by id."""
    order = rows[np.argsort(keys[rows], kind="stable")]
    _sort_runs(order, keys[order], ids)
    return order


def _sort_runs(order: Int[np.ndarray, " m"], keys: np.ndarray, ids: Sequence[str]) -> None:
    """Sort each stretch of equal keys by id, in place."""
    same = keys[1:] == keys[:-1]
    if keys.dtype.kind == "f":
        same |= np.isnan(keys[1:]) & np.isnan(keys[:-1])
    edges = np.flatnonzero(np.diff(np.r_[False, same, False]))
    for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        order[start : stop + 1] = sorted(order[start : stop + 1].tolist(), key=ids.__getitem__)


def fill_by_score(
    score: Float[np.ndarray, " n"], ids: tuple[str, ...], tokens: Int[np.ndarray, " n"], budget: int
) -> Int[np.ndarray, " k"]:
    """Fill the budget by falling score, ties by id; rows with a score of NaN are never picked.

    The picks are those of `fill_budget` over `descending`, in O(n) and k log k for the k picks: a partition by score
    splits off about as many rows as the budget holds, and only those are sorted. What does not fit when they are walked
    never will, so the next part comes from the remaining rows that still fit. (Of a score that most of the pool shares,
    all those ids are sorted.)

    Raises:
        BudgetError: no candidate fits, or the budget is not positive.
    """
    check_budget(tokens, budget)
    keys = -np.asarray(score, dtype=np.float64)
    left = int(budget)
    picks = [np.zeros(0, dtype=np.int64)]
    rows = np.flatnonzero(~np.isnan(keys) & (tokens <= left))
    while len(rows):
        expected = int(1.1 * left / float(tokens[rows].mean())) + 64
        head, rows = rows, rows[:0]
        if len(head) > 2 * expected:
            near = keys[head] <= np.partition(keys[head], expected)[expected]
            head, rows = head[near], head[~near]
        head = by_score(head, keys, ids)
        places, left = _walk(tokens[head], left, 0)
        picks.append(head[places])
        rows = rows[tokens[rows] <= left]
    return np.concatenate(picks)


def fitting_worse(
    score: Float[np.ndarray, " n"], costs: Int[np.ndarray, " n"], rows: Int[np.ndarray, " k"], budget: int
) -> Bool[np.ndarray, " k"]:
    """Return which picks came after a better candidate was passed over because the rest of the budget did not hold it.

    Such picks stand at the end, and cost less together than that candidate. Picks without a score are none.

    Args:
        score: of every candidate; NaN: never picked by its score.
        costs: of every candidate.
        rows: the picks, in pick order.
        budget: of the round.
    """
    left = budget - np.r_[0, np.cumsum(costs[rows])[:-1]]
    others = np.ones(len(score), dtype=bool)
    others[rows] = False
    others &= ~np.isnan(score)
    by_cost = np.flatnonzero(others)[np.argsort(costs[others], kind="stable")]
    # of each pick, the best score among the candidates that cost more than what is left
    best = np.r_[np.maximum.accumulate(score[by_cost][::-1])[::-1], -np.inf]
    passed_over = best[np.searchsorted(costs[by_cost], left, side="right")] > score[rows]
    return np.logical_or.accumulate(passed_over) & ~np.isnan(score[rows])


def share_tied_at_cut(score: Float[np.ndarray, " n"], picked: Bool[np.ndarray, " n"]) -> float:
    """Return which share of the n candidates has the score at which the budget ends, where that score is a tie.

    A score is such a tie if some of its candidates are picked and some are not, so that ids decide among them; of
    several, the one with the most candidates counts. 0: the scores decide alone. NaN scores belong to no tie.
    """
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.r_[True, score[order][1:] != score[order][:-1]])
    sizes, picks = np.diff(np.r_[starts, len(score)]), np.add.reduceat(picked[order].astype(np.int64), starts)
    return float(np.max(sizes[(picks > 0) & (picks < sizes)], initial=0) / len(score))


def rank_scale(column: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Mid-ranks (ties share their mean rank), mapped linearly to [−1, 1] with mean 0; a constant column gives zeros.

    Only the order counts, so a heavy-tailed term such as the loss cannot dominate the others.

    Raises:
        PluginError: a value is NaN, which has no rank.
    """
    n = len(column)
    _check(column)
    if n < 2:
        return np.zeros(n)
    order = np.argsort(column)
    ordered = column[order]
    first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])  # of every run of equal values
    last = np.append(first[1:], n)
    scaled = np.empty(n)
    scaled[order] = np.repeat((first + last - n) / (n - 1.0), last - first)
    return scaled


def z_scale(column: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """(x − mean) / population standard deviation; a constant column gives zeros.

    Raises:
        PluginError: a value is NaN.
    """
    values = np.asarray(column, dtype=np.float64)
    _check(values)
    if len(values) < 2 or values.max() == values.min():
        return np.zeros(len(values))
    values = values / np.abs(values).max()  # so that the variance neither underflows nor overflows
    return np.asarray((values - values.mean()) / values.std())


def _check(column: Float[np.ndarray, " n"]) -> None:
    missing = int(np.isnan(column).sum())
    if missing:
        raise PluginError(
            f"{missing} of {len(column)} values to be scaled are NaN, which has no rank. Give every candidate a "
            "number, or leave out those that must not be picked."
        )


def scale(column: Float[np.ndarray, " n"], how: str) -> Float[np.ndarray, " n"]:
    """Put a term of a score on a common scale: `rank_scale` or `z_scale`, as ``how`` says."""
    return rank_scale(column) if how == "rank" else z_scale(column)


def choice(subject: str, option: str, value: Any, allowed: tuple[str, ...]) -> str:
    """Return ``value`` if it is one of the allowed words, else raise RecipeError."""
    if value not in allowed:
        near = did_you_mean(str(value), allowed)
        raise RecipeError(f"selector '{subject}': {option} is {value!r}.{near} Allowed: {', '.join(allowed)}.")
    return str(value)


def weight(subject: str, option: str, value: Any, most: float = math.inf) -> float:
    """Return ``value`` as a float if it is in [0, ``most``] (0 switches the term off), else raise RecipeError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise RecipeError(f"selector '{subject}': {option} is {value!r}; give a finite number ≥ 0 (0 switches it off).")
    if value > most:
        raise RecipeError(f"selector '{subject}': {option} is {value!r}; give a number from 0 to {most:g}.")
    return float(value)


def count(subject: str, option: str, value: Any, least: int = 1) -> int:
    """Return ``value`` if it is a whole number ≥ ``least``, else raise RecipeError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise RecipeError(f"selector '{subject}': {option} is {value!r}; give a whole number ≥ {least}.")
    return value


def flag(subject: str, option: str, value: Any) -> bool:
    """Return ``value`` if it is true or false, else raise RecipeError."""
    if not isinstance(value, bool):
        raise RecipeError(f"selector '{subject}': {option} is {value!r}; give true or false.")
    return value


def number(subject: str, option: str, value: Any, above: float = -math.inf, most: float = math.inf) -> float:
    """Return ``value`` as a float if it is finite, above ``above`` and at most ``most``, else raise RecipeError."""
    real = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not real or not above < value <= most:
        allowed = "a finite number" + (f" above {above:g}" if above > -math.inf else "")
        allowed += f", at most {most:g}" if most < math.inf else ""
        raise RecipeError(f"selector '{subject}': {option} is {value!r}; give {allowed}.")
    return float(value)
