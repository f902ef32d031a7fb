"""The figures of a scorecard as Vega-Lite specifications, made with altair from aggregated rows (never from raw ones).

Colour and shape both tell selectors apart (Okabe–Ito palette, grey for the reference), so that no figure depends on
colour vision. Backgrounds and text colours are left to the page, which knows whether it is dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import scipy.stats

from longgame.metrics.catalog import METRICS
from longgame.metrics.scorecard import PRIMARY, Scorecard
from longgame.metrics.stats import moments
from longgame.recipe import Recipe
from longgame.report.tables import DIAGNOSTICS, selectors_in_order

GREY = "#8c8c8c"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A63D2", "#A0522D")
"""Okabe–Ito without black and yellow (illegible on a dark or a light page), then two more."""
SHAPES = {
    "square": "■",
    "triangle-up": "▲",
    "diamond": "◆",
    "cross": "✚",
    "triangle-down": "▼",
    "triangle-right": "▶",
    "triangle-left": "◀",
    "circle": "●",
}
"""Vega's symbol → the glyph that stands for it in the page's legend."""


@dataclass(frozen=True, slots=True)
class Key:
    """One line of a legend, drawn by the page once for all charts of a figure."""

    selector: str
    colour: str
    glyph: str


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: a grid of charts under one caption."""

    name: str
    title: str
    caption: str
    charts: tuple[dict[str, Any], ...]
    keys: tuple[Key, ...] = ()
    """The legend, where charts do not name the selectors themselves."""

    @property
    def single(self) -> bool:
        """Whether it is one chart, which may stand beside another figure."""
        return len(self.charts) == 1


