"""Rows of plain numbers and strings in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def print_rows(title: str, rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Print rows with the same keys as a table; ``rate``, ``low``, ``high`` and ``audits`` share a column."""
    shown = [_with_interval(row) for row in rows]
    table = Table(title=title, title_justify="left")
    for name, value in shown[0].items():
        table.add_column(name, justify="left" if isinstance(value, str) else "right")
    for row in shown:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)


def _with_interval(row: dict[str, Any]) -> dict[str, Any]:
    if "audits" not in row:
        return row
    rate = f"{row['rate']:.1%} ({row['low']:.1%} to {row['high']:.1%}) of {row['audits']}"
    parts = {"rate": rate, "low": None, "high": None, "audits": None}
    return {name: value for name, value in (row | parts).items() if value is not None}
