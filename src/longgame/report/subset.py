"""The page of a selection: what was picked against the pool, with examples."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from longgame.data.examples import Example
from longgame.offline.options import Budget
from longgame.offline.outcome import SubsetOutcome
from longgame.offline.summary import (
    GroupShare,
    SubsetFacts,
    cut_words,
    first_group,
    first_table,
    largest_shift,
    plain_number,
    subset_summary,
    summary_tables,
)
from longgame.report.charts import GREY, PALETTE, Figure, LegendKey, dashed_line, spec
from longgame.report.render import begin_bundle, finish_bundle, page_environment

__all__ = ["subset_page", "subset_summary"]

_BINS = 30
_POINTS = 2000
"""Points of the map that are drawn of the selected rows, and of the others."""
_EXAMPLES = 10
_TEXT = 1500
"""Characters of an example's prompt, and of its response."""
_PICKED = PALETTE[5]
"""Legible on a light page and on a dark one."""
_KEYS = (LegendKey("pool", GREY, "■"), LegendKey("selected", _PICKED, "■"))


def subset_page(outcome: SubsetOutcome, manifest: Mapping[str, Any], date: datetime.date | None = None) -> str:
    """Return a self-contained page of at most 2 MB: what was selected of what, against the pool, with examples.

    Args:
        date: of the selection; None: today.
    """
    begin_bundle()
    view = SubsetFacts.of(outcome, manifest)
    figures = _figures(outcome, view)
    shift = largest_shift(view)
    budget = Budget.parse(outcome.options.budget)
    subject = [
        *([outcome.model] if outcome.model else ["no model"]),
        f"{outcome.rows.source.label}: {outcome.rows.total:,} rows",
        f"{outcome.tokens[outcome.candidates].sum():,} {outcome.unit} in the pool",
        outcome.options.label,
        f"budget {budget} ({outcome.asked:,} {outcome.budget_unit})",
        f"seed {outcome.options.seed}",
        str(date or datetime.date.today()),
    ]
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
            subject=" · ".join(subject),
            lead=f"{view.lead.removesuffix('.')}; {shift}." if shift else view.lead,
            first=first_table(view, outcome),
            facts_shown=view.facts,
            audit=view.audit,
            audit_note=view.audit_note,
            pool_note=f"{len(outcome.candidates):,} of {outcome.rows.total:,} rows"
            + (f"; left out: {view.facts['left out']}" if "left out" in view.facts else ""),
            figures=figures,
            charts={f"{figure.name}-{n}": chart for figure in figures for n, chart in enumerate(figure.charts, 1)},
            tables=summary_tables(view),
            selected=selected,
            rejected=rejected,
            selected_note="The first picks, then those of the lowest score."
            if scored
            else "The first and the last picks.",
            rejected_note="The nearest to the cut, then those of the lowest score." if scored else "Drawn at random.",
            command=str(manifest.get("command", "")),
            origin=origin,
            filters={},  # of runs alone
            bundle=finish_bundle(),
        )
    )


def _figures(outcome: SubsetOutcome, view: SubsetFacts) -> list[Figure]:
    """The first is shown beside the facts: shares by the first grouping, else the length."""
    first = first_group(view)
    groups = {name: _group_figure(name, shares) for name, shares in view.groups.items()}
    figures = [groups.pop(first)] if first else []
    figures += [_length_figure(outcome), _score_figure(outcome), _map_figure(outcome), *groups.values()]
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


def _length_figure(outcome: SubsetOutcome) -> Figure:
    pool = outcome.tokens[outcome.candidates].astype(float)
    picked = outcome.tokens[outcome.picks].astype(float)
    low, high = np.percentile(pool, [0, 99.5]).tolist()
    frame = _histogram(pool, picked, (low, high))
    chart = _bars(frame, f"{outcome.unit} of a row", " share", "share of the rows")
    text = f"Histogram of {outcome.unit} per row, the pool and the selected rows"
    caption = f"Share of the rows by their {outcome.unit}. The last bar holds longer ones, too."
    return Figure("length", "Length", caption, (spec(chart, text, 240),), _KEYS)


def _score_figure(outcome: SubsetOutcome) -> Figure | None:
    score, end = outcome.terms.get("score"), outcome.cut
    if score is None or end is None:
        return None
    pool, picked = score[outcome.candidates], score[outcome.picks]
    pool, picked = pool[np.isfinite(pool)], picked[np.isfinite(picked)]
    if not len(pool) or not len(picked):
        return None
    has_line = end.score < math.inf
    cut = max(end.score, float(picked.min())) if has_line else float(picked.max())  # a score may be -inf
    low, high = np.percentile(pool, [0.25, 99.75]).tolist()
    frame = _histogram(pool, picked, (min(low, cut), max(high, cut)))
    bars = _bars(frame, "score", "", "rows")
    chart = alt.layer(bars, dashed_line("x", cut, "score")) if has_line else bars
    words = cut_words(end)
    caption = f"Rows by their score{'; dashed: the cut' if has_line else ''}. {words[0].upper()}{words[1:]}."
    return Figure(
        "score", "Score, with the cut", caption, (spec(chart, "Histogram of the score with the cut", 240),), _KEYS
    )


def _map_figure(outcome: SubsetOutcome) -> Figure | None:
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
    tooltip = [alt.Tooltip("row:N")]
    if outcome.clusters is not None:
        frame["cluster"] = outcome.clusters[drawn]
        tooltip.append(alt.Tooltip("cluster:O"))
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
            tooltip=[
                alt.Tooltip("value:N"),
                alt.Tooltip("part:N"),
                alt.Tooltip("share:Q", format=".1%"),
                alt.Tooltip("rows:Q", format=","),
            ],
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


def _cards(outcome: SubsetOutcome) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
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

    def card(row: int) -> dict[str, str]:
        place = f"{outcome.rows.file_of(row)}:{outcome.rows.numbers[row]}"
        heading = (f"rank {rank[row]:,}: " if row in rank else "") + place
        terms = (
            f"{name} {plain_number(values[row])}"
            for name, values in outcome.terms.items()
            if name != "score" and not math.isnan(values[row])
        )
        groups = (value for values in outcome.rows.groups.values() if (value := values[row]))
        why = outcome.why(row, rank.get(row))
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
