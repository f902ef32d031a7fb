"""What studies write: charts as SVG and PNG, JSON, and tables in the terminal."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert
from rich.console import Console
from rich.table import Table

from longgame.errors import StorageError

DIGITS = 6
"""Significant digits of a fraction in JSON: more than any figure here has."""
_BREAK = re.compile(r"\n\s+")
_FLAT = re.compile(r"\{\n\s+([^{}\[\]]*?)\n\s*\}")
_VERSION = ".".join(alt.SCHEMA_VERSION.split(".")[:2])


def write_chart(chart: Any, folder: Path, name: str) -> list[Path]:
    """Write an altair chart as ``NAME.svg`` and ``NAME.png`` (double size), on white; returns the files.

    Raises:
        StorageError: the folder cannot be written.
    """
    spec = chart.configure(background="white").to_dict()
    content = {
        folder / f"{name}.svg": vl_convert.vegalite_to_svg(spec, vl_version=_VERSION).encode(),
        folder / f"{name}.png": vl_convert.vegalite_to_png(spec, vl_version=_VERSION, scale=2),
    }
    for path, data in content.items():
        _write(path, data)
    return list(content)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, fractions to `DIGITS` significant digits, a line for each flat object; folders are made.

    A number that was not measured (NaN) or is infinite is null, as JSON has neither.

    Raises:
        StorageError: the file cannot be written.
    """
    text = json.dumps(_rounded(value), indent=1, ensure_ascii=False, allow_nan=False)
    text = _FLAT.sub(lambda match: "{" + _BREAK.sub(" ", match[1]) + "}", text)
    _write(path, (text + "\n").encode())


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}. Give another place.") from error


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
