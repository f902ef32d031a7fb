"""``longgame bench``: what signals and selection cost on this machine, beside what bounds them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

EXAMPLES = 6
LONGEST = 128


def bench(
    data_dir: Annotated[Path | None, typer.Option(help="Folder of real examples; without it, random tokens.")] = None,
    model: Annotated[str, typer.Option(help="Model that signals are timed on.")] = "smollm2-135m",
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    json: Annotated[Path | None, typer.Option(help="Write machine, figures and rows to this file.")] = None,
) -> None:
    """Time signals and selection on this machine within about a minute, each beside the limit that bounds it.

    Ends with a line for each figure. The benchmarks of the source tree run longer and compare with other packages.
    """
    from longgame.bench import selection, signals
    from longgame.bench.harness import Report
    from longgame.bench.machine import measure
    from longgame.bench.workload import real

    console = Console(highlight=False, markup=False)
    report = Report("bench", measure())
    console.print(f"Machine: {report.machine}\n", soft_wrap=True)
    work = real(EXAMPLES, dtype=dtype, data_dir=data_dir, model=model, max_length=LONGEST)
    console.print(
        f"Signals on {work.name}: {len(work.pool)} examples, {int(work.pool.tokens.sum())} tokens", soft_wrap=True
    )
    signals.run(report, work, repeats=1, budgets=(1024,), memory=False)
    console.print(signals.table(report.rows), soft_wrap=True)
    before = len(report.rows)
    selection.run(report, quick=True)
    console.print("\nSelection\n" + selection.table(report.rows[before:]) + "\n", soft_wrap=True)
    report.finish(json)
