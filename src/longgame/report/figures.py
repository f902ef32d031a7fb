"""The figures of a run's scorecard as Vega-Lite specifications, made with altair from aggregated rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from longgame.audit.run import Run
from longgame.metrics.catalog import METRICS
from longgame.metrics.scorecard import PRIMARY, Scorecard, long_form
from longgame.metrics.stats import moments
from longgame.metrics.tidy import PROBES, Curves
from longgame.report.answer import verdict_lines
from longgame.report.charts import (
    GREY,
    PALETTE,
    Figure,
    Style,
    band_chart,
    dashed_line,
    heat_map,
    interval_half,
    intervals,
    metric_points,
    metric_strip,
    spec,
)
from longgame.report.families import end_matrices, family_curves, family_trajectories, overview_strips
from longgame.report.tables import DIAGNOSTICS, correlation_line, selector_families, selectors_in_order

_NAMES = 216
"""Pixels of the names beside the first strip."""


def style_of(run: Run) -> Style:
    """The colors and shapes of a run's selectors, the same in all its figures."""
    card, recipe = run.scorecard, run.recipe
    return Style(selectors_in_order(card, recipe), card.reference, selector_families(card, recipe))


def outcome_figures(run: Run) -> list[Figure]:
    """Figure 2 of the paper: now against the long run, learning curves, robustness, myopia gaps; then eq. 2's weights.

    Every figure is by the primary view; one without measurements is left out.
    """
    card, style = run.scorecard, style_of(run)
    if style.families:
        tables = {probe: curve_table(card, run.measured[""].curves, probe) for probe in ("common", "own")}
        return _drawn(
            overview_strips(card, style),
            immediate_against_long(card, style),
            ood_against_forgetting(card, style),
            *(family_curves(table, style, card.reference, probe) for probe, table in tables.items()),
            sensitivity(card, style),
        )
    return _drawn(
        immediate_against_long(card, style),
        learning_curves(card, run.measured[""].curves, style, "common"),
        learning_curves(card, run.measured[""].curves, style, "own"),
        ood_against_forgetting(card, style),
        myopia_gaps(card, style),
        sensitivity(card, style),
    )


def verdict_figures(run: Run) -> list[Figure]:
    """The answer in one figure: every selector's difference from the reference now and in the long run."""
    card, style = run.scorecard, style_of(run)
    rows = []
    for line in verdict_lines(card, run.recipe):
        for when, size in (("now", line.now), ("later", line.later)):
            rows.append((line.selector, f"{line.selector}: {line.word}", when, size.mean, size.low, size.high))
    frame = pd.DataFrame(rows, columns=["selector", "label", "when", "mean", "low", "high"]).dropna(subset=["mean"])
    ends = frame[["mean", "low", "high"]].to_numpy(float)
    low, high = (min(0.0, float(np.nanmin(ends))), max(0.0, float(np.nanmax(ends)))) if frame.size else (0.0, 0.0)
    room = 0.03 * (high - low)
    extent = (low - room, high + room)
    charts = []
    for when, title in (("now", "Now: current score"), ("later", "Later: long-horizon score")):
        part = frame[frame["when"] == when]
        if part.empty:
            continue
        words = f"{title}: difference from {card.reference} of each selector, in points"
        charts.append(_difference_strip(part, style, f"points, {when}", words, extent, when == "now"))
    caption = (
        f"Difference from {card.reference} (dashed) in the current score and the long-horizon score, in points of 100: "
        "mean over seeds with its 95 % interval, before the correction for the number of selectors that verdicts have."
    )
    return _drawn(Figure("verdicts", "Now, and later", caption, tuple(charts), names=_NAMES))


