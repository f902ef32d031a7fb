"""Conclusions in words: verdicts, rank reversals, and notes where selectors did not learn the same number of tokens."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from longgame.errors import DataError
from longgame.metrics.catalog import METRICS
from longgame.metrics.stats import ALPHA, MOST_SEEDS, POWER, holm, moments, p_above, p_equivalent, paired, t_interval
from longgame.metrics.tidy import Trials
from longgame.recipe import EquivalenceSpec, HolmFamily
from longgame.selection.budget import MOST_TIED

MYOPIC = "myopic"
BETTER = "long-horizon better"
WORSE = "long-horizon worse"
NOW_ONLY = "differs now only"
EQUIVALENT = "equivalent within ±δ"
NO_DIFFERENCE = "no difference shown"
NOT_ENOUGH = "not enough seeds"

_LATER = METRICS["long_horizon"]
_SIZES = ("mean", "sd", "mde", "mde_low", "mde_high")
"""Columns of a comparison that are in the unit of its metric."""

LEAST_SEEDS = 3
"""With fewer seeds no verdict but `NOT_ENOUGH` is given."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One selector against the reference."""

    word: str
    reason: str
    power: str = ""
    """Differences that these seeds detect, and seeds that the measured ones need; empty where that is unknown."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference from the reference over n seeds, in points of 100, with its Holm-adjusted p."""

    n: int
    mean: float
    p: float
    """Two-sided, of "no difference"."""
    sd: float = float("nan")
    """Of the paired differences."""
    mde: float = float("nan")
    """Smallest true difference that so many seeds show with 80 % power; NaN if it cannot be told."""
    mde_low: float = float("nan")
    mde_high: float = float("nan")
    """``inf``: beyond the metric's scale."""
    seeds_needed: float = float("nan")
    """Seeds that show a true difference as large as the measured one with 80 % power."""
    seeds_needed_low: float = float("nan")
    seeds_needed_high: float = float("nan")


def verdict_words(
    now: Mapping[str, Float[np.ndarray, ...]],
    later: Mapping[str, Float[np.ndarray, ...]],
    myopic: Float[np.ndarray, ...],
    equivalent: Float[np.ndarray, ...],
    alpha: float = ALPHA,
) -> np.ndarray:
    """The verdicts of many comparisons with the reference, as strings.

    * *not enough seeds*: fewer than `LEAST_SEEDS` seeds measured both scores, or no p could be computed;
    * *myopic*: ahead on the immediate score and behind on the long-horizon score, by the intersection–union test;
    * *long-horizon better* / *long-horizon worse*: significantly ahead / behind on the long-horizon score otherwise;
    * *differs now only*: a significant immediate difference, no significant long-horizon one;
    * *equivalent within ±δ*: both differences are shown to be smaller than their margins;
    * *no difference shown*: neither a difference nor equivalence is shown.

    Args:
        now: ``n``, ``mean`` and ``p`` (two-sided) of the differences on the immediate score.
        later: the same on the long-horizon score.
        myopic: p of "ahead now and behind later": the larger of the two one-sided p.
        equivalent: p of equivalence on both scores.
        alpha: level of the tests. All p are Holm-adjusted over the comparisons.
    """
    few = (np.minimum(now["n"], later["n"]) < LEAST_SEEDS) | np.isnan(now["p"]) | np.isnan(later["p"])
    differs = later["p"] < alpha
    return np.select(
        [
            few,
            myopic < alpha,
            differs & (later["mean"] < 0),
            differs & (later["mean"] > 0),
            now["p"] < alpha,
            equivalent < alpha,
        ],
        [NOT_ENOUGH, MYOPIC, WORSE, BETTER, NOW_ONLY, EQUIVALENT],
        NO_DIFFERENCE,
    )


