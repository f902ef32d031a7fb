"""The report as one self-contained page: it opens from disk, loads nothing, and shows dataset text as text."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import altair as alt
import jinja2
import pandas as pd
import vl_convert
import yaml

from longgame.errors import StorageError
from longgame.metrics.scorecard import Scorecard
from longgame.recipe import Recipe
from longgame.report.figures import figures
from longgame.report.tables import (
    COSTS,
    DIAGNOSTICS,
    MAIN,
    MORE,
    Table,
    metric_table,
    shown_views,
    stage_table,
    sub_skill_table,
)
from longgame.report.words import headline, legend, run_facts, seeds_caveat, set_gap_line, verdict_lines

_TONES = {"myopic": "bad", "long-horizon worse": "bad", "long-horizon better": "good"}


def write_html(
    path: Path, scorecard: Scorecard, results: pd.DataFrame, recipe: Recipe, environment: Mapping[str, Any]
) -> None:
    """Write the report page.

    Args:
        path: the file to write.
        results: the run's tidy records.
        environment: versions and machine, as the run directory's environment.json holds them.

    Raises:
        StorageError: the file cannot be written.
    """
    page = render_html(scorecard, results, recipe, environment)
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}. Choose another path.") from error


def render_html(scorecard: Scorecard, results: pd.DataFrame, recipe: Recipe, environment: Mapping[str, Any]) -> str:
    """The report page as a string (about 1 MB, most of it the Vega bundle)."""
    views = shown_views(scorecard)
    future = [metric_table(scorecard, recipe, MORE, f"More of the future, {title}", view) for view, title in views]
    stages = [stage_table(scorecard, recipe, view, f"By stage, {title}") for view, title in views]
    skills = [sub_skill_table(scorecard, recipe, view, f"By sub-skill, {title}") for view, title in views]
    costs = metric_table(scorecard, recipe, COSTS, "Cost per trial")
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            recipe=recipe,
            headline=headline(scorecard, recipe),
            verdicts=[(line, _TONES.get(line.word, "plain")) for line in verdict_lines(scorecard, recipe)],
            set_gap=set_gap_line(scorecard),
            scorecards=[metric_table(scorecard, recipe, MAIN, title.capitalize(), view) for view, title in views],
            legend=legend(scorecard),
            figures=figures(scorecard, results, recipe),
            diagnostics=metric_table(scorecard, recipe, DIAGNOSTICS, "Diagnostics"),
            details=[table for table in (*future, *stages, costs, *skills) if len(table.columns) > 1],
            facts=run_facts(recipe, results, environment),
            notes=[seeds_caveat(recipe), *scorecard.notes],
            recipe_text=yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
            bundle=_vega_bundle(),
        )
    )


def _has_meanings(table: Table) -> bool:
    return len({column.meaning for column in table.columns if column.meaning}) > 1


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("longgame.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["with_meanings"] = _has_meanings
    return environment


@functools.cache
def _vega_bundle() -> str:
    """Vega, Vega-Lite and vega-embed as one script, in the version that altair's specifications are written for."""
    version = ".".join(alt.SCHEMA_VERSION.split(".")[:2])
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)
    return re.sub(r"</(?=script)", r"<\\/", bundle, flags=re.IGNORECASE)
