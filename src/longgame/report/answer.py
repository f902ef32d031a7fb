"""The answer at the top of a report: which selector to use, which are myopic, how sure that is, what it cost."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from longgame.audit.plan import condition_label
from longgame.errors import RecipeError, unknown
from longgame.metrics.comparisons import Across
from longgame.metrics.scorecard import PRIMARY, Scorecard
from longgame.metrics.stats import ALPHA, holm, paired
from longgame.metrics.verdict import BETTER, INDISTINGUISHABLE, MYOPIC, NOT_ENOUGH, NOW_ONLY, WORSE
from longgame.recipe import Recipe
from longgame.report.tables import number, selectors_in_order
from longgame.report.words import elsewhere

_LONG = "long horizon"


@dataclass(frozen=True, slots=True)
class Answer:
    """Sentences, in the order in which a reader needs them."""

    use: str
    avoid: str
    elsewhere: str
    sure: str
    cost: str

    @property
    def lines(self) -> list[tuple[str, str]]:
        """(question, sentence) of everything that can be said."""
        asked = ("Which to use", "Which are myopic", "In other conditions", "How sure", "What it cost")
        said = (self.use, self.avoid, self.elsewhere, self.sure, self.cost)
        return [(question, text) for question, text in zip(asked, said, strict=True) if text]


def answer(card: Scorecard, recipe: Recipe, across: Across | None = None) -> Answer:
    """Put the scorecard's primary view into an answer. It says no more than the tests show.

    Args:
        card: of the recipe's own condition.
        across: all conditions of a recipe with axes.
    """
    verdicts = {
        str(row["selector"]): str(row["verdict"]) for row in card.verdicts.to_dict("records") if row["view"] == PRIMARY
    }
    sure = _sure(card) if verdicts else ""
    return Answer(_use(card, verdicts), _avoid(card, recipe, verdicts), elsewhere(across), sure, _cost(card))


def _use(card: Scorecard, verdicts: dict[str, str]) -> str:
    if not verdicts:
        return f"Nothing was compared: the reference selector '{card.reference}' has no trial or stands alone."
    means = card.wide(["long_horizon"])["long_horizon"].dropna()
    if means.empty:
        return "No long-horizon score was measured yet, so nothing can be advised."
    better = [name for name, word in verdicts.items() if word == BETTER]
    if better:
        best = max(better, key=lambda name: float(means[name]))
        rivals = _not_shown_to_differ(card, best)
        text = f"Use {best}: long-horizon score {_compared(card, best)}."
        if rivals:
            text += f" Not shown to differ from it: {', '.join(rivals)}."
        return text
    if all(word == NOT_ENOUGH for word in verdicts.values()):
        return f"Too few seeds to advise anything. Highest long-horizon score so far: {means.idxmax()}."
    leader = str(means.idxmax())
    text = f"No selector is shown to be better than {card.reference} in the long run"
    if leader != card.reference:
        text += f"; the highest mean is that of {leader}, {_compared(card, leader)}"
    cheap = ", which costs nothing" if card.reference == "random" else ""
    return f"{text}. Use {card.reference}{cheap}, or measure more seeds."


def _compared(card: Scorecard, selector: str) -> str:
    rows = card.summary[
        (card.summary["view"] == PRIMARY)
        & (card.summary["metric"] == "long_horizon")
        & (card.summary["selector"] == selector)
    ]
    row = rows.iloc[0]
    text = number(float(row["mean"]), _LONG)
    if np.isfinite(row["diff_vs_reference"]):
        text += f", {float(row['diff_vs_reference']):+.3f} against {card.reference}"
    if np.isfinite(row["ci_low"]):
        text += f" (95 % interval {float(row['ci_low']):+.3f} to {float(row['ci_high']):+.3f}"
        text += f", p = {float(row['p_holm']):.2g} after Holm)" if np.isfinite(row["p_holm"]) else ")"
    return text


def _not_shown_to_differ(card: Scorecard, best: str) -> list[str]:
    """Selectors whose long-horizon score is not shown to differ from this one's (paired by seed, Holm)."""
    values = card.trials.grid(card.views[PRIMARY].metrics["long_horizon"])  # (selectors, seeds)
    names = list(card.trials.selectors)
    others = [place for place, name in enumerate(names) if name != best]
    if not others:
        return []
    result = paired(values[others], np.broadcast_to(values[names.index(best)], values[others].shape).copy())
    adjusted = holm(result.p)
    return [names[place] for place, p in zip(others, adjusted, strict=True) if not p < ALPHA]


def _avoid(card: Scorecard, recipe: Recipe, verdicts: dict[str, str]) -> str:
    if not verdicts:
        return ""
    order = [name for name in selectors_in_order(card, recipe) if name in verdicts]
    myopic = [name for name in order if verdicts[name] == MYOPIC]
    worse = [name for name in order if verdicts[name] == WORSE]
    text = (
        f"Myopic (ahead now, behind in the long run): {', '.join(myopic)}." if myopic else "None is shown to be myopic."
    )
    if worse:
        text += f" Behind in the long run, and not shown to be ahead now: {', '.join(worse)}."
    return text


