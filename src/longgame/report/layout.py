"""What a report shows of a run: one ordered list of sections, rendered by `longgame.report.render`.

A section holds blocks (sentences, lists, tables, figures, trials), and each block says which outputs show it. To add a
section, write a function from `Run` to `Section` and name it in `report_layout`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Literal

import pandas as pd
import yaml
from altair.utils.schemapi import debug_mode

from longgame.audit.run import Run
from longgame.escape import csv_text
from longgame.report.answer import (
    VerdictLine,
    answer,
    audited_line,
    condition_note,
    contamination_note,
    differences_table,
    headline,
    legend,
    reversal_line,
    run_facts,
    seeds_caveat,
    set_gap_line,
    verdict_lines,
    without_folders,
)
from longgame.report.baseline import Comparison
from longgame.report.charts import Figure, Style
from longgame.report.conditions import (
    across_note,
    across_tables,
    axes_figures,
    condition_table,
    interventions_across,
    orders_line,
)
from longgame.report.efficiency import (
    PUBLISHED,
    SCALES,
    efficiency_figures,
    efficiency_lines,
    efficiency_notes,
    efficiency_table,
    feasibility_table,
    run_efficiency_figures,
)
from longgame.report.families import given_table, overview_legend, overview_lines, overview_table
from longgame.report.figures import outcome_figures, style_of, verdict_figures, walk_figures
from longgame.report.picks import (
    MOST_TRIALS,
    TRIALS_FILE,
    TrialDetail,
    first_trials,
    picks_figures,
    trial_details,
    trials_frame,
    trials_table,
)
from longgame.report.tables import (
    COSTS,
    DIAGNOSTICS,
    LEVEL_ONE,
    LEVEL_TWO,
    MAIN,
    MANY,
    MORE,
    Table,
    correlation_table,
    interventions_table,
    metric_table,
    selector_families,
    selectors_in_order,
    shown_views,
    stage_table,
    sub_skill_table,
    with_paper,
)
from longgame.selection.families import FAMILIES, spec_family

Output = Literal["summary", "terminal", "markdown", "card", "page"]
"""Where a report is shown: one screen of a terminal, all of it there, scorecard.md, the short audit card, the page."""
ALL: frozenset[Output] = frozenset({"terminal", "markdown", "card", "page"})
SUMMARY: frozenset[Output] = frozenset({"summary"})
PAGE: frozenset[Output] = frozenset({"page"})
TEXTS: frozenset[Output] = frozenset({"terminal", "markdown"})
FILES: frozenset[Output] = frozenset({"markdown", "page"})

SHOWN_TRIALS = 20
"""Trials that a page shows in full by default."""
CARD_METRICS = ("current", "auc_common", "forgetting", "ood", "long_horizon", "myopia_gap")
CARD_FACTS = ("model", "data", "budget", "seeds", "versions")


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph; empty text is not shown."""

    text: str
    tone: Literal["plain", "lead", "soft", "note"] = "plain"

    def __bool__(self) -> bool:
        return bool(self.text)


@dataclass(frozen=True, slots=True)
class Facts:
    """Names with their values. With a title, the page shows them on demand."""

    pairs: Mapping[str, str]
    title: str = ""

    def __bool__(self) -> bool:
        return bool(self.pairs)


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list of sentences. With a title, the page shows them on demand."""

    items: tuple[str, ...]
    title: str = ""

    def __bool__(self) -> bool:
        return bool(self.items)


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The selectors' verdicts. With a title, the page shows them on demand."""

    lines: tuple[VerdictLine, ...]
    title: str = ""

    def __bool__(self) -> bool:
        return bool(self.lines)


@dataclass(frozen=True, slots=True)
class Gallery:
    """Figures next to each other."""

    figures: tuple[Figure, ...]

    def __bool__(self) -> bool:
        return bool(self.figures)


