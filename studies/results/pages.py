"""The pages of docs/results: tables and figures, made from docs/results/data only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from longgame.audit.plan import condition_label
from longgame.escape import markdown_text
from longgame.metrics.catalog import METRICS
from longgame.metrics.diagnostics import association_table
from longgame.metrics.scorecard import PRIMARY, Scorecard
from longgame.metrics.stats import minimum_detectable_effect
from longgame.metrics.verdict import range_words
from longgame.recipe import Recipe
from longgame.report.answer import legend, reversal_line, set_gap_line, verdict_lines
from longgame.report.conditions import across_note, across_tables, condition_table
from longgame.report.render import pipes
from longgame.report.tables import (
    COSTS,
    DIAGNOSTICS,
    MAIN,
    MORE,
    Cell,
    Column,
    Table,
    correlation_table,
    difference_mark,
    format_number,
    format_signed,
    interventions_table,
    metric_table,
    selectors_in_order,
    shown_row,
    shown_views,
    stage_table,
)
from longgame.storage import refresh_file
from studies.results.claims import CLAIMS, QUESTIONS, Answer, Claim, answers
from studies.results.data import StudyRun, load
from studies.results.field import (
    COMPARISONS_NOTE,
    ON_SMOLLM2,
    TRAJECTORY,
    Board,
    Sequences,
    comparison_table,
    field_figure,
    field_parts,
    leaderboard_file,
    practices_parts,
)
from studies.results.figures import draw, write_svg
from studies.results.steps import DEVELOPMENT, STEPS

SEQUENCES = ("skill", "domain", "interleaved")
COMPARED = ("current", "auc_common", "forgetting", "ood", "worst_task", "long_horizon")
VIEWS = ("token_accuracy", "exact_match")
GRID = ("lhas-grid",)
_LEAST_SEEDS = (3, 1)
"""A run with fewer seeds in which every selector finished has no page; the grid has one seed by design."""
_NOTE = "Made by `python -m studies.results pages`; do not edit."


def write_pages(data: Path) -> None:
    """Write every page that the committed runs allow into the folder above ``data``."""
    everything = load(data)
    runs = {name: run for name, run in everything.items() if len(run.complete_seeds()) >= _LEAST_SEEDS[name in GRID]}
    out = data.parent
    pages = {"runs.md": runs_page(everything), "claims.md": claims_page(runs)}
    pages |= {f"{name}.md": sequence_page(runs[name]) for name in SEQUENCES if name in runs}
    makers = {
        "conditions": conditions_page,
        "regimes": regimes_page,
        "interventions": interventions_page,
        "proxy-items": proxy_page,
    }
    pages |= {f"{name}.md": make(runs[name]) for name, make in makers.items() if name in runs}
    if "lhas-finals" in runs:
        pages["lhas.md"] = lhas_page(runs)
    pages["trajectories.md"] = trajectories_page(runs)
    field, tenth, judges, practices = (
        sequences(runs, name) for name in ("field", "field-tenth", "field-judges", "replay")
    )
    if field.runs:
        pages["field.md"] = _page("The field: what selectors do to the next stages", field_parts(field, tenth, judges))
        refresh_file(out / "leaderboard.parquet", leaderboard_file(field, tenth, judges))
        write_svg([field_figure(field)], out / "figures")
    if practices.runs:
        parts = practices_parts(practices, runs.get("replay-conditions"), runs.get("replay-development"))
        pages["practices.md"] = _page("Practices that may beat random", parts)
    if "smollm2-pilot" in runs:
        pages["smollm2.md"] = _page("SmolLM2-135M on real data", smollm2_parts(runs))
    for name, text in pages.items():
        refresh_file(out / name, (text.rstrip() + "\n").encode())
        print(f"Written: {out / name}", flush=True)
    for path in draw(runs, SEQUENCES, out / "figures"):
        print(f"Written: {path}", flush=True)


def sequences(runs: Mapping[str, StudyRun], name: str) -> Sequences:
    """The runs ``name-SEQUENCE``."""
    return Sequences({sequence: runs[f"{name}-{sequence}"] for sequence in SEQUENCES if f"{name}-{sequence}" in runs})


def _page(title: str, parts: Iterable[str]) -> str:
    return "\n\n".join([f"# {title}", f"*{_NOTE}*", *(part for part in parts if part)])


def _head(run: StudyRun, condition: str = "") -> str:
    seeds = ", ".join(map(str, run.complete_seeds(condition)))
    facts = run.facts
    left = "" if facts["finished"] == facts["trials"] else f" ({facts['trials'] - facts['finished']} were not run)"
    ran = f"{facts['finished']} trials{left}; seeds in which every selector finished: {seeds}"
    return f"Recipe: {_command(run.name)}. {ran}."


def _command(name: str) -> str:
    step = next(step for step in STEPS if step.name == name)
    return f"[{step.recipe.name}](../../{step.recipe})"


def runs_page(runs: Mapping[str, StudyRun]) -> str:
    """What was run: trials, minutes, questions."""
    rows = ["| run | recipe | what it answers | trials | minutes |", "| --- | --- | --- | ---: | ---: |"]
    for name in dict.fromkeys(step.name for step in STEPS):
        step = next(step for step in STEPS if step.name == name)
        facts = runs[name].facts if name in runs else None
        trials = "not run" if facts is None else f"{facts['finished']} of {facts['trials']}"
        minutes = "" if facts is None else f"{facts['minutes']:.0f}"
        rows.append(f"| {name} | {_command(name)} | {step.question} | {trials} | {minutes} |")
    versions = "; or ".join(
        dict.fromkeys(
            ", ".join(f"{package} {version}" for package, version in run.facts["versions"].items())
            for run in runs.values()
        )
    )
    note = (
        "Minutes are wall-clock with two workers of one thread. A trial that several recipes share was run once, so "
        f"a run's minutes exclude the trials it shares with earlier runs. Versions: {versions}."
    )
    return _page("Runs", ["\n".join(rows), note])


def sequence_page(run: StudyRun) -> str:
    """Verdicts, tables and differences of one run's own condition."""
    card, recipe = run.card(), run.recipe
    parts = [_head(run), _verdicts(card, recipe), set_gap_line(card), markdown_text(reversal_line(card))]
    for view, title in shown_views(card):
        parts += [f"## Scorecard, {title}", pipes(metric_table(card, recipe, MAIN, "", view)), legend(card)]
        parts += [f"## Against random, {title}", difference_table(card, recipe, COMPARED, view), _DIFFERENCES]
    for view, title in shown_views(card):
        parts += [f"## More of the future, {title}", pipes(metric_table(card, recipe, MORE, "", view))]
        parts += [
            f"## By stage, {title}",
            "Points right after the stage → at the end.",
            pipes(stage_table(card, recipe, view, "")),
        ]
    parts += ["## Diagnostics", pipes(metric_table(card, recipe, DIAGNOSTICS, ""))]
    parts += ["## Cost per trial", pipes(metric_table(card, recipe, COSTS, "")), _SECONDS]
    if card.notes:
        parts += ["## Notes", "\n".join(f"- {markdown_text(note)}" for note in card.notes)]
    return _page(f"{run.name.capitalize()} sequence", parts)


