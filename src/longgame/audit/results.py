"""All finished measurements of a run as one table, each with the condition it was made under."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from longgame.audit.learner import outline, seed_bases
from longgame.audit.plan import FULL_DATA, ORACLE, REFERENCES, Condition, Plan, Trial
from longgame.audit.store import CONDITION_COLUMNS, RECORD_COLUMNS, RESULT_COLUMNS
from longgame.metrics.scorecard import Scorecard
from longgame.metrics.tidy import distinct_rows
from longgame.storage import parquet_bytes, unreadable, write_file

RESULTS = "results.parquet"
STAMP = b"longgame.trials"
"""Key of a file's metadata: the finished stages that it was made of (see `stamp_of`)."""
_TEXT = [name for name, kind in RESULT_COLUMNS.items() if kind == "string"]
_ORDER = ("trial", "kind", "stage", "probe", "task", "scorer", "sub_skill", "name", "step")


def read_results(folder: Path, plan: Plan, finished: Mapping[str, int]) -> pd.DataFrame:
    """results.parquet if it was made of just these finished stages, otherwise `gather`: one file instead of thousands.

    Args:
        finished: trial → number of its finished stages.

    Raises:
        ResumeError: a file cannot be read.
    """
    path, columns = folder / RESULTS, tuple(RESULT_COLUMNS)
    return _frame([_read(path, columns)], columns) if _is_current(path, finished) else gather(folder, plan)


def write_results(folder: Path, results: pd.DataFrame, finished: Mapping[str, int]) -> None:
    """Write results.parquet, unless it was made of just these finished stages.

    Raises:
        StorageError: it cannot be written.
    """
    path = folder / RESULTS
    if not _is_current(path, finished):
        table = pa.Table.from_pandas(results, preserve_index=False)
        metadata = {**(table.schema.metadata or {}), STAMP: stamp_of(folder, finished)}
        write_file(path, parquet_bytes(table.replace_schema_metadata(metadata)))


def _is_current(path: Path, finished: Mapping[str, int]) -> bool:
    try:
        with pq.ParquetFile(path) as file:
            return (file.schema_arrow.metadata or {}).get(STAMP) == stamp_of(path.parent, finished)
    except (OSError, pa.ArrowException):  # absent or damaged: made of the trials again
        return False


def stamp_of(folder: Path, finished: Mapping[str, int]) -> bytes:
    """Digest of which stages are finished, and when they were."""
    digest = blake2b(digest_size=16)
    for name, stages in finished.items():
        trial = folder / "trials" / name
        times = [(trial / f"stage-{stage}" / "done.json").stat().st_mtime_ns for stage in range(1, stages + 1)]
        digest.update(f"{name} {times}\n".encode())
    return digest.hexdigest().encode()


def gather(folder: Path, plan: Plan) -> pd.DataFrame:
    """Read the finished stages of all planned trials, sorted; row 0 of R stands once for every trial of its seed.

    Text columns are categories (sorted): a run of 10,000 trials has millions of rows of a few different words.

    Raises:
        ResumeError: a file cannot be read.
    """
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:  # a file takes longer to unpack than to read
        tables = [table for tables in pool.map(_TrialTables(folder, plan), plan.trials) for table in tables]
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

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self._row0 = lru_cache(maxsize=None)(lambda path: _read(path) if path.is_file() else None)

    def __call__(self, trial: Trial) -> list[pa.Table]:
        paths = sorted((self.folder / "trials" / trial.name).glob("stage-*/records.parquet"))
        if not paths:
            return []
        row0 = self._row0(
            self.folder / "seeds" / self.plan.base_name(trial.seed, trial.condition) / "base" / "records.parquet"
        )
        return [*([] if row0 is None else [_of_trial(row0, trial)]), *map(_read, paths)]


def _of_trial(row0: pa.Table, trial: Trial) -> pa.Table:
    for name, value in (("trial", trial.name), ("selector", trial.selector.key)):
        place = row0.schema.get_field_index(name)
        words = pa.array([value], type=row0.schema.field(place).type.value_type)
        column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(row0), dtype=np.int32)), words)
        row0 = row0.set_column(place, name, column)
    return row0


def _read(path: Path, columns: Sequence[str] = tuple(RECORD_COLUMNS)) -> pa.Table:
    try:
        with pq.ParquetFile(path, read_dictionary=[name for name in columns if name in _TEXT]) as file:
            return file.read(columns=list(columns), use_threads=False).replace_schema_metadata(None)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error


def _frame(tables: list[pa.Table], columns: Sequence[str]) -> pd.DataFrame:
    """One frame of the tables; text columns are categories in alphabetical order."""
    if not tables:
        kinds = {name: "category" if name in _TEXT else RESULT_COLUMNS[name] for name in columns}
        return pd.DataFrame({name: [] for name in columns}).astype(kinds)
    frame = pa.concat_tables(tables).unify_dictionaries().to_pandas()
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


def scorecards(plan: Plan, results: pd.DataFrame) -> dict[str, Scorecard]:
    """Condition → scorecard: the recipe's own first, then those in which every selector has measurements.

    The trials of `REFERENCES` have none: they compete with nobody (see `full_data` and `oracle` in docs/recipe.md).
    """
    selectors = {spec.key for spec in plan.recipe.selectors}
    measured: dict[str, set[str]] = {}
    for name, selector in distinct_rows(results[["condition", "selector"]]).itertuples(index=False):
        measured.setdefault(name, set()).add(selector)
    names = [
        name for name in plan.conditions if name == "" or (name not in REFERENCES and measured.get(name) == selectors)
    ]
    beside = [reference_scorecard(plan, results, name) for name in (FULL_DATA, ORACLE)]
    return {
        name: build_scorecard(plan.conditions[name], of_condition(results, name), None, *(beside if name == "" else ()))
        for name in names
    }


def reference_scorecard(plan: Plan, results: pd.DataFrame, name: str) -> Scorecard | None:
    """A scorecard of one condition of `REFERENCES`, which compares nothing; None: no finished stage."""
    rows = results["condition"] == name
    if not rows.any():
        return None
    condition = plan.conditions[name]
    return build_scorecard(condition, results[rows], condition.recipe.selectors[0].key)


def build_scorecard(
    condition: Condition,
    records: pd.DataFrame,
    reference: str | None = None,
    all_data: Scorecard | None = None,
    oracle: Scorecard | None = None,
) -> Scorecard:
    """The scorecard of the records of one condition."""
    names = outline(condition.recipe)
    return Scorecard.build(
        records,
        tasks=list(names.stages),
        ood=list(names.ood),
        primary=names.primary,
        metric_spec=condition.recipe.metrics,
        threshold=condition.recipe.probe.threshold,
        reference=reference or condition.recipe.metrics.reference,
        bases=seed_bases(condition.recipe),
        all_data=all_data,
        oracle=oracle,
    )
