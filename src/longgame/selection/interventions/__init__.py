"""What the paper recommends around any selector (§6): replay mixture, coverage constraint, future-proxy penalty.

Each wraps a selector and keeps the same contract: the token budget, the log of every term, the state.
"""

from longgame.recipe import SelectorSpec
from longgame.selection.base import Selector, build_selector
from longgame.selection.interventions.choices import REPLAY_CHOICES, ReplayChoice, build_choice
from longgame.selection.interventions.constraints import ClusterFloor, ProxyPenalty
from longgame.selection.interventions.replay import Replay

__all__ = [
    "REPLAY_CHOICES",
    "ClusterFloor",
    "ProxyPenalty",
    "Replay",
    "ReplayChoice",
    "build_choice",
    "selector_of",
]


def selector_of(spec: SelectorSpec) -> Selector:
    """Make the selector of a recipe's entry, with the interventions around it.

    The penalty is innermost (it changes the order), then the coverage constraint (it limits where that order counts),
    then replay (it takes its share before the selector chooses).

    Raises:
        RecipeError, PluginError: as `build_selector` and the interventions.
    """
    selector = build_selector(spec.name, spec.parameters)
    if spec.proxy_penalty:
        selector = ProxyPenalty(selector, spec.proxy_penalty)
    if spec.min_cluster_share:
        selector = ClusterFloor(selector, spec.min_cluster_share)
    if spec.replay is not None or spec.proxy_as_data:
        if spec.replay is None:
            return Replay(selector, proxy_as_data=spec.proxy_as_data)
        choice = build_choice(spec.replay.choice.name, spec.replay.choice.parameters)
        selector = Replay(selector, spec.replay.share, spec.replay.source, spec.proxy_as_data, choice)
    return selector
