"""Domain `biomedical`: blood values, illnesses, doses, trials; unseen forms: DNA pairs and drugs that clash.

The values are of a made-up world; none of this is medical knowledge.
"""

from __future__ import annotations

import itertools

import numpy as np

from longgame.data.procedural.base import Draft, SubSkill, between, pick, plain, sample, span, verdict, worked
from longgame.data.procedural.domain.words import ILLNESSES, SIGNS, SUBSTANCES
from longgame.data.procedural.words import NAMES

_FLAGS = ("low", "normal", "high")


def _lab_flag(rng: np.random.Generator, level: str) -> Draft:
    markers = sample(rng, SUBSTANCES, span(rng, level, easy=(1, 1), mid=(1, 2), hard=(2, 2), ood=(3, 4)))
    top = {"easy": 50, "mid": 99, "hard": 200, "ood": 900}[level]
    ranges, values, flags = {}, {}, {}
    for marker in markers:
        low = between(rng, 10, top // 2)
        high = between(rng, low + 5, top)
        flags[marker] = pick(rng, _FLAGS)
        bounds = {"low": (1, low - 1), "normal": (low, high), "high": (high + 1, top + 40)}[flags[marker]]
        ranges[marker], values[marker] = (low, high), between(rng, *bounds)
    normal = ", ".join(f"{marker} {low} to {high}" for marker, (low, high) in ranges.items())
    seen = ", ".join(f"{marker} {values[marker]}" for marker in sample(rng, markers, len(markers)))
    asked = pick(rng, markers)
    return verdict(f"Normal: {normal}. {pick(rng, NAMES)} has {seen}. How is the {asked}?", flags[asked], _FLAGS)


def _diagnosis(rng: np.random.Generator, level: str) -> Draft:
    illnesses = sample(rng, ILLNESSES, span(rng, level, easy=(2, 2), mid=(2, 3), hard=(4, 4), ood=(5, 6)))
    pairs = list(itertools.combinations(SIGNS, 2))
    if level == "easy":  # no sign is shared, so that one sign tells
        signs = sample(rng, SIGNS, 2 * len(illnesses))
        pairs = [(signs[2 * row], signs[2 * row + 1]) for row in range(len(illnesses))]
    guide = dict(zip(illnesses, sample(rng, pairs, len(illnesses)), strict=True))
    found = pick(rng, illnesses)
    told = ", ".join(f"{illness}: {' and '.join(sample(rng, signs, 2))}" for illness, signs in guide.items())
    has = " and ".join(sample(rng, guide[found], 2))
    return verdict(f"Guide: {told}. {pick(rng, NAMES)} has {has}. What is it?", found, illnesses)


_TIMES = ("at dawn", "at noon", "at night", "at two", "at four", "at six")


def _dose_total(rng: np.random.Generator, level: str) -> Draft:
    count = span(rng, level, easy=(2, 2), mid=(2, 3), hard=(3, 3), ood=(5, 5))
    top = {"easy": 15, "mid": 30, "hard": 60, "ood": 200}[level]
    doses = [between(rng, 2, top) for _ in range(count)]
    times = sample(rng, _TIMES, count)
    parts = [f"{dose} mg {time}" for dose, time in zip(doses, times, strict=True)]
    total, working = doses[0], []
    for dose in doses[1:]:
        working.append(f"{total} + {dose} = {total + dose}")
        total += dose
    prompt = f"{pick(rng, NAMES)} takes {pick(rng, SUBSTANCES)}: {', '.join(parts)}. How many mg a day?"
    return worked(prompt, "; ".join(working), str(total))


def _trial_verdict(rng: np.random.Generator, level: str) -> Draft:
    total = {"easy": 20, "mid": 60, "hard": 99, "ood": 900}[level]
    margin = span(rng, level, easy=(3, 3), mid=(3, 5), hard=(3, 9), ood=(20, 60))
    answer = pick(rng, ("yes", "no", "maybe"))
    gap = {"yes": (margin, total // 2), "no": (margin, total // 2), "maybe": (0, margin - 1)}[answer]
    less = between(rng, 1, total // 2)
    more = less + between(rng, *gap)
    drug, rest = (less, more) if answer == "no" or (answer == "maybe" and rng.random() < 0.5) else (more, less)
    told = [f"with {pick(rng, SUBSTANCES)} {drug} got well", f"without it {rest}"]
    if level == "ood":
        told.insert(1, f"{between(rng, 1, total)} felt sick")
    trial = f"Trial of {total}: {', '.join(told)}. Under {margin} apart is maybe."
    return verdict(f"{trial} Does it help?", answer, ("yes", "no", "maybe"))


_PAIR = {"A": "T", "T": "A", "C": "G", "G": "C"}


def _dna_pair(rng: np.random.Generator, level: str) -> Draft:
    strand = [pick(rng, "ATCG") for _ in range(span(rng, level, easy=(4, 5), mid=(5, 6), hard=(7, 8), ood=(11, 13)))]
    ask = pick(rng, ("Pair the DNA", "Give the other strand", "DNA that fits"))
    return plain(f"{ask}: {' '.join(strand)}", " ".join(_PAIR[base] for base in strand))


def _drug_clash(rng: np.random.Generator, level: str) -> Draft:
    pairs = list(itertools.combinations(SUBSTANCES, 2))
    rules = sample(rng, pairs, span(rng, level, easy=(1, 2), mid=(2, 2), hard=(3, 3), ood=(4, 5)))
    count = span(rng, level, easy=(2, 2), mid=(3, 3), hard=(3, 4), ood=(5, 5))
    takes, clash = _one_clash(rng, rules, count)
    told = ", ".join(f"{a} and {b}" for a, b in (sample(rng, rule, 2) for rule in rules))
    shown = ", ".join(sample(rng, takes, len(takes)))
    answer = " and ".join(sorted(clash)) if clash else "none"
    return plain(f"Clash: {told}. {pick(rng, NAMES)} takes {shown}. Which two clash, from A to Z?", answer)


def _one_clash(
    rng: np.random.Generator, rules: list[tuple[str, str]], count: int
) -> tuple[list[str], tuple[str, str] | None]:
    """``count`` substances among which just one rule applies, or (three times in ten, or if that cannot be) none."""
    wanted = rng.random() < 0.7
    for _ in range(200):
        takes = sample(rng, SUBSTANCES, count)
        hit = [rule for rule in rules if set(rule) <= set(takes)]
        if len(hit) == int(wanted):
            return takes, hit[0] if hit else None
    takes = [name for name in SUBSTANCES if name not in {a for a, _ in rules}][:count]
    return takes, None


SKILLS = (
    SubSkill("lab-flag", _lab_flag, seen=False, kin="compare-numbers"),
    SubSkill("diagnosis", _diagnosis, seen=False, kin="policy-lookup"),
    SubSkill("dose-total", _dose_total, seen=False, kin="story-steps"),
    SubSkill("trial-verdict", _trial_verdict, seen=False, kin="compare-numbers"),
    SubSkill("dna-pair", _dna_pair, seen=False),
    SubSkill("drug-clash", _drug_clash, seen=False),
)
