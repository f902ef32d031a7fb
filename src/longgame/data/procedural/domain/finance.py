"""Domain `finance`: tables, balances, best years, outlooks; unseen forms: simple interest and book entries."""

from __future__ import annotations

import numpy as np

from longgame.data.procedural.base import Draft, SubSkill, between, pick, plain, sample, span, verdict, worked
from longgame.data.procedural.domain.words import ITEMS, LANDS
from longgame.data.procedural.words import NAMES, THINGS


def _years(rng: np.random.Generator, count: int) -> list[int]:
    first = between(rng, 1990, 2029 - count)
    return list(range(first, first + count))


def _table_cell(rng: np.random.Generator, level: str) -> Draft:
    years = _years(rng, span(rng, level, easy=(1, 2), mid=(2, 2), hard=(3, 3), ood=(4, 4)))
    items = sample(rng, ITEMS, span(rng, level, easy=(2, 2), mid=(2, 3), hard=(2, 3), ood=(4, 4)))
    table = {item: [between(rng, 10, 99) for _ in years] for item in items}
    told = "; ".join(f"{item} {', '.join(map(str, values))}" for item, values in table.items())
    item, column = pick(rng, items), int(rng.integers(len(years)))
    question = f"Give the {item} of {years[column]}."
    return plain(f"Years {', '.join(map(str, years))}: {told}. {question}", str(table[item][column]))


def _balance(rng: np.random.Generator, level: str) -> Draft:
    top = {"easy": 20, "mid": 40, "hard": 80, "ood": 400}[level]
    total = between(rng, top // 2, top)
    told, working = [f"{pick(rng, NAMES)} holds {total}."], []
    for _ in range(span(rng, level, easy=(1, 1), mid=(2, 2), hard=(2, 3), ood=(4, 4))):
        amount = between(rng, 2, max(3, top // 3))
        if total > amount and rng.random() < 0.5:
            told.append(f"{pick(rng, ('Payment', 'Fee'))} {amount}.")
            working.append(f"{total} - {amount} = {total - amount}")
            total -= amount
        else:
            told.append(f"{pick(rng, ('Deposit', 'Interest'))} {amount}.")
            working.append(f"{total} + {amount} = {total + amount}")
            total += amount
    return worked(f"{' '.join(told)} What is the balance?", "; ".join(working), str(total))


def _best_year(rng: np.random.Generator, level: str) -> Draft:
    years = _years(rng, span(rng, level, easy=(2, 2), mid=(2, 3), hard=(4, 4), ood=(5, 6)))
    top = {"easy": 100, "mid": 500, "hard": 1000, "ood": 9000}[level]
    values = sample(rng, range(top // 10, top), len(years))
    best = rng.random() < 0.5
    told = ", ".join(f"{year} {value}" for year, value in zip(years, values, strict=True))
    row = values.index(max(values) if best else min(values))
    return plain(f"Profit: {told}. Which year was {'best' if best else 'worst'}?", str(years[row]))


_MOVES = {"positive": ("rose", "gained", "grew"), "negative": ("fell", "lost", "sank"), "neutral": ("held", "stayed")}


def _outlook(rng: np.random.Generator, level: str) -> Draft:
    firms = sample(rng, LANDS, span(rng, level, easy=(1, 1), mid=(1, 2), hard=(2, 3), ood=(4, 5)))
    tones = {firm: pick(rng, list(_MOVES)) for firm in firms}
    told = []
    for firm, tone in tones.items():
        by = f" {between(rng, 2, 90)} points" if tone != "neutral" else f" at {between(rng, 2, 90)}"
        told.append(f"{firm} {pick(rng, _MOVES[tone])}{by}.")
    asked = pick(rng, firms)
    return verdict(f"Shares: {' '.join(told)} News for {asked}?", tones[asked], tuple(_MOVES))


def _simple_interest(rng: np.random.Generator, level: str) -> Draft:
    hundreds = span(rng, level, easy=(1, 4), mid=(1, 9), hard=(2, 9), ood=(11, 40))
    rate = span(rng, level, easy=(1, 9), mid=(1, 9), hard=(2, 9), ood=(3, 12))
    years = span(rng, level, easy=(1, 1), mid=(1, 2), hard=(2, 4), ood=(3, 6))
    yearly = hundreds * rate
    lender, borrower = sample(rng, NAMES, 2)
    term = "1 year" if years == 1 else f"{years} years"
    prompt = f"{lender} lends {borrower} {hundreds}00 at {rate} percent for {term}. How much interest?"
    return worked(prompt, f"{hundreds} * {rate} = {yearly}; {yearly} * {years} = {yearly * years}", str(yearly * years))


_ENTRIES = (
    ("pays rent of {}", "rent", "cash"),
    ("pays wages of {}", "wages", "cash"),
    ("borrows {}", "cash", "loan"),
    ("repays {}", "loan", "cash"),
    ("buys a {thing} for {}", "goods", "cash"),
    ("sells a {thing} for {}", "cash", "sales"),
)


def _book_entry(rng: np.random.Generator, level: str) -> Draft:
    who = pick(rng, NAMES)
    told, booked = [], []
    for _ in range(span(rng, level, easy=(1, 1), mid=(1, 2), hard=(2, 2), ood=(3, 4))):
        form, debit, credit = pick(rng, _ENTRIES)
        amount = between(rng, 5, 99)
        told.append(form.format(amount, thing=pick(rng, THINGS)))
        booked.append(f"debit {debit} {amount}, credit {credit} {amount}")
    return plain(f"Book it: {who} {' and '.join(told)}.", "; ".join(booked))


SKILLS = (
    SubSkill("table-cell", _table_cell, seen=False, kin="extract-field"),
    SubSkill("balance", _balance, seen=False, kin="story-steps"),
    SubSkill("best-year", _best_year, seen=False, kin="compare-numbers"),
    SubSkill("outlook", _outlook, seen=False, kin="policy-lookup"),
    SubSkill("simple-interest", _simple_interest, seen=False),
    SubSkill("book-entry", _book_entry, seen=False),
)
