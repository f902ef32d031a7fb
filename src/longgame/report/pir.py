"""Efficiency and feasibility of selectors beside the methods of survey arXiv 2406.14115: one frame, tables, figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import altair as alt
import jinja2
import numpy as np
import pandas as pd
import vl_convert

from longgame.metrics.efficiency import FRACTIONS, RATIOS
from longgame.metrics.feasibility import Feasibility, feasibility_ranks, published, published_feasibility
from longgame.report.charts import GREY, Figure, Style, spec
from longgame.report.static_figures import VERSION, static_spec
from longgame.report.tables import NOT_MEASURED, Cell, Column, Table

ALL_DATA = "all data"
OURS, REFERENCE, PUBLISHED = "audit", "reference", "published"
INDICATORS = ("trained_llms", "steps", "reproducible", "model_free", "dataset_free", "gpt_free")
RANKS = ("simplicity", "flexibility", "feasibility")
SCALES = (
    "PIR of an audit is a ratio of scores to those of the full-data trial of the same seed; published PIRs stand on "
    "the survey's scale of win-rate ratios, so the two are read beside each other, not compared number by number."
)


@dataclass(frozen=True)
class Compared:
    """The selectors of one condition of one run."""

    label: str
    """What tells it from the others, e.g. ``quickstart, budget 0.1``; "" where there is only one."""
    efficiency: pd.DataFrame
    """See `longgame.metrics.efficiency.efficiency`."""
    feasibility: Mapping[str, Feasibility | None]
    """Selector → its indicators; None where they are not known."""


def comparison(parts: Sequence[Compared]) -> pd.DataFrame:
    """All methods in one frame: those of the audits, all data as the reference, then the published ones.

    Returns:
        method, kind (``audit``, ``reference``, ``published``), pir_now and pir_later with ``_low``, ``_high``, ``_n``,
        pir_published, sdf_rows, sdf_tokens, the indicators, simplicity, flexibility and feasibility (ranks among all
        methods of the frame whose indicators are known), source. NaN = not measured or not told.
    """
    rows: list[dict[str, Any]] = []
    known: list[Feasibility | None] = []
    for part in parts:
        for record in part.efficiency.to_dict("records"):
            row = {str(name): value for name, value in record.items()}
            selector = str(row.pop("selector"))
            method = f"{selector} ({part.label})" if part.label else selector
            rows.append({"method": method, "kind": OURS, **row, "source": "this audit"})
            known.append(part.feasibility.get(selector))
    ones = dict.fromkeys((*RATIOS, *FRACTIONS), 1.0)
    rows.append({"method": ALL_DATA, "kind": REFERENCE, **ones, "source": "by definition"})
    known.append(None)
    for point in published().to_dict("records"):
        about = {"method": point["method"], "kind": PUBLISHED, "sdf_rows": point["sdf"], "pir_published": point["pir"]}
        rows.append({**about, "source": point["source"]})
    known += published_feasibility()
    frame = pd.DataFrame(rows)
    told = [place for place, each in enumerate(known) if each is not None]
    for name in INDICATORS:
        frame[name] = [np.nan if each is None else float(getattr(each, name)) for each in known]
    ranks = feasibility_ranks([each for each in known if each is not None])
    for name in RANKS:
        frame[name] = pd.Series(ranks[name].to_numpy(float), index=told).reindex(frame.index)
    first = ["method", "kind", *(f"{name}{end}" for name in RATIOS for end in ("", "_low", "_high", "_n"))]
    return frame[[*first, "pir_published", *FRACTIONS, *INDICATORS, *RANKS, "source"]]


def efficiency_table(frame: pd.DataFrame) -> Table:
    """PIR with 95 % intervals, SDF and the feasibility rank of every method."""
    columns = (
        Column("method", "method", numeric=False),
        Column("PIR now", "PIR now", "scores right after each stage over those of the full-data trial"),
        Column("PIR later", "PIR later", "scores at the end over those of the full-data trial"),
        Column("PIR published", "PIR publ.", "on the survey's scale of win-rate ratios"),
        Column("SDF rows", "SDF rows", "share of the examples that were selected"),
        Column("SDF tokens", "SDF tok.", "share of the tokens that were selected"),
        Column("feasibility rank", "feas. rank", "1 is the most feasible of these methods; equal sums share a rank"),
    )
    rows = []
    for row in frame.to_dict("records"):
        cells = [Cell(str(row["method"]))]
        cells += [_ratio(row, name) for name in RATIOS]
        cells += [_plain(row["pir_published"], ".3f"), *(_plain(row[name], ".3f") for name in FRACTIONS)]
        rows.append((*cells, _plain(row["feasibility"], ".0f")))
    note = f"{SCALES} Mean over seeds with the 95 % interval (Student's t), paired by seed."
    return Table("Efficiency beside the published methods", columns, tuple(rows), note)


def feasibility_table(frame: pd.DataFrame) -> Table:
    """The survey's indicators and ranks of every method whose indicators are known."""
    labels = {
        "trained_llms": "trained LLMs",
        "steps": "steps",
        "reproducible": "open code",
        "model_free": "model-free",
        "dataset_free": "dataset-free",
        "gpt_free": "GPT-free",
        "simplicity": "simplicity rank",
        "flexibility": "flexibility rank",
        "feasibility": "feasibility rank",
    }
    columns = [Column("method", "method", numeric=False)]
    columns += [Column(label, label.replace(" rank", "")) for label in labels.values()]
    rows = []
    for row in frame.dropna(subset=["feasibility"]).sort_values("feasibility", kind="stable").to_dict("records"):
        cells = [Cell(str(row["method"]))]
        for name in labels:
            yes_no = name in INDICATORS[2:]
            cells.append(Cell(("no", "yes")[int(row[name])]) if yes_no else _plain(row[name], ".0f"))
        rows.append(tuple(cells))
    note = "Simplicity: 2 · trained LLMs + steps + closed code; flexibility: 3 · model + 2 · data set + 1 · GPT needed."
    return Table("Feasibility", tuple(columns), tuple(rows), note)


