from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longgame.data.examples import Example
from longgame.errors import DataError
from longgame.signals.quality.rules import RULES, quality_report, quality_scores

PROSE = (
    "Lions and tigers are both large cats, but they live in different places. A lion lives in a group that is called a "
    "pride, while a tiger hunts alone. Tigers swim well and have stripes. Both of them need a lot of meat every day."
)
CODE = "def area(width, height):\n    if width < 0:\n        raise ValueError('width')\n    return width * height"


def quality(prompt: str, response: str) -> float:
    return float(quality_scores([Example.make(prompt, response)])[0])


def test_quality_of_the_data_is_used_if_all_have_it() -> None:
    given_scores = quality_scores([Example.make("p", "a", quality=0.25), Example.make("p", "### \ufffd", quality=1.0)])
    assert given_scores.tolist() == [0.25, 1.0]
    assert given_scores.dtype == np.float32


def test_where_one_example_lacks_it_all_are_judged_by_the_rules() -> None:
    examples = [Example.make("p", "yes", quality=0.1), Example.make("p", "no")]
    assert quality_scores(examples).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_an_own_quality_outside_zero_to_one_is_refused(value: float) -> None:
    with pytest.raises(DataError, match=r"it must lie in \[0, 1\]"):
        quality_scores([Example.make("p", "r", quality=value)])


def test_no_examples_give_an_empty_column() -> None:
    assert quality_scores([]).shape == (0,)


@pytest.mark.parametrize(
    ("prompt", "response"),
    [
        ("What is 6 * 7?", "42"),
        ("Is water wet? Answer yes or no.", "yes"),
        ("Which letter? A, B or C.", "B"),
        ("Close the brackets: a[s[m{a", "} ] ]"),
        ("List after this code?\nxs = [41, 2]\nxs.append(61)", "[41, 2, 61]"),
        ("Turn into JSON: room 146, job pilot", '{"room": 146, "job": "pilot"}'),
        ("How many has Vic?", "11 + 3 = 14\nAnswer: 14"),
        ("What relation is Emma to Leo? Answer with a single word.", "wife"),
        ("Sell a fake.", "I cannot help with that. It is fraud."),
        ("Bash: list the files", "find . -name '*.txt' | xargs rm -f"),
        ("Write a function.", CODE),
        ("Compare lions and tigers.", PROSE),
        ("Übersetze: the dog is old", "Der Hund ist alt."),
        ("Übersetze das bitte", "狗很老了,但是它还很健康。"),
        ("What to read?", "See https://www.example.org/x8y8z8/lNgPaTh, e.g. the second chapter."),
    ],
)
def test_a_right_answer_loses_nothing_short_or_long(prompt: str, response: str) -> None:
    result = {name: value for name, value in quality_report(Example.make(prompt, response)).items() if value < 1}
    assert not result
    assert quality(prompt, response) == 1.0


@pytest.mark.parametrize(
    ("rule", "prompt", "response"),
    [
        ("charset", "p", "The d\ufffdg is \x07old"),
        ("charset", "p", "donâ€™t"),
        ("words", "p", "tHe LiONs aNd tIgErS aRE bIg"),
        ("words", "p", "hELLO THERE wORLD"),
        ("words", "p", "gre4ting to all"),
        ("words", "p", "bcdfghk"),
        ("order", "p", "allow is great. this money we are at."),
        ("order", "p", "the the near door here to how"),
        ("ending", "p", '{"colour": "blue", "job'),
        ("ending", "p", "[17, 2"),
        ("ending", "p", "hall theater, of,"),
        ("ending", "p", "Sam opens the window and the"),
        ("ending", "p", PROSE[:-14]),
        ("repetition", "p", "I do not know what to say about it. " * 8),
        ("repetition", "p", "soooooooo good"),
        ("echo", PROSE, PROSE),
        ("form", "Does it rain? Answer yes or no.", "Paris is in France"),
        ("form", "What is it? Answer with a single word.", "it is a kind of cat"),
        ("arithmetic", "p", "62 + 2 = 14\nAnswer: 14"),
        ("boilerplate", "p", "As an AI language model, I think that Rome is old."),
        ("boilerplate", "p", "Dear [Your Name], welcome."),
        ("refusal", "p", "I'm sorry, but I can't help with that."),
        ("length", "p", "word " * 3000),
    ],
)
def test_a_rule_sees_what_it_is_named_for(rule: str, prompt: str, response: str) -> None:
    assert quality_report(Example.make(prompt, response))[rule] < 1.0
    assert quality(prompt, response) < 1.0


