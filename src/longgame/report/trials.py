"""Single trials: a row each in one table, and the whole story of those that a reader opens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from longgame.metrics.catalog import METRICS
from longgame.metrics.scorecard import PRIMARY, Scorecard
from longgame.report.picks import TERM, most_and_least, shared_terms
from longgame.report.tables import Cell, Column, Table, number

_SHOWN = (
    "current", "immediate_gain", "auc_common", "forgetting", "ood", "worst_task", "long_horizon", "myopia_gap",
    "capability_entropy", "update_concentration", "noisy_share", "select_seconds", "train_seconds",
)  # fmt: skip

Texts = Callable[[str], "tuple[str, str] | None"]
"""sample_id → (prompt, response), or None where the text is not at hand."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One example of a trial's stage, with each term of its score."""

    sample_id: str
    sub_skill: str
    tokens: int
    fate: str
    prompt: str
    response: str
    terms: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class StageDetail:
    """The examples most and least wanted at one stage."""

    stage: int
    task: str
    candidates: int
    picked: int
    most: tuple[Wanted, ...]
    least: tuple[Wanted, ...]


@dataclass(frozen=True, slots=True)
class TrialDetail:
    """One trial in full."""

    name: str
    selector: str
    seed: int
    facts: tuple[tuple[str, str], ...]
    measured: Table
    """Stages × diagnostics and costs."""
    stages: tuple[StageDetail, ...]


def trials_table(card: Scorecard, most: int) -> Table:
    """Every trial with its main metrics, by the primary view; of more than ``most`` the first, and the note says so."""
    table = card.per_trial[card.per_trial["view"].isin([PRIMARY, ""])]
    known = set(table["metric"].unique())
    held = [name for name in _SHOWN if name in known]
    table = table[table["metric"].isin(held)]
    wide = table.pivot(index=["trial", "selector", "seed"], columns="metric", values="value")
    total = len(wide)
    wide = wide.reset_index().sort_values(["seed", "selector"], kind="stable").head(most)
    held = [name for name in held if wide[name].notna().any()]
    columns = [Column("trial", "trial", numeric=False), Column("selector", "selector", numeric=False)]
    columns += [Column("seed", "seed")]
    columns += [Column(METRICS[name].label, METRICS[name].label, METRICS[name].meaning) for name in held]
    units = ["long horizon" if name == "long_horizon" else METRICS[name].unit for name in held]
    values = [wide[name].to_numpy(float) for name in held]
    rows = []
    for place, (trial, selector, seed) in enumerate(zip(wide["trial"], wide["selector"], wide["seed"], strict=True)):
        cells = [Cell(str(trial)), Cell(str(selector)), Cell(str(seed), value=float(seed))]
        cells += [
            Cell(number(float(column[place]), unit), value=float(column[place]))
            for column, unit in zip(values, units, strict=True)
        ]
        rows.append(tuple(cells))
    if total <= most:
        return Table(f"All {total:,} trials", tuple(columns), tuple(rows))
    note = (
        f"{total - most:,} trials of later seeds stand in results.parquet alone. Tables and figures count all of them."
    )
    return Table(f"The first {most:,} of {total:,} trials", tuple(columns), tuple(rows), note)


def trial_detail(
    name: str,
    selector: str,
    seed: int,
    tasks: Sequence[str],
    selections: Mapping[int, pd.DataFrame],
    records: pd.DataFrame,
    facts: Sequence[tuple[str, str]],
    texts: Texts,
    count: int = 3,
) -> TrialDetail:
    """Tell one trial in full.

    Args:
        tasks: the stages' tasks in the order of the walk.
        selections: stage number → selection table (see `longgame.report.picks`).
        records: the trial's tidy records.
        facts: what is known of it beside the numbers.
        texts: where the examples' texts come from.
        count: examples most wanted, and as many least wanted, of every stage.
    """
    stages = []
    for stage, table in sorted(selections.items()):
        most, least = most_and_least(table, count)
        terms = shared_terms([table])
        picked = table.loc[table["picked"] >= 0, "sample_id"]
        rounds = dict(zip(picked, table.loc[picked.index, "round"], strict=True))
        stages.append(
            StageDetail(
                stage,
                tasks[stage - 1],
                int(table["sample_id"].nunique()),
                int(picked.nunique()),
                tuple(_wanted(row, terms, rounds, texts) for row in most.to_dict("records")),
                tuple(_wanted(row, terms, rounds, texts) for row in least.to_dict("records")),
            )
        )
    return TrialDetail(name, selector, seed, tuple(facts), _measured(records, tasks), tuple(stages))


def _wanted(row: Mapping[object, object], terms: Sequence[str], rounds: Mapping[str, int], texts: Texts) -> Wanted:
    name = str(row["sample_id"])
    text = texts(name)
    values = [(term, float(str(row[f"{TERM}{term}"]))) for term in terms]
    return Wanted(
        name,
        str(row["sub_skill"]),
        int(str(row["tokens"])),
        f"picked in round {rounds[name]}" if name in rounds else "never picked",
        text[0] if text else "",
        text[1] if text else "",
        tuple((term, f"{value:+.3f}") for term, value in values if np.isfinite(value)),
    )


def _measured(records: pd.DataFrame, tasks: Sequence[str]) -> Table:
    """Stages × what was measured of the selection, the update and its cost."""
    rows = records[records["kind"].isin(["diagnostic", "cost"]) & (records["probe"] == "")]
    rows = rows[rows["name"].isin(list(METRICS))]
    wide = rows.pivot_table(index="stage", columns="name", values="value", aggfunc="mean", observed=True)
    names = [name for name in METRICS if name in wide.columns]
    columns = [Column("stage", "stage", numeric=False)]
    columns += [Column(METRICS[name].label, METRICS[name].label, METRICS[name].meaning) for name in names]
    cells = [
        (
            Cell(f"{stage}: {tasks[stage - 1]}"),
            *(Cell(number(float(wide[name][stage]), METRICS[name].unit), value=wide[name][stage]) for name in names),
        )
        for stage in (int(str(index)) for index in wide.index)
    ]
    return Table("Measured at every stage", tuple(columns), tuple(cells))
