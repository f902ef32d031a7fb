"""Distinct rows are those of pandas, whatever stands together; codes are positions, whatever holds the values."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longgame.errors import DataError
from longgame.metrics.tidy import codes, distinct_rows, read_trials


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([0, 1]), st.sampled_from("xyz"))))
def test_distinct_rows_are_found_wherever_they_stand(rows):
    frame = pd.DataFrame(rows, columns=["trial", "seed", "selector"])
    for held in (frame, frame.astype({"trial": "category", "selector": "category"})):
        pd.testing.assert_frame_equal(distinct_rows(held), held.drop_duplicates())


@given(st.lists(st.sampled_from("abcd")), st.permutations("bxcy"))
def test_a_code_is_the_position_among_the_known_values(values, known):
    expected = [known.index(value) if value in known else -1 for value in values]
    for held in (pd.Series(values, dtype=str), pd.Series(pd.Categorical(values, categories=list("dzcba")))):
        assert codes(held, known).tolist() == expected


@pytest.mark.parametrize(
    ("bases", "shares", "repeats", "units"),
    [
        (None, False, False, [0, 1, 2, 3]),
        ({0: "a", 1: "a", 2: "a", 3: "a"}, True, False, [0, 1, 2, 3]),
        ({0: "a", 1: "b", 2: "c", 3: "d"}, False, False, [0, 1, 2, 3]),
        ({0: "a", 1: "b", 2: "a", 3: "b"}, False, True, [0, 1, 0, 1]),
    ],
)
def test_base_models_are_units_where_they_repeat(bases, shares, repeats, units):
    pairs = [(name, seed) for name in ("random", "loss") for seed in range(4)]
    rows = [{"trial": f"{name}-s{seed}", "selector": name, "seed": seed} for name, seed in pairs]
    trials = read_trials(pd.DataFrame(rows), "random", bases)
    assert (trials.shares_base, trials.repeats_bases, trials.unit_of.tolist()) == (shares, repeats, units)
    with pytest.raises(DataError, match="seed 3 has no base model"):
        read_trials(pd.DataFrame(rows), "random", {0: "a", 1: "a", 2: "a"})
