"""The interface between an audit and a model, and the table of learners; torch is imported only where it is used."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from longgame.data.examples import Example, Pool, SequenceData, Stage, Task
from longgame.data.orders import reorder, resolve_order
from longgame.data.synthetic.sequence import ITEM_SCORERS, stages_of
from longgame.errors import RecipeError
from longgame.evaluation.scorers import Score
from longgame.limits import may_have_gpu
from longgame.recipe import EMBEDDER, BudgetOf, DataSpec, ModelSpec, ProxySpec, RealTask, Recipe
from longgame.selection.policy import SelectionPolicy
from longgame.signals.base import Signals
from longgame.training.config import SelectionConfig
from longgame.training.schedule import StepInfo, TrainingReport


class Learner(Protocol):
    """A model that can be asked for signals, trained, scored, forked and saved."""

    def prepare(self, sequence: SequenceData) -> dict[str, np.ndarray]:
        """The seed's frozen pass over all candidates, as arrays that trials share."""
        ...

    def use(self, sequence: SequenceData, frozen: dict[str, np.ndarray], walked: Sequence[Stage] | None = None) -> None:
        """Adopt a frozen pass, also of another process: embeddings, base loss, difficulty, quality, clusters.

        Args:
            walked: the stages in the order of the walk, if it is not that of ``sequence``.
        """
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
        """Train through one stage with a fresh optimiser; the policy decides what it is trained on."""
        ...

    def score(self, tasks: Sequence[Task]) -> list[Score]:
        """Score the model as it is now; one entry per task × sub-skill × scorer."""
        ...

    def fork(self) -> AbstractContextManager[Learner]:
        """A learner in the same state; training it does not change this one."""
        ...

    def describe(self) -> dict[str, str]:
        """Source of the weights, device, dtype and attention; a run is not resumed under another description."""
        ...

    def save(self, directory: Path) -> None:
        """Write the state (safetensors, JSON)."""
        ...

    def load(self, directory: Path) -> None:
        """Restore what `save` wrote."""
        ...


# What each learner supports: the only place that knows learners by name.


@dataclass(frozen=True, slots=True)
class Placement:
    """Processes of an audit, and the GPUs that they take in turn (values of CUDA_VISIBLE_DEVICES)."""

    workers: int
    gpus: tuple[str, ...] = ()


