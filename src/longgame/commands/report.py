"""``longgame report``: a page, figures, Markdown and a verdict for CI from finished or partial runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from longgame.protocol.loaded import LoadedRun
    from longgame.report.charts import Figure
    from longgame.report.picks import Picks


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
        str | None, typer.Option("--fail-if", help='End with exit code 1 if so, e.g. "myopic(loss) or worse(*)".')
    ] = None,
) -> None:
    """Show what audits found: the answer in words, scorecard, figures, and every trial with what it wanted most."""
    from longgame.errors import RecipeError, ResumeError
    from longgame.protocol.loaded import SHOWN_TRIALS, load_picks, load_run, run_report
    from longgame.report.card import audit_card, comparison_markdown
    from longgame.report.compare import compare as compare_runs
    from longgame.report.gate import parse_condition, true_claims
    from longgame.report.html import begin_bundle, render_reports, write_page
    from longgame.report.markdown import scorecard_markdown
    from longgame.report.static_figures import write_figures

    console = Console(highlight=False, markup=False)
    claims = parse_condition(fail_if) if fail_if is not None else ()
    if len({run.resolve() for run in runs}) < len(runs):
        raise RecipeError("a run directory is given twice. Name each run once.")
    if out is None and not (figures or markdown or card or claims):
        out = Path("report.html")
    if out is not None:
        begin_bundle()  # it is made while the runs are read
    loaded = [load_run(run) for run in runs]
    baseline = load_run(compare) if compare is not None else None
    if claims and (unfinished := [str(each.run.folder) for each in loaded if not each.finished]):
        raise ResumeError(f"--fail-if asks for finished runs, and {', '.join(unfinished)} is not. Finish it first.")
    comparisons = [
        None
        if baseline is None
        else compare_runs(baseline.run.folder.name, baseline.scorecard, baseline.recipe, each.scorecard, each.recipe)
        for each in loaded
    ]
    picks = [load_picks(each) if out or figures else None for each in loaded]
    written: list[Path] = []
    if out is not None:
        shown = (SHOWN_TRIALS if trials is None else trials) // len(loaded)
        titles = ["" if len(loaded) == 1 else f"{each.recipe.name} ({each.run.folder.name})" for each in loaded]
        pages = [
            run_report(each, selected, shown, title, comparison)
            for each, selected, title, comparison in zip(loaded, picks, titles, comparisons, strict=True)
        ]
        write_page(out, render_reports(pages))
        written.append(out)
    if figures is not None:
        for each, selected in zip(loaded, picks, strict=True):
            folder = figures if len(loaded) == 1 else figures / each.run.folder.name
            written += write_figures(_figures(each, selected), folder)
    if markdown is not None:
        texts = []
        for each, comparison in zip(loaded, comparisons, strict=True):
            text = scorecard_markdown(each.scorecard, each.results, each.recipe, each.environment, each.across)
            told = f"\n## Against the baseline\n\n{comparison_markdown(comparison)}\n" if comparison else ""
            texts.append((f"> {each.progress}\n\n" if each.progress else "") + text + told)
        write_page(markdown, "\n".join(texts))
        written.append(markdown)
    if card is not None:
        cards = [
            audit_card(each.scorecard, each.results, each.recipe, each.environment, each.progress, comparison)
            for each, comparison in zip(loaded, comparisons, strict=True)
        ]
        write_page(card, "\n".join(cards))
        written.append(card)
    if written:
        more = f" and {len(written) - 4} more" if len(written) > 4 else ""
        console.print(f"Written: {', '.join(map(str, written[:4]))}{more}", soft_wrap=True)
    if claims:
        held = [f"{each.recipe.name}: {claim}" for each in loaded for claim in true_claims(claims, each.scorecard)]
        for line in held:
            console.print(f"failed: {line}", soft_wrap=True)
        if held:
            raise typer.Exit(1)
        console.print(f"passed: none of {' or '.join(map(str, claims))} holds.", soft_wrap=True)


def _figures(loaded: LoadedRun, picks: Picks | None) -> list[Figure]:
    from longgame.protocol.loaded import efficiency_figures_of
    from longgame.report.figures import figures as make

    drawn = make(loaded.scorecard, loaded.results, loaded.recipe, picks, loaded.across, loaded.conditions)
    return [*drawn, *efficiency_figures_of(loaded)]
