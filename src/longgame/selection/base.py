"""What a selector is: `Selector`, the registry of methods, and `build_selector`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from longgame.data.examples import Pool
from longgame.errors import PluginError, RecipeError
from longgame.registry import Registry
from longgame.selection.budget import fill_by_score
from longgame.selection.history import History, Selection
from longgame.signals.auxiliary import AuxiliarySpec
from longgame.signals.base import Signals, check_names


@dataclass(frozen=True)
class Reserve:
    """Examples that a stage may learn beside its own candidates; an audit hands it over when the stage begins."""

    candidates: Pool
    """Of the stage; none of them is replayed."""
    earlier: tuple[Pool, ...]
    """Candidates of the earlier stages, in order; empty in the first stage."""
    proxy: Pool | None
    """Items of the future-proxy mixture, all stages together."""
    budget: int
    """Tokens that the stage may spend."""
    rng: np.random.Generator
    """Fixes the order of replay, the same for every selector of a seed."""
    signals: Callable[[Pool, Sequence[str]], Signals] | None = None
    """Signals of the frozen base, for a choice of replay that reads them."""


class Selector:
    """Base class of a selection method (one file, and one line in `SELECTORS`).

    A subclass sets ``name`` and ``requires`` and defines ``score``; a method that decides pick by pick defines
    ``select`` instead. Parameters are keyword arguments of ``__init__`` (a recipe's ``{name: …, parameter: …}`` sets
    them). A selector with state also defines ``state_dict`` and ``load_state_dict``.
    """

    name: ClassVar[str]
    requires: tuple[str, ...] = ()
    """Signals to compute (names of `longgame.signals.base.SIGNALS` or ``CONTEXT``); may be set per instance."""
    weighs: bool = False
    """Whether its picks carry weights (`Selection.weights`): lists say it, and interventions that pick otherwise refuse
    the selector before the first round instead of in it."""
    auxiliary: AuxiliarySpec | None = None
    """How the model is trained beside the trial, for signals that need a warm-up, a reference or a training log; None:
    by the defaults."""
    family: str = ""
    """Kind of method (`longgame.selection.families.FAMILIES`); empty: told from its signals."""
    by_row: bool = False
    """Whether `score` and `eligible` of a candidate depend on this candidate alone. Parts of a pool may then be scored
    apart, and one cut over all of them gives the picks of the pool (`longgame select --partitions`)."""
    two_rounds: str = ""
    """What is true of picks made in two rounds: in every part of a pool, then among the picks of all parts. Empty: the
    method has no such form, and `longgame select --partitions` refuses it."""
    distance_term: str = ""
    """Term of the score that bounds a candidate's distance to the nearest pick from above, where there is one; two
    rounds then report the radius that the picks cover. Of a pick it is at most its distance to any earlier pick (0 is
    always right); two rounds compare the radius with the best one by it."""
    score_source: str = ""
    """Where scores come from that another system made ("score file 'x.csv'"); their cost is unknown."""

    def score(
        self, pool: Pool, signals: Signals, history: History
    ) -> Float[np.ndarray, " n"] | Mapping[str, Float[np.ndarray, " n"]]:
        """Return one number per candidate, highest first; NaN = never pick.

        A mapping of named terms is logged as it is; its term ``score`` decides.
        """
        raise NotImplementedError(f"selector '{self.name}' defines neither score() nor select().")

    def select(
        self,
        pool: Pool,
        signals: Signals,
        history: History,
        budget: int,
        rng: np.random.Generator,  # noqa: ARG002 - for selectors that draw
    ) -> Selection:
        """Choose at most ``budget`` tokens; by default fill it by `score` with eligible candidates, ties by id.

        Args:
            pool: n candidates; ``pool.costs`` holds what each spends of the budget (by default all its tokens).
            signals: the columns named in ``requires``, row-aligned with the pool.
            history: what earlier stages and rounds selected (read only).
            budget: tokens, ≥ 1.
            rng: the only source of randomness allowed.

        Raises:
            BudgetError: no candidate fits into the budget.
            PluginError: `score` did not return one number per candidate.
        """
        terms = score_terms(self, pool, signals, history)
        allowed = np.where(eligible_of(self, pool), terms["score"], np.nan)
        return Selection.of(pool, fill_by_score(allowed, pool.ids, pool.costs, budget), terms)

    def eligible(self, pool: Pool) -> Bool[np.ndarray, " n"]:
        """Return which candidates may be picked at all, whatever the budget; by default all.

        For a selector that rejects examples by their content. Interventions never pick what is False here, nor what
        the selector scores NaN.
        """
        return np.ones(len(pool), dtype=bool)

    def begin_stage(self) -> None:
        """Drop state that belongs to one stage; by default there is none."""

    def use_budget(self, share: float) -> None:
        """Take the share of the stage's tokens that may be selected, before the stage's first `select`.

        The budget of one `select` is another share of its candidates where a stage has several rounds, and in parts.
        """

    def remember(self, pool: Pool, signals: Signals, rows: Int[np.ndarray, " k"]) -> None:
        """Take note of what is learned of ``pool``: the picks of `select`, perhaps without the last ones.

        Called once a round, after `select` (which a cluster floor calls more than once). A method whose later decisions
        depend on its own picks keeps them here; by default nothing is kept.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return everything that later decisions depend on: NumPy arrays, numbers, strings, lists and dicts."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        if state:
            raise PluginError(f"selector '{self.name}' keeps no state but was given {sorted(state)}.")

    # For interventions that replay examples beside the selector's picks; a selection method needs none of these.

    replays: bool = False
    """Whether the selector needs a `Reserve`."""

    def use_reserve(self, reserve: Reserve) -> None:
        """Take the stage's reserve, after `begin_stage`."""

    def end_stage(self, signals: Callable[[Pool, Sequence[str]], Signals]) -> None:
        """Measure, with the model at the end of the stage, what the replay of the next one needs."""

    frozen_signals: tuple[str, ...] = ()
    """Signals of the frozen base that replay reads of every stage's candidates."""
    measured: Pool | None = None
    """Examples whose loss `end_stage` measured."""

    def learnable(self, pool: Pool) -> Pool:
        """Return the stage's candidates and, behind them, everything that may be replayed."""
        return pool

    def offer(self, pool: Pool, budget: int) -> Pool:  # noqa: ARG002
        """Return the round's candidates and, behind them, what the round replays."""
        return pool

    def count_replayed(self, pool: Pool, signals: Signals, rows: Int[np.ndarray, " e"]) -> None:
        """Take note, before `select`, of the rows of its pool that the round replays."""

    def unmet(self) -> dict[str, int]:
        """Return by how much the stage missed what it should have replayed, per cost name."""
        return {}


