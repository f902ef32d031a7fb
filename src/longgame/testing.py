"""The contract of a selector, as checks to run on a selector of your own.

    from longgame.testing import check_selector_contract
    check_selector_contract(MySelector)                          # a class
    check_selector_contract(lambda: MySelector(temperature=2))   # or a function that returns a new selector

Each clause uses small synthetic pools (no model, no files). A broken clause raises PluginError with the input and fix.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, get_args

import numpy as np

from longgame.data.examples import Example, Pool
from longgame.errors import BudgetError, PluginError, unknown
from longgame.recipe import BudgetOf
from longgame.registry import plugin_at_work
from longgame.seeding import generator
from longgame.selection.base import Selector, check_selector
from longgame.selection.history import History, Selection, checked_weights
from longgame.signals.base import CONTEXT, SIGNALS, Signals, check_names

SelectorFactory = Callable[[], Selector]

_WIDTH: Mapping[str, Any] = {
    "hidden": 12,
    "sketch_dim": 16,
    "logit_sketch": 10,
    "halves": 2,
    "epochs": 4,
    "tasks": 3,
    "items": (7, 12),
}
_CLUSTERS = 5
_WEIGHTS = (1 / 3, 3.0)
"""Smallest and largest mean of weights that keeps the scale of the loss."""


def example_pool(n: int, seed: int = 0) -> Pool:
    """A pool of ``n`` synthetic candidates of 4 to 40 tokens each."""
    rng = generator(seed, "testing", "pool")
    examples = tuple(
        Example.make(f"prompt {seed}-{row}", f"response {row}", skill=f"skill-{row % 3}") for row in range(n)
    )
    prompt, response = rng.integers(2, 21, n), rng.integers(2, 21, n)
    return Pool(examples, tuple(np.zeros(0, dtype=np.int64) for _ in examples), prompt, response)


def example_signals(pool: Pool, names: Iterable[str], seed: int = 0, tied: bool = False) -> Signals:
    """Return exactly these signals for a pool: each value depends on the example's id, or all are equal (``tied``).

    float32, ``cluster`` int64; ``future_proxy`` goes into the context.
    """
    columns: dict[str, np.ndarray] = {}
    context: dict[str, np.ndarray] = {}
    for name in names:
        if name in CONTEXT:
            context[name] = (
                generator(seed, "testing", name).standard_normal(_WIDTH[CONTEXT[name].width]).astype(np.float32)
            )
        else:
            keys = ["tied"] * len(pool) if tied else list(pool.ids)
            columns[name] = _column(name, [_value(name, seed, key) for key in keys])
    return Signals(pool.ids, columns, context)


def _column(name: str, values: list[Any]) -> np.ndarray:
    if SIGNALS[name].width:
        return np.stack(values).astype(np.float32)
    return np.array(values, dtype=np.int64 if SIGNALS[name].unit == "index" else np.float32)


@lru_cache(maxsize=2**15)  # the clauses draw the same pools again and again
def _value(name: str, seed: int, key: str) -> Any:
    stream = generator(seed, "testing", name, key)
    if SIGNALS[name].unit == "index":
        return stream.integers(_CLUSTERS)
    width = SIGNALS[name].width
    if width == "epochs":  # losses and shares
        return stream.uniform(0.05, 1.0, _WIDTH[width])
    return stream.standard_normal(_WIDTH[width]) if width else stream.uniform(0.05, 1.0)


def check_selector_contract(make: SelectorFactory, skip: Iterable[str] = ()) -> None:
    """Run every clause of `CONTRACT` on fresh selectors from ``make``.

    Args:
        make: a class, or a function without arguments; returns a new selector at every call.
        skip: names of clauses to leave out, e.g. ``("fills_the_budget",)`` for a filter that may stop early. The audit
            then compares unequal token counts; say so where you report it.

    Raises:
        PluginError: a clause is broken, the selector raised an error, or ``skip`` names an unknown clause.
    """
    skipped = set(skip)
    for name in skipped - set(CONTRACT):
        raise PluginError(unknown("clause", name, CONTRACT))
    for name, clause in CONTRACT.items():
        if name not in skipped:
            clause(make)


class _Scene:
    """A fresh selector and a pool to select from, after ``rounds`` earlier rounds."""

    def __init__(
        self,
        make: SelectorFactory,
        n: int = 30,
        seed: int = 0,
        tied: bool = False,
        rounds: int = 2,
        budget_of: BudgetOf = "tokens",
    ) -> None:
        self.selector = make()
        self.history = History(max_embeddings=16, gradient_rows=4)
        for number in range(rounds):
            play(self.selector, self.history, number)
        self.pool = replace(example_pool(n, seed), budget_of=budget_of)
        self.signals = example_signals(self.pool, self.selector.requires, seed, tied)
        self.name = getattr(self.selector, "name", type(self.selector).__name__)

    def select(self, budget: int | None = None, seed: int = 0) -> Selection:
        budget = int(self.pool.costs.sum()) // 4 if budget is None else budget
        rng = generator(seed, "testing", "select")
        return _selected(self.selector, self.pool, self.signals, self.history, budget, rng)


def play(selector: Selector, history: History, number: int) -> Selection:
    """Run one more round on a pool of its own and record it in ``history``."""
    pool = example_pool(30, seed=1000 + number)
    signals = example_signals(pool, selector.requires, seed=1000 + number)
    rng = generator(number, "testing", "play")
    selection = _selected(selector, pool, signals, history, int(pool.costs.sum()) // 4, rng)
    with plugin_at_work(f"selector '{selector.name}'", "remember()"):
        selector.remember(pool, signals, selection.rows)
    history.update(selection, pool, signals)
    return selection


def _selected(
    selector: Selector, pool: Pool, signals: Signals, history: History, budget: int, rng: np.random.Generator
) -> Selection:
    with plugin_at_work(f"selector '{selector.name}'", "select()"):
        selection = selector.select(pool, signals, history, budget, rng)
    if not isinstance(selection, Selection):
        message = f"select() returned a {type(selection).__name__}; return Selection.of(pool, rows, scores)."
        raise PluginError(f"selector '{selector.name}': {message}")
    return selection


def _require(condition: bool, name: str, message: str) -> None:
    if not condition:
        raise PluginError(f"selector '{name}': {message}")


def declares_itself(make: SelectorFactory) -> None:
    """Has a name, asks only for signals that exist, and defines ``score`` or ``select``."""
    selector = make()
    check_selector(type(selector).__qualname__, type(selector))
    name: Any = selector.name
    _require(isinstance(name, str) and bool(name), type(selector).__qualname__, f"`name` is {name!r}, not a word.")
    check_names(selector.requires, f"selector '{name}'")


def picks_from_the_pool(make: SelectorFactory) -> None:
    """Returns rows of the pool, no row twice, and the token count of those rows."""
    for n in (1, 2, 30):
        scene = _Scene(make, n)
        selection = scene.select(int(scene.pool.costs.sum()))
        rows = np.asarray(selection.rows)
        inside = len(rows) > 0 and rows.min() >= 0 and rows.max() < n
        _require(inside, scene.name, f"rows {rows.tolist()} of a pool of {n}; give rows in 0…{n - 1}, at least one.")
        _require(len(set(rows.tolist())) == len(rows), scene.name, f"rows {rows.tolist()} repeat a row.")
        spent = int(scene.pool.costs[rows].sum())
        _require(selection.tokens == spent, scene.name, f"reports {selection.tokens} tokens; its rows cost {spent}.")


def stays_within_the_budget(make: SelectorFactory) -> None:
    """Spends no more than the budget, from the cheapest candidate's cost up to the whole pool."""
    for budget in _budgets(make):
        scene = _Scene(make)
        spent = scene.select(budget).tokens
        _require(spent <= budget, scene.name, f"spent {spent} tokens of {budget}; use fill_budget().")


