"""Figures of the walk itself: score matrices, trajectories, diagnostics, what it cost, what the weights decide."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from longgame.metrics.catalog import METRICS
from longgame.metrics.scorecard import PRIMARY, Scorecard
from longgame.metrics.stats import moments
from longgame.report.charts import (
    GREY,
    PALETTE,
    Figure,
    Style,
    ink_on_cividis,
    interval_half,
    intervals,
    metric_strip,
    spec,
)
from longgame.report.tables import DIAGNOSTICS

SECONDS = {
    "train_seconds": "training",
    "select_seconds": "selection",
    "diagnose_seconds": "diagnostics",
    "evaluate_seconds": "evaluation",
    "probe_seconds": "probes",
}


def run_figures(card: Scorecard, style: Style) -> list[Figure]:
    """All of this module's figures; one without measurements has no charts."""
    made = [score_matrices, trajectories, diagnostics, costs, sensitivity]
    return [figure(card, style) for figure in made]


def _seed_means(card: Scorecard, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n, mean, sd) over seeds of a selector's score matrix, rows × columns each."""
    R = card.views[PRIMARY].R[card.trials.selector_of == card.trials.selectors.index(name)]
    return moments(R.transpose(1, 2, 0))


def trajectories(card: Scorecard, style: Style) -> Figure:
    """Every task's score, stage by stage: what is learned at its own stage and what later stages do to it."""
    columns = [*card.tasks, *card.ood]
    tables = {name: _seed_means(card, name) for name in style.selectors}
    charts = []
    for column, task in enumerate(columns):
        listed = []
        for name, (n, mean, sd) in tables.items():
            half = interval_half(sd[:, column], n[:, column])
            listed += [
                {
                    "selector": name,
                    "after": stage,
                    "mean": value,
                    "low": value - half[stage],
                    "high": value + half[stage],
                }
                for stage, value in enumerate(mean[:, column])
                if np.isfinite(value)
            ]
        rows = pd.DataFrame(listed, columns=["selector", "after", "mean", "low", "high"])
        if rows["after"].nunique() < 2:
            continue
        base = alt.Chart(rows).encode(alt.X("after:Q", title="stages done", axis=alt.Axis(tickMinStep=1, format="d")))
        y = alt.Y("mean:Q", title="points", scale=alt.Scale(zero=False))
        band = base.transform_filter("isValid(datum.low)").mark_area(opacity=0.09)
        band = band.encode(alt.Y("low:Q", title="points"), alt.Y2("high:Q"), color=style.colour())
        tooltip = ["selector:N", "after:Q", alt.Tooltip("mean:Q", format=".1f")]
        layers = [
            *intervals(rows, band),
            base.mark_line(strokeWidth=2).encode(y, color=style.colour()),
            base.mark_point(size=34, filled=True, opacity=1).encode(
                y, color=style.colour(), shape=style.shape(), tooltip=tooltip
            ),
        ]
        if column < len(card.tasks):
            own = alt.Chart(pd.DataFrame({"own": [column + 1]})).mark_rule(strokeDash=[4, 3], color=GREY)
            layers.insert(0, own.encode(alt.X("own:Q", title="stages done")))
        chart = alt.layer(*layers).properties(title=task)
        charts.append(spec(chart, f"Score on {task} after each stage, a line per selector", 190))
    caption = (
        "Points, means over seeds with 95 % bands. Dashed: the task's own stage; what lies to its right is kept or "
        "forgotten. OOD sets have no stage of their own; "
        "where they are scored at the ends alone, a line joins two points."
    )
    return Figure("trajectories", "Stage by stage", caption, tuple(charts), style.keys, "run")


def costs(card: Scorecard, style: Style) -> Figure:
    """Where a trial's time goes, by selector."""
    held = set(card.summary.loc[card.summary["view"] == "", "metric"])
    names = [name for name in SECONDS if name in held]
    rows = []
    if names:
        means = card.wide(names)
        rows = [
            {"selector": selector, "part": SECONDS[name], "seconds": float(means[name][selector])}
            for selector in style.selectors
            for name in names
            if np.isfinite(means[name][selector])
        ]
    if not rows:
        return Figure("costs", "", "", (), group="run")
    parts, title = [SECONDS[name] for name in names], "seconds per trial"
    scale = alt.Scale(domain=parts, range=list(PALETTE[: len(parts)]))
    bars = (
        alt.Chart(pd.DataFrame(rows))
        .mark_bar(stroke="#ffffff", strokeWidth=0.6)
        .encode(
            alt.X("sum(seconds):Q", title=title),
            alt.Y("selector:N", sort=style.selectors, title=None),
            alt.Color("part:N", scale=scale, sort=parts, legend=alt.Legend(orient="bottom", title=None, columns=3)),
            order=alt.Order("place:Q"),
            tooltip=["selector:N", "part:N", alt.Tooltip("seconds:Q", format=".2f")],
        )
        .transform_calculate(place=f"indexof({parts!r}, datum.part)")
    )
    spread = (
        alt.Chart(_totals(card, names))
        .mark_rule(strokeWidth=2, color=GREY, yOffset=12)  # beneath its bar
        .encode(
            alt.X("fastest:Q", title=title),
            alt.X2("slowest:Q"),
            alt.Y("selector:N", sort=style.selectors, title=None),
            tooltip=["selector:N", *(alt.Tooltip(f"{name}:Q", format=".1f") for name in ("fastest", "slowest"))],
        )
    )
    caption = (
        "Wall-clock per trial, mean over seeds, all stages together; the grey lines beneath lead from the fastest "
        "trial to the slowest. Seconds move with whatever else the machine does, so the same training differs between "
        "trials. Own probes include the selector's choices, and diagnostics reuse gradients that it has computed. "
        "FLOPs, which no load moves, stand in the tables."
    )
    made = spec(alt.layer(bars, spread), "Seconds per trial by part, a bar per selector", 26 * len(style.selectors))
    return Figure("costs", "Where the time went", caption, (made,), group="run")


