"""``longgame init``: a recipe for the data files that a folder holds."""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from longgame.commands.options import interruptible, path_from_here
from longgame.commands.terminal import Terminal
from longgame.data.files import SUFFIXES
from longgame.data.sequences import TooFewRowsError
from longgame.data.sources import is_beside_a_subset, load_examples, source_name
from longgame.errors import DataError, RecipeError
from longgame.limits import load_yaml
from longgame.recipe import DEFAULT_SELECTORS, Recipe, parse_recipe, path_folders
from longgame.storage import storage_errors

_TRAIN = ("train", "training")
_EVAL = ("validation", "valid", "val", "dev", "eval", "evaluation", "heldout", "test")
"""Words of a name that mean evaluation items; of several files of a stage, the one with the first of them is used."""
_OOD = ("ood", "transfer")
_SHARD = re.compile(r"[-_.]?(?<!\d)\d{4,}-of-\d{4,}$")
_SKIPPED = {"node_modules", "site-packages", "__pycache__", "venv"}
_DEEPEST, _MOST_FILES = 4, 500
_REASON = 200
"""Characters of the reason why a file is not used."""
_POOL, _ITEMS, _PROXY, _STEPS = 960, 40, 8, 32
"""Most candidates of a stage, evaluation items of a file, proxy items of a file, and steps of a stage."""
_LEAST_POOL, _PER_STEP = 8, 12
"""Fewest candidates of a stage, and of a step."""
_LEAST = {"data.pool_size": _LEAST_POOL, "proxy.items_per_skill": 0}
"""Fewest rows that a key can do with; others with one."""
_SPARE = 0.9
"""Share of the rows that a pool asks for: other seeds may find more near-duplicates of evaluation items."""


@dataclass(frozen=True)
class DataFile:
    """A file of examples, and what its name says about it."""

    reference: str
    """Path relative to the folder of the recipe."""
    stage: str
    split: str
    """``train``, one of `_EVAL`, or ``ood``."""
    rows: int
    quality: tuple[float, float] | None = None
    """Lowest and highest value of its column ``quality``, where it has one."""


@dataclass(frozen=True)
class StageFiles:
    """The files of one stage; without evaluation files, items are held out of its training files."""

    name: str
    train: tuple[DataFile, ...]
    eval: tuple[DataFile, ...]

    @property
    def items_from(self) -> tuple[DataFile, ...]:
        """The files that evaluation items are drawn from."""
        return self.eval or self.train


@dataclass(frozen=True)
class Findings:
    """What a folder holds: stages, evaluation sets without training files, and unused files with the reason."""

    stages: tuple[StageFiles, ...]
    ood: tuple[StageFiles, ...]
    unused: dict[str, str]


def init(
    folder: Annotated[Path, typer.Argument(help="Folder with data files.")] = Path(),
    out: Annotated[Path | None, typer.Option(help="Recipe to write (default: FOLDER/recipe.yaml).")] = None,
    model: Annotated[str, typer.Option(help="tiny, smollm2-135m, a Hugging Face id, or a directory.")] = "tiny",
) -> None:
    """Write a recipe with comments for the training and evaluation files of a folder.

    Names say what a file is: math_train.jsonl and math_eval.jsonl, or train/math.csv and test/math.csv, or
    math/train.parquet.

    Example: longgame init my-data --model smollm2-135m
    """
    with interruptible("stopped. Nothing was written."):
        path = out or folder / "recipe.yaml"
        if path.exists():
            raise RecipeError(f"'{path}' exists and is not overwritten. Give another path with --out.")
        findings = find_data(folder, path.parent)
        text = recipe_text(findings, path, model)
        with storage_errors(path, "Give another path with --out."):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as stream:
                stream.write(text)
    for line in (*describe(findings), f"Written: {path}", f"Next: longgame audit {path} --dry-run"):
        Terminal().print(line, highlight=False, markup=False, soft_wrap=True)


