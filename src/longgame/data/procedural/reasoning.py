"""Stage `reasoning`: order, sets, weekdays, syllogisms; unseen: family relations and orders of events."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from longgame.data.procedural.base import OOD, Draft, SubSkill, between, pick, plain, sample, span, worked
from longgame.data.procedural.gym import gym_draw
from longgame.data.procedural.words import EVENTS, KINDS, NAMES, WEEKDAYS, words

_ORDERS = {
    "taller": ("tallest", "shortest"),
    "older": ("oldest", "youngest"),
    "faster": ("fastest", "slowest"),
    "richer": ("richest", "poorest"),
}


def _compare_chain(rng: np.random.Generator, level: str) -> Draft:
    people = sample(rng, NAMES, span(rng, level, easy=(3, 3), mid=(3, 4), hard=(4, 5), ood=(6, 7)))
    relation = pick(rng, list(_ORDERS))
    facts = [f"{first} is {relation} than {second}." for first, second in pairwise(people)]
    if level != "easy":
        facts = sample(rng, facts, len(facts))
    end = int(rng.integers(2))
    answer = people[0] if end == 0 else people[-1]
    return worked(f"{' '.join(facts)} Who is {_ORDERS[relation][end]}?", " > ".join(people), answer)


def _odd_one_out(rng: np.random.Generator, level: str) -> Draft:
    kind, other = sample(rng, list(KINDS), 2)
    odd = pick(rng, KINDS[other])
    listed = [*sample(rng, KINDS[kind], span(rng, level, easy=(2, 3), mid=(3, 4), hard=(5, 5), ood=(6, 7))), odd]
    text = ", ".join(sample(rng, listed, len(listed)))
    return worked(f"Which word does not belong: {text}?", f"The others are {kind}.", odd)


def _weekday(rng: np.random.Generator, level: str) -> Draft:
    today = int(rng.integers(7))
    who, event = pick(rng, NAMES), pick(rng, EVENTS)
    if level == "easy":
        shift = between(rng, 2, 5)
        question = f"{who} has a {event} in {shift} days."
    elif level == "mid":
        shift = between(rng, 2, 8)
        question = f"{who} has a {event} in {shift} days."
        if rng.random() < 0.5:
            question, shift = f"{who} had a {event} {shift} days ago.", -shift
    else:
        first = between(rng, 2, 6) if level == "hard" else between(rng, 7, 13)
        second = between(rng, 2, 5) if level == "hard" else between(rng, 5, 9)
        other = pick(rng, [name for name in EVENTS if name != event])
        question = f"{who} has a {other} in {first} days and a {event} {second} days after the {other}."
        shift = first + second
    verb = "was" if shift < 0 else "is"
    return plain(f"Today is {WEEKDAYS[today]}. {question} What day {verb} the {event}?", WEEKDAYS[(today + shift) % 7])


_GROUPS = words("doctors lions students singers pilots robots farmers ants poets wolves judges cooks")
_FORMS: tuple[tuple[str, str, str, bool], ...] = (
    # Premise about (s, m), premise about (m, p), conclusion, whether it follows. None of them turns on whether
    # "all" implies existence, so both readings of the quantifiers give the same answer.
    ("All {s} are {m}", "All {m} are {p}", "all {s} are {p}", True),
    ("All {s} are {m}", "No {m} are {p}", "no {s} are {p}", True),
    ("All {s} are {m}", "All {p} are {m}", "all {s} are {p}", False),
    ("No {s} are {m}", "All {m} are {p}", "no {s} are {p}", False),
    ("Some {s} are {m}", "All {m} are {p}", "some {s} are {p}", True),
    ("Some {s} are {m}", "No {m} are {p}", "some {s} are not {p}", True),
    ("All {s} are {m}", "Some {m} are {p}", "some {s} are {p}", False),
    ("Some {s} are {m}", "Some {m} are {p}", "some {s} are {p}", False),
)


def _syllogism(rng: np.random.Generator, level: str) -> Draft:
    s, m, p, n, other = sample(rng, _GROUPS, 5)
    first, second, conclusion, follows = pick(rng, _FORMS[:4] if level == "easy" else _FORMS)
    names = {"s": s, "m": m, "p": p}
    facts = [first.format(**names), second.format(**names)]
    if level == OOD:  # a longer chain: n stands between s and m, so the first premise is now about n and m
        facts = [f"All {s} are {n}", first.format(s=n, m=m), facts[1]]
        follows = follows and not first.startswith("Some")
    if level in ("hard", OOD):  # a statement that changes nothing
        facts = [*facts, f"{pick(rng, ('All', 'Some', 'No'))} {other} are {p}"]
    facts = sample(rng, facts, len(facts)) if level != "easy" else facts
    return plain(f"{'. '.join(facts)}. Does it follow that {conclusion.format(**names)}?", "Yes" if follows else "No")


def _event_order(rng: np.random.Generator, level: str) -> Draft:
    events = sample(rng, EVENTS, span(rng, level, easy=(2, 3), mid=(3, 3), hard=(4, 4), ood=(5, 6)))
    facts = []
    for first, second in pairwise(events):
        forward = rng.random() < 0.5
        facts.append(f"The {first} is before the {second}." if forward else f"The {second} is after the {first}.")
    if level != "easy":
        facts = sample(rng, facts, len(facts))
    who = pick(rng, NAMES)
    return plain(f"{' '.join(facts)} List what {who} does from first to last.", ", ".join(events))


SKILLS = (
    SubSkill("compare-chain", _compare_chain),
    SubSkill("odd-one-out", _odd_one_out),
    SubSkill("weekday", _weekday),
    SubSkill("syllogism", _syllogism),
    SubSkill("event-order", _event_order, seen=False),
    SubSkill(
        "family-relation",
        gym_draw(
            "family_relationships",
            {
                "easy": {"min_family_size": 3, "max_family_size": 3},
                "mid": {"min_family_size": 3, "max_family_size": 4},
                "hard": {"min_family_size": 4, "max_family_size": 4},
                "ood": {"min_family_size": 5, "max_family_size": 6},
            },
        ),
        seen=False,
        source="reasoning_gym:family_relationships",
    ),
)
