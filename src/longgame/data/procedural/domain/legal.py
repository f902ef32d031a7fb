"""Domain `legal`: clauses, penalties, terms of appeal, citations; unseen forms: relevance of a clause and votes.

The law is of a made-up world.
"""

from __future__ import annotations

import numpy as np

from longgame.data.procedural.base import Draft, SubSkill, between, joined, pick, plain, sample, span, verdict, worked
from longgame.data.procedural.domain.words import TOPICS
from longgame.data.procedural.words import COLOURS, NAMES, THINGS, WEEKDAYS


def _clause_find(rng: np.random.Generator, level: str) -> Draft:
    topics = sample(rng, TOPICS, span(rng, level, easy=(2, 3), mid=(3, 4), hard=(5, 5), ood=(7, 8)))
    numbers = sorted(sample(rng, range(1, 60), len(topics)))
    contract = ", ".join(f"{number}: {topic}" for number, topic in zip(numbers, topics, strict=True))
    asked = sample(rng, range(len(topics)), 2 if level in ("hard", "ood") and rng.random() < 0.5 else 1)
    question = " and ".join(topics[row] for row in asked)
    return plain(f"Contract: {contract}. Find the clause on {question}.", joined([str(numbers[row]) for row in asked]))


_OFFENCES = {
    "theft": ("steal", "take away"),
    "vandalism": ("smash", "scratch"),
    "fraud": ("sell a fake of", "forge"),
    "arson": ("set fire to", "burn down"),
    "spying": ("secretly film", "bug"),
}


def _penalty(rng: np.random.Generator, level: str) -> Draft:
    offences = sample(rng, list(_OFFENCES), span(rng, level, easy=(2, 2), mid=(3, 3), hard=(4, 4), ood=(5, 5)))
    law = {offence: f"{pick(rng, ('fine', 'jail'))} {between(rng, 2, 90)}" for offence in offences}
    done = pick(rng, offences)
    told = ", ".join(f"{offence}: {penalty}" for offence, penalty in law.items())
    thing = f"the {pick(rng, COLOURS)} {pick(rng, THINGS)}"
    act = f"{pick(rng, NAMES)} did {pick(rng, _OFFENCES[done])} {thing}."
    if level == "ood":
        act = f"{act[:-1]}, and {pick(rng, NAMES)} saw it."
    return worked(f"Law: {told}. {act} What follows?", f"This is {done}.", law[done])


def _appeal_day(rng: np.random.Generator, level: str) -> Draft:
    ruled = int(rng.integers(7))
    days = span(rng, level, easy=(2, 5), mid=(2, 8), hard=(2, 6), ood=(11, 30))
    who = pick(rng, NAMES)
    told, shift = f"{who} may appeal for {days} days.", days
    if level in ("hard", "ood"):
        more = span(rng, level, hard=(2, 5), ood=(10, 25))
        told, shift = f"{told} The judge adds {more} days.", days + more
    prompt = f"The ruling is on {WEEKDAYS[ruled]}. {told} What day is the last?"
    return plain(prompt, WEEKDAYS[(ruled + shift) % 7])


def _cite_case(rng: np.random.Generator, level: str) -> Draft:
    told, cited = [], []
    for _ in range(2 if level == "ood" else 1):
        first, second = sample(rng, NAMES, 2)
        year, book, page = between(rng, 1900, 2029), between(rng, 1, 99), between(rng, 1, 99)
        parts = [f"year {year}", f"book {book}", f"page {page}"]
        if level in ("hard", "ood"):
            parts.append(f"room {between(rng, 1, 99)}")  # what a citation does not name
        parts = parts if level == "easy" else sample(rng, parts, len(parts))
        told.append(f"{first} against {second}, {', '.join(parts)}")
        cited.append(f"{first} v {second} ({year}) {book} LR {page}")
    return plain(f"Cite: {'; '.join(told)}", "; ".join(cited))


_DEEDS = {"sell": "sold", "keep": "kept", "share": "shared", "erase": "erased"}
_DATA = ("mail", "card", "phone", "photo", "code", "room")
_RELEVANCE = ("Relevant", "Irrelevant")


def _clause_relevant(rng: np.random.Generator, level: str) -> Draft:
    count = span(rng, level, easy=(1, 1), mid=(1, 1), hard=(2, 2), ood=(3, 4))
    deeds, data = sample(rng, list(_DEEDS), count), sample(rng, _DATA, count)
    clause = " and ".join(f"{deed} your {item} data" for deed, item in zip(deeds, data, strict=True))
    row = int(rng.integers(count))
    deed, item = deeds[row], data[row]
    relevant = rng.random() < 0.5
    if not relevant:
        changed = int(rng.integers(3)) if level == "easy" else int(rng.integers(2))
        deed = pick(rng, [name for name in _DEEDS if name not in deeds[row]]) if changed != 1 else deed
        item = pick(rng, [name for name in _DATA if name not in data[row]]) if changed != 0 else item
        relevant = (deed, item) in zip(deeds, data, strict=True)
    question = f"Is my {item} data {_DEEDS[deed]}?"
    return verdict(f"Clause: we {clause}. {pick(rng, NAMES)} asks: {question}", _RELEVANCE[not relevant], _RELEVANCE)


def _vote_count(rng: np.random.Generator, level: str) -> Draft:
    judges = sample(rng, NAMES, span(rng, level, easy=(3, 3), mid=(3, 4), hard=(5, 5), ood=(7, 8)))
    votes = [pick(rng, ("yes", "no")) for _ in judges]
    told = ", ".join(f"{judge} {vote}" for judge, vote in zip(judges, votes, strict=True))
    in_favour, against = votes.count("yes"), votes.count("no")
    outcome = "passed" if in_favour > against else "failed" if against > in_favour else "tied"
    return worked(f"Judges: {told}. How did the vote end?", f"{in_favour} yes, {against} no", outcome)


SKILLS = (
    SubSkill("clause-find", _clause_find, seen=False, kin="extract-field"),
    SubSkill("penalty", _penalty, seen=False, kin="policy-lookup"),
    SubSkill("appeal-day", _appeal_day, seen=False, kin="weekday"),
    SubSkill("cite-case", _cite_case, seen=False, kin="extract-field"),
    SubSkill("clause-relevant", _clause_relevant, seen=False),
    SubSkill("vote-count", _vote_count, seen=False),
)
