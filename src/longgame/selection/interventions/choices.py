"""Which examples of earlier stages are replayed first, at the same token budget: `REPLAY_CHOICES`.

A choice orders what may be replayed; who replays walks that order until the share of the budget is spent. ℓ_now is the
mean NLL per response token under the model as it is, ℓ_end the same at the end of the example's own stage, ℓ₀ that of
the base model.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int

from longgame.data.examples import Pool
from longgame.errors import PluginError, RecipeError, unknown
from longgame.registry import Registry


@dataclass(frozen=True)
class EarlierExamples:
    """What may be replayed: n examples of K earlier stages in id order, and what was measured of them."""

    ids: tuple[str, ...]
    costs: Int[np.ndarray, " n"]
    """What each spends of the budget."""
    stages: Int[np.ndarray, " n"]
    """Stage of each, from 0."""
    cells: tuple[str, ...] = ()
    """Skill of each inside its stage; "" where it has none. Empty: no example has one."""
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """``now``, ``end`` and ``base``: id → loss of the examples that were measured, in nats per response token."""
    embeddings: tuple[Float[np.ndarray, "m d"], ...] = ()
    """A sample of each stage's embeddings, and last one of the new stage's candidates."""
    every: EarlierExamples | None = None
    """All earlier examples, where only some of them may be replayed; None: these are all."""

    @property
    def measurable(self) -> EarlierExamples:
        """All earlier examples; what a choice estimates of a stage or cell is estimated of them."""
        return self.every or self

    def losses(self, kind: str, choice: str) -> Float[np.ndarray, " n"]:
        """Return these losses, NaN for examples that were not measured.

        Raises:
            PluginError: none was measured.
        """
        if self.ids and not self.measured.get(kind):
            raise PluginError(
                f"replay choice '{choice}' needs the loss '{kind}' of earlier examples; measure it first."
            )
        values = self.measured.get(kind, {})
        return np.asarray([values.get(name, np.nan) for name in self.ids], dtype=np.float64)

    @property
    def keys(self) -> list[tuple[int, str]]:
        """Skill cell of each example: its stage and skill."""
        return list(zip(self.stages.tolist(), self.cells or ("",) * len(self.ids), strict=True))


class ReplayChoice:
    """Base class of a choice: parameters are keyword arguments of ``__init__``."""

    name: ClassVar[str]
    paper: ClassVar[str] = ""
    columns: tuple[str, ...] = ()
    """Of ``now``, ``end``, ``base`` and ``embedding``, what it reads."""
    measures: Literal["", "every", "cell", "stage"] = ""
    """Examples whose loss is measured: every one, or ``items`` of each skill cell or stage."""
    items: int = 64
    holds_back: bool = False
    """Whether measured examples are never replayed."""

    def order(self, earlier: EarlierExamples, rng: np.random.Generator) -> Int[np.ndarray, " m"]:
        """Return rows in the order in which they are replayed; rows that it leaves out are never replayed."""
        raise NotImplementedError


class Uniform(ReplayChoice):
    """In random order, each example alike."""

    name = "uniform"

    def order(self, earlier: EarlierExamples, rng: np.random.Generator) -> Int[np.ndarray, " m"]:
        return rng.permutation(len(earlier.ids))


class Targeted(ReplayChoice):
    """Drawn with p ∝ exp(mean of ℓ_now − ℓ_end over the skill cell / T), capped and mixed with uniform.

    Args:
        temperature: T, in nats per token.
        cap: most that p may be, as a multiple of the uniform 1/n; what is cut off goes to the other examples.
        mix: share of the draw that follows p; the rest is uniform.
        items: examples of each skill cell whose losses are measured.
    """

    name, paper = "targeted", "2406.14026"
    columns, measures = ("now", "end"), "cell"

    def __init__(self, temperature: float = 0.1, cap: float = 4.0, mix: float = 0.5, items: int = 64) -> None:
        self.temperature = _number(self.name, "temperature", temperature, above=0.0)
        self.cap = _number(self.name, "cap", cap, least=1.0)
        self.mix = _number(self.name, "mix", mix, least=0.0, most=1.0)
        self.items = _count(self.name, items)

    def probabilities(self, earlier: EarlierExamples) -> Float[np.ndarray, " n"]:
        """Return the probability of each example to be drawn first; they sum to 1.

        The cap holds before the mixing. A cell without a measured example has the mean of all measured examples.
        """
        sample = earlier.measurable
        excess = sample.losses("now", self.name) - sample.losses("end", self.name)
        cells, place = _numbered(sample.keys)
        known = ~np.isnan(excess)
        counts = np.bincount(place[known], minlength=len(cells))
        sums = np.bincount(place[known], excess[known], minlength=len(cells))
        overall = float(excess[known].mean()) if known.any() else 0.0
        if sample is not earlier:
            number = {cell: place for place, cell in enumerate(cells)}
            place = np.asarray([number[key] for key in earlier.keys], dtype=np.int64)
        means = np.where(counts > 0, sums / np.maximum(counts, 1), overall)[place]
        weights = np.exp((means - means.max()) / self.temperature)
        return self.mix * capped(weights / weights.sum(), self.cap) + (1 - self.mix) / len(means)

    def order(self, earlier: EarlierExamples, rng: np.random.Generator) -> Int[np.ndarray, " m"]:
        noise = rng.gumbel(size=len(earlier.ids))
        if not earlier.ids:
            return np.zeros(0, dtype=np.int64)
        # log p + Gumbel noise, highest first: successive draws by p without replacement
        with np.errstate(divide="ignore"):
            return np.argsort(-(np.log(self.probabilities(earlier)) + noise), kind="stable")


class Damage(ReplayChoice):
    """A stage's share of the replayed tokens ∝ mean of ℓ_now − ℓ_end over held-back examples; uniform inside it.

    A stage that the model has not become worse on has no share. Where that is every stage, the draw is uniform.

    Args:
        items: examples of each stage that are held back from replay (at most half of its candidates), those that were
            not learned first.
    """

    name = "damage"
    columns, measures, holds_back = ("now", "end"), "stage", True

    def __init__(self, items: int = 64) -> None:
        self.items = _count(self.name, items)

    def shares(self, earlier: EarlierExamples) -> Float[np.ndarray, " k"]:
        """Return the share of each stage; they sum to 1, or are all 0 where no stage has lost anything."""
        sample = earlier.measurable
        excess = sample.losses("now", self.name) - sample.losses("end", self.name)
        stages = int(sample.stages.max()) + 1 if len(excess) else 0
        known = ~np.isnan(excess)
        counts = np.bincount(sample.stages[known], minlength=stages)
        means = np.bincount(sample.stages[known], excess[known], minlength=stages) / np.maximum(counts, 1)
        damages = np.maximum(means, 0.0)
        return damages / damages.sum() if damages.any() else damages

    def order(self, earlier: EarlierExamples, rng: np.random.Generator) -> Int[np.ndarray, " m"]:
        order = rng.permutation(len(earlier.ids))
        if not earlier.ids:
            return order
        kept = order[np.isnan(earlier.losses("end", self.name)[order])]
        shares = self.shares(earlier)
        return by_shares(kept, earlier.stages, earlier.costs, shares) if shares.any() else kept


class Distance(ReplayChoice):
    """A stage's share of the replayed tokens ∝ Wasserstein distance of its embeddings to the new stage's.

    The distance is the exact one between samples of equal size, of Euclidean distances of unit embeddings of whole
    examples under the base model (InsCL embeds the instruction alone, and ranks inside a task by tags of an LLM).

    Args:
        items: examples of each stage in a sample.
    """

    name, paper = "distance", "2403.11435"
    columns = ("embedding",)

    def __init__(self, items: int = 256) -> None:
        self.items = _count(self.name, items)

    def shares(self, earlier: EarlierExamples) -> Float[np.ndarray, " k"]:
        """Return the share of each stage; they sum to 1, or are all 0 where no stage differs from the new one."""
        *stages, fresh = earlier.embeddings
        distances = np.asarray([wasserstein(stage, fresh) if len(stage) else 0.0 for stage in stages])
        return distances / distances.sum() if distances.any() else distances

    def order(self, earlier: EarlierExamples, rng: np.random.Generator) -> Int[np.ndarray, " m"]:
        order = rng.permutation(len(earlier.ids))
        if not earlier.ids:
            return order
        shares = self.shares(earlier)
        return by_shares(order, earlier.stages, earlier.costs, shares) if shares.any() else order


class Surprise(ReplayChoice):
    """Highest ℓ_now first, ties by id."""

    name, paper = "surprise", "2511.22367"
    columns, measures = ("now",), "every"

    def order(self, earlier: EarlierExamples, rng: np.random.Generator) -> Int[np.ndarray, " m"]:  # noqa: ARG002
        return np.argsort(-earlier.losses("now", self.name), kind="stable")


class Fit(ReplayChoice):
    """Lowest ℓ₀ first, ties by id."""

    name, paper = "fit", "2605.29495"
    columns = ("base",)

    def order(self, earlier: EarlierExamples, rng: np.random.Generator) -> Int[np.ndarray, " m"]:  # noqa: ARG002
        return np.argsort(earlier.losses("base", self.name), kind="stable")


def capped(p: Float[np.ndarray, " n"], cap: float) -> Float[np.ndarray, " n"]:
    """Return the probabilities with none above cap / n: what is cut off goes to the others, in proportion."""
    limit = cap / len(p)
    result, free = np.asarray(p, dtype=np.float64).copy(), np.ones(len(p), dtype=bool)
    while np.any(over := free & (result > limit * (1 + 1e-12))):
        free &= ~over
        result[~free] = limit
        left, total = 1 - limit * int(np.count_nonzero(~free)), float(result[free].sum())
        if not total > 0:  # the others have none of it, so they share evenly
            result[free] = left / max(1, int(np.count_nonzero(free)))
            break
        result[free] = result[free] / total * left
    return result


def by_shares(
    rows: Int[np.ndarray, " m"],
    stages: Int[np.ndarray, " n"],
    costs: Int[np.ndarray, " n"],
    shares: Float[np.ndarray, " k"],
) -> Int[np.ndarray, " m"]:
    """Interleave the stages' rows so that every beginning of the order spends its tokens in these shares.

    The next row is of the stage whose tokens, with it, are the fewest for its share. So each stage is within one
    example of its share as long as all have rows left. Stages without a share come last.

    Args:
        rows: in the order that each stage keeps.
        shares: per stage, ≥ 0, not all 0.
    """
    weights, tokens = shares.tolist(), costs.tolist()
    queues: dict[int, list[int]] = {}
    for row in rows[::-1].tolist():
        queues.setdefault(int(stages[row]), []).append(row)
    spent = dict.fromkeys(queues, 0)
    due = [(tokens[queue[-1]] / weights[stage], stage) for stage, queue in queues.items() if weights[stage] > 0]
    heapq.heapify(due)
    order: list[int] = []
    while due:
        _, stage = heapq.heappop(due)
        row = queues[stage].pop()
        order.append(row)
        spent[stage] += tokens[row]
        if queues[stage]:
            heapq.heappush(due, ((spent[stage] + tokens[queues[stage][-1]]) / weights[stage], stage))
    without = np.asarray([not weights[stage] > 0 for stage in stages[rows].tolist()], dtype=bool)
    return np.asarray([*order, *rows[without].tolist()], dtype=np.int64)


def wasserstein(first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "m d"]) -> float:
    """Return the 1-Wasserstein distance of two samples of unit vectors (exact; rows are scaled to length 1).

    The longer sample is cut to the length of the shorter, so give rows in random order.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    m = min(len(first), len(second))
    costs = cdist(_unit(first[:m]), _unit(second[:m]))
    return float(costs[linear_sum_assignment(costs)].mean())


