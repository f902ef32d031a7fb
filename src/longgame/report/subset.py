"""A selection against its pool: a page, a summary for the terminal, and one for notebooks."""

from __future__ import annotations

import html
import itertools
import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text as RichText

from longgame.data.examples import Example
from longgame.escape import visible
from longgame.offline.options import parse_selector
from longgame.offline.selecting import Outcome
from longgame.report.charts import GREY, PALETTE, Figure, LegendKey, dashed_line, spec
from longgame.report.render import begin_bundle, finish_bundle, page_environment

_BINS = 30
_VALUES = 12
"""Values of a grouping column that are shown; the others are one."""
_POINTS = 2000
"""Points of the map that are drawn of the selected rows, and of the others."""
_EXAMPLES = 10
_TEXT = 1500
"""Characters of an example's prompt, and of its response."""
_PICKED = PALETTE[5]
"""Legible on a light page and on a dark one."""
_KEYS = (LegendKey("pool", GREY, "■"), LegendKey("selected", _PICKED, "■"))


@dataclass(frozen=True)
class GroupShare:
    """One value of a grouping column (a skill, a source, a cluster), in the pool and among the picks."""

    name: str
    pool: int
    picked: int


@dataclass(frozen=True)
class SubsetFacts:
    """A selection in numbers; what all its views show."""

    title: str
    lead: str
    """One sentence: what was selected of what."""
    facts: Mapping[str, str]
    groups: Mapping[str, Sequence[GroupShare]]
    """``skill``, ``source``, ``cluster``, where rows have them; the largest values, the others together."""
    terms: Mapping[str, tuple[float, float]]
    """Term of the score → mean over the pool and over the picks."""
    cut: float
    """Lowest score of the picks; NaN without scores."""
    audit: str
    """The command that tests this selector on the user's next stages."""

    @classmethod
    def of(cls, outcome: Outcome, manifest: Mapping[str, Any]) -> SubsetFacts:
        """Count a selection."""
        tokens, picks, pool = outcome.tokens, outcome.picks, outcome.candidates
        n, unit = len(picks), outcome.unit
        part = tokens[picks].sum() / max(1, tokens[pool].sum())
        label, selector = outcome.rows.source.label, outcome.options.label
        lead = (
            f"{n:,} of {len(pool):,} rows ({_percent(n / len(pool))}) with {tokens[picks].sum():,} of "
            f"{tokens[pool].sum():,} {unit} ({_percent(part)}), by the selector {selector}."
        )
        score = outcome.terms.get("score")
        values = np.zeros(0) if score is None else score[picks]
        return cls(
            title=f"{selector} on {label}",
            lead=lead,
            facts=_facts(outcome, manifest),
            groups=_groups(outcome),
            terms={
                name: (_mean(column[pool]), _mean(column[picks]))
                for name, column in outcome.terms.items()
                if not np.isnan(column[pool]).all()
            },
            cut=float(np.nanmin(values)) if len(values) and not np.isnan(values).all() else math.nan,
            audit=audit_line(outcome, manifest),
        )


def audit_line(outcome: Outcome, manifest: Mapping[str, Any]) -> str:
    """Return the commands that test a selector on the user's next stages."""
    name = parse_selector(outcome.options.label)[0]
    total = _spendable(outcome)
    words = [
        "longgame",
        "audit",
        "recipe.yaml",
        "--selectors",
        ",".join(dict.fromkeys(("random", name))),
        "--budget",
        f"{outcome.asked / total:.2g}",
    ]
    model = _option(str(manifest.get("command", "")), "--model")
    return "longgame init && " + shlex.join([*words, *(["--model", model] if model else [])])


def _spendable(outcome: Outcome) -> int:
    """All that the budget could be spent on."""
    if outcome.budget_unit == "rows":
        return len(outcome.candidates)
    counts = outcome.response_tokens if outcome.budget_unit == "response" else outcome.tokens
    return max(outcome.asked, int(counts[outcome.candidates].sum()))


def _option(command: str, name: str) -> str:
    """Value of an option in a command line; empty where it has none."""
    try:
        words = shlex.split(command)
    except ValueError:  # written out control characters may leave a quote open
        return ""
    for word, value in itertools.pairwise([*words, ""]):
        if word == name:
            return value
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return ""