class LanguageModels:
    """Causal language models, trained and scored with PyTorch."""

    learner = "longgame.audit.hf_learner:HFLearner"
    has_texts = True
    """Whether candidates have texts that a report can show."""
    process_trials = 0
    """Trials from which worker processes start faster than they cost."""

    def load(self) -> Callable[[Recipe, int], Learner]:
        """The learner's class; importing it imports its libraries."""
        module, name = self.learner.split(":")
        return getattr(importlib.import_module(module), name)

    def check(self, recipe: Recipe) -> None:
        """Raise RecipeError where the recipe asks for what the learner does not support."""
        if recipe.data.sequence in LEARNERS:
            raise RecipeError(
                f"model.name is '{recipe.model.name}', but data.sequence: {recipe.data.sequence} and model.name: "
                f"{recipe.data.sequence} belong together."
            )
        for name in recipe.model.per_seed:
            if name in LEARNERS:
                raise RecipeError(f"model.per_seed names '{name}', which is no language model; leave it out.")

    def check_model(self, recipe: Recipe) -> str:
        """Check, before any work, what only the model's libraries know; return the device.

        Raises:
            ModelError: the device or the embedder does not exist, the device has no such attention, or PEFT does not
                know a key.
        """
        from longgame.models.adaptation import peft_config
        from longgame.models.device import attention_of, device_name, device_of
        from longgame.models.embedders import check_embedder

        with recipe.paths():
            check_embedder(recipe.model.embedder)
        if recipe.model.peft:
            peft_config(recipe.model)
        device = device_of(recipe.model.device)
        attention_of(recipe.model.attention, device)
        return device_name(device)

    def place(self, recipe: Recipe, workers: int | None, gpus: int | None) -> Placement:
        """Choose where trials run: one worker per core, or on GPUs as many as their memory holds.

        Args:
            workers: processes; None: chosen.
            gpus: GPUs to use; None: all that are visible.

        Raises:
            ModelError: there is no such device or model. RecipeError: there are fewer GPUs.
        """
        cores = os.cpu_count() or 1
        device = recipe.model.device
        if gpus is None and (device == "cpu" or (device == "auto" and not may_have_gpu())):
            return Placement(workers or cores)
        from longgame.models.device import device_bytes, device_of, visible_gpus
        from longgame.models.load import trial_bytes

        place = device_of(device)
        names = visible_gpus(place, gpus)
        if workers is None and place.type != "cpu":
            first = recipe.for_seed(recipe.seeds[0])
            with recipe.paths():
                fitting = max(1, device_bytes(place) // trial_bytes(first.model, first.training.micro_tokens or 0))
            workers = max(1, len(names)) * min(fitting, max(1, cores // max(1, len(names))))
        return Placement(workers or cores, names)

    def release(self) -> None:
        """Free what the learners of this process keep for the next one."""
        from longgame.models.load import forget_models

        forget_models()

    def stages(self, recipe: Recipe) -> tuple[str, ...]:
        """Names of the stages before any order; no data is read."""
        if recipe.data.sequence == "files":
            return tuple(stage.name for stage in recipe.data.stages)
        return tuple(stages_of(recipe.data))

    def tasks(self, recipe: Recipe) -> dict[str, str]:
        """Task → its first scorer: the stages in the order of the walk, then the OOD sets; no data is read."""
        names = self.stages(recipe)
        names = tuple(names[row] for row in resolve_order(names, recipe.data.order))
        if recipe.data.sequence == "files":
            return {task.name: task.scorers[0] for task in _sorted(recipe.data.stages, names) + recipe.data.ood}
        scorers = {stage.name: stage.scorers[0] for stage in recipe.data.stages}
        primary = {name: scorers.get(name, ITEM_SCORERS[0]) for name in names}
        return primary | {f"{name}-ood": scorer for name, scorer in primary.items()}

    def sequence(self, recipe: Recipe, seed: int) -> SequenceData:
        """The stages of a seed with their pools, in the recipe's order."""
        from longgame.data.sequences import build_sequence

        @cache
        def tokenizer() -> Any:
            from longgame.models.load import load_tokenizer  # transformers is imported only where text is tokenized

            with recipe.paths():
                return load_tokenizer(recipe.model)

        def make_pool(examples: Sequence[Example]) -> Pool:
            from longgame.data.tokenize import build_pool

            return build_pool(examples, tokenizer(), recipe.model.max_length, recipe.data.too_long)

        def fits(example: Example) -> bool:
            from longgame.data.tokenize import fits_within

            return fits_within(example, tokenizer(), recipe.model.max_length)

        return build_sequence(recipe, seed, fits=fits, order=recipe.data.order).with_pools(make_pool)


class QuadraticWorlds(LanguageModels):
    """The closed-form world: no texts, no adapter, no torch."""

    learner = "longgame.quadratic.learner:QuadraticLearner"
    has_texts = False
    process_trials = 64

    def place(self, recipe: Recipe, workers: int | None, gpus: int | None) -> Placement:  # noqa: ARG002
        if gpus is not None:
            raise RecipeError(f"--gpus is {gpus}, but the quadratic world runs on the cpu. Leave it out.")
        return Placement(workers or os.cpu_count() or 1)

    def release(self) -> None:
        pass

    def check_model(self, recipe: Recipe) -> str:
        if recipe.model.device not in ("auto", "cpu"):
            raise RecipeError(f"model.device is '{recipe.model.device}', but the quadratic world runs on the cpu.")
        return "cpu"

    def check(self, recipe: Recipe) -> None:
        if recipe.data.sequence != "quadratic":
            raise RecipeError(
                f"data.sequence is '{recipe.data.sequence}', but model.name: quadratic and data.sequence: quadratic "
                "belong together."
            )
        if recipe.axes.adaptation:
            raise RecipeError("the quadratic world has no adapter; leave out axes.adaptation.")
        if recipe.data.mixing > 0:
            raise RecipeError("data.mixing is for texts; the quadratic world has no mixing share.")
        for key, default in (("embedder", EMBEDDER), ("scorer_model", None)):
            if getattr(recipe.model, key) != default:
                raise RecipeError(f"model.{key} is for texts; the quadratic world has none. Leave it out.")

    def stages(self, recipe: Recipe) -> tuple[str, ...]:
        from longgame.quadratic.world import WorldSpec

        return WorldSpec.of(recipe).stages

    def tasks(self, recipe: Recipe) -> dict[str, str]:
        from longgame.quadratic.world import WorldSpec

        world = WorldSpec.of(recipe)
        names = [world.stages[row] for row in resolve_order(world.stages, recipe.data.order)]
        return dict.fromkeys((*names, *world.ood), world.scorers[0])

    def sequence(self, recipe: Recipe, seed: int) -> SequenceData:
        from longgame.quadratic.learner import build_quadratic_sequence

        return reorder(build_quadratic_sequence(recipe, seed), recipe.data.order)


LEARNERS: dict[str, LanguageModels] = {"quadratic": QuadraticWorlds()}
"""`model.name` → its learner; every other name is a language model."""


def learner_kind(recipe: Recipe) -> LanguageModels:
    """What the recipe's learner supports."""
    return LEARNERS.get(recipe.model.name) or LanguageModels()


def seed_bases(recipe: Recipe) -> dict[int, str] | None:
    """Seed → the base model that it starts from; None where a seed draws a whole world, base parameters included."""
    if not learner_kind(recipe).has_texts:
        return None
    return {seed: recipe.for_seed(seed).model.name for seed in recipe.seeds}


def make_learner(recipe: Recipe, seed: int) -> Learner:
    """Build the learner of one trial, in its state before any stage."""
    recipe = recipe.for_seed(seed)
    with recipe.paths():
        return learner_kind(recipe).load()(recipe, seed)


@dataclass(frozen=True, slots=True)
class Outline:
    """Names of the stages in the order of the walk and of the OOD sets, and the first scorer of each."""

    stages: tuple[str, ...]
    ood: tuple[str, ...]
    primary: dict[str, str]


def outline(recipe: Recipe) -> Outline:
    """Return the names that tables need; no data are made or read, so that a run can be printed without them."""
    kind = learner_kind(recipe)
    primary = kind.tasks(recipe)
    names, count = tuple(primary), len(kind.stages(recipe))
    return Outline(names[:count], names[count:], primary)


def _sorted(tasks: Sequence[RealTask], names: Sequence[str]) -> tuple[RealTask, ...]:
    return tuple(sorted(tasks, key=lambda task: names.index(task.name)))


@dataclass(frozen=True, slots=True)
class _Source:
    """The parts of a recipe that the data of a seed depend on."""

    model: str
    """As JSON."""
    data: DataSpec
    proxy: ProxySpec
    clusters: int
    budget_of: BudgetOf
    relative_to: tuple[str, ...]
    seed: int
    recipe: Recipe = field(compare=False)


def sequence_of(recipe: Recipe, seed: int) -> SequenceData:
    """The stages of a seed in the recipe's order; conditions with the same data build it once per process."""
    recipe = recipe.for_seed(seed)
    order = recipe.data.order if recipe.data.mixing == 0 else ()
    plain = ModelSpec()
    names = ("adaptation", "lora", "peft", "device", "attention")
    changes = {f"model.{name}": getattr(plain, name) for name in names}
    recipe = recipe.replace({**changes, "data.order": () if order else recipe.data.order})
    source = _Source(
        model=recipe.model.model_dump_json(),
        data=recipe.data,
        proxy=recipe.proxy,
        clusters=recipe.metrics.clusters,
        budget_of=recipe.budget_of,
        relative_to=recipe.relative_to,
        seed=seed,
        recipe=recipe,
    )
    return reorder(_build(source), order)


@lru_cache(maxsize=64)
def _build(source: _Source) -> SequenceData:
    with source.recipe.paths():
        sequence = learner_kind(source.recipe).sequence(source.recipe, source.seed)
    if source.budget_of == "tokens":  # what pools count by themselves
        return sequence
    make_pool = sequence.stages[0].make_pool
    return sequence.with_pools(lambda examples: replace(make_pool(examples), budget_of=source.budget_of))
