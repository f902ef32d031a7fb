"""A folder of scores as it is read: columns of one job or of all its shards, and whether they are what is asked for."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from jaxtyping import Int

from longgame.data.examples import Pool
from longgame.errors import DataError, ModelError, PluginError, RecipeError, ResumeError, unknown
from longgame.offline.rows import BadRow, DataRows
from longgame.offline.scorer import ModelOptions
from longgame.seeding import stream_seed
from longgame.signals.base import CONTEXT, SIGNALS, Past, Signals
from longgame.signals.quality.base import QualitySources
from longgame.signals.store import MANIFEST, PackedIds, SignalStore
from longgame.storage import read_json, read_state, scratch_target

CONFIG, TABLE, BAD_ROWS, CONTEXT_STATE = "config.yaml", "scores.parquet", "bad-rows.jsonl", "context"
GRADING_FILE = "quality.json"
"""What the quality sources did, in the last job that asked them."""
TOKENIZED_FILE = "tokenized.json"
"""How many rows could not be tokenized, and how many were cut."""
_FILES = (CONFIG, TABLE, BAD_ROWS, GRADING_FILE, TOKENIZED_FILE)
COUNTS = ("prompt_tokens", "response_tokens")
"""Columns of every folder: tokens without and with a loss."""
STORE = "signals-"
APART = ("influence", "reference_loss")
"""Columns that always stand apart."""
FITTED = {"cluster": ("embedding",), "difficulty": ("base_loss",)}
"""Signals that are fitted over all rows, and the columns that they are made of."""


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
        self.folders = shard_folders(self.folder) or [self.folder]
        self.config = read_config(self.folders[0])
        self._stores = [stores_in(folder) for folder in self.folders]
        if not all(self._stores):
            empty = next(folder for folder, stores in zip(self.folders, self._stores, strict=True) if not stores)
            raise ResumeError(
                f"'{empty}' holds no finished scores. Run longgame score again; it goes on where it ended."
            )
        self.names = tuple(
            name
            for name in dict.fromkeys([*(name for store in self._stores[0] for name in store.names), *APART])
            if all(self._stores_of(place, name) for place in range(len(self.folders)))
        )
        """Columns that every shard has."""

    @cached_property
    def ids(self) -> tuple[str, ...]:
        return tuple(sample_id for stores in self._stores for sample_id in stores[0].ids)

    def ids_of_folders(self) -> list[PackedIds]:
        """The ids of each folder, decoded on access."""
        return [stores[0].ids for stores in self._stores]

    def column(self, name: str) -> np.ndarray:
        """Return a column, float32: [n], or [n, d]; memory-mapped where it can be. Its digest is checked.

        Raises:
            PluginError: it is not there. ResumeError: it is damaged. RecipeError: there are several.
        """
        parts = []
        for place in range(len(self.folders)):
            store = self._store_of(place, name)
            store.verify([name])
            parts.append(store.column(name))
        column = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return column.astype(np.float32, copy=False)

    def bad_rows(self) -> Iterator[BadRow]:
        """Yield the rows that could not be used, in the order of the data."""
        for path in [folder / BAD_ROWS for folder in self.folders if (folder / BAD_ROWS).is_file()]:
            with path.open(encoding="utf-8") as lines:
                yield from (BadRow(**json.loads(line)) for line in lines if line.strip())

    def cut_rows(self) -> int | None:
        """Return how many rows were cut at the maximum length; None where the folder does not say."""
        paths = [folder / TOKENIZED_FILE for folder in self.folders]
        if not all(path.is_file() for path in paths):
            return None
        return sum(int(read_json(path)["cut"]) for path in paths)

    def __len__(self) -> int:
        return sum(len(stores[0]) for stores in self._stores)

    def block(self, names: Sequence[str], start: int, stop: int) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
        """Return ids and columns of the rows from ``start`` to ``stop``; nothing else is read. Digests are checked.

        Raises:
            PluginError: a column is not there. ResumeError: it is damaged. RecipeError: there are several.
        """
        ids: list[str] = []
        parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
        first = 0
        for place, stores in enumerate(self._stores):
            begin, end = max(start - first, 0), min(stop - first, len(stores[0]))
            first += len(stores[0])
            if begin >= end:
                continue
            ids.extend(stores[0].ids[begin:end])
            for name in names:
                store = self._store_of(place, name)
                store.verify([name], begin, end)
                parts[name].append(store.column(name)[begin:end].astype(np.float32, copy=False))
        return tuple(ids), {name: np.concatenate(columns) for name, columns in parts.items()}

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
        return name in self._vectors

    def context(self, name: str) -> np.ndarray:
        """A vector that describes the target set.

        Raises:
            ResumeError: it is missing or damaged, or shards hold different ones.
        """
        if name not in self._vectors:
            raise ResumeError(f"'{self.folder}' lacks the vector {name}. Give --model, and it is computed into it.")
        return np.asarray(self._vectors[name])

    @cached_property
    def _vectors(self) -> dict[str, Any]:
        return shared_context(self.folders, self.apart.get(CONTEXT_STATE, CONTEXT_STATE))

    def _store_of(self, place: int, name: str) -> SignalStore:
        """The store that holds a column in one of the folders.

        Raises:
            PluginError: there is none. RecipeError: there are several.
        """
        if name not in self.names:
            raise PluginError(f"'{self.folder}' was asked for an " + unknown("signal", name, self.names))
        store, *others = self._stores_of(place, name)
        if others:
            raise RecipeError(
                f"'{self.folder}' holds {name} for {1 + len(others)} target sets or trainings. Say which by "
                "--target and the selector's parameters."
            )
        return store

    def _stores_of(self, place: int, name: str) -> list[SignalStore]:
        """The stores that hold a column in one of the folders; more than one: of several target sets."""
        folder = self.folders[place]
        if name in self.apart or name in APART:
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


def stores_in(folder: Path) -> list[SignalStore]:
    return [SignalStore(path) for path in sorted(folder.glob(f"{STORE}*")) if path.is_dir() and path.suffix != ".part"]


def is_scratch(path: Path) -> bool:
    """Whether a job that was killed left this file half-written in its folder of scores."""
    name = scratch_target(path) or ""
    return name in _FILES or re.fullmatch(rf"{CONTEXT_STATE}(-\w+)?\.(json|safetensors)", name) is not None


def is_free(path: Path) -> bool:
    """Whether scores may be written into this folder: it is missing, or holds nothing but what a killed job left."""
    return not path.exists() or (path.is_dir() and all(map(is_scratch, path.iterdir())))


def unfinished(folder: Path) -> str:
    """Return what a folder of finished signals lacks beside them, in words; empty where it is whole.

    A job writes these files behind its signals, and may be killed before.
    """
    for name in (TOKENIZED_FILE, TABLE):
        if not (folder / name).is_file():
            return f"{name} is missing"
    try:
        columns = {*pq.read_schema(folder / TABLE).names}
    except (OSError, pa.ArrowException) as error:
        return f"{TABLE} cannot be read ({' '.join(str(error).split()).rstrip('.')})"
    stores = stores_in(folder)
    flat = {name: None for store in stores for name in store.names if store.column(name).ndim == 1}
    missing = [name for name in flat if name not in columns]
    return f"{TABLE} lacks {', '.join(missing)}" if missing else ""


def shard_folders(folder: Path) -> list[Path]:
    """Folders of all shards of a job, in order; empty where the folder is no job of several.

    Raises:
        ResumeError: a shard is missing, or the shards are not those of one job.
    """
    parts = sorted(path for path in folder.glob("shard-*-of-*") if path.is_dir())
    if not parts:
        return []
    total = int(parts[0].name.rsplit("-", 1)[1])
    if others := [path for path in parts if not path.name.endswith(f"-{total:04d}")]:
        raise ResumeError(
            f"'{folder}' holds shards of different jobs ({parts[0].name}, {others[0].name}). Delete those of one n, or "
            "move them to another folder."
        )
    return [path for path, _ in check_shards(parts)]


_NAMED = 8
"""Missing shards that an error names."""
_OF_A_JOB = {
    "fingerprint": "model, tokenizer or settings",
    "max_length": "max_length",
    "seed": "seed",
    "turns": "turns",
    "where": "condition (--where)",
    "target": "target set",
    "grading": "sources of quality",
    "store_dtype": "--store-dtype",
    "versions": "version of a library",
}
"""Keys of config.yaml that all shards of a job have in common → what they are."""


def check_shards(folders: Sequence[Path]) -> list[tuple[Path, dict[str, Any]]]:
    """Return every shard and its config.yaml, in the order of their numbers.

    Args:
        folders: of the shards, in any order.

    Raises:
        ResumeError: a shard is missing or stands twice, or is not of the same data, model, settings and versions as the
            first.
    """
    configs = [read_config(folder) for folder in folders]
    settings = [config | {"store_dtype": config["model"].get("store_dtype")} for config in configs]
    shards = [config.get("shard") or {} for config in configs]
    if old := [folder for folder, shard in zip(folders, shards, strict=True) if not shard]:
        raise ResumeError(f"'{old[0]}' was not scored as a shard. Give folders of longgame score --shard i/n.")
    first, total = folders[0], int(shards[0]["total"])
    by_number: dict[int, Path] = {}
    for folder, config, shard in zip(folders, settings, shards, strict=True):
        if (shard["digest"], shard["total"]) != (shards[0]["digest"], total):
            raise ResumeError(
                f"'{folder}' is shard {shard['number']}/{shard['total']} of data with the digest {shard['digest']}. "
                f"'{first}' is of {total} shards of data with {shards[0]['digest']}. Score the same data with one n."
            )
        changed = [words for key, words in _OF_A_JOB.items() if config.get(key) != settings[0].get(key)]
        if changed:
            raise ResumeError(
                f"'{folder}' was scored with another {', '.join(changed)} than '{first}' (see {CONFIG} in both). Score "
                f"it again, in a new folder: {shard_command(configs[0], int(shard['number']))}"
            )
        other = by_number.setdefault(int(shard["number"]), folder)
        if other != folder:
            raise ResumeError(f"shard {shard['number']}/{total} stands twice: '{other}' and '{folder}'. Give one.")
    if missing := [number for number in range(1, total + 1) if number not in by_number]:
        names = ", ".join(shard_name(number, total) for number in missing[:_NAMED])
        raise ResumeError(
            f"{len(missing)} of {total} shards of '{first.parent}' are missing: {names}"
            f"{' …' if len(missing) > _NAMED else ''}. Make the first of them: {shard_command(configs[0], missing[0])}"
        )
    pairs = zip(folders, configs, strict=True)
    return sorted(pairs, key=lambda pair: int(pair[1]["shard"]["number"]))


def shard_command(config: Mapping[str, Any], number: int) -> str:
    """The command that makes a shard, told by that of another one."""
    total = int(config["shard"]["total"])
    command, replaced = re.subn(r"--shard[ =]\S+", f"--shard {number}/{total}", str(config.get("command") or ""))
    return command if replaced else f"longgame score … --shard {number}/{total}"


def shard_name(number: int, total: int) -> str:
    """Folder of a shard."""
    return f"shard-{number:04d}-of-{total:04d}"


def shared_context(folders: Sequence[Path], name: str = CONTEXT_STATE) -> dict[str, Any]:
    """Return the vectors of a target set that any of these shards holds, by name; empty where there are none.

    Each comes from the first shard that holds it. Those of other shards may differ by rounding, as on another device.

    Args:
        name: of the state that holds them (see `ScoreFolder`).

    Raises:
        ResumeError: one is damaged, or shards hold different ones.
    """
    vectors: dict[str, Any] = {}
    origin: dict[str, Path] = {}
    for folder in folders:
        state = dict(read_state(folder, name)) if (folder / f"{name}.json").is_file() else {}
        for key, vector in state.items():
            if key not in vectors:
                vectors[key], origin[key] = vector, folder
            elif not _equal_but_for_rounding(np.asarray(vector), np.asarray(vectors[key])):
                raise ResumeError(
                    f"'{folder}' holds another vector {key} of the target set than '{origin[key]}'. Score that shard "
                    "again, in a new folder, with the same --target and model."
                )
    return vectors


_ROUNDING = 0.02
"""Part of a vector's largest entry by which another device may differ: a few roundings in bfloat16."""


