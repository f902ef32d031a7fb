"""Figures of the code's structure: ``python -m studies.house [ROOT]``.

Modules per 1,000 lines, import circles, arrows against the order of layers, vague variable names, public names with
several definitions, words of the README. ``__init__.py`` counts as lines, not as a module. Imports under
``TYPE_CHECKING`` and inside functions count as imports.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ORDER = (
    ("errors", "seeding", "registry", "storage", "recipe"),
    ("models",),
    ("data",),
    ("signals",),
    ("selection",),
    ("training",),
    ("evaluation",),
    ("metrics",),
    ("quadratic",),
    ("engines",),
    ("audit",),
    ("report",),
    ("testing",),
    ("commands",),
    ("cli",),
)
"""Layers from left to right: a module imports from its own layer and from those before it."""
VAGUE = frozenset(
    {
        "found",
        "held",
        "told",
        "said",
        "own",
        "who",
        "whole",
        "kept",
        "begun",
        "each",
        "seen",
        "taken",
        "wanted",
        "given",
        "asked",
        "known",
        "noted",
        "made",
        "rest",
        "what",
        "more",
        "most",
        "one",
        "thing",
    }
)
"""Names that do not say what a variable holds."""


def modules(package: Path) -> dict[str, ast.Module]:
    """Dotted name → syntax tree of every module of a package."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = [package.name, *path.relative_to(package).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports(tree: ast.Module, names: set[str]) -> set[str]:
    """Modules among ``names`` that a module imports."""
    targets = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names} & names
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & names
            targets |= submodules or ({node.module} & names)
    return targets


def layer(module: str) -> int:
    """Index of a module's layer in `ORDER`; the package's own ``__init__`` stands above all."""
    room = module.split(".")[1] if "." in module else ""
    return next((place for place, rooms in enumerate(ORDER) if room in rooms), len(ORDER))


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected groups of more than one module (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph[node]):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            at = stack.index(node)
            group, stack[at:] = stack[at:], []
            if len(group) > 1:
                groups.append(sorted(group))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return groups


def variables(tree: ast.Module) -> Iterator[str]:
    """Every name that an assignment, a loop, a ``with``, a parameter or a field binds, once per binding."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def public_names(tree: ast.Module) -> set[str]:
    """Classes, functions and constants that a module defines at its top, without a leading underscore."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("_")}


def main(root: Path) -> None:
    package = root / "src" / "longgame"
    trees = modules(package)
    files = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in package.rglob("*.py")}
    lengths = [lines for path, lines in files.items() if path.name != "__init__.py"]
    graph = {name: imports(tree, set(trees)) - {name} for name, tree in trees.items()}
    upward = [(a, b) for a in sorted(graph) for b in sorted(graph[a]) if b != "longgame" and layer(b) > layer(a)]
    bound = [name.strip("_") for tree in trees.values() for name in variables(tree)]
    vague = [name for name in bound if name in VAGUE]
    owners = defaultdict(list)
    for module, tree in trees.items():
        for name in public_names(tree):
            owners[name].append(module)
    several = {name: places for name, places in sorted(owners.items()) if len(places) > 1}
    words = len((root / "README.md").read_text(encoding="utf-8").split())
    rows = [
        ("modules", len(lengths), ""),
        ("lines", sum(files.values()), ""),
        ("modules per 1,000 lines", round(1000 * len(lengths) / sum(files.values()), 2), "≤ 4.2"),
        ("median lines", statistics.median(lengths), ""),
        ("import circles", len(circles(graph)), "0"),
        ("upward arrows", len(upward), "0"),
        ("vague variable names", f"{100 * len(vague) / len(bound):.2f} %", "≤ 0.5 %"),
        ("public names with several definitions", len(several), "≤ 5"),
        ("words of the README", words, "≤ 800"),
    ]
    for name, value, limit in rows:
        print(f"{name:40} {value!s:>10}  {limit}")
    for circle in circles(graph):
        print("circle:", ", ".join(circle))
    for source, target in upward:
        print(f"upward: {source} -> {target}")
    for name, places in several.items():
        print(f"several: {name}: {', '.join(places)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path())
