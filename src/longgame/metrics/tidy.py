"""Tidy records (one row per measurement) as dense arrays: trials × stages × columns. NaN = not measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from longgame.errors import DataError, unknown
from longgame.metrics import longhorizon, matrix

NO_MEASUREMENT = "the results hold no measurement; finish at least one stage of one trial first."
PROBES = ("common", "own")
_SCORE = ("sub_skill", "scorer", "value")
_CURVE = ("scorer", "probe", "step", "tokens", "value")
_OFFERED = ["pool_tokens", "selected_tokens"]
_CODE = np.int32
"""Small, because a run has millions of records and several codes of each."""


@dataclass(frozen=True)
class Trials:
    """The rows of every array: one trial per selector × seed, sorted by selector, then seed."""

    names: tuple[str, ...]
    selectors: tuple[str, ...]
    """Distinct, the reference first, then by name."""
    seeds: tuple[int, ...]
    """Distinct, rising."""
    selector_of: Int[np.ndarray, " trials"]
    seed_of: Int[np.ndarray, " trials"]
    bases: tuple[str, ...] = ()
    """Base model of each seed; empty where it is not known, or a seed draws a whole world."""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shares_base(self) -> bool:
        """Whether all seeds start from one base model, so that nothing is shown about another one."""
        return len(set(self.bases)) == 1

    @property
    def repeats_bases(self) -> bool:
        """Whether several base models have several seeds: the base model is then the replication unit."""
        return 1 < len(set(self.bases)) < len(self.bases)

    @property
    def unit_of(self) -> Int[np.ndarray, " seeds"]:
        """Replication unit of each seed: its base model where these repeat, else the seed itself."""
        if self.repeats_bases:
            return np.unique(self.bases, return_inverse=True)[1].reshape(-1)
        return np.arange(len(self.seeds))

    @property
    def units(self) -> dict[int, int]:
        """Seed → its replication unit."""
        return dict(zip(self.seeds, self.unit_of.tolist(), strict=True))

    def grid(self, values: Float[np.ndarray, "trials ..."]) -> Float[np.ndarray, "selectors seeds ..."]:
        """Lay values out by selector and seed; NaN where there is no such trial."""
        table = np.full((len(self.selectors), len(self.seeds), *values.shape[1:]), np.nan)
        table[self.selector_of, self.seed_of] = values
        return table

    def frame(self) -> pd.DataFrame:
        """One row per trial: trial, selector, seed."""
        return pd.DataFrame(
            {
                "trial": self.names,
                "selector": np.asarray(self.selectors, dtype=object)[self.selector_of],
                "seed": np.asarray(self.seeds, dtype=np.int64)[self.seed_of],
            }
        )


def distinct_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame's distinct rows, in order of first appearance.

    Only rows that differ from the row before are hashed: the millions of records of a run are sorted by trial.
    """
    differs = np.zeros(max(len(frame) - 1, 0), dtype=bool)
    for name in frame:
        column = frame[name].cat.codes if frame[name].dtype == "category" else frame[name]
        values = column.to_numpy()
        differs |= values[1:] != values[:-1]
    return frame[np.concatenate([np.ones(min(len(frame), 1), dtype=bool), differs])].drop_duplicates()


