import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from longgame.audit.picks import Picks, combine_shares, reduce_stage


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
    return reduce_stage(selector, seed, number, pa.Table.from_pandas(table(picked, **more)))


def test_mix_is_in_tokens_and_a_mean_over_seeds():
    picks = combine_shares([stage("one", [0, -1, 1, -1]), stage("one", [-1, -1, -1, 0], seed=1)])
    mix = picks.mix.set_index("sub_skill")
    # seed 0 picks 1 token of a and 2 of b, seed 1 only b; candidates: 2 tokens of a, 6 of b
    assert mix["share"].to_dict() == pytest.approx({"a": 1 / 6, "b": 5 / 6})
    assert mix["pool"].to_dict() == pytest.approx({"a": 0.25, "b": 0.75})
    assert (picks.seeds, picks.tables) == (2, 2)


def test_a_sub_skill_missing_in_a_seed_counts_as_zero():
    picks = combine_shares([stage("one", [0, 1, 2, 3]), stage("one", [0, 1, 2, 3], seed=1, skills="aaaa")])
    assert picks.mix.set_index("sub_skill")["share"].to_dict() == pytest.approx({"a": (0.25 + 1) / 2, "b": 0.375})


def test_overlap_is_jaccard_within_seed_and_stage():
    picks = combine_shares(
        [
            stage("one", [0, 1, -1, -1]),
            stage("two", [0, -1, 1, -1]),
            stage("one", [0, -1, -1, -1], seed=1),
            stage("two", [0, -1, -1, -1], seed=1),
        ]
    )
    found = picks.overlap.set_index(["selector", "other"])["jaccard"]
    assert found["one", "two"] == pytest.approx((1 / 3 + 1) / 2)
    assert found["one", "two"] == found["two", "one"]
    assert found["one", "one"] == 1


def test_term_gaps_are_in_sd_of_the_round():
    picks = combine_shares([stage("one", [-1, -1, 0, 1], flat=[5.0] * 4)])
    terms = picks.terms.set_index("term")["gap"]
    values = np.array([0.0, 1.0, 2.0, 3.0])
    assert terms["score"] == pytest.approx((2.5 - 1.5) / values.std())
    assert "flat" not in terms


def test_term_gaps_leave_rows_without_the_term_out():
    # the row of the second round that has no term is a replayed one, and picked
    scored = pd.concat([table([-1, -1, 0, 1]), table([0, -1, -1, -1]).assign(round=1)])
    again = table([1, -1, -1, -1]).head(1).assign(round=1, sample_id="old", term_score=np.nan)
    unscored = table([0, -1, -1, -1]).assign(round=2, term_score=np.nan)
    one, other = (
        reduce_stage("one", 0, 1, pa.Table.from_pandas(pd.concat(parts), preserve_index=False)).gaps
        for parts in ([scored], [scored, again, unscored])
    )
    assert one == other
    assert [name for name, _ in one] == ["score"]


def test_selectors_that_picked_nothing_are_not_compared():
    nothing = [-1, -1, -1, -1]
    picks = combine_shares([stage("one", nothing), stage("two", nothing), stage("three", [0, -1, -1, -1])])
    found = picks.overlap.set_index(["selector", "other"])["jaccard"].to_dict()
    assert found == {("one", "three"): 0, ("two", "three"): 0, ("three", "one"): 0, ("three", "two"): 0,
                     ("three", "three"): 1}  # fmt: skip


def test_a_candidate_of_several_rounds_counts_once():
    both = pd.concat([table([0, -1, -1, -1]), table([-1, 0, -1, -1]).iloc[1:].assign(round=1)])
    mix = combine_shares([reduce_stage("one", 0, 1, pa.Table.from_pandas(both))]).mix.set_index("sub_skill")
    assert mix["pool"].to_dict() == {"a": 0.25, "b": 0.75}
    assert mix["share"].to_dict() == {"a": 1, "b": 0}


def test_encoded_columns_give_the_same_reduction():
    plain = pa.Table.from_pandas(table([0, -1, 1, -1]), preserve_index=False)
    coded = pa.concat_tables(
        part.set_column(1, "sample_id", part["sample_id"].dictionary_encode()) for part in (plain[:2], plain[2:])
    )
    one, other = (combine_shares([reduce_stage("one", 0, 1, each)]) for each in (plain, coded))
    assert one.frame().equals(other.frame())


def test_picks_survive_as_one_frame():
    picks = combine_shares([stage("one", [0, -1, 1, -1]), stage("two", [0, -1, -1, -1], flat=[1.0, 2.0, 3.0, 5.0])])
    again = Picks.of_frame(picks.frame(), picks.seeds, picks.tables)
    for name in ("mix", "overlap", "terms"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(picks, name))


def test_a_seed_in_two_parts_is_an_error():
    stages = [stage("one", [0, -1, -1, -1], seed=seed) for seed in (0, 1, 0)]
    with pytest.raises(ValueError, match="seed 0 come in two parts"):
        combine_shares(stages)


def test_without_tables_there_are_no_picks():
    assert combine_shares([]) is None