@dataclass(frozen=True, slots=True)
class Source:
    """Text as it is in a file, shown on demand."""

    title: str
    text: str


Block = Text | Facts | Bullets | Verdicts | Table | Gallery | TrialDetail | Source
"""What a section is made of; an empty block is not shown."""


@dataclass
class Section:
    """A titled part of a report."""

    name: str
    """Unique in the report; the page's anchor."""
    title: str
    parts: list[tuple[Callable[[], Iterable[Block]], frozenset[Output]]] = field(default_factory=list)
    galleries: list[Callable[[], list[Gallery]]] = field(default_factory=list)

    def show(self, *blocks: Block, on: frozenset[Output] = ALL) -> Section:
        """Add blocks that these outputs show."""
        self.parts.append((lambda: blocks, on))
        return self

    def show_later(self, make: Callable[[], Iterable[Block]], on: frozenset[Output] = PAGE) -> Section:
        """Add blocks that are made at their first use, because they take long."""
        self.parts.append((cache(make), on))
        return self

    def draw(self, *makers: Callable[[], Iterable[Figure]]) -> Section:
        """Add figures, which are drawn at their first use; the page shows them."""

        def gallery() -> list[Gallery]:
            with debug_mode(False):  # the tests validate every figure; here it would take most of the time
                return [Gallery(tuple(figure for make in makers for figure in make()))]

        self.galleries.append(cache(gallery))
        return self.show_later(self.galleries[-1])

    def blocks(self, output: Output) -> list[Block]:
        """The blocks that an output shows."""
        return [block for make, on in self.parts if output in on for block in make() if block]


@dataclass(frozen=True)
class Layout:
    """Everything that a report shows of a run, in order."""

    title: str
    sections: Sequence[Section]
    progress: str = ""
    """How much of the run is finished; empty for a finished one."""
    subject: str = "Scorecard"
    """What kind of report it is."""
    families: Mapping[str, str] = field(default_factory=dict)
    """Selector → family, where selectors are so many that the page offers a filter."""
    colors: Mapping[str, str] = field(default_factory=dict)
    """Family → its color in the figures."""
    files: Mapping[str, Callable[[], str]] = field(default_factory=dict)
    """Files beside the page, with what is too long for it: name → content, made where it is written."""

    def shown(self, output: Output) -> list[tuple[Section, list[Block]]]:
        """The sections of an output with their blocks; a section without blocks is left out."""
        pairs = [(section, section.blocks(output)) for section in self.sections]
        return [(section, blocks) for section, blocks in pairs if blocks]

    @property
    def figures(self) -> list[Figure]:
        """All figures, in the order of the page."""
        galleries = [gallery for section in self.sections for make in section.galleries for gallery in make()]
        return [figure for gallery in galleries for figure in gallery.figures]


def report_layout(
    run: Run,
    title: str = "",
    comparison: Comparison | None = None,
    trials: int = SHOWN_TRIALS,
    trials_file: str = TRIALS_FILE,
) -> Layout:
    """The layout of a run's report.

    Args:
        title: what the run is called; without it, the recipe's name.
        comparison: the run against a baseline.
        trials: so many trials are shown in full.
        trials_file: name of the file beside the page that holds the table of all trials, where they are very many.
    """
    sections = [
        answer_section(run),
        verdicts_section(run),
        scorecard_section(run),
        interventions_section(run),
        baseline_section(comparison),
        Section("outcomes", "Now and later").draw(lambda: outcome_figures(run), lambda: run_efficiency_figures(run)),
        conditions_section(run),
        Section("walk", "The walk").draw(lambda: walk_figures(run)),
        Section("picks", "What was selected").draw(lambda: picks_figures(run)),
        stages_section(run),
        diagnostics_section(run),
        more_section(run),
        trials_section(run, trials, trials_file),
        run_section(run),
    ]
    families = selector_families(run.scorecard, run.recipe)
    if families:
        sections = [sections[0], overview_section(run), *sections[1:]]
    colors = {key.selector: key.color for key in style_of(run).legend} if families else {}
    many = len(run.scorecard.trials) > MOST_TRIALS
    files = {trials_file: lambda: csv_text(trials_frame(run.scorecard))} if many else {}
    return Layout(title or run.recipe.name, sections, run.progress, families=families, colors=colors, files=files)


