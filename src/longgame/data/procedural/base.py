"""What every sub-skill is made of: a level of difficulty in, a prompt with its exact answer out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from longgame.data.examples import Example

LEVELS = ("easy", "mid", "hard")
"""Difficulties of pools and validation sets."""
OOD = "ood"
"""The shifted level: the same generator with longer or larger parameters than any of `LEVELS`."""
ANSWER_MARK = "\nAnswer: "
"""Stands between short working and the answer in responses that show working."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Draft:
    """An item before it becomes an `Example`."""

    prompt: str
    response: str
    answer: str
    verifier: Mapping[str, Any] | None = None
    choices: tuple[str, ...] | None = None
    """Options, where the item is multiple choice; ``answer`` is the right option's letter or its text."""


@dataclass(frozen=True, slots=True)
class SubSkill:
    """A generator of items of one kind."""

    name: str
    """Unique over all sequences."""
    draw: Callable[[np.random.Generator, str], Draft]
    """(generator, level) → item; level is one of `LEVELS` or `OOD`."""
    seen: bool = True
    """Whether the tiny base model is pretrained on it."""
    source: str = "longgame"
    kin: str | None = None
    """The seen sub-skill whose form this one has, in other words: new matter, but no new kind of question."""

    @property
    def familiar(self) -> bool:
        """Whether the tiny base model knows the form: from pretraining, or from the sub-skill's kin."""
        return self.seen or self.kin is not None

    def example(self, rng: np.random.Generator, level: str) -> Example:
        """Draw one item at a level and make it an example."""
        draft = self.draw(rng, level)
        return Example.make(
            draft.prompt,
            draft.response,
            skill=self.name,
            answer=draft.answer,
            source=self.source,
            noisy=False,
            difficulty=level,
            verifier=draft.verifier,
            choices=draft.choices,
        )


def plain(prompt: str, answer: str) -> Draft:
    """Return an item whose response is the answer alone."""
    return Draft(prompt, answer, answer)


def worked(prompt: str, working: str, answer: str) -> Draft:
    """Return an item whose response is short working, then the answer behind `ANSWER_MARK`."""
    return Draft(prompt, f"{working}{ANSWER_MARK}{answer}", answer)


def verdict(prompt: str, answer: str, choices: Sequence[str]) -> Draft:
    """Return an item whose response is one of a few words, e.g. ``Yes`` of ``("Yes", "No")``."""
    return Draft(prompt, answer, answer, choices=tuple(choices))


def lettered(question: str, right: str, options: Sequence[str]) -> Draft:
    """Return a multiple-choice item: ``question A. … B. …`` with the response ``B. text`` and the answer ``B``."""
    letter = chr(65 + options.index(right))
    listed = " ".join(f"{chr(65 + place)}. {text}" for place, text in enumerate(options))
    return Draft(f"{question} {listed}", f"{letter}. {right}", letter, choices=tuple(options))


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """Return one of the options, uniformly (much faster than `Generator.choice` on a list)."""
    return options[int(rng.integers(len(options)))]


def sample(rng: np.random.Generator, options: Sequence[T], count: int) -> list[T]:
    """Return ``count`` different options, in random order."""
    return [options[int(row)] for row in rng.permutation(len(options))[:count]]


def between(rng: np.random.Generator, low: int, high: int) -> int:
    """Return an integer of [low, high], both ends included."""
    return int(rng.integers(low, high + 1))


def span(rng: np.random.Generator, level: str, **bounds: tuple[int, int]) -> int:
    """Return an integer from the bounds of this level, e.g. ``span(rng, level, easy=(2, 3), …, ood=(8, 9))``."""
    return between(rng, *bounds[level])


def joined(items: Sequence[str]) -> str:
    """Return ``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
