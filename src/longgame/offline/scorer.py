"""The model that scores rows: its options, and the loaded model with its tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longgame.data.examples import Pool
from longgame.errors import ModelError, RecipeError, unknown
from longgame.offline.rows import TooLong
from longgame.recipe import EMBEDDER, ModelSpec, parse_embedder
from longgame.seeding import stream_seed
from longgame.signals.quality.base import ANSWER_TOKENS, DefaultQuality, QualitySources
from longgame.signals.store import DTYPES

if TYPE_CHECKING:
    from longgame.models.embedders import Embedder
    from longgame.models.load import LoadedModel
    from longgame.signals.scorer_model import ScorerModel
    from longgame.signals.source import SignalSource


MOST_TOKENS = 2048
"""Tokens of an example unless said otherwise, where the model's context holds them."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model that scores, and how.

    Raises:
        RecipeError: a value is not allowed.
    """

    name: str
    """`tiny`, `smollm2-135m`, a Hugging Face id, or a directory."""
    adapter: str | None = None
    """Directory of a PEFT adapter: rows are scored under it; signals of the base, without it."""
    dtype: str = "float32"
    device: str = "auto"
    """``auto`` (a GPU, where there is one), ``cpu``, ``cuda``, ``cuda:1`` …"""
    max_length: int | None = None
    """Tokens of an example; None: 2,048, or the model's context where it is shorter."""
    chat_template: str | None = None
    pad_token: str | None = None
    trust_remote_code: bool = False
    batch_tokens: int | None = None
    """Padded tokens of a batch; None: chosen by the engine, and halved when they do not fit into memory."""
    too_long: TooLong = "truncate"
    store_dtype: str = "float32"
    """``float32`` or ``float16``, of the columns on disk."""
    reference: str | None = None
    """A model with a tokenizer of its own, for ``reference_loss``; None: this one, trained on the target set."""
    embedder: str | None = None
    """``sentence-transformers:NAME`` or ``model2vec:NAME``, which gives ``embedding``; None: the model itself."""
    scorer_model: str | None = None
    """Another model, with its own tokenizer, which gives the signals named ``scorer_…``."""

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16"):
            raise RecipeError(unknown("dtype", self.dtype, ("float32", "bfloat16")))
        if self.store_dtype not in DTYPES:
            raise RecipeError(unknown("dtype of the stored columns", self.store_dtype, DTYPES))
        parse_embedder(self.embedder or EMBEDDER)
        if self.embedder == EMBEDDER:
            object.__setattr__(self, "embedder", None)
        for name in ("max_length", "batch_tokens"):
            value = getattr(self, name)
            if value is not None and value < 8:
                raise RecipeError(f"{name} is {value}; use 8 or more.")

    def spec(self) -> ModelSpec:
        """What `load_model` takes."""
        values = {"chat_template": self.chat_template, "pad_token": self.pad_token}
        return ModelSpec(
            name=self.name, dtype=self.dtype, max_length=8, trust_remote_code=self.trust_remote_code, **values
        )


