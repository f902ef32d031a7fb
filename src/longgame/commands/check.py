"""``longgame check``: what a data set holds, and what a model's tokenizer and chat template make of it."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from longgame.commands.options import TrustRemoteCode, interruptible
from longgame.commands.score import (
    ChatTemplate,
    Data,
    MaxLength,
    ModelOption,
    PadToken,
    QualityRange,
    TurnsOption,
    Where,
    one_or_all,
    parse_range,
    row_progress,
)
from longgame.commands.terminal import Terminal
from longgame.errors import StorageError
from longgame.storage import write_file

if TYPE_CHECKING:
    from longgame.offline.check_report import CheckReport, RenderedExample, Spread

_SHOWN_BAD = 5
_BAR = 32
_SHOWN_TEXT = 1500
_SHOWN_REASON = 240


def check_command(
    data: Data,
    model: ModelOption = None,
    turns: TurnsOption = "all",
    quality_range: QualityRange = "0,1",
    where: Where = None,
    max_length: MaxLength = None,
    chat_template: ChatTemplate = None,
    pad_token: PadToken = None,
    trust_remote_code: TrustRemoteCode = False,
    example: Annotated[int | None, typer.Option(help="Number of the row that is shown, from 1.")] = None,
    near: Annotated[bool, typer.Option("--near/--no-near", help="Count near-duplicates.")] = True,
    bad_rows: Annotated[
        Path | None, typer.Option(help="List all rows that cannot be used in this new file (JSON lines).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if any row cannot be used.")] = False,
) -> None:
    """Show what a data set holds and what a model would learn of it: formats, bad rows, tokens, masks, duplicates.

    Nothing is written but --bad-rows, and no weights are loaded. The exit code is 1 if no row can be used.

    Example: longgame check train.jsonl --model smollm2-135m
    """
    from longgame.offline.checking import check

    if bad_rows is not None and bad_rows.exists():
        raise StorageError(f"'{bad_rows}' exists already. Give another --bad-rows, or remove the file.")
    with interruptible("stopped; nothing was written."), row_progress("checking") as progress:
        report = check(
            one_or_all(data),
            model,
            turns=turns,  # type: ignore[arg-type]
            quality_range=parse_range(quality_range),
            where=where,
            max_length=max_length,
            chat_template=chat_template,
            pad_token=pad_token,
            trust_remote_code=trust_remote_code,
            example=example,
            near=near,
            progress=progress,
        )
    if bad_rows is not None:
        lines = [json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n" for row in report.bad]
        write_file(bad_rows, "".join(lines))
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=1, ensure_ascii=True))
    else:
        print_report(report, Terminal())
    if not report.usable or (strict and report.bad):
        raise typer.Exit(1)


def print_report(report: CheckReport, console: Any) -> None:
    """Print facts, histograms, bad rows, one example and the warnings, which come last."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in report.facts().items():
        table.add_row(name, Text(value))
    console.print(table)
    if report.lengths is not None and report.usable > 1:
        _print_histogram(f"{report.unit} of a row", report.lengths, "{:,.0f}", console)
    if report.learned is not None and report.usable > 1:
        _print_histogram("share of a row that is learned", report.learned, "{:.0%}", console)
    if report.bad:
        console.print(Text(f"\nrows that cannot be used ({len(report.bad):,})", style="bold"))
        kinds = report.kinds_of_bad()
        for row, count in kinds[:_SHOWN_BAD]:
            reason = textwrap.shorten(row.reason, _SHOWN_REASON, placeholder=" …")
            others = f" ({count - 1:,} more like it)" if count > 1 else ""
            console.print(Text.assemble(f"{row.file}:{row.number}: {reason}", (others, "dim")))
        if len(kinds) > _SHOWN_BAD:
            console.print(Text(f"… and {len(kinds) - _SHOWN_BAD:,} more kinds (--bad-rows FILE)", style="dim"))
    if report.example is not None:
        _print_example(report.example, console)
    console.print()
    for warning in report.warnings:
        console.print(Text.assemble(("note: ", "yellow"), warning))
    console.print(Text(f"checked in {report.seconds:.1f} s", style="dim"))


def _print_histogram(title: str, spread: Spread, form: str, console: Any) -> None:
    console.print(Text(f"\n{title}", style="bold"))
    largest = max(spread.counts)
    starts = [form.format(edge) for edge in spread.edges]
    width = max(map(len, starts))
    filled = [place for place, count in enumerate(spread.counts) if count]
    for place, count in list(enumerate(spread.counts))[filled[0] : filled[-1] + 1]:
        last = place + 1 == len(spread.counts)
        stop = "" if last and spread.maximum > spread.edges[-1] else starts[place + 1]
        label = f"{starts[place]:>{width}} – {stop:<{width}}"
        bar = "█" * max(round(_BAR * count / largest), 1 if count else 0)
        console.print(Text.assemble(label, " ", (bar, "cyan"), f" {count:,}" if count else ""))


def _print_example(example: RenderedExample, console: Any) -> None:
    from longgame.offline.check_report import cut_middle

    counts = f", {example.learned:,} of {example.tokens:,} tokens learned" if example.tokens else ""
    colored = console.color_system is not None
    how = "green" if colored else "in ⟦ ⟧"
    console.print(Text(f"\nrow {example.number} of {example.file}{counts} ({how})", style="bold"))
    shown = Text()
    for part, learned in example.parts:
        text = cut_middle(part, _SHOWN_TEXT)
        if learned:
            shown.append(text if colored else f"⟦{text}⟧", style="bold green")
        else:
            shown.append(text, style="dim")
    console.print(shown, soft_wrap=True)
