"""What one trial is, and the plan of all trials of a recipe."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from longgame.audit.learner import Outline, learner_kind, outline
from longgame.data.orders import resolve_order
from longgame.errors import RecipeError
from longgame.recipe import (
    ADAPTATION_KINDS,
    AdaptationValue,
    AxesSpec,
    ChoiceSpec,
    OrderAxis,
    Recipe,
    SelectorSpec,
    parse_recipe,
    set_values,
)
from longgame.seeding import generator
from longgame.selection.base import ORACLE


@dataclass(frozen=True, slots=True)
class Trial:
    """One selector walked through all stages with one seed under one condition."""

    selector: SelectorSpec
    seed: int
    condition: str = ""
    """Name of the condition (`longgame.audit.plan.Condition`); "" for the recipe's own values."""
    name: str = field(init=False, repr=False, compare=False)
    """What its folder is called; a report of 10,000 trials asks for it ten times each."""

    def __post_init__(self) -> None:
        condition = f"@{self.condition}" if self.condition else ""
        object.__setattr__(self, "name", f"{safe_name(self.selector.key)}-s{self.seed}{condition}")


# From the axes of a recipe to its conditions: one recipe each, and what the conditions share.

AXES = ("budget", "rounds", "adaptation", "order")
"""Axes that have a name of their own, in the order in which a condition names them; `axes.vary` follows by key."""

MOST_TRIALS = 100_000
"""Trials that a recipe may ask for."""

OWN = "own"
"""What tables call the condition of the recipe's own values."""

FULL_DATA = "full-data"
"""The condition of the trials that learn whole pools (`full_data`): a reference that competes with no selector."""

ALL_DATA = SelectorSpec(name="random", label="all data")
"""What "selects" under `FULL_DATA`: with a budget of the whole pool there is nothing to choose."""

REFERENCES = (FULL_DATA, ORACLE)
"""Conditions that compete with no selector; the trials of the second pick by the evaluation items."""

_REPORT_ONLY = (
    "metrics.alpha",
    "metrics.beta",
    "metrics.gamma",
    "metrics.forgetting_reference",
    "metrics.bootstrap",
    "metrics.reference",
    "metrics.equivalence.now",
    "metrics.equivalence.long_horizon",
    "metrics.holm",
    "probe.threshold",
)
"""Keys that are read when results are told, and change no measurement."""

_ADDED = (
    *("model.peft", "model.embedder", "model.scorer_model", "data.turns", "data.quality_range"),
    *("quality", "complexity", "metrics.holm"),
    *("model.attention", "training.micro_tokens", "training.gradient_checkpointing", "probe.generations"),
)
"""Keys that came after the first runs; at their default they are no part of a trial's key, so that old runs resume."""

_NOT_VARIED = {
    **dict.fromkeys(
        ("name", "selectors", "seeds", "axes", "full_data", "oracle", "relative_to"), "it stands above the axes"
    ),
    **dict.fromkeys(("budget", "rounds"), "it has an axis of its own"),
    **dict.fromkeys(("model.adaptation", "model.lora.r", "model.lora.alpha"), "use axes.adaptation"),
    "model.trust_remote_code": "it is trusted or not",
    "data.run_model_code": "it is allowed or not",
    "model.device": "it says where, not what is measured",
    "data.order": "use axes.order",
    **dict.fromkeys(("data.sequence", "data.stages", "data.ood"), "another sequence is another recipe"),
    "data.data_dir": "a run reads one folder, so give another folder a run of its own",
    **dict.fromkeys(_REPORT_ONLY, "it changes how results are told, not what is measured"),
}

_FREE = ("model.adaptation", "model.lora.", "model.peft.", "data.ood_after")
_BASE = ("model.", "data.", "proxy.items_per_skill", "metrics.clusters")


@dataclass(frozen=True, slots=True)
class Point:
    """One value of one axis, as changes of the recipe."""

    axis: str
    label: str
    changes: tuple[tuple[str, Any], ...]
    """Dotted key → value. Empty: the recipe's own value."""


@dataclass(frozen=True)
class Condition:
    """One point of the axes: everything of a trial but its selector and seed."""

    name: str
    """``budget=0.1,rounds=1``: what differs from the recipe's own values; "" for these."""
    recipe: Recipe
    """The recipe of this condition alone (no axes)."""
    order: tuple[int, ...]
    """Rows of the sequence's stages in the order of the walk."""
    base: str
    """Name of the shared work of a seed that its trials start from; "" for that of the recipe's own condition."""
    base_recipe: Recipe
    """What the shared work is done with: the recipe with the changes alone that the shared work depends on."""

    @property
    def values(self) -> dict[str, str | float]:
        """The condition's place on every axis with a name, as the results tell it (see docs/results-format.md)."""
        recipe = self.recipe
        return {
            "budget": float(recipe.budget),
            "rounds": str(recipe.rounds),
            "adaptation": recipe.model.adaptation_label,
            "order": order_label(self.order),
        }


