import numpy as np
import pytest

from longgame.report.tables import (
    DIAGNOSTICS,
    MAIN,
    _best,
    mean_sd,
    metric_table,
    number,
    selectors_in_order,
    shown_views,
    stage_table,
    sub_skill_table,
)
from longgame.report.words import headline, run_facts, set_gap_line, verdict_lines


def cell(table, row, label):
    column = [c.label for c in table.columns].index(label)
    return next(r[column] for r in table.rows if r[0].text == row)


@pytest.mark.parametrize(
    ("value", "unit", "compact", "text"),
    [
        (float("nan"), "points", False, "—"),
        (float("inf"), "tokens", False, "not reached"),
        (61.94, "points", False, "61.9"),
        (0.4712, "0–1", False, "0.471"),
        (0.4712, "0–1", True, ".47"),
        (-0.4712, "0–1", True, "-.47"),
        (1.2, "0–1", True, "1.20"),
        (10.004, "nats", True, "10.00"),
        (12345.4, "tokens", False, "12,345"),
        (0.004, "s", True, "0.00"),
        (123.44, "s", False, "123.4"),
    ],
)
def test_numbers_have_the_precision_of_their_unit(value, unit, compact, text):
    assert number(value, unit, compact) == text


def test_one_seed_has_a_mean_and_no_sd():
    assert mean_sd(61.94, float("nan"), "points") == "61.9"
    assert mean_sd(61.94, 0.52, "points", compact=True) == "61.9±0.5"
    assert mean_sd(float("inf"), float("nan"), "tokens") == "not reached"


def test_cells_hold_mean_and_sd_over_seeds(card, recipe):
    table = metric_table(card, recipe, MAIN, "t", "token_accuracy")
    values = [card.R("token_accuracy", "ahead", seed).diagonal(-1).mean() for seed in range(5)]
    found = cell(table, "ahead", "current score")
    assert found.text == f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"
    assert "n = 5 seeds" in found.detail
    assert "95 % interval" in found.detail


def test_marks_say_better_or_worse_not_higher_or_lower(card, recipe, hostile):
    table = metric_table(card, recipe, MAIN, "t", "token_accuracy")
    assert cell(table, "ahead", "current score").mark == "▲"
    assert cell(table, "ahead", "forgetting").mark == "▼"  # higher, and lower is better
    assert cell(table, hostile, "future AUC (common)").mark == ""  # equal curves
    assert {cell(table, "random", column.label).mark for column in table.columns[1:]} == {""}


def test_best_of_a_column_follows_the_metric_s_direction(card, recipe):
    table = metric_table(card, recipe, MAIN, "t", "token_accuracy")
    assert cell(table, "ahead", "current score").best
    assert not cell(table, "ahead", "forgetting").best
    assert not any(cell(table, name, "current score").best for name in ("random",))


def test_means_that_look_alike_are_best_together_or_not_at_all():
    assert _best({"a": 52.04, "b": 51.96, "c": 50.0}, "higher", "points") == {"a", "b"}
    assert _best({"a": 1.0, "b": 1.0}, "higher", "share") == set()
    assert _best({"a": 1.0, "b": float("inf")}, "lower", "tokens") == set()


def test_unmeasured_columns_are_left_out_and_single_gaps_are_dashes(synthetic, recipe, card):
    make_results, make_card, _ = synthetic
    assert "noisy share" not in [c.label for c in metric_table(card, recipe, DIAGNOSTICS, "t").columns]
    results = make_results()
    gone = (results["selector"] == "ahead") & (results["name"] == "difficulty")
    table = metric_table(make_card(results[~gone]), recipe, DIAGNOSTICS, "t")
    assert cell(table, "ahead", "mean difficulty").text == "—"
    assert cell(table, "random", "mean difficulty").text == "0.400 ± 0.000"


def test_selectors_stand_in_the_recipe_s_order(card, recipe, hostile):
    assert selectors_in_order(card, recipe) == ["random", "ahead", hostile]


def test_primary_stands_alone_only_where_it_is_another_scorer(card, synthetic):
    assert shown_views(card) == [("token_accuracy", "token accuracy (primary)"), ("exact_match", "exact match")]
    make_results, make_card, _ = synthetic
    own = make_card(make_results(scorers=("choice", "token_accuracy")), primary="choice")
    assert [view for view, _ in shown_views(own)] == ["primary", "token_accuracy"]


def test_stage_and_sub_skill_cells_go_from_after_the_stage_to_the_end(card, recipe):
    R = np.mean([card.R("token_accuracy", "ahead", seed) for seed in range(5)], axis=0)
    table = stage_table(card, recipe, "token_accuracy", "t")
    assert cell(table, "ahead", "one").text == f"{R[1, 0]:.1f} → {R[3, 0]:.1f}"
    skills = sub_skill_table(card, recipe, "token_accuracy", "t")
    names = [row[0].text for row in skills.rows]
    assert names == [f"{task} / {skill}" for task in ("one", "two <b>", "three", "shifted") for skill in ("x", "y <i>")]
    frames = [card.sub_skills("token_accuracy", "ahead", seed) for seed in range(5)]
    value = np.mean([f.query("stage == 3 and task == 'shifted' and sub_skill == 'x'")["value"].item() for f in frames])
    assert skills.rows[6][2].text == f"{value:.1f}"


def test_verdicts_and_headline_name_the_myopic(card, recipe):
    lines = {line.selector: line for line in verdict_lines(card, recipe)}
    assert "random" not in lines
    assert lines["ahead"].word == "myopic"
    said = headline(card, recipe)
    assert said.startswith("Myopic: ahead")
    assert "3 selectors, 5 seeds" in said


def test_disagreement_between_scorers_is_said(card, recipe, synthetic):
    make_results, make_card, _ = synthetic
    results = make_results()
    flat = (results["scorer"] == "exact_match") & (results["kind"] == "score")
    results.loc[flat, "value"] = 40.0
    lines = {line.selector: line for line in verdict_lines(make_card(results), recipe)}
    assert lines["ahead"].word == "myopic"
    assert lines["ahead"].other == "under exact match: indistinguishable from random"


def test_few_seeds_give_no_verdict_and_no_marks(synthetic):
    make_results, make_card, make_recipe = synthetic
    card, recipe = make_card(make_results(seeds=1)), make_recipe(1)
    assert {line.word for line in verdict_lines(card, recipe)} == {"not enough seeds"}
    table = metric_table(card, recipe, MAIN, "t", "token_accuracy")
    assert {c.mark for row in table.rows for c in row} == {""}
    assert "1 seed)" in set_gap_line(card)


def test_without_the_reference_the_headline_says_that_nothing_was_compared(synthetic, recipe):
    make_results, make_card, _ = synthetic
    results = make_results()
    card = make_card(results[results["selector"] != "random"])
    assert headline(card, recipe).startswith("Nothing was compared")


def test_facts_hold_versions_seeds_and_duration(results, recipe, environment):
    facts = dict(run_facts(recipe, results, environment))
    assert facts["duration"] == "2.0 min in 2 sessions"
    assert facts["versions"] == "longgame 0.1.0, numpy 2.0"
    assert facts["seeds"] == "5 (0, 1, 2, 3, 4)"