_SECONDS = "Seconds are wall-clock on cores shared with other work. Compare FLOPs, not seconds."
_DIFFERENCES = (
    "Each cell: mean difference over seeds in points of 100, its 95 % interval (Student t, paired by seed), and, after "
    "“mde”, the smallest true difference that these seeds would show with 80 % power, from the sd of all selectors, "
    "with its range (90 %). ▲ better, ▼ worse: p < .05 after Holm over the selectors."
)


def _verdicts(card: Scorecard, recipe: Recipe) -> str:
    lines = []
    for line in verdict_lines(card, recipe):
        notes = [f"({line.other})" if line.other else "", f"{line.power}." if line.power else ""]
        name, reason = markdown_text(line.selector), markdown_text(line.reason)
        lines.append(f"- **{name}**: *{line.word}*. {reason}. {' '.join(filter(None, notes))}")
    return "\n".join(lines)


def difference_table(card: Scorecard, recipe: Recipe, metrics: Sequence[str], view: str) -> str:
    """Selectors × metrics: difference from the reference with interval and smallest detectable difference."""
    order = [name for name in selectors_in_order(card, recipe) if name != card.reference]
    columns = [Column("selector", "", numeric=False), *(Column(METRICS[name].label, "") for name in metrics)]
    rows = []
    for selector in order:
        cells = [Cell(selector)]
        for metric in metrics:
            cells.append(_difference(_row(card.summary, view, metric, selector), metric))
        rows.append(tuple(cells))
    return pipes(Table("", tuple(columns), tuple(rows)))


def _row(summary: pd.DataFrame, view: str, metric: str, selector: str) -> dict[str, Any]:
    rows = summary[
        (summary["view"].isin([view, ""])) & (summary["metric"] == metric) & (summary["selector"] == selector)
    ]
    return cast("dict[str, Any]", rows.iloc[0].to_dict())


