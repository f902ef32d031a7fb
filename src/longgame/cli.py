"""The command line: every command ends with one clear sentence and an exit code other than 0 when it fails."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import longgame
from longgame.commands.report import compare, report
from longgame.commands.watch import watch
from longgame.errors import LonggameError, RecipeError
from longgame.recipe import AxesSpec, load_recipe, read_mapping
from longgame.selection.base import SELECTORS, build_selector


class InterruptedByUserError(LonggameError):
    """The user pressed Ctrl-C."""

    exit_code = 130


app = typer.Typer(
    help="Data selection for LLM fine-tuning that plays the long game.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@contextmanager
def _interruptible(message: str) -> Iterator[None]:
    """End a command that is stopped by Ctrl-C with this sentence."""
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedByUserError(message) from None


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"longgame {longgame.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Data selection for LLM fine-tuning that plays the long game."""


_MOST_SEEDS = 10_000


def _seeds(text: str) -> list[int]:
    """Read `0,1,2` or `0-4`."""
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", part.strip())
        if found is None:
            raise RecipeError(f"--seeds is '{text}'; write numbers like 0,1,2 or a range like 0-4.")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise RecipeError(f"--seeds is '{text}', but {first} is more than {last}; write {last}-{first}.")
        if last - first >= _MOST_SEEDS:
            raise RecipeError(f"--seeds is '{text}', {last - first + 1} seeds; give at most {_MOST_SEEDS}.")
        seeds += range(first, last + 1)
    return seeds


