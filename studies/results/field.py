"""Pages of the field and of practices: many selectors on three sequences, and comparisons fixed beforehand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from longgame.audit.plan import condition_label
from longgame.audit.run import Run
from longgame.errors import DataError
from longgame.metrics.catalog import METRICS
from longgame.metrics.diagnostics import PAIRS, association_table
from longgame.metrics.scorecard import Scorecard
from longgame.metrics.stats import ALPHA, Paired, holm, paired
from longgame.metrics.verdict import BETTER, EQUIVALENT, MYOPIC, NO_DIFFERENCE, NOT_ENOUGH, NOW_ONLY, WORSE
from longgame.recipe import Recipe
from longgame.report.charts import FAMILY_COLORS, GREY, Figure, spec
from longgame.report.render import pipes
from longgame.report.tables import (
    Cell,
    Column,
    Table,
    correlation_table,
    difference_mark,
    format_number,
    format_signed,
)
from longgame.selection.families import FAMILIES, spec_family
from studies.results.data import StudyRun

LEADERBOARD = ("current", "auc_common", "forgetting", "worst_task", "ood", "long_horizon")
_SHORT = {BETTER: "better", WORSE: "worse", MYOPIC: "myopic", NOW_ONLY: "now only", EQUIVALENT: "equivalent"}
_SHORT |= {NO_DIFFERENCE: "–", NOT_ENOUGH: "few seeds"}
STAND_IN = " (rules)"
"""End of the label of a selector for which rules over the text stand in for a judge."""
TRAJECTORY = (
    *PAIRS[:-1],
    ("noisy_share", "forgetting"),
    ("difficulty", "forgetting"),
    ("update_norm", "forgetting"),
    PAIRS[-1],
)
"""Pairs of metrics whose correlation over trials is told."""


@dataclass(frozen=True)
class Board:
    """A scorecard under one scorer."""

    card: Scorecard
    view: str

    def values(self, metric: str) -> pd.DataFrame:
        """A metric's values, seeds × selectors."""
        rows = self.card.per_trial
        rows = rows[rows["view"].isin([self.view, ""]) & (rows["metric"] == metric)]
        return rows.pivot(index="seed", columns="selector", values="value")

    def differences(self, metric: str) -> pd.DataFrame:
        """Differences from the reference, seeds × the other selectors."""
        values = self.values(metric)
        return values.drop(columns=self.card.reference).sub(values[self.card.reference], axis=0)

    def row(self, selector: str, metric: str) -> pd.Series:
        """The selector's row of the summary."""
        rows = self.card.summary
        here = rows["view"].isin([self.view, ""]) & (rows["metric"] == metric) & (rows["selector"] == selector)
        return rows[here].iloc[0]

    def mean(self, selector: str, metric: str) -> float:
        """Mean difference from the reference."""
        return float(self.row(selector, metric)["diff_vs_reference"])

    def cell(self, selector: str, metric: str) -> Cell:
        """The difference in points with its interval and mark."""
        row = self.row(selector, metric)
        mark = difference_mark(float(row["p_holm"]), row["diff_vs_reference"], METRICS[metric].better)
        return Cell(_points(row["diff_vs_reference"], row["ci_low"], row["ci_high"], metric), mark)

    @property
    def verdicts(self) -> dict[str, str]:
        """Selector → verdict."""
        rows = self.card.verdicts
        rows = rows[rows["view"] == self.view]
        return dict(zip(rows["selector"], rows["verdict"], strict=True))


