"""Data flows one way, and so do imports."""

import ast
import subprocess
import sys
from pathlib import Path

import longgame
from studies.house import circles, imports, layer, modules

ROOT = Path(longgame.__file__).parent
TREES = modules(ROOT)
MATRIX_PRODUCTS = ROOT / "selection" / "algorithms" / "products.py"
"""Loads torch where a matrix is large; no selector sees it."""
GRAPH = {name: imports(tree, set(TREES)) - {name, "longgame"} for name, tree in TREES.items()}


def libraries(tree):
    """Top names of all modules that a module imports, inside functions, too."""
    nodes = list(ast.walk(tree))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {name.partition(".")[0] for name in names}


def test_modules_import_only_from_layers_to_their_left():
    assert [(a, b) for a in sorted(GRAPH) for b in sorted(GRAPH[a]) if layer(b) > layer(a)] == []


def test_modules_import_each_other_in_no_circle():
    assert circles(GRAPH) == []


def test_audit_and_quadratic_world_never_load_torch():
    names = "walk, store, run, plan, learner, checks, results"
    code = (
        f"from longgame.audit import {names}\n"
        "import longgame.engines.local, longgame.quadratic.learner, sys\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_ray_is_imported_in_one_module():
    users = {name for name, tree in TREES.items() if "ray" in libraries(tree)}
    assert users == {"longgame.engines.ray"}


def test_selectors_know_neither_models_nor_files():
    for path in sorted(set((ROOT / "selection").rglob("*.py")) - {MATRIX_PRODUCTS}):
        text = path.read_text()
        for word in ("import torch", "import transformers", "from torch", "from transformers", "open(", "Path("):
            assert word not in text, (path, word)
