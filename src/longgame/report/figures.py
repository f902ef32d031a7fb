"""The figures of a scorecard as Vega-Lite specifications, made with altair from aggregated rows (never from raw ones).

Colour and shape both tell selectors apart (Okabe–Ito palette, grey for the reference), so that no figure depends on
colour vision. Backgrounds and text colours are left to the page, which knows whether it is dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from longgame.metrics.catalog import METRICS
from longgame.metrics.comparisons import Across
from longgame.metrics.longhorizon import chance_gap
from longgame.metrics.scorecard import PRIMARY, Scorecard
from longgame.metrics.stats import moments
from longgame.recipe import Recipe
from longgame.report.charts import (
    GREY,
    PALETTE,
    SHAPES,
    Figure,
    Key,
    Style,
    ink_on_cividis,
    interval_half,
    intervals,
    metric_strip,
    points,
    spec,
)
from longgame.report.conditions import association_line, axes_figures
from longgame.report.picks import Picks, picks_figures
from longgame.report.tables import DIAGNOSTICS, selectors_in_order

__all__ = [
    "GREY", "PALETTE", "SHAPES", "Figure", "Key", "curve_table", "figures", "immediate_against_long", "interval_half",
    "learning_curves", "myopia_gaps", "ood_against_forgetting",
]  # fmt: skip


def figures(
    card: Scorecard,
    results: pd.DataFrame,
    recipe: Recipe,
    picks: Picks | None = None,
    across: Across | None = None,
    conditions: pd.DataFrame | None = None,
) -> list[Figure]:
    """All figures that this run has measurements for, by the primary view.

    Args:
        results: the tidy records; only rows of kinds ``curve`` and ``cost`` are read here.
        picks: what was selected (see `longgame.report.picks`); without it, no figure tells of it.
        across, conditions: all conditions of a run with axes (see `longgame.report.conditions.axes_figures`).
    """
    style = Style(selectors_in_order(card, recipe), card.reference)
    varied = axes_figures(across, conditions, style) if across is not None and conditions is not None else []
    made = [
        immediate_against_long(card, style),
        learning_curves(card, results, style, "common"),
        learning_curves(card, results, style, "own"),
        ood_against_forgetting(card, style),
        myopia_gaps(card, style),
        *varied,
        *run_figures(card, style),
        *against_each_other(card, style),
        *(picks_figures(picks, card, style) if picks is not None else []),
    ]
    return [figure for figure in made if figure is not None and figure.charts]


def _scatter(
    card: Scorecard,
    style: Style,
    x: str,
    y: str,
    alt_text: str,
    arrows: Sequence[tuple[str, str]] = (),
) -> dict[str, Any] | None:
    """A point per selector with its intervals; ``arrows`` lead from one selector's point to another's."""
    frame = points(card, (x, y)).dropna(subset=[x, y])
    if frame.empty:
        return None

    def title(name: str) -> str:
        better = f" ({METRICS[name].better} is better)" if METRICS[name].better else ""
        unit = f", {METRICS[name].unit}" if METRICS[name].unit in ("points", "nats") else ""
        return f"{METRICS[name].label}{unit}{better}"

    def across(field: str = f"{x}:Q") -> Any:
        return alt.X(field, title=title(x), scale=alt.Scale(zero=False, padding=12))

    def up(field: str = f"{y}:Q") -> Any:
        return alt.Y(field, title=title(y), scale=alt.Scale(zero=False, padding=12))

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
    base = alt.Chart(frame)
    tooltip = ["selector:N", alt.Tooltip(f"{x}:Q", format=".3~f"), alt.Tooltip(f"{y}:Q", format=".3~f")]
    whole = frame.dropna()
    whiskers = alt.Chart(whole).mark_rule(strokeWidth=1.5, opacity=0.7)
    level = whiskers.encode(across(f"{x}_low:Q"), alt.X2(f"{x}_high:Q"), up(), color=style.colour())
    upright = whiskers.encode(across(), up(f"{y}_low:Q"), y2=alt.Y2(f"{y}_high:Q"), color=style.colour())
    layers = alt.layer(
        *_arrows(lines, across, up),
        *([level, upright] if len(whole) else []),
        base.mark_point(size=110, filled=True, opacity=1).encode(
            across(), up(), color=style.colour(), shape=style.shape(), tooltip=tooltip
        ),
    )
    return spec(layers, alt_text, height=320)


def _arrows(lines: pd.DataFrame, x: Any, y: Any) -> list[Any]:
    """Lines with a head at three quarters of their length, turned by Vega's own scales into the line's direction."""
    if lines.empty:
        return []
    base = alt.Chart(lines)
    shaft = base.mark_rule(strokeWidth=1.2, strokeDash=[5, 3], color=GREY, opacity=0.9).encode(
        x("x:Q"), y("y:Q"), x2="x_end:Q", y2="y_end:Q", tooltip=["reversal:N"]
    )
    down, right = "scale('y', datum.y_end) - scale('y', datum.y)", "scale('x', datum.x_end) - scale('x', datum.x)"
    heads = base.transform_calculate(
        x_head="0.25 * datum.x + 0.75 * datum.x_end", y_head="0.25 * datum.y + 0.75 * datum.y_end"
    ).mark_point(
        shape="triangle-up",
        size=60,
        filled=True,
        color=GREY,
        opacity=1,
        angle=alt.ExprRef(f"atan2({down}, {right}) * 180 / PI + 90"),
    )
    return [shaft, heads.encode(x("x_head:Q"), y("y_head:Q"))]


def immediate_against_long(card: Scorecard, style: Style) -> Figure | None:
    """Figure 2 (a) of the paper: the score right after each stage against the long-horizon score."""
    rows = [row for row in card.reversals.to_dict("records") if row["view"] == PRIMARY]
    pairs = [(str(row["ahead"]), str(row["behind"])) for row in rows]
    chart = _scatter(
        card,
        style,
        "current",
        "long_horizon",
        "Current score against long-horizon score, a point per selector, arrows for rank reversals",
        pairs,
    )
    said = (
        "An arrow leads from a selector that is ahead now to one that is ahead in the long run, both sides significant."
        if pairs
        else "No rank reversal has both sides significant, so there are no arrows."
    )
    caption = (
        "Mean over seeds with 95 % intervals. Far right and low: strong now, weak in the long run. "
        f"{said} Verdicts compare with {card.reference} by seed, so overlapping intervals here can still differ."
    )
    return Figure("immediate-long", "Now against the long run", caption, (chart,), style.keys) if chart else None


def ood_against_forgetting(card: Scorecard, style: Style) -> Figure | None:
    """Figure 2 (c) of the paper."""
    chart = _scatter(card, style, "forgetting", "ood", "Forgetting against OOD score, a point per selector")
    caption = "Mean over seeds with 95 % intervals. Best is high on the left."
    return Figure("ood-forgetting", "Robustness against forgetting", caption, (chart,), style.keys) if chart else None


def curve_table(card: Scorecard, results: pd.DataFrame, probe: str) -> pd.DataFrame:
    """Adaptation curves by selector and transition: stage, selector, step, tokens, mean, low, high (points).

    The score of a seed is the macro row (sub-skill "") of the stage's primary scorer; tokens are the mean over seeds.
    """
    held = (results["kind"] == "curve") & (results["probe"] == probe) & (results["sub_skill"] == "")
    rows = results.loc[held, ["stage", "selector", "step", "tokens", "value", "task", "scorer"]]
    if rows.empty:
        return pd.DataFrame(columns=["stage", "selector", "step", "tokens", "mean", "low", "high"])
    wanted = pd.DataFrame([(task, scorer) for task, scorer in _primary(card).items()], columns=["task", "scorer"])
    rows = rows.astype({"task": object, "scorer": object}).merge(wanted, on=["task", "scorer"])
    grouped = rows.groupby(["stage", "selector", "step"], observed=True, sort=True)
    table = grouped.agg(
        tokens=("tokens", "mean"), mean=("value", "mean"), sd=("value", "std"), n=("value", "count")
    ).reset_index()
    half = interval_half(table["sd"].to_numpy(float), table["n"].to_numpy(float))
    table["low"], table["high"] = table["mean"] - half, table["mean"] + half
    return table[table["n"] > 0].drop(columns=["sd", "n"])


def learning_curves(card: Scorecard, results: pd.DataFrame, style: Style, probe: str) -> Figure | None:
    """Figure 2 (b) of the paper: the early learning curve on the next stage."""
    table = curve_table(card, results, probe)
    charts = []
    for stage in sorted(table["stage"].unique()):
        part = table[table["stage"] == stage]
        task = card.tasks[int(stage)]
        base = alt.Chart(part).encode(
            alt.X("tokens:Q", title="selected tokens", axis=alt.Axis(tickCount=5, format="~s"))
        )
        y = alt.Y("mean:Q", title="points", scale=alt.Scale(zero=False))
        band = base.transform_filter("isValid(datum.low)").mark_area(opacity=0.09)
        band = band.encode(alt.Y("low:Q", title="points"), alt.Y2("high:Q"), color=style.colour())
        tooltip = ["selector:N", "tokens:Q", alt.Tooltip("mean:Q", format=".1f")]
        layers = alt.layer(
            *intervals(part, band),
            base.mark_line(strokeWidth=2).encode(y, color=style.colour()),
            base.mark_point(size=34, filled=True, opacity=1).encode(
                y, color=style.colour(), shape=style.shape(), tooltip=tooltip
            ),
        ).properties(title=f"learning {task} after stage {stage}")
        charts.append(spec(layers, f"Early learning curves on {task} after stage {stage}, a line per selector", 210))
    what = (
        "every selector's model learns from the same random picks, so a difference is the state it was left in"
        if probe == "common"
        else "each selector picks for itself"
    )
    title = f"How fast the next stage is learned ({probe} probe)"
    caption = f"Means over seeds with 95 % bands; {what}."
    return Figure(f"curves-{probe}", title, caption, tuple(charts), style.keys) if charts else None


def _primary(card: Scorecard) -> dict[str, str]:
    """Task → the scorer behind the primary view."""
    return dict(card.views[PRIMARY].scorer)


def myopia_gaps(card: Scorecard, style: Style) -> Figure | None:
    """Figure 2 (d) of the paper: how far a selector's rank now is from its rank in the long run."""
    means = card.wide(["myopia_gap"])["myopia_gap"].dropna().sort_values(ascending=False)
    chance = chance_gap(len(card.trials.selectors))
    text = "Myopia gap by selector, mean over seeds with its interval, largest first"
    chart = metric_strip(card, style, "myopia_gap", text, order=[str(name) for name in means.index], chance=chance)
    caption = (
        "Mean over seeds and stage transitions with 95 % intervals; 0: the selector ranks alike now and in the long "
        f"run. Dashed: {chance:.2f}, what ranks by chance alone give."
    )
    return Figure("myopia-gap", "Myopia gap", caption, (chart,)) if chart else None


_PAIRS = (
    ("entropy-concentration", "capability_entropy", "update_concentration", "Entropy against concentration", "3 (b)"),
    ("worst-transfer", "worst_task", "forward_transfer", "Worst task and forward transfer", "3 (d)"),
    ("concentration-forgetting", "update_concentration", "forgetting", "Concentration against forgetting", "4 (b)"),
)


def against_each_other(card: Scorecard, style: Style) -> list[Figure]:
    """Figures 3 (b), 3 (d) and 4 (b) of the paper: two metrics against each other, a point per selector."""
    held = set(card.summary.loc[card.summary["view"].isin([PRIMARY, ""]), "metric"])
    found = []
    for name, x, y, title, number in _PAIRS:
        if not {x, y} <= held:
            continue
        text = f"{METRICS[x].label} against {METRICS[y].label}, a point per selector"
        chart = _scatter(card, style, x, y, text)
        said = association_line(card.association, x, y)
        caption = f"Mean over seeds with 95 % intervals (the paper's Figure {number}). {said}".rstrip()
        if chart is not None:
            found.append(Figure(name, title, caption, (chart,), style.keys, "run"))
    return found


# Figures of the walk itself: score matrices, trajectories, diagnostics, what it cost, what the weights decide.

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
