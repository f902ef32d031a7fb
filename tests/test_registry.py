import re
import tomllib
from pathlib import Path

import pytest

from longgame.errors import PluginError, RecipeError
from longgame.evaluation.scorers import SCORERS
from longgame.selection.base import SELECTORS, build_selector
from longgame.signals.quality.base import QUALITY_SOURCES

GOOD = """
from longgame import Selection, Selector
class First(Selector):
    name = "first"
    requires = ()
    def select(self, pool, signals, history, budget, rng):
        return Selection.of(pool, [0])
"""


def test_an_unknown_selector_is_named_with_a_suggestion():
    with pytest.raises(RecipeError, match="unknown selector 'lhsa'. Did you mean 'lhas'"):
        SELECTORS.resolve("lhsa")


def test_a_class_of_a_file_is_found_and_a_wrong_class_is_named(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(GOOD)
    assert SELECTORS.resolve(f"{path}:First").name == "first"
    with pytest.raises(PluginError, match="unknown class 'Frist'. Did you mean 'First'"):
        SELECTORS.resolve(f"{path}:Frist")
    with pytest.raises(RecipeError, match="does not exist"):
        SELECTORS.resolve(f"{tmp_path}/none.py:First")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise ValueError('boom')", "ValueError: boom"),
        ("raise SystemExit(1)", "SystemExit: 1"),
        ("def (", "SyntaxError: invalid syntax"),
        ("class First: pass", "does not derive from longgame.Selector"),
        (GOOD.replace("requires = ()", "requires = 'loss'"), "is a string"),
        (GOOD.replace("requires = ()", "requires = ('los',)"), "unknown signal 'los'. Did you mean 'loss'"),
        (GOOD.replace("def select", "def other"), "defines neither score"),
        ("First = 3", "not a class"),
    ],
)
def test_a_broken_plugin_is_refused_before_it_is_used(tmp_path, text, message):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(PluginError) as caught:
        SELECTORS.resolve(f"{path}:First")
    assert message in str(caught.value)


def test_failing_constructor_is_reported_with_its_frames(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(GOOD + "    def __init__(self):\n        self.k = {}['k']\n")
    with pytest.raises(PluginError) as caught:
        build_selector(f"{path}:First")
    sentence, *places = str(caught.value).splitlines()
    assert "mine.py:First' failed in being made with {}: KeyError: 'k'" in sentence
    assert len(places) == 1
    assert places[-1] == f"  {path}, line 9, in __init__: self.k = {{}}['k']"


def test_classes_that_a_file_only_imports_are_not_offered(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(GOOD)
    with pytest.raises(PluginError, match=r"Known: First\.$"):
        SELECTORS.resolve(f"{path}:Second")


def test_a_parameter_that_a_selector_lacks_is_named(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(GOOD + "    def __init__(self, center, k=1):\n        self.center = center\n")
    with pytest.raises(RecipeError, match=r"needs the parameter 'center'.*mine\.py:First:center=VALUE"):
        build_selector(f"{path}:First", {"k": 2})
    assert build_selector(f"{path}:First", {"center": 3}).center == 3


def test_a_parameter_that_a_selector_does_not_take_is_an_error():
    with pytest.raises(RecipeError, match="no parameter .depth."):
        build_selector("random", {"depth": 3})


def test_the_package_of_the_plugin_page_is_listed_and_keeps_the_contract(tmp_path, monkeypatch):
    page = (Path(__file__).parent.parent / "docs" / "plugins.md").read_text(encoding="utf-8")
    project, module, contract = re.findall(r"```(?:toml|python)[^\n]*\n(.*?)```", page, re.S)
    package, points = tmp_path / "longgame_mine", tmp_path / "longgame_mine-0.1.0.dist-info"
    package.mkdir()
    points.mkdir()
    (package / "__init__.py").touch()
    (package / "plugins.py").write_text(module, encoding="utf-8")
    groups = tomllib.loads(project)["project"]["entry-points"]
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in names.items())
        for group, names in groups.items()
    ]
    (points / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    (points / "METADATA").write_text("Metadata-Version: 2.1\nName: longgame-mine\nVersion: 0.1.0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    registries = {"longgame.selectors": SELECTORS, "longgame.scorers": SCORERS, "longgame.quality": QUALITY_SOURCES}
    assert groups.keys() == registries.keys()
    for group, names in groups.items():
        for name in names:
            assert name in registries[group].names()
            assert registries[group].make(name, {}).name == name
    exec(contract + "\ntest_middle_loss_keeps_the_contract()", {})
