"""Scores of a data set as a product: signals per row in a folder, resumed where they ended, used again by `select`.

A folder of scores holds ``config.yaml`` (what was scored and how), ``signals-*/`` (a `SignalStore` for each set of
signals computed together), ``context.json`` (vectors of the target set), ``bad-rows.jsonl`` and ``scores.parquet``:
sample_id, file, row, prompt_tokens, response_tokens and every signal of one number per row. What depends on the target
set or on a training beside the selection, too, stands in folders of its own (``SIGNAL-KEY``), so that one folder of
scores serves many target sets. Shards of a job (``shard=(i, n)``) are folders of that kind inside it.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from jaxtyping import Int

from longgame.data.examples import Pool
from longgame.errors import DataError, ModelError, PluginError, RecipeError, ResumeError, StorageError, unknown
from longgame.offline.auxiliary import AuxiliaryJob, apart
from longgame.offline.rows import SHARD_ROWS, BadRow, DataRows, OnBadRow, TokenizedRows, TooLong
from longgame.recipe import EMBEDDER, ModelSpec, parse_embedder
from longgame.seeding import stream_seed
from longgame.signals.auxiliary import AuxiliarySpec
from longgame.signals.base import ALIGNMENTS, CONTEXT, SIGNALS, Signals
from longgame.signals.quality.base import ANSWER_TOKENS, GRADES, DefaultQuality, QualitySources
from longgame.signals.store import DTYPES, MANIFEST, SignalStore, stream_signals
from longgame.storage import read_state, scratch, storage_errors, write_file, write_json, write_state

if TYPE_CHECKING:
    from longgame.models.embedders import Embedder
    from longgame.models.load import LoadedModel
    from longgame.signals.scorer_model import ScorerModel
    from longgame.signals.source import SignalSource
    from longgame.training.log import Trajectories

CONFIG, TABLE, BAD_ROWS, CONTEXT_STATE = "config.yaml", "scores.parquet", "bad-rows.jsonl", "context"
GRADING_FILE = "quality.json"
"""What the quality sources did, in the last job that asked them."""
COUNTS = ("prompt_tokens", "response_tokens")
"""Columns of every folder: tokens without and with a loss."""
MOST_TOKENS = 2048
"""Tokens of an example unless said otherwise, where the model's context holds them."""
_STORE = "signals-"
_APART = ("influence", "reference_loss")
"""Columns that always stand apart."""
_FITTED = {"cluster": ("embedding",), "difficulty": ("base_loss",)}
"""Signals that are fitted over all rows, and the columns that they are made of."""
_AS_LIVE = {"embedding": "embedding", "base_loss": "loss"}
"""Signals of the base model → the engine's signal; without an adapter the model is its own base."""
_GIVE = "Give a folder that longgame score wrote."
_VERSIONS = ("longgame", "torch", "transformers", "peft", "datasets", "numpy")

