"""LHAS whose future and concentration weights follow the measured task geometry.

Paper: arXiv 2605.30537, §5.1 ("Task order").
Formula: that of lhas with η and ρ scaled by 1 − A, A the cosine of the stage's mean gradient with the proxy's.
Cost: B, as lhas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from longgame.data.examples import Pool
from longgame.errors import RecipeError
from longgame.selection.history import History, Selection
from longgame.selection.methods.lhas import LHASSelector, stage_alignment
from longgame.selection.methods.utility_diversity import Utility
from longgame.signals.base import Signals


class AdaptiveLHASSelector(LHASSelector):
    """LHAS with η = future_weight·(1 − A) and ρ = concentration_weight·(1 − A), A the alignment of stage and proxy.

    A is the cosine of the candidates' mean gradient sketch g with the future proxy's f, averaged exponentially over the
    rounds of a stage; each stage starts from its own first round.

    Why 1 − A: let ĝ, f̂ be the unit vectors. A step along utility alone lowers the proxy loss at first order by
    ⟨ĝ, f̂⟩ = A per unit length (Prop. 1, small steps); a step along ĝ + w·f̂, by A + w. The weight at which every stage
    makes the progress that a fully aligned one makes by itself, A + w = 1, is w = 1 − A: 0 if the two agree (utility
    alone is then right), 1 if they are orthogonal (the universal weights of `LHASSelector`), 2 if they are opposed.
    Repeating the stage's direction moves the proxy loss by the same A, so ρ is scaled alike. Noise in g draws A towards
    0, that is, towards the universal weights.

    Args:
        smoothing: share of the earlier rounds' alignment in A, in [0, 1); 0 uses each round alone.
        future_weight, concentration_weight: η and ρ at A = 0.
        others: those of `LHASSelector`, without its terms beyond eq. 5.

    ``scores``: those of `LHASSelector`, and, equal for all candidates of a round, ``alignment`` (A),
    ``future_weight`` (η) and ``concentration_weight`` (ρ) as used.

    Raises:
        RecipeError: as `LHASSelector`; or both weights are 0.
    """

    name = "lhas-adaptive"

    def __init__(
        self,
        utility: Utility = "logit_nuclear_norm",
        diversity_weight: float = 1.0,
        buffer_size: int = 1024,
        coverage: Literal["distance", "cluster"] = "distance",
        utility_weight: float = 1.0,
        coverage_weight: float = 1.0,
        future_weight: float = 1.0,
        concentration_weight: float = 1.0,
        normalise: Literal["rank", "z"] = "rank",
        refreshes: int = 32,
        clusters: int | None = None,
        positions: Literal["all", "response"] = "all",
        alignment: Literal["adam", "exact", "sketch"] = "adam",
        concentration_history: Literal["earlier-stages", "all"] = "earlier-stages",
        smoothing: float = 0.8,
    ) -> None:
        super().__init__(
            utility=utility,
            diversity_weight=diversity_weight,
            buffer_size=buffer_size,
            coverage=coverage,
            utility_weight=utility_weight,
            coverage_weight=coverage_weight,
            future_weight=future_weight,
            concentration_weight=concentration_weight,
            normalise=normalise,
            refreshes=refreshes,
            clusters=clusters,
            positions=positions,
            alignment=alignment,
            concentration_history=concentration_history,
        )
        number = isinstance(smoothing, int | float) and not isinstance(smoothing, bool)
        if not number or not 0 <= smoothing < 1:
            raise RecipeError(f"selector '{self.name}': smoothing is {smoothing!r}; give a number in [0, 1).")
        if not (self.future_weight or self.concentration_weight):
            raise RecipeError(
                f"selector '{self.name}': future_weight and concentration_weight are both 0, so there is nothing to "
                "adapt; set one of them, or use lhas."
            )
        self.smoothing = float(smoothing)
        self.requires = tuple(dict.fromkeys((*self.requires, "grad_sketch", "future_proxy")))
        self.alignment = math.nan
        """A as of the last round; NaN before the first one of a stage."""

    def begin_stage(self) -> None:
        super().begin_stage()
        self.alignment = math.nan

    def select(
        self, pool: Pool, signals: Signals, history: History, budget: int, rng: np.random.Generator
    ) -> Selection:
        selection = super().select(pool, signals, history, budget, rng)
        future_weight, concentration_weight = self._scaled_weights()
        values = {
            "alignment": self.alignment,
            "future_weight": future_weight,
            "concentration_weight": concentration_weight,
        }
        columns = {name: np.full(len(pool), value) for name, value in values.items()}
        return Selection.of(pool, selection.rows, {**selection.scores, **columns})

    def _weights(self, signals: Signals) -> tuple[float, float]:
        if "alignment" not in self._measured:
            alignment = stage_alignment(signals, self.name, "use lhas with future_weight 0")
            if not math.isnan(self.alignment):
                alignment = self.smoothing * self.alignment + (1 - self.smoothing) * alignment
            self._measured["alignment"] = alignment
        self.alignment = self._measured["alignment"]
        return self._scaled_weights()

    def _scaled_weights(self) -> tuple[float, float]:
        factor = 1.0 - self.alignment
        return self.future_weight * factor, self.concentration_weight * factor

    def state_dict(self) -> dict[str, Any]:
        """Return the state of `LHASSelector` and the alignment (None before a stage's first round)."""
        return {**super().state_dict(), "alignment": None if math.isnan(self.alignment) else self.alignment}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.alignment = math.nan if state["alignment"] is None else float(state["alignment"])
