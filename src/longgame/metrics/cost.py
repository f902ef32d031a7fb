"""What selection cost beside training: totals over a trial's stages, and shares."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from longgame.metrics.tidy import over_measured

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
