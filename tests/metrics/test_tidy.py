"""Distinct rows are those of pandas, whatever stands together; codes are positions, whatever holds the values."""

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from longgame.metrics.tidy import codes, distinct_rows


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
