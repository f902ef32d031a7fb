r"""Answers in free text: extraction and comparison, one small rule per function.

The rules are those of GSM8K, MATH and multiple-choice benchmarks (``#### N``, ``\boxed{}``, "the answer is X", the last
number, a letter, yes/no). No rule looks at the gold answer to decide what the text answers.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import cache
from typing import Any

from longgame.data.examples import Example
from longgame.errors import DataError, unknown

_STATED = re.compile(r"\banswer\s*(?:\bis\b\s*:?|:|=)\s*(.+?)\s*(?:\.(?=\s|$)|\n|$)", re.IGNORECASE)
_HASHES = re.compile(r"####[ \t]*([^\n]*)")
_NUMBER = re.compile(
    r"(?<![\w.])(?P<sign>[-+−]?)\$?(?P<whole>\d{1,3}(?:,\d{3})+|\d+)?(?P<part>\.\d+)?(?:/(?P<below>\d+))?(?!\w|/\d|,\d{3})"
)
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(-?\d+)\s*\}")
_PLAIN_NUMBER = re.compile(r"(?P<sign>[-+]?)(?:(?P<whole>\d{1,3}(?:,\d{3})+|\d+)(?P<part>\.\d*)?|(?P<only>\.\d+))")
_WORD = re.compile(r"\b(yes|no|true|false)\b", re.IGNORECASE)
_TRUTH_WORDS = {"yes", "no", "true", "false"}


def boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{…}`` (with nested braces), or None."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed")
    for position in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[begin + 1 : position].strip()
    return None


def after_hashes(text: str) -> str | None:
    """The text after the last ``####`` on its line, or None."""
    parts = _HASHES.findall(text)
    return parts[-1].strip() or None if parts else None


def stated(text: str) -> str | None:
    """X of the last "the answer is X" / "Answer: X" (to the end of the sentence or line), or None."""
    parts = _STATED.findall(text)
    return parts[-1].strip() if parts else None


def marked(text: str) -> str | None:
    r"""The answer that the text marks as such: ``\boxed{}``, then ``####``, then "the answer is"; or None."""
    return next((answer for rule in (boxed, after_hashes, stated) if (answer := rule(text)) is not None), None)


def marked_or_all(text: str) -> str:
    """The marked answer; the text itself where it marks none."""
    answer = marked(text)
    return text if answer is None else answer


def parse_number(text: str) -> Fraction | None:
    r"""The exact value of a text that is one number and nothing else, or None.

    Allowed around the digits: ``$ € £``, a final ``%`` (dropped: "50%" is 50), thousands commas, trailing zeros, a
    final full stop, LaTeX ``\$``, ``\%`` and ``\frac{a}{b}``. "1/2" equals "0.5"; "1/3" equals no decimal. A number
    with a leading zero ("007") is a string of digits, not a number.
    """
    text = text.strip().strip("*").replace("−", "-").replace("\\$", "$").replace("\\%", "%").replace("\\!", "")
    text = text.strip("$").strip() if text.startswith("$") and text.endswith("$") else text
    text = _LATEX_FRACTION.sub(r"\1/\2", text).rstrip("%").strip()
    text = re.sub(r"^([-+]?)\s*[$€£]\s*", r"\1", text)
    above, slash, below = text.partition("/")
    top = _plain(above)
    if not slash or top is None:
        return top
    bottom = _plain(below)
    return top / bottom if bottom else None


def _plain(text: str) -> Fraction | None:
    match = _PLAIN_NUMBER.fullmatch(text.strip())
    if match is None:
        return None
    digits = (match["whole"] or "").replace(",", "")
    if len(digits) > 1 and digits[0] == "0":
        return None
    decimals = (match["part"] or match["only"] or "").rstrip(".")
    value = Fraction(f"{digits or 0}{decimals}")
    return -value if match["sign"] == "-" else value