@dataclass(frozen=True)
class Sequences:
    """Runs of the same selectors on several sequences, under one scorer."""

    runs: Mapping[str, StudyRun]
    """Sequence → its run."""
    view: str = "token_accuracy"
    """The scorer whose comparisons the protocol fixes."""

    @cached_property
    def boards(self) -> dict[str, Board]:
        """Sequence → its scorecard."""
        return {sequence: Board(run.card(), self.view) for sequence, run in self.runs.items()}

    @cached_property
    def families(self) -> dict[str, str]:
        """`families_of` the selectors that every sequence has."""
        each = [families_of(run.recipe) for run in self.runs.values()]
        return {name: family for name, family in each[0].items() if all(name in other for other in each)}

    @property
    def head(self) -> str:
        """Recipes and complete seeds, in a line."""
        recipes = ", ".join(f"[{run.name}](../../recipes/results/{run.name}.yaml)" for run in self.runs.values())
        seeds = {name: ", ".join(map(str, board.card.trials.seeds)) for name, board in self.boards.items()}
        each = f"seeds {next(iter(seeds.values()))}" if len(set(seeds.values())) == 1 else ""
        each = each or "; ".join(f"{name}: seeds {text}" for name, text in seeds.items())
        left = {
            name: [seed for seed in run.recipe.seeds if seed not in self.boards[name].card.trials.seeds]
            for name, run in self.runs.items()
        }
        to_run = "".join(
            f" **Not complete yet: {name}, seeds {', '.join(map(str, seeds))}. Fewer seeds show fewer differences.**"
            for name, seeds in left.items()
            if seeds
        )
        return f"Recipes: {recipes}; {each}.{to_run} What was fixed before the runs: [protocol](protocol.md)."


def against_zero(differences: pd.DataFrame) -> Paired:
    """The test of each column's mean."""
    values = differences.to_numpy(float).T
    return paired(values, np.zeros_like(values))


def _points(value: float, low: float, high: float, metric: str) -> str:
    """A difference and its interval in points; scores and shares from 0 to 1 count as 100."""
    scale = 1.0 if METRICS[metric].unit == "points" else 100.0
    texts = [format_signed(scale * number, "points") for number in (value, low, high)]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]"


def families_of(recipe: Recipe) -> dict[str, str]:
    """Selector → family, in the order of `FAMILIES`; without baselines."""
    families = {item.key: spec_family(item) for item in recipe.selectors}
    places = list(FAMILIES)
    ordered = sorted(families, key=lambda name: places.index(families[name]))
    return {name: families[name] for name in ordered if families[name] not in ("baseline", "reference")}