def order_label(order: Sequence[int]) -> str:
    """``2-3-1``: the sequence's second stage is walked first."""
    return "-".join(str(row + 1) for row in order)


def touches_base(key: str, mixing: float) -> bool:
    """Whether a change of this key changes the frozen pass or row 0 of R.

    Both are measured on the untouched base model (LoRA's B is 0), and stages in another order are the same stages,
    unless they hold a share of their neighbours (``mixing``).
    """
    if key == "data.order":
        return mixing > 0
    return key.startswith(_BASE) and not key.startswith(_FREE)


def expand(recipe: Recipe) -> tuple[Condition, ...]:
    """All conditions of a recipe: its own first, then axis by axis, each axis in a fixed order of its values; last
    those of `REFERENCES` that the recipe asks for.

    One axis at a time is varied around the recipe's own values, or the full product is taken (``axes.cross``). What
    comes out depends on the sets of values alone, not on how the YAML lists them.

    Raises:
        RecipeError: a value that the recipe does not allow, an order that does not hold every stage once, more
            permutations than there are, or a key that cannot be varied.
    """
    plain = recipe.replace({"axes": AxesSpec(), "full_data": False, "oracle": False})
    axes = _axes(plain, recipe.axes)
    sizes = [len(points) for points in axes]
    conditions = math.prod(size + 1 for size in sizes) if recipe.axes.cross else 1 + sum(sizes)
    trials = conditions * len(recipe.selectors) * len(recipe.seeds)
    if trials > MOST_TRIALS:
        raise RecipeError(
            f"the recipe asks for {trials:,} trials: {conditions:,} conditions × {len(recipe.selectors):,} selectors × "
            f"{len(recipe.seeds):,} seeds. Ask for at most {MOST_TRIALS:,}."
        )
    if recipe.axes.cross:
        combinations: Iterable[tuple[Point, ...]] = itertools.product(
            *([Point(points[0].axis, "", ()), *points] for points in axes if points)
        )
    else:
        combinations = [(), *((point,) for points in axes for point in points)]
    varied = [_condition(plain, [point for point in points if point.changes]) for points in combinations]
    return (*varied, *([_full_data(plain)] if recipe.full_data else []), *([_oracle(plain)] if recipe.oracle else []))


def condition_label(name: str) -> str:
    """``budget=0.1,order=*`` as a heading: ``budget 0.1, mean of orders``; the recipe's own condition is ``own``."""
    parts = ["mean of orders" if part == "order=*" else part.replace("=", " ", 1) for part in name.split(",")]
    return ", ".join(parts) if name else OWN


def order_groups(names: Iterable[str]) -> dict[str, list[str]]:
    """Conditions that differ in nothing but the order of the stages, where there are several: ``order=*`` → them."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        rest = tuple(part for part in name.split(",") if part and not part.startswith("order="))
        groups.setdefault(rest, []).append(name)
    return {",".join([*rest, "order=*"]): group for rest, group in groups.items() if len(group) > 1}


def shares_full_data(name: str) -> bool:
    """Whether the full-data trials are a reference for this condition: it differs in budget or rounds at most."""
    return name not in REFERENCES and all(part.startswith(("budget=", "rounds=")) for part in name.split(",") if part)


def _full_data(plain: Recipe) -> Condition:
    """The recipe's own condition with every candidate learned, in steps as large as a selector's and as many passes.

    So there are 1 / budget times as many steps, and the schedule of the learning rate is stretched with them. The own
    probe is left out beside the common one: with nothing to choose both learn the same candidates.
    """
    training, kinds = plain.training, plain.probe.kinds
    changes = {
        "budget": 1.0,
        "rounds": "step" if plain.rounds == "step" else 1,
        "training.steps": round(training.steps / plain.budget),
        "training.warmup_steps": round(training.warmup_steps / plain.budget),
        "probe.kinds": ["common"] if "common" in kinds else list(kinds),
        "selectors": [ALL_DATA.model_dump(mode="json")],
        "metrics.reference": "random",
    }
    changed = _changed(plain, [Point(FULL_DATA, "", tuple(changes.items()))], FULL_DATA)
    return Condition(FULL_DATA, changed, _order_of(changed), "", _unordered(plain))


def _oracle(plain: Recipe) -> Condition:
    """The recipe's own condition with the oracle as its only selector."""
    changes = {"selectors": [{"name": ORACLE}], "metrics.reference": ORACLE}
    changed = _changed(plain, [Point(ORACLE, "", tuple(changes.items()))], ORACLE)
    return Condition(ORACLE, changed, _order_of(changed), "", _unordered(plain))


