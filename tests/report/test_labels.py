import itertools

import altair as alt
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from longgame.report.charts import PALETTE, Style
from longgame.report.labels import labelled, name_layers

ENDS = ((0.0, 10.0), (0.0, 10.0))


def rows_of(*marks):
    return pd.DataFrame(marks, columns=["x", "y", "names"])


def test_a_name_goes_where_no_mark_is():
    rows = labelled(
        rows_of((1, 1, "random"), (2, 1, "quality"), (10, 5, "at the edge")), "x", "y", "names", ENDS, [400]
    )
    assert rows["side"].tolist() == ["above", "right", "left"]


def test_many_names_stand_on_several_lines_and_none_is_lost():
    names = "diversity, gradient, loss, utility-diversity, a-name-that-alone-is-longer-than-a-line"
    row = labelled(rows_of((5, 5, names)), "x", "y", "names", ENDS, [400]).iloc[0]
    assert row["label"].split("\n") == [
        "diversity, gradient, loss,", "utility-diversity,", "a-name-that-alone-is-longer-than-a-line"
    ]  # fmt: skip
    assert row["lines"] == 3


@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10), st.sampled_from(["a", "b, c"])), min_size=1))
def test_the_layers_hold_every_name_once_and_none_is_empty(marks):
    rows = labelled(rows_of(*marks), "x", "y", "names", ENDS, [300, 500])
    layers = name_layers(rows, alt.Chart(rows))
    chosen = [layer.to_dict(validate=False)["transform"][0]["filter"] for layer in layers]
    held = [
        f"datum.side == '{side}' && datum.lines == {n}" for side, n in zip(rows["side"], rows["lines"], strict=True)
    ]
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) == set(held)


def test_no_two_of_many_selectors_look_alike():
    keys = Style([f"s{i}" for i in range(3 * len(PALETTE))], "s0").keys
    for one, other in itertools.combinations(keys, 2):
        assert (one.colour, one.glyph) != (other.colour, other.glyph)
