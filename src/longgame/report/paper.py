"""The paper's Tables 1–3, to stand beside a run's numbers on demand. They come from other models and data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from longgame.recipe import Recipe
from longgame.report.tables import Cell, Column, Table

_SELECTORS = ("random", "loss", "gradient", "diversity", "quality", "utility-diversity", "lhas")
TABLES: Mapping[str, tuple[int, tuple[float, ...]]] = {
    "current": (1, (58.2, 61.9, 62.4, 59.5, 61.1, 62.0, 61.4)),
    "auc_common": (1, (0.61, 0.54, 0.52, 0.63, 0.57, 0.62, 0.67)),
    "forgetting": (1, (4.8, 8.6, 9.4, 4.3, 7.5, 5.5, 3.9)),
    "ood": (1, (54.0, 48.1, 46.5, 55.7, 50.2, 55.0, 58.2)),
    "worst_task": (1, (49.8, 43.2, 41.7, 50.6, 44.9, 49.4, 53.1)),
    "myopia_gap": (1, (0.12, 0.42, 0.47, 0.16, 0.36, 0.28, 0.10)),
    "capability_entropy": (2, (1.92, 1.28, 1.22, 2.05, 1.45, 1.81, 2.02)),
    "difficulty": (2, (0.42, 0.74, 0.76, 0.45, 0.35, 0.58, 0.56)),
    "quality": (2, (0.65, 0.51, 0.53, 0.64, 0.83, 0.68, 0.70)),
    "update_concentration": (2, (0.31, 0.58, 0.63, 0.27, 0.49, 0.39, 0.25)),
}
"""Metric → (table of the paper, its values in the order of its seven selectors); the budget is 25 %."""
LONG_HORIZON: Mapping[float, tuple[float, ...]] = {
    0.10: (0.54, 0.47, 0.45, 0.57, 0.49, 0.58, 0.62),
    0.25: (0.59, 0.51, 0.50, 0.62, 0.54, 0.64, 0.69),
    0.50: (0.63, 0.56, 0.55, 0.65, 0.58, 0.67, 0.71),
}
"""Table 3: the long-horizon score by budget."""


def beside(table: Table, metrics: Mapping[str, str], recipe: Recipe) -> Table:
    """The table with the paper's column after each of those that it has; a selector that it does not have gets "".

    Args:
        table: as `longgame.report.tables.metric_table` makes it.
        metrics: a column's label → its metric.
    """
    known = {spec.key: spec.name for spec in recipe.selectors}
    columns, cells = [], []
    for place, column in enumerate(table.columns):
        columns.append(column)
        cells.append([row[place] for row in table.rows])
        held = _values(metrics.get(column.label, ""), recipe.budget)
        names = [known.get(row[0].text, "") for row in table.rows]
        if held is None or not set(names) & set(_SELECTORS):
            continue
        number, values = held
        by_name = dict(zip(_SELECTORS, values, strict=True))
        meaning = f"{column.label} in the paper's Table {number}; other models and data"
        columns.append(Column(f"paper: {column.short}", f"paper: {column.short}", meaning, aside=True))
        cells.append([_cell(by_name.get(name)) for name in names])
    return replace(table, columns=tuple(columns), rows=tuple(zip(*cells, strict=True)))


def _values(metric: str, budget: float) -> tuple[int, tuple[float, ...]] | None:
    if metric == "long_horizon":
        return (3, LONG_HORIZON[budget]) if budget in LONG_HORIZON else None
    return TABLES.get(metric)


def _cell(value: float | None) -> Cell:
    return Cell("") if value is None else Cell(f"{value:g}" if abs(value) >= 10 else f"{value:.2f}", value=value)
