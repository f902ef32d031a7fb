"""Utility-diversity selection (UDS): high utility, and unlike what was selected lately.

Paper: Zou et al. 2025, arXiv 2510.16882; arXiv 2605.30537, §4 ("Utility-diversity").
Formula: z(nuclear norm of the logits) + α · z(mean distance of the logit sketch to the latest picks), highest first.
Cost: F, one forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from longgame.data.examples import Pool
from longgame.selection.algorithms.directions import SketchBuffer
from longgame.selection.base import Selector
from longgame.selection.budget import NORMALISE, choice, count, id_order, scale, weight
from longgame.selection.history import History
from longgame.signals.base import Signals

UTILITIES: tuple[str, ...] = ("logit_nuclear_norm", "loss", "excess_loss", "reducible_loss")
SUBTRACTED = {"excess_loss": "base_loss", "reducible_loss": "reference_loss"}
"""Utility that is a difference of losses → the signal that ``loss`` is reduced by."""
Utility = Literal["logit_nuclear_norm", "loss", "excess_loss", "reducible_loss"]
POSITIONS: tuple[str, ...] = ("all", "response")


class UtilityDiversitySelector(Selector):
    """score = z(utility) + diversity_weight · z(mean distance of the logit sketch to the buffer), highest first.

    The buffer holds the sketches of the last ``buffer_size`` selected examples and is part of the state. While it is
    empty (the very first round), diversity is exactly zero for every candidate. The buffer is read once per round, as
    published: picks of one round do not push each other apart.

    Args:
        utility: ``logit_nuclear_norm`` is the published form; ``loss`` uses the mean NLL instead. ``excess_loss``:
            minus that of the frozen base, high where the model got worse than it was. ``reducible_loss``: minus that of
            a reference model which has learned the target set, high where that helps and the model has not learned it
            (RHO).
        diversity_weight: α; 0 switches the term and its signal off.
        buffer_size: sketches remembered (published: 1024).
        normalise: how z(·) puts both terms on one scale, over the candidates of the round: ``rank`` or ``z``.
        positions: whose logits are read: ``all`` (prompt and response, the published form) or ``response``.

    ``scores``: ``utility`` and ``diversity`` as scaled, before the weight (NaN if switched off), and ``score``.
    """

    name = "utility-diversity"
    family = "mixed"
    requires: tuple[str, ...] = ("logit_nuclear_norm", "logit_sketch")

    def __init__(
        self,
        utility: Utility = "logit_nuclear_norm",
        diversity_weight: float = 1.0,
        buffer_size: int = 1024,
        normalise: Literal["rank", "z"] = "rank",
        positions: Literal["all", "response"] = "all",
    ) -> None:
        prefix = "response_" if choice(self.name, "positions", positions, POSITIONS) == "response" else ""
        self.utility = choice(self.name, "utility", utility, UTILITIES)
        if self.utility == "logit_nuclear_norm":
            self.utility = prefix + self.utility
        read = ("loss", SUBTRACTED[self.utility]) if self.utility in SUBTRACTED else (self.utility,)
        self.sketch = f"{prefix}logit_sketch"
        self.diversity_weight = weight(self.name, "diversity_weight", diversity_weight)
        self.normalise = choice(self.name, "normalise", normalise, NORMALISE)
        self.buffer = SketchBuffer(count(self.name, "buffer_size", buffer_size))
        self.requires = (*read, self.sketch) if self.diversity_weight else read

    def terms(self, signals: Signals) -> dict[str, Float[np.ndarray, " n"]]:
        """Return ``utility``, ``diversity`` and ``score``; rows of ``signals`` must be in the order of their ids."""
        utility = scale(self._utility(signals), self.normalise)
        if not self.diversity_weight:
            return {"utility": utility, "diversity": np.full(len(utility), np.nan), "score": utility}
        diversity = scale(self.buffer.mean_distance(signals[self.sketch]), self.normalise)
        return {"utility": utility, "diversity": diversity, "score": utility + self.diversity_weight * diversity}

    def _utility(self, signals: Signals) -> Float[np.ndarray, " n"]:
        if self.utility not in SUBTRACTED:
            return signals[self.utility]
        return signals["loss"].astype(np.float64) - signals[SUBTRACTED[self.utility]]

    def remember(self, pool: Pool, signals: Signals, rows: np.ndarray) -> None:  # noqa: ARG002
        """Put the sketches of these rows into the buffer, in this order."""
        if self.diversity_weight:
            self.buffer.push(signals[self.sketch][rows])

    def score(self, pool: Pool, signals: Signals, history: History) -> dict[str, Float[np.ndarray, " n"]]:  # noqa: ARG002
        by_id = id_order(pool.ids)
        place = np.argsort(by_id)
        return {name: column[place] for name, column in self.terms(signals.take(by_id)).items()}

    def state_dict(self) -> dict[str, Any]:
        return {"buffer": self.buffer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.buffer.load_state_dict(state["buffer"])
