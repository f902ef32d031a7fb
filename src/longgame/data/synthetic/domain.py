"""Five domains as small closed worlds: every fact that an answer needs is in the prompt.

Names are short, because the tiny base's vocabulary writes new words in pieces.
"""

from __future__ import annotations

import itertools
from itertools import pairwise

import numpy as np

from longgame.data.synthetic.base import (
    CITIES,
    COLORS,
    GOODS,
    JOBS,
    KINDS,
    NAMES,
    PLACES,
    THINGS,
    VERBS,
    WEEKDAYS,
    Draft,
    SubSkill,
    between,
    gym_skill,
    joined,
    lettered,
    one_of,
    pick,
    plain,
    sample,
    span,
    word_list,
    worked,
)

LANDS = word_list("Arda Borna Cela Dova Esta Fira Gora Hela Ista Jora")
"""Lands and firms that do not exist, so a model can know nothing about them."""
SUBSTANCES = word_list("iron zinc salt sugar lead copper gold silver")
SIGNS = word_list("fever cough rash pain cramp itch chill sneeze")
ILLNESSES = word_list("flu cold gout mumps croup ulcer")
TOPICS = word_list("rent noise pets bills keys heat paint guests repairs deposit")
"""Topics of a contract's clauses."""
ITEMS = word_list("sales costs tax debt cash stock wages loans")
"""Lines of an account."""
ANIMALS = word_list("fox hen worm cat mouse owl frog fly hawk snake rat bee")


# Domain `general-qa`: facts about lands, kinds of things, people; unseen forms: whereabouts and a named admirer.

_FACTS = {"capital": CITIES, "colour": COLORS, "king": NAMES, "trade": GOODS}


def _fact_lookup(rng: np.random.Generator, level: str) -> Draft:
    lands = sample(rng, LANDS, span(rng, level, easy=(1, 1), mid=(2, 2), hard=(2, 3), ood=(4, 4)))
    kinds = sample(rng, list(_FACTS), span(rng, level, easy=(2, 3), mid=(2, 2), hard=(2, 2), ood=(3, 3)))
    facts = {land: {kind: pick(rng, _FACTS[kind]) for kind in kinds} for land in lands}
    listing = "; ".join(
        f"{land}: {', '.join(f'{kind} {value}' for kind, value in facts[land].items())}" for land in lands
    )
    land, kind = pick(rng, lands), pick(rng, kinds)
    return plain(f"{listing}. What is the {kind} of {land}?", facts[land][kind])


def _kind_choice(rng: np.random.Generator, level: str) -> Draft:
    kinds = sample(rng, list(KINDS), span(rng, level, easy=(2, 2), mid=(3, 3), hard=(4, 4), ood=(5, 6)))
    options = [pick(rng, KINDS[kind]) for kind in kinds]
    row = int(rng.integers(len(kinds)))
    return lettered(f"Which word belongs to {kinds[row]}?", options[row], options)


