"""Tables of a report as text cells, made once and shown alike by the terminal, Markdown and the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any, cast

import numpy as np
import pandas as pd

from longgame.metrics.catalog import METRICS, shown_in
from longgame.metrics.comparisons import intervention_table
from longgame.metrics.diagnostics import MIN_SEEDS, MOST_GROUPS
from longgame.metrics.scorecard import PRIMARY, SCORER_VIEWS, Scorecard
from longgame.metrics.stats import ALPHA, moments
from longgame.recipe import Recipe
from longgame.selection.families import FAMILIES, spec_family

NOT_MEASURED = "—"
NOT_REACHED = "not reached"

MAIN = shown_in("main")
"""Columns of the scorecard: the paper's Table 1, with both probes, the immediate gain and eq. 2."""
LEVEL_ONE = shown_in("level 1")
"""First level of the paper's scorecard (§5.1): current score, its stability, tokens, cost of choosing, update size."""
LEVEL_TWO = shown_in("level 2")
"""Second level of the paper's scorecard: what later stages get."""
MORE = shown_in("more")
DIAGNOSTICS = shown_in("diagnostics")
"""Columns of the diagnostics: the paper's Table 2, with eq. 4 over the picks, drift and noise."""
COSTS = shown_in("costs")

_PAPER_SELECTORS = ("random", "loss", "gradient", "diversity", "quality", "utility-diversity", "lhas")
PAPER_TABLES: Mapping[str, tuple[int, tuple[float, ...]]] = {
    "current": (1, (58.2, 61.9, 62.4, 59.5, 61.1, 62.0, 61.4)),
    "auc_common": (1, (0.61, 0.54, 0.52, 0.63, 0.57, 0.62, 0.67)),
    "forgetting": (1, (4.8, 8.6, 9.4, 4.3, 7.5, 5.5, 3.9)),
    "ood": (1, (54.0, 48.1, 46.5, 55.7, 50.2, 55.0, 58.2)),
    "worst_task": (1, (49.8, 43.2, 41.7, 50.6, 44.9, 49.4, 53.1)),
    "myopia_gap": (1, (0.12, 0.42, 0.47, 0.16, 0.36, 0.28, 0.10)),
    "capability_entropy_run": (2, (1.92, 1.28, 1.22, 2.05, 1.45, 1.81, 2.02)),
    "difficulty": (2, (0.42, 0.74, 0.76, 0.45, 0.35, 0.58, 0.56)),
    "quality": (2, (0.65, 0.51, 0.53, 0.64, 0.83, 0.68, 0.70)),
    "update_concentration": (2, (0.31, 0.58, 0.63, 0.27, 0.49, 0.39, 0.25)),
}
"""Metric → (table of the paper, values of its seven selectors in the paper's order) at a budget of 25 %."""
PAPER_LONG_HORIZON: Mapping[float, tuple[float, ...]] = {
    0.10: (0.54, 0.47, 0.45, 0.57, 0.49, 0.58, 0.62),
    0.25: (0.59, 0.51, 0.50, 0.62, 0.54, 0.64, 0.69),
    0.50: (0.63, 0.56, 0.55, 0.65, 0.58, 0.67, 0.71),
}
"""The paper's Table 3: budget → long-horizon scores."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its label, a shorter one for the terminal, and what it means."""

    label: str
    short: str = ""
    meaning: str = ""
    numeric: bool = True
    aside: bool = False
    """Shown by the page on demand only (the paper's values)."""
    minor: bool = False
    """Left out by a terminal that is too narrow for the whole table."""
    metric: str = ""
    """Name in the catalog."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell. ``mark`` is "", "▲", "▼" or "*"; ``detail`` is the text of a tooltip."""

    text: str
    mark: str = ""
    detail: str = ""
    best: bool = False
    value: float = float("nan")
    """Sort key; NaN comes last."""
    short: str = ""
    """Text for narrow places; without it, ``text``."""

    def __str__(self) -> str:
        return f"{self.text} {self.mark}".rstrip()


