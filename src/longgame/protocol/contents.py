"""Selectors and scorers that are files (``scores:FILE``, ``file.py:Class``): numbers depend on what is in them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from pathlib import Path

from longgame.data.scores import read_scores
from longgame.errors import DataError
from longgame.recipe import Recipe
from longgame.selectors.base import SCORES


def plugin_names(recipe: Recipe) -> tuple[str, ...]:
    """Names of the recipe's selectors, then of the scorers of its tasks, each once."""
    scorers = (name for task in (*recipe.data.stages, *recipe.data.ood) for name in task.scorers)
    return tuple(dict.fromkeys((*(spec.name for spec in recipe.selectors), *scorers)))


def file_of(name: str) -> Path | None:
    """The file that a selector or scorer of this name is read from; None for one that is built in or installed."""
    if name.startswith(SCORES):
        return Path(name.removeprefix(SCORES)).expanduser()
    return Path(name.rpartition(":")[0]).expanduser() if ".py:" in name else None


def file_contents(names: Iterable[str]) -> dict[str, str]:
    """Name → content hash of its file (of the file alone, not of what it imports); only files that are there."""
    files = {name: file_of(name) for name in names}
    return {
        name: hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        for name, file in files.items()
        if file is not None and file.is_file()
    }


def row_contents(names: Iterable[str], ids: Collection[str]) -> dict[str, str]:
    """Name of a file of scores → content hash of what it says about these candidates (`ScoreFile.digest`).

    Left out are files that are not there or that hold no scores: what is in them is nobody's decision any more.
    """
    found = {}
    for name in names:
        if name.startswith(SCORES):
            try:
                found[name] = read_scores(name.removeprefix(SCORES)).digest(ids)
            except DataError:  # told in full when the selector is made
                continue
    return found
