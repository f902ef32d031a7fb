"""Runs as reports need them: what is finished of them, their selections, and the texts of their examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from longgame.audit.learner import Outline, outline, sequence_of
from longgame.audit.plan import FULL_DATA, Trial, order_groups, safe_name, shares_full_data
from longgame.audit.results import full_data_scorecard, of_condition, picks_of, scorecards
from longgame.audit.store import RECORD_COLUMNS, RESULT_COLUMNS, RunDirectory
from longgame.errors import LonggameError, RecipeError, ResumeError, unknown
from longgame.metrics.comparisons import Across
from longgame.metrics.efficiency import efficiency, feasibility_of
from longgame.metrics.scorecard import Scorecard
from longgame.metrics.tidy import distinct_rows
from longgame.recipe import Recipe
from longgame.report.charts import Figure
from longgame.report.compare import Compared, Comparison, comparison, efficiency_figures
from longgame.report.conditions import condition_label
from longgame.report.page import RunReport
from longgame.report.picks import Picks, TrialDetail, trial_detail
from longgame.report.tables import selectors_in_order
from longgame.storage import read_json, read_narrow, read_table

SHOWN_TRIALS = 20
"""Trials that a page shows in full unless told otherwise."""
_TOLD = [*(name for name in RECORD_COLUMNS if name not in ("task_kind", "unit")), "condition"]
"""Columns of the results that a report is made from."""
_MOST_CONDITIONS = 6
"""Unfinished conditions that are named; the rest are counted."""


@dataclass
class LoadedRun:
    """A finished or partial run: its own condition, and what is on disk of it."""

    run: RunDirectory
    plan: Outline
    results: pd.DataFrame
    """The records of the recipe's own condition."""
    scorecard: Scorecard
    environment: dict[str, Any]
    every: dict[str, int]
    """Planned trial → its finished stages: all conditions, and the full-data trials."""
    across: Across | None = None
    """The conditions of a recipe with axes that have a finished stage."""
    full_data: Scorecard | None = None
    """Of the full-data trials, where the recipe asks for them and one has a finished stage."""
    conditions: pd.DataFrame | None = None
    """condition, budget, rounds, adaptation, order: a row for each of them."""
    notes: list[str] = field(default_factory=list)

    @property
    def recipe(self) -> Recipe:
        return self.run.recipe

    @property
    def trials(self) -> list[Trial]:
        """The own condition's trials, finished or not."""
        return [trial for trial in self.run.trials if trial.condition == ""]

    @cached_property
    def done(self) -> dict[str, int]:
        """Planned trial → its finished stages (own condition)."""
        return {trial.name: self.every[trial.name] for trial in self.trials}

    @property
    def finished(self) -> bool:
        """Whether every planned trial is, of all conditions and of the full data."""
        return all(stages == len(self.plan.stages) for stages in self.every.values())

    @property
    def progress(self) -> str:
        """How much is done, in words; empty when all is."""
        if self.finished:
            return ""
        whole = sum(stages == len(self.plan.stages) for stages in self.every.values())
        text = (
            f"This run is not finished: {whole:,} of {len(self.every):,} trials, {sum(self.every.values()):,} of "
            f"{len(self.every) * len(self.plan.stages):,} stages. What is missing counts as not measured."
        )
        if len(self.run.conditions) == 1:
            return text
        missing = Counter(t.condition for t in self.run.trials if self.every[t.name] < len(self.plan.stages))
        said = [f"{condition_label(name)} ({count:,})" for name, count in missing.items()]
        more = f" and {len(said) - _MOST_CONDITIONS} more" if len(said) > _MOST_CONDITIONS else ""
        return f"{text} Unfinished trials by condition: {'; '.join(said[:_MOST_CONDITIONS])}{more}."


def load_run(folder: Path) -> LoadedRun:
    """Read what is finished of a run.

    Raises:
        ResumeError: there is no run, a file cannot be read, or nothing is finished yet.
    """
    run = RunDirectory.open(folder)
    stages = len(outline(run.recipe).stages)
    every = finished_stages(run, stages)
    if not any(every[trial.name] for trial in run.trials if trial.condition == ""):
        raise ResumeError(f"{folder} has no finished stage yet. Wait for one, or start it: longgame audit {folder}")
    results = _results(run, all(done == stages for done in every.values()))
    return told_run(run, results, _cards(run, results), read_json(folder / "environment.json"), every)


