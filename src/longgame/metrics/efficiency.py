"""Efficiency of a selector against training on all data: PIR and SDF (survey arXiv 2406.14115; FORMULAS "PIR / SDF").

* PIR, performance improvement ratio: the mean over benchmarks of score(trained on the picks) / score(trained on all
  data). Here a benchmark is a stage's task, and each trial is divided by the full-data trial of its own seed. ``now``
  scores every task right after its stage, as a single-stage comparison would; ``later`` scores all of them at the end.
* SDF, selected dataset fraction: selected / all, in rows (as the survey counts) and in tokens (as budgets do).

NaN = not measured, or not defined: a ratio to a score of 0 is neither 0 nor infinite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from longgame.errors import DataError, unknown
from longgame.metrics import matrix
from longgame.metrics.scorecard import PRIMARY, Scorecard
from longgame.metrics.stats import moments, paired
from longgame.recipe import SelectorSpec
from longgame.selection.base import SELECTORS, build_selector
from longgame.selection.interventions import selector_of
from longgame.signals.base import CONTEXT, SIGNALS, needs_auxiliary

RATIOS = ("pir_now", "pir_later")
FRACTIONS = ("sdf_rows", "sdf_tokens")
_COUNTS = {"sdf_rows": "selected_examples", "sdf_tokens": "selected_tokens"}

_Scores = Float[np.ndarray, "... benchmarks"]


def performance_improvement_ratio(subset: _Scores, full: _Scores) -> Float[np.ndarray, ...]:
    """PIR: mean over benchmarks of ``subset / full`` (survey §"efficiency"; FORMULAS).

    A benchmark that is NaN in every entry of either array was not measured and is left out for all entries alike;
    any other NaN, or a full-data score of 0, makes the entry NaN.

    Args:
        subset: scores of models trained on picks, in any unit that starts at 0.
        full: scores of models trained on all data, in the same unit.

    Raises:
        DataError: shapes differ.
    """
    subset, full = np.asarray(subset, dtype=float), np.asarray(full, dtype=float)
    if subset.shape != full.shape or subset.ndim < 1:
        raise DataError(f"scores of shapes {subset.shape} and {full.shape} cannot be divided benchmark by benchmark.")
    keep = _measured(subset) & _measured(full)
    if not keep.any():
        return np.full(subset.shape[:-1], np.nan)
    return selected_fraction(subset[..., keep], full[..., keep]).mean(axis=-1)


def _measured(scores: _Scores) -> Bool[np.ndarray, " benchmarks"]:
    return ~np.isnan(scores).all(axis=tuple(range(scores.ndim - 1)))


def selected_fraction(selected: Float[np.ndarray, ...], total: Float[np.ndarray, ...]) -> Float[np.ndarray, ...]:
    """SDF: ``selected / total`` (rows or tokens); NaN where the total is 0 or either was not measured."""
    selected, total = np.asarray(selected, dtype=float), np.asarray(total, dtype=float)
    return np.divide(selected, total, out=np.full(np.broadcast(selected, total).shape, np.nan), where=total > 0)


def trial_efficiency(card: Scorecard, full: Scorecard, view: str = PRIMARY) -> pd.DataFrame:
    """PIR and SDF of every trial of a scorecard.

    Args:
        card: of the selectors.
        full: of the full-data trials (one selector), with the same stages in the same order.
        view: which scorer fills R (see `longgame.metrics.scorecard`).

    Returns:
        trial, selector, seed, pir_now, pir_later, sdf_rows, sdf_tokens; NaN for a seed without a full-data trial.

    Raises:
        DataError: no such view, other stages, or several selectors among the full-data trials.
    """
    if view not in card.views or view not in full.views:
        raise DataError(unknown("view", view, set(card.views) & set(full.views)))
    if full.tasks != card.tasks:
        raise DataError(
            f"the full-data trials walk {', '.join(full.tasks)} and these walk {', '.join(card.tasks)}; "
            "compare trials with the same stages in the same order."
        )
    if len(full.trials.selectors) != 1:
        raise DataError(
            f"the full-data trials have {len(full.trials.selectors)} selectors "
            f"({', '.join(full.trials.selectors)}); give the trials of one."
        )
    R, R_full = card.views[view].R, _of_seed(full.views[view].R, card, full)
    frame = card.trials.frame()
    frame["pir_now"] = performance_improvement_ratio(matrix.diagonal(R), matrix.diagonal(R_full))
    frame["pir_later"] = performance_improvement_ratio(matrix.final_row(R), matrix.final_row(R_full))
    for name, count in _COUNTS.items():
        frame[name] = selected_fraction(_cost(card, count), _of_seed(_cost(full, count), card, full))
    return frame


def _of_seed(
    values: Float[np.ndarray, "full ..."], card: Scorecard, full: Scorecard
) -> Float[np.ndarray, "trials ..."]:
    """For each trial, the value of the full-data trial of its seed; NaN where there is none."""
    by_seed = dict(zip(full.trials.seeds, full.trials.grid(values)[0], strict=True))
    missing = np.full(values.shape[1:], np.nan)
    return np.stack([by_seed.get(card.trials.seeds[seed], missing) for seed in card.trials.seed_of])


def _cost(card: Scorecard, name: str) -> Float[np.ndarray, " trials"]:
    """A cost of every trial over all its stages; NaN where it was not measured."""
    return card.values.get(("", name), np.full(len(card.trials), np.nan))


def efficiency(card: Scorecard, full: Scorecard, view: str = PRIMARY) -> pd.DataFrame:
    """PIR and SDF of every selector over its seeds.

    A PIR is a ratio within a seed, so its mean and interval are paired by seed: base model, pools and items that are
    hard for one are hard for both. The interval is Student's t over seeds; one that holds 1 does not show a difference
    from training on all data.

    Returns:
        selector; pir_now and pir_later with ``_low``, ``_high`` (95 %) and ``_n`` (seeds); sdf_rows and sdf_tokens
        (means over the measured seeds).

    Raises:
        DataError: as `trial_efficiency`.
    """
    trials, per_trial = card.trials, trial_efficiency(card, full, view)
    table = pd.DataFrame({"selector": trials.selectors})
    for name in RATIOS:
        values = trials.grid(per_trial[name].to_numpy(np.float64))
        against = paired(values, np.ones_like(values), unit_of=trials.unit_of)
        table[name] = 1 + against.mean
        table[f"{name}_low"], table[f"{name}_high"] = 1 + against.ci_low, 1 + against.ci_high
        table[f"{name}_n"] = against.n
    for name in FRACTIONS:
        table[name] = moments(trials.grid(per_trial[name].to_numpy(np.float64)))[1]
    return table


def undefined_ratios(full: Scorecard, view: str = PRIMARY) -> tuple[str, ...]:
    """Tasks on which a full-data trial scored 0 right after its stage or at the end: no ratio to it is defined."""
    R = full.views[view].R
    zero = ((matrix.diagonal(R) == 0) | (matrix.final_row(R) == 0)).any(axis=0)
    return tuple(task for task, is_zero in zip(full.tasks, zero, strict=True) if is_zero)


# Feasibility of a selector: how much work it is to run, and where it can be used (survey arXiv 2406.14115).

MANY_LLMS, _MANY_LLMS_PENALTY = 100, 200.0
"""With more trained LLMs than this the survey sets the simplicity penalty to 200."""


@dataclass(frozen=True, slots=True)
class Feasibility:
    """The survey's indicators of a method."""

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
    simplicity = dense_rank(np.array([method.simplicity_penalty for method in methods]))
    flexibility = dense_rank(np.array([method.flexibility_penalty for method in methods]))
    return pd.DataFrame(
        {"simplicity": simplicity, "flexibility": flexibility, "feasibility": dense_rank(simplicity + flexibility)}
    )


