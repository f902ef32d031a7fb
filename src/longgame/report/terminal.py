"""The scorecard in the terminal: tables that fit the window, then one sentence per selector."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from longgame.metrics.comparisons import Across
from longgame.metrics.scorecard import Scorecard
from longgame.recipe import Recipe
from longgame.report.conditions import across_note, across_tables, condition_table
from longgame.report.tables import DIAGNOSTICS, LEVEL_ONE, MAIN, Cell, Table, metric_table, shown_views, stage_table
from longgame.report.words import elsewhere, headline, legend, reversal_line, seeds_caveat, set_gap_line, verdict_lines

_STYLES = {"▲": "green", "▼": "red", "*": "yellow"}
_PADDING = 2


def print_scorecard(scorecard: Scorecard, recipe: Recipe, console: Console, across: Across | None = None) -> None:
    """Print the scorecard; a table wider than the console is cut into several, each with the selectors' names.

    Args:
        scorecard: of the recipe's own condition.
        across: all conditions of a recipe with axes; their tables come after the scorecard's.
    """
    console.print()
    for view, title in shown_views(scorecard):
        print_table(metric_table(scorecard, recipe, MAIN, f"Scorecard, {title}", view, compact=True), console)
    console.print(Text(legend(scorecard), style="dim"))
    console.print()
    view, title = shown_views(scorecard)[0]
    print_table(stage_table(scorecard, recipe, view, f"By stage, {title}: after the stage → at the end"), console)
    print_table(
        metric_table(scorecard, recipe, DIAGNOSTICS, "What was selected, and the updates", compact=True), console
    )
    print_table(
        metric_table(scorecard, recipe, LEVEL_ONE, f"Level 1: now, and what it cost, {title}", view, True), console
    )
    if across is not None:
        _print_conditions(condition_table(across, recipe), console)
        for table in across_tables(across, recipe, compact=True):
            print_table(table, console)
        console.print(Text(across_note(across), style="dim"))
        console.print()
    console.print(Text(set_gap_line(scorecard)))
    console.print(Text(reversal_line(scorecard)))
    console.print()
    console.print(Text(headline(scorecard, recipe), style="bold"))
    for line in verdict_lines(scorecard, recipe):
        text = Text.assemble((line.selector, "bold"), ": ", (line.word, _word_style(line.word)), f" — {line.reason}")
        if line.other:
            text.append(f" ({line.other})")
        if line.power:
            text.append(f". {line.power}", style="dim")
        if line.cost:
            text.append(f". {line.cost}", style="dim")
        console.print(text)
    if others := elsewhere(across):
        console.print(Text.assemble(("In other conditions", "bold"), ": ", others))
    for note in scorecard.notes:
        console.print(Text(f"note: {note}", style="dim"))
    console.print(Text(seeds_caveat(recipe), style="dim"))


def _print_conditions(table: Table, console: Console) -> None:
    """The recipe's own values and stages, then each condition that walks the stages in another order."""
    console.print(Text("All conditions", style="bold"))
    (own, stages), *others = table.rows
    for name, walked in ((own, stages), *(row for row in others if row[1].text != stages.text)):
        console.print(Text(f"{name.text}: {walked.text}", style="dim"))
    console.print()


def _word_style(word: str) -> str:
    if word in ("myopic", "long-horizon worse"):
        return "red"
    return "green" if word == "long-horizon better" else "default"


def print_table(table: Table, console: Console) -> None:
    """Print a table, cut into parts where the terminal is too narrow for it."""
    if len(table.columns) < 2:
        return
    console.print(Text(table.title, style="bold"))
    for positions in _cut(table, console.width):
        _print_part(table, positions, console)


def _cut(table: Table, width: int) -> list[list[int]]:
    """Columns of each part: as few parts as fit the width, of nearly equal width, the names in front of each."""
    name, *rest = [_width(table, position) for position in range(len(table.columns))]

    def parts(limit: int) -> list[list[int]]:
        found: list[list[int]] = []
        used = limit + 1
        for position, needed in enumerate(rest, start=1):
            if used + needed > limit:
                found.append([0])
                used = name
            found[-1].append(position)
            used += needed
        return found

    fewest = parts(width)
    while len(narrower := parts(width - 1)) == len(fewest) and width > name + max(rest):
        fewest, width = narrower, width - 1
    return fewest


def _width(table: Table, position: int) -> int:
    """Cells beside each other that a column needs: its widest cell, or the longest word of its heading."""
    words = table.columns[position].short.split()
    cells = (len(_cell(row[position])) for row in table.rows)
    return max([*cells, *(cell_len(word) for word in words)], default=1) + _PADDING


def _print_part(table: Table, positions: list[int], console: Console) -> None:
    shown = RichTable(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for position in positions:
        column = table.columns[position]
        width = _width(table, position) - _PADDING
        shown.add_column(
            Text(column.short), justify="right" if column.numeric else "left", min_width=width, max_width=width
        )
    for row in table.rows:
        shown.add_row(*(_cell(row[position]) for position in positions))
    console.print(shown)


def _cell(cell: Cell) -> Text:
    text = Text(cell.text, style="bold" if cell.best else "")
    if cell.mark:
        text.append(cell.mark, style=_STYLES[cell.mark])
    return text
