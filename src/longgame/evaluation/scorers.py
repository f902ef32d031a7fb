"""Measurements and scorers: the contract, the registry and the built-in ones. No torch, so every learner can use it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float

from longgame.data.examples import Example
from longgame.errors import DataError, PluginError, RecipeError, unknown
from longgame.evaluation.answers import gold_options, golds, is_short, matches, normalize
from longgame.evaluation.verifiers import check_verifier, reward, verified
from longgame.limits import load_yaml
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
    "response": "teacher-forced pass over the item's own response: Evidence.token_nll, token_correct, ended",
    "generation": "greedy decoding from the item's prompt: Evidence.generation",
    "options": "likelihood of each text that Scorer.options() returns: Evidence.option_nll",
    "model": "model and tokenizer themselves: Scorer.score_model(), which brings items of its own",
}
"""Names allowed in ``Scorer.requires``; each is computed once per set of tasks and shared by all scorers."""


@dataclass(frozen=True)
class Evidence:
    """The model's output on one item. Reading evidence that the scorer does not require raises PluginError."""

    response: tuple[Float[np.ndarray, " length"], Bool[np.ndarray, " length"]] | None = None
    """NLL and correctness of every response token, the end of the turn included."""
    end_tokens: int = 0
    """How many of them, at the end, end the turn."""
    generated: str | None = None
    options: tuple[Float[np.ndarray, " _"], ...] | None = None
    rng: Callable[[], np.random.Generator] | None = None

    @property
    def token_nll(self) -> Float[np.ndarray, " length"]:
        """Negative log-likelihood of each content token of the response given all before it, nats."""
        nll = _required("response", self.response)[0]
        return nll[: len(nll) - self.end_tokens]

    @property
    def token_correct(self) -> Bool[np.ndarray, " length"]:
        """Whether each content token of the response is the most likely one (argmax) given all before it."""
        correct = _required("response", self.response)[1]
        return correct[: len(correct) - self.end_tokens]

    @property
    def ended(self) -> bool:
        """Whether every token that ends the turn is the most likely one behind the content."""
        correct = _required("response", self.response)[1]
        return bool(correct[len(correct) - self.end_tokens :].all())

    @property
    def generation(self) -> str:
        """Greedy decoding of the prompt, without special tokens and surrounding white space."""
        return _required("generation", self.generated)

    @property
    def option_nll(self) -> tuple[Float[np.ndarray, " length"], ...]:
        """Per text of `Scorer.options`, in its order: NLL of each token (nats), the end token left out."""
        return _required("options", self.options)

    def generator(self) -> np.random.Generator:
        """The random stream of this item, for scorers that sample; the same at every call."""
        if self.rng is None:
            raise PluginError("this evidence has no random stream; pass Evidence(rng=…).")
        return self.rng()


def _required(need: str, value: Any) -> Any:
    if value is None:
        raise PluginError(f"a scorer reads '{need}' without naming it in `requires`. It gives the {NEEDS[need]}.")
    return value


class Scorer:
    """Base class of a scorer, which judges one item from the model's output.

    A subclass sets ``name`` and ``requires`` (names in `NEEDS`) and defines ``score``; parameters are keyword arguments
    of ``__init__``. It sees no model and no tokenizer, so all scorers share one pass of each kind.
    """

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]] = ()
    runs_model_code: ClassVar[bool] = False
    """Whether scoring runs what the model wrote; then the recipe must allow it (``data.run_model_code``)."""
    may_miss: ClassVar[bool] = False
    """Whether `score_all` may give NaN for an item: measured, without a result. The share of such items is a score of
    its own, named ``NAME missing``, and the mean is over the others."""

    asks_outside: ClassVar[bool] = False
    """Whether scoring asks a server, starts processes or brings its own items; a dry run does not."""

    def measures(self, example: Example) -> bool:  # noqa: ARG002
        """Whether this item can be judged; an item that cannot is left out of the mean, not counted as wrong."""
        return True

    def options(self, example: Example) -> Sequence[str]:
        """Texts whose likelihood after the prompt is measured (only if ``requires`` names ``options``)."""
        raise NotImplementedError(f"scorer '{self.name}' requires options and must define options()")

    def score(self, example: Example, evidence: Evidence) -> float:
        """The item's score in [0, 1] (1 = right)."""
        raise NotImplementedError(f"scorer '{self.name}' must define score()")

    def score_all(self, examples: Sequence[Example], evidence: Sequence[Evidence]) -> Sequence[float]:
        """`score` of several items, for scorers that ask a server or start processes."""
        return [self.score(example, shown) for example, shown in zip(examples, evidence, strict=True)]

    def score_model(self, model: Any, tokenizer: Any, max_length: int) -> Mapping[str, tuple[float, int]]:
        """Sub-skill → score in [0, 1] and number of items (only if ``requires`` names ``model``, and nothing else)."""
        raise NotImplementedError(f"scorer '{self.name}' must define score_model()")


