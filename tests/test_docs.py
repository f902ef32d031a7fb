"""The reference pages name every key, parameter and column, with the defaults that the code has."""

import inspect
import json
import re
from pathlib import Path

import pytest

from longgame import build_selector
from longgame.protocol.store import RESULT_COLUMNS
from longgame.recipe import RealTask, Recipe, _Part
from longgame.selectors.base import SELECTORS
from longgame.signals.base import CONTEXT, SIGNALS

DOCS = Path(__file__).parents[1] / "docs"


def rows(page):
    """The cells of every table row of a page."""
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def keys_of(model, prefix=""):
    """Dotted key → default (as JSON, or 'required') of every leaf of a recipe."""
    found = {}
    for name, field in model.model_fields.items():
        default = field.default
        if isinstance(default, _Part):
            found |= keys_of(type(default), f"{prefix}{name}.")
        else:
            found[prefix + name] = "required" if field.is_required() else f"`{json.dumps(default)}`"
    return found


def test_the_recipe_page_has_every_key_with_its_default():
    told = {cells[0].strip("`"): cells[1] for cells in rows("recipe.md") if cells[0].startswith("`")}
    assert told == {**keys_of(Recipe), **keys_of(RealTask, "data.stages[].")}


@pytest.mark.parametrize("name", SELECTORS.names())
def test_the_selector_page_has_every_parameter(name):
    text = (DOCS / "selectors.md").read_text(encoding="utf-8")
    assert f"| `{name}` |" in text
    kind = type(build_selector(name))
    if kind.__init__ is not object.__init__:
        for parameter in inspect.signature(kind).parameters:
            assert f"`{parameter}`" in text, f"{name}: {parameter}"


def test_the_selector_page_has_every_signal():
    told = {cells[0].strip("`") for cells in rows("selectors.md")}
    assert {*SIGNALS, *CONTEXT} <= told


def test_the_results_page_has_every_column():
    told = {name for cells in rows("results-format.md") for name in re.findall(r"`(\w+)`", cells[0])}
    assert told == set(RESULT_COLUMNS)