def _sure(card: Scorecard) -> str:
    seeds = len(card.trials.seeds)
    text = f"{seeds} seed{'s' if seeds != 1 else ''}, compared by seed, Holm over the selectors, 5 % level."
    now, later = (_detectable(card, metric) for metric in ("current", "long_horizon"))
    if np.isfinite(now) and np.isfinite(later):
        text += (
            f" A true difference of {now:.1f} points now and of {later:.3f} in the long run would be shown with 80 % "
            "power (median over selectors); smaller ones may be missed."
        )
    return text


def _detectable(card: Scorecard, metric: str) -> float:
    rows = card.summary[(card.summary["view"] == PRIMARY) & (card.summary["metric"] == metric)]
    values = rows["mde"].to_numpy(float)
    values = values[np.isfinite(values)]
    return float(np.median(values)) if values.size else float("nan")


def _cost(card: Scorecard) -> str:
    held = set(card.summary.loc[card.summary["view"] == "", "metric"])
    text = ""
    if "selected_tokens" in held:
        tokens = card.wide(["selected_tokens"])["selected_tokens"].dropna()
        if len(tokens):
            low, high = float(tokens.min()), float(tokens.max())
            span = f"{low:,.0f}" if high - low < 0.5 else f"{low:,.0f} to {high:,.0f}"
            text += f"{span} selected tokens per trial. "
    if "select_seconds" in held:
        seconds = card.wide(["select_seconds"])["select_seconds"].dropna()
        if len(seconds) > 1:
            first, last = (f"{number(float(value), 's')} s" for value in (seconds.min(), seconds.max()))
            text += f"Choosing took from {first} ({seconds.idxmin()}) to {last} ({seconds.idxmax()}) per trial."
    return text.strip()


# Conditions on which a check fails: ``myopic(my-selector) or worse(loss)``.

VERDICTS = {
    "myopic": MYOPIC,
    "worse": WORSE,
    "better": BETTER,
    "now-only": NOW_ONLY,
    "indistinguishable": INDISTINGUISHABLE,
    "not-enough-seeds": NOT_ENOUGH,
}
"""Word of a condition → verdict of a scorecard."""
ANY = "*"
_CLAIM = re.compile(r"([A-Za-z][A-Za-z-]*)\s*\(([^()]*(?:\([^()]*\)[^()]*)*)\)")
_OR = re.compile(r"\s+or\s+")


@dataclass(frozen=True, slots=True)
class Claim:
    """``verdict(selector)``."""

    verdict: str
    selector: str

    def __str__(self) -> str:
        return f"{self.verdict}({self.selector})"


def parse_condition(text: str) -> tuple[Claim, ...]:
    """Read a condition; nothing in it is ever executed.

    Raises:
        RecipeError: it is not claims joined by ``or``, or a verdict is unknown.
    """
    claims = []
    place, rest = 0, text.strip()
    while True:
        found = _CLAIM.match(rest, place)
        if found is None or not found[2].strip():
            near = rest[place : place + 30]
            raise RecipeError(
                f"--fail-if is '{text}'; it cannot be read at '{near}'. Write VERDICT(SELECTOR), joined by or, e.g. "
                f'"myopic(loss) or worse(loss)". Verdicts: {", ".join(VERDICTS)}.'
            )
        verdict, selector = found[1], found[2].strip()
        if verdict not in VERDICTS:
            raise RecipeError(f"--fail-if is '{text}': " + unknown("verdict", verdict, VERDICTS))
        claims.append(Claim(verdict, selector))
        place = found.end()
        if place == len(rest):
            return tuple(claims)
        joint = _OR.match(rest, place)
        if joint is None:
            raise RecipeError(f"--fail-if is '{text}'; after '{claims[-1]}' there must stand ' or ' or nothing.")
        place = joint.end()


def true_claims(claims: tuple[Claim, ...], card: Scorecard, across: Across | None = None) -> list[str]:
    """The claims that hold by the primary view, each with the selector and condition it holds for and why.

    Args:
        card: of the recipe's own condition.
        across: all conditions of a recipe with axes: every one is asked, and each was compared for itself.

    Raises:
        RecipeError: a selector that the run does not compare: a guard must not pass because of a wrong name.
    """
    held = card.verdicts.assign(condition="") if across is None else across.verdicts
    rows = held[held["view"] == PRIMARY][["condition", "selector", "verdict", "reason"]].astype(str)
    told = list(rows.itertuples(index=False, name=None))
    words = {selector for _, selector, _, _ in told}
    found = []
    for claim in claims:
        if claim.selector != ANY and claim.selector not in words:
            if claim.selector == card.reference:
                raise RecipeError(
                    f"--fail-if asks for '{claim}', but {claim.selector} is what others are compared with."
                )
            raise RecipeError("--fail-if: " + unknown("selector", claim.selector, words))
        if claim.selector == ANY and not words:
            raise RecipeError(f"--fail-if asks for '{claim}', but the run compares no selector with {card.reference}.")
        wanted = VERDICTS[claim.verdict].format(reference=card.reference)
        for condition, selector, word, reason in told:
            if word == wanted and claim.selector in (ANY, selector):
                where = f" in condition '{condition_label(condition)}'" if condition else ""
                found.append(f"{claim.verdict}({selector}){where}: {reason}")
    return found
