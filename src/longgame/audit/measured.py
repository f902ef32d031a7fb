"""The measurements of a run laid out by trial, in one file, so that a report of thousands of trials reads few bytes.

``measured.safetensors`` holds `longgame.metrics.tidy.Measured` of every condition: arrays whose first axis are the
trials, and their names in the header. It is used only where tables.json says that it was made of just the finished
stages that are there (`longgame.audit.results.stamp_of`); otherwise the records are read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load, save

from longgame.audit.learner import outline, seed_bases
from longgame.audit.plan import Plan
from longgame.audit.results import MEASURED, condition_reference, current_table, of_condition, write_run_table
from longgame.errors import DataError
from longgame.metrics.tidy import PROBES, Curves, Measured, Scores, read_trials
from longgame.storage import unreadable

_NAMES = "names"
"""Tensor that holds the names of everything as JSON."""
_CURVES = ("trial", "stage", "probe", "scorer", "length", "step", "tokens", "score")
_KINDS = {"tokens": "f", "score": "f"}
"""Array of the curves → its kind of numbers; integers, where it is not named."""


def measure_results(plan: Plan, results: pd.DataFrame) -> dict[str, Measured]:
    """Condition → its measurements laid out by trial; conditions without any are left out.

    Raises:
        DataError: as `longgame.metrics.tidy.Measured.read`.
    """
    measured = {}
    for name in results["condition"].unique():
        condition, names = plan.conditions[name], outline(plan.conditions[name].recipe)
        measured[str(name)] = Measured.read(
            of_condition(results, name),
            list(names.stages),
            list(names.ood),
            condition_reference(condition),
            seed_bases(condition.recipe),
        )
    return measured


def write_measured(folder: Path, plan: Plan, stamp: str, measured: Mapping[str, Measured]) -> None:
    """Write measured.safetensors, unless it was made of just these stages.

    Args:
        stamp: of the finished stages that it was made of.

    Raises:
        StorageError: it cannot be written.
    """
    if current_table(folder, MEASURED, stamp) is not None:
        return
    tensors: dict[str, np.ndarray] = {}
    conditions = []
    for place, (name, part) in enumerate(measured.items()):
        names = outline(plan.conditions[name].recipe)
        tasks, scores, curves = (*names.stages, *names.ood), part.scores, part.curves
        items = zip(scores.column.tolist(), scores.sub_skill.tolist(), scores.scorer.tolist(), strict=True)
        conditions.append(
            {
                "condition": name,
                "trials": part.trials.names,
                "records": part.records,
                "items": [
                    (tasks[column], scores.sub_skills[skill], scores.scorers[code]) for column, skill, code in items
                ],
                "scorers": curves.scorers,
                "stagewise": list(part.stagewise),
                "selected": list(part.selected),
                "by_stage": list(part.by_stage),
                "offered": part.offered,
            }
        )
        arrays = {
            "scores": scores.values,
            **{f"curves.{field}": getattr(curves, field) for field in _CURVES},
            **{f"stagewise.{number}": table for number, table in enumerate(part.stagewise.values())},
            **{f"selected.{number}": table for number, table in enumerate(part.selected.values())},
            **{f"by_stage.{number}": table for number, table in enumerate(part.by_stage.values())},
        }
        tensors |= {f"{place}.{key}": np.ascontiguousarray(array) for key, array in arrays.items()}
    tensors[_NAMES] = np.frombuffer(json.dumps(conditions).encode(), dtype=np.uint8)
    write_run_table(folder, MEASURED, save(tensors), stamp)


def read_measured(folder: Path, plan: Plan, stamp: str) -> dict[str, Measured] | None:
    """What `write_measured` wrote, if it was made of just these stages; None: read the records.

    Raises:
        ResumeError: the file is not one that `write_measured` wrote for this recipe.
    """
    content = current_table(folder, MEASURED, stamp)
    if content is None:
        return None
    try:
        tensors = load(content)
        del content
        conditions = json.loads(tensors.pop(_NAMES).tobytes())
        measured = {}
        for place, names in enumerate(conditions):
            prefix = f"{place}."
            arrays = {key.removeprefix(prefix): tensors.pop(key) for key in list(tensors) if key.startswith(prefix)}
            measured[str(names["condition"])] = _of_arrays(plan, names, arrays)
        return measured
    except (SafetensorError, LookupError, ValueError, TypeError, AttributeError, RecursionError, DataError) as error:
        raise unreadable(folder / MEASURED, error) from error


def _of_arrays(plan: Plan, names: Mapping[str, Any], arrays: dict[str, np.ndarray]) -> Measured:
    """One condition, its trials in the order of `Trials`; every shape and code is checked.

    Raises:
        ValueError: an array has another shape, or holds a code of nothing.
    """
    condition = plan.conditions[names["condition"]]
    tasks = outline(condition.recipe)
    columns, stages = [*tasks.stages, *tasks.ood], len(tasks.stages)
    planned = {trial.name: trial for trial in plan.trials if trial.condition == names["condition"]}
    rows = pd.DataFrame([(name, planned[name].selector.key, planned[name].seed) for name in names["trials"]])
    reference = condition_reference(condition)
    trials = read_trials(rows.set_axis(["trial", "selector", "seed"], axis=1), reference, seed_bases(condition.recipe))
    place_of = {name: place for place, name in enumerate(names["trials"])}
    order = np.array([place_of[name] for name in trials.names])
    moved = not (order == np.arange(len(order))).all()

    def by_trial(key: str, *shape: int) -> np.ndarray:
        array = arrays.pop(key)
        _check(array.dtype == np.float64 and array.shape[: 1 + len(shape)] == (len(trials), *shape), key)
        return array[order] if moved else array

    items = [(columns.index(task), str(skill), str(scorer)) for task, skill, scorer in names["items"]]
    skills, scorers = list(dict.fromkeys(item[1] for item in items)), list(dict.fromkeys(item[2] for item in items))
    codes = [(column, skills.index(skill), scorers.index(scorer)) for column, skill, scorer in items]
    item_codes = np.array(codes, dtype=np.int64).reshape(-1, 3).T
    scores = Scores(
        by_trial("scores", stages + 1, len(items)),
        item_codes[0],
        item_codes[1],
        item_codes[2],
        tuple(skills),
        tuple(scorers),
    )
    return Measured(
        trials,
        int(names["records"]),
        scores,
        _curves(arrays, tuple(map(str, names["scorers"])), order, stages),
        {
            (str(kind), str(name)): by_trial(f"stagewise.{number}", stages + 1)
            for number, (kind, name) in enumerate(names["stagewise"])
        },
        {str(name): by_trial(f"selected.{number}", stages + 1) for number, name in enumerate(names["selected"])},
        {str(name): by_trial(f"by_stage.{number}", stages + 1) for number, name in enumerate(names["by_stage"])},
        tuple((int(stage), float(pool), float(selected)) for stage, pool, selected in names["offered"]),
    )


def _curves(arrays: dict[str, np.ndarray], scorers: tuple[str, ...], order: np.ndarray, stages: int) -> Curves:
    parts = {field: arrays.pop(f"curves.{field}") for field in _CURVES}
    for field, array in parts.items():
        _check(array.ndim == 1 and array.dtype.kind == _KINDS.get(field, "i"), f"curves.{field}")
    limits = {"trial": len(order), "stage": stages, "probe": len(PROBES), "scorer": len(scorers)}
    for field, limit in limits.items():
        codes = parts[field]
        _check(len(codes) == len(parts["length"]) and bool(((codes >= 0) & (codes < limit)).all()), f"curves.{field}")
    points = {len(parts[field]) for field in ("step", "tokens", "score")}
    _check(points == {int(parts["length"].sum())} and bool((parts["length"] > 0).all()), "curves.length")
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    parts["trial"] = place[parts["trial"]]
    first = np.cumsum(parts["length"]) - parts["length"]
    return Curves(first=first, scorers=scorers, **parts)


def _check(holds: bool, name: str) -> None:
    if not holds:
        raise ValueError(f"its array {name} does not fit the trials")
