"""All finished measurements of a run as one table, each with the condition it was made under."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Int

from longgame.audit.learner import outline
from longgame.audit.parts import SUFFIX, mark_of
from longgame.audit.plan import FULL_DATA, ORACLE, REFERENCES, Condition, Plan, Trial, measured_by
from longgame.audit.store import CONDITION_COLUMNS, RECORD_COLUMNS, RECORDS, RESULT_COLUMNS, StageStore
from longgame.errors import DataError, ResumeError
from longgame.metrics.scorecard import Scorecard
from longgame.metrics.tidy import NO_MEASUREMENT, Measured
from longgame.storage import (
    parquet_bytes,
    read_file,
    read_sealed,
    sealed,
    unpack_parquet,
    unreadable,
    write_file,
)

RESULTS, PICKS, MEASURED = "results.parquet", "picks.parquet", "measured.safetensors"
_NOTED = (RESULTS, PICKS, MEASURED)
TABLES = "tables.json"
"""Which finished stages the tables of a run were made of (`stamp_of`), and what was written (SHA-256)."""

Stores = Callable[[Trial], tuple[StageStore, StageStore]]
"""Trial → the store of its seed's shared work, and its own."""
_TEXT = [name for name, kind in RESULT_COLUMNS.items() if kind == "string"]
_ORDER = ("trial", "kind", "stage", "probe", "task", "scorer", "sub_skill", "name", "step")


def read_results(folder: Path, plan: Plan, finished: Mapping[str, int], stores: Stores, stamp: str) -> pd.DataFrame:
    """results.parquet if it was made of just these finished stages, otherwise `gather`: one file instead of thousands.

    Args:
        finished: trial → number of its finished stages.
        stamp: `stamp_of` these stages.
        stores: where they are, with the keys that they must have.

    Raises:
        ResumeError: a file cannot be read, or is not what the recipe's trials have written.
    """
    content = current_table(folder, RESULTS, stamp)
    if content is None:
        return gather(plan, finished, stores)
    columns = tuple(RESULT_COLUMNS)
    return _frame([_table(content, folder / RESULTS, columns)], columns)


def write_results(folder: Path, stamp: str, results: pd.DataFrame) -> None:
    """Write results.parquet, unless it was made of just the stages of this stamp.

    Raises:
        StorageError: it cannot be written.
    """
    if current_table(folder, RESULTS, stamp) is None:
        write_run_table(folder, RESULTS, parquet_bytes(pa.Table.from_pandas(results, preserve_index=False)), stamp)


def current_table(folder: Path, name: str, stamp: str) -> bytes | None:
    """Content of a table at the top of a run, if it was made of just these stages and is what was written."""
    try:
        content = read_file(folder / name)
    except OSError:  # absent: made of the trials again
        return None
    return content if _notes(folder).get(name) == _note(content, stamp) else None


def write_run_table(folder: Path, name: str, content: bytes, stamp: str) -> None:
    """Write a table at the top of a run, and note what it was made of.

    Raises:
        StorageError: it cannot be written; the older table stays.
    """
    write_file(folder / name, content)
    write_file(folder / TABLES, sealed({**_notes(folder), name: _note(content, stamp)}))


def _note(content: bytes, stamp: str) -> dict[str, str]:
    return {"stages": stamp, "sha256": hashlib.sha256(content).hexdigest()}


def _notes(folder: Path) -> dict[str, Any]:
    try:
        return read_sealed(folder / TABLES, (), _NOTED)
    except ResumeError:  # absent or damaged: all tables are made again
        return {}


def stamp_of(folder: Path, plan: Plan, finished: Mapping[str, int]) -> str:
    """Digest of what finished stages say of themselves (key, digests of their files), and of the plan's recipe.

    Raises:
        ResumeError: a finished stage, or one before it, has no mark.
    """
    digest = blake2b(json.dumps(measured_by(plan.recipe), sort_keys=True).encode(), digest_size=16)
    trials = {trial.name: trial for trial in plan.trials}
    bases = {plan.base_name(trials[name].seed, trials[name].condition): None for name in finished if finished[name]}
    places = [(f"seeds/{base}", "base") for base in bases]
    places += [(f"trials/{name}", f"stage-{n}") for name, stages in finished.items() for n in range(1, stages + 1)]
    for place, name in places:
        content = mark_of(f"{folder}/{place}", name)
        if content is None:
            raise unreadable(folder / place / f"{name}{SUFFIX}", FileNotFoundError("it is missing"))
        digest.update(f"{place}/{name} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()


def gather(plan: Plan, finished: Mapping[str, int], stores: Stores) -> pd.DataFrame:
    """Read the finished stages of all planned trials, sorted; row 0 of R stands once for every trial of its seed.

    Text columns are categories (sorted): a run of 10,000 trials has millions of rows of a few different words.

    Raises:
        ResumeError: as `read_results`.
    """
    trials = [trial for trial in plan.trials if finished.get(trial.name)]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:  # a file takes longer to unpack than to read
        tables = [table for tables in pool.map(_TrialTables(finished, stores), trials) for table in tables]
    frame = _frame(tables, tuple(RECORD_COLUMNS))
    names = {trial.name: trial.condition for trial in plan.trials}
    values = {name: {"condition": name, **condition.values} for name, condition in plan.conditions.items()}
    of_trial = [values[names[name]] for name in frame["trial"].cat.categories]
    for name, kind in CONDITION_COLUMNS.items():
        column = pd.Series([value[name] for value in of_trial], dtype="category" if kind == "string" else kind)
        frame[name] = column.take(frame["trial"].cat.codes.to_numpy(np.int64)).reset_index(drop=True)
    frame = frame[list(RESULT_COLUMNS)]
    return frame.take(sorted_rows(frame)).reset_index(drop=True)


class _TrialTables:
    """Reads the tables of one trial: row 0, which trials share, and its finished stages."""

    def __init__(self, finished: Mapping[str, int], stores: Stores) -> None:
        self.finished, self.stores = finished, stores
        self._row0 = lru_cache(maxsize=None)(lambda folder, key: _records(StageStore(folder, key), "base"))

    def __call__(self, trial: Trial) -> list[pa.Table]:
        shared, store = self.stores(trial)
        stages = [_records(store, f"stage-{number}") for number in range(1, self.finished[trial.name] + 1)]
        return [_of_trial(self._row0(shared.folder, shared.key), trial), *stages]


def _records(store: StageStore, part: str) -> pa.Table:
    """The records of a finished part, after its key and digest were compared."""
    finished = store.part(part)
    return _table(finished.read(RECORDS), finished.path / RECORDS)


def _of_trial(row0: pa.Table, trial: Trial) -> pa.Table:
    for name, value in (("trial", trial.name), ("selector", trial.selector.key)):
        place = row0.schema.get_field_index(name)
        words = pa.array([value], type=row0.schema.field(place).type.value_type)
        column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(row0), dtype=np.int32)), words)
        row0 = row0.set_column(place, name, column)
    return row0