def _facts(outcome: Outcome, manifest: Mapping[str, Any]) -> dict[str, str]:
    rows, options, unit = outcome.rows, outcome.options, outcome.unit
    means = [_mean(outcome.tokens[part].astype(float)) for part in (outcome.picks, outcome.candidates)]
    facts = {
        "data": f"{rows.source.label}: {rows.total:,} rows, {len(outcome.candidates):,} in the pool",
        "left out": _left_out(outcome),
        "model": outcome.weights or "none (lengths are characters)",
        "selector": options.label + "".join(f", {name}={value}" for name, value in options.parameters.items()),
        "budget": f"{manifest['budget']['budget']}: {outcome.asked:,} {outcome.budget_unit}, spent {outcome.spent:,} "
        f"({_percent(outcome.spent / max(1, outcome.asked))})",
        f"mean {unit} of a row": f"{means[0]:,.0f} selected, {means[1]:,.0f} in the pool",
        "learned": f"{_percent(outcome.mask_share)} of the selected {unit}",
        "seed": str(options.seed),
    }
    if outcome.replay is not None:
        facts["replayed"] = f"{len(outcome.replay[1]):,} rows of {outcome.replay[0].source.label}"
    return {name: value for name, value in facts.items() if value}


def _left_out(outcome: Outcome) -> str:
    rows = outcome.rows
    counts = {
        "cannot be used": len(rows.bad) + len(outcome.unscored),
        "by the condition": rows.filtered,
        "duplicates": int((outcome.repeats >= 0).sum()),
    }
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items() if count)


def _groups(outcome: Outcome) -> dict[str, list[GroupShare]]:
    columns: dict[str, Any] = {name: np.asarray(values, dtype=object) for name, values in outcome.rows.groups.items()}
    if outcome.clusters is not None:
        columns["cluster"] = outcome.clusters
    result = {}
    for name, values in columns.items():
        pool = Counter(_label(value) for value in values[outcome.candidates].tolist())
        picked = Counter(_label(value) for value in values[outcome.picks].tolist())
        shares = [GroupShare(value, count, picked[value]) for value, count in pool.most_common()]
        first, others = shares[:_VALUES], shares[_VALUES:]
        if others:
            total = (sum(share.pool for share in others), sum(share.picked for share in others))
            first.append(GroupShare(f"{len(others):,} others", *total))
        result[name] = first
    return result


def _label(value: Any) -> str:
    return "(none)" if value is None else str(value)


def _mean(values: Float[np.ndarray, " n"]) -> float:
    finite = values[~np.isnan(values)]
    return float(finite.mean()) if len(finite) else math.nan


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4g}"


# The page


def subset_page(outcome: Outcome, manifest: Mapping[str, Any]) -> str:
    """Return a self-contained page of at most 2 MB: what was selected of what, against the pool, with examples."""
    begin_bundle()
    view = SubsetFacts.of(outcome, manifest)
    figures = _figures(outcome, view)
    selected, rejected = _cards(outcome)
    scored = "score" in outcome.terms
    origin = {
        "data": f"{manifest['data']['label']} (digest {manifest['data']['digest']})",
        "picks": f"digest {manifest['picked']['digest']}",
        "longgame": str(manifest["longgame"]),
        **{f"SHA-256 of {name}": value for name, value in manifest["sha256"].items()},
    }
    return (
        page_environment()
        .get_template("subset.html.j2")
        .render(
            data=outcome.rows.source.label,
            title=view.title,
            lead=view.lead,
            facts_shown=view.facts,
            audit=view.audit,
            audit_note="These shares do not say what the selection does to a model. The audit trains on your next "
            "stages and compares the selector with random selection:",
            pool_note=f"{len(outcome.candidates):,} of {outcome.rows.total:,} rows"
            + (f"; left out: {view.facts['left out']}" if "left out" in view.facts else ""),
            figures=figures,
            charts={f"{figure.name}-{n}": chart for figure in figures for n, chart in enumerate(figure.charts, 1)},
            tables=_tables(view),
            selected=selected,
            rejected=rejected,
            selected_note="The first picks, then those nearest to the cut."
            if scored
            else "The first and the last picks.",
            rejected_note="The nearest to the cut, then those of the lowest score." if scored else "Drawn at random.",
            command=str(manifest.get("command", "")),
            origin=origin,
            bundle=finish_bundle(),
        )
    )