def overview_section(run: Run) -> Section:
    """All selectors in one table, and on one screen of a terminal in a line per family; for runs of many."""
    card, recipe = run.scorecard, run.recipe
    section = Section("overview", "All selectors")
    section.show(Facts(overview_lines(card, recipe)), Text(overview_legend(card), "soft"), on=SUMMARY)
    view, title = shown_views(card)[0]
    table = overview_table(card, recipe, view)
    section.show(replace(table, title=f"{table.title}, {title}"))
    return section.show(Text(legend(card), "soft"), given_table(card, recipe), on=FILES)


def _meanings(*tables: Table) -> Facts:
    """What the columns of these tables mean; empty where only one column has a meaning."""
    pairs = {label: meaning for table in tables for label, meaning in table.meanings.items()}
    return Facts(pairs if len(pairs) > 1 else {}, "What the columns mean")


def answer_section(run: Run) -> Section:
    section = Section("answer", "The answer")
    everywhere = ALL | SUMMARY
    section.show(Text(audited_line(run), "soft"), Text(headline(run.scorecard, run.recipe), "lead"), on=everywhere)
    section.draw(lambda: verdict_figures(run))
    return section.show(Facts(answer(run)), on=everywhere)


def verdicts_section(run: Run) -> Section:
    card = run.scorecard
    section = Section("verdicts", "Verdicts")
    many = bool(selector_families(card, run.recipe))
    table = differences_table(card, run.recipe)
    section.show(table, on=(ALL - {"card"}) | (frozenset() if many else SUMMARY))
    verdicts = Verdicts(tuple(verdict_lines(card, run.recipe)), "Reasons, selector by selector" if many else "")
    section.show(verdicts, on=ALL - {"card"} if many else ALL)
    return section.show(Text(set_gap_line(card), "soft"), Text(reversal_line(card), "soft"), on=ALL - {"card"})


def scorecard_section(run: Run) -> Section:
    """Both levels of the paper's scorecard by the first view, and its Table 1 by every view."""
    card, recipe = run.scorecard, run.recipe
    section = Section("scorecard", "Scorecard")
    tables = []
    for place, (view, title) in enumerate(shown_views(card)):
        main = with_paper(metric_table(card, recipe, MAIN, f"Scorecard, {title}", view), recipe)
        tables.append(main)
        if place == 0:
            now = metric_table(card, recipe, LEVEL_ONE, f"Level 1: now, and what it cost, {title}", view)
            later = metric_table(card, recipe, LEVEL_TWO, f"Level 2: the long run, {title}", view)
            tables += [now, later]
            section.show(with_paper(now, recipe), on=ALL - {"card"}).show(with_paper(later, recipe), on=FILES)
            section.show(main, on=TEXTS)  # the page has these columns in both levels
            short = metric_table(card, recipe, CARD_METRICS, f"Scores, {title}", view)
            many = bool(selector_families(card, recipe))  # they have a table of their own
            section.show(short, on=frozenset({"card"}) if many else frozenset({"card", "summary"}))
        else:
            section.show(main, on=ALL - {"card"})
    section.show(Text(legend(card), "soft")).show(
        Text("A heading is a button that sorts by its column; a shaded edge means that the table continues.", "soft"),
        on=PAGE,
    )
    return section.show(_meanings(*tables), on=FILES)


def interventions_section(run: Run) -> Section:
    section = Section("interventions", "What each intervention buys")
    for place, (view, title) in enumerate(shown_views(run.scorecard)):
        table = interventions_table(run.scorecard, run.recipe, f"With minus without, {title}", view)
        section.show(table, on=FILES if place == 0 else frozenset({"markdown"}))
    return section