def told_run(
    run: RunDirectory,
    results: pd.DataFrame,
    cards: Mapping[str, Scorecard],
    environment: dict[str, Any],
    done: Mapping[str, int],
) -> LoadedRun:
    """What a report tells of a run whose tables are made.

    Args:
        results: the tidy records of all conditions.
        cards: condition → scorecard, the recipe's own first.
        done: every planned trial → its finished stages.
    """
    every = {trial.name: done[trial.name] for trial in run.trials}
    loaded = LoadedRun(run, outline(run.recipe), of_condition(results, ""), cards[""], environment, every)
    loaded.full_data = full_data_scorecard(run, results)
    compared = run.conditions.keys() - {FULL_DATA}
    if len(compared) > 1:
        groups = {name: held for name, held in order_groups(run.conditions).items() if set(held) <= set(cards)}
        loaded.across = Across.build(cards, groups, bootstrap=run.recipe.metrics.bootstrap)
        loaded.conditions = places_of(run, cards)
        loaded.notes.append(
            f"Answer, scorecard and most figures are about the recipe's own condition; {len(cards)} of "
            f"{len(compared)} conditions have measurements of every selector and stand side by side."
        )
    return loaded


def names_of(folders: Sequence[Path]) -> list[Path]:
    """What runs are called beside each other: the end of each path, as short as tells all of them apart.

    ``runs/a`` and ``runs/b`` are called a and b; ``monday/skill`` and ``tuesday/skill`` are called by both parts.
    """
    parts = [folder.resolve().parts for folder in folders]
    names = []
    for own in parts:
        alike = {other for other in parts if other[-1:] == own[-1:]}
        most = max(len(other) for other in alike)
        depth = next(n for n in range(1, most + 1) if len({other[-n:] for other in alike}) == len(alike))
        names.append(Path(*own[-depth:]))
    return names


def places_of(run: RunDirectory, names: Collection[str]) -> pd.DataFrame:
    """condition and its place on every axis and on every key of `axes.vary`, a row each.

    A place is what the condition's name says (``adaptation=full-lr0.001``), else the recipe's own value.
    """
    held = run.recipe.model_dump(mode="json")
    own = {**run.conditions[""].values, **{key: _held(held, key) for key in sorted(run.recipe.axes.vary)}}
    rows = []
    for name in names:
        said = dict(part.split("=", 1) for part in name.split(",") if part)
        rows.append({"condition": name, **own, **said})
    places = pd.DataFrame(rows).astype(object)
    places["budget"] = places["budget"].astype(float)
    return places


def _held(recipe: Any, key: str) -> str:
    """The recipe's own value of a dotted key, as names of conditions write values."""
    for part in key.split("."):
        recipe = recipe.get(part) if isinstance(recipe, dict) else None
    return "default" if recipe is None else safe_name(repr(recipe) if isinstance(recipe, float) else str(recipe))


def _cards(run: RunDirectory, results: pd.DataFrame) -> dict[str, Scorecard]:
    """A scorecard of every condition in which every selector has measurements; the recipe's own in any case."""
    selectors = {spec.key for spec in run.recipe.selectors}
    measured: dict[str, set[str]] = {}
    for condition, selector in distinct_rows(results[["condition", "selector"]]).itertuples(index=False):
        measured.setdefault(condition, set()).add(selector)
    return scorecards(run, results, {"", *(name for name, names in measured.items() if names == selectors)})


def finished_stages(run: RunDirectory, stages: int) -> dict[str, int]:
    """Every planned trial → how many of its stages are finished."""

    def last(trial: Path) -> int:
        return next((n for n in range(stages, 0, -1) if (trial / f"stage-{n}" / "done.json").is_file()), 0)

    return {trial.name: last(run.folder / "trials" / trial.name) for trial in run.trials}


def _results(run: RunDirectory, finished: bool) -> pd.DataFrame:
    """results.parquet where it holds just the planned trials of a finished run, else the stages' own records."""
    path = run.folder / "results.parquet"
    if finished and path.is_file():
        try:
            schema = pq.read_schema(path)
        except (OSError, pa.ArrowException):
            return run.records()  # it is made from the records, so a damaged one is no loss
        if list(schema.names) == list(RESULT_COLUMNS):
            held = read_narrow(path, _TOLD)
            if set(distinct_rows(held[["trial"]])["trial"]) == {trial.name for trial in run.trials}:
                return held
    return run.records()


def load_picks(loaded: LoadedRun) -> Picks | None:
    """What was selected, in all finished stages of the recipe's own condition."""
    return picks_of(loaded.run, loaded.done)


