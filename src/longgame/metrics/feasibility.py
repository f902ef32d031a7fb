"""Feasibility of a selector: how much work it is to run, and where it can be used (survey arXiv 2406.14115).

The survey ranks methods by two penalties, and by the sum of the two ranks (FORMULAS; equal values share a rank):

* simplicity penalty = 2 · LLMs trained to build the selector + steps + (1 if not reproducible);
* flexibility penalty = 3 · not model-free + 2 · not dataset-free + 1 · not GPT-free.

`published` holds the survey's own methods with these indicators, and their PIR and SDF. The survey puts ratios of win
rates, of scores on the same benchmarks and on others onto one scale by linear maps, so its PIRs are win-rate ratios
(on benchmarks like ours it maps 0.985 → 1.344 and 1.000 → 1.426). A PIR of an audit is a plain ratio of scores: it
stands beside the published ones, not on their scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from longgame.errors import DataError
from longgame.recipe import SelectorSpec
from longgame.selectors.base import SCORES, build_selector
from longgame.selectors.interventions import selector_of
from longgame.signals.base import CONTEXT, SIGNALS

MANY_LLMS, _MANY_LLMS_PENALTY = 100, 200.0
"""With more trained LLMs than this the survey puts the whole simplicity penalty at 200."""


@dataclass(frozen=True, slots=True)
class Feasibility:
    """What the survey asks of a method."""

    trained_llms: float
    """LLMs trained to build the selector (not the model that is fine-tuned on what it selects)."""
    steps: int
    """Steps of a selection from the candidates to the picks."""
    reproducible: bool
    """Whether its code is open."""
    model_free: bool
    """Whether it selects the same for another model."""
    dataset_free: bool
    """Whether other candidates can be selected from without training the selector anew."""
    gpt_free: bool
    """Whether it needs no proprietary model."""
    llm_weight: float = 2.0
    """Penalty of one trained LLM; the survey counts Superfiltering's small one at 1.5."""

    @property
    def simplicity_penalty(self) -> float:
        """``llm_weight`` · trained LLMs + steps + (1 if not reproducible); 200 beyond `MANY_LLMS`."""
        if self.trained_llms > MANY_LLMS:
            return _MANY_LLMS_PENALTY
        return self.llm_weight * self.trained_llms + self.steps + (not self.reproducible)

    @property
    def flexibility_penalty(self) -> float:
        """3 · not model-free + 2 · not dataset-free + 1 · not GPT-free."""
        return 3.0 * (not self.model_free) + 2.0 * (not self.dataset_free) + 1.0 * (not self.gpt_free)


def dense_rank(penalties: Float[np.ndarray, " k"]) -> Int[np.ndarray, " k"]:
    """1 for the smallest penalty, 2 for the next larger one …; equal penalties share a rank.

    Raises:
        DataError: a penalty is NaN.
    """
    penalties = np.asarray(penalties, dtype=float)
    if np.isnan(penalties).any():
        raise DataError("a penalty is NaN; rank only methods whose indicators are known.")
    return np.unique(penalties, return_inverse=True)[1].astype(np.int64) + 1


def feasibility_ranks(methods: Sequence[Feasibility]) -> pd.DataFrame:
    """simplicity, flexibility and feasibility rank of each method among these; feasibility ranks the sum of the two."""
    simplicity = dense_rank(np.array([each.simplicity_penalty for each in methods]))
    flexibility = dense_rank(np.array([each.flexibility_penalty for each in methods]))
    return pd.DataFrame(
        {"simplicity": simplicity, "flexibility": flexibility, "feasibility": dense_rank(simplicity + flexibility)}
    )


def feasibility_of(spec: SelectorSpec) -> Feasibility | None:
    """The indicators of a recipe's selector; None where only its author knows them (a plug-in, a file of scores).

    No selector of this package trains a model or asks a proprietary one. Counted as a step each: a pass of the model
    over the candidates (frozen, forward, backward: whichever its signals need), a column or rules that it reads, the
    future proxy's gradient, the choice itself, and every intervention around it. It is model-free if no
    model computes any of its signals.

    Raises:
        RecipeError, PluginError: as `longgame.selectors.interventions.selector_of`.
    """
    if spec.name.startswith(SCORES) or ".py:" in spec.name:  # not read: a finished run is told where the file is not
        return None
    selector = build_selector(spec.name, spec.parameters)
    if not type(selector).__module__.startswith("longgame.selectors."):
        return None
    kinds = {_pass_of(name) for name in selector.requires}
    every = {_pass_of(name) for name in selector_of(spec).requires}
    return Feasibility(
        trained_llms=0,
        steps=1 + len(kinds) + len(spec.interventions),
        reproducible=True,
        model_free=every <= {"column"},
        dataset_free=True,
        gpt_free=True,
    )


def _pass_of(signal: str) -> str:
    """Which work a signal comes from: ``column``, ``frozen``, ``forward``, ``backward`` or ``proxy``."""
    if signal in CONTEXT:
        return "proxy"
    if signal == "quality":
        return "column"
    cost = SIGNALS[signal].cost
    return "frozen" if cost == "none" else cost


@cache
def published() -> pd.DataFrame:
    """The survey's methods: method, sdf (rows), pir (win-rate scale), the indicators, and the source of each row."""
    with (files("longgame.metrics") / "published.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


def published_feasibility() -> list[Feasibility]:
    """The indicators of each row of `published`."""
    names = [field.name for field in fields(Feasibility)]
    return [Feasibility(**{name: row[name] for name in names}) for row in published().to_dict("records")]
