"""Select a subset of a data set by any method: from rows to picks, with every decision explained."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from longgame.data.examples import WEIGHT, Pool
from longgame.data.formats import RowRules
from longgame.data.sources import RowSource, open_source
from longgame.errors import BudgetError, DataError, RecipeError, ResumeError
from longgame.offline.dedup import duplicates, parse_dedup
from longgame.offline.options import Budget, SelectOptions
from longgame.offline.replaying import ReplayData, ReplayedRows, replay_manifest, replayed_rows
from longgame.offline.rows import DataRows
from longgame.offline.scoring import (
    BAD_ROWS,
    CONFIG,
    ModelOptions,
    Progress,
    ScoreFolder,
    apart_of,
    check_grading,
    check_model,
    computed_names,
    embedder_of,
    score_into,
    scorer_of,
    signals_of,
    trained_log,
    with_other_models,
)
from longgame.offline.subset import PREFIX, SubsetPart, beside, kind_of, refuse_existing, write_subset
from longgame.recipe import EMBEDDER
from longgame.registry import plugin_at_work
from longgame.seeding import generator, stream_seed
from longgame.selection.base import Selector
from longgame.selection.history import History
from longgame.selection.policy import SelectionPolicy
from longgame.signals.auxiliary import AuxiliarySpec
from longgame.signals.base import CONTEXT, EMBEDDED, SIGNALS, Signals, needs_auxiliary
from longgame.signals.quality.base import GRADES, QualitySources
from longgame.signals.source import SignalSource, cluster
from longgame.signals.texts import HashedTexts, ImportanceRatios
from longgame.storage import read_state, write_file, write_state
from longgame.training.log import Trajectories, read_trajectories

MANIFEST, EXPLAINED, BAD, PAGE = ".manifest.json", ".explain.jsonl", ".bad-rows.jsonl", ".html"
"""Endings of the files beside an output."""
_HISTORY = "history"
_NEAREST = 100
"""Rejected rows that are explained, at least."""


@dataclass(frozen=True)
class SubsetOutcome:
    """Who was picked, and why the others were not. Rows are those of ``rows``."""

    rows: DataRows
    options: SelectOptions
    candidates: Int[np.ndarray, " m"]
    """Rows that the selector saw."""
    picks: Int[np.ndarray, " k"]
    """In pick order."""
    terms: Mapping[str, Float[np.ndarray, " n"]]
    """Per term of the score a value for every row; NaN for a row that was no candidate."""
    tokens: Int[np.ndarray, " n"]
    response_tokens: Int[np.ndarray, " n"]
    """Characters where no model is given (``unit``)."""
    unit: Literal["tokens", "characters"]
    asked: int
    """Of the budget, in ``budget_unit``; replay left out."""
    spent: int
    budget_unit: str
    repeats: Int[np.ndarray, " n"]
    """Row that each one repeats; −1: none."""
    unscored: Int[np.ndarray, " u"]
    """Rows that could not be tokenized."""
    clusters: Int[np.ndarray, " n"] | None
    """Cluster of every row, where the selector saw one; −1 for others."""
    embedding: Float[np.ndarray, "n 2"] | None
    """Place of every row on a map of the embeddings, where the selector saw them; NaN for others."""
    weights: str
    """Origin and content of the model; empty without one."""
    model: str
    """Its name; empty without one."""
    template: str
    """Digest of the chat template; empty without a model."""
    replay: tuple[ReplayedRows, ...] = ()
    """Rows of each earlier data set that are learned again."""
    graded: Mapping[str, Any] = field(default_factory=dict)
    """What the named quality sources did: grades, missing ones, agreement, cost."""
    notes: tuple[str, ...] = ()
    """Sentences about it, and about candidates without a value."""
    log: Trajectories | None = None
    """The training log that the selector read."""
    target: DataRows | None = None
    """The target set that was given."""
    reference: str | None = None
    """The reference model that was given."""
    pick_weights: Float[np.ndarray, " k"] | None = None
    """Factor of each pick's loss, in pick order, where the selector gives weights (`Selection.weights`)."""

    @property
    def mask_share(self) -> float:
        """Share of the picks' tokens that the loss is taken on."""
        return float(self.response_tokens[self.picks].sum() / max(1, self.tokens[self.picks].sum()))

    def parts(self) -> list[SubsetPart]:
        """What `write_subset` writes: rows in the order of the data."""
        rank = np.argsort(self.picks)
        rows = self.picks[rank]
        added: dict[str, np.ndarray] = {f"{PREFIX}rank": rank + 1}
        for name, values in {"score": np.full(len(self.rows), np.nan), **self.terms}.items():
            added[PREFIX + name] = np.asarray(values)[rows]
        if self.pick_weights is not None:
            added[WEIGHT] = self.pick_weights[rank]
        added[f"{PREFIX}sample_id"] = np.asarray([self.rows.ids[row] for row in rows.tolist()], dtype=object)
        if self.replay:
            added[f"{PREFIX}replayed"] = np.zeros(len(rows), dtype=bool)
        parts: list[SubsetPart] = [(self.rows.source, self.rows.positions[rows], added)]
        for earlier, chosen in self.replay:
            again = {name: np.full(len(chosen), np.nan) for name in added}
            if self.pick_weights is not None:
                again[WEIGHT] = np.ones(len(chosen))
            again[f"{PREFIX}sample_id"] = np.asarray([earlier.ids[row] for row in chosen.tolist()], dtype=object)
            again[f"{PREFIX}replayed"] = np.ones(len(chosen), dtype=bool)
            again[f"{PREFIX}rank"] = np.full(len(chosen), None, dtype=object)
            parts.append((earlier.source, earlier.positions[chosen], again))
        return parts

    def explain(self) -> list[dict[str, Any]]:
        """Why each pick was picked, and why each of the nearest rejected rows, and each repeat, was not."""
        score = self.terms.get("score")
        place = {row: number for number, row in enumerate(self.picks.tolist(), start=1)}
        rejected = np.setdiff1d(self.candidates, self.picks)
        if score is not None:
            rejected = rejected[np.argsort(-np.nan_to_num(score[rejected], nan=-np.inf), kind="stable")]
        nearest = rejected[: max(_NEAREST, len(self.picks) // 10)]
        ranks = {name: _percentiles(values, self.candidates) for name, values in self.terms.items()}
        cut = float(np.nanmin(score[self.picks])) if score is not None and len(self.picks) else math.nan
        entries = []
        for row in [*self.picks.tolist(), *nearest.tolist()]:
            entry = self._entry(row, row in place)
            entry |= {"rank": place.get(row), "terms": {}}
            for name, values in self.terms.items():
                entry["terms"][name] = {"value": _number(values[row]), "percentile": _number(ranks[name][row])}
            entry["why"] = self.why(row, place.get(row), score, cut)
            entries.append(entry)
        for row in np.flatnonzero(self.repeats >= 0)[: max(_NEAREST, len(self.picks))].tolist():
            other = int(self.repeats[row])
            where = f"{self.rows.file_of(other)}:{self.rows.numbers[other]}"
            entries.append(self._entry(row, False) | {"why": f"repeats {self.rows.ids[other]} ({where})"})
        return entries

    def _entry(self, row: int, picked: bool) -> dict[str, Any]:
        return {
            "sample_id": self.rows.ids[row],
            "file": self.rows.file_of(row),
            "row": int(self.rows.numbers[row]),
            "picked": picked,
            self.unit: int(self.tokens[row]),
        }

    def why(self, row: int, rank: int | None, score: np.ndarray | None, cut: float) -> str:
        """Why a row was picked (``rank`` from 1) or not (None), by its score and the lowest score of a pick."""
        if score is None:
            return "picked by the selector" if rank else "not picked by the selector"
        if rank:
            return f"score {score[row]:.6g} is at or above the cut of {cut:.6g}"
        if math.isnan(score[row]):
            return "the selector gives it no score"
        if score[row] == cut:
            return f"score {score[row]:.6g} equals the cut: ids decide among equal scores, within what the budget holds"
        if score[row] > cut:
            return f"score {score[row]:.6g} reaches the cut of {cut:.6g}, but what was left of the budget was too small"
        return f"score {score[row]:.6g} is below the cut of {cut:.6g}"


def _percentiles(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Percentile of every row among these rows, 0–100; NaN elsewhere."""
    from scipy.stats import rankdata

    result = np.full(len(values), np.nan)
    known = rows[~np.isnan(values[rows])]
    if len(known):
        result[known] = 100 * (rankdata(values[known]) - 0.5) / len(known)
    return result


def _number(value: Any) -> float | None:
    return None if math.isnan(value) else float(f"{float(value):.6g}")


def choose(
    source: RowSource,
    options: SelectOptions,
    *,
    model: ModelOptions | None = None,
    scores: str | Path | None = None,
    scratch: str | Path | None = None,
    target: Any = None,
    replay: Any = None,
    replay_scores: Sequence[str | Path] = (),
    history: str | Path | None = None,
    training_log: str | Path | None = None,
    progress: Progress | None = None,
    command: str = "",
    announce: Callable[[Sequence[str]], None] | None = None,
) -> tuple[SubsetOutcome, SelectionPolicy]:
    """Score and select the rows of a source.

    Args:
        model: computes what the selector requires, and counts tokens. None: characters are counted.
        scores: folder of `score_into`; what it lacks is computed into it.
        scratch: the folder of scores where ``scores`` is None.
        target: data that the selector compares with.
        replay: earlier data, of which `SelectOptions.replay_share` of the budget is learned again; a list holds a data
            set for each earlier stage.
        replay_scores: for each of them a folder of scores made at the end of its stage, where the choice reads it.
        history: folder with what earlier stages selected (`History`, and the selector's state).
        training_log: log of a training on the candidates (`read_trajectories`).
        progress: called while rows are scored.
        announce: called with what judges will cost, before they are asked.

    Raises:
        LonggameError: see `SelectOptions`, `DataRows`, `score_into`, `SelectionPolicy.choose`.
    """
    selector = options.build()
    given = _replay_data(replay, replay_scores, options, model, scratch, progress, command)
    budget = Budget.parse(options.budget)
    grading = options.grading()
    rules = RowRules(options.turns, options.quality_range, grading.columns)
    names = tuple(dict.fromkeys(selector.requires))
    hashed = HashedTexts() if "dsir_ratio" in names and target is not None else None
    observe = None if hashed is None else hashed.add  # so that texts are not read a second time
    rows = DataRows(source, rules, options.on_bad_row, options.where, observe=observe)
    targets = None if target is None else target_rows(target, rows, options.allow_overlap)
    kind, threshold = parse_dedup(options.dedup)
    repeats = duplicates(rows, kind, threshold) if kind else np.full(len(rows), -1, dtype=np.int64)
    others = frozenset(name for name in names if _is_of_others(name, options)) if model is None else frozenset()
    model = None if model is None else with_other_models(model, options.embedder, options.scorer_model)
    log = None if training_log is None else read_trajectories(training_log)
    without_model = all(_of_no_model(name) or name in others for name in names)
    table, spec = None, selector.auxiliary or AuxiliarySpec()
    if model is not None or scores is not None:
        elsewhere = {name for name in names if _is_apart(name) or _is_graded(name, grading, scores)}
        stored = [name for name in names if name not in elsewhere | others]
        table = _scores(rows, stored, model, scores, scratch, targets, options, progress, command, spec, grading)
    elif not without_model:
        needs = [name for name in names if not _of_no_model(name) and name not in others]
        raise RecipeError(f"selector '{options.label}' needs {', '.join(needs)}, which {_who_computes(needs)}")
    elif budget.of == "tokens" and budget.kind == "amount":
        raise BudgetError(
            f"the budget is {budget}, and no model is given that counts tokens. Give --model, a share (10%), or rows "
            "(5000rows)."
        )
    place, unscored = _places(rows, table)
    candidates = np.flatnonzero((repeats < 0) & (place >= 0))
    if not len(candidates):
        raise DataError(f"'{source.label}' leaves no candidates: all rows are duplicates or could not be tokenized.")
    prompt, response = rows.prompt_length, rows.response_length
    if table is not None:
        prompt, response = (np.where(place >= 0, column[place], 0) for column in table.counts())
    part = rows if len(candidates) == len(rows) else rows.take(candidates)
    unit = "rows" if budget.of == "rows" else options.budget_of
    pool = part.counted(prompt[candidates], response[candidates], unit)
    usable = pool if part is rows else rows.counted(prompt, response, unit)
    asked = budget.units(usable.costs[place >= 0])
    again: tuple[ReplayedRows, ...] = ()
    if given is not None:
        asked, again = replayed_rows(given, rules, options, unit, asked, part, table is not None)
    policy = _policy(selector, options.seed, history)
    if announce is not None:
        announce(grading.estimate(part, names))
    if log is None and table is not None and model is not None and "log" in needs_auxiliary(names):
        log = trained_log(rows, table, model, spec, on_bad_row=options.on_bad_row, seed=options.seed, progress=progress)
    fitted = None
    if hashed is not None and targets is not None:
        fitted = partial(ImportanceRatios, targets.examples(), hashed=hashed, places=candidates)
    signals = _signals(table, part, pool, place[candidates], options, names, targets, log, grading, others, fitted)
    if selector.score_source:  # of a file: its own words say what is missing
        selector.eligible(pool)
    policy.begin_stage(generator(options.seed, "selection", "select"))
    if selector.replays:
        raise RecipeError(f"selector '{options.label}' replays stages of an audit. Use --replay here.")
    _, decision = policy.choose(pool, asked, lambda _pool, _names: signals)
    terms = {name: _spread(values, candidates, len(rows)) for name, values in decision.selection.scores.items()}
    outcome = SubsetOutcome(
        rows=rows,
        options=options,
        candidates=candidates,
        picks=candidates[decision.selection.rows],
        terms=terms,
        tokens=prompt + response,
        response_tokens=response,
        unit="characters" if table is None else "tokens",
        asked=asked,
        spent=decision.selection.tokens,
        budget_unit="rows" if unit == "rows" else ("characters" if table is None else unit),
        model="" if table is None else str(table.config["model"]["name"]),
        repeats=repeats,
        unscored=unscored,
        clusters=_clusters(signals, candidates, len(rows)),
        embedding=_map(signals, candidates, len(rows)),
        weights="" if table is None else f"{table.config['weights']} ({table.config['fingerprint']})",
        template="" if table is None else str(table.config.get("template", "")),
        replay=again,
        log=log,
        target=targets,
        reference=None if model is None else model.reference,
        pick_weights=decision.selection.weights,
        graded=grading.describe(),
        notes=(*grading.notes(), *_missing_notes(signals, candidates, decision.selection.rows)),
    )
    return outcome, policy


def judge_estimate(data: Any, options: SelectOptions) -> list[str]:
    """What judges will cost, in words; empty where none is asked."""
    grading = options.grading()
    rules = RowRules(options.turns, options.quality_range, grading.columns)
    rows = DataRows(open_source(data), rules, options.on_bad_row, options.where)
    return grading.estimate(rows, options.build().requires)


def target_rows(target: Any, rows: DataRows, allow_overlap: bool) -> DataRows:
    """Return the rows of a target set.

    Raises:
        DataError: it cannot be read, is empty, or holds rows of the data and ``allow_overlap`` is False.
    """
    targets = DataRows(open_source(target), rows.rules)
    content = {sample_id.partition("#")[0] for sample_id in targets.ids}
    shared = [row for row, sample_id in enumerate(rows.ids) if sample_id.partition("#")[0] in content]
    if shared and not allow_overlap:
        row = shared[0]
        raise DataError(
            f"the target set '{targets.source.label}' and the data share {len(shared)} rows, first row "
            f"{rows.numbers[row]} of '{rows.file_of(row)}': a selector would find the target's own rows. Take them out "
            "of one of the two, or allow it (--allow-overlap)."
        )
    return targets


def _of_no_model(name: str) -> bool:
    return name in SIGNALS and SIGNALS[name].of_no_model


def _is_apart(name: str) -> bool:
    """Whether a signal is made of the candidates when they are selected, and stands in no folder of scores."""
    return _of_no_model(name) and name not in GRADES


def _is_graded(name: str, grading: QualitySources, scores: str | Path | None) -> bool:
    """Whether a named source grades the candidates for this signal; grades in the folder of scores count if it made
    them."""
    identity = grading.gives(name)
    if identity is None or scores is None or not (Path(scores) / CONFIG).is_file():
        return identity is not None
    table = ScoreFolder(scores)
    kind = "complexity" if name == "complexity" else "quality"
    return name not in table.names or (table.config.get("grading") or {}).get(kind) != identity


def _scores(
    rows: DataRows,
    names: Sequence[str],
    model: ModelOptions | None,
    scores: str | Path | None,
    scratch: str | Path | None,
    target: DataRows | None,
    options: SelectOptions,
    progress: Progress | None,
    command: str,
    auxiliary: AuxiliarySpec,
    grading: QualitySources,
) -> ScoreFolder:
    """The folder's scores where they hold all that is needed; else they are computed."""
    if "own_answer_quality" not in names:
        grading = QualitySources.of(None)
    columns = computed_names(names)
    if scores is not None and ((Path(scores) / CONFIG).is_file() or model is None):
        table = ScoreFolder(scores)
        reference = None if model is None else model.reference
        table = ScoreFolder(scores, apart_of(names, table.config, target, auxiliary, reference))
        if model is not None:
            check_model(table, model)
        check_grading(table.config, grading, table.names, Path(scores))
        missing = [name for name in columns if name not in table.names]
        missing += [name for name in names if name in CONTEXT and not table.has_context(name)]
        if not missing:
            return table
        if model is None:
            raise RecipeError(
                f"'{scores}' lacks {', '.join(missing)}, which selector '{options.label}' needs. Give --model, and it "
                "is computed into the folder."
            )
    if model is None:
        raise RecipeError("scores are to be computed, and no model is given. Give --model.")
    folder = scores if scores is not None else scratch
    if folder is None:
        raise RecipeError("scores need a folder. Give --scores.")
    return score_into(
        rows,
        names,
        folder,
        model,
        target=target,
        on_bad_row=options.on_bad_row,
        seed=options.seed,
        progress=progress,
        command=command,
        auxiliary=auxiliary,
        grading=grading,
    )


def _places(rows: DataRows, table: ScoreFolder | None) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " u"]]:
    """Row of each example in the scores, −1 for one that could not be tokenized; and the rows of those.

    Raises:
        DataError: the scores are of other data, or lack some of it.
    """
    if table is None:
        return np.arange(len(rows)), np.zeros(0, dtype=np.int64)
    index = {sample_id: row for row, sample_id in enumerate(table.ids)}
    place = np.fromiter((index.get(sample_id, -1) for sample_id in rows.ids), dtype=np.int64, count=len(rows))
    missing = np.flatnonzero(place < 0)
    if len(missing):
        bad = {(entry["file"], entry["number"]) for folder in table.folders for entry in _bad_entries(folder)}
        lost = [row for row in missing.tolist() if (rows.file_of(row), int(rows.numbers[row])) not in bad]
        if len(missing) == len(rows):
            raise DataError(
                f"'{table.folder}' holds scores of other data: none of {len(rows)} rows is among its {len(index)} "
                f"(digest {table.config['digest']}; these are {rows.digest}). Give the scores of this data."
            )
        if lost:
            raise DataError(
                f"'{table.folder}' lacks the scores of {len(lost)} of {len(rows)} rows, first of row "
                f"{rows.numbers[lost[0]]} of '{rows.file_of(lost[0])}'. Score the data again, all of it."
            )
    return place, missing


def _bad_entries(folder: Path) -> list[dict[str, Any]]:
    path = folder / BAD_ROWS
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def _signals(
    table: ScoreFolder | None,
    part: DataRows,
    pool: Pool,
    rows: Int[np.ndarray, " m"],
    options: SelectOptions,
    names: Sequence[str],
    target: DataRows | None,
    log: Trajectories | None,
    grading: QualitySources,
    others: frozenset[str],
    fitted: Callable[[Sequence[Pool]], ImportanceRatios] | None,
) -> Signals:
    """What the selector sees of its candidates.

    Args:
        part: the candidates; ``pool`` holds them with their counts.
        others: signals of an embedder or a scorer model.
        fitted: candidates → ratios of their texts, which were hashed as they were read.
    """
    scores = None if table is None else table.folder
    apart = [name for name in names if name in others or _is_apart(name) or _is_graded(name, grading, scores)]
    stored = [name for name in names if name not in apart]
    if table is not None:
        if "quality" in stored and "quality" not in table.names:
            raise RecipeError(f"'{table.folder}' lacks quality. Score it, too.")
        seed = stream_seed(options.seed, "clusters")
        signals = signals_of(table, pool, rows, stored, options.clusters, seed)
    else:
        columns: dict[str, np.ndarray] = {}
        if stored:
            bare = pool
            if not part.all_rated:
                examples = (dataclasses.replace(example, quality=None) for example in part.examples())
                bare = dataclasses.replace(pool, examples=tuple(examples))
            columns = dict(SignalSource(_no_engine)(bare, stored).columns)
        signals = Signals(part.ids, columns)
    if not apart:
        return signals
    encoders = EMBEDDED & {*others}
    source = SignalSource(
        _no_engine,
        candidates=lambda: [pool],
        target=None if target is None else target.pool,
        log=log,
        embedder=embedder_of(options.embedder or "", options.device).encode if encoders else None,
        scorer=scorer_of(options.scorer_model, options.device) if options.scorer_model and others - encoders else None,
        seed=stream_seed(options.seed, "signals"),
        quality=grading.quality,
        complexity=grading.complexity,
    )
    if fitted is not None:
        source.ratios = fitted([pool])
    measured = source(pool, ["embedding" if name == "cluster" else name for name in apart])
    columns = {**signals.columns, **measured.columns}
    if "cluster" in apart:
        seed = stream_seed(options.seed, "clusters")
        columns["cluster"] = cluster(part.ids, columns["embedding"], options.clusters, seed)
    return Signals(part.ids, columns, {**signals.context, **measured.context})


def _is_of_others(name: str, options: SelectOptions) -> bool:
    """Whether an embedder or a scorer model that is given gives this signal, so that no model is needed."""
    if name in EMBEDDED:
        return options.embedder not in (None, EMBEDDER)
    return name in SIGNALS and "scorer" in SIGNALS[name].needs and options.scorer_model is not None


def _who_computes(names: Sequence[str]) -> str:
    """End of an error: what computes these signals, and how to give it."""
    if all(name in SIGNALS and "scorer" in SIGNALS[name].needs for name in names):
        return "a scorer model computes. Give --scorer-model."
    if {*names} <= EMBEDDED:
        return "a model computes, or an embedder. Give --model, or --embedder model2vec:NAME."
    return "a model computes. Give --model."


def _missing_notes(signals: Signals, candidates: Int[np.ndarray, " m"], picks: Int[np.ndarray, " k"]) -> Iterator[str]:
    """How many candidates have no value, of the signals that may miss."""
    for name, column in signals.columns.items():
        missing = np.isnan(column) if SIGNALS[name].may_miss else np.zeros(len(column), dtype=bool)
        if missing.any():
            yield (
                f"{name}: {int(missing.sum()):,} of {len(candidates):,} candidates have none, so they are picked "
                f"last or never; {int(missing[picks].sum()):,} of them are picked"
            )


def _no_engine(_pool: Pool, names: Sequence[str]) -> Mapping[str, np.ndarray]:
    raise RecipeError(f"{', '.join(names)} are signals of a model, and no model is given. Give --model.")


def _policy(selector: Selector, seed: int, history: str | Path | None) -> SelectionPolicy:
    past = History(seed=stream_seed(seed, "selection", "history"))
    policy = SelectionPolicy(selector, past, generator(seed, "selection", "select"))
    folder = None if history is None else Path(history)
    if folder is not None and (folder / f"{_HISTORY}.json").is_file():
        state = read_state(folder, _HISTORY)
        if state["selector"] != selector.name:
            raise RecipeError(
                f"the history '{folder}' is that of selector '{state['selector']}', not of '{selector.name}'. Give "
                "each selector a history of its own."
            )
        past.load_state_dict(state["history"])
        with plugin_at_work(f"selector '{selector.name}'", "load_state_dict()"):
            selector.load_state_dict(state["state"])
    return policy


def append_history(folder: str | Path, policy: SelectionPolicy, manifest: Mapping[str, Any]) -> None:
    """Write what was selected so far, this selection included."""
    path = Path(folder)
    stages: list[Any] = []
    if (path / f"{_HISTORY}.json").is_file():
        stages = list(read_state(path, _HISTORY)["stages"])
    entry = {
        "data": manifest["data"]["label"],
        "digest": manifest["data"]["digest"],
        "rows": manifest["picked"]["rows"],
    }
    state = {
        "selector": policy.selector.name,
        "history": policy.history.state_dict(),
        "state": policy.selector.state_dict(),
        "stages": [*stages, entry],
    }
    write_state(path, _HISTORY, state)


def _spread(values: np.ndarray, rows: Int[np.ndarray, " m"], n: int) -> np.ndarray:
    """These values at their rows, NaN elsewhere."""
    result = np.full(n, np.nan)
    result[rows] = values
    return result


def _clusters(signals: Signals, rows: Int[np.ndarray, " m"], n: int) -> Int[np.ndarray, " n"] | None:
    if "cluster" not in signals.columns:
        return None
    result = np.full(n, -1, dtype=np.int64)
    result[rows] = signals["cluster"]
    return result


def _map(signals: Signals, rows: Int[np.ndarray, " m"], n: int) -> Float[np.ndarray, "n 2"] | None:
    """The two main directions of the embeddings, for a map of the data."""
    if "embedding" not in signals.columns or len(rows) < 3:
        return None
    from sklearn.decomposition import PCA

    units = signals["embedding"] / np.maximum(np.linalg.norm(signals["embedding"], axis=1, keepdims=True), 1e-12)
    result = np.full((n, 2), np.nan)
    result[rows] = PCA(2, random_state=0).fit_transform(units)
    return result


def manifest_of(outcome: SubsetOutcome, files: Mapping[str, str], command: str) -> dict[str, Any]:
    """What was selected of what, how, and the hashes by which it can be checked."""
    rows, options = outcome.rows, outcome.options
    selector = options.build() if isinstance(options.selector, str) else options.selector
    return {
        "longgame": importlib.metadata.version("longgame") if _installed() else "source",
        "command": command,
        "selector": {"name": options.label, "parameters": dict(options.parameters), "requires": [*selector.requires]},
        "budget": {
            "budget": str(Budget.parse(options.budget)),
            "unit": outcome.budget_unit,
            "asked": outcome.asked,
            "spent": outcome.spent,
        },
        "picked": {
            "rows": len(outcome.picks),
            outcome.unit: int(outcome.tokens[outcome.picks].sum()),
            "learned_share": round(outcome.mask_share, 4),
            "digest": hashlib.sha256("\0".join(rows.ids[row] for row in outcome.picks.tolist()).encode()).hexdigest()[
                :16
            ],
        },
        "data": {
            "label": rows.source.label,
            "digest": rows.digest,
            "rows": rows.total,
            "usable": len(rows),
            "formats": dict(rows.formats),
            "bad_rows": len(rows.bad) + len(outcome.unscored),
            "where": rows.where,
            "filtered": rows.filtered,
            "duplicates": int((outcome.repeats >= 0).sum()),
            "candidates": len(outcome.candidates),
            outcome.unit: int(outcome.tokens.sum()),
            "turns": rows.rules.turns,
        },
        "model": outcome.model,
        "weights": outcome.weights,
        "template": outcome.template,
        "replay": replay_manifest(outcome.replay, options),
        "target": None
        if outcome.target is None
        else {"label": outcome.target.source.label, "digest": outcome.target.digest, "rows": len(outcome.target)},
        "reference_model": outcome.reference,
        "training_log": None if outcome.log is None else {"label": outcome.log.label, "digest": outcome.log.digest},
        "grading": dict(outcome.graded),
        "seed": options.seed,
        "sha256": dict(files),
    }


def digest_of(ids: Sequence[str]) -> str:
    """Digest of ids in their order."""
    return hashlib.sha256("\0".join(ids).encode()).hexdigest()[:16]


def _installed() -> bool:
    try:
        importlib.metadata.version("longgame")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def select_to(
    data: Any,
    out: str | Path,
    options: SelectOptions,
    *,
    model: ModelOptions | None = None,
    scores: str | Path | None = None,
    target: Any = None,
    replay: Any = None,
    replay_scores: Sequence[str | Path] = (),
    history: str | Path | None = None,
    training_log: str | Path | None = None,
    explain: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    command: str = "",
    announce: Callable[[Sequence[str]], None] | None = None,
) -> tuple[SubsetOutcome, dict[str, Any]]:
    """Select a subset of ``data`` and write it to ``out``, with a manifest beside it.

    What was scored stays in ``scores``, or beside ``out`` until the subset is written; a killed command goes on there.

    Raises:
        StorageError: an output exists, or the disk is full. LonggameError: as `choose`.
    """
    path = Path(out).expanduser()
    kind_of(path)
    source = open_source(data)
    endings = (MANIFEST, *((EXPLAINED,) if explain else ()))
    refuse_existing([path, *(beside(path, ending) for ending in endings)], overwrite)
    _refuse_inputs(path, source)
    scratch = path.with_name(f"{path.name}.scores")
    try:
        outcome, policy = choose(
            source,
            options,
            model=model,
            scores=scores,
            scratch=scratch,
            target=target,
            replay=replay,
            replay_scores=replay_scores,
            history=history,
            training_log=training_log,
            progress=progress,
            command=command,
            announce=announce,
        )
    except ResumeError as error:
        if scores is None and str(scratch) in str(error):
            raise ResumeError(
                f"{error} An unfinished command left this folder beside the output: finish that command, or delete the "
                "folder to begin anew."
            ) from error
        raise
    files = write_subset(path, outcome.parts())
    manifest = manifest_of(outcome, files, command)
    if explain:
        lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in outcome.explain()]
        write_file(beside(path, EXPLAINED), "".join(lines))
    if bad := [dataclasses.asdict(row) for row in outcome.rows.bad]:
        write_file(beside(path, BAD), "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in bad))
    write_file(beside(path, MANIFEST), json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    if history is not None:
        append_history(history, policy, manifest)
    for folder in (*([scratch] if scores is None else []), _replay_scratch(scratch)):
        if folder.is_dir():
            shutil.rmtree(folder)
    return outcome, manifest


def _replay_data(
    replay: Any,
    scores: Sequence[str | Path],
    options: SelectOptions,
    model: ModelOptions | None,
    scratch: str | Path | None,
    progress: Progress | None,
    command: str,
) -> ReplayData | None:
    """What is given for replay, checked before any work; None: nothing is replayed."""
    choice = options.build_replay_choice()
    if replay is None:
        if scores or choice.name != "uniform":
            raise RecipeError("a choice of replay, or its scores, is given, and no data to replay. Give --replay OLD.")
        return None
    stages = tuple(replay) if isinstance(replay, list | tuple) else (replay,)
    folder = None if scratch is None else _replay_scratch(scratch)
    given = ReplayData(stages, tuple(scores), model, folder, progress, command)
    given.check(choice)
    return given


def _replay_scratch(scratch: str | Path) -> Path:
    """Where scores of earlier data are kept until the subset is written."""
    return Path(f"{scratch}.replay")


def _refuse_inputs(out: Path, source: RowSource) -> None:
    """Raise DataError where the output is one of the files that are read."""
    for path in getattr(source, "paths", ()):
        if path.exists() and out.exists() and path.resolve() == out.resolve():
            raise DataError(f"--out '{out}' is the data itself. Give another path.")
