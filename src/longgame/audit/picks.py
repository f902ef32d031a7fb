"""Which examples were selected: the selection tables of finished stages, reduced to what reports show.

A table has a row per candidate and round: ``round, sample_id, picked`` (place in pick order, −1 = not picked),
``tokens, sub_skill, term_*`` (each term of its score), and ``weight`` where picks have weights, as
`longgame.audit.walk.selection_table` makes it. Its reduction is written into the file's metadata, and the means over a
run into picks.parquet: a report of thousands of trials reads one file.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Int

from longgame.audit.plan import Plan, Trial
from longgame.audit.results import PICKS, Stores, current_table, write_run_table
from longgame.audit.store import StageStore
from longgame.storage import parquet_bytes, unpack_parquet, unreadable
from longgame.training.log import TERM

SELECTION = "selection.parquet"
"""File of a stage: its selection table."""
TOTAL = "score"
"""The term that is the whole score, not a part of it."""
SHOWN_EXAMPLES = 3
"""Examples with the highest scores of a stage that a report shows, and as many with the lowest."""

Texts = Mapping[str, tuple[str, str]]
"""sample_id → (prompt, response)."""

_COLUMNS = {
    "mix": {"selector": "selector", "stage": "stage", "sub_skill": "name", "share": "value", "pool": "pool"},
    "overlap": {"selector": "selector", "other": "name", "jaccard": "value", "n": "n"},
    "terms": {"selector": "selector", "stage": "stage", "term": "name", "gap": "value"},
}
"""Table of `Picks` → its columns and those of the one frame that holds all three."""
_ABSENT = {"selector": "", "stage": -1, "name": "", "value": np.nan, "pool": np.nan, "n": -1}


@dataclass(frozen=True, slots=True)
class StageShare:
    """The reduction of one selection table: a trial's stage."""

    selector: str
    seed: int
    stage: int
    picked: np.ndarray
    """Ids of the picked examples (objects)."""
    mix: list[tuple[str, float, float]]
    """(sub-skill, share of the picked tokens, share of all candidates' tokens)."""
    gaps: list[tuple[str, float]]
    """(term, picked − candidates in sd of the round, mean over rounds)."""


@dataclass(frozen=True)
class Picks:
    """Reduced selections."""

    mix: pd.DataFrame
    """selector, stage, sub_skill, share (of the selected tokens, mean over seeds), pool (of the candidates)."""
    overlap: pd.DataFrame
    """selector, other, jaccard (picked ids of the same seed and stage; mean), and seeds × stages compared (n)."""
    terms: pd.DataFrame
    """selector, stage, term, gap: mean of the picked minus mean of all candidates of the round, in the round's sd."""
    seeds: int
    """Seeds that selections were found of."""
    tables: int
    """Selection tables that were read: all of the finished stages."""

    def frame(self) -> pd.DataFrame:
        """The three tables as one, to be kept in a file: table, selector, stage, name, value, pool, n."""
        parts = []
        for kind, columns in _COLUMNS.items():
            part = getattr(self, kind)[list(columns)].rename(columns=columns)
            absent = {name: value for name, value in _ABSENT.items() if name not in part.columns}
            parts.append(part.assign(table=kind, **absent)[["table", *_ABSENT]])
        return pd.concat(parts, ignore_index=True)

    @classmethod
    def of_frame(cls, frame: pd.DataFrame, seeds: int, tables: int) -> Picks:
        """What `frame` was made of."""
        parts = {}
        for kind, columns in _COLUMNS.items():
            part = frame.loc[frame["table"] == kind, list(columns.values())].reset_index(drop=True)
            parts[kind] = part.set_axis(list(columns), axis=1)
        return cls(**parts, seeds=seeds, tables=tables)


def reduce_stage(selector: str, seed: int, stage: int, table: pa.Table) -> StageShare:
    """Reduce the selection table of a trial's stage."""
    picked = table["picked"].to_numpy() >= 0
    ids, names = _words(table["sample_id"])
    tokens = table["tokens"].to_numpy().astype(float)
    mix = _mix(*_words(table["sub_skill"]), tokens, ids, picked)
    return StageShare(selector, seed, stage, names[ids[picked]], mix, _term_gaps(table, picked))


