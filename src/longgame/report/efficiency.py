"""Efficiency and feasibility of audited selectors beside the methods of survey arXiv 2406.14115."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from longgame.audit.plan import ALL_DATA, REFERENCES, shares_full_data
from longgame.audit.run import Run
from longgame.errors import RecipeError, ResumeError, unknown
from longgame.metrics.efficiency import (
    FRACTIONS,
    RATIOS,
    Feasibility,
    efficiency,
    feasibility_of,
    feasibility_ranks,
    published,
    published_feasibility,
    undefined_ratios,
)
from longgame.metrics.scorecard import PRIMARY
from longgame.report.charts import GREY, PALETTE, Figure, Style, dashed_line, intervals, spec, strip
from longgame.report.figures import style_of
from longgame.report.tables import NOT_MEASURED, Cell, Column, Table

OURS, REFERENCE, PUBLISHED = "audit", "reference", "published"
INDICATORS = {
    "trained_llms": "trained LLMs",
    "steps": "steps",
    "reproducible": "open code",
    "model_free": "model-free",
    "dataset_free": "dataset-free",
    "gpt_free": "GPT-free",
}
"""Indicators of the survey and their labels; the last four are yes or no."""
RANKS = ("simplicity", "flexibility", "feasibility")
SCALES = (
    "PIR of an audit is a ratio of scores to those of the full-data trial of the same seed. Published PIRs are on the "
    "survey's scale of win-rate ratios. Compare the order of methods, not the numbers of the two scales."
)


@dataclass(frozen=True)
class Compared:
    """The selectors of one condition of one run."""

    label: str
    """Identifies it among the others, e.g. ``quickstart, budget 0.1``; "" where it is the only one."""
    efficiency: pd.DataFrame
    """See `longgame.metrics.efficiency.efficiency`."""
    feasibility: Mapping[str, Feasibility | None]
    """Selector → its indicators; None where they are unknown."""


def compared_conditions(run: Run, title: str = "", view: str = PRIMARY) -> list[Compared]:
    """The conditions of a run that its full-data trials are a reference for.

    Args:
        title: what the run is called, where there are several.

    Raises:
        ResumeError: the run has no full-data trial, or none has a finished stage. RecipeError: no such view.
    """
    full, folder = run.full_data, run.folder
    if full is None and run.recipe.full_data:
        raise ResumeError(f"{folder}: no full-data trial has a finished stage yet. Resume it: longgame audit {folder}")
    if full is None:
        raise ResumeError(
            f"{folder}: this run holds no full-data trial; add full_data: true and run again: finished trials are kept."
        )
    feasibility = {spec.key: feasibility_of(spec) for spec in run.recipe.selectors}
    compared = []
    for name, card in run.scorecards.items():
        if not shares_full_data(name):
            continue
        if view not in card.views:
            raise RecipeError(f"--view: {unknown('view', view, card.views)}")
        label = ", ".join(part for part in (title, name.replace("=", " ")) if part)
        compared.append(Compared(label, efficiency(card, full, view), feasibility))
    return compared


def efficiency_notes(run: Run, view: str = PRIMARY) -> list[str]:
    """What the efficiency numbers of a run leave out."""
    name, notes = run.recipe.name, [f"{run.recipe.name}: {run.progress}"] if run.progress else []
    if run.full_data is not None and (zero := undefined_ratios(run.full_data, view)):
        notes.append(f"{name}: a full-data trial scored 0 on {', '.join(zero)}; its seed has no PIR there.")
    others = [label for label in run.plan.conditions if label not in REFERENCES and not shares_full_data(label)]
    if others:
        notes.append(
            f"{name}: {len(others)} condition(s) differ from the full-data trials in more than budget and rounds and "
            f"are left out: {', '.join(others[:5])}{' …' if others[5:] else ''}."
        )
    return notes


def efficiency_frame(parts: Sequence[Compared]) -> pd.DataFrame:
    """All methods in one frame: those of the audits, all data as the reference, then the published ones.

    Returns:
        method, kind (``audit``, ``reference``, ``published``), selector and condition (of an audit's method, which
        combines them), pir_now and pir_later with ``_low``, ``_high``, ``_n``, pir_published, sdf_rows, sdf_tokens, the
        indicators, simplicity, flexibility and feasibility (ranks among all methods of the frame whose indicators are
        known), source. NaN = not measured or not published.
    """
    rows: list[dict[str, Any]] = []
    indicators: list[Feasibility | None] = []
    for part in parts:
        for record in part.efficiency.to_dict("records"):
            row = {str(name): value for name, value in record.items()}
            selector = str(row["selector"])
            method = f"{selector} ({part.label})" if part.label else selector
            rows.append({**row, "method": method, "kind": OURS, "condition": part.label, "source": "this audit"})
            indicators.append(part.feasibility.get(selector))
    ones = dict.fromkeys((*RATIOS, *FRACTIONS), 1.0)
    rows.append({"method": ALL_DATA.key, "kind": REFERENCE, **ones, "source": "by definition"})
    indicators.append(None)
    columns = {"sdf": "sdf_rows", "pir": "pir_published"}
    points = published().rename(columns=columns)[["method", "source", *columns.values()]]
    rows += points.assign(kind=PUBLISHED).to_dict("records")  # type: ignore[arg-type]
    indicators += published_feasibility()
    frame = pd.DataFrame(rows)
    ranked = [place for place, entry in enumerate(indicators) if entry is not None]
    for name in INDICATORS:
        frame[name] = [np.nan if entry is None else float(getattr(entry, name)) for entry in indicators]
    ranks = feasibility_ranks([entry for entry in indicators if entry is not None])
    for name in RANKS:
        frame[name] = pd.Series(ranks[name].to_numpy(float), index=ranked).reindex(frame.index)
    ratios = [f"{name}{end}" for name in RATIOS for end in ("", "_low", "_high", "_n")]
    first = ["method", "kind", "selector", "condition", *ratios, "pir_published", *FRACTIONS]
    return frame.reindex(columns=[*first, *INDICATORS, *RANKS, "source"])


def _in_order(frame: pd.DataFrame, style: Style | None) -> pd.DataFrame:
    """The frame with its audited selectors family by family, where they are many; published methods stay behind."""
    if style is None or not style.families:
        return frame
    places = {name: place for place, name in enumerate(style.selectors)}
    keys = [places.get(str(name), len(places)) for name in frame["selector"]]
    return frame.iloc[np.argsort(keys, kind="stable")]


def _family_cells(row: Mapping[Any, Any], style: Style | None) -> list[Cell]:
    """The family of a row's method, where families have a column."""
    if style is None or not style.families:
        return []
    names = {PUBLISHED: "published", REFERENCE: "reference"}
    return [Cell(names.get(row["kind"]) or style.families.get(str(row["selector"]), ""))]


