"""AlpaGasus: what a judge grades highest on one dimension.

Paper: Chen et al. 2024, arXiv 2307.08701.
Formula: grades of 4.5 or more (of 5), highest first.
Cost: J, one grade per example.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float

from longgame.data.examples import Pool
from longgame.selection.base import Selector
from longgame.selection.budget import REJECTED, choice, missing_last, number
from longgame.selection.history import History
from longgame.signals.base import Signals


class AlpaGasusSelector(Selector):
    """Highest grade of the quality source first; ties by id (arXiv 2307.08701).

    The paper grades the accuracy of the response from 0 to 5: ``--quality judge:…`` with the rubric ``alpagasus``. A
    grade that is missing (refused, unreadable) is no grade: it counts as rejected, never as a number.

    Args:
        threshold: lowest grade that is accepted, on the source's scale.
        rejected: ``last``: lower and missing grades are picked after all others, by their grade, so that the budget is
            filled. ``never``: they are never picked, as in the paper.

    ``scores``: ``grade`` (NaN: missing), ``accepted`` (1 or 0). ``score`` is the grade; below all others where it is
    missing, and NaN for what is never picked.
    """

    name = "alpagasus"
    requires = ("grade",)

    def __init__(self, threshold: float = 4.5, rejected: Literal["last", "never"] = "last") -> None:
        self.threshold = number(self.name, "threshold", threshold)
        self.rejected = choice(self.name, "rejected", rejected, REJECTED)

    def score(self, pool: Pool, signals: Signals, history: History) -> dict[str, Float[np.ndarray, " n"]]:  # noqa: ARG002
        grade = signals["grade"].astype(np.float64)
        accepted = grade >= self.threshold  # False where it is missing
        score = missing_last(grade) if self.rejected == "last" else np.where(accepted, grade, np.nan)
        return {"score": score, "grade": grade, "accepted": accepted.astype(np.float64)}