def _difference(row: Mapping[str, Any], metric: str) -> Cell:
    row = shown_row(row, metric)
    value, unit = float(row["diff_vs_reference"]), METRICS[metric].shown_unit
    if value != value:
        return Cell("—")
    text = format_signed(value, unit)
    if row["ci_low"] == row["ci_low"]:
        text += f" [{format_signed(row['ci_low'], unit)}, {format_signed(row['ci_high'], unit)}]"
    if row["mde"] == row["mde"]:
        ends = (float(row["mde_low"]), float(row["mde_high"]))
        text += f" mde {format_number(float(row['mde']), unit)}"
        text += range_words(ends, lambda end: format_number(end, unit))
    elif row["diff_n"] > 1 and np.isfinite(METRICS[metric].largest_difference):
        text += " mde cannot be told"
    better = METRICS[metric].better
    return Cell(text, difference_mark(row["p_holm"], value, better) if better else "")


def claims_page(runs: Mapping[str, StudyRun]) -> str:
    """Every claim of the paper, per sequence and scorer: shown, the opposite shown, or neither."""
    titles: list[str] = []
    sides: list[tuple[Mapping[str, Scorecard], str]] = []
    for name in (*SEQUENCES, "smollm2-field"):
        if name not in runs or not runs[name].complete_seeds():
            continue
        selectors = [spec.key for spec in runs[name].recipe.selectors]
        cards = {
            str(reference): runs[name].card(reference=reference)
            for reference in ("random", "lhas")
            if reference in selectors
        }
        for view in VIEWS:
            titles.append(f"{name}, {view.replace('_', ' ')}")
            sides.append((cards, view))
    table = answers(sides, CLAIMS)
    parts = [_CLAIMS]
    for question, words in QUESTIONS.items():
        rows = [(claim, row) for claim, row in zip(CLAIMS, table, strict=True) if claim.question == question]
        parts += [f"## {question}", words, _claim_table(rows, titles)]
    return _page("The paper's claims on real training runs", parts)


_CLAIMS = (
    "**shown**: p < .05 in the claimed direction (paired by seed, Holm over the selectors of all columns together, so "
    "that “shown in k of m columns” is corrected over the m); **the opposite is "
    "shown**: the same in the other direction; *direction only* and *not the direction*: the mean difference has that "
    "sign, but can be chance. Each cell ends with the mean difference and its 95 % interval."
)


