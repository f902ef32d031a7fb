"""``longgame report`` and ``longgame compare``."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from longgame.audit.run import Run
    from longgame.report.answer import Claim
    from longgame.report.charts import Figure
    from longgame.report.compare import Comparison


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
    from longgame.report.answer import parse_condition
    from longgame.report.page import begin_bundle, write_page
    from longgame.report.run import SHOWN_TRIALS

    console = Console(highlight=False, markup=False)
    gc.set_threshold(_OBJECTS)
    try:
        claims = parse_condition(fail_if) if fail_if is not None else ()
        if out is None and not (figures or markdown or card or claims):
            out = Path("report.html")
        if out is not None:
            begin_bundle()  # it is made while the runs are read
        shown = _read(runs, compare, claims)
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

    run: Run
    name: Path
    """Tells it apart from the other runs of the report."""
    title: str
    """What it is called; empty where it is the only one."""
    comparison: Comparison | None


def _read(runs: Sequence[Path], compare: Path | None, claims: Sequence[Claim]) -> list[_Shown]:
    from longgame.audit.run import load_run
    from longgame.errors import RecipeError, ResumeError
    from longgame.report.compare import compare as compare_runs
    from longgame.report.run import names_of

    if len({run.resolve() for run in runs}) < len(runs):
        raise RecipeError("a run directory is given twice. Name each run once.")
    loaded = [load_run(run) for run in runs]
    if claims and (unfinished := [f"{each.folder}: {each.progress}" for each in loaded if not each.finished]):
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
        shown.append(_Shown(each, name, title, comparison))
    return shown


def _page(shown: Sequence[_Shown], trials: int) -> str:
    from longgame.report.page import render_reports
    from longgame.report.run import run_report

    return render_reports([run_report(each.run, trials // len(shown), each.title, each.comparison) for each in shown])


def _write_figures(shown: Sequence[_Shown], folder: Path) -> list[Path]:
    """Every figure; of several runs each in a folder of its own, called as the run is."""
    from longgame.report.charts import write_figures

    written = []
    for each in shown:
        written += write_figures(_figures(each), folder / each.name if len(shown) > 1 else folder)
    return written


def _figures(shown: _Shown) -> list[Figure]:
    from longgame.report.figures import figures
    from longgame.report.run import efficiency_figures_of

    run = shown.run
    drawn = figures(run.scorecard, run.own_results, run.recipe, run.picks, run.across, run.places)
    return [*drawn, *efficiency_figures_of(run)]


def _markdown(shown: _Shown) -> str:
    from longgame.report.markdown import comparison_markdown, scorecard_markdown

    run = shown.run
    text = scorecard_markdown(run.scorecard, run.own_results, run.recipe, run.environment, run.across, shown.title)
    told = f"\n## Against the baseline\n\n{comparison_markdown(shown.comparison)}\n" if shown.comparison else ""
    return (f"> {run.progress}\n\n" if run.progress else "") + text + told


def _card(shown: _Shown) -> str:
    from longgame.report.markdown import audit_card
    from longgame.report.run import condition_notes

    run = shown.run
    return audit_card(
        run.scorecard,
        run.own_results,
        run.recipe,
        run.environment,
        run.progress,
        shown.comparison,
        across=run.across,
        notes=condition_notes(run),
        title=shown.title,
    )


def _holds(claims: tuple[Claim, ...], shown: Sequence[_Shown], console: Console) -> bool:
    """Print which claims hold of which run, or that none does."""
    from longgame.report.answer import true_claims

    held = [
        f"{each.title or each.run.recipe.name}: {claim}"
        for each in shown
        for claim in true_claims(claims, each.run.scorecard, each.run.across)
    ]
    for line in held:
        console.print(f"failed: {line}", soft_wrap=True)
    if not held:
        asked = sum(1 if each.run.across is None else len(each.run.across.cards) for each in shown)
        where = f" in any of {asked} conditions" if asked > len(shown) else ""
        console.print(f"passed: none of {' or '.join(map(str, claims))} holds{where}.", soft_wrap=True)
    return bool(held)


# ``longgame compare``: efficiency and feasibility of audited selectors beside published methods.

_KINDS = (".html", ".md", ".csv")


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run directories with full-data trials (full_data: true).")
    ],
    out: Annotated[Path | None, typer.Option(help="A file as well: .html, .md or .csv.")] = None,
    figures: Annotated[Path | None, typer.Option(help="Folder for the figures as SVG and PNG.")] = None,
    view: Annotated[str, typer.Option(help="Scorer: primary, token_accuracy or exact_match.")] = "primary",
) -> None:
    """Put selectors beside published ones: PIR (score over that of all data), SDF (share selected), feasibility."""
    from longgame.audit.run import load_run
    from longgame.errors import RecipeError
    from longgame.report.charts import write_figures
    from longgame.report.compare import (
        PUBLISHED,
        comparison,
        comparison_page,
        efficiency_figures,
        efficiency_table,
        feasibility_table,
    )
    from longgame.report.markdown import escape, pipes
    from longgame.report.page import write_page
    from longgame.report.run import compared, names_of
    from longgame.report.tables import selectors_in_order
    from longgame.report.terminal import print_table

    if len({run.resolve() for run in runs}) < len(runs):
        raise RecipeError("a run directory is given twice. Name each run once.")
    if out is not None and out.suffix not in _KINDS:
        raise RecipeError(f"--out is '{out}'; its name must end in {', '.join(_KINDS[:-1])} or {_KINDS[-1]}.")
    loaded = [load_run(run) for run in runs]
    titles = [str(name) for name in names_of(runs)] if len(runs) > 1 else [""]
    parts = [part for each, title in zip(loaded, titles, strict=True) for part in compared(each, title, view)]
    notes = [note for each in loaded for note in _notes(each, view)]
    frame = comparison(parts)
    order = [name for each in loaded for name in selectors_in_order(each.scorecard, each.recipe)]
    drawn = efficiency_figures(frame, order, loaded[0].scorecard.reference) if out or figures else []
    tables = (efficiency_table(frame), feasibility_table(frame))
    console = Console(highlight=False, markup=False)
    for table in tables:
        print_table(table, console)
        console.print(table.note, style="dim")
        console.print()
    for note in notes:
        console.print(f"note: {note}", style="dim", soft_wrap=True)
    written: list[Path] = []
    title = f"Selectors beside published methods: {', '.join(each.recipe.name for each in loaded)}"
    if out is not None:
        if out.suffix == ".csv":
            text = frame.to_csv(index=False)
        elif out.suffix == ".html":
            text = comparison_page(frame, title, notes, drawn)
        else:
            shown = [f"## {table.title}\n\n{pipes(table)}\n\n{table.note}" for table in tables]
            sources = frame.loc[frame["kind"] == PUBLISHED, "source"].unique()
            told = "\n".join(f"- {escape(note)}" for note in (*notes, *(f"Published points: {s}." for s in sources)))
            text = "\n\n".join([f"# {escape(title)}", *shown, "## Notes", told]) + "\n"
        write_page(out, text)
        written.append(out)
    if figures is not None:
        written += write_figures(drawn, figures)
    if written:
        console.print(f"Written: {', '.join(map(str, written))}", soft_wrap=True)


def _notes(run: Run, view: str) -> list[str]:
    """What the numbers of a run leave out, in words."""
    from longgame.audit.plan import FULL_DATA, shares_full_data
    from longgame.metrics.efficiency import undefined_ratios

    name, notes = run.recipe.name, [f"{run.recipe.name}: {run.progress}"] if run.progress else []
    if run.full_data is not None and (zero := undefined_ratios(run.full_data, view)):
        notes.append(
            f"{name}: a full-data trial scored 0 on {', '.join(zero)}; no PIR over it is defined for that seed."
        )
    other = [each for each in run.plan.conditions if each != FULL_DATA and not shares_full_data(each)]
    if other:
        notes.append(
            f"{name}: {len(other)} condition(s) differ from the full-data trials in more than budget and rounds and "
            f"are left out: {', '.join(other[:5])}{' …' if other[5:] else ''}."
        )
    return notes