def _difference_strip(
    frame: pd.DataFrame, style: Style, title: str, alt_text: str, extent: tuple[float, float], named: bool
) -> dict[str, Any]:
    """A row per selector: its difference from the reference as a mark, its interval as a rule.

    Args:
        extent: ends of the axis, the same for strips that are read side by side.
    """
    names = alt.Axis(labelLimit=_NAMES - 6, minExtent=_NAMES, maxExtent=_NAMES)
    axis = names if named else alt.Axis(labels=False, ticks=False)
    base = alt.Chart(frame).encode(alt.Y("label:N", sort=list(frame["label"]), title=None, axis=axis))
    scale = alt.Scale(domain=list(extent), nice=False)
    x = alt.X("mean:Q", title=title, scale=scale, axis=alt.Axis(tickCount=5))
    rule = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2)
    tooltip = [
        alt.Tooltip("selector:N"),
        *(alt.Tooltip(f"{name}:Q", format="+.1f") for name in ("mean", "low", "high")),
    ]
    layers = [
        dashed_line("x", 0.0, title),
        *intervals(frame, rule.encode(alt.X("low:Q", title=title), alt.X2("high:Q"), color=style.color())),
        base.mark_point(size=80, filled=True, opacity=1).encode(
            x, color=style.color(), shape=style.shape(), tooltip=tooltip
        ),
    ]
    return spec(alt.layer(*layers), alt_text, style.height(len(frame), 26))


def walk_figures(run: Run) -> list[Figure]:
    """What happened on the way: score matrices, trajectories, diagnostics, costs, diagnostics against outcomes."""
    card, style = run.scorecard, style_of(run)
    return _drawn(
        end_matrices(card, style) if style.families else score_matrices(card, style),
        family_trajectories(card, style) if style.families else trajectories(card, style),
        diagnostics(card, style),
        costs(card, style),
        *against_each_other(card, style),
    )


def _drawn(*figures: Figure) -> list[Figure]:
    return [figure for figure in figures if figure.charts]


def _scatter(
    card: Scorecard, style: Style, x: str, y: str, alt_text: str, arrows: Sequence[tuple[str, str]] = ()
) -> tuple[dict[str, Any], ...]:
    """A point per selector with its intervals; an arrow leads from one selector's point to another's."""
    frame = metric_points(card, (x, y)).dropna(subset=[x, y])
    if frame.empty:
        return ()

    def axis(channel: Any, metric: str, field: str = "") -> Any:
        better = f" ({METRICS[metric].better} is better)" if METRICS[metric].better else ""
        unit = f", {METRICS[metric].shown_unit}" if METRICS[metric].shown_unit in ("points", "nats") else ""
        title = f"{METRICS[metric].label}{unit}{better}"
        return channel(f"{field or metric}:Q", title=title, scale=alt.Scale(zero=False, padding=12))

    at = frame.set_index("selector")
    lines = pd.DataFrame(
        [
            {
                "x": at[x][ahead],
                "y": at[y][ahead],
                "x_end": at[x][behind],
                "y_end": at[y][behind],
                "reversal": f"{ahead} leads {behind} now and trails it in the long run",
            }
            for ahead, behind in arrows
            if ahead in at.index and behind in at.index
        ]
    )
    complete = frame.dropna()
    opacity = 0.25 if style.families else 0.7
    whiskers = alt.Chart(complete).mark_rule(strokeWidth=1.5, opacity=opacity).encode(color=style.color())
    level = whiskers.encode(axis(alt.X, x, f"{x}_low"), alt.X2(f"{x}_high:Q"), axis(alt.Y, y))
    upright = whiskers.encode(axis(alt.X, x), axis(alt.Y, y, f"{y}_low"), alt.Y2(f"{y}_high:Q"))
    tooltip = [alt.Tooltip("selector:N"), alt.Tooltip(f"{x}:Q", format=".3~f"), alt.Tooltip(f"{y}:Q", format=".3~f")]
    marks = alt.Chart(frame).mark_point(size=110, filled=True, opacity=1)
    layers = alt.layer(
        *(_arrows(lines, axis(alt.X, x, "x"), axis(alt.Y, y, "y")) if len(lines) else []),
        *([level, upright] if len(complete) else []),
        marks.encode(axis(alt.X, x), axis(alt.Y, y), color=style.color(), shape=style.shape(), tooltip=tooltip),
    )
    return (spec(layers, alt_text, height=320),)


