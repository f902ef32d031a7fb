"""The documentation site: the pages of docs/, and those that the program generates.

```
python -m studies.site            # build/pages and, with zensical, build/site (`make docs`)
```

Pages keep their places relative to each other, so a link works on the site as in the repository. The program
generates the reference of the commands and of the Python API, and a page of each method.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import typer

import longgame
from longgame.cli import app
from longgame.commands.selectors import facts_of, meaning_of
from longgame.selection.base import SELECTORS, build_selector, notes_of
from longgame.selection.families import FAMILIES, family_of
from longgame.signals.base import CONTEXT, SIGNALS
from studies.methods import COSTS, ROOT, offline_costs, online_costs, tests_of
from studies.results.field import method_results

BUILD = ROOT / "build"
_COPIED = ("docs", "examples", "recipes", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE")
_SECTIONS = (
    ("Select", ("select", "score", "check", "Subset")),
    ("Train", ("SelectionConfig", "SelectionTrainer", "SelectionSFTTrainer", "read_picks", "read_training_log")),
    ("Audit", ("audit", "load_recipe", "Recipe", "load_run", "Run")),
    ("Write a selector", ("Selector", "build_selector", "Selection", "Signals", "Pool", "Example", "Task")),
    ("Errors", ("LonggameError",)),
)
"""Sections of the API page, and the public names of each."""
_FOLDED = ("Recipe", "SelectionTrainer", "SelectionSFTTrainer")
"""Shown without members: a page of their own has them, or they are those of the library that they extend."""


def table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [tuple(headings), *(tuple(row) for row in rows)]
    lines.insert(1, ("---",) * len(lines[0]))
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines) + "\n"


def commands_page() -> str:
    """Every command with its help, arguments and options, as the program has them."""
    text = "# Commands\n\nGenerated from the program: `longgame COMMAND --help` prints the same.\n\n"
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        context = command.context_class(command, info_name=f"longgame {name}")
        usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
        help_text, _, example = inspect.cleandoc(command.help or "").partition("Example: ")
        text += f"## longgame {name}\n\n```\n{usage}\n```\n\n{help_text.strip()}\n\n"
        if example:
            text += f"Example: `{example.strip()}`\n\n"
        rows = [_parameter_row(parameter) for parameter in command.params if not parameter.hidden]
        if rows:
            text += table(("argument or option", "default", "meaning"), rows)
    return text


def _parameter_row(parameter: Any) -> tuple[str, str, str]:
    names = [name if name.startswith("-") else name.upper() for name in (*parameter.opts, *parameter.secondary_opts)]
    default = "required" if parameter.required else ""
    if parameter.default not in (None, False, (), []) and not isinstance(parameter.default, bool):
        default = f"`{parameter.default}`"
    return ", ".join(f"`{name}`" for name in names), default, " ".join((parameter.help or "").split())


def api_page() -> str:
    """The public names of the package, by section, for mkdocstrings."""
    modules = {name: module for module, names in longgame._MODULES.items() for name in names}
    modules["audit"] = "longgame.commands.audit"
    text = "# Python API\n\nAll names are those of `longgame`: `from longgame import select`.\n\n"
    for title, names in _SECTIONS:
        text += f"## {title}\n\n"
        for name in names:
            text += f"::: {modules[name]}.{name}\n"
            text += "    options:\n      members: false\n" if name in _FOLDED else ""
            text += "\n"
    return text


def method_page(
    name: str, offline: dict[str, float], online: dict[str, float | None], tests: list[str], field: str
) -> str:
    """One method: paper, formula, cost, needs, parameters, cost and audit here, and the tests that hold it."""
    selector = build_selector(name)
    kind = type(selector)
    notes = notes_of(kind)
    text = f"# {name}\n\n{notes.summary}\n\n"
    text += "".join(f"- **{label}**: {value}\n" for label, value in facts_of(name, selector, notes)) + "\n"
    text += (
        f"```bash\nlonggame select train.jsonl --model MODEL --selector {name} --budget 10% --out subset.jsonl\n```\n\n"
    )
    if selector.requires:
        text += "## Signals\n\n" + table(
            ("signal", "meaning", "unit"),
            (
                (f"`{signal.name}`", signal.meaning, signal.unit)
                for signal in (*SIGNALS.values(), *CONTEXT.values())
                if signal.name in selector.requires
            ),
        )
    text += "## Parameters\n\n"
    parameters = inspect.signature(kind).parameters.values() if kind.__init__ is not object.__init__ else ()
    rows = [
        (
            f"`{parameter.name}`",
            "required" if parameter.default is parameter.empty else f"`{parameter.default!r}`",
            meaning_of(kind, parameter.name),
        )
        for parameter in parameters
    ]
    text += table(("parameter", "default", "meaning"), rows) if rows else "It has none.\n\n"
    text += "## Measured\n\n"
    if name in offline:
        text += f"`longgame select` takes the time of {offline[name]:.2g} forward passes over the rows. "
    share = online.get(name)
    if share is not None:
        text += f"In a trainer, {share:.0%} of a step is spent on selecting. "
    text += "[How this was measured](../methods.md).\n\n## In the audit\n\n" + field
    if tests:
        text += "## Tests\n\n" + "".join(f"- `{test}`\n" for test in dict.fromkeys(tests))
    return text


def _method_pages() -> Iterator[tuple[str, str]]:
    rows = json.loads(COSTS.read_text(encoding="utf-8"))["rows"]
    offline, online, tests = offline_costs(rows), online_costs(rows), tests_of(ROOT / "tests")
    board = pd.read_parquet(ROOT / "docs" / "results" / "leaderboard.parquet")
    for name in SELECTORS.builtin_names():
        yield name, method_page(name, offline, online, tests[name], method_results(name, board))


def write_pages(folder: Path) -> None:
    """Copy the pages into the folder and add the generated ones."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in _COPIED:
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    shutil.copy(ROOT / "README.md", folder / "index.md")
    reference, methods = folder / "docs" / "reference", folder / "docs" / "methods"
    reference.mkdir()
    methods.mkdir()
    (reference / "commands.md").write_text(commands_page(), encoding="utf-8")
    (reference / "api.md").write_text(api_page(), encoding="utf-8")
    for name, text in _method_pages():
        (methods / f"{name}.md").write_text(text, encoding="utf-8")


def write_configuration(path: Path) -> None:
    """Write the configuration of the site: the project's, with a page of each method in the navigation."""
    families = []
    for family in FAMILIES:
        names = [name for name in SELECTORS.builtin_names() if family_of(build_selector(name)) == family]
        pages = ", ".join(f'"docs/methods/{name}.md"' for name in names)
        families.append(f'{{ "{family.capitalize()}" = [{pages}] }}')
    text = (ROOT / "docs" / "zensical.toml").read_text(encoding="utf-8")
    path.write_text(
        text.replace('["docs/methods.md"]', f'["docs/methods.md", {", ".join(families)}]'), encoding="utf-8"
    )


def main() -> None:
    if importlib.util.find_spec("zensical") is None:
        sys.exit("the site is built by zensical, which is not installed. Run: pip install -e '.[docs]'")
    write_pages(BUILD / "pages")
    write_configuration(BUILD / "zensical.toml")
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    sys.exit(subprocess.run(command, cwd=BUILD, check=False).returncode)


if __name__ == "__main__":
    main()
