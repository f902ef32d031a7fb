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

LENGTH = 12_000
"""Characters of a long text; an eighth of it is a short one."""
NOTHING = 0.04
"""Seconds that tell nothing. Whatever is quadratic takes more for a long text: 72 million steps of a pattern."""
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


def seconds(work, text):
    """Processor time of ``work(text)``."""
    start = time.process_time()
    work(text)
    return time.process_time() - start


def is_linear(work, unit, end=""):
    """Whether 8 times the text takes less than 16 times as long, on a machine of any speed; quadratic is 64 times."""
    long, short = ((unit * length)[:length] + end for length in (LENGTH, LENGTH // 8))
    took = seconds(work, long)
    if took < NOTHING:
        return True
    most = 16 * min(seconds(work, short) for _ in range(3))
    return took < most or min(seconds(work, long) for _ in range(3)) < most


def test_a_quadratic_pattern_is_found():
    assert not is_linear(re.compile(r"\d+x").findall, "0")
    assert is_linear(re.compile(r"(?<!\d)\d+x").findall, "0")


def test_every_pattern_is_linear():
    """A short text first: an exponential pattern would never end on the long one."""
    uses = patterns()
    assert len(uses) > 60
    for pattern, use in uses:
        find = {"finditer": pattern.findall, "match": pattern.match, "fullmatch": pattern.fullmatch}[use]
        for unit in UNITS:
            assert seconds(find, (unit * 26)[:26] + "\0") < 0.3, (pattern.pattern, unit)
            assert is_linear(find, unit, "\0"), (pattern.pattern, unit)


GOLDS = [("3", None), ("yes", None), ("some words", None), ("B", ("x", "y")), (r"\frac{1}{2}", None), ("1/3", None)]
ANSWERS = ("{}", "The answer is {}", r"\boxed{{{}}}", "#### {}")


@pytest.mark.parametrize("unit", UNITS)
def test_an_answer_is_judged_in_linear_time(unit):
    def judge(text):
        for gold, choices in GOLDS:
            matches(Example.make("q", "r", answer=gold, choices=choices), form.format(text))

    for form in ANSWERS:
        assert is_linear(judge, unit), form


@pytest.mark.parametrize("unit", UNITS)
def test_a_gold_answer_is_read_in_linear_time(unit):
    def judge(text):
        matches(Example.make("q", "r", answer=f"x{text}"), "The answer is 3.")

    for end in ("", "!", "a", "1+"):
        for length in (30, 490):  # short enough for math-verify
            judge((unit * length)[:length] + end)
        assert is_linear(judge, unit, end)


@pytest.mark.parametrize("unit", UNITS)
def test_quality_is_judged_in_linear_time(unit):
    assert is_linear(lambda text: quality_report(Example.make(text, f"x {text}")), unit)


@pytest.mark.parametrize("unit", UNITS)
def test_prompts_are_compared_in_linear_time(unit):
    def compare(text):
        prompts, example = EvaluationPrompts(), Example.make(text, "r")
        prompts.add(example)
        prompts.has_like(example)

    assert is_linear(compare, unit)


VALUE = re.compile(r"`[^`]*`|\"[^\"]*\"|(?<!\w)'[^']*'|\S*[/~][a-z.]\S*")
"""What `without_values` finds, as one pattern, whose time is quadratic."""


@settings(max_examples=2000, deadline=None)
@given(st.text(alphabet="a/~.'\"` \n-", max_size=30))
def test_values_are_those_of_the_plain_pattern(text):
    assert without_values(text) == VALUE.sub(" value ", text)
