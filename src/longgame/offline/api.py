"""`longgame.score` and `longgame.select`: data sets in, data sets out."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from datasets import Dataset

from longgame.data.formats import RowRules, Turns
from longgame.data.sources import open_source
from longgame.engines.choice import LOCAL
from longgame.errors import RecipeError
from longgame.offline.candidates import target_rows
from longgame.offline.card import dataset_card
from longgame.offline.options import SelectOptions
from longgame.offline.outcome import SubsetOutcome, manifest_of
from longgame.offline.partitioned import PartsOutcome, partitioned_html, refuse_unread, select_in_parts
from longgame.offline.rows import DataRows, OnBadRow
from longgame.offline.score_folder import ScoreFolder
from longgame.offline.scorer import ModelOptions
from longgame.offline.scoring import Progress, score_into
from longgame.offline.selecting import append_history, choose, refuse_several_schemas, select_to
from longgame.offline.subset import PREFIX, refuse_foreign_types, subset_table
from longgame.offline.summary import subset_html
from longgame.selection.base import Selector
from longgame.signals.quality.base import QualitySources, QualitySpec


class Subset(Dataset):
    """The selected rows, unchanged, with the columns of `longgame.select`; a notebook shows a summary.

    Attributes:
        outcome: every decision, as arrays over all rows of the data; in parts, the picks alone.
        manifest: what was selected of what, and how.
    """

    outcome: SubsetOutcome | PartsOutcome
    manifest: dict[str, Any]

    @classmethod
    def of(cls, outcome: SubsetOutcome | PartsOutcome, manifest: dict[str, Any]) -> Subset:
        """The data set of an outcome, a table of its own (no mapping of indices)."""
        subset = cls(subset_table(outcome.parts()))
        subset.outcome, subset.manifest = outcome, manifest
        return subset

    def explain(self) -> list[dict[str, Any]]:
        """Why each row was picked, and each of the nearest rejected rows was not.

        Raises:
            RecipeError: the rows were selected in parts.
        """
        return self.outcome.explain()

    def card(self, license: str = "") -> str:
        """The dataset card of `longgame select --card`, without names of files.

        Args:
            license: of the source.
        """
        return str(dataset_card(self.manifest, None, license))

    def _repr_html_(self) -> str:
        if isinstance(self.outcome, PartsOutcome):
            return partitioned_html(self.outcome, self.manifest)
        return subset_html(self.outcome, self.manifest)


def model_options(model: str | ModelOptions | None, options: Mapping[str, Any]) -> ModelOptions | None:
    """Options of the model from what a function was given.

    Raises:
        RecipeError: options of a model, and no model.
    """
    if isinstance(model, ModelOptions):
        if options:
            raise RecipeError(f"model is a ModelOptions already, and {', '.join(options)} is given, too. Set it there.")
        return model
    if model is None:
        if options:
            raise RecipeError(f"{', '.join(options)} is an option of the model, and no model is given. Give model=.")
        return None
    try:
        return ModelOptions(name=model, **options)
    except TypeError as error:
        from dataclasses import fields

        from longgame.errors import unknown

        names = [item.name for item in fields(ModelOptions)]
        wrong = next((name for name in options if name not in names), "")
        raise RecipeError(unknown("option", wrong, names) if wrong else str(error)) from error


def select(
    data: Any,
    *,
    selector: str | Selector = "random",
    budget: float | str = 0.1,
    model: str | ModelOptions | None = None,
    parameters: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    scores: str | Path | None = None,
    target: Any = None,
    allow_overlap: bool = False,
    replay: Any = None,
    replay_share: float = 0.1,
    replay_choice: str = "uniform",
    replay_scores: Sequence[str | Path] = (),
    history: str | Path | None = None,
    training_log: str | Path | None = None,
    dedup: str | None = None,
    where: str | None = None,
    turns: Turns = "all",
    budget_of: Literal["tokens", "response"] = "tokens",
    quality_range: tuple[float, float] = (0.0, 1.0),
    quality: QualitySpec = None,
    complexity: QualitySpec = None,
    on_bad_row: OnBadRow = "error",
    clusters: int = 8,
    embedder: str | None = None,
    scorer_model: str | None = None,
    seed: int = 0,
    partitions: int | None = None,
    engine: str | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    **model_settings: Any,
) -> Subset:
    """Select a subset of a data set.

    ```python
    subset = longgame.select(dataset, selector="loss", budget="10%", model="smollm2-135m")
    ```

    Args:
        data: a `datasets.Dataset`, or what `longgame.data.sources.open_source` takes (files, folders, globs, the hub).
        selector: a name (`longgame selectors`), ``file.py:Class``, ``scores:FILE``, or a `Selector`.
        budget: a share (0.1, "10%", "10%rows"), tokens ("2M") or rows ("5000rows").
        model: computes signals and counts tokens; None: characters are counted, for selectors that need no model.
        parameters: of the selector.
        out: a .jsonl, .jsonl.gz or .parquet file or a folder; the subset is written there, with a manifest.
        scores: folder of `longgame.score`; used, and filled with what it lacks.
        target: data that the selector compares with, in any form of ``data``.
        allow_overlap: whether the target set may hold rows of the data.
        replay, replay_share: earlier data (a list: a data set for each earlier stage), and the share of the budget that
            is spent on rows of it.
        replay_choice: what of it comes first: ``uniform``, ``targeted``, ``damage``, ``distance``, ``surprise`` or
            ``fit``, with parameters as in ``targeted:cap=3``.
        replay_scores: for each data set of ``replay`` a folder of scores, made by the model at the end of its stage.
        history: folder with what earlier stages selected; this selection is appended.
        training_log: log of a training on these rows, for selectors that read one (`SelectionConfig.trajectories`).
        dedup: ``exact``, ``near`` or ``near:THRESHOLD``.
        where: a condition on the columns of a row, written as `pandas.DataFrame.query` takes it.
        turns: assistant turns that are learned: ``all``, or the ``last``.
        budget_of: what a budget in tokens counts: ``tokens`` (prompt and response), or ``response``.
        quality_range: lowest and highest value of the ``quality`` column.
        quality, complexity: their sources (`longgame.signals.quality.base.build_quality`); None: the column, or rules.
        on_bad_row: ``error`` or ``skip``.
        clusters: k of the k-means behind ``cluster``.
        embedder: ``sentence-transformers:NAME`` or ``model2vec:NAME``, which gives embeddings in place of the model.
        scorer_model: another model, with its own tokenizer, for selectors that ask it (`superfiltering`, `svp`).
        seed: of everything that is drawn.
        partitions: select from ``scores`` in so many parts, with one in memory; None: in one, or the shards with
            ``engine``.
        engine, workers: where parts are worked on (`longgame.engines.choice.check_engine`), and by how many at a time.
        overwrite: replace ``out``.
        progress: called with (rows done, rows) while rows are scored.
        model_settings: further fields of `ModelOptions`, such as ``max_length`` or ``device``.

    Returns:
        The rows in the order of the data, with ``longgame_rank``, ``longgame_score``, ``longgame_sample_id`` and a
        column per further term of the score.

    Raises:
        LonggameError: a value is not allowed, the data cannot be read, or the selector fails.
    """
    refuse_several_schemas(data, replay)
    _refuse_foreign_types(data, replay)
    options = SelectOptions(
        selector=selector,
        parameters=dict(parameters or {}),
        budget=budget,
        budget_of=budget_of,
        turns=turns,
        quality_range=quality_range,
        quality=quality,
        complexity=complexity,
        on_bad_row=on_bad_row,
        where=where,
        dedup=dedup,
        allow_overlap=allow_overlap,
        replay_share=replay_share,
        replay_choice=replay_choice,
        clusters=clusters,
        embedder=embedder,
        scorer_model=scorer_model,
        seed=seed,
    )
    settings: dict[str, Any] = {
        "model": model_options(model, model_settings),
        "scores": scores,
        "target": target,
        "replay": replay,
        "replay_scores": replay_scores,
        "history": history,
        "training_log": training_log,
        "progress": progress,
    }
    if partitions not in (None, 1) or engine is not None or workers is not None:
        unread = {name: settings[name] is not None for name in ("model", "target", "history", "training_log")}
        folder = refuse_unread(unread | {"replay": replay is not None, "replay_scores": bool(replay_scores)}, scores)
        return Subset.of(
            *select_in_parts(
                data,
                out,
                options,
                scores=folder,
                partitions=partitions,
                engine=engine or LOCAL,
                workers=workers or (1 if engine in (None, LOCAL) else None),
                overwrite=overwrite,
            )
        )
    if out is not None:
        return Subset.of(*select_to(data, out, options, overwrite=overwrite, **settings))
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "scores"
        outcome, policy = choose(open_source(data), options, scratch=scratch, **settings)
        manifest = manifest_of(outcome, {}, "")
        if history is not None:
            append_history(history, policy, manifest)
        return Subset.of(outcome, manifest)


def score(
    data: Any,
    signals: Sequence[str] | str,
    *,
    model: str | ModelOptions,
    out: str | Path | None = None,
    target: Any = None,
    allow_overlap: bool = False,
    turns: Turns = "all",
    quality_range: tuple[float, float] = (0.0, 1.0),
    quality: QualitySpec = None,
    complexity: QualitySpec = None,
    where: str | None = None,
    on_bad_row: OnBadRow = "error",
    seed: int = 0,
    progress: Progress | None = None,
    engine: str = "local",
    workers: int | None = None,
    threads: int = 1,
    **model_settings: Any,
) -> Dataset:
    """Compute signals of a data set under a model.

    Args:
        data, target, allow_overlap, turns, quality_range, where, on_bad_row, progress, model_settings: as of `select`.
        signals: names (`longgame.signals.base.SIGNALS`), or one text with commas.
        out: folder of the scores; resumed where it was left, and used by ``select(scores=…)``.
        seed: of sketches.
        engine: ``local``, or Ray: ``ray`` (on this machine), ``auto`` (the running cluster) or ``ray://HOST:PORT``.
        workers, threads: on Ray, models at a time (None: as many as the cluster holds), and threads of each.

    Returns:
        The rows that could be scored, with ``longgame_sample_id``, ``longgame_prompt_tokens``,
        ``longgame_response_tokens`` and ``longgame_SIGNAL`` for every signal.

    Raises:
        LonggameError: as `select`; an unknown signal; a folder with other scores.
    """
    names = [name.strip() for name in signals.split(",")] if isinstance(signals, str) else list(signals)
    options = model_options(model, model_settings)
    if options is None:
        raise RecipeError("no model is given, which scores. Give model=.")
    refuse_several_schemas(data)
    _refuse_foreign_types(data)
    grading = QualitySources.of(quality, complexity)
    rules = RowRules(turns, quality_range, grading.columns)
    rows = DataRows(open_source(data), rules, on_bad_row, where)
    targets = None if target is None else target_rows(target, rows, allow_overlap)
    with ExitStack() as stack:
        folder = Path(out) if out is not None else Path(stack.enter_context(tempfile.TemporaryDirectory())) / "scores"
        table = score_into(
            rows,
            names,
            folder,
            options,
            target=targets,
            on_bad_row=on_bad_row,
            seed=seed,
            progress=progress,
            grading=grading,
            engine=engine,
            workers=workers,
            threads=threads,
        )
        return _scored(rows, table)


def _refuse_foreign_types(data: Any, replay: Any = None) -> None:
    """Raise DataError, before any work, where a table on this machine cannot become a `datasets.Dataset`."""
    stages = replay if isinstance(replay, list | tuple) else [replay]
    for part in (data, *stages):
        if part is not None and not (isinstance(part, str) and part.startswith("hub:")):
            for schema in open_source(part).schemas():
                refuse_foreign_types(schema)


def _scored(rows: DataRows, table: ScoreFolder) -> Dataset:
    """The rows with their signals as columns."""
    index = {sample_id: row for row, sample_id in enumerate(rows.ids)}
    places = np.asarray([index[sample_id] for sample_id in table.ids], dtype=np.int64)
    rows_table = subset_table([(rows.source, rows.positions[places], {})])
    rows_table = rows_table.append_column(f"{PREFIX}sample_id", pa.array(table.ids))
    for name in table.names:
        column = np.array(table.column(name))
        values = (
            pa.array(column)
            if column.ndim == 1
            else pa.FixedSizeListArray.from_arrays(pa.array(column.ravel()), column.shape[1])
        )
        if name.endswith("_tokens"):
            values = pa.array(np.rint(column).astype(np.int64))
        rows_table = rows_table.append_column(PREFIX + name, values)
    return Dataset(rows_table)
