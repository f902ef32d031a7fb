"""Data flows one way, and so do imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import longgame

ROOT = Path(longgame.__file__).parent
ORDER = ["recipe", "data", "signals", "selectors", "training", "evaluation", "metrics", "report"]
COMMON = {"axes", "errors", "durable", "seeding", "registry", "statefile", "models", "hub", "products"}


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "longgame" and len(parts) > 1:
                yield parts[1]


@pytest.mark.parametrize("room", ORDER)
def test_a_room_imports_only_from_rooms_to_its_left(room):
    files = [ROOT / "recipe.py"] if room == "recipe" else sorted((ROOT / room).rglob("*.py"))
    assert files
    allowed = {*ORDER[: ORDER.index(room) + 1], *COMMON}
    for path in files:
        assert {name for name in imported_rooms(path) if name not in allowed} == set(), path


def test_common_modules_import_no_room():
    for name in ("axes", "errors", "durable", "seeding", "registry", "statefile", "products"):
        assert set(imported_rooms(ROOT / f"{name}.py")) <= COMMON


def test_the_protocol_and_the_quadratic_world_never_load_torch():
    modules = "trajectory, probes, store, audit, backends, plan, substrate, trial, display"
    code = (
        f"from longgame.protocol import {modules}\n"
        "import longgame.theory.quadratic, sys\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_selectors_know_neither_models_nor_files():
    for path in sorted((ROOT / "selectors").rglob("*.py")):
        text = path.read_text()
        for word in ("import torch", "import transformers", "from torch", "from transformers", "open(", "Path("):
            assert word not in text, (path, word)
