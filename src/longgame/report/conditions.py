"""Tables and figures over the conditions of a recipe with axes: budgets, rounds, adaptation, orders, varied keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from longgame.audit.plan import AXES, OWN, condition_label
from longgame.audit.run import Run
from longgame.metrics.catalog import METRICS
from longgame.metrics.comparisons import Across
from longgame.metrics.scorecard import PRIMARY
from longgame.recipe import Recipe
from longgame.report.charts import (
    Figure,
    Style,
    band_chart,
    dashed_line,
    heat_map,
    interval_half,
    intervals,
    spec,
    strip,
)
from longgame.report.figures import style_of
from longgame.report.tables import (
    NOT_MEASURED,
    Cell,
    Column,
    Table,
    interventions_table,
    metric_cells,
    rows_by_metric,
    selectors_in_order,
)

SHOWN = ("current", "auc_common", "auc_own", "forgetting", "long_horizon")
"""Metrics with a table of selectors × conditions."""
DRAWN = ("current", "long_horizon")
"""Metrics with a chart in the figures of budgets and of varied keys."""


def condition_table(across: Across, recipe: Recipe) -> Table:
    """Each condition: how it differs from the recipe's own values, and the order of its stages."""
    values = f"{OWN}: budget {recipe.budget:g}, rounds {recipe.rounds}, {recipe.model.adaptation_label}"
    rows = tuple(
        (Cell(condition_label(name) if name else values), Cell(" → ".join(card.tasks)))
        for name, card in across.cards.items()
    )
    return Table("Conditions", (Column("condition", numeric=False), Column("stages in order", numeric=False)), rows)


def orders_line(across: Across, recipe: Recipe) -> str:
    """`condition_table` for narrow places: the own condition, and those that walk the stages in another order."""
    first, *others = condition_table(across, recipe).rows
    reordered = [row for row in others if row[1].text != first[1].text]
    return "\n".join(f"{name}: {stages}" for name, stages in (first, *reordered))


def across_tables(across: Across, recipe: Recipe, view: str = PRIMARY) -> list[Table]:
    """Selectors × conditions: a table for each of `SHOWN` that was measured, and one of the verdicts.

    Marks and bold cells are those of each condition's own scorecard.
    """
    card = next(iter(across.cards.values()))
    order = selectors_in_order(card, recipe)
    groups = across.summary[across.summary["view"] == view].groupby("condition", sort=False)
    rows_of = {name: rows_by_metric(group) for name, group in groups}
    names = list(dict.fromkeys(across.summary["condition"]))
    tables = []
    for metric in SHOWN:
        cells = {name: metric_cells(rows_of[name], metric, order, card.reference) for name in names}
        measured = {name: by_selector for name, by_selector in cells.items() if by_selector}
        if measured:
            tables.append(_by_condition(f"{METRICS[metric].label} by condition", order, measured))
    rows = across.verdicts[across.verdicts["view"] == view].to_dict("records")
    words = {(row["condition"], row["selector"]): str(row["verdict"]) for row in rows}
    if words:
        compared = [name for name in order if name != card.reference]
        verdicts = {
            name: {selector: Cell(words.get((name, selector), NOT_MEASURED)) for selector in compared} for name in names
        }
        title = f"Verdict by condition, against {card.reference}"
        tables.append(_by_condition(title, compared, verdicts, numeric=False))
    return tables


def _by_condition(
    title: str, order: Sequence[str], cells: Mapping[str, Mapping[str, Cell]], numeric: bool = True
) -> Table:
    columns = [Column("selector", numeric=False), *(Column(condition_label(name), numeric=numeric) for name in cells)]
    rows = tuple((Cell(selector), *(column[selector] for column in cells.values())) for selector in order)
    return Table(title, tuple(columns), rows)


def interventions_across(across: Across, recipe: Recipe, view: str = PRIMARY) -> list[Table]:
    """What each intervention buys in every condition but the own."""
    tables = [
        interventions_table(card, recipe, f"What each intervention buys, {condition_label(name)}", view)
        for name, card in across.cards.items()
        if name
    ]
    return [table for table in tables if table.rows]