def leaderboard(*fields: Sequences) -> pd.DataFrame:
    """A row per sequence, budget, view, selector and metric: means, difference from random, tests and verdict.

    Random's rows are those of the first field that has the sequence at that budget.
    """
    tables: list[pd.DataFrame] = []
    for field, sequence in [(item, name) for item in fields for name in item.runs]:
        board = field.boards[sequence]
        card, families = board.card, families_of(field.runs[sequence].recipe)
        verdicts = card.verdicts.set_index(["view", "selector"])["verdict"]
        rows = card.summary
        rows = rows[rows["metric"].isin([*LEADERBOARD, "flops_share"]) & rows["view"].isin(["", *card.views])]
        budget = field.runs[sequence].recipe.budget
        if any(bool(((table["sequence"] == sequence) & (table["budget"] == budget)).any()) for table in tables):
            rows = rows[rows["selector"] != card.reference]
        table = pd.DataFrame(
            {
                "sequence": sequence,
                "budget": budget,
                "selector": rows["selector"].astype(str),
                "family": [families.get(name, "baseline") for name in rows["selector"]],
                "view": rows["view"].astype(str),
                "metric": rows["metric"].astype(str),
                "mean": rows["mean"],
                "seeds": rows["n"].astype("int32"),
                "difference": rows["diff_vs_reference"],
                "ci_low": rows["ci_low"],
                "ci_high": rows["ci_high"],
                "p": rows["p"],
                "p_holm": rows["p_holm"],
                "mde": rows["mde"],
                "verdict": [verdicts.get(key, "") for key in zip(rows["view"], rows["selector"], strict=True)],
            }
        )
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def leaderboard_file(*fields: Sequences) -> bytes:
    """`leaderboard` as a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pandas(leaderboard(*fields), preserve_index=False), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def method_results(name: str, board: pd.DataFrame, view: str = "token_accuracy") -> str:
    """What the leaderboard says of one selector, as Markdown with a link: a row per sequence and budget."""
    rows = board[board["selector"].isin([name, name + STAND_IN]) & (board["view"] == view)]
    stand_in = "Rules over the text stand in for the judge. " if (rows["selector"] != name).any() else ""
    rows = rows.set_index(["sequence", "budget", "metric"])
    if rows.empty or name == "random":
        here = "The others are compared with it." if name == "random" else "It is not part of the audit of the field."
        return f"{here} [The field side by side](../results/field.md).\n\n"
    columns = [Column(text, "", numeric=False) for text in ("sequence", "tokens", "now", "in the long run", "verdict")]
    lines = []
    for sequence, budget in rows.index.droplevel("metric").unique():
        cells = [Cell(sequence), Cell(f"{100 * budget:g}%")]
        for metric in ("current", "long_horizon"):
            row = rows.loc[(sequence, budget, metric)]
            text = _points(row["difference"], row["ci_low"], row["ci_high"], metric)
            cells.append(Cell(text, difference_mark(row["p_holm"], row["difference"], METRICS[metric].better)))
        lines.append((*cells, Cell(rows.loc[(sequence, budget, "current"), "verdict"])))
    seeds = " or ".join(map(str, sorted(set(rows["seeds"]))))
    return (
        f"{stand_in}Difference from random selection in points of token accuracy, with 95 % intervals over {seeds} "
        "tiny base models. ▲ better, ▼ worse: shown after correction over all selectors of that sequence and budget. "
        "[The field side by side](../results/field.md).\n\n"
        f"{pipes(Table('', tuple(columns), tuple(lines)))}\n\n"
    )


def family_table(board: Board, family_of: Mapping[str, str]) -> pd.DataFrame:
    """A row per family: mean difference of its members now and in the long run, with Holm over families."""
    families = pd.Series(family_of)
    names = list(dict.fromkeys(families))
    table = pd.DataFrame({"family": names, "selectors": [int((families == name).sum()) for name in names]})
    for metric in ("current", "long_horizon"):
        differences = board.differences(metric)
        means = pd.DataFrame({name: differences[families.index[families == name]].mean(axis=1) for name in names})
        test = against_zero(means)
        numbers = {"": test.mean, "_low": test.ci_low, "_high": test.ci_high, "_p": test.p, "_holm": holm(test.p)}
        for end, values in numbers.items():
            table[metric + end] = values
    return table


def answer(field: Sequences, sequence: str) -> str:
    """What is shown on one sequence, in sentences."""
    board = field.boards[sequence]
    verdicts = board.verdicts
    words = {word: [name for name, verdict in verdicts.items() if verdict == word] for word in _SHORT}
    sentences = [
        f"Of {len(verdicts)} selectors, {_count(words[BETTER])} *{BETTER}* than random{_names(words[BETTER])}."
    ]
    sentences.append(f"{_count(words[WORSE]).capitalize()} *{WORSE}*{_names(words[WORSE])}.")
    sentences.append(f"{_count(words[MYOPIC]).capitalize()} *{MYOPIC}*{_names(words[MYOPIC])}.")
    if words[NOW_ONLY]:
        sentences.append(f"{_count(words[NOW_ONLY]).capitalize()} shown to differ now only{_names(words[NOW_ONLY])}.")
    if words[EQUIVALENT]:
        sentences.append(f"{_count(words[EQUIVALENT]).capitalize()} shown to be equivalent{_names(words[EQUIVALENT])}.")
    sentences.append(f"For the other {len(words[NO_DIFFERENCE])}, neither a difference nor equivalence is shown.")
    table = family_table(board, field.families)
    shown = table[table["long_horizon_holm"] < ALPHA]
    for direction, part in (
        ("below", shown[shown["long_horizon"] < 0]),
        ("above", shown[shown["long_horizon"] > 0]),
    ):
        if len(part):
            sentences.append(f"Families shown to be {direction} random in the long run: {', '.join(part['family'])}.")
    if shown.empty:
        sentences.append("No family is shown to differ from random in the long run.")
    return f"**{sequence.capitalize()}.** " + " ".join(sentences)


def _count(names: Sequence[str]) -> str:
    return "none is" if not names else "1 is" if len(names) == 1 else f"{len(names)} are"


def _names(names: Sequence[str]) -> str:
    return f": {', '.join(names)}" if names else ""


def field_table(field: Sequences) -> str:
    """Selector × sequence: verdict, difference now and in the long run; and what choosing costs."""
    families, boards = field.families, field.boards
    columns = [Column("selector", "", numeric=False), Column("family", "", numeric=False)]
    for sequence in boards:
        columns += [Column(f"{sequence}: now", ""), Column("long run", ""), Column("verdict", "", numeric=False)]
    columns.append(Column("scoring / training FLOPs", ""))
    later = {name: np.mean([board.mean(name, "long_horizon") for board in boards.values()]) for name in families}
    costs = _costs(boards.values())
    rows = []
    for name in sorted(families, key=lambda key: -later[key]):
        cells = [Cell(name), Cell(families[name])]
        for board in boards.values():
            cells += [board.cell(name, "current"), board.cell(name, "long_horizon")]
            cells.append(Cell(_SHORT[board.verdicts[name]]))
        rows.append((*cells, Cell(format_number(costs[name], METRICS["flops_share"].shown_unit))))
    return pipes(Table("", tuple(columns), tuple(rows)))


def _costs(boards: Iterable[Board]) -> pd.Series:
    """Selector → scoring over training FLOPs, mean over seeds and sequences."""
    return pd.concat([board.values("flops_share").mean() for board in boards], axis=1).mean(axis=1)


def families_table(field: Sequences) -> str:
    """Family × sequence: the mean difference of the members, and the least and most that choosing costs."""
    costs = _costs(field.boards.values()).groupby(field.families).agg(["min", "max"])
    tables = {name: family_table(board, field.families).set_index("family") for name, board in field.boards.items()}
    columns = [Column("family", "", numeric=False), Column("selectors", "")]
    for sequence in tables:
        columns += [Column(f"{sequence}: now", ""), Column("long run", "")]
    columns.append(Column("scoring / training FLOPs", ""))
    rows = []
    families = list(field.families.values())
    for name in dict.fromkeys(families):
        cells = [Cell(name), Cell(str(families.count(name)))]
        for table in tables.values():
            row = table.loc[name]
            for metric in ("current", "long_horizon"):
                text = _points(row[metric], row[f"{metric}_low"], row[f"{metric}_high"], metric)
                cells.append(Cell(text, difference_mark(row[f"{metric}_holm"], row[metric], METRICS[metric].better)))
        ends = [f"{cost:.1f}" for cost in costs.loc[name]]
        rows.append((*cells, Cell(" to ".join(dict.fromkeys(ends)))))
    return pipes(Table("", tuple(columns), tuple(rows)))


def field_figure(field: Sequences) -> Figure:
    """Now against the long run for every selector, by family: mean over the sequences, with intervals over seeds."""
    families, boards = field.families, list(field.boards.values())
    names = list(dict.fromkeys(families.values()))
    parts = {}
    for metric in ("current", "long_horizon"):
        each = [METRICS[metric].scale * board.differences(metric) for board in boards]
        shared = sorted(set.intersection(*(set(table.index) for table in each)))
        mean = sum(table.loc[shared, list(families)] for table in each) / len(each)
        test = against_zero(mean)
        parts[metric] = pd.DataFrame(
            {
                "selector": list(families),
                "family": list(families.values()),
                "mean": test.mean,
                "low": test.ci_low,
                "high": test.ci_high,
            }
        )
    later = parts["long_horizon"].set_index("selector")["mean"]
    order = sorted(families, key=lambda name: (names.index(families[name]), -later[name]))
    charts = []
    for metric, title in (("current", "Now"), ("long_horizon", "In the long run")):
        color = alt.Color(
            "family:N",
            scale=alt.Scale(domain=names, range=list(FAMILY_COLORS[: len(names)])),
            legend=alt.Legend(orient="bottom", title=None, columns=5) if metric == "current" else None,
        )
        base = alt.Chart(parts[metric]).encode(alt.Y("selector:N", sort=order, title=None), color)
        words = f"{METRICS[metric].label} − random's (points)"
        layers = alt.layer(
            alt.Chart(pd.DataFrame({"zero": [0.0]})).mark_rule(color=GREY, strokeDash=[4, 3]).encode(x="zero:Q"),
            base.mark_rule(strokeWidth=2).encode(alt.X("low:Q", title=words), alt.X2("high:Q")),
            base.mark_point(size=45, filled=True, opacity=1).encode(alt.X("mean:Q", title=words)),
        )
        description = f"{METRICS[metric].label}: difference from random, a row per selector, colors by family"
        charts.append(spec(layers.properties(title=title), description, 15 * len(order)))
    return Figure("field", "The field", _caption(field), tuple(charts))


def _caption(field: Sequences) -> str:
    *others, last = field.boards
    over = f"mean over the sequences {', '.join(others)} and {last}" if others else f"the {last} sequence"
    return f"Token accuracy; {over}, with 95 % intervals over seeds. Families by color, best in the long run first."


def field_parts(field: Sequences, tenth: Sequences, judges: Sequences) -> list[str]:
    """The page of the field, without its title."""
    scale = (
        "Differences from random in points of 100, token accuracy, with 95 % "
        "intervals over seeds. ▲ better, ▼ worse: p < .05 after Holm over the selectors of the sequence. Verdicts: "
        + ", ".join(f"*{short}*: {word}" for word, short in _SHORT.items() if word != NOT_ENOUGH)
        + "."
    )
    return [
        field.head,
        "## What is shown",
        *(answer(field, sequence) for sequence in field.runs),
        "![Every selector against random, now and in the long run](figures/field.svg)",
        _caption(field),
        "## Selectors",
        scale,
        field_table(field),
        "## Families",
        "Mean difference over the members of a family in each seed; Holm over families.",
        families_table(field),
        *(("## At a tenth", f"{_TENTH} {tenth.head}", field_table(tenth)) if tenth.runs else ()),
        *(
            ("## With rules in place of a judge", f"{_JUDGES} {judges.head}", field_table(judges))
            if judges.runs
            else ()
        ),
        "## Trajectory and forgetting",
        "Correlations over all trials of these runs, within seeds and sequences.",
        _trajectories(field),
        "## Place your own selector",
        _PLACE,
    ]


def _trajectories(field: Sequences) -> str:
    parts = [board.card.per_trial.assign(condition=sequence) for sequence, board in field.boards.items()]
    pairs = association_table(pd.concat(parts, ignore_index=True), [field.view], TRAJECTORY)
    return pipes(correlation_table(pairs, "", field.view))


_TENTH = (
    "The selectors that are shown to differ from random at 25 %, and `prototypes`, which is not. Holm over all of them."
)
_JUDGES = (
    "`alpagasus` and `mods` ask an LLM judge. Here rules over the text grade instead, so this says how the methods act "
    "on such grades, not on a judge's. Holm over the two."
)
_PLACE = """All numbers are in [leaderboard.parquet](leaderboard.parquet): a row per sequence, scorer, selector and
metric. Your selector meets the same seeds:

