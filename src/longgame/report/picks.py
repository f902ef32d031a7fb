"""What was selected: figures over all trials of the recipe's own condition, and single trials with their examples."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from longgame.audit.picks import SELECTION, TOTAL, Picks, Texts, highest_and_lowest, texts_of
from longgame.audit.plan import Trial
from longgame.audit.run import Run
from longgame.metrics.catalog import METRICS
from longgame.metrics.scorecard import PRIMARY, Scorecard
from longgame.metrics.tidy import Measured
from longgame.report.charts import GREY, PALETTE, Figure, Style, heat_map, spec
from longgame.report.figures import style_of
from longgame.report.tables import Cell, Column, Table, format_number, metric_column
from longgame.storage import table_of
from longgame.training.log import TERM

_OTHERS = "all others"
_POOL = "(all candidates)"


def picks_figures(run: Run) -> list[Figure]:
    """Skill mix, overlap between selectors, and terms of the scores; a figure without measurements is left out."""
    picks, card = run.picks, run.scorecard
    if picks is None:
        return []
    figures = (skill_mix(picks, card, style_of(run)), overlap(picks, style_of(run)), terms(picks, card))
    return [figure for figure in figures if figure.charts]


def _basis(picks: Picks) -> str:
    seeds = "1 seed" if picks.seeds == 1 else f"mean over {picks.seeds:,} seeds"
    return f"{seeds}, all {picks.tables:,} selections of the finished stages"


def skill_mix(picks: Picks, card: Scorecard, style: Style) -> Figure:
    """Share of each sub-skill in the selected tokens, stage by stage, with the candidates as the first bar."""
    charts = []
    everywhere = picks.mix.groupby("sub_skill")["pool"].sum().sort_values(ascending=False, kind="stable").index
    for stage, part in picks.mix.groupby("stage"):
        pool = part.groupby("sub_skill")["pool"].mean()
        if len(pool) < 2:
            continue
        ordered = everywhere if len(everywhere) <= len(PALETTE) else pool.sort_values(ascending=False).index
        named = list(ordered[: len(PALETTE) if len(ordered) <= len(PALETTE) else len(PALETTE) - 1])
        candidates = pool.rename("share").reset_index().assign(selector=_POOL)
        rows = pd.concat([part[["selector", "sub_skill", "share"]], candidates])
        rows["sub_skill"] = rows["sub_skill"].where(rows["sub_skill"].isin(named), _OTHERS)
        rows = rows.groupby(["selector", "sub_skill"])["share"].sum().reset_index()
        domain = named + ([_OTHERS] if len(pool) > len(named) else [])
        scale = alt.Scale(domain=domain, range=[*PALETTE[: len(named)], GREY][: len(domain)])
        rows["place"] = rows["sub_skill"].map({name: place for place, name in enumerate(domain)})
        percent = alt.Axis(format="%", tickCount=5)
        legend = alt.Legend(orient="bottom", title=None, columns=1, labelLimit=150, symbolType="square")
        chart = (
            alt.Chart(rows)
            .mark_bar(stroke="#ffffff", strokeWidth=0.6)
            .encode(
                alt.X("share:Q", title="share of selected tokens", axis=percent, scale=alt.Scale(domain=[0, 1])),
                alt.Y("selector:N", sort=[_POOL, *style.selectors], title=None),
                alt.Color("sub_skill:N", scale=scale, sort=domain, legend=legend),
                order=alt.Order("place:Q"),
                tooltip=[alt.Tooltip("selector:N"), alt.Tooltip("sub_skill:N"), alt.Tooltip("share:Q", format=".1%")],
            )
            .properties(title=f"stage {stage}: {card.tasks[int(str(stage)) - 1]}")
        )
        text = f"Skill mix of the picks at stage {stage}, a bar per selector"
        charts.append(spec(chart, text, style.height(rows["selector"].nunique(), 24)))
    caption = f"Shares of the selected tokens by sub-skill, {_basis(picks)}; the first bar is all candidates."
    return Figure("skill-mix", "What was picked", caption, tuple(charts))


def overlap(picks: Picks, style: Style) -> Figure:
    """How far two selectors pick the same examples (Jaccard index)."""
    if picks.overlap["selector"].nunique() < 2:
        return Figure("overlap", "", "", ())
    base = alt.Chart(picks.overlap).encode(
        alt.X("other:N", sort=style.selectors, title=None, axis=alt.Axis(labelAngle=-40, labelLimit=110)),
        alt.Y("selector:N", sort=style.selectors, title=None),
    )
    tooltip = [
        alt.Tooltip("selector:N"),
        alt.Tooltip("other:N"),
        alt.Tooltip("jaccard:Q", format=".2f"),
        alt.Tooltip("n:Q"),
    ]
    caption = (
        f"Jaccard index of the picked examples of a stage, mean over stages, {_basis(picks)}: 1 = the same examples. "
        "Two random halves of a pool share a third; two random quarters, a seventh."
    )
    chart = heat_map(base, "jaccard", (0.0, 1.0), ".2f", tooltip, bare=bool(style.families))
    height = style.height(len(style.selectors), 26)
    drawn = spec(
        chart, "Overlap of the picks of each pair of selectors", height if style.families else max(120, height)
    )
    return Figure("overlap", "Who picks alike", caption, (drawn,))


def terms(picks: Picks, card: Scorecard) -> Figure:
    """What each term of a score did to the choice: for selectors whose score has more than one term."""
    charts = []
    for selector, part in picks.terms[picks.terms["term"] != TOTAL].groupby("selector", sort=False):
        names = list(dict.fromkeys(part["term"]))
        if len(names) < 2:
            continue
        scale = alt.Scale(domain=names, range=list(PALETTE[: len(names)]))
        chart = (
            alt.Chart(part[["stage", "term", "gap"]].assign(task=[card.tasks[stage - 1] for stage in part["stage"]]))
            .mark_bar()
            .encode(
                alt.X("stage:O", title="stage", axis=alt.Axis(labelAngle=0)),
                alt.Y("gap:Q", title="picked − candidates, in sd"),
                alt.XOffset("term:N", sort=names),
                alt.Color("term:N", scale=scale, sort=names, legend=alt.Legend(orient="bottom", title=None, columns=3)),
                tooltip=[alt.Tooltip("task:N"), alt.Tooltip("term:N"), alt.Tooltip("gap:Q", format="+.2f")],
            )
            .properties(title=str(selector))
        )
        charts.append(spec(chart, f"Terms of the score of {selector}: picked against candidates, by stage", 210))
    caption = (
        f"How far the picked examples lie above (or below) the candidates of their round in each term, "
        f"{_basis(picks)}. A bar near 0: the term did not move the choice. A penalty works where its bar is negative."
    )
    return Figure("terms", "Which terms decided", caption, tuple(charts))


# Single trials.

TRIAL_METRICS = (
    "current", "immediate_gain", "auc_common", "forgetting", "ood", "worst_task", "long_horizon", "myopia_gap",
    "capability_entropy", "update_concentration", "noisy_share", "select_seconds", "train_seconds",
)  # fmt: skip
"""Columns of `trials_table`."""
MOST_TRIALS = 1_000
"""Rows of `trials_table`: nobody reads more, and a page with more is slow to open."""
TRIALS_FILE = "report-trials.csv"
"""File beside a run's report.html that holds all trials, where they are more than its table shows."""


