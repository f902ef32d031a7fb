"""Building blocks of sub-skills, which turn a level of difficulty into a prompt with its exact answer."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from longgame.data.examples import Example

LEVELS = ("easy", "mid", "hard")
"""Difficulties of pools and validation sets."""
OOD = "ood"
"""The shifted level: the same generator with longer or larger parameters than any of `LEVELS`."""
ANSWER_MARK = "\nAnswer: "
"""Separates short working from the answer, in responses that show working."""

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
    new_tokens: tuple[int, int]
    """Tokens allowed for a generated answer, in validation and at the level `OOD`: the longest gold response under the
    tiny base's tokenizer, and a few more."""
    pretrained: bool = True
    """Whether the tiny base model is pretrained on it."""
    source: str = "longgame"
    kin: str | None = None
    """The pretrained sub-skill with the same kind of question, on another subject."""

    @property
    def familiar(self) -> bool:
        """Whether the tiny base model knows the form: from pretraining, or from the sub-skill's kin."""
        return self.pretrained or self.kin is not None

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
    """An item whose response is the answer alone."""
    return Draft(prompt, answer, answer)


def worked(prompt: str, working: str, answer: str) -> Draft:
    """An item whose response is short working, then the answer after `ANSWER_MARK`."""
    return Draft(prompt, f"{working}{ANSWER_MARK}{answer}", answer)


def one_of(prompt: str, answer: str, choices: Sequence[str]) -> Draft:
    """An item whose response is one of a few words, e.g. ``Yes`` of ``("Yes", "No")``."""
    return Draft(prompt, answer, answer, choices=tuple(choices))


def lettered(question: str, right: str, options: Sequence[str]) -> Draft:
    """A multiple-choice item: ``question A. … B. …`` with the response ``B. text`` and the answer ``B``."""
    letter = chr(65 + options.index(right))
    listed = " ".join(f"{chr(65 + place)}. {text}" for place, text in enumerate(options))
    return Draft(f"{question} {listed}", f"{letter}. {right}", letter, choices=tuple(options))


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options, uniformly (much faster than `Generator.choice` on a list)."""
    return options[int(rng.integers(len(options)))]


def sample(rng: np.random.Generator, options: Sequence[T], count: int) -> list[T]:
    """``count`` different options, in random order."""
    return [options[int(row)] for row in rng.permutation(len(options))[:count]]


def between(rng: np.random.Generator, low: int, high: int) -> int:
    """An integer of [low, high], both ends included."""
    return int(rng.integers(low, high + 1))


def span(rng: np.random.Generator, level: str, **bounds: tuple[int, int]) -> int:
    """An integer from the bounds of this level, e.g. ``span(rng, level, easy=(2, 3), …, ood=(8, 9))``."""
    return between(rng, *bounds[level])


def joined(items: Sequence[str]) -> str:
    """``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


# Word lists shared by the generators; small enough for a 640-entry vocabulary to hold most of them whole.


def word_list(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


def _pairs(text: str) -> dict[str, str]:
    """``a:b c:d`` as a mapping."""
    return {left: right for left, _, right in (pair.partition(":") for pair in text.split())}


NAMES = word_list(
    "Ana Ben Cara Dan Ella Finn Gita Hugo Ines Jack Kim Leo Mia Nora Omar Pia Quinn Rosa Sam Tara Uma Vic Wes Yara Zoe"
)
CITIES = word_list("Oslo Rome Paris Lima Cairo Delhi Tokyo Dublin Vienna Boston Quito Riga")
JOBS = word_list("baker pilot nurse farmer singer lawyer painter driver teacher sailor")
COLORS = word_list("red blue green black white yellow brown grey pink purple")
ADJECTIVES = word_list("old new small large clean broken heavy empty round warm quiet bright")
THINGS = word_list("lamp cup map boat door chair book clock box ladder basket window garden bottle mirror")
PLACES = word_list("lake market station bridge school harbour museum hill library park")
GOODS = word_list("apples pens coins books eggs stamps shells cards nuts bricks")
VERBS = _pairs("walks:walked hurries:hurried runs:ran goes:went swims:swam drives:drove returns:returned comes:came")
"""Verbs of movement: present → past."""
ACTIONS = _pairs(
    "opens:opened paints:painted buys:bought sells:sold finds:found takes:took breaks:broke cleans:cleaned "
    "sees:saw makes:made"
)
"""Verbs with an object: present → past."""
KINDS = {
    "fruit": word_list("apple pear plum cherry melon mango lemon grape"),
    "tools": word_list("hammer saw drill wrench pliers chisel axe file"),
    "animals": word_list("horse tiger rabbit camel otter goat zebra mouse"),
    "metals": word_list("iron copper silver gold zinc lead nickel tin"),
    "clothes": word_list("shirt scarf glove coat sock hat belt shoe"),
    "instruments": word_list("violin flute drum piano harp trumpet cello guitar"),
}
CODE_WORDS = word_list(
    "lantern marble pocket silver orange planet garden window bridge castle market pencil rocket velvet "
    "cherry lemon hammer wrench tiger rabbit camel copper nickel scarf glove violin flute trumpet guitar"
)
WEEKDAYS = word_list("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
EVENTS = word_list("talk lunch run game lesson dinner concert walk test meeting swim film")


# Sub-skills of the reasoning-gym package: four parameter sets, and the dataset's own verifier with every item.

_INDICES = 2**40
"""Bound of random indices: reasoning-gym seeds item i with ``seed + i``, so every draw is another item."""


class _LaterModule(ModuleType):
    """Stands for a module that is loaded when one of its attributes is first asked for."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


_AUTOMATA = "cellpylib"
"""A library of reasoning-gym that loads matplotlib (0.5 s), and that one of its datasets uses."""


@cache
def reasoning_gym() -> Any:
    """The package reasoning-gym, imported once and where items need it: it takes half a second."""
    later = _LaterModule(_AUTOMATA)
    sys.modules.setdefault(_AUTOMATA, later)
    try:
        return importlib.import_module("reasoning_gym")
    finally:
        if sys.modules[_AUTOMATA] is later:
            del sys.modules[_AUTOMATA]


@cache
def _dataset(name: str, parameters: str) -> Any:
    return reasoning_gym().create_dataset(name, seed=0, size=_INDICES, **json.loads(parameters))


def gym_skill(
    name: str, dataset: str, new_tokens: tuple[int, int], *, pretrained: bool = True, **levels: Mapping[str, Any]
) -> SubSkill:
    """A sub-skill whose items come from a reasoning-gym dataset.

    Args:
        dataset: its name in reasoning-gym.
        levels: level → parameters of the dataset's configuration.

    An item's ``verifier`` is ``{"library", "dataset", "entry"}`` with the entry as JSON-safe values, so the dataset's
    own ``score_answer(answer, entry)`` can judge an answer later.
    """
    parameters = {level: json.dumps(values, sort_keys=True) for level, values in levels.items()}

    def draw(rng: np.random.Generator, level: str) -> Draft:
        entry = _dataset(dataset, parameters[level])[int(rng.integers(_INDICES))]
        verifier = {"library": "reasoning_gym", "dataset": dataset, "entry": json.loads(json.dumps(entry))}
        return Draft(entry["question"].strip(), entry["answer"], entry["answer"], verifier)

    return SubSkill(name, draw, new_tokens, pretrained, f"reasoning_gym:{dataset}")
