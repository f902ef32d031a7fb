"""What changed between two runs: verdicts, scores and recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import vl_convert

from longgame.metrics.catalog import METRICS
from longgame.metrics.efficiency import (
    FRACTIONS,
    RATIOS,
    Feasibility,
    feasibility_ranks,
    published,
    published_feasibility,
)
from longgame.metrics.scorecard import PRIMARY, Scorecard
from longgame.metrics.stats import holm, moments, paired
from longgame.recipe import Recipe
from longgame.report.charts import GREY, VERSION, Figure, Style, intervals, spec, static_spec
from longgame.report.labels import labelled, name_layers
from longgame.report.tables import (
    NOT_MEASURED,
    Cell,
    Column,
    Table,
    difference_mark,
    mean_sd,
    number,
    template_environment,
)

_MOST_SEEDS = 10
"""Seeds that are named; the rest are counted."""
METRICS_COMPARED = ("current", "long_horizon", "auc_common", "forgetting", "ood", "worst_task", "myopia_gap")


@dataclass(frozen=True, slots=True)
class Comparison:
    """A run beside a baseline."""

    baseline: str
    verdicts: tuple[tuple[str, str, str], ...]
    """(selector, verdict there, verdict now); "" where a side has none."""
    table: Table
    recipe: tuple[str, ...]
    """Keys of the recipe that differ, with both values."""
    caveat: str

    @property
    def changed(self) -> list[tuple[str, str, str]]:
        """The verdicts that are not the same."""
        return [row for row in self.verdicts if row[1] != row[2]]


def compare(
    baseline: str,
    before: Scorecard,
    before_recipe: Recipe,
    now: Scorecard,
    recipe: Recipe,
    before_progress: str = "",
) -> Comparison:
    """Compare two runs by the primary view, selector by selector.

    Means are over each run's own seeds, differences are paired over the seeds that both have; the caveat says which.
    A seed draws the same pools and items only where data and model are the same: where the recipes differ beyond
    selectors and seeds, the caveat says that too. p is Holm-adjusted over the selectors of a metric.

    Args:
        baseline: what the earlier run is called.
        before_progress: how much of it is done, where it is not finished.
    """
    common = [name for name in now.trials.selectors if name in before.trials.selectors]
    differing = tuple(_differences(before_recipe.model_dump(mode="json"), recipe.model_dump(mode="json")))
    apart = [line for line in differing if not line.startswith(("name:", "seeds", "selectors"))]
    caveat = (
        "The recipes differ in more than selectors and seeds, so a difference may come from there."
        if apart
        else "Both runs have the same recipe but for selectors and seeds."
    )
    caveat = " ".join(part for part in (caveat, _seeds_caveat(before, now), before_progress) if part)
    words = [_verdicts(card) for card in (before, now)]
    names = list(dict.fromkeys([*words[1], *words[0]]))
    verdicts = tuple((name, words[0].get(name, ""), words[1].get(name, "")) for name in names)
    return Comparison(baseline, verdicts, _table(before, now, common), differing, caveat)


def _verdicts(card: Scorecard) -> dict[str, str]:
    rows = card.verdicts[card.verdicts["view"] == PRIMARY]
    return dict(zip(rows["selector"].astype(str), rows["verdict"].astype(str), strict=True))


def _common_seeds(before: Scorecard, now: Scorecard) -> list[int]:
    return [seed for seed in now.trials.seeds if seed in before.trials.seeds]


def _seeds_caveat(before: Scorecard, now: Scorecard) -> str:
    """Over which seeds means and differences are."""
    there, here, both = before.trials.seeds, now.trials.seeds, _common_seeds(before, now)
    if not both:
        return (
            f"The runs have no seed in common (there {_named(there)}; now {_named(here)}), so nothing can be paired: "
            "no difference is told, and each mean is over its own run's seeds. Audit both over the same seeds."
        )
    count = f"{len(both)} common seed{'s' if len(both) > 1 else ''} ({_named(both)})"
    text = f"Differences are paired over {count}"
    if len(both) == 1:
        text += ", and one seed cannot be tested"
    if len(there) == len(here) == len(both):
        return f"{text}."
    return f"{text}; means are over each run's own seeds (there {_named(there)}; now {_named(here)})."


def _named(seeds: Sequence[int]) -> str:
    more = f" and {len(seeds) - _MOST_SEEDS} more" if len(seeds) > _MOST_SEEDS else ""
    return ", ".join(map(str, seeds[:_MOST_SEEDS])) + more


def _table(before: Scorecard, now: Scorecard, common: Sequence[str]) -> Table:
    seeds = _common_seeds(before, now)
    columns = [Column("selector", "selector", numeric=False), Column("metric", "metric", numeric=False)]
    columns += [Column(name, name, "mean ± sd over the seeds of that run") for name in ("there", "now")]
    columns += [Column("difference", "difference", f"paired over {len(seeds)} common seeds; ▲ better, ▼ worse")]
    rows = []
    for name in METRICS_COMPARED:
        sides = [card.views[PRIMARY].metrics.get(name) for card in (before, now)]
        if sides[0] is None or sides[1] is None or not common:
            continue
        there, here = (
            card.trials.grid(side)[[card.trials.selectors.index(name) for name in common]]
            for card, side in ((before, sides[0]), (now, sides[1]))
        )  # (common selectors, own seeds)
        pair = paired(
            here[:, [now.trials.seeds.index(seed) for seed in seeds]],
            there[:, [before.trials.seeds.index(seed) for seed in seeds]],
        )
        adjusted = holm(pair.p)
        unit = METRICS[name].precision
        (_, mean0, sd0), (_, mean1, sd1) = moments(there), moments(here)
        for place, selector in enumerate(common):
            difference = float(pair.mean[place])
            rows.append(
                (
                    Cell(selector),
                    Cell(METRICS[name].label),
                    Cell(mean_sd(float(mean0[place]), float(sd0[place]), unit), value=float(mean0[place])),
                    Cell(mean_sd(float(mean1[place]), float(sd1[place]), unit), value=float(mean1[place])),
                    Cell(
                        number(difference, unit),
                        difference_mark(float(adjusted[place]), difference, METRICS[name].better),
                        _tested(int(pair.n[place]), float(adjusted[place])),
                        value=difference,
                    ),
                )
            )
    return Table("Against the baseline", tuple(columns), tuple(rows))


def _tested(seeds: int, p: float) -> str:
    over = f"paired over {seeds} seed{'s' if seeds != 1 else ''}"
    return f"{over}, p = {p:.2g} after Holm" if np.isfinite(p) else over


def _differences(there: Any, now: Any, where: str = "") -> Iterator[str]:
    if isinstance(there, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*there, *now]):
            yield from _differences(there.get(key), now.get(key), f"{where}.{key}" if where else str(key))
    elif there != now:
        yield f"{where}: {_short(there)} → {_short(now)}"


def _short(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, Mapping) and "name" in item for item in value):
        value = [item.get("label") or item["name"] for item in value]
    text = str(value)
    return text if len(text) <= 120 else text[:119] + "…"


# Efficiency and feasibility of selectors beside the methods of survey arXiv 2406.14115: one frame, tables, figures.

ALL_DATA = "all data"
OURS, REFERENCE, PUBLISHED = "audit", "reference", "published"
INDICATORS = ("trained_llms", "steps", "reproducible", "model_free", "dataset_free", "gpt_free")
RANKS = ("simplicity", "flexibility", "feasibility")
SCALES = (
    "PIR of an audit is a ratio of scores to those of the full-data trial of the same seed; published PIRs stand on "
    "the survey's scale of win-rate ratios, so the two are read beside each other, not compared number by number."
)


@dataclass(frozen=True)
class Compared:
    """The selectors of one condition of one run."""

    label: str
    """What tells it from the others, e.g. ``quickstart, budget 0.1``; "" where there is only one."""
    efficiency: pd.DataFrame
    """See `longgame.metrics.efficiency.efficiency`."""
    feasibility: Mapping[str, Feasibility | None]
    """Selector → its indicators; None where they are not known."""


def comparison(parts: Sequence[Compared]) -> pd.DataFrame:
    """All methods in one frame: those of the audits, all data as the reference, then the published ones.

    Returns:
        method, kind (``audit``, ``reference``, ``published``), selector and condition (of an audit's method, which is
        put together from them), pir_now and pir_later with ``_low``, ``_high``, ``_n``,
        pir_published, sdf_rows, sdf_tokens, the indicators, simplicity, flexibility and feasibility (ranks among all
        methods of the frame whose indicators are known), source. NaN = not measured or not told.
    """
    rows: list[dict[str, Any]] = []
    known: list[Feasibility | None] = []
    for part in parts:
        for record in part.efficiency.to_dict("records"):
            row = {str(name): value for name, value in record.items()}
            selector = str(row.pop("selector"))
            method = f"{selector} ({part.label})" if part.label else selector
            whose = {"selector": selector, "condition": part.label}
            rows.append({"method": method, "kind": OURS, **whose, **row, "source": "this audit"})
            known.append(part.feasibility.get(selector))
    ones = dict.fromkeys((*RATIOS, *FRACTIONS), 1.0)
    rows.append({"method": ALL_DATA, "kind": REFERENCE, **ones, "source": "by definition"})
    known.append(None)
    for point in published().to_dict("records"):
        about = {"method": point["method"], "kind": PUBLISHED, "sdf_rows": point["sdf"], "pir_published": point["pir"]}
        rows.append({**about, "source": point["source"]})
    known += published_feasibility()
    frame = pd.DataFrame(rows)
    told = [place for place, each in enumerate(known) if each is not None]
    for name in INDICATORS:
        frame[name] = [np.nan if each is None else float(getattr(each, name)) for each in known]
    ranks = feasibility_ranks([each for each in known if each is not None])
    for name in RANKS:
        frame[name] = pd.Series(ranks[name].to_numpy(float), index=told).reindex(frame.index)
    first = [
        "method",
        "kind",
        "selector",
        "condition",
        *(f"{name}{end}" for name in RATIOS for end in ("", "_low", "_high", "_n")),
    ]
    return frame[[*first, "pir_published", *FRACTIONS, *INDICATORS, *RANKS, "source"]]


def efficiency_table(frame: pd.DataFrame) -> Table:
    """PIR with 95 % intervals, SDF and the feasibility rank of every method."""
    columns = (
        Column("method", "method", numeric=False),
        Column("PIR now", "PIR now", "scores right after each stage over those of the full-data trial"),
        Column("PIR later", "PIR later", "scores at the end over those of the full-data trial"),
        Column("PIR published", "PIR publ.", "on the survey's scale of win-rate ratios"),
        Column("SDF rows", "SDF rows", "share of the examples that were selected"),
        Column("SDF tokens", "SDF tok.", "share of the tokens that were selected"),
        Column("feasibility rank", "feas. rank", "1 is the most feasible of these methods; equal sums share a rank"),
    )
    rows = []
    for row in frame.to_dict("records"):
        cells = [Cell(str(row["method"]))]
        cells += [_ratio(row, name) for name in RATIOS]
        cells += [_plain(row["pir_published"], ".3f"), *(_plain(row[name], ".3f") for name in FRACTIONS)]
        rows.append((*cells, _plain(row["feasibility"], ".0f")))
    note = f"{SCALES} Mean over seeds with the 95 % interval (Student's t), paired by seed."
    return Table("Efficiency beside the published methods", columns, tuple(rows), note)


def feasibility_table(frame: pd.DataFrame) -> Table:
    """The survey's indicators and ranks of every method whose indicators are known."""
    labels = {
        "trained_llms": "trained LLMs",
        "steps": "steps",
        "reproducible": "open code",
        "model_free": "model-free",
        "dataset_free": "dataset-free",
        "gpt_free": "GPT-free",
        "simplicity": "simplicity rank",
        "flexibility": "flexibility rank",
        "feasibility": "feasibility rank",
    }
    columns = [Column("method", "method", numeric=False)]
    columns += [Column(label, label.replace(" rank", "")) for label in labels.values()]
    rows = []
    for row in frame.dropna(subset=["feasibility"]).sort_values("feasibility", kind="stable").to_dict("records"):
        cells = [Cell(str(row["method"]))]
        for name in labels:
            yes_no = name in INDICATORS[2:]
            cells.append(Cell(("no", "yes")[int(row[name])]) if yes_no else _plain(row[name], ".0f"))
        rows.append(tuple(cells))
    note = "Simplicity: 2 · trained LLMs + steps + closed code; flexibility: 3 · model + 2 · data set + 1 · GPT needed."
    return Table("Feasibility", tuple(columns), tuple(rows), note)


