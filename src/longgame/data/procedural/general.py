"""Stage `general`: follow an instruction about a text (copy with a change, extract, reformat)."""

from __future__ import annotations

import json

import numpy as np

from longgame.data.procedural.base import Draft, SubSkill, pick, plain, sample, span
from longgame.data.procedural.gym import gym_draw
from longgame.data.procedural.words import (
    ACTIONS,
    ADJECTIVES,
    CITIES,
    COLOURS,
    JOBS,
    NAMES,
    PLACES,
    THINGS,
    VERBS,
)


def noun_phrases(rng: np.random.Generator, count: int) -> list[str]:
    """Return ``count`` different phrases such as ``the red lamp``."""
    things = sample(rng, THINGS, count)
    return [f"the {pick(rng, COLOURS if rng.random() < 0.5 else ADJECTIVES)} {thing}" for thing in things]


_JOINS = {"dashes": "-", "underscores": "_", "slashes": "/", "dots": "."}


def _join_words(rng: np.random.Generator, level: str) -> Draft:
    text = " and ".join(noun_phrases(rng, span(rng, level, easy=(1, 1), mid=(1, 2), hard=(2, 2), ood=(3, 4))))
    words = f"{pick(rng, NAMES)} {pick(rng, list(ACTIONS))} {text}".split()
    name = pick(rng, list(_JOINS))
    ask = f"{pick(rng, ('Join with', 'Write with'))} {name}"
    kept = words
    if level != "easy" and rng.random() < 0.5:
        ask += ", leave out the"
        kept = [word for word in words if word != "the"]
    return plain(f"{ask}: {' '.join(words)}", _JOINS[name].join(kept))


def record(rng: np.random.Generator, count: int) -> dict[str, str | int]:
    """Return ``count`` fields about one person, in random order."""
    values: dict[str, str | int] = {
        "name": pick(rng, NAMES),
        "city": pick(rng, CITIES),
        "age": int(rng.integers(18, 80)),
        "job": pick(rng, JOBS),
        "colour": pick(rng, COLOURS),
        "room": int(rng.integers(100, 400)),
    }
    return {key: values[key] for key in sample(rng, list(values), count)}


def _extract_field(rng: np.random.Generator, level: str) -> Draft:
    fields = record(rng, span(rng, level, easy=(2, 3), mid=(3, 4), hard=(4, 5), ood=(6, 6)))
    asked = sample(rng, list(fields), 1 if level == "easy" or rng.random() < 0.4 else 2)
    text = "; ".join(f"{key}: {value}" for key, value in fields.items())
    question = pick(rng, ("Give the", "Find the"))
    return plain(f"{text}. {question} {' and the '.join(asked)}.", ", ".join(str(fields[key]) for key in asked))


def _replace_word(rng: np.random.Generator, level: str) -> Draft:
    phrases = noun_phrases(rng, span(rng, level, easy=(1, 2), mid=(2, 2), hard=(3, 3), ood=(4, 5)))
    words = f"{pick(rng, NAMES)} {pick(rng, list(ACTIONS))} {' and '.join(phrases)}".split()
    old = pick(rng, [word for word in words if word not in ("the", "and")])
    new = pick(rng, [word for word in (*COLOURS, *THINGS) if word not in words])
    text = " ".join(words)
    return plain(f"Replace {old} with {new}: {text}", " ".join(new if word == old else word for word in words))


def _past_tense(rng: np.random.Generator, level: str) -> Draft:
    clauses = []
    for part in range(span(rng, level, easy=(1, 1), mid=(2, 2), hard=(2, 3), ood=(4, 4))):
        subject = f"{pick(rng, NAMES)} " if part == 0 else ""
        if rng.random() < 0.5:
            verb, rest = pick(rng, list(VERBS)), f"to the {pick(rng, ADJECTIVES)} {pick(rng, PLACES)}"
        else:
            verb, rest = pick(rng, list(ACTIONS)), noun_phrases(rng, 1)[0]
        clauses.append((subject, verb, rest))
    past = {**VERBS, **ACTIONS}
    before = " and ".join(f"{subject}{verb} {rest}" for subject, verb, rest in clauses)
    after = " and ".join(f"{subject}{past[verb]} {rest}" for subject, verb, rest in clauses)
    return plain(f"Put this into the past tense: {before}.", f"{after}.")


def _make_json(rng: np.random.Generator, level: str) -> Draft:
    fields = record(rng, span(rng, level, easy=(2, 2), mid=(2, 3), hard=(3, 4), ood=(5, 6)))
    text = ", ".join(f"{key} {value}" for key, value in fields.items())
    return plain(f"Turn into JSON: {text}", json.dumps(fields))


SKILLS = (
    SubSkill("join-words", _join_words),
    SubSkill("extract-field", _extract_field),
    SubSkill("replace-word", _replace_word),
    SubSkill(
        "reverse-words",
        gym_draw(
            "word_sequence_reversal",
            {
                "easy": {"min_words": 2, "max_words": 2},
                "mid": {"min_words": 3, "max_words": 3},
                "hard": {"min_words": 4, "max_words": 5},
                "ood": {"min_words": 6, "max_words": 7},
            },
        ),
        source="reasoning_gym:word_sequence_reversal",
    ),
    SubSkill("past-tense", _past_tense, seen=False),
    SubSkill("make-json", _make_json, seen=False),
)
