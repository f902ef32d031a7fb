"""The candidates of a selection: their scores, their rows in them, and the signals that a selector sees."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from longgame.data.examples import Pool
from longgame.data.sources import open_source
from longgame.errors import DataError, RecipeError
from longgame.offline.options import SelectOptions
from longgame.offline.rows import BadRow, DataRows
from longgame.offline.score_folder import CONFIG, ScoreFolder, check_grading, check_model, check_template, signals_of
from longgame.offline.scorer import ModelOptions, embedder_of, scorer_of
from longgame.offline.scoring import Progress, apart_of, computed_names, score_into
from longgame.recipe import EMBEDDER
from longgame.seeding import stream_seed
from longgame.signals.auxiliary import AuxiliarySpec
from longgame.signals.base import CONTEXT, EMBEDDED, SIGNALS, Past, Signals
from longgame.signals.frozen import cluster
from longgame.signals.quality.base import GRADES, QualitySources
from longgame.signals.source import SignalSource
from longgame.signals.texts import ImportanceRatios
from longgame.training.log import Trajectories


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


def of_no_model(name: str) -> bool:
    return name in SIGNALS and SIGNALS[name].of_no_model


def is_apart(name: str) -> bool:
    """Whether a signal is made of the candidates when they are selected, and stands in no folder of scores."""
    return of_no_model(name) and name not in GRADES


def is_graded(name: str, grading: QualitySources, scores: str | Path | None) -> bool:
    """Whether a named source grades the candidates for this signal; grades in the folder of scores count if it made
    them."""
    identity = grading.gives(name)
    if identity is None or scores is None or not (Path(scores) / CONFIG).is_file():
        return identity is not None
    table = ScoreFolder(scores)
    kind = "complexity" if name == "complexity" else "quality"
    return name not in table.names or (table.config.get("grading") or {}).get(kind) != identity


def scores_for(
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
            if model is not None:
                check_template(Path(scores), table.config, model)
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


def places_in(rows: DataRows, table: ScoreFolder | None) -> tuple[Int[np.ndarray, " n"], dict[int, BadRow]]:
    """Row of each example in the scores, −1 for one that could not be tokenized; and the rows of those, with reasons.

    Raises:
        DataError: the scores are of other data, or lack some of it.
    """
    if table is None:
        return np.arange(len(rows)), {}
    index = {sample_id: row for row, sample_id in enumerate(table.ids)}
    place = np.fromiter((index.get(sample_id, -1) for sample_id in rows.ids), dtype=np.int64, count=len(rows))
    missing = np.flatnonzero(place < 0)
    unscored: dict[int, BadRow] = {}
    if len(missing):
        bad = {(entry.file, entry.number): entry for entry in table.bad_rows()}
        known = {row: bad.get((rows.file_of(row), int(rows.numbers[row]))) for row in missing.tolist()}
        unscored = {row: entry for row, entry in known.items() if entry is not None}
        lost = [row for row in known if row not in unscored]
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
    return place, unscored


def signals_for(
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
    past: Past,
) -> Signals:
    """What the selector sees of its candidates.

    Args:
        part: the candidates; ``pool`` holds them with their counts.
        others: signals of an embedder or a scorer model.
        fitted: candidates → ratios of their texts, which were hashed as they were read.
        past: earlier selections (`longgame.signals.frozen.cluster`).
    """
    scores = None if table is None else table.folder
    apart = [name for name in names if name in others or is_apart(name) or is_graded(name, grading, scores)]
    stored = [name for name in names if name not in apart]
    if table is not None:
        if "quality" in stored and "quality" not in table.names:
            raise RecipeError(f"'{table.folder}' lacks quality. Score it, too.")
        seed = stream_seed(options.seed, "clusters")
        signals = signals_of(table, pool, rows, stored, options.clusters, seed, past)
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
        columns["cluster"] = cluster(part.ids, columns["embedding"], options.clusters, seed, past)
    return Signals(part.ids, columns, {**signals.context, **measured.context})


def is_of_others(name: str, options: SelectOptions) -> bool:
    """Whether an embedder or a scorer model that is given gives this signal, so that no model is needed."""
    if name in EMBEDDED:
        return options.embedder not in (None, EMBEDDER)
    return name in SIGNALS and "scorer" in SIGNALS[name].needs and options.scorer_model is not None


def who_computes(names: Sequence[str]) -> str:
    """End of an error: what computes these signals, and how to give it."""
    if all(name in SIGNALS and "scorer" in SIGNALS[name].needs for name in names):
        return "a scorer model computes. Give --scorer-model."
    if {*names} <= EMBEDDED:
        return "a model computes, or an embedder. Give --model, or --embedder model2vec:NAME."
    return "a model computes. Give --model."


def _no_engine(_pool: Pool, names: Sequence[str]) -> Mapping[str, np.ndarray]:
    raise RecipeError(f"{', '.join(names)} are signals of a model, and no model is given. Give --model.")
