"""Checks of selector parameters; every message names the selector, the value seen, what is allowed, and the fix."""

from __future__ import annotations

import math
from typing import Any

from longgame.errors import RecipeError, did_you_mean


def choice(who: str, option: str, value: Any, allowed: tuple[str, ...]) -> str:
    """Return ``value`` if it is one of the allowed words, else raise RecipeError."""
    if value not in allowed:
        near = did_you_mean(str(value), allowed)
        raise RecipeError(f"selector '{who}': {option} is {value!r}.{near} Allowed: {', '.join(allowed)}.")
    return str(value)


def weight(who: str, option: str, value: Any) -> float:
    """Return ``value`` as a float if it is a finite number ≥ 0 (0 switches the term off), else raise RecipeError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise RecipeError(f"selector '{who}': {option} is {value!r}; give a finite number ≥ 0 (0 switches it off).")
    return float(value)


def count(who: str, option: str, value: Any, least: int = 1) -> int:
    """Return ``value`` if it is a whole number ≥ ``least``, else raise RecipeError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise RecipeError(f"selector '{who}': {option} is {value!r}; give a whole number ≥ {least}.")
    return value


def flag(who: str, option: str, value: Any) -> bool:
    """Return ``value`` if it is true or false, else raise RecipeError."""
    if not isinstance(value, bool):
        raise RecipeError(f"selector '{who}': {option} is {value!r}; give true or false.")
    return value
