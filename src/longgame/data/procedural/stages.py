"""Which sub-skills make which stage: the skill, the domain and the interleaved sequence, and a user's own."""

from __future__ import annotations

from collections.abc import Mapping

from longgame.data.procedural import coding, general, maths, reasoning, safety
from longgame.data.procedural.base import SubSkill
from longgame.data.procedural.domain import biomedical, finance, general_qa, legal, science
from longgame.errors import RecipeError, unknown
from longgame.recipe import DataSpec

Stages = Mapping[str, tuple[SubSkill, ...]]
"""Stage → its sub-skills, in the order in which the stages are learned."""

STAGES: dict[str, tuple[SubSkill, ...]] = {
    "general": general.SKILLS,
    "math": maths.SKILLS,
    "code": coding.SKILLS,
    "reasoning": reasoning.SKILLS,
    "safety": safety.SKILLS,
}
"""The skill sequence. The tiny base model is pretrained on its seen sub-skills."""
DOMAINS: dict[str, tuple[SubSkill, ...]] = {
    "general-qa": general_qa.SKILLS,
    "biomedical": biomedical.SKILLS,
    "legal": legal.SKILLS,
    "finance": finance.SKILLS,
    "science": science.SKILLS,
}
"""The domain sequence. The base saw none of it; four sub-skills of each domain put new words to a form that it saw."""

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

FAMILIES: dict[str, Stages] = {
    "procedural-skill": STAGES,
    "procedural-domain": DOMAINS,
    "procedural-interleaved": INTERLEAVED,
}
"""``data.sequence`` → its stages."""

NEW_TOKENS: dict[str, tuple[int, int]] = {
    "join-words": (38, 66),
    "extract-field": (14, 15),
    "replace-word": (30, 45),
    "reverse-words": (39, 54),
    "past-tense": (58, 72),
    "make-json": (72, 96),
    "chain-sum": (8, 10),
    "compare-numbers": (8, 10),
    "next-terms": (12, 13),
    "story-steps": (52, 80),
    "solve-equation": (6, 7),
    "round-number": (10, 11),
    "eval-expression": (7, 9),
    "trace-variables": (40, 60),
    "close-brackets": (15, 22),
    "slice-string": (12, 20),
    "list-method": (32, 46),
    "filter-list": (31, 47),
    "compare-chain": (21, 27),
    "odd-one-out": (23, 24),
    "weekday": (9, 10),
    "syllogism": (6, 7),
    "event-order": (28, 36),
    "family-relation": (13, 14),
    "refuse-or-comply": (37, 48),
    "redact": (48, 68),
    "policy-lookup": (15, 16),
    "polite-rewrite": (30, 50),
    "scam-check": (31, 39),
    "risk-score": (21, 28),
    "fact-lookup": (9, 10),
    "kind-choice": (11, 12),
    "compare-facts": (8, 9),
    "true-or-false": (6, 7),
    "where-is": (11, 12),
    "who-feels": (18, 20),
    "lab-flag": (8, 9),
    "diagnosis": (8, 9),
    "dose-total": (37, 74),
    "trial-verdict": (8, 9),
    "dna-pair": (18, 28),
    "drug-clash": (13, 14),
    "clause-find": (10, 11),
    "penalty": (23, 24),
    "appeal-day": (9, 10),
    "cite-case": (26, 50),
    "clause-relevant": (11, 12),
    "vote-count": (20, 21),
    "table-cell": (6, 7),
    "balance": (53, 74),
    "best-year": (8, 9),
    "outlook": (10, 11),
    "simple-interest": (34, 40),
    "book-entry": (54, 105),
    "food-chain": (31, 40),
    "melting": (22, 32),
    "cause-effect": (8, 9),
    "cycle-step": (9, 10),
    "count-atoms": (20, 25),
    "leg-count": (7, 8),
}
"""Sub-skill → tokens that a generated answer may have in validation and in the OOD set: the longest gold response under
the tiny base's tokenizer and a few more."""


def stages_of(spec: DataSpec) -> Stages:
    """Return the stages of a procedural sequence; ``procedural`` takes them from ``data.stages``.

    Raises:
        RecipeError: a name that is no sub-skill or stands twice in a stage, or two stages of one name.
    """
    if spec.sequence != "procedural":
        return FAMILIES[spec.sequence]
    stages: dict[str, tuple[SubSkill, ...]] = {}
    for stage in spec.stages:
        where = f"data.stages '{stage.name}'"
        if stage.name in stages:
            raise RecipeError(f"the name '{stage.name}' stands twice in data.stages; names must differ.")
        for name in stage.skills:
            if name not in SUB_SKILLS:
                raise RecipeError(f"{where}: {unknown('sub-skill', name, SUB_SKILLS)}")
            if stage.skills.count(name) > 1:
                raise RecipeError(f"{where} names the sub-skill '{name}' twice. Leave one out.")
        stages[stage.name] = _named(*stage.skills)
    return stages


def unseen_skills() -> frozenset[str]:
    """Names of the sub-skills of the skill sequence that the base mixture leaves out."""
    return frozenset(skill.name for skills in STAGES.values() for skill in skills if not skill.seen)