def _plain(value: float, form: str) -> Cell:
    return Cell(NOT_MEASURED) if np.isnan(value) else Cell(format(value, form), value=value)


def _ratio(row: Mapping[Any, Any], name: str) -> Cell:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    cell = _plain(row[name], ".3f")
    if np.isnan(row[name]) or np.isnan(low):
        return cell
    mark = "▲" if low > 1 else "▼" if high < 1 else ""
    return Cell(f"{cell.text} [{low:.3f}, {high:.3f}]", mark, f"{row[f'{name}_n']:.0f} seeds", value=row[name])


def efficiency_figures(frame: pd.DataFrame, order: Sequence[str] = (), reference: str = "random") -> list[Figure]:
    """PIR against SDF (now, later, and as published), and simplicity against flexibility of all methods.

    Args:
        frame: see `comparison`.
        order: selectors as the page's other figures list them, so that each keeps its colour and shape here; any
            others follow.
        reference: the selector that is drawn in grey.
    """
    ours = frame[frame["kind"] == OURS]
    style = Style(list(dict.fromkeys([*order, *ours["selector"]])), reference)
    when = dict(zip(RATIOS, ("right after each stage", "at the end"), strict=True))
    held = {name: ours.dropna(subset=[name, "sdf_rows"]) for name in RATIOS}
    charts = [
        _ratios(held[name], style, name, title, condition)
        for condition in ours["condition"].unique()
        for name, title in when.items()
        if condition in set(held[name]["condition"])
    ]
    figures = []
    if charts:
        charts.append(_published(frame[frame["kind"] == PUBLISHED]))
        caption = (
            "Performance improvement ratio against the share of the examples selected; means over seeds with 95 % "
            f"intervals, 1 = training on all data. {SCALES}"
        )
        figures.append(Figure("efficiency", "Efficiency", caption, tuple(charts), style.keys))
    caption = (
        "Ranks of the survey's two penalties among these methods, 1 = least; methods at one place share a mark. "
        "A selector whose indicators are not known (a plug-in, a file of scores) is left out."
    )
    return [*figures, Figure("feasibility", "Feasibility", caption, (_places(frame),))]


