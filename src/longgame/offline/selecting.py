"""Select a subset of a data set by any method: from rows to picks, with every decision explained."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from longgame.data.examples import WEIGHT, is_weight
from longgame.data.formats import RowRules
from longgame.data.sources import BESIDE_A_SUBSET, RowSource, open_source
from longgame.errors import BudgetError, DataError, RecipeError, ResumeError
from longgame.offline.candidates import (
    is_apart,
    is_graded,
    is_of_others,
    of_no_model,
    places_in,
    scores_for,
    signals_for,
    target_rows,
    who_computes,
)
from longgame.offline.dedup import duplicates, parse_dedup
from longgame.offline.options import Budget, SelectOptions, parse_selector
from longgame.offline.outcome import SubsetOutcome, manifest_of
from longgame.offline.replaying import ReplayData, ReplayedRows, replayed_rows
from longgame.offline.rows import DataRows
from longgame.offline.score_folder import GRADING_FILE, ScoreFolder
from longgame.offline.scorer import ModelOptions, with_other_models
from longgame.offline.scoring import Progress, trained_log
from longgame.offline.subset import (
    BAD,
    EXPLAINED,
    MANIFEST,
    PAGE,
    beside,
    kind_of,
    refuse_existing,
    remove_beside,
    unified_schema,
    write_subset,
)
from longgame.registry import plugin_at_work
from longgame.seeding import generator, stream_seed
from longgame.selection.base import SCORES, Selector, eligible_of
from longgame.selection.history import History
from longgame.selection.methods.from_scores import FromScores
from longgame.selection.policy import SelectionPolicy
from longgame.signals.auxiliary import AuxiliarySpec
from longgame.signals.base import SIGNALS, Signals, needs_auxiliary
from longgame.signals.quality.base import QualitySources
from longgame.signals.texts import HashedTexts, ImportanceRatios
from longgame.storage import read_json, read_state, write_file, write_state
from longgame.training.log import read_trajectories

_HISTORY = "history"
_STATE_ENDINGS = (".json", ".safetensors")


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
    others = frozenset(name for name in names if is_of_others(name, options)) if model is None else frozenset()
    model = None if model is None else with_other_models(model, options.embedder, options.scorer_model)
    log = None if training_log is None else read_trajectories(training_log)
    without_model = all(of_no_model(name) or name in others for name in names)
    table, spec = None, selector.auxiliary or AuxiliarySpec()
    if model is not None or scores is not None:
        elsewhere = {name for name in names if is_apart(name) or is_graded(name, grading, scores)}
        stored = [name for name in names if name not in elsewhere | others]
        table = scores_for(rows, stored, model, scores, scratch, targets, options, progress, command, spec, grading)
    elif not without_model:
        needs = [name for name in names if not of_no_model(name) and name not in others]
        raise RecipeError(f"selector '{options.label}' needs {', '.join(needs)}, which {who_computes(needs)}")
    elif budget.of == "tokens" and budget.kind == "amount":
        raise BudgetError(
            f"the budget is {budget}, and no model is given that counts tokens. Give --model, a share (10%), or rows "
            "(5000rows)."
        )
    place, unscored = places_in(rows, table)
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
    costs = usable.costs[place >= 0]
    asked = budget.units(costs)
    share = asked / int(costs.sum())
    again: tuple[ReplayedRows, ...] = ()
    if given is not None:
        length = None if table is None else int(table.config["max_length"])
        asked, again = replayed_rows(given, rules, options, unit, asked, part, length)
    policy = _policy(selector, options.seed, history)
    if announce is not None:
        announce(grading.estimate(part, names))
    if log is None and table is not None and model is not None and "log" in needs_auxiliary(names):
        log = trained_log(rows, table, model, spec, on_bad_row=options.on_bad_row, seed=options.seed, progress=progress)
    fitted = None
    if hashed is not None and targets is not None:
        fitted = partial(ImportanceRatios, targets.examples(), hashed=hashed, places=candidates)
    given_rows = place[candidates]
    signals = signals_for(
        table, part, pool, given_rows, options, names, targets, log, grading, others, fitted, policy.history
    )
    if selector.score_source:  # of a file: its own words say what is missing
        selector.eligible(pool)
    policy.begin_stage(generator(options.seed, "selection", "select"))
    policy.use_budget(share)
    if selector.replays:
        raise RecipeError(f"selector '{options.label}' replays stages of an audit. Use --replay here.")
    _, decision = policy.choose(pool, asked, lambda _pool, _names: signals)
    terms = {name: _spread(values, candidates, len(rows)) for name, values in decision.selection.scores.items()}
    picks = candidates[decision.selection.rows]
    weights = with_old_weights(
        decision.selection.weights,
        rows.weights_of(picks),
        lambda place: f"{rows.file_of(picks[place])}, {rows.source.unit} {rows.numbers[picks[place]]}",
    )
    if weights is None and any(earlier.weighted for earlier, _ in again):
        weights = np.ones(len(picks))
    outcome = SubsetOutcome(
        rows=rows,
        options=options,
        candidates=candidates,
        picks=picks,
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
        rejected=_spread(~eligible_of(selector, pool), candidates, len(rows)) == 1,
        cut_rows=None if table is None else table.cut_rows(),
        scored_rows=0 if table is None else len(table),
        max_length=None if table is None else int(table.config["max_length"]),
        replay=again,
        log=log,
        target=targets,
        reference=None if model is None else model.reference,
        pick_weights=weights,
        graded=_graded(grading, signals, table),
        notes=(
            *grading.notes(),
            *_missing_notes(signals, candidates, decision.selection.rows),
            *whole_pool_notes(len(decision.selection.rows), len(candidates)),
        ),
    )
    return outcome, policy


def with_old_weights(
    weights: Float[np.ndarray, " k"] | None,
    old: Float[np.ndarray, " k"] | None,
    place_of: Callable[[int], str],
) -> Float[np.ndarray, " k"] | None:
    """The weights of picks times those that an earlier selection gave the same rows; None where there are neither.

    A draw that weighs picks by 1/p is unbiased for the rows it drew from; the product is for those of the first draw.

    Args:
        place_of: returns where a pick stands in the data, for the error.

    Raises:
        DataError: a product cannot be held in float32.
    """
    if old is None or weights is None:
        return weights if old is None else old
    product = old * weights
    wrong = np.flatnonzero(~is_weight(product))
    if len(wrong):
        raise DataError(
            f"{place_of(int(wrong[0]))}: the weight of the earlier selection ({old[wrong[0]]:g}) times the new one is "
            f"{product[wrong[0]]:g}, which float32 cannot hold. Scale the column '{WEIGHT}'."
        )
    return product


def judge_estimate(data: Any, options: SelectOptions) -> list[str]:
    """What judges will cost, in words; empty where none is asked."""
    grading = options.grading()
    rules = RowRules(options.turns, options.quality_range, grading.columns)
    rows = DataRows(open_source(data), rules, options.on_bad_row, options.where)
    return grading.estimate(rows, options.build().requires)


def _graded(grading: QualitySources, signals: Signals, table: ScoreFolder | None) -> dict[str, Any]:
    """Kind → what its source did, here or in the job that wrote the scores, and the candidates without a grade."""
    graded: dict[str, Any] = {}
    for kind, done in grading.describe().items():
        names = ("complexity",) if kind == "complexity" else ("quality", "grade")
        name = next((name for name in names if name in signals.columns), None)
        if table is not None and name is not None and not is_graded(name, grading, table.folder):
            path = table.folder / GRADING_FILE
            before = read_json(path) if path.is_file() else {}
            done = before.get(kind, {"source": done["source"]})
        missing = {} if name is None else {"missing": int(np.isnan(signals[name]).sum())}
        graded[kind] = {**done, **missing}
    return graded


def _missing_notes(signals: Signals, candidates: Int[np.ndarray, " m"], picks: Int[np.ndarray, " k"]) -> Iterator[str]:
    """How many candidates have no value, of the signals that may miss."""
    for name, column in signals.columns.items():
        missing = np.isnan(column) if SIGNALS[name].may_miss else np.zeros(len(column), dtype=bool)
        if missing.any():
            yield (
                f"{name}: {int(missing.sum()):,} of {len(candidates):,} candidates have none, so they are picked "
                f"last or never; {int(missing[picks].sum()):,} of them are picked"
            )


def whole_pool_notes(picks: int, candidates: int) -> Iterator[str]:
    """That nothing was left out."""
    if picks == candidates:
        yield f"the budget holds all {candidates:,} candidates, so nothing was left out"


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
    kind, source = kind_of(path), open_source(data)
    if kind != "jsonl":
        refuse_several_schemas(data, replay)
    inputs = selection_inputs(
        source,
        options,
        scores=scores,
        target=target,
        replay=replay,
        replay_scores=replay_scores,
        history=history,
        training_log=training_log,
    )
    refuse_inputs(subset_outputs(path), inputs)
    refuse_existing([path, *(beside(path, ending) for ending in BESIDE_A_SUBSET)], overwrite, path)
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
    remove_beside(path)
    manifest = manifest_of(outcome, files, command)
    if explain:
        lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in outcome.explain()]
        write_file(beside(path, EXPLAINED), "".join(lines))
    if bad := [dataclasses.asdict(row) for row in outcome.bad]:
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
    folder = None if scratch is None else _replay_scratch(scratch)
    given = ReplayData(_stages(replay), tuple(scores), model, folder, progress, command)
    given.check(choice)
    return given


def _replay_scratch(scratch: str | Path) -> Path:
    """Where scores of earlier data are kept until the subset is written."""
    return Path(f"{scratch}.replay")


def selection_inputs(
    source: RowSource,
    options: SelectOptions,
    *,
    scores: str | Path | None = None,
    target: Any = None,
    replay: Any = None,
    replay_scores: Sequence[str | Path] = (),
    history: str | Path | None = None,
    training_log: str | Path | None = None,
) -> dict[Path, str]:
    """Files and folders that a selection reads → what each is."""
    kinds: dict[str, Sequence[str | Path]] = {
        "the data": source.paths,
        "the target set": _local_paths(target),
        "the replay data": [path for data in _stages(replay) for path in _local_paths(data)],
        "the folder of scores": [] if scores is None else [scores],
        "the scores of replay data": replay_scores,
        "the history": [] if history is None else [Path(history) / f"{_HISTORY}{end}" for end in _STATE_ENDINGS],
        "the training log": [] if training_log is None else [training_log],
        "the score file": _score_file(options),
    }
    return {Path(path).expanduser(): kind for kind, paths in kinds.items() for path in paths}


def _local_paths(data: Any) -> Sequence[Path]:
    return () if (source := _local(data)) is None else source.paths


def _local(data: Any) -> RowSource | None:
    """The rows of what is given as data; None of the hub's, which are loaded once."""
    return None if data is None or (isinstance(data, str) and data.startswith("hub:")) else open_source(data)


