"""An audit on a Ray cluster: what a trial needs of a node, and which files all nodes must have."""

from __future__ import annotations

import glob
import itertools
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from longgame.audit.checks import check_models, file_of, plugin_names
from longgame.audit.learner import learner_kind
from longgame.audit.plan import Plan
from longgame.audit.run import Run
from longgame.engines.choice import mapped
from longgame.engines.local import Failed, Job, Needs, Notify, Warn
from longgame.engines.nodes import digest_of, model_digest
from longgame.engines.parcels import Store
from longgame.limits import located, why_no_file
from longgame.recipe import Recipe, texts_in


def run_jobs(
    run: Run,
    jobs: list[Job],
    engine: str,
    recipe: Recipe,
    *,
    workers: int | None,
    threads: int,
    gpus: int | None,
    notify: Notify,
    finished: Callable[[str], None],
    failed: Failed,
    warn: Warn,
) -> None:
    """Run the jobs of an audit on Ray.

    Args:
        recipe: as it was given, with the places of its files.

    Raises:
        LonggameError: as `longgame.engines.ray.run_ray`.
    """
    from longgame.engines.ray import run_ray

    after = {job.name: job.after for job in jobs}

    def parts(name: str) -> tuple[tuple[str, ...], str]:
        return ((f"seeds/{after[name]}",), f"trials/{name}") if after[name] else ((), f"seeds/{name}")

    run_ray(
        jobs,
        engine,
        workers,
        threads,
        notify,
        finished,
        failed,
        warn,
        needs=trial_needs(recipe, threads),
        gpus=gpus,
        store=Store(run.folder.resolve(), parts, run.files_elsewhere()),
        contents=partial(contents_of, recipe),
    )


def trial_needs(recipe: Recipe, threads: int) -> Needs:
    """What a trial takes of a node, by the estimate of `longgame.models.load.trial_bytes`; no weights are read.

    Raises:
        ModelError: there is no such model.
    """
    if not learner_kind(recipe).has_texts:
        return Needs(threads)
    from longgame.models.load import trial_bytes

    device = recipe.model.device
    first = recipe.for_seed(recipe.seeds[0])
    with recipe.paths():
        size = trial_bytes(first.model, first.training.micro_tokens or 0)
    return Needs(threads, size, None if device == "auto" else device.startswith("cuda"), size)


def device_on(engine: str, recipe: Recipe, plan: Plan, threads: int) -> str:
    """Check the models of every condition where trials run, and return the kind of device there.

    Raises:
        ModelError, RecipeError: as `check_models`.
    """
    if recipe.model.device == "cpu" or not learner_kind(recipe).has_texts:
        return check_models(plan)
    return next(mapped(_device_of, [recipe], engine, threads=threads, needs=trial_needs(recipe, threads)))


def _device_of(recipe: Recipe) -> str:
    with recipe.paths():
        return check_models(Plan(recipe))


def contents_of(recipe: Recipe) -> dict[str, str]:
    """Name → content hash of each file and folder that a recipe names and this machine has; commits of hub models.

    Data sets of the hub are left out: each machine reads them by itself.
    """
    with recipe.paths():
        digests = {name: digest_of(paths) for name, paths in _places(recipe).items()}
        models = {name for condition in Plan(recipe).conditions.values() for name in _models_of(condition.recipe)}
        digests |= {f"model {name}": model_digest(name) for name in sorted(models)}
    return {name: digest for name, digest in digests.items() if digest is not None}


def _models_of(recipe: Recipe) -> set[str]:
    """Base models, encoder and scorer model of a recipe, by name."""
    if not learner_kind(recipe).has_texts:
        return set()
    from longgame.models.embedders import embedder_place

    model = recipe.model
    embedder = "" if model.embedder is None else embedder_place(model.embedder)
    return {*filter(None, (*(model.per_seed or (model.name,)), embedder, model.scorer_model))}


def _places(recipe: Recipe) -> dict[str, list[Path]]:
    """Name as in the recipe → the files and folders that it stands for, of every condition."""
    places: dict[str, list[Path]] = {}
    for condition in Plan(recipe).conditions.values():
        places |= _places_of(condition.recipe)
    return places


def _places_of(recipe: Recipe) -> dict[str, list[Path]]:
    data, model = recipe.data, recipe.model
    tasks = (*data.stages, *data.ood)
    references = [name for task in tasks for name in (*task.train, *task.eval)]
    files = [data.data_dir, model.chat_template if model.chat_template != "plain" else None, *references]
    places = {name: _files(name) for name in dict.fromkeys(files) if name is not None}
    for name in (*plugin_names(recipe), *texts_in([spec.parameters for spec in recipe.selectors])):
        if (file := file_of(name)) is not None:
            places[name] = [file]
    for source in (recipe.quality, recipe.complexity, *(name for task in tasks for name in task.scorers)):
        for before, name in itertools.pairwise(["", *_words(source)]):
            path = _path(name)
            if path.is_file() or (before == "include" and path.is_dir()):  # tasks of lm-evaluation-harness
                places[name] = [path]
    return places


def _words(source: str | Mapping[str, Any] | None) -> list[str]:
    """What may name a file in a source of quality or a scorer, and the rubrics of a judge's file.

    The file of a judge's replies is left out: every machine has its own.
    """
    if isinstance(source, Mapping):
        words = texts_in({key: value for key, value in source.items() if key != "cache"})
    else:
        words = list(filter(None, re.split(r"\bcache=[^,)]*|[:(,=)\s]+", source or "")))
    if "judge" in words[:1]:
        from longgame.signals.quality.judge_options import JudgeOptions

        files = [word for word in words[1:] if word.endswith((".yaml", ".yml")) and not why_no_file(_path(word))]
        words += [text for file in files for text in texts_in(JudgeOptions.of(file, {}).rubric)]
    return words


def _path(name: str) -> Path:
    return Path(located(name)).expanduser()


def _files(reference: str) -> list[Path]:
    path = located(reference.removeprefix("file:"))
    return [Path(name) for name in sorted(glob.glob(path, recursive=True))] if glob.has_magic(path) else [Path(path)]  # noqa: PTH207
