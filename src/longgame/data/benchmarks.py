"""Rows of public benchmarks as the hub has them → rows with prompt, response, answer and choices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class BenchmarkRowError(Exception):
    """The fault of a benchmark's row, without its place."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark's way of writing rows."""

    name: str
    fields: str
    """As it is written in the docs and in errors."""
    needs: tuple[str, ...]
    """Columns that must be filled; together no other format has them."""
    rewrite: Callable[[Mapping[str, Any]], dict[str, Any]]
    fits: Callable[[Mapping[str, Any]], bool] | None = None
    """Whether the values are of its kinds; if not, the row is read in a later format. None: its columns decide."""


def _humaneval(row: Mapping[str, Any]) -> dict[str, Any]:
    test, name = _text(row, "test"), _text(row, "entry_point")
    prompt, response = _text(row, "prompt"), _text(row, "canonical_solution")
    return {"prompt": prompt, "response": response, "answer": f"{test}\n\ncheck({name})\n"}


def _mbpp(row: Mapping[str, Any]) -> dict[str, Any]:
    tests = _texts(row["test_list"], "test_list")
    before = _texts(row.get("test_imports") or [], "test_imports") or [str(row.get("test_setup_code") or "")]
    request = _text(row, "prompt" if row.get("prompt") else "text")
    prompt = "\n".join([f"{request} Your code should pass these tests:", *tests])
    return {"prompt": prompt, "response": _text(row, "code"), "answer": "\n".join([*filter(None, before), *tests])}


def _mmlu(row: Mapping[str, Any]) -> dict[str, Any]:
    choices, answer = _texts(row["choices"], "choices"), row["answer"]
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise BenchmarkRowError(
            f"'answer' is {answer!r}, not the number of one of {len(choices)} choices (0 is the first)"
        )
    return _options(_text(row, "question"), choices, answer)


def _arc(row: Mapping[str, Any]) -> dict[str, Any]:
    choices, labels = (_texts(_part(row, "choices", key), "choices") for key in ("text", "label"))
    if row["answerKey"] not in labels:
        raise BenchmarkRowError(f"'answerKey' is {row['answerKey']!r}, none of the labels {labels}")
    return _options(_text(row, "question"), choices, labels.index(row["answerKey"]))


def _options(question: str, choices: Sequence[str], right: int) -> dict[str, Any]:
    letters = [chr(65 + place) for place in range(len(choices))]
    lines = [question, *(f"{letter}. {text}" for letter, text in zip(letters, choices, strict=True)), "Answer:"]
    response = f"{letters[right]}. {choices[right]}"
    return {"prompt": "\n".join(lines), "response": response, "answer": letters[right], "choices": list(choices)}


def _truthfulqa(row: Mapping[str, Any]) -> dict[str, Any]:
    """MC2's options; the first true one of MC1 is the best answer, which MC1 asks for."""
    choices, labels = _labelled(row, "mc2_targets")
    best = next((text for text, label in zip(*_labelled(row, "mc1_targets"), strict=True) if label == 1), None)
    if best is None:
        raise BenchmarkRowError("'mc1_targets' has no right answer")
    true = [choice for choice, label in zip(choices, labels, strict=True) if label == 1 and choice != best]
    if best not in choices:
        raise BenchmarkRowError("the right answer of 'mc1_targets' is none of the choices of 'mc2_targets'")
    question = _text(row, "question")
    return {"prompt": question, "response": best, "answer": [best, *true], "choices": choices}


def _labelled(row: Mapping[str, Any], name: str) -> tuple[list[str], list[Any]]:
    choices, labels = _texts(_part(row, name, "choices"), name), list(_part(row, name, "labels"))
    if len(choices) != len(labels):
        raise BenchmarkRowError(f"'{name}' has {len(choices)} choices and {len(labels)} labels")
    return choices, labels


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise BenchmarkRowError(f"'{name}' is a {type(value).__name__}, not a text")
    return value


def _texts(value: Any, name: str) -> list[str]:
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise BenchmarkRowError(f"'{name}' is not a list of texts")
    return list(value)


def _part(row: Mapping[str, Any], name: str, key: str) -> Any:
    value = row[name]
    if not isinstance(value, Mapping) or key not in value:
        raise BenchmarkRowError(f"'{name}' has no '{key}'")
    return value[key]


BENCHMARKS = (
    Benchmark(
        "humaneval",
        "prompt + canonical_solution + test + entry_point",
        ("prompt", "canonical_solution", "test", "entry_point"),
        _humaneval,
    ),
    Benchmark("mbpp", "text or prompt + code + test_list", ("code", "test_list"), _mbpp),
    Benchmark(
        "truthfulqa", "question + mc1_targets + mc2_targets", ("question", "mc1_targets", "mc2_targets"), _truthfulqa
    ),
    Benchmark("arc", "question + choices (text, label) + answerKey", ("question", "choices", "answerKey"), _arc),
    Benchmark(
        "mmlu",
        "question + choices + answer (a number) + subject",
        ("question", "choices", "answer", "subject"),
        _mmlu,
        lambda row: not isinstance(row["answer"], str),
    ),
)
"""Public benchmarks whose own rows are read."""
