"""What a selector is, and what it returns; how a token budget is filled is re-exported from `ranking`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from longgame.data.examples import Pool
from longgame.errors import PluginError
from longgame.registry import Registry
from longgame.selection.budget import check_budget as check_budget
from longgame.selection.budget import descending as descending
from longgame.selection.budget import fill_budget as fill_budget
from longgame.selection.budget import fill_by_score as fill_by_score
from longgame.selection.budget import id_order as id_order
from longgame.signals.base import Signals, check_names

if TYPE_CHECKING:
    from longgame.selection.history import History


@dataclass(frozen=True)
class Selection:
    """What was chosen and why: enough to explain every decision."""

    ids: tuple[str, ...]
    """Chosen examples, in pick order."""
    rows: Int[np.ndarray, " k"]
    """Their rows in the pool that `Selector.select` was given, in pick order."""
    tokens: int
    """Prompt + response tokens spent."""
    scores: Mapping[str, Float[np.ndarray, " n"]] = field(default_factory=dict)
    """Per term, one value for every *candidate* in pool order; ``score`` is what decided."""

    @staticmethod
    def of(pool: Pool, rows: Int[np.ndarray, " k"], scores: Mapping[str, np.ndarray] | None = None) -> Selection:
        """Build the selection of these rows of the pool, in this order.

        Raises:
            PluginError: the rows are not whole numbers (a mask is not), or not rows of the pool.
        """
        given = np.asarray(rows)
        if given.ndim != 1 or (len(given) and given.dtype.kind not in "iu"):
            raise PluginError(
                f"a selection was made of an array of {given.dtype} with shape {given.shape}; give the row numbers of "
                "the picks in pick order (of a mask: np.flatnonzero(mask))."
            )
        rows = given.astype(np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(pool)):
            raise PluginError(f"a selection was made of rows outside 0…{len(pool) - 1}; give rows of the pool.")
        ids = tuple(pool.ids[row] for row in rows)
        return Selection(ids, rows, int(pool.tokens[rows].sum()), dict(scores or {}))


class Selector:
    """Base class of a selection method (a subclass is one file, and one line in `SELECTORS`).

    A subclass sets ``name`` and ``requires`` and defines ``select``; parameters are keyword arguments of ``__init__``
    (that is how a recipe's ``{name: …, parameter: …}`` reaches it). A selector with state also defines
    ``state_dict`` / ``load_state_dict`` with NumPy arrays and plain numbers, strings, lists and dicts as values.
    """

    name: ClassVar[str]
    requires: tuple[str, ...] = ()
    """Signals that must be there (names of `longgame.signals.base.SIGNALS` or ``CONTEXT``); may be set per instance."""

    def select(
        self, pool: Pool, signals: Signals, history: History, budget: int, rng: np.random.Generator
    ) -> Selection:
        """Choose from the pool at most ``budget`` tokens (prompt + response).

        Args:
            pool: n candidates; ``pool.tokens`` is what each would spend.
            signals: the columns named in ``requires``, row-aligned with the pool.
            history: what earlier stages and rounds selected (read only here).
            budget: tokens, ≥ 1.
            rng: the only source of randomness allowed.
        """
        raise NotImplementedError(f"selector '{self.name}' must define select()")

    def eligible(self, pool: Pool) -> Bool[np.ndarray, " n"]:
        """Candidates that this selector would pick at all, whatever the budget; by default all.

        For a selector that takes a subset by what it knows of the examples: the interventions around it never pick
        what is False here. (What it rejects by a signal, it scores NaN: no intervention changes that, either.)
        """
        return np.ones(len(pool), dtype=bool)

    def begin_stage(self) -> None:
        """A stage begins, and with it what is kept for one stage alone; by default there is nothing of that kind."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything that later decisions depend on; empty for a selector without memory."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        if state:
            raise PluginError(f"selector '{self.name}' keeps no state but was given {sorted(state)}.")


def eligible_of(selector: Selector, pool: Pool) -> Bool[np.ndarray, " n"]:
    """The selector's own `Selector.eligible`; all candidates where it has none (it need not derive from Selector).

    Raises:
        PluginError: its answer is no mask of the candidates.
    """
    asked = getattr(selector, "eligible", None)
    mask = np.ones(len(pool), dtype=bool) if asked is None else np.asarray(asked(pool))
    if mask.shape != (len(pool),) or mask.dtype != bool:
        raise PluginError(
            f"selector '{selector.name}': eligible() returned an array of {mask.dtype} with shape {mask.shape}; "
            f"return one True or False for each of the {len(pool)} candidates, in the pool's order."
        )
    return mask


def check_selector(name: str, cls: Any) -> None:
    """Raise PluginError unless the class ``cls`` keeps the contract of `Selector`."""
    for attribute in ("name", "requires", "select", "state_dict", "load_state_dict"):
        if not hasattr(cls, attribute):
            raise PluginError(
                f"selector '{name}' ({cls.__qualname__}) lacks `{attribute}`. Derive it from longgame.Selector."
            )
    if not callable(cls.select) or cls.select is Selector.select:
        raise PluginError(f"selector '{name}' does not define select(pool, signals, history, budget, rng).")
    _check_requires(name, cls.requires)


def _check_requires(name: str, requires: Any) -> None:
    if isinstance(requires, str):
        raise PluginError(f"selector '{name}': `requires` is a string; write it as a tuple: ('{requires}',).")
    check_names(requires, f"selector '{name}'")


SELECTORS = Registry(
    "selector",
    "longgame.selectors",
    {
        "random": "longgame.selection.methods.random:RandomSelector",
        "loss": "longgame.selection.methods.loss:LossSelector",
        "gradient": "longgame.selection.methods.gradient:GradientSelector",
        "diversity": "longgame.selection.methods.diversity:DiversitySelector",
        "quality": "longgame.selection.methods.quality:QualitySelector",
        "utility-diversity": "longgame.selection.methods.utility_diversity:UtilityDiversitySelector",
        "lhas": "longgame.selection.methods.lhas:LHASSelector",
        "lhas-adaptive": "longgame.selection.methods.lhas_adaptive:AdaptiveLHASSelector",
    },
    check_selector,
)


SCORES = "scores:"
"""``scores:FILE`` stands for the selector that follows the scores or keep flags of a file."""

_OF_FILES = Registry("selector", "", {SCORES: "longgame.selection.methods.from_scores:FromScores"}, check_selector)


def build_selector(name: str, parameters: Mapping[str, Any] | None = None) -> Selector:
    """Make the selector of this name (or ``file.py:Class``, or ``scores:FILE``) with these parameters.

    Raises:
        RecipeError: unknown name, a parameter it does not take, or a value out of range.
        PluginError: the class cannot be made or breaks the contract. DataError: a file of scores is wrong.
    """
    if name.startswith(SCORES):
        file = {"file": name.removeprefix(SCORES)}
        return _OF_FILES.make(SCORES, {**(parameters or {}), **file})
    selector: Selector = SELECTORS.make(name, parameters or {})
    _check_requires(name, selector.requires)
    return selector
