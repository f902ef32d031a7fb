"""The default scorer of the selection trainers: the model as it is now, and its base with adapters switched off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from longgame.data.examples import Pool
from longgame.errors import DataError, ModelError, PluginError
from longgame.signals.base import SIGNALS, Signals
from longgame.signals.cache import SignalCache, signal_fingerprint
from longgame.signals.engine import SignalEngine
from longgame.signals.quality import quality_scores
from longgame.training.candidates import SUFFIX

_BASE = {"embedding": "embedding", "base_loss": "loss"}
"""Signals of the frozen base, and what the engine calls them when the adapters are off."""


class ModelScorer:
    """Signals of candidates for `SelectionMixin`: everything live, `quality`, and the base's `embedding`, `base_loss`.

    What the base gives is fixed, so it is computed once per example and kept.

    Args:
        model: the model in training, as the trainer holds it.
        pad_token_id: fills up batches; None is refused where a signal needs the model.
        seed: of the sketches.
        cache: keeps the base's signals from run to run. Each call with new examples digests all weights (about a second
            per GB), so it pays where pools are scored whole, not a few examples a step.
    """

    def __init__(
        self, model: nn.Module, *, pad_token_id: int | None, seed: int = 0, cache: SignalCache | None = None
    ) -> None:
        self._model: Any = model
        self._pad_token_id = pad_token_id
        self._seed = seed
        self._cache = cache
        self._engine: SignalEngine | None = None
        self._frozen: dict[str, dict[str, np.ndarray]] = {name: {} for name in _BASE}

    def __call__(self, pool: Pool, names: Sequence[str]) -> Signals:
        """Compute the columns ``names`` for these candidates.

        Raises:
            PluginError: a signal that needs more than the model (clusters, a proxy mixture): pass your own ``signals``.
            DataError: the text is needed and not there, or labelled tokens do not stand at the end.
            ModelError: there is no padding token, or a model whose content cannot be told was given a cache.
        """
        live = [name for name in names if name in SIGNALS and SIGNALS[name].live]
        columns: dict[str, np.ndarray] = dict(self._run(pool, live)) if live else {}
        for name in names:
            if name in _BASE:
                columns[name] = self._base(pool, name)
            elif name == "quality":
                columns[name] = self._quality(pool)
            elif name not in live:
                raise PluginError(
                    f"the selector requires '{name}', which the default scorer cannot give (it gives the model's live "
                    f"signals, {', '.join(_BASE)} and quality). Pass signals=, a function (pool, names) -> Signals."
                )
        return Signals(pool.ids, columns)

    def _run(self, pool: Pool, names: Sequence[str], cache: SignalCache | None = None) -> dict[str, np.ndarray]:
        suffix = pool.info.get(SUFFIX)
        if suffix is not None and not suffix.all():
            sample_id = pool.ids[int(np.flatnonzero(~suffix)[0])]
            raise DataError(
                f"candidate {sample_id} has unlabelled tokens after labelled ones (several assistant turns?); signals "
                "are measured on a response that ends the example. Split the conversation, or pass signals=."
            )
        if self._engine is None:
            if self._pad_token_id is None:
                raise ModelError(
                    "no padding token is known, and candidates are scored in padded batches. Pass a tokenizer with a "
                    "pad token as processing_class."
                )
            self._engine = SignalEngine(self._model, pad_token_id=self._pad_token_id, seed=self._seed)
        if cache is None:
            return self._engine(pool, names)
        settings = {"pad_token_id": self._pad_token_id, "seed": self._seed}
        return cache(self._engine, pool, names, signal_fingerprint(self._model, settings=settings))

    def _base(self, pool: Pool, name: str) -> np.ndarray:
        if not hasattr(self._model, "disable_adapter"):
            raise PluginError(
                f"'{name}' is a signal of the frozen base, and a model trained in full has none left. "
                "Train an adapter, or pass signals= with columns computed before training."
            )
        held = self._frozen[name]
        fresh = [row for row, sample_id in enumerate(pool.ids) if sample_id not in held]
        if fresh:
            with self._model.disable_adapter():
                column = self._run(pool.take(fresh), [_BASE[name]], self._cache)[_BASE[name]]
            held.update(zip([pool.ids[row] for row in fresh], column, strict=True))
        return np.stack([held[sample_id] for sample_id in pool.ids])

    def _quality(self, pool: Pool) -> np.ndarray:
        if any(example.quality is None and not example.response for example in pool.examples):
            raise DataError(
                "quality is scored from the text, and candidates carry none. Pass the tokenizer as processing_class, "
                "or give the dataset a 'quality' column in [0, 1]."
            )
        return quality_scores(pool.examples)
