"""Stages `math` and `reasoning`: numbers, orders, sets, dates and syllogisms."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from longgame.data.synthetic.base import (
    EVENTS,
    GOODS,
    KINDS,
    NAMES,
    OOD,
    WEEKDAYS,
    Draft,
    SubSkill,
    between,
    gym_skill,
    pick,
    plain,
    sample,
    span,
    word_list,
    worked,
)

# Stage `math`: sums, comparison, sequences, story problems; unseen: equations and rounding.


def _compare_numbers(rng: np.random.Generator, level: str) -> Draft:
    digits = span(rng, level, easy=(2, 3), mid=(3, 3), hard=(3, 4), ood=(5, 5))
    count = span(rng, level, easy=(2, 2), mid=(2, 3), hard=(3, 4), ood=(4, 5))
    numbers = [int(number) for number in rng.integers(10 ** (digits - 1), 10**digits, count)]
    while len(set(numbers)) < count:
        numbers = [int(number) for number in rng.integers(10 ** (digits - 1), 10**digits, count)]
    largest = rng.random() < 0.5
    answer = max(numbers) if largest else min(numbers)
    text = f"{', '.join(map(str, numbers[:-1]))} or {numbers[-1]}"
    return plain(f"Which is {'largest' if largest else 'smallest'}: {text}?", str(answer))


def _next_terms(rng: np.random.Generator, level: str) -> Draft:
    if level == "easy":
        steps = [between(rng, 1, 9)]
        start = between(rng, 0, 99)
    elif level == "mid":
        steps = [between(rng, -12, 15) or 10]
        start = between(rng, 60, 99)
    elif level == "hard":
        steps = [between(rng, 1, 9), between(rng, -9, -1) if rng.random() < 0.5 else between(rng, 10, 15)]
        start = between(rng, 30, 99)
    else:
        steps = [between(rng, 16, 40), between(rng, 1, 9)]
        start = between(rng, 100, 500)
    terms = [start]
    for row in range(6):
        terms.append(terms[-1] + steps[row % len(steps)])
    ask = pick(rng, ("Give the next two terms", "Continue with two numbers", "Which two come next"))
    return plain(f"{ask}: {', '.join(map(str, terms[:5]))}", f"{terms[5]}, {terms[6]}")


def _story_steps(rng: np.random.Generator, level: str) -> Draft:
    person, other = sample(rng, NAMES, 2)
    goods = pick(rng, GOODS)
    top = {"easy": 20, "mid": 30, "hard": 60, "ood": 300}[level]
    total = between(rng, top // 4, top)
    sentences = [f"{person} has {total} {goods}."]
    working = []
    for _ in range(span(rng, level, easy=(1, 1), mid=(2, 2), hard=(2, 3), ood=(4, 4))):
        amount = between(rng, 2, max(2, top // 3))
        if total > amount and rng.random() < 0.5:
            sentences.append(pick(rng, (f"{person} gives {amount} to {other}.", f"{person} loses {amount}.")))
            working.append(f"{total} - {amount} = {total - amount}")
            total -= amount
        else:
            sentences.append(pick(rng, (f"{person} buys {amount} more.", f"{other} gives {person} {amount}.")))
            working.append(f"{total} + {amount} = {total + amount}")
            total += amount
    return worked(f"{' '.join(sentences)} How many {goods} has {person} now?", "; ".join(working), str(total))


def _round_number(rng: np.random.Generator, level: str) -> Draft:
    digits = span(rng, level, easy=(3, 3), mid=(3, 4), hard=(4, 5), ood=(6, 6))
    unit, name = pick(rng, {"easy": _UNITS[:1], "mid": _UNITS[:2], "hard": _UNITS, "ood": _UNITS}[level])
    number = between(rng, 10 ** (digits - 1), 10**digits - 1)
    while number % unit == unit // 2:  # a tie has no single right answer
        number = between(rng, 10 ** (digits - 1), 10**digits - 1)
    below = number - number % unit
    answer = below + unit if number % unit > unit // 2 else below
    how = pick(rng, ("Round {} to the nearest {}.", "To the nearest {1}, what is {0}?", "Give {} rounded to the {}."))
    return plain(how.format(number, name), str(answer))


_SUMS_ONLY = {"operators_weights": [0.5, 0.5, 0.0]}
"""Without products, terms do not grow to five-digit coefficients."""
_UNITS = ((10, "ten"), (100, "hundred"), (1000, "thousand"))

MATHS = (
    gym_skill(
        "chain-sum",
        "chain_sum",
        (8, 10),
        easy={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
        mid={"min_terms": 2, "max_terms": 3, "min_digits": 2, "max_digits": 2},
        hard={"min_terms": 3, "max_terms": 4, "min_digits": 2, "max_digits": 2},
        ood={"min_terms": 3, "max_terms": 5, "min_digits": 3, "max_digits": 3},
    ),
    SubSkill("compare-numbers", _compare_numbers, (8, 10)),
    SubSkill("next-terms", _next_terms, (12, 13)),
    SubSkill("story-steps", _story_steps, (52, 80)),
    gym_skill(
        "solve-equation",
        "simple_equations",
        (6, 7),
        pretrained=False,
        easy={"min_terms": 2, "max_terms": 2, "min_value": 1, "max_value": 9},
        mid={"min_terms": 2, "max_terms": 2, "min_value": 2, "max_value": 20},
        hard={"min_terms": 3, "max_terms": 3, "min_value": 2, "max_value": 20, **_SUMS_ONLY},
        ood={"min_terms": 4, "max_terms": 4, "min_value": 10, "max_value": 99, **_SUMS_ONLY},
    ),
    SubSkill("round-number", _round_number, (10, 11), pretrained=False),
)


# Stage `reasoning`: order, sets, weekdays, syllogisms; unseen: family relations and orders of events.

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
    person, event = pick(rng, NAMES), pick(rng, EVENTS)
    if level == "easy":
        shift = between(rng, 2, 5)
        question = f"{person} has a {event} in {shift} days."
    elif level == "mid":
        shift = between(rng, 2, 8)
        question = f"{person} has a {event} in {shift} days."
        if rng.random() < 0.5:
            question, shift = f"{person} had a {event} {shift} days ago.", -shift
    else:
        first = between(rng, 2, 6) if level == "hard" else between(rng, 7, 13)
        second = between(rng, 2, 5) if level == "hard" else between(rng, 5, 9)
        other = pick(rng, [name for name in EVENTS if name != event])
        question = f"{person} has a {other} in {first} days and a {event} {second} days after the {other}."
        shift = first + second
    verb = "was" if shift < 0 else "is"
    return plain(f"Today is {WEEKDAYS[today]}. {question} What day {verb} the {event}?", WEEKDAYS[(today + shift) % 7])


_GROUPS = word_list("doctors lions students singers pilots robots farmers ants poets wolves judges cooks")
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
    person = pick(rng, NAMES)
    return plain(f"{' '.join(facts)} List what {person} does from first to last.", ", ".join(events))


REASONING = (
    SubSkill("compare-chain", _compare_chain, (21, 27)),
    SubSkill("odd-one-out", _odd_one_out, (23, 24)),
    SubSkill("weekday", _weekday, (9, 10)),
    SubSkill("syllogism", _syllogism, (6, 7)),
    SubSkill("event-order", _event_order, (28, 36), pretrained=False),
    gym_skill(
        "family-relation",
        "family_relationships",
        (13, 14),
        pretrained=False,
        easy={"min_family_size": 3, "max_family_size": 3},
        mid={"min_family_size": 3, "max_family_size": 4},
        hard={"min_family_size": 4, "max_family_size": 4},
        ood={"min_family_size": 5, "max_family_size": 6},
    ),
)