def verdict(
    immediate: Difference,
    long: Difference,
    *,
    myopic: float = float("nan"),
    equivalent: float = float("nan"),
    margins: EquivalenceSpec | None = None,
    reference: str = "random",
    family: str = "",
    unit: str = "seed",
    scope: str = "",
    alpha: float = ALPHA,
) -> Verdict:
    """The verdict on one selector, from its two differences from the reference (see `verdict_words`).

    Args:
        immediate: selector − reference on the immediate score.
        long: selector − reference on the long-horizon score.
        myopic: p of "ahead now and behind later".
        equivalent: p of equivalence on both scores within ``margins``.
        family: what the p values were corrected over, in words, e.g. ``6 selectors``.
        unit: what n counts: ``seed`` or ``base model``.
        scope: what the verdict is limited to, in words, e.g. ``on this base model``.
        alpha: significance level of the adjusted p.
    """
    margins = margins or EquivalenceSpec()
    n = min(immediate.n, long.n)
    power = _power(immediate, long, alpha, unit)
    sides = [{"n": np.array(side.n), "mean": np.array(side.mean), "p": np.array(side.p)} for side in (immediate, long)]
    word = str(verdict_words(sides[0], sides[1], np.array(myopic), np.array(equivalent), alpha))
    if word == NOT_ENOUGH:
        return Verdict(word, _too_few(immediate, long, unit), power)
    against = f"{scope}, against {reference}" if scope else f"against {reference}"
    sample = f"{n} {unit}s, p after Holm" + (f" over {family}" if family else "")
    if word == MYOPIC:
        reason = (
            f"{against}: {_size(immediate, 'current score')}: ahead; {_size(long, 'long-horizon score')}: "
            f"behind; p = {myopic:.2g}, the larger of the two one-sided p"
        )
        return Verdict(word, f"{reason}; {sample}", power)
    now, later = _clause(immediate, "current score", alpha), _clause(long, "long-horizon score", alpha)
    reason = f"{against}: {now}; {later}"
    if word in (EQUIVALENT, NO_DIFFERENCE):
        reason += _equivalence(immediate, long, equivalent, margins)
    return Verdict(word, f"{reason}; {sample}", power)


def _equivalence(immediate: Difference, long: Difference, p: float, margins: EquivalenceSpec) -> str:
    """The 90 % intervals beside their margins; empty where the differences have no spread."""
    text = [_sized_interval(side) for side in (immediate, long)]
    if not all(text) or np.isnan(p):
        return ""
    return (
        f"; 90 % intervals {text[0]} now and {text[1]} in the long run, against margins of ±{margins.now:g} and "
        f"±{_LATER.scale * margins.long_horizon:g} points (equivalence: p = {p:.2g})"
    )


def _sized_interval(difference: Difference) -> str:
    low, high = t_interval(difference.mean, difference.sd, difference.n, 0.9)
    return "" if np.isnan(low) else f"{signed_points(float(low))} to {signed_points(float(high))}"


def _too_few(immediate: Difference, long: Difference, unit: str) -> str:
    both = {"current": immediate.n, "long-horizon": long.n}
    none = [name for name, n in both.items() if n == 0]
    if none and any(both.values()):
        return (
            f"the {none[0]} score was compared in no {unit}; at least {LEAST_SEEDS} are needed, of two stages or more"
        )
    return f"both scores were compared in {min(both.values())} {unit}(s); at least {LEAST_SEEDS} are needed"