def _tables(view: SubsetFacts) -> list[dict[str, Any]]:
    tables = [
        {
            "title": f"By {name}",
            "headings": [name, "in the pool", "selected", "of the pool", "of the selected", "picked"],
            "rows": [_group_cells(share, shares) for share in shares],
        }
        for name, shares in view.groups.items()
    ]
    if view.terms:
        rows = [[name, _number(pool), _number(picked)] for name, (pool, picked) in view.terms.items()]
        tables.append({"title": "Terms of the score", "headings": ["mean of", "pool", "selected"], "rows": rows})
    return tables


def _group_cells(share: GroupShare, shares: Sequence[GroupShare]) -> list[str]:
    pool, picked = sum(other.pool for other in shares), sum(other.picked for other in shares)
    parts = (share.pool / max(1, pool), share.picked / max(1, picked), share.picked / max(1, share.pool))
    return [share.name, f"{share.pool:,}", f"{share.picked:,}", *map(_percent, parts)]


def _figures(outcome: Outcome, view: SubsetFacts) -> list[Figure]:
    figures = [_length_figure(outcome), _score_figure(outcome, view.cut), _map_figure(outcome)]
    figures += [_group_figure(name, shares) for name, shares in view.groups.items()]
    return [figure for figure in figures if figure is not None]


def _histogram(
    values: Float[np.ndarray, " n"], picked: Float[np.ndarray, " k"], ends: tuple[float, float]
) -> pd.DataFrame:
    """low, high, and the counts of all values and of the picked ones; the outer bins hold what lies beyond."""
    low, high = ends
    if not low < high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, _BINS + 1)
    frame = pd.DataFrame({"low": edges[:-1], "high": edges[1:]})
    for name, part in (("pool", values), ("selected", picked)):
        frame[name] = np.histogram(np.clip(part, low, high), edges)[0]
        frame[f"{name} share"] = frame[name] / max(1, len(part))
    return frame


def _bars(frame: pd.DataFrame, title: str, suffix: str, y_title: str) -> Any:
    """Bars of the pool in grey, and before them those of the picks."""
    base = alt.Chart(frame)
    ends = [float(frame["low"].iloc[0]), float(frame["high"].iloc[-1])]
    scale = alt.Scale(domain=ends, nice=False, zero=False)
    axis = alt.Axis(tickCount=7)
    x = {"x": alt.X("low:Q", bin="binned", title=title, scale=scale, axis=axis), "x2": alt.X2("high:Q")}
    layers = []
    for name, color, opacity in (("pool", GREY, 0.55), ("selected", _PICKED, 0.7)):
        y = alt.Y(f"{name}{suffix}:Q", title=y_title, axis=alt.Axis(format="%") if suffix else alt.Axis(tickMinStep=1))
        tooltip = [alt.Tooltip(f"{column}:Q", format=",.4~g") for column in ("low", "high", "pool", "selected")]
        bars = base.mark_bar(color=color, opacity=opacity)
        layers.append(bars.encode(**x, y=y, tooltip=tooltip))
    return alt.layer(*layers)


def _length_figure(outcome: Outcome) -> Figure:
    pool = outcome.tokens[outcome.candidates].astype(float)
    picked = outcome.tokens[outcome.picks].astype(float)
    low, high = np.percentile(pool, [0, 99.5]).tolist()
    frame = _histogram(pool, picked, (low, high))
    chart = _bars(frame, f"{outcome.unit} of a row", " share", "share of the rows")
    text = f"Histogram of {outcome.unit} per row, the pool and the selected rows"
    caption = f"Share of the rows by their {outcome.unit}. The last bar holds longer ones, too."
    return Figure("length", "Length", caption, (spec(chart, text, 240),), _KEYS)


def _score_figure(outcome: Outcome, cut: float) -> Figure | None:
    score = outcome.terms.get("score")
    if score is None or math.isnan(cut):
        return None
    pool, picked = score[outcome.candidates], score[outcome.picks]
    pool, picked = pool[np.isfinite(pool)], picked[np.isfinite(picked)]
    if not len(pool) or not len(picked):
        return None
    low, high = np.percentile(pool, [0.25, 99.75]).tolist()
    frame = _histogram(pool, picked, (min(low, cut), max(high, cut)))
    bars = _bars(frame, "score", "", "rows")
    chart = alt.layer(bars, dashed_line("x", cut, "score")) if math.isfinite(cut) else bars
    caption = f"Rows by their score; dashed: the lowest score of a selected row ({cut:.4g})."
    return Figure(
        "score", "Score, with the cut", caption, (spec(chart, "Histogram of the score with the cut", 240),), _KEYS
    )


