"""What selection cost beside training: totals over a trial's stages, and shares."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float

from longgame.metrics.tidy import Trials, over_measured

_EVERY_STAGE = ("pool_tokens", "scored_tokens", "score_flops", "frozen_flops", "train_flops", "diagnose_flops")
"""Costs that every stage has, or none: a run begun before they were counted has no total."""
_SHARES = {"flops_share": ("score_flops", "train_flops"), "seconds_share": ("select_seconds", "train_seconds")}


def cost_values(
    tables: Mapping[tuple[str, str], Float[np.ndarray, "trials stages"]],
) -> dict[str, Float[np.ndarray, " trials"]]:
    """Cost → one value per trial: the sum over its stages; and scoring as a share of training.

    NaN where a stage was not measured that another trial measured, where it measured other costs only, and for a share
    of nothing.

    Args:
        tables: (kind, name) → values by stage, NaN = not measured; only those of kind ``cost`` are read.
    """
    costs = {name: table for (kind, name), table in tables.items() if kind == "cost"}
    found = {}
    for name, table in costs.items():
        total = over_measured(table, total=True)
        if name in _EVERY_STAGE and "selected_tokens" in costs:
            hole = (np.isnan(table) & ~np.isnan(costs["selected_tokens"])).any(axis=1)
            total = np.where(hole, np.nan, total)
        found[name] = total
    for name, (part, whole) in _SHARES.items():
        if part in found and whole in found:
            training = np.where(found[whole] > 0, found[whole], np.nan)
            found[name] = found[part] / training
    return found


def spread_over_stages(current: Float[np.ndarray, "trials T"]) -> Float[np.ndarray, " trials"]:
    """Sample sd of R[t,t] over the stages, points; NaN with one stage, or where a stage was not measured."""
    if current.shape[1] < 2:
        return np.full(len(current), np.nan)
    return current.std(axis=1, ddof=1)


# Whether selectors were compared at equal token counts, and by how much they were not, in words.

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


# Replay that a stage could not give, in words: a table that says "replay 20%" must not hide that it was less.

_MISSED = {
    "replay_missed_tokens": "replayed {total:,.0f} tokens less than its share allows",
    "proxy_items_missed": "left {total:,.0f} proxy items unlearned",
}
"""Cost of a stage (`longgame.selection.interventions.Replay.unmet`) → what it says."""


def missed_notes(tables: Mapping[tuple[str, str], Float[np.ndarray, "trials stages"]], trials: Trials) -> list[str]:
    """A note for each selector and kind of replay that some stage missed by more than one example.

    Args:
        tables: (kind, name) → values by stage, NaN = not measured (`longgame.metrics.tidy.read_stagewise`).
    """
    notes = []
    for name, words in _MISSED.items():
        if ("cost", name) not in tables:
            continue
        for selector, missed in zip(trials.selectors, trials.grid(tables["cost", name]), strict=True):
            measured = missed[~np.isnan(missed)]
            short = int((measured > 0).sum())
            if short:
                said = words.format(total=measured.sum())
                notes.append(
                    f"{selector}: {short} of {len(measured)} stages {said}: their steps hold too few tokens, or there "
                    "is no more to replay. Raise the budget, or offer more candidates a step."
                )
    return notes