def _ratios(ours: pd.DataFrame, style: Style, name: str, title: str, condition: str) -> dict[str, Any]:
    """One condition's selectors, on the axes of all conditions."""
    columns = {name: "mean", f"{name}_low": "low", f"{name}_high": "high", "sdf_rows": "sdf"}
    every = ours.rename(columns=columns)[["selector", "condition", *columns.values()]]
    rows = every[every["condition"] == condition].drop(columns="condition")
    wide = _span(every["sdf"].to_numpy(float))
    tall = _span(np.append(every[["mean", "low", "high"]].to_numpy(float), 1.0))  # with the line of all data
    axis = alt.Axis(format=".3~f", tickCount=5)
    x = alt.X("sdf:Q", title="SDF, share of the examples", axis=axis, scale=wide)
    y_title = "PIR (ratio of scores)"
    y = alt.Y("mean:Q", title=y_title, scale=tall)
    base = alt.Chart(rows).encode(x)
    rule = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2)
    tooltip = ["selector:N", *(alt.Tooltip(f"{each}:Q", format=".3f") for each in ("sdf", "mean", "low", "high"))]
    line = alt.Chart(pd.DataFrame({"mean": [1.0]})).mark_rule(strokeDash=[4, 3], color=GREY).encode(y)
    layers = alt.layer(
        line,
        *intervals(rows, rule.encode(alt.Y("low:Q", title=y_title), alt.Y2("high:Q"), color=style.colour())),
        base.mark_point(size=80, filled=True, opacity=1).encode(
            y, color=style.colour(), shape=style.shape(), tooltip=tooltip
        ),
    )
    title = f"{condition or 'audit'}: {title}"
    return spec(layers.properties(title=title), f"PIR against SDF by selector, {title}", 240)


