"""From one value per trial to mean, spread and the paired comparison with the reference selector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import pandas as pd
from jaxtyping import Float

from longgame.metrics.power import minimum_detectable_effect, seeds_needed
from longgame.metrics.stats import Paired, bootstrap_interval, holm, moments, paired
from longgame.metrics.tidy import Trials
from longgame.seeding import generator

ALPHA = 0.05
"""Level of the tests after Holm, on which marks, verdicts and what they could have shown rest."""

Key = TypeVar("Key", bound=tuple[object, ...])


def summarise(
    values: Mapping[Key, Float[np.ndarray, " trials"]],
    trials: Trials,
    reference: str,
    names: tuple[str, ...],
    *,
    bootstrap: int = 0,
) -> pd.DataFrame:
    """One row per key × selector: what the selector reached over its seeds, and how it differs from the reference.

    Args:
        values: per key (view, metric …), one value per trial.
        trials: who they belong to.
        reference: every other selector is compared with this one, paired by seed; if no trial has it, the comparison
            columns are NaN.
        names: column names of the key's parts.
        bootstrap: resamples of the seed bootstrap; 0 leaves its two columns out.

    Returns:
        selector, the key's columns, mean, sd (n − 1), n (seeds), diff_vs_reference, diff_n (pairs), ci_low, ci_high
        (95 % Student t), p (paired t), p_permutation (exact sign flip), p_holm (p adjusted over selectors, per key),
        mde (smallest true difference that diff_n seeds show with 80 % power whatever the other selectors show: at
        Holm's hardest level, 5 % / the key's tests), seeds_needed (by a true difference as large as the one seen, at
        the same level and power); with ``bootstrap``, boot_low and boot_high (95 %).
    """
    keys = list(values)
    table = np.stack([trials.grid(values[key]) for key in keys])  # (keys, selectors, seeds)
    n, mean, sd = moments(table)
    shape = n.shape
    base = np.full((shape[0], 1, table.shape[2]), np.nan)
    if reference in trials.selectors:
        row = trials.selectors.index(reference)
        base = table[:, row : row + 1].copy()
    against = np.broadcast_to(base, table.shape).copy()
    if reference in trials.selectors:
        against[:, row] = np.nan  # the reference is not compared with itself
    pair = paired(table, against)
    columns: dict[str, np.ndarray] = {"selector": np.tile(np.asarray(trials.selectors, dtype=object), shape[0])}
    for position, name in enumerate(names):
        columns[name] = np.repeat(np.asarray([key[position] for key in keys], dtype=object), shape[1])
    numbers = {
        "mean": mean,
        "sd": sd,
        "n": n,
        "diff_vs_reference": pair.mean,
        "diff_n": pair.n,
        "ci_low": pair.ci_low,
        "ci_high": pair.ci_high,
        "p": pair.p,
        "p_permutation": pair.p_permutation,
        "p_holm": holm(pair.p),
    } | _planning(pair)
    if bootstrap:
        with np.errstate(invalid="ignore"):  # ∞ − ∞: a censored value stays one, see `paired`
            difference = np.where(np.isinf(table) | np.isinf(against), np.inf, table - against)
        low, high = bootstrap_interval(difference, bootstrap, generator(0, "seed bootstrap"))
        numbers |= {"boot_low": low, "boot_high": high}
    return pd.DataFrame(columns | {name: value.reshape(-1) for name, value in numbers.items()})


def _planning(pair: Paired) -> dict[str, np.ndarray]:
    """``mde`` and ``seeds_needed`` (keys × selectors), each key at its own family's level."""
    sd = np.where(np.isnan(pair.ci_low), np.nan, pair.sd)  # equal differences have no spread to plan with
    tests = (~np.isnan(pair.p)).sum(axis=-1)
    mde, needed = np.full(sd.shape, np.nan), np.full(sd.shape, np.nan)
    for family in np.unique(tests[tests > 0]):
        rows = tests == family
        level = ALPHA / int(family)
        mde[rows] = minimum_detectable_effect(sd[rows], pair.n[rows], level)
        needed[rows] = seeds_needed(pair.mean[rows], sd[rows], level)
    return {"mde": mde, "seeds_needed": needed}


def long_form(
    values: Mapping[Key, Float[np.ndarray, " trials"]], trials: Trials, names: tuple[str, ...]
) -> pd.DataFrame:
    """One row per key × trial: trial, selector, seed, the key's columns, value."""
    keys = list(values)
    who = trials.frame()
    columns = {name: np.tile(who[name].to_numpy(), len(keys)) for name in ("trial", "selector", "seed")}
    for position, name in enumerate(names):
        columns[name] = np.repeat(np.asarray([key[position] for key in keys], dtype=object), len(who))
    value = np.concatenate([values[key] for key in keys]) if keys else np.empty(0)
    return pd.DataFrame(columns | {"value": value})