def _condition(plain: Recipe, points: Sequence[Point]) -> Condition:
    base = [
        point
        for point in points
        if _other_base(plain, point) or any(touches_base(key, _mixing(plain, points)) for key, _ in point.changes)
    ]
    name, base_name = (",".join(f"{point.axis}={point.label}" for point in some) for some in (points, base))
    changed = _changed(plain, points, name)
    return Condition(name, changed, _order_of(changed), base_name, _unordered(_changed(plain, base, base_name)))


def _other_base(plain: Recipe, point: Point) -> bool:
    """Whether the point adapts the model in a way that begins with other base weights."""
    first = plain.model.adaptation
    second = dict(point.changes).get("model.adaptation", first)
    return first != second and (ADAPTATION_KINDS[first].own_base or ADAPTATION_KINDS[second].own_base)


def _unordered(recipe: Recipe) -> Recipe:
    """The recipe without its order, where no pool depends on it: the shared work of all orders is then one."""
    return recipe if recipe.data.mixing > 0 else recipe.replace({"data.order": ()})


def _mixing(plain: Recipe, points: Sequence[Point]) -> float:
    """The condition's mixing share; where it is above 0, pools depend on the order of the stages."""
    changes = {key: value for point in points for key, value in point.changes}
    return float(changes.get("data.mixing", plain.data.mixing))


def _changed(plain: Recipe, points: Sequence[Point], name: str) -> Recipe:
    if not points:
        return plain
    raw = plain.model_dump(mode="json")
    set_values(raw, dict(change for point in points for change in point.changes), "axes.vary")
    return parse_recipe(raw, f"condition '{name}'")


def _axes(plain: Recipe, axes: AxesSpec) -> list[list[Point]]:
    """Per axis its points that differ from the recipe's own value, sorted, none twice."""
    budgets = sorted({*axes.budget} - {plain.budget})
    rounds = sorted({*axes.rounds} - {plain.rounds}, key=lambda value: (value == "step", value))
    named = [
        [Point("budget", repr(value), (("budget", value),)) for value in budgets],
        [Point("rounds", str(value), (("rounds", value),)) for value in rounds],
        _adaptations(plain, axes.adaptation),
        _orders(plain, axes.order),
    ]
    return [*named, *(_varied(plain, key, axes.vary[key]) for key in sorted(axes.vary))]


def _adaptations(plain: Recipe, values: Sequence[AdaptationValue]) -> list[Point]:
    lora, points = plain.model.lora, {}
    for value in values:
        changes: list[tuple[str, Any]] = [("model.adaptation", value.mode)]
        label: str = value.mode
        if ADAPTATION_KINDS[value.mode].low_rank:
            r = value.r or lora.r
            alpha = value.alpha or lora.alpha * r / lora.r
            changes += [("model.lora.r", r), ("model.lora.alpha", alpha)]
            label = f"{value.mode}-r{r}" + ("" if alpha * lora.r == lora.alpha * r else f"-alpha{alpha:g}")
        if value.learning_rate not in (None, plain.training.learning_rate):
            changes.append(("training.learning_rate", value.learning_rate))
            label += f"-lr{value.learning_rate!r}"
        if _differs(plain, changes):
            points[label] = Point("adaptation", label, tuple(changes))
    return [points[label] for label in sorted(points, key=lambda name: (name.startswith("full"), len(name), name))]


def _differs(plain: Recipe, changes: Sequence[tuple[str, Any]]) -> bool:
    raw = plain.model_dump(mode="json")
    return any(value_at(raw, key) != value for key, value in changes)


def value_at(recipe: Any, key: str) -> Any:
    """The value of a dotted key of a recipe as JSON; None where there is none."""
    for part in key.split("."):
        recipe = recipe.get(part) if isinstance(recipe, dict) else None
    return recipe


def _orders(plain: Recipe, axis: OrderAxis) -> list[Point]:
    if axis == OrderAxis():
        return []
    names = stage_names(plain)
    first = resolve_order(names, plain.data.order)
    orders = {resolve_order(names, order) for order in axis.given}
    if axis.rotations:
        orders |= {first[place:] + first[:place] for place in range(len(first))}
    orders |= _permutations(first, axis)
    return [
        Point("order", order_label(order), (("data.order", tuple(names[row] for row in order)),))
        for order in sorted(orders - {first})
    ]


