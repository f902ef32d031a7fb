"""All finished measurements of a run as one table, each with the condition it was made under."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from longgame.protocol.store import CONDITION_COLUMNS, RECORD_COLUMNS, RESULT_COLUMNS, unreadable

if TYPE_CHECKING:
    from longgame.protocol.store import RunDirectory
    from longgame.protocol.trial import Trial

_TEXT = [name for name, kind in RECORD_COLUMNS.items() if kind == "string"]
_ORDER = ("trial", "kind", "stage", "probe", "task", "scorer", "sub_skill", "name", "step")


def gather(run: RunDirectory) -> pd.DataFrame:
    """Read the finished stages of all planned trials, sorted; row 0 of R stands once for every trial of its seed.

    Text columns are categories (sorted): a run of 10,000 trials has millions of rows of a few different words.

    Raises:
        ResumeError: a file cannot be read.
    """
    tables, bases = [], {}
    for trial in run.trials:
        paths = sorted((run.folder / "trials" / trial.name).glob("stage-*/records.parquet"))
        if not paths:
            continue
        base = run.seed_store(trial.seed, trial.condition).path("base") / "records.parquet"
        if base not in bases:
            bases[base] = _read(base) if base.is_file() else None
        row0 = bases[base]
        if row0 is not None:
            tables.append(_of_trial(row0, trial))
        tables += [_read(path) for path in paths]
    frame = _frame(tables)
    conditions = {trial.name: trial.condition for trial in run.trials}
    values = {name: {"condition": name, **condition.values} for name, condition in run.conditions.items()}
    of_trial = [values[conditions[name]] for name in frame["trial"].cat.categories]
    for name, kind in CONDITION_COLUMNS.items():
        column = pd.Series([value[name] for value in of_trial], dtype="category" if kind == "string" else kind)
        frame[name] = column.take(frame["trial"].cat.codes.to_numpy(np.int64)).reset_index(drop=True)
    frame = frame[list(RESULT_COLUMNS)]
    return frame.take(sorted_rows(frame)).reset_index(drop=True)


def _of_trial(row0: pa.Table, trial: Trial) -> pa.Table:
    for name, value in (("trial", trial.name), ("selector", trial.selector.key)):
        place = row0.schema.get_field_index(name)
        words = pa.array([value], type=row0.schema.field(place).type.value_type)
        column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(row0), dtype=np.int32)), words)
        row0 = row0.set_column(place, name, column)
    return row0


def _read(path: Path) -> pa.Table:
    try:
        with pq.ParquetFile(path, read_dictionary=_TEXT) as file:
            return file.read(columns=list(RECORD_COLUMNS)).replace_schema_metadata(None)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error


def _frame(tables: list[pa.Table]) -> pd.DataFrame:
    """One frame of the tables; text columns are categories in alphabetical order."""
    if not tables:
        empty = pd.DataFrame({name: [] for name in RECORD_COLUMNS})
        return empty.astype({name: "category" if name in _TEXT else kind for name, kind in RECORD_COLUMNS.items()})
    frame = pa.concat_tables(tables).unify_dictionaries().to_pandas()
    for name in _TEXT:
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
