"""What is selected, and how much: the options of `select`, budgets as people write them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import yaml
from jaxtyping import Int

from longgame.data.formats import RowRules, Turns
from longgame.errors import BudgetError, RecipeError, unknown
from longgame.offline.dedup import parse_dedup
from longgame.offline.rows import OnBadRow
from longgame.recipe import EMBEDDER, parse_embedder
from longgame.selection.base import SCORES, Selector, build_selector
from longgame.selection.interventions import ReplayChoice, build_choice
from longgame.signals.quality.base import QualitySources, QualitySpec

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
_AMOUNT = re.compile(r"([0-9][0-9_,]*(?:\.[0-9]+)?)\s*([kKmMbB]?)\s*(%|[a-z]*)\s*(rows?|examples?|tokens?)?")


@dataclass(frozen=True)
class Budget:
    """How much is selected: a share of the candidates (of their tokens, or rows), tokens, or rows."""

    kind: Literal["share", "amount"]
    value: float
    of: Literal["tokens", "rows"] = "tokens"

    @classmethod
    def parse(cls, value: Any) -> Budget:
        """Read ``0.1``, ``10%``, ``10%rows``, ``2M`` (tokens) or ``5000rows``.

        Raises:
            BudgetError: it reads otherwise, is not positive, or a share above 1.
        """
        if isinstance(value, Budget):
            return value
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise BudgetError(f"the budget is {value!r}. {_BUDGETS}")
        if isinstance(value, int | float):
            if value <= 0:
                raise BudgetError(f"the budget is {value}; it must be above 0. {_BUDGETS}")
            if not math.isfinite(value) or (value > 1 and value != int(value)):
                raise BudgetError(f"the budget is {value}. {_BUDGETS}")
            return cls("share", float(value)) if value <= 1 else cls("amount", float(value))
        text = value.strip()
        match = _AMOUNT.fullmatch(text)
        unit = "" if match is None else match[4] or match[3]
        if re.match(r"-[0-9.]", text):
            raise BudgetError(f"the budget is '{value}'; it must be above 0. {_BUDGETS}")
        if match is None or unit not in ("", "%", "row", "rows", "example", "examples", "token", "tokens"):
            raise BudgetError(f"the budget is '{value}'. {_BUDGETS}")
        number = float(match[1].replace("_", "").replace(",", "")) * _UNITS[match[2].lower()]
        rows = unit.startswith(("row", "example"))
        if not number:
            raise BudgetError(f"the budget is '{value}'; it must be above 0. {_BUDGETS}")
        if match[3] == "%":
            if match[2] or not 0 < number <= 100:
                raise BudgetError(f"the budget is '{value}'; a share lies above 0 % and is at most 100 %.")
            return cls("share", number / 100, "rows" if rows else "tokens")
        if not match[2] and not unit and number <= 1:
            return cls.parse(number)
        if number < 1 or number != int(number):
            raise BudgetError(f"the budget is '{value}'. {_BUDGETS}")
        return cls("amount", number, "rows" if rows else "tokens")

    def units(self, costs: Int[np.ndarray, " n"]) -> int:
        """What may be spent of candidates with these costs.

        Raises:
            BudgetError: it holds none of them.
        """
        return self.units_of(int(costs.sum()), int(costs.min()), len(costs))

    def units_of(self, total: int, least: int, rows: int) -> int:
        """What may be spent of so many rows that cost ``total`` together, the cheapest of them ``least``.

        Raises:
            BudgetError: it holds none of them.
        """
        amount = int(round(self.value * total) if self.kind == "share" else self.value)
        if amount < least:
            raise BudgetError(
                f"the budget of {self} is {amount} {self.of} here, and the shortest of {rows} candidates has {least}. "
                "Raise it."
            )
        return amount

    def __str__(self) -> str:
        if self.kind == "share":
            return f"{100 * self.value:g}%" + ("rows" if self.of == "rows" else "")
        return f"{int(self.value)}{self.of}"


_BUDGETS = "Write a share (10% or 0.1; 10%rows), a number of tokens (2M, 500000) or of rows (5000rows)."


def parse_selector(text: str) -> tuple[str, dict[str, Any]]:
    """Read ``NAME`` or ``NAME:parameter=value,…``; values are YAML.

    Raises:
        RecipeError: a parameter is not written as ``name=value``.
    """
    name, parameters = text, {}
    head, colon, tail = text.rpartition(":")
    if colon and re.match(r"[A-Za-z_]\w*=", tail):
        name = head
        for part in re.split(r",(?=[A-Za-z_]\w*=)", tail):
            key, sign, value = part.partition("=")
            if not sign:
                raise RecipeError(f"selector '{text}': '{part}' is not written as parameter=value.")
            try:
                parameters[key.strip()] = yaml.safe_load(value)
            except yaml.YAMLError as error:
                raise RecipeError(f"selector '{text}': the value of '{key}' cannot be read.") from error
    elif colon and "=" not in tail and name not in (SCORES,) and ".py" not in text and not text.startswith(SCORES):
        raise RecipeError(f"selector '{text}': '{tail}' is not written as parameter=value.")
    return name, parameters


@dataclass(frozen=True, kw_only=True)
class SelectOptions:
    """What is selected, and from what; the command's options and the function's arguments.

    Raises:
        RecipeError, BudgetError: a value is not allowed.
    """

    selector: str | Selector = "random"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    budget: Any = 0.1
    """See `Budget.parse`."""
    budget_of: Literal["tokens", "response"] = "tokens"
    """What a budget in tokens counts."""
    turns: Turns = "all"
    quality_range: tuple[float, float] = (0.0, 1.0)
    quality: QualitySpec = None
    """Source of quality (see `build_quality`); None: the column ``quality``, or rules."""
    complexity: QualitySpec = None
    """Source of complexity; None: there is none."""
    on_bad_row: OnBadRow = "error"
    where: str | None = None
    allow_overlap: bool = False
    """Whether the target set may hold rows of the data."""
    dedup: str | None = None
    """``exact``, ``near`` or ``near:THRESHOLD``: duplicates of an earlier row are no candidates."""
    replay_share: float = 0.1
    """Share of the budget that is spent on rows of the replay data."""
    replay_choice: str = "uniform"
    """What of it comes first (`REPLAY_CHOICES`), with parameters as a selector's: ``targeted:cap=3``."""
    clusters: int = 8
    embedder: str | None = None
    """What gives ``embedding``: ``sentence-transformers:NAME`` or ``model2vec:NAME``; None, or ``model``: the model."""
    scorer_model: str | None = None
    """Another model, with its own tokenizer, for selectors that ask it (`superfiltering`, `svp`)."""
    device: str = "auto"
    """Of embedder and scorer model, where no model is given."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.budget_of not in ("tokens", "response"):
            raise RecipeError(unknown("budget_of", str(self.budget_of), ("tokens", "response")))
        if not 0 < self.replay_share < 1:
            raise RecipeError(f"replay_share is {self.replay_share}; it lies between 0 and 1.")
        if self.clusters < 1:
            raise RecipeError(f"clusters is {self.clusters}; use 1 or more.")
        parse_embedder(self.embedder or EMBEDDER)
        self.build_replay_choice()
        Budget.parse(self.budget)
        parse_dedup(self.dedup)
        RowRules(self.turns, self.quality_range)

    def grading(self) -> QualitySources:
        """Return the sources of quality and complexity."""
        return QualitySources.of(self.quality, self.complexity)

    def build(self) -> Selector:
        """Return the selector."""
        if isinstance(self.selector, Selector):
            return self.selector
        name, parameters = parse_selector(self.selector)
        return build_selector(name, {**parameters, **self.parameters})

    def build_replay_choice(self) -> ReplayChoice:
        """Return the choice of replay.

        Raises:
            RecipeError: it is unknown, or a parameter is not allowed.
        """
        return build_choice(*parse_selector(self.replay_choice))

    @property
    def label(self) -> str:
        """The selector as its user wrote it."""
        return self.selector if isinstance(self.selector, str) else self.selector.name


def as_options(text: str) -> str:
    """The text with options of the command in place of keys of a recipe."""
    for key in ("chat_template", "pad_token"):
        text = text.replace(f"model.{key}", f"--{key.replace('_', '-')}")
    return text.replace("(turns: last)", "(--turns last)")
