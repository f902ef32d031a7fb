"""The built-in scorers; what each measures, and which is the default and why, is told in docs/scorers.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

import numpy as np

from longgame.data.examples import Example
from longgame.errors import DataError, PluginError, unknown
from longgame.evaluation.answers import gold_option, is_short, matches, normalise
from longgame.evaluation.base import Evidence, Scorer
from longgame.evaluation.verify import reward, verified

Form = Literal["auto", "letter_text", "letter", "text"]
Normalisation = Literal["tokens", "characters", "none"]


class TokenAccuracy(Scorer):
    """Share of response tokens (end token included) that are the model's argmax given the gold tokens before them."""

    name: ClassVar[str] = "token_accuracy"
    requires: ClassVar[tuple[str, ...]] = ("response",)

    def score(self, example: Example, evidence: Evidence) -> float:  # noqa: ARG002
        return float(evidence.token_correct.mean())


class Likelihood(Scorer):
    """exp(−mean NLL) of the response: the geometric mean of its tokens' probabilities."""

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
        return example.verifier is not None or is_short(example)

    def score(self, example: Example, evidence: Evidence) -> float:
        judge = matches if example.verifier is None else verified
        return float(judge(example, evidence.generation))


class Verifier(Scorer):
    """Reward in [0, 1] (partial credit kept) that a procedural item's own library gives to the greedy response."""

    name: ClassVar[str] = "verifier"
    requires: ClassVar[tuple[str, ...]] = ("generation",)

    def measures(self, example: Example) -> bool:
        return example.verifier is not None

    def score(self, example: Example, evidence: Evidence) -> float:
        return reward(example, evidence.generation)


class Choice(Scorer):
    """Whether the right option is the most likely continuation of the prompt; k options tied for best share the point.

    Args:
        form: what stands for an option: ``letter`` ("B"), ``text`` ("False"), ``letter_text`` ("B. False"), or
            ``auto``: the form in which the item's own response gives the right option (text where it gives neither).
        normalise: log-likelihood per token, per character, or summed (``none``: favours short options).

    Raises:
        PluginError: an unknown ``form`` or ``normalise``. DataError (while scoring): an ``answer`` that is no option.
    """

    name: ClassVar[str] = "choice"
    requires: ClassVar[tuple[str, ...]] = ("options",)

    def __init__(self, form: Form = "auto", normalise: Normalisation = "tokens") -> None:
        for kind, value, allowed in (("form", form, Form), ("normalise", normalise, Normalisation)):
            if value not in get_args(allowed):
                raise PluginError("scorer 'choice': " + unknown(kind, str(value), get_args(allowed)))
        self.form = form
        self.normalise = normalise

    def measures(self, example: Example) -> bool:
        return bool(example.choices) and example.answer is not None

    def options(self, example: Example) -> Sequence[str]:
        form = self._form(example)
        return [render(form, index, text) for index, text in enumerate(example.choices or ())]

    def score(self, example: Example, evidence: Evidence) -> float:
        right = _right(example)
        texts = self.options(example)
        values = [
            -float(nll.sum(dtype=np.float64)) / self._length(nll, text)
            for nll, text in zip(evidence.option_nll, texts, strict=True)
        ]
        best = [index for index, value in enumerate(values) if value == max(values)]
        return 1 / len(best) if right in best else 0.0

    def _length(self, nll: np.ndarray, text: str) -> int:
        return {"tokens": len(nll), "characters": len(text), "none": 1}[self.normalise]

    def _form(self, example: Example) -> Form:
        if self.form != "auto":
            return self.form
        right = _right(example)
        said = normalise(example.response)
        forms: tuple[Form, ...] = ("letter_text", "letter", "text")
        rendered = {form: normalise(render(form, right, (example.choices or ())[right])) for form in forms}
        return next((form for form in forms if rendered[form] == said), "text")


def render(form: Form, index: int, text: str) -> str:
    """Return an option as a continuation: ``B``, ``False`` or ``B. False``."""
    name = chr(65 + index)
    return {"letter": name, "text": text, "letter_text": f"{name}. {text}"}[form]


def _right(example: Example) -> int:
    right = gold_option(example)
    if right is None:
        options = list(example.choices or ())
        raise DataError(
            f"item {example.sample_id}: answer {example.answer!r} is neither a letter from A nor one of its choices "
            f"{options}. Mend the item, or leave `choice` out of the task's scorers."
        )
    return right