@dataclass(frozen=True)
class Comparisons:
    """Every selector against the reference, in several conditions and views, with the p values of its verdict.

    Arrays are (views, comparisons); NaN where a condition lacks the view.
    """

    views: tuple[Hashable, ...]
    pairs: tuple[tuple[str, str], ...]
    """(condition, selector) of each comparison: the family over which p values are corrected."""
    now: Mapping[str, Float[np.ndarray, "views comparisons"]]
    """Column of the summary → its values for the immediate score; ``p`` is the two-sided p after Holm."""
    later: Mapping[str, Float[np.ndarray, "views comparisons"]]
    myopic: Float[np.ndarray, "views comparisons"]
    """P of "ahead now and behind later": the larger of the two one-sided p (intersection–union test), after Holm."""
    equivalent: Float[np.ndarray, "views comparisons"]
    """P of equivalence on both scores (the larger of two TOST p), after Holm."""
    over: HolmFamily = "selectors-conditions"
    """What p values are corrected over: all comparisons, the selectors of each condition, the conditions of each
    selector."""

    @property
    def words(self) -> np.ndarray:
        """Verdicts, (views, comparisons)."""
        return verdict_words(self.now, self.later, self.myopic, self.equivalent)

    @property
    def family(self) -> str:
        """What p values are corrected over, in words."""
        conditions, selectors = (len({pair[place] for pair in self.pairs}) for place in (0, 1))
        text = f"{selectors} selector{'' if selectors == 1 else 's'}"
        if conditions > 1:
            return {
                "selectors-conditions": f"{text} × {conditions} conditions",
                "selectors": f"{text} of each of {conditions} conditions",
                "conditions": f"{conditions} conditions of each of {text}",
            }[self.over]
        return text

    @classmethod
    def build(
        cls,
        summary: pd.DataFrame,
        views: Sequence[Hashable],
        reference: str,
        immediate: str,
        margins: EquivalenceSpec,
        family: HolmFamily = "selectors-conditions",
    ) -> Comparisons:
        """Test every selector but the reference, with Holm over the comparisons of a view, or of a part of them.

        Args:
            summary: rows of `longgame.metrics.scorecard.summarize` with the key columns ``view`` and ``metric``, and
                ``condition`` where there are several.
            immediate: the metric used as the immediate score; the other one is ``long_horizon``.
            margins: within which differences count as equivalent.
            family: what p values are corrected over. With a single condition, always over its selectors.
        """
        table = summary[summary["metric"].isin([immediate, "long_horizon"]) & (summary["selector"] != reference)]
        conditions = table["condition"] if "condition" in table else pd.Series("", index=table.index)
        index = pd.MultiIndex.from_arrays([conditions.astype(str), table["selector"].astype(str)])
        pairs = index.drop_duplicates()
        place = pairs.get_indexer(index)
        view = pd.Index(list(views)).get_indexer(pd.Index(table["view"]))
        columns = {"n": "diff_n", "mean": "diff_vs_reference", "sd": "diff_sd", "p": "p"}
        columns |= {f"{name}{end}": f"{name}{end}" for name in ("mde", "seeds_needed") for end in ("", "_low", "_high")}
        sides = []
        for metric in (immediate, "long_horizon"):
            rows = (table["metric"] == metric).to_numpy(bool) & (view >= 0)
            side = {}
            for name, column in columns.items():
                side[name] = np.full((len(views), len(pairs)), np.nan)
                side[name][view[rows], place[rows]] = table[column].to_numpy(float)[rows]
            sides.append(side)
        now, later = sides
        equal = [
            p_equivalent(side["mean"], side["sd"], side["n"], margin)
            for side, margin in ((now, margins.now), (later, margins.long_horizon))
        ]
        myopic = np.maximum(p_above(now["mean"], now["sd"], now["n"]), p_above(-later["mean"], later["sd"], later["n"]))
        together = family == "selectors-conditions" or pairs.get_level_values(0).nunique() == 1
        apart = pairs.get_level_values(0 if family == "selectors" else 1).to_numpy()
        names = np.zeros(len(pairs)) if together else apart

        def adjusted(p: Float[np.ndarray, "views comparisons"]) -> Float[np.ndarray, "views comparisons"]:
            result = np.empty_like(p)
            for name in pd.unique(names):
                result[:, names == name] = holm(p[:, names == name])
            return result

        for side in sides:
            side["p"] = adjusted(side["p"])
        return cls(
            tuple(views),
            tuple(pairs),
            now,
            later,
            adjusted(myopic),
            adjusted(np.maximum(*equal)),
            family,
        )


def verdict_table(
    summary: pd.DataFrame,
    views: Sequence[Hashable],
    reference: str,
    immediate: str,
    margins: EquivalenceSpec | None = None,
    trials: Trials | None = None,
    family: HolmFamily = "selectors-conditions",
) -> pd.DataFrame:
    """Verdict of every selector but the reference, per view and condition (see `Comparisons.build`).

    Args:
        trials: they say whether seeds share base models, and so what a verdict is about.
        family: what p values are corrected over (see `Comparisons.build`).

    Returns:
        condition, view, selector, verdict, reason, power, family; empty without the reference. ``power`` is empty where
        p values are corrected over conditions: the summary plans for the selectors of one.
    """
    columns = ["condition", "view", "selector", "verdict", "reason", "power", "family"]
    if not (summary["selector"] == reference).any():
        return pd.DataFrame(columns=columns)
    margins = margins or EquivalenceSpec()
    unit = "base model" if trials is not None and trials.repeats_bases else "seed"
    scope = "on this base model" if trials is not None and trials.shares_base else ""
    tests = Comparisons.build(summary, views, reference, immediate, margins, family)
    is_planned = family == "selectors" or len({condition for condition, _ in tests.pairs}) == 1
    rows = []
    for v, view in enumerate(views):
        for place, (condition, selector) in enumerate(tests.pairs):
            if np.isnan(tests.now["n"][v, place]):
                continue
            sides = []
            for side, metric in ((tests.now, METRICS[immediate]), (tests.later, _LATER)):
                numbers = {name: float(values[v, place]) for name, values in side.items() if name != "n"}
                numbers |= {name: metric.scale * numbers[name] for name in _SIZES}
                sides.append(Difference(int(side["n"][v, place]), **numbers))
            result = verdict(
                sides[0],
                sides[1],
                myopic=float(tests.myopic[v, place]),
                equivalent=float(tests.equivalent[v, place]),
                margins=margins,
                reference=reference,
                family=tests.family,
                unit=unit,
                scope=scope,
            )
            power = result.power if is_planned else ""
            rows.append((condition, view, selector, result.word, result.reason, power, tests.family))
    return pd.DataFrame(rows, columns=columns)


