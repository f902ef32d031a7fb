"""``longgame audit`` and `longgame.audit`: run an audit and write its report."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longgame.commands.options import (
    CHANGES,
    Cross,
    DataDir,
    EngineOption,
    ModelName,
    SeedsOption,
    TrustCode,
    TrustRemoteCode,
    given_selectors,
    interruptible,
    recipe_changes,
    recipe_folders,
)
from longgame.commands.terminal import Terminal
from longgame.recipe import Recipe, find_recipe, load_recipe, parse_recipe

if TYPE_CHECKING:
    from longgame.audit.execute import Display
    from longgame.audit.run import Run


def audit(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    out: str | Path | None = None,
    *,
    workers: int | None = 1,
    threads: int | None = None,
    gpus: int | None = None,
    keep_models: bool = False,
    fail_fast: bool = False,
    display: Display | None = None,
    engine: str = "local",
) -> Run:
    """Run or resume an audit, write its report, and return the run.

    A trial that fails does not end the others.

    Args:
        recipe: a recipe, a mapping of its keys, the path of a YAML file, or the name of a recipe of the package.
        out: run directory; None: ``runs/NAME``.
        workers: processes; None: one per core, or as many as the GPUs hold.
            With more than one, guard the calling script by ``if __name__ == "__main__"``.
        threads: threads per worker; None: those of the run that is resumed, else cores / workers.
        gpus: GPUs to use, each by the trials of its own workers; None: all.
        keep_models: keep the model of every stage.
        fail_fast: the first failed trial ends the audit.
        display: what shows the progress; None: progress bars on stderr.
        engine: ``local``, or Ray: ``ray`` (on this machine), ``auto`` (the running cluster) or ``ray://HOST:PORT``.
            On Ray, workers None takes all that the cluster holds, and threads None is 1.

    Raises:
        RecipeError: the recipe is wrong. ResumeError: ``out`` holds another recipe.
        TrialError: trials failed; the others are finished, and the report is written (`Run.open` reads the run).
        LonggameError: what the first failed trial raised, where no stage is finished. Finished stages stay.
    """
    from longgame.audit.execute import RichDisplay, run_audit, run_threads
    from longgame.report.render import write_report

    if isinstance(recipe, str | Path):
        recipe = load_recipe(recipe)
    elif not isinstance(recipe, Recipe):
        recipe = parse_recipe(dict(recipe))
    folder = Path("runs") / recipe.name if out is None else Path(out)
    threads = threads or run_threads(folder)
    workers, threads, cards = _placed(recipe, workers, threads, gpus, engine)
    with nullcontext(display) if display else RichDisplay(Terminal(stderr=True)) as bars:
        run = run_audit(
            recipe,
            folder,
            workers=workers,
            threads=threads,
            display=bars,
            keep_models=keep_models,
            fail_fast=fail_fast,
            gpus=cards,
            engine=engine,
            gpu_count=gpus,
        )
    write_report(run)
    run.check_failures()
    return run


def _placed(
    recipe: Recipe, workers: int | None, threads: int | None, gpus: int | None, engine: str
) -> tuple[int | None, int, tuple[str, ...]]:
    """Workers, threads of each, and the GPUs of this machine that they take in turn."""
    from longgame.audit.learner import learner_kind
    from longgame.engines.choice import LOCAL, check_engine

    if check_engine(engine) != LOCAL:
        return workers, threads or 1, ()
    placement = learner_kind(recipe).place(recipe, workers, gpus)
    return placement.workers, threads or max(1, (os.cpu_count() or 1) // placement.workers), placement.gpus


_WORK = "How it runs"


def audit_command(
    recipe: Annotated[
        Path,
        typer.Argument(help="A recipe (YAML), the name of one of the package (quickstart), or the directory of a run."),
    ],
    selectors: Annotated[
        str | None,
        typer.Option(help="Replace the recipe's: names, comma-separated; as --selector.", rich_help_panel=CHANGES),
    ] = None,
    selector: Annotated[
        list[str] | None,
        typer.Option(
            help="Add one: [LABEL=]NAME, where NAME may be file.py:Class or scores:FILE (repeatable).",
            rich_help_panel=CHANGES,
        ),
    ] = None,
    seeds: SeedsOption = None,
    budget: Annotated[
        float | None,
        typer.Option(help="Share of each pool's tokens to select, in (0, 1].", rich_help_panel=CHANGES),
    ] = None,
    model: ModelName = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.", rich_help_panel=CHANGES)] = None,
    data_dir: DataDir = None,
    axis: Annotated[
        list[str] | None,
        typer.Option(
            help="Vary, e.g. budget=0.1,0.5, rounds=1,step, adaptation=lora,full, order=rotations, data.noise=0.1.",
            rich_help_panel=CHANGES,
        ),
    ] = None,
    cross: Cross = False,
    out: Annotated[Path | None, typer.Option(help="Run directory (default: runs/NAME).", rich_help_panel=_WORK)] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and its cost, and stop.", rich_help_panel=_WORK)
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Processes (default: one per core, or as many as the GPUs hold).", rich_help_panel=_WORK
        ),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(min=1, help="GPUs to use, each by its own workers (default: all).", rich_help_panel=_WORK),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads per worker (default: cores / workers; 1 on Ray).", rich_help_panel=_WORK),
    ] = None,
    engine: EngineOption = "local",
    keep_models: Annotated[
        bool, typer.Option("--keep-models", help="Keep the model of every stage.", rich_help_panel=_WORK)
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Print every table at the end.", rich_help_panel=_WORK)
    ] = False,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="The first failed trial ends the audit.", rich_help_panel=_WORK)
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
    trust_code: TrustCode = False,
) -> None:
    """Train with each selector through the stages of a recipe and report its effect on later stages.

    An interrupted audit is resumed by the same command. Paths in options start from the working directory.

    Example: longgame audit quickstart --selector mine=my_selector.py:MySelector --seeds 0-4 --out runs/mine
    """
    with interruptible(
        "stopped. Nothing was written."
        if dry_run
        else "stopped. Finished stages are safe; run the same command again to resume."
    ):
        from longgame.audit.checks import check_trusted
        from longgame.audit.execute import RichDisplay, run_audit, run_threads
        from longgame.audit.plan import Plan
        from longgame.audit.run import print_left, recipe_file
        from longgame.engines.choice import LOCAL
        from longgame.report.layout import report_layout
        from longgame.report.render import print_layout, write_report

        file, is_run = recipe_file(find_recipe(recipe))
        changes = recipe_changes(
            file,
            selectors=selectors,
            added_selectors=selector,
            seeds=seeds,
            budget=budget,
            model=model,
            device=device,
            data_dir=data_dir,
            axis=axis,
            cross=cross,
            trust_remote_code=trust_remote_code,
        )
        loaded = load_recipe(file, changes)
        folder = out or (file.parent if is_run else Path("runs") / loaded.name)
        console, plan = Terminal(), Plan(loaded)
        if is_run and not trust_code:
            if dry_run:
                print_left(plan, folder, console)
                return
            named = given_selectors([*(selectors or "").split(","), *(selector or [])], recipe_folders(file))
            check_trusted(plan, folder, [spec["name"] for spec in named], remote_code=trust_remote_code)
        workers, threads, cards = _placed(loaded, workers, threads or run_threads(folder), gpus, engine)
        if engine == LOCAL:
            workers = min(workers or 1, len(plan.trials))
        if dry_run:
            from longgame.audit.checks import check_size
            from longgame.audit.estimate import print_plan
            from longgame.engines.local import threads_here

            check_size(plan)
            with loaded.paths(), threads_here(threads):  # rates are per worker
                print_plan(plan, folder, workers or 1, threads, console)
            return
        with RichDisplay(console) as display:
            run = run_audit(
                loaded,
                folder,
                workers=workers,
                threads=threads,
                display=display,
                keep_models=keep_models,
                fail_fast=fail_fast,
                gpus=cards,
                engine=engine,
                gpu_count=gpus,
            )
        write_report(run)
        print_layout(report_layout(run), console, "terminal" if verbose else "summary")
        more = "" if verbose else " (more here: --verbose)"
        written = f"\nWritten: {folder}/report.html, scorecard.md, results.parquet{more}"
        console.print(written, highlight=False, markup=False, soft_wrap=True)
        run.check_failures()
