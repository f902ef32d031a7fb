"""From a recipe's model name to the learner and the data of one seed."""

from __future__ import annotations

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
