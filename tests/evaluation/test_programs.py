"""From a response to a program, and pass@1 on items written as HumanEval and MBPP write them."""

from __future__ import annotations

import textwrap

import numpy as np
import pytest

from longgame.audit.checks import check_plugins
from longgame.data.examples import Example, Task
from longgame.errors import PluginError, RecipeError
from longgame.evaluation import programs
from longgame.evaluation.evaluator import Evaluator
from longgame.evaluation.programs import PassAt1, checks_of, code_of_prompt, program_of
from longgame.evaluation.sandbox import OUT_OF_TIME, ProgramOutcome, run_program
from longgame.evaluation.scorers import Evidence, build_scorer
from longgame.recipe import parse_recipe

HEAD = (
    "Complete this Python function.\n\nfrom typing import List\n\n"
    'def total(values: List[int]) -> int:\n    """ Sum of the values.\n    >>> total([1, 2])\n    3\n    """'
)
BODY = "    result = 0\n    for value in values:\n        result += value\n    return result"
TESTS = "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n\ncheck(total)"
WHOLE = f"def total(values):\n{BODY}"
ASKED = "Write a function to sum a list. Your code should pass these tests:\nassert total([1, 2]) == 3"

RIGHT = {
    "a body": (HEAD, BODY),
    "a body without its first indent": (HEAD, BODY.strip()),
    "a body of one line": (HEAD, "return sum(values)"),
    "a body that goes on": (HEAD, f"{BODY}\n\n\ndef other():\n    pass\n\nprint(total([1]))"),
    "a body whose last line is cut off": (HEAD, f"{BODY}\n    if value ==("),
    "a whole function": (HEAD, WHOLE),
    "a whole function that needs the import": (HEAD, f"def total(values: List[int]) -> int:\n{BODY}"),
    "a block": (HEAD, f"Here it is:\n```python\n{WHOLE}\n```\nIt adds the values."),
    "a block of a body": (HEAD, f"```python\n{BODY}\n```"),
    "the block that defines it": (HEAD, f"```\npip install numpy\n```\nThen\n```python\n{WHOLE}\n```"),
    "a block that never closes": (HEAD, f"```python\n{WHOLE}"),
    "behind a thought": (HEAD, f"<think>```python\ndef total(x): return 0\n```</think>```python\n{WHOLE}\n```"),
    "a fenced prompt": (f"Complete:\n```python\n{HEAD.partition('.')[2].strip()}\n```", WHOLE),
    "asked in words": (ASKED, WHOLE),
    "asked in words, then more words": (ASKED, f"{WHOLE}\n\nassert total([1]) == 1\nThis adds them."),
}


@pytest.mark.parametrize(("prompt", "response"), RIGHT.values(), ids=RIGHT)
def test_a_right_response_passes_in_every_form(prompt, response) -> None:
    example = Example.make(prompt, "-", answer=TESTS)
    assert build_scorer("pass_at_1").score(example, Evidence(generated=response.strip())) == 1


@pytest.mark.parametrize("response", ["", "I cannot.", "    return 0", "```python\ndef other(): pass\n```", HEAD])
def test_a_wrong_response_does_not_pass(response) -> None:
    assert not run_program(program_of(HEAD, response), TESTS).passed


def test_the_begun_function_is_the_end_of_the_prompt() -> None:
    assert code_of_prompt(HEAD).startswith("from typing import List\n\ndef total")
    assert code_of_prompt(ASKED) == code_of_prompt("What is a function?") == code_of_prompt("") == ""
    helper = f"def help(x):\n    return x\n\n\n{HEAD.partition('.')[2].strip()}"
    assert code_of_prompt(f"Please.\n{helper}") == helper


def test_items_without_a_test_program_are_not_measured() -> None:
    scorer = PassAt1()
    for answer in ("15", None, "A", "assert", "total([1])", "see the assert"):
        assert not scorer.measures(Example.make("p", "r", answer=answer)), answer
    assert scorer.measures(Example.make("p", "r", answer=TESTS))
    several = Example.make("p", "r", answer=("assert f(1) == 1", "assert f(2) == 2"))
    assert checks_of(several) == "assert f(1) == 1\nassert f(2) == 2"


def test_model_code_runs_only_where_the_recipe_allows_it(model, tokenizer) -> None:
    task = Task("code", (Example.make("write f", "def f(): pass", answer="assert f() == 1"),), scorers=("pass_at_1",))
    with pytest.raises(RecipeError, match="run_model_code: true"):
        Evaluator(model, tokenizer, pad_token_id=0).score([task])
    scores = Evaluator(model, tokenizer, pad_token_id=0, run_model_code=True).score([task])
    assert [(score.scorer, score.value, score.items) for score in scores] == [
        ("pass_at_1", 0, 1), ("pass_at_1 missing", 0, 1)
    ]  # fmt: skip


