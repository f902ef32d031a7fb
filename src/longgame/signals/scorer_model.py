"""`ScorerModel`: another model, with a tokenizer of its own, that measures candidates in place of the trained one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from longgame.data.examples import Pool
from longgame.data.tokenize import Encoded, encode_each, pool_of_encoded, truncated
from longgame.errors import DataError, RecipeError
from longgame.models.adaptation import adaptation_of
from longgame.models.device import device_of
from longgame.models.load import load_model
from longgame.recipe import ModelSpec
from longgame.seeding import stream_seed
from longgame.signals.base import SCORER, SIGNALS, scorer_passes
from longgame.signals.cache import signal_fingerprint
from longgame.signals.engine import SignalEngine
from longgame.signals.flops import signal_flops
from longgame.signals.texts import text_of

_MOST_TOKENS = 2048


def _within(encoded: Encoded, max_length: int) -> Encoded:
    """The example with at most ``max_length`` tokens, some of them learned."""
    short = truncated(encoded, max_length)
    if short is not None:
        return short
    first = min([len(encoded.prompt_ids), *(start for start, _ in encoded.earlier)])
    cut = first - max_length // 2 - 1  # tokens between the first one and those that are kept
    prompt = np.concatenate([encoded.prompt_ids[:1], encoded.prompt_ids[1 + cut :]])
    earlier = tuple((start - cut, stop - cut) for start, stop in encoded.earlier)
    near = dataclasses.replace(encoded, prompt_ids=prompt, earlier=earlier)
    return truncated(near, max_length) or near


class ScorerModel:
    """A frozen causal LM that reads candidates' texts through its own tokenizer and chat template.

    Args:
        name: `tiny`, `smollm2-135m`, a Hugging Face id, or a directory.
        device: ``auto``, ``cpu``, ``cuda`` …
        seed: of the engine's projections.
        trust_remote_code: run the Python code that comes with the model.

    Of an example longer than the model's context, or than 2,048 tokens, the end is cut off. Where nothing learned would
    be left, the tokens between its first one and half a context before the first learned one are cut out, too.

    Raises:
        ModelError: as `load_model`.
    """

    def __init__(self, name: str, *, device: str = "cpu", seed: int = 0, trust_remote_code: bool = False) -> None:
        place = device_of(device)
        loaded: Any = load_model(
            ModelSpec(name=name, max_length=8, trust_remote_code=trust_remote_code),
            attention="eager" if place.type == "cpu" else "sdpa",
        )
        self.name, self.source = name, loaded.source
        self.tokenizer, self._model = loaded.tokenizer, loaded.model.to(place)
        context = getattr(loaded.model.config, "max_position_embeddings", None)
        self.max_length = min(_MOST_TOKENS, context or _MOST_TOKENS)
        self.engine = SignalEngine(self._model, pad_token_id=loaded.pad_token_id, seed=stream_seed(seed, "scorer"))
        self._flops = adaptation_of(self._model).flops()
        self._last: tuple[tuple[str, ...], Pool] | None = None

    def __call__(self, pool: Pool, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Compute signals under this model.

        Args:
            names: with the prefix ``scorer_``, as the table of signals has them.

        Raises:
            DataError: an example carries no text.
            ModelError: the template cannot render an example. NumericalError: a value is NaN or infinite.
        """
        tokens = self.tokenized(pool)
        plain = [name.removeprefix(SCORER) for name in names]
        shared = [name for name in plain if SIGNALS[name].compute is None or name == "embedding"]
        columns = dict(self.engine(tokens, shared)) if shared else {}
        for name in (name for name in plain if name not in columns):
            compute: Any = SIGNALS[name].compute
            columns[name] = compute(self, tokens)
        return {SCORER + name: columns[name] for name in plain}

    def live(self, pool: Pool, name: str) -> np.ndarray:
        """An engine signal (`longgame.signals.base.Provider`)."""
        return self.engine(pool, (name,))[name]

    def tokenized(self, pool: Pool) -> Pool:
        """Return the pool's examples as this model reads them."""
        if self._last is not None and self._last[0] == pool.ids:
            return self._last[1]
        examples = list(pool.examples)
        encoded: list[Encoded] = []
        for example, item in zip(examples, encode_each(examples, self.tokenizer), strict=True):
            if example.tokens is not None:
                raise DataError(
                    f"example {example.sample_id} came tokenized for another model, and scorer model '{self.name}' has "
                    "a tokenizer of its own. Give the rows as text."
                )
            text_of(example)
            if isinstance(item, Exception):
                raise item
            encoded.append(_within(item, self.max_length))
        self._last = (pool.ids, pool_of_encoded(examples, encoded))
        return self._last[1]

    def work(self, pool: Pool, names: Sequence[str]) -> tuple[int, float]:
        """Return the tokens that it reads to give these examples these signals, and the FLOPs (NaN: not known)."""
        tokens = self.tokenized(pool)
        plain = [name.removeprefix(SCORER) for name in names]
        flops = np.nan if self._flops is None else float(signal_flops(self._flops, tokens, plain).sum())
        return scorer_passes(names) * int(tokens.tokens.sum()), flops

    def fingerprint(self) -> str:
        """Content of all that its signals depend on, the texts left out."""
        settings = {"max_length": self.max_length, "too_long": "truncate", "seed": 0}
        return signal_fingerprint(self._model, tokenizer=self.tokenizer, settings=settings)


class ReferenceModel:
    """``reference_loss`` under another model: its NLL of the response, by response token of the model that trains.

    With one tokenizer for both this is the mean NLL itself. Each example is measured once.

    Args:
        name, device, trust_remote_code: as of `ScorerModel`.
    """

    def __init__(self, name: str, *, device: str = "cpu", trust_remote_code: bool = False) -> None:
        self.model = ScorerModel(name, device=device, trust_remote_code=trust_remote_code)
        self._losses: dict[str, float] = {}

    def __call__(self, pool: Pool, name: str) -> Float[np.ndarray, " n"]:
        """Return the column of the signal ``name``.

        Raises:
            RecipeError: it is another signal than ``reference_loss``. DataError, ModelError: as `ScorerModel`.
        """
        if name != "reference_loss":
            raise RecipeError(f"a reference model gives no {name}. Use the selector in longgame select or in an audit.")
        part = pool.take([row for row, sample_id in enumerate(pool.ids) if sample_id not in self._losses])
        if len(part):
            total = self.model(part, ["scorer_loss"])["scorer_loss"] * self.model.tokenized(part).response_tokens
            self._losses.update(zip(part.ids, (total / part.response_tokens).tolist(), strict=True))
        return np.asarray([self._losses[sample_id] for sample_id in pool.ids], dtype=np.float32)

    def measured(self, pool: Pool, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the columns of these signals, as an engine does."""
        return {name: self(pool, name) for name in names}
