"""What one trial is, and the plan of all trials of a recipe."""

from __future__ import annotations

from dataclasses import dataclass

from longgame.errors import RecipeError
from longgame.protocol.conditions import expand, safe_name
from longgame.recipe import Recipe, SelectorSpec


@dataclass(frozen=True, slots=True)
class Trial:
    """One selector walked through all stages with one seed under one condition."""

    selector: SelectorSpec
    seed: int
    condition: str = ""
    """Name of the condition (`longgame.protocol.conditions.Condition`); "" for the recipe's own values."""

    @property
    def name(self) -> str:
        return f"{safe_name(self.selector.key)}-s{self.seed}" + (f"@{self.condition}" if self.condition else "")


def plan_trials(recipe: Recipe) -> list[Trial]:
    """All trials, seed by seed, so that an interrupted audit holds whole replications.

    Raises:
        RecipeError: two trials would share a folder, or the axes cannot be (see `expand`).
    """
    conditions = expand(recipe)
    trials = [
        Trial(selector, seed, condition.name)
        for seed in recipe.seeds
        for condition in conditions
        for selector in condition.recipe.selectors
    ]
    first: dict[str, Trial] = {}
    for trial in trials:
        other = first.setdefault(trial.name, trial)
        if other is not trial:
            raise RecipeError(
                f"selectors '{other.selector.key}' and '{trial.selector.key}' would share the folder "
                f"'{trial.name}'. Give one of them another `label`."
            )
    return trials