def _claim_table(rows: Sequence[tuple[Claim, list[Answer | None]]], titles: Sequence[str]) -> str:
    lines = ["| claim | " + " | ".join(titles) + " |", "| --- |" + " --- |" * len(titles)]
    for claim, row in rows:
        cells = ["—" if cell is None else cell.text for cell in row]
        lines.append(f"| {markdown_text(claim.text)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def conditions_page(run: StudyRun) -> str:
    """Budgets, rounds, adaptation and orders side by side, and each condition's differences from random."""
    across = run.across()
    parts = [_head(run), pipes(condition_table(across, run.recipe)), across_note(across)]
    for view, title in shown_views(across.cards[""]):
        for table in across_tables(across, run.recipe, view):
            parts += [f"## {table.title}, {title}", pipes(table)]
        parts += [f"## Against random, {title}", _by_condition(run, view), _DIFFERENCES]
    return _page("Budgets, rounds, adaptation, order", parts)


def _by_condition(run: StudyRun, view: str) -> str:
    """Condition × selector: differences from random on what decides about myopia."""
    metrics = ("current", "forgetting", "auc_common", "long_horizon")
    columns = [Column("condition", "", numeric=False), Column("seeds", ""), Column("selector", "", numeric=False)]
    columns += [Column(METRICS[name].label, "") for name in metrics]
    rows = []
    across = run.across()
    for name in dict.fromkeys(across.summary["condition"]):
        part = across.summary[across.summary["condition"] == name]
        for spec in run.recipe.selectors:
            if spec.key != "random":
                differences = [_row(part, view, metric, spec.key) for metric in metrics]
                cells = [_difference(row, metric) for row, metric in zip(differences, metrics, strict=True)]
                rows.append(
                    (Cell(condition_label(name)), Cell(str(int(differences[0]["diff_n"]))), Cell(spec.key), *cells)
                )
    return pipes(Table("", tuple(columns), tuple(rows)))


def regimes_page(run: StudyRun) -> str:
    """Regimes ordered by how much loss selection loses in the long run."""
    parts = [_head(run), _REGIMES]
    for view, title in shown_views(run.card()):
        parts += [f"## Against random, {title}", _by_condition(run, view), _DIFFERENCES]
    return _page("Where myopia shows", parts)


_REGIMES = (
    "Each regime changes one value of the main setting (own: 5 % noise, 20 % unseen sub-skills, sharp borders between "
    "stages). Seeds and regimes were fixed before the first run."
)


def interventions_page(run: StudyRun) -> str:
    """Interventions beside bare loss selection and beside random."""
    parts = [_head(run), _verdicts(run.card(), run.recipe)]
    for view, title in shown_views(run.card()):
        table = interventions_table(run.card(), run.recipe, "", view)
        parts += [f"## With minus without, {title}", pipes(table), table.note]
        parts += [f"## Scorecard, {title}", pipes(metric_table(run.card(), run.recipe, MAIN, "", view))]
    parts += ["## Diagnostics", pipes(metric_table(run.card(), run.recipe, DIAGNOSTICS, ""))]
    return _page("Interventions around loss selection", parts)


def proxy_page(run: StudyRun) -> str:
    """LHAS beside baselines that learn the proxy items."""
    parts = [_head(run), _PROXY]
    for reference in ("random", "random + proxy items", "loss"):
        card = run.card(reference=reference)
        for view, title in shown_views(card):
            parts += [f"## Minus {reference}, {title}", difference_table(card, run.recipe, COMPARED, view)]
    for view, title in shown_views(run.card()):
        parts += [f"## Scorecard, {title}", pipes(metric_table(run.card(), run.recipe, MAIN, "", view))]
    return _page("The proxy items as training data", [*parts, _DIFFERENCES])


_PROXY = (
    "LHAS sees the gradients of a few items of every stage, future stages included. Here baselines learn the same "
    "items as training data, once per stage and within the same budget."
)


def trajectories_page(runs: Mapping[str, StudyRun]) -> str:
    """Trajectory diagnostics against forgetting, over all trials of the study and by sequence."""
    cards = {
        (name, condition): card
        for name, run in runs.items()
        if name not in DEVELOPMENT and not name.startswith(("field-", "replay-", "selector-", "smollm2-"))
        for condition, card in run.across().cards.items()
    }
    done: set[tuple[str, str]] = set()
    parts = []
    for (name, condition), card in cards.items():
        rows = card.per_trial[
            ~card.per_trial["selector"].isin(
                [selector for selector, where in done if where == _setting(name, condition)]
            )
        ]
        done |= {(str(selector), _setting(name, condition)) for selector in card.trials.selectors}
        parts.append(rows.assign(condition=_setting(name, condition)))
    together = pd.concat(parts, ignore_index=True)
    trials = together.groupby("condition")["trial"].nunique().sum()
    sections = [f"{trials} trials, each once, of the tiny runs on the paper's claims, without the tuning."]
    for view in VIEWS:
        title = view.replace("_", " ")
        table = correlation_table(association_table(together, [view], TRAJECTORY), "", view)
        sections += [f"## All trials, {title}", pipes(table), table.note]
    for name in SEQUENCES:
        if name in runs:
            pairs = association_table(runs[name].card().per_trial, [VIEWS[0]], TRAJECTORY)
            table = correlation_table(pairs, "", VIEWS[0])
            sections += [f"## {name.capitalize()} sequence alone, token accuracy", pipes(table)]
    return _page("Trajectory and forgetting", sections)


def _setting(name: str, condition: str) -> str:
    """Name of the setting that trials of different runs share."""
    return condition or (name if name in ("domain", "interleaved") else "skill")


def lhas_page(runs: Mapping[str, StudyRun]) -> str:
    """The development grid, the chosen form, its held-out results, and the ablation."""
    dev = runs["lhas-finals"]
    card = dev.card()
    parts = [_TUNING]
    for run in (runs["lhas-grid"], dev) if "lhas-grid" in runs else (dev,):
        parts += [f"## {run.name}", _head(run), pipes(metric_table(run.card(), run.recipe, MAIN, "", PRIMARY))]
    parts.append(f"Highest mean long-horizon score of the finals: **{chosen(dev)}**.")
    held_out = []
    for name in SEQUENCES:
        if name in runs:
            here = runs[name]
            for selector in ("lhas", "lhas-adaptive"):
                if selector in here.card().trials.selectors:
                    held_out.append((name, selector, here.card()))
    parts += ["## Development against held-out", _held_table(card, chosen(dev), held_out)]
    if "lhas-ablation" in runs:
        ablation = runs["lhas-ablation"]
        parts += ["## Each term left out", _head(ablation)]
        full = ablation.card(reference="lhas")
        for view, title in shown_views(full):
            parts += [f"### Minus full LHAS, {title}", difference_table(full, ablation.recipe, COMPARED, view)]
            parts += [f"### Scorecard, {title}", pipes(metric_table(ablation.card(), ablation.recipe, MAIN, "", view))]
    return _page("LHAS: tuning and ablation", [*parts, _DIFFERENCES])


_TUNING = (
    "`lhas` on the held-out pages is the published form (nuclear norm, distance, future 1), the selector's defaults. "
    "These runs compare its forms on development seeds, a development order of the stages and a base model of their "
    "own; no held-out run uses any of these. The rule was that the form with the highest mean long-horizon score of "
    "the finals runs on the held-out seeds. It chose the published form when the definitions were older. Measured "
    "anew, the finals are led by the form named below. The held-out runs had been made by then and were not made "
    "again, and the finals hold the forms that the older grid chose."
)


def ranked(grid: StudyRun) -> list[str]:
    """The grid's forms by falling long-horizon score."""
    means = grid.card().wide(["long_horizon"], PRIMARY)["long_horizon"].drop("random")
    return [str(name) for name in means.sort_values(ascending=False).index]


def chosen(dev: StudyRun) -> str:
    """The finalist with the highest mean long-horizon score on the development seeds."""
    return ranked(dev)[0]


def _held_table(dev: Scorecard, best: str, held_out: Sequence[tuple[str, str, Scorecard]]) -> str:
    columns = [Column("where", "", numeric=False), Column("selector", "", numeric=False)]
    columns += [Column(METRICS[metric].label, "") for metric in COMPARED]
    rows = [("development", best, dev), *held_out]
    body = []
    for where, selector, card in rows:
        cells = [_difference(_row(card.summary, PRIMARY, metric, selector), metric) for metric in COMPARED]
        body.append((Cell(where), Cell(selector), *cells))
    return "Differences from random, each task's own scorer.\n\n" + pipes(Table("", tuple(columns), tuple(body)))


def smollm2_parts(runs: Mapping[str, StudyRun]) -> list[str]:
    """The real model, as far as it was run: primary comparisons, the field, and the pilot that chose their size."""
    view, parts = "token_accuracy", [_SMOLLM2]
    if "smollm2-primary" in runs:
        run = runs["smollm2-primary"]
        table = comparison_table({"": Board(run.card(), view)}, ON_SMOLLM2)
        parts += ["## Primary comparisons", _head(run), table, COMPARISONS_NOTE]
        card = run.card()
        parts += ["### Everything against random", difference_table(card, run.recipe, COMPARED, view), _DIFFERENCES]
        parts += [pipes(metric_table(card, run.recipe, MAIN, "", view)), legend(card)]
    if "smollm2-field" in runs:
        run = runs["smollm2-field"]
        card, recipe = run.card(), run.recipe
        parts += ["## The field", _head(run), _verdicts(card, recipe)]
        parts += [pipes(metric_table(card, recipe, MAIN, "", view)), legend(card)]
        parts += ["### Against random", difference_table(card, recipe, COMPARED, view), _DIFFERENCES]
        parts += ["### Diagnostics", pipes(metric_table(card, recipe, DIAGNOSTICS, ""))]
        parts += ["### Cost per trial", pipes(metric_table(card, recipe, COSTS, "")), _SECONDS]
    pilot = runs["smollm2-pilot"]
    parts += ["## Pilot", _head(pilot), _PILOT, _spread_table(Board(pilot.card(), view))]
    return [*parts, pipes(metric_table(pilot.card(), pilot.recipe, MAIN, "", view)), legend(pilot.card())]


_SMOLLM2 = (
    "One base model, so every verdict is about it. What was fixed before the runs: "
    "[protocol](protocol.md#a-real-model)."
)
_PILOT = (
    "Development seeds and an order of their own. It chose the size of the study and compares nothing. Each cell: the "
    "standard deviation over seeds of the difference from random, and the smallest true difference that 5 / 8 seeds "
    "show with 80 % power at the 5 % level, uncorrected; in points of 100."
)


def _spread_table(board: Board) -> str:
    """Selector × metric: how far differences from random vary between seeds, and what more seeds would show."""
    columns = [Column("selector", "", numeric=False), *(Column(METRICS[name].label, "") for name in COMPARED)]
    rows = []
    for selector in board.differences(COMPARED[0]):
        cells = [Cell(str(selector))]
        for name in COMPARED:
            sd = float(board.differences(name)[selector].std(ddof=1)) * METRICS[name].scale
            five, eight = (float(minimum_detectable_effect(sd, seeds)) for seeds in (5, 8))
            cells.append(Cell(f"{sd:.1f} ({five:.1f} / {eight:.1f})"))
        rows.append(tuple(cells))
    return pipes(Table("", tuple(columns), tuple(rows)))
