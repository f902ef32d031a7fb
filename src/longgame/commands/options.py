"""Options that commands share, read as changes of a recipe."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from longgame.errors import LonggameError, RecipeError, stopped_code
from longgame.limits import load_yaml, located, relative_to
from longgame.recipe import AxesSpec, path_folders, read_mapping

CHANGES = "Changes of the recipe"
"""Title of these options in the help of a command."""
SeedsOption = Annotated[str | None, typer.Option(help="Seeds: 0,1,2 or 0-4.", rich_help_panel=CHANGES)]
ModelName = Annotated[
    str | None,
    typer.Option(help="tiny, smollm2-135m, a Hugging Face id, or a directory.", rich_help_panel=CHANGES),
]
DataDir = Annotated[Path | None, typer.Option(help="Folder with train/ and eval/ data files.", rich_help_panel=CHANGES)]
Cross = Annotated[
    bool,
    typer.Option("--cross", help="All combinations of the axes, not one at a time.", rich_help_panel=CHANGES),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the Python code that comes with the model.")
]
EngineOption = Annotated[
    str,
    typer.Option(
        help="Where it runs: local, ray (on this machine), auto (running cluster or RAY_ADDRESS), ray://HOST:PORT.",
        rich_help_panel="How it runs",
    ),
]
TrustCode = Annotated[
    bool,
    typer.Option("--trust-code", help="Run the code, and read the data, that the recipe of a run directory names."),
]

_MAX_SEEDS = 10_000


def check_outputs(outputs: Mapping[str, Path | None], runs: Sequence[Path]) -> None:
    """Check that no two outputs have one path, and none is a file that a run is read from.

    Args:
        outputs: option → path; None: not asked for.
        runs: directories that are read.

    Raises:
        RecipeError: two have, or one is.
    """
    options: dict[Path, str] = {}
    for option, path in outputs.items():
        if path is None:
            continue
        real = Path(os.path.realpath(path))  # which a loop of links does not hinder
        if real in options:
            raise RecipeError(f"{options[real]} and {option} are both '{path}'. Give each a path of its own.")
        options[real] = option
        for run in runs:
            folder = Path(os.path.realpath(run))
            inside = folder in real.parents and (real.parent != folder or real.name not in _REPORTS)
            if real == folder or (inside and real.exists()):
                raise RecipeError(f"{option} '{path}' would replace a part of the run '{run}'. Give another path.")


_REPORTS = ("scorecard.md", "report.html")


class InterruptedByUserError(LonggameError):
    """The user pressed Ctrl-C, or the process got SIGTERM."""

    exit_code = 128 + signal.SIGINT


@contextmanager
def interruptible(message: str) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into an error with this message."""
    try:
        yield
    except KeyboardInterrupt as stop:
        error = InterruptedByUserError(message)
        error.exit_code = stopped_code(stop)
        raise error from None


def parse_seeds(text: str) -> list[int]:
    """Read `0,1,2` or `0-4`.

    Raises:
        RecipeError: the text holds something else, or too many seeds.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", part.strip())
        if match is None:
            raise RecipeError(f"--seeds is '{text}'; write numbers like 0,1,2 or a range like 0-4.")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise RecipeError(f"--seeds is '{text}', but {first} is more than {last}; write {last}-{first}.")
        if last - first >= _MAX_SEEDS:
            raise RecipeError(f"--seeds is '{text}', {last - first + 1} seeds; give at most {_MAX_SEEDS}.")
        seeds += range(first, last + 1)
    return seeds


def recipe_changes(
    file: Path,
    *,
    selectors: str | None = None,
    added_selectors: list[str] | None = None,
    seeds: str | None = None,
    budget: float | None = None,
    model: str | None = None,
    device: str | None = None,
    data_dir: Path | None = None,
    axis: list[str] | None = None,
    cross: bool = False,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """The options of a command as changes of the recipe in ``file``: dotted key → value.

    Paths in options start from the working directory.

    Raises:
        RecipeError: an option cannot be read.
    """
    changes: dict[str, Any] = {}
    folders = recipe_folders(file)
    if selectors is not None:
        changes["selectors"] = given_selectors(selectors.split(","), folders)
    if added_selectors:
        added = given_selectors(added_selectors, folders)
        changes["selectors"] = [*(changes.get("selectors") or _listed_selectors(file)), *added]
    if seeds is not None:
        changes["seeds"] = parse_seeds(seeds)
    if budget is not None:
        changes["budget"] = budget
    if model is not None:
        name = path_from_here(model, folders) if Path(model).expanduser().is_dir() else model
        changes |= {"model.name": name, "model.per_seed": []}
    if device is not None:
        changes["model.device"] = device
    if trust_remote_code:
        changes["model.trust_remote_code"] = True
    if data_dir is not None:
        if not data_dir.is_dir():
            raise RecipeError(
                f"--data-dir '{data_dir}' is not a directory. Give the folder that holds train/ and eval/."
            )
        changes["data.data_dir"] = path_from_here(str(data_dir), folders)
    changes |= parse_axes(axis or [], cross)
    if "axes.vary" in changes:
        changes["axes.vary"] = varied_keys(file) | changes["axes.vary"]
    return changes


def recipe_folders(file: Path) -> tuple[str, ...]:
    """Folders that the relative paths of a recipe's file start from."""
    names = read_mapping(file, "recipes/quickstart.yaml").get("relative_to") or ()
    names = [names] if isinstance(names, str) else names
    return path_folders(file, [name for name in names if isinstance(name, str)])


