"""Rows of files, folders of shards, globs, saved data sets and the Hugging Face hub, one after the other.

Everything is read as a stream: a file of any size needs the memory of a few rows.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from longgame.data.examples import Example
from longgame.data.files import (
    SUFFIXES,
    TABLE_ROWS,
    ReadRow,
    file_kind,
    first_line,
    read_rows,
    read_schema,
    read_tables,
)
from longgame.data.formats import RowError, RowRules, Turns, read_row
from longgame.errors import DataError, did_you_mean, did_you_mean_file
from longgame.limits import free_memory, located, missing, why_no_file

Split = Literal["train", "eval"]
_NAMES = ", ".join(SUFFIXES)
_SPLIT_WORDS = {"train": "train", "test": "test", "eval": "eval", "validation": "eval", "valid": "eval", "dev": "eval"}
_EVAL_SPLITS = ("validation", "test", "eval", "dev")
_FILES_REMEDY = (
    "Without network, give --data-dir with files of that content and name them in the recipe, or write a path to a "
    f"file ({_NAMES})"
)
_HUB_REMEDY = _FILES_REMEDY + ", or set HF_HUB_OFFLINE=1 to use a copy that is already cached."
BESIDE_A_SUBSET = (".manifest.json", ".explain.jsonl", ".bad-rows.jsonl")
"""Endings of the files that a selection writes beside its subset, which hold no examples."""


class RowSource:
    """Rows in an order that is the same at every reading.

    Attributes:
        label: as the user wrote it, for messages.
        unit: what a row's number counts ("line", "row").
        paths: files and folders on this machine that are read.
    """

    label: str
    unit = "row"
    paths: tuple[Path, ...] = ()

    def rows(self) -> Iterator[tuple[str, int, ReadRow]]:
        """Yield every row: its file, its number there (from 1), and what parses it."""
        raise NotImplementedError

    def tables(self) -> Iterator[pa.Table] | None:
        """Yield all rows as Arrow tables with the source's own schemas; None where the source is no table."""
        return None

    def schemas(self) -> list[pa.Schema]:
        """Return the schemas of `tables`, one for each file; none where the source is no table."""
        return []


class FileSource(RowSource):
    """Rows of one file or of several, in the order of their names."""

    def __init__(self, label: str, paths: Sequence[Path]) -> None:
        self.label, self.paths = label, tuple(paths)
        self.unit = "line" if all(file_kind(path) in ("jsonl", "csv") for path in paths) else "row"

    def rows(self) -> Iterator[tuple[str, int, ReadRow]]:
        for path in self.paths:
            name = str(path)
            for number, read in read_rows(path):
                yield name, number, read

    def tables(self) -> Iterator[pa.Table] | None:
        if not all(file_kind(path) in ("parquet", "arrow") for path in self.paths):
            return None
        return (table for path in self.paths for table in read_tables(path))

    def schemas(self) -> list[pa.Schema]:
        if not all(file_kind(path) in ("parquet", "arrow") for path in self.paths):
            return []
        return [read_schema(path) for path in self.paths]


class TableSource(RowSource):
    """Rows of a `datasets.Dataset`, of the folder where it is saved, or of the files that it maps."""

    def __init__(self, label: str, dataset: Any, folder: Path | None = None) -> None:
        self.label, self.dataset = label, dataset
        mapped = (Path(entry["filename"]) for entry in dataset.cache_files)
        self.paths = tuple(mapped) if folder is None else (folder,)

    def rows(self) -> Iterator[tuple[str, int, ReadRow]]:
        number = 0
        for table in self.tables():
            for row in table.to_pylist():
                number += 1
                yield self.label, number, lambda row=row: row  # type: ignore[misc]

    def tables(self) -> Iterator[pa.Table]:
        plain = self.dataset.with_format("arrow")
        for start in range(0, len(plain), TABLE_ROWS):
            yield plain[start : start + TABLE_ROWS]

    def schemas(self) -> list[pa.Schema]:
        return [self.dataset.with_format("arrow")[:0].schema]


