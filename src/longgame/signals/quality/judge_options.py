"""What is told of LLM judges: who they are, what they are asked, and at what pace and price."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import jinja2
import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment

from longgame.errors import RecipeError, unknown
from longgame.limits import located, why_no_file
from longgame.signals.quality.base import grade_scale
from longgame.signals.quality.endpoint import ChatEndpoint, Pace
from longgame.signals.quality.rubrics import MOST_VIEWS, RUBRICS, template_of

Structured = Literal["auto", "always", "never"]


@dataclass(frozen=True, slots=True)
class Judge:
    model: str
    label: str
    identity: str
    """Part of a request's digest: the label that the user gave, else address and model."""
    endpoint: ChatEndpoint
    named: bool
    """Whether the user gave the label."""


@dataclass(frozen=True, slots=True)
class Phrasing:
    template: jinja2.Template
    label: str
    text: str


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """What `JudgeQuality` takes, by name or in a YAML file.

    Raises:
        RecipeError: a value is not allowed.
    """

    model: Any = None
    """Name on the server; or a list of names or of mappings (model, url, key_env, name), one for each judge."""
    url: str = "http://localhost:8000/v1"
    """Base of the API."""
    key_env: str = "LONGGAME_JUDGE_KEY"
    """Name of the environment variable that holds the key."""
    rubric: Any = None
    """alpagasus, deita-quality, deita-complexity, mt-bench, a Jinja file, or a list of Jinja files (phrasings). A file
    gets instruction, response, view, low, high and form (how to answer). None: alpagasus of training data, mt-bench of
    evaluation items."""
    dimension: str = "accuracy"
    """What the rubric alpagasus grades: accuracy (as in the paper), helpfulness …"""
    low: float | None = None
    high: float | None = None
    """The scale of a rubric in a file."""
    views: int = 2
    """Phrasings: 1 to 4 orders of rubric, scale, instruction and response; a file sees their number as view."""
    structured: Structured = "auto"
    """auto: JSON by a schema where the server takes one, else plain text, which is reported."""
    reasons: bool = False
    """Ask for a reason before the grade."""
    temperature: float = 0.0
    max_tokens: int = 256
    """Of a reply."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the request's body; null removes one."""
    concurrency: int = 8
    """Requests at a time."""
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    """Limits of the server."""
    timeout: float = 120.0
    """Seconds for one attempt."""
    attempts: int = 6
    """Attempts at one request."""
    backoff: float = 0.5
    """Seconds before the second attempt; they double, and Retry-After counts where it is longer."""
    max_missing: float = 0.2
    """Share of examples without a grade above which the job stops."""
    writer: str | None = None
    """Model that wrote the responses, for the note on self-preference; default: the column source."""
    price_in: float | None = None
    price_out: float | None = None
    """Price of a million tokens of prompts and of replies."""
    cost_limit: float | None = None
    """The job does not begin if its estimate is above (needs the prices)."""
    cache: str | None = None
    """File of the replies; default: judge/replies.sqlite in the cache folder."""

    def __post_init__(self) -> None:
        for name in ("views", "max_tokens", "attempts", "concurrency"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 100_000:
                raise RecipeError(f"judge: {name} is {value!r}; use a whole number from 1 on.")
        positive = ("timeout", "requests_per_minute", "tokens_per_minute")
        free = ("temperature", "backoff", "max_missing", "price_in", "price_out", "cost_limit")
        for name in (*positive, *free):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
            if (value is not None or name in ("timeout", *free[:3])) and not (is_number and (value or name in free)):
                raise RecipeError(f"judge: {name} is {value!r}; use a number{' above 0' if name in positive else ''}.")
        if self.max_missing > 1:
            raise RecipeError(f"judge: max_missing is {self.max_missing!r}; use a share of the examples, 0 to 1.")
        if self.structured not in get_args(Structured):
            raise RecipeError("judge: " + unknown("value of structured", str(self.structured), get_args(Structured)))
        if not isinstance(self.extra, Mapping):
            raise RecipeError(
                f"judge: extra is a {type(self.extra).__name__}; write a mapping of the request's fields."
            )
        if self.cost_limit is not None and (self.price_in is None or self.price_out is None):
            raise RecipeError("judge: cost_limit needs prices. Give price_in and price_out, of a million tokens.")

    @classmethod
    def of(cls, file: str | None, values: Mapping[str, Any]) -> JudgeOptions:
        """Read a YAML file with these fields, and put ``values`` over them."""
        content: Any = {}
        names = [item.name for item in fields(cls)]
        if file is not None:
            place = Path(located(str(file))).expanduser()
            if reason := why_no_file(place):
                raise RecipeError(f"judge file '{file}' {reason}. Give a YAML file, or model=NAME,url=URL.")
            try:
                content = yaml.safe_load(place.read_text(encoding="utf-8"))
            except (OSError, ValueError, yaml.YAMLError) as error:
                raise RecipeError(f"judge file '{file}' is no YAML file that can be read.") from error
            if not isinstance(content, dict):
                raise RecipeError(f"judge file '{file}' holds no mapping. Write lines such as model: NAME.")
        for key in (*content, *values):
            if key not in names:
                raise RecipeError("judge: " + unknown("parameter", str(key), names))
        options: dict[str, Any] = {**content, **values}
        return cls(**options)


def phrasings_of(settings: JudgeOptions) -> tuple[list[Phrasing], tuple[float, float]]:
    """Return what the judges are asked, and the scale of their grades.

    Raises:
        RecipeError: a rubric cannot be used.
    """
    environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
    rubric, views = "alpagasus" if settings.rubric is None else settings.rubric, settings.views
    if isinstance(rubric, str) and rubric in RUBRICS:
        if settings.low is not None or settings.high is not None:
            raise RecipeError(f"judge: the rubric {rubric} has a scale of its own. Leave low and high out.")
        if views > MOST_VIEWS:
            raise RecipeError(f"judge: views is {views}; the rubric {rubric} has {MOST_VIEWS}.")
        entry = RUBRICS[rubric]
        values = {
            "task": entry.task.format(dimension=settings.dimension),
            "steps": [step.format(dimension=settings.dimension) for step in entry.steps],
            "shows_response": entry.shows_response,
        }
        label = f"{rubric} ({settings.dimension})" if rubric == "alpagasus" else rubric
        template = template_of(entry)
        content = json.dumps([template, values])
        return [Phrasing(environment.from_string(template, values), label, content)], (entry.low, entry.high)
    files = list(rubric) if isinstance(rubric, list | tuple) else [rubric]
    if not files or not all(isinstance(path, str) for path in files):
        raise RecipeError(f"judge: rubric is {rubric!r}; give a name ({', '.join(RUBRICS)}) or Jinja files.")
    phrasings = []
    for path in files:
        place = Path(located(path)).expanduser()
        if reason := why_no_file(place):
            raise RecipeError(f"judge: rubric file '{path}' {reason}. Rubrics of the package: {', '.join(RUBRICS)}.")
        try:
            text = place.read_text(encoding="utf-8")
            phrasings.append(Phrasing(environment.from_string(text), place.name, text))
        except (OSError, ValueError, jinja2.TemplateError) as error:
            raise RecipeError(f"judge: rubric file '{path}' is no Jinja template ({error}).") from error
        if views > 1 and not re.search(r"\bview\b", text):
            raise RecipeError(
                f"judge: views is {views}, and rubric file '{path}' does not use view, so that all of them would be "
                "the same. Use it ({% if view == 0 %}…), or set views: 1."
            )
    if settings.low is None or settings.high is None:
        raise RecipeError(f"judge: the rubric in '{files[0]}' needs its scale. Give low= and high=.")
    return phrasings, grade_scale("judge", settings.low, settings.high)


def judges_of(settings: JudgeOptions) -> list[Judge]:
    """Return the judges that ``model`` names; those at one address share its pace.

    Raises:
        RecipeError: none is named, or two of one name.
    """
    model = settings.model
    entries = list(model) if isinstance(model, list | tuple) else [model]
    judges: list[Judge] = []
    endpoints: dict[tuple[str, str], ChatEndpoint] = {}
    for entry in entries:
        values = dict(entry) if isinstance(entry, Mapping) else {"model": entry}
        for key in values:
            if key not in ("model", "url", "key_env", "name"):
                raise RecipeError("judge: " + unknown("key of a judge", str(key), ("model", "url", "key_env", "name")))
        name = values.get("model")
        if not isinstance(name, str) or not name.strip():
            raise RecipeError("judge: no model is named. Give model=, the name by which the server knows it.")
        url, key_env = values.get("url", settings.url), values.get("key_env", settings.key_env)
        if (url, key_env) not in endpoints:
            endpoints[url, key_env] = ChatEndpoint(
                url,
                key_env,
                timeout=settings.timeout,
                attempts=settings.attempts,
                backoff=settings.backoff,
                pace=Pace(settings.requests_per_minute, settings.tokens_per_minute),
            )
        endpoint, label = endpoints[url, key_env], str(values.get("name", name))
        if any(judge.label == label for judge in judges):
            raise RecipeError(f"judge: two judges are called '{label}'. Give each a name of its own (name=).")
        identity = f"name {label}" if "name" in values else f"{endpoint.url} {name}"
        judges.append(Judge(name, label, identity, endpoint, "name" in values))
    if not judges:
        raise RecipeError("judge: model is an empty list. Name a model.")
    return judges