def across_note(across: Across) -> str:
    """How to read numbers of several conditions."""
    families = across.verdicts["family"]
    verdicts = f", verdicts over {families.iloc[0]}" if len(families) else ""
    text = (
        f"Marks are corrected over the selectors of a condition (Holm){verdicts}. “own” is the recipe's own condition. "
        "Between conditions the base models, pools and items of a seed are the same unless the condition changes them; "
        "an adaptation AUC also depends on how many tokens a probe learns, so compare it within a budget."
    )
    if across.orders:
        text += (
            " A mean of orders averages a selector's value over the orders within each seed first; its replications "
            "are the seeds, not the orders."
        )
    return text


def axes_figures(run: Run) -> list[Figure]:
    """A figure per axis along which the run has several values; the other axes stay at the recipe's own values."""
    across, places = run.across, run.places
    if across is None or places is None:
        return []
    style = style_of(run)
    recipe_values = places[places["condition"] == ""].iloc[0]
    axes = [name for name in places.columns if name != "condition"]
    figures = []
    for axis in axes:
        others = [name for name in axes if name != axis]
        same = (places[others] == recipe_values[others]).all(axis=1) & places["condition"].isin(list(across.cards))
        part = places[same].drop_duplicates(axis)[["condition", axis]].rename(columns={axis: "at"})
        if len(part) < 2:
            continue
        if axis == "budget":
            figures.append(_budgets(across, part, style))
        elif axis == "order":
            figures.append(_orders(across, part, style))
        elif axis in AXES:
            figures.append(_values(across, part, style, axis))
        else:
            figures.append(_effects(across, part, style, axis, str(recipe_values[axis])))
    return [figure for figure in figures if figure.charts]


