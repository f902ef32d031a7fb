"""``longgame selectors``: what a recipe can name."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from longgame.commands.terminal import Terminal
from longgame.errors import LonggameError
from longgame.selection.base import SELECTORS, build_selector
from longgame.signals.base import SIGNALS


def selectors(
    signals: Annotated[bool, typer.Option("--signals", help="List the signals that longgame score computes.")] = False,
) -> None:
    """List the selectors, with the signals that each one needs."""
    if signals:
        _print_signals()
        return
    table = Table()
    for heading in ("name", "needs", "method"):
        table.add_column(heading, overflow="fold")
    for name in SELECTORS.names():
        try:
            selector = build_selector(name)
        except LonggameError as error:  # of an installed plug-in; the others are still listed
            table.add_row(name, "?", escape(f"cannot be used: {str(error).partition(chr(10))[0]}"))
            continue
        summary = (type(selector).__doc__ or "").strip().partition("\n")[0]
        table.add_row(name, ", ".join(selector.requires) or "nothing", escape(summary))
    console = Terminal()
    console.print(table)
    console.print("Your own selector: --selector path/to/file.py:Class", highlight=False)
    console.print("Scores of another system: --selector scores:FILE (.parquet, .csv, .jsonl)", highlight=False)


def _print_signals() -> None:
    table = Table()
    for heading in ("name", "unit", "meaning", "needs", "cost"):
        table.add_column(heading, overflow="fold")
    for signal in SIGNALS.values():
        table.add_row(signal.name, signal.unit, escape(signal.meaning), ", ".join(signal.needs), signal.cost)
    Terminal().print(table)
