r"""From a free text to an answer that can be compared: one small rule per function.

The rules are those that readers of GSM8K, MATH and multiple-choice benchmarks know (``#### N``, ``\boxed{}``, "the
answer is X", the last number, a letter, yes/no). None of them looks at the gold answer to decide what was said.
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
_VERDICTS = ({"yes", "no"}, {"true", "false"})


def boxed(text: str) -> str | None:
    r"""Return what stands in the last ``\boxed{…}`` (nested braces kept), or None."""
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
    """Return what follows the last ``####`` on its line, or None."""
    found = _HASHES.findall(text)
    return found[-1].strip() or None if found else None


def stated(text: str) -> str | None:
    """Return X of the last "the answer is X" / "Answer: X" (to the end of the sentence or line), or None."""
    found = _STATED.findall(text)
    return found[-1].strip() if found else None


def marked(text: str) -> str | None:
    r"""Return the answer that the text marks as such: ``\boxed{}``, then ``####``, then "the answer is"; or None."""
    for rule in (boxed, after_hashes, stated):
        found = rule(text)
        if found is not None:
            return found
    return None


def parse_number(text: str) -> Fraction | None:
    r"""Return the exact value of a text that is one number and nothing else, or None.

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
    whole = (match["whole"] or "").replace(",", "")
    if len(whole) > 1 and whole[0] == "0":
        return None
    decimals = (match["part"] or match["only"] or "").rstrip(".")
    value = Fraction(f"{whole or 0}{decimals}")
    return -value if match["sign"] == "-" else value


def numbers(text: str) -> list[Fraction]:
    """Return every number of the text in order; a minus counts as a sign only where no digit or letter is before it."""
    found = []
    for match in _NUMBER.finditer(_LATEX_FRACTION.sub(r" \1/\2 ", text)):
        if match["whole"] is None and match["part"] is None:
            continue
        value = parse_number(match[0].strip())
        if value is not None:
            found.append(value)
    return found


def number(text: str) -> Fraction | None:
    """Return the number a text gives as its answer: the first in what it marks as the answer, else its last one."""
    answer = marked(text)
    said = text if answer is None else answer
    whole = parse_number(said)
    if whole is not None:
        return whole
    inside = numbers(said)
    return None if not inside else inside[-1] if answer is None else inside[0]


def normalise(text: str) -> str:
    """Return the text as compared: NFKC, case folded, white space collapsed, quotes and final punctuation dropped."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = " ".join(text.split()).strip("\"'`*“”‘’ ")
    return text.rstrip(".,;:!? ").strip("\"'`*“”‘’ ")


def verdict(text: str) -> str | None:
    """Return ``yes``, ``no``, ``true`` or ``false``: the marked answer's, else the opening word, else the last one."""
    answer = marked(text)
    found = _WORD.findall(text if answer is None else answer)
    if not found:
        return None
    opens = _WORD.match(text.lstrip("\"'`*( ")) if answer is None else None
    return (opens[1] if opens else found[0] if answer is not None else found[-1]).lower()


def letter(text: str, options: int) -> int | None:
    """Return the index of the option that a text names by its letter (A = 0), or None.

    Looked for in the marked answer, else at the start of the text ("B", "B.", "(B)", "B: …"), else the last letter in
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
    """Return the first option whose text is the marked answer, or the whole text, or how the text opens; or None."""
    texts = [normalise(choice) for choice in choices]
    answer = marked(text)
    said = normalise(text if answer is None else answer)
    if said in texts:
        return texts.index(said)
    opening = [index for index, choice in enumerate(texts) if choice and re.match(rf"{re.escape(choice)}\b", said)]
    return max(opening, key=lambda index: len(texts[index])) if opening else None


def alternatives(answer: str) -> list[str]:
    """Split a gold answer at `` | ``."""
    return [part.strip() for part in answer.split(" | ")]


def gold_option(example: Example) -> int | None:
    """Return the index of the right option: by letter, else by text; None without choices, answer or a match."""
    if not example.choices or example.answer is None:
        return None
    answer = example.answer.strip()
    if len(answer) == 1 and 0 <= ord(answer) - 65 < len(example.choices):
        return ord(answer) - 65
    texts = [normalise(choice) for choice in example.choices]
    return next((texts.index(said) for said in map(normalise, alternatives(answer)) if said in texts), None)


def is_short(example: Example) -> bool:
    """Whether the gold answer can be compared as a text: one line, or the whole response.

    A test program (MBPP, HumanEval) has several lines and is no answer that a model could give.
    """
    if example.answer is None:
        return False
    return "\n" not in example.answer.strip() or normalise(example.answer) == normalise(example.response)


def matches(example: Example, text: str) -> bool:
    """Whether the text gives the example's gold answer (without a library's verifier).

    The kind of the gold answer decides the rule: an option (letter or its text), a number, yes/no/true/false, or text
    (the marked answer where there is one, else the whole text, both normalised).

    Raises:
        DataError: the example has no answer.
    """
    if example.answer is None:
        raise DataError(f"item {example.sample_id} has no `answer` to compare with; exact_match leaves such items out.")
    right = gold_option(example)
    if right is not None and example.choices is not None:
        by_letter = example.answer.strip() == chr(65 + right)
        said = letter(text, len(example.choices)) if by_letter else None
        if said is not None:
            return said == right
        said = option(text, example.choices)
        if said is not None:
            return normalise(example.choices[said]) == normalise(example.choices[right])
        if by_letter:
            return False
    return any(_matches_one(gold, text) for gold in alternatives(example.answer))


def _matches_one(gold: str, text: str) -> bool:
    value = parse_number(gold)
    if value is not None:
        return number(text) == value
    if any(normalise(gold) in words for words in _VERDICTS):
        return verdict(text) == normalise(gold)
    answer = marked(text)
    said = text if answer is None else answer
    sums = [said.rpartition("=")[2]] if re.search(r"\d", gold) else []  # "(4+2)/2 = 3 thousand" gives "3 thousand"
    return normalise(gold) in map(normalise, (said, *sums))


# Procedural items judged by the verifier of the library that made them.

_FULL = 1 - 1e-6

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
    """Return the reward in [0, 1] that the item's own library gives to a text; some libraries give partial credit.

    What the text marks as its answer (``\\boxed{}``, ``####``, "the answer is") is judged, else the whole text. A text
    that the verifier cannot parse earns 0.

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
    answer = marked(text)
    said = (text if answer is None else answer).strip()
    if not said:
        return 0.0
    try:
        return min(1.0, max(0.0, float(judge(said, verifier["entry"]))))
    except _UNPARSABLE:
        _check_entry(example, judge)
        return 0.0


def verified(example: Example, text: str) -> bool:
    """Whether the item's own library gives the text its full reward."""
    return reward(example, text) >= _FULL


def _check_entry(example: Example, judge: Callable[[str, Mapping[str, Any]], float]) -> None:
    """Tell a broken entry from an unparsable answer: the verifier must at least judge the entry's own answer."""
    verifier = example.verifier or {}
    try:
        judge(str(verifier["entry"]["answer"]), verifier["entry"])
    except _UNPARSABLE as error:
        raise DataError(
            f"item {example.sample_id}: the verifier of '{verifier['dataset']}' fails on the item's own "
            f"answer ({type(error).__name__}: {error}). Store the library's entry unchanged."
        ) from error
