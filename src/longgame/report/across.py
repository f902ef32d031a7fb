"""Tables over several conditions: what each one is, and selectors × conditions for the metrics that decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from longgame.metrics.across import Across
from longgame.metrics.catalog import METRICS
from longgame.metrics.interventions import intervention_table
from longgame.metrics.scorecard import PRIMARY
from longgame.recipe import Recipe
from longgame.report.interventions import interventions_table
from longgame.report.tables import Cell, Column, Table, metric_cells, selectors_in_order

SHOWN = ("current", "auc_common", "auc_own", "forgetting", "long_horizon")
OWN = "own"


def condition_label(name: str) -> str:
    """``budget=0.1,order=*`` as a heading: ``budget 0.1, mean of orders``; the recipe's own condition is ``own``."""
    parts = ["mean of orders" if part == "order=*" else part.replace("=", " ", 1) for part in name.split(",")]
    return ", ".join(parts) if name else OWN


def condition_table(across: Across, recipe: Recipe) -> Table:
    """What every condition is: what differs from the recipe's own values, and the order of its stages."""
    model = recipe.model
    adaptation = model.adaptation if model.adaptation == "full" else f"LoRA r={model.lora.r}"
    own = f"{OWN}: budget {recipe.budget:g}, rounds {recipe.rounds}, {adaptation}"
    rows = [
        (Cell(condition_label(name) if name else own), Cell(" → ".join(card.tasks)))
        for name, card in across.cards.items()
    ]
    columns = (
        Column("condition", "condition", numeric=False),
        Column("stages in order", "stages in order", numeric=False),
    )
    return Table("Conditions", columns, tuple(rows))


def across_tables(across: Across, recipe: Recipe, view: str = PRIMARY, compact: bool = False) -> list[Table]:
    """Selectors × conditions: a table of each of `SHOWN` that was measured, one of the verdicts, then what each
    intervention buys in every condition but the own (not where ``compact``).

    Marks and bold cells are those of each condition's own scorecard.
    """
    own = next(iter(across.cards.values()))
    order = selectors_in_order(own, recipe)
    names = list(dict.fromkeys(across.summary["condition"]))
    parts = dict(iter(across.summary[across.summary["view"] == view].groupby("condition", sort=False)))
    tables = []
    for metric in SHOWN:
        found = [(name, metric_cells(parts[name], metric, order, own.reference, compact)) for name in names]
        shown = [(name, cells) for name, cells in found if cells]
        if shown:
            meaning = METRICS[metric].meaning
            tables.append(_table(f"{METRICS[metric].label} by condition", order, shown, meaning))
    words = across.verdicts[across.verdicts["view"] == view]
    told = {(row["condition"], row["selector"]): str(row["verdict"]) for row in words.to_dict("records")}
    if told:
        compared = [name for name in order if name != own.reference]
        cells = [(name, {who: Cell(told.get((name, who), "—")) for who in compared}) for name in names]
        tables.append(_table(f"Verdict by condition, against {own.reference}", compared, cells, "", numeric=False))
    others = [(name, card) for name, card in across.cards.items() if name and not compact]
    for name, card in others:
        title = f"What each intervention buys, {condition_label(name)}"
        bought = interventions_table(intervention_table(card, recipe), title, view)
        tables += [bought] if bought.rows else []
    return tables


def _table(
    title: str,
    order: Sequence[str],
    shown: Sequence[tuple[str, Mapping[str, Cell]]],
    meaning: str,
    numeric: bool = True,
) -> Table:
    columns = [Column("selector", "selector", numeric=False)]
    columns += [Column(condition_label(name), condition_label(name), numeric=numeric) for name, _ in shown]
    rows = tuple((Cell(who), *(cells[who] for _, cells in shown)) for who in order)
    return Table(title, tuple(columns), rows, meaning)


def across_note(across: Across) -> str:
    """How to read numbers of several conditions."""
    text = (
        "Each condition is compared for itself: paired by seed, Holm over its selectors. `own` is the recipe's own "
        "condition. Between conditions the base models, pools and items of a seed are the same unless the condition "
        "changes them; an adaptation AUC also depends on how many tokens a probe learns, so read it within a budget."
    )
    if across.orders:
        text += (
            " A mean of orders averages a selector's value over the orders within each seed first; its replications "
            "are the seeds, not the orders."
        )
    return text
