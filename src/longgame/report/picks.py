"""What was selected, reduced stage by stage from the selection tables of a run, so that a report holds no raw rows.

A table has a row per candidate and round: ``round, sample_id, picked`` (place in pick order, −1 = not picked),
``tokens, sub_skill, term_*`` (each term of its score), as `longgame.protocol.trajectory.selection_table` makes it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Bool, Int

TERM = "term_"
TOTAL = "score"
"""The term that is the whole score, not a part of it."""

_COLUMNS = {
    "mix": {"selector": "selector", "stage": "stage", "sub_skill": "name", "share": "value", "pool": "pool"},
    "overlap": {"selector": "selector", "other": "name", "jaccard": "value", "n": "n"},
    "terms": {"selector": "selector", "stage": "stage", "term": "name", "gap": "value"},
}
"""Table of `Picks` → its columns and those of the one frame that holds all three."""
_ABSENT = {"selector": "", "stage": -1, "name": "", "value": np.nan, "pool": np.nan, "n": -1}


@dataclass(frozen=True, slots=True)
class StagePicks:
    """The selection table of one trial's stage."""

    selector: str
    seed: int
    stage: int
    table: pa.Table


@dataclass(frozen=True, slots=True)
class StageShare:
    """What is kept of one selection table."""

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


def read_picks(stages: Iterable[StagePicks]) -> Picks | None:
    """Reduce selection tables; None where there is none.

    Args:
        stages: seed by seed; a table is let go of once it is reduced.
    """
    return combine(map(reduce_stage, stages))


def reduce_stage(stage: StagePicks) -> StageShare:
    """Keep of a selection table what the figures need."""
    table = stage.table
    picked = table["picked"].to_numpy() >= 0
    ids, names = _words(table["sample_id"])
    tokens = table["tokens"].to_numpy().astype(float)
    mix = _mix(*_words(table["sub_skill"]), tokens, ids, picked)
    return StageShare(stage.selector, stage.seed, stage.stage, names[ids[picked]], mix, _term_gaps(table, picked))


def combine(stages: Iterable[StageShare]) -> Picks | None:
    """Means over seeds and the overlap of selectors; None where there is no stage.

    Args:
        stages: seed by seed, so that only one seed's ids are held.

    Raises:
        ValueError: a seed comes again after another.
    """
    mixes, gaps, overlaps = _Sums(2), _Sums(1), _Sums(1)
    trials: dict[tuple[str, int], int] = {}
    seeds: set[int] = set()
    for seed, group in itertools.groupby(stages, key=lambda stage: stage.seed):
        if seed in seeds:
            raise ValueError(f"stages of seed {seed} come in two parts; sort them by seed.")
        seeds.add(seed)
        chosen: dict[int, dict[str, np.ndarray]] = {}
        for each in group:
            key = each.selector, each.stage
            trials[key] = trials.get(key, 0) + 1
            chosen.setdefault(each.stage, {})[each.selector] = each.picked
            for sub_skill, share, pool in each.mix:
                mixes.add((*key, sub_skill), share, pool)
            for term, gap in each.gaps:
                gaps.add((*key, term), gap)
        for ids in chosen.values():
            for one, other, jaccard in _overlaps(ids):
                overlaps.add((one, other), jaccard)
    if not seeds:
        return None
    mix = [(*key, *(total / trials[key[:2]] for total in sums)) for key, (_, sums) in sorted(mixes.held.items())]
    return Picks(
        pd.DataFrame(mix, columns=["selector", "stage", "sub_skill", "share", "pool"]),
        pd.DataFrame(
            [(*key, sums[0] / n, n) for key, (n, sums) in overlaps.held.items()],
            columns=["selector", "other", "jaccard", "n"],
        ),
        pd.DataFrame(
            [(*key, sums[0] / n) for key, (n, sums) in gaps.held.items()], columns=["selector", "stage", "term", "gap"]
        ),
        len(seeds),
        sum(trials.values()),
    )


class _Sums:
    """Key → how many were added, and their sums."""

    def __init__(self, width: int) -> None:
        self.held: dict[tuple[Any, ...], tuple[int, tuple[float, ...]]] = {}
        self._none = (0, (0.0,) * width)

    def add(self, key: tuple[Any, ...], *values: float) -> None:
        n, sums = self.held.get(key, self._none)
        self.held[key] = n + 1, tuple(total + value for total, value in zip(sums, values, strict=True))


def _words(column: pa.ChunkedArray) -> tuple[Int[np.ndarray, " n"], np.ndarray]:
    """(code of every row, the words that the codes stand for)."""
    held = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    whole = held.unify_dictionaries().combine_chunks()
    return whole.indices.to_numpy(zero_copy_only=False), whole.dictionary.to_numpy(zero_copy_only=False)


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
    """(term, picked − candidates in sd of the round, mean over rounds); a term without spread is left out."""
    found = []
    _, rounds = np.unique(table["round"].to_numpy(), return_inverse=True)
    count = np.bincount(rounds)
    taken = np.bincount(rounds, picked)
    for name in (column for column in table.column_names if column.startswith(TERM)):
        values = table[name].to_numpy().astype(float)
        mean = np.bincount(rounds, values) / count
        spread = np.sqrt(np.maximum(np.bincount(rounds, values**2) / count - mean**2, 0.0))
        usable = (taken > 0) & (spread > 1e-9 * (1 + np.abs(mean)))
        if usable.any():
            of_picked = np.bincount(rounds, values * picked)[usable] / taken[usable]
            found.append((name.removeprefix(TERM), float(((of_picked - mean[usable]) / spread[usable]).mean())))
    return found


def _overlaps(chosen: dict[str, np.ndarray]) -> list[tuple[str, str, float]]:
    """(selector, other, Jaccard index of their picks) of one seed's stage; a pair that picked nothing is left out."""
    names = list(chosen)
    codes, words = pd.factorize(np.concatenate([chosen[name] for name in names]))
    held = np.zeros((len(names), len(words)), dtype=np.float32)
    held[np.repeat(np.arange(len(names)), [len(chosen[name]) for name in names]), codes] = 1
    both = held @ held.T
    alone = np.diag(both)
    either = alone[:, None] + alone[None, :] - both
    return [
        (names[i], names[j], float(both[i, j] / either[i, j]))
        for i, j in itertools.product(range(len(names)), repeat=2)
        if either[i, j]
    ]


def most_and_least(table: pd.DataFrame, count: int = 3) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The candidates most and least wanted: by the score's place within their round, then by pick order.

    A selector that writes no score has no least wanted candidate: its picks stand in their order.

    Returns:
        Two tables with the rows of ``table`` plus ``place`` (0 = least, 1 = most wanted of its round).
    """
    score = f"{TERM}{TOTAL}"
    if score not in table.columns:
        first = table[table["picked"] >= 0].sort_values(["round", "picked"], kind="stable").head(count)
        return first.assign(place=float("nan")), table.iloc[:0].assign(place=float("nan"))
    place = table.groupby("round")[score].rank(pct=True)
    ranked = table.assign(place=place).sort_values(["place", "round"], ascending=[False, True], kind="stable")
    once = ranked.drop_duplicates("sample_id")
    return once.head(count), once.tail(count).iloc[::-1]


def shared_terms(tables: Sequence[pd.DataFrame]) -> list[str]:
    """Names of the terms that any of these tables holds, the whole score last."""
    names = dict.fromkeys(
        name.removeprefix(TERM) for table in tables for name in table.columns if name.startswith(TERM)
    )
    return [name for name in names if name != TOTAL] + ([TOTAL] if TOTAL in names else [])
