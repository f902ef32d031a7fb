"""Figures over the conditions of a recipe with axes: budgets, adaptation, rounds, orders of the stages, other keys."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from longgame.metrics.across import Across
from longgame.metrics.catalog import METRICS
from longgame.metrics.scorecard import PRIMARY
from longgame.report.charts import GREY, Figure, Style, ink_on_cividis, interval_half, intervals, spec, strip

AXES = ("budget", "rounds", "adaptation", "order")
_METRICS = ("current", "long_horizon")


def axes_figures(across: Across, conditions: pd.DataFrame, style: Style) -> list[Figure]:
    """A figure per axis along which the run has several values; the other axes stay at the recipe's own values.

    Args:
        conditions: condition and its place on every axis (`AXES`) and on every other key that is varied, a row each;
            the recipe's own is "".
    """
    own = conditions[conditions["condition"] == ""].iloc[0]
    axes = [name for name in conditions.columns if name != "condition"]
    found = []
    for axis in axes:
        others = [name for name in axes if name != axis]
        alike = (conditions[others] == own[others]).all(axis=1) & conditions["condition"].isin(list(across.cards))
        part = conditions[alike].drop_duplicates(axis)
        if len(part) > 1:
            part = part[["condition", axis]].rename(columns={axis: "at"})
            if axis == "budget":
                found.append(_budgets(across, part, style))
            elif axis == "order":
                found.append(_orders(across, part, style))
            elif axis in AXES:
                found.append(_values(across, part, style, axis))
            else:
                found.append(_effects(across, part, style, axis, str(own[axis])))
    return found


def _table(across: Across, part: pd.DataFrame, metric: str) -> pd.DataFrame:
    """selector, at, mean, low, high (95 % intervals of the mean over seeds)."""
    rows = across.summary
    rows = rows[(rows["view"] == PRIMARY) & (rows["metric"] == metric)]
    rows = rows.astype({"condition": object}).merge(part, on="condition")
    half = interval_half(rows["sd"].to_numpy(float), rows["n"].to_numpy(float))
    mean = rows["mean"].to_numpy(float)
    table = pd.DataFrame(
        {"selector": rows["selector"].to_numpy(object), "at": rows["at"].to_numpy(object), "mean": mean}
    )
    table["low"], table["high"] = mean - half, mean + half
    return table.replace([np.inf, -np.inf], np.nan).dropna(subset=["mean"])


def _budgets(across: Across, part: pd.DataFrame, style: Style) -> Figure:
    """Figure 3 (a) of the paper."""
    charts = []
    for metric in _METRICS:
        table = _table(across, part, metric).astype({"at": float})
        if table.empty:
            continue
        base = alt.Chart(table).encode(alt.X("at:Q", title="budget, share of the pool", axis=alt.Axis(format="%")))
        y = alt.Y("mean:Q", title=METRICS[metric].unit, scale=alt.Scale(zero=False))
        band = base.transform_filter("isValid(datum.low)").mark_area(opacity=0.09)
        band = band.encode(alt.Y("low:Q", title=METRICS[metric].unit), alt.Y2("high:Q"), color=style.colour())
        tooltip = ["selector:N", alt.Tooltip("at:Q", format=".0%"), alt.Tooltip("mean:Q", format=".3~f")]
        layers = alt.layer(
            *intervals(table, band),
            base.mark_line(strokeWidth=2).encode(y, color=style.colour()),
            base.mark_point(size=50, filled=True, opacity=1).encode(
                y, color=style.colour(), shape=style.shape(), tooltip=tooltip
            ),
        ).properties(title=METRICS[metric].label)
        charts.append(spec(layers, f"{METRICS[metric].label} by budget, a line per selector", 240))
    caption = "Means over seeds with 95 % bands; everything but the budget is the recipe's own."
    return Figure("axis-budget", "Budgets", caption, tuple(charts), style.keys, "axes")


def _values(across: Across, part: pd.DataFrame, style: Style, axis: str) -> Figure:
    """Figure 3 (c) of the paper: a strip for each value of the axis."""
    charts: list[dict[str, Any]] = []
    table = _table(across, part, "long_horizon")
    ends = table[["mean", "low", "high"]].to_numpy(float)
    for value in part["at"]:
        rows = table[table["at"] == value][["selector", "mean", "low", "high"]]
        if len(rows):
            text = f"Long-horizon score by selector at {axis} {value}"
            extent = (float(np.nanmin(ends)), float(np.nanmax(ends)))
            charts.append(strip(rows, style, f"{axis}: {value}", METRICS["long_horizon"].label, text, extent=extent))
    caption = f"Means over seeds with 95 % intervals; everything but {axis} is the recipe's own."
    return Figure(f"axis-{axis}", f"Long-horizon score by {axis}", caption, tuple(charts), group="axes")


def _effects(across: Across, part: pd.DataFrame, style: Style, key: str, own: str) -> Figure:
    """What a varied key does to each selector's difference from the reference: a row of intervals per metric."""
    reference = next(iter(across.cards.values())).reference
    part = part.iloc[sorted(range(len(part)), key=lambda place: _order_of(part["at"].iloc[place]))]
    charts = []
    for metric in _METRICS:
        rows = across.summary
        rows = rows[(rows["view"] == PRIMARY) & (rows["metric"] == metric) & (rows["selector"] != reference)]
        rows = rows.astype({"condition": object}).merge(part, on="condition").dropna(subset=["diff_vs_reference"])
        if rows.empty:
            continue
        table = rows[["selector", "at", "diff_vs_reference", "ci_low", "ci_high"]]
        table = table.set_axis(["selector", "at", "difference", "low", "high"], axis=1)
        unit = f"difference from {reference}" + (", points" if METRICS[metric].unit == "points" else "")
        base = alt.Chart(table).encode(
            alt.X("at:N", sort=list(part["at"]), title=key, axis=alt.Axis(labelAngle=0)),
            alt.XOffset("selector:N", sort=style.selectors),
        )
        tooltip = ["selector:N", "at:N", *(alt.Tooltip(f"{name}:Q", format="+.3~f") for name in table.columns[2:])]
        rule = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2)
        zero = alt.Chart(pd.DataFrame({"zero": [0.0]})).mark_rule(strokeDash=[4, 3], color=GREY)
        layers = alt.layer(
            zero.encode(alt.Y("zero:Q", title=unit)),
            *intervals(table, rule.encode(alt.Y("low:Q", title=unit), alt.Y2("high:Q"), color=style.colour())),
            base.mark_point(size=70, filled=True, opacity=1).encode(
                alt.Y("difference:Q", title=unit), color=style.colour(), shape=style.shape(), tooltip=tooltip
            ),
        ).properties(title=METRICS[metric].label)
        text = f"{METRICS[metric].label} by {key}: difference of each selector from {reference}, with intervals"
        charts.append(spec(layers, text, 240))
    caption = (
        f"Difference from {reference}, paired by seed, with 95 % intervals; everything but {key} is the recipe's own, "
        f"where it is {own}. A selector whose intervals lie on one side of the dashed line at every value does not owe "
        "its verdict to this key."
    )
    keys = tuple(each for each in style.keys if each.selector != reference)
    return Figure(f"vary-{key}", f"What {key} changes", caption, tuple(charts), keys, "axes")