def open_source(data: Any, split: Split = "train") -> RowSource:
    """Return the rows of what a user gives as data.

    Args:
        data: the path of a file (`SUFFIXES`), a folder of shards or a saved data set, a glob, several of them,
            ``hub:owner/name[:config[:split]]``, where the split may be a slice (``train[:10%]``), or a
            `datasets.Dataset`.
        split: of a hub data set that names none.

    Raises:
        DataError: there is no such file, folder or data set, or it holds no file that is read.
    """
    if hasattr(data, "with_format") and hasattr(data, "column_names"):
        if isinstance(data.column_names, dict):
            raise DataError(
                f"the data set has the splits {', '.join(data.column_names)}. Give one of them: data['train']."
            )
        if not hasattr(data, "cache_files"):
            raise DataError(
                f"the data is of type {type(data).__name__}, a stream. Give a datasets.Dataset (load it without "
                "streaming=True), or its files."
            )
        return TableSource("dataset", data)
    if isinstance(data, list | tuple) and data and all(isinstance(item, str | Path) for item in data):
        sources = [open_source(item, split) for item in data]
        files = [source for source in sources if isinstance(source, FileSource)]
        if len(files) == len(sources):
            return FileSource(", ".join(map(str, data)), [path for source in files for path in source.paths])
        raise DataError("several sources are given and one is no file. Give files, or one data set of another kind.")
    if not isinstance(data, str | Path):
        raise DataError(f"data is a {type(data).__name__}; give a path, hub:owner/name, or a datasets.Dataset.")
    label = str(data)
    if label.startswith("hub:"):
        return TableSource(label, _hub_dataset(label, split))
    path = Path(label).expanduser()
    if path.is_dir():
        return _folder(label, path)
    if not path.exists() and glob.has_magic(label):
        matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 - a pattern of Path.glob cannot be absolute
        paths = sorted(Path(name) for name in matches if file_kind(Path(name)))
        if not paths:
            raise DataError(f"'{label}' matches no file that is read ({_NAMES}). Check the pattern.")
        return FileSource(label, paths)
    return FileSource(label, [_existing(label, path)])


def _existing(label: str, path: Path) -> Path:
    if reason := why_no_file(path):
        lists = reason.startswith("does not exist") and path.parent.is_dir()
        near = [entry.name for entry in path.parent.iterdir() if file_kind(entry) or entry.is_dir()] if lists else []
        hint = did_you_mean_file(path.name, near)
        raise DataError(f"data file '{label}' {reason}.{hint} Give the path of an existing file.")
    if not file_kind(path):
        raise DataError(f"data file '{label}' has an ending that is not read. Known: {_NAMES}. Convert or rename it.")
    return path


def is_beside_a_subset(path: Path) -> bool:
    """Whether a file is one that a selection wrote beside a subset, which stands in the same folder."""
    stem = next((path.name.removesuffix(end) for end in BESIDE_A_SUBSET if path.name.endswith(end)), "")
    return bool(stem) and any(
        (path.parent / f"{stem}{end}").exists() for end in ("", ".jsonl", ".jsonl.gz", ".parquet")
    )


def _folder(label: str, folder: Path) -> RowSource:
    """A saved data set, or the shards of a folder."""
    if (folder / "dataset_dict.json").is_file():
        splits = ", ".join(str(Path(label) / entry.name) for entry in sorted(folder.iterdir()) if entry.is_dir())
        raise DataError(f"'{label}' holds several splits. Give one of them: {splits}.")
    if (folder / "state.json").is_file():
        import datasets

        try:
            return TableSource(label, datasets.load_from_disk(str(folder)), folder)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise DataError(f"the saved data set '{label}' cannot be read: {first_line(error)}") from error
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and file_kind(path)
        and not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
        and path.name not in ("dataset_info.json", "dataset_infos.json", "state.json")
        and not is_beside_a_subset(path)
    )
    if not paths:
        raise DataError(f"the folder '{label}' holds no file that is read ({_NAMES}). Give a folder of such files.")
    words = {word for path in paths for word in re.findall(r"[a-z]+", str(path.relative_to(folder)).lower())}
    names = sorted({_SPLIT_WORDS[word] for word in words & _SPLIT_WORDS.keys()})
    if len(names) > 1:
        raise DataError(
            f"the folder '{label}' holds files of several splits ({', '.join(names)}), such as "
            f"'{paths[0].relative_to(folder)}'. Give one split, by its folder, a file, or a glob such as "
            f"'{Path(label) / 'train*'}'."
        )
    return FileSource(label, paths)