def combine_shares(shares: Iterable[StageShare]) -> Picks | None:
    """Means over seeds and the overlap of selectors; None where there is no stage.

    Args:
        shares: seed by seed, so that the ids of one seed at a time are in memory.

    Raises:
        ValueError: a seed comes again after another.
    """
    mixes, gaps, overlaps = _Sums(2), _Sums(1), _Sums(1)
    trials: dict[tuple[str, int], int] = {}
    seeds: set[int] = set()
    for seed, group in itertools.groupby(shares, key=lambda share: share.seed):
        if seed in seeds:
            raise ValueError(f"stages of seed {seed} come in two parts; sort them by seed.")
        seeds.add(seed)
        chosen: dict[int, dict[str, np.ndarray]] = {}
        for stage in group:
            key = stage.selector, stage.stage
            trials[key] = trials.get(key, 0) + 1
            chosen.setdefault(stage.stage, {})[stage.selector] = stage.picked
            for sub_skill, share, pool in stage.mix:
                mixes.add((*key, sub_skill), share, pool)
            for term, gap in stage.gaps:
                gaps.add((*key, term), gap)
        for ids in chosen.values():
            for one, other, jaccard in _overlaps(ids):
                overlaps.add((one, other), jaccard)
    if not seeds:
        return None
    mix = [(*key, *(total / trials[key[:2]] for total in sums)) for key, (_, sums) in sorted(mixes.sums.items())]
    return Picks(
        pd.DataFrame(mix, columns=["selector", "stage", "sub_skill", "share", "pool"]),
        pd.DataFrame(
            [(*key, sums[0] / n, n) for key, (n, sums) in overlaps.sums.items()],
            columns=["selector", "other", "jaccard", "n"],
        ),
        pd.DataFrame(
            [(*key, sums[0] / n) for key, (n, sums) in gaps.sums.items()], columns=["selector", "stage", "term", "gap"]
        ),
        len(seeds),
        sum(trials.values()),
    )


class _Sums:
    """Key → how many were added, and their sums."""

    def __init__(self, width: int) -> None:
        self.sums: dict[tuple[Any, ...], tuple[int, tuple[float, ...]]] = {}
        self._zero = (0, (0.0,) * width)

    def add(self, key: tuple[Any, ...], *values: float) -> None:
        n, sums = self.sums.get(key, self._zero)
        self.sums[key] = n + 1, tuple(total + value for total, value in zip(sums, values, strict=True))


def _words(column: pa.ChunkedArray) -> tuple[Int[np.ndarray, " n"], np.ndarray]:
    """(code of every row, the words that the codes stand for)."""
    chunks = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    encoded = chunks.unify_dictionaries().combine_chunks()
    return encoded.indices.to_numpy(zero_copy_only=False), encoded.dictionary.to_numpy(zero_copy_only=False)


def _mix(
    skills: Int[np.ndarray, " n"],
    names: np.ndarray,
    tokens: np.ndarray,
    ids: Int[np.ndarray, " n"],
    picked: Bool[np.ndarray, " n"],
) -> list[tuple[str, float, float]]:
    """(sub-skill, share of the picked tokens, share of all candidates' tokens); a candidate counts once."""
    once = np.unique(ids, return_index=True)[1]
    chosen = np.bincount(skills[picked], tokens[picked], len(names))
    pool = np.bincount(skills[once], tokens[once], len(names))
    share, offered = chosen / max(chosen.sum(), 1.0), pool / max(pool.sum(), 1.0)
    return [(str(name), float(a), float(b)) for name, a, b in zip(names, share, offered, strict=True)]