def find_data(folder: Path, start: Path) -> Findings:
    """Read every data file below a folder and sort them by the words of their names.

    Args:
        start: folder of the recipe, which paths are relative to.

    Raises:
        RecipeError: there is no such folder. DataError: it holds too many files, or none with examples.
    """
    if not folder.is_dir():
        raise RecipeError(f"'{folder}' is not a directory. Give the folder that holds your data files.")
    files: list[DataFile] = []
    unused: dict[str, str] = {}
    for path in _data_paths(folder):
        reference = Path(os.path.relpath(path.resolve(), start.resolve())).as_posix()
        reference = reference if path.is_file() else f"./{reference}"
        stage, split = _meaning(path.relative_to(folder))
        try:
            examples = load_examples(
                str(path) if path.is_file() else f"{path}/", data_dir=None, split="train", columns=("quality",)
            )
        except DataError as error:
            unused[reference] = textwrap.shorten(str(error), _REASON, placeholder=" …")
            continue
        grades = [example.columns["quality"] for example in examples if example.columns]
        ends = (min(grades), max(grades)) if grades else None
        files.append(DataFile(reference, stage, split, len(examples), ends))
    if not files:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in list(unused.items())[:5])
        raise DataError(
            f"'{folder}' holds no file of examples ({', '.join(SUFFIXES)}). Give the folder of your data.{reasons}"
        )
    return _sorted(files, unused)


def _data_paths(folder: Path) -> list[Path]:
    """Files with a known ending, and saved data sets, which are folders; runs and hidden folders are left out."""
    paths: list[Path] = []
    for place, folders, names in os.walk(folder):
        inside = Path(place)
        depth = len(inside.relative_to(folder).parts)
        if "run.json" in names:
            folders.clear()
            continue
        if "state.json" in names and any(name.endswith(".arrow") for name in names):
            folders.clear()
            paths.append(inside)
            continue
        kept = [name for name in folders if not name.startswith((".", "_")) and name not in _SKIPPED]
        folders[:] = sorted(kept) if depth < _DEEPEST else []
        files = [inside / name for name in names if name.endswith(SUFFIXES) and not name.startswith(".")]
        paths += [path for path in files if not is_beside_a_subset(path)]
        if len(paths) > _MOST_FILES:
            raise DataError(
                f"'{folder}' holds more than {_MOST_FILES} data files. Give the folder of the files for one audit."
            )
    return sorted(paths)


def _meaning(path: Path) -> tuple[str, str]:
    """Stage and split by the words of a path: those of the file's name come before those of its folders."""
    parts = [_SHARD.sub("", source_name(path.name)), *reversed(path.parent.parts)]
    words = [[word for word in re.split(r"[-_. ]+", part) if word] for part in parts]
    split, stage = "", ""
    for part in words:
        lower = [word.lower() for word in part]
        marks = [mark for mark in (*_TRAIN, *_EVAL) if mark in lower]
        split = split or (marks[0] if marks else "")
        if any(mark in lower for mark in _OOD):
            split = "ood"
        others = [word for word, low in zip(part, lower, strict=True) if low not in (*_TRAIN, *_EVAL, *_OOD)]
        stage = stage or "-".join(others)
    return stage or "data", "train" if split in ("", *_TRAIN) else split


def _sorted(files: Sequence[DataFile], unused: dict[str, str]) -> Findings:
    stages, ood = [], []
    for name in sorted({file.stage for file in files}):
        train = _distinct((file for file in files if file.stage == name and file.split == "train"), unused)
        shifted = _distinct((file for file in files if file.stage == name and file.split == "ood"), unused)
        first = next((word for word in _EVAL if any(f.split == word and f.stage == name for f in files)), "")
        for file in files:
            if file.stage == name and file.split not in ("train", "ood", first):
                unused[file.reference] = f"stage '{name}' is evaluated by its {first} file"
        items = _distinct((file for file in files if file.stage == name and first and file.split == first), unused)
        if train:
            stages.append(StageFiles(name, train, items))
        elif items:
            ood.append(StageFiles(name, (), items))
        if shifted:
            ood.append(StageFiles(f"{name}-ood", (), shifted))
    if not stages:
        names = ", ".join(file.reference for file in files[:5])
        raise DataError(f"no training file was recognized among {names}. Call one NAME_train, or put it into train/.")
    return Findings(tuple(stages), tuple(ood), unused)