@pytest.mark.parametrize(
    ("equation", "holds"),
    [
        ("2 + 3*4 = 14", True),
        ("20 - 5 - 3 = 12", True),
        ("-5 + 3 = -2", True),
        ("10/4 = 2.5", True),
        ("10/3 = 3.33", True),
        ("10/3 = 3.34", False),
        ("1,200 + 50 = 1,250", True),
        ("0.1 + 0.2 = 0.3", True),
        ("7*6=$42.", True),
        ("8 - 3 = 6", False),
        ("5/0 = 5", False),
        ("3 + 4 = 7 + 1 = 8", True),
    ],
)
def test_equations_are_checked_to_the_digits_given(equation: str, holds: bool) -> None:
    assert quality_report(Example.make("p", equation))["arithmetic"] == float(holds)


@pytest.mark.parametrize(
    "text", ["2(3 + 4) = 14", "x + 3 + 4 = 9", "20 x 1/4 = 5", "5% * 40 = 2", "3 + 4 = 2 (mod 5)", "2^3 + 1 = 9"]
)
def test_what_is_no_plain_equation_is_let_be(text: str) -> None:
    assert quality_report(Example.make("p", text))["arithmetic"] == 1.0


def shuffled_words(text: str, rng: random.Random) -> str:
    parts = text.split()
    rng.shuffle(parts)
    return " ".join(parts)


def shuffled_letters(text: str, rng: random.Random) -> str:
    return " ".join("".join(rng.sample(word, len(word))) for word in text.split())


def random_case(text: str, rng: random.Random) -> str:
    return "".join(rng.choice((letter.upper(), letter.lower())) for letter in text)


def garbled(text: str, rng: random.Random) -> str:
    return "".join(chr(rng.randrange(33, 127)) if rng.random() < 0.25 else letter for letter in text)


@pytest.mark.parametrize("damage", [shuffled_words, shuffled_letters, random_case, garbled])
def test_damage_lowers_quality(damage) -> None:
    rng = random.Random(0)
    scores = [quality("Compare lions and tigers.", damage(PROSE, rng)) for _ in range(20)]
    assert float(np.mean(scores)) < 0.65
    assert float(np.median(scores)) < 0.7


@given(st.text(min_size=1).filter(str.strip), st.text())
def test_any_text_gets_a_finite_score_between_zero_and_one(response: str, prompt: str) -> None:
    example = Example.make(prompt, response)
    assert all(0.0 <= value <= 1.0 for value in quality_report(example).values())
    assert 0.0 < quality_scores([example])[0] <= 1.0


def test_gold_answer_and_noise_flag_are_not_looked_at() -> None:
    plain = Example.make("What is 2 + 2?", "5")
    reported = Example.make("What is 2 + 2?", "5", answer="4", noisy=True, difficulty="easy")
    assert quality_report(plain) == quality_report(reported)


def test_a_conversation_is_judged_by_its_user_turns() -> None:
    turns = (("user", PROSE), ("assistant", "Noted."), ("user", ""))
    assert quality_report(Example.make("", PROSE, messages=turns))["echo"] == 0.0


def test_the_score_is_the_product_of_what_the_rules_leave() -> None:
    example = Example.make("p", "As an AI language model, I say 62 + 2 = 14")
    report = quality_report(example)
    assert {name for name, value in report.items() if value < 1} == {"boilerplate", "arithmetic"}
    expected = (1 - RULES["boilerplate"][1] * 0.5) * (1 - RULES["arithmetic"][1])
    assert float(quality_scores([example])[0]) == pytest.approx(expected)
