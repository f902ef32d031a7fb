"""A procedural pool: sub-skills of unequal size, a spread of difficulty, copies, and damage that is recorded."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from longgame.data.examples import Example, content_id, with_unique_ids
from longgame.data.synthetic.base import LEVELS, SubSkill, pick
from longgame.errors import DataError
from longgame.recipe import DataSpec
from longgame.seeding import generator

LEVEL_SHARES = {"easy": 0.35, "mid": 0.40, "hard": 0.25}
"""Share of each difficulty in pools, validation sets and the base mixture."""
SIZE_WEIGHTS = (8.0, 5.0, 3.0, 2.0)
"""Relative sizes of a pool's sub-skills of one kind, familiar or not (the fifth and later ones as the fourth). The seed
draws their order."""
EVALUATION_SHARE = 0.2
"""Share of all prompts that only validation and OOD items may use."""
_TRIES = 2000
"""Consecutive draws without a new prompt after which a sub-skill counts as exhausted."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of candidates in a pool, or in a part of it."""

    size: int
    copies: int
    """Repeats among them."""
    noisy: int
    """Damaged ones among them."""


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Split ``total`` into whole parts in proportion to ``weights`` (largest remainders; the parts sum to it)."""
    shares = np.asarray(weights, dtype=np.float64) / float(np.sum(weights)) * total
    counts = np.floor(shares + 1e-9).astype(int)
    for row in np.argsort(counts - shares, kind="stable")[: total - int(counts.sum())]:
        counts[row] += 1
    return [int(count) for count in counts]


def is_for_evaluation(prompt: str) -> bool:
    """Whether a prompt belongs to evaluation: a share of `EVALUATION_SHARE` of all prompts, by their hash.

    Pools, proxy items and the corpus of the tiny base never hold such a prompt, whatever their seeds.
    """
    digest = hashlib.sha256(" ".join(prompt.split()).encode()).digest()
    return int.from_bytes(digest[:4], "big") < EVALUATION_SHARE * 2**32


def new_example(
    skill: SubSkill, level: str, rng: np.random.Generator, used: set[str], *, evaluation: bool = False
) -> Example:
    """An item whose prompt is not in ``used``; the prompt is added to it.

    Args:
        evaluation: whether the item is for evaluation (`is_for_evaluation`) or for training.

    Raises:
        DataError: the sub-skill seems to have no new prompt.
    """
    for _ in range(_TRIES):
        example = skill.example(rng, level)
        if example.prompt not in used and is_for_evaluation(example.prompt) == evaluation:
            used.add(example.prompt)
            return example
    raise DataError(
        f"sub-skill '{skill.name}' ({level}) gave no new prompt in {_TRIES} draws; "
        "it is exhausted. Ask for a smaller data.pool_size or fewer items per sub-skill."
    )


def levels_of(count: int, rng: np.random.Generator) -> list[str]:
    """``count`` difficulties in the shares of `LEVEL_SHARES`, in random order."""
    counts = apportion(count, [LEVEL_SHARES[level] for level in LEVELS])
    levels = [level for level, times in zip(LEVELS, counts, strict=True) for _ in range(times)]
    return [levels[row] for row in rng.permutation(count)]


def draw_pool(
    skills: Sequence[SubSkill], spec: DataSpec, counts: Counts, rng: np.random.Generator, used: set[str]
) -> tuple[Example, ...]:
    """Candidates of these sub-skills, in random order.

    ``spec.unseen`` of the new candidates come from sub-skills whose form the tiny base never saw; if all sub-skills are
    of one kind, all candidates come from it.

    Raises:
        DataError: a sub-skill is exhausted, or a response cannot be damaged.
    """
    copies = min(counts.copies, counts.size - 1)
    originals = counts.size - copies
    familiar, unfamiliar = [s for s in skills if s.familiar], [s for s in skills if not s.familiar]
    share = spec.unseen if familiar and unfamiliar else float(bool(unfamiliar))
    examples = []
    for total, group in ((originals - round(share * originals), familiar), (round(share * originals), unfamiliar)):
        order = [group[row] for row in rng.permutation(len(group))]
        weights = [SIZE_WEIGHTS[min(place, len(SIZE_WEIGHTS) - 1)] for place in range(len(order))]
        for skill, count in zip(order, apportion(total, weights) if order else (), strict=True):
            examples += [new_example(skill, level, rng, used) for level in levels_of(count, rng)]

    noisy_copies = min(round(spec.noise * copies), max(counts.noisy - 1, 0))
    rows = rng.permutation(originals)
    damaged, clean = rows[: counts.noisy - noisy_copies], rows[counts.noisy - noisy_copies :]
    noisy_copies = noisy_copies if len(clean) else copies
    for row in damaged:
        examples[row] = damage(examples[row], examples, rng)
    copied = [*_draw_rows(damaged, noisy_copies, rng), *_draw_rows(clean, copies - noisy_copies, rng)]
    repeats = [examples[row] if k % 2 else _near_copy(examples[row], rng, used) for k, row in enumerate(copied)]
    mixed = [*examples, *repeats]
    return with_unique_ids(mixed[row] for row in rng.permutation(len(mixed)))


def _draw_rows(rows: np.ndarray, count: int, rng: np.random.Generator) -> list[int]:
    """``count`` rows, every row as seldom as possible."""
    return [int(rows[i]) for k in range(0, count, max(len(rows), 1)) for i in rng.permutation(len(rows))[: count - k]]


def _near_copy(example: Example, rng: np.random.Generator, used: set[str]) -> Example:
    """The example under a prompt that differs only in a word of courtesy or a blank."""
    forms = ("Please answer. {}", "Question: {}", "{} Thanks.", "Hi. {}", "{} ", "{}\n", "Task: {}", "Now this: {}")
    free = [text for text in (form.format(example.prompt) for form in forms) if text not in used]
    prompt = pick(rng, free) if free else f"Again: {example.prompt}"
    used.add(prompt)
    return dataclasses.replace(example, sample_id=content_id(prompt, example.response), prompt=prompt)


def _swap(_: Example, others: Sequence[Example], rng: np.random.Generator) -> str:
    return pick(rng, others).response


def _shuffle(example: Example, _: Sequence[Example], rng: np.random.Generator) -> str:
    words = example.response.split()
    return " ".join(words[row] for row in rng.permutation(len(words)))


def _truncate(example: Example, _: Sequence[Example], rng: np.random.Generator) -> str:
    length = len(example.response)
    return example.response[: int(rng.integers(1, max(length, 2)))].strip()


def _redigit(example: Example, _: Sequence[Example], rng: np.random.Generator) -> str:
    digits = [place for place, letter in enumerate(example.response) if letter.isdigit()]
    if not digits:
        return example.response
    place = pick(rng, digits)
    other = pick(rng, [digit for digit in "0123456789" if digit != example.response[place]])
    return example.response[:place] + other + example.response[place + 1 :]


_DAMAGES: tuple[Callable[[Example, Sequence[Example], np.random.Generator], str], ...] = (
    _swap,
    _shuffle,
    _truncate,
    _redigit,
)


def damage(example: Example, others: Sequence[Example], rng: np.random.Generator) -> Example:
    """The example with a wrong response: another item's, shuffled, cut short, or with a digit changed.

    Raises:
        DataError: no damage changes the response (all ``others`` share it and it is one letter).
    """
    for row in [*rng.permutation(len(_DAMAGES)), *[0] * 50]:
        response = _DAMAGES[row](example, others, rng)
        if response.strip() and response != example.response:
            new_id = content_id(example.prompt, response)
            return dataclasses.replace(example, sample_id=new_id, response=response, noisy=True)
    raise DataError(
        f"example {example.sample_id} (response {example.response!r}) cannot be damaged: no other response in the "
        "pool differs from it. Use a larger data.pool_size or data.noise: 0."
    )


def rated(example: Example, seed: int) -> Example:
    """The example with a noisy ``quality`` in [0, 1], as a judge who often errs would give it.

    The rating is Φ(z) with z = N(0, 1), + 0.6 if the response is intact, − 0.6 if it is damaged, + 0.25 for an easy
    item, − 0.25 for a hard one. An intact item beats a damaged one with a probability (AUC) near Φ(1.2/√2) = .80.
    Items of one content have one rating.
    """
    content = example.sample_id.partition("#")[0]
    error = generator(seed, "procedural", "quality", content).standard_normal()
    of_level = {"easy": 0.25, "hard": -0.25}.get(example.difficulty or "", 0.0)
    z = (-0.6 if example.noisy else 0.6) + of_level + error
    return dataclasses.replace(example, quality=0.5 * (1 + math.erf(z / math.sqrt(2))))