def read_trials(results: pd.DataFrame, reference: str, bases: Mapping[int, str] | None = None) -> Trials:
    """The trials of the results.

    Args:
        bases: seed → base model; without it, the column ``base`` of the results says it, where there is one.

    Raises:
        DataError: there are none, a trial has two selectors or seeds, two trials share selector and seed, or a seed has
            two base models or none while others have one.
    """
    trials = distinct_rows(results[["trial", "selector", "seed"]])
    if trials.empty:
        raise DataError(NO_MEASUREMENT)
    for columns, key in ((["trial"], "trial"), (["selector", "seed"], "selector and seed")):
        repeated = trials[trials.duplicated(columns, keep=False)].sort_values(columns)
        if not repeated.empty:
            rows = ", ".join(str(tuple(row)) for row in repeated.head(2).itertuples(index=False))
            raise DataError(
                f"different trials have the same {key}: {rows}. "
                "Build one scorecard per condition, with one trial per selector and seed."
            )
    names = sorted(set(trials["selector"]), key=lambda name: (name != reference, name))
    seeds = sorted({int(seed) for seed in trials["seed"]})
    trials = trials.assign(s=codes(trials["selector"], names), d=codes(trials["seed"], seeds)).sort_values(["s", "d"])
    return Trials(
        tuple(str(name) for name in trials["trial"]),
        tuple(str(name) for name in names),
        tuple(seeds),
        trials["s"].to_numpy(np.int64),
        trials["d"].to_numpy(np.int64),
        _bases(results, seeds, bases),
    )


def _bases(results: pd.DataFrame, seeds: Sequence[int], bases: Mapping[int, str] | None) -> tuple[str, ...]:
    """Base model of each seed; empty where none is known."""
    if bases is None:
        if "base" not in results:
            return ()
        pairs = distinct_rows(results[["seed", "base"]])
        repeated = pairs[pairs["seed"].duplicated()]
        if not repeated.empty:
            raise DataError(f"seed {int(repeated['seed'].iloc[0])} has several base models; a seed starts from one.")
        bases = {int(seed): str(base) for seed, base in zip(pairs["seed"], pairs["base"], strict=True) if base}
    if not bases:
        return ()
    missing = [seed for seed in seeds if seed not in bases]
    if missing:
        raise DataError(f"seed {missing[0]} has no base model; name one for each of the seeds {list(seeds)}.")
    return tuple(bases[seed] for seed in seeds)