def _overrides(
    selectors: str | None, seeds: str | None, budget: float | None, model: str | None, data_dir: Path | None
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if selectors is not None:
        found["selectors"] = [name.strip() for name in selectors.split(",") if name.strip()]
    if seeds is not None:
        found["seeds"] = _seeds(seeds)
    if budget is not None:
        found["budget"] = budget
    if model is not None:
        found |= {"model.name": model, "model.per_seed": []}
    if data_dir is not None:
        if not data_dir.is_dir():
            raise RecipeError(
                f"--data-dir '{data_dir}' is not a directory. Give the folder that holds train/ and eval/."
            )
        found["data.data_dir"] = str(data_dir)
    return found


def _axes(axis: list[str], cross: bool) -> dict[str, Any]:
    """Read `--axis budget=0.1,0.5`, `--axis order=rotations`, `--axis data.noise=0,0.1` as keys of the recipe."""
    found: dict[str, Any] = {"axes.cross": True} if cross else {}
    vary: dict[str, Any] = {}
    for text in axis:
        name, sign, value = text.partition("=")
        name = name.strip()
        if not sign or not name or not value.strip():
            raise RecipeError(f"--axis is '{text}'; write NAME=VALUE,VALUE, e.g. budget=0.1,0.5 or order=rotations.")
        if f"axes.{name}" in found or name in vary:
            raise RecipeError(f"--axis {name} is given twice. Write its values in one, e.g. --axis budget=0.1,0.5.")
        whole = value.strip().startswith(("[", "{")) or (name == "order" and "," not in value)
        try:
            read = yaml.safe_load(value if whole else f"[{value}]")
        except yaml.YAMLError as error:
            raise RecipeError(f"--axis {name}: '{value}' cannot be read; write values with commas between.") from error
        if name in AxesSpec.model_fields:
            found[f"axes.{name}"] = read
        else:
            vary[name] = read
    return found | ({"axes.vary": vary} if vary else {})


@app.command()
def audit(
    recipe: Annotated[Path, typer.Argument(help="A recipe (YAML), or the directory of a run to print or finish.")],
    selectors: Annotated[
        str | None, typer.Option(help="Instead of the recipe's: names, comma-separated; file.py:Class or scores:FILE.")
    ] = None,
    selector: Annotated[
        list[str] | None, typer.Option(help="One more beside them: name, file.py:Class or scores:FILE (repeatable).")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds: 0,1,2 or 0-4.")] = None,
    budget: Annotated[float | None, typer.Option(help="Share of each pool's tokens to select, in (0, 1].")] = None,
    model: Annotated[str | None, typer.Option(help="tiny, smollm2-135m, a Hugging Face id, or a directory.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder with train/ and eval/ data files.")] = None,
    axis: Annotated[
        list[str] | None,
        typer.Option(
            help="Vary, e.g. budget=0.1,0.5, rounds=1,step, adaptation=lora,full, order=rotations, data.noise=0.1."
        ),
    ] = None,
    cross: Annotated[bool, typer.Option("--cross", help="All combinations of the axes, not one at a time.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes (default: one per core).")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads per worker (default: cores / workers).")] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory (default: runs/NAME).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and its cost, and stop.")] = False,
    keep_models: Annotated[bool, typer.Option("--keep-models", help="Keep the model of every stage.")] = False,
) -> None:
    """Walk selectors through the stages of a recipe and say what they did to the future."""
    with _interruptible(
        "stopped. Nothing was written."
        if dry_run
        else "stopped. Finished stages are safe; the same command goes on from there."
    ):
        file = recipe / "recipe.yaml" if recipe.is_dir() else recipe
        changes = _overrides(selectors, seeds, budget, model, data_dir) | _axes_beside(file, axis or [], cross)
        if selector:
            changes["selectors"] = [*(changes.get("selectors") or _listed(file)), *selector]
        _audit(recipe, changes, workers, threads, out, dry_run, keep_models)


def _listed(recipe: Path) -> list[Any]:
    """The selectors that a recipe names."""
    held = read_mapping(recipe, "recipes/quickstart.yaml").get("selectors") or []
    if not isinstance(held, list):
        raise RecipeError(f"{recipe}: 'selectors' holds {held!r}; write a list.")
    return held


def _axes_beside(recipe: Path, axis: list[str], cross: bool) -> dict[str, Any]:
    """`_axes`, beside the keys that the recipe varies already."""
    found = _axes(axis, cross)
    return found | ({"axes.vary": _varied(recipe) | found["axes.vary"]} if "axes.vary" in found else {})


def _varied(recipe: Path) -> dict[str, Any]:
    """The keys that a recipe varies already; a section of another form is left to the recipe's own check."""
    axes = read_mapping(recipe, "recipes/quickstart.yaml").get("axes")
    held = axes.get("vary") if isinstance(axes, dict) else None
    return held if isinstance(held, dict) else {}


def _audit(
    recipe: Path,
    changes: dict[str, Any],
    workers: int | None,
    threads: int | None,
    out: Path | None,
    dry_run: bool,
    keep_models: bool,
) -> None:
    from longgame.audit.execute import RichDisplay, held_threads, run_audit
    from longgame.audit.plan import Plan
    from longgame.report.layout import report_layout
    from longgame.report.render import print_layout, write_report

    console = Console()
    if recipe.is_dir() and not (recipe / "recipe.yaml").is_file():
        raise RecipeError(f"'{recipe}' is a directory without a run. Give a recipe (YAML) or a run directory.")
    loaded = load_recipe(recipe / "recipe.yaml" if recipe.is_dir() else recipe, changes)
    folder = out or (recipe if recipe.is_dir() else Path("runs") / loaded.name)
    jobs = len(Plan(loaded).trials)
    cores = os.cpu_count() or 1
    count = min(workers or cores, max(jobs, 1))
    per_worker = threads or held_threads(folder) or max(1, cores // (workers or cores))
    if dry_run:
        from longgame.audit.estimate import print_plan

        os.environ["OMP_NUM_THREADS"] = str(per_worker)  # read by torch when the plan loads it; rates are per worker
        print_plan(loaded, folder, count, per_worker, console)
        return
    with RichDisplay(console) as display:
        run = run_audit(loaded, folder, workers=count, threads=per_worker, display=display, keep_models=keep_models)
        write_report(run)
    print_layout(report_layout(run), console)
    console.print(f"\nWritten: {folder}/scorecard.md, results.parquet, report.html", highlight=False)


@app.command()
def pools(
    recipe: Annotated[Path, typer.Argument(help="A recipe (YAML).")],
    out: Annotated[Path, typer.Option(help="Folder for candidates and pools.")],
    seeds: Annotated[str | None, typer.Option(help="Seeds: 0,1,2 or 0-4.")] = None,
    model: Annotated[str | None, typer.Option(help="tiny, smollm2-135m, a Hugging Face id, or a directory.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder with train/ and eval/ data files.")] = None,
    axis: Annotated[list[str] | None, typer.Option(help="Vary, as in the audit, e.g. data.noise=0,0.1.")] = None,
    cross: Annotated[bool, typer.Option("--cross", help="All combinations of the axes, not one at a time.")] = False,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="JSON lines instead of Parquet.")] = False,
) -> None:
    """Write the candidates of every stage, seed and condition with ids and text, to be scored by a system of your own.

    Its scores go into an audit as --selector scores:FILE (columns sample_id and score, keep or both).
    """
    from longgame.commands.pools import write_pools

    with _interruptible("stopped. Run the command again."):
        changes = _overrides(None, seeds, None, model, data_dir) | _axes_beside(recipe, axis or [], cross)
        loaded = load_recipe(recipe, changes)
        written = write_pools(loaded, out, "jsonl" if jsonl else "parquet")
    for path, rows in written.items():
        typer.echo(f"Written: {path} ({rows:,} rows)")


@app.command()
def selectors() -> None:
    """List the selectors that a recipe can name, with the signals each one needs."""
    table = Table()
    for heading in ("name", "needs", "method"):
        table.add_column(heading, overflow="fold")
    for name in SELECTORS.names():
        try:
            selector = build_selector(name)
        except LonggameError as error:  # an installed plug-in; the others are listed all the same
            table.add_row(name, "?", escape(f"cannot be used: {str(error).partition(chr(10))[0]}"))
            continue
        summary = (type(selector).__doc__ or "").strip().partition("\n")[0]
        table.add_row(name, ", ".join(selector.requires) or "nothing", escape(summary))
    console = Console()
    console.print(table)
    console.print("A selector of your own: --selector path/to/file.py:Class", highlight=False)
    console.print("What a system of your own decided: --selector scores:FILE (.parquet, .csv, .jsonl)", highlight=False)


app.command()(report)
app.command()(compare)
app.command()(watch)


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Print an error of longgame as one sentence and exit with its code."""
    try:
        yield
    except LonggameError as error:
        console = Console(stderr=True)
        console.print(f"longgame: {error}", style="bold red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)


def main() -> None:
    """Entry point of the command."""
    with errors_as_sentences():
        app()


if __name__ == "__main__":
    main()
