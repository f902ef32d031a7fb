"""Long texts take time in proportion to their length, whatever they are made of."""

from __future__ import annotations

import ast
import importlib
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import longgame
from longgame.data.examples import Example
from longgame.data.sequences import EvaluationPrompts, without_values
from longgame.evaluation.answers import matches
from longgame.signals.quality.rules import quality_report

LENGTH, LIMIT = 20_000, 1.0
"""Characters of a text, and the seconds that it may take; a quadratic pattern takes more than two."""
UNITS = [
    *(" ", "a", "0", "`", '"', "'", "(", "[", "{", "<", "\n", "$", "\\", ",", ".", "-", "/", "#", "*", "|", "="),
    *("0,", "0 ", "0.", "1/", "1 1/", "000,", "\\frac{", "(a", "</", "a-", "a'", "! ", "a\n", " \n", "answer is ", "é"),
]


SHORT = {"longgame.report.answer": "an option of the command", "longgame.storage": "names of files"}
"""Modules whose patterns read no text of data."""


def patterns():
    """(pattern, how it is used) of the package: compiled by a module, or written in a call."""
    uses = set()
    root = Path(longgame.__file__).parent
    for path in root.rglob("*.py"):
        name = ".".join(("longgame", *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
        if "re." not in path.read_text() or name in SHORT:
            continue
        for value in vars(importlib.import_module(name)).values():
            values = value.values() if isinstance(value, dict) else value
            values = values if isinstance(value, dict | list | tuple) else [value]
            uses |= {(part, "finditer") for part in values if isinstance(part, re.Pattern)}
        for call in ast.walk(ast.parse(path.read_text())):
            function = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
            if function.startswith("re.") and call.args and isinstance(getattr(call.args[0], "value", None), str):
                use = function.removeprefix("re.")
                uses.add((re.compile(call.args[0].value), use if use in ("match", "fullmatch") else "finditer"))
    return sorted((use for use in uses if isinstance(use[0].pattern, str)), key=str)


def seconds(pattern, use, text):
    start = time.process_time()
    for _ in pattern.finditer(text) if use == "finditer" else [getattr(pattern, use)(text)]:
        pass
    return time.process_time() - start


def test_every_pattern_is_linear():
    """A short text first: an exponential pattern would never end on the long one."""
    uses = patterns()
    assert len(uses) > 60
    for pattern, use in uses:
        for unit in UNITS:
            for length in (18, LENGTH):
                assert seconds(pattern, use, (unit * length)[:length] + "\0") < LIMIT * length / LENGTH + 0.05, (
                    pattern.pattern,
                    unit,
                )


GOLDS = [("3", None), ("yes", None), ("some words", None), ("B", ("x", "y")), (r"\frac{1}{2}", None), ("1/3", None)]


@pytest.mark.parametrize("unit", UNITS)
def test_an_answer_is_judged_in_linear_time(unit):
    text = (unit * LENGTH)[:LENGTH]
    start = time.process_time()
    for gold, choices in GOLDS:
        for said in (text, f"The answer is {text}", f"\\boxed{{{text}}}", f"#### {text}"):
            matches(Example.make("q", "r", answer=gold, choices=choices), said)
    assert time.process_time() - start < 4 * LIMIT


@pytest.mark.parametrize("unit", UNITS)
def test_a_gold_answer_is_read_in_linear_time(unit):
    start = time.process_time()
    for length in (30, 490, LENGTH):
        for end in ("", "!", "a", "1+"):
            gold = (unit * length)[:length] + end
            matches(Example.make("q", "r", answer=f"x{gold}"), "The answer is 3.")
    assert time.process_time() - start < 4 * LIMIT


@pytest.mark.parametrize("unit", UNITS)
def test_quality_is_judged_in_linear_time(unit):
    text = (unit * LENGTH)[:LENGTH]
    start = time.process_time()
    quality_report(Example.make(text, f"x {text}"))
    assert time.process_time() - start < 2 * LIMIT


@pytest.mark.parametrize("unit", UNITS)
def test_prompts_are_compared_in_linear_time(unit):
    example = Example.make((unit * LENGTH)[:LENGTH], "r")
    start = time.process_time()
    prompts = EvaluationPrompts()
    prompts.add(example)
    prompts.has_like(example)
    assert time.process_time() - start < 2 * LIMIT


VALUE = re.compile(r"`[^`]*`|\"[^\"]*\"|(?<!\w)'[^']*'|\S*[/~][a-z.]\S*")
"""What `without_values` finds, as one pattern, whose time is quadratic."""


@settings(max_examples=2000, deadline=None)
@given(st.text(alphabet="a/~.'\"` \n-", max_size=30))
def test_values_are_those_of_the_plain_pattern(text):
    assert without_values(text) == VALUE.sub(" value ", text)