def baseline_section(comparison: Comparison | None) -> Section:
    section = Section("baseline", "Against the baseline")
    if comparison is not None:
        section.show(Text(f"Baseline: {comparison.baseline}. {comparison.caveat}"))
        none = "not there"
        changes = tuple(f"{name}: {before or none} → {now or none}" for name, before, now in comparison.changed)
        section.show(Bullets(changes) if changes else Text("No verdict changed."))
        section.show(comparison.table, Bullets(comparison.recipe, "What differs in the recipe"))
    return section


def conditions_section(run: Run) -> Section:
    """All conditions side by side; empty for a recipe without axes."""
    section = Section("conditions", "Across conditions")
    across = run.across
    if across is None:
        return section
    section.draw(lambda: axes_figures(run))
    section.show(Text(orders_line(across, run.recipe), "soft"), on=frozenset({"terminal"}))
    section.show(condition_table(across, run.recipe), on=FILES)
    section.show(*across_tables(across, run.recipe), on=frozenset({"summary", "terminal", "page"}))
    section.show(*interventions_across(across, run.recipe), on=PAGE)
    for view, title in shown_views(run.scorecard):
        tables = [*across_tables(across, run.recipe, view), *interventions_across(across, run.recipe, view)]
        tables.append(correlation_table(across.association, "Diagnostics and forgetting over all conditions", view))
        section.show(*(_titled(table, title) for table in tables), on=frozenset({"markdown"}))
    return section.show(Text(across_note(across), "soft"), on=ALL - {"card"})


def _titled(table: Table, view: str) -> Table:
    return replace(table, title=f"{table.title}, {view}")


def stages_section(run: Run) -> Section:
    """How many tokens each stage offers, and how many of them a trial selects."""
    stages = {
        f"{stage}. {run.scorecard.tasks[stage - 1]}": f"{offered:,.0f} tokens offered, {selected:,.0f} selected"
        for stage, offered, selected in run.measured[""].offered
    }
    return Section("stages", "The stages").show(Facts(stages), on=FILES)


def diagnostics_section(run: Run) -> Section:
    section = Section("diagnostics", "Diagnostics")
    table = metric_table(run.scorecard, run.recipe, DIAGNOSTICS, "What was selected, and the updates")
    section.show(with_paper(table, run.recipe), on=ALL - {"card"}).show(_meanings(table), on=FILES)
    for place, (view, title) in enumerate(shown_views(run.scorecard)):
        pairs = correlation_table(run.scorecard.association, f"Diagnostics and forgetting, {title}", view)
        section.show(pairs, on=FILES if place == 0 else frozenset({"markdown"}))
    return section


def more_section(run: Run) -> Section:
    """Further scores, scores by stage and by sub-skill, and costs."""
    card, recipe, views = run.scorecard, run.recipe, shown_views(run.scorecard)
    section = Section("more", "More tables")
    stages = [stage_table(card, recipe, view, f"By stage, {title}") for view, title in views]
    tables = [metric_table(card, recipe, MORE, f"More of the future, {title}", view) for view, title in views]
    many = bool(selector_families(card, recipe))
    tables.append(metric_table(card, recipe, COSTS, "Cost per trial"))
    shut = [replace(table, closed=not many or table is not tables[-1]) for table in tables]
    section.show(*shut, on=FILES).show(_meanings(*tables), on=FILES)
    cells = (
        "By stage and by sub-skill, a cell is: points right after the stage → points at the end of the sequence, mean "
        "over seeds (OOD sets: at the end)."
    )
    section.show(Text(cells, "soft"), on=ALL - {"card"})
    section.show(*(replace(table, closed=True) for table in stages[:1]), on=ALL - {"card"})
    skills = [sub_skill_table(card, recipe, view, f"By sub-skill, {title}") for view, title in views]
    return section.show(*(replace(table, closed=True) for table in (*stages[1:], *skills)), on=FILES)


