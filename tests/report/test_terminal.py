import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from longgame.report.tables import MAIN, metric_table
from longgame.report.terminal import _cut, print_scorecard


def printed(card, recipe, width):
    out = io.StringIO()
    print_scorecard(card, recipe, Console(file=out, width=width))
    return out.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_nothing_is_wider_than_the_console_and_nothing_is_cut_off(card, recipe, width):
    text = printed(card, recipe, width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    words = text.split()
    for heading in ("forgetting", "horizon", "entropy", "difficulty", "selected"):
        assert heading in words
    for task in ("one", "three"):
        assert task in words


def test_the_scorecard_is_one_table_at_120_columns(card, recipe):
    table = metric_table(card, recipe, MAIN, "t", "token_accuracy", compact=True)
    short = [row for row in table.rows if len(row[0].text) <= 17]
    kept = type(table)(table.title, table.columns, tuple(short))
    assert len(_cut(kept, 120)) == 1
    parts = _cut(kept, 80)
    assert len(parts) == 2
    assert sorted(position for part in parts for position in part[1:]) == list(range(1, len(table.columns)))
    assert all(part[0] == 0 for part in parts)


def test_names_are_text_not_markup(card, recipe, hostile):
    assert "<script>" in printed(card, recipe, 200)
    assert hostile in printed(card, recipe, 200)


def test_every_selector_has_its_verdict_line(card, recipe, hostile):
    lines = printed(card, recipe, 300).splitlines()
    assert any(line.startswith("ahead: myopic — against random: current score +10.0 points: ahead") for line in lines)
    assert any(line.startswith(f"{hostile}: ") for line in lines)