def _distinct(files: Iterable[DataFile], unused: dict[str, str]) -> tuple[DataFile, ...]:
    """The files whose short names differ; scores are kept by these names."""
    first: dict[str, DataFile] = {}
    for file in files:
        other = first.setdefault(source_name(file.reference), file)
        if other is not file:
            unused[file.reference] = f"it is called like {other.reference}; rename one of them to use both"
    return tuple(first.values())


def recipe_text(findings: Findings, path: Path, model: str) -> str:
    """The recipe for these files, checked by making its data for the first seed.

    Args:
        path: where it will be written.

    Raises:
        DataError: the files are too small, or cannot be used together. ModelError: the model cannot be loaded.
    """
    from longgame.audit.learner import sequence_of

    folders = path_folders(path)
    model = path_from_here(model, folders) if Path(model).expanduser().is_dir() else model
    usable: dict[str, int] = {}
    while True:
        text = _compose(findings, path, model, usable)
        recipe: Recipe = parse_recipe(load_yaml(text), str(path)).replace({"relative_to": folders})
        try:
            for stage in sequence_of(recipe, recipe.seeds[0]).stages:
                len(stage.pool)
            return text
        except TooFewRowsError as error:
            if error.rows >= usable.get(error.key, error.rows + 1) or error.rows < _LEAST.get(error.key, 1):
                raise
            usable[error.key] = error.rows