def _order_of(value: object) -> tuple[float, str]:
    """Numbers by size, then words."""
    try:
        return float(str(value)), ""
    except ValueError:
        return float("inf"), str(value)


def _orders(across: Across, part: pd.DataFrame, style: Style) -> Figure:
    """Figure 4 (a) of the paper."""
    table = _table(across, part, "long_horizon")
    if table.empty:
        return Figure("axis-order", "", "", (), group="axes")
    low, high = float(table["mean"].min()), float(table["mean"].max())
    base = alt.Chart(table[["selector", "at", "mean"]]).encode(
        alt.X("at:N", sort=list(part["at"]), title="order of the stages", axis=alt.Axis(labelAngle=-40)),
        alt.Y("selector:N", sort=style.selectors, title=None),
    )
    colour = alt.Color("mean:Q", scale=alt.Scale(scheme="cividis", domain=[low, high]), legend=None)
    ink = ink_on_cividis("mean", low, high)
    cells = base.mark_rect().encode(color=colour, tooltip=["selector:N", "at:N", alt.Tooltip("mean:Q", format=".3f")])
    text = base.mark_text(fontSize=10).encode(text=alt.Text("mean:Q", format=".3f"), color=ink)
    caption = "Long-horizon score, mean over seeds; 2-1-3: the sequence's second stage is walked first."
    made = spec(
        alt.layer(cells, text), "Long-horizon score by selector and order of the stages", 26 * len(style.selectors)
    )
    return Figure("axis-order", "Task orders", caption, (made,), group="axes")