@dataclass(frozen=True, slots=True)
class PoolExample:
    """One candidate of a trial's stage, with each term of its score."""

    sample_id: str
    sub_skill: str
    tokens: int
    fate: str
    prompt: str
    response: str
    terms: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class StageDetail:
    """The examples with the highest and the lowest scores of one stage."""

    stage: int
    task: str
    candidates: int
    picked: int
    highest: tuple[PoolExample, ...]
    lowest: tuple[PoolExample, ...]


@dataclass(frozen=True, slots=True)
class TrialDetail:
    """One trial in full."""

    name: str
    facts: Mapping[str, str]
    measured: Table
    """Stages × diagnostics and costs."""
    stages: tuple[StageDetail, ...]


def trials_table(card: Scorecard, file: str = TRIALS_FILE) -> Table:
    """Every trial with its main metrics, by the primary view; of very many only the first.

    Args:
        file: what the note then names: it holds `trials_frame`.
    """
    frame = trials_frame(card)
    total = len(frame)
    frame = frame.head(MOST_TRIALS)
    names = [name for name in TRIAL_METRICS if name in frame.columns]
    columns = [Column("trial", numeric=False), Column("selector", numeric=False), Column("seed")]
    columns += [metric_column(name) for name in names]
    values = [(METRICS[name].shown_unit, (METRICS[name].scale * frame[name]).tolist()) for name in names]
    rows = []
    for place, (trial, selector, seed) in enumerate(zip(frame["trial"], frame["selector"], frame["seed"], strict=True)):
        cells = [Cell(str(trial)), Cell(str(selector)), Cell(str(seed), value=float(seed))]
        cells += [Cell(format_number(column[place], unit), value=column[place]) for unit, column in values]
        rows.append(tuple(cells))
    title, note = f"All {total:,} trials", ""
    if total > len(frame):
        title = f"The first {len(frame):,} of {total:,} trials"
        note = f"All {total:,} trials are in {file} beside this page. Tables and figures count all of them."
    return Table(title, tuple(columns), tuple(rows), note, closed=True, plain=True)


