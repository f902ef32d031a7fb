"""All finished measurements of a run as one table, each with the condition it was made under."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from longgame.audit.learner import outline
from longgame.audit.plan import ALL_DATA, FULL_DATA, Condition
from longgame.audit.store import CONDITION_COLUMNS, RECORD_COLUMNS, RESULT_COLUMNS
from longgame.errors import ResumeError
from longgame.metrics.scorecard import Scorecard
from longgame.report.picks import Picks, StagePicks, StageShare, combine, reduce_stage
from longgame.storage import parquet_bytes, refresh_file, unreadable

if TYPE_CHECKING:
    from longgame.audit.plan import Trial
    from longgame.audit.store import RunDirectory


_TEXT = [name for name, kind in RESULT_COLUMNS.items() if kind == "string"]
_STAMP = b"longgame.trials"
_ORDER = ("trial", "kind", "stage", "probe", "task", "scorer", "sub_skill", "name", "step")


def results_of(run: RunDirectory) -> pd.DataFrame:
    """`gather`, or results.parquet where it was made of just these finished stages: one file instead of thousands.

    Raises:
        ResumeError: a file cannot be read.
    """
    try:
        if (pq.read_schema(_path(run)).metadata or {}).get(_STAMP) == _stamp(run):
            return _frame([_read(_path(run), tuple(RESULT_COLUMNS))], tuple(RESULT_COLUMNS))
    except (OSError, pa.ArrowException, ResumeError):  # it is not there or damaged; it is made of the trials again
        pass
    return gather(run)


def write_results(run: RunDirectory, results: pd.DataFrame) -> None:
    """Write results.parquet, unless it was made of just these finished stages.

    Raises:
        StorageError: it cannot be written.
    """
    table = pa.Table.from_pandas(results, preserve_index=False)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _STAMP: _stamp(run)})
    refresh_file(_path(run), parquet_bytes(table))


def _path(run: RunDirectory) -> Path:
    return run.folder / "results.parquet"


def _stamp(run: RunDirectory) -> bytes:
    """Digest of which trials were finished, under which keys, and when."""
    digest = blake2b(digest_size=16)
    for trial in run.trials:
        store = run.store_of(trial)
        times = [entry.stat().st_mtime_ns for entry in sorted(store.folder.glob("stage-*/done.json"))]
        digest.update(f"{trial.name} {store.key} {times}\n".encode())
    return digest.hexdigest().encode()


def gather(run: RunDirectory) -> pd.DataFrame:
    """Read the finished stages of all planned trials, sorted; row 0 of R stands once for every trial of its seed.

    Text columns are categories (sorted): a run of 10,000 trials has millions of rows of a few different words.

    Raises:
        ResumeError: a file cannot be read.
    """
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:  # a file takes longer to unpack than to read
        tables = [table for tables in pool.map(_TrialTables(run), run.trials) for table in tables]
    frame = _frame(tables, tuple(RECORD_COLUMNS))
    conditions = {trial.name: trial.condition for trial in run.trials}
    values = {name: {"condition": name, **condition.values} for name, condition in run.conditions.items()}
    of_trial = [values[conditions[name]] for name in frame["trial"].cat.categories]
    for name, kind in CONDITION_COLUMNS.items():
        column = pd.Series([value[name] for value in of_trial], dtype="category" if kind == "string" else kind)
        frame[name] = column.take(frame["trial"].cat.codes.to_numpy(np.int64)).reset_index(drop=True)
    frame = frame[list(RESULT_COLUMNS)]
    return frame.take(sorted_rows(frame)).reset_index(drop=True)


class _TrialTables:
    """Reads the tables of one trial: row 0, which trials share, and its finished stages."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self._row0 = lru_cache(maxsize=None)(lambda path: _read(path) if path.is_file() else None)

    def __call__(self, trial: Trial) -> list[pa.Table]:
        paths = sorted((self.run.folder / "trials" / trial.name).glob("stage-*/records.parquet"))
        if not paths:
            return []
        base = self.run.seed_store(trial.seed, trial.condition).path("base") / "records.parquet"
        row0 = self._row0(base)
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
    held = results["condition"] == name
    return results if held.all() else results[held]


def scorecards(
    run: RunDirectory, results: pd.DataFrame, conditions: Collection[str] | None = None
) -> dict[str, Scorecard]:
    """A scorecard of each of these conditions (None: all), in the run's order: the recipe's own comes first.

    The full-data trials have none: they are compared with nobody (see `full_data` in docs/recipe.md).
    """
    return {
        name: _scorecard(condition, results)
        for name, condition in run.conditions.items()
        if name != FULL_DATA and (conditions is None or name in conditions)
    }


def full_data_scorecard(run: RunDirectory, results: pd.DataFrame) -> Scorecard | None:
    """A scorecard of the full-data trials alone, which compares nothing; None where none has a finished stage."""
    condition = run.conditions.get(FULL_DATA)
    if condition is None or not (results["condition"] == FULL_DATA).any():
        return None
    return _scorecard(condition, results, reference=ALL_DATA.key)


