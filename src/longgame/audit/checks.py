"""Selectors and scorers that are files (``scores:FILE``, ``file.py:Class``): numbers depend on what is in them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from longgame.audit.learner import learner_kind, seed_bases, sequence_of
from longgame.audit.parts import FinishedPart, finished_parts
from longgame.audit.plan import Plan, Trial
from longgame.data.examples import Example, SequenceData
from longgame.data.score_files import read_scores
from longgame.errors import DataError, RecipeError, ResumeError
from longgame.evaluation.scorers import build_scorer, refused_code
from longgame.limits import free_memory, located
from longgame.metrics.verdict import LEAST_SEEDS
from longgame.recipe import RealTask, Recipe, SelectorSpec
from longgame.registry import plugin_at_work
from longgame.selection.base import SCORES, build_selector
from longgame.selection.interventions import selector_of
from longgame.selection.methods.from_scores import FromScores
from longgame.signals.base import SIGNALS, work_of
from longgame.signals.quality.base import QualitySources


def plugin_names(recipe: Recipe) -> tuple[str, ...]:
    """Names of the recipe's selectors, then of the scorers of its tasks, each once."""
    scorers = (name for task in (*recipe.data.stages, *recipe.data.ood) for name in task.scorers)
    return tuple(dict.fromkeys((*(spec.name for spec in recipe.selectors), *scorers)))


def file_of(name: str) -> Path | None:
    """The file that a selector or scorer of this name is read from; None for one that is built in or installed."""
    if name.startswith(SCORES):
        return Path(located(name.removeprefix(SCORES))).expanduser()
    return Path(located(name.rpartition(":")[0])).expanduser() if ".py:" in name else None


def file_contents(names: Iterable[str]) -> dict[str, str]:
    """Name → content hash of its file (of the file alone, not of what it imports); only files that are there."""
    files = {name: file_of(name) for name in names}
    return {
        name: hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        for name, file in files.items()
        if file is not None and file.is_file()
    }


def row_contents(names: Iterable[str], ids: Collection[str]) -> dict[str, str]:
    """Name of a file of scores → content hash of what it says about these candidates (`ScoreFile.digest`).

    Files that are missing or hold no scores are left out.
    """
    digests = {}
    for name in names:
        if name.startswith(SCORES):
            try:
                digests[name] = read_scores(name.removeprefix(SCORES)).digest(ids)
            except DataError:  # reported when the selector is made
                continue
    return digests


# What an audit is refused for, or warned of, before its work begins: plug-ins, edited files, files of scores.

_WORTH_A_WARNING = 0.01
"""Chance that a choice finds nothing, from which it is warned of."""
_FEW = 2
"""Examples per step under which a probe, whose pool is a sample, may have fewer than one."""


def check_plugins(recipe: Recipe, selectors: Iterable[SelectorSpec] | None = None) -> None:
    """Make every selector and scorer once, so that a wrong name or parameter is told before any work is done.

    Args:
        selectors: those with work left; None: the recipe's.

    Raises:
        RecipeError: a selector reads grades, and the recipe names no source of them; a scorer runs model-written code,
            and the recipe does not allow it. RecipeError, PluginError: as
            `selector_of`, `build_scorer` and `build_quality`.
    """
    grading = QualitySources.of(recipe.quality, recipe.complexity)
    if recipe.data.sequence == "quadratic" and grading.identity():
        raise RecipeError("a quadratic world has no texts, and the recipe names a source of quality. Leave it out.")
    for spec in recipe.selectors if selectors is None else selectors:
        for name in selector_of(spec).requires:
            key = "complexity" if name == "complexity" else "quality"
            if name in ("grade", "complexity") and grading.gives(name) is None:
                raise RecipeError(
                    f"selector '{spec.key}' requires {name}, and the recipe names no source of {key}. Add {key}: "
                    "SOURCE, such as judge:FILE.yaml, reward:MODEL or column:NAME."
                )
    for task in (*recipe.data.stages, *recipe.data.ood):
        for scorer in task.scorers:
            if build_scorer(scorer).runs_model_code and not recipe.data.run_model_code:
                raise RecipeError(refused_code(scorer))


def check_models(plan: Plan) -> str:
    """Check, before any work, the device and the adapter of every condition; return the kind of device.

    Raises:
        ModelError: the device, the embedder or the scorer model does not exist, or PEFT does not know a key.
        RecipeError: a selector needs gradients, and more is trained than LoRA's weights; or a scorer model, and there
            is none.
    """
    kind = ""
    for condition in plan.conditions.values():
        recipe = condition.recipe
        kind = learner_kind(recipe).check_model(recipe)
        _check_scorer_model(recipe)
        if recipe.model.adaptation != "peft" and not recipe.model.peft.get("modules_to_save"):
            continue
        for spec in recipe.selectors:
            if work_of(selector_of(spec).requires) == "backward":
                raise RecipeError(
                    f"selector '{spec.key}' needs gradients, which are measured of LoRA's weights alone. Leave the "
                    "selector out, or use adaptation: lora without modules_to_save."
                )
    return kind


