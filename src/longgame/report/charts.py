"""What all figures share: colors and shapes of selectors, the parts that charts are built from, and SVG and PNG files.

Color and shape both identify a selector (Okabe–Ito palette, grey for the reference), so that no figure depends on color
vision. The page sets backgrounds and text colors, because it knows whether it is dark.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import scipy.special
import vl_convert

from longgame.metrics.catalog import METRICS
from longgame.metrics.scorecard import PRIMARY, Scorecard
from longgame.storage import write_file

VEGA_LITE = ".".join(alt.SCHEMA_VERSION.split(".")[:2])
"""The Vega-Lite version that altair's specifications are written for."""
GREY = "#8c8c8c"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#C78500", "#3796D2", "#8A63D2", "#A0522D")
"""Okabe–Ito without black and yellow (illegible on a dark or a light page), with orange and sky blue darkened to a
contrast of 3 with white, then two more."""
FAMILY_COLORS = (*PALETTE, "#5B6770", "#7D1D3F")
"""Colors of families; there are no more families beside the reference's."""
SHAPES = {
    "square": "■", "triangle-up": "▲", "diamond": "◆", "cross": "✚", "triangle-down": "▼", "triangle-right": "▶",
    "triangle-left": "◀", "circle": "●",
}  # fmt: skip
"""Vega's symbol → the glyph that stands for it in the page's legend."""


@dataclass(frozen=True, slots=True)
class LegendKey:
    """One line of a legend, drawn by the page once for all charts of a figure."""

    selector: str
    color: str
    glyph: str


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: a grid of charts under one caption."""

    name: str
    title: str
    caption: str
    charts: tuple[dict[str, Any], ...]
    keys: tuple[LegendKey, ...] = ()
    """The legend, where charts do not name the selectors themselves."""
    names: int = 0
    """Pixels of the row names that only the first of two charts has; the page makes it so much wider."""

    @property
    def single(self) -> bool:
        """Whether it is one chart, which fits next to another figure."""
        return len(self.charts) == 1


class Style:
    """Scales that give a selector the same color and shape in every figure.

    Args:
        selectors: in the order of tables.
        reference: the grey one.
        families: selector → family, where selectors are many: a color then stands for a family, and a shape tells its
            selectors apart. Empty: a color and shape for each selector.
    """

    def __init__(self, selectors: Sequence[str], reference: str, families: Mapping[str, str] | None = None) -> None:
        self.families = dict(families or {})
        others = [name for name in selectors if name != reference]
        color = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(others)} | {reference: GREY}
        marks = list(SHAPES)  # shifted by one after each palette, so that no pair of color and shape comes twice
        shape = {name: marks[(i + i // len(PALETTE)) % len(marks)] for i, name in enumerate(others)}
        if self.families:
            members: dict[str, list[str]] = {}
            for name in others:
                members.setdefault(self.families[name], []).append(name)
            for place, names in enumerate(members.values()):
                color |= dict.fromkeys(names, FAMILY_COLORS[place % len(FAMILY_COLORS)])
                shape |= {name: marks[number % len(marks)] for number, name in enumerate(names)}
        shape[reference] = "circle"
        self.selectors = list(selectors)
        self.keys = tuple(LegendKey(name, color[name], SHAPES[shape[name]]) for name in selectors)
        self._colors = alt.Scale(domain=self.selectors, range=[color[name] for name in selectors])
        self._shapes = alt.Scale(domain=self.selectors, range=[shape[name] for name in selectors])

    @property
    def legend(self) -> tuple[LegendKey, ...]:
        """What a legend names: the selectors, or, where they are many, the families."""
        colors: dict[str, str] = {}
        for key in self.keys if self.families else ():
            colors.setdefault(self.families[key.selector], key.color)
        return tuple(LegendKey(family, color, "■") for family, color in colors.items()) or self.keys

    def color(self, legend: bool = False) -> alt.Color:
        return alt.Color("selector:N", scale=self._colors, legend=_LEGEND if legend else None)

    def shape(self, legend: bool = False) -> alt.Shape:
        return alt.Shape("selector:N", scale=self._shapes, legend=_LEGEND if legend else None)

    def height(self, rows: int, size: int) -> int:
        """Height of a chart with so many rows of ``size`` pixels; of thin rows, where selectors are many."""
        return ThinRows(_THIN * rows) if self.families else size * rows


class ThinRows(int):
    """Height of a chart whose rows are selectors, which the page makes lower as its filter takes rows away."""


_THIN = 15
"""Pixels of a row where selectors are many."""
_LEGEND = alt.Legend(orient="bottom", title=None, columns=2, labelLimit=120, symbolOpacity=1)


def interval_half(sd: np.ndarray, n: np.ndarray, confidence: float = 0.95) -> np.ndarray:
    """Half the Student-t interval of a mean over n seeds; NaN below two seeds."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(n > 1, scipy.special.stdtrit(n - 1, 0.5 + confidence / 2) * sd / np.sqrt(n), np.nan)


