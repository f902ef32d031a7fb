"""The paper's claims as comparisons that a scorecard can answer: one selector, one metric, one direction."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from longgame.metrics.catalog import METRICS
from longgame.metrics.scorecard import Scorecard
from longgame.metrics.stats import ALPHA, holm
from longgame.report.tables import NOT_MEASURED, format_signed


@dataclass(frozen=True, slots=True)
class Claim:
    """``selector`` differs from ``reference`` on ``metric`` in this direction."""

    question: str
    selector: str
    metric: str
    sign: int
    """+1: the claim is that the selector's value is higher; −1: lower."""
    reference: str = "random"
    words: str = ""

    @property
    def text(self) -> str:
        direction = "higher" if self.sign > 0 else "lower"
        return self.words or f"{self.selector}: {direction} {METRICS[self.metric].label} than {self.reference}"


def _each(question: str, selectors: Sequence[str], metric: str, sign: int, reference: str = "random") -> list[Claim]:
    return [Claim(question, selector, metric, sign, reference) for selector in selectors]


SHORT_SIGHTED = ("loss", "gradient", "quality")
"""The selectors that the paper finds ahead now and behind later."""
_BETTER_LATER = (("long_horizon", +1), ("auc_common", +1), ("forgetting", -1), ("ood", +1), ("worst_task", +1))

CLAIMS: tuple[Claim, ...] = (
    *_each("RQ1", SHORT_SIGHTED, "current", +1),
    *_each("RQ1", SHORT_SIGHTED, "immediate_gain", +1),
    *_each("RQ1", SHORT_SIGHTED, "long_horizon", -1),
    *_each("RQ2", SHORT_SIGHTED, "auc_common", -1),
    *_each("RQ2", SHORT_SIGHTED, "auc_own", -1),
    *_each("RQ2", SHORT_SIGHTED, "auc_start_common", -1),
    *_each("RQ2", SHORT_SIGHTED, "auc_gain_common", -1),
    Claim("RQ2", "gradient", "auc_common", -1, "lhas"),
    *_each("RQ3", SHORT_SIGHTED, "forgetting", +1),
    *_each("RQ3", SHORT_SIGHTED, "imbalance", +1),
    *_each("RQ3", SHORT_SIGHTED, "worst_task", -1),
    *_each("RQ3", SHORT_SIGHTED, "ood", -1),
    *_each("RQ4", ("diversity", "utility-diversity"), "long_horizon", +1),
    *_each("RQ4", ("diversity", "utility-diversity"), "ood", +1),
    Claim("RQ4", "diversity", "forgetting", -1),
    Claim("RQ4", "utility-diversity", "current", +1),
    *_each("RQ4", ("diversity", "utility-diversity"), "long_horizon", -1, "lhas"),
    *_each("RQ4", ("diversity", "utility-diversity"), "worst_task", -1, "lhas"),
    *(Claim("RQ5", name, metric, sign) for metric, sign in _BETTER_LATER for name in ("lhas", "lhas-adaptive")),
    *_each("RQ5", ("loss", "gradient"), "long_horizon", -1, "lhas"),
    *_each("RQ5", ("loss", "gradient"), "current", +1, "lhas"),
)
QUESTIONS = {
    "RQ1": "Are short-term winners also long-term winners? The paper: no; loss, gradient and quality selection lead "
    "now and trail later.",
    "RQ2": "How do selectors affect the speed of later learning? The paper: short-sighted ones slow it.",
    "RQ3": "Do they increase forgetting and imbalance? The paper: yes, and they lose the worst task and OOD scores.",
    "RQ4": "Is diversity enough? The paper: it is better than random in the long run, and behind LHAS.",
    "RQ5": "Does LHAS improve the trade-off? The paper: best long-horizon profile, a little less now than gradient "
    "selection.",
}
SHOWN, AGAINST, DIRECTION, OTHER = "shown", "the opposite is shown", "direction only", "not the direction"


@dataclass(frozen=True, slots=True)
class Answer:
    """A scorecard's answer to a claim."""

    word: str
    difference: float
    low: float
    high: float
    p: float
    """After Holm over the selectors and the sides of the claim's row."""
    mde: float
    n: int
    unit: str
    """In which reports show the metric; difference, interval and mde are in it."""

    @property
    def text(self) -> str:
        """One cell: the word, the difference, its 95 % interval."""
        if math.isnan(self.difference):
            return NOT_MEASURED
        size, low, high = (format_signed(value, self.unit) for value in (self.difference, self.low, self.high))
        span = "" if math.isnan(self.low) else f" [{low}, {high}]"
        word = f"**{self.word}**" if self.word in (SHOWN, AGAINST) else self.word
        return f"{word} {size}{span}"


Cards = Mapping[str, Scorecard]
"""Reference → scorecard of the same results."""


def answers(sides: Sequence[tuple[Cards, str]], claims: Iterable[Claim]) -> list[list[Answer | None]]:
    """Answer every claim on every side; an answer is None if the side lacks a selector.

    A claim's row says on how many of its sides the claim is shown. So p values are Holm-adjusted over the selectors and
    the sides of the row together.

    Args:
        sides: scorecards of a run, and a view of them.
    """
    return [_row(sides, claim) for claim in claims]


def _row(sides: Sequence[tuple[Cards, str]], claim: Claim) -> list[Answer | None]:
    tables = []
    for cards, view in sides:
        card = cards.get(claim.reference)
        if card is None or view not in card.views or claim.reference not in card.trials.selectors:
            tables.append(None)
            continue
        rows = card.summary
        tables.append(rows[(rows["view"] == view) & (rows["metric"] == claim.metric)].set_index("selector"))
    family = [table["p"].to_numpy(float) for table in tables if table is not None]
    adjusted = iter(np.split(holm(np.concatenate(family)), np.cumsum([len(p) for p in family])[:-1]) if family else [])
    row: list[Answer | None] = []
    for table in tables:
        p = pd.Series(next(adjusted), index=table.index) if table is not None else None
        missing = table is None or p is None or claim.selector not in table.index
        row.append(None if missing else _answer(table.loc[claim.selector], float(p[claim.selector]), claim))
    return row


def _answer(row: pd.Series, p: float, claim: Claim) -> Answer:
    metric, names = METRICS[claim.metric], ("diff_vs_reference", "ci_low", "ci_high", "mde")
    difference, low, high, mde = (metric.scale * float(row[name]) for name in names)
    right = difference * claim.sign > 0
    word = (SHOWN if right else AGAINST) if p < ALPHA else (DIRECTION if right else OTHER)
    return Answer(word, difference, low, high, p, mde, int(row["diff_n"]), metric.shown_unit)