@dataclass(frozen=True)
class LoadedScorer:
    """A model on its device with its tokenizer."""

    options: ModelOptions
    model: Any
    tokenizer: Any
    origin: str
    max_length: int

    @classmethod
    def load(cls, options: ModelOptions) -> LoadedScorer:
        """Load model, tokenizer and adapter.

        Raises:
            ModelError: one of them cannot be loaded, the device does not exist, or ``max_length`` is beyond the
                model's context.
        """
        from longgame.models.device import device_of
        from longgame.models.load import load_model

        device = device_of(options.device)
        loaded: LoadedModel = load_model(options.spec(), attention="eager" if device.type == "cpu" else "sdpa")
        model: Any = loaded.model
        if options.adapter is not None:
            model = _with_adapter(model, options.adapter)
        return cls(
            options, model.to(device).eval(), loaded.tokenizer, loaded.source, length_of(options, loaded.model.config)
        )

    def fingerprint(self) -> str:
        """Content of all that scores depend on, the rows' texts left out."""
        from longgame.signals.cache import signal_fingerprint

        settings: dict[str, Any] = {"max_length": self.max_length, "too_long": self.options.too_long, "seed": 0}
        if self.options.embedder is not None:
            settings["embedder"] = self.embedder.digest
        if self.options.scorer_model is not None:
            settings["scorer"] = self.scorer_model.fingerprint()
        return signal_fingerprint(self.model, tokenizer=self.tokenizer, settings=settings)

    @cached_property
    def embedder(self) -> Embedder:
        """The embedder beside the model."""
        return embedder_of(self.options.embedder or "", self.options.device, self.options.trust_remote_code)

    @cached_property
    def scorer_model(self) -> ScorerModel:
        """The scorer model beside the model."""
        return scorer_of(self.options.scorer_model or "", self.options.device, self.options.trust_remote_code)

    def source(
        self,
        seed: int,
        target: Callable[[], Pool] | None,
        grading: QualitySources = QualitySources(DefaultQuality()),
    ) -> SignalSource:
        """Return what computes signals with this model."""
        from longgame.models.adaptation import adaptation_of
        from longgame.signals.engine import SignalEngine
        from longgame.signals.source import SignalSource

        adapted = self.options.adapter is not None
        engine = SignalEngine(
            self.model,
            pad_token_id=int(self.tokenizer.pad_token_id),
            seed=stream_seed(seed, "sketch"),
            max_batch_tokens=self.options.batch_tokens,
        )
        base = adaptation_of(self.model).frozen_base if adapted else nullcontext
        return SignalSource(
            engine,
            base=base,
            proxy=target,
            target=target,
            seed=seed,
            quality=grading.quality,
            complexity=grading.complexity,
            answers=self.answers,
            embedder=None if self.options.embedder is None else self.embedder.encode,
            scorer=None if self.options.scorer_model is None else self.scorer_model,
        )

    def answers(self, pool: Pool) -> list[str]:
        """What the model answers to each prompt: greedily, at most `ANSWER_TOKENS` tokens."""
        from longgame.evaluation.evaluator import Evaluator

        evaluator = Evaluator(
            self.model, self.tokenizer, pad_token_id=int(self.tokenizer.pad_token_id), max_length=self.max_length
        )
        return evaluator.answers(pool.examples, ANSWER_TOKENS)


def with_other_models(options: ModelOptions, embedder: str | None, scorer_model: str | None) -> ModelOptions:
    """Return these options with an embedder and a scorer model, where they are given."""
    return dataclasses.replace(
        options,
        embedder=options.embedder if embedder is None else embedder,
        scorer_model=scorer_model or options.scorer_model,
    )


def embedder_of(name: str, device: str, trust_remote_code: bool = False) -> Embedder:
    """Load an embedder onto a device (``auto``: a GPU where there is one)."""
    from longgame.models.device import device_of
    from longgame.models.embedders import load_embedder

    return load_embedder(name, device=str(device_of(device)), trust_remote_code=trust_remote_code)


def scorer_of(name: str, device: str, trust_remote_code: bool = False) -> ScorerModel:
    """Load a scorer model onto a device."""
    from longgame.signals.scorer_model import ScorerModel

    return ScorerModel(name, device=device, trust_remote_code=trust_remote_code)


def length_of(options: ModelOptions, config: Any) -> int:
    """Tokens that an example may have.

    Raises:
        ModelError: more are asked for than the model's context holds.
    """
    context = getattr(config, "max_position_embeddings", None)
    if options.max_length is None:
        return min(MOST_TOKENS, context or MOST_TOKENS)
    if context is not None and options.max_length > context:
        raise ModelError(
            f"max_length is {options.max_length} but '{options.name}' takes at most {context} tokens. Lower it."
        )
    return options.max_length


def _with_adapter(model: Any, folder: str) -> Any:
    from peft import PeftModel

    path = Path(folder).expanduser()
    if not (path / "adapter_config.json").is_file():
        raise ModelError(f"adapter '{folder}' holds no adapter_config.json. Give the directory of a PEFT adapter.")
    try:
        return PeftModel.from_pretrained(model, str(path), is_trainable=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"adapter '{folder}' cannot be put on the model: {reason}. Give one that was made for it."
        ) from error
