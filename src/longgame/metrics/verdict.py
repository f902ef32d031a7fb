"""Conclusions in words: verdicts, rank reversals, and notes where selectors did not learn the same number of tokens."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from longgame.errors import DataError
from longgame.metrics.stats import ALPHA, MOST_SEEDS, POWER, holm, paired
from longgame.metrics.tidy import Trials

MYOPIC = "myopic"
BETTER = "long-horizon better"
WORSE = "long-horizon worse"
NOW_ONLY = "differs now only"
INDISTINGUISHABLE = "indistinguishable from {reference}"
NOT_ENOUGH = "not enough seeds"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One selector against the reference."""

    word: str
    reason: str
    power: str = ""
    """Differences that these seeds detect, and seeds that the measured ones need; empty where that is unknown."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference from the reference over n seeds, with its Holm-adjusted p."""

    n: int
    mean: float
    p: float
    unit: str = ""
    """``points``, or empty for the 0–1 scale of the long-horizon score."""
    mde: float = float("nan")
    """Smallest true difference that so many seeds show with 80 % power."""
    seeds_needed: float = float("nan")
    """Seeds that show a true difference as large as the measured one with 80 % power."""


def verdict(
    immediate: Difference, long: Difference, *, reference: str = "random", alpha: float = ALPHA, min_seeds: int = 3
) -> Verdict:
    """The verdict on a selector, from its two differences from the reference.

    * *not enough seeds*: fewer than ``min_seeds`` seeds measured both scores, or no p could be computed;
    * *myopic*: significantly ahead on the immediate score and significantly behind on the long-horizon score;
    * *long-horizon better* / *long-horizon worse*: significantly ahead / behind on the long-horizon score otherwise;
    * *differs now only*: a significant immediate difference, no significant long-horizon one;
    * *indistinguishable from random* (or whatever the reference is): neither.

    Each of the two tests is Holm-adjusted over the selectors. *Myopic* needs both, so their error rates do not add up.

    Args:
        immediate: selector − reference on the immediate score.
        long: selector − reference on the long-horizon score.
        alpha: significance level of the adjusted p.
    """
    n = min(immediate.n, long.n)
    power = _power(immediate, long, alpha)
    if n < min_seeds or np.isnan(immediate.p) or np.isnan(long.p):
        return Verdict(NOT_ENOUGH, _too_few(immediate, long, min_seeds), power)
    now, later = _clause(immediate, "current score", alpha), _clause(long, "long-horizon score", alpha)
    reason = f"against {reference}: {now}; {later}; {n} seeds, p after Holm"
    ahead_now = immediate.p < alpha and immediate.mean > 0
    if long.p < alpha:
        if long.mean > 0:
            return Verdict(BETTER, reason, power)
        return Verdict(MYOPIC if ahead_now else WORSE, reason, power)
    if immediate.p < alpha:
        return Verdict(NOW_ONLY, reason, power)
    return Verdict(INDISTINGUISHABLE.format(reference=reference), reason, power)


def _too_few(immediate: Difference, long: Difference, min_seeds: int) -> str:
    both = {"current": immediate.n, "long-horizon": long.n}
    none = [name for name, n in both.items() if n == 0]
    if none and any(both.values()):
        return f"the {none[0]} score was compared in no seed; at least {min_seeds} are needed, of two stages or more"
    return f"both scores were compared in {min(both.values())} seed(s); at least {min_seeds} are needed"