def _check_scorer_model(recipe: Recipe) -> None:
    """Raise RecipeError where a selector asks a scorer model and there is none, ModelError where it is not there."""
    for spec in recipe.selectors:
        if spec.name.startswith(SCORES):  # its file may be gone, which a finished trial does not need
            continue
        names = [name for name in selector_of(spec).requires if name in SIGNALS and "scorer" in SIGNALS[name].needs]
        if names and recipe.model.scorer_model is None:
            raise RecipeError(
                f"selector '{spec.key}' needs {', '.join(names)} of a scorer model, and the recipe names none. Set "
                "model.scorer_model, e.g. to a smaller model than model.name."
            )
    if recipe.model.scorer_model is not None:
        from longgame.models.load import model_place

        with recipe.paths():
            model_place(recipe.model.scorer_model)


def check_scorers(recipe: Recipe) -> None:
    """Check that every scorer that a task names measures some of its items (of the first seed).

    The default scorers may measure nothing: `exact_match` is NaN where no item has an answer.

    Raises:
        DataError: a scorer measures none. PluginError: one that breaks its contract.
    """
    default = RealTask.model_fields["scorers"].default
    if all(task.scorers == default for task in (*recipe.data.stages, *recipe.data.ood)):
        return
    for task in sequence_of(recipe, recipe.seeds[0]).tasks:
        for name in task.scorers if task.scorers != default else ():
            scorer = build_scorer(name)
            if "model" in scorer.requires:  # it has items of its own
                continue
            with plugin_at_work(f"scorer '{name}'", f"measures() of task '{task.name}'"):
                measured = any(map(scorer.measures, task.items))
            if not measured:
                raise DataError(
                    f"scorer '{name}' measures none of the {len(task.items)} items of task '{task.name}': they lack "
                    "what it needs (docs/scorers.md). Leave it out of the task's scorers, or give other items."
                )


_CANDIDATE_BYTES, _STEP_SECONDS, _MOST_DAYS = 4_000, 1e-3, 30.0
"""Least memory of a candidate or item with its text, tokens and signals; least time of a step; longest audit."""


def check_size(plan: Plan) -> None:
    """Check before any work that what the recipe makes fits into memory, and that its steps end this month.

    Both are least estimates: a candidate of 4 kB, a step of a millisecond.

    Raises:
        RecipeError: it cannot; the sizes are named.
    """
    check_memory(plan)
    steps = 0
    for trial in plan.trials:
        recipe = plan.conditions[trial.condition].recipe
        steps += len(plan.stages) * (recipe.training.steps + len(recipe.probe.kinds) * recipe.probe.steps)
    days = steps * _STEP_SECONDS / 86_400
    if days > _MOST_DAYS:
        raise RecipeError(
            f"the recipe asks for {steps:,} steps in {len(plan.trials):,} trials: at least {days:,.0f} days, even at a "
            "millisecond a step. Lower training.steps or probe.steps, or ask for fewer trials."
        )


def check_memory(plan: Plan) -> None:
    """Check that the pools and items that the recipe makes fit into memory.

    Raises:
        RecipeError: they do not.
    """
    for condition in plan.conditions.values():
        data, stages = condition.recipe.data, len(plan.stages)
        if data.sequence == "files":  # `load_examples` compares the sizes of its files
            continue
        items = stages * (data.pool_size + data.items_per_skill + data.ood_items_per_skill)
        needed, free = items * _CANDIDATE_BYTES, free_memory()
        if needed > free:
            raise RecipeError(
                f"data.pool_size is {data.pool_size:,} and data.items_per_skill {data.items_per_skill:,}: {stages} "
                f"stages take at least {needed / 1e9:,.0f} GB of memory, and {free / 1e9:,.0f} GB are free. Use at "
                f"most {free // (_CANDIDATE_BYTES * stages):,} a stage."
            )


def unfinished_trials(plan: Plan, folder: Path) -> list[Trial]:
    """The trials of which a run directory lacks the last stage."""
    last = f"stage-{len(plan.stages)}"
    return [trial for trial in plan.trials if FinishedPart.find(folder / "trials" / trial.name, last) is None]