def _term_gaps(table: pa.Table, picked: Bool[np.ndarray, " n"]) -> list[tuple[str, float]]:
    """(term, picked − candidates in sd of the round, mean over rounds); a term without spread is left out.

    A row without the term, as a replayed one, counts on neither side.
    """
    gaps = []
    _, rounds = np.unique(table["round"].to_numpy(), return_inverse=True)
    for name in (column for column in table.column_names if column.startswith(TERM)):
        values = table[name].to_numpy().astype(float)
        known = np.isfinite(values)
        values = np.where(known, values, 0.0)
        count = np.maximum(np.bincount(rounds, known), 1.0)
        picks = np.bincount(rounds, picked & known)
        mean = np.bincount(rounds, values) / count
        spread = np.sqrt(np.maximum(np.bincount(rounds, values**2) / count - mean**2, 0.0))
        usable = (picks > 0) & (spread > 1e-9 * (1 + np.abs(mean)))
        if usable.any():
            of_picked = np.bincount(rounds, values * picked)[usable] / picks[usable]
            gaps.append((name.removeprefix(TERM), float(((of_picked - mean[usable]) / spread[usable]).mean())))
    return gaps


def _overlaps(chosen: dict[str, np.ndarray]) -> list[tuple[str, str, float]]:
    """(selector, other, Jaccard index of their picks) of one seed's stage; a pair that picked nothing is left out."""
    names = list(chosen)
    codes, words = pd.factorize(np.concatenate([chosen[name] for name in names]))
    member = np.zeros((len(names), len(words)), dtype=np.float32)
    member[np.repeat(np.arange(len(names)), [len(chosen[name]) for name in names]), codes] = 1
    both = member @ member.T
    alone = np.diag(both)
    either = alone[:, None] + alone[None, :] - both
    return [
        (names[i], names[j], float(both[i, j] / either[i, j]))
        for i, j in itertools.product(range(len(names)), repeat=2)
        if either[i, j]
    ]