def _arrows(lines: pd.DataFrame, x: alt.X, y: alt.Y) -> list[Any]:
    """Lines whose heads, at three quarters of the length, Vega turns by its own scales into the line's direction."""
    base = alt.Chart(lines)
    shaft = base.mark_rule(strokeWidth=1.2, strokeDash=[5, 3], color=GREY, opacity=0.9)
    down, right = "scale('y', datum.y_end) - scale('y', datum.y)", "scale('x', datum.x_end) - scale('x', datum.x)"
    heads = base.transform_calculate(
        x="0.25 * datum.x + 0.75 * datum.x_end", y="0.25 * datum.y + 0.75 * datum.y_end"
    ).mark_point(
        shape="triangle-up",
        size=60,
        filled=True,
        color=GREY,
        opacity=1,
        angle=alt.ExprRef(f"atan2({down}, {right}) * 180 / PI + 90"),
    )
    return [
        shaft.encode(x, y, alt.X2("x_end:Q"), alt.Y2("y_end:Q"), tooltip=[alt.Tooltip("reversal:N")]),
        heads.encode(x, y),
    ]


def immediate_against_long(card: Scorecard, style: Style) -> Figure:
    """Figure 2 (a) of the paper: the score right after each stage against the long-horizon score."""
    rows = card.reversals[card.reversals["view"] == PRIMARY]
    pairs = list(zip(rows["ahead"].astype(str), rows["behind"].astype(str), strict=True))
    text = "Current score against long-horizon score, a point per selector, arrows for rank reversals"
    arrows = (
        "An arrow leads from a selector that is ahead now to one that is ahead in the long run, both sides significant."
        if pairs
        else "No rank reversal has both sides significant, so there are no arrows."
    )
    caption = (
        "Mean over seeds with 95 % intervals. Far right and low: strong now, weak in the long run. "
        f"{arrows} Verdicts compare with {card.reference} by seed, so overlapping intervals here can still differ."
    )
    charts = _scatter(card, style, "current", "long_horizon", text, pairs)
    return Figure("immediate-long", "Now against the long run", caption, charts, style.legend)


def ood_against_forgetting(card: Scorecard, style: Style) -> Figure:
    """Figure 2 (c) of the paper."""
    charts = _scatter(card, style, "forgetting", "ood", "Forgetting against OOD score, a point per selector")
    caption = "Mean over seeds with 95 % intervals. The best place is high on the left."
    return Figure("ood-forgetting", "Robustness against forgetting", caption, charts, style.legend)


_PAIRS = (
    ("entropy-concentration", "capability_entropy", "update_concentration", "Entropy against concentration", "3 (b)"),
    ("worst-transfer", "worst_task", "forward_transfer", "Worst task and forward transfer", "3 (d)"),
    ("concentration-forgetting", "update_concentration", "forgetting", "Concentration against forgetting", "4 (b)"),
)


def against_each_other(card: Scorecard, style: Style) -> list[Figure]:
    """Figures 3 (b), 3 (d) and 4 (b) of the paper: two metrics against each other, a point per selector."""
    measured = set(card.summary.loc[card.summary["view"].isin([PRIMARY, ""]), "metric"])
    figures = []
    for name, x, y, title, number in _PAIRS:
        if {x, y} <= measured:
            text = f"{METRICS[x].label} against {METRICS[y].label}, a point per selector"
            correlation = correlation_line(card.association, x, y)
            caption = f"Mean over seeds with 95 % intervals (the paper's Figure {number}). {correlation}".rstrip()
            figures.append(Figure(name, title, caption, _scatter(card, style, x, y, text), style.legend))
    return figures