def _power(immediate: Difference, long: Difference, alpha: float, unit: str) -> str:
    """One sentence: the smallest differences that these seeds detect, and the seeds that the measured ones need."""
    n = min(immediate.n, long.n)
    if n < 2 or (np.isnan(immediate.mde) and np.isnan(long.mde) and np.isnan(long.seeds_needed)):
        return ""
    text = (
        f"{n} {unit}s show true differences of {_detectable(immediate)} now and {_detectable(long)} in the long run "
        f"with {100 * POWER:.0f} % power"
    )
    needs = [
        f"{_seeds(side)} {unit}s for {name}"
        for side, name in ((immediate, "the current score"), (long, "the long-horizon score"))
        if not side.p < alpha and not np.isnan(side.seeds_needed)
    ]
    return text + (f"; differences as seen would take {' and '.join(needs)}" if needs else "")


def _detectable(difference: Difference) -> str:
    """``1.9 (1.2 to 3.8) points``."""
    if np.isnan(difference.mde):
        return "a size that cannot be told"
    ends = (difference.mde_low, difference.mde_high)
    return f"{difference.mde:.1f}{range_words(ends, lambda value: f'{value:.1f}')} points"


def _seeds(difference: Difference) -> str:
    def count(seeds: float) -> str:
        return f"{seeds:.0f}" if np.isfinite(seeds) else f"more than {MOST_SEEDS:,}"

    low, high = difference.seeds_needed_low, difference.seeds_needed_high
    same = low == difference.seeds_needed == high
    return count(difference.seeds_needed) + ("" if same else range_words((low, high), count, open_end=""))


def range_words(ends: tuple[float, float], write: Callable[[float], str], open_end: str = "or more") -> str:
    """`` (1.2 to 3.8)``; `` (1.2 or more)`` where the upper end is infinite; empty for an unknown end.

    Args:
        open_end: words for an infinite upper end; without them it is written like any other.
    """
    low, high = ends
    if np.isnan(low) or np.isnan(high):
        return ""
    if np.isinf(high) and open_end:
        return f" ({write(low)} {open_end})"
    return f" ({write(low)} to {write(high)})"


def signed_points(value: float) -> str:
    """A difference in points with its sign; without one where its digits are all 0."""
    text = f"{abs(value):.1f}"
    return f"{'−' if value < 0 else '+'}{text}" if float(text) else text


def _size(difference: Difference, score: str) -> str:
    return f"{score} {signed_points(difference.mean)} points"


def _clause(difference: Difference, score: str, alpha: float) -> str:
    result = "no difference shown" if difference.p >= alpha else "ahead" if difference.mean > 0 else "behind"
    return f"{_size(difference, score)}: {result} (p = {difference.p:.2g})"


@dataclass(frozen=True, slots=True)
class RankReversal:
    """``ahead`` beats ``behind`` now and loses to it in the long run, both significantly."""

    ahead: str
    behind: str
    immediate: Difference
    long: Difference
    """In the scores' own units, as `rank_reversals` was given them."""


def rank_reversals(
    immediate: Float[np.ndarray, "seeds k"],
    long: Float[np.ndarray, "seeds k"],
    selectors: Sequence[str],
    alpha: float = ALPHA,
    unit_of: Int[np.ndarray, " seeds"] | None = None,
) -> list[RankReversal]:
    """Pairs whose order on the immediate score reverses on the long-horizon score, with both differences significant.

    Paired t tests by seed; each score's p values are Holm-adjusted over all pairs of selectors.

    Args:
        unit_of: replication unit of each seed (see `paired`).

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
        result = paired(values[pairs[:, 0]], values[pairs[:, 1]], unit_of=unit_of)
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
                Difference(int(now.n[row]), float(sign * now.mean[row]), float(now_p[row])),
                Difference(int(later.n[row]), float(sign * later.mean[row]), float(later_p[row])),
            )
        )
    return reversals


_TOKENS, _EXAMPLES = ("cost", "selected_tokens"), ("cost", "selected_examples")
_RESPONSE = ("cost", "response_tokens")
UNEQUAL = 0.05
"""Share by which response tokens may differ from the reference's without a word in the verdict."""


