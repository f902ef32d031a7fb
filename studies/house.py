"""Figures of the code's structure: ``python -m studies.house [ROOT]``.

It counts modules per 1,000 lines, import circles, imports against the order of layers, vague variable names, public
names with several definitions, and words of the README. ``__init__.py`` counts as lines, not as a module. Imports under
``TYPE_CHECKING`` and inside functions count. It needs nothing but Python.
"""

from __future__ import annotations

import argparse
import ast
import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ORDER = (
    ("escape", "errors", "limits", "seeding", "registry", "storage", "recipe"),
    ("models",),
    ("data",),
    ("signals",),
    ("selection",),
    ("training",),
    ("evaluation",),
    ("metrics",),
    ("quadratic",),
    ("engines",),
    ("offline",),
    ("audit",),
    ("report",),
    ("testing",),
    ("commands",),
    ("cli",),
)
"""Layers from left to right: a module imports from its own layer and from those before it."""
VAGUE = frozenset((
    "found", "held", "told", "said", "own", "who", "whole", "kept", "begun", "each", "seen", "taken", "wanted", "given",
    "asked", "known", "noted", "made", "rest", "what", "more", "most", "one", "thing",
))  # fmt: skip
"""Names that do not say what a variable holds."""


def modules(package: Path) -> dict[str, ast.Module]:
    """Dotted name → syntax tree of every module of a package."""
    trees = {}
    for path in sorted(package.rglob("*.py")):
        parts = [package.name, *path.relative_to(package).with_suffix("").parts]
        trees[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text(encoding="utf-8"))
    return trees


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
    """Index of a module's layer in `ORDER`; the package's ``__init__`` comes after the last."""
    room = module.split(".")[1] if "." in module else ""
    return next((index for index, rooms in enumerate(ORDER) if room in rooms), len(ORDER))


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
            start = stack.index(node)
            group, stack[start:] = stack[start:], []
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


@dataclass(frozen=True)
class House:
    """What is counted of one source tree."""

    lines: dict[str, int]
    """File → lines; ``__init__.py`` included."""
    circles: list[list[str]]
    upward: list[tuple[str, str]]
    """(importer, imported) against the order of layers."""
    vague_share: float
    """Bindings of a name in `VAGUE` among all bindings."""
    several: dict[str, list[str]]
    """Public name → the modules that define it, where there are several."""
    readme_words: int

    @property
    def module_lengths(self) -> list[int]:
        return [lines for path, lines in self.lines.items() if not path.endswith("__init__.py")]

    @property
    def rows(self) -> list[tuple[str, object, str]]:
        """(figure, value, limit) of every line of the table."""
        lengths, lines = self.module_lengths, sum(self.lines.values())
        return [
            ("modules", len(lengths), ""),
            ("lines", lines, ""),
            ("modules per 1,000 lines", round(1000 * len(lengths) / lines, 2), "≤ 4.2"),
            ("median lines", statistics.median(lengths), ""),
            ("import circles", len(self.circles), "0"),
            ("upward arrows", len(self.upward), "0"),
            ("vague variable names", f"{100 * self.vague_share:.2f} %", "≤ 0.5 %"),
            ("public names with several definitions", len(self.several), "≤ 5"),
            ("words of the README", self.readme_words, "≤ 800"),
        ]


def inspect(root: Path) -> House:
    """Count the figures of the repository at ``root``.

    Raises:
        FileNotFoundError: it has no ``src/longgame`` or no README.md.
    """
    package, readme = root / "src" / "longgame", root / "README.md"
    if not (package.is_dir() and readme.is_file()):
        raise FileNotFoundError(f"'{root}' has no src/longgame or no README.md. Name the repository's root.")
    trees = modules(package)
    graph = {name: imports(tree, set(trees)) - {name} for name, tree in trees.items()}
    names = [name.strip("_") for tree in trees.values() for name in variables(tree)]
    owners = defaultdict(list)
    for module, tree in trees.items():
        for name in public_names(tree):
            owners[name].append(module)
    return House(
        {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in package.rglob("*.py")},
        circles(graph),
        [(a, b) for a in sorted(graph) for b in sorted(graph[a]) if b != "longgame" and layer(b) > layer(a)],
        sum(name in VAGUE for name in names) / len(names),
        {name: places for name, places in sorted(owners.items()) if len(places) > 1},
        len(readme.read_text(encoding="utf-8").split()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.house", description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, nargs="?", default=Path(), help="the repository (default: here)")
    try:
        house = inspect(parser.parse_args().root)
    except FileNotFoundError as error:
        parser.error(str(error))
    for name, value, limit in house.rows:
        print(f"{name:40} {value!s:>10}  {limit}")
    for circle in house.circles:
        print("circle:", ", ".join(circle))
    for source, target in house.upward:
        print(f"upward: {source} -> {target}")
    for name, places in house.several.items():
        print(f"several: {name}: {', '.join(places)}")


if __name__ == "__main__":
    main()
