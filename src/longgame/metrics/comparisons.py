"""What an intervention around a selector buys: the selector with it minus the same selector without it, by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from longgame.errors import DataError
from longgame.metrics.catalog import shown_in
from longgame.metrics.diagnostics import association_table
from longgame.metrics.scorecard import IMMEDIATE, Scorecard, summarize
from longgame.metrics.stats import holm, paired
from longgame.metrics.tidy import read_trials
from longgame.metrics.verdict import verdict_table
from longgame.recipe import Recipe

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
    """Paired differences, with − without, of the metrics shown in "interventions" in every view.

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
        for metric in shown_in("interventions"):
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


# Several conditions side by side: a scorecard each, and means over task orders with the seed as the replication.


@dataclass(frozen=True)
class Across:
    """Tables over all conditions of a run (build with `Across.build`).

    Every condition is compared for itself: selectors are paired by seed within it, and Holm's family is its selectors.
    """

    cards: Mapping[str, Scorecard]
    """Condition → scorecard; the recipe's own condition comes first and is called ""."""
    orders: Mapping[str, tuple[str, ...]]
    """Mean over orders (``order=*``, ``budget=0.1,order=*``) → the conditions that it averages."""
    summary: pd.DataFrame
    """condition and the columns of `Scorecard.summary`; the means over orders stand as conditions of their own."""
    verdicts: pd.DataFrame
    """condition and the columns of `Scorecard.verdicts`."""
    association: pd.DataFrame
    """The columns of `Scorecard.association`, over the trials of all conditions together: the seeds are the
    replications still, and what is taken off for `within` is the mean of a seed's trials of one condition."""

    @classmethod
    def build(
        cls, cards: Mapping[str, Scorecard], orders: Mapping[str, Sequence[str]], *, bootstrap: int = 0
    ) -> Across:
        """Put scorecards side by side and average over orders.

        Args:
            cards: one per condition.
            orders: name of a mean → the conditions that differ in nothing but the order of the stages.
            bootstrap: resamples of the seed bootstrap, as the cards were made with.

        Raises:
            DataError: no card, or a mean of conditions that have none.
        """
        if not cards:
            raise DataError("there is no condition to tell of; finish at least one trial first.")
        lacking = sorted({name for group in orders.values() for name in group} - set(cards))
        if lacking:
            raise DataError(f"the mean over orders needs the conditions {', '.join(lacking)}, which have no scorecard.")
        summaries = [card.summary.assign(condition=name) for name, card in cards.items()]
        verdicts = [card.verdicts.assign(condition=name) for name, card in cards.items()]
        for name, group in orders.items():
            summary, verdict = _over_orders([cards[each] for each in group], bootstrap)
            summaries.append(summary.assign(condition=name))
            verdicts.append(verdict.assign(condition=name))
        trials = pd.concat([card.per_trial.assign(condition=name) for name, card in cards.items()], ignore_index=True)
        views = list(dict.fromkeys(view for card in cards.values() for view in card.views))
        return cls(
            dict(cards),
            {name: tuple(group) for name, group in orders.items()},
            _first(pd.concat(summaries, ignore_index=True), "condition"),
            _first(pd.concat(verdicts, ignore_index=True), "condition"),
            association_table(trials, views),
        )


def _over_orders(cards: Sequence[Scorecard], bootstrap: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Summary and verdicts of the mean over orders.

    Orders are nested in a seed: they start from the same base model and hold the same pools. So each selector's value
    of a seed is its mean over the orders first, and seeds, not orders, are what intervals and tests count. A seed in
    which one of the orders was not measured has no mean.
    """
    long = pd.concat([card.per_trial for card in cards], ignore_index=True)
    key = ["view", "metric", "selector", "seed"]
    value = long.groupby(key, sort=False)["value"].agg(lambda column: _mean(column.to_numpy(), len(cards)))
    who = long[["selector", "seed"]].drop_duplicates()
    trials = read_trials(who.assign(trial=who["selector"] + "-s" + who["seed"].astype(str)), cards[0].reference)
    rows = pd.MultiIndex.from_frame(trials.frame()[["selector", "seed"]])
    values = {
        (str(view), str(metric)): part.droplevel(["view", "metric"]).reindex(rows).to_numpy(np.float64)
        for (view, metric), part in value.groupby(["view", "metric"], sort=False)
    }
    summary = summarize(values, trials, cards[0].reference, ("view", "metric"), bootstrap=bootstrap)
    views = tuple(cards[0].views)
    return summary, verdict_table(summary, views, trials.selectors, cards[0].reference, IMMEDIATE)


def _mean(values: np.ndarray, orders: int) -> float:
    return float(values.mean()) if len(values) == orders else float("nan")


def _first(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    return frame[[name, *(column for column in frame.columns if column != name)]]
