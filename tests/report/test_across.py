"""Several conditions: every one has its column in every table, in the terminal, in Markdown, and not more than fits."""

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from longgame.audit.plan import condition_label
from longgame.metrics.comparisons import Across
from longgame.report.conditions import across_tables, condition_table
from longgame.report.markdown import scorecard_markdown
from longgame.report.tables import MAIN, metric_table
from longgame.report.terminal import print_scorecard


@pytest.fixture(scope="module")
def across(card):
    cards = dict.fromkeys(("", "budget=0.1", "order=3-1-2"), card)
    return Across.build(cards, {"order=*": ["", "order=3-1-2"]})


LABELS = ["own", "budget 0.1", "order 3-1-2", "mean of orders"]


def test_names_of_conditions_read_as_headings():
    assert [condition_label(name) for name in ("", "budget=0.1", "order=3-1-2", "order=*")] == LABELS
    assert condition_label("budget=0.1,order=*") == "budget 0.1, mean of orders"


def test_every_table_has_a_column_for_every_condition_and_the_cells_of_its_scorecard(across, card, recipe):
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


def test_what_every_condition_is_stands_in_a_table(across, recipe):
    table = condition_table(across, recipe)
    assert [row[0].text for row in table.rows] == ["own: budget 0.25, rounds step, LoRA r=16", *LABELS[1:3]]
    assert table.rows[0][1].text == "one → two <b> → three"


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_terminal_shows_them_within_its_width(across, card, recipe, width):
    out = io.StringIO()
    print_scorecard(card, recipe, Console(file=out, width=width), across)
    text = out.getvalue()
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert "own: budget 0.25, rounds step, LoRA r=16: one → two <b> → three" in " ".join(text.split())
    assert "forgetting by condition" in text
    assert "Verdict by condition" in text


def test_markdown_shows_them_after_the_own_condition_and_only_where_there_are_some(
    across, card, results, recipe, environment
):
    text = scorecard_markdown(card, results, recipe, environment, across)
    own, _, rest = text.partition("## All conditions")
    assert "## Scorecard" in own
    heads = [line for line in rest.splitlines() if line.startswith("| selector")]
    assert len(heads) >= 6
    for head in heads:
        assert len(re.findall(r"(?<!\\)\|", head)) == 2 + len(LABELS)
    assert "replications are the seeds, not the orders" in " ".join(rest.split())
    assert "All conditions" not in scorecard_markdown(card, results, recipe, environment)
