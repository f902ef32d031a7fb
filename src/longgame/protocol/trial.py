"""What one trial is, and the plan of all trials of a recipe."""

from __future__ import annotations

from dataclasses import dataclass

from longgame.errors import RecipeError
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
    """All trials, seed by seed, so that an interrupted audit holds whole replications.

    Raises:
        RecipeError: two trials would share a folder.
    """
    trials = [Trial(selector, seed) for seed in recipe.seeds for selector in recipe.selectors]
    first = {trial.name: trial for trial in reversed(trials)}
    for trial in trials:
        if first[trial.name] is not trial:
            raise RecipeError(
                f"selectors '{first[trial.name].selector.key}' and '{trial.selector.key}' would share the folder "
                f"'{trial.name}'. Give one of them another `label`."
            )
    return trials
