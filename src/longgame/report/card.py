"""The audit card: a page of Markdown for a model card or a pull request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from longgame.metrics.across import Across
from longgame.metrics.scorecard import Scorecard
from longgame.recipe import Recipe
from longgame.report.answer import answer
from longgame.report.compare import Comparison
from longgame.report.markdown import escape, pipes
from longgame.report.tables import metric_table, shown_views
from longgame.report.words import run_facts, seeds_caveat, verdict_lines

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