Progress = Callable[[int, int], None]
"""(rows done, rows): called as a job goes on."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model that scores, and how.

    Raises:
        RecipeError: a value is not allowed.
    """

    name: str
    """`tiny`, `smollm2-135m`, a Hugging Face id, or a directory."""
    adapter: str | None = None
    """Directory of a PEFT adapter: rows are scored under it; signals of the base, without it."""
    dtype: str = "float32"
    device: str = "auto"
    """``auto`` (a GPU, where there is one), ``cpu``, ``cuda``, ``cuda:1`` …"""
    max_length: int | None = None
    """Tokens of an example; None: 2,048, or the model's context where it is shorter."""
    chat_template: str | None = None
    pad_token: str | None = None
    trust_remote_code: bool = False
    batch_tokens: int | None = None
    """Padded tokens of a batch; None: chosen by the engine, and halved when they do not fit into memory."""
    too_long: TooLong = "truncate"
    store_dtype: str = "float32"
    """``float32`` or ``float16``, of the columns on disk."""
    reference: str | None = None
    """A model with a tokenizer of its own, for ``reference_loss``; None: this one, trained on the target set."""
    embedder: str | None = None
    """``sentence-transformers:NAME`` or ``model2vec:NAME``, which gives ``embedding``; None: the model itself."""
    scorer_model: str | None = None
    """Another model, with its own tokenizer, which gives the signals named ``scorer_…``."""

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16"):
            raise RecipeError(unknown("dtype", self.dtype, ("float32", "bfloat16")))
        if self.store_dtype not in DTYPES:
            raise RecipeError(unknown("dtype of the stored columns", self.store_dtype, DTYPES))
        parse_embedder(self.embedder or EMBEDDER)
        if self.embedder == EMBEDDER:
            object.__setattr__(self, "embedder", None)
        for name in ("max_length", "batch_tokens"):
            value = getattr(self, name)
            if value is not None and value < 8:
                raise RecipeError(f"{name} is {value}; use 8 or more.")

    def spec(self) -> ModelSpec:
        """What `load_model` takes."""
        values = {"chat_template": self.chat_template, "pad_token": self.pad_token}
        return ModelSpec(
            name=self.name, dtype=self.dtype, max_length=8, trust_remote_code=self.trust_remote_code, **values
        )


@dataclass(frozen=True)
class LoadedScorer:
    """A model on its device with its tokenizer."""

    options: ModelOptions
    model: Any
    tokenizer: Any
    origin: str
    max_length: int

    @classmethod
    def load(cls, options: ModelOptions) -> LoadedScorer:
        """Load model, tokenizer and adapter.

        Raises:
            ModelError: one of them cannot be loaded, the device does not exist, or ``max_length`` is beyond the
                model's context.
        """
        from longgame.models.device import device_of
        from longgame.models.load import load_model

        device = device_of(options.device)
        loaded: LoadedModel = load_model(options.spec(), attention="eager" if device.type == "cpu" else "sdpa")
        model: Any = loaded.model
        if options.adapter is not None:
            model = _with_adapter(model, options.adapter)
        return cls(
            options, model.to(device).eval(), loaded.tokenizer, loaded.source, length_of(options, loaded.model.config)
        )

    def fingerprint(self) -> str:
        """Content of all that scores depend on, the rows' texts left out."""
        from longgame.signals.cache import signal_fingerprint

        settings: dict[str, Any] = {"max_length": self.max_length, "too_long": self.options.too_long, "seed": 0}
        if self.options.embedder is not None:
            settings["embedder"] = self.embedder.digest
        if self.options.scorer_model is not None:
            settings["scorer"] = self.scorer_model.fingerprint()
        return signal_fingerprint(self.model, tokenizer=self.tokenizer, settings=settings)

    @cached_property
    def embedder(self) -> Embedder:
        """The embedder beside the model."""
        return embedder_of(self.options.embedder or "", self.options.device, self.options.trust_remote_code)

    @cached_property
    def scorer_model(self) -> ScorerModel:
        """The scorer model beside the model."""
        return scorer_of(self.options.scorer_model or "", self.options.device, self.options.trust_remote_code)

    def source(
        self,
        seed: int,
        target: Callable[[], Pool] | None,
        grading: QualitySources = QualitySources(DefaultQuality()),
    ) -> SignalSource:
        """Return what computes signals with this model."""
        from longgame.models.adaptation import adaptation_of
        from longgame.signals.engine import SignalEngine
        from longgame.signals.source import SignalSource

        adapted = self.options.adapter is not None
        engine = SignalEngine(
            self.model,
            pad_token_id=int(self.tokenizer.pad_token_id),
            seed=stream_seed(seed, "sketch"),
            max_batch_tokens=self.options.batch_tokens,
        )
        base = adaptation_of(self.model).frozen_base if adapted else nullcontext
        return SignalSource(
            engine,
            base=base,
            proxy=target,
            target=target,
            seed=seed,
            quality=grading.quality,
            complexity=grading.complexity,
            answers=self.answers,
            embedder=None if self.options.embedder is None else self.embedder.encode,
            scorer=None if self.options.scorer_model is None else self.scorer_model,
        )

    def answers(self, pool: Pool) -> list[str]:
        """What the model answers to each prompt: greedily, at most `ANSWER_TOKENS` tokens."""
        from longgame.evaluation.evaluator import Evaluator

        evaluator = Evaluator(
            self.model, self.tokenizer, pad_token_id=int(self.tokenizer.pad_token_id), max_length=self.max_length
        )
        return evaluator.answers(pool.examples, ANSWER_TOKENS)