def path_from_here(path: str, folders: Sequence[str]) -> str:
    """The path of a file under the working directory, as a recipe writes it whose paths start from these folders."""
    here = Path(path).expanduser()
    with relative_to(folders):
        place = Path(located(path)).expanduser()
    return path if place.resolve() == here.resolve() else os.path.relpath(here, folders[0])


def given_selectors(texts: Iterable[str], folders: Sequence[str]) -> list[dict[str, Any]]:
    """Selectors of the command line, ``[LABEL=]NAME``, as entries of a recipe whose paths start from these folders.

    Raises:
        RecipeError: the label or the name is empty.
    """
    entries: list[dict[str, Any]] = []
    for text in filter(None, map(str.strip, texts)):
        label, name = match.groups() if (match := re.fullmatch(r"([^=:/]*)=(.*)", text)) else (None, text)
        if not name.strip() or (label is not None and not label.strip()):
            raise RecipeError(f"--selector is '{text}'; write NAME, or LABEL=NAME as in mine=scores:scores.csv.")
        start, path, end = "", "", name.strip()
        if end.startswith("scores:"):
            start, path, end = "scores:", end.removeprefix("scores:"), ""
        elif ".py:" in end:
            path, colon, class_name = end.rpartition(":")
            end = colon + class_name
        entry = {"name": start + (path_from_here(path, folders) if path else "") + end}
        entries.append(entry if label is None else {**entry, "label": label.strip()})
    return entries


def parse_axes(axis: list[str], cross: bool) -> dict[str, Any]:
    """Read `--axis budget=0.1,0.5`, `--axis order=rotations`, `--axis data.noise=0,0.1` as keys of the recipe."""
    changes: dict[str, Any] = {"axes.cross": True} if cross else {}
    vary: dict[str, Any] = {}
    for text in axis:
        name, sign, value = text.partition("=")
        name = name.strip()
        if not sign or not name or not value.strip():
            raise RecipeError(f"--axis is '{text}'; write NAME=VALUE,VALUE, e.g. budget=0.1,0.5 or order=rotations.")
        if f"axes.{name}" in changes or name in vary:
            raise RecipeError(f"--axis {name} is given twice. Write its values in one, e.g. --axis budget=0.1,0.5.")
        is_yaml = value.strip().startswith(("[", "{")) or (name == "order" and "," not in value)
        try:
            values = load_yaml(value if is_yaml else f"[{value}]")
        except ValueError as error:
            raise RecipeError(f"--axis {name}: '{value}' cannot be read; separate values with commas.") from error
        if name in AxesSpec.model_fields:
            changes[f"axes.{name}"] = values
        else:
            vary[name] = values
    return changes | ({"axes.vary": vary} if vary else {})


def _listed_selectors(file: Path) -> list[Any]:
    selectors = read_mapping(file, "recipes/quickstart.yaml").get("selectors") or []
    if not isinstance(selectors, list):
        raise RecipeError(f"{file}: 'selectors' holds {selectors!r}; write a list.")
    return selectors


def varied_keys(file: Path) -> dict[str, Any]:
    """`axes.vary` of the recipe; the recipe's own check reports a section of another form."""
    axes = read_mapping(file, "recipes/quickstart.yaml").get("axes")
    vary = axes.get("vary") if isinstance(axes, dict) else None
    return vary if isinstance(vary, dict) else {}