def interval_half(sd: np.ndarray, n: np.ndarray, confidence: float = 0.95) -> np.ndarray:
    """Half the Student-t interval of a mean over n seeds; NaN below two seeds."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(n > 1, scipy.stats.t.ppf(0.5 + confidence / 2, n - 1) * sd / np.sqrt(n), np.nan)


class _Style:
    """Scales that give a selector the same colour and shape in every figure."""

    def __init__(self, selectors: Sequence[str], reference: str) -> None:
        others = [name for name in selectors if name != reference]
        colour = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(others)} | {reference: GREY}
        shape = {name: list(SHAPES)[i % len(SHAPES)] for i, name in enumerate(others)} | {reference: "circle"}
        self.selectors = list(selectors)
        self.keys = tuple(Key(name, colour[name], SHAPES[shape[name]]) for name in selectors)
        self._colours = alt.Scale(domain=self.selectors, range=[colour[name] for name in selectors])
        self._shapes = alt.Scale(domain=self.selectors, range=[shape[name] for name in selectors])

    def colour(self) -> alt.Color:
        return alt.Color("selector:N", scale=self._colours, legend=None)

    def shape(self) -> alt.Shape:
        return alt.Shape("selector:N", scale=self._shapes, legend=None)


def figures(card: Scorecard, results: pd.DataFrame, recipe: Recipe) -> list[Figure]:
    """All figures that this run has measurements for, by the primary view.

    Args:
        results: the tidy records; only rows of kind ``curve`` are read here.
    """
    style = _Style(selectors_in_order(card, recipe), card.reference)
    made = [
        immediate_against_long(card, style),
        learning_curves(card, results, style, "common"),
        learning_curves(card, results, style, "own"),
        ood_against_forgetting(card, style),
        score_matrices(card, style),
        diagnostics(card, style),
    ]
    return [figure for figure in made if figure is not None and figure.charts]


def _points(card: Scorecard, metrics: Sequence[str]) -> pd.DataFrame:
    """One row per selector: mean, low and high of each metric (95 % interval of the mean over seeds)."""
    mean, sd, n = (card.wide(list(metrics), PRIMARY, column) for column in ("mean", "sd", "n"))
    frame = pd.DataFrame({"selector": mean.index.to_numpy()})
    for name in metrics:
        value = mean[name].to_numpy(float)
        half = interval_half(sd[name].to_numpy(float), n[name].to_numpy(float))
        frame[name], frame[f"{name}_low"], frame[f"{name}_high"] = value, value - half, value + half
    return frame.replace([np.inf, -np.inf], np.nan)


def _scatter(card: Scorecard, style: _Style, x: str, y: str, alt_text: str) -> dict[str, Any] | None:
    frame = _points(card, (x, y)).dropna(subset=[x, y])
    if frame.empty:
        return None

    def axis(name: str, low: bool = False) -> Any:
        make = alt.X if name == x else alt.Y
        better = {"higher": " (higher is better)", "lower": " (lower is better)"}[METRICS[name].better]
        unit = f", {METRICS[name].unit}" if METRICS[name].unit == "points" else ""
        return make(
            f"{name}_low:Q" if low else f"{name}:Q",
            title=f"{METRICS[name].label}{unit}{better}",
            scale=alt.Scale(zero=False, padding=12),
        )

    base = alt.Chart(frame)
    tooltip = ["selector:N", alt.Tooltip(f"{x}:Q", format=".3~f"), alt.Tooltip(f"{y}:Q", format=".3~f")]
    whiskers = alt.Chart(frame.dropna()).mark_rule(strokeWidth=1.5, opacity=0.7)
    layers = alt.layer(
        whiskers.encode(axis(x, low=True), alt.X2(f"{x}_high:Q"), axis(y), color=style.colour()),
        whiskers.encode(axis(x), axis(y, low=True), y2=alt.Y2(f"{y}_high:Q"), color=style.colour()),
        base.mark_point(size=110, filled=True, opacity=1).encode(
            axis(x), axis(y), color=style.colour(), shape=style.shape(), tooltip=tooltip
        ),
    )
    return _spec(layers, alt_text, height=320)


def _spec(chart: Any, alt_text: str, height: int) -> dict[str, Any]:
    sized = chart.properties(width="container", height=height, description=alt_text)
    return sized.to_dict()


def immediate_against_long(card: Scorecard, style: _Style) -> Figure | None:
    """Figure 2 (a) of the paper: the score right after each stage against the long-horizon score."""
    chart = _scatter(
        card, style, "current", "long_horizon", "Current score against long-horizon score, a point per selector"
    )
    caption = (
        "Mean over seeds with 95 % intervals. Far right and low: strong now, weak in the long run. "
        f"Verdicts compare with {card.reference} by seed, so overlapping intervals here can still differ."
    )
    return Figure("immediate-long", "Now against the long run", caption, (chart,), style.keys) if chart else None


def ood_against_forgetting(card: Scorecard, style: _Style) -> Figure | None:
    """Figure 2 (c) of the paper."""
    chart = _scatter(card, style, "forgetting", "ood", "Forgetting against OOD score, a point per selector")
    caption = "Mean over seeds with 95 % intervals. Best is high on the left."
    return Figure("ood-forgetting", "Robustness against forgetting", caption, (chart,), style.keys) if chart else None


def curve_table(card: Scorecard, results: pd.DataFrame, probe: str) -> pd.DataFrame:
    """Adaptation curves by selector and transition: stage, selector, step, tokens, mean, low, high (points).

    The score of a seed is the macro row (sub-skill "") of the stage's primary scorer; tokens are the mean over seeds.
    """
    rows = results[((results["kind"] == "curve") & (results["probe"] == probe) & (results["sub_skill"] == ""))]
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


def learning_curves(card: Scorecard, results: pd.DataFrame, style: _Style, probe: str) -> Figure | None:
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
        tooltip = ["selector:N", "tokens:Q", alt.Tooltip("mean:Q", format=".1f")]
        layers = alt.layer(
            band.encode(alt.Y("low:Q", title="points"), alt.Y2("high:Q"), color=style.colour()),
            base.mark_line(strokeWidth=2).encode(y, color=style.colour()),
            base.mark_point(size=34, filled=True, opacity=1).encode(
                y, color=style.colour(), shape=style.shape(), tooltip=tooltip
            ),
        ).properties(title=f"learning {task} after stage {stage}")
        charts.append(_spec(layers, f"Early learning curves on {task} after stage {stage}, a line per selector", 210))
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


def score_matrices(card: Scorecard, style: _Style) -> Figure:
    """The score matrix R of every selector, mean over seeds: a row per stage done, a column per task."""
    columns = [*card.tasks, *card.ood]
    R = card.views[PRIMARY].R
    means = {
        name: moments(R[card.trials.selector_of == card.trials.selectors.index(name)].transpose(1, 2, 0))[1]
        for name in style.selectors
    }
    finite = np.concatenate([table[np.isfinite(table)] for table in means.values()])
    if not finite.size:
        return Figure("matrices", "", "", ())
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
        light = f"datum.points > {(low + high) / 2!r}"
        ink = alt.condition(light, alt.value("#000000"), alt.value("#ffffff"))
        text = base.mark_text(fontSize=10).encode(text=alt.Text("points:Q", format=".0f"), color=ink)
        layers = alt.layer(cells, text).properties(title=name)
        charts.append(_spec(layers, f"Score matrix of {name}: points per task after each stage", 190))
    caption = (
        "Points, mean over seeds; row 0 is the model before any stage, the OOD sets stand last. Read a column "
        "downwards: it rises at its own stage and falls where it is forgotten. One colour scale for all."
    )
    return Figure("matrices", "Score matrix R", caption, tuple(charts))


def diagnostics(card: Scorecard, style: _Style) -> Figure:
    """Table 2 of the paper as strips: one diagnostic each, a mark per selector with its interval."""
    held = set(card.summary.loc[card.summary["view"] == "", "metric"])
    charts = []
    for name in DIAGNOSTICS:
        if name not in held:
            continue
        frame = _points(card, (name,)).rename(columns={name: "mean", f"{name}_low": "low", f"{name}_high": "high"})
        frame = frame.dropna(subset=["mean"])
        if frame.empty:
            continue
        base = alt.Chart(frame).encode(alt.Y("selector:N", sort=style.selectors, title=None))
        unit = METRICS[name].unit
        x = alt.X("mean:Q", title=unit, scale=alt.Scale(zero=False, padding=8), axis=alt.Axis(tickCount=5))
        rule = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2)
        tooltip = ["selector:N", alt.Tooltip("mean:Q", format=".3f")]
        layers = alt.layer(
            rule.encode(alt.X("low:Q", title=unit), alt.X2("high:Q"), color=style.colour()),
            base.mark_point(size=80, filled=True, opacity=1).encode(
                x, color=style.colour(), shape=style.shape(), tooltip=tooltip
            ),
        ).properties(title=METRICS[name].label)
        charts.append(_spec(layers, f"{METRICS[name].label} by selector", 24 * len(frame)))
    caption = "Means over stages and seeds with 95 % intervals. These explain; no selector is judged by them."
    return Figure("diagnostics", "What was selected, and what it did to the weights", caption, tuple(charts))
