"""Procedural data: stages of generated sub-skills with exactly known answers; nothing to download."""

from longgame.data.synthetic.base import ANSWER_MARK, LEVELS, OOD, SubSkill
from longgame.data.synthetic.pool import LEVEL_SHARES
from longgame.data.synthetic.sequence import (
    DOMAINS,
    INTERLEAVED,
    PROCEDURAL_SEQUENCES,
    STAGES,
    SUB_SKILLS,
    build_procedural_sequence,
    unseen_skills,
)

__all__ = [
    "ANSWER_MARK",
    "DOMAINS",
    "INTERLEAVED",
    "LEVELS",
    "LEVEL_SHARES",
    "OOD",
    "PROCEDURAL_SEQUENCES",
    "STAGES",
    "SUB_SKILLS",
    "SubSkill",
    "build_procedural_sequence",
    "unseen_skills",
]
