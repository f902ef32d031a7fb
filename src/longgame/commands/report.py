"""`longgame report` and `longgame compare`: pages, figures, Markdown, and an exit code for CI."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from longgame.commands.options import check_outputs
from longgame.commands.terminal import Terminal

if TYPE_CHECKING:
    from longgame.audit.run import Run
    from longgame.report.answer import Claim

_OBJECTS = 100_000
"""New objects between garbage collections: a report makes millions and hardly a cycle, so searching takes most time."""
HOLDS, NO_ANSWER = 1, 2
"""Exit codes of --fail-if: a claim holds; it cannot be decided, for whatever reason."""
_ADVICE = "Choose another path."
_KINDS = (".html", ".md", ".csv")


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories, finished or not.")],
    out: Annotated[
        Path | None, typer.Option(help="The page (default: report.html, unless you ask for other files).")
    ] = None,
    figures: Annotated[Path | None, typer.Option(help="Folder for every figure as SVG and PNG.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="The scorecard as Markdown, for pull requests.")] = None,
    card: Annotated[Path | None, typer.Option(help="A short audit card as Markdown, for a model card.")] = None,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME", help="Push page and audit card to this model of the hub; without a token, a dry run."
        ),
    ] = None,
    compare: Annotated[Path | None, typer.Option(help="A baseline run; the report shows what changed since.")] = None,
    trials: Annotated[
        int | None,
        typer.Option(min=0, help="Trials of each run to show in full, with examples and texts (default: 20 of all)."),
    ] = None,
    fail_if: Annotated[
        str | None,
        typer.Option("--fail-if", help='Exit with 1 if this holds, 2 if unknown: "myopic(loss) or worse(*)".'),
    ] = None,
) -> None:
    """Report what audits measured: the answer, scorecard, figures, and every trial with its examples.

    Example: longgame report runs/quickstart --out report.html --card card.md
    """
    from longgame.errors import LonggameError, ResumeError
    from longgame.report.answer import parse_condition
    from longgame.report.baseline import compare_with
    from longgame.report.charts import write_figures
    from longgame.report.layout import SHOWN_TRIALS, report_layout
    from longgame.report.render import begin_bundle, html_page, markdown_card
    from longgame.report.render import markdown as scorecard_markdown
    from longgame.storage import write_file

    console = Terminal(highlight=False, markup=False)
    gc.set_threshold(_OBJECTS)
    try:
        claims = parse_condition(fail_if) if fail_if is not None else ()
        if out is None and not (figures or markdown or card or claims or push):
            out = Path("report.html")
        check_outputs(
            {"--out": out, "--markdown": markdown, "--card": card}, runs if compare is None else [*runs, compare]
        )
        if out is not None:
            begin_bundle()  # runs while the results are read
        loaded = _load(runs)
        if claims and (unfinished := [f"{run.folder}: {run.progress}" for run in loaded if not run.finished]):
            remedy = "Finish it first: longgame audit RUN"
            raise ResumeError(f"--fail-if needs finished runs. {' '.join(unfinished)} {remedy}")
        several, count = len(loaded) > 1, -(-SHOWN_TRIALS // len(loaded)) if trials is None else trials
        baseline = _load([compare])[0] if compare is not None else None
        names = short_names(runs if compare is None else [*runs, compare])
        layouts = []
        stem = "longgame-report" if out is None else out.stem
        for place, (run, name) in enumerate(zip(loaded, names, strict=False), 1):
            comparison = compare_with(baseline, run, str(names[-1])) if baseline is not None else None
            title = f"{run.recipe.name} ({name})" if several else ""
            file = f"{stem}-{place}-trials.csv" if several else f"{stem}-trials.csv"
            layouts.append(report_layout(run, title, comparison, count, file))
        written: list[Path] = []
        if out is not None:
            write_file(out, html_page(layouts), _ADVICE)
            written.append(out)
            for file, make in (item for layout in layouts for item in layout.files.items()):
                write_file(out.with_name(file), make(), _ADVICE)
                written.append(out.with_name(file))
        if figures is not None:
            for layout, name in zip(layouts, names, strict=False):
                written += write_figures(layout.figures, figures / name if several else figures)
        for path, render in ((markdown, scorecard_markdown), (card, markdown_card)):
            if path is not None:
                write_file(path, "\n".join(map(render, layouts)), _ADVICE)
                written.append(path)
        _print_written(written, console)
        if push is not None:
            from longgame.models.hub import push as push_to_hub

            page, section = html_page(layouts).encode(), "\n".join(map(markdown_card, layouts))
            files = {name: make().encode() for layout in layouts for name, make in layout.files.items()}
            files["longgame-report.html"] = page
            done = push_to_hub(push, "model", files, section, "Audit of data selection")
            console.print(str(done), soft_wrap=True)
        if claims and _holds(claims, loaded, [layout.title for layout in layouts], console):
            raise typer.Exit(HOLDS)
    except LonggameError as error:
        if fail_if is not None:
            error.exit_code = NO_ANSWER
        raise


def _load(folders: Sequence[Path]) -> list[Run]:
    from longgame.audit.run import load_run
    from longgame.errors import RecipeError

    if len({os.path.realpath(folder) for folder in folders}) < len(folders):
        raise RecipeError("a run directory is given twice. Name each run once.")
    return [load_run(folder) for folder in folders]


def short_names(folders: Sequence[Path]) -> list[Path]:
    """The end of each path, as short as distinguishes all of them.

    ``runs/a`` and ``runs/b`` become a and b; ``monday/skill`` and ``tuesday/skill`` keep both parts.
    """
    paths = [Path(os.path.realpath(folder)).parts for folder in folders]
    names = []
    for path in paths:
        alike = {other for other in paths if other[-1:] == path[-1:]}
        longest = max(len(other) for other in alike)
        depth = next(n for n in range(1, longest + 1) if len({other[-n:] for other in alike}) == len(alike))
        names.append(Path(*path[-depth:]))
    return names


def _print_written(written: Sequence[Path], console: Console) -> None:
    if written:
        further = f" and {len(written) - 4} more" if len(written) > 4 else ""
        console.print(f"Written: {', '.join(map(str, written[:4]))}{further}", soft_wrap=True)


def _holds(claims: Sequence[Claim], runs: Sequence[Run], titles: Sequence[str], console: Console) -> bool:
    """Print which claims hold of which run, or that none does."""
    from longgame.report.answer import true_claims

    failures = [
        f"failed: {title}: {claim}"
        for run, title in zip(runs, titles, strict=True)
        for claim in true_claims(claims, run)
    ]
    for line in failures:
        console.print(line, soft_wrap=True)
    if not failures:
        conditions = sum(len(run.scorecards) for run in runs)
        where = f" in any of {conditions} conditions" if conditions > len(runs) else ""
        console.print(f"passed: none of {' or '.join(map(str, claims))} holds{where}.", soft_wrap=True)
    return bool(failures)


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run directories with full-data trials (full_data: true).")
    ],
    out: Annotated[Path | None, typer.Option(help="Also write a file: .html, .md or .csv.")] = None,
    figures: Annotated[Path | None, typer.Option(help="Folder for the figures as SVG and PNG.")] = None,
    view: Annotated[str, typer.Option(help="Scorer: primary, token_accuracy or exact_match.")] = "primary",
) -> None:
    """Put selectors beside published ones: PIR (score over that of all data), SDF (share selected), feasibility.

    Example: longgame compare runs/full --out compare.html
    """
    from longgame.errors import RecipeError
    from longgame.escape import csv_text
    from longgame.report.charts import write_figures
    from longgame.report.efficiency import compared_conditions, efficiency_frame
    from longgame.report.layout import efficiency_layout
    from longgame.report.render import html_page, print_layout
    from longgame.report.render import markdown as layout_markdown
    from longgame.storage import write_file

    if out is not None and out.suffix not in _KINDS:
        raise RecipeError(f"--out is '{out}'; its name must end in {', '.join(_KINDS[:-1])} or {_KINDS[-1]}.")
    check_outputs({"--out": out}, runs)
    loaded = _load(runs)
    titles = [str(name) for name in short_names(runs)] if len(runs) > 1 else [""]
    parts = [part for run, title in zip(loaded, titles, strict=True) for part in compared_conditions(run, title, view)]
    frame = efficiency_frame(parts)
    console = Terminal(highlight=False, markup=False)
    layout = efficiency_layout(frame, loaded, view)
    print_layout(layout, console)
    written: list[Path] = []
    if out is not None:
        if out.suffix == ".csv":
            text = csv_text(frame)
        else:
            text = html_page([layout], scripts=False) if out.suffix == ".html" else layout_markdown(layout)
        write_file(out, text, _ADVICE)
        written.append(out)
    if figures is not None:
        written += write_figures(layout.figures, figures)
    _print_written(written, console)
