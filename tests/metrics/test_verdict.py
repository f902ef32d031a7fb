"""Verdict words and rank reversals."""

import numpy as np
import pytest

from longgame.errors import DataError
from longgame.metrics.verdict import Difference, rank_reversals, verdict

SURE, UNSURE = 0.01, 0.2


@pytest.mark.parametrize(
    ("now", "now_p", "later", "later_p", "word"),
    [
        (+3, SURE, -0.1, SURE, "myopic"),
        (+3, UNSURE, -0.1, SURE, "long-horizon worse"),
        (-3, SURE, -0.1, SURE, "long-horizon worse"),
        (+3, SURE, +0.1, SURE, "long-horizon better"),
        (-3, SURE, +0.1, SURE, "long-horizon better"),
        (-3, UNSURE, +0.1, SURE, "long-horizon better"),
        (+3, SURE, -0.1, UNSURE, "differs now only"),
        (-3, SURE, +0.1, UNSURE, "differs now only"),
        (+3, UNSURE, -0.1, UNSURE, "indistinguishable from random"),
        (+3, 0.05, -0.1, 0.05, "indistinguishable from random"),
    ],
)
def test_the_word_follows_both_signs_and_both_significances(now, now_p, later, later_p, word):
    assert verdict(Difference(5, now, now_p, "points"), Difference(5, later, later_p)).word == word


def test_too_few_seeds_or_no_p_allow_no_other_word():
    sure = Difference(5, 3.0, SURE), Difference(5, -0.1, SURE)
    assert verdict(sure[0], Difference(2, -0.1, SURE)).word == "not enough seeds"
    assert verdict(sure[0], Difference(5, -0.1, float("nan"))).word == "not enough seeds"
    few = verdict(Difference(1, 3.0, float("nan")), Difference(1, -0.1, float("nan")))
    assert (few.word, "in 1 seed" in few.reason) == ("not enough seeds", True)
    assert verdict(*sure, min_seeds=6).word == "not enough seeds"


def test_a_score_that_no_seed_measured_is_named_instead_of_the_seeds():
    one_stage = verdict(Difference(8, 3.0, SURE), Difference(0, float("nan"), float("nan")))
    assert one_stage.word == "not enough seeds"
    assert one_stage.reason.startswith("the long-horizon score was compared in no seed")


def test_the_reason_states_sizes_with_their_units_and_p():
    said = verdict(Difference(5, 3.21, 0.004, "points"), Difference(6, -0.027, 0.012), reference="lhas")
    assert said.reason == (
        "against lhas: current score +3.2 points: ahead (p = 0.004); long-horizon score -0.027 on its 0–1 scale: "
        "behind (p = 0.012); 5 seeds, p after Holm"
    )
    none = verdict(Difference(5, 1, 0.5), Difference(5, 1, 0.5), reference="lhas")
    assert none.word == "indistinguishable from lhas"


def test_the_power_sentence_tells_what_could_be_shown_and_what_the_differences_seen_would_need():
    now = Difference(5, 0.4, 0.3, "points", mde=1.94, seeds_needed=41.0)
    far = Difference(5, -0.001, 0.9, mde=0.0213, seeds_needed=float("inf"))
    shown = "5 seeds show true differences of 1.9 points now and 0.021 in the long run with 80% power"
    assert verdict(now, far).power == (
        f"{shown}; differences as seen would take 41 seeds for the current score and more than 1,000 seeds for the "
        "long-horizon score"
    )
    sure = Difference(5, 3.0, SURE, "points", mde=1.94, seeds_needed=4.0)
    assert verdict(sure, Difference(5, -0.1, SURE, mde=0.0213, seeds_needed=4.0)).power == shown
    assert verdict(Difference(1, 0.4, float("nan")), Difference(1, 0.1, float("nan"))).power == ""


JITTER = np.array([0.0, 0.1, -0.1, 0.2, -0.2])


def seeds_by_selector(*columns):
    return np.stack([level + JITTER * factor for level, factor in columns], axis=1)


def test_a_reversal_needs_both_differences_to_be_significant():
    now = seeds_by_selector((60, 1), (55, 2))
    later = seeds_by_selector((0.4, 0.01), (0.6, 0.02))
    (found,) = rank_reversals(now, later, ["loss", "random"])
    assert (found.ahead, found.behind) == ("loss", "random")
    assert found.immediate.mean == pytest.approx(5)
    assert found.long.mean == pytest.approx(-0.2)
    noisy = later + np.array([[2.0], [-2], [2], [-2], [1]]) * np.array([[1.0, -1.0]])
    assert rank_reversals(now, noisy, ["loss", "random"]) == []
    assert rank_reversals(now, -later, ["loss", "random"]) == []


def test_a_reversal_does_not_depend_on_the_order_of_selectors():
    now = seeds_by_selector((55, 2), (60, 1), (50, 3))
    later = seeds_by_selector((0.6, 0.02), (0.4, 0.01), (0.2, 0.03))
    names = ["random", "loss", "worst"]
    found = {(each.ahead, each.behind) for each in rank_reversals(now, later, names)}
    assert found == {("loss", "random")}
    order = [2, 1, 0]
    again = rank_reversals(now[:, order], later[:, order], [names[i] for i in order])
    assert {(each.ahead, each.behind) for each in again} == found


def test_reversals_refuse_scores_that_do_not_fit():
    with pytest.raises(DataError, match="3 selectors"):
        rank_reversals(np.ones((4, 2)), np.ones((4, 2)), ["a", "b", "c"])
    assert rank_reversals(np.ones((4, 1)), np.ones((4, 1)), ["a"]) == []