def run_report(
    loaded: LoadedRun,
    picks: Picks | None,
    trials: int = SHOWN_TRIALS,
    title: str = "",
    comparison: Comparison | None = None,
) -> RunReport:
    """The section of a run on a page, with its first ``trials`` trials in full."""
    details = load_details(loaded, trials)  # first, as it may add a note
    return RunReport(
        loaded.scorecard,
        loaded.results,
        loaded.recipe,
        loaded.environment,
        title=title,
        progress=loaded.progress,
        picks=picks,
        trials=details,
        across=loaded.across,
        conditions=loaded.conditions,
        comparison=comparison,
        more=efficiency_figures_of(loaded),
        notes=loaded.notes,
    )


def efficiency_figures_of(loaded: LoadedRun) -> list[Figure]:
    """PIR and feasibility beside the published methods; nothing where the run has no full-data trial."""
    if loaded.full_data is None:
        return []
    order = selectors_in_order(loaded.scorecard, loaded.recipe)
    return efficiency_figures(comparison(compared(loaded)), order, loaded.scorecard.reference)


def compared(loaded: LoadedRun, title: str = "", view: str = "primary") -> list[Compared]:
    """The conditions of a run that its full-data trials are a reference for.

    Args:
        title: what the run is called, where several are told of.

    Raises:
        ResumeError: the run holds no full-data trial, or none of them is finished. RecipeError: no such view.
    """
    full, folder = loaded.full_data, loaded.run.folder
    if full is None and loaded.recipe.full_data:
        raise ResumeError(f"{folder}: no full-data trial has a finished stage yet; go on with: longgame audit {folder}")
    if full is None:
        raise ResumeError(
            f"{folder}: this run holds no full-data trial; add full_data: true and run again: finished trials are kept."
        )
    cards = {"": loaded.scorecard} if loaded.across is None else loaded.across.cards
    feasibility = {spec.key: feasibility_of(spec) for spec in loaded.recipe.selectors}
    found = []
    for name, card in cards.items():
        if not shares_full_data(name):
            continue
        if view not in card.views:
            raise RecipeError(f"--view: {unknown('view', view, card.views)}")
        label = ", ".join(part for part in (title, name.replace("=", " ")) if part)
        found.append(Compared(label, efficiency(card, full, view), feasibility))
    return found


def load_details(loaded: LoadedRun, most: int) -> list[TrialDetail]:
    """The first ``most`` trials in full (seed by seed, so that every selector is among them), with their texts."""
    some = [trial for trial in loaded.trials if loaded.done[trial.name]][:most]
    texts = {seed: _texts(loaded, seed) for seed in dict.fromkeys(trial.seed for trial in some)}
    of_some = loaded.results[loaded.results["trial"].isin([trial.name for trial in some])]
    parts = dict(iter(of_some.groupby("trial", observed=True)))
    found = []
    for trial in some:
        facts = [
            ("selector", trial.selector.name),
            (
                "parameters",
                ", ".join(f"{key}={value}" for key, value in trial.selector.parameters.items()) or "defaults",
            ),
            ("seed", str(trial.seed)),
            ("finished stages", f"{loaded.done[trial.name]} of {len(loaded.plan.stages)}"),
            ("versions", ", ".join(f"{name} {version}" for name, version in loaded.environment["versions"].items())),
            ("recipe", f"{loaded.recipe.name}, budget {loaded.recipe.budget:g}, rounds {loaded.recipe.rounds}"),
        ]
        folder = loaded.run.folder / "trials" / trial.name
        tables = {
            stage: read_table(folder / f"stage-{stage}" / "selection.parquet")
            for stage in range(1, loaded.done[trial.name] + 1)
        }
        held = texts[trial.seed]
        found.append(
            trial_detail(
                trial.name,
                trial.selector.key,
                trial.seed,
                loaded.plan.stages,
                tables,
                parts[trial.name],
                facts,
                held.get,
            )
        )
    return found


def _texts(loaded: LoadedRun, seed: int) -> dict[str, tuple[str, str]]:
    """sample_id → (prompt, response) of a seed's candidates; where the data are not at hand, a note says why."""
    if loaded.recipe.model.name == "quadratic":
        return {}
    try:
        sequence = sequence_of(loaded.recipe, seed)
    except LonggameError as error:
        note = f"Examples are shown without their text, as the data cannot be read: {error}"
        if note not in loaded.notes:
            loaded.notes.append(note)
        return {}
    return {
        example.sample_id: (example.prompt, example.response)
        for stage in sequence.stages
        for example in stage.candidates
    }