def score_terms(selector: Selector, pool: Pool, signals: Signals, history: History) -> dict[str, np.ndarray]:
    """Return `Selector.score` as named terms, checked.

    Raises:
        PluginError: no term is ``score``, or one is not one real number per candidate.
    """
    answer = selector.score(pool, signals, history)
    named = answer if isinstance(answer, Mapping) else {"score": answer}
    if "score" not in named:
        raise PluginError(
            f"score() returned the terms {sorted(map(str, named))}; one of them must be 'score', which decides."
        )
    return {term: real_numbers(column, len(pool), f"'{term}' of score()") for term, column in named.items()}


def claims(selector: Selector, attribute: str) -> Any:
    """Return ``by_row`` or ``two_rounds`` of a selector; False or empty where a subclass defines ``score``, ``select``
    or ``eligible`` anew and does not say that it still holds."""
    if attribute in vars(selector):
        return getattr(selector, attribute)
    order = type(selector).__mro__
    declared = next(place for place, cls in enumerate(order) if attribute in vars(cls))
    defined = min(
        next(place for place, cls in enumerate(order) if method in vars(cls))
        for method in ("score", "select", "eligible")
    )
    return getattr(Selector if declared > defined else selector, attribute)


def real_numbers(values: Any, n: int, label: str) -> np.ndarray:
    """Return the array of these values.

    Raises:
        PluginError: they are no real numbers (text, objects, complex numbers), or not one for each of ``n`` candidates.
    """
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists; tensors with a gradient or on a device
        raise PluginError(f"{label} is a {type(values).__name__} that is no array ({error}). {_ONE_NUMBER}") from error
    if array.shape != (n,):
        raise PluginError(f"{label} has the shape {array.shape} for {n} candidates. {_ONE_NUMBER}")
    if array.dtype.kind not in "biuf":
        raise PluginError(f"{label} holds {array.dtype} values. {_ONE_NUMBER}")
    return array


_ONE_NUMBER = "Give one real number for each candidate, in the pool's order (NaN: never pick)."


