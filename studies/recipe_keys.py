"""The tables of docs/recipe.md: every key of a recipe with type, default and meaning, as `longgame.recipe` has them.

```
python -m studies.recipe_keys     # writes the tables between the marks <!-- keys: PREFIX --> and <!-- end of keys -->
```

A key's meaning is the text below its field in the source.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from longgame import recipe as recipe_module
from longgame.recipe import MOST, AdaptationValue, ChoiceSpec, Part, RealTask, Recipe, ReplaySpec, SelectorSpec
from studies.methods import ROOT
from studies.site import table

PAGE = ROOT / "docs" / "recipe.md"
_LISTS: dict[str, type[Part]] = {
    "selectors[].": SelectorSpec,
    "selectors[].replay.": ReplaySpec,
    "axes.adaptation[].": AdaptationValue,
    "data.stages[].": RealTask,
}
"""Prefix → items of a list, and a section that may be missing."""
_HIDDEN = ("parameters",)
"""The long form of what stands beside a selector's name."""
LINKS = {
    "selectors": "[selectors](selectors.md)",
    "full_data": "[the full-data trial](#the-full-data-trial), [PIR](report.md#efficiency-and-feasibility)",
    "oracle": "[the oracle](#the-oracle)",
    "quality": "[sources of quality](quality.md)",
    "relative_to": "[paths](#paths)",
    "axes.vary": "[conditions](#conditions)",
    "selectors[].replay.choice": "[what is replayed](selectors.md#what-is-replayed)",
    "selectors[].min_cluster_share": "[interventions](selectors.md#interventions)",
    "model.adaptation": "[model.peft](#modelpeft)",
    "model.per_seed": "[what a seed varies](#what-a-seed-varies)",
    "model.device": "[Ray](scale.md#ray)",
    "model.dtype": "[LoRA over a bfloat16 base](training.md#lora-over-a-bfloat16-base)",
    "data.sequence": "[sequences](#sequences)",
    "data.order": "[another order](#another-order)",
    "data.mixing": "[mixing](#mixing)",
    "data.run_model_code": "[the sandbox](scorers.md#pass_at_1)",
    "data.stages[].skills": "[stages of generators](#stages-of-generators)",
    "data.stages[].train": "[a sequence of your own](#a-sequence-of-your-own)",
    "data.stages[].scorers": "[scorers](scorers.md)",
    "metrics.reference": "[lhas-ablation.yaml](../recipes/lhas-ablation.yaml)",
    "metrics.holm": "[verdicts](metrics.md#error-bars-and-verdicts)",
    "metrics.bootstrap": "[calibration](calibration.md)",
}
"""Key → where the page goes on."""
_MARKED = re.compile(r"<!-- keys: (?P<prefix>\S*) -->\n.*?<!-- end of keys -->", flags=re.DOTALL)


def meanings() -> dict[str, dict[str, str]]:
    """Class of `longgame.recipe` → field → the text below it, in one line."""
    result: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(recipe_module)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        fields = result.setdefault(node.name, {})
        for statement, below in zip(node.body, node.body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                text = (
                    below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else ""
                )
                fields[statement.target.id] = " ".join(str(text).split())
    return result


def sections() -> dict[str, type[Part]]:
    """Prefix of keys (``data.``) → the part of a recipe that has them."""
    return {**dict(_sections(Recipe, "")), **_LISTS}


def _sections(part: type[Part], prefix: str) -> Iterator[tuple[str, type[Part]]]:
    yield prefix, part
    for name, field in part.model_fields.items():
        if isinstance(field.default, Part):
            yield from _sections(type(field.default), f"{prefix}{name}.")


def keys(prefix: str) -> list[tuple[str, str, str, str]]:
    """Key, type, default and meaning of each value that begins with the prefix; sections of their own are left out."""
    part = sections()[prefix]
    texts = meanings()[part.__name__]
    rows = []
    for name, field in part.model_fields.items():
        key = prefix + name
        if name in _HIDDEN or (isinstance(field.default, Part) and f"{key}." in sections()):
            continue
        default = "required" if field.is_required() else f"`{_json(field.default)}`"
        meaning = texts[name] + (f" See {LINKS[key]}." if key in LINKS else "")
        rows.append((f"`{key}`", type_of(field), default, meaning))
    return rows


def _json(value: Any) -> str:
    if isinstance(value, ChoiceSpec):
        value = value.name  # as a recipe writes it
    return json.dumps(value)


def type_of(field: FieldInfo) -> str:
    """The type of a key in words, with its bounds."""
    return _words(field.annotation, list(field.metadata))


def _words(kind: Any, metadata: list[Any]) -> str:
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _words(inside[0], [*metadata, *_constraints(inside[1:])])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inside)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if part is type(None) else _words(part, metadata) for part in inside)
    if origin is tuple:
        if inside[-1] is Ellipsis:
            return f"list of {_plural(_words(inside[0], []))}"
        return f"list of {len(inside)} {_plural(_words(inside[0], []))}"
    if origin is dict or (isinstance(kind, type) and issubclass(kind, Part)):
        return "mapping"
    name = {bool: "true or false", int: "integer", float: "number", str: "text"}.get(kind, "value")
    return name + _bounds(metadata)


def _plural(words: str) -> str:
    return re.sub(r"^(text|integer|number|mapping|list)\b", r"\1s", words)


def _constraints(metadata: tuple[Any, ...]) -> list[Any]:
    return [part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else (item,))]


def _bounds(metadata: list[Any]) -> str:
    signs = ((Ge, "≥", "ge"), (Gt, ">", "gt"), (Le, "≤", "le"), (Lt, "<", "lt"))
    bounds = [
        f"{sign}\N{NO-BREAK SPACE}{value:,}"
        for kind, sign, name in signs
        for item in metadata
        if isinstance(item, kind) and (value := getattr(item, name)) not in (MOST, 2**63)
    ]
    return f" {', '.join(bounds)}" if bounds else ""


def page() -> str:
    """The page of recipes with its tables as the program has them."""

    def fill(match: re.Match[str]) -> str:
        prefix = match["prefix"]
        return (
            f"<!-- keys: {prefix} -->\n{table(('key', 'type', 'default', 'meaning'), keys(prefix))}<!-- end of keys -->"
        )

    return _MARKED.sub(fill, PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
