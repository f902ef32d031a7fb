"""What all figures share: colours and shapes of selectors, intervals, and the pieces that a chart is put together from.

Colour and shape both tell selectors apart (Okabe–Ito palette, grey for the reference), so that no figure depends on
colour vision. Backgrounds and text colours are left to the page, which knows whether it is dark.
"""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import scipy.special
import vl_convert

from longgame.errors import StorageError
from longgame.metrics.catalog import METRICS
from longgame.metrics.scorecard import PRIMARY, Scorecard

GREY = "#8c8c8c"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#C78500", "#3796D2", "#8A63D2", "#A0522D")
"""Okabe–Ito without black and yellow (illegible on a dark or a light page), orange and sky blue darkened until they
stand out from white (contrast ≥ 3), then two more."""
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
    group: str = "paper"
    """Which part of the page it belongs to: ``paper`` (its figures), ``run`` or ``picks``."""

    @property
    def single(self) -> bool:
        """Whether it is one chart, which may stand beside another figure."""
        return len(self.charts) == 1


def interval_half(sd: np.ndarray, n: np.ndarray, confidence: float = 0.95) -> np.ndarray:
    """Half the Student-t interval of a mean over n seeds; NaN below two seeds."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(n > 1, scipy.special.stdtrit(n - 1, 0.5 + confidence / 2) * sd / np.sqrt(n), np.nan)


class Style:
    """Scales that give a selector the same colour and shape in every figure."""

    def __init__(self, selectors: Sequence[str], reference: str) -> None:
        others = [name for name in selectors if name != reference]
        colour = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(others)} | {reference: GREY}
        marks = list(SHAPES)  # after a whole palette they go on one further, so that no pair of both comes twice
        shape = {name: marks[(i + i // len(PALETTE)) % len(marks)] for i, name in enumerate(others)}
        shape[reference] = "circle"
        self.selectors = list(selectors)
        self.keys = tuple(Key(name, colour[name], SHAPES[shape[name]]) for name in selectors)
        self._colours = alt.Scale(domain=self.selectors, range=[colour[name] for name in selectors])
        self._shapes = alt.Scale(domain=self.selectors, range=[shape[name] for name in selectors])

    def colour(self) -> alt.Color:
        return alt.Color("selector:N", scale=self._colours, legend=None)

    def shape(self) -> alt.Shape:
        return alt.Shape("selector:N", scale=self._shapes, legend=None)


def points(card: Scorecard, metrics: Sequence[str]) -> pd.DataFrame:
    """One row per selector: mean, low and high of each metric (95 % interval of the mean over seeds)."""
    mean, sd, n = (card.wide(list(metrics), PRIMARY, column) for column in ("mean", "sd", "n"))
    frame = pd.DataFrame({"selector": mean.index.to_numpy()})
    for name in metrics:
        value = mean[name].to_numpy(float)
        half = interval_half(sd[name].to_numpy(float), n[name].to_numpy(float))
        frame[name], frame[f"{name}_low"], frame[f"{name}_high"] = value, value - half, value + half
    return frame.replace([np.inf, -np.inf], np.nan)


def ink_on_cividis(field: str, low: float, high: float) -> Any:
    """Black or white, whichever is legible (contrast ≥ 4.5) on the cividis scale from low to high."""
    middle = low + 0.47 * (high - low)
    return alt.condition(f"datum.{field} > {middle!r}", alt.value("#000000"), alt.value("#ffffff"))


def spec(chart: Any, alt_text: str, height: int) -> dict[str, Any]:
    """The chart as a Vega-Lite specification that fills its place's width, described for who cannot see it."""
    sized = chart.properties(width="container", height=height, description=alt_text)
    return sized.to_dict(validate=False)  # the tests validate every figure; here it would take most of the time