def is_defined(cls: type, method: str) -> bool:
    """Whether a class defines a method of `Scorer` itself."""
    return getattr(cls, method, None) is not getattr(Scorer, method)


def check_scorer(name: str, cls: type) -> None:
    """Raise PluginError unless ``cls`` follows the contract of `Scorer`."""
    for attribute in ("name", "requires", "measures", "score", "options"):
        if not hasattr(cls, attribute):
            raise PluginError(
                f"scorer '{name}' ({cls.__qualname__}) lacks `{attribute}`. Derive it from "
                "longgame.evaluation.scorers.Scorer."
            )
    requires: tuple[str, ...] | str = cls.requires  # type: ignore[attr-defined]
    if isinstance(requires, str):
        raise PluginError(f"scorer '{name}': `requires` is a string; write it as a tuple: ('{requires}',).")
    for need in requires:
        if need not in NEEDS:
            raise PluginError(f"scorer '{name}' requires an " + unknown("evidence", need, NEEDS))
    if "model" in requires:
        if len(requires) > 1 or not is_defined(cls, "score_model"):
            raise PluginError(
                f"scorer '{name}' requires the model; it must require nothing else, and define "
                "score_model(model, tokenizer, max_length)."
            )
        return
    if not is_defined(cls, "score") and not is_defined(cls, "score_all"):
        raise PluginError(f"scorer '{name}' does not define score(example, evidence).")
    if "options" in requires and not is_defined(cls, "options"):
        raise PluginError(f"scorer '{name}' requires options but does not define options(example).")