def unequal_amounts(
    tables: Mapping[tuple[str, str], Float[np.ndarray, "trials stages"]], trials: Trials, reference: str
) -> dict[str, str]:
    """Selector → how its token count differs from the reference's, in words; selectors with equal counts are left out.

    A budget is filled in whole examples. So counts are equal if their means over seeds and stages differ by at most one
    example (of mean size, the larger of the two selectors'). Only stages that both measured in a seed are compared.
    Equal token counts can hide unequal supervision: the loss is taken over response tokens only. These are named where
    they differ by more than `UNEQUAL`. Empty without the reference, or where the costs were not measured.

    Args:
        tables: (kind, name) → values by stage (`longgame.metrics.tidy.read_stagewise`).
    """
    if reference not in trials.selectors:
        return {}
    unequal = _unequal_tokens(tables, trials, reference)
    for selector, text in _unequal_supervision(tables, trials, reference).items():
        unequal[selector] = f"{unequal[selector]}; {text}" if selector in unequal else text
    return unequal


def _unequal_supervision(
    tables: Mapping[tuple[str, str], Float[np.ndarray, "trials stages"]], trials: Trials, reference: str
) -> dict[str, str]:
    if _RESPONSE not in tables:
        return {}
    tokens = trials.grid(tables[_RESPONSE])
    row = trials.selectors.index(reference)
    unequal = {}
    for place, selector in enumerate(trials.selectors):
        both = ~np.isnan(tokens[place] + tokens[row])
        if place == row or not both.any():
            continue
        count, expected = (float(tokens[side][both].mean()) for side in (place, row))
        if abs(count - expected) > UNEQUAL * expected:
            unequal[selector] = (
                f"{100 * count / expected:.0f} % of {reference}'s response tokens learned ({count:,.0f} against "
                f"{expected:,.0f} per stage)"
            )
    return unequal


def _unequal_tokens(
    tables: Mapping[tuple[str, str], Float[np.ndarray, "trials stages"]], trials: Trials, reference: str
) -> dict[str, str]:
    if _TOKENS not in tables or _EXAMPLES not in tables:
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
            more = "more" if count > expected else "fewer"
            unequal[selector] = (
                f"{100 * abs(count / expected - 1):.0f} % {more} tokens learned than "
                f"by {reference} ({count:,.0f} against {expected:,.0f} per stage)"
            )
    return unequal


def amount_notes(unequal: Mapping[str, str]) -> list[str]:
    """A note for each of `unequal_amounts`."""
    return [
        f"{selector}: {text}; a difference in scores may come from the amount and not from the choice."
        for selector, text in unequal.items()
    ]


def with_amounts(verdicts: pd.DataFrame, unequal: Mapping[tuple[str, str], str]) -> pd.DataFrame:
    """The verdicts with `unequal_amounts` added to their reasons.

    Args:
        unequal: (condition, selector) → words.
    """
    keys = zip(verdicts["condition"], verdicts["selector"], strict=True)
    reasons = [
        f"{reason}; {unequal[key]}" if key in unequal else reason
        for key, reason in zip(keys, verdicts["reason"], strict=True)
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


def tied_notes(tables: Mapping[tuple[str, str], Float[np.ndarray, "trials stages"]], trials: Trials) -> list[str]:
    """A warning for each selector with stages in which most candidates tie at the cut, on the mean over seeds.

    Args:
        tables: (kind, name) → values by stage (`longgame.metrics.tidy.read_stagewise`).
    """
    if ("diagnostic", "tied_share") not in tables:
        return []
    notes = []
    _, means, _ = moments(trials.grid(tables["diagnostic", "tied_share"]).swapaxes(1, 2))
    for selector, by_stage in zip(trials.selectors, means, strict=True):
        stages = np.flatnonzero(by_stage > MOST_TIED)
        if len(stages):
            named = ", ".join(map(str, stages.tolist()))
            notes.append(
                f"{selector}: at stage{'s' if len(stages) > 1 else ''} {named}, "
                f"{100 * by_stage[stages].mean():.0f} % of the candidates share the score at which the budget ends. "
                "Their ids decide which of them are picked, so the result says little about the score."
            )
    return notes
