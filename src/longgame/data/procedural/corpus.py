"""The mixture the tiny base model is pretrained on: seen sub-skills of every stage, and generic text."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from longgame.data.examples import Example
from longgame.data.procedural.base import LEVELS, between, joined, pick, sample
from longgame.data.procedural.general import noun_phrases
from longgame.data.procedural.pool import LEVEL_SHARES
from longgame.data.procedural.stages import STAGES
from longgame.data.procedural.words import (
    ACTIONS,
    CITIES,
    EVENTS,
    GOODS,
    JOBS,
    KINDS,
    NAMES,
    PLACES,
    VERBS,
    WEEKDAYS,
)
from longgame.seeding import generator

GENERIC_SHARE = 0.12
"""Share of the base mixture's items that are generic text (no prompt; skill None)."""


def pretraining_texts(seed: int) -> Iterator[Example]:
    """Yield the base mixture without end: a stage, then one of its seen sub-skills, then a difficulty, at random.

    Every stage is equally likely, and every seen sub-skill within it. Unseen sub-skills never
    occur. The reader stops when it has its tokens.
    """
    rng = generator(seed, "procedural", "pretraining")
    seen = [[skill for skill in skills if skill.seen] for skills in STAGES.values()]
    edges = np.cumsum([LEVEL_SHARES[level] for level in LEVELS])
    while True:
        if rng.random() < GENERIC_SHARE:
            yield Example.make("", generic_text(rng), source="longgame:generic")
        else:
            level = LEVELS[min(int(np.searchsorted(edges, rng.random())), len(LEVELS) - 1)]
            yield pick(rng, pick(rng, seen)).example(rng, level)


def generic_text(rng: np.random.Generator) -> str:
    """Return two to four plain sentences about people, things and places."""
    return " ".join(pick(rng, _SENTENCES)(rng) for _ in range(between(rng, 2, 4)))


def _walk(rng: np.random.Generator) -> str:
    return f"{pick(rng, NAMES)} {pick(rng, list(VERBS))} to the {pick(rng, PLACES)} on {pick(rng, WEEKDAYS)}."


def _told(rng: np.random.Generator) -> str:
    return f"Yesterday {pick(rng, NAMES)} {pick(rng, [*ACTIONS.values()])} {noun_phrases(rng, 1)[0]}."


def _job(rng: np.random.Generator) -> str:
    return f"{pick(rng, NAMES)} is a {pick(rng, JOBS)} in {pick(rng, CITIES)} and is {between(rng, 18, 79)} years old."


def _list(rng: np.random.Generator) -> str:
    kind = pick(rng, list(KINDS))
    return f"Some {kind}: {joined(sample(rng, KINDS[kind], between(rng, 2, 4)))}."


def _shop(rng: np.random.Generator) -> str:
    goods = [f"{between(rng, 2, 40)} {name}" for name in sample(rng, GOODS, between(rng, 1, 3))]
    return f"The shop has {joined(goods)}."


def _plan(rng: np.random.Generator) -> str:
    first, second = sample(rng, EVENTS, 2)
    return f"After the {first} there is a {second} for {joined(sample(rng, NAMES, between(rng, 1, 3)))}."


def _echo(rng: np.random.Generator) -> str:
    phrase = " and ".join(noun_phrases(rng, between(rng, 1, 2)))
    return f"{pick(rng, NAMES)} said: {phrase}. {pick(rng, NAMES)} also said: {phrase}."


_SENTENCES = (_walk, _told, _job, _list, _shop, _plan, _echo)