def with_other_models(options: ModelOptions, embedder: str | None, scorer_model: str | None) -> ModelOptions:
    """Return these options with an embedder and a scorer model, where they are given."""
    return dataclasses.replace(
        options,
        embedder=options.embedder if embedder is None else embedder,
        scorer_model=scorer_model or options.scorer_model,
    )


def embedder_of(name: str, device: str, trust_remote_code: bool = False) -> Embedder:
    """Load an embedder onto a device (``auto``: a GPU where there is one)."""
    from longgame.models.device import device_of
    from longgame.models.embedders import load_embedder

    return load_embedder(name, device=str(device_of(device)), trust_remote_code=trust_remote_code)


def scorer_of(name: str, device: str, trust_remote_code: bool = False) -> ScorerModel:
    """Load a scorer model onto a device."""
    from longgame.signals.scorer_model import ScorerModel

    return ScorerModel(name, device=device, trust_remote_code=trust_remote_code)


def length_of(options: ModelOptions, config: Any) -> int:
    """Tokens that an example may have.

    Raises:
        ModelError: more are asked for than the model's context holds.
    """
    context = getattr(config, "max_position_embeddings", None)
    if options.max_length is None:
        return min(MOST_TOKENS, context or MOST_TOKENS)
    if context is not None and options.max_length > context:
        raise ModelError(
            f"max_length is {options.max_length} but '{options.name}' takes at most {context} tokens. Lower it."
        )
    return options.max_length


def _with_adapter(model: Any, folder: str) -> Any:
    from peft import PeftModel

    path = Path(folder).expanduser()
    if not (path / "adapter_config.json").is_file():
        raise ModelError(f"adapter '{folder}' holds no adapter_config.json. Give the directory of a PEFT adapter.")
    try:
        return PeftModel.from_pretrained(model, str(path), is_trainable=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"adapter '{folder}' cannot be put on the model: {reason}. Give one that was made for it."
        ) from error


