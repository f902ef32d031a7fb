"""Every own generator's answer, found again from the prompt alone by a solver that shares no code with it."""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from longgame.data.synthetic import LEVELS, OOD, STAGES

SKILLS = {skill.name: skill for skills in STAGES.values() for skill in skills}
PAST = dict(
    re.findall(
        r"(\w+):(\w+)",
        "walks:walked hurries:hurried runs:ran goes:went swims:swam drives:drove returns:returned comes:came "
        "opens:opened paints:painted buys:bought sells:sold finds:found takes:took breaks:broke cleans:cleaned "
        "sees:saw makes:made",
    )
)
KINDS = {
    "fruit": "apple pear plum cherry melon mango lemon grape",
    "tools": "hammer saw drill wrench pliers chisel axe file",
    "animals": "horse tiger rabbit camel otter goat zebra mouse",
    "metals": "iron copper silver gold zinc lead nickel tin",
    "clothes": "shirt scarf glove coat sock hat belt shoe",
    "instruments": "violin flute drum piano harp trumpet cello guitar",
}
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


def join_words(prompt: str) -> str:
    order, text = prompt.split(": ")
    mark = {"dashes": "-", "underscores": "_", "slashes": "/", "dots": "."}[re.split(r"[ ,]", order)[2]]
    if "leave out the" in order:
        text = re.sub(r"\bthe ", "", text)
    return text.replace(" ", mark)


def extract_field(prompt: str) -> str:
    text, question = re.fullmatch(r"(.*)\. ((?:Give|Find) the .*)\.", prompt).groups()
    fields = dict(part.split(": ") for part in text.split("; "))
    return ", ".join(fields[key] for key in re.findall(r"the (\w+)", question))


def replace_word(prompt: str) -> str:
    old, new, text = re.fullmatch(r"Replace (\w+) with (\w+): (.*)", prompt).groups()
    return re.sub(rf"\b{old}\b", new, text)


def past_tense(prompt: str) -> str:
    return " ".join(PAST.get(word, word) for word in prompt.split(": ")[1].split())


def make_json(prompt: str) -> object:
    pairs = [part.split(" ") for part in prompt.removeprefix("Turn into JSON: ").split(", ")]
    return [(key, int(value) if value.isdigit() else value) for key, value in pairs]


def compare_numbers(prompt: str) -> str:
    numbers = sorted(int(number) for number in re.findall(r"\d+", prompt))
    return str(numbers[-1] if "largest" in prompt else numbers[0])


def next_terms(prompt: str) -> str:
    a, b, c, d, e = (int(number) for number in re.findall(r"-?\d+", prompt))
    assert d - c == b - a
    assert e - d == c - b
    return f"{e + b - a}, {e + c - a}"


def story_steps(prompt: str) -> str:
    who, total = re.match(r"(\w+) has (\d+)", prompt).groups()
    total = int(total)
    for sentence in prompt.split(". ")[1:-1]:
        amount = int(re.search(r"\d+", sentence)[0])
        total += -amount if sentence.startswith((f"{who} gives", f"{who} loses")) else amount
    return str(total)


