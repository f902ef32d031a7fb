"""Three renderers of a `Layout`: the terminal, Markdown, and one self-contained HTML page."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import jinja2
import vl_convert
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text as RichText

from longgame.audit.run import Run
from longgame.escape import markdown_code, markdown_line, markdown_text, visible
from longgame.report.answer import VerdictLine
from longgame.report.charts import VEGA_LITE, figure_svg
from longgame.report.layout import (
    Block,
    Bullets,
    Facts,
    Layout,
    Source,
    Text,
    Verdicts,
    answer_section,
    report_layout,
    scorecard_section,
    verdicts_section,
)
from longgame.report.tables import Cell, Table
from longgame.storage import refresh_file

_TONES = {"myopic": "bad", "long-horizon worse": "bad", "long-horizon better": "good"}
"""Verdict → how it is colored."""


def write_report(run: Run) -> None:
    """Write scorecard.md and report.html into the run's folder, and the table of very many trials beside it.

    Raises:
        ResumeError: a selection table cannot be read. StorageError: a file cannot be written.
    """
    layout = report_layout(run)
    refresh_file(run.folder / "scorecard.md", markdown(layout).encode())
    refresh_file(run.folder / "report.html", html_page([layout]).encode())
    for name, make in layout.files.items():
        refresh_file(run.folder / name, make().encode())


# The page: it opens from disk, loads nothing, and shows dataset text as text.


def _environment() -> jinja2.Environment:
    """Templates whose values are escaped and made visible."""
    environment = page_environment()
    environment.filters["kind"] = lambda block: type(block).__name__
    environment.filters["tone"] = lambda line: _TONES.get(line.word, "plain")
    environment.filters["svg"] = figure_svg
    environment.tests["with_aside"] = lambda block: isinstance(block, Table) and any(c.aside for c in block.columns)
    return environment


def page_environment() -> jinja2.Environment:
    """What renders the pages: every text is escaped, its control characters written out."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("longgame.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,  # not what is HTML already
    )


def html_page(layouts: Sequence[Layout], scripts: bool = True) -> str:
    """One page with an article per layout (about 1 MB, most of it the script that draws the charts).

    Args:
        scripts: without them, figures are SVG, and tables cannot be sorted.
    """
    prefixes = [f"run{place}-" if len(layouts) > 1 else "" for place in range(1, len(layouts) + 1)]
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            runs=[
                {"layout": layout, "prefix": prefix, "sections": layout.shown("page")}
                for layout, prefix in zip(layouts, prefixes, strict=True)
            ],
            scripts=scripts,
            filters={
                prefix: {"families": dict(layout.families), "colors": dict(layout.colors)}
                for layout, prefix in zip(layouts, prefixes, strict=True)
                if layout.families
            },
            charts={
                f"{prefix}{figure.name}-{place}": chart
                for layout, prefix in zip(layouts, prefixes, strict=True)
                for figure in layout.figures
                for place, chart in enumerate(figure.charts, 1)
            },
            bundle=finish_bundle() if scripts else "",
            sortable=(files("longgame.report") / "static" / "sortable.min.js").read_text(encoding="utf-8"),
        )
    )


def _notebook_layout(run: Run) -> Layout | None:
    """The verdicts and the scores; None before the first finished stage of the recipe's own condition."""
    if not any(run.finished_stages[trial.name] for trial in run.plan.own_trials):
        return None
    return Layout(run.recipe.name, [answer_section(run), verdicts_section(run), scorecard_section(run)], run.progress)


def notebook_html(run: Run) -> str:
    """What a notebook shows of a run: its answer in a sentence, a verdict per selector and the scores."""
    layout = _notebook_layout(run)
    template = _environment().get_template("notebook.html.j2")
    return template.render(run=run, layout=layout, sections=layout.shown("card") if layout else [])


def notebook_markdown(run: Run) -> str:
    """The same in Markdown."""
    layout = _notebook_layout(run)
    return markdown_card(layout) if layout else markdown_text(run.progress)


_MAKE_BUNDLE = "import sys, vl_convert; sys.stdout.write(vl_convert.javascript_bundle(sys.argv[1], sys.argv[2]))"
_BUNDLED = "window.vegaEmbed = vegaEmbed;"


@cache
def begin_bundle() -> subprocess.Popen[bytes]:
    """Start to make the script that draws charts (Vega, Vega-Lite, vega-embed) in another process."""
    command = [sys.executable, "-c", _MAKE_BUNDLE, _BUNDLED, VEGA_LITE]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


@cache
def finish_bundle() -> str:
    """The script, safe between script tags; made here where `begin_bundle` was not called or its process failed."""
    script = ""
    if begin_bundle.cache_info().currsize:
        process = begin_bundle()
        output = process.communicate()[0]
        script = output.decode() if process.returncode == 0 else ""
    script = script or vl_convert.javascript_bundle(_BUNDLED, vl_version=VEGA_LITE)
    return re.sub(r"</(?=script)", r"<\\/", script, flags=re.IGNORECASE)


# Markdown, fit for a repository, a pull request or a model card.


def markdown(layout: Layout) -> str:
    """The report as Markdown: everything but figures and single trials."""
    parts = [f"# {layout.subject}: {markdown_text(layout.title)}", *_markdown_parts(layout, "markdown", "##")]
    return "\n\n".join(parts) + "\n"


def markdown_card(layout: Layout) -> str:
    """A short audit card for a model card or a pull request."""
    parts = [f"## Data-selection audit: {markdown_text(layout.title)}", *_markdown_parts(layout, "card", "###")]
    return "\n\n".join([*parts, "Made with longgame."]) + "\n"