def _scorecard(condition: Condition, results: pd.DataFrame, reference: str | None = None) -> Scorecard:
    plan = outline(condition.recipe)
    return Scorecard.build(
        of_condition(results, condition.name),
        tasks=list(plan.stages),
        ood=list(plan.ood),
        primary=plan.primary,
        metric_spec=condition.recipe.metrics,
        threshold=condition.recipe.probe.threshold,
        reference=reference or condition.recipe.metrics.reference,
    )


# What a run selected, so reduced that a report of thousands of trials reads one file.

PICKS = "picks.parquet"
_SHARE = b"longgame.share"
_STAMP_picks, _SEEDS, _TABLES = b"longgame.trials", b"longgame.seeds", b"longgame.tables"
_WORDS = ["sample_id", "sub_skill"]


def write_selection(path: Path, selection: pd.DataFrame) -> None:
    """Write a selection table inside a scratch folder, with what reports keep of it in its metadata."""
    table = pa.Table.from_pandas(selection, preserve_index=False)
    share = reduce_stage(StagePicks("", 0, 0, table))
    told = json.dumps({"picked": share.picked.tolist(), "mix": share.mix, "gaps": share.gaps})
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _SHARE: told.encode()})
    path.write_bytes(parquet_bytes(table))


def picks_of(run: RunDirectory, done: Mapping[str, int]) -> Picks | None:
    """What the trials of the recipe's own condition selected, in all their finished stages; None before the first.

    It is taken from picks.parquet where that was made of just these stages, else from the selection tables.

    Args:
        done: trial → its finished stages; a trial that is not named is not read.

    Raises:
        ResumeError: a selection table cannot be read.
    """
    return _kept(run, done) or gather_picks(run, done)


def gather_picks(run: RunDirectory, done: Mapping[str, int]) -> Picks | None:
    """As `picks_of`, from the selection tables."""
    return combine(_reduced(run, done))


def write_picks(run: RunDirectory, done: Mapping[str, int]) -> Picks | None:
    """`picks_of`, kept in picks.parquet for the next report; None (and no file) before the first finished stage.

    Raises:
        ResumeError: a selection table cannot be read.
        StorageError: the file cannot be written.
    """
    held = _kept(run, done)
    if held is not None:
        return held
    picks = gather_picks(run, done)
    if picks is not None:
        table = pa.Table.from_pandas(picks.frame(), preserve_index=False)
        told = {_STAMP_picks: _stamp_picks(run, done), _SEEDS: b"%d" % picks.seeds, _TABLES: b"%d" % picks.tables}
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), **told})
        refresh_file(run.folder / PICKS, parquet_bytes(table))
    return picks


def _kept(run: RunDirectory, done: Mapping[str, int]) -> Picks | None:
    path = run.folder / PICKS
    try:
        told = pq.read_schema(path).metadata or {}
        if told.get(_STAMP_picks) != _stamp_picks(run, done):
            return None
        return Picks.of_frame(pq.read_table(path).to_pandas(), int(told[_SEEDS]), int(told[_TABLES]))
    except (OSError, pa.ArrowException):  # it is not there or damaged; it is made of the selection tables again
        return None


def _stamp_picks(run: RunDirectory, done: Mapping[str, int]) -> bytes:
    """Digest of which stages were finished, and when."""
    digest = blake2b(digest_size=16)
    for name, stages in done.items():
        trial = run.folder / "trials" / name
        times = [(trial / f"stage-{stage}" / "done.json").stat().st_mtime_ns for stage in range(1, stages + 1)]
        digest.update(f"{name} {times}\n".encode())
    return digest.hexdigest().encode()


def _reduced(run: RunDirectory, done: Mapping[str, int]) -> Iterator[StageShare]:
    """Seed by seed; the tables of a seed are read side by side, as a file takes longer to unpack than to read."""
    own = [trial for trial in run.trials if trial.condition == "" and done.get(trial.name)]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for _, group in itertools.groupby(sorted(own, key=lambda trial: trial.seed), key=lambda trial: trial.seed):
            yield from pool.map(_read_picks, *zip(*_stages(run, list(group), done), strict=True))


def _stages(run: RunDirectory, trials: Sequence[Trial], done: Mapping[str, int]) -> Iterator[tuple[Path, Trial, int]]:
    for trial in trials:
        for stage in range(1, done[trial.name] + 1):
            yield run.folder / "trials" / trial.name / f"stage-{stage}" / "selection.parquet", trial, stage


def _read_picks(path: Path, trial: Trial, stage: int) -> StageShare:
    """What is kept of a selection table: from its metadata, or, in runs made before they held it, from its rows."""
    try:
        with pq.ParquetFile(pa.BufferReader(path.read_bytes()), read_dictionary=_WORDS) as file:
            told = (file.metadata.metadata or {}).get(_SHARE)
            if told is None:
                table = file.read(use_threads=False)
                return reduce_stage(StagePicks(trial.selector.key, trial.seed, stage, table))
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error
    share = json.loads(told)
    mix, gaps = ([tuple(entry) for entry in share[name]] for name in ("mix", "gaps"))
    return StageShare(trial.selector.key, trial.seed, stage, np.array(share["picked"], dtype=object), mix, gaps)
