"""Conclusions in words: verdicts, rank reversals, and notes on unequal amounts and missed replay."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from longgame.errors import DataError
from longgame.metrics.scorecard import summarize
from longgame.metrics.stats import p_equivalent, paired, t_interval
from longgame.metrics.tidy import Trials, read_trials
from longgame.metrics.verdict import (
    Comparisons,
    Difference,
    amount_notes,
    missed_notes,
    rank_reversals,
    tied_notes,
    unequal_amounts,
    verdict,
    verdict_table,
    with_amounts,
)
from longgame.recipe import EquivalenceSpec

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
        (+3, UNSURE, -0.1, UNSURE, "no difference shown"),
        (-3, 0.05, -0.1, 0.05, "no difference shown"),
        (+3, 0.08, -0.1, 0.08, "myopic"),  # each one-sided p is 0.04
        (+3, 0.12, -0.1, 0.001, "long-horizon worse"),  # one of them is 0.06
    ],
)
def test_the_word_follows_both_signs_and_both_significances(now, now_p, later, later_p, word):
    ahead, behind = (p / 2 if sign > 0 else 1 - p / 2 for sign, p in ((now, now_p), (-later, later_p)))
    sides = Difference(5, now, now_p), Difference(5, later, later_p)
    assert verdict(*sides, myopic=max(ahead, behind)).word == word


def test_too_few_seeds_or_no_p_allow_no_other_word():
    sure = Difference(5, 3.0, SURE), Difference(5, -0.1, SURE)
    assert verdict(sure[0], Difference(2, -0.1, SURE)).word == "not enough seeds"
    assert verdict(sure[0], Difference(5, -0.1, float("nan"))).word == "not enough seeds"
    few = verdict(Difference(1, 3.0, float("nan")), Difference(1, -0.1, float("nan")))
    assert (few.word, "in 1 seed" in few.reason) == ("not enough seeds", True)


def test_unmeasured_score_is_named_in_the_verdict():
    one_stage = verdict(Difference(8, 3.0, SURE), Difference(0, float("nan"), float("nan")))
    assert one_stage.word == "not enough seeds"
    assert one_stage.reason.startswith("the long-horizon score was compared in no seed")


def test_the_reason_states_sizes_with_their_units_and_p():
    said = verdict(Difference(5, 3.21, 0.004), Difference(6, -2.7, 0.012), reference="lhas")
    assert said.reason == (
        "against lhas: current score +3.2 points: ahead (p = 0.004); long-horizon score −2.7 points: "
        "behind (p = 0.012); 5 seeds, p after Holm"
    )
    sides = Difference(5, 3.21, 0.06), Difference(6, -2.7, 0.03)
    both = verdict(*sides, myopic=0.031, family="6 selectors × 2 conditions")
    assert both.reason == (
        "against random: current score +3.2 points: ahead; long-horizon score −2.7 points: behind; "
        "p = 0.031, the larger of the two one-sided p; 5 seeds, p after Holm over 6 selectors × 2 conditions"
    )
    none = verdict(Difference(5, 1, 0.5), Difference(5, 1, 0.5), reference="lhas")
    assert none.word == "no difference shown"


def test_power_sentence_names_effects_and_seeds():
    now = Difference(5, 0.4, 0.3, mde=1.94, seeds_needed=41.0)
    far = Difference(5, -0.001, 0.9, mde=2.13, seeds_needed=float("inf"))
    shown = "5 seeds show true differences of 1.9 points now and 2.1 points in the long run with 80 % power"
    assert verdict(now, far).power == (
        f"{shown}; differences as seen would take 41 seeds for the current score and more than 1,000 seeds for the "
        "long-horizon score"
    )
    sure = Difference(5, 3.0, SURE, mde=1.94, seeds_needed=4.0)
    assert verdict(sure, Difference(5, -0.1, SURE, mde=2.13, seeds_needed=4.0)).power == shown
    assert verdict(Difference(1, 0.4, float("nan")), Difference(1, 0.1, float("nan"))).power == ""


def test_power_sentence_gives_ranges_and_says_what_cannot_be_told():
    ends = {"mde_low": 1.2, "mde_high": float("inf"), "seeds_needed_low": 16.0, "seeds_needed_high": 160.0}
    now = Difference(3, 0.4, 0.3, mde=1.94, seeds_needed=41.0, **ends)
    far = Difference(3, -0.1, 0.9, seeds_needed=900.0, seeds_needed_low=300.0, seeds_needed_high=float("inf"))
    assert verdict(now, far).power == (
        "3 seeds show true differences of 1.9 (1.2 or more) points now and a size that cannot be told in the long run "
        "with 80 % power; differences as seen would take 41 (16 to 160) seeds for the current score and 900 (300 to "
        "more than 1,000) seeds for the long-horizon score"
    )


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


# Equal token counts


NAN = float("nan")


def trials_of(*selectors, seeds=1):
    places = [(row, seed) for row in range(len(selectors)) for seed in range(seeds)]
    return Trials(
        tuple(f"{selectors[row]}-s{seed}" for row, seed in places),
        selectors,
        tuple(range(seeds)),
        np.array([row for row, _ in places]),
        np.array([seed for _, seed in places]),
    )


def tables(tokens, examples):
    names = ("selected_tokens", "selected_examples")
    return {("cost", name): np.array(held, dtype=float) for name, held in zip(names, (tokens, examples), strict=True)}


def test_more_than_one_example_a_stage_is_told_with_both_amounts():
    """Examples of 10 tokens; keep learns 40 and 50 of 100 and 100: 55 less a stage."""
    held = tables([[NAN, 100, 100], [NAN, 40, 50]], [[NAN, 10, 10], [NAN, 4, 5]])
    found = unequal_amounts(held, trials_of("random", "keep"), "random")
    assert found == {"keep": "55 % fewer tokens learned than by random (45 against 100 per stage)"}
    (note,) = amount_notes(found)
    assert note.startswith("keep: 55 % fewer tokens")
    assert "the amount and not from the choice" in note


@pytest.mark.parametrize(("tokens", "told"), [(90, False), (89, True), (110, False), (111, True)])
def test_budgets_may_differ_by_one_example(tokens, told):
    held = tables([[NAN, 100], [NAN, tokens]], [[NAN, 10], [NAN, tokens / 10]])
    assert bool(unequal_amounts(held, trials_of("random", "loss"), "random")) == told


def test_the_larger_example_is_what_counts():
    """40 tokens fewer are one example of a selector whose examples have 60 tokens."""
    held = tables([[NAN, 100], [NAN, 60]], [[NAN, 10], [NAN, 1]])
    assert unequal_amounts(held, trials_of("random", "long"), "random") == {}


def test_amounts_compare_means_over_finished_stages():
    seeds = tables([[NAN, 100], [NAN, 100], [NAN, 140], [NAN, 60]], [[NAN, 10], [NAN, 10], [NAN, 14], [NAN, 6]])
    assert unequal_amounts(seeds, trials_of("random", "even", seeds=2), "random") == {}
    partial = tables([[NAN, 100, 900], [NAN, 95, NAN]], [[NAN, 10, 90], [NAN, 9, NAN]])
    assert unequal_amounts(partial, trials_of("random", "loss"), "random") == {}


@pytest.mark.parametrize(("response", "words"), [(52, ""), (48, ""), (53, "106 % of"), (41, "82 % of")])
def test_unequal_supervision_at_equal_budgets_is_in_the_verdict(response, words):
    costs = tables([[NAN, 100, 100], [NAN, 100, 100]], [[NAN, 10, 10], [NAN, 10, 10]])
    costs["cost", "response_tokens"] = np.array([[NAN, 40, 60], [NAN, response - 10, response + 10]])
    unequal = unequal_amounts(costs, trials_of("random", "loss"), "random")
    if not words:
        assert unequal == {}
        return
    assert unequal["loss"] == f"{words} random's response tokens learned ({response} against 50 per stage)"
    frame = pd.DataFrame({"condition": "", "selector": ["loss"], "reason": ["x"]})
    assert with_amounts(frame, {("", "loss"): unequal["loss"]})["reason"].item().startswith(f"x; {words}")


def test_both_kinds_of_unequal_amounts_are_named():
    costs = tables([[NAN, 100], [NAN, 50]], [[NAN, 10], [NAN, 5]])
    costs["cost", "response_tokens"] = np.array([[NAN, 50], [NAN, 25]])
    text = unequal_amounts(costs, trials_of("random", "keep"), "random")["keep"]
    assert "50 % fewer tokens learned" in text
    assert "; 50 % of random's response tokens learned" in text


def test_nothing_is_said_without_the_reference_or_the_costs():
    held = tables([[NAN, 100], [NAN, 10]], [[NAN, 10], [NAN, 1]])
    assert unequal_amounts(held, trials_of("a", "b"), "random") == {}
    del held["cost", "selected_examples"]
    assert unequal_amounts(held, trials_of("random", "b"), "random") == {}


def test_the_reason_of_every_verdict_of_the_selector_says_it():
    frame = pd.DataFrame({"view": ["p", "p", "q"], "selector": ["a", "b", "a"], "reason": ["x", "y", "z"]})
    frame = frame.assign(condition="")
    said = with_amounts(frame, {("", "a"): "fewer", ("other", "b"): "more"})
    assert said.reason.tolist() == ["x; fewer", "y", "z; fewer"]
    pd.testing.assert_frame_equal(with_amounts(frame, {}), frame)


# Replay that a stage could not give


NAN = float("nan")
REPLAY_TRIALS = Trials(("a", "b", "c"), ("random", "replay"), (0, 1), np.array([0, 1, 1]), np.array([0, 0, 1]))
"""One trial of random, two of replay."""


def cost_tables(**columns):
    return {("cost", name): np.array(held, dtype=float) for name, held in columns.items()}


def test_missed_replay_is_summed_over_stages():
    held = cost_tables(
        replay_missed_tokens=[[NAN, NAN, NAN], [NAN, 0, 100], [NAN, 0, 1150]],
        proxy_items_missed=[[NAN, NAN, NAN], [NAN, 3, 0], [NAN, 0, 0]],
    )
    replayed, items = missed_notes(held, REPLAY_TRIALS)
    assert replayed.startswith("replay: 2 of 4 stages replayed 1,250 tokens less than its share allows: ")
    assert items.startswith("replay: 1 of 4 stages left 3 proxy items unlearned: ")


def test_complete_replay_gives_no_note():
    assert missed_notes(cost_tables(replay_missed_tokens=[[NAN, NAN], [NAN, 0], [NAN, 0]]), REPLAY_TRIALS) == []
    assert missed_notes(cost_tables(selected_tokens=[[NAN, 5], [NAN, 5], [NAN, 5]]), REPLAY_TRIALS) == []


def test_note_names_the_stages_with_most_candidates_tied():
    tied = np.array([[NAN, 0, 0, 0], [NAN, 0.9, 0.4, 0.6], [NAN, 0.7, 0.6, 0.8]])  # of the replay trials: 0.8, 0.5, 0.7
    (note,) = tied_notes({("diagnostic", "tied_share"): tied}, REPLAY_TRIALS)
    assert note.startswith("replay: at stages 1, 3, 75 % of the candidates share the score at which the budget ends.")
    assert tied_notes({}, REPLAY_TRIALS) == []
    assert tied_notes({("diagnostic", "tied_share"): np.full((3, 3), NAN)}, REPLAY_TRIALS) == []


# Equivalence


def made_summary(rng, now_sd, long_sd, seeds, selectors=("a", "b", "c"), condition=None):
    """A summary of random differences, and the paired differences themselves: metric → selector → values."""
    names = ("random", *selectors)
    trials = trials_of(*names, seeds=seeds)
    values = {
        ("v", "current"): rng.normal(50, now_sd, len(trials)),
        ("v", "long_horizon"): rng.normal(0.5, long_sd, len(trials)),
    }
    grids = {metric: trials.grid(column) for (_, metric), column in values.items()}
    summary = summarize(values, trials, "random", ("view", "metric"))
    differences = {metric: dict(zip(selectors, grid[1:] - grid[0], strict=True)) for metric, grid in grids.items()}
    return (summary if condition is None else summary.assign(condition=condition)), differences


def slow_holm(p):
    """Holm by its definition: the k-th smallest of m times m − k + 1, never falling, at most 1."""
    order, result, worst = sorted(range(len(p)), key=lambda i: p[i]), [0.0] * len(p), 0.0
    for step, place in enumerate(order):
        worst = max(worst, (len(p) - step) * p[place])
        result[place] = min(worst, 1.0)
    return np.array(result)


def tost(differences, margin):
    """Two one-sided t tests, straight from scipy."""
    low = stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
    return max(low, stats.ttest_1samp(differences, margin, alternative="less").pvalue)


def test_equivalence_is_two_one_sided_tests_on_both_scores():
    rng = np.random.default_rng(0)
    margins = EquivalenceSpec(now=1.5, long_horizon=0.03)
    seen_words = set()
    for _ in range(30):
        summary, differences = made_summary(rng, 0.6, 0.01, 6)
        tests = Comparisons.build(summary, ["v"], "random", "current", margins)
        hand = [max(tost(differences["current"][s], 1.5), tost(differences["long_horizon"][s], 0.03)) for s in "abc"]
        adjusted = slow_holm(hand)
        np.testing.assert_allclose(tests.equivalent[0], adjusted, rtol=1e-9)
        plain = (tests.now["p"][0] >= 0.05) & (tests.later["p"][0] >= 0.05)
        expected = np.where(adjusted < 0.05, "equivalent within ±δ", "no difference shown")
        assert (tests.words[0][plain] == expected[plain]).all()
        seen_words |= set(expected[plain])
    assert len(seen_words) == 2


def test_holm_over_selectors_corrects_each_condition_alone():
    parts = [made_summary(np.random.default_rng(seed), 1.0, 0.02, 6)[0].assign(condition=f"c{seed}") for seed in (3, 4)]
    summary, margins = pd.concat(parts), EquivalenceSpec()
    apart = Comparisons.build(summary, ["v"], "random", "current", margins, "selectors")
    for column, part in zip((slice(0, 3), slice(3, 6)), parts, strict=True):
        alone = Comparisons.build(part, ["v"], "random", "current", margins)
        for name in ("myopic", "equivalent"):
            np.testing.assert_array_equal(getattr(apart, name)[:, column], getattr(alone, name))
        np.testing.assert_array_equal(apart.later["p"][:, column], alone.later["p"])
    together = Comparisons.build(summary, ["v"], "random", "current", margins)
    assert (together.later["p"] >= apart.later["p"]).all()
    assert (together.later["p"] > apart.later["p"]).any()
    assert (apart.family, together.family) == ("3 selectors of each of 2 conditions", "3 selectors × 2 conditions")


def test_holm_over_conditions_corrects_each_selector_alone():
    parts = [made_summary(np.random.default_rng(seed), 1.0, 0.02, 6)[0].assign(condition=f"c{seed}") for seed in (3, 4)]
    summary, margins = pd.concat(parts), EquivalenceSpec()
    tests = Comparisons.build(summary, ["v"], "random", "current", margins, "conditions")
    for selector in "abc":
        rows = summary["selector"].isin([selector, "random"])
        alone = Comparisons.build(summary[rows], ["v"], "random", "current", margins)
        places = [place for place, pair in enumerate(tests.pairs) if pair[1] == selector]
        assert [tests.pairs[place] for place in places] == list(alone.pairs)
        np.testing.assert_array_equal(tests.myopic[:, places], alone.myopic)
        np.testing.assert_array_equal(tests.equivalent[:, places], alone.equivalent)
        np.testing.assert_array_equal(tests.now["p"][:, places], alone.now["p"])
    assert tests.family == "2 conditions of each of 3 selectors"


def test_a_single_condition_is_corrected_over_its_selectors():
    summary, _ = made_summary(np.random.default_rng(3), 1.0, 0.02, 6)
    margins = EquivalenceSpec()
    plain = Comparisons.build(summary, ["v"], "random", "current", margins)
    for family in ("selectors", "conditions"):
        tests = Comparisons.build(summary, ["v"], "random", "current", margins, family)
        np.testing.assert_array_equal(tests.later["p"], plain.later["p"])
        assert tests.family == plain.family == "3 selectors"


def test_many_noisy_seeds_are_needed_to_show_equivalence():
    """No difference at all: few seeds show no difference, many show that it is small."""
    word = {}
    for seeds in (3, 60):
        summary, _ = made_summary(np.random.default_rng(1), 0.5, 0.01, seeds, selectors=("a",))
        (row,) = verdict_table(summary, ["v"], "random", "current").to_dict("records")
        word[seeds] = row["verdict"]
        assert "90 % intervals" in row["reason"]
        assert "margins of ±1 and ±2 points (equivalence: p = " in row["reason"]
    assert word == {3: "no difference shown", 60: "equivalent within ±δ"}


@given(st.floats(-2, 2), st.floats(0.01, 3), st.integers(2, 30), st.floats(0.05, 4))
def test_equivalence_is_the_90_percent_interval_inside(mean, sd, n, margin):
    low, high = t_interval(mean, sd, n, 0.9)
    inside = -margin < low and high < margin
    edge = min(abs(low + margin), abs(high - margin)) < 1e-9
    assert edge or (p_equivalent(mean, sd, n, margin) < 0.05) == inside


def test_equal_differences_are_equivalent_only_with_enough_seeds():
    assert p_equivalent(0.0, 0.0, 3, 1.0) == pytest.approx(1 / 8)
    assert p_equivalent(0.5, 0.0, 6, 1.0) == pytest.approx(1 / 64)
    assert p_equivalent(1.5, 0.0, 6, 1.0) == 1
    assert np.isnan(p_equivalent(0.5, 0.1, 1, 1.0))
    with pytest.raises(DataError, match="margin is 0"):
        p_equivalent(0.5, 0.1, 5, 0)


# Myopic


def test_myopic_is_the_larger_one_sided_p_over_the_whole_family():
    rng = np.random.default_rng(2)
    parts, hand, later = [], [], []
    for condition in ("", "budget=0.1"):
        summary, differences = made_summary(rng, 0.6, 0.01, 5, condition=condition)
        parts.append(summary)
        for selector in "abc":
            now, long = differences["current"][selector], differences["long_horizon"][selector]
            ahead = stats.ttest_1samp(now, 0, alternative="greater").pvalue
            hand.append(max(ahead, stats.ttest_1samp(long, 0, alternative="less").pvalue))
            later.append(stats.ttest_1samp(long, 0).pvalue)
    tests = Comparisons.build(pd.concat(parts), ["v"], "random", "current", EquivalenceSpec())
    assert tests.family == "3 selectors × 2 conditions"
    np.testing.assert_allclose(tests.myopic[0], slow_holm(hand), rtol=1e-9)
    np.testing.assert_allclose(tests.later["p"][0], slow_holm(later), rtol=1e-9)
    alone = Comparisons.build(parts[1], ["v"], "random", "current", EquivalenceSpec())
    np.testing.assert_allclose(alone.myopic[0], slow_holm(hand[3:]), rtol=1e-9)


def simulated_words(now_shift, later_shift, audits=400, selectors=6, conditions=4, seeds=5):
    """Verdicts of audits whose selectors differ from random by so many sd: (audits, comparisons)."""
    rng = np.random.default_rng(3)
    names = ("random", *(f"s{place}" for place in range(selectors)))
    parts = []
    for condition in range(conditions):
        values = {}
        for view in range(audits):
            for metric, shift in (("current", now_shift), ("long_horizon", later_shift)):
                grid = rng.normal(0, 1, (len(names), seeds))
                grid[1:] += shift * np.sqrt(2)
                values[view, metric] = grid.reshape(-1)
        summary = summarize(values, trials_of(*names, seeds=seeds), "random", ("view", "metric"))
        parts.append(summary.assign(condition=str(condition)))
    return Comparisons.build(pd.concat(parts), range(audits), "random", "current", EquivalenceSpec())


def test_false_myopic_in_any_condition_stays_below_5_percent():
    """All are far ahead now and none differs later; a headline that counts conditions is corrected over them."""
    tests = simulated_words(20, 0)
    assert (tests.words == "myopic").any(axis=1).mean() <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 400)


def test_intersection_union_test_shows_more_than_two_corrected_tests():
    tests = simulated_words(2, -2, audits=150, selectors=6, conditions=1)
    both = (tests.now["p"] < 0.05) & (tests.later["p"] < 0.05) & (tests.now["mean"] > 0) & (tests.later["mean"] < 0)
    assert (tests.words == "myopic").mean() > both.mean() + 0.1


# Base models


def test_repeated_base_models_are_the_units_of_every_test():
    """Five seeds of three base models: differences are averaged per base model, then t over the three means."""
    rng = np.random.default_rng(4)
    trials = replace(trials_of("random", "a", "b", seeds=5), bases=("x", "y", "x", "z", "y"))
    values = {("v", "current"): rng.normal(50, 1, 15), ("v", "long_horizon"): rng.normal(0.5, 0.01, 15)}
    values["v", "current"][6] = NAN  # seed 1 of a: its base model y keeps seed 4
    summary = summarize(values, trials, "random", ("view", "metric"))
    rows = summary[(summary["metric"] == "current")].set_index("selector")
    grid = trials.grid(values["v", "current"])
    for place, selector in ((1, "a"), (2, "b")):
        d = grid[place] - grid[0]
        means = [np.nanmean(d[[0, 2]]), np.nanmean(d[[1, 4]]), d[3]]
        test = stats.ttest_1samp(means, 0)
        row = rows.loc[selector]
        assert (row["diff_n"], row["n"]) == (3, 4 if selector == "a" else 5)
        assert [row["diff_vs_reference"], row["diff_sd"]] == pytest.approx([np.mean(means), np.std(means, ddof=1)])
        assert [row["p"], row["ci_low"], row["ci_high"]] == pytest.approx(
            [test.pvalue, *test.confidence_interval(0.95)]
        )
    table = verdict_table(summary, ["v"], "random", "current", trials=trials)
    assert table["reason"].str.contains("; 3 base models, p after Holm over 2 selectors").all()
    assert not table["reason"].str.contains("on this base model").any()


@pytest.mark.parametrize(
    ("bases", "unit_of", "shared"),
    [
        ((), [0, 1, 2, 3], False),
        (("x", "x", "x", "x"), [0, 1, 2, 3], True),
        (("x", "y", "z", "w"), [0, 1, 2, 3], False),
        (("x", "y", "x", "y"), [0, 1, 0, 1], False),
    ],
)
def test_seeds_are_units_unless_several_base_models_repeat(bases, unit_of, shared):
    trials = replace(trials_of("random", seeds=4), bases=bases)
    np.testing.assert_array_equal(trials.unit_of, unit_of)
    assert trials.shares_base == shared


def test_two_base_models_with_many_seeds_are_not_enough():
    trials = replace(trials_of("random", "a", seeds=10), bases=("x", "y") * 5)
    rng = np.random.default_rng(5)
    values = {("v", metric): rng.normal(0, 1, 20) for metric in ("current", "long_horizon")}
    summary = summarize(values, trials, "random", ("view", "metric"))
    (row,) = verdict_table(summary, ["v"], "random", "current", trials=trials).to_dict("records")
    assert row["verdict"] == "not enough seeds"
    assert "in 2 base model(s); at least 3" in row["reason"]


def test_per_base_tests_keep_5_percent_where_seeds_alone_do_not():
    """Differences vary 3.9 times as much over base models as over the seeds of one; no selector has an effect."""
    rng = np.random.default_rng(6)
    audits, bases, each = 4_000, 5, 3
    of_base = rng.normal(0, np.sqrt(2.9), (audits, bases, 1))
    difference = (of_base + rng.normal(0, 1, (audits, bases, each))).reshape(audits, -1)
    none = np.zeros_like(difference)
    unit_of = np.repeat(np.arange(bases), each)
    assert (paired(difference, none, unit_of=unit_of).p < 0.05).mean() == pytest.approx(0.05, abs=0.012)
    assert (paired(difference, none).p < 0.05).mean() > 0.15
    first = difference[:, :each]  # all seeds of one base model: false alarms as a claim about base models
    assert (paired(first, none[:, :each]).p < 0.05).mean() == pytest.approx(0.31, abs=0.05)


def test_the_base_of_every_seed_comes_from_a_mapping_or_a_column():
    rows = pd.DataFrame({"trial": ["r0", "r1"], "selector": "random", "seed": [0, 1], "base": ["x", "y"]})
    assert read_trials(rows, "random").bases == ("x", "y")
    assert read_trials(rows, "random", {0: "z", 1: "z"}).bases == ("z", "z")
    assert read_trials(rows.drop(columns="base"), "random").bases == ()
    with pytest.raises(DataError, match="seed 1 has no base model"):
        read_trials(rows, "random", {0: "z"})
    with pytest.raises(DataError, match="seed 0 has several base models"):
        read_trials(rows.assign(trial="r0", seed=0), "random")
