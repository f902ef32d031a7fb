"""Verifiers of procedural items: the library that made an item judges an answer. Data never decides what code runs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from longgame.data.examples import Example
from longgame.data.synthetic.base import reasoning_gym
from longgame.errors import DataError, did_you_mean, unknown
from longgame.evaluation.answers import marked_or_all

PURE_VERIFIERS = frozenset(
    re.findall(
        r"\w+",
        """
        ab acre aiw arc_1d arc_agi base_conversion basic_arithmetic bf binary_alternation boxnet caesar_cipher
        calendar_arithmetic chain_sum circuit_logic color_cube_rotation count_bits count_primes
        course_schedule decimal_arithmetic decimal_chain_sum emoji_mystery family_relationships figlet_font
        fraction_simplification futoshiki game_of_life game_of_life_halting gcd graph_color group_anagrams gsm_symbolic
        isomorphic_strings kakurasu knights_knaves largest_island lcm leg_counting letter_counting letter_jumble
        list_functions mahjong_puzzle manipulate_matrix maze mini_sudoku modulo_grid needle_haystack number_filtering
        number_format number_sequence palindrome_generation palindrome_partitioning path_star pool_matrix
        prime_factorization products ransom_note rearc rectangle_count rotate_matrix rotten_oranges self_reference
        sentence_reordering shortest_path simple_equations simple_geometry spell_backward string_manipulation
        string_splitting string_synthesis sudoku survo syllogism tsumego word_ladder word_sequence_reversal word_sorting
        zebra_puzzles
        """,
    )
)
"""reasoning_gym's datasets whose verifier only compares and parses. The others evaluate a text as code, simulate what
an entry asks for at any size, or hand it on to another dataset."""

_LONGEST_JUDGED = 20_000
"""Characters of an answer that a verifier gets; a longer one earns nothing."""
_UNPARSABLE = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, StopIteration, SyntaxError),
    *(TypeError, ValueError),
)
"""What verifiers raise on a text they cannot parse (reasoning_gym's game_of_life, boxnet, shortest_path do)."""


@cache
def _reasoning_gym(dataset: str) -> Callable[[str, Mapping[str, Any]], float]:
    return reasoning_gym().get_score_answer_fn(dataset)


def check_verifier(example: Example) -> None:
    """Raise DataError unless the example's verifier is allowed: data never decides what code runs.

    It must be ``{"library": "reasoning_gym", "dataset": NAME, "entry": {…}}`` with a NAME of `PURE_VERIFIERS`.
    """
    verifier, subject = example.verifier or {}, f"item {example.sample_id}: "
    missing = [key for key in ("library", "dataset", "entry") if key not in verifier]
    if missing:
        raise DataError(
            f"{subject}verifier lacks {', '.join(missing)}. "
            'It must be {"library": "reasoning_gym", "dataset": NAME, "entry": {…}}.'
        )
    if verifier["library"] != "reasoning_gym":
        raise DataError(subject + unknown("verifier library", str(verifier["library"]), ["reasoning_gym"]))
    if str(verifier["dataset"]) not in PURE_VERIFIERS:
        raise DataError(
            f"{subject}the verifier of '{verifier['dataset']}' is not one of the {len(PURE_VERIFIERS)} that only parse "
            f"and compare (PURE_VERIFIERS in {__name__}).{did_you_mean(str(verifier['dataset']), PURE_VERIFIERS)} "
            "Others may evaluate a text as code, which data must not do. Leave `verifier` out and give the item an "
            "`answer`."
        )
    entry = verifier["entry"]
    if not isinstance(entry, Mapping) or not isinstance(entry.get("answer"), str):
        raise DataError(f"{subject}the verifier's entry has no text as `answer`. Store the library's entry unchanged.")


def reward(example: Example, text: str) -> float:
    """The reward in [0, 1] that the item's own library gives to a text; some datasets give partial credit.

    The library judges the marked answer, else the text, without thinking. A text that its verifier cannot parse, or of
    more than 20,000 characters, earns 0.

    Raises:
        DataError: ``example.verifier`` is missing, is none of `PURE_VERIFIERS`, or cannot judge even its own answer.
    """
    check_verifier(example)
    verifier = example.verifier or {}
    judge = _reasoning_gym(str(verifier["dataset"]))
    answer = marked_or_all(text).strip()
    if not answer or len(answer) > _LONGEST_JUDGED:
        return 0.0
    try:
        value = float(judge(answer, verifier["entry"]))
    except _UNPARSABLE:
        _check_entry(example, judge)
        return 0.0
    return min(1.0, max(0.0, value)) if math.isfinite(value) else 0.0


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