def _stages(replay: Any) -> tuple[Any, ...]:
    """The data set of each earlier stage."""
    return tuple(replay) if isinstance(replay, list | tuple) else (() if replay is None else (replay,))


def refuse_several_schemas(data: Any, replay: Any = None) -> None:
    """Raise DataError, before any work, where tables on this machine do not fit into one."""
    sources = [source for part in (data, *_stages(replay)) if (source := _local(part)) is not None]
    if schemas := [schema for source in sources for schema in source.schemas()]:
        unified_schema(schemas)


def _score_file(options: SelectOptions) -> Sequence[str]:
    """The file of ``scores:FILE``."""
    if isinstance(options.selector, FromScores):
        return [options.selector.file.path]
    name = parse_selector(options.selector)[0] if isinstance(options.selector, str) else ""
    return [name.removeprefix(SCORES)] if name.startswith(SCORES) else []


def subset_outputs(out: Path) -> dict[str, Path]:
    """Option or name → path of everything that a selection writes or removes."""
    endings = (*BESIDE_A_SUBSET, PAGE)
    return {"--out": out} | {f"the subset's {ending}": beside(out, ending) for ending in endings}


def refuse_inputs(outputs: Mapping[str, Path], inputs: Mapping[Path, str]) -> None:
    """Raise DataError where an output is what is read, is a folder that holds it, or exists as a part of it."""
    real = {Path(os.path.realpath(path)): (path, kind) for path, kind in inputs.items()}
    for name, out in outputs.items():
        place = Path(os.path.realpath(out))
        for path, (given, kind) in real.items():
            if place == path:
                raise DataError(f"{name} '{out}' is {kind} itself. Give another path.")
            if place in path.parents:
                raise DataError(f"{name} '{out}' is a folder that holds {kind} '{given}'. Give another path.")
            if path in place.parents and place.exists():
                raise DataError(f"{name} '{out}' would replace a part of {kind} '{given}'. Give another path.")
