"""Stage `math`: sums, comparison, sequences, story problems; unseen: equations and rounding."""

from __future__ import annotations

import numpy as np

from longgame.data.procedural.base import Draft, SubSkill, between, pick, plain, sample, span, worked
from longgame.data.procedural.gym import gym_draw
from longgame.data.procedural.words import GOODS, NAMES


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
    who, other = sample(rng, NAMES, 2)
    goods = pick(rng, GOODS)
    top = {"easy": 20, "mid": 30, "hard": 60, "ood": 300}[level]
    total = between(rng, top // 4, top)
    sentences = [f"{who} has {total} {goods}."]
    working = []
    for _ in range(span(rng, level, easy=(1, 1), mid=(2, 2), hard=(2, 3), ood=(4, 4))):
        amount = between(rng, 2, max(2, top // 3))
        if total > amount and rng.random() < 0.5:
            sentences.append(pick(rng, (f"{who} gives {amount} to {other}.", f"{who} loses {amount}.")))
            working.append(f"{total} - {amount} = {total - amount}")
            total -= amount
        else:
            sentences.append(pick(rng, (f"{who} buys {amount} more.", f"{other} gives {who} {amount}.")))
            working.append(f"{total} + {amount} = {total + amount}")
            total += amount
    return worked(f"{' '.join(sentences)} How many {goods} has {who} now?", "; ".join(working), str(total))


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
"""Keeps reasoning-gym from multiplying the terms out to five-digit coefficients."""
_UNITS = ((10, "ten"), (100, "hundred"), (1000, "thousand"))

SKILLS = (
    SubSkill(
        "chain-sum",
        gym_draw(
            "chain_sum",
            {
                "easy": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
                "mid": {"min_terms": 2, "max_terms": 3, "min_digits": 2, "max_digits": 2},
                "hard": {"min_terms": 3, "max_terms": 4, "min_digits": 2, "max_digits": 2},
                "ood": {"min_terms": 3, "max_terms": 5, "min_digits": 3, "max_digits": 3},
            },
        ),
        source="reasoning_gym:chain_sum",
    ),
    SubSkill("compare-numbers", _compare_numbers),
    SubSkill("next-terms", _next_terms),
    SubSkill("story-steps", _story_steps),
    SubSkill(
        "solve-equation",
        gym_draw(
            "simple_equations",
            {
                "easy": {"min_terms": 2, "max_terms": 2, "min_value": 1, "max_value": 9},
                "mid": {"min_terms": 2, "max_terms": 2, "min_value": 2, "max_value": 20},
                "hard": {"min_terms": 3, "max_terms": 3, "min_value": 2, "max_value": 20, **_SUMS_ONLY},
                "ood": {"min_terms": 4, "max_terms": 4, "min_value": 10, "max_value": 99, **_SUMS_ONLY},
            },
        ),
        seen=False,
        source="reasoning_gym:simple_equations",
    ),
    SubSkill("round-number", _round_number, seen=False),
)
