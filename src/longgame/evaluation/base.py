"""What a measurement is, and what a scorer is; free of torch, so that every substrate speaks it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import yaml
from jaxtyping import Bool, Float

from longgame.data.examples import Example
from longgame.errors import PluginError, RecipeError, unknown
from longgame.registry import Registry


@dataclass(frozen=True, slots=True)
class Score:
    """One measurement of a model."""

    task: str
    sub_skill: str
    scorer: str
    value: float
    """0–100, mean over the sub-skill's items; NaN = not measured."""
    items: int


NEEDS: Mapping[str, str] = {
    "response": "teacher-forced pass over the item's own response: Evidence.token_nll, Evidence.token_correct",
    "generation": "greedy decoding from the item's prompt: Evidence.generation",
    "options": "likelihood of each text that Scorer.options() returns: Evidence.option_nll",
}
"""What a scorer may name in ``requires``; each is computed once per set of tasks and shared by all scorers."""


@dataclass(frozen=True)
class Evidence:
    """What the model did on one item. Reading what the scorer did not require raises PluginError."""

    response: tuple[Float[np.ndarray, " length"], Bool[np.ndarray, " length"]] | None = None
    generated: str | None = None
    options: tuple[Float[np.ndarray, " _"], ...] | None = None
    rng: Callable[[], np.random.Generator] | None = None

    @property
    def token_nll(self) -> Float[np.ndarray, " length"]:
        """Negative log-likelihood of each response token given all before it, the end token included; nats."""
        return self._held("response", self.response)[0]

    @property
    def token_correct(self) -> Bool[np.ndarray, " length"]:
        """Whether each response token is the most likely one (argmax) given all before it."""
        return self._held("response", self.response)[1]

    @property
    def generation(self) -> str:
        """Greedy decoding of the prompt, without special tokens and surrounding white space."""
        return self._held("generation", self.generated)

    @property
    def option_nll(self) -> tuple[Float[np.ndarray, " length"], ...]:
        """Per text of `Scorer.options`, in its order: NLL of each token (nats), the end token left out."""
        return self._held("options", self.options)

    def generator(self) -> np.random.Generator:
        """Return the random stream of this item (for a scorer that samples); the same one at every call."""
        if self.rng is None:
            raise PluginError("this evidence was made without a random stream; give Evidence(rng=…).")
        return self.rng()

    @staticmethod
    def _held(need: str, value: Any) -> Any:
        if value is None:
            raise PluginError(f"a scorer reads '{need}' without naming it in `requires`. It gives the {NEEDS[need]}.")
        return value


class Scorer:
    """Base class of a scorer: it judges one item from what the model did on it.

    A subclass sets ``name`` and ``requires`` (names in `NEEDS`) and defines ``score``; parameters are keyword arguments
    of ``__init__``. It sees no model and no tokenizer, so that all scorers share one pass of each kind.
    """

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]] = ()

    def measures(self, example: Example) -> bool:  # noqa: ARG002
        """Whether this item can be judged; an item that cannot is left out of the mean, not counted as wrong."""
        return True

    def options(self, example: Example) -> Sequence[str]:
        """Texts whose likelihood after the prompt is wanted (only asked if ``requires`` names ``options``)."""
        raise NotImplementedError(f"scorer '{self.name}' requires options and must define options()")

    def score(self, example: Example, evidence: Evidence) -> float:
        """Return the item's score in [0, 1] (1 = all right)."""
        raise NotImplementedError(f"scorer '{self.name}' must define score()")


def check_scorer(name: str, cls: type) -> None:
    """Raise PluginError unless ``cls`` keeps the contract of `Scorer`."""
    for attribute in ("name", "requires", "measures", "score", "options"):
        if not hasattr(cls, attribute):
            raise PluginError(
                f"scorer '{name}' ({cls.__qualname__}) lacks `{attribute}`. Derive it from "
                "longgame.evaluation.base.Scorer."
            )
    requires: tuple[str, ...] | str = cls.requires  # type: ignore[attr-defined]
    if isinstance(requires, str):
        raise PluginError(f"scorer '{name}': `requires` is a string; write it as a tuple: ('{requires}',).")
    for need in requires:
        if need not in NEEDS:
            raise PluginError(f"scorer '{name}' requires an " + unknown("evidence", need, NEEDS))
    if getattr(cls, "score", None) is Scorer.score:
        raise PluginError(f"scorer '{name}' does not define score(example, evidence).")
    if "options" in requires and getattr(cls, "options", None) is Scorer.options:
        raise PluginError(f"scorer '{name}' requires options but does not define options(example).")


SCORERS = Registry(
    "scorer",
    "longgame.scorers",
    {
        "token_accuracy": "longgame.evaluation.scorers:TokenAccuracy",
        "likelihood": "longgame.evaluation.scorers:Likelihood",
        "exact_match": "longgame.evaluation.scorers:ExactMatch",
        "choice": "longgame.evaluation.scorers:Choice",
        "verifier": "longgame.evaluation.scorers:Verifier",
    },
    check_scorer,
)


def parse_scorer(text: str) -> tuple[str, dict[str, Any]]:
    """Split ``choice(form=letter, normalise=none)`` into the name and its parameters; a bare name has none.

    Values are YAML scalars (numbers, true/false, bare words).

    Raises:
        RecipeError: the parentheses hold anything but ``key=value`` pairs.
    """
    if not text.endswith(")"):
        return text, {}
    name, _, inside = text[:-1].rpartition("(")
    parameters: dict[str, Any] = {}
    for part in filter(None, (piece.strip() for piece in inside.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not name or not equals or not key.isidentifier() or key in parameters:
            raise RecipeError(f"scorer '{text}' cannot be read at '{part}'. Write it as name(key=value, key=value).")
        try:
            parameters[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise RecipeError(f"scorer '{text}': '{value}' is not a YAML scalar. Write a number or a word.") from error
    return name.strip(), parameters


def build_scorer(text: str) -> Scorer:
    """Make the scorer that a task names: a registered name or ``file.py:Class``, parameters in parentheses.

    Raises:
        RecipeError: unknown name, unreadable parameters, or one that it does not take. PluginError: a value it does
            not take, or a broken contract.
    """
    name, parameters = parse_scorer(text)
    scorer: Scorer = SCORERS.make(name, parameters)
    return scorer