def efficiency_lines(frame: pd.DataFrame, style: Style) -> dict[str, str]:
    """Family → its selectors by falling PIR at the end, each with its share of the examples; then the published."""
    lines: dict[str, str] = {}
    ours = frame[frame["kind"] == OURS].sort_values("pir_later", ascending=False, kind="stable")
    for family in dict.fromkeys(style.families[name] for name in style.selectors):
        rows = [row for row in ours.to_dict("records") if style.families[str(row["selector"])] == family]
        lines[family] = ", ".join(f"{row['method']} {_at(row['pir_later'], row['sdf_rows'])}" for row in rows)
    rows = frame[frame["kind"] == PUBLISHED].sort_values("pir_published", ascending=False).to_dict("records")
    lines["published"] = ", ".join(f"{row['method']} {_at(row['pir_published'], row['sdf_rows'])}" for row in rows)
    return {family: text for family, text in lines.items() if text}


def _at(ratio: float, share: float) -> str:
    parts = (NOT_MEASURED if np.isnan(ratio) else f"{ratio:.2f}", "" if np.isnan(share) else f"@{100 * share:.3g}%")
    return "".join(parts)


def efficiency_table(frame: pd.DataFrame, style: Style | None = None) -> Table:
    """PIR with 95 % intervals, SDF and the feasibility rank of every method."""
    family = [Column("family", numeric=False)] if style is not None and style.families else []
    columns = (
        Column("method", numeric=False),
        *family,
        Column("PIR now", meaning="scores right after each stage over those of the full-data trial"),
        Column("PIR later", meaning="scores at the end over those of the full-data trial"),
        Column("PIR published", "PIR publ.", "on the survey's scale of win-rate ratios"),
        Column("SDF rows", meaning="share of the examples that were selected"),
        Column("SDF tokens", "SDF tok.", "share of the tokens that were selected"),
        Column("feasibility rank", "feas. rank", "1 is the most feasible of these methods; equal sums share a rank"),
    )
    rows = []
    for row in _in_order(frame, style).to_dict("records"):
        numbers = [_plain(row[name], ".3f") for name in ("pir_published", *FRACTIONS)]
        cells = [*(_ratio(row, name) for name in RATIOS), *numbers, _plain(row["feasibility"], ".0f")]
        rows.append((Cell(str(row["method"])), *_family_cells(row, style), *cells))
    note = f"{SCALES} Mean over seeds with the 95 % interval (Student's t), paired by seed."
    return Table("Efficiency beside the published methods", columns, tuple(rows), note, of_selectors=True)


