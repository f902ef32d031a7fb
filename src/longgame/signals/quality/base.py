"""What a quality source is: `QualitySource`, the registry of sources, and `build_quality`.

A source gives each example a grade on a scale of its own, and maps grades to [0, 1]. Selectors see both: the signals
``grade`` and ``quality``. A second source may grade ``complexity``.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import yaml
from jaxtyping import Float

from longgame.data.examples import Example, Pool
from longgame.errors import DataError, PluginError, RecipeError, did_you_mean
from longgame.registry import Registry, plugin_at_work
from longgame.signals.quality.rules import quality_scores, rule_scores

ANSWER_TOKENS = 256
"""Most tokens of an answer that the model generates itself, behind ``own_answer_quality``."""
_MOST_NAMES, _LONGEST_PROMPT = 12, 60
RULES_OR_COLUMN = "auto"
"""The default source: the column ``quality`` where every row has it, else the rules."""


class QualitySource:
    """Base class of a quality source (a line in `QUALITY_SOURCES`, an entry point, or ``file.py:Class``).

    A subclass sets ``name`` and ``scale`` and defines ``grade``. Parameters are keyword arguments of ``__init__``.
    """

    name: ClassVar[str]
    main: ClassVar[str] = ""
    """Parameter that stands behind the name without ``=``: ``reward:MODEL``."""
    scale: tuple[float, float] | None = (0.0, 1.0)
    """Lowest and highest grade; None: any real number (then `unit` is defined, too)."""
    columns: tuple[str, ...] = ()
    """Numeric columns of the rows that the source reads (`Example.columns`)."""

    def begin(self, examples: Sequence[Example], columns: Collection[str]) -> None:
        """Look at all examples of a job before the first is graded; raise where it must not begin.

        Args:
            columns: those that any row of the data has. Of `columns`, and of ``quality``, only with a number in a row.
        """

    def grade(self, examples: Sequence[Example]) -> Float[np.ndarray, " n"]:
        """Return one grade per example; NaN where there is none (refused, unreadable): never a value in its place."""
        raise NotImplementedError(f"quality source '{self.name}' defines no grade().")

    def unit(self, grades: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Map grades to [0, 1] without changing their order; by default linear over ``scale``."""
        if self.scale is None:
            raise PluginError(f"quality source '{self.name}' has no scale. Set scale = (low, high), or define unit().")
        low, high = self.scale
        return (grades - low) / (high - low)

    def identity(self) -> str:
        """Return what the grades depend on beside the examples; scores of another identity are not mixed with these."""
        return self.name

    def describe(self) -> dict[str, Any]:
        """Return what was graded so far, as plain values for a manifest."""
        return {"source": self.name}

    def notes(self) -> list[str]:
        """Return sentences about the grades so far, for the terminal."""
        return []

    def tokens(self, examples: Sequence[Example]) -> int:  # noqa: ARG002
        """Return the tokens that grading these examples takes, whoever did it; 0 where no model reads them."""
        return 0

    def estimate(self, examples: Sequence[Example]) -> str:  # noqa: ARG002
        """Return in words what grading will cost; empty where it costs nothing."""
        return ""


class DefaultQuality(QualitySource):
    """The column ``quality`` if every example has it, else the rules for all of them."""

    name = RULES_OR_COLUMN

    def grade(self, examples: Sequence[Example]) -> Float[np.ndarray, " n"]:
        return quality_scores(examples)


class RuleQuality(QualitySource):
    """The rules over the text, whatever columns there are."""

    name = "rules"

    def grade(self, examples: Sequence[Example]) -> Float[np.ndarray, " n"]:
        for example in examples:
            request_text(example)
        return rule_scores(examples)