def _compose(findings: Findings, path: Path, model: str, usable: Mapping[str, int]) -> str:
    """The text of a recipe.

    Args:
        usable: key of a size → rows that can be used, where that is known to be fewer than the files hold.
    """

    def most(key: str, size: int) -> int:
        if key not in usable:
            return size
        return min(size, max(int(_SPARE * usable[key]), min(usable[key], _LEAST.get(key, 1))))

    def size_line(key: str, size: int, meaning: str) -> str:
        if key in usable:
            meaning += f"; {usable[key]} rows can be used: not too long, not twice, no evaluation item's prompt"
        return _line(f"  {key.partition('.')[2]}: {size}", meaning)

    stages = findings.stages
    smallest = min(file.rows for stage in stages for file in stage.train)
    proxy = most("proxy.items_per_skill", min(_PROXY, smallest // 20))
    items = min(file.rows if stage.eval else file.rows // 5 for stage in stages for file in stage.items_from)
    items = most("data.items_per_skill", max(1, min(_ITEMS, items)))
    room = [sum(file.rows - proxy - (0 if stage.eval else items) for file in stage.train) for stage in stages]
    pool = most("data.pool_size", int(min(_POOL, _SPARE * min(room))))
    if pool < _LEAST_POOL:
        name = stages[room.index(min(room))].name
        raise DataError(f"the training files of stage '{name}' hold too few rows for an audit. Give more rows.")
    steps = max(4, min(_STEPS, pool // _PER_STEP))
    ood_items = min((file.rows for task in findings.ood for file in task.eval), default=_ITEMS)
    ood_items = most("data.ood_items_per_skill", max(1, min(_ITEMS, ood_items)))
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.resolve().parent.name).lstrip("._-") or "audit"
    lines = [
        "# Which selector serves later stages? Paths start from the folder of this file. Keys: docs/recipe.md.",
        f"#   longgame audit {path.name} --dry-run    # the plan and its cost",
        f"#   longgame audit {path.name}",
        _line(f"name: {json.dumps(name)}", "results go to runs/NAME"),
        "model:",
        _line(f"  name: {json.dumps(model)}", "tiny, smollm2-135m, a Hugging Face id, or a directory"),
        *([_line("", "results on tiny do not transfer automatically: audit your own model next")] * (model == "tiny")),
        _line("  max_length: 512", "tokens of prompt and response"),
        _line("  adaptation: lora", "lora, dora, qlora or full"),
        "data:",
        size_line("data.pool_size", pool, "candidates per stage"),
        size_line("data.items_per_skill", items, "evaluation items per file"),
        *([size_line("data.ood_items_per_skill", ood_items, "the same, out of domain")] if findings.ood else []),
        *_quality_range(findings),
        _line("  too_long: drop", "examples of more than max_length tokens are left out, and counted"),
        _line("  stages:", "in the order of training: put them into yours"),
    ]
    for stage in stages:
        items_line = f"      eval: {_names(stage.items_from)}"
        lines += [f"    - name: {json.dumps(stage.name)}", f"      train: {_names(stage.train)}"]
        lines += [items_line if stage.eval else _line(items_line, "items are held out of training")]
    if findings.ood:
        lines.append(_line("  ood:", "evaluated, never trained"))
        lines += [f"    - {{name: {json.dumps(task.name)}, eval: {_names(task.eval)}}}" for task in findings.ood]
    lines += [
        _line(f"selectors: [{', '.join(DEFAULT_SELECTORS)}]", "others: longgame selectors, file.py:Class, scores:FILE"),
        _line("seeds: [0, 1, 2]", "three give a first verdict; five are better"),
        _line("budget: 0.25", "share of each pool's tokens that a selector may spend"),
        _line("rounds: step", "select at every step (online); 1: once per stage"),
        "training:",
        _line(f"  steps: {steps}", "per stage"),
        _line("probe:", "short training on the next stage: how fast does the model still learn?"),
        f"  steps: {min(10, steps)}",
        f"  points: {min(6, steps + 1)}",
        "proxy:",
        size_line("proxy.items_per_skill", proxy, "items per file that far-sighted selectors look at"),
    ]
    return "\n".join(lines) + "\n"


def _quality_range(findings: Findings) -> list[str]:
    """The line of the scale of ``quality``, where a file has another one than 0 to 1."""
    files = [file for task in (*findings.stages, *findings.ood) for file in (*task.train, *task.eval)]
    ends = [file.quality for file in files if file.quality is not None]
    low, high = min((low for low, _ in ends), default=0.0), max((high for _, high in ends), default=1.0)
    if low >= 0 and high <= 1:
        return []
    low, high = (low, high) if low < high else (min(0.0, low), max(1.0, high))
    return [_line(f"  quality_range: [{low!r}, {high!r}]", "lowest and highest 'quality' found: correct to its scale")]


def _line(text: str, comment: str) -> str:
    return f"{text:<34}  # {comment}"


def _names(files: Sequence[DataFile]) -> str:
    return json.dumps([file.reference for file in files])


def describe(findings: Findings) -> list[str]:
    """What was recognized, and what is missing, a line each."""
    lines = []
    for stage in findings.stages:
        lines.append(
            f"Stage '{stage.name}': train {_counted(stage.train)}; evaluation {_counted(stage.eval) or 'none'}."
        )
    lines += [f"Evaluation without training, '{task.name}': {_counted(task.eval)}." for task in findings.ood]
    lines += [f"Not used: {name}: {reason}" for name, reason in list(findings.unused.items())[:10]]
    if len(findings.unused) > 10:
        lines.append(f"Not used: {len(findings.unused) - 10} more files.")
    alone = [stage.name for stage in findings.stages if not stage.eval]
    if alone:
        lines.append(
            f"Missing: evaluation files for {', '.join(alone)}. Their items are held out of the training files; a file "
            "NAME_eval beside NAME_train replaces them."
        )
    if len(findings.stages) == 1:
        lines.append("Missing: a second stage. An audit shows effects on later stages, so it needs two or more.")
    if not findings.ood:
        lines.append("Missing: out-of-distribution sets, which are optional (NAME_ood, or an evaluation file alone).")
    return lines


def _counted(files: Sequence[DataFile]) -> str:
    return ", ".join(f"{file.reference} ({file.rows:,} rows)" for file in files)
