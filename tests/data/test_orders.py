"""Stages in time: orders are permutations that take their columns along; mixing takes exact shares of neighbors."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longgame.data.examples import Example, SequenceData, Stage, Task
from longgame.data.orders import pool_shares, reorder, resolve_order
from longgame.errors import RecipeError


def sequence(names: str = "abcd", **fields: object) -> SequenceData:
    stages = tuple(Stage(name, (Example.make(name, name),), Task(name, ())) for name in names)
    ood = [Task("far", (), "ood"), *(Task(f"{name}-ood", (), "ood", stage=name) for name in names)]
    return SequenceData("s", stages, (*ood, Task("further", (), "ood")), **fields)


@given(st.permutations("abcd"))
def test_tasks_and_ood_sets_follow_the_walk(order: list[str]) -> None:
    walked = reorder(sequence(), order)
    assert [stage.name for stage in walked.stages] == order
    assert [task.name for task in walked.tasks] == [*order, *(f"{name}-ood" for name in order), "far", "further"]
    assert walked == reorder(sequence(), ["abcd".index(name) for name in order])
    assert reorder(walked, "abcd").stages == sequence().stages
    assert {stage.name: stage for stage in walked.stages} == {stage.name: stage for stage in sequence().stages}


def test_no_order_is_the_order_as_it_stands() -> None:
    assert resolve_order("abc", ()) == (0, 1, 2)
    assert [stage.name for stage in reorder(sequence(), ()).stages] == [*"abcd"]


@pytest.mark.parametrize(
    ("order", "what"),
    [
        (["a", "b", "x", "d"], "unknown stage 'x'"),
        (["a", "b", "d"], "is no order of the 4 stages a, b, c, d"),
        (["a", "b", "b", "d"], "is no order"),
        ([0, 1, 2, 4], "every row from 0 to 3 once"),
        ([0, 1, 2, -1], "every row from 0 to 3 once"),
        ([0, 0, 1, 2], "every row"),
    ],
)
def test_what_is_no_permutation_is_refused(order: list, what: str) -> None:
    with pytest.raises(RecipeError, match=what):
        reorder(sequence(), order)


def test_a_mixed_sequence_is_only_walked_as_it_was_built() -> None:
    mixed = sequence(mixing=0.25)
    assert [stage.name for stage in reorder(mixed, "abcd").stages] == [*"abcd"]
    with pytest.raises(RecipeError, match=r"mixing share of 0\.25 .* build_sequence\(…, order=…\)"):
        reorder(mixed, "badc")
    assert dataclasses.replace(mixed, mixing=0.0).ood == sequence().ood


def test_shares_by_hand() -> None:
    # 0.3 of 10 are 3: two from the stage before, one from the stage after; an end has one neighbor
    assert pool_shares(10, (0, 1, 2), 0.3) == [{0: 7, 1: 3}, {1: 7, 0: 2, 2: 1}, {2: 7, 1: 3}]
    # walked 2, 0, 1: row 0 stands in the middle
    assert pool_shares(10, (2, 0, 1), 0.3) == [{0: 7, 2: 2, 1: 1}, {1: 7, 0: 3}, {2: 7, 0: 3}]
    assert pool_shares(10, (0, 1, 2), 0.0) == [{0: 10}, {1: 10}, {2: 10}]
    assert pool_shares(3, (1, 0), 0.5) == [{0: 1, 1: 2}, {1: 1, 0: 2}]
    assert pool_shares(10, (0,), 0.0) == [{0: 10}]


def test_a_single_stage_has_nothing_to_mix_with() -> None:
    with pytest.raises(RecipeError, match=r"data.mixing is 0.3, but the sequence has one stage"):
        pool_shares(10, (0,), 0.3)


@given(st.integers(2, 2000), st.integers(2, 6), st.floats(0, 0.99), st.randoms(use_true_random=False))
def test_shares_sum_up_and_come_from_neighbors_in_time_alone(size, stages, mixing, chance) -> None:
    rows = list(range(stages))
    chance.shuffle(rows)
    shares = pool_shares(size, rows, mixing)
    for row, given_by in enumerate(shares):
        assert next(iter(given_by)) == row
        assert sum(given_by.values()) == size
        foreign = {giver: count for giver, count in given_by.items() if giver != row}
        assert sum(foreign.values()) == round(mixing * size)
        assert all(abs(rows.index(giver) - rows.index(row)) == 1 and count > 0 for giver, count in foreign.items())
        for one, other in itertools.combinations(foreign.values(), 2):
            assert abs(one - other) <= 1