def _compare_facts(rng: np.random.Generator, level: str) -> Draft:
    lands = sample(rng, LANDS, span(rng, level, easy=(2, 2), mid=(2, 3), hard=(4, 4), ood=(5, 6)))
    top = {"easy": 100, "mid": 1000, "hard": 1000, "ood": 20_000}[level]
    people = sample(rng, range(top // 10, top), len(lands))
    largest = rng.random() < 0.5
    listing = ", ".join(f"{land} {count}" for land, count in zip(lands, people, strict=True))
    row = people.index(max(people) if largest else min(people))
    return plain(f"People: {listing}. Which land has the {'most' if largest else 'fewest'}?", lands[row])


def _true_or_false(rng: np.random.Generator, level: str) -> Draft:
    people = sample(rng, NAMES, span(rng, level, easy=(1, 1), mid=(2, 2), hard=(3, 3), ood=(4, 5)))
    facts = {person: (pick(rng, JOBS), pick(rng, CITIES)) for person in people}
    sentences = " ".join(f"{person} is a {job} in {city}." for person, (job, city) in facts.items())
    person = pick(rng, people)
    true = rng.random() < 0.5
    if rng.random() < 0.5:
        job = facts[person][0] if true else pick(rng, [job for job in JOBS if job != facts[person][0]])
        question = f"Does it follow that {person} is a {job}?"
    else:
        city = facts[person][1] if true else pick(rng, [city for city in CITIES if city != facts[person][1]])
        question = f"Does it follow that {person} is in {city}?"
    return one_of(f"{sentences} {question}", "Yes" if true else "No", ("Yes", "No"))


def _where_is(rng: np.random.Generator, level: str) -> Draft:
    people = sample(rng, NAMES, span(rng, level, easy=(1, 2), mid=(2, 2), hard=(2, 3), ood=(4, 4)))
    moves = [*people]
    moves += [pick(rng, people) for _ in range(span(rng, level, easy=(0, 0), mid=(1, 1), hard=(2, 2), ood=(3, 4)))]
    at: dict[str, str] = {}
    sentences = []
    for person in sample(rng, moves, len(moves)):
        at[person] = pick(rng, [place for place in PLACES if place != at.get(person)])
        sentences.append(f"{person} {pick(rng, list(VERBS))} to the {at[person]}.")
    target = pick(rng, people)
    return plain(f"{' '.join(sentences)} Where is {target}?", f"the {at[target]}")


GENERAL_QA = (
    SubSkill("fact-lookup", _fact_lookup, (9, 10), pretrained=False, kin="extract-field"),
    SubSkill("kind-choice", _kind_choice, (11, 12), pretrained=False, kin="odd-one-out"),
    SubSkill("compare-facts", _compare_facts, (8, 9), pretrained=False, kin="compare-numbers"),
    SubSkill("true-or-false", _true_or_false, (6, 7), pretrained=False, kin="syllogism"),
    SubSkill("where-is", _where_is, (11, 12), pretrained=False),
    gym_skill(
        "who-feels",
        "needle_haystack",
        (18, 20),
        pretrained=False,
        easy={"min_num_statements": 1, "max_num_statements": 1},
        mid={"min_num_statements": 2, "max_num_statements": 2},
        hard={"min_num_statements": 2, "max_num_statements": 3},
        ood={"min_num_statements": 4, "max_num_statements": 5},
    ),
)


# Domain `biomedical`: blood values, illnesses, doses, trials; unseen forms: DNA pairs and drugs that clash.

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
    readings = ", ".join(f"{marker} {values[marker]}" for marker in sample(rng, markers, len(markers)))
    target = pick(rng, markers)
    return one_of(f"Normal: {normal}. {pick(rng, NAMES)} has {readings}. How is the {target}?", flags[target], _FLAGS)


def _diagnosis(rng: np.random.Generator, level: str) -> Draft:
    illnesses = sample(rng, ILLNESSES, span(rng, level, easy=(2, 2), mid=(2, 3), hard=(4, 4), ood=(5, 6)))
    pairs = list(itertools.combinations(SIGNS, 2))
    if level == "easy":  # no sign is shared, so that one sign tells
        signs = sample(rng, SIGNS, 2 * len(illnesses))
        pairs = [(signs[2 * row], signs[2 * row + 1]) for row in range(len(illnesses))]
    guide = dict(zip(illnesses, sample(rng, pairs, len(illnesses)), strict=True))
    answer = pick(rng, illnesses)
    listing = ", ".join(f"{illness}: {' and '.join(sample(rng, signs, 2))}" for illness, signs in guide.items())
    has = " and ".join(sample(rng, guide[answer], 2))
    return one_of(f"Guide: {listing}. {pick(rng, NAMES)} has {has}. What is it?", answer, illnesses)


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
    smaller = between(rng, 1, total // 2)
    larger = smaller + between(rng, *gap)
    drug, without = (
        (smaller, larger) if answer == "no" or (answer == "maybe" and rng.random() < 0.5) else (larger, smaller)
    )
    results = [f"with {pick(rng, SUBSTANCES)} {drug} got well", f"without it {without}"]
    if level == "ood":
        results.insert(1, f"{between(rng, 1, total)} felt sick")
    trial = f"Trial of {total}: {', '.join(results)}. Under {margin} apart is maybe."
    return one_of(f"{trial} Does it help?", answer, ("yes", "no", "maybe"))


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
    listing = ", ".join(f"{a} and {b}" for a, b in (sample(rng, rule, 2) for rule in rules))
    shown = ", ".join(sample(rng, takes, len(takes)))
    answer = " and ".join(sorted(clash)) if clash else "none"
    return plain(f"Clash: {listing}. {pick(rng, NAMES)} takes {shown}. Which two clash, from A to Z?", answer)


def _one_clash(
    rng: np.random.Generator, rules: list[tuple[str, str]], count: int
) -> tuple[list[str], tuple[str, str] | None]:
    """``count`` substances among which just one rule applies, or (three times in ten, or if that cannot be) none."""
    has_clash = rng.random() < 0.7
    for _ in range(200):
        takes = sample(rng, SUBSTANCES, count)
        hit = [rule for rule in rules if set(rule) <= set(takes)]
        if len(hit) == int(has_clash):
            return takes, hit[0] if hit else None
    takes = [name for name in SUBSTANCES if name not in {a for a, _ in rules}][:count]
    return takes, None


BIOMEDICAL = (
    SubSkill("lab-flag", _lab_flag, (8, 9), pretrained=False, kin="compare-numbers"),
    SubSkill("diagnosis", _diagnosis, (8, 9), pretrained=False, kin="policy-lookup"),
    SubSkill("dose-total", _dose_total, (37, 74), pretrained=False, kin="story-steps"),
    SubSkill("trial-verdict", _trial_verdict, (8, 9), pretrained=False, kin="compare-numbers"),
    SubSkill("dna-pair", _dna_pair, (18, 28), pretrained=False),
    SubSkill("drug-clash", _drug_clash, (13, 14), pretrained=False),
)


# Domain `legal`: clauses, penalties, terms of appeal, citations; unseen forms: relevance of a clause and votes.


def _clause_find(rng: np.random.Generator, level: str) -> Draft:
    topics = sample(rng, TOPICS, span(rng, level, easy=(2, 3), mid=(3, 4), hard=(5, 5), ood=(7, 8)))
    numbers = sorted(sample(rng, range(1, 60), len(topics)))
    contract = ", ".join(f"{number}: {topic}" for number, topic in zip(numbers, topics, strict=True))
    targets = sample(rng, range(len(topics)), 2 if level in ("hard", "ood") and rng.random() < 0.5 else 1)
    question = " and ".join(topics[row] for row in targets)
    return plain(
        f"Contract: {contract}. Find the clause on {question}.", joined([str(numbers[row]) for row in targets])
    )


_OFFENSES = {
    "theft": ("steal", "take away"),
    "vandalism": ("smash", "scratch"),
    "fraud": ("sell a fake of", "forge"),
    "arson": ("set fire to", "burn down"),
    "spying": ("secretly film", "bug"),
}


def _penalty(rng: np.random.Generator, level: str) -> Draft:
    offences = sample(rng, list(_OFFENSES), span(rng, level, easy=(2, 2), mid=(3, 3), hard=(4, 4), ood=(5, 5)))
    law = {offence: f"{pick(rng, ('fine', 'jail'))} {between(rng, 2, 90)}" for offence in offences}
    done = pick(rng, offences)
    listing = ", ".join(f"{offence}: {penalty}" for offence, penalty in law.items())
    article = f"the {pick(rng, COLORS)} {pick(rng, THINGS)}"
    act = f"{pick(rng, NAMES)} did {pick(rng, _OFFENSES[done])} {article}."
    if level == "ood":
        act = f"{act[:-1]}, and {pick(rng, NAMES)} saw it."
    return worked(f"Law: {listing}. {act} What follows?", f"This is {done}.", law[done])


def _appeal_day(rng: np.random.Generator, level: str) -> Draft:
    ruled = int(rng.integers(7))
    days = span(rng, level, easy=(2, 5), mid=(2, 8), hard=(2, 6), ood=(11, 30))
    person = pick(rng, NAMES)
    sentence, shift = f"{person} may appeal for {days} days.", days
    if level in ("hard", "ood"):
        extra = span(rng, level, hard=(2, 5), ood=(10, 25))
        sentence, shift = f"{sentence} The judge adds {extra} days.", days + extra
    prompt = f"The ruling is on {WEEKDAYS[ruled]}. {sentence} What day is the last?"
    return plain(prompt, WEEKDAYS[(ruled + shift) % 7])


def _cite_case(rng: np.random.Generator, level: str) -> Draft:
    cases, cited = [], []
    for _ in range(2 if level == "ood" else 1):
        first, second = sample(rng, NAMES, 2)
        year, book, page = between(rng, 1900, 2029), between(rng, 1, 99), between(rng, 1, 99)
        parts = [f"year {year}", f"book {book}", f"page {page}"]
        if level in ("hard", "ood"):
            parts.append(f"room {between(rng, 1, 99)}")  # what a citation does not name
        parts = parts if level == "easy" else sample(rng, parts, len(parts))
        cases.append(f"{first} against {second}, {', '.join(parts)}")
        cited.append(f"{first} v {second} ({year}) {book} LR {page}")
    return plain(f"Cite: {'; '.join(cases)}", "; ".join(cited))


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
    return one_of(f"Clause: we {clause}. {pick(rng, NAMES)} asks: {question}", _RELEVANCE[not relevant], _RELEVANCE)


def _vote_count(rng: np.random.Generator, level: str) -> Draft:
    judges = sample(rng, NAMES, span(rng, level, easy=(3, 3), mid=(3, 4), hard=(5, 5), ood=(7, 8)))
    votes = [pick(rng, ("yes", "no")) for _ in judges]
    listing = ", ".join(f"{judge} {vote}" for judge, vote in zip(judges, votes, strict=True))
    in_favor, against = votes.count("yes"), votes.count("no")
    outcome = "passed" if in_favor > against else "failed" if against > in_favor else "tied"
    return worked(f"Judges: {listing}. How did the vote end?", f"{in_favor} yes, {against} no", outcome)


LEGAL = (
    SubSkill("clause-find", _clause_find, (10, 11), pretrained=False, kin="extract-field"),
    SubSkill("penalty", _penalty, (23, 24), pretrained=False, kin="policy-lookup"),
    SubSkill("appeal-day", _appeal_day, (9, 10), pretrained=False, kin="weekday"),
    SubSkill("cite-case", _cite_case, (26, 50), pretrained=False, kin="extract-field"),
    SubSkill("clause-relevant", _clause_relevant, (11, 12), pretrained=False),
    SubSkill("vote-count", _vote_count, (20, 21), pretrained=False),
)


# Domain `finance`: tables, balances, best years, outlooks; unseen forms: simple interest and book entries.


def _years(rng: np.random.Generator, count: int) -> list[int]:
    first = between(rng, 1990, 2029 - count)
    return list(range(first, first + count))


def _table_cell(rng: np.random.Generator, level: str) -> Draft:
    years = _years(rng, span(rng, level, easy=(1, 2), mid=(2, 2), hard=(3, 3), ood=(4, 4)))
    items = sample(rng, ITEMS, span(rng, level, easy=(2, 2), mid=(2, 3), hard=(2, 3), ood=(4, 4)))
    table = {item: [between(rng, 10, 99) for _ in years] for item in items}
    listing = "; ".join(f"{item} {', '.join(map(str, values))}" for item, values in table.items())
    item, column = pick(rng, items), int(rng.integers(len(years)))
    question = f"Give the {item} of {years[column]}."
    return plain(f"Years {', '.join(map(str, years))}: {listing}. {question}", str(table[item][column]))


def _balance(rng: np.random.Generator, level: str) -> Draft:
    top = {"easy": 20, "mid": 40, "hard": 80, "ood": 400}[level]
    total = between(rng, top // 2, top)
    sentences, working = [f"{pick(rng, NAMES)} holds {total}."], []
    for _ in range(span(rng, level, easy=(1, 1), mid=(2, 2), hard=(2, 3), ood=(4, 4))):
        amount = between(rng, 2, max(3, top // 3))
        if total > amount and rng.random() < 0.5:
            sentences.append(f"{pick(rng, ('Payment', 'Fee'))} {amount}.")
            working.append(f"{total} - {amount} = {total - amount}")
            total -= amount
        else:
            sentences.append(f"{pick(rng, ('Deposit', 'Interest'))} {amount}.")
            working.append(f"{total} + {amount} = {total + amount}")
            total += amount
    return worked(f"{' '.join(sentences)} What is the balance?", "; ".join(working), str(total))


def _best_year(rng: np.random.Generator, level: str) -> Draft:
    years = _years(rng, span(rng, level, easy=(2, 2), mid=(2, 3), hard=(4, 4), ood=(5, 6)))
    top = {"easy": 100, "mid": 500, "hard": 1000, "ood": 9000}[level]
    values = sample(rng, range(top // 10, top), len(years))
    best = rng.random() < 0.5
    listing = ", ".join(f"{year} {value}" for year, value in zip(years, values, strict=True))
    row = values.index(max(values) if best else min(values))
    return plain(f"Profit: {listing}. Which year was {'best' if best else 'worst'}?", str(years[row]))


_MOVES = {"positive": ("rose", "gained", "grew"), "negative": ("fell", "lost", "sank"), "neutral": ("held", "stayed")}


def _outlook(rng: np.random.Generator, level: str) -> Draft:
    firms = sample(rng, LANDS, span(rng, level, easy=(1, 1), mid=(1, 2), hard=(2, 3), ood=(4, 5)))
    tones = {firm: pick(rng, list(_MOVES)) for firm in firms}
    sentences = []
    for firm, tone in tones.items():
        by = f" {between(rng, 2, 90)} points" if tone != "neutral" else f" at {between(rng, 2, 90)}"
        sentences.append(f"{firm} {pick(rng, _MOVES[tone])}{by}.")
    target = pick(rng, firms)
    return one_of(f"Shares: {' '.join(sentences)} News for {target}?", tones[target], tuple(_MOVES))


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
    person = pick(rng, NAMES)
    events, booked = [], []
    for _ in range(span(rng, level, easy=(1, 1), mid=(1, 2), hard=(2, 2), ood=(3, 4))):
        form, debit, credit = pick(rng, _ENTRIES)
        amount = between(rng, 5, 99)
        events.append(form.format(amount, thing=pick(rng, THINGS)))
        booked.append(f"debit {debit} {amount}, credit {credit} {amount}")
    return plain(f"Book it: {person} {' and '.join(events)}.", "; ".join(booked))


FINANCE = (
    SubSkill("table-cell", _table_cell, (6, 7), pretrained=False, kin="extract-field"),
    SubSkill("balance", _balance, (53, 74), pretrained=False, kin="story-steps"),
    SubSkill("best-year", _best_year, (8, 9), pretrained=False, kin="compare-numbers"),
    SubSkill("outlook", _outlook, (10, 11), pretrained=False, kin="policy-lookup"),
    SubSkill("simple-interest", _simple_interest, (34, 40), pretrained=False),
    SubSkill("book-entry", _book_entry, (54, 105), pretrained=False),
)


# Domain `science`: food chains, melting points, causes, cycles; unseen forms: atoms in formulas and legs.


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
    listing = ", ".join(f"{name} {point}" for name, point in zip(names, points, strict=True))
    answer = [name for name, point in zip(names, points, strict=True) if (point < heat) == liquid]
    question = f"Which are {'liquid' if liquid else 'solid'} at {heat}?"
    return plain(f"Melts at: {listing}. {question}", ", ".join(answer) or "none")


_QUANTITIES = ("heat", "light", "speed", "weight", "air", "noise", "salt", "size")


def _cause_effect(rng: np.random.Generator, level: str) -> Draft:
    chain = sample(rng, _QUANTITIES, span(rng, level, easy=(2, 2), mid=(2, 2), hard=(3, 3), ood=(4, 5)))
    signs = [1 if level == "easy" else pick(rng, (1, -1)) for _ in chain[1:]]
    laws = [
        f"More {cause} gives {'more' if sign > 0 else 'less'} {effect}."
        for (cause, effect), sign in zip(pairwise(chain), signs, strict=True)
    ]
    first, second = sample(rng, NAMES, 2)
    first_sign = 1 if level == "easy" else pick(rng, (1, -1))
    question_sign = pick(rng, (1, -1))
    sentence = f"{first} has {'more' if first_sign > 0 else 'less'} {chain[0]} than {second}."
    question = f"Who has {'more' if question_sign > 0 else 'less'} {chain[-1]}?"
    right = first if first_sign * int(np.prod(signs)) * question_sign > 0 else second
    return lettered(f"{' '.join(laws)} {sentence} {question}", right, sample(rng, (first, second), 2))


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
    sentence = f"Cycle: {', '.join(shown)} and again.{rounds}"
    back = level != "easy" and rng.random() < 0.4
    row = (place - steps if back else place + steps) % len(shown)
    person = pick(rng, NAMES)
    question = (
        f"{person} sees {shown[place]}. What {'was' if back else 'comes'} {steps} {'before' if back else 'after'}?"
    )
    return plain(f"{sentence} {question}", shown[row])


_ATOMS = ("C", "H", "O", "N")


def _formula(rng: np.random.Generator, top: int) -> dict[str, int]:
    return {atom: between(rng, 1, top) for atom in sorted(sample(rng, _ATOMS, between(rng, 2, 3)))}


def _count_atoms(rng: np.random.Generator, level: str) -> Draft:
    count = span(rng, level, easy=(1, 1), mid=(1, 1), hard=(2, 2), ood=(3, 3))
    formulas = [_formula(rng, 6 if level == "easy" else 12) for _ in range(count)]
    atom = pick(rng, _ATOMS if level != "easy" else list(formulas[0]))
    shown = [
        " ".join(f"{name}{number if number > 1 else ''}" for name, number in formula.items()) for formula in formulas
    ]
    numbers = [formula.get(atom, 0) for formula in formulas]
    total = sum(numbers)
    working = " + ".join(map(str, numbers)) + (f" = {total}" if count > 1 else "")
    return worked(f"How many {atom} are in {' + '.join(shown)}?", working, str(total))


def _legs(low: int, high: int, instances: int) -> dict[str, int]:
    return {"min_animals": low, "max_animals": high, "min_instances": 1, "max_instances": instances}


SCIENCE = (
    SubSkill("food-chain", _food_chain, (31, 40), pretrained=False, kin="compare-chain"),
    SubSkill("melting", _melting, (22, 32), pretrained=False, kin="compare-numbers"),
    SubSkill("cause-effect", _cause_effect, (8, 9), pretrained=False, kin="compare-chain"),
    SubSkill("cycle-step", _cycle_step, (9, 10), pretrained=False, kin="weekday"),
    SubSkill("count-atoms", _count_atoms, (20, 25), pretrained=False),
    gym_skill(
        "leg-count",
        "leg_counting",
        (7, 8),
        pretrained=False,
        easy=_legs(1, 1, 9),
        mid=_legs(1, 2, 5),
        hard=_legs(2, 2, 9),
        ood=_legs(4, 5, 12),
    ),
)