def feasibility_table(frame: pd.DataFrame, style: Style | None = None) -> Table:
    """The survey's indicators and ranks of every method whose indicators are known."""
    family = [Column("family", numeric=False)] if style is not None and style.families else []
    columns = [Column("method", numeric=False), *family, *map(Column, INDICATORS.values())]
    columns += [Column(f"{name} rank", name) for name in RANKS]
    rows = []
    for row in frame.dropna(subset=["feasibility"]).sort_values("feasibility", kind="stable").to_dict("records"):
        names = list(INDICATORS)
        cells = [_plain(row[name], ".0f") for name in (*names[:2], *RANKS)]
        cells[2:2] = [Cell(("no", "yes")[int(row[name])]) for name in names[2:]]
        rows.append((Cell(str(row["method"])), *_family_cells(row, style), *cells))
    note = "Simplicity: 2 · trained LLMs + steps + closed code; flexibility: 3 · model + 2 · data set + 1 · GPT needed."
    return Table("Feasibility beside the published methods", tuple(columns), tuple(rows), note, of_selectors=True)


def _plain(value: float, form: str) -> Cell:
    return Cell(NOT_MEASURED) if np.isnan(value) else Cell(format(value, form), value=value)


def _ratio(row: Mapping[Any, Any], name: str) -> Cell:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    cell = _plain(row[name], ".3f")
    if np.isnan(row[name]) or np.isnan(low):
        return cell
    mark = "▲" if low > 1 else "▼" if high < 1 else ""
    return Cell(f"{cell.text} [{low:.3f}, {high:.3f}]", mark, f"{row[f'{name}_n']:.0f} seeds", value=row[name])


def run_efficiency_figures(run: Run) -> list[Figure]:
    """`efficiency_figures` of one run; none where it has no full-data trial."""
    if run.full_data is None:
        return []
    return efficiency_figures(efficiency_frame(compared_conditions(run)), style_of(run))


def efficiency_figures(frame: pd.DataFrame, style: Style) -> list[Figure]:
    """PIR against SDF (now, later, and as published), and the feasibility ranks of all methods.

    Args:
        frame: see `efficiency_frame`.
        style: the looks of the audited selectors, the same as in their run's other figures.
    """
    ours = frame[frame["kind"] == OURS]
    measured = {name: ours.dropna(subset=[name, "sdf_rows"]) for name in RATIOS}
    chart_of = _ratio_rows if style.families else _ratios
    charts = [
        chart_of(measured[name], style, name, time, condition)
        for condition in ours["condition"].unique()
        for name, time in zip(RATIOS, ("right after each stage", "at the end"), strict=True)
        if condition in set(measured[name]["condition"])
    ]
    figures = []
    if charts:
        caption = (
            "Performance improvement ratio against the share of the examples selected; means over seeds with 95 % "
            f"intervals, 1 = training on all data. {SCALES} Beside each published method: its share of the examples."
        )
        charts.append(_published(frame[frame["kind"] == PUBLISHED]))
        figures.append(Figure("efficiency", "Efficiency", caption, tuple(charts), style.legend))
    caption = (
        "Ranks of the survey's two penalties among these methods, 1 = least. Bold: selectors of this audit. A selector "
        "whose indicators are unknown (a plug-in, a file of scores) is left out."
    )
    return [*figures, Figure("feasibility", "Feasibility", caption, (_ranks(frame),))]


def _ratios(ours: pd.DataFrame, style: Style, name: str, time: str, condition: str) -> dict[str, Any]:
    """One condition's selectors, on the axes of all conditions."""
    columns = {name: "mean", f"{name}_low": "low", f"{name}_high": "high", "sdf_rows": "sdf"}
    every = ours.rename(columns=columns)[["selector", "condition", *columns.values()]]
    rows = every[every["condition"] == condition].drop(columns="condition")
    wide = _span(every["sdf"].to_numpy(float))
    tall = _span(np.append(every[["mean", "low", "high"]].to_numpy(float), 1.0))  # with the line of all data
    x = alt.X("sdf:Q", title="SDF, share of the examples", axis=alt.Axis(format=".3~f", tickCount=5), scale=wide)
    y_title = "PIR (ratio of scores)"
    base = alt.Chart(rows).encode(x)
    rule = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2)
    tooltip = [
        alt.Tooltip("selector:N"),
        *(alt.Tooltip(f"{column}:Q", format=".3f") for column in ("sdf", "mean", "low", "high")),
    ]
    layers = alt.layer(
        dashed_line("y", 1.0, y_title),
        *intervals(rows, rule.encode(alt.Y("low:Q", title=y_title), alt.Y2("high:Q"), color=style.color())),
        base.mark_point(size=80, filled=True, opacity=1).encode(
            alt.Y("mean:Q", title=y_title, scale=tall), color=style.color(), shape=style.shape(), tooltip=tooltip
        ),
    )
    title = f"{condition or 'audit'}: {time}"
    return spec(layers.properties(title=title), f"PIR against SDF by selector, {title}", 240)


