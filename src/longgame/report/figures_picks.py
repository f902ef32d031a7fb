"""Figures of what was selected: skill mix, overlap between selectors, and which terms of a score decided."""

from __future__ import annotations

import altair as alt
import pandas as pd

from longgame.metrics.scorecard import Scorecard
from longgame.report.charts import GREY, PALETTE, Figure, Style, ink_on_cividis, spec
from longgame.report.picks import TOTAL, Picks

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
