"""The paper's Tables 1–3, to stand beside a run's numbers on demand. They come from other models and data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import jinja2
import numpy as np
import pandas as pd

from longgame.metrics.catalog import METRICS, shown_in
from longgame.metrics.scorecard import PRIMARY, SCORER_VIEWS, Scorecard
from longgame.metrics.stats import ALPHA, moments
from longgame.recipe import Recipe

_SELECTORS = ("random", "loss", "gradient", "diversity", "quality", "utility-diversity", "lhas")
TABLES: Mapping[str, tuple[int, tuple[float, ...]]] = {
    "current": (1, (58.2, 61.9, 62.4, 59.5, 61.1, 62.0, 61.4)),
    "auc_common": (1, (0.61, 0.54, 0.52, 0.63, 0.57, 0.62, 0.67)),
    "forgetting": (1, (4.8, 8.6, 9.4, 4.3, 7.5, 5.5, 3.9)),
    "ood": (1, (54.0, 48.1, 46.5, 55.7, 50.2, 55.0, 58.2)),
    "worst_task": (1, (49.8, 43.2, 41.7, 50.6, 44.9, 49.4, 53.1)),
    "myopia_gap": (1, (0.12, 0.42, 0.47, 0.16, 0.36, 0.28, 0.10)),
    "capability_entropy": (2, (1.92, 1.28, 1.22, 2.05, 1.45, 1.81, 2.02)),
    "difficulty": (2, (0.42, 0.74, 0.76, 0.45, 0.35, 0.58, 0.56)),
    "quality": (2, (0.65, 0.51, 0.53, 0.64, 0.83, 0.68, 0.70)),
    "update_concentration": (2, (0.31, 0.58, 0.63, 0.27, 0.49, 0.39, 0.25)),
}
"""Metric → (table of the paper, its values in the order of its seven selectors); the budget is 25 %."""
LONG_HORIZON: Mapping[float, tuple[float, ...]] = {
    0.10: (0.54, 0.47, 0.45, 0.57, 0.49, 0.58, 0.62),
    0.25: (0.59, 0.51, 0.50, 0.62, 0.54, 0.64, 0.69),
    0.50: (0.63, 0.56, 0.55, 0.65, 0.58, 0.67, 0.71),
}
"""Table 3: the long-horizon score by budget."""


def beside(table: Table, metrics: Mapping[str, str], recipe: Recipe) -> Table:
    """The table with the paper's column after each of those that it has; a selector that it does not have gets "".

    Args:
        table: as `longgame.report.tables.metric_table` makes it.
        metrics: a column's label → its metric.
    """
    known = {spec.key: spec.name for spec in recipe.selectors}
    columns, cells = [], []
    for place, column in enumerate(table.columns):
        columns.append(column)
        cells.append([row[place] for row in table.rows])
        held = _values(metrics.get(column.label, ""), recipe.budget)
        names = [known.get(row[0].text, "") for row in table.rows]
        if held is None or not set(names) & set(_SELECTORS):
            continue
        number, values = held
        by_name = dict(zip(_SELECTORS, values, strict=True))
        meaning = f"{column.label} in the paper's Table {number}; other models and data"
        columns.append(Column(f"paper: {column.short}", f"paper: {column.short}", meaning, aside=True))
        cells.append([_cell(by_name.get(name)) for name in names])
    return replace(table, columns=tuple(columns), rows=tuple(zip(*cells, strict=True)))


def _values(metric: str, budget: float) -> tuple[int, tuple[float, ...]] | None:
    if metric == "long_horizon":
        return (3, LONG_HORIZON[budget]) if budget in LONG_HORIZON else None
    return TABLES.get(metric)


def _cell(value: float | None) -> Cell:
    return Cell("") if value is None else Cell(f"{value:g}" if abs(value) >= 10 else f"{value:.2f}", value=value)


# What each intervention buys, as a table: with it minus without it.

NOTE = (
    "Differences paired by seed, with their 95 % intervals; p after Holm over the interventions of a score. "
    f"▲ better, ▼ worse than the same selector without (p < {ALPHA:g})."
)


def interventions_table(differences: pd.DataFrame, title: str, view: str = PRIMARY) -> Table:
    """One row for each selector with interventions; no columns but the first where there is none.

    Args:
        differences: as `longgame.metrics.comparisons.intervention_table` makes it.
    """
    part = differences[differences["view"] == view]
    measured = [name for name in shown_in("interventions") if (part["metric"] == name).any()]
    columns = [Column("with − without", "with − without", numeric=False)]
    for name in measured:
        better = f"{METRICS[name].better} is better"
        columns.append(
            Column(METRICS[name].label, METRICS[name].label, f"difference of the {METRICS[name].label}, {better}")
        )
    rows = []
    for (selector, bare), group in part.groupby(["selector", "bare"], sort=False):
        of_metric = {str(row["metric"]): row for row in group.to_dict("records")}
        rows.append((Cell(f"{selector} − {bare}"), *(_cell_interventions(of_metric[name], name) for name in measured)))
    return Table(title, tuple(columns), tuple(rows), NOTE)


def _cell_interventions(row: dict[Any, Any], metric: str) -> Cell:
    unit = METRICS[metric].precision
    mean, p = float(row["mean"]), float(row["p_holm"])
    if np.isnan(mean):
        return Cell(NOT_MEASURED)

    def signed(value: float) -> str:
        text = number(abs(value), unit)
        return text if not float(text) else f"{'+' if value > 0 else '−'}{text}"

    text = signed(mean)
    if np.isfinite(row["ci_low"]):
        text += f" ({signed(float(row['ci_low']))} to {signed(float(row['ci_high']))})"
    if np.isfinite(p):
        text += f", p = {p:.2g}"
    detail = f"n = {int(row['n'])} seeds"
    return Cell(text, difference_mark(p, mean, METRICS[metric].better), detail, value=mean)


# The tables of a scorecard as text cells, made once and shown by terminal, Markdown and HTML alike.

NOT_MEASURED = "—"
NOT_REACHED = "not reached"

MAIN = shown_in("main")
"""Columns of the scorecard (the paper's Table 1, with both probes, the immediate gain and eq. 2)."""
LEVEL_ONE = shown_in("level 1")
"""The first level of the paper's two-level scorecard (§5.1): score now and its stability, tokens, what scoring cost
beside training in FLOPs and in wall-clock, size of the updates."""
LEVEL_TWO = shown_in("level 2")
"""The second level: what is left for later."""
MORE = shown_in("more")
DIAGNOSTICS = shown_in("diagnostics")
"""Columns of the diagnostics (the paper's Table 2, with eq. 4 over the picks, drift and noise)."""
COSTS = shown_in("costs")


@dataclass(frozen=True, slots=True)
class Column:
    """One column: a name for narrow and for wide pages, and what it means."""

    label: str
    short: str
    meaning: str = ""
    numeric: bool = True
    aside: bool = False
    """Shown on demand only (the paper's values)."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell. ``mark`` is "", "▲", "▼" or "*"; ``detail`` is what a tooltip or footnote would add."""

    text: str
    mark: str = ""
    detail: str = ""
    best: bool = False
    value: float = float("nan")
    """What a column is sorted by; NaN comes last, or the text decides."""

    def __str__(self) -> str:
        return f"{self.text} {self.mark}".rstrip()


@dataclass(frozen=True, slots=True)
class Table:
    """A titled table; the first column is the row's name."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


def selectors_in_order(card: Scorecard, recipe: Recipe) -> list[str]:
    """Selectors that have trials: first as the recipe lists them, then any others."""
    wanted = [spec.key for spec in recipe.selectors]
    held = card.trials.selectors
    return [name for name in wanted if name in held] + [name for name in held if name not in wanted]


def shown_views(card: Scorecard) -> list[tuple[str, str]]:
    """(view, title) to show; ``primary`` stands alone only where it is not one of the two scorers everywhere."""
    views = []
    alone = True
    for view in SCORER_VIEWS:
        if view not in card.views:
            continue
        own = np.array_equal(card.views[view].R, card.views[PRIMARY].R, equal_nan=True)
        alone &= not own
        views.append((view, view.replace("_", " ") + (" (primary)" if own else "")))
    return [(PRIMARY, "each task's own scorer (primary)"), *views] if alone else views


_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")
_DIGITS = {"ratio": 2, "nats": 2, "weight": 2, "s": 2, "long horizon": 3}


def number(value: float, unit: str, compact: bool = False) -> str:
    """A value in the precision that its unit deserves; "—" for NaN, "not reached" for an infinite count."""
    if np.isnan(value):
        return NOT_MEASURED
    if np.isinf(value):
        return NOT_REACHED
    if unit == "FLOP":
        return _prefixed(value)
    if unit in ("tokens", "count"):
        return f"{value:,.0f}"
    if unit == "points" or (unit == "s" and abs(value) >= 10):
        return f"{value:.1f}"
    digits = _DIGITS.get(unit, 2 if compact else 3)
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if compact and unit != "s" and text.lstrip("-").startswith("0.") else text


def _prefixed(value: float) -> str:
    """Three digits and the prefix of a thousand's power: 1.23 G."""
    rounded = float(f"{value:.2e}")
    power = 0 if rounded < 1 else min(int(np.log10(rounded) // 3), len(_PREFIXES) - 1)
    return f"{rounded / 1000**power:.3g} {_PREFIXES[power]}".rstrip()


def mean_sd(mean: float, sd: float, unit: str, compact: bool = False) -> str:
    """``mean ± sd``; the mean alone where there is no sd (one seed)."""
    text = number(mean, unit, compact)
    if not np.isfinite(mean) or not np.isfinite(sd):
        return text
    if unit == "s":  # the sd in the mean's precision
        return f"{text}{'±' if compact else ' ± '}{sd:.{1 if abs(mean) >= 10 else 2}f}"
    return text + ("±" if compact else " ± ") + number(sd, unit, compact)


def metric_table(
    card: Scorecard, recipe: Recipe, metrics: Sequence[str], title: str, view: str = "", compact: bool = False
) -> Table:
    """Selectors × metrics: mean ± sd over seeds, marks against the reference; the best mean of a column is ``best``.

    Metrics that the run did not measure in any trial are left out.

    Args:
        view: view of the score metrics; diagnostics and costs are found under any.
        compact: for narrow places: no spaces around ±, no leading zero.
    """
    frame = card.summary[card.summary["view"].isin([view, ""])]
    order = selectors_in_order(card, recipe)
    columns = [Column("selector", "selector", numeric=False)]
    cells: dict[str, list[Cell]] = {name: [Cell(name)] for name in order}
    for name in metrics:
        found = metric_cells(frame, name, order, card.reference, compact)
        if not found:
            continue
        metric = METRICS[name]
        unit = f" [{metric.unit}]" if metric.unit not in ("", "0–1") else ""
        arrow = {"higher": ", higher is better", "lower": ", lower is better"}.get(metric.better, "")
        columns.append(Column(metric.label, metric.short, f"{metric.meaning}{unit}{arrow}"))
        for selector in order:
            cells[selector].append(found[selector])
    return Table(title, tuple(columns), tuple(tuple(cells[name]) for name in order))


def metric_cells(
    summary: pd.DataFrame, name: str, order: Sequence[str], reference: str, compact: bool = False
) -> dict[str, Cell]:
    """Selector → mean ± sd of one metric, marked against the reference; empty where nothing was measured.

    Args:
        summary: rows of `Scorecard.summary` of one view (and of "", where diagnostics and costs are asked for).
    """
    part = {str(row["selector"]): row for row in _rows(summary[summary["metric"] == name], "selector").values()}
    if not part or all(np.isnan(row["mean"]) for row in part.values()):
        return {}
    metric = METRICS[name]
    precision = metric.precision
    best = _best({selector: part[selector]["mean"] for selector in order}, metric.better, precision)
    return {
        selector: Cell(
            mean_sd(part[selector]["mean"], part[selector]["sd"], precision, compact),
            difference_mark(part[selector]["p_holm"], part[selector]["diff_vs_reference"], metric.better),
            _detail(part[selector], precision, reference),
            selector in best,
            part[selector]["mean"],
        )
        for selector in order
    }


def _rows(frame: pd.DataFrame, *keys: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The frame's rows by these columns."""
    return {tuple(row[key] for key in keys): row for row in cast("list[dict[str, Any]]", frame.to_dict("records"))}


def _best(means: Mapping[str, float], better: str, unit: str) -> set[str]:
    """Who has the best mean, as far as the digits shown tell; nobody where all are alike."""
    finite = {name: mean for name, mean in means.items() if np.isfinite(mean)}
    if better == "" or not finite or any(np.isinf(mean) for mean in means.values()):
        return set()
    top = number(max(finite.values()) if better == "higher" else min(finite.values()), unit)
    leaders = {name for name, mean in finite.items() if number(mean, unit) == top}
    return leaders if len(leaders) < len(means) else set()


def difference_mark(p: float, difference: float, better: str) -> str:
    """The mark of a difference with this p: ``▲`` better, ``▼`` worse, ``*`` neither, "" where none is shown."""
    if not p < ALPHA or difference == 0:
        return ""
    if better == "":
        return "*"
    return "▲" if (difference > 0) == (better == "higher") else "▼"


def _detail(row: Mapping[str, Any], unit: str, reference: str) -> str:
    parts = [f"n = {int(row['n'])} seeds"]
    if np.isfinite(row["diff_vs_reference"]):
        parts.append(f"difference from {reference} {number(row['diff_vs_reference'], unit)}")
    if np.isfinite(row["ci_low"]):
        parts.append(f"95 % interval {number(row['ci_low'], unit)} to {number(row['ci_high'], unit)}")
    if np.isfinite(row["p_holm"]):
        parts.append(f"p = {row['p_holm']:.2g} after Holm")
    return "; ".join(parts)


def stage_table(card: Scorecard, recipe: Recipe, view: str, title: str) -> Table:
    """Selectors × stages: score right after the stage → score at the end of the sequence (points, mean over seeds)."""
    held = _rows(card.stage_summary[card.stage_summary["view"] == view], "metric", "stage", "selector")
    columns = [Column("selector", "selector", numeric=False)]
    columns += [Column(task, task, "after its stage → at the end") for task in card.tasks]
    rows = []
    for selector in selectors_in_order(card, recipe):
        cells = [Cell(selector)]
        for stage in range(1, len(card.tasks) + 1):
            now, end = (held[metric, stage, selector]["mean"] for metric in ("current", "final"))
            cells.append(Cell(_from_to(now, end), value=end))
        rows.append(tuple(cells))
    return Table(title, tuple(columns), tuple(rows))


def _from_to(now: float, end: float) -> str:
    return f"{number(now, 'points')} → {number(end, 'points')}"


def sub_skill_table(card: Scorecard, recipe: Recipe, view: str, title: str) -> Table:
    """Task and sub-skill × selectors: after its stage → at the end; OOD sets at the end (points, mean over seeds)."""
    cube, tasks = card.views[view].cube, (*card.tasks, *card.ood)
    last = len(card.tasks)
    order = selectors_in_order(card, recipe)
    rows_of = {name: card.trials.selector_of == card.trials.selectors.index(name) for name in order}
    columns = [Column("task / sub-skill", "task / sub-skill", numeric=False)]
    columns += [Column(name, name) for name in order]
    rows = []
    for item in np.lexsort((np.arange(len(cube.column)), cube.column)):
        column = int(cube.column[item])
        cells = [Cell(" / ".join(filter(None, (tasks[column], cube.sub_skill[item]))))]
        for name in order:
            values = cube.values[rows_of[name]][:, :, item]
            end = float(moments(values[:, last])[1])
            if column < last:
                cells.append(Cell(_from_to(float(moments(values[:, column + 1])[1]), end), value=end))
            else:
                cells.append(Cell(number(end, "points"), value=end))
        rows.append(tuple(cells))
    return Table(title, tuple(columns), tuple(rows))


def template_environment() -> jinja2.Environment:
    """Templates of the package; what is put into one is text, and a name that nobody gave is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("longgame.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["with_meanings"] = _has_meanings
    environment.tests["with_aside"] = _has_aside
    return environment


def _has_meanings(table: Table) -> bool:
    return len({column.meaning for column in table.columns if column.meaning and not column.aside}) > 1


def _has_aside(table: Table) -> bool:
    return any(column.aside for column in table.columns)
