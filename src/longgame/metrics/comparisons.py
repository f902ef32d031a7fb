"""Comparisons beyond the reference: a selector with and without its interventions; several conditions of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from longgame.errors import DataError
from longgame.metrics.catalog import shown_in
from longgame.metrics.diagnostics import association_table
from longgame.metrics.scorecard import IMMEDIATE, Scorecard, summarize
from longgame.metrics.stats import holm, paired
from longgame.metrics.tidy import read_trials
from longgame.metrics.verdict import verdict_table, with_amounts
from longgame.recipe import EquivalenceSpec, HolmFamily, Recipe


def bare_selectors(recipe: Recipe) -> dict[str, str]:
    """Label of each selector with interventions → label of the same selector, same parameters, without any.

    Selectors whose bare form is not in the recipe are left out.
    """
    bare = [spec for spec in recipe.selectors if not spec.interventions]
    pairs = {}
    for spec in recipe.selectors:
        same = [other.key for other in bare if (other.name, other.parameters) == (spec.name, spec.parameters)]
        if spec.interventions and same:
            pairs[spec.key] = same[0]
    return pairs


def intervention_table(card: Scorecard, recipe: Recipe) -> pd.DataFrame:
    """Paired differences, with − without interventions, of the metrics that the catalog shows in "interventions".

    Args:
        card: scorecard of one condition of the recipe.

    Returns:
        view, selector, bare, intervention (in the words of tables), metric, n (units that both have), mean, ci_low,
        ci_high (95 % Student t), p (paired t), p_permutation (exact sign flip), p_holm (over the interventions of a
        view and metric). Rows only where both selectors have trials and a trial measured the metric.
    """
    selectors = card.trials.selectors
    pairs = [(name, bare) for name, bare in bare_selectors(recipe).items() if name in selectors and bare in selectors]
    labels = {spec.key: " + ".join(spec.interventions) for spec in recipe.selectors}
    with_, without = ([selectors.index(pair[side]) for pair in pairs] for side in (0, 1))
    rows = []
    for view, measured in card.views.items() if pairs else ():
        for metric in shown_in("interventions"):
            table = card.trials.grid(measured.metrics[metric])
            if np.isnan(table).all():
                continue
            pair = paired(table[with_], table[without], unit_of=card.trials.unit_of)
            numbers = (pair.n, pair.mean, pair.ci_low, pair.ci_high, pair.p, pair.p_permutation, holm(pair.p))
            rows += [
                (view, name, bare, labels[name], metric, *(column[place] for column in numbers))
                for place, (name, bare) in enumerate(pairs)
            ]
    columns = ["n", "mean", "ci_low", "ci_high", "p", "p_permutation", "p_holm"]
    return pd.DataFrame(rows, columns=["view", "selector", "bare", "intervention", "metric", *columns])


@dataclass(frozen=True)
class Across:
    """Tables over all conditions of a run (build with `Across.build`).

    Selectors are compared within a condition, paired by seed. Marks are corrected over the selectors of a condition
    (``p_holm``), verdicts over selectors × conditions unless the recipe says otherwise, because they say in which
    of the conditions something is shown.
    """

    cards: Mapping[str, Scorecard]
    """Condition → scorecard; the recipe's own condition is first and named ""."""
    orders: Mapping[str, tuple[str, ...]]
    """Mean over orders (``order=*``, ``budget=0.1,order=*``) → the conditions it averages."""
    summary: pd.DataFrame
    """condition and the columns of `Scorecard.summary`; each mean over orders is a condition, too."""
    verdicts: pd.DataFrame
    """condition and the columns of `Scorecard.verdicts`, with Holm over the family that ``holm`` names."""
    association: pd.DataFrame
    """The columns of `Scorecard.association`, over the trials of all conditions; seeds are still the replications, and
    the mean of each seed and condition is taken off."""

    @classmethod
    def build(
        cls,
        cards: Mapping[str, Scorecard],
        orders: Mapping[str, Sequence[str]],
        *,
        bootstrap: int = 0,
        margins: EquivalenceSpec | None = None,
        holm: HolmFamily = "selectors-conditions",
    ) -> Across:
        """Join the scorecards of several conditions, and average over orders.

        Args:
            cards: one per condition.
            orders: name of a mean → the conditions that differ only in the order of the stages.
            bootstrap: resamples of the seed bootstrap, the same as for the cards.
            margins: within which differences count as equivalent.
            holm: what verdicts are corrected over (`longgame.metrics.verdict.Comparisons`).

        Raises:
            DataError: no card, or a mean of conditions that have none.
        """
        if not cards:
            raise DataError("there is no scorecard; finish at least one trial first.")
        lacking = sorted({name for group in orders.values() for name in group} - set(cards))
        if lacking:
            raise DataError(f"the mean over orders needs the conditions {', '.join(lacking)}, which have no scorecard.")
        summaries = [card.summary.assign(condition=name) for name, card in cards.items()]
        for name, group in orders.items():
            summaries.append(_over_orders([cards[condition] for condition in group], bootstrap).assign(condition=name))
        summary = _first(pd.concat(summaries, ignore_index=True), "condition")
        unequal = {(name, selector): text for name, card in cards.items() for selector, text in card.unequal.items()}
        trials = pd.concat([card.per_trial.assign(condition=name) for name, card in cards.items()], ignore_index=True)
        views = list(dict.fromkeys(view for card in cards.values() for view in card.views))
        first = next(iter(cards.values()))
        return cls(
            dict(cards),
            {name: tuple(group) for name, group in orders.items()},
            summary,
            with_amounts(
                verdict_table(summary, views, first.reference, IMMEDIATE, margins, first.trials, holm), unequal
            ),
            association_table(trials, views, units=_units(cards.values())),
        )


def _units(cards: Iterable[Scorecard]) -> dict[int, int] | None:
    """Seed → its base model's number where base models repeat; None where every seed is a replication."""
    bases = {seed: base for card in cards for seed, base in zip(card.trials.seeds, card.trials.bases, strict=False)}
    if not 1 < len(set(bases.values())) < len(bases):
        return None
    numbers = {base: place for place, base in enumerate(dict.fromkeys(bases.values()))}
    return {seed: numbers[base] for seed, base in bases.items()}


def _over_orders(cards: Sequence[Scorecard], bootstrap: int) -> pd.DataFrame:
    """Summary of the mean over orders.

    Orders are nested in a seed: they share base model and pools. So a selector's value of a seed is its mean over the
    orders, and intervals and tests count seeds, not orders. A seed without a measurement in one order has no mean.
    """
    long = pd.concat([card.per_trial for card in cards], ignore_index=True)
    groups = long.groupby(["view", "metric", "selector", "seed"], sort=False)["value"]
    value = groups.agg(lambda column: float(column.to_numpy().mean()) if len(column) == len(cards) else float("nan"))
    keys = long[["selector", "seed"]].drop_duplicates()
    bases = {seed: base for card in cards for seed, base in zip(card.trials.seeds, card.trials.bases, strict=False)}
    names = keys["selector"] + "-s" + keys["seed"].astype(str)
    trials = read_trials(keys.assign(trial=names), cards[0].reference, bases)
    rows = pd.MultiIndex.from_frame(trials.frame()[["selector", "seed"]])
    values = {
        (str(view), str(metric)): part.droplevel(["view", "metric"]).reindex(rows).to_numpy(np.float64)
        for (view, metric), part in value.groupby(["view", "metric"], sort=False)
    }
    return summarize(values, trials, cards[0].reference, ("view", "metric"), bootstrap=bootstrap)


def _first(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    return frame[[name, *(column for column in frame.columns if column != name)]]