def first_of_each(keys: Sequence[Hashable], order: Int[np.ndarray, " m"], items: int) -> Int[np.ndarray, " k"]:
    """Return the first ``items`` rows of each key, in the given order of rows."""
    counts: dict[Hashable, int] = {}
    rows = []
    for row in order.tolist():
        counts[keys[row]] = counts.get(keys[row], 0) + 1
        if counts[keys[row]] <= items:
            rows.append(row)
    return np.asarray(rows, dtype=np.int64)


def cells_of(pool: Pool) -> tuple[str, ...]:
    """Skill of each example; "" where it has none."""
    return tuple(example.skill or "" for example in pool.examples)


def _unit(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    wide = np.asarray(rows, dtype=np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)


def _numbered(keys: Sequence[Hashable]) -> tuple[list[Hashable], Int[np.ndarray, " n"]]:
    """The distinct keys in order of appearance, and the place of each key among them."""
    index: dict[Hashable, int] = {}
    places = [index.setdefault(key, len(index)) for key in keys]
    return list(index), np.asarray(places, dtype=np.int64)


def _number(
    choice: str, name: str, value: Any, *, above: float | None = None, least: float | None = None, most: float = np.inf
) -> float:
    """The value as a number inside its bounds, else RecipeError."""
    real = isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)
    if real and value <= most and (above is None or value > above) and (least is None or value >= least):
        return float(value)
    lower = f"above {above:g}" if above is not None else f"at least {least:g}"
    upper = f" and at most {most:g}" if np.isfinite(most) else ""
    raise RecipeError(f"replay choice '{choice}': {name} is {value!r}; it must be {lower}{upper}.")