def _table(content: bytes, path: Path, columns: Sequence[str] = tuple(RECORD_COLUMNS)) -> pa.Table:
    try:
        return unpack_parquet(content, columns, _TEXT).replace_schema_metadata(None)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error


def _frame(tables: list[pa.Table], columns: Sequence[str]) -> pd.DataFrame:
    """One frame of the tables, which are used up; text columns are categories in alphabetical order."""
    if not tables:
        kinds = {name: "category" if name in _TEXT else RESULT_COLUMNS[name] for name in columns}
        return pd.DataFrame({name: [] for name in columns}).astype(kinds)
    table = pa.concat_tables(tables).unify_dictionaries()
    tables.clear()  # so that a column is freed once it is converted
    frame = table.to_pandas(split_blocks=True, self_destruct=True)
    for name in columns:
        if name in _TEXT:
            frame[name] = frame[name].cat.reorder_categories(sorted(frame[name].cat.categories))
    return frame


def sorted_rows(frame: pd.DataFrame) -> Int[np.ndarray, " n"]:
    """Rows in the order of trial, kind, stage …, equal ones as they stand: few wide keys instead of many columns."""
    keys = [np.zeros(len(frame), dtype=np.int64)]
    room = 1
    for name in _ORDER:
        column = frame[name].cat.codes if name in _TEXT else frame[name]
        codes = column.to_numpy(np.int64)
        low, high = (int(codes.min()), int(codes.max())) if len(codes) else (0, 0)
        size = high - low + 1
        if room * size >= 2**62:
            keys.append(np.zeros(len(frame), dtype=np.int64))
            room = 1
        keys[-1] = keys[-1] * size + (codes - low)
        room *= size
    return np.lexsort(keys[::-1])


def of_condition(results: pd.DataFrame, name: str) -> pd.DataFrame:
    """The records of one condition; the table itself where it holds no other."""
    rows = results["condition"] == name
    return results if rows.all() else results[rows]


def scorecards(plan: Plan, measured: Mapping[str, Measured]) -> dict[str, Scorecard]:
    """Condition → scorecard: the recipe's own first, then those in which every selector has measurements.

    Raises:
        DataError: the recipe's own condition has no measurement.

    The trials of `REFERENCES` have none: they compete with nobody (see `full_data` and `oracle` in docs/recipe.md).
    """
    if "" not in measured:
        raise DataError(NO_MEASUREMENT)
    selectors = {spec.key for spec in plan.recipe.selectors}
    names = [
        name
        for name in plan.conditions
        if name == ""
        or (name not in REFERENCES and name in measured and {*measured[name].trials.selectors} == selectors)
    ]
    beside = [reference_scorecard(plan, measured, name) for name in (FULL_DATA, ORACLE)]
    return {
        name: build_scorecard(plan.conditions[name], measured[name], *(beside if name == "" else ())) for name in names
    }


def reference_scorecard(plan: Plan, measured: Mapping[str, Measured], name: str) -> Scorecard | None:
    """A scorecard of one condition of `REFERENCES`, which compares nothing; None: no finished stage."""
    return build_scorecard(plan.conditions[name], measured[name]) if name in measured else None


def condition_reference(condition: Condition) -> str:
    """Selector that the others of a condition are compared with; of `REFERENCES`, the only one."""
    recipe = condition.recipe
    return recipe.selectors[0].key if condition.name in REFERENCES else recipe.metrics.reference


def build_scorecard(
    condition: Condition,
    measured: Measured,
    all_data: Scorecard | None = None,
    oracle: Scorecard | None = None,
) -> Scorecard:
    """The scorecard of one condition; its reference is that of ``measured``."""
    names = outline(condition.recipe)
    return Scorecard.build(
        measured,
        tasks=list(names.stages),
        ood=list(names.ood),
        primary=names.primary,
        metric_spec=condition.recipe.metrics,
        threshold=condition.recipe.probe.threshold,
        reference=condition_reference(condition),
        all_data=all_data,
        oracle=oracle,
    )
