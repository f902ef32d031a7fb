"""What a measurement is; free of torch, so that every substrate speaks it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Score:
    """One measurement of a model."""

    task: str
    sub_skill: str
    scorer: str
    value: float
    """0–100, mean over the sub-skill's items; NaN = not measured."""
    items: int
