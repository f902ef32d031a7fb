"""The page of the methods: where each one runs, what it costs, and the tests that hold it.

```
python -m studies.methods            # writes docs/methods.md
```

Costs are those of ``python -m benchmarks.field --only offline --quick`` and ``--only online``
(docs/results/performance/field-methods.json); tests are found in the source of ``tests/``.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longgame.selection.base import SELECTORS, build_selector, notes_of
from longgame.selection.families import FAMILIES, family_of, needs_of
from longgame.signals.base import COST_CLASSES, SIGNALS, cost_class

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "methods.md"
COSTS = ROOT / "docs" / "results" / "performance" / "field-methods.json"
_MOST = 6
"""Tests that are named for one method; the others are counted."""
_COMMON = ("random", "gradient", "diversity")
"""Methods whose names are words of other tests, too."""

_TOP = """# The methods

Each selector of `longgame selectors`: where it runs, what it costs, and the tests that hold its formula. Formulas and
parameters are on the page of the [selectors](selectors.md); `longgame selectors NAME` explains one.

*Offline* is `longgame select`, *online* a choice at every step of a trainer, *audit* a trial of `longgame audit`.
Online, a method that needs more than the model gets it by an option: `SelectionConfig(trajectories=…, scorer_model=…,
reference_model=…, quality=…)`, or stored columns (`SelectionTrainer(signals=…)`).

"""


def offline_costs(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Selector → time of `longgame select`, in forward passes over its rows."""
    return {row["selector"]: row["passes"] for row in rows if row["task"] == "offline" and "passes" in row}


def online_costs(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Selector → share of a step that selecting takes; None where a trainer needs more than the model."""
    return {row["selector"]: row.get("share") for row in rows if row["task"] == "online"}


def tests_of(folder: Path) -> dict[str, list[str]]:
    """Selector → tests that begin with its name, or build it among the tests of selection."""
    classes = {name: type(build_selector(name)).__name__ for name in SELECTORS.builtin_names()}
    result: dict[str, list[str]] = {name: [] for name in classes}
    for path in sorted(folder.rglob("test_*.py")):
        in_selection = "selection" in path.relative_to(folder).parts
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(function, ast.FunctionDef) or not function.name.startswith("test_"):
                continue
            words = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
            texts = {node.value for node in ast.walk(function) if isinstance(node, ast.Constant)}
            for name, kind in classes.items():
                titled = f"{function.name}_".startswith(f"test_{name.replace('-', '_')}_")
                built = kind in words or (name in texts and name not in SIGNALS and name not in _COMMON)
                if titled or (in_selection and built):
                    result[name].append(function.name)
    return result


def page(rows: Sequence[Mapping[str, Any]], source: Mapping[str, Any], tests: Mapping[str, Sequence[str]]) -> str:
    """The page, as Markdown."""
    offline, online = offline_costs(rows), online_costs(rows)
    text = _TOP
    text += _measured(source)
    text += "Cost: " + "; ".join(f"**{key}** {words}" for key, words in COST_CLASSES.items()) + ".\n\n"
    for family in FAMILIES:
        names = [name for name in SELECTORS.builtin_names() if family_of(build_selector(name)) == family]
        if not names:
            continue
        text += f"## {family.capitalize()}: {FAMILIES[family]}\n\n"
        text += "| method | paper | needs | cost | offline | online | audit |\n|---|---|---|---|---|---|---|\n"
        for name in names:
            selector = build_selector(name)
            needs = needs_of(selector)
            text += (
                f"| `{name}` | {notes_of(type(selector)).paper.rstrip('.')} | {', '.join(needs) or 'nothing'} "
                f"| {cost_class(selector.requires)} | {_passes(offline.get(name))} | {_share(name, online)} "
                f"| {'with a quality source' if _graded(selector.requires) else 'yes'} |\n"
            )
        text += "\n"
    text += "## Tests\n\nTests that bear a method's name or build it. "
    text += "Beside them, all selectors pass `tests/contract` and run in the trainers' tests.\n\n"
    text += "| method | tests |\n|---|---|\n"
    for name in SELECTORS.builtin_names():
        named = list(dict.fromkeys(tests[name]))
        further = f" and {len(named) - _MOST} more" if len(named) > _MOST else ""
        text += f"| `{name}` | {', '.join(f'`{test}`' for test in named[:_MOST])}{further} |\n"
    return text


def _measured(source: Mapping[str, Any]) -> str:
    machine = source["machine"]
    return (
        f"Measured on SmolLM2-135M in float32, one thread of {machine['processor']} (torch {machine['torch']}): "
        "*offline* in forward passes over the rows, reading and writing included, with `tiny` as scorer model;\n"
        "*online* the share of a training step in TRL's trainer, eight candidates for two places, without what is "
        "computed once before the first step.\n"
        "`python -m benchmarks.field --data-dir DATA` with `--only offline --quick` (24 rows) and with `--only online` "
        "prints them.\n\n"
    )


def _graded(requires: Sequence[str]) -> bool:
    return any("judge" in SIGNALS[name].needs for name in requires if name in SIGNALS)


def _passes(value: float | None) -> str:
    return "–" if value is None else f"{value:.2g} ×" if value < 10 else f"{value:.0f} ×"


def _share(name: str, shares: Mapping[str, float | None]) -> str:
    if name not in shares:
        return "–"
    share = shares[name]
    return "with an option" if share is None else f"{share:.0%}"


def main() -> None:
    source = json.loads(COSTS.read_text(encoding="utf-8"))
    PAGE.write_text(page(source["rows"], source, tests_of(ROOT / "tests")), encoding="utf-8")
    print(f"Written: {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
