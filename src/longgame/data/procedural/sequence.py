"""The procedural skill sequence: pools with unseen sub-skills, damage and copies; validation, OOD and proxy items."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from longgame.data.examples import Example, SequenceData, StageData, Task, with_unique_ids
from longgame.data.procedural import coding, general, maths, reasoning, safety
from longgame.data.procedural.base import LEVELS, OOD, SubSkill, pick
from longgame.errors import DataError
from longgame.recipe import DataSpec, ProxySpec
from longgame.seeding import generator

STAGES: dict[str, tuple[SubSkill, ...]] = {
    "general": general.SKILLS,
    "math": maths.SKILLS,
    "code": coding.SKILLS,
    "reasoning": reasoning.SKILLS,
    "safety": safety.SKILLS,
}
"""Stage → its sub-skills, in the order in which the stages are learned."""
LEVEL_SHARES = {"easy": 0.35, "mid": 0.40, "hard": 0.25}
"""Share of each difficulty in pools, validation sets and the base mixture."""
SIZE_WEIGHTS = (8.0, 5.0, 3.0, 2.0)
"""Relative sizes of a pool's sub-skills (of one kind, seen or unseen); who gets which size is drawn per seed."""
NEW_TOKENS = {"general": (72, 96), "math": (52, 80), "code": (40, 60), "reasoning": (28, 36), "safety": (48, 68)}
"""Stage → tokens that a generated answer may have in validation and in the OOD set: the longest gold response under the
tiny base's tokenizer and a few more."""
_TRIES = 400
"""Consecutive draws without a new prompt after which a sub-skill is taken to be exhausted."""


