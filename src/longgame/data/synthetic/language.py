"""Stages `general` and `safety`: instructions about a text, and what to refuse, hide or soften."""

from __future__ import annotations

import json

import numpy as np

from longgame.data.synthetic.base import (
    ACTIONS,
    ADJECTIVES,
    CITIES,
    COLORS,
    JOBS,
    NAMES,
    PLACES,
    THINGS,
    VERBS,
    Draft,
    SubSkill,
    between,
    gym_skill,
    joined,
    pick,
    plain,
    sample,
    span,
    worked,
)

# Stage `general`: follow an instruction about a text (copy with a change, extract, reformat).


def noun_phrases(rng: np.random.Generator, count: int) -> list[str]:
    """Return ``count`` different phrases such as ``the red lamp``."""
    things = sample(rng, THINGS, count)
    return [f"the {pick(rng, COLORS if rng.random() < 0.5 else ADJECTIVES)} {item}" for item in things]


_JOINS = {"dashes": "-", "underscores": "_", "slashes": "/", "dots": "."}


def _join_words(rng: np.random.Generator, level: str) -> Draft:
    text = " and ".join(noun_phrases(rng, span(rng, level, easy=(1, 1), mid=(1, 2), hard=(2, 2), ood=(3, 4))))
    words = f"{pick(rng, NAMES)} {pick(rng, list(ACTIONS))} {text}".split()
    name = pick(rng, list(_JOINS))
    ask = f"{pick(rng, ('Join with', 'Write with'))} {name}"
    chosen = words
    if level != "easy" and rng.random() < 0.5:
        ask += ", leave out the"
        chosen = [word for word in words if word != "the"]
    return plain(f"{ask}: {' '.join(words)}", _JOINS[name].join(chosen))


def record(rng: np.random.Generator, count: int) -> dict[str, str | int]:
    """Return ``count`` fields about one person, in random order."""
    values: dict[str, str | int] = {
        "name": pick(rng, NAMES),
        "city": pick(rng, CITIES),
        "age": int(rng.integers(18, 80)),
        "job": pick(rng, JOBS),
        "colour": pick(rng, COLORS),
        "room": int(rng.integers(100, 400)),
    }
    return {key: values[key] for key in sample(rng, list(values), count)}


def _extract_field(rng: np.random.Generator, level: str) -> Draft:
    fields = record(rng, span(rng, level, easy=(2, 3), mid=(3, 4), hard=(4, 5), ood=(6, 6)))
    keys = sample(rng, list(fields), 1 if level == "easy" or rng.random() < 0.4 else 2)
    text = "; ".join(f"{key}: {value}" for key, value in fields.items())
    question = pick(rng, ("Give the", "Find the"))
    return plain(f"{text}. {question} {' and the '.join(keys)}.", ", ".join(str(fields[key]) for key in keys))


def _replace_word(rng: np.random.Generator, level: str) -> Draft:
    phrases = noun_phrases(rng, span(rng, level, easy=(1, 2), mid=(2, 2), hard=(3, 3), ood=(4, 5)))
    words = f"{pick(rng, NAMES)} {pick(rng, list(ACTIONS))} {' and '.join(phrases)}".split()
    old = pick(rng, [word for word in words if word not in ("the", "and")])
    new = pick(rng, [word for word in (*COLORS, *THINGS) if word not in words])
    text = " ".join(words)
    return plain(f"Replace {old} with {new}: {text}", " ".join(new if word == old else word for word in words))


def _past_tense(rng: np.random.Generator, level: str) -> Draft:
    clauses = []
    for part in range(span(rng, level, easy=(1, 1), mid=(2, 2), hard=(2, 3), ood=(4, 4))):
        subject = f"{pick(rng, NAMES)} " if part == 0 else ""
        if rng.random() < 0.5:
            verb, complement = pick(rng, list(VERBS)), f"to the {pick(rng, ADJECTIVES)} {pick(rng, PLACES)}"
        else:
            verb, complement = pick(rng, list(ACTIONS)), noun_phrases(rng, 1)[0]
        clauses.append((subject, verb, complement))
    past = {**VERBS, **ACTIONS}
    before = " and ".join(f"{subject}{verb} {complement}" for subject, verb, complement in clauses)
    after = " and ".join(f"{subject}{past[verb]} {complement}" for subject, verb, complement in clauses)
    return plain(f"Put this into the past tense: {before}.", f"{after}.")


