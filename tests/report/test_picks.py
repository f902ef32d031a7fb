import numpy as np
import pandas as pd

from longgame.audit.picks import highest_and_lowest


def selection(picked):
    table = pd.DataFrame({"round": 0, "sample_id": ["i0", "i1", "i2", "i3"], "picked": picked})
    return table.assign(term_score=[0.0, 1.0, 2.0, 3.0])


def test_highest_and_lowest_follow_the_score():
    highest, lowest = highest_and_lowest(selection([-1, -1, 0, 1]), 2)
    assert list(highest["sample_id"]) == ["i3", "i2"]
    assert list(lowest["sample_id"]) == ["i0", "i1"]
    highest, lowest = highest_and_lowest(selection([1, -1, 0, -1]).drop(columns="term_score"), 2)
    assert list(highest["sample_id"]) == ["i2", "i0"]
    assert lowest.empty


def test_rows_without_a_score_are_neither_highest_nor_lowest():
    table = selection([-1, 0, 1, 2]).assign(term_score=[1.0, 2.0, np.nan, 3.0])
    highest, lowest = highest_and_lowest(table, 3)
    assert list(highest["sample_id"]) == ["i3", "i1", "i0"]
    assert list(lowest["sample_id"]) == ["i0", "i1", "i3"]
    highest, lowest = highest_and_lowest(table.assign(term_score=np.nan))
    assert list(highest["sample_id"]) == ["i1", "i2", "i3"]
    assert lowest.empty