```
longgame audit recipes/results/field-skill.yaml --selectors random,mine.py:Mine --out runs/mine
python -m studies.results place runs/mine
```

The second command says where it lies, and whether random selection has the same scores here as in the table."""


def place(folder: Path, field: Sequences) -> list[str]:
    """Sentences that place the selectors of an audit into the leaderboard of the same recipe.

    Raises:
        DataError: the audit differs from every kept field run in more than selectors and fewer seeds, lacks random, or
            has no finished seed.
    """
    audit = Run.open(folder)
    same = [
        name
        for name, run in field.runs.items()
        if _setting(audit.recipe) == _setting(run.recipe) and set(audit.recipe.seeds) <= set(run.recipe.seeds)
    ]
    if not same:
        raise DataError(
            f"{folder} is no audit of a field recipe: more than its selectors and fewer seeds differ. Use "
            + ", ".join(f"recipes/results/{run.name}.yaml" for run in field.runs.values())
            + " with --selectors random,YOURS."
        )
    if "random" not in {spec.key for spec in audit.recipe.selectors}:
        raise DataError(
            f"{folder} has no trials of random, with which selectors are compared. Add it: --selectors random,YOURS."
        )
    sequence, board = same[0], field.boards[same[0]]
    facts = {"trials": 0, "finished": 0, "minutes": 0.0, "versions": {}}
    own = Board(StudyRun(audit.recipe.name, audit.recipe, audit.results, facts).card(), field.view)
    gap = (board.values("long_horizon")["random"] - own.values("long_horizon")["random"]).abs().dropna()
    lines = [
        f"Random selection here is within {100 * float(gap.max()):.2f} points of the leaderboard's "
        f"(long-horizon score, {len(gap)} seeds)."
    ]
    for name, word in own.verdicts.items():
        others = [board.mean(other, "long_horizon") for other in field.families if other != name]
        now, later = (own.cell(name, metric).text for metric in ("current", "long_horizon"))
        rank = 1 + sum(value > own.mean(name, "long_horizon") for value in others)
        lines.append(
            f"{name} on the {sequence} sequence: now {now}, long run {later}, {word}; "
            f"place {rank} of {len(others) + 1} by its mean in the long run."
        )
    return lines


def _setting(recipe: Recipe) -> dict[str, object]:
    """Everything that two audits must share for one to be placed in the other."""
    facts = recipe.model_dump(mode="json")
    return {key: value for key, value in facts.items() if key not in ("name", "selectors", "seeds", "relative_to")}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two selectors of one run, compared on one metric."""

    text: str
    selector: str
    reference: str
    metric: str
    kind: str
    """``primary`` or ``secondary``: Holm is over the comparisons of a kind and sequence."""


