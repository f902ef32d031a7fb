"""Distinct rows are those of pandas, whatever stands together."""

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from longgame.metrics.tidy import distinct_rows


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([0, 1]), st.sampled_from("xyz"))))
def test_distinct_rows_are_found_wherever_they_stand(rows):
    frame = pd.DataFrame(rows, columns=["trial", "seed", "selector"])
    for held in (frame, frame.astype({"trial": "category", "selector": "category"})):
        pd.testing.assert_frame_equal(distinct_rows(held), held.drop_duplicates())