def _totals(card: Scorecard, names: list[str]) -> pd.DataFrame:
    """selector, fastest, slowest: seconds of whole trials, all these parts together."""
    table = card.per_trial
    table = table[(table["view"] == "") & table["metric"].isin(names)]
    trials = table.groupby(["selector", "trial"], observed=True)["value"].sum(min_count=1)
    ends = trials.groupby("selector", observed=True).agg(fastest="min", slowest="max")
    return ends.reset_index().astype({"selector": object}).dropna()


def sensitivity(card: Scorecard, style: Style) -> Figure:
    """How much the first rank in the long run owes to the weights of eq. 2."""
    table = card.sensitivity[(card.sensitivity["view"] == PRIMARY)].dropna(subset=["share"])
    if table.empty:
        return Figure("sensitivity", "", "", ())
    base = alt.Chart(table[["selector", "share"]]).encode(alt.Y("selector:N", sort=style.selectors, title=None))
    x = alt.X("share:Q", title="share of all weightings", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1]))
    bars = base.mark_bar().encode(x, color=style.colour(), tooltip=["selector:N", alt.Tooltip("share:Q", format=".1%")])
    text = base.mark_text(align="left", dx=4).encode(x, text=alt.Text("share:Q", format=".0%"))
    caption = (
        "Share of the simplex of the weights (α, β, γ) on which the selector's mean long-horizon score ranks first. "
        "Near 100 %: no weights put another mean first. It counts means without their uncertainty, so it does not say "
        "that the selector is shown to be better: the verdicts do."
    )
    made = spec(alt.layer(bars, text), "Share of weightings on which each selector ranks first", 26 * len(table))
    return Figure("sensitivity", "Does the winner depend on the weights?", caption, (made,))


def score_matrices(card: Scorecard, style: Style) -> Figure:
    """The score matrix R of every selector, mean over seeds: a row per stage done, a column per task."""
    columns = [*card.tasks, *card.ood]
    means = {name: _seed_means(card, name)[1] for name in style.selectors}
    finite = np.concatenate([table[np.isfinite(table)] for table in means.values()])
    if not finite.size:
        return Figure("matrices", "", "", (), group="run")
    low, high = float(finite.min()), float(finite.max())
    charts = []
    for name, table in means.items():
        rows = [
            {"after": stage, "task": task, "points": float(table[stage, column])}
            for stage in range(table.shape[0])
            for column, task in enumerate(columns)
            if np.isfinite(table[stage, column])
        ]
        base = alt.Chart(pd.DataFrame(rows)).encode(
            alt.X("task:N", sort=columns, title=None, axis=alt.Axis(labelAngle=-40, labelLimit=110)),
            alt.Y("after:O", title="stages done"),
        )
        colour = alt.Color("points:Q", scale=alt.Scale(scheme="cividis", domain=[low, high]), legend=None)
        cells = base.mark_rect().encode(
            color=colour, tooltip=["after:O", "task:N", alt.Tooltip("points:Q", format=".1f")]
        )
        ink = ink_on_cividis("points", low, high)
        text = base.mark_text(fontSize=10).encode(text=alt.Text("points:Q", format=".0f"), color=ink)
        layers = alt.layer(cells, text).properties(title=name)
        charts.append(spec(layers, f"Score matrix of {name}: points per task after each stage", 190))
    caption = (
        "Points, mean over seeds; row 0 is the model before any stage, the OOD sets stand last. Read a column "
        "downwards: it rises at its own stage and falls where it is forgotten. One colour scale for all."
    )
    return Figure("matrices", "Score matrix R", caption, tuple(charts), group="run")


def diagnostics(card: Scorecard, style: Style) -> Figure:
    """Table 2 of the paper as strips: one diagnostic each, a mark per selector with its interval."""
    held = set(card.summary.loc[card.summary["view"] == "", "metric"])
    made = [
        metric_strip(card, style, name, f"{METRICS[name].label} by selector") for name in DIAGNOSTICS if name in held
    ]
    charts: tuple[dict[str, Any], ...] = tuple(chart for chart in made if chart is not None)
    caption = "Means over stages and seeds with 95 % intervals. These explain; no selector is judged by them."
    return Figure("diagnostics", "What was selected, and what it did to the weights", caption, charts, group="run")
