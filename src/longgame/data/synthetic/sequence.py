"""Procedural sequences: which sub-skills make which stage, and the items and pools of every stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from longgame.data.examples import Example, SequenceData, Stage, Task, with_unique_ids
from longgame.data.orders import pool_shares, resolve_order, walk
from longgame.data.synthetic.base import OOD, SubSkill
from longgame.data.synthetic.coding import CODING
from longgame.data.synthetic.domain import BIOMEDICAL, FINANCE, GENERAL_QA, LEGAL, SCIENCE
from longgame.data.synthetic.language import GENERAL, SAFETY
from longgame.data.synthetic.maths import MATHS, REASONING
from longgame.data.synthetic.pool import Counts, apportion, draw_pool, levels_of, new_example, rated
from longgame.errors import RecipeError, unknown
from longgame.recipe import DataSpec, ProxySpec
from longgame.seeding import generator

Stages = Mapping[str, tuple[SubSkill, ...]]
"""Stage → its sub-skills, in the order in which the stages are learned."""

STAGES: dict[str, tuple[SubSkill, ...]] = {
    "general": GENERAL,
    "math": MATHS,
    "code": CODING,
    "reasoning": REASONING,
    "safety": SAFETY,
}
"""The skill sequence. The tiny base model is pretrained on its seen sub-skills."""
DOMAINS: dict[str, tuple[SubSkill, ...]] = {
    "general-qa": GENERAL_QA,
    "biomedical": BIOMEDICAL,
    "legal": LEGAL,
    "finance": FINANCE,
    "science": SCIENCE,
}
"""The domain sequence. The base saw none of it; four sub-skills of each domain use new words in a form that it saw."""

SUB_SKILLS: dict[str, SubSkill] = {
    skill.name: skill for skills in (*STAGES.values(), *DOMAINS.values()) for skill in skills
}
"""Every sub-skill by its name."""


def _named(*names: str) -> tuple[SubSkill, ...]:
    return tuple(SUB_SKILLS[name] for name in names)


INTERLEAVED: dict[str, tuple[SubSkill, ...]] = {
    "writing": _named("join-words", "replace-word", "polite-rewrite", "redact", "past-tense", "make-json"),
    "records": _named("redact", "extract-field", "table-cell", "policy-lookup", "make-json", "clause-relevant"),
    "rules": _named("policy-lookup", "penalty", "diagnosis", "lab-flag", "clause-relevant", "risk-score"),
    "amounts": _named("lab-flag", "balance", "chain-sum", "next-terms", "risk-score", "vote-count"),
    "orders": _named("next-terms", "compare-chain", "weekday", "food-chain", "vote-count", "event-order"),
}
"""The interleaved sequence: each stage shares two of its six sub-skills with the next, one of an unseen form."""

PROCEDURAL_SEQUENCES: dict[str, Stages] = {
    "procedural-skill": STAGES,
    "procedural-domain": DOMAINS,
    "procedural-interleaved": INTERLEAVED,
}
"""``data.sequence`` → its stages."""

ITEM_SCORERS = ("token_accuracy", "exact_match", "ends")
"""Scorers of every stage with sub-skills of its own; stages with multiple-choice items have `choice`, too."""


def stages_of(spec: DataSpec) -> Stages:
    """The stages of a procedural sequence; those of ``procedural`` are in ``data.stages``.

    Raises:
        RecipeError: an unknown sub-skill, one that a stage names twice, or two stages of one name.
    """
    if spec.sequence != "procedural":
        return PROCEDURAL_SEQUENCES[spec.sequence]
    stages: dict[str, tuple[SubSkill, ...]] = {}
    for stage in spec.stages:
        where = f"data.stages '{stage.name}'"
        if stage.name in stages:
            raise RecipeError(f"the name '{stage.name}' is used twice in data.stages; names must differ.")
        for name in stage.skills:
            if name not in SUB_SKILLS:
                raise RecipeError(f"{where}: {unknown('sub-skill', name, SUB_SKILLS)}")
            if stage.skills.count(name) > 1:
                raise RecipeError(f"{where} names the sub-skill '{name}' twice. Leave one out.")
        stages[stage.name] = _named(*stage.skills)
    return stages


def unseen_skills() -> frozenset[str]:
    """Names of the sub-skills of the skill sequence that the base mixture leaves out."""
    return frozenset(skill.name for skills in STAGES.values() for skill in skills if not skill.pretrained)


def build_procedural_sequence(
    spec: DataSpec, seed: int, proxy: ProxySpec, order: Sequence[str] | Sequence[int] = ()
) -> SequenceData:
    """Build a procedural sequence of one seed: same arguments, same ids, in the same order.

    Pool, validation, OOD and proxy items come from separate streams and share no prompt, within a stage and between
    stages. Validation and OOD items have prompts that no pool of any seed and no tiny base has met
    (`longgame.data.synthetic.pool.is_for_evaluation`). A pool holds ``pool_size`` candidates from sub-skills of unequal
    size:

    - ``unseen`` of the new ones come from sub-skills whose form the tiny base never saw;
    - ``noise`` of them have a damaged response (``noisy=True``; the gold ``answer`` stays right);
    - ``duplicates`` repeat another candidate, every second one under a slightly changed prompt;
    - ``mixing`` come from sub-skills that the stage lacks and its neighbors in time have
      (`longgame.data.orders.pool_shares`), with the same shares of everything else. All other items are independent
      of mixing and order.

    ``quality`` of candidates and proxy items is a noisy rating (`longgame.data.synthetic.pool.rated`).

    Args:
        spec: the data section of a recipe with a procedural ``sequence``.
        seed: of this replication.
        proxy: its ``items_per_skill`` proxy items come from every sub-skill.
        order: of the walk (stage names or rows); empty: the order of the sequence.

    Raises:
        DataError: a sub-skill has fewer different prompts than the pool needs.
        RecipeError: stages, an order or a mixing share that make no sequence.
    """
    stages = stages_of(spec)
    rows = resolve_order(list(stages), order)
    shares = pool_shares(spec.pool_size, rows, spec.mixing)
    used: set[str] = set()
    fixed = [_fixed_items(name, skills, spec, seed, proxy, used) for name, skills in stages.items()]
    pools = _pools(stages, shares, spec, seed, used)
    custom = {stage.name: stage for stage in spec.stages}
    built, ood = [], []
    for (name, skills), (validation, shifted, future), pool in zip(stages.items(), fixed, pools, strict=True):
        choice = ("choice",) if any(item.choices for item in validation) else ()
        scorers, least = (*ITEM_SCORERS, *choice), 1
        if custom:
            scorers, least = custom[name].scorers, custom[name].max_new_tokens
        tokens, tokens_ood = (max(least, *(skill.new_tokens[row] for skill in skills)) for row in (0, 1))
        task = Task(name, validation, "stage", scorers, tokens)
        built.append(Stage(name, pool, task, future))
        ood.append(Task(f"{name}-ood", shifted, "ood", scorers, tokens_ood, stage=name))
    return walk(SequenceData(spec.sequence, tuple(built), tuple(ood), spec.mixing), rows)


def _fixed_items(
    name: str, skills: Sequence[SubSkill], spec: DataSpec, seed: int, proxy: ProxySpec, used: set[str]
) -> tuple[tuple[Example, ...], ...]:
    """Validation, OOD and proxy items of a stage."""
    streams = {part: generator(seed, "procedural", name, part) for part in ("validation", "ood", "proxy")}
    validation = _items(skills, spec.items_per_skill, streams["validation"], used, evaluation=True)
    shifted = _items(skills, spec.ood_items_per_skill, streams["ood"], used, OOD, evaluation=True)
    future = _items(skills, proxy.items_per_skill, streams["proxy"], used)
    return validation, shifted, tuple(rated(item, seed) for item in future)


def _items(
    skills: Sequence[SubSkill],
    per_skill: int,
    rng: np.random.Generator,
    used: set[str],
    level: str | None = None,
    *,
    evaluation: bool = False,
) -> tuple[Example, ...]:
    items = []
    for skill in skills:
        levels = [level] * per_skill if level else levels_of(per_skill, rng)
        items += [new_example(skill, item_level, rng, used, evaluation=evaluation) for item_level in levels]
    return with_unique_ids(items)


def _pools(
    stages: Stages, shares: list[dict[int, int]], spec: DataSpec, seed: int, used: set[str]
) -> list[tuple[Example, ...]]:
    """The pools of all stages; what is mixed in is drawn last, so that a stage's own candidates do not depend on it."""
    copies = min(round(spec.duplicates * spec.pool_size), spec.pool_size - 1)
    noisy = round(spec.noise * spec.pool_size)
    names, natives, pools = list(stages), [], []
    counts: list[dict[str, Counts]] = []
    for share in shares:
        sizes = list(share.values())
        split = zip(share, sizes, apportion(copies, sizes), apportion(noisy, sizes), strict=True)
        counts.append({names[row]: Counts(*numbers) for row, *numbers in split})
    for name, parts in zip(names, counts, strict=True):
        natives.append(draw_pool(stages[name], spec, parts[name], generator(seed, "procedural", name, "pool"), used))
    for name, pool, parts in zip(names, natives, counts, strict=True):
        mixed = [*pool]
        for giver in [other for other in parts if other != name]:
            rng = generator(seed, "procedural", name, "mixed", giver)
            mixed += draw_pool(_foreign(stages, name, giver), spec, parts[giver], rng, used)
        rows = generator(seed, "procedural", name, "mixing").permutation(len(mixed))
        pools.append(pool if len(parts) == 1 else with_unique_ids(mixed[row] for row in rows))
    return [tuple(rated(example, seed) for example in pool) for pool in pools]


def _foreign(stages: Stages, name: str, giver: str) -> tuple[SubSkill, ...]:
    skills = tuple(skill for skill in stages[giver] if skill not in stages[name])
    if not skills:
        raise RecipeError(
            f"data.mixing: stage '{giver}' has no sub-skill that its neighbor '{name}' lacks, so it has nothing to "
            "mix in. Use data.mixing: 0, another order, or other sub-skills."
        )
    return skills
