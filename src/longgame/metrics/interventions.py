"""What an intervention around a selector buys: the selector with it minus the same selector without it, by seed."""

from __future__ import annotations

import numpy as np
import pandas as pd

from longgame.metrics.scorecard import Scorecard
from longgame.metrics.stats import holm, paired
from longgame.recipe import Recipe

SCORES = ("current", "forgetting", "long_horizon", "ood")
_COLUMNS = ["view", "selector", "bare", "intervention", "metric"]
_COLUMNS += ["n", "mean", "ci_low", "ci_high", "p", "p_permutation", "p_holm"]


def bare_selectors(recipe: Recipe) -> dict[str, str]:
    """Label of each selector with interventions → label of the same selector, same parameters, without any.

    Left out where the recipe has no such bare selector.
    """
    bare = [spec for spec in recipe.selectors if not spec.interventions]
    found = {}
    for spec in recipe.selectors:
        same = [each.key for each in bare if (each.name, each.parameters) == (spec.name, spec.parameters)]
        if spec.interventions and same:
            found[spec.key] = same[0]
    return found


def intervention_table(card: Scorecard, recipe: Recipe) -> pd.DataFrame:
    """Paired differences, with − without, of `SCORES` in every view.

    Args:
        card: scorecard of one condition of the recipe.

    Returns:
        view, selector, bare, intervention (in the words of tables), metric, n (seeds that both have), mean, ci_low,
        ci_high (95 % Student t), p (paired t), p_permutation (exact sign flip), p_holm (over the interventions of a
        view and metric). Rows only where both selectors have trials; a score that nobody measured has none.
    """
    names = card.trials.selectors
    pairs = [(one, bare) for one, bare in bare_selectors(recipe).items() if one in names and bare in names]
    if not pairs:
        return pd.DataFrame(columns=_COLUMNS)
    words = {spec.key: " + ".join(spec.interventions) for spec in recipe.selectors}
    with_, without = ([names.index(pair[side]) for pair in pairs] for side in (0, 1))
    rows = []
    for view, measured in card.views.items():
        for metric in SCORES:
            table = card.trials.grid(measured.metrics[metric])
            if np.isnan(table).all():
                continue
            found = paired(table[with_], table[without])
            numbers = (found.n, found.mean, found.ci_low, found.ci_high, found.p, found.p_permutation, holm(found.p))
            rows += [
                (view, one, bare, words[one], metric, *(column[place] for column in numbers))
                for place, (one, bare) in enumerate(pairs)
            ]
    return pd.DataFrame(rows, columns=_COLUMNS)
