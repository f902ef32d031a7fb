"""Procedural data: five stages of generated sub-skills with exactly known answers; nothing to download."""

from longgame.data.procedural.base import ANSWER_MARK, LEVELS, OOD, SubSkill
from longgame.data.procedural.corpus import pretraining_texts
from longgame.data.procedural.sequence import LEVEL_SHARES, STAGES, build_procedural_sequence, unseen_skills

__all__ = [
    "ANSWER_MARK",
    "LEVELS",
    "LEVEL_SHARES",
    "OOD",
    "STAGES",
    "SubSkill",
    "build_procedural_sequence",
    "pretraining_texts",
    "unseen_skills",
]