def feasibility_of(spec: SelectorSpec) -> Feasibility | None:
    """The indicators of a recipe's selector; None for plug-ins and files of scores, whose making is unknown.

    A selector that needs a training beside the trial's own (a warm-up, a reference model, a training log) trains one
    LLM for each; what it selects from other candidates then needs another one. No selector of this package asks a
    proprietary model by itself. Its steps are: each kind of pass over the
    candidates that its signals need (frozen, forward, backward), a column or rules that it reads, the future proxy's
    gradient, the choice itself, and every intervention. It is model-free if no model computes any of its signals.

    Raises:
        RecipeError, PluginError: as `longgame.selection.interventions.selector_of`.
    """
    if not SELECTORS.is_builtin(spec.name):  # a report runs no code that a recipe names
        return None
    selector = build_selector(spec.name, spec.parameters)
    trained = len(needs_auxiliary(selector.requires))
    kinds = {_pass_of(name) for name in selector.requires}
    with_interventions = {_pass_of(name) for name in selector_of(spec).requires}
    return Feasibility(
        trained_llms=trained,
        steps=1 + len(kinds) + len(spec.interventions),
        reproducible=True,
        model_free=with_interventions <= {"column"},
        dataset_free=not trained,
        gpt_free=True,
    )


def _pass_of(signal: str) -> str:
    """The pass that computes a signal: ``column``, ``frozen``, ``forward``, ``backward`` or ``proxy``."""
    if signal in CONTEXT:
        return "proxy"
    if {*SIGNALS[signal].needs} <= {"text", "candidates", "target", "judge"}:
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
