"""pass@1 by execution: what a model answers to a coding item is run against the item's tests (HumanEval, MBPP).

Paper: Chen et al. 2021, arXiv 2107.03374 (HumanEval, pass@k); Austin et al. 2021, arXiv 2108.07732 (MBPP).
"""

from __future__ import annotations

import ast
import logging
import math
import os
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import islice
from typing import ClassVar

from longgame.data.examples import Example
from longgame.errors import PluginError
from longgame.evaluation.answers import without_thinking
from longgame.evaluation.sandbox import OUT_OF_TIME, Limits, ProgramOutcome, run_program, why_no_namespaces
from longgame.evaluation.scorers import Evidence, Scorer

_log = logging.getLogger(__name__)
_PYTHON = re.compile(r"\{?\.?(?:python3?|py)\b", re.IGNORECASE)
_BEHIND = re.compile(r"^(?:class |def |#|if |print\(|@|```|assert )", re.MULTILINE)
"""Where the body of a function ends that goes on at the margin (the stop texts of HumanEval)."""
_FENCE = re.compile(r"(`{3,}+|~{3,}+)([^`]*+)")
"""The marks of a fence, and what stands behind them."""
_MOST_FENCES_INSIDE = 5
_MOST_PROMPT_LINES = 400
_INDENT = "    "


def parsed(source: str) -> ast.Module | None:
    """The syntax tree of a program; None where it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _functions(tree: ast.Module | None) -> set[str]:
    """Names that the program defines at its top level as functions or classes."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in tree.body if isinstance(node, kinds)} if tree is not None else set()


def fenced_blocks(text: str) -> list[str]:
    """The fenced blocks of Python and of no language in a text, without the indent of their fences.

    A block ends at the next bare fence of its kind that is as long, and one that does not end goes on to the end of the
    text. One that is no program ends at a later fence where it then is one: a docstring may hold a block. The blocks
    inside of a block of Markdown count as its own text does not.
    """
    lines = text.replace("\r\n", "\n").split("\n")
    blocks: list[str] = []
    row = 0
    while row < len(lines):
        fence = _fence(lines[row])
        row += 1
        if fence is None or fence[2].lower() in ("markdown", "md"):
            continue
        indent, marks, info = fence
        closing = (place for place in range(row, len(lines)) if _closes(lines[place], marks))
        ends = [*islice(closing, _MOST_FENCES_INSIDE)] or [len(lines)]
        if info and not _PYTHON.match(info):
            row = ends[0] + 1
            continue
        ended = {end: _dedented(lines[row:end], indent) for end in ends}
        end = next((end for end, block in ended.items() if parsed(block) is not None), ends[0])
        blocks.append(ended[end])
        row = end + 1
    return blocks


def _fence(line: str) -> tuple[str, str, str] | None:
    """Indent, marks and info of a line that is a fence."""
    text = line.lstrip(" \t")
    fence = _FENCE.fullmatch(text)
    return None if fence is None else (line[: len(line) - len(text)], fence[1], fence[2].strip())


def _closes(line: str, marks: str) -> bool:
    fence = _fence(line)
    return fence is not None and not fence[2] and fence[1].startswith(marks)


def _dedented(lines: Sequence[str], indent: str) -> str:
    return "\n".join([*(line.removeprefix(indent) for line in lines), ""])


@lru_cache(maxsize=4096)
def code_of_prompt(prompt: str) -> str:
    """The beginning of a function that a prompt asks to complete, with its imports; empty where there is none.

    It is the longest end of the prompt, or of its last fenced block that has one, from some line on, that is a program
    if a body follows, and ends inside of a function: the words before it are the request.
    """
    last, *earlier = fenced_blocks(prompt)[::-1] or [""]
    found = _begun_function(last) or next(filter(None, (_begun_function(text, bare=True) for text in earlier)), "")
    return found or _begun_function(prompt.replace("\r\n", "\n"))


def _begun_function(text: str, bare: bool = False) -> str:
    """The function that a text ends in; ``bare``: only one without code of its own, as examples are whole."""
    lines = text.rstrip().split("\n")[-_MOST_PROMPT_LINES:]
    for start in range(len(lines)):
        if not re.match(r"(?:from|import|def|class|async|@|[A-Za-z_]\w*\s*=|#|\"\"\")\b|#|@", lines[start]):
            continue
        code = "\n".join(lines[start:])
        tree = parsed(f"{code}\n{_INDENT}pass\n")
        if tree is not None and tree.body and isinstance(tree.body[-1], ast.FunctionDef | ast.AsyncFunctionDef):
            rest = [node for node in tree.body[-1].body if not isinstance(node, ast.Pass)]
            is_bare = all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in rest)
            return code if is_bare or not bare else ""
    return ""