def trials_section(run: Run, count: int, file: str) -> Section:
    """Every trial in one table (of very many the first, and all in a file), and the first ones in full."""

    def details() -> Iterable[Block]:
        shown, present = first_trials(run, count), len(first_trials(run, len(run.plan.trials)))
        few = f"{len(shown)} of {present} trials in full. longgame report --trials {present} shows all."
        note = [Text(few, "soft")] if len(shown) < present else []
        return [trials_table(run.scorecard, file), *note, *trial_details(run, shown)]

    return Section("trials", "Trials").show_later(details)


def run_section(run: Run) -> Section:
    """What was run, what the numbers do not cover, and the recipe."""
    facts = run_facts(run)
    section = Section("run", "The run")
    section.show(Facts(facts), on=FILES)
    section.show(Facts({name: facts[name] for name in CARD_FACTS}), on=frozenset({"card"}))
    notes = (seeds_caveat(run.recipe), condition_note(run), contamination_note(run), *run.scorecard.notes)
    section.show(Bullets(tuple(filter(None, notes))))
    section.show(
        Bullets(
            (
                "“—” is not measured; it is never counted as 0.",
                "“not reached”: in at least one seed and transition the curve stayed below the common threshold.",
            )
        ),
        on=frozenset({"markdown"}),
    )
    recipe = yaml.safe_dump(
        without_folders(run.recipe.model_dump(mode="json", exclude={"relative_to"})),
        sort_keys=False,
        allow_unicode=True,
    )
    return section.show(Source("Resolved recipe", recipe), on=FILES)


def efficiency_layout(frame: pd.DataFrame, runs: Sequence[Run], view: str) -> Layout:
    """The layout of `longgame compare`.

    Args:
        frame: all methods (`longgame.report.efficiency.efficiency_frame`).
        runs: the runs whose selectors are in it.
        view: the scorer.
    """
    order = dict.fromkeys(name for run in runs for name in selectors_in_order(run.scorecard, run.recipe))
    families = {name: family for run in runs for name, family in selector_families(run.scorecard, run.recipe).items()}
    if len(order) > MANY:
        families |= {spec.key: spec_family(spec) for run in runs for spec in run.recipe.selectors if spec.key in order}
        families |= {name: "own" for name in order if name not in families}
        order = dict.fromkeys(sorted(order, key=lambda name: list(FAMILIES).index(families[name])))
    style = Style(list(order), runs[0].scorecard.reference, families)
    notes = Section("notes", "Notes").show(Bullets(tuple(note for run in runs for note in efficiency_notes(run, view))))
    sources = frame.loc[frame["kind"] == PUBLISHED, "source"].unique()
    sections = [
        methods_section(frame, style),
        Section("figures", "Figures").draw(lambda: efficiency_figures(frame, style)),
        notes.show(Bullets(tuple(f"Published points: {source}." for source in sources)), on=FILES),
    ]
    title, subject = ", ".join(run.recipe.name for run in runs), "Selectors beside published methods"
    colors = {key.selector: key.color for key in style.legend} if families else {}
    return Layout(title, sections, subject=subject, families=families, colors=colors)


def methods_section(frame: pd.DataFrame, style: Style) -> Section:
    """Every method in tables; in a terminal a line per family, where selectors are many."""
    section, tables = Section("tables", "Methods"), (efficiency_table(frame, style), feasibility_table(frame, style))
    if not style.families:
        return section.show(*tables)
    terminal = frozenset[Output]({"terminal"})
    section.show(Facts(efficiency_lines(frame, style)), Text(SCALES, "soft"), on=terminal)
    note = "PIR at the end @ share of the examples; every method with its intervals: --out FILE.html or FILE.md."
    return section.show(Text(note, "soft"), on=terminal).show(*tables, on=ALL - {"terminal"})