def metric_points(card: Scorecard, metrics: Sequence[str]) -> pd.DataFrame:
    """One row per selector: mean, low and high of each metric as reports show it (95 % interval over seeds)."""
    mean, sd, n = (card.wide(list(metrics), PRIMARY, column) for column in ("mean", "sd", "n"))
    frame = pd.DataFrame({"selector": mean.index.to_numpy()})
    for name in metrics:
        value = mean[name].to_numpy(float)
        half = interval_half(sd[name].to_numpy(float), n[name].to_numpy(float))
        value, half = METRICS[name].scale * value, METRICS[name].scale * half
        frame[name], frame[f"{name}_low"], frame[f"{name}_high"] = value, value - half, value + half
    return frame.replace([np.inf, -np.inf], np.nan)


def spec(chart: Any, alt_text: str, height: int) -> dict[str, Any]:
    """The chart as a Vega-Lite specification that fills its container, with a description for screen readers."""
    sized = chart.properties(width="container", height=int(height), description=alt_text)
    if isinstance(height, ThinRows):
        sized = sized.properties(usermeta={"row": _THIN})
    return sized.to_dict(validate=False)  # the tests validate every figure; here it would take most of the time


def dashed_line(channel: str, value: float, title: str) -> alt.Chart:
    """A dashed grey line across the chart at a value of ``x`` or ``y``."""
    rule = alt.Chart(pd.DataFrame({"line": [value]})).mark_rule(strokeDash=[4, 3], color=GREY)
    return rule.encode(**{channel: {"x": alt.X, "y": alt.Y}[channel]("line:Q", title=title)})


def intervals(frame: pd.DataFrame, layer: Any, low: str = "low") -> list[Any]:
    """The layer of the intervals; none where no row has one (one seed), as an empty layer has no extent."""
    return [layer] if frame[low].notna().any() else []


def band_chart(
    frame: pd.DataFrame,
    style: Style,
    x: alt.X,
    tooltip: Sequence[Any],
    unit: str,
    behind: Sequence[Any] = (),
    extent: Sequence[float] | None = None,
    legend: bool = False,
) -> Any:
    """A line per selector with a band around it.

    Args:
        frame: selector, the column of ``x``, mean, low, high.
        unit: title of the vertical axis.
        behind: layers drawn first.
        extent: ends of the vertical axis, for charts that are read side by side; without it, those of the data.
        legend: whether the chart itself explains its colors.
    """
    base = alt.Chart(frame).encode(x)
    scale = alt.Scale(zero=False) if extent is None else alt.Scale(zero=False, domain=list(extent), nice=True)
    y = alt.Y("mean:Q", title=unit, scale=scale)
    band = base.transform_filter("isValid(datum.low)").mark_area(opacity=0.09)
    return alt.layer(
        *behind,
        *intervals(frame, band.encode(alt.Y("low:Q", title=unit), alt.Y2("high:Q"), color=style.color(legend))),
        base.mark_line(strokeWidth=2).encode(y, color=style.color(legend)),
        base.mark_point(size=34, filled=True, opacity=1).encode(
            y, color=style.color(legend), shape=style.shape(legend), tooltip=[alt.Tooltip("selector:N"), *tooltip]
        ),
    )


def heat_map(
    base: alt.Chart, field: str, ends: tuple[float, float], digits: str, tooltip: Sequence[Any], bare: bool = False
) -> Any:
    """Cells on the cividis scale with their values as text.

    Args:
        base: the chart of the rows with its axes.
        ends: values at the ends of the color scale.
        digits: number format of the text.
        bare: leave out the text, which is too wide for small cells.
    """
    color = alt.Color(f"{field}:Q", scale=alt.Scale(scheme="cividis", domain=list(ends)), legend=None)
    text = base.mark_text(fontSize=10).encode(
        text=alt.Text(f"{field}:Q", format=digits), color=ink_on_cividis(field, *ends)
    )
    cells = base.mark_rect().encode(color=color, tooltip=list(tooltip))
    return alt.layer(cells) if bare else alt.layer(cells, text)


def ink_on_cividis(field: str, low: float, high: float) -> Any:
    """Black or white, whichever is legible (contrast ≥ 4.5) on the cividis scale from low to high."""
    middle = low + 0.47 * (high - low)
    return alt.condition(f"datum.{field} > {middle!r}", alt.value("#000000"), alt.value("#ffffff"))


