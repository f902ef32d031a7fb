"""Conditions on which a check fails: ``myopic(my-selector) or worse(loss)``.

```
condition = claim { "or" claim }
claim     = verdict "(" selector ")"          selector: a name of the run, or * for any but the reference
verdict   = myopic | worse | better | now-only | indistinguishable | not-enough-seeds
```

Of a run with axes, a claim holds where it holds in any condition, means over orders among them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from longgame.errors import RecipeError, unknown
from longgame.metrics.across import Across
from longgame.metrics.scorecard import PRIMARY, Scorecard
from longgame.metrics.verdict import BETTER, INDISTINGUISHABLE, MYOPIC, NOT_ENOUGH, NOW_ONLY, WORSE
from longgame.report.across import condition_label

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
