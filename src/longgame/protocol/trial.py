"""What one trial is, and the plan of all trials of a recipe."""

from __future__ import annotations

from dataclasses import dataclass

from longgame.recipe import Recipe, SelectorSpec


@dataclass(frozen=True, slots=True)
class Trial:
    """One selector walked through all stages with one seed."""

    selector: SelectorSpec
    seed: int

    @property
    def name(self) -> str:
        safe = "".join(char if char.isalnum() or char in "-_." else "-" for char in self.selector.key)
        return f"{safe}-s{self.seed}"


def plan_trials(recipe: Recipe) -> list[Trial]:
    """All trials, seed by seed, so that an interrupted audit holds whole replications."""
    return [Trial(selector, seed) for seed in recipe.seeds for selector in recipe.selectors]
