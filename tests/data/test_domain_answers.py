"""Every domain generator's answer, found again from the prompt alone by a solver that shares no code with it."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from longgame.data.examples import Example
from longgame.data.synthetic import DOMAINS, LEVELS, OOD
from longgame.evaluation.answers import gold_options, matches
from longgame.evaluation.scorers import Choice, Evidence

SKILLS = {skill.name: skill for skills in DOMAINS.values() for skill in skills}
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
KINDS = {
    "fruit": "apple pear plum cherry melon mango lemon grape",
    "tools": "hammer saw drill wrench pliers chisel axe file",
    "animals": "horse tiger rabbit camel otter goat zebra mouse",
    "metals": "iron copper silver gold zinc lead nickel tin",
    "clothes": "shirt scarf glove coat sock hat belt shoe",
    "instruments": "violin flute drum piano harp trumpet cello guitar",
}


def match(pattern: str, text: str) -> tuple[str, ...]:
    found = re.fullmatch(pattern, text)
    assert found, (pattern, text)
    return found.groups()


def options(prompt: str) -> dict[str, str]:
    return {text: letter for letter, text in re.findall(r"([A-F])\. (\w+)", prompt)}


def extreme(pairs: list[tuple[str, str]], largest: bool) -> str:
    return sorted(pairs, key=lambda pair: int(pair[1]))[-1 if largest else 0][0]


def fact_lookup(prompt: str) -> str:
    told, kind, land = match(r"(.*)\. What is the (\w+) of (\w+)\?", prompt)
    (facts,) = [part for part in told.split("; ") if part.startswith(f"{land}:")]
    return re.search(rf"\b{kind} (\w+)", facts)[1]


def kind_choice(prompt: str) -> str:
    (right,) = set(options(prompt)) & set(KINDS[re.search(r"belongs to (\w+)", prompt)[1]].split())
    return options(prompt)[right]


def compare_facts(prompt: str) -> str:
    return extreme(re.findall(r"(\w+) (\d+)", prompt), "most" in prompt)


def true_or_false(prompt: str) -> str:
    who, what = re.search(r"that (\w+) is (?:a|in) (\w+)\?", prompt).groups()
    (sentence,) = re.findall(rf"{who} is a (\w+) in (\w+)\.", prompt)
    return "Yes" if what in sentence else "No"


def where_is(prompt: str) -> str:
    asked = re.search(r"Where is (\w+)\?", prompt)[1]
    return "the " + re.findall(rf"{asked} \w+ to the (\w+)", prompt)[-1]


def lab_flag(prompt: str) -> str:
    asked = re.search(r"How is the (\w+)\?", prompt)[1]
    low, high = map(int, re.search(rf"{asked} (\d+) to (\d+)", prompt).groups())
    value = int(re.search(rf"{asked} (\d+)(?! to)\b", prompt.split(". ")[1])[1])
    return "low" if value < low else "high" if value > high else "normal"


def diagnosis(prompt: str) -> str:
    guide, seen = match(r"Guide: (.*)\. \w+ has (.*)\. What is it\?", prompt)
    fits = [name for name, a, b in re.findall(r"(\w+): (\w+) and (\w+)", guide) if {a, b} == set(seen.split(" and "))]
    (only,) = fits
    return only


def dose_total(prompt: str) -> str:
    return str(sum(map(int, re.findall(r"(\d+) mg", prompt))))


def trial_verdict(prompt: str) -> str:
    total, drug, rest, margin = map(
        int,
        match(
            r"Trial of (\d+): with \w+ (\d+) got well,(?: \d+ felt sick,)? without it (\d+)\. "
            r"Under (\d+) apart is maybe\. Does it help\?",
            prompt,
        ),
    )
    assert max(drug, rest) <= total
    return "maybe" if abs(drug - rest) < margin else "yes" if drug > rest else "no"


def dna_pair(prompt: str) -> str:
    return re.search(r"[ATCG ]+$", prompt)[0].strip().translate(str.maketrans("ATCG", "TAGC"))


def drug_clash(prompt: str) -> str:
    rules, takes = match(r"Clash: (.*)\. \w+ takes (.*)\. Which two clash, from A to Z\?", prompt)
    found = [{*rule} for rule in re.findall(r"(\w+) and (\w+)", rules) if {*rule} <= set(takes.split(", "))]
    assert len(found) < 2
    return " and ".join(sorted(found[0])) if found else "none"


def clause_find(prompt: str) -> str:
    contract, asked = match(r"Contract: (.*)\. Find the clause on (.*)\.", prompt)
    number = {topic: number for number, topic in re.findall(r"(\d+): (\w+)", contract)}
    return " and ".join(number[topic] for topic in asked.split(" and "))


def penalty(prompt: str) -> str:
    deeds = {
        "theft": "steal|take away",
        "vandalism": "smash|scratch",
        "fraud": "sell a fake|forge",
        "arson": "set fire|burn down",
        "spying": "secretly film|bug",
    }
    law = dict(re.findall(r"(\w+): ((?:fine|jail) \d+)", prompt))
    act = re.search(r"did (.*)", prompt)[1]
    (offence,) = [name for name, words in deeds.items() if re.match(words, act)]
    return law[offence]


def appeal_day(prompt: str) -> str:
    shift = sum(map(int, re.findall(r"\d+", prompt)))
    return DAYS[(DAYS.index(re.search(r"on (\w+)", prompt)[1]) + shift) % 7]


def cite_case(prompt: str) -> str:
    cited = []
    for case in prompt.removeprefix("Cite: ").split("; "):
        parties, *parts = case.split(", ")
        fields = dict(part.split(" ") for part in parts)
        cited.append(f"{parties.replace('against', 'v')} ({fields['year']}) {fields['book']} LR {fields['page']}")
    return "; ".join(cited)


def clause_relevant(prompt: str) -> str:
    deed = {"sell": "sold", "keep": "kept", "share": "shared", "erase": "erased"}
    told = {(deed[verb], item) for verb, item in re.findall(r"(\w+) your (\w+) data", prompt)}
    item, asked = re.search(r"Is my (\w+) data (\w+)\?", prompt).groups()
    return "Relevant" if (asked, item) in told else "Irrelevant"


def vote_count(prompt: str) -> str:
    votes = re.findall(r"\w+ (yes|no)\b", prompt)
    balance = sum(1 if vote == "yes" else -1 for vote in votes)
    return "passed" if balance > 0 else "failed" if balance < 0 else "tied"


def table_cell(prompt: str) -> str:
    years, table, item, year = match(r"Years ([\d, ]+): (.*)\. Give the (\w+) of (\d+)\.", prompt)
    (row,) = [part for part in table.split("; ") if part.startswith(item)]
    return dict(zip(years.split(", "), re.findall(r"\d+", row), strict=True))[year]


def balance(prompt: str) -> str:
    total = int(re.search(r"holds (\d+)", prompt)[1])
    total += sum(map(int, re.findall(r"(?:Deposit|Interest) (\d+)", prompt)))
    return str(total - sum(map(int, re.findall(r"(?:Payment|Fee) (\d+)", prompt))))


def best_year(prompt: str) -> str:
    return extreme(re.findall(r"(\d{4}) (\d+)", prompt), "best" in prompt)


def outlook(prompt: str) -> str:
    verb = re.search(rf"{re.search(r'News for (.*)[?]', prompt)[1]} (\w+) ", prompt)[1]
    tones = {"positive": "rose gained grew", "negative": "fell lost sank", "neutral": "held stayed"}
    (tone,) = [tone for tone, verbs in tones.items() if verb in verbs.split()]
    return tone


def simple_interest(prompt: str) -> str:
    amount, rate, years = map(int, re.search(r"(\d+) at (\d+) percent for (\d+)", prompt).groups())
    interest = Fraction(amount * rate * years, 100)
    assert interest.denominator == 1
    return str(interest)


def book_entry(prompt: str) -> str:
    accounts = {
        "pays rent": ("rent", "cash"),
        "pays wages": ("wages", "cash"),
        "borrows": ("cash", "loan"),
        "repays": ("loan", "cash"),
        "buys": ("goods", "cash"),
        "sells": ("cash", "sales"),
    }
    booked = []
    for event in prompt.removeprefix("Book it: ").rstrip(".").split(" and "):
        (kind,) = [kind for kind in accounts if f"{kind} " in event]
        amount = event.split(" ")[-1]
        booked.append(f"debit {accounts[kind][0]} {amount}, credit {accounts[kind][1]} {amount}")
    return "; ".join(booked)


def chain(prompt: str) -> list[str]:
    eats = dict(re.findall(r"The (\w+) eats the (\w+)\.", prompt))
    (first,) = set(eats) - set(eats.values())
    order = [first]
    while order[-1] in eats:
        order.append(eats[order[-1]])
    return order


def food_chain(prompt: str) -> str:
    return chain(prompt)[0 if "top" in prompt else -1]


def melting(prompt: str) -> str:
    points, state, heat = match(r"Melts at: (.*)\. Which are (liquid|solid) at (\d+)\?", prompt)
    found = [
        name
        for name, point in re.findall(r"(\w+) (\d+)", points)
        if (int(heat) > int(point) if state == "liquid" else int(heat) < int(point))
    ]
    return ", ".join(found) if found else "none"


def cause_effect(prompt: str) -> str:
    """Follow the change along the laws, one by one."""
    laws = {cause: (effect, way) for cause, way, effect in re.findall(r"More (\w+) gives (more|less) (\w+)\.", prompt)}
    first, way, quantity, second = re.search(r"(\w+) has (more|less) (\w+) than (\w+)\.", prompt).groups()
    asked, about = re.search(r"Who has (more|less) (\w+)\?", prompt).groups()
    while quantity != about:
        quantity, effect = laws[quantity]
        way = effect if way == "more" else {"more": "less", "less": "more"}[effect]
    return options(prompt)[first if way == asked else second]


def cycle_step(prompt: str) -> str:
    cycle = re.match(r"Cycle: (.*) and again\.", prompt)[1].split(", ")
    seen, steps, way = re.search(r"sees (\w+)\. What (?:was|comes) (\d+) (before|after)\?", prompt).groups()
    return cycle[(cycle.index(seen) + (int(steps) if way == "after" else -int(steps))) % len(cycle)]


def count_atoms(prompt: str) -> str:
    atom, formulas = match(r"How many (\w) are in (.*)\?", prompt)
    return str(sum(int(count or 1) for name, count in re.findall(r"([CHON])(\d*)", formulas) if name == atom))


_OWN_SOLVERS = (
    fact_lookup,
    kind_choice,
    compare_facts,
    true_or_false,
    where_is,
    lab_flag,
    diagnosis,
    dose_total,
    trial_verdict,
    dna_pair,
    drug_clash,
    clause_find,
    penalty,
    appeal_day,
    cite_case,
    clause_relevant,
    vote_count,
    table_cell,
    balance,
    best_year,
    outlook,
    simple_interest,
    book_entry,
    food_chain,
    melting,
    cause_effect,
    cycle_step,
    count_atoms,
)
SOLVERS: dict[str, Callable[[str], str]] = {solver.__name__.replace("_", "-"): solver for solver in _OWN_SOLVERS}
OWN = [name for name, skill in SKILLS.items() if skill.source == "longgame"]
GYM = [name for name, skill in SKILLS.items() if skill.source != "longgame"]


def draw(name: str, count: int, levels: tuple[str, ...] = (*LEVELS, OOD)) -> list[Example]:
    rng = np.random.default_rng(11)
    return [SKILLS[name].example(rng, level) for level in levels for _ in range(count)]


def test_every_own_generator_has_a_solver() -> None:
    assert set(SOLVERS) == set(OWN)
    assert set(GYM) == {"who-feels", "leg-count"}


@pytest.mark.parametrize("name", OWN)
def test_own_answers_are_right(name: str) -> None:
    for example in draw(name, 60):
        assert example.answer == SOLVERS[name](example.prompt), example.prompt
        assert matches(example, example.response)


@pytest.mark.parametrize("name", GYM)
def test_gym_items_pass_their_own_verifier(name: str) -> None:
    import reasoning_gym

    for example in draw(name, 15):
        judge = reasoning_gym.get_score_answer_fn(example.verifier["dataset"])
        assert judge(example.response, example.verifier["entry"]) == 1.0
        assert judge("surely wrong", example.verifier["entry"]) < 1.0


@pytest.mark.parametrize("name", ["dose-total", "balance", "simple-interest", "count-atoms"])
def test_shown_sums_are_right_and_end_in_the_answer(name: str) -> None:
    signs = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}
    for example in draw(name, 30):
        working, answer = example.response.split("\nAnswer: ")
        for line in working.split("; "):
            left, _, right = line.partition(" = ")
            first, *rest = left.split(" ")
            value = int(first)
            for sign, number in zip(rest[::2], rest[1::2], strict=True):
                value = signs[sign](value, int(number))
            assert value == int(right or left)
        assert value == int(answer) == int(example.answer)


def test_other_working_is_right() -> None:
    for example in draw("food-chain", 30):
        assert example.response.split("\n")[0] == " > ".join(chain(example.prompt))
    for example in draw("vote-count", 30):
        votes = re.findall(r"\w+ (yes|no)\b", example.prompt)
        assert example.response.startswith(f"{votes.count('yes')} yes, {votes.count('no')} no\n")
    for example in draw("penalty", 30):
        offence = re.match(r"This is (\w+)\.", example.response)[1]
        assert f"{offence}: {example.answer}" in example.prompt


CHOICES = {name for name in SKILLS if draw(name, 1, ("mid",))[0].choices}


def test_every_domain_asks_questions_with_options() -> None:
    assert all(CHOICES & {skill.name for skill in skills} for skills in DOMAINS.values())
    assert len(CHOICES) == 8


@pytest.mark.parametrize("name", sorted(CHOICES))
def test_right_option_is_the_response(name: str) -> None:
    right = set()
    for example in draw(name, 60, LEVELS):
        (place,) = gold_options(example)
        assert len(set(example.choices)) == len(example.choices) >= 2
        shown = Choice().options(example)
        assert shown[place] == example.response
        nll = tuple(np.full(3, 0.1 if row == place else 2.0) for row in range(len(shown)))
        assert Choice().score(example, Evidence(options=nll)) == 1.0
        right.add(place)
    assert right >= {0, 1}


@pytest.mark.parametrize("name", sorted(SKILLS))
def test_no_answer_can_be_guessed_from_its_frequency(name: str) -> None:
    answers = [example.answer for example in draw(name, 100, LEVELS)]
    assert max(map(answers.count, answers)) <= 0.6 * len(answers)


@pytest.mark.parametrize("name", sorted(SKILLS))
def test_ood_items_are_shifted_not_only_new(name: str) -> None:
    """Three in four OOD items are longer than the middle hard one, and so are their mean and almost every easy one."""

    def size(level: str) -> np.ndarray:
        return np.array([len(example.prompt) + len(example.response) for example in draw(name, 60, (level,))])

    assert (size(OOD) > np.median(size("hard"))).mean() >= 0.75
    assert size(OOD).mean() > size("hard").mean() >= size("easy").mean() - 1
    assert (size(OOD) > np.median(size("easy"))).mean() >= 0.9