def codes(values: pd.Series, names: Sequence[str] | Sequence[int]) -> Int[np.ndarray, " n"]:
    """Position of each value in ``names``, −1 where it is not there."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        code, distinct = values.cat.codes.to_numpy(), values.cat.categories
    else:
        code, distinct = pd.factorize(values)
    position = pd.Index(names).get_indexer(pd.Index(distinct).astype(pd.Index(names).dtype))
    return np.append(position, -1).astype(_CODE)[code]


@dataclass(frozen=True)
class Scores:
    """The rows of kind ``score``, laid out once and cut into views many times. NaN = not measured."""

    values: Float[np.ndarray, "trials rows items"]
    """Trials × rows of R × (task, sub-skill, scorer) items, by column, then sub-skill."""
    column: Int[np.ndarray, " items"]
    sub_skill: Int[np.ndarray, " items"]
    scorer: Int[np.ndarray, " items"]
    sub_skills: tuple[str, ...]
    scorers: tuple[str, ...]


def _strings(values: pd.Series) -> tuple[Int[np.ndarray, " n"], tuple[str, ...]]:
    code, distinct = pd.factorize(values)
    return code.astype(_CODE), tuple(str(value) for value in distinct)


def _check_columns(frame: pd.DataFrame, columns: Sequence[str]) -> Int[np.ndarray, " n"]:
    column = codes(frame["task"], columns)
    if (column < 0).any():
        task = str(frame["task"].iloc[int(column.argmin())])
        raise DataError("the results hold an " + unknown("task", task, columns))
    return column


def _check_stages(frame: pd.DataFrame, stages: int) -> Int[np.ndarray, " n"]:
    stage = frame["stage"].to_numpy(_CODE)
    if len(stage) and not (stage.min() >= 0 and stage.max() <= stages):
        worst = stage.max() if stage.max() > stages else stage.min()
        raise DataError(f"the results hold stage {worst}; a sequence of {stages} stages has rows 0 to {stages}.")
    return stage


def read_score_rows(results: pd.DataFrame, trials: Trials, columns: Sequence[str], stages: int) -> Scores:
    """Read the rows of kind ``score``.

    Raises:
        DataError: an unknown task, a stage beyond the last, or a repeated measurement.
    """
    rows = results.loc[(results["kind"] == "score").to_numpy(bool), ["trial", "stage", "task", *_SCORE]]
    sub_skill, sub_skills = _strings(rows["sub_skill"])
    scorer, scorers = _strings(rows["scorer"])
    stage, column = _check_stages(rows, stages), _check_columns(rows, columns)
    sizes = (len(columns), max(len(sub_skills), 1), max(len(scorers), 1))
    key = np.ravel_multi_index((column, sub_skill, scorer), sizes) if len(rows) else np.empty(0, dtype=np.int64)
    measured = np.bincount(key) > 0
    items, item = np.flatnonzero(measured), (np.cumsum(measured) - 1)[key]
    shape = (len(trials), stages + 1, len(items))
    flat = (
        np.ravel_multi_index((codes(rows["trial"], trials.names), stage, item), shape)
        if len(rows)
        else np.empty(0, dtype=np.int64)
    )
    times = np.bincount(flat)
    if (times > 1).any():
        first, after, place = np.unravel_index(int(times.argmax()), shape)
        raise DataError(
            f"trial '{trials.names[first]}' holds the score of '{columns[np.unravel_index(items[place], sizes)[0]]}' "
            f"after stage {after} twice; every measurement may be there once."
        )
    values = np.full(shape, np.nan)
    values.reshape(-1)[flat] = rows["value"].to_numpy(np.float64)
    of_column, of_skill, of_scorer = np.unravel_index(items, sizes)
    return Scores(values, of_column, of_skill, of_scorer, sub_skills, scorers)


@dataclass(frozen=True)
class Cube:
    """Scores of one view before averaging: trials × rows of R × (task, sub-skill) items."""

    values: Float[np.ndarray, "trials rows items"]
    column: Int[np.ndarray, " items"]
    sub_skill: tuple[str, ...]
    columns: int

    def matrices(self, seed_of: Int[np.ndarray, " trials"]) -> Float[np.ndarray, "trials rows cols"]:
        """R of every trial: the mean over a task's sub-skills.

        A sub-skill that no trial of a seed measured is left out for that seed, the same for all its selectors;
        otherwise one missing sub-skill makes the cell NaN.
        """
        measured = np.zeros((int(seed_of.max()) + 1, len(self.column)), dtype=bool)
        np.logical_or.at(measured, seed_of, ~np.isnan(self.values).all(axis=1))
        R = np.full((*self.values.shape[:2], self.columns), np.nan)
        for column in np.unique(self.column):
            items = np.flatnonzero(self.column == column)
            counted = measured[seed_of][:, None, items]
            number = counted.sum(axis=-1)
            total = np.where(counted, self.values[..., items], 0.0).sum(axis=-1)
            R[..., column] = np.where(number > 0, total / np.maximum(number, 1), np.nan)
        return R


def view_cube(scores: Scores, columns: Sequence[str], scorer: Mapping[str, str]) -> Cube:
    """The scores of one view: for each task those of the scorer named for it.

    A macro row (sub-skill "") counts only where a task has no sub-skill of its own.
    """
    index = {name: code for code, name in enumerate(scores.scorers)}
    code = np.array([index.get(scorer[task], -1) for task in columns], dtype=np.int64)
    items = np.flatnonzero(code[scores.column] == scores.scorer)
    names = {int(item): scores.sub_skills[scores.sub_skill[item]] for item in items}
    with_names = {int(scores.column[item]) for item, name in names.items() if name}
    rows = [item for item, name in names.items() if name or int(scores.column[item]) not in with_names]
    return Cube(scores.values[..., rows], scores.column[rows], tuple(names[item] for item in rows), len(columns))


@dataclass(frozen=True)
class Probe:
    """Adaptation curves of one view and probe kind, reduced: trials × stage transitions t → t+1."""

    auc: Float[np.ndarray, "trials T-1"]
    start: Float[np.ndarray, "trials T-1"]
    tokens: Float[np.ndarray, "trials T-1"]
    """Tokens to threshold."""
    threshold: Float[np.ndarray, " T-1"]
    """Points; common to all selectors and seeds."""


@dataclass(frozen=True)
class View:
    """One view's arrays, trial by trial, and the metrics computed from them (`longgame.metrics.catalog.measure`)."""

    trials: Trials
    reference: str
    """Selector that the others are compared with."""
    scorer: Mapping[str, str]
    """Task → the scorer that fills its column."""
    cube: Cube
    R: Float[np.ndarray, "trials rows cols"]
    ends: Float[np.ndarray, "trials rows cols"]
    """The score matrix of the scorer ``ends``, the same in every view."""
    probes: Mapping[str, Probe]
    terms: longhorizon.LongHorizonTerms
    forgetting_reference: matrix.ForgettingReference = "best-ever"
    task_scale: Float[np.ndarray, " T"] | None = None
    """Score of each stage task that counts as 1 in the imbalance; without it, the best that any trial reached."""
    metrics: dict[str, Float[np.ndarray, " trials"]] = field(default_factory=dict)
    stagewise: dict[tuple[str, int], Float[np.ndarray, " trials"]] = field(default_factory=dict)