def _plain(value: float, form: str) -> Cell:
    return Cell(NOT_MEASURED) if np.isnan(value) else Cell(format(value, form), value=value)


def _ratio(row: Mapping[Any, Any], name: str) -> Cell:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    cell = _plain(row[name], ".3f")
    if np.isnan(row[name]) or np.isnan(low):
        return cell
    mark = "▲" if low > 1 else "▼" if high < 1 else ""
    return Cell(f"{cell.text} [{low:.3f}, {high:.3f}]", mark, f"{row[f'{name}_n']:.0f} seeds", value=row[name])


def efficiency_figures(frame: pd.DataFrame, reference: str = "random") -> list[Figure]:
    """PIR against SDF (now, later, and as published), and simplicity against flexibility of all methods."""
    ours = frame[frame["kind"] == OURS].rename(columns={"method": "selector"})
    style = Style(list(ours["selector"]), reference)
    charts = [
        _ratios(ours, style, name, title)
        for name, title in zip(RATIOS, ("audit: right after each stage", "audit: at the end"), strict=True)
        if ours[name].notna().any()
    ]
    figures = []
    if charts:
        charts.append(_published(frame[frame["kind"] == PUBLISHED]))
        caption = (
            "Performance improvement ratio against the share of the examples selected; means over seeds with 95 % "
            f"intervals, 1 = training on all data. {SCALES}"
        )
        figures.append(Figure("efficiency", "Efficiency", caption, tuple(charts), style.keys))
    caption = (
        "Ranks of the survey's two penalties among these methods, 1 = least; methods at one place share a mark. "
        "A selector whose indicators are not known (a plug-in, a file of scores) is left out."
    )
    return [*figures, Figure("feasibility", "Feasibility", caption, (_places(frame),))]


def _ratios(ours: pd.DataFrame, style: Style, name: str, title: str) -> dict[str, Any]:
    columns = {name: "mean", f"{name}_low": "low", f"{name}_high": "high", "sdf_rows": "sdf"}
    rows = ours.rename(columns=columns)[["selector", *columns.values()]].dropna(subset=["mean", "sdf"])
    x = alt.X("sdf:Q", title="SDF, share of the examples", axis=alt.Axis(format=".2~f"), scale=alt.Scale(zero=False))
    y = alt.Y("mean:Q", title="PIR (ratio of scores)", scale=alt.Scale(zero=False, padding=8))
    base = alt.Chart(rows).encode(x)
    tooltip = ["selector:N", *(alt.Tooltip(f"{each}:Q", format=".3f") for each in ("sdf", "mean", "low", "high"))]
    line = alt.Chart(pd.DataFrame({"mean": [1.0]})).mark_rule(strokeDash=[4, 3], color=GREY).encode(y)
    layers = alt.layer(
        line,
        base.transform_filter("isValid(datum.low)")
        .mark_rule(strokeWidth=2)
        .encode(alt.Y("low:Q", title="PIR (ratio of scores)"), alt.Y2("high:Q"), color=style.colour()),
        base.mark_point(size=80, filled=True, opacity=1).encode(
            y, color=style.colour(), shape=style.shape(), tooltip=tooltip
        ),
    )
    return spec(layers.properties(title=title), f"PIR against SDF by selector, {title}", 240)


def _published(rows: pd.DataFrame) -> dict[str, Any]:
    rows = (
        rows.groupby(["sdf_rows", "pir_published"], sort=True)
        .agg(method=("method", ", ".join), source=("source", "first"))
        .reset_index()
    )
    base = alt.Chart(_labelled(rows, "sdf_rows", "pir_published", "method", 240)).encode(
        alt.X("sdf_rows:Q", title="SDF, share of the examples", axis=alt.Axis(format=".2~f")),
        alt.Y("pir_published:Q", title="PIR (win-rate scale)", scale=alt.Scale(zero=False, padding=8)),
    )
    marks = base.mark_point(size=50, filled=True, opacity=1, color=GREY).encode(
        tooltip=["method:N", "sdf_rows:Q", "pir_published:Q", "source:N"]
    )
    title = "published (survey 2406.14115)"
    return spec(
        alt.layer(marks, *_names(base, "method")).properties(title=title),
        "PIR against SDF of the survey's methods",
        240,
    )