def _permutations(first: tuple[int, ...], axis: OrderAxis) -> set[tuple[int, ...]]:
    """The first ``permutations`` distinct orders, other than the recipe's own, of a stream of random ones."""
    count = math.factorial(len(first)) - 1
    if axis.permutations > count:
        raise RecipeError(
            f"axes.order.permutations is {axis.permutations}, but {len(first)} stages have {count} other orders. "
            f"Give at most {count}."
        )
    rng = generator(axis.seed, "task orders")
    orders: set[tuple[int, ...]] = set()
    while len(orders) < axis.permutations:
        order = tuple(int(row) for row in rng.permutation(len(first)))
        if order != first:
            orders.add(order)
    return orders


def _varied(plain: Recipe, key: str, values: Sequence[bool | float | str]) -> list[Point]:
    for barred, why in _NOT_VARIED.items():
        if key == barred or key.startswith(f"{barred}."):
            raise RecipeError(f"axes.vary cannot vary '{key}': {why}.")
    current = value_at(plain.model_dump(mode="json"), key)
    distinct = {(type(value) is bool, value): value for value in values if value != current}
    points = {value_name(value): value for value in distinct.values()}
    return [
        Point(key, label, ((key, points[label]),)) for label in sorted(points, key=lambda x: (_number(points[x]), x))
    ]


def _number(value: bool | float | str) -> float:
    return math.inf if isinstance(value, str) else float(value)


def value_name(value: Any) -> str:
    """A value as names of conditions write it."""
    return safe_name(repr(value) if isinstance(value, float) else str(value))


@lru_cache(maxsize=1024)  # every trial has one of a few selectors
def safe_name(text: str) -> str:
    """The text as part of a folder's name."""
    return "".join(char if char.isalnum() or char in "-_." else "-" for char in text)


def _order_of(recipe: Recipe) -> tuple[int, ...]:
    return resolve_order(stage_names(recipe), recipe.data.order)


def stage_names(recipe: Recipe) -> tuple[str, ...]:
    """The stages as the recipe's sequence has them, before any order; no data is read."""
    return learner_kind(recipe).stages(recipe)


def measured_by(recipe: Recipe) -> dict[str, Any]:
    """The recipe as a mapping of what its measurements depend on; every key of the run directory is made of it.

    Keys that only change reports or add trials have their default value.
    """
    raw = recipe.model_dump(mode="json")
    plain = Recipe(name="run", selectors=(SelectorSpec(name="random"),)).model_dump(mode="json")
    set_values(raw, {key: value_at(plain, key) for key in (*_REPORT_ONLY, "full_data", "oracle")}, "recipe")
    del raw["model"]["trust_remote_code"]  # decides whether a model is loaded, and changes no number
    del raw["data"]["run_model_code"]  # decides whether a scorer runs, and changes no number
    del raw["model"]["device"]  # a run records its device, and is not resumed on one of another kind
    for section, _, key in (name.rpartition(".") for name in _ADDED):
        part, default = (raw[section], plain[section]) if section else (raw, plain)
        if part[key] == default[key]:
            del part[key]
    for replay in filter(None, (selector["replay"] for selector in raw["selectors"])):
        if replay["choice"] == ChoiceSpec().model_dump(mode="json"):
            del replay["choice"]  # a key that came after the first runs, as `_ADDED`
    del raw["relative_to"]  # says where files are; what is in them is compared by content
    return raw


class Plan:
    """What an audit of a recipe consists of: its conditions, trials and stages, computed once.

    Attributes:
        conditions: name → condition; the recipe's own comes first and is called "".
        trials: seed by seed, so that an interrupted audit holds complete replications.

    Raises:
        RecipeError: two trials would share a folder, the axes are not possible (see `expand`), or the learner does not
            support what the recipe asks for.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        learner_kind(recipe).check(recipe)
        self.conditions = {condition.name: condition for condition in expand(recipe)}
        for condition in self.conditions.values():
            learner_kind(condition.recipe).check(condition.recipe)
        self.trials = [
            Trial(selector, seed, condition.name)
            for seed in recipe.seeds
            for condition in self.conditions.values()
            for selector in condition.recipe.selectors
        ]
        first: dict[str, Trial] = {}
        for trial in self.trials:
            other = first.setdefault(trial.name, trial)
            if other is not trial:
                raise RecipeError(
                    f"selectors '{other.selector.key}' and '{trial.selector.key}' would share the folder "
                    f"'{trial.name}'. Give one of them another `label`."
                )

    @property
    def own_trials(self) -> list[Trial]:
        """Trials of the recipe's own condition."""
        return [trial for trial in self.trials if trial.condition == ""]

    @cached_property
    def outline(self) -> Outline:
        """Names of stages and OOD sets, and their scorers, in the recipe's own condition."""
        return outline(self.recipe)

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages in the order of the walk."""
        return self.outline.stages

    def base_name(self, seed: int, condition: str) -> str:
        """Folder name of the shared work of a seed that the condition's trials start from."""
        base = self.conditions[condition].base
        return f"seed-{seed}" + (f"@{base}" if base else "")