@dataclass(frozen=True)
class Curves:
    """All adaptation curves: points sorted, curve i = points ``first[i]`` … ``first[i] + length[i]``."""

    trial: Int[np.ndarray, " curves"]
    stage: Int[np.ndarray, " curves"]
    probe: Int[np.ndarray, " curves"]
    scorer: Int[np.ndarray, " curves"]
    first: Int[np.ndarray, " curves"]
    length: Int[np.ndarray, " curves"]
    step: Int[np.ndarray, " points"]
    tokens: Float[np.ndarray, " points"]
    score: Float[np.ndarray, " points"]
    scorers: tuple[str, ...]


def read_curves(results: pd.DataFrame, trials: Trials, tasks: Sequence[str]) -> Curves:
    """Read the rows of kind ``curve`` (macro rows; a curve after stage t is on the task of stage t+1).

    Raises:
        DataError: an unknown probe or task, or a curve on another task than the next stage's.
    """
    macro = (results["kind"] == "curve") & (results["sub_skill"] == "")
    rows = results.loc[macro.to_numpy(bool), ["trial", "stage", "task", *_CURVE]]
    stage = _check_stages(rows, len(tasks))
    probe = codes(rows["probe"], PROBES)
    if (probe < 0).any():
        raise DataError("the results hold an " + unknown("probe", str(rows["probe"].iloc[int(probe.argmin())]), PROBES))
    task = _check_columns(rows, tasks)
    wrong = np.flatnonzero(task != stage)
    if wrong.size:
        row = rows.iloc[int(wrong[0])]
        due = f"is scored on the next stage's task, '{tasks[row['stage']]}'" if row["stage"] < len(tasks) else "is none"
        raise DataError(
            f"trial '{row['trial']}' holds a curve on '{row['task']}' after stage {row['stage']}; a probe there {due}."
        )
    scorer, scorers = _strings(rows["scorer"])
    trial = codes(rows["trial"], trials.names)
    tokens = rows["tokens"].to_numpy(np.float64)
    step = rows["step"].to_numpy(np.int64)
    order = np.lexsort((step, tokens, scorer, probe, stage, trial))
    keys = np.stack([trial, stage, probe, scorer])[:, order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (keys[:, 1:] != keys[:, :-1]).any(axis=0)
    first = np.flatnonzero(new)
    length = np.diff(np.append(first, len(order)))
    trial, stage, probe, scorer = keys[:, first]
    points = (step[order], tokens[order], rows["value"].to_numpy(np.float64)[order])
    return Curves(trial, stage, probe, scorer, first, length, *points, scorers)


def view_probe(
    curves: Curves, trials: Trials, tasks: Sequence[str], scorer: Mapping[str, str], probe: str, share: float
) -> Probe:
    """The curves of one view and probe kind, reduced.

    The threshold of a transition is ``share`` of the mean end-of-probe score over every measured trial.

    Raises:
        DataError: a curve has fewer than two points or does not start at 0 tokens.
    """
    shape = (len(trials), max(len(tasks) - 1, 0))
    index = {name: code for code, name in enumerate(curves.scorers)}
    code = np.array([index.get(scorer[task], -1) for task in tasks], dtype=np.int64)
    keep = np.flatnonzero(
        (curves.stage >= 1) & (curves.probe == PROBES.index(probe)) & (code[curves.stage] == curves.scorer)
    )
    where = (curves.trial[keep], curves.stage[keep] - 1)
    end = np.full(shape, np.nan)
    end[where] = curves.score[curves.first[keep] + curves.length[keep] - 1]
    measured = ~np.isnan(end)
    total = np.where(measured, end, 0.0).sum(axis=0)
    threshold = share * np.where(measured.any(axis=0), total / np.maximum(measured.sum(axis=0), 1), np.nan)
    auc, start, tokens = (np.full(shape, np.nan) for _ in range(3))
    for length in np.unique(curves.length[keep]):
        some = keep[curves.length[keep] == length]
        points = curves.first[some][:, None] + np.arange(length)
        where = (curves.trial[some], curves.stage[some] - 1)
        x, y = curves.tokens[points], curves.score[points]
        auc[where] = longhorizon.adaptation_auc(x, y)
        start[where] = longhorizon.curve_start(y)
        tokens[where] = longhorizon.tokens_to_threshold(x, y, threshold[where[1]])
    return Probe(auc, start, tokens, threshold)


def read_stagewise(results: pd.DataFrame, trials: Trials, stages: int) -> dict[tuple[str, str], np.ndarray]:
    """Diagnostics (mean over a stage's steps) and costs (sum) by stage: (kind, name) → Float[trials, T+1].

    Diagnostics measured inside a probe are left out; a probe's costs are counted.

    Raises:
        DataError: a stage beyond the last.
    """
    tables: dict[tuple[str, str], np.ndarray] = {}
    for kind in ("diagnostic", "cost"):
        mask = (results["kind"] == kind).to_numpy(bool)
        if kind == "diagnostic":
            mask = mask & (results["probe"] == "").to_numpy(bool)
        rows = results.loc[mask, ["trial", "stage", "name", "value"]]
        code, names = _strings(rows["name"])
        shape = (len(names), len(trials), stages + 1)
        if not names:
            continue
        flat = np.ravel_multi_index((code, codes(rows["trial"], trials.names), _check_stages(rows, stages)), shape)
        size = int(np.prod(shape))
        number = np.bincount(flat, minlength=size).astype(float)
        total = np.bincount(flat, weights=rows["value"].to_numpy(np.float64), minlength=size)
        value = np.where(number > 0, total, np.nan) / (np.maximum(number, 1) if kind == "diagnostic" else 1)
        tables |= {(kind, name): table for name, table in zip(names, value.reshape(shape), strict=True)}
    return tables


def read_selected(
    results: pd.DataFrame, trials: Trials, stages: int
) -> dict[str, Float[np.ndarray, "trials stages labels"]]:
    """Selected tokens by stage: ``cluster`` and ``sub_skill`` → Float[trials, T+1, labels], NaN where not measured.

    Raises:
        DataError: a stage beyond the last.
    """
    rows = results.loc[(results["kind"] == "picks").to_numpy(bool), ["trial", "stage", "name", "sub_skill", "value"]]
    tables = {}
    for name in dict.fromkeys(rows["name"].astype(str)):
        part = rows[(rows["name"] == name).to_numpy(bool)]
        label, labels = _strings(part["sub_skill"])
        trial, stage = codes(part["trial"], trials.names), _check_stages(part, stages)
        table = np.zeros((len(trials), stages + 1, len(labels)))
        np.add.at(table, (trial, stage, label), part["value"].to_numpy(np.float64))
        measured = np.zeros(table.shape[:2], dtype=bool)
        measured[trial, stage] = True
        tables[name] = np.where(measured[..., None], table, np.nan)
    return tables


def read_by_stage(results: pd.DataFrame, trials: Trials, stages: int) -> dict[str, Float[np.ndarray, "trials T+1"]]:
    """Mean of every diagnostic and cost over a stage's steps, without the probes; by name.

    Raises:
        DataError: a stage beyond the last.
    """
    mask = results["kind"].isin(["diagnostic", "cost"]) & (results["probe"] == "")
    rows = results.loc[mask.to_numpy(bool), ["trial", "stage", "name", "value"]]
    name, names = _strings(rows["name"])
    place = pd.DataFrame({"trial": codes(rows["trial"], trials.names), "stage": _check_stages(rows, stages)})
    means = place.assign(name=name, value=rows["value"].to_numpy(np.float64)).groupby(["name", "trial", "stage"])
    values = np.full((len(names), len(trials), stages + 1), np.nan)
    mean = means["value"].mean()
    values[tuple(mean.index.get_level_values(level).to_numpy() for level in range(3))] = mean.to_numpy(np.float64)
    return dict(zip(names, values, strict=True))


def read_offered(results: pd.DataFrame) -> tuple[tuple[int, float, float], ...]:
    """(stage, tokens of its candidates, tokens that were selected), means over the trials; where both were measured."""
    rows = results.loc[((results["kind"] == "cost") & results["name"].isin(_OFFERED)).to_numpy(bool)]
    means = rows.groupby(["stage", "name"], observed=True)["value"].mean().unstack().reindex(columns=_OFFERED)
    return tuple((int(stage), float(pool), float(selected)) for stage, pool, selected in means.dropna().itertuples())


@dataclass(frozen=True)
class Measured:
    """The records of one condition laid out by trial: all that its scorecard and its report are made of."""

    trials: Trials
    records: int
    """Rows that they were read from."""
    scores: Scores
    curves: Curves
    stagewise: Mapping[tuple[str, str], Float[np.ndarray, "trials T+1"]]
    """See `read_stagewise`."""
    selected: Mapping[str, Float[np.ndarray, "trials T+1 labels"]]
    """See `read_selected`."""
    by_stage: Mapping[str, Float[np.ndarray, "trials T+1"]]
    """See `read_by_stage`."""
    offered: tuple[tuple[int, float, float], ...]
    """See `read_offered`."""

    @classmethod
    def read(
        cls,
        results: pd.DataFrame,
        tasks: Sequence[str],
        ood: Sequence[str],
        reference: str,
        bases: Mapping[int, str] | None = None,
    ) -> Measured:
        """Lay out the records of one condition (columns of `longgame.audit.store.RECORD_COLUMNS`).

        Raises:
            DataError: as the functions of this module that read records.
        """
        trials, stages = read_trials(results, reference, bases), len(tasks)
        return cls(
            trials,
            len(results),
            read_score_rows(results, trials, (*tasks, *ood), stages),
            read_curves(results, trials, tasks),
            read_stagewise(results, trials, stages),
            read_selected(results, trials, stages),
            read_by_stage(results, trials, stages),
            read_offered(results),
        )


def over_measured(values: Float[np.ndarray, "trials k"], total: bool = False) -> Float[np.ndarray, " trials"]:
    """Mean (or sum) over the entries that some trial measured; NaN in one of them makes a trial's value NaN."""
    keep = ~np.isnan(values).all(axis=0)
    if not keep.any():
        return np.full(len(values), np.nan)
    measured = values[:, keep]
    return measured.sum(axis=1) if total else measured.mean(axis=1)
