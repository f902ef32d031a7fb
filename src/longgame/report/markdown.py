"""The scorecard as Markdown, fit for a repository, a pull request or a model card."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import yaml

from longgame.metrics.comparisons import Across, intervention_table
from longgame.metrics.scorecard import Scorecard
from longgame.recipe import Recipe
from longgame.report.answer import answer
from longgame.report.compare import Comparison
from longgame.report.conditions import across_note, across_tables, association_table, condition_table
from longgame.report.tables import (
    COSTS,
    DIAGNOSTICS,
    LEVEL_ONE,
    LEVEL_TWO,
    MAIN,
    MORE,
    Cell,
    Table,
    interventions_table,
    metric_table,
    shown_views,
    stage_table,
    sub_skill_table,
)
from longgame.report.words import (
    elsewhere,
    headline,
    legend,
    reversal_line,
    run_facts,
    seeds_caveat,
    set_gap_line,
    verdict_lines,
)


def scorecard_markdown(
    scorecard: Scorecard,
    results: pd.DataFrame,
    recipe: Recipe,
    environment: Mapping[str, Any],
    across: Across | None = None,
    title: str = "",
) -> str:
    """Write scorecard.md: verdicts, tables, what each column means, and what the numbers leave out.

    Args:
        scorecard: of the recipe's own condition.
        results: its tidy records (their number is told).
        environment: versions and machine, as the run directory's environment.json holds them.
        across: all conditions of a recipe with axes.
        title: what the run is called; without it, the recipe's name.
    """
    parts = [f"# Scorecard: {escape(title or recipe.name)}", f"**{escape(headline(scorecard, recipe))}**"]
    parts.append(
        "\n".join(
            f"- **{escape(line.selector)}**: *{line.word}*. {escape(line.reason)}"
            + (f" ({line.other})" if line.other else "")
            + (f". {line.power}." if line.power else "")
            + (f"{' ' if line.power else '. '}{line.cost}." if line.cost else "")
            for line in verdict_lines(scorecard, recipe)
        )
    )
    if others := elsewhere(across):
        parts.append(f"**In other conditions**: {escape(others)}")
    parts.append("\n".join(f"- {name}: {escape(value)}" for name, value in run_facts(recipe, results, environment)))
    views = shown_views(scorecard)
    used: list[Table] = []

    def show(table: Table, level: str = "##") -> None:
        if len(table.columns) > 1:
            used.append(table)
            parts.extend([f"{level} {escape(table.title)}", pipes(table)])

    def show_with_note(table: Table) -> None:
        show(table)
        parts.append(table.note if len(table.columns) > 1 else "")

    for view, title in views[:1]:
        show(metric_table(scorecard, recipe, LEVEL_ONE, f"Level 1: now, and what it cost, {title}", view))
        show(metric_table(scorecard, recipe, LEVEL_TWO, f"Level 2: the long run, {title}", view))
    for view, title in views:
        show(metric_table(scorecard, recipe, MAIN, f"Scorecard, {title}", view))
    parts += [legend(scorecard), set_gap_line(scorecard) + ".", escape(reversal_line(scorecard))]
    differences = intervention_table(scorecard, recipe)
    for view, title in views:
        show_with_note(interventions_table(differences, f"What each intervention buys, {title}", view))
    for view, title in views:
        show(metric_table(scorecard, recipe, MORE, f"More of the future, {title}", view))
    show(metric_table(scorecard, recipe, DIAGNOSTICS, "Diagnostics of selection and updates"))
    for view, title in views:
        show_with_note(association_table(scorecard.association, f"Diagnostics and forgetting, {title}", view))
    show(metric_table(scorecard, recipe, COSTS, "Cost per trial"))
    parts += ["## Columns", _meanings(used)]
    for view, title in views:
        show(stage_table(scorecard, recipe, view, f"By stage, {title}"))
    parts.append("Each cell: points right after the stage → points at the end of the sequence, mean over seeds.")
    for view, title in views:
        show(sub_skill_table(scorecard, recipe, view, f"By sub-skill, {title}"))
    parts.append("As above; OOD sets at the end only.")
    if across is not None:
        parts += ["## All conditions", across_note(across)]
        show(condition_table(across, recipe), "###")
        for view, title in views:
            for table in across_tables(across, recipe, view):
                show(replace(table, title=f"{table.title}, {title}"), "###")
        for view, title in views:
            every = f"Diagnostics and forgetting over all conditions, {title}"
            show(association_table(across.association, every, view), "###")
    notes = [
        seeds_caveat(recipe),
        "“—” is not measured; it is never counted as 0.",
        "“not reached”: in at least one seed and transition the curve stayed below the common threshold to the end.",
        *scorecard.notes,
    ]
    parts += ["## Notes", "\n".join(f"- {escape(note)}" for note in notes)]
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    fence = "`" * 4
    parts += ["## Recipe", f"<details><summary>resolved recipe</summary>\n\n{fence}yaml\n{text}{fence}\n\n</details>"]
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: str) -> str:
    """Names and notes stay text: no HTML, no table or emphasis breaks, one line."""
    plain = html.escape(" ".join(text.split()), quote=False)
    for sign in ("\\", "|", "*", "_", "`", "[", "]"):
        plain = plain.replace(sign, "\\" + sign)
    return plain


def _cell(cell: Cell) -> str:
    text = escape(cell.text)
    mark = cell.mark.replace("*", "\\*")
    return (f"**{text}**" if cell.best else text) + (f" {mark}" if mark else "")


def pipes(table: Table) -> str:
    """The table in Markdown, every cell's text escaped."""
    head = "| " + " | ".join(escape(column.label) for column in table.columns) + " |"
    rule = "|" + "|".join(" ---: " if column.numeric else " --- " for column in table.columns) + "|"
    return "\n".join([head, rule, *("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in table.rows)])


def _meanings(tables: list[Table]) -> str:
    meanings = {column.label: column.meaning for table in tables for column in table.columns if column.meaning}
    return "\n".join(f"- **{escape(label)}**: {escape(meaning)}" for label, meaning in meanings.items())


# The audit card: a page of Markdown for a model card or a pull request.

_COLUMNS = ("current", "auc_common", "forgetting", "ood", "long_horizon", "myopia_gap")
_FACTS = ("model", "data", "budget", "seeds", "versions")


def audit_card(
    card: Scorecard,
    results: pd.DataFrame,
    recipe: Recipe,
    environment: Mapping[str, Any],
    progress: str = "",
    comparison: Comparison | None = None,
    across: Across | None = None,
    notes: Sequence[str] = (),
    title: str = "",
) -> str:
    """Write the card: model, data, selectors, budget, seeds, verdicts and limits, in the words of the report.

    Args:
        card: of the recipe's own condition.
        progress: how much of the run is done, where it is not finished.
        across: all conditions of a recipe with axes.
        notes: limits of this run beside the scorecard's.
        title: what the run is called; without it, the recipe's name.
    """
    facts = [(name, value) for name, value in run_facts(recipe, results, environment) if name in _FACTS]
    lines = verdict_lines(card, recipe)
    parts = [f"## Data-selection audit: {escape(title or recipe.name)}"]
    if progress:
        parts.append(f"*{escape(progress)}*")
    said = answer(card, recipe, across).lines
    parts.append("\n".join(f"- **{question}**: {escape(text)}" for question, text in said))
    parts.append("\n".join(f"- {name}: {escape(value)}" for name, value in facts))
    views = shown_views(card)
    if views:
        table = metric_table(card, recipe, _COLUMNS, "", views[0][0])
        parts += [pipes(table), "mean ± sd over seeds; ▲ better, ▼ worse than " + escape(card.reference)]
    if lines:
        rows = "\n".join(f"| {escape(line.selector)} | {line.word} | {escape(line.reason)} |" for line in lines)
        parts += ["### Verdicts", f"| selector | verdict | why |\n| --- | --- | --- |\n{rows}"]
    if comparison is not None:
        parts += ["### Against the baseline", comparison_markdown(comparison)]
    limits = [seeds_caveat(recipe), *notes, *card.notes]
    parts += ["### Limits", "\n".join(f"- {escape(note)}" for note in limits)]
    parts.append("Made with longgame.")
    return "\n\n".join(parts) + "\n"


def comparison_markdown(comparison: Comparison) -> str:
    """What changed from a baseline, as Markdown."""
    changed = comparison.changed
    parts = [f"Baseline: {escape(comparison.baseline)}. {comparison.caveat}"]
    parts.append(
        "\n".join(f"- {escape(name)}: {before or 'not there'} → {now or 'not there'}" for name, before, now in changed)
        if changed
        else "No verdict changed."
    )
    if comparison.table.rows:
        parts.append(pipes(comparison.table))
    if comparison.recipe:
        parts.append("\n".join(f"- {escape(line)}" for line in comparison.recipe))
    return "\n\n".join(parts)