class ColumnQuality(QualitySource):
    """A numeric column of the data.

    Args:
        column: its name.
        low, high: the ends of its scale.
    """

    name = "column"
    main = "column"

    def __init__(self, column: str = "quality", low: float = 0.0, high: float = 1.0) -> None:
        self.column, self.scale = str(column), grade_scale(self.name, low, high)
        self.columns = () if (self.column, self.scale) == ("quality", (0.0, 1.0)) else (self.column,)
        self._rows = self._missing = 0
        self._is_there = False
        """Whether any row of the job is known to have it."""

    def identity(self) -> str:
        return f"{self.name} {self.column} {self.scale}"

    def begin(self, examples: Sequence[Example], columns: Collection[str]) -> None:
        self._is_there = self.column in columns
        self._check_column(len(examples), columns)

    def grade(self, examples: Sequence[Example]) -> Float[np.ndarray, " n"]:
        values = [(example.columns or {}).get(self.column) if self.columns else example.quality for example in examples]
        grades = np.asarray([np.nan if value is None else value for value in values], dtype=np.float64)
        self._rows += len(grades)
        self._missing += int(np.isnan(grades).sum())
        self._is_there |= self._missing < self._rows
        self._check_column(self._rows)
        return grades

    def _check_column(self, rows: int, columns: Collection[str] = ()) -> None:
        if rows and not self._is_there:
            names = sorted(columns)
            more = ", …" if len(names) > _MOST_NAMES else ""
            there = f" Columns: {', '.join(names[:_MOST_NAMES])}{more}." if names else ""
            raise DataError(
                f"none of {rows:,} rows has a number in the column '{self.column}', which quality is read from."
                f"{did_you_mean(self.column, names)}{there} Name a column of numbers, or another quality source."
            )

    def describe(self) -> dict[str, Any]:
        return {"source": self.name, "column": self.column, "scale": self.scale, "missing": self._missing}

    def notes(self) -> list[str]:
        if not self._missing:
            return []
        return [f"{self._missing:,} of {self._rows:,} rows have no '{self.column}': their quality is missing"]


def grade_scale(name: str, low: Any, high: Any) -> tuple[float, float]:
    """Return the ends of a scale.

    Raises:
        RecipeError: they are no numbers, or not in order.
    """
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (low, high))
    if not numbers or not -np.inf < low < high < np.inf:
        raise RecipeError(f"quality source '{name}': low is {low!r} and high is {high!r}; give two numbers, low first.")
    return float(low), float(high)


def _check(name: str, cls: type) -> None:
    if not issubclass(cls, QualitySource):
        raise PluginError(
            f"quality source '{name}' ({cls.__qualname__}) does not derive from "
            "longgame.signals.quality.base.QualitySource; derive it."
        )
    if not isinstance(getattr(cls, "name", None), str) or not cls.name:
        raise PluginError(f"quality source '{name}' ({cls.__qualname__}) lacks `name`. Set name = '…' in the class.")
    if cls.grade is QualitySource.grade:
        raise PluginError(f"quality source '{name}' ({cls.__qualname__}) defines no grade(examples). Define it.")


QUALITY_SOURCES = Registry(
    "quality source",
    "longgame.quality",
    {
        RULES_OR_COLUMN: "longgame.signals.quality.base:DefaultQuality",
        "rules": "longgame.signals.quality.base:RuleQuality",
        "column": "longgame.signals.quality.base:ColumnQuality",
        "reward": "longgame.signals.quality.reward:RewardQuality",
        "judge": "longgame.signals.quality.judge:JudgeQuality",
    },
    _check,
)

QualitySpec = str | Mapping[str, Any] | QualitySource | None
"""What `build_quality` takes."""


class Rows(Protocol):
    """Rows of a data set; `longgame.offline.rows.DataRows` is one."""

    columns: frozenset[str]
    """Columns that any row of the data has (`QualitySource.begin`)."""

    def pool(self) -> Pool:
        """All of them, read when they are looked at."""


