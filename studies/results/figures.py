"""Two figures: now against later for every selector and sequence, and what regimes do to short-sighted selectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import altair as alt
import pandas as pd

from longgame.audit.plan import condition_label
from longgame.metrics.catalog import METRICS
from longgame.report.charts import GREY, PALETTE, Figure, spec, write_figures
from studies.results.data import StudyRun

_FIELDS = {"diff_vs_reference": "mean", "ci_low": "low", "ci_high": "high"}


def draw(runs: Mapping[str, StudyRun], sequences: tuple[str, ...], folder: Path) -> list[Path]:
    """Write the figures that these runs allow, as SVG; returns the files."""
    figures = [_now_and_later({name: runs[name] for name in sequences if name in runs})]
    if "regimes" in runs:
        figures.append(_regimes(runs["regimes"]))
    return write_svg([figure for figure in figures if figure.charts], folder)


def write_svg(figures: Sequence[Figure], folder: Path) -> list[Path]:
    """Write the figures as SVG; returns the files."""
    written = write_figures(figures, folder)
    for path in written:
        if path.suffix == ".png":
            path.unlink()
    return [path for path in written if path.suffix == ".svg"]


def _differences(summary: pd.DataFrame, view: str, metric: str) -> pd.DataFrame:
    """selector, mean, low, high of the differences from random, in points."""
    rows = summary[(summary["view"] == view) & (summary["metric"] == metric)].dropna(subset=["diff_vs_reference"])
    table = rows[["selector", *_FIELDS]].rename(columns=_FIELDS)
    table[list(_FIELDS.values())] *= METRICS[metric].scale
    return table


def _now_and_later(runs: Mapping[str, StudyRun]) -> Figure:
    charts = []
    for name, run in runs.items():
        summary = run.card().summary
        now, later = (_differences(summary, "token_accuracy", metric) for metric in ("current", "long_horizon"))
        both = now.merge(later, on="selector", suffixes=("_now", "_later"))
        x = alt.X("mean_now:Q", title="current score − random's (points)")
        y = alt.Y("mean_later:Q", title="long-horizon score − random's (points)")
        base = alt.Chart(both)
        layers = alt.layer(
            alt.Chart(pd.DataFrame({"zero": [0.0]})).mark_rule(color=GREY, strokeDash=[4, 3]).encode(x="zero:Q"),
            alt.Chart(pd.DataFrame({"zero": [0.0]})).mark_rule(color=GREY, strokeDash=[4, 3]).encode(y="zero:Q"),
            base.mark_rule(color=PALETTE[0], opacity=0.35).encode(alt.X("low_now:Q"), alt.X2("high_now:Q"), y),
            base.mark_rule(color=PALETTE[0], opacity=0.35).encode(x, alt.Y("low_later:Q"), alt.Y2("high_later:Q")),
            base.mark_point(size=45, filled=True, color=PALETTE[0], opacity=1).encode(x, y),
            base.mark_text(dy=-8, fontSize=9).encode(x, y, text="selector:N"),
        )
        description = f"{name}: difference from random now and in the long run, a point per selector"
        charts.append(spec(layers.properties(title=f"{name} sequence"), description, 260))
    caption = "Token accuracy; differences from random with 95 % intervals over seeds. Lower right is myopic."
    return Figure("now-and-later", "Now and later", caption, tuple(charts))


def _regimes(run: StudyRun) -> Figure:
    across = run.across()
    charts = []
    for metric in ("current", "forgetting", "long_horizon"):
        parts = [
            _differences(card.summary, "token_accuracy", metric).assign(regime=condition_label(name))
            for name, card in across.cards.items()
        ]
        table = pd.concat(parts, ignore_index=True)
        color = alt.Color("selector:N", scale=alt.Scale(range=list(PALETTE)), legend=alt.Legend(title=None))
        offset = alt.YOffset("selector:N")
        base = alt.Chart(table).encode(alt.Y("regime:N", sort=None, title=None), offset, color)
        zero = alt.Chart(pd.DataFrame({"zero": [0.0]})).mark_rule(color=GREY, strokeDash=[4, 3]).encode(x="zero:Q")
        title = f"{METRICS[metric].label} − random's (points)"
        layers = alt.layer(
            zero,
            base.mark_rule(strokeWidth=2).encode(alt.X("low:Q", title=title), alt.X2("high:Q")),
            base.mark_point(size=45, filled=True, opacity=1).encode(alt.X("mean:Q", title=title)),
        )
        description = f"{METRICS[metric].label}: difference from random by regime, loss and gradient selection"
        charts.append(spec(layers.properties(title=METRICS[metric].label), description, 34 * table["regime"].nunique()))
    caption = "Token accuracy; differences from random with 95 % intervals over seeds."
    return Figure("regimes", "Regimes", caption, tuple(charts))
