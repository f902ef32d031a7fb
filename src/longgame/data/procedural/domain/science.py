"""Domain `science`: food chains, melting points, causes, cycles; unseen forms: atoms in formulas and legs."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from longgame.data.procedural.base import Draft, SubSkill, between, lettered, pick, plain, sample, span, worked
from longgame.data.procedural.domain.words import ANIMALS, SUBSTANCES
from longgame.data.procedural.gym import gym_draw
from longgame.data.procedural.words import NAMES


def _food_chain(rng: np.random.Generator, level: str) -> Draft:
    chain = sample(rng, ANIMALS, span(rng, level, easy=(3, 3), mid=(3, 4), hard=(4, 5), ood=(6, 7)))
    facts = [f"The {eater} eats the {eaten}." for eater, eaten in pairwise(chain)]
    if level != "easy":
        facts = sample(rng, facts, len(facts))
    top = rng.random() < 0.5
    question = f"Which is at the {'top' if top else 'bottom'}?"
    return worked(f"{' '.join(facts)} {question}", " > ".join(chain), chain[0] if top else chain[-1])


def _melting(rng: np.random.Generator, level: str) -> Draft:
    names = sample(rng, SUBSTANCES, span(rng, level, easy=(2, 2), mid=(2, 3), hard=(4, 4), ood=(5, 6)))
    top = {"easy": 90, "mid": 300, "hard": 900, "ood": 4000}[level]
    points = [between(rng, 10, top) for _ in names]
    heat = between(rng, 10, top)
    while heat in points:
        heat = between(rng, 10, top)
    liquid = rng.random() < 0.5
    told = ", ".join(f"{name} {point}" for name, point in zip(names, points, strict=True))
    found = [name for name, point in zip(names, points, strict=True) if (point < heat) == liquid]
    question = f"Which are {'liquid' if liquid else 'solid'} at {heat}?"
    return plain(f"Melts at: {told}. {question}", ", ".join(found) or "none")


_QUANTITIES = ("heat", "light", "speed", "weight", "air", "noise", "salt", "size")


def _cause_effect(rng: np.random.Generator, level: str) -> Draft:
    chain = sample(rng, _QUANTITIES, span(rng, level, easy=(2, 2), mid=(2, 2), hard=(3, 3), ood=(4, 5)))
    signs = [1 if level == "easy" else pick(rng, (1, -1)) for _ in chain[1:]]
    laws = [
        f"More {cause} gives {'more' if sign > 0 else 'less'} {effect}."
        for (cause, effect), sign in zip(pairwise(chain), signs, strict=True)
    ]
    first, second = sample(rng, NAMES, 2)
    given = 1 if level == "easy" else pick(rng, (1, -1))
    asked = pick(rng, (1, -1))
    told = f"{first} has {'more' if given > 0 else 'less'} {chain[0]} than {second}."
    question = f"Who has {'more' if asked > 0 else 'less'} {chain[-1]}?"
    right = first if given * int(np.prod(signs)) * asked > 0 else second
    return lettered(f"{' '.join(laws)} {told} {question}", right, sample(rng, (first, second), 2))


_CYCLES = (
    ("egg", "grub", "case", "moth"),
    ("seed", "root", "leaf", "bloom", "fruit"),
    ("rain", "lake", "mist", "cloud"),
    ("spring", "summer", "autumn", "winter"),
    ("new", "half", "full", "old"),
)


def _cycle_step(rng: np.random.Generator, level: str) -> Draft:
    cycle = pick(rng, _CYCLES)
    begin = int(rng.integers(len(cycle)))
    shown = [*cycle[begin:], *cycle[:begin]]
    place = int(rng.integers(len(shown)))
    steps = span(rng, level, easy=(1, 1), mid=(1, 2), hard=(2, 3), ood=(5, 9))
    rounds = ""
    if level == "ood":
        rounds = f" {pick(rng, NAMES)} sees the whole cycle {between(rng, 2, 9)} times."
    told = f"Cycle: {', '.join(shown)} and again.{rounds}"
    back = level != "easy" and rng.random() < 0.4
    row = (place - steps if back else place + steps) % len(shown)
    who = pick(rng, NAMES)
    question = f"{who} sees {shown[place]}. What {'was' if back else 'comes'} {steps} {'before' if back else 'after'}?"
    return plain(f"{told} {question}", shown[row])


_ATOMS = ("C", "H", "O", "N")


def _formula(rng: np.random.Generator, top: int) -> dict[str, int]:
    return {atom: between(rng, 1, top) for atom in sorted(sample(rng, _ATOMS, between(rng, 2, 3)))}


def _count_atoms(rng: np.random.Generator, level: str) -> Draft:
    count = span(rng, level, easy=(1, 1), mid=(1, 1), hard=(2, 2), ood=(3, 3))
    formulas = [_formula(rng, 6 if level == "easy" else 12) for _ in range(count)]
    atom = pick(rng, _ATOMS if level != "easy" else list(formulas[0]))
    shown = [" ".join(f"{name}{number if number > 1 else ''}" for name, number in each.items()) for each in formulas]
    numbers = [each.get(atom, 0) for each in formulas]
    total = sum(numbers)
    working = " + ".join(map(str, numbers)) + (f" = {total}" if count > 1 else "")
    return worked(f"How many {atom} are in {' + '.join(shown)}?", working, str(total))


def _legs(low: int, high: int, instances: int) -> dict[str, int]:
    return {"min_animals": low, "max_animals": high, "min_instances": 1, "max_instances": instances}


SKILLS = (
    SubSkill("food-chain", _food_chain, seen=False, kin="compare-chain"),
    SubSkill("melting", _melting, seen=False, kin="compare-numbers"),
    SubSkill("cause-effect", _cause_effect, seen=False, kin="compare-chain"),
    SubSkill("cycle-step", _cycle_step, seen=False, kin="weekday"),
    SubSkill("count-atoms", _count_atoms, seen=False),
    SubSkill(
        "leg-count",
        gym_draw(
            "leg_counting",
            {"easy": _legs(1, 1, 9), "mid": _legs(1, 2, 5), "hard": _legs(2, 2, 9), "ood": _legs(4, 5, 12)},
        ),
        seen=False,
        source="reasoning_gym:leg_counting",
    ),
)
