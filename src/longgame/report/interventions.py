"""What each intervention buys, as a table: with it minus without it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from longgame.metrics.catalog import METRICS
from longgame.metrics.interventions import SCORES
from longgame.metrics.scorecard import PRIMARY
from longgame.metrics.summary import ALPHA
from longgame.report.tables import NOT_MEASURED, Cell, Column, Table, difference_mark, number

NOTE = (
    "Differences paired by seed, with their 95 % intervals; p after Holm over the interventions of a score. "
    f"▲ better, ▼ worse than the same selector without (p < {ALPHA:g})."
)


def interventions_table(differences: pd.DataFrame, title: str, view: str = PRIMARY) -> Table:
    """One row for each selector with interventions; no columns but the first where there is none.

    Args:
        differences: as `longgame.metrics.interventions.intervention_table` makes it.
    """
    part = differences[differences["view"] == view]
    measured = [name for name in SCORES if (part["metric"] == name).any()]
    columns = [Column("with − without", "with − without", numeric=False)]
    for name in measured:
        better = f"{METRICS[name].better} is better"
        columns.append(
            Column(METRICS[name].label, METRICS[name].label, f"difference of the {METRICS[name].label}, {better}")
        )
    rows = []
    for (selector, bare), group in part.groupby(["selector", "bare"], sort=False):
        of_metric = {str(row["metric"]): row for row in group.to_dict("records")}
        rows.append((Cell(f"{selector} − {bare}"), *(_cell(of_metric[name], name) for name in measured)))
    return Table(title, tuple(columns), tuple(rows), NOTE)


def _cell(row: dict[Any, Any], metric: str) -> Cell:
    unit = "long horizon" if metric == "long_horizon" else METRICS[metric].unit
    mean, p = float(row["mean"]), float(row["p_holm"])
    if np.isnan(mean):
        return Cell(NOT_MEASURED)

    def signed(value: float) -> str:
        text = number(abs(value), unit)
        return text if not float(text) else f"{'+' if value > 0 else '−'}{text}"

    text = signed(mean)
    if np.isfinite(row["ci_low"]):
        text += f" ({signed(float(row['ci_low']))} to {signed(float(row['ci_high']))})"
    if np.isfinite(p):
        text += f", p = {p:.2g}"
    detail = f"n = {int(row['n'])} seeds"
    return Cell(text, difference_mark(p, mean, METRICS[metric].better), detail, value=mean)
