"""What the paper recommends around any selector (§6): replay mixture, coverage constraint, future-proxy penalty.

Each is a selector around a selector, and keeps the same contract: the token budget, the log of every term, the state.
"""

from longgame.selection.interventions.base import Intervention
from longgame.selection.interventions.build import selector_of
from longgame.selection.interventions.penalties import ClusterFloor, ProxyPenalty
from longgame.selection.interventions.replay import Replay, Reserve

__all__ = ["ClusterFloor", "Intervention", "ProxyPenalty", "Replay", "Reserve", "selector_of"]