@dataclass(frozen=True)
class QualitySources:
    """The sources of a job: of quality, and of complexity where one is named."""

    quality: QualitySource
    complexity: QualitySource | None = None

    @classmethod
    def of(cls, quality: QualitySpec, complexity: QualitySpec = None) -> QualitySources:
        """Make both (see `build_quality`)."""
        return cls(build_quality(quality), None if complexity is None else build_quality(complexity))

    @property
    def is_named(self) -> bool:
        """Whether the user names a source of quality."""
        return not isinstance(self.quality, DefaultQuality)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the rows that are read."""
        return tuple(dict.fromkeys(name for source in self._named().values() for name in source.columns))

    def identity(self) -> dict[str, str]:
        """Kind → identity of the named sources."""
        return {kind: source.identity() for kind, source in self._named().items()}

    def gives(self, name: str) -> str | None:
        """Identity of the named source that gives a signal of this name; None: no named source does."""
        kind = "complexity" if name == "complexity" else "quality"
        return self.identity().get(kind) if name in GRADES else None

    def describe(self) -> dict[str, Any]:
        """Kind → what the named source has graded."""
        return {kind: source.describe() for kind, source in self._named().items()}

    def notes(self) -> list[str]:
        """Sentences about the grades, behind their kind."""
        return [f"{kind}: {note}" for kind, source in self._named().items() for note in source.notes()]

    def begin(self, rows: Rows, names: Iterable[str]) -> None:
        """Let the sources of these signals look at a job before it begins (`QualitySource.begin`)."""
        for kind in self._kinds(names):
            with plugin_at_work(f"quality source '{self._named()[kind].name}'", "begin()"):
                self._named()[kind].begin(rows.pool().examples, rows.columns)

    def estimate(self, rows: Rows, names: Iterable[str]) -> list[str]:
        """What the signals of these names will cost of the rows of a data set, in words, behind their kind."""
        kinds = self._kinds(names)
        return self.estimate_of(rows.pool().examples, kinds) if kinds else []

    def estimate_of(self, examples: Sequence[Example], kinds: Collection[str] = ("quality", "complexity")) -> list[str]:
        """What the named sources of these kinds will cost for these examples, in words, behind their kind."""
        lines = {kind: source.estimate(examples) for kind, source in self._named().items() if kind in kinds}
        return [f"{kind}: {line}" for kind, line in lines.items() if line]

    def _kinds(self, names: Iterable[str]) -> set[str]:
        """Kinds whose named source gives a signal of these names."""
        return {"complexity" if name == "complexity" else "quality" for name in names if name in GRADES} & {
            *self._named()
        }

    def _named(self) -> dict[str, QualitySource]:
        named = {"quality": self.quality} if self.is_named else {}
        return named if self.complexity is None else named | {"complexity": self.complexity}


GRADES = ("quality", "grade", "complexity")
"""Signals that quality sources give."""


def build_quality(spec: QualitySpec) -> QualitySource:
    """Make a quality source.

    Args:
        spec: ``NAME``, ``NAME:VALUE``, ``NAME:parameter=value,…``, ``file.py:Class[:parameter=value,…]``, or
            ``{"name": …, parameter: …}``; None: the default. A `QualitySource` is returned as it is.

    Raises:
        RecipeError: an unknown name, a parameter that the source does not take, or a value out of range.
        PluginError: the class cannot be made or breaks the contract.
    """
    if isinstance(spec, QualitySource):
        return spec
    if isinstance(spec, Mapping):
        parameters = {str(key): value for key, value in spec.items() if key != "name"}
        name = spec.get("name")
        if not isinstance(name, str):
            raise RecipeError(f"a quality source without a name: keys {sorted(parameters)}. Write {{name: judge, …}}.")
        return QUALITY_SOURCES.make(name, parameters)
    if spec is None:
        return DefaultQuality()
    if not isinstance(spec, str) or not spec.strip():
        raise RecipeError(f"the quality source is {spec!r}; give a name, such as rules, or a mapping.")
    name, text = _split(spec.strip())
    cls = QUALITY_SOURCES.resolve(name)
    return QUALITY_SOURCES.make(name, _parameters(name, text, getattr(cls, "main", "")) if text else {})


def _split(spec: str) -> tuple[str, str]:
    """The name and what follows it; the name of a class in a file contains a colon itself."""
    if match := re.match(r"(.+?\.py:[A-Za-z_]\w*)(?::(.*))?$", spec, re.S):
        return match[1], match[2] or ""
    name, _, text = spec.partition(":")
    return name, text


def _parameters(name: str, text: str, main: str) -> dict[str, Any]:
    """Read ``VALUE,parameter=value,…``; values are YAML."""
    parameters: dict[str, Any] = {}
    for place, part in enumerate(re.split(r",(?=[A-Za-z_]\w*=)", text)):
        key, sign, value = part.partition("=")
        if not re.fullmatch(r"[A-Za-z_]\w*", key) or not sign:
            if place or not main:
                raise RecipeError(f"quality source '{name}': parameter {place + 1} is not written as parameter=value.")
            parameters[main] = part
            continue
        try:
            parameters[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise RecipeError(f"quality source '{name}': the value of '{key}' cannot be read.") from error
    return parameters


@dataclass(frozen=True, slots=True)
class Ratings:
    """What a source says of some examples, row-aligned."""

    grade: Float[np.ndarray, " n"]
    """On the source's scale; NaN: missing."""
    quality: Float[np.ndarray, " n"]
    """In [0, 1], float32; NaN: missing."""


