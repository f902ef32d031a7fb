"""The figures of a scorecard as Vega-Lite specifications, made with altair from aggregated rows (never from raw ones).

Colour and shape both tell selectors apart (Okabe–Ito palette, grey for the reference), so that no figure depends on
colour vision. Backgrounds and text colours are left to the page, which knows whether it is dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

from longgame.metrics.across import Across
from longgame.metrics.catalog import METRICS
from longgame.metrics.ranking import chance_gap
from longgame.metrics.scorecard import PRIMARY, Scorecard
from longgame.recipe import Recipe
from longgame.report.association import association_line
from longgame.report.charts import (
    GREY,
    PALETTE,
    SHAPES,
    Figure,
    Key,
    Style,
    interval_half,
    intervals,
    metric_strip,
    points,
    spec,
)
from longgame.report.figures_axes import axes_figures
from longgame.report.figures_picks import picks_figures
from longgame.report.figures_run import run_figures
from longgame.report.picks import Picks
from longgame.report.tables import selectors_in_order

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
        across, conditions: all conditions of a run with axes (see `longgame.report.figures_axes.axes_figures`).
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
