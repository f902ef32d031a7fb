"""How diagnostics go with forgetting, in a table and in a sentence under the figures that show it."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pandas as pd

from longgame.metrics.association import MIN_SEEDS, MOST_GROUPS
from longgame.metrics.catalog import METRICS
from longgame.metrics.scorecard import PRIMARY
from longgame.report.tables import NOT_MEASURED, Cell, Column, Table

_COLUMNS = (
    Column("pair", "pair", numeric=False),
    Column("trials", "trials", "a trial is a point: one selector, one seed"),
    Column("seeds", "seeds", "trials of one seed are not independent; intervals count seeds"),
    Column("Pearson r", "Pearson r", "over all trials, with the 95 % interval over seeds"),
    Column("Spearman r", "Spearman r", "the same of the ranks"),
    Column("r within seeds", "within seeds", "Pearson's r after each seed's mean is taken off both"),
    Column("one selector left out", "one left out", "range of Pearson's r when any one selector is left out"),
)
NOTE = (
    f"Intervals leave out one seed at a time (jackknife, Student's t; at most {MOST_GROUPS} groups of seeds); fewer "
    f"than {MIN_SEEDS} seeds give none. They cover other seeds of these selectors, not other selectors, and a "
    "correlation over selectors does not say what causes what."
)


def association_table(association: pd.DataFrame, title: str, view: str = PRIMARY) -> Table:
    """Diagnostics against forgetting and each other.

    Args:
        association: `Scorecard.association` or `Across.association`.
        view: view of the scores; pairs of diagnostics are found under any.
    """
    rows = []
    for row in _of_view(association, view):
        one_out = NOT_MEASURED
        if np.isfinite(row["least"]):
            one_out = f"{_r(row['least'])} to {_r(row['greatest'])}"
        rows.append(
            (
                Cell(f"{METRICS[row['x']].label} – {METRICS[row['y']].label}"),
                Cell(str(row["trials"]), value=row["trials"]),
                Cell(str(row["seeds"]), value=row["seeds"]),
                *(Cell(_with_interval(row, name), value=row[name]) for name in ("pearson", "spearman", "within")),
                Cell(one_out, value=row["least"]),
            )
        )
    return Table(title, _COLUMNS if rows else _COLUMNS[:1], tuple(rows), NOTE)


def association_line(association: pd.DataFrame, x: str, y: str, view: str = PRIMARY) -> str:
    """One sentence on a pair of metrics, for the caption of its figure; "" where the pair was not measured."""
    for row in _of_view(association, view):
        if (row["x"], row["y"]) != (x, y):
            continue
        seeds = int(row["seeds"])
        over = f"Over all {row['trials']} trials of {seeds} seed{'s' if seeds != 1 else ''}"
        if not np.isfinite(row["pearson"]):
            return f"{over} there is no spread to correlate."
        text = f"{over}, r = {_with_interval(row, 'pearson', '95 % interval ')}"
        if seeds < MIN_SEEDS:
            text += f" (too few seeds for an interval: {MIN_SEEDS} are needed)"
        text += f"; rank correlation {_r(row['spearman'])}"
        if np.isfinite(row["within"]):
            text += f"; with each seed's mean taken off {_with_interval(row, 'within')}"
        return text + "."
    return ""


def _of_view(association: pd.DataFrame, view: str) -> list[dict[str, Any]]:
    rows = association[association["view"].isin([view, ""])].to_dict("records")
    return cast("list[dict[str, Any]]", rows)


def _with_interval(row: dict[str, Any], name: str, called: str = "") -> str:
    text = _r(row[name])
    if np.isfinite(row[f"{name}_low"]):
        text += f" ({called}{_r(row[f'{name}_low'])} to {_r(row[f'{name}_high'])})"
    return text


def _r(value: float) -> str:
    return NOT_MEASURED if np.isnan(value) else f"{value:+.2f}".replace("-", "−")
