"""Procedural items judged by the verifier of the library that made them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from longgame.data.examples import Example
from longgame.errors import DataError, unknown
from longgame.evaluation.answers import marked

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
