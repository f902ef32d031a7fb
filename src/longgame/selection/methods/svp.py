"""Selection via proxy: any selector of a model's signals, computed by a small scorer model.

Paper: Coleman et al. 2020, arXiv 1906.11829.
Formula: that of the inner selector, with each signal of the model replaced by the scorer model's.
Cost: F, one forward pass of the scorer model; of another inner selector its own cost, under the scorer model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from longgame.data.examples import Pool
from longgame.errors import RecipeError
from longgame.selection.base import Selector, build_selector
from longgame.selection.families import family_of
from longgame.selection.history import History, Selection
from longgame.signals.base import CONTEXT, SCORER, SIGNALS, Signals


class SVPSelector(Selector):
    """The picks of another selector that sees the scorer model's signals for the model's (arXiv 1906.11829).

    Signals that need no model stay as they are. The inner selector sees no history of embeddings and gradients.

    Args:
        inner: name of the other selector, or a mapping with ``name`` and its parameters.

    ``scores``: those of the inner selector.

    Raises:
        RecipeError: the inner selector needs a signal that a scorer model does not give.
    """

    name = "svp"

    def __init__(self, inner: str | Mapping[str, Any] = "loss") -> None:
        try:
            self.inner = build_selector(inner)
        except RecipeError as error:
            raise RecipeError(f"selector 'svp', inner: {error}") from error
        self._names = {name: self._of_scorer(name) for name in self.inner.requires}
        self.requires = tuple(self._names.values())
        self.family = family_of(self.inner)
        self.weighs = self.inner.weighs

    def _of_scorer(self, name: str) -> str:
        plain = "loss" if name == "base_loss" else name  # a scorer model is frozen, and its own base
        if SCORER + plain in SIGNALS:
            return SCORER + plain
        if name in SIGNALS and SIGNALS[name].of_no_model and "log" not in SIGNALS[name].needs:
            return name  # a log is of a training of the model, not of the scorer model
        given = ", ".join(signal.removeprefix(SCORER) for signal in SIGNALS if signal.startswith(SCORER))
        kind = "context vector" if name in CONTEXT else "signal"
        raise RecipeError(
            f"selector 'svp': inner selector '{self.inner.name}' needs the {kind} {name}, which a scorer model does "
            f"not give. Use one that needs of {given}."
        )

    def select(
        self, pool: Pool, signals: Signals, history: History, budget: int, rng: np.random.Generator
    ) -> Selection:
        return self.inner.select(pool, self._renamed(signals), history, budget, rng)

    def _renamed(self, signals: Signals) -> Signals:
        return Signals(signals.ids, {name: signals[other] for name, other in self._names.items()})

    def eligible(self, pool: Pool) -> Bool[np.ndarray, " n"]:
        return self.inner.eligible(pool)

    def begin_stage(self) -> None:
        self.inner.begin_stage()

    def use_budget(self, share: float) -> None:
        self.inner.use_budget(share)

    def remember(self, pool: Pool, signals: Signals, rows: Int[np.ndarray, " k"]) -> None:
        self.inner.remember(pool, self._renamed(signals), rows)

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.inner.load_state_dict(state)