def numbers(text: str) -> list[Fraction]:
    """Every number of the text in order; a minus counts as a sign only where no digit or letter is before it."""
    values = []
    for match in _NUMBER.finditer(_LATEX_FRACTION.sub(r" \1/\2 ", text)):
        if match["whole"] is None and match["part"] is None:
            continue
        value = parse_number(match[0].strip())
        if value is not None:
            values.append(value)
    return values


def number_answered(text: str) -> Fraction | None:
    """The number that a text gives as its answer: the first in its marked answer, else the last of the text."""
    answer = marked_or_all(text)
    value = parse_number(answer)
    if value is not None:
        return value
    inside = numbers(answer)
    return None if not inside else inside[-1] if marked(text) is None else inside[0]


def normalize(text: str) -> str:
    """The text as it is compared: NFKC, case folded, white space collapsed, quotes and final punctuation dropped."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = " ".join(text.split()).strip("\"'`*“”‘’ ")
    return text.rstrip(".,;:!? ").strip("\"'`*“”‘’ ")


def truth_word(text: str) -> str | None:
    """``yes``, ``no``, ``true`` or ``false``: the marked answer, else the opening word, else the last one; or None."""
    answer = marked(text)
    words = _WORD.findall(text if answer is None else answer)
    if not words:
        return None
    opening = _WORD.match(text.lstrip("\"'`*( ")) if answer is None else None
    return (opening[1] if opening else words[0] if answer is not None else words[-1]).lower()


def letter(text: str, options: int) -> int | None:
    """The index of the option that a text names by its letter (A = 0), or None.

    The letter is in the marked answer, else at the start of the text ("B", "B.", "(B)", "B: …"), else the last one in
    parentheses. A bare "A" that opens a sentence ("A dog …") is a word, not a letter.
    """
    if not 1 <= options <= 26:
        return None
    allowed = f"A-{chr(64 + options)}"
    opening = re.compile(rf"\s*(?:\(([{allowed}])\)|([{allowed}])(?:[.):,]|\s*(?:\n|$)))")
    answer = marked(text)
    match = opening.match((text if answer is None else answer).lstrip("*"))
    if match is None and answer is None:
        inside = re.findall(rf"\(([{allowed}])\)", text)
        return ord(inside[-1]) - 65 if inside else None
    return ord(match[1] or match[2]) - 65 if match else None


def option(text: str, choices: Sequence[str]) -> int | None:
    """The first option whose text is the marked answer or the text; else the longest that opens it; or None."""
    texts = [normalize(choice) for choice in choices]
    answer = normalize(marked_or_all(text))
    if answer in texts:
        return texts.index(answer)
    opening = [index for index, choice in enumerate(texts) if choice and re.match(rf"{re.escape(choice)}\b", answer)]
    return max(opening, key=lambda index: len(texts[index])) if opening else None


def alternatives(answer: str) -> list[str]:
    """The accepted answers in a gold answer, split at `` | ``."""
    return [part.strip() for part in answer.split(" | ")]


def gold_option(example: Example) -> int | None:
    """The index of the right option: by letter, else by text; None without choices, answer or a match."""
    if not example.choices or example.answer is None:
        return None
    answer = example.answer.strip()
    if len(answer) == 1 and 0 <= ord(answer) - 65 < len(example.choices):
        return ord(answer) - 65
    texts = [normalize(choice) for choice in example.choices]
    return next((texts.index(gold) for gold in map(normalize, alternatives(answer)) if gold in texts), None)


def is_short(example: Example) -> bool:
    """Whether the gold answer can be compared as a text: one line, or the response itself.

    A test program (MBPP, HumanEval) has several lines and is not an answer that a model could give.
    """
    if example.answer is None:
        return False
    return "\n" not in example.answer.strip() or normalize(example.answer) == normalize(example.response)


def matches(example: Example, text: str) -> bool:
    """Whether the text gives the example's gold answer (without a library's verifier).

    The kind of the gold answer decides the rule: an option (letter or its text), a number, yes/no/true/false, or text
    (the marked answer, else the text, both normalized).

    Raises:
        DataError: the example has no answer.
    """
    if example.answer is None:
        raise DataError(f"item {example.sample_id} has no `answer` to compare with; exact_match leaves such items out.")
    right = gold_option(example)
    if right is not None and example.choices is not None:
        by_letter = example.answer.strip() == chr(65 + right)
        chosen = letter(text, len(example.choices)) if by_letter else None
        if chosen is not None:
            return chosen == right
        chosen = option(text, example.choices)
        if chosen is not None:
            return normalize(example.choices[chosen]) == normalize(example.choices[right])
        if by_letter:
            return False
    return any(_matches_one(gold, text) for gold in alternatives(example.answer))


def _matches_one(gold: str, text: str) -> bool:
    value = parse_number(gold)
    if value is not None:
        return number_answered(text) == value
    if normalize(gold) in _TRUTH_WORDS:
        return truth_word(text) == normalize(gold)
    answer = marked_or_all(text)
    sums = [answer.rpartition("=")[2]] if re.search(r"\d", gold) else []  # "(4+2)/2 = 3 thousand" gives "3 thousand"
    return normalize(gold) in map(normalize, (answer, *sums))


# Procedural items are judged by the verifier of the library that made them.

_UNPARSABLE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, SyntaxError, RecursionError)
"""What verifiers raise on a text they cannot parse (reasoning_gym's game_of_life, prime_factorization, boxnet do)."""


@cache
def _reasoning_gym(dataset: str) -> Callable[[str, Mapping[str, Any]], float]:
    import reasoning_gym  # 0.8 s; only where an item needs it
    from reasoning_gym.factory import DATASETS

    if dataset not in DATASETS:
        raise DataError("a verifier names an " + unknown("reasoning_gym dataset", dataset, DATASETS))
    return reasoning_gym.get_score_answer_fn(dataset)


def reward(example: Example, text: str) -> float:
    """The reward in [0, 1] that the item's own library gives to a text; some datasets give partial credit.

    The library judges the marked answer, else the text. A text that its verifier cannot parse earns 0.

    Raises:
        DataError: ``example.verifier`` is missing, names another library, or cannot judge even its own answer.
    """
    verifier = example.verifier
    missing = [key for key in ("library", "dataset", "entry") if key not in (verifier or {})]
    if verifier is None or missing:
        raise DataError(
            f"item {example.sample_id}: verifier lacks {', '.join(missing)}. "
            'It must be {"library": "reasoning_gym", "dataset": NAME, "entry": {…}}.'
        )
    if verifier["library"] != "reasoning_gym":
        raise DataError(
            f"item {example.sample_id}: " + unknown("verifier library", verifier["library"], ["reasoning_gym"])
        )
    judge = _reasoning_gym(verifier["dataset"])
    answer = marked_or_all(text).strip()
    if not answer:
        return 0.0
    try:
        return min(1.0, max(0.0, float(judge(answer, verifier["entry"]))))
    except _UNPARSABLE:
        _check_entry(example, judge)
        return 0.0


def verified(example: Example, text: str) -> bool:
    """Whether the item's own library gives the text its full reward."""
    return reward(example, text) >= 1 - 1e-6


def _check_entry(example: Example, judge: Callable[[str, Mapping[str, Any]], float]) -> None:
    """Raise DataError unless the verifier can judge the entry's own answer: then only the given text is unparsable."""
    verifier = example.verifier or {}
    try:
        judge(str(verifier["entry"]["answer"]), verifier["entry"])
    except _UNPARSABLE as error:
        raise DataError(
            f"item {example.sample_id}: the verifier of '{verifier['dataset']}' fails on the item's own "
            f"answer ({type(error).__name__}: {error}). Store the library's entry unchanged."
        ) from error