def fills_the_budget(make: SelectorFactory) -> None:
    """Leaves no candidate that still fits, so that selectors are compared at equal token counts.

    Holds for budgets of all tokens and for budgets of response tokens (``pool.costs`` says what an example spends).
    """
    for budget_of in get_args(BudgetOf):
        for budget in _budgets(make, budget_of):
            scene = _Scene(make, budget_of=budget_of)
            selection = scene.select(budget)
            costs = scene.pool.costs
            unpicked, left = np.delete(costs, selection.rows), budget - int(costs[selection.rows].sum())
            fits = unpicked[unpicked <= left]
            message = (
                f"left {left} of {budget} tokens (budget_of: {budget_of}) though {len(fits)} candidates fit; use "
                "fill_budget(order, pool.costs, budget)."
            )
            _require(not len(fits), scene.name, message)


def spends_more_of_a_larger_budget(make: SelectorFactory) -> None:
    """A larger budget never buys less (10, 25, 50, 100 % of the pool), and a budget for all candidates buys all."""
    total = int(_Scene(make).pool.costs.sum())
    spent = [_Scene(make).select(total * percent // 100).tokens for percent in (10, 25, 50, 100)]
    _require(spent == sorted(spent), _Scene(make).name, f"spent {spent} tokens at 10, 25, 50 and 100 % of the pool.")
    _require(spent[-1] == total, _Scene(make).name, f"spent {spent[-1]} of {total} tokens when all were affordable.")


def refuses_an_impossible_budget(make: SelectorFactory) -> None:
    """Raises BudgetError for a budget of zero and for one below the cheapest candidate."""
    for budget in (0, int(_Scene(make).pool.costs.min()) - 1):
        scene = _Scene(make)
        try:
            scene.select(budget)
        except BudgetError:
            continue
        _require(
            False, scene.name, f"accepts a budget of {budget} tokens, which holds no candidate; use fill_budget()."
        )


def is_deterministic(make: SelectorFactory) -> None:
    """Two fresh selectors with the same inputs and generator decide the same, and touch no global generator."""
    before = _global_generators()
    first, second = _Scene(make), _Scene(make)
    _same(first.name, "the same inputs", first.select(), second.select())
    untouched = _equal(before, _global_generators())
    _require(untouched, first.name, "draws from a global random generator; use `rng`.")


def _global_generators() -> dict[str, Any]:
    return {"numpy": np.random.get_state(legacy=False), "python": random.getstate()}  # noqa: NPY002 - read only


def ignores_the_order_of_the_pool(make: SelectorFactory) -> None:
    """Picks the same ids in the same order, with the same scores, however the rows of the pool are permuted."""
    _permuted(make, tied=False)


def breaks_ties_by_id(make: SelectorFactory) -> None:
    """If all candidates are equal, the choice still does not depend on their order in the pool."""
    _permuted(make, tied=True)


def _permuted(make: SelectorFactory, tied: bool) -> None:
    for rounds in (0, 2):
        plain = _Scene(make, tied=tied, rounds=rounds)
        expected = plain.select()
        for seed in range(3):
            other = _Scene(make, tied=tied, rounds=rounds)
            order = generator(seed, "testing", "order").permutation(len(other.pool))
            other.pool, other.signals = other.pool.take(order), other.signals.take(order)
            permuted = other.select()
            scores = {key: np.asarray(column)[np.argsort(order)] for key, column in permuted.scores.items()}
            restored = Selection(order[permuted.rows], permuted.tokens, scores, permuted.weights)
            _same(plain.name, "the same candidates in another row order", expected, restored)


def leaves_its_inputs_alone(make: SelectorFactory) -> None:
    """Writes neither to the signals, nor to the pool, nor to the history (the caller updates it).

    Arrays are read-only, so an attempt is an error; what a selector puts in their place is found here.
    """
    scene = _Scene(make)
    signals, pool = copy.copy(scene.signals), copy.copy(scene.pool)
    before = scene.history.state_dict()
    scene.select()
    for key, column in {**signals.columns, **signals.context}.items():
        same = key in scene.signals and scene.signals[key] is column
        _require(same, scene.name, f"changes the signal '{key}'; copy it first.")
    for name in ("examples", "input_ids", "prompt_tokens", "response_tokens", "info", "budget_of", "ids"):
        _require(getattr(scene.pool, name) is getattr(pool, name), scene.name, f"changes pool.{name}; copy it first.")
    for name in ("tokens", "costs"):
        same = np.array_equal(getattr(scene.pool, name), getattr(pool, name))
        _require(same, scene.name, f"changes pool.{name}; copy it first.")
    _require(_equal(before, scene.history.state_dict()), scene.name, "changes the history; it is read-only here.")


def continues_from_its_state(make: SelectorFactory) -> None:
    """After state_dict → load_state_dict a fresh selector picks exactly what the first one would pick next."""
    original, history = make(), History(max_embeddings=16, gradient_rows=4)
    for number in range(3):
        play(original, history, number)
    state, history_state = original.state_dict(), history.state_dict()
    _check_plain(original.name, state, "state_dict()")
    expected = [play(original, history, number) for number in range(3, 6)]
    fresh, restored = make(), History(max_embeddings=16, gradient_rows=4)
    fresh.load_state_dict(state)
    restored.load_state_dict(history_state)
    for number, selection in enumerate(expected, start=3):
        _same(original.name, "state restored into a fresh selector", selection, play(fresh, restored, number))


def explains_its_scores(make: SelectorFactory) -> None:
    """Logs ``score``, finite, and any further term, with one value for every candidate."""
    for rounds in (0, 2):
        scene = _Scene(make, rounds=rounds)
        scores = scene.select().scores
        _require("score" in scores, scene.name, "logs no 'score'; pass {'score': …} to Selection.of().")
        for key, column in scores.items():
            shape = np.shape(column)
            _require(
                shape == (len(scene.pool),),
                scene.name,
                f"scores['{key}'] has shape {shape}; give one value per candidate.",
            )
        _require(bool(np.isfinite(scores["score"]).all()), scene.name, "scores['score'] is NaN or infinite somewhere.")


def gives_weights_about_one(make: SelectorFactory) -> None:
    """Weights, where it gives any, are finite, above 0, one for each pick, and keep the scale of the loss."""
    for percent in (25, 100):
        scene = _Scene(make)
        selection = scene.select(int(scene.pool.costs.sum()) * percent // 100)
        if selection.weights is None:
            continue
        try:
            checked_weights(selection.weights, len(selection.rows))
        except PluginError as error:
            raise PluginError(f"selector '{scene.name}': {error}") from error
        mean = float(np.mean(selection.weights))
        low, high = _WEIGHTS
        _require(
            low <= mean <= high,
            scene.name,
            f"weights have a mean of {mean:.3g}, which multiplies the learning rate; divide them by their mean.",
        )


CONTRACT: Mapping[str, Callable[[SelectorFactory], None]] = {
    clause.__name__: clause
    for clause in (
        declares_itself,
        picks_from_the_pool,
        stays_within_the_budget,
        fills_the_budget,
        spends_more_of_a_larger_budget,
        refuses_an_impossible_budget,
        is_deterministic,
        ignores_the_order_of_the_pool,
        breaks_ties_by_id,
        leaves_its_inputs_alone,
        continues_from_its_state,
        explains_its_scores,
        gives_weights_about_one,
    )
}
"""Every clause by name. A selector under test sees only the signals that ``requires`` names."""


def _budgets(make: SelectorFactory, budget_of: BudgetOf = "tokens") -> list[int]:
    tokens = _Scene(make, budget_of=budget_of).pool.costs
    total = int(tokens.sum())
    return [int(tokens.min()), int(tokens.max()), total // 10, total // 4, total // 2, total, 2 * total]


def _same(name: str, condition: str, first: Selection, second: Selection) -> None:
    message = f"{condition} gave other picks: rows {first.rows.tolist()} and then {second.rows.tolist()}."
    _require(first.rows.tolist() == second.rows.tolist(), name, message)
    _require(set(first.scores) == set(second.scores), name, f"{condition} logged other terms.")
    before, after = (np.ones(len(one.rows)) if one.weights is None else one.weights for one in (first, second))
    equal = np.shape(before) == np.shape(after) and np.allclose(before, after, rtol=1e-5)
    _require(equal, name, f"{condition} gave other weights.")
    for key, column in first.scores.items():
        equal = np.allclose(column, second.scores[key], rtol=1e-5, atol=1e-7, equal_nan=True)
        _require(equal, name, f"{condition} gave other scores['{key}'].")


def _check_plain(name: str, value: Any, where: str) -> None:
    """Refuse state that cannot be written as arrays and JSON; nothing is pickled."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _require(isinstance(key, str), name, f"{where} has the key {key!r}; keys must be strings.")
            _check_plain(name, item, f"{where}['{key}']")
    elif isinstance(value, list | tuple):
        for item in value:
            _check_plain(name, item, f"{where}[…]")
    else:
        plain = value is None or isinstance(value, bool | int | float | str)
        array = isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
        message = f"{where} holds a {type(value).__name__}; use numeric arrays, numbers, strings, lists and dicts."
        _require(plain or array, name, message)


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, Mapping):
        return set(first) == set(second) and all(_equal(item, second[key]) for key, item in first.items())
    return bool(np.array_equal(first, second)) if isinstance(first, np.ndarray) else bool(first == second)