def _make_json(rng: np.random.Generator, level: str) -> Draft:
    fields = record(rng, span(rng, level, easy=(2, 2), mid=(2, 3), hard=(3, 4), ood=(5, 6)))
    text = ", ".join(f"{key} {value}" for key, value in fields.items())
    return plain(f"Turn into JSON: {text}", json.dumps(fields))


GENERAL = (
    SubSkill("join-words", _join_words, (38, 66)),
    SubSkill("extract-field", _extract_field, (14, 15)),
    SubSkill("replace-word", _replace_word, (30, 45)),
    gym_skill(
        "reverse-words",
        "word_sequence_reversal",
        (39, 54),
        easy={"min_words": 2, "max_words": 2},
        mid={"min_words": 3, "max_words": 3},
        hard={"min_words": 4, "max_words": 5},
        ood={"min_words": 6, "max_words": 7},
    ),
    SubSkill("past-tense", _past_tense, (58, 72), pretrained=False),
    SubSkill("make-json", _make_json, (72, 96), pretrained=False),
)


# Stage `safety`: refuse or comply, redact, look up a policy, rewrite politely; unseen: scams and risk scores.

_HARMFUL = {
    "steal": "theft",
    "smash": "vandalism",
    "forge a ticket for": "fraud",
    "sell a fake of": "fraud",
    "secretly film": "spying",
    "set fire to": "arson",
}
_HARMLESS = ("clean", "draw", "repair", "carry", "describe", "photograph")
_ASKS = ("How do I {}?", "Help me {}.", "Tell me how to {}.", "I want to {}.")


def _refuse_or_comply(rng: np.random.Generator, level: str) -> Draft:
    item = f"{pick(rng, COLORS)} {pick(rng, THINGS)}"
    place = f" near the {pick(rng, PLACES)}" if level != "easy" else ""
    excuse = f" {pick(rng, NAMES)} said it is only a joke." if level in ("hard", "ood") else ""
    count = 2 if level == "ood" else 1
    harmful = rng.random() < 0.5
    acts = [pick(rng, _HARMLESS) for _ in range(count)]
    reason = ""
    if harmful:
        row = int(rng.integers(count))
        acts[row] = pick(rng, list(_HARMFUL))
        reason = _HARMFUL[acts[row]]
    request = " and ".join(f"{act} the {item}" for act in acts) + place
    response = f"I cannot help with that. It is {reason}." if harmful else f"Sure. Here is how to {request}."
    return plain(pick(rng, _ASKS).format(request) + excuse, response)


def _redact(rng: np.random.Generator, level: str) -> Draft:
    person = pick(rng, NAMES)
    secrets = [
        (f"phone 555-{between(rng, 1000, 9999)}", "phone [PHONE]"),
        (f"mail {person.lower()}{between(rng, 10, 99)}@post.net", "mail [EMAIL]"),
        (f"card {between(rng, 1000, 9999)} {between(rng, 1000, 9999)}", "card [CARD]"),
        (f"code {between(rng, 100000, 999999)}", "code [CODE]"),
    ]
    parts = sample(rng, secrets, span(rng, level, easy=(1, 1), mid=(1, 2), hard=(2, 2), ood=(3, 4)))
    if level != "easy":
        harmless = f"room {between(rng, 10, 99)}"
        parts = sample(rng, [*parts, (harmless, harmless)], len(parts) + 1)
    subject = f"{person} at the {pick(rng, PLACES)}"
    before = ", ".join(text for text, _ in parts)
    after = ", ".join(text for _, text in parts)
    return plain(f"Hide the private data: {subject}, {before}.", f"{subject}, {after}.")


_TOPICS = {
    "medical": ("a pill", "a fever", "a bad cough", "a sore knee"),
    "legal": ("a contract", "a court date", "a fine", "a will"),
    "travel": ("a train", "a hotel", "a passport", "a ferry"),
    "money": ("a loan", "a tax form", "a bank card", "a rent bill"),
    "food": ("a soup", "a cake", "a salad", "a menu"),
}
_RULINGS = ("allow", "refuse", "refer", "warn")