def _map_figure(outcome: Outcome) -> Figure | None:
    if outcome.embedding is None:
        return None
    is_pick = np.zeros(len(outcome.rows), dtype=bool)
    is_pick[outcome.picks] = True
    located = outcome.candidates[np.isfinite(outcome.embedding[outcome.candidates]).all(axis=1)]
    if not len(located):
        return None
    draw = np.random.default_rng(0)
    parts = [_sample(located[is_pick[located] == side], _POINTS, draw) for side in (False, True)]
    drawn = np.concatenate(parts)
    frame = pd.DataFrame(np.round(outcome.embedding[drawn], 3), columns=["x", "y"])
    frame["row"] = np.where(is_pick[drawn], "selected", "not selected")
    tooltip = ["row:N"]
    if outcome.clusters is not None:
        frame["cluster"] = outcome.clusters[drawn]
        tooltip.append("cluster:O")
    axis = alt.Axis(labels=False, ticks=False, grid=False)
    color = alt.Color("row:N", scale=alt.Scale(domain=["not selected", "selected"], range=[GREY, _PICKED]), legend=None)
    chart = (
        alt.Chart(frame)
        .mark_circle(size=24, opacity=0.75)
        .encode(
            alt.X("x:Q", title="first direction", axis=axis, scale=alt.Scale(zero=False)),
            alt.Y("y:Q", title="second direction", axis=axis, scale=alt.Scale(zero=False)),
            color=color,
            tooltip=tooltip,
        )
    )
    counts = " and ".join(
        f"{len(part):,} {name}" for part, name in zip(parts, ("not selected", "selected"), strict=True)
    )
    caption = f"The two main directions of the embeddings (PCA); {counts} rows are drawn" + (
        f" of {len(located):,}." if len(drawn) < len(located) else "."
    )
    keys = (LegendKey("not selected", GREY, "●"), LegendKey("selected", _PICKED, "●"))
    return Figure("map", "Map of the pool", caption, (spec(chart, "Map of the embeddings", 320),), keys)


def _sample(rows: Int[np.ndarray, " n"], size: int, draw: np.random.Generator) -> Int[np.ndarray, " k"]:
    return rows if len(rows) <= size else np.sort(draw.choice(rows, size, replace=False))


def _group_figure(name: str, shares: Sequence[GroupShare]) -> Figure | None:
    if len(shares) < 2:
        return None
    pool, picked = sum(share.pool for share in shares), sum(share.picked for share in shares)
    order = [share.name for share in shares]
    rows = [
        {"value": share.name, "part": part, "share": count / max(1, total), "rows": count}
        for share in shares
        for part, count, total in (("pool", share.pool, pool), ("selected", share.picked, picked))
    ]
    color = alt.Color("part:N", scale=alt.Scale(domain=["pool", "selected"], range=[GREY, _PICKED]), legend=None)
    chart = (
        alt.Chart(pd.DataFrame(rows))
        .mark_bar()
        .encode(
            alt.X("share:Q", title="share of the rows", axis=alt.Axis(format="%", tickCount=5)),
            alt.Y("value:N", sort=order, title=None, axis=alt.Axis(labelLimit=200)),
            yOffset=alt.YOffset("part:N", sort=["pool", "selected"]),
            color=color,
            tooltip=["value:N", "part:N", alt.Tooltip("share:Q", format=".1%"), alt.Tooltip("rows:Q", format=",")],
        )
    )
    height = 34 * len(shares)
    return Figure(
        f"by-{name}",
        f"By {name}",
        "Share of the rows; the largest first.",
        (spec(chart, f"Shares by {name}", height),),
        _KEYS,
    )