def check_trusted(plan: Plan, folder: Path, named: Collection[str] = (), *, remote_code: bool = False) -> None:
    """Check that no code that a run directory's recipe names would be run; a stranger may have written the recipe.

    Args:
        named: selectors that the user named, whose code is trusted.
        remote_code: whether the user trusts the code that comes with the model.

    Raises:
        RecipeError: a trial with work left has a selector or scorer that is a Python file, or a model with code.
    """
    left = unfinished_trials(plan, folder)
    scorers = plugin_names(plan.recipe.replace({"selectors": ()})) if left else ()
    names = {*(trial.selector.name for trial in left), *scorers}
    code = sorted(name for name in names - {name.strip() for name in named} if ".py:" in name)
    if left and plan.recipe.model.trust_remote_code and not remote_code:
        code.append(f"model {plan.recipe.model.name} (model.trust_remote_code)")
    if left and plan.recipe.data.run_model_code:
        code.append("what the model writes (data.run_model_code)")
    if code:
        raise RecipeError(
            f"{folder} names code that would be run: {', '.join(code[:5])}{' …' if code[5:] else ''}. Read it, and add "
            "--trust-code if you trust it."
        )


def check_trusted_data(recipe: Recipe, folder: Path, *, remote_code: bool = False) -> None:
    """Check that nothing outside of the package would be read for the pools of a run directory's recipe.

    Args:
        recipe: the run's recipe as it stands in the directory, with no change of the user's.
        remote_code: whether the user trusts the code that comes with the model.

    Raises:
        RecipeError: it names data files or data sets, a model that is no part of the package, a template, or code.
    """
    from longgame.models.load import ALIASES  # loads torch, which reading a run does not need

    model, data = recipe.model, recipe.data
    names = [name for task in (*data.stages, *data.ood) for name in (*task.train, *task.eval)]
    names += [name for name in plugin_names(recipe) if ".py:" in name]
    names += [name for name in (model.per_seed or (model.name,)) if name not in (*ALIASES, "quadratic")]
    names += [model.chat_template] if model.chat_template not in (None, "plain") else []
    names += ["model.trust_remote_code"] if model.trust_remote_code and not remote_code else []
    if names:
        raise RecipeError(
            f"the recipe of the run {folder} names what would be read: {', '.join(dict.fromkeys(names[:5]))}"
            f"{' …' if names[5:] else ''}. Read the recipe, and add --trust-code if you trust it."
        )


def check_files(folder: Path, plan: Plan) -> None:
    """Check that selectors and scorers that are files are what they were when finished parts were measured.

    Of a file of scores only the rows of a trial's candidates count, so rows for other seeds and conditions may be
    added. Missing files are ignored.

    Raises:
        ResumeError: a file has changed since; it is named with the parts.
    """
    now = file_contents(plugin_names(plan.recipe))
    parts = finished_parts(folder) if now else []
    trials = {trial.name: trial for trial in plan.trials} if parts else {}

    @cache
    def row_digest(name: str, trial: str) -> str | None:
        stages = [stage for stages in _pools(plan, [trials[trial]]).values() for stage in stages]
        return row_contents([name], [id for stage in stages for id in _names(stage)]).get(name)

    changed = []
    for finished in parts:
        part, contents = finished.path.parent, finished.mark()
        for name in [name for name, content in contents.get("files", {}).items() if now.get(name, content) != content]:
            rows = contents.get("rows", {}).get(name)
            if rows is None or part.name not in trials or row_digest(name, part.name) != rows:
                changed.append((part, name))
    if changed:
        places = list(dict.fromkeys(str(part.relative_to(folder)) for part, _ in changed))
        raise ResumeError(
            f"{file_of(changed[0][1])} is not what it was when these parts of {folder} were measured: "
            f"{', '.join(places[:5])}{f' and {len(places) - 5} more' if places[5:] else ''}. Put the file back, delete "
            "these folders to measure them anew, or use another --out."
        )


def candidates_in(sequence: SequenceData) -> list[str]:
    """Ids of the candidates of all stages, and of the rows that they were read from."""
    return [name for stage in sequence.stages for name in _names(stage.candidates)]


def _names(examples: Iterable[Example]) -> list[str]:
    """Every id that a file of scores may call one of these examples."""
    return [name for example in examples for name in (example.sample_id, example.row_id) if name is not None]


def check_scores(plan: Plan, trials: Iterable[Trial]) -> None:
    """Check that files of scores name every candidate of these trials: of all seeds, stages and conditions.

    Raises:
        DataError: one lacks candidates and does not skip what it lacks; it is told how many, and of which seeds.
    """
    for selector, same_file in _of_scores(trials):
        pools = _pools(plan, same_file)
        every = {example.sample_id: example for stages in pools.values() for stage in stages for example in stage}
        names = dict(zip(every, selector.named([*every.values()]), strict=True))
        lacking = [
            where
            for where, stages in pools.items()
            if any(selector.lacking([names[example.sample_id] for example in stage]) for stage in stages)
        ]
        if lacking:
            places = [f"seed {seed}" + (f" of {base}" if base else "") for base, seed in lacking]
            more = f" and {len(places) - 5} more" if places[5:] else ""
            selector.check(sorted({*names.values()}), f" (in {', '.join(places[:5])}{more})")