_UNIFORM, _TARGETED = "random + replay 20%", "random + replay 20% targeted"
COMPARISONS = (
    Comparison("targeted replay − uniform replay", _TARGETED, _UNIFORM, "long_horizon", "primary"),
    Comparison("targeted replay − random", _TARGETED, "random", "long_horizon", "primary"),
    Comparison("uniform replay − random", _UNIFORM, "random", "long_horizon", "secondary"),
    Comparison(
        "replay by damage − uniform replay", "random + replay 20% damage", _UNIFORM, "long_horizon", "secondary"
    ),
    Comparison(
        "surprise − fit", "random + replay 20% surprise", "random + replay 20% fit", "long_horizon", "secondary"
    ),
    Comparison("proxy items as data − uniform replay", "random + proxy items", _UNIFORM, "auc_common", "secondary"),
    Comparison("diversity + uniform replay − random", "diversity + replay 20%", "random", "long_horizon", "secondary"),
)
"""The protocol's comparisons of practices."""
_PROXY, _BOTH = "random + proxy items", "random + replay 20% + proxy items"
IN_CONDITIONS = tuple(
    Comparison(text, selector, reference, "long_horizon", "secondary")
    for text, selector, reference in (
        ("targeted replay − uniform replay", _TARGETED, _UNIFORM),
        ("targeted replay − random", _TARGETED, "random"),
        ("uniform replay − random", _UNIFORM, "random"),
        ("proxy items as data − random", _PROXY, "random"),
        ("uniform replay and proxy items − random", _BOTH, "random"),
        ("uniform replay and proxy items − uniform replay", _BOTH, _UNIFORM),
    )
)
"""The protocol's comparisons in each condition."""
ON_SMOLLM2 = (
    Comparison("uniform replay − random", _UNIFORM, "random", "long_horizon", "primary"),
    Comparison("loss − random", "loss", "random", "long_horizon", "primary"),
)
"""The protocol's primary comparisons on a real model."""