def highest_and_lowest(table: pd.DataFrame, count: int = SHOWN_EXAMPLES) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Candidates with the highest and the lowest score within their round, ``count`` of each.

    Rows without a score, as replayed ones, are left out. Without any score the first are the picks in their order, and
    the second table is empty.
    """
    score = f"{TERM}{TOTAL}"
    if score not in table.columns or table[score].isna().all():
        picks = table[table["picked"] >= 0].sort_values(["round", "picked"], kind="stable")
        return picks.head(count), table.iloc[:0]
    place = table.groupby("round")[score].rank(pct=True)
    scored = table.assign(place=place).dropna(subset=["place"])
    ranked = scored.sort_values(["place", "round"], ascending=[False, True], kind="stable")
    once = ranked.drop_duplicates("sample_id")
    return once.head(count), once.tail(count).iloc[::-1]


# On disk: the reduction of a stage in the metadata of its selection.parquet, that of a run in picks.parquet.

_SHARE, _SEEDS, _TABLES, _TEXTS = b"longgame.share", b"longgame.seeds", b"longgame.tables", b"longgame.texts"
_LONGEST_TEXT = 10_000
"""Characters of a prompt or response that a run stores."""
_WORDS = ["sample_id", "sub_skill"]


def write_selection(path: Path, selection: pd.DataFrame, texts: Texts) -> None:
    """Write a selection table inside a scratch folder, with its reduction in the metadata.

    Args:
        texts: of all candidates; those of the examples that a report shows are stored with the table.
    """
    table = pa.Table.from_pandas(selection, preserve_index=False)
    share = reduce_stage("", 0, 0, table)
    text = json.dumps({"picked": share.picked.tolist(), "mix": share.mix, "gaps": share.gaps})
    shown = [name for part in highest_and_lowest(selection) for name in part["sample_id"] if name in texts]
    stored = json.dumps({name: [_cut(part) for part in texts[name]] for name in shown})
    metadata = {**(table.schema.metadata or {}), _SHARE: text.encode(), _TEXTS: stored.encode()}
    table = table.replace_schema_metadata(metadata)
    path.write_bytes(parquet_bytes(table))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + " …"


def texts_of(content: bytes, path: Path) -> Texts:
    """The texts that a selection table stores; none where an older version, or a world without texts, wrote it.

    Args:
        content: of the table's file.
        path: named in errors.

    Raises:
        ResumeError: the table cannot be read.
    """
    try:
        metadata = pq.read_schema(pa.BufferReader(content)).metadata or {}
        stored = json.loads(metadata.get(_TEXTS, b"{}"))
        return {str(name): (str(prompt), str(response)) for name, (prompt, response) in stored.items()}
    except (OSError, pa.ArrowException, AttributeError, TypeError, ValueError) as error:
        raise unreadable(path, error) from error


def read_selections(folder: Path, plan: Plan, finished: Mapping[str, int], stores: Stores, stamp: str) -> Picks | None:
    """The reduced selections of the recipe's own condition; None before the first finished stage.

    picks.parquet is read if it was made of just these stages, otherwise the selection tables are.

    Args:
        finished: trial → number of its finished stages.
        stores: where they are, with the keys that they must have.
        stamp: of `own_stages` (`longgame.audit.results.stamp_of`).

    Raises:
        ResumeError: a selection table cannot be read, or is not what the recipe's trials have written.
    """
    content = current_table(folder, PICKS, stamp)
    if content is None:
        return gather_picks(plan, finished, stores)
    try:
        table = unpack_parquet(content)
    except pa.ArrowException as error:
        raise unreadable(folder / PICKS, error) from error
    metadata = table.schema.metadata
    return Picks.of_frame(table.to_pandas(), int(metadata[_SEEDS]), int(metadata[_TABLES]))


def gather_picks(plan: Plan, finished: Mapping[str, int], stores: Stores) -> Picks | None:
    """`read_selections` from the selection tables."""
    return combine_shares(_stage_shares(plan, own_stages(plan, finished), stores))


def write_picks(folder: Path, stamp: str, picks: Picks | None) -> None:
    """Write picks.parquet unless it was made of just the stages of this stamp; no file before the first of them.

    Raises:
        StorageError: the file cannot be written.
    """
    if picks is None:
        return
    if current_table(folder, PICKS, stamp) is not None:
        return
    facts = {_SEEDS: b"%d" % picks.seeds, _TABLES: b"%d" % picks.tables}
    table = pa.Table.from_pandas(picks.frame(), preserve_index=False)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **facts})
    write_run_table(folder, PICKS, parquet_bytes(table), stamp)


def own_stages(plan: Plan, finished: Mapping[str, int]) -> dict[str, int]:
    """The trials of the recipe's own condition that have a finished stage."""
    return {trial.name: finished[trial.name] for trial in plan.own_trials if finished.get(trial.name)}


def _stage_shares(plan: Plan, finished: Mapping[str, int], stores: Stores) -> Iterator[StageShare]:
    """Seed by seed; the tables of a seed are read in parallel, as a file takes longer to unpack than to read."""
    stages = [
        (stores(trial)[1], trial, number + 1)
        for trial in plan.own_trials
        for number in range(finished.get(trial.name, 0))
    ]
    stages.sort(key=lambda stage: stage[1].seed)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for _, group in itertools.groupby(stages, key=lambda stage: stage[1].seed):
            yield from pool.map(lambda stage: _read_share(*stage), list(group))


def _read_share(store: StageStore, trial: Trial, stage: int) -> StageShare:
    """Read the reduction of a selection table, or make it where the metadata do not hold it."""
    part = store.part(f"stage-{stage}")
    path = part.path / SELECTION
    content = part.read(SELECTION)
    try:
        text = (pq.read_schema(pa.BufferReader(content)).metadata or {}).get(_SHARE)
        if text is None:
            table = unpack_parquet(content, dictionaries=_WORDS)
            return reduce_stage(trial.selector.key, trial.seed, stage, table)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error
    share = json.loads(text)
    mix, gaps = ([tuple(entry) for entry in share[name]] for name in ("mix", "gaps"))
    return StageShare(trial.selector.key, trial.seed, stage, np.array(share["picked"], dtype=object), mix, gaps)