class ScoreFolder:
    """The scores in a folder, of one job or of all its shards.

    Args:
        folder: of the scores.
        apart: columns and `CONTEXT_STATE` → name of the folder, or of the state, that holds them for one target set and
            training (see `apart_of`). A column that is not named is taken where the folder holds it once.

    Raises:
        ResumeError: the folder holds no finished scores, or lacks a shard.
    """

    def __init__(self, folder: str | Path, apart: Mapping[str, str] = MappingProxyType({})) -> None:
        self.folder = Path(folder)
        self.apart = dict(apart)
        self.folders = _shard_folders(self.folder) or [self.folder]
        self.config = read_config(self.folders[0])
        self._stores = [_stores(folder) for folder in self.folders]
        if not all(self._stores):
            empty = next(folder for folder, stores in zip(self.folders, self._stores, strict=True) if not stores)
            raise ResumeError(
                f"'{empty}' holds no finished scores. Run longgame score again; it goes on where it ended."
            )
        self.names = tuple(
            name
            for name in dict.fromkeys([*(name for store in self._stores[0] for name in store.names), *_APART])
            if all(self._stores_of(place, name) for place in range(len(self.folders)))
        )
        """Columns that every shard has."""

    @cached_property
    def ids(self) -> tuple[str, ...]:
        return tuple(sample_id for stores in self._stores for sample_id in stores[0].ids)

    def column(self, name: str) -> np.ndarray:
        """Return a column, float32: [n], or [n, d]; memory-mapped where it can be. Its digest is checked.

        Raises:
            PluginError: it is not there. ResumeError: it is damaged. RecipeError: there are several.
        """
        if name not in self.names:
            raise PluginError(f"'{self.folder}' was asked for an " + unknown("signal", name, self.names))
        parts = []
        for place in range(len(self.folders)):
            store, *others = self._stores_of(place, name)
            if others:
                raise RecipeError(
                    f"'{self.folder}' holds {name} for {1 + len(others)} target sets or trainings. Say which by "
                    "--target and the selector's parameters."
                )
            store.verify([name])
            parts.append(store.column(name))
        column = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return column.astype(np.float32, copy=False)

    def __call__(self, pool: Pool, names: Sequence[str]) -> Signals:
        """Return these signals of the pool's examples, found by ``sample_id``; a trainer takes this as ``signals=``.

        Raises:
            DataError: an example is not among the scores. PluginError: a signal is not.
        """
        rows = np.asarray([self._rows.get(sample_id, -1) for sample_id in pool.ids], dtype=np.int64)
        missing = np.flatnonzero(rows < 0)
        if len(missing):
            raise DataError(
                f"'{self.folder}' holds no scores of {len(missing)} of {len(pool)} examples, first of "
                f"{pool.ids[missing[0]]}. Give the dataset the column sample_id, with the ids of scores.parquet."
            )
        return signals_of(self, pool, rows, names, clusters=8, seed=stream_seed(0, "clusters"))

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {sample_id: row for row, sample_id in enumerate(self.ids)}

    def counts(self) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Tokens of every row without and with a loss."""
        prompt, response = (np.rint(self.column(name)).astype(np.int64) for name in COUNTS)
        return prompt, response

    def has_context(self, name: str) -> bool:
        """Whether the vector is there."""
        return name in _context(self.folders[0], self.apart)

    def context(self, name: str) -> np.ndarray:
        """A vector that describes the target set.

        Raises:
            ResumeError: it is missing or damaged.
        """
        vectors = _context(self.folders[0], self.apart)
        if name not in vectors:
            raise ResumeError(f"'{self.folder}' lacks the vector {name}. Give --model, and it is computed into it.")
        return np.asarray(vectors[name])

    def _stores_of(self, place: int, name: str) -> list[SignalStore]:
        """The stores that hold a column in one of the folders; more than one: of several target sets."""
        folder = self.folders[place]
        if name in self.apart or name in _APART:
            names = [self.apart[name]] if name in self.apart else [path.name for path in folder.glob(f"{name}-*")]
            return [SignalStore(folder / other) for other in names if (folder / other / MANIFEST).is_file()]
        return [store for store in self._stores[place] if name in store.names][:1]


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.yaml of a folder of scores.

    Raises:
        ResumeError: it is missing or damaged.
    """
    try:
        config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
        if isinstance(config, dict) and {"fingerprint", "rows", "digest"} <= config.keys():
            return config
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ResumeError(
            f"'{folder}' holds no scores ({CONFIG} cannot be read). Give a folder that longgame score wrote."
        ) from error
    raise ResumeError(f"'{folder / CONFIG}' is not that of scores. Give a folder that longgame score wrote.")


def _stores(folder: Path) -> list[SignalStore]:
    return [SignalStore(path) for path in sorted(folder.glob(f"{_STORE}*")) if path.is_dir() and path.suffix != ".part"]


def _shard_folders(folder: Path) -> list[Path]:
    """Folders of all shards of a job, in order; empty where the folder is no job of several."""
    parts = sorted(path for path in folder.glob("shard-*-of-*") if path.is_dir())
    if not parts:
        return []
    total = int(parts[0].name.rsplit("-", 1)[1])
    names = [shard_name(number, total) for number in range(1, total + 1)]
    missing = [name for name in names if not (folder / name).is_dir()]
    if missing or len(parts) != total:
        raise ResumeError(
            f"'{folder}' holds {len(parts)} folders for {total} shards; missing: {', '.join(missing) or 'none'}. Run "
            "longgame score with the same --shard n for each, and delete those of another n."
        )
    return [folder / name for name in names]