def _count(choice: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_ITEMS:
        raise RecipeError(
            f"replay choice '{choice}': items is {value!r}; give a whole number from 1 to {MOST_ITEMS:,}."
        )
    return value


MOST_ITEMS = 4096
"""Examples of a sample; an exact assignment of so many takes seconds."""


def _check_choice(name: str, cls: type) -> None:
    if not issubclass(cls, ReplayChoice) or cls.order is ReplayChoice.order:
        raise PluginError(
            f"replay choice '{name}' ({cls.__qualname__}) must derive from ReplayChoice and define order()."
        )


_HERE = "longgame.selection.interventions.choices"
REPLAY_CHOICES = Registry(
    "replay choice",
    "",
    {
        "uniform": f"{_HERE}:Uniform",
        "targeted": f"{_HERE}:Targeted",
        "damage": f"{_HERE}:Damage",
        "distance": f"{_HERE}:Distance",
        "surprise": f"{_HERE}:Surprise",
        "fit": f"{_HERE}:Fit",
    },
    _check_choice,
)


def build_choice(name: str = "uniform", parameters: Mapping[str, Any] | None = None) -> ReplayChoice:
    """Make a choice of this package.

    Raises:
        RecipeError: an unknown name, or a parameter that it does not take or whose value is not allowed.
    """
    if not REPLAY_CHOICES.is_builtin(name):
        raise RecipeError(unknown("replay choice", name, REPLAY_CHOICES.builtin_names()))
    choice: ReplayChoice = REPLAY_CHOICES.make(name, parameters or {})
    return choice