def compare(board: Board, comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """A row per comparison: its metric's paired difference, Holm within its kind, and the price now."""
    rows = []
    for item in comparisons:
        main, now = (board.values(metric) for metric in (item.metric, "current"))
        sides = {"": main, "now_": now}
        numbers: dict[str, float] = {}
        for start, values in sides.items():
            test = paired(values[item.selector].to_numpy(float), values[item.reference].to_numpy(float))
            numbers |= {start + name: float(getattr(test, name)) for name in ("n", "mean", "ci_low", "ci_high", "p")}
        rows.append({"text": item.text, "kind": item.kind, "metric": item.metric, **numbers})
    table = pd.DataFrame(rows)
    table["p_holm"] = table.groupby("kind")["p"].transform(lambda p: holm(p.to_numpy(float)))
    return table


def comparison_table(boards: Mapping[str, Board], comparisons: Sequence[Comparison]) -> str:
    """Comparison × sequence or condition: difference, p after Holm, and the difference now."""
    tables = {name: compare(board, comparisons) for name, board in boards.items()}
    columns = [Column("comparison", "", numeric=False), Column("kind", "", numeric=False)]
    columns += [Column("metric", "", numeric=False)]
    for name in tables:
        columns += [Column(name, ""), Column("p", ""), Column("now", "")]
    rows = []
    for place, item in enumerate(comparisons):
        cells = [Cell(item.text), Cell(item.kind), Cell(METRICS[item.metric].label)]
        for table in tables.values():
            row = table.iloc[place]
            text = _points(row["mean"], row["ci_low"], row["ci_high"], item.metric)
            cells.append(Cell(text, difference_mark(row["p_holm"], row["mean"], METRICS[item.metric].better)))
            cells.append(Cell(f"{row['p_holm']:.2g}"))
            cells.append(Cell(_points(row["now_mean"], row["now_ci_low"], row["now_ci_high"], "current")))
        rows.append(tuple(cells))
    return pipes(Table("", tuple(columns), tuple(rows)))


def practices_parts(
    practices: Sequences, conditions: StudyRun | None = None, development: StudyRun | None = None
) -> list[str]:
    """The page of practices, without its title."""
    parts = [practices.head, "## Comparisons, token accuracy", comparison_table(practices.boards, COMPARISONS)]
    exact = Sequences(practices.runs, "exact_match")
    parts += [COMPARISONS_NOTE, "## Comparisons, exact match", _EXACT, comparison_table(exact.boards, COMPARISONS)]
    if conditions is not None:
        names = [name for name in conditions.conditions if conditions.complete_seeds(name)]
        boards = {condition_label(name): Board(conditions.card(name), practices.view) for name in names}
        parts += ["## Conditions, token accuracy", _CONDITIONS, comparison_table(boards, IN_CONDITIONS)]
    for sequence, board in practices.boards.items():
        parts += [f"## Against random, {sequence} sequence, token accuracy", against_random(board)]
    if development is not None:
        board = Board(development.card(), practices.view)
        parts += ["## Development", _DEVELOPMENT, against_random(board)]
    return parts


_CONDITIONS = (
    "[replay-conditions](../../recipes/results/replay-conditions.yaml): the skill sequence, one value changed at a "
    "time. Holm over the six comparisons of a condition."
)
_EXACT = "The same under exact match; the protocol's test is the one above."
COMPARISONS_NOTE = (
    "Mean difference in points of 100, with its 95 % interval over seeds. p: paired t, "
    "after Holm over the comparisons of the same kind and sequence. ▲ ▼: p < .05. *now*: the same two on the current "
    "score, not tested."
)
_DEVELOPMENT = (
    "Seeds 100–102, another order of the stages, one base model of their own. Nothing on this page was chosen by it."
)


def against_random(board: Board) -> str:
    """Selector × metric: the difference from random, best in the long run first."""
    names = [name for name in board.card.trials.selectors if name != board.card.reference]
    metrics = (*LEADERBOARD, "noisy_share")
    columns = [Column("selector", "", numeric=False), *(Column(METRICS[name].label, "") for name in metrics)]
    ordered = sorted(names, key=lambda name: -board.mean(name, "long_horizon"))
    rows = [(Cell(name), *(board.cell(name, metric) for metric in metrics)) for name in ordered]
    return pipes(Table("", tuple(columns), tuple(rows)))
