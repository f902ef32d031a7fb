"""What was selected, reduced stage by stage from the selection tables of a run, so that a report holds no raw rows.

The selection tables and their reduction are `longgame.audit.picks`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import altair as alt
import numpy as np
import pandas as pd

from longgame.audit.picks import TERM, TOTAL, Picks
from longgame.metrics.catalog import METRICS
from longgame.metrics.scorecard import PRIMARY, Scorecard
from longgame.report.charts import GREY, PALETTE, Figure, Style, ink_on_cividis, spec
from longgame.report.tables import Cell, Column, Table, number


def most_and_least(table: pd.DataFrame, count: int = 3) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The candidates most and least wanted: by the score's place within their round, then by pick order.

    A selector that writes no score has no least wanted candidate: its picks stand in their order.

    Returns:
        Two tables with the rows of ``table`` plus ``place`` (0 = least, 1 = most wanted of its round).
    """
    score = f"{TERM}{TOTAL}"
    if score not in table.columns:
        first = table[table["picked"] >= 0].sort_values(["round", "picked"], kind="stable").head(count)
        return first.assign(place=float("nan")), table.iloc[:0].assign(place=float("nan"))
    place = table.groupby("round")[score].rank(pct=True)
    ranked = table.assign(place=place).sort_values(["place", "round"], ascending=[False, True], kind="stable")
    once = ranked.drop_duplicates("sample_id")
    return once.head(count), once.tail(count).iloc[::-1]


def shared_terms(tables: Sequence[pd.DataFrame]) -> list[str]:
    """Names of the terms that any of these tables holds, the whole score last."""
    names = dict.fromkeys(
        name.removeprefix(TERM) for table in tables for name in table.columns if name.startswith(TERM)
    )
    return [name for name in names if name != TOTAL] + ([TOTAL] if TOTAL in names else [])


# Figures of what was selected: skill mix, overlap between selectors, and which terms of a score decided.

_OTHER = "all others"
_POOL = "(all candidates)"


def picks_figures(picks: Picks, card: Scorecard, style: Style) -> list[Figure]:
    """All of this module's figures; one without measurements has no charts."""
    return [skill_mix(picks, card, style), overlap(picks, style), terms(picks, card)]


def _seeds(picks: Picks) -> str:
    seeds = "1 seed" if picks.seeds == 1 else f"mean over {picks.seeds:,} seeds"
    return f"{seeds}, all {picks.tables:,} selections of the finished stages"


def skill_mix(picks: Picks, card: Scorecard, style: Style) -> Figure:
    """Share of each sub-skill in the selected tokens, stage by stage, beside the candidates."""
    charts = []
    everywhere = picks.mix.groupby("sub_skill")["pool"].sum().sort_values(ascending=False, kind="stable").index
    for stage, part in picks.mix.groupby("stage"):
        pool = part.groupby("sub_skill")["pool"].mean()
        if len(pool) < 2:
            continue
        ordered = everywhere if len(everywhere) <= len(PALETTE) else pool.sort_values(ascending=False).index
        main = list(ordered[: len(PALETTE) if len(ordered) <= len(PALETTE) else len(PALETTE) - 1])
        rows = pd.concat(
            [
                part[["selector", "sub_skill", "share"]],
                pool.rename("share").reset_index().assign(selector=_POOL),
            ]
        )
        rows["sub_skill"] = rows["sub_skill"].where(rows["sub_skill"].isin(main), _OTHER)
        rows = rows.groupby(["selector", "sub_skill"])["share"].sum().reset_index()
        domain = main + ([_OTHER] if len(pool) > len(main) else [])
        scale = alt.Scale(domain=domain, range=[*PALETTE[: len(main)], GREY][: len(domain)])
        rows["place"] = rows["sub_skill"].map({name: place for place, name in enumerate(domain)})
        chart = (
            alt.Chart(rows)
            .mark_bar(stroke="#ffffff", strokeWidth=0.6)
            .encode(
                alt.X(
                    "share:Q",
                    title="share of selected tokens",
                    axis=alt.Axis(format="%", tickCount=5),
                    scale=alt.Scale(domain=[0, 1]),
                ),
                alt.Y("selector:N", sort=[_POOL, *style.selectors], title=None),
                alt.Color(
                    "sub_skill:N",
                    scale=scale,
                    sort=domain,
                    legend=alt.Legend(orient="bottom", title=None, columns=1, labelLimit=150, symbolType="square"),
                ),
                order=alt.Order("place:Q"),
                tooltip=["selector:N", "sub_skill:N", alt.Tooltip("share:Q", format=".1%")],
            )
            .properties(title=f"stage {stage}: {card.tasks[int(str(stage)) - 1]}")
        )
        rows_shown = rows["selector"].nunique()
        charts.append(spec(chart, f"Skill mix of the picks at stage {stage}, a bar per selector", 24 * rows_shown))
    caption = (
        f"Shares of the selected tokens by sub-skill, {_seeds(picks)}; the first bar is what there was to choose from."
    )
    return Figure("skill-mix", "What was picked", caption, tuple(charts), group="picks")


