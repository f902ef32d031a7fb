"""Scores of a data set as a product: signals per row in a folder, resumed where they ended, used again by `select`.

A folder of scores holds ``config.yaml`` (what was scored and how), ``signals-*/`` (a `SignalStore` for each set of
signals computed together), ``context.json`` (vectors of the target set), ``bad-rows.jsonl`` and ``scores.parquet``:
sample_id, file, row, prompt_tokens, response_tokens and every signal of one number per row. What depends on the target
set or on a training beside the selection, too, stands in folders of its own (``SIGNAL-KEY``), so that one folder of
scores serves many target sets. ``near_sketch/`` holds sketches of the texts. Shards of a job (``shard=(i, n)``) are
folders of that kind inside it.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import yaml
from jaxtyping import Int

from longgame.data.examples import Pool
from longgame.engines.choice import LOCAL, check_engine, mapped
from longgame.engines.local import Needs
from longgame.engines.nodes import digest_of, model_digest
from longgame.errors import DataError, RecipeError, StorageError, unknown
from longgame.limits import may_have_gpu
from longgame.offline.auxiliary import AuxiliaryJob, apart
from longgame.offline.near import NEAR_SKETCH, write_sketches
from longgame.offline.rows import SHARD_ROWS, DataRows, OnBadRow, TokenizedRows
from longgame.offline.score_folder import (
    BAD_ROWS,
    CONFIG,
    CONTEXT_STATE,
    COUNTS,
    FITTED,
    GRADING_FILE,
    STORE,
    TABLE,
    TOKENIZED_FILE,
    ScoreFolder,
    check_folder,
    check_grading,
    check_made_with,
    check_template,
    is_free,
    is_scratch,
    read_config,
    shard_folders,
    shared_context,
    short_digest,
    stored_names,
    stores_in,
    unfinished,
)
from longgame.offline.scorer import LoadedScorer, ModelOptions
from longgame.signals.auxiliary import AuxiliarySpec
from longgame.signals.base import ALIGNMENTS, CONTEXT, SIGNALS
from longgame.signals.quality.base import GRADES, DefaultQuality, QualitySources
from longgame.signals.store import remove_begun, stream_signals
from longgame.signals.texts import sketch_version
from longgame.storage import parquet_bytes, write_file, write_json, write_state

if TYPE_CHECKING:
    from longgame.signals.source import SignalSource
    from longgame.training.log import Trajectories

_AS_LIVE = {"embedding": "embedding", "base_loss": "loss"}
"""Signals of the base model → the engine's signal; without an adapter the model is its own base."""
_VERSIONS = ("longgame", "torch", "transformers", "peft", "datasets", "numpy")
Progress = Callable[[int, int], None]
"""(rows done, rows): called as a job goes on."""


