"""The reference pages name every key, parameter and column, with the defaults that the code has."""

import importlib
import inspect
import json
import re
import shlex
from pathlib import Path

import pytest
import typer

from longgame import build_selector
from longgame.audit.store import RESULT_COLUMNS
from longgame.cli import app
from longgame.recipe import Part, RealTask, Recipe
from longgame.selection.base import SELECTORS
from longgame.signals.base import CONTEXT, SIGNALS

DOCS = Path(__file__).parents[1] / "docs"
PAPER_INDEX = (DOCS / "paper_index.md").read_text(encoding="utf-8")


def rows(page):
    """The cells of every table row of a page."""
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def keys_of(model, prefix=""):
    """Dotted key → default (as JSON, or 'required') of every leaf of a recipe."""
    keys = {}
    for name, field in model.model_fields.items():
        default = field.default
        if isinstance(default, Part):
            keys |= keys_of(type(default), f"{prefix}{name}.")
        else:
            keys[prefix + name] = "required" if field.is_required() else f"`{json.dumps(default)}`"
    return keys


def test_the_recipe_page_has_every_key_with_its_default():
    documented = {cells[0].strip("`"): cells[1] for cells in rows("recipe.md") if cells[0].startswith("`")}
    assert documented == {**keys_of(Recipe), **keys_of(RealTask, "data.stages[].")}


@pytest.mark.parametrize("name", SELECTORS.names())
def test_the_selector_page_has_every_parameter(name):
    text = (DOCS / "selectors.md").read_text(encoding="utf-8")
    assert f"| `{name}` |" in text
    kind = type(build_selector(name))
    if kind.__init__ is not object.__init__:
        for parameter in inspect.signature(kind).parameters:
            assert f"`{parameter}`" in text, f"{name}: {parameter}"


def test_the_selector_page_has_every_signal():
    documented = {cells[0].strip("`") for cells in rows("selectors.md")}
    assert {*SIGNALS, *CONTEXT} <= documented


def test_the_results_page_has_every_column():
    documented = {name for cells in rows("results-format.md") for name in re.findall(r"`(\w+)`", cells[0])}
    assert documented == set(RESULT_COLUMNS)


def resolve(dotted):
    """What a dotted name stands for: a module, or an attribute of one."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            target = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            target = getattr(target, part)
        return target
    raise ModuleNotFoundError(dotted)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(longgame(?:\.\w+)+)`", PAPER_INDEX))))
def test_every_name_of_the_paper_index_exists(name):
    assert resolve(name) is not None


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`longgame ([^`]+)`", PAPER_INDEX))))
def test_every_command_of_the_paper_index_parses(command):
    name, *arguments = shlex.split(command)
    parser = typer.main.get_command(app).commands[name]
    context = parser.context_class(parser, info_name=name)
    _, left, _ = parser.make_parser(context).parse_args(arguments)
    assert not left
    for recipe in (argument for argument in arguments if argument.startswith("recipes/")):
        assert (DOCS.parent / recipe).is_file()


def test_the_paper_index_has_every_equation_table_and_figure():
    documented = " ".join(cells[0] for cells in rows("paper_index.md"))
    numbers = {
        int(n)
        for low, high in re.findall(r"eq\. (\d)(?:–(\d))?", documented)
        for n in range(int(low), int(high or low) + 1)
    }
    assert numbers == set(range(1, 10))
    for item in ("Def. 1", "Prop. 1", "B.2", "Table 1", "Table 2", "Table 3", "Figure 1"):
        assert item in documented
    assert set(re.findall(r"Figure (\d \(\w\))", documented)) == {
        f"{n} ({part})" for n, parts in ((2, "abcd"), (3, "abcd"), (4, "ab")) for part in parts
    }


def test_every_deviation_of_the_paper_index_is_explained_and_every_explanation_used():
    body, _, last = PAPER_INDEX.partition("## Deviations")
    explained = re.findall(r"^\| (\d+) \|", last, flags=re.MULTILINE)
    assert explained == [str(n) for n in range(1, len(explained) + 1)]
    assert set(re.findall(r"▲(\d+)", body)) == set(explained)