def _ratio_rows(ours: pd.DataFrame, style: Style, name: str, time: str, condition: str) -> dict[str, Any]:
    """A row per selector of one condition, family by family; the share of the examples is in the tooltip and tables."""
    columns = {name: "mean", f"{name}_low": "low", f"{name}_high": "high"}
    rows = ours[ours["condition"] == condition].rename(columns=columns)[["selector", *columns.values()]]
    values = np.append(ours[[name, f"{name}_low", f"{name}_high"]].to_numpy(float), 1.0)
    title = f"{condition or 'audit'}: {time}"
    ends = (float(np.nanmin(values)), float(np.nanmax(values)))
    return strip(rows, style, title, "PIR (ratio of scores)", f"PIR by selector, {title}", chance=1.0, extent=ends)


def _span(values: np.ndarray) -> alt.Scale:
    """A scale for these values and some room around them."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    room = 0.06 * (high - low) or 0.01
    return alt.Scale(domain=[low - room, high + room], nice=True, zero=False)


def _published(rows: pd.DataFrame) -> dict[str, Any]:
    """A row per published method, by falling PIR, with its SDF as text."""
    rows = rows[["method", "pir_published", "sdf_rows", "source"]].sort_values("pir_published", ascending=False)
    scale = alt.Scale(zero=False, padding=8)
    base = alt.Chart(rows).encode(
        alt.X("pir_published:Q", title="PIR (win-rate scale)", scale=scale, axis=alt.Axis(tickCount=5)),
        alt.Y("method:N", sort=list(rows["method"]), title=None),
    )
    tooltip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("sdf_rows:Q"),
        alt.Tooltip("pir_published:Q"),
        alt.Tooltip("source:N"),
    ]
    marks = base.mark_point(size=50, filled=True, opacity=1, color=GREY).encode(tooltip=tooltip)
    text = base.mark_text(align="left", dx=7, fontSize=9).encode(text=alt.Text("sdf_rows:Q", format=".1~%"))
    layers = alt.layer(marks, text).properties(title="published (survey 2406.14115)")
    return spec(layers, "PIR of the survey's methods, with their SDF", 20 * len(rows))


def _ranks(frame: pd.DataFrame) -> dict[str, Any]:
    """A row per method, the most feasible first: marks of both ranks, joined by a line."""
    rows = frame.dropna(subset=["feasibility"]).sort_values(["feasibility", "simplicity"], kind="stable")
    rows = rows.assign(method=rows["selector"].where(rows["kind"] == OURS, rows["method"]))  # alike in all conditions
    rows = rows.drop_duplicates("method")[["method", "kind", *RANKS]]
    ours = list(rows.loc[rows["kind"] == OURS, "method"])
    weight = {"condition": {"test": f"indexof({ours!r}, datum.value) >= 0", "value": "bold"}, "value": "normal"}
    y = alt.Y("method:N", sort=list(rows["method"]), title=None, axis=alt.Axis(labelFontWeight=weight, labelLimit=220))
    title = "rank (1 = least penalty)"
    domain, legend = list(RANKS[:2]), alt.Legend(orient="bottom", title=None)
    base = alt.Chart(rows.melt(["method"], domain, "penalty", "rank")).encode(
        alt.X("rank:Q", title=title, axis=alt.Axis(tickMinStep=1)),
        y,
        alt.Color("penalty:N", scale=alt.Scale(domain=domain, range=list(PALETTE[:2])), legend=legend),
        alt.Shape("penalty:N", scale=alt.Scale(domain=domain, range=["square", "circle"]), legend=legend),
        tooltip=[alt.Tooltip("method:N"), alt.Tooltip("penalty:N"), alt.Tooltip("rank:Q")],
    )
    marks = [  # of two sizes, so that both marks of equal ranks are visible
        base.transform_filter(f"datum.penalty == '{name}'").mark_point(size=size, filled=True, opacity=1)
        for name, size in zip(domain, (110, 40), strict=True)
    ]
    line = alt.Chart(rows).mark_rule(color=GREY, strokeWidth=1.5)
    line = line.encode(alt.X("simplicity:Q", title=title), alt.X2("flexibility:Q"), y)
    return spec(alt.layer(line, *marks), "Simplicity and flexibility rank of every method", 18 * len(rows))
