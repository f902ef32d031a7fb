"""What the paper recommends around any selector (§6): replay mixture, coverage constraint, future-proxy penalty.

Each is a selector around a selector, and keeps the same contract: the token budget, the log of every term, the state.
"""

from longgame.selectors.interventions.base import Intervention
from longgame.selectors.interventions.build import selector_of
from longgame.selectors.interventions.cluster_floor import ClusterFloor
from longgame.selectors.interventions.proxy_penalty import ProxyPenalty
from longgame.selectors.interventions.replay import Replay, Reserve

__all__ = ["ClusterFloor", "Intervention", "ProxyPenalty", "Replay", "Reserve", "selector_of"]
