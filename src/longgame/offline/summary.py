"""A selection in numbers, against its pool: a summary for the terminal and for notebooks."""

from __future__ import annotations

import html
import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from longgame.data.examples import WEIGHT
from longgame.escape import visible
from longgame.offline.options import Budget, parse_selector
from longgame.offline.outcome import Cut, SubsetOutcome

_VALUES = 12
"""Values of a grouping column that are shown; the others are one."""


@dataclass(frozen=True)
class GroupShare:
    """One value of a grouping column (a skill, a source, a cluster), in the pool and among the picks."""

    name: str
    pool: int
    picked: int


@dataclass(frozen=True)
class SubsetFacts:
    """A selection in numbers; what all its views show."""

    title: str
    lead: str
    """One sentence: what was selected of what."""
    facts: Mapping[str, str]
    groups: Mapping[str, Sequence[GroupShare]]
    """``skill``, ``source``, ``cluster``, where rows have them; the largest values, the others together."""
    terms: Mapping[str, tuple[float, float]]
    """Term of the score → mean over the pool and over the picks."""
    cut: Cut | None
    """Where the budget ended; None without scores."""
    audit_note: str
    audit: str
    """The command that tests this selector on the user's next stages."""

    @classmethod
    def of(cls, outcome: SubsetOutcome, manifest: Mapping[str, Any]) -> SubsetFacts:
        """Count a selection."""
        tokens, picks, pool = outcome.tokens, outcome.picks, outcome.candidates
        n, unit = len(picks), outcome.unit
        part = tokens[picks].sum() / max(1, tokens[pool].sum())
        label, selector = outcome.rows.source.label, outcome.options.label
        lead = (
            f"{n:,} of {len(pool):,} rows ({_percent(n / len(pool))}) with {tokens[picks].sum():,} of "
            f"{tokens[pool].sum():,} {unit} ({_percent(part)}), by the selector {selector}."
        )
        return cls(
            title=f"{selector} on {label}",
            lead=lead,
            facts=_facts(outcome, manifest),
            groups=_groups(outcome),
            terms={
                name: (_mean(column[pool]), _mean(column[picks]))
                for name, column in outcome.terms.items()
                if not np.isnan(column[pool]).all()
            },
            cut=outcome.cut,
            audit_note=audit_note(outcome),
            audit=audit_line(outcome),
        )


def audit_line(outcome: SubsetOutcome) -> str:
    """Return the commands that test a selector on the user's next stages: files of a folder ``stages``."""
    name, _ = parse_selector(outcome.options.label)
    selectors = ",".join(dict.fromkeys(("random", name)))
    budget = Budget.parse(outcome.options.budget)
    spendable = int(outcome.costs[outcome.candidates].sum())
    part = budget.value if budget.kind == "share" else min(1.0, float(f"{outcome.asked / spendable:.2g}"))
    share = np.format_float_positional(part, trim="-")  # a recipe reads no exponents
    model = outcome.model
    words = ["longgame", "audit", "stages/recipe.yaml", "--selectors", selectors, "--budget", share]
    return "longgame init stages && " + shlex.join([*words, *(["--model", model] if model else [])])


def audit_note(outcome: SubsetOutcome) -> str:
    """Return what the audit is for, and what its user prepares."""
    parameters = {**parse_selector(outcome.options.label)[1], **outcome.options.parameters}
    names = ", ".join(parameters)
    return (
        "These shares do not say what the selection does to a model. An audit trains on your next stages and compares "
        "the selector with random selection. Put the stages' files into a folder, such as stages/math_train.jsonl and "
        f"stages/math_eval.jsonl{f', and write {names} into the recipe' if names else ''}:"
    )