def curve_table(card: Scorecard, curves: Curves, probe: str) -> pd.DataFrame:
    """Adaptation curves by selector and transition: stage, selector, step, tokens, mean, low, high (points).

    The score of a seed is that of the stage's primary scorer; tokens are the mean over seeds.
    """
    index = {name: code for code, name in enumerate(curves.scorers)}
    primary = np.array([index.get(card.views[PRIMARY].scorer[task], -1) for task in card.tasks], dtype=np.int64)
    shown = np.flatnonzero((curves.probe == PROBES.index(probe)) & (primary[curves.stage] == curves.scorer))
    if not len(shown):
        return pd.DataFrame(columns=["stage", "selector", "step", "tokens", "mean", "low", "high"])
    names = np.array(card.trials.names, dtype=object)
    place = np.empty(len(names), dtype=np.int64)
    place[np.argsort(names)] = np.arange(len(names))
    shown = shown[np.argsort(place[curves.trial[shown]], kind="stable")]  # sums add the trials by name
    length = curves.length[shown]
    points = np.repeat(curves.first[shown] + length - np.cumsum(length), length) + np.arange(length.sum())
    categories = sorted(card.trials.selectors)
    code_of = np.array([categories.index(name) for name in card.trials.selectors], dtype=np.int64)
    selectors = np.repeat(code_of[card.trials.selector_of[curves.trial[shown]]], length)
    rows = pd.DataFrame(
        {
            "stage": np.repeat(curves.stage[shown], length).astype(np.int64),
            "selector": pd.Categorical.from_codes(selectors, pd.Index(categories)),
            "step": curves.step[points],
            "tokens": curves.tokens[points],
            "value": curves.score[points],
        }
    )
    grouped = rows.groupby(["stage", "selector", "step"], observed=True, sort=True)
    table = grouped.agg(
        tokens=("tokens", "mean"), mean=("value", "mean"), sd=("value", "std"), n=("value", "count")
    ).reset_index()
    half = interval_half(table["sd"].to_numpy(float), table["n"].to_numpy(float))
    table["low"], table["high"] = table["mean"] - half, table["mean"] + half
    return table[table["n"] > 0].drop(columns=["sd", "n"])


def learning_curves(card: Scorecard, curves: Curves, style: Style, probe: str) -> Figure:
    """Figure 2 (b) of the paper: the early learning curve on the next stage."""
    table = curve_table(card, curves, probe)
    x = alt.X("tokens:Q", title="selected tokens", axis=alt.Axis(tickCount=5, format="~s"))
    tooltip = [alt.Tooltip("tokens:Q"), alt.Tooltip("mean:Q", format=".1f")]
    charts = []
    for stage in sorted(table["stage"].unique()):
        task = card.tasks[int(stage)]
        chart = band_chart(table[table["stage"] == stage], style, x, tooltip, "points")
        text = f"Early learning curves on {task} after stage {stage}, a line per selector"
        charts.append(spec(chart.properties(title=f"learning {task} after stage {stage}"), text, 210))
    explanation = (
        "every selector's model learns from the same random picks, so a difference comes from the model's state"
        if probe == "common"
        else "each selector picks for its own model"
    )
    title = f"How fast the next stage is learned ({probe} probe)"
    caption = f"Means over seeds with 95 % bands; {explanation}."
    return Figure(f"curves-{probe}", title, caption, tuple(charts), style.legend)


def myopia_gaps(card: Scorecard, style: Style) -> Figure:
    """Figure 2 (d) of the paper, with a sign: how much worse a selector ranks in the long run than now."""
    means = card.wide(["myopia_gap"])["myopia_gap"].dropna().sort_values(ascending=False)
    text = "Myopia gap by selector, mean over seeds with its interval, largest first"
    chart = metric_strip(card, style, "myopia_gap", text, order=[str(name) for name in means.index], chance=0.0)
    caption = (
        "Mean over seeds with 95 % intervals. Right of 0 a selector ranks worse in the long run than by the current "
        "score, left of 0 better. Ranks by chance alone give 0 on average."
    )
    return Figure("myopia-gap", "Myopia gap", caption, (chart,) if chart else ())


_LEAST_SHARE = 0.005
"""Share of the weightings below which a selector has no bar, where selectors are many."""