def shard_name(number: int, total: int) -> str:
    """Folder of a shard."""
    return f"shard-{number:04d}-of-{total:04d}"


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
    return rows.take(np.arange(start, stop))


def computed_names(names: Sequence[str]) -> list[str]:
    """Columns that are computed row by row to give these signals.

    Raises:
        PluginError: an unknown name. RecipeError: a signal that needs what scoring has not.
    """
    for name in names:
        if name not in SIGNALS and name not in CONTEXT:
            raise RecipeError(unknown("signal", name, (*SIGNALS, *CONTEXT)))
    result: dict[str, None] = {}
    for name in names:
        needs = (SIGNALS[name] if name in SIGNALS else CONTEXT[name]).needs
        if name in SIGNALS and SIGNALS[name].of_no_model and name not in GRADES:
            raise RecipeError(
                f"signal '{name}' is made of all candidates when they are selected, without a model. Leave it out: "
                "longgame select makes it."
            )
        # Adam's alignment without moments is the plain one, as before the first step of a training
        if ("optimizer" in needs and name not in ALIGNMENTS) or "evaluation" in needs:
            what = "Adam's moments of a training" if "optimizer" in needs else "an audit's evaluation items"
            raise RecipeError(f"signal '{name}' needs {what}, which scoring has not. Use it in a trainer or an audit.")
        for column in _FITTED.get(name, (name,) if name in SIGNALS else ()):
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
) -> ScoreFolder:
    """Compute these signals of all rows into a folder; what stands there already is not computed again.

    Killed and called again it goes on behind the last shard of `SHARD_ROWS` rows, and ends with the same bytes.

    Args:
        names: signals, and context vectors of the target set.
        folder: of the scores; made if it is missing.
        target: rows that the selector compares with. Another one than before is measured beside it; columns that do
            not depend on it stay.
        on_bad_row: of rows that cannot be tokenized.
        command: stands in config.yaml.
        scorer: the model, where it is loaded already.
        auxiliary: how the model is trained beside the selection (`Selector.auxiliary`).
        grading: sources of quality and complexity.

    Raises:
        ResumeError: the folder holds scores of other data, another model or other settings.
        RecipeError: a signal that needs a target set, and there is none. DataError, ModelError, NumericalError: as the
            signals raise. StorageError: the disk is full.
    """
    path = Path(folder)
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
    if not (path / CONFIG).is_file() and _shard_folders(path):
        raise RecipeError(
            f"'{path}' holds the scores of shards, and {', '.join(columns)} is to be computed of all rows. Add it with "
            "longgame score --shard to each of them, or use another folder."
        )
    spec, config = auxiliary or AuxiliarySpec(), None
    if (path / CONFIG).is_file():
        check_folder(path, rows)
        config = read_config(path)
        check_grading(config, grading, _stored(path), path)
        ready = ScoreFolder(path, apart_of(names, config, target, spec, options.reference)) if _stores(path) else None
        done = ready is not None and {*columns} <= {*ready.names} and all(map(ready.has_context, context))
        now = dataclasses.asdict(options) | {"reference": None}
        later = dict.fromkeys(("reference", "embedder", "scorer_model"))  # keys that older folders lack
        if ready is not None and done and scorer is None and {**later, **config["model"]} == now:
            return ready
    asked = [name for name in columns if name in SIGNALS and "scorer" in SIGNALS[name].needs]
    if asked and options.scorer_model is None and not {*asked} <= _stored(path):
        raise RecipeError(f"'{asked[0]}' is that of a scorer model, and there is none. Give one (--scorer-model NAME).")
    scorer = scorer or LoadedScorer.load(options)
    fingerprint = scorer.fingerprint()
    _begin(path, rows, scorer, fingerprint, target if compared else None, seed, command, grading)
    places = apart_of(names, read_config(path), target, spec, options.reference)
    missing = [name for name in columns if name not in _stored(path) and name not in places]
    targets = None if target is None else _target_pool(target, scorer)
    source = scorer.source(seed, None if targets is None else lambda: targets, grading)
    source.begin_stage()
    vectors = _context(path, places)
    if lacking := [name for name in context if name not in vectors]:
        measured = dict(source(targets, lacking).context)  # type: ignore[arg-type]
        write_state(path, places.get(CONTEXT_STATE, CONTEXT_STATE), vectors | measured)
    first = not _stored(path)
    tokenized = TokenizedRows(rows, scorer.tokenizer, scorer.max_length, options.too_long, on_bad_row)
    engine, on_shard = (
        _Engine(source, scorer, rows),
        None if progress is None else lambda done: progress(done, len(rows)),
    )
    if missing or first:
        names_here = [*(COUNTS if first else ()), *missing]
        stream_signals(
            engine,
            tokenized.shards(),
            names_here,
            path / f"{_STORE}{_short(' '.join(names_here))[:8]}",
            fingerprint=fingerprint,
            dtype={name: "float32" if name in COUNTS else options.store_dtype for name in names_here},
            on_shard=on_shard,
        )
        _write_bad(path, [*rows.bad, *tokenized.bad], tokenized.cut)
        if graded := grading.describe():
            write_json(path / GRADING_FILE, graded)
    job: AuxiliaryJob | None = None
    for name in (name for name in places if name in columns and not (path / places[name]).is_dir()):
        if name in ALIGNMENTS:
            stream_signals(
                engine, tokenized.shards(), [name], path / places[name], fingerprint=fingerprint, on_shard=on_shard
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
    return scores


class _Engine:
    """Computes the columns of one shard, those of the base and the live ones in one pass where they are one model."""

    def __init__(self, source: SignalSource, scorer: LoadedScorer, rows: DataRows) -> None:
        self._source = source
        self._plain = scorer.options.adapter is None
        self._rated = rows.all_rated
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
    _check_made_with(scores.folder, scores.config, fingerprint, seed)
    tokenized = TokenizedRows(rows, scorer.tokenizer, scorer.max_length, options.too_long, on_bad_row)
    on_shard = None if progress is None else lambda done: progress(done, len(rows))
    stores = _auxiliary_job(scores.folder, rows, scorer, fingerprint, tokenized, seed, on_shard).log(spec)
    loss, accuracy = (
        np.stack([store.column(name) for store in stores], axis=1).astype(np.float32)
        for name in ("loss", "token_accuracy")
    )
    epochs = tuple(range(1, spec.epochs + 1))
    return Trajectories(f"the log trained in '{scores.folder}'", tuple(stores[0].ids), epochs, loss, accuracy)


def _context(path: Path, places: Mapping[str, str]) -> dict[str, Any]:
    """Vectors of the target set that are stored; empty where there are none."""
    name = places.get(CONTEXT_STATE, CONTEXT_STATE)
    return dict(read_state(path, name)) if (path / f"{name}.json").is_file() else {}


def _stored(path: Path) -> set[str]:
    return {name for store in _stores(path) for name in store.names}


def check_folder(path: Path, rows: DataRows) -> None:
    """Raise ResumeError where the folder holds scores of other data."""
    config = read_config(path)
    if config["digest"] != rows.digest:
        raise ResumeError(
            f"'{path}' holds scores of other data ({config['rows']} rows with the digest {config['digest']}; these are "
            f"{len(rows)} with {rows.digest}). Give the data and options it was made with, or another folder."
        )


def check_model(scores: ScoreFolder, options: ModelOptions) -> None:
    """Raise ResumeError where the scores were made by another model, or with options that change numbers.

    A model is compared by its name; its content is compared where something is computed.
    """
    free = {"device", "batch_tokens", "store_dtype", "trust_remote_code", "reference"}
    now, before = dataclasses.asdict(options), scores.config["model"]
    changed = [name for name in now if name not in free and now[name] is not None and now[name] != before.get(name)]
    if changed:
        pairs = ", ".join(f"{name} {before.get(name)!r}, not {now[name]!r}" for name in changed)
        raise ResumeError(
            f"'{scores.folder}' holds scores of another model, tokenizer or settings ({pairs}). Use what it was made "
            f"with (see {CONFIG}), or another folder."
        )


def check_grading(config: Mapping[str, Any], grading: QualitySources, names: Collection[str], path: Path) -> None:
    """Raise ResumeError where the scores hold grades of other sources than the named ones."""
    for kind, identity in grading.identity().items():
        stored = (config.get("grading") or {}).get(kind)
        columns = ("complexity",) if kind == "complexity" else ("quality", "grade", "own_answer_quality")
        if stored != identity and (stored is not None or {*columns} & {*names}):
            raise ResumeError(
                f"'{path}' holds {kind} by {stored or 'the column or rules'}, not by {identity}. Name the source it "
                "was made with, or give another folder."
            )


def _check_made_with(path: Path, config: Mapping[str, Any], fingerprint: str, seed: int) -> None:
    """Raise ResumeError where scores are of another model or seed."""
    now = {"fingerprint": fingerprint, "seed": seed}
    names = {"fingerprint": "model, tokenizer or settings", "seed": "seed"}
    changed = [names[key] for key, value in now.items() if config.get(key) not in (value, None)]
    if changed:
        raise ResumeError(
            f"'{path}' holds scores of another {' and '.join(changed)}. Use what it was made with (see {CONFIG}), "
            "or another folder."
        )


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
        _check_made_with(path, config, fingerprint, seed)
        before = config.get("grading") or {}
        if (target is None or config.get("target") is not None) and {*grading.identity()} <= {*before}:
            return
    elif path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise StorageError(f"'{path}' is not empty and holds no scores. Give another folder.")
    else:
        before = {}
    versions = {name: _version(name) for name in _VERSIONS}
    config = {
        "command": command,
        "data": rows.source.label,
        "rows": len(rows),
        "digest": rows.digest,
        "turns": rows.rules.turns,
        "where": rows.where,
        "model": dataclasses.asdict(scorer.options) | {"reference": None},
        "max_length": scorer.max_length,
        "weights": scorer.origin,
        "template": _short(str(scorer.tokenizer.chat_template)),
        "target": None if target is None else target.digest,
        "seed": seed,
        "grading": before | grading.identity(),
        "fingerprint": fingerprint,
        "versions": versions,
    }
    write_file(path / CONFIG, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def _short(text: str) -> str:
    return blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()


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


def _write_bad(path: Path, bad: Sequence[BadRow], cut: int) -> None:
    lines = [json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n" for row in bad]
    if lines:
        write_file(path / BAD_ROWS, "".join(lines))
    write_json(path / "tokenized.json", {"bad_rows": len(bad), "cut": cut})


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
    part = scratch(path / TABLE)
    with storage_errors(path / TABLE):
        pq.write_table(pa.table(columns), part, compression="zstd")
        part.replace(path / TABLE)


def signals_of(
    scores: ScoreFolder, pool: Pool, rows: Int[np.ndarray, " n"], names: Sequence[str], clusters: int, seed: int
) -> Signals:
    """Return these signals of some rows of the scores, row-aligned with the pool of just these rows.

    Args:
        rows: rows of the scores, in the pool's order.
        clusters: k of the k-means behind ``cluster``.
        seed: of the k-means.
    """
    columns = {name: scores.column(name)[rows] for name in names if name in SIGNALS and name not in _FITTED}
    if "difficulty" in names:
        from scipy.stats import rankdata

        losses = scores.column("base_loss")[rows]
        columns["difficulty"] = ((rankdata(losses) - 0.5) / len(losses)).astype(np.float32)
    if "cluster" in names:
        from longgame.signals.source import cluster

        columns["cluster"] = cluster(pool.ids, scores.column("embedding")[rows], clusters, seed)
    return Signals(pool.ids, columns, {name: scores.context(name) for name in names if name in CONTEXT})