def trials_frame(card: Scorecard) -> pd.DataFrame:
    """trial, selector, seed and the metrics of `TRIAL_METRICS` that any trial measured, seed by seed."""
    columns = {}
    for name in TRIAL_METRICS:
        values = card.values.get((PRIMARY, name), card.values.get(("", name)))
        if values is not None and not np.isnan(values).all():
            columns[name] = values
    frame = card.trials.frame().assign(**columns)
    return frame.sort_values(["seed", "selector"], kind="stable", ignore_index=True)


def first_trials(run: Run, count: int) -> list[Trial]:
    """The first trials of the recipe's own condition with a finished stage, seed by seed."""
    return [trial for trial in run.plan.own_trials if run.finished_stages[trial.name]][:count]


def trial_details(run: Run, trials: Sequence[Trial]) -> list[TrialDetail]:
    """These trials in full, with the texts that the run stores; the data of its recipe are not read."""
    measured = run.measured[""]
    place = {name: number for number, name in enumerate(measured.trials.names)}
    versions = ", ".join(f"{name} {version}" for name, version in run.environment["versions"].items())
    details = []
    for trial in trials:
        finished = run.finished_stages[trial.name]
        parameters = ", ".join(f"{key}={value}" for key, value in trial.selector.parameters.items())
        facts = {
            "selector": trial.selector.name,
            "parameters": parameters or "defaults",
            "seed": str(trial.seed),
            "finished stages": f"{finished} of {len(run.plan.stages)}",
            "versions": versions,
            "recipe": f"{run.recipe.name}, budget {run.recipe.budget:g}, rounds {run.recipe.rounds}",
        }
        stages = []
        for number, task in enumerate(run.plan.stages[:finished], 1):
            part = run.trial_store(trial).part(f"stage-{number}")
            content, path = part.read(SELECTION), part.path / SELECTION
            stages.append(stage_detail(table_of(content, path), number, task, texts_of(content, path)))
        details.append(
            TrialDetail(trial.name, facts, _measured(measured, place[trial.name], run.plan.stages), tuple(stages))
        )
    return details


def stage_detail(table: pd.DataFrame, stage: int, task: str, texts: Texts) -> StageDetail:
    """The examples with the highest scores of a selection table, and those with the lowest."""
    names = [name.removeprefix(TERM) for name in table.columns if name.startswith(TERM)]
    names.sort(key=lambda name: name == TOTAL)  # the score after its terms
    picked = table.loc[table["picked"] >= 0, "sample_id"]
    rounds = dict(zip(picked, table.loc[picked.index, "round"], strict=True))

    def example(row: Mapping[Hashable, Any]) -> PoolExample:
        sample_id = str(row["sample_id"])
        prompt, response = texts.get(sample_id, ("", ""))
        fate = f"picked in round {rounds[sample_id]}" if sample_id in rounds else "never picked"
        values = {name: float(row[f"{TERM}{name}"]) for name in names}
        shown = tuple((name, f"{value:+.3f}") for name, value in values.items() if np.isfinite(value))
        return PoolExample(sample_id, str(row["sub_skill"]), int(row["tokens"]), fate, prompt, response, shown)

    highest, lowest = (tuple(map(example, part.to_dict("records"))) for part in highest_and_lowest(table))
    return StageDetail(stage, task, int(table["sample_id"].nunique()), int(picked.nunique()), highest, lowest)


def _measured(measured: Measured, trial: int, tasks: Sequence[str]) -> Table:
    """Stages × what was measured of the selection, the update and its cost."""
    by_name = {name: measured.by_stage[name][trial] for name in METRICS if name in measured.by_stage}
    by_name = {name: values for name, values in by_name.items() if not np.isnan(values).all()}
    rows = []
    for stage, task in enumerate(tasks, 1):
        values = [(float(column[stage]), METRICS[name].unit) for name, column in by_name.items()]
        if not all(np.isnan(value) for value, _ in values):
            cells = [Cell(format_number(value, unit), value=value) for value, unit in values]
            rows.append((Cell(f"{stage}: {task}"), *cells))
    columns = (Column("stage", numeric=False), *map(metric_column, by_name))
    return Table("Measured at every stage", columns, tuple(rows))