def intervals(frame: pd.DataFrame, layer: Any, low: str = "low") -> list[Any]:
    """The layer of the intervals, or none where no row has one (one seed): an empty layer has no extent."""
    return [layer] if frame[low].notna().any() else []


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
        order: selectors from top to bottom; without it, the figure's own order.
        chance: a dashed line to compare with, where it is finite.
        extent: ends of the axis, for strips that are read side by side; without it, those of the data.
    """
    frame = frame.dropna(subset=["mean"])
    base = alt.Chart(frame).encode(alt.Y("selector:N", sort=list(order or style.selectors), title=None))
    scale = alt.Scale(zero=False, padding=8) if extent is None else alt.Scale(zero=False, domain=list(extent))
    x = alt.X("mean:Q", title=unit, scale=scale, axis=alt.Axis(tickCount=5))
    rule = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2)
    tooltip = ["selector:N", *(alt.Tooltip(f"{name}:Q", format=".3f") for name in ("mean", "low", "high"))]
    layers = [
        *intervals(frame, rule.encode(alt.X("low:Q", title=unit), alt.X2("high:Q"), color=style.colour())),
        base.mark_point(size=80, filled=True, opacity=1).encode(
            x, color=style.colour(), shape=style.shape(), tooltip=tooltip
        ),
    ]
    if np.isfinite(chance):
        line = alt.Chart(pd.DataFrame({"chance": [chance]})).mark_rule(strokeDash=[4, 3], color=GREY)
        layers.insert(0, line.encode(alt.X("chance:Q", title=unit)))
    return spec(alt.layer(*layers).properties(title=title), alt_text, height=24 * len(frame))


def metric_strip(card: Scorecard, style: Style, metric: str, alt_text: str, **more: Any) -> dict[str, Any] | None:
    """`strip` of one metric of the scorecard; None where no trial measured it."""
    frame = points(card, (metric,)).rename(columns={metric: "mean", f"{metric}_low": "low", f"{metric}_high": "high"})
    if frame["mean"].isna().all():
        return None
    return strip(frame, style, METRICS[metric].label, METRICS[metric].unit, alt_text, **more)


# Vega, Vega-Lite and vega-embed as one script, in the version that altair's specifications are written for.


def make_bundle(version: str) -> str:
    """The script for this version of Vega-Lite ("6.1"), safe between script tags."""
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)
    return re.sub(r"</(?=script)", r"<\\/", bundle, flags=re.IGNORECASE)


@cache
def begin_bundle(version: str) -> subprocess.Popen[bytes]:
    """Begin making it in a process beside this one; `finish_bundle` waits for it."""
    command = [sys.executable, "-m", __name__, version]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


@cache
def finish_bundle(version: str) -> str:
    """The script; made here where no process was begun (or where it was stopped)."""
    if begin_bundle.cache_info().currsize:
        process = begin_bundle(version)
        bundle = process.communicate()[0]
        if process.returncode == 0:
            return bundle.decode()
    return make_bundle(version)


if __name__ == "__main__":
    sys.stdout.buffer.write(make_bundle(sys.argv[1]).encode())


# Figures as files for papers: every figure as SVG and PNG, with its legend, on white.

VERSION = ".".join(alt.SCHEMA_VERSION.split(".")[:2])
"""Of Vega-Lite, for which altair's specifications are written."""
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
        spec = static_spec(figure)
        svg = vl_convert.vegalite_to_svg(spec, vl_version=VERSION)
        content = {".svg": svg.encode(), ".png": vl_convert.svg_to_png(svg, scale=2)}
        for suffix, data in content.items():
            path = folder / f"{figure.name}{suffix}"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            except OSError as error:
                raise StorageError(
                    f"cannot write {path}: {error.strerror or error}. Give another --figures."
                ) from error
            written.append(path)
    return written


def static_spec(figure: Figure) -> dict[str, Any]:
    """One Vega-Lite specification of a whole figure: its charts side by side at fixed widths, and a legend."""
    width = _WIDTH.get(len(figure.charts), _NARROW)
    charts, datasets, schema = [], {}, ""
    for each in figure.charts:
        chart = copy.deepcopy(each)
        schema = chart.pop("$schema")
        chart.pop("config", None)
        datasets.update(chart.pop("datasets", {}))
        chart["width"] = width
        if figure.keys:
            _show_legend(chart)
        charts.append(chart)
    body: dict[str, Any] = charts[0] if len(charts) == 1 else {"concat": charts, "columns": _COLUMNS}
    if len(charts) > 1 and not figure.keys:  # each chart explains its own colours
        body["resolve"] = {"scale": {"color": "independent"}}
    return {"$schema": schema, "config": _CONFIG, "datasets": datasets, **body}


def _show_legend(node: Any) -> None:
    """Give the selectors' colours and shapes, which the page explains beside its charts, a legend of their own."""
    if isinstance(node, list):
        for item in node:
            _show_legend(item)
    elif isinstance(node, dict):
        for channel in ("color", "shape"):
            encoding = node.get(channel)
            if isinstance(encoding, dict) and encoding.get("field") == "selector":
                encoding["legend"] = {"title": None, "orient": "bottom", "columns": 4, "symbolOpacity": 1}
        for item in node.values():
            _show_legend(item)
