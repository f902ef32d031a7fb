"""Whether selectors were compared at equal token counts, and by how much they were not, in words."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float

from longgame.metrics.tidy import Trials

_TOKENS, _EXAMPLES = ("cost", "selected_tokens"), ("cost", "selected_examples")


def unequal_amounts(
    tables: Mapping[tuple[str, str], Float[np.ndarray, "trials stages"]], trials: Trials, reference: str
) -> dict[str, str]:
    """Selector → how its tokens differ from the reference's, where the mean over seeds and stages does by more than one
    example (of mean size, the larger of the two selectors'); a budget is filled in whole examples.

    Only stages that both measured in a seed are compared. Empty without the reference, or where the costs were not
    measured.

    Args:
        tables: (kind, name) → values by stage, NaN = not measured (`longgame.metrics.tidy.read_stagewise`).
    """
    if reference not in trials.selectors or _TOKENS not in tables or _EXAMPLES not in tables:
        return {}
    tokens, examples = trials.grid(tables[_TOKENS]), trials.grid(tables[_EXAMPLES])
    row = trials.selectors.index(reference)
    found = {}
    for place, selector in enumerate(trials.selectors):
        both = ~np.isnan(tokens[place] + tokens[row] + examples[place] + examples[row])
        if place == row or not both.any():
            continue
        own, other = (float(tokens[each][both].mean()) for each in (place, row))
        example = max(float(tokens[each][both].sum() / examples[each][both].sum()) for each in (place, row))
        if abs(own - other) > example:
            more = "more" if own > other else "fewer"
            found[selector] = (
                f"{abs(own / other - 1):.0%} {more} tokens learned than by {reference} "
                f"({own:,.0f} against {other:,.0f} per stage)"
            )
    return found


def amount_notes(unequal: Mapping[str, str]) -> list[str]:
    """A note for each of `unequal_amounts`."""
    return [
        f"{selector}: {words}; a difference in scores may come from the amount and not from the choice."
        for selector, words in unequal.items()
    ]


def with_amounts(verdicts: pd.DataFrame, unequal: Mapping[str, str]) -> pd.DataFrame:
    """The verdicts, each with what was unequal behind its reason."""
    said = [
        f"{reason}; {unequal[selector]}" if selector in unequal else reason
        for selector, reason in zip(verdicts["selector"], verdicts["reason"], strict=True)
    ]
    return verdicts.assign(reason=said)