@dataclass(frozen=True, slots=True)
class Table:
    """A titled table whose first column is the row's name. Without a second column it is empty, and not shown."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    closed: bool = False
    """The page shows it on demand."""
    of_selectors: bool = False
    """The rows are selectors, which the page can filter."""
    plain: bool = False
    """No cell has a mark or a detail; the page then writes many rows in fewer bytes."""

    def __bool__(self) -> bool:
        return len(self.columns) > 1

    @property
    def meanings(self) -> dict[str, str]:
        """Label → meaning of the columns that have one."""
        return {column.label: column.meaning for column in self.columns if column.meaning and not column.aside}

    def without_asides(self) -> Table:
        """The table without columns that are shown on demand only."""
        return self._only([not column.aside for column in self.columns])

    def without_minor(self) -> Table:
        """The table without columns that a narrow terminal leaves out."""
        return self._only([not column.minor for column in self.columns])

    def _only(self, shown: Sequence[bool]) -> Table:
        rows = tuple(tuple(compress(row, shown)) for row in self.rows)
        return replace(self, columns=tuple(compress(self.columns, shown)), rows=rows)


MANY = 12
"""With more selectors than this, tables and figures group them by family."""


def selectors_in_order(card: Scorecard, recipe: Recipe) -> list[str]:
    """Selectors that have trials: those of the recipe in its order, then any others; family by family where many."""
    families = selector_families(card, recipe)
    places = {family: place for place, family in enumerate(FAMILIES)}
    return sorted(_listed(card, recipe), key=lambda name: places.get(families.get(name, ""), 0))


def _listed(card: Scorecard, recipe: Recipe) -> list[str]:
    listed = [spec.key for spec in recipe.selectors]
    measured = card.trials.selectors
    return [name for name in listed if name in measured] + [name for name in measured if name not in listed]


def selector_families(card: Scorecard, recipe: Recipe) -> dict[str, str]:
    """Selector → family, family by family, where there are more than `MANY`; else empty: nothing is grouped."""
    names = _listed(card, recipe)
    if len(names) <= MANY:
        return {}
    specs = {spec.key: spec for spec in recipe.selectors}
    families = {name: spec_family(specs[name]) if name in specs else "own" for name in names}
    places = {family: place for place, family in enumerate(FAMILIES)}
    return dict(sorted(families.items(), key=lambda pair: places[pair[1]]))


def shown_views(card: Scorecard) -> list[tuple[str, str]]:
    """(view, title) of the views to show, the primary one first; ``primary`` only where it differs from the others."""
    views = []
    for view in SCORER_VIEWS:
        if view in card.views:
            primary = np.array_equal(card.views[view].R, card.views[PRIMARY].R, equal_nan=True)
            views.append((view, view.replace("_", " ") + (" (primary)" if primary else "")))
    if any(title.endswith("(primary)") for _, title in views):
        return sorted(views, key=lambda view: not view[1].endswith("(primary)"))
    return [(PRIMARY, "each task's own scorer (primary)"), *views]


_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")
_DIGITS = {"ratio": 2, "nats": 2, "weight": 2, "s": 2}


def format_number(value: float, unit: str, compact: bool = False) -> str:
    """A value with the digits of its unit; "—" for NaN, "not reached" for an infinite count.

    Args:
        compact: for narrow places: two digits of a fraction, without its leading zero.
    """
    if np.isnan(value):
        return NOT_MEASURED
    if np.isinf(value):
        return NOT_REACHED
    if unit == "FLOP":
        return _with_prefix(value)
    if unit in ("tokens", "count"):
        return f"{value:z,.0f}"
    if unit == "points" or (unit == "s" and abs(value) >= 10):
        return f"{value:z.1f}"
    digits = _DIGITS.get(unit, 2 if compact else 3)
    text = f"{value:z.{digits}f}"
    return text.replace("0.", ".", 1) if compact and unit != "s" and text.lstrip("-").startswith("0.") else text


def _with_prefix(value: float) -> str:
    """Three digits and an SI prefix: 1.23 G."""
    rounded = float(f"{value:.2e}")
    power = 0 if rounded < 1 else min(int(np.log10(rounded) // 3), len(_PREFIXES) - 1)
    return f"{rounded / 1000**power:.3g} {_PREFIXES[power]}".rstrip()


def format_signed(value: float, unit: str) -> str:
    """A difference with its sign; without one where its digits are all 0."""
    text = format_number(abs(value), unit)
    return text if np.isnan(value) or not float(text.replace(",", "")) else f"{'−' if value < 0 else '+'}{text}"


def mean_sd(mean: float, sd: float, unit: str, compact: bool = False) -> str:
    """``mean ± sd``; only the mean where there is no sd (one seed)."""
    text = format_number(mean, unit, compact)
    if not np.isfinite(mean) or not np.isfinite(sd):
        return text
    if unit == "s":  # the sd with the digits of the mean
        return f"{text}{'±' if compact else ' ± '}{sd:.{1 if abs(mean) >= 10 else 2}f}"
    return text + ("±" if compact else " ± ") + format_number(sd, unit, compact)


_OTHER_SCALES = {"0–1": " (0–1)", "0–2": " (0–2)", "−1–1": " (−1…1)"}


def metric_column(name: str) -> Column:
    """The column of a metric: label, unit and direction from the catalog.

    A label names a scale that could be taken for that of the scores beside it.
    """
    metric = METRICS[name]
    scale = _OTHER_SCALES.get(metric.shown_unit, "")
    unit = f" [{metric.shown_unit}]" if metric.shown_unit and not scale else ""
    direction = f", {metric.better} is better" if metric.better else ""
    return Column(metric.label + scale, metric.short, f"{metric.meaning}{unit}{direction}", metric=name)


def metric_table(card: Scorecard, recipe: Recipe, metrics: Iterable[str], title: str, view: str = "") -> Table:
    """Selectors × metrics: mean ± sd over seeds, with marks against the reference; a column's best mean is ``best``.

    Metrics that no trial measured are left out.

    Args:
        view: view of the score metrics; diagnostics and costs belong to every view.
    """
    measured = rows_by_metric(card.summary[card.summary["view"].isin([view, ""])])
    order = selectors_in_order(card, recipe)
    families = selector_families(card, recipe)
    columns = [Column("selector", numeric=False), *([Column("family", numeric=False)] if families else [])]
    rows = [[Cell(name), *([Cell(families[name])] if families else [])] for name in order]
    for name in metrics:
        if cells := metric_cells(measured, name, order, card.reference):
            columns.append(metric_column(name))
            for row, selector in zip(rows, order, strict=True):
                row.append(cells[selector])
    if len(columns) == 1 + bool(families):
        columns = columns[:1]  # nothing was measured
    return Table(title, tuple(columns), tuple(map(tuple, rows)), of_selectors=True)


def rows_by_metric(summary: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """Metric → its rows of `Scorecard.summary`."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in _records(summary):
        rows.setdefault(str(row["metric"]), []).append(row)
    return rows