def _facts(outcome: SubsetOutcome, manifest: Mapping[str, Any]) -> dict[str, str]:
    rows, options, unit = outcome.rows, outcome.options, outcome.unit
    means = [_mean(outcome.tokens[part].astype(float)) for part in (outcome.picks, outcome.candidates)]
    facts = {
        "data": f"{rows.source.label}: {rows.total:,} rows, {len(outcome.candidates):,} in the pool",
        "left out": _left_out(outcome),
        "cut": f"{outcome.cut_rows:,} of {outcome.scored_rows:,} scored rows, after {outcome.max_length:,} tokens "
        "(--max-length)"
        if outcome.cut_rows
        else "",
        "model": outcome.weights or "none (lengths are characters)",
        "selector": options.label + "".join(f", {name}={value}" for name, value in options.parameters.items()),
        "budget": f"{manifest['budget']['budget']}: {outcome.asked:,} {outcome.budget_unit}"
        f"{' beside the replay' if outcome.replay else ''}, spent {outcome.spent:,} "
        f"({_percent(outcome.spent / max(1, outcome.asked))})",
        f"mean {unit} of a row": f"{means[0]:,.0f} selected, {means[1]:,.0f} in the pool",
        "learned": f"{_percent(outcome.mask_share)} of the selected {unit}",
        "weights": _weights(outcome),
        "seed": str(options.seed),
    }
    if outcome.notes:
        facts["note"] = "; ".join(outcome.notes)
    if outcome.replay:
        parts = ", ".join(f"{len(chosen):,} rows of {earlier.source.label}" for earlier, chosen in outcome.replay)
        how = "" if options.replay_choice == "uniform" else f", by {options.replay_choice}"
        facts["replayed"] = f"{parts} ({_percent(options.replay_share)} of the budget{how})"
    return {name: value for name, value in facts.items() if value}


def _weights(outcome: SubsetOutcome) -> str:
    weights = outcome.pick_weights
    if weights is None:
        return ""
    return (
        f"{weights.min():.3g} to {weights.max():.3g}, mean {weights.mean():.3g}, in the column {WEIGHT}. longgame "
        "train and longgame's trainers multiply each row's loss by it; other trainers ignore it and lose the weights"
    )


def _left_out(outcome: SubsetOutcome) -> str:
    rows = outcome.rows
    counts = {
        "cannot be used": len(rows.bad) + len(outcome.unscored),
        "by the condition": rows.filtered,
        "duplicates": int((outcome.repeats >= 0).sum()),
    }
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items() if count)


def _groups(outcome: SubsetOutcome) -> dict[str, list[GroupShare]]:
    columns: dict[str, Any] = {name: np.asarray(values, dtype=object) for name, values in outcome.rows.groups.items()}
    if outcome.clusters is not None:
        columns["cluster"] = outcome.clusters
    result = {}
    for name, values in columns.items():
        pool = Counter(_label(value) for value in values[outcome.candidates].tolist())
        picked = Counter(_label(value) for value in values[outcome.picks].tolist())
        shares = [GroupShare(value, count, picked[value]) for value, count in pool.most_common()]
        first, others = shares[:_VALUES], shares[_VALUES:]
        if others:
            total = (sum(share.pool for share in others), sum(share.picked for share in others))
            first.append(GroupShare(f"{len(others):,} others", *total))
        result[name] = first
    return result


def _label(value: Any) -> str:
    return "(none)" if value is None else str(value)


def _mean(values: Float[np.ndarray, " n"]) -> float:
    finite = values[~np.isnan(values)]
    return float(finite.mean()) if len(finite) else math.nan


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def cut_words(cut: Cut) -> str:
    """Down to which score rows were selected, and how many picks lie below it."""
    start, lowest = plain_number(cut.score), plain_number(cut.lowest)
    if not cut.fillers:
        return f"selected from {start} on"
    rows, verb = (f"{cut.fillers:,} rows", "fill") if cut.fillers > 1 else ("1 row", "fills")
    if cut.score == math.inf:
        return f"the budget does not hold the row of the highest score; {rows} below it, down to {lowest}, {verb} it"
    return f"selected from {start} on; {rows} below it, down to {lowest}, {verb} what was left of the budget"


def plain_number(value: float) -> str:
    """Four digits; empty for NaN."""
    return "" if math.isnan(value) else f"{value:.4g}"


def first_group(view: SubsetFacts) -> str:
    """The grouping that is shown first: one of at least two values; empty without any."""
    return next((name for name, shares in view.groups.items() if len(shares) > 1), "")


def largest_shift(view: SubsetFacts) -> str:
    """A clause: the value of the first grouping whose share differs most between pool and picks; empty without any."""
    shares = view.groups.get(first_group(view), ())
    parts = {share.name: _parts(share, shares) for share in shares}
    name, (pool, picked) = max(parts.items(), key=lambda item: abs(item[1][1] - item[1][0]), default=("", (0.0, 0.0)))
    if pool == picked:
        return ""
    return f"{name} is {_percent(pool)} of the pool's rows and {_percent(picked)} of the selected, the largest shift"