def eligible_of(selector: Selector, pool: Pool) -> Bool[np.ndarray, " n"]:
    """Return `Selector.eligible`, checked.

    Raises:
        PluginError: the answer is no mask of the candidates.
    """
    mask = np.asarray(selector.eligible(pool))
    if mask.shape != (len(pool),) or mask.dtype != bool:
        raise PluginError(
            f"selector '{selector.name}': eligible() returned an array of {mask.dtype} with shape {mask.shape}; "
            f"return one True or False for each of the {len(pool)} candidates, in the pool's order."
        )
    return mask


@dataclass(frozen=True)
class MethodNotes:
    """What the first lines of a method's file say about it; empty where they do not."""

    summary: str
    paper: str
    formula: str
    cost: str


def notes_of(cls: type[Selector]) -> MethodNotes:
    """Read the docstring of the class's module: its first line, and the lines ``Paper:``, ``Formula:``, ``Cost:``.

    A module without a docstring is described by the first line of the class's own.
    """
    text = inspect.cleandoc(getattr(sys.modules.get(cls.__module__), "__doc__", None) or cls.__doc__ or "")
    lines = text.partition("\n\n")[2].splitlines()
    fields = dict.fromkeys(("Paper", "Formula", "Cost"), "")
    for line in lines:
        key, colon, value = line.partition(": ")
        if colon and key in fields:
            fields[key] = value.strip()
    return MethodNotes(text.partition("\n")[0], fields["Paper"], fields["Formula"], fields["Cost"])


def check_selector(name: str, cls: Any) -> None:
    """Raise PluginError unless the class ``cls`` keeps the contract of `Selector`."""
    if not issubclass(cls, Selector):
        raise PluginError(f"selector '{name}' ({cls.__qualname__}) does not derive from longgame.Selector; derive it.")
    if not isinstance(getattr(cls, "name", None), str) or not cls.name:
        raise PluginError(f"selector '{name}' ({cls.__qualname__}) lacks `name`. Set name = '…' in the class.")
    if cls.select is Selector.select and cls.score is Selector.score:
        raise PluginError(
            f"selector '{name}' defines neither score(pool, signals, history) nor "
            "select(pool, signals, history, budget, rng). Define one of them."
        )
    if not hasattr(cls.requires, "__get__"):  # a property is read of the instance
        _check_requires(name, cls.requires)


def _check_requires(name: str, requires: Any) -> None:
    if isinstance(requires, str):
        raise PluginError(f"selector '{name}': `requires` is a string; write it as a tuple: ('{requires}',).")
    if not isinstance(requires, tuple | list) or not all(isinstance(signal, str) for signal in requires):
        raise PluginError(
            f"selector '{name}': `requires` is {requires!r}; write a tuple of names of signals, such as ('loss',), or "
            "() for none."
        )
    check_names(requires, f"selector '{name}'")