def verdict_table(
    summary: pd.DataFrame, views: Sequence[Hashable], selectors: Sequence[str], reference: str, immediate: str
) -> pd.DataFrame:
    """Verdict of every selector but the reference, per view.

    Args:
        summary: rows of `longgame.metrics.scorecard.summarize` with the key columns ``view`` and ``metric``.
        immediate: the metric used as the immediate score; the other one is ``long_horizon``.

    Returns:
        view, selector, verdict, reason, power; empty without the reference.
    """
    columns = ["diff_n", "diff_vs_reference", "p_holm", "mde", "seeds_needed"]
    rows = []
    if reference in selectors:
        table = summary[summary["metric"].isin([immediate, "long_horizon"])]
        indexed = table.set_index(["view", "metric", "selector"])[columns]
        numbers = dict(zip(indexed.index, indexed.to_numpy(dtype=float).tolist(), strict=True))

        def difference(view: Hashable, metric: str, selector: str, unit: str) -> Difference:
            n, mean, p, mde, needed = numbers[view, metric, selector]
            return Difference(int(n), mean, p, unit, mde, needed)

        for view in views:
            for selector in selectors:
                if selector == reference:
                    continue
                now = difference(view, immediate, selector, "points")
                later = difference(view, "long_horizon", selector, "")
                result = verdict(now, later, reference=reference)
                rows.append((view, selector, result.word, result.reason, result.power))
    return pd.DataFrame(rows, columns=["view", "selector", "verdict", "reason", "power"])


def _power(immediate: Difference, long: Difference, alpha: float) -> str:
    """One sentence: the smallest differences that these seeds detect, and the seeds that the measured ones need."""
    if np.isnan(immediate.mde) or np.isnan(long.mde):
        return ""
    n = min(immediate.n, long.n)
    text = (
        f"{n} seeds show true differences of {immediate.mde:.1f} points now and {long.mde:.3f} in the long run with "
        f"{POWER:.0%} power"
    )
    needs = [
        f"{_count(side.seeds_needed)} for {name}"
        for side, name in ((immediate, "the current score"), (long, "the long-horizon score"))
        if not side.p < alpha and not np.isnan(side.seeds_needed)
    ]
    return text + (f"; differences as seen would take {' and '.join(needs)}" if needs else "")


def _count(seeds: float) -> str:
    return f"{seeds:.0f} seeds" if np.isfinite(seeds) else f"more than {MOST_SEEDS:,} seeds"


def _clause(difference: Difference, score: str, alpha: float) -> str:
    size = (
        f"{difference.mean:+.1f} points" if difference.unit == "points" else f"{difference.mean:+.3f} on its 0–1 scale"
    )
    result = "no difference shown" if difference.p >= alpha else "ahead" if difference.mean > 0 else "behind"
    return f"{score} {size}: {result} (p = {difference.p:.2g})"


@dataclass(frozen=True, slots=True)
class RankReversal:
    """``ahead`` beats ``behind`` now and loses to it in the long run, both significantly."""

    ahead: str
    behind: str
    immediate: Difference
    long: Difference


def rank_reversals(
    immediate: Float[np.ndarray, "seeds k"],
    long: Float[np.ndarray, "seeds k"],
    selectors: Sequence[str],
    alpha: float = ALPHA,
) -> list[RankReversal]:
    """Pairs whose order on the immediate score reverses on the long-horizon score, with both differences significant.

    Paired t tests by seed; each score's p values are Holm-adjusted over all pairs of selectors.

    Raises:
        DataError: shapes do not fit.
    """
    if immediate.shape != long.shape or immediate.ndim != 2 or immediate.shape[1] != len(selectors):
        raise DataError(
            f"scores of shapes {immediate.shape} and {long.shape} for {len(selectors)} selectors; "
            "both must be seeds × selectors."
        )
    pairs = np.array(list(itertools.combinations(range(len(selectors)), 2)), dtype=int).reshape(-1, 2)
    reversals = []
    sides = []
    for values in (immediate.T, long.T):
        result = paired(values[pairs[:, 0]], values[pairs[:, 1]])
        sides.append((result, holm(result.p)))
    (now, now_p), (later, later_p) = sides
    reversed_ = (now_p < alpha) & (later_p < alpha) & (now.mean * later.mean < 0)
    for row in np.flatnonzero(reversed_):
        sign = 1 if now.mean[row] > 0 else -1
        first, second = pairs[row][::sign]
        reversals.append(
            RankReversal(
                selectors[first],
                selectors[second],
                Difference(int(now.n[row]), float(sign * now.mean[row]), float(now_p[row]), "points"),
                Difference(int(later.n[row]), float(sign * later.mean[row]), float(later_p[row])),
            )
        )
    return reversals