def _equal_but_for_rounding(first: np.ndarray, second: np.ndarray) -> bool:
    if first.shape != second.shape:
        return False
    if first.dtype.kind not in "fc":
        return bool(np.array_equal(first, second))
    limit = _ROUNDING * float(np.abs(second).max(initial=0.0))
    return bool(np.allclose(first, second, rtol=0.0, atol=limit, equal_nan=True))


def stored_names(path: Path) -> set[str]:
    return {name for store in stores_in(path) for name in store.names}


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


def check_template(path: Path, config: Mapping[str, Any], options: ModelOptions) -> None:
    """Raise ResumeError where the model would now read rows by another chat template than that of the scores.

    Raises:
        ModelError: the template that ``options`` names cannot be used.
    """
    from longgame.models.load import load_tokenizer

    stored = config["model"].get("chat_template")
    named = options if options.chat_template is not None else dataclasses.replace(options, chat_template=stored)
    try:
        template = load_tokenizer(named.spec()).chat_template
    except ModelError:
        if options.chat_template is not None:
            raise
        return  # a model that is not here has not been changed here
    if config.get("template") not in (short_digest(str(template)), None):
        raise ResumeError(
            f"'{path}' holds scores under another chat template than '{options.name}' has now. Score the data again, "
            "into another folder; or leave the model out, and the scores are taken as they are."
        )


