"""Level 1: what choosing took, beside training; a run that did not count it stays readable."""

import pandas as pd
import pytest

from longgame.report.tables import COSTS, LEVEL_ONE, NOT_MEASURED, metric_table, number
from longgame.report.words import cost_line, verdict_lines
from tests.report.conftest import HOSTILE, NOW, make_card

SPENT = {
    "random": {"score_flops": 0.0, "train_flops": 4e9, "select_seconds": 0.0, "train_seconds": 2.0},
    "ahead": {"score_flops": 1e9, "train_flops": 4e9, "select_seconds": 0.5, "train_seconds": 2.0},
    HOSTILE: {"score_flops": float("nan"), "train_flops": 4e9, "select_seconds": 0.1, "train_seconds": 2.0},
}


@pytest.fixture(scope="module")
def counted(results):
    rows = results[results["name"] == "selected_tokens"]
    more = [
        rows.assign(name=name, value=rows["selector"].map({who: SPENT[who][name] for who in NOW}), unit="")
        for name in SPENT["random"]
    ]
    return make_card(pd.concat([results, *more], ignore_index=True))


def row(table, name):
    cells = next(cells for cells in table.rows if cells[0].text == name)
    return {column.short: cell.text for column, cell in zip(table.columns, cells, strict=True)}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (7, "7"), (999.4, "999"), (999.6, "1 k"), (1.2345e9, "1.23 G"), (9.996e11, "1 T"), (3e26, "3e+05 Z")],
)
def test_flops_have_three_digits_and_a_prefix(value, text):
    assert number(value, "FLOP") == text


def test_level_one_sums_stages_and_shares_them_with_training(counted, recipe):
    table = metric_table(counted, recipe, LEVEL_ONE, "", "primary", compact=True)
    ahead = row(table, "ahead")
    assert ahead["scoring FLOPs"] == "3 G±0"
    assert row(metric_table(counted, recipe, COSTS, "", "primary", compact=True), "ahead")["train FLOPs"] == "12 G±0"
    assert ahead["FLOPs share"] == ".25±.00"
    assert ahead["time share"] == ".25±.00"
    assert row(table, HOSTILE)["scoring FLOPs"] == row(table, HOSTILE)["FLOPs share"] == NOT_MEASURED
    assert row(table, "random")["scoring FLOPs"] == "0±0"


def test_a_verdict_names_what_choosing_took(counted, recipe):
    lines = {line.selector: line.cost for line in verdict_lines(counted, recipe)}
    assert lines["ahead"] == (
        "Choosing took 3 GFLOP (25.0% of the training FLOPs) and 1.50 s (25.0% of the training time) per trial"
    )
    assert lines[HOSTILE] == "Choosing took 0.30 s (5.0% of the training time) per trial"
    assert cost_line(counted, "random").startswith("Choosing took no FLOPs of the model and 0.00 s")


def test_a_run_that_counted_none_of_it_is_readable_and_says_nothing(card, recipe):
    assert {line.cost for line in verdict_lines(card, recipe)} == {""}
    assert "scoring FLOPs" not in {column.short for column in metric_table(card, recipe, LEVEL_ONE, "").columns}