def _span(values: np.ndarray) -> alt.Scale:
    """A scale for these values and some room around them."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    room = 0.06 * (high - low) or 0.01
    return alt.Scale(domain=[low - room, high + room], nice=True, zero=False)


def _published(rows: pd.DataFrame) -> dict[str, Any]:
    rows = (
        rows.groupby(["sdf_rows", "pir_published"], sort=True)
        .agg(method=("method", ", ".join), source=("source", "first"))
        .reset_index()
    )
    right, (low, high) = 1.03 * rows["sdf_rows"].max(), (rows["pir_published"].min(), rows["pir_published"].max())
    room = 0.08 * (high - low)
    ends = ((0.0, float(right)), (float(low - room), float(high + room)))
    rows = labelled(rows, "sdf_rows", "pir_published", "method", ends, (260.0, 300.0))
    across, up = (alt.Scale(domain=list(each), nice=False) for each in ends)
    base = alt.Chart(rows).encode(
        alt.X(
            "sdf_rows:Q", title="SDF, share of the examples", axis=alt.Axis(format=".2~f", tickCount=5), scale=across
        ),
        alt.Y("pir_published:Q", title="PIR (win-rate scale)", scale=up),
    )
    marks = base.mark_point(size=50, filled=True, opacity=1, color=GREY).encode(
        tooltip=["method:N", "sdf_rows:Q", "pir_published:Q", "source:N"]
    )
    layers = alt.layer(marks, *name_layers(rows, base)).properties(title="published (survey 2406.14115)")
    return spec(layers, "PIR against SDF of the survey's methods", 240)


def _places(frame: pd.DataFrame) -> dict[str, Any]:
    told = frame.dropna(subset=["feasibility"])
    whose = told["kind"].map({OURS: "this audit", PUBLISHED: "published"})
    rows = (
        told.assign(whose=whose)
        .groupby(["simplicity", "flexibility"], sort=True)
        .agg(methods=("method", ", ".join), whose=("whose", lambda kinds: " and ".join(sorted(set(kinds)))))
        .reset_index()
    )
    ends = tuple((0.0, float(rows[name].max()) + 1.0) for name in ("simplicity", "flexibility"))
    rows = labelled(rows, "simplicity", "flexibility", "methods", (ends[0], ends[1]), (300.0, 480.0))
    across, up = (alt.Scale(domain=list(each), nice=False) for each in ends)
    base = alt.Chart(rows).encode(
        alt.X("simplicity:Q", title="simplicity rank", axis=alt.Axis(tickMinStep=1), scale=across),
        alt.Y("flexibility:Q", title="flexibility rank", axis=alt.Axis(tickMinStep=1), scale=up),
    )
    colour = alt.Color("whose:N", title=None, legend=alt.Legend(orient="bottom"), scale=alt.Scale(range=_WHOSE))
    marks = base.mark_point(size=70, filled=True, opacity=1).encode(
        color=colour, shape=alt.Shape("whose:N", title=None), tooltip=["methods:N", "simplicity:Q", "flexibility:Q"]
    )
    layers = alt.layer(marks, *name_layers(rows, base))
    return spec(layers, "Simplicity rank against flexibility rank of all methods", 240)


_WHOSE = [GREY, "#0072B2", "#D55E00"]


def comparison_page(frame: pd.DataFrame, title: str, notes: Sequence[str], figures: Sequence[Figure]) -> str:
    """One self-contained page without scripts: the tables, and the figures (see `efficiency_figures`) as SVG."""
    drawn = [(figure, vl_convert.vegalite_to_svg(static_spec(figure), vl_version=VERSION)) for figure in figures]
    tables = [efficiency_table(frame), feasibility_table(frame)]
    sources = list(dict.fromkeys(frame.loc[frame["kind"] == PUBLISHED, "source"]))
    page = template_environment().get_template("compare.html.j2")
    return page.render(title=title, tables=tables, figures=drawn, notes=notes, sources=sources)