def _axis_rows(across: Across, part: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The summary of a metric in these conditions, with the place of each (``at``)."""
    rows = across.summary
    rows = rows[(rows["view"] == PRIMARY) & (rows["metric"] == metric)]
    return rows.astype({"condition": object}).merge(part, on="condition")


def _axis_means(across: Across, part: pd.DataFrame, metric: str) -> pd.DataFrame:
    """selector, at, mean, low, high (95 % intervals of the mean over seeds), in the unit that reports show."""
    rows = _axis_rows(across, part, metric).astype({"selector": object, "at": object})
    half = interval_half(rows["sd"].to_numpy(float), rows["n"].to_numpy(float))
    table = rows[["selector", "at", "mean"]].assign(low=rows["mean"] - half, high=rows["mean"] + half)
    table[["mean", "low", "high"]] *= METRICS[metric].scale
    return table.replace([np.inf, -np.inf], np.nan).dropna(subset=["mean"])


def _budgets(across: Across, part: pd.DataFrame, style: Style) -> Figure:
    """Figure 3 (a) of the paper."""
    charts = []
    x = alt.X("at:Q", title="budget, share of the pool", axis=alt.Axis(format="%"))
    tooltip = [alt.Tooltip("at:Q", format=".3~%"), alt.Tooltip("mean:Q", format=".3~f")]
    for metric in DRAWN:
        table = _axis_means(across, part, metric).astype({"at": float})
        if len(table):
            chart = band_chart(table, style, x, tooltip, METRICS[metric].shown_unit).properties(
                title=METRICS[metric].label
            )
            charts.append(spec(chart, f"{METRICS[metric].label} by budget, a line per selector", 240))
    caption = "Means over seeds with 95 % bands; everything but the budget is the recipe's own."
    return Figure("axis-budget", "Budgets", caption, tuple(charts), style.keys)


def _values(across: Across, part: pd.DataFrame, style: Style, axis: str) -> Figure:
    """Figure 3 (c) of the paper: a strip for each value of the axis."""
    charts: list[dict[str, Any]] = []
    table = _axis_means(across, part, "long_horizon")
    ends = table[["mean", "low", "high"]].to_numpy(float)
    for value in part["at"]:
        rows = table[table["at"] == value].drop(columns="at")
        if len(rows):
            text = f"Long-horizon score by selector at {axis} {value}"
            extent = (float(np.nanmin(ends)), float(np.nanmax(ends)))
            charts.append(strip(rows, style, f"{axis}: {value}", METRICS["long_horizon"].label, text, extent=extent))
    caption = f"Means over seeds with 95 % intervals; everything but {axis} is the recipe's own."
    return Figure(f"axis-{axis}", f"Long-horizon score by {axis}", caption, tuple(charts))


def _orders(across: Across, part: pd.DataFrame, style: Style) -> Figure:
    """Figure 4 (a) of the paper."""
    table = _axis_means(across, part, "long_horizon")[["selector", "at", "mean"]]
    charts: tuple[dict[str, Any], ...] = ()
    if len(table):
        base = alt.Chart(table).encode(
            alt.X("at:N", sort=list(part["at"]), title="order of the stages", axis=alt.Axis(labelAngle=-40)),
            alt.Y("selector:N", sort=style.selectors, title=None),
        )
        ends = (float(table["mean"].min()), float(table["mean"].max()))
        chart = heat_map(base, "mean", ends, ".1f", ["selector:N", "at:N", alt.Tooltip("mean:Q", format=".1f")])
        charts = (spec(chart, "Long-horizon score by selector and order of the stages", 26 * len(style.selectors)),)
    caption = "Long-horizon score in points, mean over seeds; 2-1-3: the sequence's second stage is walked first."
    return Figure("axis-order", "Task orders", caption, charts)


def _effects(across: Across, part: pd.DataFrame, style: Style, key: str, recipe_value: str) -> Figure:
    """How a varied key changes each selector's difference from the reference: intervals for each metric."""
    reference = next(iter(across.cards.values())).reference
    part = part.iloc[sorted(range(len(part)), key=lambda place: _numbers_first(part["at"].iloc[place]))]
    charts = []
    for metric in DRAWN:
        rows = _axis_rows(across, part, metric).dropna(subset=["diff_vs_reference"])
        table = rows.loc[rows["selector"] != reference, ["selector", "at", "diff_vs_reference", "ci_low", "ci_high"]]
        if table.empty:
            continue
        table = table.set_axis(["selector", "at", "difference", "low", "high"], axis=1)
        table[["difference", "low", "high"]] *= METRICS[metric].scale
        unit = f"difference from {reference}, {METRICS[metric].shown_unit}"
        base = alt.Chart(table).encode(
            alt.X("at:N", sort=list(part["at"]), title=key, axis=alt.Axis(labelAngle=0)),
            alt.XOffset("selector:N", sort=style.selectors),
        )
        tooltip = [
            alt.Tooltip("selector:N"),
            alt.Tooltip("at:N"),
            *(alt.Tooltip(f"{name}:Q", format="+.3~f") for name in table.columns[2:]),
        ]
        rule = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2)
        layers = alt.layer(
            dashed_line("y", 0.0, unit),
            *intervals(table, rule.encode(alt.Y("low:Q", title=unit), alt.Y2("high:Q"), color=style.color())),
            base.mark_point(size=70, filled=True, opacity=1).encode(
                alt.Y("difference:Q", title=unit), color=style.color(), shape=style.shape(), tooltip=tooltip
            ),
        ).properties(title=METRICS[metric].label)
        text = f"{METRICS[metric].label} by {key}: difference of each selector from {reference}, with intervals"
        charts.append(spec(layers, text, 240))
    caption = (
        f"Difference from {reference}, paired by seed, with 95 % intervals; everything but {key} is the recipe's own, "
        f"where it is {recipe_value}. The intervals are before the correction that verdicts have: one on one side of "
        "the dashed line need not be a verdict."
    )
    keys = tuple(legend_key for legend_key in style.keys if legend_key.selector != reference)
    return Figure(f"vary-{key}", f"What {key} changes", caption, tuple(charts), keys)


def _numbers_first(value: object) -> tuple[float, str]:
    """Sort key: numbers by size, then words."""
    try:
        return float(str(value)), ""
    except ValueError:
        return float("inf"), str(value)
