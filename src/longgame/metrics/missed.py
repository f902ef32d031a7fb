"""Replay that a stage could not give, in words: a table that says "replay 20%" must not hide that it was less."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from longgame.metrics.tidy import Trials

_MISSED = {
    "replay_missed_tokens": "replayed {total:,.0f} tokens less than its share allows",
    "proxy_items_missed": "left {total:,.0f} proxy items unlearned",
}
"""Cost of a stage (`longgame.selectors.interventions.Replay.unmet`) → what it says."""


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
