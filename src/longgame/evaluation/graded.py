"""Open answers graded by an LLM judge, as MT-Bench does (Zheng et al. 2023, arXiv 2306.05685)."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from longgame.data.examples import Example
from longgame.evaluation.answers import without_thinking
from longgame.evaluation.scorers import Evidence, Scorer
from longgame.signals.quality.judge import JudgeQuality
from longgame.signals.quality.judge_options import JudgeOptions

_log = logging.getLogger(__name__)
_NO_ANSWER = "(no answer)"
"""What a judge is shown where the model ends its turn at once."""


class JudgeGrade(Scorer):
    """Grade of the greedy response by a judge, divided by the top of its scale (MT-Bench: 1–10, so 75 means 7.5).

    Replies that give no grade are counted: the scorer ``judge missing`` is their share, and more than ``max_missing``
    of them end the work. Replies are stored, so a repeated answer is paid for once.

    Args:
        file: YAML file with fields of `longgame.signals.quality.judge_options.JudgeOptions`.
        options: fields of `JudgeOptions`; the rubric is ``mt-bench`` unless another one is named.

    Raises:
        RecipeError: an option is not allowed, or no judge is named. ModelError (while scoring): the judge is silent.
    """

    name: ClassVar[str] = "judge"
    asks_outside: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("generation",)
    may_miss: ClassVar[bool] = True

    def __init__(self, file: str | None = None, **options: Any) -> None:
        if JudgeOptions.of(file, options).rubric is None:
            options = {**options, "rubric": "mt-bench"}
        self.judge = JudgeQuality(file, **options)

    def score_all(self, examples: Sequence[Example], evidence: Sequence[Evidence]) -> list[float]:
        answered = [
            dataclasses.replace(example, response=without_thinking(shown.generation).strip() or _NO_ANSWER)
            for example, shown in zip(examples, evidence, strict=True)
        ]
        before = self.judge.describe()["missing"]
        grades = np.asarray(self.judge.grade(answered), dtype=float)
        if self.judge.describe()["missing"] > before:
            _log.warning("judge: %s", "; ".join(self.judge.notes()))
        high = (self.judge.scale or (0.0, 1.0))[1]
        return [float(grade) / high for grade in grades]
