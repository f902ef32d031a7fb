"""``python -m studies.results run|keep|pages``: the audits behind docs/results, their measurements, their pages."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from longgame.cli import errors_as_sentences
from longgame.errors import RecipeError, unknown
from studies.results.data import DATA, keep, load, missing_seeds
from studies.results.field import place
from studies.results.pages import sequences, write_pages
from studies.results.steps import STEPS, run_step

app = typer.Typer(
    help="Run the project's own audits, keep their measurements and make the pages of docs/results.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Only = Annotated[list[str] | None, typer.Option(help="Name of a step; may be repeated (default: all).")]
DataFolder = Annotated[Path, typer.Option("--data", help="Folder of the kept measurements.")]


@app.command("run")
def run_steps(
    only: Only = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder with train/ and eval/ (real data).")] = None,
    minutes: Annotated[float, typer.Option(help="Stop after this many minutes.")] = float("inf"),
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 2,
    missing: Annotated[bool, typer.Option("--missing", help="Run only seeds that --data does not hold.")] = False,
    data: DataFolder = DATA,
) -> None:
    """Run every unfinished step, in order: about two hours on two cores. Finished stages stay."""
    _check_names(only)
    deadline = time.monotonic() + 60 * minutes
    steps = [step for step in STEPS if not only or step.name in only]
    for step in steps:
        if step.real_data and data_dir is None:
            typer.echo(f"{step.name}: skipped (it needs --data-dir)")
            continue
        if missing:
            seeds = missing_seeds(step.loaded(data_dir), data / f"{step.name}.parquet")
            if not seeds:
                typer.echo(f"{step.name}: kept")
                continue
            step = replace(step, seeds=",".join(map(str, sorted({*seeds, *step.started_seeds}))))
        if time.monotonic() > deadline or not run_step(step, data_dir, workers, deadline):
            typer.echo(f"{step.name}: the time is over")
            return


@app.command("keep")
def keep_measurements(only: Only = None, data: DataFolder = DATA) -> None:
    """Copy the measurements of finished trials to docs/results/data."""
    _check_names(only)
    keep(data, only or ())


def _check_names(only: Sequence[str] | None) -> None:
    names = {step.name for step in STEPS}
    for name in only or ():
        if name not in names:
            raise RecipeError(unknown("step", name, names))


@app.command()
def pages(data: DataFolder = DATA) -> None:
    """Make the tables and figures of docs/results from docs/results/data."""
    write_pages(data)


@app.command("place")
def place_audit(
    folder: Annotated[Path, typer.Argument(help="Run directory of an audit of a field recipe.")],
    data: DataFolder = DATA,
) -> None:
    """Say where the selectors of an audit lie in the leaderboard of the field."""
    for line in place(folder, sequences(load(data), "field")):
        typer.echo(line)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the audit at work ends, too
    with errors_as_sentences():
        app()
