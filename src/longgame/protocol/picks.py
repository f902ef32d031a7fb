"""What a run selected, so reduced that a report of thousands of trials reads one file.

A selection table holds in its own metadata what a report keeps of it (`longgame.report.picks.StageShare`), written when
its stage ends; picks.parquet holds the means over all of them, written when the audit ends.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from longgame.protocol.files import parquet_bytes, refresh_file, unreadable
from longgame.report.picks import Picks, StagePicks, StageShare, combine, reduce_stage

if TYPE_CHECKING:
    from longgame.protocol.store import RunDirectory
    from longgame.protocol.trial import Trial

PICKS = "picks.parquet"
_SHARE = b"longgame.share"
_STAMP, _SEEDS, _TABLES = b"longgame.trials", b"longgame.seeds", b"longgame.tables"
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
        told = {_STAMP: _stamp(run, done), _SEEDS: b"%d" % picks.seeds, _TABLES: b"%d" % picks.tables}
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), **told})
        refresh_file(run.folder / PICKS, parquet_bytes(table))
    return picks


def _kept(run: RunDirectory, done: Mapping[str, int]) -> Picks | None:
    path = run.folder / PICKS
    try:
        told = pq.read_schema(path).metadata or {}
        if told.get(_STAMP) != _stamp(run, done):
            return None
        return Picks.of_frame(pq.read_table(path).to_pandas(), int(told[_SEEDS]), int(told[_TABLES]))
    except (OSError, pa.ArrowException):  # it is not there or damaged; it is made of the selection tables again
        return None


def _stamp(run: RunDirectory, done: Mapping[str, int]) -> bytes:
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
            yield from pool.map(_read, *zip(*_stages(run, list(group), done), strict=True))


def _stages(run: RunDirectory, trials: Sequence[Trial], done: Mapping[str, int]) -> Iterator[tuple[Path, Trial, int]]:
    for trial in trials:
        for stage in range(1, done[trial.name] + 1):
            yield run.folder / "trials" / trial.name / f"stage-{stage}" / "selection.parquet", trial, stage


def _read(path: Path, trial: Trial, stage: int) -> StageShare:
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
