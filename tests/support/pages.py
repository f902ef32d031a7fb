"""Run the code blocks of a page of the documentation, in order, in one folder.

A block that begins with a language runs or becomes a file:

- ``bash``: each line is a command of `longgame`, or one of a few others (`COMMANDS`).
- ``python``: runs in this process; the blocks of a page share their variables.
- any language with ``title="NAME"``: is written to the file NAME.

A block without a language shows what the commands before it print. A line ``…`` stands for any lines, and numbers may
differ by a third, as ties in the loss depend on the processor. A comment ``<!-- not run: REASON -->`` before a block
leaves it out.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.cli import longgame_here

_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", flags=re.DOTALL | re.MULTILINE)
_SKIP = re.compile(r"<!-- not run: (.+?) -->\s*\Z")
_NUMBER = re.compile(r"\d[\d,]*\.?\d*")
_FILES = ("ls", "head", "cat", "mkdir", "cp")
"""Commands that a page may use beside `longgame`."""


@dataclass(frozen=True)
class Block:
    """A fenced block: language ("" for output), the file that it is, text, first line, the reason why it is not run."""

    language: str
    file: str
    text: str
    line: int
    reason: str = ""


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    result = []
    for match in _FENCE.finditer(text):
        language, _, options = match["info"].strip().partition(" ")
        title = re.search(r'title="([^"]+)"', options)
        before = text[: match.start()]
        skip = _SKIP.search(before)
        result.append(
            Block(
                language,
                title[1] if title else "",
                match["text"],
                before.count("\n") + 1,
                skip[1] if skip else "",
            )
        )
    return result


def commands(text: str) -> list[list[str]]:
    """The words of each command of a bash block; comments are left out, and a line that ends in \\ goes on."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run_page(page: Path, folder: Path) -> None:
    """Run every block of the page in the folder.

    Raises:
        AssertionError: a command fails, or prints something else than the page shows; the message names page and line.
    """
    variables: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    for block in blocks(page):
        place = f"{page.name}:{block.line}"
        if block.reason:
            printed = ""
        elif block.file:
            (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "bash":
            printed = "".join(_run(words, folder, place) for words in commands(block.text))
        elif block.language == "python":
            printed = _execute(block.text, folder, variables, place)
        elif not block.language:
            _compare(printed, block.text, place)
        else:
            pytest.fail(f"{place}: a block of {block.language} needs a title, the file that it is")


def _run(words: list[str], folder: Path, place: str) -> str:
    expected = 0
    if words[-2:-1] == ["||"]:  # a command that ends with an exit code: COMMAND || CODE
        expected, words = int(words[-1]), words[:-2]
    if words[0] == "longgame":
        done = longgame_here(*words[1:], cwd=folder)
    elif words[0] in _FILES:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    else:
        pytest.fail(f"{place}: the tests do not run {words[0]}")
    assert done.returncode == expected, f"{place}: {shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


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
