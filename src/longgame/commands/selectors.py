"""``longgame selectors`` and ``longgame check-selector``: what a recipe can name, and what breaks the contract."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from longgame.commands.terminal import Terminal
from longgame.data.examples import WEIGHT
from longgame.errors import LonggameError, PluginError, unknown
from longgame.limits import time_limit
from longgame.offline.options import parse_selector
from longgame.recipe import SelectorSpec
from longgame.registry import plugin_at_work
from longgame.selection.base import SELECTORS, MethodNotes, Selector, build_selector, notes_of
from longgame.selection.families import family_of, needs_of
from longgame.signals.base import CONTEXT, COST_CLASSES, SIGNALS, cost_class
from longgame.testing import CONTRACT

_CLAUSE_SECONDS = 120.0
_WIDE = 120
"""Columns of a terminal from which the list shows family and paper."""


def selectors(
    name: Annotated[str | None, typer.Argument(help="Explain this selector: a name, or file.py:Class.")] = None,
    signals: Annotated[bool, typer.Option("--signals", help="List the signals that longgame score computes.")] = False,
) -> None:
    """List the selectors with paper, needs and cost, or explain one of them.

    Example: longgame selectors ifd
    """
    if signals:
        _print_signals()
    elif name is not None:
        _explain(name)
    else:
        _list()


def _list() -> None:
    console = Terminal()
    headings: tuple[str, ...] = ("name", "family", "method", "needs", "cost", "paper")
    if console.width < _WIDE:  # six columns would be a few letters wide
        headings = ("name", "method", "needs", "cost")
    rows, unusable = [], []
    for name in SELECTORS.names():
        try:
            selector = build_selector(name)
        except LonggameError as error:  # of an installed plug-in; the others are still listed
            rows.append({"name": name, "family": "?", "method": "cannot be used, see below", "needs": "?", "cost": "?"})
            unusable.append(f"{name} cannot be used: {str(error).partition(chr(10))[0]}")
            continue
        notes = notes_of(type(selector))
        needs, cost = ", ".join(needs_of(selector)), cost_class(selector.requires)
        summary = f"{notes.summary.rstrip('.')} (gives weights)" if selector.weighs else notes.summary
        row = {"name": name, "family": family_of(selector), "method": escape(summary), "needs": needs or "nothing"}
        rows.append({**row, "cost": cost, "paper": escape(notes.paper.rstrip("."))})
    wide = "paper" in headings
    table = Table() if wide else Table(box=None, padding=(0, 2, 0, 0))
    for heading in headings:
        ratio = None if wide else {"method": 2, "needs": 1}.get(heading)
        table.add_column(heading, overflow="fold", no_wrap=not wide and ratio is None, ratio=ratio)
    for row in rows:
        table.add_row(*(row.get(heading, "") for heading in headings))
    console.print(table)
    for line in unusable:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print("Cost: " + "; ".join(f"{key}: {text}" for key, text in COST_CLASSES.items()), highlight=False)
    papers = "" if wide else f" (its paper and family, too; {_WIDE} columns list them)"
    console.print(f"Explain one: longgame selectors NAME{papers}", highlight=False)
    console.print("Your own selector: --selector path/to/file.py:Class", highlight=False)
    console.print("Scores of another system: --selector scores:FILE (.parquet, .csv, .jsonl)", highlight=False)


def _explain(name: str) -> None:
    selector = build_selector(name)
    kind = type(selector)
    notes = notes_of(kind)
    console = Terminal()
    console.print(f"{selector.name}: {notes.summary}", markup=False, highlight=False, style="bold")
    for label, text in facts_of(name, selector, notes):
        console.print(f"{label}: {text}", markup=False, highlight=False)
    if selector.requires:
        table = Table("signal", "meaning", "unit", title="Signals", title_justify="left")
        for signal in (*SIGNALS.values(), *CONTEXT.values()):
            if signal.name in selector.requires:
                table.add_row(signal.name, escape(signal.meaning), escape(signal.unit))
        console.print(table)
    parameters = inspect.signature(kind).parameters
    if not parameters:
        console.print("It has no parameters.", highlight=False)
        return
    table = Table("parameter", "default", "meaning", title="Parameters", title_justify="left")
    for parameter in parameters.values():
        default = "required" if parameter.default is parameter.empty else repr(parameter.default)
        table.add_row(parameter.name, escape(default), escape(meaning_of(kind, parameter.name)))
    console.print(table)


def facts_of(name: str, selector: Selector, notes: MethodNotes) -> Iterator[tuple[str, str]]:
    from longgame.metrics.efficiency import feasibility_of

    if notes.paper:
        yield "Paper", notes.paper
    if notes.formula:
        yield "Formula", notes.formula
    cost = cost_class(selector.requires)
    yield "Cost", notes.cost or f"{cost}, {COST_CLASSES[cost]}."
    yield "Family", family_of(selector)
    yield "Needs", (", ".join(needs_of(selector)) or "nothing") + "."
    if selector.weighs:
        yield "Weights", f"each pick's loss gets a factor, in the column {WEIGHT} of a subset."
    if feasibility := feasibility_of(SelectorSpec(name=name)):
        simplicity, flexibility = feasibility.simplicity_penalty, feasibility.flexibility_penalty
        yield "Feasibility penalties", f"simplicity {simplicity:g}, flexibility {flexibility:g} (arXiv 2406.14115)."


def meaning_of(kind: type, parameter: str) -> str:
    """What a class's docstring says of a parameter; empty where it says nothing."""
    arguments = _arguments(inspect.getdoc(kind) or "")
    text = arguments.get(parameter, arguments.get("others", ""))
    reference = re.match(r"(?:those|that) of `(\w+)`", text)
    if reference is None:
        return text.replace("`", "")
    for parent in (*kind.__mro__[1:], *(type(build_selector(name)) for name in SELECTORS.builtin_names())):
        if parent.__name__ == reference[1]:
            return meaning_of(parent, parameter)
    return text.replace("`", "")