SELECTORS = Registry(
    "selector",
    "longgame.selectors",
    {
        "random": "longgame.selection.methods.random:RandomSelector",
        "longest": "longgame.selection.methods.longest:LongestSelector",
        "loss": "longgame.selection.methods.loss:LossSelector",
        "gradient": "longgame.selection.methods.gradient:GradientSelector",
        "diversity": "longgame.selection.methods.diversity:DiversitySelector",
        "quality": "longgame.selection.methods.quality:QualitySelector",
        "ifd": "longgame.selection.methods.ifd:IFDSelector",
        "el2n": "longgame.selection.methods.el2n:EL2NSelector",
        "grand": "longgame.selection.methods.grand:GraNdSelector",
        "ppl-mid": "longgame.selection.methods.ppl_mid:MiddlePerplexitySelector",
        "tailsft": "longgame.selection.methods.tailsft:TailSFTSelector",
        "flow": "longgame.selection.methods.flow:FLOWSelector",
        "k-center": "longgame.selection.methods.k_center:KCenterSelector",
        "prototypes": "longgame.selection.methods.prototypes:PrototypesSelector",
        "semdedup": "longgame.selection.methods.semdedup:SemDeDupSelector",
        "d4": "longgame.selection.methods.d4:D4Selector",
        "deita": "longgame.selection.methods.deita:DEITASelector",
        "alpagasus": "longgame.selection.methods.alpagasus:AlpaGasusSelector",
        "mods": "longgame.selection.methods.mods:MoDSSelector",
        "qdit": "longgame.selection.methods.qdit:QDITSelector",
        "curriculum": "longgame.selection.methods.curriculum:CurriculumSelector",
        "selective-backprop": "longgame.selection.methods.selective_backprop:SelectiveBackpropSelector",
        "dsir": "longgame.selection.methods.dsir:DSIRSelector",
        "dedup-exact": "longgame.selection.methods.dedup_exact:ExactDedupSelector",
        "dedup-minhash": "longgame.selection.methods.dedup_minhash:MinHashDedupSelector",
        "tsds": "longgame.selection.methods.tsds:TSDSSelector",
        "superfiltering": "longgame.selection.methods.superfiltering:SuperfilteringSelector",
        "svp": "longgame.selection.methods.svp:SVPSelector",
        "forgetting-events": "longgame.selection.methods.forgetting_events:ForgettingEventsSelector",
        "cartography": "longgame.selection.methods.cartography:CartographySelector",
        "s2l": "longgame.selection.methods.s2l:S2LSelector",
        "less": "longgame.selection.methods.less:LESSSelector",
        "rho": "longgame.selection.methods.rho:RHOSelector",
        "importance": "longgame.selection.methods.importance:ImportanceSelector",
        "craig": "longgame.selection.methods.craig:CRAIGSelector",
        "gradmatch": "longgame.selection.methods.gradmatch:GradMatchSelector",
        "tagcos": "longgame.selection.methods.tagcos:TAGCOSSelector",
        "greats": "longgame.selection.methods.greats:GREATSSelector",
        "badge": "longgame.selection.methods.badge:BADGESelector",
        "ocs": "longgame.selection.methods.ocs:OCSSelector",
        "utility-diversity": "longgame.selection.methods.utility_diversity:UtilityDiversitySelector",
        "lhas": "longgame.selection.methods.lhas:LHASSelector",
        "lhas-adaptive": "longgame.selection.methods.lhas_adaptive:AdaptiveLHASSelector",
    },
    check_selector,
)

SCORES = "scores:"
"""``scores:FILE`` names the selector that follows the scores or keep flags of a file."""

ORACLE = "oracle"
"""The selector of an audit's ``oracle`` trials; no method, as it looks at the evaluation items."""

_SPECIAL = Registry(
    "selector",
    "",
    {
        SCORES: "longgame.selection.methods.from_scores:FromScores",
        ORACLE: "longgame.selection.methods.oracle:OracleSelector",
    },
    check_selector,
)


def build_selector(
    selector: str | type[Selector] | Mapping[str, Any], parameters: Mapping[str, Any] | None = None
) -> Selector:
    """Make a selector.

    Args:
        selector: its name, ``file.py:Class``, ``scores:FILE``, a class, or ``{"name": …, parameter: …}``.
        parameters: keyword arguments of the class; not beside a mapping, which holds them.

    Raises:
        RecipeError: unknown name, a parameter it does not take, or a value out of range.
        PluginError: the class cannot be made or breaks the contract. DataError: a file of scores is wrong.
    """
    if isinstance(selector, Mapping):
        selector, parameters = _named(selector, parameters)
    if not isinstance(selector, str | type):
        raise RecipeError(f"selector is {selector!r}. Give a name such as loss, or a mapping with 'name'.")
    values = parameters or {}
    if isinstance(selector, type):
        name = selector.__name__
        instance: Selector = SELECTORS.make_of(name, selector, values)
    elif selector.startswith(SCORES):
        return _SPECIAL.make(SCORES, {**values, "file": selector.removeprefix(SCORES)})
    elif selector == ORACLE:
        return _SPECIAL.make(ORACLE, values)
    else:
        name = selector
        instance = SELECTORS.make(name, values)
    _check_requires(name, instance.requires)
    return instance


def _named(values: Mapping[str, Any], parameters: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """The name and the parameters in ``{"name": …, parameter: …}`` or ``{"name": …, "parameters": {…}}``."""
    rest = {key: value for key, value in values.items() if key != "name"}
    name = values.get("name")
    if not isinstance(name, str):
        raise RecipeError(f"selector is {dict(values)}, without a 'name'. Write {{name: gradient, mode: similarity}}.")
    if parameters:
        raise RecipeError(
            f"selector is {dict(values)} and parameters are {dict(parameters)}. Put the parameters into one of them."
        )
    nested = rest.get("parameters")
    return name, dict(nested) if isinstance(nested, Mapping) and len(rest) == 1 else rest
