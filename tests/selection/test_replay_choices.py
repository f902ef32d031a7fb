"""Choices of replay: golden numbers, budgets and orders."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longgame.errors import PluginError, RecipeError
from longgame.recipe import parse_recipe
from longgame.selection.base import Reserve, build_selector
from longgame.selection.history import History
from longgame.selection.interventions import REPLAY_CHOICES, Replay, build_choice, selector_of
from longgame.selection.interventions.choices import (
    Damage,
    Distance,
    EarlierExamples,
    Targeted,
    by_shares,
    capped,
    first_of_each,
    wasserstein,
)
from longgame.selection.policy import SelectionPolicy
from longgame.signals.base import Signals
from longgame.testing import example_pool, example_signals

CHOICES = sorted(REPLAY_CHOICES.builtin_names())


def earlier(now=(), end=(), base=(), stages=None, cells=(), costs=None, embeddings=()):
    """Examples a, b, c … in id order; losses of None are not measured."""
    n = max(len(now), len(end), len(base), len(stages or ()))
    ids = tuple("abcdefghij"[:n])
    columns = {"now": now, "end": end, "base": base}
    measured = {
        kind: {name: value for name, value in zip(ids, values, strict=False) if value is not None}
        for kind, values in columns.items()
    }
    return EarlierExamples(
        ids,
        np.asarray(costs or [10] * n),
        np.asarray(stages or [0] * n),
        tuple(cells),
        measured,
        tuple(np.asarray(rows, dtype=float) for rows in embeddings),
    )


# Golden numbers


def test_targeted_probabilities_equal_hand_computed_ones() -> None:
    # excess by cell: x = mean(0.1, 0.3) = 0.2, y = 0.0 (two examples each); T = 0.2, so the weights are e : 1
    known = earlier(now=[1.1, 1.3, 2.0, 2.0], end=[1.0, 1.0, 2.0, 2.0], cells=["x", "x", "y", "y"])
    p = np.e / (2 * np.e + 2)
    expected = [0.5 * p + 0.125] * 2 + [0.5 * (0.5 - p) + 0.125] * 2
    np.testing.assert_allclose(Targeted(temperature=0.2).probabilities(known), expected, rtol=1e-12)
    np.testing.assert_allclose(Targeted(temperature=0.2, mix=0).probabilities(known), [0.25] * 4, rtol=1e-12)


def test_targeted_cap_is_a_multiple_of_the_uniform_share() -> None:
    # weights e^10 : 1 : 1 : 1, so uncapped the first has nearly all; cap 2 leaves it 2/4, and 1/6 for each other
    known = earlier(now=[10.0, 0, 0, 0], end=[0.0, 0, 0, 0], cells=["x", "y", "z", "w"])
    found = Targeted(temperature=1.0, cap=2.0, mix=1.0).probabilities(known)
    np.testing.assert_allclose(found, [1 / 2, 1 / 6, 1 / 6, 1 / 6], rtol=1e-12)


def test_targeted_unmeasured_examples_follow_their_cell() -> None:
    known = earlier(now=[1.5, None, 1.0, None], end=[1.0, None, 1.0, None], cells=["x", "x", "y", "y"])
    found = Targeted(temperature=1.0).probabilities(known)
    assert found[0] == found[1] > found[2] == found[3]


def test_targeted_cells_of_two_stages_are_apart() -> None:
    known = earlier(now=[2.0, 1.0], end=[1.0, 1.0], stages=[0, 1], cells=["x", "x"])
    found = Targeted(temperature=1.0, mix=1.0).probabilities(known)
    np.testing.assert_allclose(found, [np.e / (1 + np.e), 1 / (1 + np.e)], rtol=1e-12)


def test_cap_redistributes_until_nothing_is_above() -> None:
    # limit 0.3: 0.6 → 0.3, the rest is scaled by 0.7 / 0.4: 0.2 → 0.35 → 0.3, then 0.1, 0.1 share 0.4
    np.testing.assert_allclose(capped(np.array([0.6, 0.2, 0.1, 0.1]), 1.2), [0.3, 0.3, 0.2, 0.2], rtol=1e-12)
    np.testing.assert_allclose(capped(np.array([1.0, 0, 0, 0]), 2.0), [0.5, 1 / 6, 1 / 6, 1 / 6], rtol=1e-12)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20).filter(lambda p: sum(p) > 0), st.floats(1, 10))
def test_capped_probabilities_sum_to_one_below_the_cap(p, cap) -> None:
    found = capped(np.asarray(p) / sum(p), cap)
    assert found.sum() == pytest.approx(1.0)
    assert found.max() <= cap / len(p) * (1 + 1e-9)


def test_damage_shares_equal_hand_computed_ones() -> None:
    # stage 0: mean(0.1, 0.3) = 0.2; stage 1: mean(0.6) = 0.6; stage 2 became better: no share
    known = earlier(now=[1.1, 1.3, 1.6, 0.5], end=[1.0, 1.0, 1.0, 1.0], stages=[0, 0, 1, 2])
    np.testing.assert_allclose(Damage().shares(known), [0.25, 0.75, 0.0], rtol=1e-12)


def test_damage_held_back_items_are_never_replayed() -> None:
    known = earlier(now=[1.5, None, None, None], end=[1.0, None, None, None], stages=[0, 0, 0, 0])
    assert sorted(Damage().order(known, np.random.default_rng(0)).tolist()) == [1, 2, 3]


def test_damage_nowhere_is_a_uniform_draw() -> None:
    known = earlier(now=[0.9, None, 0.9, None], end=[1.0, None, 1.0, None], stages=[0, 0, 1, 1])
    expected = [row for row in np.random.default_rng(0).permutation(4).tolist() if row in (1, 3)]
    assert Damage().order(known, np.random.default_rng(0)).tolist() == expected


def test_estimates_are_of_all_earlier_examples() -> None:
    # only b and d may be replayed; the measured ones are a (stage 0, excess 1) and c (stage 1, excess 0)
    every = earlier(now=[2.0, None, 1.0, None], end=[1.0, None, 1.0, None], stages=[0, 0, 1, 1])
    known = EarlierExamples(("b", "d"), np.asarray([10, 10]), np.asarray([0, 1]), (), every.measured, every=every)
    np.testing.assert_allclose(Damage().shares(known), [1.0, 0.0])
    assert Damage().order(known, np.random.default_rng(0)).tolist() == [0, 1]
    found = Targeted(temperature=1.0, mix=1.0).probabilities(known)
    np.testing.assert_allclose(found, [np.e / (1 + np.e), 1 / (1 + np.e)], rtol=1e-12)


def test_distance_shares_equal_hand_computed_ones() -> None:
    # unit vectors: stage 0 opposite of the new one (distance 2), stage 1 at a right angle (√2)
    known = earlier(stages=[0, 1], embeddings=[[[-3.0, 0.0]], [[0.0, 1.0]], [[5.0, 0.0]]])
    np.testing.assert_allclose(Distance().shares(known), np.array([2, 2**0.5]) / (2 + 2**0.5), rtol=1e-12)


def test_wasserstein_equals_the_best_of_all_assignments() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
    one, two = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (first, second))
    slow = min(
        np.mean([np.linalg.norm(one[i] - two[j]) for i, j in enumerate(order)])
        for order in itertools.permutations(range(5))
    )
    assert wasserstein(first, second) == pytest.approx(slow, rel=1e-12)
    assert wasserstein(first, first[::-1]) == pytest.approx(0.0, abs=1e-9)


def test_surprise_and_fit_rank_by_loss_with_ties_by_id() -> None:
    known = earlier(now=[1.0, 3.0, 1.0, 2.0], base=[2.0, 1.0, 2.0, 0.5])
    rng = np.random.default_rng(0)
    assert build_choice("surprise").order(known, rng).tolist() == [1, 3, 0, 2]
    assert build_choice("fit").order(known, rng).tolist() == [3, 1, 0, 2]


def test_targeted_draws_follow_the_probabilities() -> None:
    known = earlier(now=[2.0, 1.0, 1.0], end=[1.0, 1.0, 1.0], cells=["x", "y", "y"])
    choice = Targeted(temperature=1.0, mix=1.0)
    rng = np.random.default_rng(0)
    first = np.bincount([choice.order(known, rng)[0] for _ in range(4000)], minlength=3) / 4000
    np.testing.assert_allclose(first, choice.probabilities(known), atol=0.03)


# Properties


@given(
    shares=st.lists(st.floats(0, 1), min_size=2, max_size=4).filter(lambda values: max(values) > 0.01),
    seed=st.integers(0, 99),
)
def test_every_beginning_keeps_the_shares_within_one_example(shares, seed) -> None:
    rng = np.random.default_rng(seed)
    weights = np.asarray(shares) / sum(shares)
    stages, costs = rng.integers(len(shares), size=60), rng.integers(1, 30, size=60)
    order = by_shares(rng.permutation(60), stages, costs, weights)
    assert sorted(order.tolist()) == list(range(60))  # nothing twice, nothing lost
    left = {stage: int(np.sum(stages == stage)) for stage in range(len(shares))}
    spent = np.zeros(len(shares))
    for row in order.tolist():
        if any(weights[stage] > 0 and not left[stage] for stage in left):
            break  # an empty stage cannot keep its share
        spent[stages[row]] += costs[row]
        left[stages[row]] -= 1
        behind = weights * spent.sum() - spent
        assert behind.max() <= costs.max() * len(shares)
        assert (spent <= weights * (spent.sum() + costs.max() * len(shares)) + costs.max()).all()


def test_items_of_each_key_are_the_first_of_the_order() -> None:
    keys = ["x", "y", "x", "y", "x"]
    assert first_of_each(keys, np.array([4, 3, 2, 1, 0]), 2).tolist() == [4, 3, 2, 1]


def losses(pool, names):
    """Signals with a loss that only the id decides."""
    columns = {name: example_signals(pool, (name,))[name] for name in names if name != "loss"}
    if "loss" in names:
        columns["loss"] = np.asarray([int(name[:6], 16) % 97 / 10 if name[:6].isalnum() else 0.0 for name in ids(pool)])
    return Signals(pool.ids, columns)


def ids(pool):
    return [format(abs(hash(name)) % 16**6, "06x") for name in pool.ids]


def walked(choice, source="pools", seeds=(1, 2, 3), seed=0):
    """Policies after each stage of a walk with replay of 30 %."""
    selector = Replay(build_selector("loss"), 0.3, source, choice=choice)
    policy = SelectionPolicy(selector, History(max_embeddings=8), np.random.default_rng(0))
    pools = [example_pool(40, seed=number) for number in seeds]
    picks = []
    for number, pool in enumerate(pools):
        reserve = Reserve(pool, tuple(pools[:number]), None, 400, np.random.default_rng([seed, number]), losses)
        policy.begin_stage(np.random.default_rng(1), reserve)
        policy.choose(pool, 400, losses)
        policy.end_stage(losses)
        picks.append(policy.rounds[-1])
    return policy, picks


@pytest.mark.parametrize("source", ["pools", "selected"])
@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_spends_the_same_share_of_the_budget(name, source) -> None:
    _, picks = walked(build_choice(name), source)
    for number, entry in enumerate(picks):
        marks = entry.selection.scores["replayed"][entry.selection.rows] == 1
        spent = int(entry.costs[marks].sum())
        assert len(set(entry.picked_ids)) == len(entry.picked_ids)
        assert entry.selection.tokens <= 400
        if number:
            assert 0.3 * 400 - 40 < spent <= 0.3 * 400
        else:
            assert not marks.any()


@pytest.mark.parametrize("name", CHOICES)
def test_state_of_a_choice_continues_bit_for_bit(name) -> None:
    pools = [example_pool(40, seed=number) for number in (1, 2, 3)]

    def reserve(number):
        return Reserve(pools[number], tuple(pools[:number]), None, 400, np.random.default_rng(number), losses)

    def stage(policy, number):
        policy.begin_stage(np.random.default_rng(number), reserve(number))
        policy.choose(pools[number], 400, losses)
        policy.end_stage(losses)
        return policy.rounds[-1].picked_ids

    def fresh():
        return SelectionPolicy(Replay(build_selector("loss"), 0.3, choice=build_choice(name)), History(), None)

    through = fresh()
    expected = [stage(through, number) for number in range(3)]
    policy = fresh()
    policy.rng = np.random.default_rng(0)
    for number in range(3):
        assert stage(policy, number) == expected[number]
        state = policy.state_dict()
        policy = fresh()
        policy.rng = np.random.default_rng(0)
        policy.load_state_dict(state)


def test_uniform_draw_is_that_without_a_choice() -> None:
    _, named = walked(build_choice("uniform"))
    _, plain = walked(None)
    assert [entry.picked_ids for entry in named] == [entry.picked_ids for entry in plain]


@pytest.mark.parametrize("source", ["pools", "selected"])
def test_damage_replays_the_stage_that_was_forgotten(source) -> None:
    pools = [example_pool(120, seed=number) for number in (1, 2, 3)]
    selector = Replay(build_selector("random"), 0.3, source, choice=build_choice("damage", {"items": 16}))
    policy = SelectionPolicy(selector, History(), np.random.default_rng(0))
    for number, pool in enumerate(pools):

        def now(asked, names, number=number):  # only the first stage's examples get worse, by 2 nats a stage
            values = [2.0 * number if name in pools[0].index else 1.0 for name in asked.ids]
            return Signals(asked.ids, {name: np.asarray(values, dtype=np.float32) for name in names})

        reserve = Reserve(pool, tuple(pools[:number]), None, 700, np.random.default_rng(number), now)
        policy.begin_stage(np.random.default_rng(number), reserve)
        policy.choose(pool, 700, now)
        policy.end_stage(now)
    last = policy.rounds[-1].selection
    replayed = [
        name for name, row in zip(policy.rounds[-1].picked_ids, last.rows, strict=True) if last.scores["replayed"][row]
    ]
    assert replayed
    assert all(name in pools[0].index for name in replayed)


def test_damage_measures_items_that_were_not_learned_first() -> None:
    policy, picks = walked(build_choice("damage", {"items": 8}), seeds=(1, 2))
    measured = set(policy.selector.measured.ids)
    learned = {name for entry in picks for name in entry.picked_ids}
    assert len(measured) == 16
    assert not measured & learned


# Bad input


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        ("surprize", {}, "surprise"),
        ("mine.py:Mine", {}, "unknown replay choice"),
        ("targeted", {"temperature": 0}, "above 0"),
        ("targeted", {"cap": 0.5}, "at least 1"),
        ("targeted", {"mix": 1.5}, "at most 1"),
        ("targeted", {"mix": "half"}, "at least 0"),
        ("damage", {"items": 0}, "from 1 to"),
        ("damage", {"items": True}, "from 1 to"),
        ("distance", {"items": 10**9}, "from 1 to"),
        ("surprise", {"items": 3}, "no parameter 'items'"),
        ("fit", {"temperature": 1}, "no parameter"),
    ],
)
def test_wrong_choices_say_what_is_allowed(name, parameters, words) -> None:
    with pytest.raises(RecipeError, match=words):
        build_choice(name, parameters)


@pytest.mark.parametrize("name", ["targeted", "damage", "surprise"])
def test_choice_without_its_losses_says_so(name) -> None:
    with pytest.raises(PluginError, match="needs the loss"):
        build_choice(name).order(earlier(stages=[0, 0]), np.random.default_rng(0))


@pytest.mark.parametrize("name", ["fit", "distance"])
def test_choice_of_base_signals_needs_a_reserve_with_signals(name) -> None:
    own, old = example_pool(5, seed=1), example_pool(5, seed=2)
    selector = Replay(build_selector("random"), 0.3, choice=build_choice(name))
    selector.begin_stage()
    with pytest.raises(PluginError, match="needs"):
        selector.use_reserve(Reserve(own, (old,), None, 100, np.random.default_rng(0)))


def test_recipe_names_the_choice_in_the_selectors_key() -> None:
    entries = [
        {"name": "loss", "replay": 0.2},
        {"name": "loss", "replay": {"share": 0.2, "choice": "targeted"}},
        {"name": "loss", "replay": {"share": 0.2, "source": "selected", "choice": {"name": "damage", "items": 8}}},
    ]
    recipe = parse_recipe({"name": "q", "selectors": entries})
    keys = ["loss + replay 20%", "loss + replay 20% targeted", "loss + replay 20% damage selected"]
    assert [spec.key for spec in recipe.selectors] == keys
    assert [selector_of(spec).name for spec in recipe.selectors] == keys
    assert selector_of(recipe.selectors[2]).choice.items == 8
