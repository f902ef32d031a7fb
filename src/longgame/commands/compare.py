"""``longgame compare``: efficiency and feasibility of audited selectors beside published methods."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from longgame.protocol.loaded import LoadedRun

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
    from longgame.errors import RecipeError
    from longgame.protocol.loaded import compared, load_run, names_of
    from longgame.report.html import write_page
    from longgame.report.markdown import escape, pipes
    from longgame.report.pir import (
        PUBLISHED,
        comparison,
        comparison_page,
        efficiency_figures,
        efficiency_table,
        feasibility_table,
    )
    from longgame.report.static_figures import write_figures
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


def _notes(loaded: LoadedRun, view: str) -> list[str]:
    """What the numbers of a run leave out, in words."""
    from longgame.metrics.efficiency import undefined_ratios
    from longgame.protocol.conditions import FULL_DATA, shares_full_data

    name, notes = loaded.recipe.name, [f"{loaded.recipe.name}: {loaded.progress}"] if loaded.progress else []
    if loaded.full_data is not None and (zero := undefined_ratios(loaded.full_data, view)):
        notes.append(
            f"{name}: a full-data trial scored 0 on {', '.join(zero)}; no PIR over it is defined for that seed."
        )
    other = [each for each in loaded.run.conditions if each != FULL_DATA and not shares_full_data(each)]
    if other:
        notes.append(
            f"{name}: {len(other)} condition(s) differ from the full-data trials in more than budget and rounds and "
            f"are left out: {', '.join(other[:5])}{' …' if other[5:] else ''}."
        )
    return notes