def metric_cells(
    measured: Mapping[str, list[dict[str, Any]]], name: str, order: Sequence[str], reference: str
) -> dict[str, Cell]:
    """Selector → mean ± sd of one metric, marked against the reference; empty where nothing was measured.

    Args:
        measured: `rows_by_metric` of one view, with the rows of view "" for diagnostics and costs.
    """
    rows = {str(row["selector"]): shown_row(row, name) for row in measured.get(name, ())}
    if all(np.isnan(row["mean"]) for row in rows.values()):
        return {}
    better, unit = METRICS[name].better, METRICS[name].shown_unit
    best = _best({selector: rows[selector]["mean"] for selector in order}, better, unit)
    return {
        selector: Cell(
            mean_sd(row["mean"], row["sd"], unit),
            difference_mark(row["p_holm"], row["diff_vs_reference"], better),
            _detail(row, unit, reference),
            selector in best,
            row["mean"],
            mean_sd(row["mean"], row["sd"], unit, compact=True),
        )
        for selector, row in ((selector, rows[selector]) for selector in order)
    }


_SIZES = frozenset({"mean", "sd", "diff_vs_reference", "ci_low", "ci_high", "mde", "mde_low", "mde_high"})
"""Columns of a summary that are in the unit of the metric."""


def shown_row(row: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """A row of `Scorecard.summary` with its sizes in the unit in which reports show the metric."""
    scale = METRICS[metric].scale
    return {name: scale * value if name in _SIZES else value for name, value in row.items()}


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return cast("list[dict[str, Any]]", frame.to_dict("records"))


def _best(means: Mapping[str, float], better: str, unit: str) -> set[str]:
    """Selectors whose mean is best in the digits shown; none where all look alike."""
    finite = {name: mean for name, mean in means.items() if np.isfinite(mean)}
    if better == "" or not finite or any(np.isinf(mean) for mean in means.values()):
        return set()
    top = format_number(max(finite.values()) if better == "higher" else min(finite.values()), unit)
    leaders = {name for name, mean in finite.items() if format_number(mean, unit) == top}
    return leaders if len(leaders) < len(means) else set()


def difference_mark(p: float, difference: float, better: str) -> str:
    """Mark of a difference: ``▲`` better, ``▼`` worse, ``*`` neither, "" where p is not below `ALPHA`."""
    if not p < ALPHA or difference == 0:
        return ""
    if better == "":
        return "*"
    return "▲" if (difference > 0) == (better == "higher") else "▼"


def _detail(row: Mapping[str, Any], unit: str, reference: str) -> str:
    parts = [f"n = {int(row['n'])} seeds"]
    if np.isfinite(row["diff_vs_reference"]):
        parts.append(f"difference from {reference} {format_number(row['diff_vs_reference'], unit)}")
    if np.isfinite(row["ci_low"]):
        parts.append(f"95 % interval {format_number(row['ci_low'], unit)} to {format_number(row['ci_high'], unit)}")
    if np.isfinite(row["p_holm"]):
        parts.append(f"p = {row['p_holm']:.2g} after Holm")
    return "; ".join(parts)


def with_paper(table: Table, recipe: Recipe) -> Table:
    """The table of `metric_table` with the paper's values beside each column that the paper reports.

    The values are shown on demand only, because they come from other models and data. They are left out where the
    run has none of the paper's selectors.
    """
    names = {spec.key: spec.name for spec in recipe.selectors}
    selectors = [names.get(row[0].text, "") for row in table.rows]
    if not set(selectors) & set(_PAPER_SELECTORS):
        return table
    columns: list[Column] = []
    cells: list[list[Cell]] = []
    for place, column in enumerate(table.columns):
        columns.append(column)
        cells.append([row[place] for row in table.rows])
        number, values = PAPER_TABLES.get(column.metric, (0, ()))
        if column.metric == "long_horizon":
            number, values = 3, PAPER_LONG_HORIZON.get(recipe.budget, ())
        if values:
            shown = [METRICS[column.metric].scale * value for value in values]
            by_name = dict(zip(_PAPER_SELECTORS, shown, strict=True))
            meaning = f"{column.label} in the paper's Table {number}; other models and data"
            if column.metric == "myopia_gap":
                meaning += "; the paper prints it without a sign"
            if column.metric == "long_horizon":
                meaning += ", and another scale: compare orders, not sizes"
            columns.append(Column(f"paper: {column.short}", "", meaning, aside=True))
            cells.append([_paper_cell(by_name.get(name)) for name in selectors])
    return replace(table, columns=tuple(columns), rows=tuple(zip(*cells, strict=True)))


def _paper_cell(value: float | None) -> Cell:
    return Cell("") if value is None else Cell(f"{value:g}" if abs(value) >= 10 else f"{value:.2f}", value=value)


def stage_table(card: Scorecard, recipe: Recipe, view: str, title: str) -> Table:
    """Selectors × stages: score right after the stage → score at the end (points, mean over seeds)."""
    summary = card.stage_summary[card.stage_summary["view"] == view]
    means = {(row["metric"], row["stage"], row["selector"]): row["mean"] for row in _records(summary)}
    columns = [Column("selector", numeric=False)]
    columns += [Column(task, meaning="after its stage → at the end") for task in card.tasks]
    rows = []
    for selector in selectors_in_order(card, recipe):
        cells = [Cell(selector)]
        for stage in range(1, len(card.tasks) + 1):
            end = means["final", stage, selector]
            cells.append(Cell(_from_to(means["current", stage, selector], end), value=end))
        rows.append(tuple(cells))
    return Table(title, tuple(columns), tuple(rows), of_selectors=True)


def _from_to(now: float, end: float) -> str:
    return f"{format_number(now, 'points')} → {format_number(end, 'points')}"


def sub_skill_table(card: Scorecard, recipe: Recipe, view: str, title: str) -> Table:
    """Task and sub-skill × selectors: after its stage → at the end; OOD sets at the end (points, mean over seeds)."""
    cube, tasks = card.views[view].cube, (*card.tasks, *card.ood)
    last = len(card.tasks)
    order = selectors_in_order(card, recipe)
    trials_of = [card.trials.selector_of == card.trials.selectors.index(name) for name in order]
    means_of = [moments(np.moveaxis(cube.values[trials], 0, -1))[1] for trials in trials_of]
    columns = [Column("task / sub-skill", numeric=False), *(Column(name) for name in order)]
    rows = []
    for item in np.lexsort((np.arange(len(cube.column)), cube.column)):
        column = int(cube.column[item])
        cells = [Cell(" / ".join(filter(None, (tasks[column], cube.sub_skill[item]))))]
        for mean in (means[:, item] for means in means_of):
            end = float(mean[last])
            text = _from_to(float(mean[column + 1]), end) if column < last else format_number(end, "points")
            cells.append(Cell(text, value=end))
        rows.append(tuple(cells))
    return Table(title, tuple(columns), tuple(rows))


_INTERVENTIONS_NOTE = (
    "Differences paired by seed, with their 95 % intervals; p after Holm over the interventions of a score. "
    f"▲ better, ▼ worse than the same selector without (p < {ALPHA:g})."
)


def interventions_table(card: Scorecard, recipe: Recipe, title: str, view: str = PRIMARY) -> Table:
    """Each selector with interventions minus the same selector without; empty where there is none."""
    differences = intervention_table(card, recipe)
    part = differences[differences["view"] == view]
    measured = [name for name in shown_in("interventions") if (part["metric"] == name).any()]
    columns = [Column("with − without", numeric=False)]
    for name in measured:
        meaning = f"difference of the {METRICS[name].label}, {METRICS[name].better} is better"
        columns.append(Column(METRICS[name].label, meaning=meaning))
    rows = []
    for (selector, bare), group in part.groupby(["selector", "bare"], sort=False):
        by_metric = {str(row["metric"]): row for row in _records(group)}
        rows.append((Cell(f"{selector} − {bare}"), *(_bought(by_metric[name], name) for name in measured)))
    return Table(title, tuple(columns), tuple(rows), _INTERVENTIONS_NOTE)


def _bought(row: Mapping[str, Any], metric: str) -> Cell:
    unit, p, sizes = METRICS[metric].shown_unit, float(row["p_holm"]), shown_row(row, metric)
    mean, low, high = (float(sizes[name]) for name in ("mean", "ci_low", "ci_high"))
    if np.isnan(mean):
        return Cell(NOT_MEASURED)
    text = format_signed(mean, unit)
    if np.isfinite(low):
        text += f" ({format_signed(low, unit)} to {format_signed(high, unit)})"
    if np.isfinite(p):
        text += f", p = {p:.2g}"
    detail = f"n = {int(row['n'])} seeds"
    return Cell(text, difference_mark(p, mean, METRICS[metric].better), detail, value=mean)


_CORRELATION_COLUMNS = (
    Column("pair", numeric=False),
    Column("trials", meaning="a trial is a point: one selector, one seed"),
    Column("seeds", meaning="trials of one seed are not independent; intervals count seeds"),
    Column("r within seeds", "r within", "Pearson's r after the mean of each seed and condition is taken off both"),
    Column("rank r within seeds", "rank r", "the same of the ranks within each seed and condition"),
    Column("one selector left out", "one left out", "range of r when any one selector is left out"),
)
_CORRELATION_NOTE = (
    "Correlations are within seeds and conditions, because these move a diagnostic and forgetting together. "
    f"Intervals leave out one seed at a time (jackknife, Student's t; at most {MOST_GROUPS} groups of seeds); fewer "
    f"than {MIN_SEEDS} seeds give none. They cover other seeds of these selectors, not other selectors, and a "
    "correlation over selectors does not say what causes what."
)


def correlation_table(association: pd.DataFrame, title: str, view: str = PRIMARY) -> Table:
    """Diagnostics against forgetting and against each other.

    Args:
        association: `Scorecard.association` or `Across.association`.
        view: view of the scores; pairs of diagnostics belong to every view.
    """
    rows = []
    for row in _records(association[association["view"].isin([view, ""])]):
        span = f"{_r(row['least'])} to {_r(row['greatest'])}" if np.isfinite(row["least"]) else NOT_MEASURED
        rows.append(
            (
                Cell(f"{METRICS[row['x']].label} – {METRICS[row['y']].label}"),
                Cell(str(row["trials"]), value=row["trials"]),
                Cell(str(row["seeds"]), value=row["seeds"]),
                *(Cell(_with_interval(row, name), value=row[name]) for name in ("pearson", "spearman")),
                Cell(span, value=row["least"]),
            )
        )
    return Table(title, _CORRELATION_COLUMNS if rows else (), tuple(rows), _CORRELATION_NOTE)


def correlation_line(association: pd.DataFrame, x: str, y: str) -> str:
    """One sentence on a pair of metrics, for the caption of its figure; "" where the pair was not measured."""
    rows = association[association["view"].isin([PRIMARY, ""]) & (association["x"] == x) & (association["y"] == y)]
    if rows.empty:
        return ""
    row = _records(rows)[0]
    seeds = int(row["seeds"])
    text = f"Within seeds, over {row['trials']} trials of {seeds} seed{'s' if seeds != 1 else ''}"
    if not np.isfinite(row["pearson"]):
        return f"{text} there is no spread to correlate."
    text += f", r = {_with_interval(row, 'pearson', '95 % interval ')}"
    if seeds < MIN_SEEDS:
        text += f" (too few seeds for an interval: {MIN_SEEDS} are needed)"
    return f"{text}; rank correlation {_r(row['spearman'])}."


def _with_interval(row: Mapping[str, Any], name: str, label: str = "") -> str:
    text = _r(row[name])
    if np.isfinite(row[f"{name}_low"]):
        text += f" ({label}{_r(row[f'{name}_low'])} to {_r(row[f'{name}_high'])})"
    return text


def _r(value: float) -> str:
    return NOT_MEASURED if np.isnan(value) else f"{value:+.2f}".replace("-", "−")
