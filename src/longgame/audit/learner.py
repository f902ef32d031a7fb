"""What the protocol needs of a model; it never learns whether torch is behind it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from longgame.data.examples import Example, Pool, SequenceData, Task
from longgame.data.orders import reorder, resolve_order
from longgame.evaluation.scorers import Score
from longgame.recipe import AxesSpec, LoraSpec, Recipe
from longgame.selection.policy import SelectionPolicy
from longgame.signals.base import Signals
from longgame.training.config import SelectionConfig
from longgame.training.schedule import StepInfo, TrainingReport


class Learner(Protocol):
    """A model that can be asked for signals, trained, scored, forked and saved."""

    def prepare(self, sequence: SequenceData) -> dict[str, np.ndarray]:
        """The seed's frozen pass over all candidates, as arrays to be saved and shared between trials."""
        ...

    def use(self, sequence: SequenceData, frozen: dict[str, np.ndarray]) -> None:
        """Adopt a frozen pass (of this or another process): embeddings, base loss, difficulty, quality, clusters."""
        ...

    def signals(self, pool: Pool, names: Sequence[str]) -> Signals:
        """Columns for these candidates under the model as it is now."""
        ...

    def train(
        self,
        pool: Pool,
        policy: SelectionPolicy,
        selection: SelectionConfig,
        steps: int,
        on_step: Callable[[StepInfo], None] | None = None,
    ) -> TrainingReport:
        """Train through one stage with a fresh optimiser; the policy decides what is learned."""
        ...

    def score(self, tasks: Sequence[Task]) -> list[Score]:
        """Score the model as it is now; one entry per task × sub-skill × scorer."""
        ...

    def fork(self) -> AbstractContextManager[Learner]:
        """A learner in the same state; whatever is done to it leaves no trace here."""
        ...

    def describe(self) -> dict[str, str]:
        """Where the weights came from and what they run on; a run does not go on under another description."""
        ...

    def save(self, directory: Path) -> None:
        """Write what is needed to be here again (safetensors, JSON)."""
        ...

    def load(self, directory: Path) -> None:
        """Take back what `save` wrote."""
        ...


# From a recipe's model name to the learner and the data of one seed.


def make_learner(recipe: Recipe, seed: int) -> Learner:
    """Build the learner of one trial, in its state before any stage."""
    recipe = recipe.for_seed(seed)
    if recipe.model.name == "quadratic":
        from longgame.quadratic.learner import QuadraticLearner

        return QuadraticLearner(recipe, seed)
    from longgame.audit.hf_learner import HFLearner  # torch is loaded only where it is used

    return HFLearner(recipe, seed)


def load_libraries(recipe: Recipe) -> None:
    """Import what the recipe's learner is made with (PyTorch and its kin; nothing for the closed-form world)."""
    if recipe.model.name != "quadratic":
        importlib.import_module("longgame.audit.hf_learner")


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
        from longgame.quadratic.learner import build_quadratic_sequence

        return reorder(build_quadratic_sequence(recipe, seed), recipe.data.order)
    from longgame.data.sequences import build_sequence

    @cache
    def tokenizer() -> Any:
        from longgame.models.load import load_tokenizer  # transformers is loaded only where text is tokenized

        return load_tokenizer(recipe.for_seed(seed).model)

    def make_pool(examples: Sequence[Example]) -> Pool:
        from longgame.data.tokenize import build_pool

        return build_pool(examples, tokenizer(), recipe.model.max_length, recipe.data.too_long)

    def fits(example: Example) -> bool:
        from longgame.data.tokenize import fits_within

        return fits_within(example, tokenizer(), recipe.model.max_length)

    return build_sequence(recipe, seed, fits=fits, order=recipe.data.order).with_pools(make_pool)
