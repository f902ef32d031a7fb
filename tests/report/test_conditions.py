"""Several conditions: every one has its column in every table, in the terminal, in Markdown, and not more than fits."""

import dataclasses
import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from longgame.audit.plan import condition_label
from longgame.metrics.comparisons import Across
from longgame.report.conditions import across_note, across_tables, condition_table
from longgame.report.layout import report_layout
from longgame.report.render import markdown, print_layout
from longgame.report.tables import MAIN, metric_table
from tests.report.conftest import make_run


@pytest.fixture(scope="module")
def varied(results, card):
    cards = dict.fromkeys(("", "budget=0.1", "order=3-1-2"), card)
    return make_run(results, cards=cards, orders={"order=*": ["", "order=3-1-2"]})


@pytest.fixture(scope="module")
def across(varied):
    return varied.across


LABELS = ["own", "budget 0.1", "order 3-1-2", "mean of orders"]


def test_condition_labels_read_as_headings():
    assert [condition_label(name) for name in ("", "budget=0.1", "order=3-1-2", "order=*")] == LABELS
    assert condition_label("budget=0.1,order=*") == "budget 0.1, mean of orders"


def test_tables_have_the_cells_of_each_condition_scorecard(across, card, recipe):
    view = "token_accuracy"
    alone = metric_table(card, recipe, MAIN, "t", view)
    tables = across_tables(across, recipe, view)
    shown = ["current score", "future AUC (common)", "future AUC (own)", "forgetting", "long-horizon score", "Verdict"]
    assert [table.title.partition(" by ")[0] for table in tables] == shown
    for table in tables[:-1]:
        assert [column.label for column in table.columns] == ["selector", *LABELS]
        column = next(i for i, c in enumerate(alone.columns) if c.label == table.title.removesuffix(" by condition"))
        for row, own in zip(table.rows, alone.rows, strict=True):
            assert [str(cell) for cell in row[1:4]] == [str(own[column])] * 3
    words = {row[0].text: {cell.text for cell in row[1:4]} for row in tables[-1].rows}
    assert words["ahead"] == {"myopic"}
    assert "random" not in words


def test_condition_table_names_values_and_orders(across, recipe):
    table = condition_table(across, recipe)
    assert [row[0].text for row in table.rows] == ["own: budget 0.25, rounds step, lora-r16", *LABELS[1:3]]
    assert table.rows[0][1].text == "one → two <b> → three"


@pytest.mark.parametrize("width", [60, 80, 200])
def test_terminal_shows_conditions_within_its_width(varied, width):
    out = io.StringIO()
    print_layout(report_layout(varied), Console(file=out, width=width))
    text = out.getvalue()
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert "own: budget 0.25, rounds step, lora-r16: one → two <b> → three" in " ".join(text.split())
    assert "forgetting by condition" in text
    assert "Verdict by condition" in text


def test_markdown_shows_conditions_after_the_own(varied, run):
    own, _, rest = markdown(report_layout(varied)).partition("## Across conditions")
    assert "## Scorecard" in own
    rest = rest.partition("## Diagnostics\n")[0]
    heads = [line for line in rest.splitlines() if line.startswith("| selector")]
    assert len(heads) >= 6
    for head in heads:
        assert len(re.findall(r"(?<!\\)\|", head)) == 2 + len(LABELS)
    assert "replications are the seeds, not the orders" in " ".join(rest.split())
    assert "Across conditions" not in markdown(report_layout(run))


def test_verdicts_of_a_run_follow_the_family_of_the_recipe(varied):
    p = {}
    for family in ("selectors-conditions", "selectors", "conditions"):
        verdicts = Across.build(varied.scorecards, {}, holm=family).verdicts
        (words,) = set(verdicts["family"])
        p[words] = len(verdicts)
    assert len(p) == 3
    assert len(set(p.values())) == 1
    assert any(" × " in words for words in p)
    assert any("conditions of each of" in words for words in p)


@pytest.mark.parametrize("family", ["selectors-conditions", "selectors", "conditions"])
def test_note_names_what_verdicts_are_corrected_over(varied, family):
    across = Across.build(varied.scorecards, {}, holm=family)
    (words,) = set(across.verdicts["family"])
    assert f"(Holm), verdicts over {words}. “own”" in across_note(across)
    nothing = dataclasses.replace(across, verdicts=across.verdicts.head(0))
    assert "of a condition (Holm). “own”" in across_note(nothing)
