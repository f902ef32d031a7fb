"""The procedural sequences: validation, OOD and proxy items of every stage, then pools without their prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from longgame.data.examples import Example, SequenceData, StageData, Task, with_unique_ids
from longgame.data.orders import pool_shares, resolve_order, walk
from longgame.data.procedural.base import OOD, SubSkill
from longgame.data.procedural.pool import Counts, apportion, draw_pool, levels_of, new_example
from longgame.data.procedural.stages import NEW_TOKENS, Stages, stages_of
from longgame.errors import RecipeError
from longgame.recipe import DataSpec, ProxySpec
from longgame.seeding import generator

SCORERS = ("token_accuracy", "exact_match")
"""Scorers of a procedural task; ``choice`` comes last where items carry options."""


def build_procedural_sequence(
    spec: DataSpec, seed: int, proxy: ProxySpec, order: Sequence[str] | Sequence[int] = ()
) -> SequenceData:
    """Build a procedural sequence of one seed: same arguments, same ids, in the same order.

    Pool, validation, OOD and proxy items come from streams of their own and share no prompt with one another, within a
    stage and between stages. A pool holds ``pool_size`` candidates: ``unseen`` of the new ones come from sub-skills of
    a form that the tiny base never saw, the sub-skills are of unequal size, ``noise`` of all candidates have a damaged
    response (``noisy=True``; the gold ``answer`` stays right), ``duplicates`` repeat another candidate, every second
    of them under a slightly changed prompt. ``mixing`` of a pool comes from sub-skills that the stage does not have
    and its neighbours in time do (`longgame.data.orders.pool_shares`), with the same shares of everything else; all
    other items of a stage are of its own sub-skills, and the same ones whatever is mixed and in whatever order.
    ``quality`` stays None: these items have no quality but their damage, which would be an oracle.

    Args:
        spec: the data section of a recipe with a procedural ``sequence``.
        seed: of this replication.
        proxy: how many proxy items each sub-skill gives.
        order: in which the stages are walked (names or rows); empty: as the sequence has them.

    Raises:
        DataError: a sub-skill cannot give as many different prompts as the pool asks for.
        RecipeError: stages, an order or a mixing share that make no sequence.
    """
    stages = stages_of(spec)
    rows = resolve_order(list(stages), order)
    shares = pool_shares(spec.pool_size, rows, spec.mixing)
    taken: set[str] = set()
    fixed = [_fixed_items(name, skills, spec, seed, proxy, taken) for name, skills in stages.items()]
    pools = _pools(stages, shares, spec, seed, taken)
    own = {stage.name: stage for stage in spec.stages}
    built, ood = [], []
    for (name, skills), (validation, shifted, future), pool in zip(stages.items(), fixed, pools, strict=True):
        choice = ("choice",) if any(item.choices for item in validation) else ()
        scorers, least = (own[name].scorers, own[name].max_new_tokens) if own else ((*SCORERS, *choice), 1)
        tokens, tokens_ood = (max(least, *(NEW_TOKENS[skill.name][row] for skill in skills)) for row in (0, 1))
        task = Task(name, validation, "stage", scorers, tokens)
        built.append(StageData(name, pool, task, future))
        ood.append(Task(f"{name}-ood", shifted, "ood", scorers, tokens_ood, stage=name))
    return walk(SequenceData(spec.sequence, tuple(built), tuple(ood), spec.mixing), rows)


def _fixed_items(
    name: str, skills: Sequence[SubSkill], spec: DataSpec, seed: int, proxy: ProxySpec, taken: set[str]
) -> tuple[tuple[Example, ...], ...]:
    """Validation, OOD and proxy items of a stage."""
    validation = _items(skills, spec.items_per_skill, generator(seed, "procedural", name, "validation"), taken)
    shifted = _items(skills, spec.ood_items_per_skill, generator(seed, "procedural", name, "ood"), taken, OOD)
    future = _items(skills, proxy.items_per_skill, generator(seed, "procedural", name, "proxy"), taken)
    return validation, shifted, future


def _items(
    skills: Sequence[SubSkill], per_skill: int, rng: np.random.Generator, taken: set[str], level: str | None = None
) -> tuple[Example, ...]:
    items = []
    for skill in skills:
        levels = [level] * per_skill if level else levels_of(per_skill, rng)
        items += [new_example(skill, each, rng, taken) for each in levels]
    return with_unique_ids(items)


def _pools(
    stages: Stages, shares: list[dict[int, int]], spec: DataSpec, seed: int, taken: set[str]
) -> list[tuple[Example, ...]]:
    """The pools of all stages; what is mixed in is drawn last, so that a stage's own candidates do not depend on it."""
    copies = min(round(spec.duplicates * spec.pool_size), spec.pool_size - 1)
    noisy = round(spec.noise * spec.pool_size)
    names, own, pools = list(stages), [], []
    counts: list[dict[str, Counts]] = []
    for given in shares:
        sizes = list(given.values())
        split = zip(given, sizes, apportion(copies, sizes), apportion(noisy, sizes), strict=True)
        counts.append({names[row]: Counts(*numbers) for row, *numbers in split})
    for name, parts in zip(names, counts, strict=True):
        own.append(draw_pool(stages[name], spec, parts[name], generator(seed, "procedural", name, "pool"), taken))
    for name, pool, parts in zip(names, own, counts, strict=True):
        mixed = [*pool]
        for giver in [other for other in parts if other != name]:
            rng = generator(seed, "procedural", name, "mixed", giver)
            mixed += draw_pool(_foreign(stages, name, giver), spec, parts[giver], rng, taken)
        rows = generator(seed, "procedural", name, "mixing").permutation(len(mixed))
        pools.append(pool if len(parts) == 1 else with_unique_ids(mixed[row] for row in rows))
    return pools


def _foreign(stages: Stages, name: str, giver: str) -> tuple[SubSkill, ...]:
    skills = tuple(skill for skill in stages[giver] if skill not in stages[name])
    if not skills:
        raise RecipeError(
            f"data.mixing: stage '{giver}' has no sub-skill that its neighbour '{name}' lacks, so it has nothing to "
            "mix in. Use data.mixing: 0, another order, or other sub-skills."
        )
    return skills