_TOKENS, _EXAMPLES = ("cost", "selected_tokens"), ("cost", "selected_examples")


def unequal_amounts(
    tables: Mapping[tuple[str, str], Float[np.ndarray, "trials stages"]], trials: Trials, reference: str
) -> dict[str, str]:
    """Selector → how its token count differs from the reference's, in words; selectors with equal counts are left out.

    A budget is filled in whole examples. So counts are equal if their means over seeds and stages differ by at most one
    example (of mean size, the larger of the two selectors'). Only stages that both measured in a seed are compared.
    Empty without the reference, or where the costs were not measured.

    Args:
        tables: (kind, name) → values by stage (`longgame.metrics.tidy.read_stagewise`).
    """
    if reference not in trials.selectors or _TOKENS not in tables or _EXAMPLES not in tables:
        return {}
    tokens, examples = trials.grid(tables[_TOKENS]), trials.grid(tables[_EXAMPLES])
    row = trials.selectors.index(reference)
    unequal = {}
    for place, selector in enumerate(trials.selectors):
        both = ~np.isnan(tokens[place] + tokens[row] + examples[place] + examples[row])
        if place == row or not both.any():
            continue
        count, expected = (float(tokens[side][both].mean()) for side in (place, row))
        example = max(float(tokens[side][both].sum() / examples[side][both].sum()) for side in (place, row))
        if abs(count - expected) > example:
            unequal[selector] = (
                f"{abs(count / expected - 1):.0%} {'more' if count > expected else 'fewer'} tokens learned than by "
                f"{reference} ({count:,.0f} against {expected:,.0f} per stage)"
            )
    return unequal


def amount_notes(unequal: Mapping[str, str]) -> list[str]:
    """A note for each of `unequal_amounts`."""
    return [
        f"{selector}: {text}; a difference in scores may come from the amount and not from the choice."
        for selector, text in unequal.items()
    ]


def with_amounts(verdicts: pd.DataFrame, unequal: Mapping[str, str]) -> pd.DataFrame:
    """The verdicts with `unequal_amounts` added to their reasons."""
    reasons = [
        f"{reason}; {unequal[selector]}" if selector in unequal else reason
        for selector, reason in zip(verdicts["selector"], verdicts["reason"], strict=True)
    ]
    return verdicts.assign(reason=reasons)


_MISSED = {
    "replay_missed_tokens": "replayed {total:,.0f} tokens less than its share allows",
    "proxy_items_missed": "left {total:,.0f} proxy items unlearned",
}
"""Cost of a stage (`longgame.selection.interventions.Replay.unmet`) → its words in a note."""


def missed_notes(tables: Mapping[tuple[str, str], Float[np.ndarray, "trials stages"]], trials: Trials) -> list[str]:
    """A note for each selector and kind of replay with stages that replayed less than asked for.

    Args:
        tables: (kind, name) → values by stage (`longgame.metrics.tidy.read_stagewise`).
    """
    notes = []
    for name, text in _MISSED.items():
        if ("cost", name) not in tables:
            continue
        for selector, missed in zip(trials.selectors, trials.grid(tables["cost", name]), strict=True):
            measured = missed[~np.isnan(missed)]
            short = int((measured > 0).sum())
            if short:
                notes.append(
                    f"{selector}: {short} of {len(measured)} stages {text.format(total=measured.sum())}: their steps "
                    "hold too few tokens, or there is no more to replay. Raise the budget, or offer more candidates a "
                    "step."
                )
    return notes