def sensitivity(card: Scorecard, style: Style) -> Figure:
    """How much the first rank in the long run depends on the weights of eq. 2."""
    table = card.sensitivity[(card.sensitivity["view"] == PRIMARY)].dropna(subset=["share"])
    if style.families:
        table = table[table["share"] >= _LEAST_SHARE]
    charts: tuple[dict[str, Any], ...] = ()
    if len(table):
        base = alt.Chart(table[["selector", "share"]]).encode(alt.Y("selector:N", sort=style.selectors, title=None))
        x = alt.X("share:Q", title="share of all weightings", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1]))
        tooltip = [alt.Tooltip("selector:N"), alt.Tooltip("share:Q", format=".1%")]
        bars = base.mark_bar().encode(x, color=style.color(), tooltip=tooltip)
        text = base.mark_text(align="left", dx=4).encode(x, text=alt.Text("share:Q", format=".0%"))
        alt_text = "Share of weightings on which each selector ranks first"
        charts = (spec(alt.layer(bars, text), alt_text, 26 * len(table)),)
    caption = (
        "Share of the simplex of the weights (α, β, γ) on which the selector's mean long-horizon score ranks first. "
        "Near 100 %: no weights put another mean first. It counts means without their uncertainty, so it does not show "
        "that the selector is better: the verdicts do."
    )
    return Figure("sensitivity", "Does the winner depend on the weights?", caption, charts)


def _seed_means(card: Scorecard, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n, mean, sd) over seeds of a selector's score matrix, rows × columns each."""
    R = card.views[PRIMARY].R[card.trials.selector_of == card.trials.selectors.index(name)]
    return moments(R.transpose(1, 2, 0))


def score_matrices(card: Scorecard, style: Style) -> Figure:
    """The score matrix R of every selector, mean over seeds: a row per stage done, a column per task."""
    columns = [*card.tasks, *card.ood]
    means = {name: _seed_means(card, name)[1] for name in style.selectors}
    finite = np.concatenate([table[np.isfinite(table)] for table in means.values()])
    ends = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    charts = []
    for name, table in means.items() if finite.size else ():
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
        tooltip = [alt.Tooltip("after:O"), alt.Tooltip("task:N"), alt.Tooltip("points:Q", format=".1f")]
        chart = heat_map(base, "points", ends, ".0f", tooltip).properties(title=name)
        charts.append(spec(chart, f"Score matrix of {name}: points per task after each stage", 190))
    caption = (
        "Points, mean over seeds; row 0 is the model before any stage, and the OOD sets come last. Read a column "
        "downwards: it rises at its own stage and falls where it is forgotten. All matrices share one color scale."
    )
    return Figure("matrices", "Score matrix R", caption, tuple(charts))


def trajectories(card: Scorecard, style: Style) -> Figure:
    """Every task's score, stage by stage: what is learned at its own stage and what later stages do to it."""
    tables = {name: _seed_means(card, name) for name in style.selectors}
    x = alt.X("after:Q", title="stages done", axis=alt.Axis(tickMinStep=1, format="d"))
    tooltip = [alt.Tooltip("after:Q"), alt.Tooltip("mean:Q", format=".1f")]
    charts = []
    for column, task in enumerate([*card.tasks, *card.ood]):
        rows = []
        for name, (n, mean, sd) in tables.items():
            half = interval_half(sd[:, column], n[:, column])
            rows += [
                (name, stage, value, value - half[stage], value + half[stage])
                for stage, value in enumerate(mean[:, column])
                if np.isfinite(value)
            ]
        frame = pd.DataFrame(rows, columns=["selector", "after", "mean", "low", "high"])
        if frame["after"].nunique() < 2:
            continue
        learned = [dashed_line("x", column + 1, "stages done")] if column < len(card.tasks) else []
        chart = band_chart(frame, style, x, tooltip, "points", behind=learned).properties(title=task)
        charts.append(spec(chart, f"Score on {task} after each stage, a line per selector", 190))
    caption = (
        "Points, means over seeds with 95 % bands. Dashed: the task's own stage; to its right the task is remembered "
        "or forgotten. OOD sets have no stage of their own; where they are scored only at the ends, a line joins two "
        "points."
    )
    return Figure("trajectories", "Stage by stage", caption, tuple(charts), style.legend)