def overlap(picks: Picks, style: Style) -> Figure:
    """How far two selectors pick the same examples (Jaccard index)."""
    if picks.overlap["selector"].nunique() < 2:
        return Figure("overlap", "", "", (), group="picks")
    base = alt.Chart(picks.overlap).encode(
        alt.X("other:N", sort=style.selectors, title=None, axis=alt.Axis(labelAngle=-40, labelLimit=110)),
        alt.Y("selector:N", sort=style.selectors, title=None),
    )
    colour = alt.Color("jaccard:Q", scale=alt.Scale(scheme="cividis", domain=[0, 1]), legend=None)
    tooltip = ["selector:N", "other:N", alt.Tooltip("jaccard:Q", format=".2f"), "n:Q"]
    ink = ink_on_cividis("jaccard", 0.0, 1.0)
    cells = base.mark_rect().encode(color=colour, tooltip=tooltip)
    text = base.mark_text(fontSize=10).encode(text=alt.Text("jaccard:Q", format=".2f"), color=ink)
    caption = (
        f"Jaccard index of the picked examples of a stage, mean over stages, {_seeds(picks)}: 1 = the same examples. "
        "Two random halves of a pool share a third; two random quarters, a seventh."
    )
    height = max(120, 26 * len(style.selectors))
    made = spec(alt.layer(cells, text), "Overlap of the picks of each pair of selectors", height)
    return Figure("overlap", "Who picks alike", caption, (made,), group="picks")


def terms(picks: Picks, card: Scorecard) -> Figure:
    """What each term of a score did to the choice: for selectors whose score has more than one term."""
    table = picks.terms[picks.terms["term"] != TOTAL]
    charts = []
    for selector, part in table.groupby("selector", sort=False):
        if part["term"].nunique() < 2:
            continue
        names = list(dict.fromkeys(part["term"]))
        scale = alt.Scale(domain=names, range=list(PALETTE[: len(names)]))
        chart = (
            alt.Chart(part[["stage", "term", "gap"]].assign(task=[card.tasks[stage - 1] for stage in part["stage"]]))
            .mark_bar()
            .encode(
                alt.X("stage:O", title="stage", axis=alt.Axis(labelAngle=0)),
                alt.Y("gap:Q", title="picked − candidates, in sd"),
                alt.XOffset("term:N", sort=names),
                alt.Color("term:N", scale=scale, sort=names, legend=alt.Legend(orient="bottom", title=None, columns=3)),
                tooltip=["task:N", "term:N", alt.Tooltip("gap:Q", format="+.2f")],
            )
            .properties(title=str(selector))
        )
        charts.append(spec(chart, f"Terms of the score of {selector}: picked against candidates, by stage", 210))
    caption = (
        f"How far the picked examples lie above (or below) the candidates of their round in each term, "
        f"{_seeds(picks)}. A bar near 0: the term did not move the choice. A penalty works where its bar is negative."
    )
    return Figure("terms", "Which terms decided", caption, tuple(charts), group="picks")


# Single trials: a row each in one table, and the whole story of those that a reader opens.

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
    units = [METRICS[name].precision for name in held]
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
