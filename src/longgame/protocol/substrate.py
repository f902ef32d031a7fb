"""From a recipe's model name to the learner and the data of one seed."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import lru_cache

from longgame.axes import AxesSpec
from longgame.data.examples import SequenceData
from longgame.data.orders import reorder, resolve_order
from longgame.protocol.learner import Learner
from longgame.recipe import LoraSpec, Recipe


def make_learner(recipe: Recipe, seed: int) -> Learner:
    """Build the learner of one trial, in its state before any stage."""
    recipe = recipe.for_seed(seed)
    if recipe.model.name == "quadratic":
        from longgame.theory.quadratic import QuadraticLearner

        return QuadraticLearner(recipe, seed)
    from longgame.protocol.hf_learner import HFLearner  # torch is loaded only where it is used

    return HFLearner(recipe, seed)


def load_libraries(recipe: Recipe) -> None:
    """Import what the recipe's learner is made with (PyTorch and its kin; nothing for the closed-form world)."""
    if recipe.model.name != "quadratic":
        importlib.import_module("longgame.protocol.hf_learner")


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
        rows = resolve_order([task.name for task in stages], recipe.data.order)
        primary = {task.name: task.scorers[0] for task in (*stages, *ood)}
        return Outline(tuple(stages[row].name for row in rows), tuple(task.name for task in ood), primary)
    sequence = sequence_of(recipe, recipe.seeds[0])
    names = tuple(stage.task.name for stage in sequence.stages)
    primary = {task.name: task.scorers[0] for task in sequence.tasks}
    return Outline(names, tuple(task.name for task in sequence.ood), primary)


def sequence_of(recipe: Recipe, seed: int) -> SequenceData:
    """The stages of a seed in the recipe's order; conditions that draw the same data build it once per process."""
    recipe = recipe.for_seed(seed)
    order = recipe.data.order if recipe.data.mixing == 0 else ()
    apart = {"axes": AxesSpec(), "seeds": (seed,), "budget": 1.0, "rounds": 1}  # no data depends on these
    model = recipe.model.model_copy(update={"adaptation": "lora", "lora": LoraSpec()})
    data = recipe.data.model_copy(update={"order": () if order else recipe.data.order})
    drawn = recipe.model_copy(update={**apart, "model": model, "data": data})
    return reorder(make_sequence(drawn.model_dump_json(), seed), order)


@lru_cache(maxsize=64)
def make_sequence(recipe_json: str, seed: int) -> SequenceData:
    """Build (once per process) the stages of a seed; the recipe comes as JSON because that can be hashed."""
    recipe = Recipe.model_validate_json(recipe_json)
    if recipe.model.name == "quadratic":
        from longgame.theory.quadratic import build_quadratic_sequence

        return reorder(build_quadratic_sequence(recipe, seed), recipe.data.order)
    from longgame.data.sequences import build_sequence

    order = recipe.data.order
    if recipe.data.sequence == "files" and recipe.data.too_long == "drop":
        from longgame.data.tokenize import fits_within
        from longgame.models import load_tokenizer

        fits = fits_within(load_tokenizer(recipe.for_seed(seed).model), recipe.model.max_length)
        return build_sequence(recipe, seed, fits=fits, order=order)
    return build_sequence(recipe, seed, order=order)