def shard_rows(rows: DataRows, number: int, total: int) -> DataRows:
    """Return the rows of the ``number``-th of ``total`` shards: blocks of whole tokenizing steps, in order.

    Raises:
        RecipeError: there is no such shard. DataError: it would be empty.
    """
    if not 1 <= number <= total:
        raise RecipeError(f"the shard is {number}/{total}; write i/n with i from 1 to n.")
    blocks = -(-len(rows) // SHARD_ROWS)
    start, stop = (min(len(rows), SHARD_ROWS * (blocks * place // total)) for place in (number - 1, number))
    if start == stop:
        raise DataError(f"shard {number}/{total} of {len(rows)} rows is empty. Use at most {blocks} shards.")
    part = rows.block(start, stop)
    part.shard = {"number": number, "total": total, "rows": len(rows), "digest": rows.digest}
    return part


_OF_AUDITS = {"earlier": "the candidates of an audit's earlier stages", "evaluation": "an audit's evaluation items"}
"""Needs of signals that only an audit meets."""


def computed_names(names: Sequence[str]) -> list[str]:
    """Columns that are computed row by row to give these signals.

    Raises:
        PluginError: an unknown name. RecipeError: a signal that needs what scoring has not.
    """
    for name in names:
        if name not in SIGNALS and name not in CONTEXT:
            raise RecipeError(unknown("signal", name, (*SIGNALS, *CONTEXT, NEAR_SKETCH)))
    result: dict[str, None] = {}
    for name in names:
        needs = (SIGNALS[name] if name in SIGNALS else CONTEXT[name]).needs
        if name in SIGNALS and SIGNALS[name].of_no_model and name not in GRADES:
            raise RecipeError(
                f"signal '{name}' is made of all candidates when they are selected, without a model. Leave it out: "
                "longgame select makes it."
            )
        # Adam's alignment without moments is the plain one, as before the first step of a training
        of_audit = {*needs} & {*_OF_AUDITS}
        if of_audit or ("optimizer" in needs and name not in ALIGNMENTS):
            what = _OF_AUDITS[of_audit.pop()] if of_audit else "Adam's moments of a training"
            raise RecipeError(f"signal '{name}' needs {what}, which scoring has not. Use it in a trainer or an audit.")
        for column in FITTED.get(name, (name,) if name in SIGNALS else ()):
            result[column] = None
    return list(result)


def apart_of(
    names: Sequence[str],
    config: Mapping[str, Any] | None,
    target: DataRows | None,
    spec: AuxiliarySpec,
    reference: str | None = None,
) -> dict[str, str]:
    """Return which columns stand apart, and under what name: those of a training, and of a target set after the first.

    Args:
        names: signals and context vectors.
        config: of the folder of scores; None: it is new.
        target: the target set.
        spec: of trainings beside the selection.
        reference: name of a reference model; None: it is trained on the target set.
    """
    digest = None if target is None else target.digest
    first = digest if config is None else config.get("target") or digest
    result = {}
    for name in names:
        if name == "influence" and digest is not None:
            result[name] = apart(name, digest, spec)
        elif name == "reference_loss" and (reference or digest) is not None:
            result[name] = apart(name, reference) if reference else apart(name, digest, spec)
        elif name in ALIGNMENTS and digest not in (None, first):
            result[name] = apart(name, digest)
        elif name in CONTEXT and digest not in (None, first):
            result[CONTEXT_STATE] = apart(CONTEXT_STATE, digest)
    return result


def needs_target(name: str) -> bool:
    """Whether this signal or context vector compares candidates with a target set."""
    signal = SIGNALS[name] if name in SIGNALS else CONTEXT[name]
    return bool({"proxy", "target"} & {*signal.needs})


def score_into(
    rows: DataRows,
    names: Sequence[str],
    folder: str | Path,
    options: ModelOptions,
    *,
    target: DataRows | None = None,
    on_bad_row: OnBadRow = "error",
    seed: int = 0,
    progress: Progress | None = None,
    command: str = "",
    scorer: LoadedScorer | None = None,
    auxiliary: AuxiliarySpec | None = None,
    grading: QualitySources = QualitySources(DefaultQuality()),
    engine: str = LOCAL,
    workers: int | None = None,
    threads: int = 1,
) -> ScoreFolder:
    """Compute these signals of all rows into a folder; what stands there already is not computed again.

    Killed and called again it goes on behind the last shard of `SHARD_ROWS` rows, and ends with the same bytes.

    Args:
        names: signals, context vectors of the target set, and ``near_sketch``: sketches of the texts, by which a
            selection in parts finds near-duplicates.
        folder: of the scores; made if it is missing.
        target: rows that the selector compares with. Another one than before is measured beside it; columns that do
            not depend on it stay.
        on_bad_row: of rows that cannot be tokenized.
        command: stands in config.yaml.
        scorer: the model, where it is loaded already.
        auxiliary: how the model is trained beside the selection (`Selector.auxiliary`).
        grading: sources of quality and complexity.
        engine: where shards are scored (`longgame.engines.choice.check_engine`). On Ray this process tokenizes, sends
            the shards to workers with a model each, and writes what comes back, in order.
        workers, threads: on Ray, models at a time (None: as many as the cluster holds), and threads of each.

    Raises:
        ResumeError: the folder holds scores of other data, another model or other settings.
        RecipeError: a signal that needs a target set, and there is none. DataError, ModelError, NumericalError: as the
            signals raise. StorageError: the disk is full.
    """
    path = Path(folder)
    check_engine(engine)
    on_shard = None if progress is None else lambda done: progress(done, len(rows))
    sketched, names = NEAR_SKETCH in names, [name for name in names if name != NEAR_SKETCH]
    if sketched:
        sketch_version()  # an error before hours of work
    columns = computed_names(names)
    context = [name for name in names if name in CONTEXT]
    compared = [name for name in (*columns, *context) if needs_target(name)]
    if target is None and compared:
        name = compared[0]
        raise RecipeError(f"'{name}' compares with a target set, and there is none. Give one (--target FILE).")
    if "reference_loss" in columns and target is None and options.reference is None:
        raise RecipeError(
            "'reference_loss' is that of another model, and there is none. Name one (--reference-model), or give "
            "held-out data to train one (--target FILE)."
        )
    if not (path / CONFIG).is_file() and shard_folders(path):
        raise RecipeError(
            f"'{path}' holds the scores of shards, and {', '.join(columns) or NEAR_SKETCH} is to be computed of all "
            "rows. Add it with longgame score --shard to each of them, or use another folder."
        )
    spec, config = auxiliary or AuxiliarySpec(), None
    if (path / CONFIG).is_file():
        check_folder(path, rows)
        config = read_config(path)
        check_grading(config, grading, stored_names(path), path)
        ready = ScoreFolder(path, apart_of(names, config, target, spec, options.reference)) if stores_in(path) else None
        done = ready is not None and {*columns} <= {*ready.names} and all(map(ready.has_context, context))
        done = done and not unfinished(path)
        now = dataclasses.asdict(options) | {"reference": None}
        later = dict.fromkeys(("reference", "embedder", "scorer_model"))  # keys that older folders lack
        if ready is not None and done and scorer is None and {**later, **config["model"]} == now:
            check_template(path, config, options)
            if sketched:
                write_sketches(path, rows, on_shard)
            _remove_leftovers(path)
            return ready
    asked = [name for name in columns if name in SIGNALS and "scorer" in SIGNALS[name].needs]
    if asked and options.scorer_model is None and not {*asked} <= stored_names(path):
        raise RecipeError(f"'{asked[0]}' is that of a scorer model, and there is none. Give one (--scorer-model NAME).")
    grading.begin(rows, [name for name in columns if name not in stored_names(path)])
    scorer = scorer or LoadedScorer.load(_options_here(options, engine))
    fingerprint = scorer.fingerprint()
    _begin(path, rows, scorer, fingerprint, target if compared else None, seed, command, grading)
    places = apart_of(names, read_config(path), target, spec, options.reference)
    missing = [name for name in columns if name not in stored_names(path) and name not in places]
    targets = None if target is None else _target_pool(target, scorer)
    source = scorer.source(seed, None if targets is None else lambda: targets, grading)
    source.begin_stage()
    vectors = shared_context([path], places.get(CONTEXT_STATE, CONTEXT_STATE))
    if lacking := [name for name in context if name not in vectors]:
        measured = dict(source(targets, lacking).context)  # type: ignore[arg-type]
        write_state(path, places.get(CONTEXT_STATE, CONTEXT_STATE), vectors | measured)
    first = not stored_names(path)
    tokenized = TokenizedRows(rows, scorer.tokenizer, scorer.max_length, options.too_long, on_bad_row)
    here, mapper = _Engine(source, scorer, rows.all_rated), None
    if engine != LOCAL:
        elsewhere = ShardScorer(options, seed, targets, rows.all_rated)
        mapper = partial(_on_cluster, elsewhere, engine, workers, threads, grading)
    scored_here, listed = bool(missing or first), (path / TOKENIZED_FILE).is_file()
    if scored_here:
        names_here = [*(COUNTS if first else ()), *missing]
        stream_signals(
            here,
            tokenized.shards(),
            names_here,
            path / f"{STORE}{short_digest(' '.join(names_here))[:8]}",
            fingerprint=fingerprint,
            dtype={name: "float32" if name in COUNTS else options.store_dtype for name in names_here},
            on_shard=on_shard,
            mapper=mapper,
        )
    elif not listed:  # a job that was stopped behind its last scores
        for _ in tokenized.shards():
            pass
    if scored_here or not listed:
        _write_bad(path, rows, tokenized)
    if scored_here and (graded := grading.describe()):
        write_json(path / GRADING_FILE, graded)
    job: AuxiliaryJob | None = None
    for name in (name for name in places if name in columns and not (path / places[name]).is_dir()):
        if name in ALIGNMENTS:
            stream_signals(
                here,
                tokenized.shards(),
                [name],
                path / places[name],
                fingerprint=fingerprint,
                on_shard=on_shard,
                mapper=mapper,
            )
            continue
        if name == "reference_loss" and options.reference is not None:
            from longgame.signals.scorer_model import ReferenceModel

            reference = ReferenceModel(
                options.reference, device=options.device, trust_remote_code=options.trust_remote_code
            )
            stream_signals(
                reference.measured,
                tokenized.shards(),
                [name],
                path / places[name],
                fingerprint=reference.model.fingerprint(),
                on_shard=on_shard,
            )
            continue
        job = job or _auxiliary_job(path, rows, scorer, fingerprint, tokenized, seed, on_shard)
        if targets is not None:
            (job.influence if name == "influence" else job.reference_loss)(places[name], spec, targets)
    scores = ScoreFolder(path, places)
    _write_table(path, scores, rows)
    if sketched:
        write_sketches(path, rows, on_shard)
    _remove_leftovers(path)
    return scores


class _Engine:
    """Computes the columns of one shard, those of the base and the live ones in one pass where they are one model."""

    def __init__(self, source: SignalSource, scorer: LoadedScorer, all_rated: bool) -> None:
        self._source = source
        self._plain = scorer.options.adapter is None
        self._rated = all_rated
        self._by_default = isinstance(source.quality_source, DefaultQuality)

    def __call__(self, pool: Pool, names: Sequence[str]) -> dict[str, np.ndarray]:
        columns = {name: getattr(pool, name).astype(np.float32) for name in COUNTS if name in names}
        wanted = [name for name in names if name not in COUNTS]
        if "quality" in wanted and self._by_default:
            columns["quality"] = self._quality(pool)
        # not by the source, which would keep what it measured of every row
        if "embedding" in wanted and self._source.embedder is not None:
            columns["embedding"] = self._source.embedded(pool)
        of_scorer = [name for name in wanted if "scorer" in SIGNALS[name].needs]
        if of_scorer and self._source.scorer is not None:
            columns |= dict(self._source.scorer(pool, of_scorer))
        wanted = [name for name in wanted if name not in columns]
        base = {name: _AS_LIVE[name] for name in wanted if name in _AS_LIVE}
        live = [name for name in wanted if name not in base and name not in columns]
        if not self._plain:
            return columns | (dict(self._source(pool, [*live, *base]).columns) if live or base else {})
        others = [name for name in live if SIGNALS[name].compute is not None or name in ALIGNMENTS]
        shared = list(dict.fromkeys([*(name for name in live if name not in others), *base.values()]))
        engine: Any = self._source.engine
        values = dict(engine(pool, shared)) if shared else {}
        if others:
            columns |= dict(self._source(pool, others).columns)
        columns |= {name: values[name] for name in live if name in values}
        return columns | {name: values[column] for name, column in base.items()}

    def _quality(self, pool: Pool) -> np.ndarray:
        """Of the column where every row of the data has it, else of the rules for all."""
        if self._rated:
            return self._source.quality(pool)
        bare = tuple(dataclasses.replace(example, quality=None) for example in pool.examples)
        return self._source.quality(dataclasses.replace(pool, examples=bare))


@dataclass
class ShardScorer:
    """Scores shards in another process, with a model of its own that is loaded at the first."""

    options: ModelOptions
    seed: int
    targets: Pool | None
    """The target set, tokenized."""
    all_rated: bool
    """Whether every row of the data has a quality."""

    def __call__(self, part: tuple[Pool, Sequence[str]]) -> dict[str, np.ndarray]:
        return self._engine(*part)

    @cached_property
    def _engine(self) -> _Engine:
        scorer, targets = LoadedScorer.load(self.options), self.targets
        source = scorer.source(self.seed, None if targets is None else lambda: targets)
        source.begin_stage()
        return _Engine(source, scorer, self.all_rated)


def _on_cluster(
    scorer: ShardScorer,
    engine: str,
    workers: int | None,
    threads: int,
    grading: QualitySources,
    pools: Iterable[Pool],
    names: Sequence[str],
) -> Iterator[Mapping[str, np.ndarray]]:
    """`longgame.signals.store.Mapper` on a Ray cluster.

    Raises:
        RecipeError: a signal of a named source of quality, which asks and keeps its replies on this machine.
    """
    graded = [name for name in names if grading.gives(name) is not None or name == "own_answer_quality"]
    if graded and grading.identity():
        raise RecipeError(
            f"{', '.join(graded)} is graded by {' and '.join(grading.identity().values())} on this machine. Score it "
            "without --engine into the same folder."
        )
    from longgame.models.load import trial_bytes

    options = scorer.options
    gpu = None if options.device == "auto" else options.device.startswith("cuda")
    size = trial_bytes(options.spec(), options.batch_tokens or 0)
    yield from mapped(
        scorer,
        ((pool, tuple(names)) for pool in pools),
        engine,
        workers=workers,
        threads=threads,
        needs=Needs(threads, size, gpu, size),
        contents=partial(_contents_of, options),
    )


def _options_here(options: ModelOptions, engine: str) -> ModelOptions:
    """Options of the model that this process needs beside the workers of a cluster, which alone may have GPUs."""
    if engine == LOCAL or not options.device.startswith("cuda") or may_have_gpu():
        return options
    return dataclasses.replace(options, device="cpu")


def _contents_of(options: ModelOptions) -> dict[str, str]:
    """Name → digest or commit of each model that these options name."""
    from longgame.models.embedders import embedder_place

    embedder = "" if options.embedder is None else embedder_place(options.embedder)
    digests = {name: model_digest(name) for name in filter(None, (options.name, embedder, options.scorer_model))}
    if options.adapter is not None:
        digests[f"adapter {options.adapter}"] = digest_of([Path(options.adapter).expanduser()])
    return {name: digest for name, digest in digests.items() if digest is not None}


def _auxiliary_job(
    path: Path,
    rows: DataRows,
    scorer: LoadedScorer,
    fingerprint: str,
    tokenized: TokenizedRows,
    seed: int,
    on_shard: Callable[[int], None] | None,
) -> AuxiliaryJob:
    """The job of trainings beside the selection, on all rows that could be tokenized."""
    scores = ScoreFolder(path)
    index = {sample_id: row for row, sample_id in enumerate(rows.ids)}
    usable = np.asarray([index[sample_id] for sample_id in scores.ids], dtype=np.int64)

    def taken(places: Int[np.ndarray, " k"]) -> Pool:
        return _target_pool(rows.take(np.sort(usable[places])), scorer)

    return AuxiliaryJob(
        folder=path,
        model=scorer.model,
        pad_token_id=int(scorer.tokenizer.pad_token_id),
        batch_tokens=scorer.options.batch_tokens,
        seed=seed,
        content=fingerprint,
        ids=scores.ids,
        tokens=np.add(*scores.counts()),
        shards=tokenized.shards,
        taken=taken,
        dtype=scorer.options.store_dtype,
        progress=on_shard,
    )


def trained_log(
    rows: DataRows,
    scores: ScoreFolder,
    options: ModelOptions,
    spec: AuxiliarySpec,
    *,
    on_bad_row: OnBadRow = "error",
    seed: int = 0,
    progress: Progress | None = None,
) -> Trajectories:
    """Return the log of a training on all rows of these scores, of a copy of the model's weights; kept beside them.

    Raises:
        ResumeError: the scores are of another model or seed. ModelError, NumericalError: as `auxiliary_run`.
    """
    from longgame.training.log import Trajectories

    scorer = LoadedScorer.load(options)
    fingerprint = scorer.fingerprint()
    check_made_with(scores.folder, scores.config, fingerprint, seed)
    tokenized = TokenizedRows(rows, scorer.tokenizer, scorer.max_length, options.too_long, on_bad_row)
    on_shard = None if progress is None else lambda done: progress(done, len(rows))
    stores = _auxiliary_job(scores.folder, rows, scorer, fingerprint, tokenized, seed, on_shard).log(spec)
    loss, accuracy = (
        np.stack([store.column(name) for store in stores], axis=1).astype(np.float32)
        for name in ("loss", "token_accuracy")
    )
    epochs = tuple(range(1, spec.epochs + 1))
    return Trajectories(f"the log trained in '{scores.folder}'", tuple(stores[0].ids), epochs, loss, accuracy)


def _begin(
    path: Path,
    rows: DataRows,
    scorer: LoadedScorer,
    fingerprint: str,
    target: DataRows | None,
    seed: int,
    command: str,
    grading: QualitySources,
) -> None:
    """Write config.yaml, or compare with it."""
    if (path / CONFIG).is_file():
        config = read_config(path)
        check_made_with(path, config, fingerprint, seed)
        before = config.get("grading") or {}
        if (target is None or config.get("target") is not None) and {*grading.identity()} <= {*before}:
            return
    elif not is_free(path):
        raise StorageError(f"'{path}' is not empty and holds no scores. Give another folder.")
    else:
        before = {}
    versions = {name: _version(name) for name in _VERSIONS}
    config = {
        "command": command,
        "data": rows.source.label,
        "rows": len(rows),
        "digest": rows.digest,
        "shard": rows.shard,
        "turns": rows.rules.turns,
        "where": rows.where,
        "model": dataclasses.asdict(scorer.options) | {"reference": None},
        "max_length": scorer.max_length,
        "weights": scorer.origin,
        "template": short_digest(str(scorer.tokenizer.chat_template)),
        "target": None if target is None else target.digest,
        "seed": seed,
        "grading": before | grading.identity(),
        "fingerprint": fingerprint,
        "versions": versions,
    }
    write_file(path / CONFIG, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "?"


def _target_pool(target: DataRows, scorer: LoadedScorer) -> Pool:
    """The target set, tokenized; small enough for memory."""
    pools = list(TokenizedRows(target, scorer.tokenizer, scorer.max_length).shards())
    pool = pools[0]
    for other in pools[1:]:
        pool = pool.join(other)
    return pool


def _write_bad(path: Path, rows: DataRows, tokenized: TokenizedRows) -> None:
    """Write the bad rows in the order of the data, so that those of shards are those of one job."""
    bad = [*zip(rows.bad_positions, rows.bad, strict=True), *zip(tokenized.bad_positions, tokenized.bad, strict=True)]
    bad.sort(key=lambda entry: entry[0])
    lines = [json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n" for _, row in bad]
    if lines:
        write_file(path / BAD_ROWS, "".join(lines))
    write_json(path / TOKENIZED_FILE, {"bad_rows": len(bad), "cut": tokenized.cut})


def _write_table(path: Path, scores: ScoreFolder, rows: DataRows) -> None:
    """Write scores.parquet: every column of one number per row."""
    place = {sample_id: row for row, sample_id in enumerate(rows.ids)}
    order = np.asarray([place[sample_id] for sample_id in scores.ids], dtype=np.int64)
    files = rows.files()
    columns: dict[str, Any] = {
        "sample_id": pa.array(scores.ids),
        "file": pa.array([files[row] for row in order.tolist()]).dictionary_encode(),
        "row": pa.array(rows.numbers[order]),
    }
    for name in scores.names:
        column = scores.column(name)
        if column.ndim == 1:
            columns[name] = pa.array(np.rint(column).astype(np.int64) if name in COUNTS else np.asarray(column))
    write_file(path / TABLE, parquet_bytes(pa.table(columns)))


_STALE_SECONDS = 3600.0
"""Age from which a half-written file is taken for that of a killed job."""


def _remove_leftovers(path: Path) -> None:
    """Delete what killed jobs left half-written, and unfinished stores whose signals a later job finished."""
    names = stored_names(path)
    with suppress(OSError):  # scores that may only be read are whole all the same
        for file in filter(is_scratch, [*path.iterdir()]):
            if time.time() - file.stat().st_mtime > _STALE_SECONDS:
                file.unlink()
        for part in path.glob(f"{STORE}*.part"):
            remove_begun(part, names)
