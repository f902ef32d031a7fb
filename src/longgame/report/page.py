"""The report as one self-contained page: it opens from disk, loads nothing, and shows dataset text as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from longgame.errors import StorageError
from longgame.metrics.catalog import METRICS
from longgame.metrics.comparisons import Across, intervention_table
from longgame.metrics.scorecard import Scorecard
from longgame.recipe import Recipe
from longgame.report import charts as bundle
from longgame.report.answer import answer
from longgame.report.charts import VERSION, Figure
from longgame.report.compare import Comparison
from longgame.report.conditions import across_tables, association_table
from longgame.report.figures import figures
from longgame.report.picks import Picks, TrialDetail, trials_table
from longgame.report.tables import (
    COSTS,
    DIAGNOSTICS,
    LEVEL_ONE,
    LEVEL_TWO,
    MAIN,
    MORE,
    Table,
    beside,
    interventions_table,
    metric_table,
    shown_views,
    stage_table,
    sub_skill_table,
    template_environment,
)
from longgame.report.words import headline, legend, run_facts, seeds_caveat, set_gap_line, verdict_lines

_TONES = {"myopic": "bad", "long-horizon worse": "bad", "long-horizon better": "good"}
_MOST_TRIALS = 10_000
"""Rows of the table of trials; a page with more is slow to open, and results.parquet holds them all."""


@dataclass(frozen=True)
class RunReport:
    """What a report shows of one run."""

    scorecard: Scorecard
    results: pd.DataFrame
    """The tidy records of the condition shown."""
    recipe: Recipe
    environment: Mapping[str, Any]
    title: str = ""
    """What the run is called on the page; without it, the recipe's name."""
    progress: str = ""
    """How much of the run is done, where it is not finished."""
    picks: Picks | None = None
    trials: Sequence[TrialDetail] = ()
    """Trials to show in full."""
    across: Across | None = None
    """All conditions of a run with axes, and what each is (see `longgame.report.conditions`)."""
    conditions: pd.DataFrame | None = None
    comparison: Comparison | None = None
    """What changed from a baseline."""
    more: Sequence[Figure] = ()
    """Figures beside those of the scorecard (see `longgame.report.compare`)."""
    notes: Sequence[str] = field(default=())


def write_html(
    path: Path, scorecard: Scorecard, results: pd.DataFrame, recipe: Recipe, environment: Mapping[str, Any]
) -> None:
    """Write the report page of one run.

    Args:
        path: the file to write.
        results: the run's tidy records.
        environment: versions and machine, as the run directory's environment.json holds them.

    Raises:
        StorageError: the file cannot be written.
    """
    write_page(path, render_html(scorecard, results, recipe, environment))


def write_page(path: Path, page: str) -> None:
    """Write a page or another text, and the folder it lies in where there is none.

    Raises:
        StorageError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}. Choose another path.") from error


def render_html(scorecard: Scorecard, results: pd.DataFrame, recipe: Recipe, environment: Mapping[str, Any]) -> str:
    """The report page of one run as a string (about 1 MB, most of it the Vega bundle)."""
    return render_reports([RunReport(scorecard, results, recipe, environment)])


def render_reports(runs: Sequence[RunReport]) -> str:
    """One page with a section per run, each with its answer, tables, figures and trials."""
    sections = [_section(run, f"run{place}-" if len(runs) > 1 else "") for place, run in enumerate(runs, 1)]
    page = template_environment().get_template("report.html.j2")
    return page.render(
        sections=sections,
        charts={
            f"{section['prefix']}{figure.name}-{place}": chart
            for section in sections
            for figure in section["figures"]
            for place, chart in enumerate(figure.charts, 1)
        },
        bundle=bundle.finish_bundle(VERSION),
        sortable=(files("longgame.report") / "static" / "sortable.min.js").read_text(encoding="utf-8"),
    )


def _section(run: RunReport, prefix: str) -> dict[str, Any]:
    card, recipe = run.scorecard, run.recipe
    views = shown_views(card)
    future = [metric_table(card, recipe, MORE, f"More of the future, {title}", view) for view, title in views]
    stages = [stage_table(card, recipe, view, f"By stage, {title}") for view, title in views]
    skills = [sub_skill_table(card, recipe, view, f"By sub-skill, {title}") for view, title in views]
    costs = metric_table(card, recipe, COSTS, "Cost per trial")
    shown = dict.fromkeys((*LEVEL_ONE, *LEVEL_TWO, *MAIN))
    every = metric_table(card, recipe, list(shown), "", views[0][0]) if views else None
    drawn: list[Figure] = [
        *figures(card, run.results, recipe, run.picks, run.across, run.conditions),
        *run.more,
    ]
    title, first = (views[0][1], views[0][0]) if views else ("", "")
    return {
        "prefix": prefix,
        "title": run.title or recipe.name,
        "progress": run.progress,
        "headline": headline(card, recipe),
        "answer": answer(card, recipe, run.across).lines,
        "verdicts": [(line, _TONES.get(line.word, "plain")) for line in verdict_lines(card, recipe)],
        "set_gap": set_gap_line(card),
        "levels": [
            _beside(metric_table(card, recipe, LEVEL_ONE, f"Level 1: now, {title}", first), recipe),
            _beside(metric_table(card, recipe, LEVEL_TWO, f"Level 2: the long run, {title}", first), recipe),
        ],
        "scorecards": [
            _beside(metric_table(card, recipe, MAIN, name.capitalize(), view), recipe) for view, name in views[1:]
        ],
        "columns": every,
        "legend": legend(card),
        "figures": drawn,
        "interventions": interventions_table(
            intervention_table(card, recipe), f"What each intervention buys, {title}", first
        ),
        "association": association_table(card.association, f"Diagnostics and forgetting, {title}", first),
        "diagnostics": _beside(metric_table(card, recipe, DIAGNOSTICS, "Diagnostics"), recipe),
        "across": [] if run.across is None else across_tables(run.across, recipe),
        "details": [table for table in (*future, *stages, costs, *skills) if len(table.columns) > 1],
        "comparison": run.comparison,
        "trials": trials_table(card, _MOST_TRIALS),
        "drilled": run.trials,
        "facts": run_facts(recipe, run.results, run.environment),
        "notes": [seeds_caveat(recipe), *run.notes, *card.notes],
        "recipe_text": yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
    }


def _beside(table: Table, recipe: Recipe) -> Table:
    return beside(table, {metric.label: name for name, metric in METRICS.items()}, recipe)


def begin_bundle() -> None:
    """Begin to make the script that draws the charts, beside whatever comes before the page."""
    bundle.begin_bundle(VERSION)
