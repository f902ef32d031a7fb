"""From a recipe's entry to the selector it describes."""

from __future__ import annotations

from longgame.recipe import SelectorSpec
from longgame.selection.base import Selector, build_selector
from longgame.selection.interventions.penalties import ClusterFloor, ProxyPenalty
from longgame.selection.interventions.replay import Replay


def selector_of(spec: SelectorSpec) -> Selector:
    """Make the selector of a recipe's entry, with the interventions around it.

    The penalty stands innermost (it changes the order), then the coverage constraint (it says where that order
    counts), then replay (it takes its share before the selector is asked).

    Raises:
        RecipeError, PluginError: as `build_selector` and the interventions.
    """
    selector = build_selector(spec.name, spec.parameters)
    if spec.proxy_penalty:
        selector = ProxyPenalty(selector, spec.proxy_penalty)
    if spec.min_cluster_share:
        selector = ClusterFloor(selector, spec.min_cluster_share)
    if spec.replay is not None or spec.proxy_as_data:
        share, source = (spec.replay.share, spec.replay.source) if spec.replay is not None else (0.0, "pools")
        selector = Replay(selector, share, source, spec.proxy_as_data)
    return selector