def _cards(outcome: Outcome) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Texts of some picks and of some other candidates, with why each was picked or not."""
    score = outcome.terms.get("score")
    picks = outcome.picks.tolist()
    half = _EXAMPLES // 2
    chosen = list(dict.fromkeys([*picks[:half], *_by_score(picks, score)[-half:]]))
    others = np.setdiff1d(outcome.candidates, outcome.picks)
    if score is None:
        rejected = _sample(others, _EXAMPLES, np.random.default_rng(0)).tolist()
    else:
        ranked = _by_score(others.tolist(), score)
        rejected = list(dict.fromkeys([*ranked[:half], *ranked[-half:]]))
    shown = sorted({*chosen, *rejected})
    texts = dict(zip(shown, outcome.rows.examples(shown), strict=True))
    rank = {row: number for number, row in enumerate(picks, start=1)}
    lowest = math.nan if score is None or not picks else float(np.nanmin(score[picks], initial=math.inf))

    def card(row: int) -> dict[str, str]:
        place = f"{outcome.rows.file_of(row)}:{outcome.rows.numbers[row]}"
        heading = (f"rank {rank[row]:,}: " if row in rank else "") + place
        terms = (
            f"{name} {_number(values[row])}"
            for name, values in outcome.terms.items()
            if name != "score" and not math.isnan(values[row])
        )
        groups = (value for values in outcome.rows.groups.values() if (value := values[row]))
        why = outcome._why(row, rank.get(row), score, lowest)
        details = [f"{outcome.tokens[row]:,} {outcome.unit}", *groups, *terms, why]
        return {"heading": heading, "details": " · ".join(details), "text": _text_of(texts[row])}

    return [card(row) for row in chosen], [card(row) for row in rejected]


def _by_score(rows: list[int], score: np.ndarray | None) -> list[int]:
    """These rows from the highest score to the lowest, rows without a score last; in their order without scores."""
    if score is None:
        return rows
    values = np.nan_to_num(score[rows], nan=-np.inf)
    return [rows[place] for place in np.argsort(-values, kind="stable").tolist()]


def _text_of(example: Example) -> str:
    if example.tokens is not None:
        ids, learned = example.tokens
        return _shortened(f"{len(ids)} tokens, {int(learned.sum())} learned: {' '.join(map(str, ids[:200].tolist()))}")
    if example.messages is not None:
        turns = "\n\n".join(f"{role}: {text}" for role, text in example.messages)
    else:
        turns = example.prompt
    return (f"{_shortened(turns)}\n\n" if turns else "") + f"→ {_shortened(example.response)}"


def _shortened(text: str) -> str:
    if len(text) <= _TEXT:
        return text
    half = _TEXT // 2
    return f"{text[:half]} […{len(text) - 2 * half:,} characters…] {text[-half:]}"


# The terminal and notebooks


def subset_summary(outcome: Outcome, manifest: Mapping[str, Any]) -> RenderableType:
    """Return what a terminal shows of a selection: facts, shares per group, means of the score's terms."""
    view = SubsetFacts.of(outcome, manifest)
    facts = RichTable.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in view.facts.items():
        facts.add_row(name, RichText(value))
    if not math.isnan(view.cut):
        facts.add_row("score", RichText(f"selected from {_number(view.cut)} on"))
    parts: list[RenderableType] = [RichText(view.lead, style="bold"), facts]
    for table in _tables(view):
        shown = RichTable(
            title=RichText(table["title"], style="bold"), title_justify="left", box=None, padding=(0, 2, 0, 0)
        )
        for place, heading in enumerate(table["headings"]):
            shown.add_column(heading, justify="right" if place else "left", overflow="fold", no_wrap=place > 0)
        for row in table["rows"]:
            shown.add_row(*map(RichText, row))
        parts += [RichText(""), shown]
    return Group(*parts)


def subset_html(outcome: Outcome, manifest: Mapping[str, Any]) -> str:
    """Return what a notebook shows of a selection."""
    view = SubsetFacts.of(outcome, manifest)

    def text(value: str) -> str:
        return html.escape(visible(value))

    facts = "".join(f"<tr><th>{text(name)}</th><td>{text(value)}</td></tr>" for name, value in view.facts.items())
    tables = []
    for table in _tables(view):
        head = "".join(f"<th>{text(heading)}</th>" for heading in table["headings"])
        body = "".join("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in table["rows"])
        tables.append(f"<p><b>{text(table['title'])}</b></p><table><tr>{head}</tr>{body}</table>")
    return (
        f'<p><b>{text(view.lead)}</b></p><table style="text-align: left">{facts}</table>{"".join(tables)}'
        f"<p>Test this selector on your next stages: <code>{text(view.audit)}</code></p>"
    )
