"""From a recipe's model name to the learner and the data of one seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from longgame.data.examples import SequenceData
from longgame.protocol.learner import Learner
from longgame.recipe import Recipe


def make_learner(recipe: Recipe, seed: int) -> Learner:
    """Build the learner of one trial, in its state before any stage."""
    if recipe.model.name == "quadratic":
        from longgame.theory.quadratic import QuadraticLearner

        return QuadraticLearner(recipe, seed)
    from longgame.protocol.hf_learner import HFLearner  # torch is loaded only where it is used

    return HFLearner(recipe, seed)


@dataclass(frozen=True, slots=True)
class Outline:
    """Names of the stages and of the OOD sets, and each one's own scorer."""

    stages: tuple[str, ...]
    ood: tuple[str, ...]
    primary: dict[str, str]


def outline(recipe: Recipe) -> Outline:
    """Tell the columns of the tables; data files are not read, so that a run can be printed where they are not."""
    if recipe.data.sequence == "files":
        stages, ood = recipe.data.stages, recipe.data.ood
        primary = {task.name: task.scorers[0] for task in (*stages, *ood)}
        return Outline(tuple(task.name for task in stages), tuple(task.name for task in ood), primary)
    sequence = make_sequence(recipe.model_dump_json(), recipe.seeds[0])
    names = tuple(stage.task.name for stage in sequence.stages)
    primary = {task.name: task.scorers[0] for task in sequence.tasks}
    return Outline(names, tuple(task.name for task in sequence.ood), primary)


@lru_cache(maxsize=64)
def make_sequence(recipe_json: str, seed: int) -> SequenceData:
    """Build (once per process) the stages of a seed; the recipe comes as JSON because that can be hashed."""
    recipe = Recipe.model_validate_json(recipe_json)
    if recipe.model.name == "quadratic":
        from longgame.theory.quadratic import build_quadratic_sequence

        return build_quadratic_sequence(recipe, seed)
    from longgame.data.sequences import build_sequence

    if recipe.data.sequence == "files" and recipe.data.too_long == "drop":
        from longgame.data.tokenize import fits_within
        from longgame.models import load_tokenizer

        return build_sequence(recipe, seed, fits=fits_within(load_tokenizer(recipe.model), recipe.model.max_length))
    return build_sequence(recipe, seed)