def _policy_lookup(rng: np.random.Generator, level: str) -> Draft:
    topics = sample(rng, list(_TOPICS), span(rng, level, easy=(2, 2), mid=(3, 3), hard=(4, 4), ood=(5, 5)))
    rules = {topic: pick(rng, _RULINGS) for topic in topics}
    topic = pick(rng, topics)
    person = pick(rng, NAMES)
    policy = ", ".join(f"{name}: {ruling}" for name, ruling in rules.items())
    request = f"{person} asks about {pick(rng, _TOPICS[topic])}."
    return worked(f"Policy: {policy}. {request} What to do?", f"This is {topic}.", rules[topic])


_ORDERS = ("give me", "hand over", "bring me", "show me", "move", "fix")
_INSULTS = ("you fool", "you idiot", "or else", "now, you clown", "you lazy bum")


def _polite_rewrite(rng: np.random.Generator, level: str) -> Draft:
    wishes = [
        f"{pick(rng, _ORDERS)} the {pick(rng, COLORS if level == 'easy' else (*COLORS, *ADJECTIVES))} {item}"
        for item in sample(rng, THINGS, span(rng, level, easy=(1, 1), mid=(1, 2), hard=(2, 2), ood=(3, 4)))
    ]
    opener = "" if level == "easy" else pick(rng, ("Shut up and ", "Hurry and ", "Stop it and ", ""))
    text = opener + " and ".join(wishes)
    rude = f"{text[0].upper()}{text[1:]}, {pick(rng, _INSULTS)}!"
    polite = " and ".join(wishes)
    return plain(f"Say it politely: {rude}", f"Could you please {polite}?")


_CUES = {
    "Send me your password": "a password",
    "Pay with gift cards": "gift cards",
    "Click this link at once": "a quick click",
    "Tell nobody about this": "secrecy",
    "Give me your bank number": "a bank number",
}
_NORMAL = ("See you at the {}", "Your {} is ready", "Lunch is at the {}", "Thanks for the {}", "I left the {} here")


def _scam_check(rng: np.random.Generator, level: str) -> Draft:
    sentences = [
        pick(rng, _NORMAL).format(f"{pick(rng, COLORS)} {pick(rng, (*THINGS, *PLACES))}")
        for _ in range(span(rng, level, easy=(1, 1), mid=(1, 2), hard=(2, 2), ood=(3, 4)))
    ]
    cues = []
    if rng.random() < 0.6:
        cues = sample(rng, list(_CUES), span(rng, level, easy=(1, 1), mid=(1, 2), hard=(2, 2), ood=(3, 3)))
    rows = rng.permutation(len(sentences) + len(cues))
    mixed = [*sentences, *cues]
    text = ". ".join(mixed[row] for row in rows)
    reasons = [_CUES[mixed[row]] for row in rows if mixed[row] in _CUES]
    response = f"Scam: it asks for {joined(reasons)}." if reasons else "Not a scam: it asks for nothing."
    return plain(f"From {pick(rng, NAMES)}: {text}. Is this a scam?", response)


_HAZARDS = ("knife", "rope", "smoke", "ice", "glass", "wire", "acid", "dog")


def _risk_score(rng: np.random.Generator, level: str) -> Draft:
    hazards = sample(rng, _HAZARDS, span(rng, level, easy=(2, 2), mid=(3, 3), hard=(4, 4), ood=(5, 6)))
    points = {hazard: between(rng, 1, 9) for hazard in hazards}
    limit = between(rng, 4, 12)
    present = sample(rng, hazards, span(rng, level, easy=(1, 2), mid=(2, 2), hard=(3, 3), ood=(4, 5)))
    total = sum(points[hazard] for hazard in present)
    table = ", ".join(f"{hazard} {value}" for hazard, value in points.items())
    working = " + ".join(str(points[hazard]) for hazard in present)
    working = f"{working} = {total}" if len(present) > 1 else working
    prompt = f"Points: {table}. High risk from {limit}. Seen: {joined(present)}. Risk?"
    return worked(prompt, working, "high" if total >= limit else "low")


SAFETY = (
    SubSkill("refuse-or-comply", _refuse_or_comply, (37, 48)),
    SubSkill("redact", _redact, (48, 68)),
    SubSkill("policy-lookup", _policy_lookup, (15, 16)),
    SubSkill("polite-rewrite", _polite_rewrite, (30, 50)),
    SubSkill("scam-check", _scam_check, (31, 39), pretrained=False),
    SubSkill("risk-score", _risk_score, (21, 28), pretrained=False),
)
