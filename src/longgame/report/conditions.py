"""Tables over several conditions: what each one is, and selectors × conditions for the metrics that decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import altair as alt
import numpy as np
import pandas as pd

from longgame.audit.plan import OWN, condition_label
from longgame.metrics.catalog import METRICS
from longgame.metrics.comparisons import Across, intervention_table
from longgame.metrics.diagnostics import MIN_SEEDS, MOST_GROUPS
from longgame.metrics.scorecard import PRIMARY
from longgame.recipe import Recipe
from longgame.report.charts import GREY, Figure, Style, ink_on_cividis, interval_half, intervals, spec, strip
from longgame.report.tables import (
    NOT_MEASURED,
    Cell,
    Column,
    Table,
    interventions_table,
    metric_cells,
    selectors_in_order,
)

SHOWN = ("current", "auc_common", "auc_own", "forgetting", "long_horizon")


def condition_table(across: Across, recipe: Recipe) -> Table:
    """What every condition is: what differs from the recipe's own values, and the order of its stages."""
    own = f"{OWN}: budget {recipe.budget:g}, rounds {recipe.rounds}, {recipe.model.adaptation_label}"
    rows = [
        (Cell(condition_label(name) if name else own), Cell(" → ".join(card.tasks)))
        for name, card in across.cards.items()
    ]
    columns = (
        Column("condition", "condition", numeric=False),
        Column("stages in order", "stages in order", numeric=False),
    )
    return Table("Conditions", columns, tuple(rows))


def across_tables(across: Across, recipe: Recipe, view: str = PRIMARY, compact: bool = False) -> list[Table]:
    """Selectors × conditions: a table of each of `SHOWN` that was measured, one of the verdicts, then what each
    intervention buys in every condition but the own (not where ``compact``).

    Marks and bold cells are those of each condition's own scorecard.
    """
    own = next(iter(across.cards.values()))
    order = selectors_in_order(own, recipe)
    names = list(dict.fromkeys(across.summary["condition"]))
    parts = dict(iter(across.summary[across.summary["view"] == view].groupby("condition", sort=False)))
    tables = []
    for metric in SHOWN:
        found = [(name, metric_cells(parts[name], metric, order, own.reference, compact)) for name in names]
        shown = [(name, cells) for name, cells in found if cells]
        if shown:
            meaning = METRICS[metric].meaning
            tables.append(_table(f"{METRICS[metric].label} by condition", order, shown, meaning))
    words = across.verdicts[across.verdicts["view"] == view]
    told = {(row["condition"], row["selector"]): str(row["verdict"]) for row in words.to_dict("records")}
    if told:
        compared = [name for name in order if name != own.reference]
        cells = [(name, {who: Cell(told.get((name, who), "—")) for who in compared}) for name in names]
        tables.append(_table(f"Verdict by condition, against {own.reference}", compared, cells, "", numeric=False))
    others = [(name, card) for name, card in across.cards.items() if name and not compact]
    for name, card in others:
        title = f"What each intervention buys, {condition_label(name)}"
        bought = interventions_table(intervention_table(card, recipe), title, view)
        tables += [bought] if bought.rows else []
    return tables


def _table(
    title: str,
    order: Sequence[str],
    shown: Sequence[tuple[str, Mapping[str, Cell]]],
    meaning: str,
    numeric: bool = True,
) -> Table:
    columns = [Column("selector", "selector", numeric=False)]
    columns += [Column(condition_label(name), condition_label(name), numeric=numeric) for name, _ in shown]
    rows = tuple((Cell(who), *(cells[who] for _, cells in shown)) for who in order)
    return Table(title, tuple(columns), rows, meaning)


def across_note(across: Across) -> str:
    """How to read numbers of several conditions."""
    text = (
        "Each condition is compared for itself: paired by seed, Holm over its selectors. `own` is the recipe's own "
        "condition. Between conditions the base models, pools and items of a seed are the same unless the condition "
        "changes them; an adaptation AUC also depends on how many tokens a probe learns, so read it within a budget."
    )
    if across.orders:
        text += (
            " A mean of orders averages a selector's value over the orders within each seed first; its replications "
            "are the seeds, not the orders."
        )
    return text


# How diagnostics go with forgetting, in a table and in a sentence under the figures that show it.

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


# Figures over the conditions of a recipe with axes: budgets, adaptation, rounds, orders of the stages, other keys.

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


def _table_figures_axes(across: Across, part: pd.DataFrame, metric: str) -> pd.DataFrame:
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
        table = _table_figures_axes(across, part, metric).astype({"at": float})
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
    table = _table_figures_axes(across, part, "long_horizon")
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
    table = _table_figures_axes(across, part, "long_horizon")
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