# References of an audit's recipe


def load_examples(
    reference: str,
    *,
    data_dir: Path | None,
    split: Split,
    turns: Turns = "all",
    quality: tuple[float, float] = (0, 1),
    columns: tuple[str, ...] = (),
) -> list[Example]:
    """The examples of a reference, in file order.

    Args:
        reference: a bare name (``data_dir/split/NAME`` with an ending of `SUFFIXES`), or what `open_source` takes.
        data_dir: folder with ``train/`` and ``eval/``; only bare names need it.
        split: the folder of a bare name; for a hub data set without an explicit split, ``train``, or the first that
            exists of validation, test, eval and dev. Of evaluation items, the last assistant turn is what is scored.
        turns: assistant turns that are learned, for ``train``.
        quality: lowest and highest value of the ``quality`` column.
        columns: whose numbers a quality source reads.

    Formats are those of `longgame.data.formats`; optional columns are skill, answer, choices, quality, source, noisy,
    difficulty, verifier, system (system_prompt, system_message), history and tools. A cell that is NaN is missing.
    Where ``answer`` is the response, the gold answer is the text after ``####``, else the answer if it is one line.

    Raises:
        DataError: unknown name or file, a line that does not parse or has no response (the first one with its number,
            and the count of the others), a file without examples, a hub that cannot be reached or lacks the data set.
    """
    source = open_reference(reference, data_dir, split)
    _check_memory(source)
    rules = RowRules(turns if split == "train" else "last", quality, columns)
    examples: list[Example] = []
    faults: list[tuple[str, int, str]] = []
    for file, number, read in source.rows():
        try:
            row = read()
            example, row_id = read_row(row, rules)[0], row_id_of(row)
            examples.append(example if row_id is None else replace(example, row_id=row_id))
        except RowError as error:
            faults.append((file, number, str(error)))
    if faults:
        raise bad_rows(source, faults)
    if not examples:
        raise DataError(f"'{source.label}' holds no examples. Give a file with at least one {source.unit}.")
    return examples


def _check_memory(source: RowSource) -> None:
    """Raise DataError where files take more than the free memory; their examples take at least as much."""
    size, free = (
        sum(path.stat().st_size for path in source.paths) if isinstance(source, FileSource) else 0,
        free_memory(),
    )
    if size > free:
        raise DataError(
            f"'{source.label}' has {size / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB of memory are free, where examples "
            "are held. Give a part of it."
        )


def open_reference(reference: str, data_dir: Path | None, split: Split) -> RowSource:
    """The rows of a reference of a recipe; arguments and errors as `load_examples`."""
    return open_source(_located(reference, data_dir, split), split)


def row_id_of(row: Mapping[str, Any]) -> str | None:
    """The row's own ``id`` as text, where it is a text or a whole number."""
    value = row.get("id")
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) and str(value) else None


def bad_rows(
    source: RowSource, faults: Sequence[tuple[str, int, str]], fix: str = "Correct or remove these rows."
) -> DataError:
    """The error for rows that cannot be used: the first with its place, and how many more."""
    file, number, reason = faults[0]
    others = len(faults) - 1
    tail = f" {others} more {source.unit}{'s' if others != 1 else ''} cannot be used." if others else ""
    return DataError(f"{file}, {source.unit} {number}: {reason}.{tail} {fix}")