def seed_warnings(recipe: Recipe) -> list[str]:
    """What an audit of so few seeds, or base models, cannot say; empty where verdicts can come of it."""
    bases = set((seed_bases(recipe) or {}).values())
    unit, count = ("base models", len(bases)) if 1 < len(bases) < len(recipe.seeds) else ("seeds", len(recipe.seeds))
    if count >= LEAST_SEEDS or len(recipe.selectors) == 1:
        return []
    return [
        f"{f'{count} {unit} give' if count > 1 else f'1 {unit[:-1]} gives'} no verdict on any selector; at least "
        f"{LEAST_SEEDS} are needed. Seeds can be added to this run later (seeds: in the recipe, or --seeds)."
    ]


def score_warnings(plan: Plan, trials: Iterable[Trial]) -> list[str]:
    """What files that keep too little will do to these trials: a sentence per selector and condition.

    Raises:
        DataError: a file lacks candidates (see `check_scores`).
    """
    warnings = []
    for selector, same_file in _of_scores(trials):
        pools = _pools(plan, same_file)
        for name in dict.fromkeys(trial.condition for trial in same_file):
            condition = plan.conditions[name]
            stages = [pools[condition.base, trial.seed] for trial in same_file if trial.condition == name]
            names_by_stage = [selector.named(stage) for seed in stages for stage in seed]
            text = _warning([selector.kept(names) for names in names_by_stage], condition.recipe)
            if text:
                warnings.append(f"{same_file[0].selector.key}{f' under {name}' if name else ''}: {text}")
    return warnings


def _of_scores(trials: Iterable[Trial]) -> list[tuple[FromScores, list[Trial]]]:
    """Selectors that are files of scores, each with its trials."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.selector.name.startswith(SCORES):
            groups.setdefault(trial.selector.key, []).append(trial)
    selectors = []
    for same_file in groups.values():
        selector = build_selector(same_file[0].selector.name, same_file[0].selector.parameters)
        if isinstance(selector, FromScores):
            selectors.append((selector, same_file))
    return selectors


def _pools(plan: Plan, trials: Iterable[Trial]) -> dict[tuple[str, int], list[Sequence[Example]]]:
    """(shared work, seed) of these trials → each stage's candidates, which depend on nothing else."""
    pools: dict[tuple[str, int], list[Sequence[Example]]] = {}
    for trial in trials:
        condition = plan.conditions[trial.condition]
        if (condition.base, trial.seed) not in pools:
            stages = sequence_of(condition.recipe, trial.seed).stages
            pools[condition.base, trial.seed] = [stage.candidates for stage in stages]
    return pools


def _warning(kept: Sequence[Bool[np.ndarray, " n"]], recipe: Recipe) -> str:
    """The effect of a file that keeps only these candidates of each stage; empty where there is none."""
    least, rounds = min(float(flags.mean()) for flags in kept), recipe.rounds
    few = least < recipe.budget
    sentences = []
    if few:
        sentences.append(
            f"of some stage only {100 * least:.1f} % of the candidates may be selected, and the budget is "
            f"{100 * recipe.budget:g} % of their {recipe.counted_tokens}, so fewer tokens may be learned than by other "
            "selectors."
        )
    chance = _empty_step(kept, recipe.training.steps) if rounds == "step" else 0.0
    if chance >= _WORTH_A_WARNING:
        sentences.append(
            f"A step chooses among {_share(kept, recipe.training.steps)} candidates or so; that one finds none that "
            f"may be selected has a probability of {100 * chance:.0f} % and ends the audit there. Use rounds: 1."
        )
    elif few and rounds not in ("step", 1):
        sentences.append(f"The last of {rounds} rounds may find none left, which ends the audit there. Use rounds: 1.")
    per_step = min(int(flags.sum()) for flags in kept) * recipe.training.epochs / recipe.training.steps
    if few and rounds == 1 and per_step < _FEW:
        sentences.append(
            f"They are {per_step:.1f} for each of a stage's {recipe.training.steps} steps; a stage or probe with fewer "
            "than one ends the audit there. Train for fewer steps or more epochs."
        )
    return " ".join(sentences)


def _share(kept: Sequence[Bool[np.ndarray, " n"]], steps: int) -> int:
    return max(1, min(len(flags) for flags in kept) // steps)


def _empty_step(kept: Sequence[Bool[np.ndarray, " n"]], steps: int) -> float:
    """Chance that a step of these stages is offered none that is kept.

    A share of c among n candidates, k of them kept, holds none with probability C(n − k, c) / C(n, c); the shares are
    taken as independent.
    """
    none_empty = 1.0
    for flags in kept:
        n, k, c = len(flags), int(flags.sum()), _share([flags], steps)
        none_empty *= (1 - math.comb(n - k, c) / math.comb(n, c)) ** steps
    return 1 - none_empty