def first_table(view: SubsetFacts, outcome: SubsetOutcome) -> dict[str, Any]:
    """The table beside the first figure: shares of rows in percent; without a grouping, lengths of a row."""
    name = first_group(view)
    if not name:
        lengths = [outcome.tokens[rows].astype(float) for rows in (outcome.candidates, outcome.picks)]
        places = {"shortest": 0, "first quartile": 25, "median": 50, "third quartile": 75, "longest": 100}
        rows = [
            [label, *(f"{np.percentile(part, place):,.0f}" if len(part) else "" for part in lengths)]
            for label, place in places.items()
        ]
        return {"title": f"Length in {outcome.unit}", "headings": ["row", "pool", "selected"], "rows": rows}
    shares = view.groups[name]
    rows = []
    for share in shares:
        pool, picked = _parts(share, shares)
        difference = f"{100 * (picked - pool):+.1f}".replace("-", "−").replace("+0.0", "0.0").replace("−0.0", "0.0")
        rows.append([share.name, f"{100 * pool:.1f}", f"{100 * picked:.1f}", difference])
    headings = [name, "pool", "selected", "difference"]
    return {"title": "Shares of the rows, in percent", "headings": headings, "rows": rows}


def _parts(share: GroupShare, shares: Sequence[GroupShare]) -> tuple[float, float]:
    """Share of the pool's rows, and of the selected ones."""
    pool, picked = sum(other.pool for other in shares), sum(other.picked for other in shares)
    return share.pool / max(1, pool), share.picked / max(1, picked)


def summary_tables(view: SubsetFacts) -> list[dict[str, Any]]:
    """Return tables of texts (title, headings, rows): shares by group, means of the score's terms."""
    tables = [
        {
            "title": f"By {name}",
            "headings": [name, "in the pool", "selected", "of the pool", "of the selected", "picked"],
            "rows": [_group_cells(share, shares) for share in shares],
        }
        for name, shares in view.groups.items()
    ]
    if view.terms:
        rows = [[name, plain_number(pool), plain_number(picked)] for name, (pool, picked) in view.terms.items()]
        tables.append({"title": "Terms of the score", "headings": ["mean of", "pool", "selected"], "rows": rows})
    return tables


def _group_cells(share: GroupShare, shares: Sequence[GroupShare]) -> list[str]:
    parts = (*_parts(share, shares), share.picked / max(1, share.pool))
    return [share.name, f"{share.pool:,}", f"{share.picked:,}", *map(_percent, parts)]


def subset_summary(outcome: SubsetOutcome, manifest: Mapping[str, Any]) -> RenderableType:
    """Return what a terminal shows of a selection: facts, shares per group, means of the score's terms."""
    view = SubsetFacts.of(outcome, manifest)
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in view.facts.items():
        facts.add_row(name, Text(value))
    if view.cut is not None:
        facts.add_row("score", Text(cut_words(view.cut)))
    parts: list[RenderableType] = [Text(view.lead, style="bold"), facts]
    for table in summary_tables(view):
        shown = Table(title=Text(table["title"], style="bold"), title_justify="left", box=None, padding=(0, 2, 0, 0))
        for place, heading in enumerate(table["headings"]):
            shown.add_column(heading, justify="right" if place else "left", overflow="fold", no_wrap=place > 0)
        for row in table["rows"]:
            shown.add_row(*map(Text, row))
        parts += [Text(""), shown]
    return Group(*parts)


def subset_html(outcome: SubsetOutcome, manifest: Mapping[str, Any]) -> str:
    """Return what a notebook shows of a selection."""
    view = SubsetFacts.of(outcome, manifest)

    def text(value: str) -> str:
        return html.escape(visible(value))

    facts = "".join(f"<tr><th>{text(name)}</th><td>{text(value)}</td></tr>" for name, value in view.facts.items())
    tables = []
    for table in summary_tables(view):
        head = "".join(f"<th>{text(heading)}</th>" for heading in table["headings"])
        body = "".join("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in table["rows"])
        tables.append(f"<p><b>{text(table['title'])}</b></p><table><tr>{head}</tr>{body}</table>")
    return (
        f'<p><b>{text(view.lead)}</b></p><table style="text-align: left">{facts}</table>{"".join(tables)}'
        f"<p>{text(view.audit_note)} <code>{text(view.audit)}</code></p>"
    )