def strip(
    frame: pd.DataFrame,
    style: Style,
    title: str,
    unit: str,
    alt_text: str,
    order: Sequence[str] | None = None,
    chance: float = float("nan"),
    extent: Sequence[float] | None = None,
) -> dict[str, Any]:
    """A row per selector: its mean as a mark, its interval as a rule.

    Args:
        frame: selector, mean, low, high; rows without a mean are left out.
        order: selectors from top to bottom; without it, the style's order.
        chance: a dashed line to compare with, where it is finite.
        extent: ends of the axis, for strips that are read side by side; without it, those of the data.
    """
    frame = frame.dropna(subset=["mean"])
    base = alt.Chart(frame).encode(alt.Y("selector:N", sort=list(order or style.selectors), title=None))
    scale = alt.Scale(zero=False, padding=8) if extent is None else alt.Scale(zero=False, domain=list(extent))
    x = alt.X("mean:Q", title=unit, scale=scale, axis=alt.Axis(tickCount=5))
    rule = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2)
    tooltip = [
        alt.Tooltip("selector:N"),
        *(alt.Tooltip(f"{name}:Q", format=".4~r") for name in ("mean", "low", "high")),
    ]
    layers = [
        *([dashed_line("x", chance, unit)] if np.isfinite(chance) else []),
        *intervals(frame, rule.encode(alt.X("low:Q", title=unit), alt.X2("high:Q"), color=style.color())),
        base.mark_point(size=40 if style.families else 80, filled=True, opacity=1).encode(
            x, color=style.color(), shape=style.shape(), tooltip=tooltip
        ),
    ]
    return spec(alt.layer(*layers).properties(title=title), alt_text, style.height(len(frame), 24))


def metric_strip(card: Scorecard, style: Style, metric: str, alt_text: str, **options: Any) -> dict[str, Any] | None:
    """`strip` of one metric of the scorecard; None where no trial measured it."""
    columns = {metric: "mean", f"{metric}_low": "low", f"{metric}_high": "high"}
    frame = metric_points(card, (metric,)).rename(columns=columns)
    if frame["mean"].isna().all():
        return None
    return strip(frame, style, METRICS[metric].label, METRICS[metric].shown_unit, alt_text, **options)


# Figures as files: SVG and PNG on white, with legends.

_WIDTH = {1: 460, 2: 320}
_NARROW, _COLUMNS = 220, 3
_CONFIG = {
    "background": "white",
    "font": "Helvetica, Arial, sans-serif",
    "view": {"stroke": None},
    "axis": {"labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": 500, "gridColor": "#dddddd"},
    "title": {"fontSize": 13, "anchor": "start"},
    "legend": {"labelFontSize": 11, "titleFontSize": 12},
}


def write_figures(figures: Sequence[Figure], folder: Path) -> list[Path]:
    """Write each figure as ``NAME.svg`` and ``NAME.png`` (double size); returns the files.

    Raises:
        StorageError: the folder cannot be written.
    """
    written = []
    for figure in figures:
        svg = figure_svg(figure)
        for suffix, data in {".svg": svg.encode(), ".png": vl_convert.svg_to_png(svg, scale=2)}.items():
            written.append(folder / f"{figure.name}{suffix}")
            write_file(written[-1], data, "Give another --figures.")
    return written


def figure_svg(figure: Figure) -> str:
    """The whole figure as SVG: its charts side by side at fixed widths, and a legend."""
    width = _WIDTH.get(len(figure.charts), _NARROW)
    charts, datasets, schema = [], {}, ""
    for original in figure.charts:
        chart = copy.deepcopy(original)
        schema = chart.pop("$schema")
        chart.pop("config", None)
        datasets.update(chart.pop("datasets", {}))
        chart["width"] = width
        if figure.keys and "usermeta" not in chart:  # rows have their names beside them
            _show_legend(chart)
        charts.append(chart)
    body: dict[str, Any] = charts[0] if len(charts) == 1 else {"concat": charts, "columns": _COLUMNS}
    if len(charts) > 1 and not figure.keys:  # each chart explains its own colors
        body["resolve"] = {"scale": {"color": "independent", "shape": "independent"}}
    drawing = {"$schema": schema, "config": _CONFIG, "datasets": datasets, **body}
    return vl_convert.vegalite_to_svg(drawing, vl_version=VEGA_LITE)


def _show_legend(node: Any) -> None:
    """Give the selectors' colors and shapes, which the page explains next to its charts, a legend in the chart."""
    if isinstance(node, list):
        for item in node:
            _show_legend(item)
    elif isinstance(node, dict):
        for channel in ("color", "shape"):
            encoding = node.get(channel)
            if isinstance(encoding, dict) and encoding.get("field") == "selector":
                encoding["legend"] = {
                    "title": None,
                    "orient": "bottom",
                    "columns": 4,
                    "symbolOpacity": 1,
                    "symbolLimit": 0,
                }
        for item in node.values():
            _show_legend(item)
