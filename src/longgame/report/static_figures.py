"""Figures as files for papers: every figure as SVG and PNG, with its legend, on white."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from longgame.errors import StorageError
from longgame.report.charts import Figure

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
