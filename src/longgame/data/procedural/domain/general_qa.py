"""Domain `general-qa`: facts about lands, kinds of things, people; unseen forms: whereabouts and a named admirer."""

from __future__ import annotations

import numpy as np

from longgame.data.procedural.base import Draft, SubSkill, lettered, pick, plain, sample, span, verdict
from longgame.data.procedural.domain.words import LANDS
from longgame.data.procedural.gym import gym_draw
from longgame.data.procedural.words import CITIES, COLOURS, GOODS, JOBS, KINDS, NAMES, PLACES, VERBS

_FACTS = {"capital": CITIES, "colour": COLOURS, "king": NAMES, "trade": GOODS}


def _fact_lookup(rng: np.random.Generator, level: str) -> Draft:
    lands = sample(rng, LANDS, span(rng, level, easy=(1, 1), mid=(2, 2), hard=(2, 3), ood=(4, 4)))
    kinds = sample(rng, list(_FACTS), span(rng, level, easy=(2, 3), mid=(2, 2), hard=(2, 2), ood=(3, 3)))
    facts = {land: {kind: pick(rng, _FACTS[kind]) for kind in kinds} for land in lands}
    told = "; ".join(f"{land}: {', '.join(f'{kind} {value}' for kind, value in facts[land].items())}" for land in lands)
    land, kind = pick(rng, lands), pick(rng, kinds)
    return plain(f"{told}. What is the {kind} of {land}?", facts[land][kind])


def _kind_choice(rng: np.random.Generator, level: str) -> Draft:
    kinds = sample(rng, list(KINDS), span(rng, level, easy=(2, 2), mid=(3, 3), hard=(4, 4), ood=(5, 6)))
    options = [pick(rng, KINDS[kind]) for kind in kinds]
    row = int(rng.integers(len(kinds)))
    return lettered(f"Which word belongs to {kinds[row]}?", options[row], options)


def _compare_facts(rng: np.random.Generator, level: str) -> Draft:
    lands = sample(rng, LANDS, span(rng, level, easy=(2, 2), mid=(2, 3), hard=(4, 4), ood=(5, 6)))
    top = {"easy": 100, "mid": 1000, "hard": 1000, "ood": 20_000}[level]
    people = sample(rng, range(top // 10, top), len(lands))
    most = rng.random() < 0.5
    told = ", ".join(f"{land} {count}" for land, count in zip(lands, people, strict=True))
    row = people.index(max(people) if most else min(people))
    return plain(f"People: {told}. Which land has the {'most' if most else 'fewest'}?", lands[row])


def _true_or_false(rng: np.random.Generator, level: str) -> Draft:
    people = sample(rng, NAMES, span(rng, level, easy=(1, 1), mid=(2, 2), hard=(3, 3), ood=(4, 5)))
    facts = {who: (pick(rng, JOBS), pick(rng, CITIES)) for who in people}
    told = " ".join(f"{who} is a {job} in {city}." for who, (job, city) in facts.items())
    who = pick(rng, people)
    true = rng.random() < 0.5
    if rng.random() < 0.5:
        job = facts[who][0] if true else pick(rng, [job for job in JOBS if job != facts[who][0]])
        question = f"Does it follow that {who} is a {job}?"
    else:
        city = facts[who][1] if true else pick(rng, [city for city in CITIES if city != facts[who][1]])
        question = f"Does it follow that {who} is in {city}?"
    return verdict(f"{told} {question}", "Yes" if true else "No", ("Yes", "No"))


def _where_is(rng: np.random.Generator, level: str) -> Draft:
    people = sample(rng, NAMES, span(rng, level, easy=(1, 2), mid=(2, 2), hard=(2, 3), ood=(4, 4)))
    moves = [*people]
    moves += [pick(rng, people) for _ in range(span(rng, level, easy=(0, 0), mid=(1, 1), hard=(2, 2), ood=(3, 4)))]
    at: dict[str, str] = {}
    told = []
    for who in sample(rng, moves, len(moves)):
        at[who] = pick(rng, [place for place in PLACES if place != at.get(who)])
        told.append(f"{who} {pick(rng, list(VERBS))} to the {at[who]}.")
    asked = pick(rng, people)
    return plain(f"{' '.join(told)} Where is {asked}?", f"the {at[asked]}")


SKILLS = (
    SubSkill("fact-lookup", _fact_lookup, seen=False, kin="extract-field"),
    SubSkill("kind-choice", _kind_choice, seen=False, kin="odd-one-out"),
    SubSkill("compare-facts", _compare_facts, seen=False, kin="compare-numbers"),
    SubSkill("true-or-false", _true_or_false, seen=False, kin="syllogism"),
    SubSkill("where-is", _where_is, seen=False),
    SubSkill(
        "who-feels",
        gym_draw(
            "needle_haystack",
            {
                "easy": {"min_num_statements": 1, "max_num_statements": 1},
                "mid": {"min_num_statements": 2, "max_num_statements": 2},
                "hard": {"min_num_statements": 2, "max_num_statements": 3},
                "ood": {"min_num_statements": 4, "max_num_statements": 5},
            },
        ),
        seen=False,
        source="reasoning_gym:needle_haystack",
    ),
)
