"""``python -m studies.calibration``: the audit's own error rates, on worlds where the truth is known."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from longgame.cli import errors_as_sentences

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def calibrate(
    quick: Annotated[bool, typer.Option("--quick", help="A small version of all of it, within a minute.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws; the worlds stay the same.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for the figures (SVG and PNG).")] = None,
    json: Annotated[Path | None, typer.Option(help="Write plan, figures and tables to this file.")] = None,
) -> None:
    """Measure the audit's false alarms, power and coverage where the true long-horizon effects are known.

    Ends with a line for each figure and exit code 1 if one is short.
    """
    from studies.calibration.charts import coverage_chart, false_alarms_chart, power_chart
    from studies.calibration.measure import FULL, QUICK, measure, requirements
    from studies.calibration.study import spread
    from studies.output import print_rows, write_chart, write_json

    console, plan = Console(), QUICK if quick else FULL
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=console, disable=not console.is_terminal,
    ) as bars:  # fmt: skip
        line = bars.add_task("worlds", total=plan.worlds)
        tables = measure(plan, seed, lambda _, done, __: bars.update(line, completed=done))
    figures = requirements(tables)
    by = {
        "coverage": ("metric", "interval", "seeds"),
        "power at the minimum detectable effect": ("seeds",),
        "equivalence": ("truth", "seeds"),
        "coverage of the set's gap": ("interval", "seeds"),
        "leaderboard": ("over", "bases", "noise"),
        "equivalence at its margin": ("truth", "noise", "seeds"),
        "seeds that share bases": ("analysis", "bases", "effect"),
    }
    for name, rows in tables.items():
        if name in by:
            print_rows(f"{name}, range", spread(rows, *by[name]), console)
        else:
            print_rows(name, rows, console)
    if out is not None:
        write_chart(false_alarms_chart(tables["false alarms"], tables["hardest null"]), out, "calibration-false-alarms")
        write_chart(power_chart(tables["power"]), out, "calibration-power")
        write_chart(coverage_chart(tables["coverage"]), out, "calibration-coverage")
        console.print(f"Written: figures in {out}", highlight=False)
    if json is not None:
        results = [asdict(figure) | {"ok": figure.ok} for figure in figures]
        write_json(json, {"plan": asdict(plan), "seed": seed, "figures": results, "tables": tables})
    for figure in figures:
        typer.echo(str(figure))
    if not all(figure.ok for figure in figures):
        raise typer.Exit(1)


if __name__ == "__main__":
    with errors_as_sentences():
        app()