def _places(frame: pd.DataFrame) -> dict[str, Any]:
    told = frame.dropna(subset=["feasibility"])
    whose = told["kind"].map({OURS: "this audit", PUBLISHED: "published"})
    rows = (
        told.assign(whose=whose)
        .groupby(["simplicity", "flexibility"], sort=True)
        .agg(methods=("method", ", ".join), whose=("whose", lambda kinds: " and ".join(sorted(set(kinds)))))
        .reset_index()
    )
    ends = [alt.Scale(domain=[0, int(rows[name].max()) + 1], nice=False) for name in ("simplicity", "flexibility")]
    base = alt.Chart(_labelled(rows, "simplicity", "flexibility", "methods", 480)).encode(
        alt.X("simplicity:Q", title="simplicity rank", axis=alt.Axis(tickMinStep=1), scale=ends[0]),
        alt.Y("flexibility:Q", title="flexibility rank", axis=alt.Axis(tickMinStep=1), scale=ends[1]),
    )
    colour = alt.Color("whose:N", title=None, legend=alt.Legend(orient="bottom"), scale=alt.Scale(range=_WHOSE))
    marks = base.mark_point(size=70, filled=True, opacity=1).encode(
        color=colour, shape=alt.Shape("whose:N", title=None), tooltip=["methods:N", "simplicity:Q", "flexibility:Q"]
    )
    return spec(
        alt.layer(marks, *_names(base, "methods")), "Simplicity rank against flexibility rank of all methods", 280
    )


_SIDES: dict[str, tuple[float, float, dict[str, Any]]] = {
    "right": (0.0, 0.0, {"align": "left", "dx": 7}),
    "above": (-0.5, -11.0, {"align": "center", "dy": -11}),
    "below": (-0.5, 11.0, {"align": "center", "dy": 11}),
    "left": (-1.0, 0.0, {"align": "right", "dx": -7}),
    "far above": (-0.5, -22.0, {"align": "center", "dy": -22}),
    "far below": (-0.5, 22.0, {"align": "center", "dy": 22}),
}
"""Where a label may stand: its left end in widths of the text from the mark, its middle in pixels below the mark."""


def _labelled(rows: pd.DataFrame, x: str, y: str, text: str, width: float) -> pd.DataFrame:
    """The rows with ``side``: for each label in turn the first side on which it covers no mark and no label so far."""
    height, line, letter = 240.0, 11.0, 5.2  # pixels: of the plot, of a line, of a letter at 9 points
    across, down = rows[x] - rows[x].min(), rows[y].max() - rows[y]
    places = list(
        zip(width * across / max(across.max(), 1e-9), height * down / max(down.max(), 1e-9), rows[text], strict=True)
    )
    taken = [(left - 5, left + 5, top - 5, top + 5) for left, top, _ in places]
    sides = []
    for left, top, words in places:
        long = letter * len(words)
        boxes = {}
        for side, (shift, drop, style) in _SIDES.items():
            start = left + shift * long + style.get("dx", 0)
            boxes[side] = (start, start + long, top + drop - line / 2, top + drop + line / 2)

        def covered(box: tuple[float, float, float, float]) -> int:
            return sum(box[0] < b and a < box[1] and box[2] < d and c < box[3] for a, b, c, d in taken)

        side = min(boxes, key=lambda name: covered(boxes[name]))
        sides.append(side)
        taken.append(boxes[side])
    return rows.assign(side=sides)


def _names(base: alt.Chart, field: str) -> list[alt.Chart]:
    """A layer of labels for every side that one stands on."""
    return [
        base.transform_filter(f"datum.side == '{side}'")
        .mark_text(fontSize=9, color=GREY, **style)
        .encode(text=f"{field}:N")
        for side, (_, _, style) in _SIDES.items()
    ]


_WHOSE = [GREY, "#0072B2", "#D55E00"]


def comparison_page(frame: pd.DataFrame, title: str, notes: Sequence[str]) -> str:
    """One self-contained page without scripts: the tables, and the figures as SVG."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(files("longgame.report") / "templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = [
        (figure, vl_convert.vegalite_to_svg(static_spec(figure), vl_version=VERSION))
        for figure in efficiency_figures(frame)
    ]
    tables = [efficiency_table(frame), feasibility_table(frame)]
    sources = list(dict.fromkeys(frame.loc[frame["kind"] == PUBLISHED, "source"]))
    page = environment.get_template("compare.html.j2")
    return page.render(title=title, tables=tables, figures=drawn, notes=notes, sources=sources)