def _markdown_parts(layout: Layout, output: Any, level: str) -> list[str]:
    parts = [f"> {markdown_text(layout.progress)}"] if layout.progress else []
    for section, blocks in layout.shown(output):
        parts.append(f"{level} {markdown_text(section.title)}")
        for block in blocks:
            parts += _markdown_block(block, level + "#")
    return parts


def _markdown_block(block: Block, level: str) -> list[str]:
    title = getattr(block, "title", "")
    heading = [f"{level} {markdown_text(title)}"] if title else []
    match block:
        case Text():
            if block.tone == "lead":
                return [f"**{markdown_text(block.text)}**"]
            return [("> " if block.tone == "note" else "") + markdown_line(block.text)]
        case Facts():
            pairs = ((markdown_text(name), markdown_text(value)) for name, value in block.pairs.items())
            return [*heading, "\n".join(f"- **{name}**: {value}" for name, value in pairs)]
        case Bullets():
            return [*heading, "\n".join(f"- {markdown_line(item)}" for item in block.items)]
        case Verdicts():
            return ["\n".join(map(_verdict_bullet, block.lines))]
        case Table():
            return [*heading, pipes(block), *([markdown_line(block.note)] if block.note else [])]
        case Source():
            code = markdown_code(block.text, "yaml")
            return [f"<details><summary>{markdown_text(title)}</summary>\n\n{code}\n\n</details>"]
    return []


def _verdict_bullet(line: VerdictLine) -> str:
    selector, word, reasons = map(markdown_text, (line.selector, line.word, " ".join(line.reasons)))
    return f"- **{selector}**: *{word}*. {reasons}"


def pipes(table: Table) -> str:
    """The table in Markdown, every cell's text escaped."""
    table = table.without_asides()
    rows = [
        [markdown_text(column.label) for column in table.columns],
        ["---:" if column.numeric else "---" for column in table.columns],
        *([_markdown_cell(cell) for cell in row] for row in table.rows),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _markdown_cell(cell: Cell) -> str:
    text = f"**{markdown_text(cell.text)}**" if cell.best else markdown_text(cell.text)
    return f"{text} {markdown_text(cell.mark)}" if cell.mark else text


# The terminal: tables that fit the window.

_STYLES = {"▲": "green", "▼": "red", "*": "yellow", "bad": "red", "good": "green", "plain": "default"}
_TONE_STYLES = {"lead": "bold", "soft": "dim", "note": "yellow", "plain": ""}
_PADDING = 2


def print_layout(layout: Layout, console: Console, output: Literal["summary", "terminal"] = "terminal") -> None:
    """Print a report; a table wider than the console is cut into several, each with the names of its rows.

    Args:
        output: all that a terminal can show, or the summary, which fits one screen.
    """
    for section, blocks in layout.shown(output):
        console.print()
        console.print(RichText(section.title, style="bold underline"))
        for block in blocks:
            _print_block(block, console)
    if layout.progress:
        console.print(RichText(layout.progress, style=_TONE_STYLES["note"]))


def _print_block(block: Block, console: Console) -> None:
    match block:
        case Text():
            console.print(RichText(block.text, style=_TONE_STYLES[block.tone]))
        case Facts():
            for name, value in block.pairs.items():
                console.print(RichText.assemble((name, "bold"), f": {value}"))
        case Bullets():
            for item in block.items:
                console.print(RichText(f"note: {item}", style="dim"))
        case Verdicts():
            for line in block.lines:
                word = (line.word, _STYLES[_TONES.get(line.word, "plain")])
                reason, *others = line.reasons
                parts = (line.selector, "bold"), ": ", word, f" — {reason} ", (" ".join(others), "dim")
                console.print(RichText.assemble(*parts))
        case Table():
            print_table(block, console)


def print_table(table: Table, console: Console) -> None:
    """Print a table and its note; too wide for the terminal, without minor columns, and then cut into parts."""
    table = table.without_asides()
    if len(column_parts(table, console.width)) > 1:
        table = table.without_minor()
    console.print(RichText(table.title, style="bold"))
    for positions in column_parts(table, console.width):
        shown = RichTable(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for position in positions:
            column, width = table.columns[position], _width(table, position) - _PADDING
            justify: Any = "right" if column.numeric else "left"
            shown.add_column(RichText(column.short or column.label), justify=justify, min_width=width, max_width=width)
        for row in table.rows:
            shown.add_row(*(_terminal_cell(row[position]) for position in positions))
        console.print(shown)
    if table.note:
        console.print(RichText(table.note, style="dim"))


def column_parts(table: Table, width: int) -> list[list[int]]:
    """Columns of each part: as few parts as fit the width, of nearly equal width, each with the row names first."""
    first, *others = [_width(table, position) for position in range(len(table.columns))]

    def parts(limit: int) -> list[list[int]]:
        groups: list[list[int]] = []
        used = limit + 1
        for position, needed in enumerate(others, start=1):
            if used + needed > limit:
                groups.append([0])
                used = first
            groups[-1].append(position)
            used += needed
        return groups

    fewest = parts(width)
    while len(narrower := parts(width - 1)) == len(fewest) and width > first + max(others):
        fewest, width = narrower, width - 1
    return fewest


def _width(table: Table, position: int) -> int:
    """Characters that a column needs: its widest cell, or the longest word of its heading."""
    column = table.columns[position]
    cells = (len(_terminal_cell(row[position])) for row in table.rows)
    return max([*cells, *(cell_len(word) for word in (column.short or column.label).split())], default=1) + _PADDING


def _terminal_cell(cell: Cell) -> RichText:
    text = RichText(cell.short or cell.text, style="bold" if cell.best else "")
    if cell.mark:
        text.append(cell.mark, style=_STYLES[cell.mark])
    return text
