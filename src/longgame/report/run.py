"""The report of a run: what an audit leaves beside its tables, and the pieces that commands write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longgame.audit.learner import sequence_of
from longgame.audit.plan import FULL_DATA, shares_full_data
from longgame.audit.run import Run
from longgame.errors import LonggameError, RecipeError, ResumeError, unknown
from longgame.metrics.efficiency import efficiency, feasibility_of
from longgame.report.charts import Figure
from longgame.report.compare import Compared, Comparison, comparison, efficiency_figures
from longgame.report.markdown import scorecard_markdown
from longgame.report.page import RunReport, render_reports
from longgame.report.picks import TrialDetail, trial_detail
from longgame.report.tables import selectors_in_order
from longgame.storage import read_table, refresh_file

SHOWN_TRIALS = 20
"""Trials that a page shows in full by default."""


def write_report(run: Run) -> None:
    """Write scorecard.md and report.html into the run's folder.

    Raises:
        ResumeError: a selection table cannot be read. StorageError: a file cannot be written.
    """
    text = scorecard_markdown(run.scorecard, run.own_results, run.recipe, run.environment, run.across)
    refresh_file(run.folder / "scorecard.md", text.encode())
    refresh_file(run.folder / "report.html", render_reports([run_report(run)]).encode())


def condition_notes(run: Run) -> list[str]:
    """What the parts of a report are about, where the recipe has several conditions."""
    if run.across is None:
        return []
    count = len(run.plan.conditions.keys() - {FULL_DATA})
    return [
        f"Answer, scorecard and most figures are about the recipe's own condition; {len(run.scorecards)} of "
        f"{count} conditions have measurements of every selector and stand side by side."
    ]


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


def run_report(
    run: Run,
    trials: int = SHOWN_TRIALS,
    title: str = "",
    comparison: Comparison | None = None,
) -> RunReport:
    """The section of a run on a page, with its first ``trials`` trials in full."""
    notes = condition_notes(run)
    return RunReport(
        run.scorecard,
        run.own_results,
        run.recipe,
        run.environment,
        title=title,
        progress=run.progress,
        picks=run.picks,
        trials=load_details(run, trials, notes),
        across=run.across,
        conditions=run.places,
        comparison=comparison,
        more=efficiency_figures_of(run),
        notes=notes,
    )


def efficiency_figures_of(run: Run) -> list[Figure]:
    """PIR and feasibility beside the published methods; nothing where the run has no full-data trial."""
    if run.full_data is None:
        return []
    order = selectors_in_order(run.scorecard, run.recipe)
    return efficiency_figures(comparison(compared(run)), order, run.scorecard.reference)


def compared(run: Run, title: str = "", view: str = "primary") -> list[Compared]:
    """The conditions of a run that its full-data trials are a reference for.

    Args:
        title: what the run is called, where several are told of.

    Raises:
        ResumeError: the run holds no full-data trial, or none of them is finished. RecipeError: no such view.
    """
    full, folder = run.full_data, run.folder
    if full is None and run.recipe.full_data:
        raise ResumeError(f"{folder}: no full-data trial has a finished stage yet; go on with: longgame audit {folder}")
    if full is None:
        raise ResumeError(
            f"{folder}: this run holds no full-data trial; add full_data: true and run again: finished trials are kept."
        )
    cards = {"": run.scorecard} if run.across is None else run.across.cards
    feasibility = {spec.key: feasibility_of(spec) for spec in run.recipe.selectors}
    found = []
    for name, card in cards.items():
        if not shares_full_data(name):
            continue
        if view not in card.views:
            raise RecipeError(f"--view: {unknown('view', view, card.views)}")
        label = ", ".join(part for part in (title, name.replace("=", " ")) if part)
        found.append(Compared(label, efficiency(card, full, view), feasibility))
    return found


def load_details(run: Run, count: int, notes: list[str]) -> list[TrialDetail]:
    """The first ``count`` trials in full (seed by seed, so that every selector is among them), with their texts.

    Args:
        notes: a note is added where texts cannot be read.
    """
    some = [trial for trial in run.plan.own_trials if run.finished_stages[trial.name]][:count]
    texts = {seed: _texts(run, seed, notes) for seed in dict.fromkeys(trial.seed for trial in some)}
    of_some = run.own_results[run.own_results["trial"].isin([trial.name for trial in some])]
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
            ("finished stages", f"{run.finished_stages[trial.name]} of {len(run.plan.stages)}"),
            ("versions", ", ".join(f"{name} {version}" for name, version in run.environment["versions"].items())),
            ("recipe", f"{run.recipe.name}, budget {run.recipe.budget:g}, rounds {run.recipe.rounds}"),
        ]
        folder = run.folder / "trials" / trial.name
        tables = {
            stage: read_table(folder / f"stage-{stage}" / "selection.parquet")
            for stage in range(1, run.finished_stages[trial.name] + 1)
        }
        held = texts[trial.seed]
        found.append(
            trial_detail(
                trial.name,
                trial.selector.key,
                trial.seed,
                run.plan.stages,
                tables,
                parts[trial.name],
                facts,
                held.get,
            )
        )
    return found


def _texts(run: Run, seed: int, notes: list[str]) -> dict[str, tuple[str, str]]:
    """sample_id → (prompt, response) of a seed's candidates; where the data are not at hand, a note says why."""
    if run.recipe.model.name == "quadratic":
        return {}
    try:
        sequence = sequence_of(run.recipe, seed)
    except LonggameError as error:
        note = f"Examples are shown without their text, as the data cannot be read: {error}"
        if note not in notes:
            notes.append(note)
        return {}
    return {
        example.sample_id: (example.prompt, example.response)
        for stage in sequence.stages
        for example in stage.candidates
    }
