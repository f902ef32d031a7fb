"""What was selected, reduced stage by stage from the selection tables of a run, so that a report holds no raw rows.

A table has a row per candidate and round: ``round, sample_id, picked`` (place in pick order, −1 = not picked),
``tokens, sub_skill, term_*`` (each term of its score), as `longgame.protocol.trajectory.selection_table` makes it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

TERM = "term_"
TOTAL = "score"
"""The term that is the whole score, not a part of it."""


@dataclass(frozen=True, slots=True)
class StagePicks:
    """The selection table of one trial's stage."""

    trial: str
    selector: str
    seed: int
    stage: int
    table: pd.DataFrame


@dataclass(frozen=True)
class Picks:
    """Reduced selections."""

    mix: pd.DataFrame
    """selector, stage, sub_skill, share (of the selected tokens, mean over seeds), pool (of the candidates)."""
    overlap: pd.DataFrame
    """selector, other, jaccard (picked ids of the same seed and stage; mean), and seeds × stages compared (n)."""
    terms: pd.DataFrame
    """selector, stage, term, gap: mean of the picked minus mean of all candidates of the round, in the round's sd."""
    seeds: tuple[int, ...]
    """The seeds that were read."""
    all_seeds: int
    """How many seeds the run has."""


def read_picks(stages: Iterable[StagePicks], all_seeds: int) -> Picks | None:
    """Reduce selection tables; None where there is none.

    Args:
        stages: in any order; a table is let go of once it is reduced.
        all_seeds: seeds of the run, told where only some were read.
    """
    mixes, terms, seeds = [], [], set()
    ids: dict[tuple[int, int], dict[str, frozenset[str]]] = {}
    for each in stages:
        table = each.table
        picked = table["picked"].to_numpy() >= 0
        seeds.add(each.seed)
        chosen = table["sample_id"].to_numpy()[picked]
        ids.setdefault((each.seed, each.stage), {})[each.selector] = frozenset(chosen)
        for sub_skill, share, pool in _mix(table, picked):
            mixes.append((each.selector, each.stage, each.seed, sub_skill, share, pool))
        for term, gap in _term_gaps(table, picked):
            terms.append((each.selector, each.stage, each.seed, term, gap))
    if not seeds:
        return None
    mix = pd.DataFrame(mixes, columns=["selector", "stage", "seed", "sub_skill", "share", "pool"])
    trials = mix.groupby(["selector", "stage"])["seed"].nunique().rename("n")
    mix = mix.groupby(["selector", "stage", "sub_skill"])[["share", "pool"]].sum().reset_index()
    mix = mix.merge(trials.reset_index(), on=["selector", "stage"])
    mix[["share", "pool"]] = mix[["share", "pool"]].div(mix["n"], axis=0)
    held = pd.DataFrame(terms, columns=["selector", "stage", "seed", "term", "gap"])
    gaps = held.groupby(["selector", "stage", "term"], sort=False)["gap"].mean().reset_index()
    return Picks(mix.drop(columns="n"), _overlaps(ids.values()), gaps, tuple(sorted(seeds)), all_seeds)


def _mix(table: pd.DataFrame, picked: np.ndarray) -> list[tuple[str, float, float]]:
    """(sub-skill, share of the picked tokens, share of all candidates' tokens); a candidate counts once."""
    codes, names = pd.factorize(table["sub_skill"], sort=True)
    tokens = table["tokens"].to_numpy(float)
    once = ~table["sample_id"].duplicated().to_numpy()
    chosen = np.bincount(codes[picked], tokens[picked], len(names))
    pool = np.bincount(codes[once], tokens[once], len(names))
    share, offered = chosen / max(chosen.sum(), 1.0), pool / max(pool.sum(), 1.0)
    return [(str(name), float(a), float(b)) for name, a, b in zip(names, share, offered, strict=True)]


def _term_gaps(table: pd.DataFrame, picked: np.ndarray) -> list[tuple[str, float]]:
    """(term, picked − candidates in sd of the round, mean over rounds); a term without spread is left out."""
    found = []
    rounds, _ = pd.factorize(table["round"])
    count = np.bincount(rounds)
    taken = np.bincount(rounds, picked)
    for name in (column for column in table.columns if column.startswith(TERM)):
        values = table[name].to_numpy(float)
        mean = np.bincount(rounds, values) / count
        spread = np.sqrt(np.maximum(np.bincount(rounds, values**2) / count - mean**2, 0.0))
        usable = (taken > 0) & (spread > 1e-9 * (1 + np.abs(mean)))
        if usable.any():
            of_picked = np.bincount(rounds, values * picked)[usable] / taken[usable]
            found.append((name.removeprefix(TERM), float(((of_picked - mean[usable]) / spread[usable]).mean())))
    return found


def _overlaps(groups: Iterable[dict[str, frozenset[str]]]) -> pd.DataFrame:
    sums: dict[tuple[str, str], list[float]] = {}
    for group in groups:
        for one, other in itertools.product(group, repeat=2):
            union = len(group[one] | group[other])
            sums.setdefault((one, other), []).append(len(group[one] & group[other]) / union if union else float("nan"))
    rows = [(one, other, float(np.mean(values)), len(values)) for (one, other), values in sums.items()]
    return pd.DataFrame(rows, columns=["selector", "other", "jaccard", "n"])


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
