"""What a report shows where selectors are too many for a card and a line each: overviews, grouped by family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from longgame.metrics.catalog import METRICS
from longgame.metrics.scorecard import PRIMARY, Scorecard
from longgame.metrics.stats import moments
from longgame.metrics.verdict import BETTER, MYOPIC, WORSE
from longgame.recipe import Recipe
from longgame.report.answer import VerdictLine, verdict_lines
from longgame.report.charts import (
    Figure,
    Style,
    band_chart,
    heat_map,
    interval_half,
    metric_strip,
    spec,
)
from longgame.report.tables import (
    Cell,
    Column,
    Table,
    format_number,
    metric_cells,
    metric_column,
    rows_by_metric,
    selector_families,
    selectors_in_order,
)
from longgame.selection.families import spec_information

OVERVIEW = ("current", "long_horizon", "forgetting", "ood", "auc_common", "myopia_gap", "score_flops", "flops_share")
"""Metrics of the first table and, those with a direction, of the first figure."""
_MARKS = {BETTER: "▲", WORSE: "▼", MYOPIC: "◆"}
"""Verdict → its mark in the lines of a terminal; others have none."""


def overview_lines(card: Scorecard, recipe: Recipe) -> dict[str, str]:
    """Family → its selectors by falling long-horizon score, each with its score and the mark of its verdict."""
    words = {line.selector: line.word for line in verdict_lines(card, recipe)}
    means, scale = card.wide(["long_horizon"])["long_horizon"], METRICS["long_horizon"].scale
    members: dict[str, list[str]] = {}
    for selector, family in selector_families(card, recipe).items():
        members.setdefault(family, []).append(selector)
    lines = {}
    for family, names in members.items():
        names.sort(key=lambda name: -np.nan_to_num(float(means[name]), nan=-np.inf))
        parts = [
            f"{name} {format_number(scale * float(means[name]), 'points')}{_MARKS.get(words.get(name, ''), '')}"
            for name in names
        ]
        lines[family] = ", ".join(parts)
    return lines


def overview_legend(card: Scorecard) -> str:
    """How to read `overview_lines`."""
    return (
        f"Long-horizon scores in points of 100. In the long run ▲ better, ▼ worse than {card.reference}; ◆ myopic: "
        "ahead now, behind later; without a mark: no difference shown there."
    )


def overview_table(card: Scorecard, recipe: Recipe, view: str) -> Table:
    """A row per selector, family by family: its verdict and the metrics that decide it, and what choosing cost."""
    families, order = selector_families(card, recipe), selectors_in_order(card, recipe)
    lines = {line.selector: line for line in verdict_lines(card, recipe)}
    columns = [
        Column("selector", numeric=False),
        Column("family", numeric=False),
        Column("verdict", meaning=f"against {card.reference}; a cell's tooltip has the reasons", numeric=False),
    ]
    rows = [[Cell(name), Cell(families[name]), _verdict_cell(lines.get(name))] for name in order]
    measured = rows_by_metric(card.summary[card.summary["view"].isin([view, ""])])
    for name in OVERVIEW:
        if cells := metric_cells(measured, name, order, card.reference):
            columns.append(metric_column(name))
            for row, selector in zip(rows, order, strict=True):
                row.append(cells[selector])
    note = "A family tells what a selector decides by; rows start family by family, and a heading sorts by its column."
    return Table("All selectors", tuple(columns), tuple(map(tuple, rows)), note, of_selectors=True)


def _verdict_cell(line: VerdictLine | None) -> Cell:
    return Cell("reference") if line is None else Cell(line.word, detail=" ".join(line.reasons))


def given_table(card: Scorecard, recipe: Recipe) -> Table:
    """What each selector was given besides candidates, history and the model; empty where none was."""
    specs = {spec.key: spec for spec in recipe.selectors}
    families = selector_families(card, recipe)
    columns = (Column("selector", numeric=False), Column("family", numeric=False), Column("given", numeric=False))
    rows = []
    for selector in selectors_in_order(card, recipe):
        words = ", ".join(spec_information(specs[selector])) if selector in specs else ""
        rows.append((Cell(selector), Cell(families.get(selector, "")), Cell(words or "nothing")))
    note = "More information than others makes a comparison unequal. What it cost is charged to the selector."
    title = "What each selector was given besides the candidates"
    return Table(title, columns, tuple(rows), note, closed=True, of_selectors=True)


def overview_strips(card: Scorecard, style: Style) -> Figure:
    """A row per selector, family by family, for each metric of the overview."""
    charts = []
    for name in OVERVIEW:
        if METRICS[name].better or name == "myopia_gap":
            chart = metric_strip(card, style, name, f"{METRICS[name].label} by selector, family by family")
            charts += [chart] if chart else []
    caption = "Means over seeds with 95 % intervals; rows are grouped by family, whose colors the legend names."
    return Figure("overview", "Every selector, metric by metric", caption, tuple(charts), style.legend)


def family_charts(
    frame: pd.DataFrame, style: Style, reference: str, x: Any, tooltip: Sequence[Any], height: int, words: str
) -> tuple[dict[str, Any], ...]:
    """A chart per family with a line per selector, and the reference in grey; all charts share the vertical axis.

    Args:
        frame: selector, the column of ``x``, mean, low, high.
        words: of what the lines are, for screen readers.
    """
    charts = []
    ends = [float(frame["mean"].min()), float(frame["mean"].max())] if len(frame) else [0.0, 1.0]
    for family in dict.fromkeys(style.families[name] for name in style.selectors):
        names = [name for name in style.selectors if style.families[name] == family and name != reference]
        part = frame[frame["selector"].isin([*names, reference])]
        if not names or part.empty:
            continue
        inner = Style([reference, *names], reference)
        chart = band_chart(part, inner, x, tooltip, "points", extent=ends, legend=True).properties(title=family)
        charts.append(spec(chart, f"{words}, a line per selector of the family {family}", height))
    return tuple(charts)


def family_curves(table: pd.DataFrame, style: Style, reference: str, probe: str) -> Figure:
    """Early learning curves, mean over all transitions, a chart per family.

    Args:
        table: see `longgame.report.figures.curve_table`.
    """
    grouped = table.groupby(["selector", "step"], observed=True, sort=True)
    frame = grouped.agg(tokens=("tokens", "mean"), mean=("mean", "mean")).reset_index().astype({"selector": object})
    frame["low"] = frame["high"] = np.nan
    x = alt.X("tokens:Q", title="selected tokens", axis=alt.Axis(tickCount=4, format="~s"))
    charts = family_charts(
        frame, style, reference, x, ["tokens:Q", alt.Tooltip("mean:Q", format=".1f")], 190, "Early learning curves"
    )
    explanation = (
        "every selector's model learns from the same random picks"
        if probe == "common"
        else "each selector picks for its own model"
    )
    caption = f"Mean over transitions and seeds, a chart per family with {reference} in grey; {explanation}."
    return Figure(f"curves-{probe}", f"How fast the next stage is learned ({probe} probe)", caption, charts)


def family_trajectories(card: Scorecard, style: Style) -> Figure:
    """Mean score of the stages walked so far, after each stage, a chart per family."""
    rows = []
    for name in style.selectors:
        R = card.views[PRIMARY].R[card.trials.selector_of == card.trials.selectors.index(name)]
        for stage in range(1, len(card.tasks) + 1):
            values = R[:, stage, :stage].mean(axis=1)
            values = values[np.isfinite(values)]
            if len(values):
                sd = values.std(ddof=1) if len(values) > 1 else np.nan
                half = float(interval_half(np.asarray(sd), np.asarray(len(values))))
                mean = float(values.mean())
                rows.append((name, stage, mean, mean - half, mean + half))
    frame = pd.DataFrame(rows, columns=["selector", "after", "mean", "low", "high"])
    x = alt.X("after:Q", title="stages done", axis=alt.Axis(tickMinStep=1, format="d"))
    tooltip = [alt.Tooltip("after:Q"), alt.Tooltip("mean:Q", format=".1f")]
    charts = family_charts(frame, style, card.reference, x, tooltip, 190, "Mean score of the stages so far")
    caption = (
        f"Mean score of the stages walked so far, in points, over seeds with 95 % bands; {card.reference} is grey. A "
        "line that falls forgets more than it learns."
    )
    return Figure("trajectories", "Stage by stage", caption, charts)


def end_matrices(card: Scorecard, style: Style) -> Figure:
    """Every selector's score on every task at the end, and how much of each stage's score was lost since."""
    columns, R = [*card.tasks, *card.ood], card.views[PRIMARY].R
    final, lost = [], []
    for name in style.selectors:
        trials = R[card.trials.selector_of == card.trials.selectors.index(name)]
        mean = moments(trials.transpose(1, 2, 0))[1]
        for place, task in enumerate(columns):
            final.append((name, task, float(mean[-1, place])))
            if place < len(card.tasks):
                lost.append((name, task, float(mean[place + 1, place] - mean[-1, place])))
    charts = []
    for rows, title in ((final, "points at the end"), (lost, "points lost since the own stage")):
        frame = pd.DataFrame(rows, columns=["selector", "task", "points"]).dropna()
        if frame.empty:
            continue
        base = alt.Chart(frame).encode(
            alt.X("task:N", sort=columns, title=None, axis=alt.Axis(labelAngle=-40, labelLimit=110)),
            alt.Y("selector:N", sort=style.selectors, title=None, axis=alt.Axis(labelLimit=160)),
        )
        ends = (float(frame["points"].min()), float(frame["points"].max()))
        chart = heat_map(base, "points", ends, ".0f", ["selector:N", "task:N", alt.Tooltip("points:Q", format=".1f")])
        height = style.height(len(style.selectors), 15)
        charts.append(spec(chart.properties(title=title), f"{title}, a row per selector, a column per task", height))
    caption = "Means over seeds; rows family by family. The tables by stage hold the numbers."
    return Figure("matrices", "Scores at the end", caption, tuple(charts))