def round_number(prompt: str) -> str:
    unit = {"ten": 10, "hundred": 100, "thousand": 1000}[re.search(r"(ten|hundred|thousand)", prompt)[0]]
    number = int(re.search(r"\d+", prompt)[0])
    return str(min((k * unit for k in range(number // unit, number // unit + 2)), key=lambda x: abs(x - number)))


def run(prompt: str) -> str:
    """What the program in the prompt prints, by Python itself."""
    program = prompt[prompt.index("\n") + 1 :] if not re.match(r"\w+ = ", prompt) else prompt
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec(compile(program, "prompt", "exec"), {})
    return shown.getvalue().strip()


def close_brackets(prompt: str) -> str:
    text = re.sub(r"[^(\[{}\])]", "", prompt.split(": ")[1])
    while (shorter := re.sub(r"\(\)|\[\]|\{\}", "", text)) != text:
        text = shorter
    return " ".join(text[::-1].translate(str.maketrans("([{", ")]}")))


def ordered(pairs: list[tuple[str, str]]) -> list[str]:
    """The one order in which the first of every pair stands before the second."""
    before = {name: {a for a, b in pairs if b == name} for pair in pairs for name in pair}
    order: list[str] = []
    while before:
        (free,) = [name for name, needs in before.items() if not needs - set(order)]
        order.append(free)
        del before[free]
    return order


def compare_chain(prompt: str) -> str:
    order = ordered(re.findall(r"(\w+) is \w+er than (\w+)", prompt))
    first = {"tallest", "oldest", "fastest", "richest"}
    return order[0 if re.search(r"Who is (\w+)\?", prompt)[1] in first else -1]


def odd_one_out(prompt: str) -> str:
    listed = prompt.removesuffix("?").split(": ")[1].split(", ")
    kind = {word: kind for kind, text in KINDS.items() for word in text.split()}
    count = Counter(kind[word] for word in listed)
    (odd,) = [word for word in listed if count[kind[word]] == 1]
    return odd


def weekday(prompt: str) -> str:
    today = DAYS.index(re.match(r"Today is (\w+)", prompt)[1])
    shift = sum(int(number) for number in re.findall(r"\d+", prompt))
    return DAYS[(today - shift if "ago" in prompt else today + shift) % 7]


def event_order(prompt: str) -> str:
    facts = re.findall(r"The (\w+) is (before|after) the (\w+)", prompt)
    return ", ".join(ordered([(a, b) if word == "before" else (b, a) for a, word, b in facts]))


def syllogism(prompt: str) -> str:
    """Search all worlds of up to three individuals, once with and once without empty groups, for a counterexample."""
    body, claim = prompt.removesuffix("?").split(". Does it follow that ")
    statements = [re.fullmatch(r"(all|some|no) (\w+) are (not )?(\w+)", s.lower()).groups() for s in body.split(". ")]
    conclusion = re.fullmatch(r"(all|some|no) (\w+) are (not )?(\w+)", claim).groups()
    names = sorted({name for _, a, _, b in [*statements, conclusion] for name in (a, b)})

    def true(statement: tuple, world: tuple) -> bool:
        quantifier, a, negated, b = statement
        hits = [person[names.index(b)] != bool(negated) for person in world if person[names.index(a)]]
        return {"all": all(hits), "some": any(hits), "no": not any(hits)}[quantifier]

    found = []
    for existence in (False, True):
        worlds = (
            world
            for size in range(1, 4)
            for world in itertools.combinations(list(itertools.product((False, True), repeat=len(names))), size)
            if not existence or all(any(person[row] for person in world) for row in range(len(names)))
        )
        found.append(any(all(true(s, world) for s in statements) and not true(conclusion, world) for world in worlds))
    assert found[0] == found[1], "the item turns on whether `all` implies existence"
    return "No" if found[0] else "Yes"


def refuse_or_comply(prompt: str) -> str:
    crimes = {"steal": "theft", "smash": "vandalism", "forge": "fraud", "sell": "fraud"} | {
        "film": "spying",
        "set": "arson",
    }
    found = [crimes[word] for word in re.findall(r"\w+", prompt) if word in crimes]
    if found:
        return f"I cannot help with that. It is {found[0]}."
    what = re.match(r"(?:How do I|Help me|Tell me how to|I want to) (.*?)[.?](?: |$)", prompt)[1]
    return f"Sure. Here is how to {what}."


def redact(prompt: str) -> str:
    text = prompt.removeprefix("Hide the private data: ")
    text = re.sub(r"phone [\d-]+", "phone [PHONE]", text)
    text = re.sub(r"mail \w+@post\.net", "mail [EMAIL]", text)
    text = re.sub(r"card \d{4} \d{4}", "card [CARD]", text)
    return re.sub(r"code \d+", "code [CODE]", text)


def policy_lookup(prompt: str) -> str:
    topics = {
        "medical": "pill fever cough knee",
        "legal": "contract court fine will",
        "travel": "train hotel passport ferry",
        "money": "loan tax bank rent",
        "food": "soup cake salad menu",
    }
    rules = dict(re.findall(r"(\w+): (\w+)", prompt.removeprefix("Policy: ")))
    asked = set(re.search(r"asks about (.*)\. What", prompt)[1].split())
    (topic,) = [name for name, cues in topics.items() if asked & set(cues.split())]
    return rules[topic]


def polite_rewrite(prompt: str) -> str:
    text = re.sub(r"^Say it politely: (Shut up and |Hurry and |Stop it and )?", "", prompt)
    text = re.sub(r", (you|or else|now).*$", "", text)
    return f"Could you please {text[0].lower()}{text[1:]}?"


def scam_check(prompt: str) -> str:
    signs = {
        "your password": "a password",
        "gift cards": "gift cards",
        "this link": "a quick click",
        "nobody": "secrecy",
        "bank number": "a bank number",
    }
    found = sorted((prompt.index(sign), what) for sign, what in signs.items() if sign in prompt)
    names = [what for _, what in found]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""
    return f"Scam: it asks for {listed}." if names else "Not a scam: it asks for nothing."


def risk_score(prompt: str) -> str:
    table, limit, seen = re.fullmatch(r"Points: (.*)\. High risk from (\d+)\. Seen: (.*)\. Risk\?", prompt).groups()
    points = dict(part.split(" ") for part in table.split(", "))
    total = sum(int(points[name]) for name in re.split(r", | and ", seen))
    return "high" if total >= int(limit) else "low"


SOLVERS: dict[str, Callable[[str], object]] = {
    "join-words": join_words,
    "extract-field": extract_field,
    "replace-word": replace_word,
    "past-tense": past_tense,
    "make-json": make_json,
    "compare-numbers": compare_numbers,
    "next-terms": next_terms,
    "story-steps": story_steps,
    "round-number": round_number,
    "eval-expression": run,
    "trace-variables": run,
    "close-brackets": close_brackets,
    "slice-string": run,
    "list-method": run,
    "compare-chain": compare_chain,
    "odd-one-out": odd_one_out,
    "weekday": weekday,
    "event-order": event_order,
    "syllogism": syllogism,
    "refuse-or-comply": refuse_or_comply,
    "redact": redact,
    "policy-lookup": policy_lookup,
    "polite-rewrite": polite_rewrite,
    "scam-check": scam_check,
    "risk-score": risk_score,
}
OWN = [name for name, skill in SKILLS.items() if skill.source == "longgame"]
GYM = [name for name, skill in SKILLS.items() if skill.source != "longgame"]


def test_every_own_generator_has_a_solver():
    assert set(SOLVERS) == set(OWN)


@pytest.mark.parametrize("name", OWN)
def test_own_answers_are_right(name):
    rng = np.random.default_rng(7)
    for level in (*LEVELS, OOD):
        for _ in range(10 if name == "syllogism" else 60):
            example = SKILLS[name].example(rng, level)
            said: object = example.answer
            if name == "make-json":
                said = list(json.loads(example.answer).items())
            assert said == SOLVERS[name](example.prompt), example.prompt
            assert example.response.endswith(example.answer)


@pytest.mark.parametrize("name", ["story-steps", "trace-variables", "compare-chain", "odd-one-out", "risk-score"])
def test_shown_working_leads_to_the_answer(name):
    rng = np.random.default_rng(8)
    for level in (*LEVELS, OOD):
        for _ in range(30):
            example = SKILLS[name].example(rng, level)
            working, answer = example.response.split("\nAnswer: ")
            assert answer == example.answer
            for left, right in re.findall(r"(\d+ [-+] \d+(?: \+ \d+)*) = (-?\d+)", working):
                assert sum(int(x) for x in re.findall(r"[-+]?\d+", left.replace(" ", ""))) == int(right)
            if name == "compare-chain":
                assert working.split(" > ") == ordered(re.findall(r"(\w+) is \w+er than (\w+)", example.prompt))
            if name == "odd-one-out":
                assert answer not in KINDS[re.search(r"are (\w+)\.", working)[1]].split()
            if name == "trace-variables":
                values, program = dict[str, int](), example.prompt.split("\n")[1:-1]
                for line, shown in zip(program, working.split(", "), strict=True):
                    exec(line, {}, values)
                    assert shown == f"{line[0]}={values[line[0]]}"


@pytest.mark.parametrize("name", GYM)
def test_gym_items_pass_their_own_verifier_after_json(name):
    import reasoning_gym

    rng = np.random.default_rng(9)
    for level in (*LEVELS, OOD):
        for _ in range(15):
            example = SKILLS[name].example(rng, level)
            stored = json.loads(json.dumps(example.verifier))
            assert stored == example.verifier
            judge = reasoning_gym.get_score_answer_fn(stored["dataset"])
            assert judge(example.response, stored["entry"]) == 1.0
            assert judge("surely wrong", stored["entry"]) < 1.0
            assert example.prompt == stored["entry"]["question"].strip()


def test_filtered_lists_keep_what_the_prompt_says():
    """The one code sub-skill of the library, checked again by hand because its answer is a Python list."""
    rng = np.random.default_rng(10)
    for _ in range(60):
        example = SKILLS["filter-list"].example(rng, "mid")
        what, side, bound, text = re.match(
            r"(Keep|Remove) all numbers (larger|smaller) than (\S+) in this list: (\[.*\])", example.prompt
        ).groups()
        values = ast.literal_eval(text)
        beyond = [
            (float(value) > float(bound)) if side == "larger" else float(value) < float(bound) for value in values
        ]
        kept = [value for value, hit in zip(values, beyond, strict=True) if hit == (what == "Keep")]
        assert ast.literal_eval(example.answer) == kept