def source_name(reference: str) -> str:
    """The short name of a reference: the file's stem, or the hub id without ``hub:``."""
    if reference.startswith("hub:"):
        return reference.removeprefix("hub:")
    name = Path(reference).name
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return name


def _located(reference: str, data_dir: Path | None, split: Split) -> str:
    """The reference as `open_source` takes it: a bare name gets its folder and ending."""
    if reference.startswith("hub:"):
        return reference
    if reference.endswith(SUFFIXES) or glob.has_magic(reference):
        return located(reference)
    if "/" in reference or "\\" in reference:
        if Path(located(reference)).expanduser().is_dir():
            return located(reference)
        hub = "" if reference.startswith((".", "/", "~")) else f" A data set of the hub is written 'hub:{reference}'."
        raise DataError(
            f"data reference '{reference}' is neither a bare name nor a path that ends in {_NAMES}, nor a folder. "
            f"Write the whole file name.{hub}"
        )
    if data_dir is None:
        raise DataError(
            f"data name '{reference}' needs a data folder. Give --data-dir (or data.data_dir in the recipe): a folder "
            f"that holds {split}/{reference} with one of the endings {_NAMES}."
        )
    folder = Path(located(str(data_dir))).expanduser() / split
    if not folder.is_dir():
        where = "" if folder.is_absolute() else f" (relative to {Path.cwd()})"
        raise DataError(
            f"data folder '{folder}' {missing(folder)}{where}. Give --data-dir, a folder with train/ and eval/."
        )
    paths = [folder / (reference + suffix) for suffix in SUFFIXES if (folder / (reference + suffix)).is_file()]
    if len(paths) > 1:
        several = ", ".join(path.name for path in paths)
        raise DataError(f"data name '{reference}' fits {several} in '{folder}'. Keep one, or write the path of one.")
    if not paths:
        names = sorted({source_name(path.name) for path in folder.iterdir() if path.name.endswith(SUFFIXES)})
        content = ", ".join(names) if names else "no data files"
        raise DataError(
            f"unknown data name '{reference}'.{did_you_mean(reference, names)} '{folder}' holds: {content}."
        )
    return str(paths[0])


def _hub_dataset(reference: str, split: Split) -> Any:
    import datasets  # both are heavy, and only hub references need them

    from longgame.models.hub import require_repo

    parts = reference.removeprefix("hub:").split(":", 2)
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", parts[0]):
        raise DataError(f"data reference '{reference}' must read hub:owner/name, optionally with :config and :split.")
    name = parts[0]
    if Path(name).exists():  # which datasets would read instead
        raise DataError(f"'{name}' is a folder here, so '{reference}' names no data set of the hub. Leave out 'hub:'.")
    config, named_split = ((*parts, "", "")[place] or None for place in (1, 2))
    if config is not None and "[" in config:
        raise DataError(f"data reference '{reference}' must read hub:owner/name:config:split; the config may be empty.")
    if not datasets.config.HF_HUB_OFFLINE:
        require_repo(name, "dataset", DataError, _HUB_REMEDY)
    try:
        chosen = named_split or _pick_split(reference, datasets.get_dataset_split_names(name, config), split)
        return datasets.load_dataset(name, config, split=chosen)
    except ConnectionError as error:
        offline = datasets.config.HF_HUB_OFFLINE
        reason = "HF_HUB_OFFLINE is set" if offline else str(error)
        remedy = _FILES_REMEDY + "." if offline else _HUB_REMEDY
        raise DataError(f"hub data set '{reference}' is not in the local cache, and {reason}. {remedy}") from error
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"hub data set '{reference}' cannot be loaded: {first_line(error)}. "
            "Check the name, the config and the split (hub:owner/name:config:split)."
        ) from error


def _pick_split(reference: str, available: Iterable[str], split: Split) -> str:
    names = list(available)
    for name in ("train",) if split == "train" else _EVAL_SPLITS:
        if name in names:
            return name
    raise DataError(
        f"hub data set '{reference}' has the splits {', '.join(names)}; none is the {split} split by name. "
        "Name it: hub:owner/name:config:split."
    )
