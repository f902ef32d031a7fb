"""Run the code blocks of a page of the documentation, in order, in one folder.

A block that begins with a language runs or becomes a file:

- ``bash``: each line is a command of `longgame`, or of a few others (`_FILES`, `_STARTERS`, ``pip install ./FOLDER``).
- ``python``: runs in this process; the blocks of a page share their variables.
- any language with ``title="NAME"``: is written to the file NAME.
- ``yaml`` without a title: is read as a recipe, with the defaults of all other keys.
- ``text``: a diagram or a grammar, which nothing can run.

A block without a language shows what the commands before it print. A line ``…`` stands for any lines, and numbers may
differ by a third, as ties in the loss depend on the processor. A comment ``<!-- not run: REASON -->`` before a block
leaves it out.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

from longgame import load_recipe
from studies.guides import blocks
from support.cli import environment, longgame_here

_NUMBER = re.compile(r"\d[\d,]*\.?\d*")
_FILES = ("ls", "head", "cat", "mkdir", "cp")
"""Commands that a page may use beside `longgame`."""
_STARTERS = ("bash", "torchrun", "accelerate")
"""Commands that start `longgame`, in other processes; variables may stand before them."""
_FAILS = ["||", "echo", "exit code $?"]
"""Behind a command that has to fail."""


def commands(text: str) -> list[list[str]]:
    """The words of each command of a bash block; comments are left out, and a line that ends in \\ goes on."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run_page(
    page: Path, folder: Path, variables: Mapping[str, Any] | None = None, stand_ins: Mapping[str, str] | None = None
) -> None:
    """Run every block of the page in the folder.

    Args:
        variables: what the page's Python takes as given.
        stand_ins: text of the page → what a test runs in its place, such as a model that is there.

    Raises:
        AssertionError: a command fails, or prints something else than the page shows; the message names page and line.
    """
    with mock.patch.object(sys, "path", [*sys.path]):
        try:
            _run_blocks(page, folder, {"__name__": "__main__", **(variables or {})}, stand_ins or {})
        finally:  # what a page installed
            for name, module in [*sys.modules.items()]:
                if str(getattr(module, "__file__", None) or "").startswith(str(folder)):
                    del sys.modules[name]


def _run_blocks(page: Path, folder: Path, variables: dict[str, Any], stand_ins: Mapping[str, str]) -> None:
    printed = ""
    for block in blocks(page):
        place = f"{page.name}:{block.line}"
        text = block.text
        for shown, stand_in in stand_ins.items():
            text = text.replace(shown, stand_in)
        if block.reason:
            printed = ""
        elif block.file:
            (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.file).write_text(text, encoding="utf-8")
        elif block.language == "bash":
            printed = "".join(_run(words, folder, place) for words in commands(text))
        elif block.language == "python":
            printed = _execute(text, folder, variables, place)
        elif block.language == "yaml":
            (folder / "read-as-recipe.yaml").write_text(yaml.safe_dump(yaml.safe_load(text)), encoding="utf-8")
            load_recipe(folder / "read-as-recipe.yaml")
        elif not block.language:
            _compare(printed, text, place)
        elif block.language != "text":
            pytest.fail(f"{place}: a block of {block.language} needs a title, the file that it is")


def _run(words: list[str], folder: Path, place: str) -> str:
    if fails := words[-3:] == _FAILS:
        words = words[:-3]
    count = next(number for number, word in enumerate(words) if "=" not in word)
    variables, words = dict(word.split("=", 1) for word in words[:count]), words[count:]
    if words[0] == "longgame":
        done = longgame_here(*words[1:], cwd=folder)
    elif words[:2] == ["pip", "install"] and words[2].startswith("./"):
        return _install(folder / words[2])
    elif words[0] in _STARTERS:
        shim = folder / ".bin" / "longgame"  # a clone has no such command
        shim.parent.mkdir(exist_ok=True)
        shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m longgame.cli "$@"\n')
        shim.chmod(0o755)
        path = os.pathsep.join([str(shim.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
        command_environment = {**environment(), "PATH": path, **variables}
        done = subprocess.run(
            words, cwd=folder, env=command_environment, capture_output=True, text=True, timeout=300, check=False
        )
    elif words[0] in _FILES:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    else:
        pytest.fail(f"{place}: the tests do not run {words[0]}")
    assert (done.returncode != 0) == fails, f"{place}: {shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr + (f"exit code {done.returncode}\n" if fails else "")


def _install(project: Path) -> str:
    """Do for this process what installing a project with ``src`` does: it can be imported, and has its entry points."""
    settings = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    points = "\n".join(
        f"[{group}]\n" + "\n".join(f"{name} = {value}" for name, value in entries.items())
        for group, entries in settings["entry-points"].items()
    )
    info = project / "src" / f"{settings['name'].replace('-', '_')}-{settings['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {settings['name']}\nVersion: {settings['version']}\n")
    (info / "entry_points.txt").write_text(points)
    sys.path.insert(0, str(project / "src"))
    importlib.invalidate_caches()
    return ""


def _execute(text: str, folder: Path, variables: dict[str, Any], place: str) -> str:
    out = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out):
        exec(compile(text, place, "exec"), variables)
    return out.getvalue()


def _compare(printed: str, text: str, place: str) -> None:
    """Compare line by line, in order: words are equal, numbers nearly."""
    lines = iter(printed.splitlines())
    for line in text.splitlines():
        if line.strip() in ("", "…"):
            continue
        for candidate in lines:
            if _words(candidate) == _words(line):
                assert _numbers(candidate) == pytest.approx(_numbers(line), rel=0.34, abs=2), f"{place}: {line}"
                break
        else:
            pytest.fail(f"{place}: no line like {line!r} in\n{printed}")


def _words(line: str) -> str:
    return " ".join(re.sub(r"[\d,.%\s…]+", " ", line).split())


def _numbers(line: str) -> list[float]:
    return [float(number.rstrip(".").replace(",", "")) for number in _NUMBER.findall(line)]