def diagnostics(card: Scorecard, style: Style) -> Figure:
    """Table 2 of the paper as strips: one diagnostic each, a mark per selector with its interval."""
    measured = set(card.summary.loc[card.summary["view"] == "", "metric"])
    strips = (
        metric_strip(card, style, name, f"{METRICS[name].label} by selector")
        for name in DIAGNOSTICS
        if name in measured
    )
    caption = "Means over stages and seeds with 95 % intervals. These explain; no selector is judged by them."
    charts = tuple(chart for chart in strips if chart is not None)
    return Figure("diagnostics", "What was selected, and what it did to the weights", caption, charts)


SECONDS = {
    "train_seconds": "training",
    "select_seconds": "selection",
    "diagnose_seconds": "diagnostics",
    "evaluate_seconds": "evaluation",
    "probe_seconds": "probes",
    "replay_seconds": "replay",
}


def costs(card: Scorecard, style: Style) -> Figure:
    """Where a trial's time goes, by selector."""
    measured = set(card.summary.loc[card.summary["view"] == "", "metric"])
    names = [name for name in SECONDS if name in measured]
    means = card.wide(names) if names else pd.DataFrame()
    rows = [
        {"selector": selector, "part": SECONDS[name], "seconds": float(means[name][selector])}
        for selector in style.selectors
        for name in names
        if np.isfinite(means[name][selector])
    ]
    if not rows:
        return Figure("costs", "", "", ())
    parts, title = [SECONDS[name] for name in names], "seconds per trial"
    scale = alt.Scale(domain=parts, range=list(PALETTE[: len(parts)]))
    y = alt.Y("selector:N", sort=style.selectors, title=None)
    bars = (
        alt.Chart(pd.DataFrame(rows))
        .mark_bar(stroke="#ffffff", strokeWidth=0.6)
        .encode(
            alt.X("sum(seconds):Q", title=title),
            y,
            alt.Color("part:N", scale=scale, sort=parts, legend=alt.Legend(orient="bottom", title=None, columns=3)),
            order=alt.Order("place:Q"),
            tooltip=[alt.Tooltip("selector:N"), alt.Tooltip("part:N"), alt.Tooltip("seconds:Q", format=".2f")],
        )
        .transform_calculate(place=f"indexof({parts!r}, datum.part)")
    )
    beneath = 6 if style.families else 12
    spread = alt.Chart(_totals(card, names)).mark_rule(strokeWidth=2, color=GREY, yOffset=beneath)
    tooltip = [alt.Tooltip("selector:N"), *(alt.Tooltip(f"{name}:Q", format=".1f") for name in ("fastest", "slowest"))]
    spread = spread.encode(alt.X("fastest:Q", title=title), alt.X2("slowest:Q"), y, tooltip=tooltip)
    caption = (
        "Wall-clock per trial, mean over seeds, all stages together; the grey lines beneath span the fastest trial to "
        "the slowest. Seconds depend on other load of the machine, so the same training differs between trials. Own "
        "probes include the selector's choices, and diagnostics reuse gradients that it has computed. The tables hold "
        "FLOPs, which do not depend on load."
    )
    height = style.height(len(style.selectors), 26)
    chart = spec(alt.layer(bars, spread), "Seconds per trial by part, a bar per selector", height)
    return Figure("costs", "Where the time went", caption, (chart,))


def _totals(card: Scorecard, names: Sequence[str]) -> pd.DataFrame:
    """selector, fastest, slowest: seconds of a trial, all these parts together."""
    parts = {key: value for key, value in card.values.items() if key[0] == "" and key[1] in names}
    table = long_form(parts, card.trials, ("view", "metric"))
    trials = table.groupby(["selector", "trial"], observed=True)["value"].sum(min_count=1)
    ends = trials.groupby("selector", observed=True).agg(fastest="min", slowest="max")
    return ends.reset_index().astype({"selector": object}).dropna()
