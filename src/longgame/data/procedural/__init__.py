"""Procedural data: stages of generated sub-skills with exactly known answers; nothing to download."""

from longgame.data.procedural.base import ANSWER_MARK, LEVELS, OOD, SubSkill
from longgame.data.procedural.corpus import pretraining_texts
from longgame.data.procedural.pool import LEVEL_SHARES
from longgame.data.procedural.sequence import build_procedural_sequence
from longgame.data.procedural.stages import DOMAINS, FAMILIES, INTERLEAVED, STAGES, SUB_SKILLS, unseen_skills

__all__ = [
    "ANSWER_MARK",
    "DOMAINS",
    "FAMILIES",
    "INTERLEAVED",
    "LEVELS",
    "LEVEL_SHARES",
    "OOD",
    "STAGES",
    "SUB_SKILLS",
    "SubSkill",
    "build_procedural_sequence",
    "pretraining_texts",
    "unseen_skills",
]