def unseen_skills() -> frozenset[str]:
    """Names of the sub-skills that the base mixture leaves out."""
    return frozenset(skill.name for skills in STAGES.values() for skill in skills if not skill.seen)


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Split ``total`` into whole parts in proportion to ``weights`` (largest remainders; the parts sum to it)."""
    shares = np.asarray(weights, dtype=np.float64) / float(np.sum(weights)) * total
    counts = np.floor(shares + 1e-9).astype(int)
    for row in np.argsort(counts - shares, kind="stable")[: total - int(counts.sum())]:
        counts[row] += 1
    return [int(count) for count in counts]


def build_procedural_sequence(spec: DataSpec, seed: int, proxy: ProxySpec) -> SequenceData:
    """Build the five-stage skill sequence of one seed: same arguments, same ids, in the same order.

    Pool, validation, OOD and proxy items come from streams of their own and share no prompt with one another.
    A pool holds ``pool_size`` candidates: ``unseen`` of the new ones come from sub-skills that the tiny base never
    saw, the sub-skills are of unequal size, ``noise`` of all candidates have a damaged response (``noisy=True``; the
    gold ``answer`` stays right), ``duplicates`` repeat another candidate, every second of them under a slightly
    changed prompt. ``quality`` stays None: these items have no quality but their damage, which would be an oracle.

    Raises:
        DataError: a sub-skill cannot give as many different prompts as the pool asks for.
    """
    stages, ood = [], []
    for name, skills in STAGES.items():
        taken: set[str] = set()
        validation = _items(skills, spec.items_per_skill, generator(seed, "procedural", name, "validation"), taken)
        shifted = _items(skills, spec.ood_items_per_skill, generator(seed, "procedural", name, "ood"), taken, OOD)
        future = _items(skills, proxy.items_per_skill, generator(seed, "procedural", name, "proxy"), taken)
        pool = _pool(skills, spec, generator(seed, "procedural", name, "pool"), taken)
        task = Task(name=name, items=validation, max_new_tokens=NEW_TOKENS[name][0])
        stages.append(StageData(name=name, candidates=pool, task=task, proxy=future))
        ood.append(Task(name=f"{name}-ood", items=shifted, kind="ood", max_new_tokens=NEW_TOKENS[name][1]))
    return SequenceData(name="procedural-skill", stages=tuple(stages), ood=tuple(ood))


def _new_example(skill: SubSkill, level: str, rng: np.random.Generator, taken: set[str]) -> Example:
    for _ in range(_TRIES):
        example = skill.example(rng, level)
        if example.prompt not in taken:
            taken.add(example.prompt)
            return example
    raise DataError(
        f"sub-skill '{skill.name}' ({level}) gave no new prompt in {_TRIES} draws; "
        "it is exhausted. Ask for a smaller data.pool_size or fewer items per sub-skill."
    )


def _levels(count: int, rng: np.random.Generator) -> list[str]:
    """Return ``count`` difficulties in the shares of `LEVEL_SHARES`, in random order."""
    counts = apportion(count, [LEVEL_SHARES[level] for level in LEVELS])
    levels = [level for level, times in zip(LEVELS, counts, strict=True) for _ in range(times)]
    return [levels[row] for row in rng.permutation(count)]


def _items(
    skills: Sequence[SubSkill], per_skill: int, rng: np.random.Generator, taken: set[str], level: str | None = None
) -> tuple[Example, ...]:
    items = []
    for skill in skills:
        levels = [level] * per_skill if level else _levels(per_skill, rng)
        items += [_new_example(skill, each, rng, taken) for each in levels]
    return with_unique_ids(items)


def _pool(skills: Sequence[SubSkill], spec: DataSpec, rng: np.random.Generator, taken: set[str]) -> tuple[Example, ...]:
    copies = min(round(spec.duplicates * spec.pool_size), spec.pool_size - 1)
    originals = spec.pool_size - copies
    from_unseen = round(spec.unseen * originals)
    groups = (
        (originals - from_unseen, [s for s in skills if s.seen]),
        (from_unseen, [s for s in skills if not s.seen]),
    )
    examples = []
    for total, group in groups:
        order = [group[row] for row in rng.permutation(len(group))]
        for skill, count in zip(order, apportion(total, SIZE_WEIGHTS[: len(order)]), strict=True):
            examples += [_new_example(skill, level, rng, taken) for level in _levels(count, rng)]

    noisy = round(spec.noise * spec.pool_size)
    noisy_copies = min(round(spec.noise * copies), max(noisy - 1, 0))
    rows = rng.permutation(originals)
    damaged, clean = rows[: noisy - noisy_copies], rows[noisy - noisy_copies :]
    for row in damaged:
        examples[row] = damage(examples[row], examples, rng)
    copied = [*_draw_rows(damaged, noisy_copies, rng), *_draw_rows(clean, copies - noisy_copies, rng)]
    repeats = [examples[row] if k % 2 else _near_copy(examples[row], rng, taken) for k, row in enumerate(copied)]
    mixed = [*examples, *repeats]
    return with_unique_ids(mixed[row] for row in rng.permutation(len(mixed)))


def _draw_rows(rows: np.ndarray, count: int, rng: np.random.Generator) -> list[int]:
    """Return ``count`` rows, each as seldom as possible."""
    return [int(rows[i]) for k in range(0, count, max(len(rows), 1)) for i in rng.permutation(len(rows))[: count - k]]


def _near_copy(example: Example, rng: np.random.Generator, taken: set[str]) -> Example:
    """Return the example under a prompt that differs only in a word of courtesy or a blank."""
    forms = ("Please answer. {}", "Question: {}", "{} Thanks.", "Hi. {}", "{} ", "{}\n", "Task: {}", "Now this: {}")
    free = [text for text in (form.format(example.prompt) for form in forms) if text not in taken]
    prompt = pick(rng, free) if free else f"Again: {example.prompt}"
    taken.add(prompt)
    values = {field.name: getattr(example, field.name) for field in dataclasses.fields(example)}
    for made in ("sample_id", "prompt", "response"):
        del values[made]
    return Example.make(prompt, example.response, **values)


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
    """Return the example with a wrong response: another item's, shuffled, cut short, or with a digit changed.

    Raises:
        DataError: no damage changes the response (all ``others`` share it and it is one letter).
    """
    for row in [*rng.permutation(len(_DAMAGES)), *[0] * 50]:
        response = _DAMAGES[row](example, others, rng)
        if response.strip() and response != example.response:
            changed = Example.make(example.prompt, response)
            return dataclasses.replace(example, sample_id=changed.sample_id, response=response, noisy=True)
    raise DataError(
        f"example {example.sample_id} (response {example.response!r}) cannot be damaged: no other response in the "
        "pool differs from it. Use a larger data.pool_size or data.noise: 0."
    )
