"""`SelectionConfig`: what is selected while training, in one object for the trainers and the audit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from os import PathLike
from typing import Any, Self, get_args

from longgame.errors import RecipeError, did_you_mean, unknown
from longgame.recipe import EMBEDDER, BudgetOf, Recipe, Rounds, parse_embedder
from longgame.seeding import generator, stream_seed
from longgame.selection.base import SCORES, Selector, build_selector
from longgame.selection.history import History
from longgame.selection.policy import SelectionPolicy
from longgame.signals.quality.base import QualitySource, QualitySources, QualitySpec

AnySelector = str | Mapping[str, Any] | type[Selector] | Selector | SelectionPolicy
"""What `SelectionConfig.selector` takes."""


_WHOLE = (Integral, "a whole number")
_TRUTH = (bool, "true or false")
_KINDS: Mapping[str, tuple[Any, str]] = {
    "parameters": (Mapping, "a mapping of the selector's arguments"),
    "budget": (Real, "a number in (0, 1]"),
    "rounds": (Integral | str, "'step' or a whole number from 1 on"),
    **dict.fromkeys(("candidate_ratio", "epochs", "seed", "proxy_refresh_steps", "clusters"), _WHOLE),
    "embedder": (str, "model, sentence-transformers:NAME or model2vec:NAME"),
    **dict.fromkeys(("scorer_model", "reference_model"), (str, "the name or directory of a model")),
    "trajectories": (str | PathLike, "the path of a training log"),
    **dict.fromkeys(("repeat", "keep_signals", "fused_lora", "log_statistics", "training_log"), _TRUTH),
}
"""Field → kind of value, and the kind in words."""


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """How examples are selected while a model trains.

    ```python
    config = SelectionConfig(selector="loss", budget=0.1)
    trainer = SelectionTrainer(model, args, train_dataset=dataset, selection=config)
    ```

    Raises:
        RecipeError: a value is out of range, or the selector or one of its parameters is unknown.
        PluginError: the selector cannot be made.
    """

    selector: AnySelector = "random"
    """A name (`longgame selectors` lists them, ``path/to/file.py:Class`` is your own), a mapping with parameters
    (``{"name": "gradient", "mode": "similarity"}``), a class, a `Selector`, or a `SelectionPolicy`, which brings its
    own history and generator."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the selector; only with a name or a class."""
    budget: float = 0.25
    """Share of the candidates' tokens that is trained on, in (0, 1]."""
    budget_of: BudgetOf = "tokens"
    """What the budget counts: ``tokens`` (prompt + response) or ``response`` (what the loss is taken on)."""
    rounds: Rounds = "step"
    """"step": every step selects from its own candidates. n: training is split into n rounds; each round scores all
    examples that are not selected yet and selects its share (1 = one offline choice)."""
    repeat: bool = True
    """Offer an example that was selected in an earlier epoch again. False: every example is selected at most once, and
    each step selects as many tokens as with True; budget × epochs must not exceed 1. A number of rounds never offers
    an example again."""
    candidate_ratio: int | None = None
    """Candidates per place in a batch; default: ⌈1 / budget⌉."""
    epochs: int | None = None
    """Passes over what a round selected; default: as many as the training makes over the dataset, and always 1 with
    ``rounds="step"``."""
    seed: int | None = None
    """Seed of selection and of dealing examples to steps; default: ``data_seed`` or ``seed`` of the arguments."""
    proxy_refresh_steps: int = 8
    """Optimizer steps after which the gradient of the proxy dataset is measured again, for selectors that use it."""
    clusters: int = 8
    """Clusters of the candidates' embeddings, for selectors that use ``cluster``."""
    quality: QualitySpec = None
    """Source of quality, such as ``rules``, ``reward:MODEL`` or ``judge:FILE.yaml`` (`build_quality`); default: the
    column ``quality`` where every row of the dataset (of a stream: every candidate of the step) has it, else rules."""
    complexity: QualitySpec = None
    """Source of complexity, for selectors that use it."""
    embedder: str = EMBEDDER
    """What gives ``embedding``: ``model`` (mean hidden states of the base model), ``sentence-transformers:NAME`` or
    ``model2vec:NAME``, NAME a hub id or a directory (``pip install 'longgame[embed]'``)."""
    scorer_model: str | None = None
    """Another model, with its own tokenizer, that measures candidates for selectors that ask it (`superfiltering`,
    `svp`): a hub id or a directory."""
    reference_model: str | None = None
    """A model of held-out data, with its own tokenizer, for `rho`: a hub id or a directory."""
    trajectories: str | PathLike[str] | None = None
    """Training log of the candidates, for selectors that read one: a checkpoint or output directory of a training with
    ``training_log=True``, or a .parquet, .csv or .jsonl file with sample_id, epoch, loss and token_accuracy."""
    keep_signals: bool = False
    """Keep what the selector saw in every round in the policy's log; memory grows with the rounds."""

    fused_lora: bool = True
    """Train plain LoRA over a bfloat16 base by thin products in bfloat16, as under autocast, instead of through
    float32 copies of all activations. The factors stay float32. Other models, also in float32, train as PEFT does."""
    log_statistics: bool = True
    """Log the statistics of each selection (``selection/…``) beside the loss."""
    training_log: bool = False
    """Record loss and token accuracy of every example at every pass over it (`longgame.read_training_log`)."""

    def __new__(cls, **values: Any) -> Self:
        """Refuse a misspelt field with a suggestion, in the words of `from_dict`."""
        cls._check_names(values)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            kinds, words = _KINDS.get(item.name, (object, ""))
            value = getattr(self, item.name)
            is_wrong = not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool)
            if words and is_wrong and not (value is None and item.default is None):
                raise RecipeError(f"{item.name} is {value!r}; use {words}.")
        if self.rounds != "step" and (isinstance(self.rounds, str) or self.rounds < 1):
            hint = did_you_mean(str(self.rounds), ["step"])
            raise RecipeError(f"rounds is {self.rounds!r}; use 'step' or a whole number from 1 on.{hint}")
        if not 0 < self.budget <= 1:
            raise RecipeError(f"budget is {self.budget}; it is a share of the candidates' tokens, in (0, 1].")
        parse_embedder(self.embedder)
        if self.budget_of not in get_args(BudgetOf):
            raise RecipeError(unknown("budget_of", str(self.budget_of), get_args(BudgetOf)))
        for name in ("candidate_ratio", "epochs", "proxy_refresh_steps", "clusters"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"{name} is {value}; use 1 or more.")
        if self.rounds == "step" and self.epochs not in (None, 1):
            raise RecipeError(
                f"epochs is {self.epochs} but rounds is 'step': a step trains once on what it selects. "
                "Use epochs 1, or a number of rounds."
            )
        self.grading()
        if isinstance(self.selector, str | Mapping | type):
            form = self.selector.get("name") if isinstance(self.selector, Mapping) else self.selector
            if not str(form).startswith(SCORES):  # reads a file, which may be large
                build_selector(self.selector, self.parameters)
        elif not isinstance(self.selector, Selector | SelectionPolicy):
            raise RecipeError(
                f"selector is a {type(self.selector).__name__}; give a name, a mapping with a name and parameters, "
                "a class, a Selector or a SelectionPolicy."
            )
        elif self.parameters:
            raise RecipeError(
                f"parameters are {dict(self.parameters)} but selector is a {type(self.selector).__name__} already. "
                "Pass them where it is made, or give the selector by name."
            )

    @classmethod
    def _check_names(cls, values: Mapping[str, Any]) -> None:
        names = [item.name for item in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                raise RecipeError(f"SelectionConfig: {unknown('field', key, names)}")

    @classmethod
    def of(cls, value: SelectionConfig | AnySelector) -> SelectionConfig:
        """Return the config that a short form means: a selector (name, class or instance), or a mapping of fields."""
        if isinstance(value, SelectionConfig):
            return value
        return cls.from_dict(value) if isinstance(value, Mapping) else cls(selector=value)

    @classmethod
    def of_recipe(cls, recipe: Recipe, seed: int) -> SelectionConfig:
        """Return how a recipe selects in a stage with this seed; the selector is the trial's and not set here."""
        return cls(
            budget=recipe.budget,
            budget_of=recipe.budget_of,
            rounds=recipe.rounds,
            epochs=recipe.training.epochs,
            seed=seed,
            proxy_refresh_steps=recipe.proxy.refresh_steps,
            clusters=recipe.metrics.clusters,
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SelectionConfig:
        """Return the config of these fields; missing ones have their defaults.

        Raises:
            RecipeError: a key is no field; otherwise as the class.
        """
        cls._check_names(values)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, which `from_dict` takes.

        Raises:
            RecipeError: the selector or a source of quality is an object, whose parameters are not known here.
        """
        if not isinstance(self.selector, str | Mapping):
            kind = self.selector.__name__ if isinstance(self.selector, type) else type(self.selector).__name__
            raise RecipeError(f"selector is a {kind}, which has no plain form. Give its name and parameters.")
        for source in (self.quality, self.complexity):
            if isinstance(source, QualitySource):
                raise RecipeError(
                    f"a source of quality is a {type(source).__name__}, which has no plain form. Give its name and "
                    "parameters."
                )
        selector = self.selector if isinstance(self.selector, str) else dict(self.selector)
        return {item.name: getattr(self, item.name) for item in dataclasses.fields(self)} | {
            "selector": selector,
            "parameters": dict(self.parameters),
            "trajectories": None if self.trajectories is None else str(self.trajectories),
        }

    @property
    def ratio(self) -> int:
        """Candidates per place in a batch."""
        return math.ceil(round(1 / self.budget, 9)) if self.candidate_ratio is None else self.candidate_ratio

    def grading(self) -> QualitySources:
        """Return the sources of quality and complexity.

        Raises:
            RecipeError: a source is unknown, or reads another column than ``quality``.
        """
        grading = QualitySources.of(self.quality, self.complexity)
        if grading.columns:
            raise RecipeError(
                f"quality is read from the column '{grading.columns[0]}', and a trainer reads quality alone, "
                "in [0, 1]. Rename and rescale it (longgame train: quality_range), or grade and select beforehand "
                "(longgame select)."
            )
        return grading

    def build_policy(self, seed: int) -> SelectionPolicy:
        """Return the policy that decides, with an empty history; a `SelectionPolicy` is returned as it is."""
        if isinstance(self.selector, SelectionPolicy):
            return self.selector
        selector = self.selector
        if not isinstance(selector, Selector):
            selector = build_selector(selector, self.parameters)
        history = History(seed=stream_seed(seed, "selection", "history"))
        return SelectionPolicy(selector, history, generator(seed, "selection", "select"))