def _arguments(docstring: str) -> dict[str, str]:
    """Name → text of the section ``Args:``."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", docstring, flags=re.DOTALL | re.MULTILINE)
    entries: dict[str, str] = {}
    for entry in re.split(r"^ {4}(?=\w)", section[1] if section else "", flags=re.MULTILINE):
        names, colon, text = entry.partition(": ")
        if colon:
            entries |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return entries


def _print_signals() -> None:
    table = Table()
    for heading in ("name", "unit", "meaning", "needs", "cost"):
        table.add_column(heading, overflow="fold")
    for signal in SIGNALS.values():
        table.add_row(signal.name, signal.unit, escape(signal.meaning), ", ".join(signal.needs), signal.cost)
    Terminal().print(table)


def check_selector_command(
    name: Annotated[
        str,
        typer.Argument(metavar="SELECTOR", help="FILE.py:CLASS or a name, with :parameter=value,… or not."),
    ],
    skip: Annotated[
        list[str] | None, typer.Option("--skip", help="Leave out this clause (repeat it for several).")
    ] = None,
) -> None:
    """Check that a selector keeps the contract: budgets, order of rows, ties, seeds, state, scores.

    Example: longgame check-selector my_selector.py:MySelector
    """
    skipped = set(skip or ())
    for clause in sorted(skipped - set(CONTRACT)):
        raise PluginError(unknown("clause", clause, CONTRACT))
    made = parse_selector(name)
    build_selector(*made)
    console = Terminal()
    broken = 0
    for clause, check in CONTRACT.items():
        sentence = " ".join((check.__doc__ or "").partition("\n\n")[0].split())
        if clause in skipped:
            console.print(f"skipped  {clause}", markup=False, highlight=False, soft_wrap=True)
            continue
        try:
            late = PluginError(f"it did not end within {_CLAUSE_SECONDS:g} seconds. Return from every call.")
            with time_limit(_CLAUSE_SECONDS, late), plugin_at_work(f"selector '{name}'", f"the check {clause}"):
                check(lambda: build_selector(*made))
        except LonggameError as error:
            broken += 1
            console.print(f"BROKEN   {clause}: {sentence}", markup=False, highlight=False, soft_wrap=True)
            console.print(f"         {error}", markup=False, highlight=False, soft_wrap=True)
        else:
            console.print(f"ok       {clause}: {sentence}", markup=False, highlight=False, soft_wrap=True)
    if broken:
        raise PluginError(
            f"selector '{name}' breaks {broken} of {len(CONTRACT) - len(skipped)} clauses of the contract. Mend what "
            "is named above, or leave a clause out with --skip if you mean it."
        )
    console.print(f"selector '{name}' keeps the contract.", markup=False, highlight=False)
