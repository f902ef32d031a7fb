"""``longgame report``: a page, figures, Markdown and a verdict for CI from finished or partial runs."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from longgame.protocol.loaded import LoadedRun
    from longgame.report.charts import Figure
    from longgame.report.compare import Comparison
    from longgame.report.gate import Claim
    from longgame.report.picks import Picks

_OBJECTS = 100_000
"""New objects between collections of garbage: a report makes millions and hardly a cycle, so looking is most of it."""
HOLDS, NO_ANSWER = 1, 2
"""Exit codes of --fail-if: a claim holds; it cannot be told whether one holds, for whatever reason."""


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories, finished or not.")],
    out: Annotated[
        Path | None, typer.Option(help="The page (default: report.html, unless other files are asked for).")
    ] = None,
    figures: Annotated[Path | None, typer.Option(help="Folder for every figure as SVG and PNG.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="The scorecard as Markdown, for pull requests.")] = None,
    card: Annotated[Path | None, typer.Option(help="A short audit card as Markdown, for a model card.")] = None,
    compare: Annotated[Path | None, typer.Option(help="A baseline run to tell what changed from.")] = None,
    trials: Annotated[
        int | None, typer.Option(min=0, help="Trials to show in full, with examples and their texts (default: 20).")
    ] = None,
    fail_if: Annotated[
        str | None,
        typer.Option("--fail-if", help='End with 1 if so, 2 if that cannot be told: "myopic(loss) or worse(*)".'),
    ] = None,
) -> None:
    """Show what audits found: the answer in words, scorecard, figures, and every trial with what it wanted most."""
    from longgame.errors import LonggameError
    from longgame.protocol.loaded import SHOWN_TRIALS
    from longgame.report.gate import parse_condition
    from longgame.report.html import begin_bundle, write_page

    console = Console(highlight=False, markup=False)
    gc.set_threshold(_OBJECTS)
    try:
        claims = parse_condition(fail_if) if fail_if is not None else ()
        if out is None and not (figures or markdown or card or claims):
            out = Path("report.html")
        if out is not None:
            begin_bundle()  # it is made while the runs are read
        shown = _read(runs, compare, claims, with_picks=bool(out or figures))
        written: list[Path] = []
        if out is not None:
            write_page(out, _page(shown, SHOWN_TRIALS if trials is None else trials))
            written.append(out)
        if figures is not None:
            written += _write_figures(shown, figures)
        if markdown is not None:
            write_page(markdown, "\n".join(_markdown(each) for each in shown))
            written.append(markdown)
        if card is not None:
            write_page(card, "\n".join(_card(each) for each in shown))
            written.append(card)
        if written:
            more = f" and {len(written) - 4} more" if len(written) > 4 else ""
            console.print(f"Written: {', '.join(map(str, written[:4]))}{more}", soft_wrap=True)
        if claims and _holds(claims, shown, console):
            raise typer.Exit(HOLDS)
    except LonggameError as error:
        if fail_if is not None:
            error.exit_code = NO_ANSWER
        raise


@dataclass(frozen=True, slots=True)
class _Shown:
    """A run of this report."""

    loaded: LoadedRun
    name: Path
    """Tells it apart from the other runs of the report."""
    title: str
    """What it is called; empty where it is the only one."""
    comparison: Comparison | None
    picks: Picks | None


def _read(runs: Sequence[Path], compare: Path | None, claims: Sequence[Claim], with_picks: bool) -> list[_Shown]:
    from longgame.errors import RecipeError, ResumeError
    from longgame.protocol.loaded import load_picks, load_run, names_of
    from longgame.report.compare import compare as compare_runs

    if len({run.resolve() for run in runs}) < len(runs):
        raise RecipeError("a run directory is given twice. Name each run once.")
    loaded = [load_run(run) for run in runs]
    if claims and (unfinished := [f"{each.run.folder}: {each.progress}" for each in loaded if not each.finished]):
        raise ResumeError(
            f"--fail-if asks for finished runs. {' '.join(unfinished)} Finish it first: longgame audit RUN"
        )
    baseline = load_run(compare) if compare is not None else None
    names = names_of(runs if compare is None else [*runs, compare])
    shown = []
    for each, name in zip(loaded, names[: len(loaded)], strict=True):
        comparison = None
        if baseline is not None:
            comparison = compare_runs(
                str(names[-1]), baseline.scorecard, baseline.recipe, each.scorecard, each.recipe, baseline.progress
            )
        title = f"{each.recipe.name} ({name})" if len(loaded) > 1 else ""
        shown.append(_Shown(each, name, title, comparison, load_picks(each) if with_picks else None))
    return shown


def _page(shown: Sequence[_Shown], trials: int) -> str:
    from longgame.protocol.loaded import run_report
    from longgame.report.html import render_reports

    return render_reports(
        [run_report(each.loaded, each.picks, trials // len(shown), each.title, each.comparison) for each in shown]
    )


def _write_figures(shown: Sequence[_Shown], folder: Path) -> list[Path]:
    """Every figure; of several runs each in a folder of its own, called as the run is."""
    from longgame.report.static_figures import write_figures

    written = []
    for each in shown:
        written += write_figures(_figures(each), folder / each.name if len(shown) > 1 else folder)
    return written


def _figures(shown: _Shown) -> list[Figure]:
    from longgame.protocol.loaded import efficiency_figures_of
    from longgame.report.figures import figures

    run = shown.loaded
    drawn = figures(run.scorecard, run.results, run.recipe, shown.picks, run.across, run.conditions)
    return [*drawn, *efficiency_figures_of(run)]


def _markdown(shown: _Shown) -> str:
    from longgame.report.card import comparison_markdown
    from longgame.report.markdown import scorecard_markdown

    run = shown.loaded
    text = scorecard_markdown(run.scorecard, run.results, run.recipe, run.environment, run.across, shown.title)
    told = f"\n## Against the baseline\n\n{comparison_markdown(shown.comparison)}\n" if shown.comparison else ""
    return (f"> {run.progress}\n\n" if run.progress else "") + text + told


def _card(shown: _Shown) -> str:
    from longgame.report.card import audit_card

    run = shown.loaded
    return audit_card(
        run.scorecard,
        run.results,
        run.recipe,
        run.environment,
        run.progress,
        shown.comparison,
        across=run.across,
        notes=run.notes,
        title=shown.title,
    )


def _holds(claims: tuple[Claim, ...], shown: Sequence[_Shown], console: Console) -> bool:
    """Print which claims hold of which run, or that none does."""
    from longgame.report.gate import true_claims

    held = [
        f"{each.title or each.loaded.recipe.name}: {claim}"
        for each in shown
        for claim in true_claims(claims, each.loaded.scorecard, each.loaded.across)
    ]
    for line in held:
        console.print(f"failed: {line}", soft_wrap=True)
    if not held:
        asked = sum(1 if each.loaded.across is None else len(each.loaded.across.cards) for each in shown)
        where = f" in any of {asked} conditions" if asked > len(shown) else ""
        console.print(f"passed: none of {' or '.join(map(str, claims))} holds{where}.", soft_wrap=True)
    return bool(held)
