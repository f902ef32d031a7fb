import numpy as np
import pandas as pd
import pytest

from longgame.recipe import parse_recipe
from longgame.report.tables import (
    DIAGNOSTICS,
    MAIN,
    Cell,
    Column,
    Table,
    format_number,
    mean_sd,
    metric_cells,
    metric_column,
    metric_table,
    rows_by_metric,
    selectors_in_order,
    shown_views,
    stage_table,
    sub_skill_table,
    with_paper,
)
from tests.report.conftest import make_card, make_results


def cell(table, row, label):
    column = [c.label for c in table.columns].index(label)
    return next(r[column] for r in table.rows if r[0].text == row)


@pytest.mark.parametrize(
    ("value", "unit", "compact", "text"),
    [
        (float("nan"), "points", False, "—"),
        (float("inf"), "tokens", False, "not reached"),
        (61.94, "points", False, "61.9"),
        (-0.04, "points", False, "0.0"),
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
    assert format_number(value, unit, compact) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (7, "7"), (999.4, "999"), (999.6, "1 k"), (1.2345e9, "1.23 G"), (9.996e11, "1 T"), (3e26, "3e+05 Z")],
)
def test_flops_have_three_digits_and_a_prefix(value, text):
    assert format_number(value, "FLOP") == text


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


def test_best_of_a_column_follows_the_direction(card, recipe):
    table = metric_table(card, recipe, MAIN, "t", "token_accuracy")
    assert cell(table, "ahead", "current score").best
    assert not cell(table, "ahead", "forgetting").best
    assert not any(cell(table, name, "current score").best for name in ("random",))


def best(metric, **means):
    columns = ("sd", "n", "p_holm", "diff_vs_reference", "ci_low", "ci_high")
    summary = pd.DataFrame({"selector": list(means), "metric": metric, "mean": list(means.values())})
    cells = metric_cells(rows_by_metric(summary.assign(**dict.fromkeys(columns, 1.0))), metric, list(means), "a")
    return {name for name, cell in cells.items() if cell.best}


def test_means_that_look_alike_are_best_together_or_not_at_all():
    assert best("current", a=52.04, b=51.96, c=50.0) == {"a", "b"}
    assert best("threshold_reached_common", a=1.0, b=1.0) == set()
    assert best("tokens_to_threshold_common", a=1.0, b=float("inf")) == set()


def test_unmeasured_columns_are_left_out_and_gaps_are_dashes(recipe, card):
    assert "noisy share" not in [c.label for c in metric_table(card, recipe, DIAGNOSTICS, "t").columns]
    results = make_results()
    gone = (results["selector"] == "ahead") & (results["name"] == "difficulty")
    table = metric_table(make_card(results[~gone]), recipe, DIAGNOSTICS, "t")
    assert cell(table, "ahead", "mean difficulty").text == "—"
    assert cell(table, "random", "mean difficulty").text == "0.400 ± 0.000"


def test_selectors_have_the_order_of_the_recipe(card, recipe, hostile):
    assert selectors_in_order(card, recipe) == ["random", "ahead", hostile]


def test_primary_view_is_shown_only_where_it_is_another_scorer(card):
    assert shown_views(card) == [("token_accuracy", "token accuracy (primary)"), ("exact_match", "exact match")]
    matched = make_card(make_results(), primary="exact_match")
    assert shown_views(matched) == [("exact_match", "exact match (primary)"), ("token_accuracy", "token accuracy")]
    own = make_card(make_results(scorers=("choice", "token_accuracy")), primary="choice")
    assert [view for view, _ in shown_views(own)] == ["primary", "token_accuracy"]


def test_stage_and_sub_skill_cells_show_both_times(card, recipe):
    R = np.mean([card.R("token_accuracy", "ahead", seed) for seed in range(5)], axis=0)
    table = stage_table(card, recipe, "token_accuracy", "t")
    assert cell(table, "ahead", "one").text == f"{R[1, 0]:.1f} → {R[3, 0]:.1f}"
    skills = sub_skill_table(card, recipe, "token_accuracy", "t")
    names = [row[0].text for row in skills.rows]
    assert names == [f"{task} / {skill}" for task in ("one", "two <b>", "three", "shifted") for skill in ("x", "y <i>")]
    frames = [card.sub_skills("token_accuracy", "ahead", seed) for seed in range(5)]
    value = np.mean([f.query("stage == 3 and task == 'shifted' and sub_skill == 'x'")["value"].item() for f in frames])
    assert skills.rows[6][2].text == f"{value:.1f}"


def test_few_seeds_give_no_marks(recipe):
    table = metric_table(make_card(make_results(seeds=1)), recipe, MAIN, "t", "token_accuracy")
    assert {cell.mark for row in table.rows for cell in row} == {""}


def test_paper_values_stand_beside_on_demand():
    recipe = parse_recipe({"name": "r", "selectors": ["random", "loss"], "seeds": [0], "budget": 0.25})

    def table(name):
        rows = tuple((Cell(selector), Cell("1", value=1.0)) for selector in ("random", "loss", "own"))
        return Table("t", (Column("selector", numeric=False), metric_column(name)), rows)

    assert repr(with_paper(table("final"), recipe)) == repr(table("final"))  # a cell without a value holds NaN
    wide = with_paper(table("long_horizon"), recipe)
    assert [column.label for column in wide.columns] == ["selector", "long-horizon score", "paper: long horizon"]
    assert [row[2].text for row in wide.rows] == ["59", "51", ""]
    assert wide.columns[2].aside
    assert wide.without_asides().columns == wide.columns[:2]
