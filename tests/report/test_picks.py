import numpy as np
import pandas as pd
import pytest

from longgame.report.picks import StagePicks, most_and_least, read_picks


def table(picked, skills="aabb", tokens=(1, 1, 2, 4), score=(0.0, 1.0, 2.0, 3.0), **terms):
    columns = {f"term_{name}": values for name, values in terms.items()}
    return pd.DataFrame(
        {
            "round": 0,
            "sample_id": ["i0", "i1", "i2", "i3"],
            "picked": picked,
            "tokens": tokens,
            "sub_skill": list(skills),
            **columns,
            "term_score": score,
        }
    )


def stage(selector, picked, seed=0, number=1, **more):
    return StagePicks(f"{selector}-s{seed}", selector, seed, number, table(picked, **more))


def test_mix_is_in_tokens_and_a_mean_over_seeds():
    picks = read_picks([stage("one", [0, -1, 1, -1]), stage("one", [-1, -1, -1, 0], seed=1)], 2)
    mix = picks.mix.set_index("sub_skill")
    # seed 0 picks 1 token of a and 2 of b, seed 1 only b; candidates: 2 tokens of a, 6 of b
    assert mix["share"].to_dict() == pytest.approx({"a": 1 / 6, "b": 5 / 6})
    assert mix["pool"].to_dict() == pytest.approx({"a": 0.25, "b": 0.75})
    assert picks.seeds == (0, 1)


def test_a_sub_skill_that_a_seed_lacks_counts_as_nothing_in_it():
    picks = read_picks([stage("one", [0, 1, 2, 3]), stage("one", [0, 1, 2, 3], seed=1, skills="aaaa")], 2)
    assert picks.mix.set_index("sub_skill")["share"].to_dict() == pytest.approx({"a": (0.25 + 1) / 2, "b": 0.375})


def test_overlap_is_jaccard_within_seed_and_stage():
    picks = read_picks(
        [
            stage("one", [0, 1, -1, -1]),
            stage("two", [0, -1, 1, -1]),
            stage("one", [0, -1, -1, -1], seed=1),
            stage("two", [0, -1, -1, -1], seed=1),
        ],
        2,
    )
    found = picks.overlap.set_index(["selector", "other"])["jaccard"]
    assert found["one", "two"] == pytest.approx((1 / 3 + 1) / 2)
    assert found["one", "two"] == found["two", "one"]
    assert found["one", "one"] == 1


def test_terms_tell_how_far_the_picked_lie_above_their_round():
    picks = read_picks([stage("one", [-1, -1, 0, 1], flat=[5.0] * 4)], 1)
    terms = picks.terms.set_index("term")["gap"]
    values = np.array([0.0, 1.0, 2.0, 3.0])
    assert terms["score"] == pytest.approx((2.5 - 1.5) / values.std())
    assert "flat" not in terms


def test_most_and_least_follow_the_score_and_no_score_has_no_least():
    most, least = most_and_least(table([-1, -1, 0, 1]), 2)
    assert list(most["sample_id"]) == ["i3", "i2"]
    assert list(least["sample_id"]) == ["i0", "i1"]
    most, least = most_and_least(table([1, -1, 0, -1]).drop(columns="term_score"), 2)
    assert list(most["sample_id"]) == ["i2", "i0"]
    assert least.empty


def test_without_tables_there_are_no_picks():
    assert read_picks([], 3) is None