def test_a_recipe_with_pass_at_1_is_refused_until_it_allows_it() -> None:
    stage = {"name": "code", "train": "a.jsonl", "eval": "b.jsonl", "scorers": ["token_accuracy", "pass_at_1"]}
    recipe = parse_recipe({"data": {"stages": [stage]}})
    with pytest.raises(RecipeError, match=r"pass_at_1.*run_model_code: true"):
        check_plugins(recipe)
    check_plugins(recipe.replace({"data.run_model_code": True}))


@pytest.mark.parametrize("parameters", [{"seconds": 0}, {"seconds": 1.5}, {"memory": True}, {"memory": -3}])
def test_limits_are_whole_positive_numbers(parameters) -> None:
    with pytest.raises(PluginError, match="whole number"):
        PassAt1(**parameters)


def test_several_programs_are_judged_one_by_one() -> None:
    examples = [Example.make(HEAD, "-", answer=TESTS)] * 3
    answers = [BODY, "    return 1", textwrap.dedent(BODY)]
    assert PassAt1().score_all(examples, [Evidence(generated=text) for text in answers]) == [1, 0, 1]


def test_programs_without_a_result_run_again_and_then_are_missing(monkeypatch) -> None:
    runs: list[str] = []

    def run(program, _tests, _limits):
        runs.append(program)
        kind = next(word for word in ("never", "once", "right") if word in program)
        if kind == "never" or (kind == "once" and runs.count(program) == 1):
            return ProgramOutcome(False, "the machine was too busy", decided=False)
        return ProgramOutcome(True, "passed")

    monkeypatch.setattr(programs, "run_program", run)
    examples = [Example.make("p", "-", answer="assert f()")] * 3
    shown = [Evidence(generated=f"def f(): return '{kind}'") for kind in ("never", "once", "right")]
    np.testing.assert_array_equal(PassAt1().score_all(examples, shown), [np.nan, 1, 1])
    assert len(runs) == 5


def test_programs_that_use_up_their_time_fail_with_a_warning(monkeypatch, caplog) -> None:
    monkeypatch.setattr(programs, "run_program", lambda *_: ProgramOutcome(False, OUT_OF_TIME))
    assert PassAt1().score_all([Example.make("p", "-", answer=TESTS)], [Evidence(generated="x")]) == [0]
    assert "1 of 1 programs used up their 10 seconds" in caplog.text


ADD = "def add(a, b):\n    return a + b\n"
FENCE = "```"


@pytest.mark.parametrize(
    "response",
    [
        f"{FENCE}bash\npip install numpy\n{FENCE}\nHere is the code:\n{FENCE}python\n{ADD}{FENCE}\n",
        f"{FENCE}json\n{{}}\n{FENCE}\n{FENCE}\n{ADD}{FENCE}",
        f'{FENCE}python title="x.py"\n{ADD}{FENCE}',
        f"{FENCE}{{python}}\n{ADD}",
        f"{FENCE}python\n{ADD}{FENCE}\n".replace("\n", "\r\n"),
        "1. Do:\n" + textwrap.indent(f"{FENCE}python\n{ADD}{FENCE}\n", "   "),
        f"~~~python\n{ADD}~~~\nIt adds.",
        f"{FENCE}`py\n{ADD}{FENCE}`",
        f"{FENCE}markdown\nThe code:\n{FENCE}python\n{ADD}{FENCE}\nIt adds.\n{FENCE}",
        f"{FENCE}python\n{ADD}{FENCE}\nNow\n{FENCE}python\nadd(1, 2)\n{FENCE}",
    ],
)
def test_the_program_is_found_behind_any_fence(response):
    assert program_of("Write add.", response) == ADD.rstrip()


def test_a_block_inside_of_a_docstring_does_not_end_the_program():
    documented = (
        f'def add(a, b):\n    """Add.\n\n    {FENCE}\n    >>> add(1, 2)\n    {FENCE}\n    """\n    return a + b\n'
    )
    response = f"{FENCE}python\n{documented}{FENCE}\nAnd\n{FENCE}python\nadd(1, 2)\n{FENCE}"
    assert program_of("Write add.", response) == documented.rstrip()


def test_the_function_of_a_prompt_is_found_beside_other_blocks():
    begun = 'def add(a, b):\n    """Add.\n\n    ```\n    >>> add(1, 2)\n    ```\n    """'
    assert code_of_prompt(begun) == begun
    stub = 'def add(a, b):\n    """Add."""'
    assert code_of_prompt(f"{FENCE}python\n{stub}\n{FENCE}\nExample:\n{FENCE}text\nadd(1, 2)\n{FENCE}\n") == stub
    assert code_of_prompt(f"{FENCE}python\n{ADD}{FENCE}\nTests:\n{FENCE}python\nassert f(1)\n{FENCE}\n") == ""
