"""The contract catches a selector that breaks it, by the clause that it breaks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from longgame.errors import PluginError
from longgame.selection.base import Selector
from longgame.selection.budget import descending, fill_budget
from longgame.selection.history import Selection
from longgame.testing import CONTRACT, check_selector_contract


class Sound(Selector):
    name = "sound"
    requires = ("loss",)

    def score(self, pool, signals, history):
        return signals["loss"]


class Overspends(Sound):
    def select(self, pool, signals, history, budget, rng):
        chosen = super().select(pool, signals, history, budget, rng)
        rest = np.setdiff1d(np.arange(len(pool)), chosen.rows)
        return Selection.of(pool, np.r_[chosen.rows, rest[:1]], chosen.scores)


class PicksTwice(Sound):
    def select(self, pool, signals, history, budget, rng):
        rows = super().select(pool, signals, history, budget, rng).rows
        return Selection.of(pool, np.r_[rows, rows[:1]], {"score": signals["loss"]})


class Misreports(Sound):
    def select(self, pool, signals, history, budget, rng):
        chosen = super().select(pool, signals, history, budget, rng)
        return Selection(chosen.rows, chosen.tokens - 1, chosen.scores)


class StopsEarly(Sound):
    def select(self, pool, signals, history, budget, rng):
        return Selection.of(
            pool, super().select(pool, signals, history, budget, rng).rows[:1], {"score": signals["loss"]}
        )


class TakesSomethingAnyway(Sound):
    def select(self, pool, signals, history, budget, rng):
        return super().select(pool, signals, history, max(budget, int(pool.tokens.min())), rng)


class GoesByPosition(Sound):
    def select(self, pool, signals, history, budget, rng):
        score = rng.random(len(pool))
        return Selection.of(pool, fill_budget(descending(score, pool.ids), pool.costs, budget), {"score": score})


class BreaksTiesByPosition(Sound):
    def select(self, pool, signals, history, budget, rng):
        order = np.argsort(-signals["loss"], kind="stable")
        return Selection.of(pool, fill_budget(order, pool.costs, budget), {"score": signals["loss"]})


class GlobalRandom(Sound):
    def score(self, pool, signals, history):
        np.random.random()  # noqa: NPY002
        return signals["loss"]


class Writes(Sound):
    def score(self, pool, signals, history):
        signals["loss"][:] *= 2
        return signals["loss"]


class Forgets(Sound):
    def __init__(self):
        self.rounds = 0

    def score(self, pool, signals, history):
        self.rounds += 1
        return signals["loss"] * (-1) ** self.rounds


class PicklesItself(Sound):
    def state_dict(self):
        return {"self": self}

    def load_state_dict(self, state):
        pass


class Silent(Sound):
    def select(self, pool, signals, history, budget, rng):
        return Selection.of(pool, super().select(pool, signals, history, budget, rng).rows)


class WeighsByCellSize(Sound):
    """Weights that sum to the number of candidates would multiply the learning rate."""

    def select(self, pool, signals, history, budget, rng):
        picked = super().select(pool, signals, history, budget, rng)
        return replace(picked, weights=np.full(len(picked.rows), 2.0 * len(pool) / len(picked.rows)))


class WeighsNothing(Sound):
    def select(self, pool, signals, history, budget, rng):
        picked = super().select(pool, signals, history, budget, rng)
        return Selection(picked.rows, picked.tokens, picked.scores, np.zeros(len(picked.rows)))


class WeighsByPosition(Sound):
    def select(self, pool, signals, history, budget, rng):
        picked = super().select(pool, signals, history, budget, rng)
        return replace(picked, weights=1.0 + (picked.rows % 2))


class PeeksAtAnotherSignal(Sound):
    def score(self, pool, signals, history):
        return signals["loss"] + signals["quality"]


class WantsWhatDoesNotExist(Sound):
    requires = ("los",)


BROKEN = [
    (Overspends, "stays_within_the_budget"),
    (PicksTwice, "picks_from_the_pool"),
    (Misreports, "picks_from_the_pool"),
    (StopsEarly, "fills_the_budget"),
    (StopsEarly, "spends_more_of_a_larger_budget"),
    (TakesSomethingAnyway, "refuses_an_impossible_budget"),
    (GoesByPosition, "ignores_the_order_of_the_pool"),
    (BreaksTiesByPosition, "breaks_ties_by_id"),
    (GlobalRandom, "is_deterministic"),
    (Writes, "leaves_its_inputs_alone"),
    (Forgets, "continues_from_its_state"),
    (PicklesItself, "continues_from_its_state"),
    (Silent, "explains_its_scores"),
    (WeighsByCellSize, "gives_weights_about_one"),
    (WeighsNothing, "gives_weights_about_one"),
    (WeighsByPosition, "ignores_the_order_of_the_pool"),
    (PeeksAtAnotherSignal, "picks_from_the_pool"),
    (WantsWhatDoesNotExist, "declares_itself"),
    (Selector, "declares_itself"),
]


def test_a_sound_selector_passes_every_clause() -> None:
    check_selector_contract(Sound)


@pytest.mark.parametrize(("broken", "clause"), BROKEN, ids=lambda value: getattr(value, "__name__", value))
def test_a_broken_selector_is_caught_by_its_clause(broken: type[Selector], clause: str) -> None:
    with pytest.raises(PluginError):
        CONTRACT[clause](broken)


def test_every_clause_can_fail() -> None:
    assert {clause for _, clause in BROKEN} == set(CONTRACT)


def test_skip_leaves_a_clause_out_and_refuses_an_unknown_one() -> None:
    with pytest.raises(PluginError, match="fit; use fill_budget"):
        check_selector_contract(StopsEarly)
    check_selector_contract(StopsEarly, skip=("fills_the_budget", "spends_more_of_a_larger_budget"))
    with pytest.raises(PluginError, match="Did you mean 'fills_the_budget'"):
        check_selector_contract(Sound, skip=("fill_the_budget",))
