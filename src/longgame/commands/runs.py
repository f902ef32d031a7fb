"""Runs as reports need them: what is finished of them, their selections, and the texts of their examples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from longgame.errors import LonggameError, ResumeError
from longgame.metrics.across import Across
from longgame.metrics.scorecard import Scorecard
from longgame.protocol.conditions import FULL_DATA, order_groups
from longgame.protocol.results import scorecards
from longgame.protocol.store import CONDITION_COLUMNS, RESULT_COLUMNS, RunDirectory, read_json, read_table
from longgame.protocol.substrate import Outline, outline, sequence_of
from longgame.protocol.trial import Trial
from longgame.recipe import Recipe
from longgame.report.picks import Picks, StagePicks, read_picks
from longgame.report.trials import TrialDetail, trial_detail

MOST_SELECTIONS = 300
"""Selection tables that are read for the figures; a run with more is shown by its first seeds, and the page says so."""


@dataclass
class LoadedRun:
    """A finished or partial run: its own condition, and what is on disk of it."""

    run: RunDirectory
    plan: Outline
    results: pd.DataFrame
    """The records of the recipe's own condition."""
    scorecard: Scorecard
    environment: dict[str, Any]
    done: dict[str, int]
    """Planned trial → its finished stages (own condition)."""
    across: Across | None = None
    """The conditions of a recipe with axes that have a finished stage."""
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

    @property
    def finished(self) -> bool:
        return all(stages == len(self.plan.stages) for stages in self.done.values())

    @property
    def progress(self) -> str:
        """How much is done, in words; empty when all is."""
        if self.finished:
            return ""
        whole = sum(stages == len(self.plan.stages) for stages in self.done.values())
        return (
            f"This run is not finished: {whole} of {len(self.done)} trials, {sum(self.done.values())} of "
            f"{len(self.done) * len(self.plan.stages)} stages. What is missing counts as not measured."
        )


def load_run(folder: Path) -> LoadedRun:
    """Read what is finished of a run.

    Raises:
        ResumeError: there is no run, a file cannot be read, or nothing is finished yet.
    """
    run = RunDirectory.open(folder)
    plan = outline(run.recipe)
    every = {trial.name: _finished_stages(folder, trial.name, len(plan.stages)) for trial in run.trials}
    done = {trial.name: every[trial.name] for trial in run.trials if trial.condition == ""}
    if not any(done.values()):
        raise ResumeError(f"{folder} has no finished stage yet. Wait for one, or start it: longgame audit {folder}")
    results = _results(run, all(stages == len(plan.stages) for stages in every.values()))
    cards, conditions = _cards(run, results), results[list(CONDITION_COLUMNS)].drop_duplicates().astype(object)
    loaded = LoadedRun(
        run, plan, results[results["condition"] == ""], cards[""], read_json(folder / "environment.json"), done
    )
    compared = run.conditions.keys() - {FULL_DATA}
    if len(compared) > 1:
        groups = {name: held for name, held in order_groups(run.conditions).items() if set(held) <= set(cards)}
        loaded.across, loaded.conditions = Across.build(cards, groups), conditions
        loaded.notes.append(
            f"Answer, scorecard and most figures are about the recipe's own condition; {len(cards)} of "
            f"{len(compared)} conditions have measurements of every selector and stand side by side."
        )
    return loaded


def _cards(run: RunDirectory, results: pd.DataFrame) -> dict[str, Scorecard]:
    """A scorecard of every condition in which every selector has measurements; the recipe's own in any case."""
    selectors = {spec.key for spec in run.recipe.selectors}
    measured = results.groupby("condition", observed=True)["selector"].unique()
    return scorecards(run, results, {"", *(str(name) for name, names in measured.items() if set(names) == selectors)})


def _finished_stages(folder: Path, trial: str, stages: int) -> int:
    return next(
        (n for n in range(stages, 0, -1) if (folder / "trials" / trial / f"stage-{n}" / "done.json").is_file()), 0
    )


def _results(run: RunDirectory, finished: bool) -> pd.DataFrame:
    """results.parquet where it holds just the planned trials of a finished run, else the stages' own records."""
    path = run.folder / "results.parquet"
    if finished and path.is_file():
        try:
            schema = pq.read_schema(path)
        except (OSError, pa.ArrowException):
            return run.records()  # it is made from the records, so a damaged one is no loss
        if list(schema.names) == list(RESULT_COLUMNS):
            held = read_table(path)
            if set(held["trial"].unique()) == {trial.name for trial in run.trials}:
                return held
    return run.records()


def _selections(loaded: LoadedRun, trials: list[Trial]) -> Iterator[StagePicks]:
    for trial in trials:
        for stage in range(1, loaded.done[trial.name] + 1):
            path = loaded.run.folder / "trials" / trial.name / f"stage-{stage}" / "selection.parquet"
            yield StagePicks(trial.name, trial.selector.key, trial.seed, stage, read_table(path))


def load_picks(loaded: LoadedRun) -> Picks | None:
    """What was selected, from at most `MOST_SELECTIONS` tables: whole seeds in the recipe's order."""
    seeds = list(dict.fromkeys(trial.seed for trial in loaded.trials))
    per_seed = max(1, len(loaded.plan.stages) * len(loaded.recipe.selectors))
    shown = set(seeds[: max(1, MOST_SELECTIONS // per_seed)])
    some = [trial for trial in loaded.trials if trial.seed in shown]
    return read_picks(_selections(loaded, some), len(seeds))


def load_details(loaded: LoadedRun, most: int) -> list[TrialDetail]:
    """The first ``most`` trials in full (seed by seed, so that every selector is among them), with their texts."""
    some = [trial for trial in loaded.trials if loaded.done[trial.name]][:most]
    texts = {seed: _texts(loaded, seed) for seed in dict.fromkeys(trial.seed for trial in some)}
    names = loaded.results["trial"].astype(str)
    parts = dict(iter(loaded.results[names.isin([trial.name for trial in some])].groupby("trial", observed=True)))
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
        tables = {each.stage: each.table for each in _selections(loaded, [trial])}
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