def program_of(prompt: str, response: str) -> str:
    """The program that a response gives: a fenced block, a whole function, or the body of the prompt's function.

    Of several blocks, the first one that defines a function counts, else the first one. A body ends where a line at
    the margin begins another statement; its first line, or all of it, may have lost its indent. Nothing
    else is repaired.
    """
    text = without_thinking(response)
    begun = code_of_prompt(prompt)
    wanted = _last_function(begun)
    blocks = [block for block in fenced_blocks(text) if block.strip()]
    if blocks:
        text = next((block for block in blocks if _functions(parsed(block))), blocks[0])
    whole = text.strip("\n")
    defined = _functions(parsed(whole))
    if not begun:
        return whole if parsed(whole) is not None else next(_cut(whole), whole)
    if wanted in defined:
        return f"{begun}\n{_INDENT}pass\n\n{whole}\n"
    bodies = list(_cut(whole))
    if not whole[:1].isspace():  # the indent of the first line is lost, or that of all lines
        bodies = [textwrap.indent(whole, _INDENT), *(_INDENT + body for body in bodies), *bodies]
    for body in bodies:
        program = f"{begun}\n{body}\n"
        if parsed(program) is not None:
            return program
    return f"{begun}\n{whole}\n"


def _last_function(code: str) -> str:
    tree = parsed(f"{code}\n{_INDENT}pass\n") if code else None
    node = tree.body[-1] if tree is not None and tree.body else None
    return node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else ""


def _cut(text: str) -> Iterator[str]:
    """The text up to where a line at the margin begins something else, then with the last line cut off as well."""
    stop = next((match.start() for match in _BEHIND.finditer(text) if match.start() > 0), len(text))
    body = text[:stop].rstrip()
    yield body
    yield body.rpartition("\n")[0].rstrip()


def checks_of(example: Example) -> str:
    """The item's test program, its ``answer``; empty where the answer is none."""
    answer = example.answer if isinstance(example.answer, str) else "\n".join(example.answer or ())
    tree = parsed(answer)
    checks = tree is not None and any(isinstance(node, ast.Assert) for node in ast.walk(tree))
    return answer if checks else ""


class PassAt1(Scorer):
    """Whether the program of the greedy response passes the item's tests, in a sandbox (pass@1, Chen et al. 2021).

    Measured are items whose ``answer`` is a test program: one that holds an ``assert``. A program that the machine was
    too busy to run, twice, has no result (the score ``pass_at_1 missing`` is their share). Model-written code runs, so
    it is refused unless the recipe says ``data.run_model_code: true``.

    Args:
        seconds: processor time of a program with its tests; it may wait (sleep) for five times as long.
        memory: MiB of address space.

    Raises:
        PluginError: a limit is not positive.
    """

    name: ClassVar[str] = "pass_at_1"
    asks_outside: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("generation",)
    runs_model_code: ClassVar[bool] = True
    may_miss: ClassVar[bool] = True

    def __init__(self, seconds: int = 10, memory: int = 1024) -> None:
        for name, value in (("seconds", seconds), ("memory", memory)):
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1_000_000:
                raise PluginError(f"scorer 'pass_at_1': {name} is {value!r}; give a whole number from 1 on.")
        self._warned = False
        self.limits = Limits(seconds=seconds, memory=memory * 2**20)

    def measures(self, example: Example) -> bool:
        return bool(checks_of(example))

    def score(self, example: Example, evidence: Evidence) -> float:
        outcome = self._outcome(example, evidence)
        return float(outcome.passed) if outcome.decided else math.nan

    def _outcome(self, example: Example, evidence: Evidence) -> ProgramOutcome:
        return run_program(program_of(example.prompt, evidence.generation), checks_of(example), self.limits)

    def score_all(self, examples: Sequence[Example], evidence: Sequence[Evidence]) -> list[float]:
        refused = why_no_namespaces() if examples else ""
        if refused and not self._warned:
            _log.warning(
                "programs of the model run without namespaces of their own (%s): sockets, processes and files outside "
                "of their folder are refused by Python alone, which a program can get round (docs/scorers.md).",
                refused,
            )
            self._warned = True
        workers = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        with ThreadPoolExecutor(max(1, workers)) as pool:
            outcomes = list(pool.map(self._outcome, examples, evidence))
        outcomes = [
            outcome if outcome.decided else self._outcome(example, shown)  # again, with no other program beside it
            for outcome, example, shown in zip(outcomes, examples, evidence, strict=True)
        ]
        late = sum(outcome.reason == OUT_OF_TIME for outcome in outcomes)
        if late:
            _log.warning(
                "%d of %d programs used up their %d seconds of processor time and count as failed; "
                "pass_at_1(seconds=…) gives them more.",
                late,
                len(outcomes),
                self.limits.seconds,
            )
        return [float(outcome.passed) if outcome.decided else math.nan for outcome in outcomes]