def rate(source: QualitySource, examples: Sequence[Example]) -> Ratings:
    """Grade examples and check the answer.

    Raises:
        DataError: a grade lies outside the scale, or an example carries no text.
        PluginError: the source fails, or does not return one real number per example.
    """
    if isinstance(source, DefaultQuality):
        scores = source.grade(examples)
        return Ratings(scores, scores)
    label = f"quality source '{source.name}'"
    with plugin_at_work(label, "grade()"):
        grades = _numbers(source.grade(examples), len(examples), label, "grade()")
    if source.scale is not None:
        low, high = source.scale
        wrong = np.flatnonzero((grades < low) | (grades > high))
        if len(wrong):
            first = examples[wrong[0]]
            prompt = textwrap.shorten(first.prompt, _LONGEST_PROMPT, placeholder=" …")
            raise DataError(
                f"{label} gives example {first.sample_id} (its prompt: {prompt!r}) the grade {grades[wrong[0]]:g}; its "
                f"scale is {low:g} to {high:g}. Give the scale with low= and high=."
            )
    with plugin_at_work(label, "unit()"):
        quality = _numbers(source.unit(grades), len(examples), label, "unit()")
    wrong = np.flatnonzero((quality < 0) | (quality > 1) | (np.isnan(quality) != np.isnan(grades)))
    if len(wrong):
        raise PluginError(
            f"{label}: unit() maps the grade {grades[wrong[0]]:g} to {quality[wrong[0]]:g}. Map to [0, 1], and a "
            "missing grade (NaN) to NaN."
        )
    return Ratings(grades, quality.astype(np.float32))


def _numbers(values: Any, n: int, label: str, activity: str) -> np.ndarray:
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PluginError(f"{label}: {activity} returned no array ({error}). Return one number per example.") from error
    if array.shape != (n,) or array.dtype.kind not in "biuf":
        raise PluginError(
            f"{label}: {activity} returned {array.dtype} of shape {array.shape} for {n} examples. Return one real "
            "number for each, NaN where there is none."
        )
    result = array.astype(np.float64)
    if np.isinf(result).any():
        raise PluginError(f"{label}: {activity} returned an infinite number. Return finite ones, or NaN for missing.")
    return result


def request_text(example: Example) -> str:
    """The turns before the response as one text; a lone question of a user without its role."""
    if not example.response:
        raise DataError(
            f"example {example.sample_id} carries no text, which its quality is graded from. Pass the tokenizer as "
            "processing_class, give the data as text, or use a column."
        )
    if example.messages is None:
        return example.prompt
    return "\n\n".join(f"{role}: {content}" for role, content in example.messages if content)
