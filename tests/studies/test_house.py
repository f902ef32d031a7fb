"""Every figure of the house is counted right on a package of four small modules."""

import subprocess
import sys
from pathlib import Path

import pytest

from studies.house import circles, inspect, layer

ROOT = Path(__file__).parents[2]
FILES = {
    "README.md": "one two three\nfour",
    "src/longgame/__init__.py": "\n",
    "src/longgame/errors.py": "def name(value):\n    found = value\n    return found\n",
    "src/longgame/signals/__init__.py": "",
    "src/longgame/signals/base.py": "from longgame.report import page\nimport longgame.signals.store\n\nLIMIT = 1\n",
    "src/longgame/signals/store.py": "def load():\n    import longgame.signals.base\n\n\nLIMIT: int = 2\n",
    "src/longgame/report/page.py": "_HIDDEN = 1\nmade = 2\nclass Page: ...\n",
}


@pytest.fixture
def house(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return inspect(tmp_path)


def test_modules_and_lines_are_counted_without_inits(house):
    assert sorted(house.module_lengths) == [3, 3, 4, 5]
    assert sum(house.lines.values()) == 16
    assert house.readme_words == 4


def test_imports_in_functions_close_circles(house):
    assert house.circles == [["longgame.signals.base", "longgame.signals.store"]]
    assert house.upward == [("longgame.signals.base", "longgame.report.page")]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_vague_names_are_a_share_of_all_bindings(house):
    assert house.vague_share == pytest.approx(2 / 6)  # found and made of value, found, LIMIT, LIMIT, _HIDDEN, made


def test_public_names_are_those_of_several_modules(house):
    assert house.several == {"LIMIT": ["longgame.signals.base", "longgame.signals.store"]}


def test_layers_follow_the_data():
    assert layer("longgame.errors") < layer("longgame.data.examples") < layer("longgame.cli") < layer("longgame")


def test_a_folder_without_the_package_is_one_sentence(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "studies.house", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "has no src/longgame" in done.stderr