SCORERS = Registry(
    "scorer",
    "longgame.scorers",
    {
        "token_accuracy": "longgame.evaluation.scorers:TokenAccuracy",
        "ends": "longgame.evaluation.scorers:Ends",
        "likelihood": "longgame.evaluation.scorers:Likelihood",
        "exact_match": "longgame.evaluation.scorers:ExactMatch",
        "choice": "longgame.evaluation.scorers:Choice",
        "verifier": "longgame.evaluation.scorers:Verifier",
        "pass_at_1": "longgame.evaluation.programs:PassAt1",
        "mc1": "longgame.evaluation.benchmarks:TruthfulQA1",
        "mc2": "longgame.evaluation.benchmarks:TruthfulQA2",
        "gsm8k": "longgame.evaluation.benchmarks:GSM8K",
        "judge": "longgame.evaluation.graded:JudgeGrade",
        "lm_eval": "longgame.evaluation.harness:LmEval",
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
            parameters[key] = load_yaml(value)
        except ValueError as error:
            raise RecipeError(f"scorer '{text}': '{value}' is not a YAML scalar. Write a number or a word.") from error
    return name.strip(), parameters


_MAIN = {"lm_eval": "task", "judge": "file"}
"""Scorer → the parameter that may stand behind its name and a colon: ``lm_eval:arc_easy``, ``judge:judge.yaml``."""


def build_scorer(text: str) -> Scorer:
    """The scorer that a task names: a registered name or ``file.py:Class``, with parameters in parentheses.

    The most important parameter of `lm_eval` and `judge` may stand behind a colon: ``lm_eval:arc_easy(limit=100)``.

    Raises:
        RecipeError: unknown name, unreadable or unknown parameters. PluginError: a refused value or a broken contract.
    """
    name, parameters = parse_scorer(text)
    kind, colon, value = name.partition(":")
    if colon and kind in _MAIN:
        name, parameters = kind, {_MAIN[kind]: value, **parameters}
    scorer: Scorer = SCORERS.make(name, parameters)
    return scorer


def refused_code(name: str) -> str:
    """The error for a scorer that runs model-written code where nobody allowed it."""
    return (
        f"scorer '{name}' runs programs that the model wrote, and the recipe does not allow it. Read what the sandbox "
        "holds and what it does not (docs/scorers.md), then set data.run_model_code: true."
    )


# The built-in scorers (docs/scorers.md: what each measures, and which is the default and why).

Form = Literal["auto", "letter_text", "letter", "text"]
Normalization = Literal["tokens", "characters", "none"]


class TokenAccuracy(Scorer):
    """Share of content tokens of the response that are the model's argmax given the gold tokens before them.

    What the template adds (the end of the turn, an empty think block, a channel) is no content.
    """

    name: ClassVar[str] = "token_accuracy"
    requires: ClassVar[tuple[str, ...]] = ("response",)

    def score(self, example: Example, evidence: Evidence) -> float:  # noqa: ARG002
        return float(evidence.token_correct.mean())


class Ends(Scorer):
    """Whether the model ends its turn where the response does: the end is its argmax behind the gold content.

    Items that came as tokens are not measured: where their content ends is unknown.
    """

    name: ClassVar[str] = "ends"
    requires: ClassVar[tuple[str, ...]] = ("response",)

    def measures(self, example: Example) -> bool:
        return example.tokens is None

    def score(self, example: Example, evidence: Evidence) -> float:  # noqa: ARG002
        return float(evidence.ended)


class Likelihood(Scorer):
    """exp(−mean NLL) of the response's content: the geometric mean of its tokens' probabilities."""

    name: ClassVar[str] = "likelihood"
    requires: ClassVar[tuple[str, ...]] = ("response",)

    def score(self, example: Example, evidence: Evidence) -> float:  # noqa: ARG002
        return float(np.exp(-evidence.token_nll.mean(dtype=np.float64)))


class ExactMatch(Scorer):
    """Whether the greedy response gives the right answer, by the item's own verifier or by its ``answer``.

    Items with neither, or whose ``answer`` is a program of several lines, are not measured.
    """

    name: ClassVar[str] = "exact_match"
    requires: ClassVar[tuple[str, ...]] = ("generation",)

    def measures(self, example: Example) -> bool:
        return _has_verifier(example) or is_short(example)

    def score(self, example: Example, evidence: Evidence) -> float:
        judge = matches if example.verifier is None else verified
        return float(judge(example, evidence.generation))


def _has_verifier(example: Example) -> bool:
    """Whether the item brings a verifier; one that is not allowed is an error, before anything is decoded."""
    if example.verifier is not None:
        check_verifier(example)
    return example.verifier is not None


class Verifier(Scorer):
    """Reward in [0, 1] (partial credit kept) that a procedural item's own library gives to the greedy response."""

    name: ClassVar[str] = "verifier"
    requires: ClassVar[tuple[str, ...]] = ("generation",)

    def measures(self, example: Example) -> bool:
        return _has_verifier(example)

    def score(self, example: Example, evidence: Evidence) -> float:
        return reward(example, evidence.generation)


class Choice(Scorer):
    """Whether a right option is the most likely continuation of the prompt; k options tied for best share the point.

    Args:
        form: the text of an option: ``letter`` ("B"), ``text`` ("False"), ``letter_text`` ("B. False"), or ``auto``:
            the form of the item's own response (``text`` if it has none of them).
        normalise: log-likelihood per token, per character, or summed (``none``: favors short options).

    Raises:
        PluginError: an unknown ``form`` or ``normalise``. DataError (while scoring): an ``answer`` that is no option.
    """

    name: ClassVar[str] = "choice"
    requires: ClassVar[tuple[str, ...]] = ("options",)

    def __init__(self, form: Form = "auto", normalise: Normalization = "tokens") -> None:
        for kind, value, allowed in (("form", form, Form), ("normalise", normalise, Normalization)):
            if value not in get_args(allowed):
                raise PluginError("scorer 'choice': " + unknown(kind, str(value), get_args(allowed)))
        self.form = form
        self.normalise = normalise

    def measures(self, example: Example) -> bool:
        return bool(example.choices) and bool(golds(example))

    def options(self, example: Example) -> Sequence[str]:
        form = self._form(example)
        return [render(form, index, text) for index, text in enumerate(example.choices or ())]

    def score(self, example: Example, evidence: Evidence) -> float:
        values = log_likelihoods(evidence.option_nll, self.options(example), self.normalise)
        best = np.flatnonzero(values == values.max()).tolist()
        return len({*best} & {*_right(example)}) / len(best)

    def _form(self, example: Example) -> Form:
        if self.form != "auto":
            return self.form
        right = [(place, (example.choices or ())[place]) for place in _right(example)]
        response = normalize(example.response)
        forms: tuple[Form, ...] = ("letter_text", "letter", "text")
        return next((form for form in forms if response in {normalize(render(form, *one)) for one in right}), "text")


def log_likelihoods(
    option_nll: Sequence[Float[np.ndarray, " length"]], texts: Sequence[str], normalise: Normalization
) -> Float[np.ndarray, " options"]:
    """Log-likelihood of each option, nats: summed, or per token or character of its text."""
    values = []
    for nll, text in zip(option_nll, texts, strict=True):
        length = {"tokens": len(nll), "characters": len(text), "none": 1}[normalise]
        values.append(-float(nll.sum(dtype=np.float64)) / length)
    return np.asarray(values)


def render(form: Form, index: int, text: str) -> str:
    """An option as a continuation of the prompt: ``B``, ``False`` or ``B. False``."""
    name = chr(65 + index)
    return {"letter": name, "text": text, "letter_text": f"{name}. {text}"}[form]


def _right(example: Example) -> list[int]:
    """Places of the right options."""
    right = gold_options(example)
    if not right:
        options = list(example.choices or ())
        raise DataError(
            f"item {example.sample_id}: answer {example.answer!r} is neither a letter from A nor one of its choices "
            f"{options}. Correct the item, or leave `choice` out of the task's scorers."
        )
    return right