def short_digest(text: str) -> str:
    """16 characters by which a text is known again."""
    return blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()


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


def check_made_with(path: Path, config: Mapping[str, Any], fingerprint: str, seed: int) -> None:
    """Raise ResumeError where scores are of another model or seed."""
    now = {"fingerprint": fingerprint, "seed": seed}
    names = {"fingerprint": "model, tokenizer or settings", "seed": "seed"}
    changed = [names[key] for key, value in now.items() if config.get(key) not in (value, None)]
    if changed:
        raise ResumeError(
            f"'{path}' holds scores of another {' and '.join(changed)}. Use what it was made with (see {CONFIG}), "
            "or another folder."
        )


def signals_of(
    scores: ScoreFolder,
    pool: Pool,
    rows: Int[np.ndarray, " n"],
    names: Sequence[str],
    clusters: int,
    seed: int,
    past: Past | None = None,
) -> Signals:
    """Return these signals of some rows of the scores, row-aligned with the pool of just these rows.

    Args:
        rows: rows of the scores, in the pool's order.
        clusters: k of the k-means behind ``cluster``.
        seed: of the k-means.
        past: earlier selections (`longgame.signals.frozen.cluster`).
    """
    columns = {name: scores.column(name)[rows] for name in names if name in SIGNALS and name not in FITTED}
    if "difficulty" in names:
        from scipy.stats import rankdata

        losses = scores.column("base_loss")[rows]
        columns["difficulty"] = ((rankdata(losses) - 0.5) / len(losses)).astype(np.float32)
    if "cluster" in names:
        from longgame.signals.frozen import cluster

        columns["cluster"] = cluster(pool.ids, scores.column("embedding")[rows], clusters, seed, past)
    return Signals(pool.ids, columns, {name: scores.context(name) for name in names if name in CONTEXT})
