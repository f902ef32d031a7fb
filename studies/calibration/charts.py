"""Figures of the calibration, from its tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from longgame.metrics.stats import ALPHA, t_power
from longgame.report.charts import GREY, PALETTE, SHAPES

Rows = Sequence[dict[str, Any]]

_SHARE = alt.Axis(format="%")


def encodings(field: str, names: Sequence[str], title: str | None, *, grey_first: bool = False) -> tuple[Any, Any]:
    """Color and shape of a series, with scales that agree so that they share one legend."""
    colors = ([GREY] if grey_first else []) + list(PALETTE)
    options: dict[str, Any] = {"sort": list(names), "title": title}
    return (
        alt.Color(f"{field}:N", scale=alt.Scale(domain=list(names), range=colors[: len(names)]), **options),
        alt.Shape(f"{field}:N", scale=alt.Scale(domain=list(names), range=list(SHAPES)[: len(names)]), **options),
    )


def _rule(value: float) -> Any:
    return alt.Chart(pd.DataFrame({"y": [value]})).mark_rule(color=GREY, strokeDash=[5, 4]).encode(y="y:Q")


def _by_seeds(frame: pd.DataFrame) -> Any:
    """Chart with the number of seeds, as classes, on its x axis."""
    classes = [str(n) for n in sorted(frame["seeds"].unique())]
    x = alt.X("seeds:O", sort=classes, title="seeds per audit", axis=alt.Axis(labelAngle=0))
    return alt.Chart(frame.assign(seeds=frame["seeds"].astype(str))).encode(x)


def false_alarms_chart(exchangeable: Rows, hardest: Rows) -> Any:
    """Share of audits with a false claim, against the nominal 5 %."""
    parts = {
        "seven exchangeable selectors": pd.DataFrame(exchangeable),
        "no long-horizon difference, all ahead now": pd.DataFrame(hardest),
    }
    top = max(0.08, 1.05 * max(float(frame["high"].max()) for frame in parts.values()))
    names = list(dict.fromkeys(row["claim"] for row in exchangeable))
    color, shape = encodings("claim", names, "claim")
    title, scale = "audits with a false claim", alt.Scale(domain=[0, top])
    charts = []
    for heading, frame in parts.items():
        base = _by_seeds(frame).encode(alt.XOffset("claim:N", sort=names), color)
        bars = base.mark_rule(strokeWidth=2).encode(alt.Y("low:Q", title=title, scale=scale), alt.Y2("high:Q"))
        points = base.mark_point(size=60, filled=True).encode(
            alt.Y("rate:Q", title=title, axis=_SHARE, scale=scale), shape
        )
        charts.append((bars + points + _rule(ALPHA)).properties(title=heading, width=320, height=230))
    return alt.hconcat(*charts).resolve_scale(color="shared", shape="shared")


def power_chart(rows: Rows) -> Any:
    """Power against the true effect: measured (points), predicted by the noncentral t (lines)."""
    sizes = sorted({int(row["seeds"]) for row in rows})
    names = [f"{n} seeds" for n in sizes]
    frame = pd.DataFrame(rows).assign(
        size=[abs(row["d"]) for row in rows], seeds=[f"{row['seeds']} seeds" for row in rows]
    )
    grid = np.linspace(0, 1.1 * float(frame["size"].max()), 60)
    lines = pd.concat(
        [pd.DataFrame({"size": grid, "rate": t_power(grid, n, ALPHA), "seeds": f"{n} seeds"}) for n in sizes]
    )
    color, shape = encodings("seeds", names, None)
    title = "audits that say so"
    x = alt.X("size:Q", title="true long-horizon effect, in sd of the paired differences")
    y = alt.Y("rate:Q", title=title, axis=_SHARE, scale=alt.Scale(domain=[0, 1]))
    curves = alt.Chart(lines).mark_line(strokeWidth=1.5).encode(x, y, color)
    base = alt.Chart(frame).encode(x, color)
    bars = base.mark_rule(strokeWidth=2).encode(alt.Y("low:Q", title=title), alt.Y2("high:Q"))
    points = base.mark_point(size=60, filled=True).encode(y, shape)
    return (curves + bars + points + _rule(0.8)).properties(width=460, height=280)


def coverage_chart(rows: Rows) -> Any:
    """Coverage of the 95 % intervals, a point per selector and metric."""
    low = min(0.6, min(row["rate"] for row in rows) - 0.02)
    names = ["t", "bootstrap"]
    color, shape = encodings("interval", names, "interval")
    y = alt.Y("rate:Q", title="intervals that hold the truth", axis=_SHARE, scale=alt.Scale(domain=[low, 1]))
    points = _by_seeds(pd.DataFrame(rows)).encode(alt.XOffset("interval:N", sort=names), y, color, shape)
    marks = points.mark_point(size=45, filled=True, opacity=0.75)
    return (marks + _rule(0.95)).properties(width=460, height=260)
