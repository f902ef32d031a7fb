"""Trainings beside a selection, as phases of a job in its folder of scores: LESS' gradient store, a reference, a log.

A training is a folder ``KIND-KEY`` with an epoch each (`auxiliary_run`) and, beside it, what was measured of all rows
under it. Every phase is resumed; another target set is scored from the gradient store alone.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from longgame.data.examples import Pool
from longgame.seeding import stream_seed
from longgame.signals.auxiliary import AuxiliarySpec, Influence
from longgame.signals.store import SignalStore, SignalWriter, stream_signals

if TYPE_CHECKING:
    from torch import nn

    from longgame.signals.engine import SignalEngine
    from longgame.training.auxiliary import Epoch

_STEP = "adam_grad_sketch"
_BLOCK = 1 << 14
"""Rows of a gradient store that are multiplied at a time."""


def apart(name: str, *content: Any) -> str:
    """Name of the folder, inside a folder of scores, of what depends on this content, too."""
    text = json.dumps([asdict(item) if isinstance(item, AuxiliarySpec) else item for item in content])
    return f"{name}-{blake2b(text.encode(), digest_size=6).hexdigest()}"


@dataclass(frozen=True, kw_only=True)
class AuxiliaryJob:
    """All rows of a job, and the model that is trained and measures them."""

    folder: Path
    """Of the scores."""
    model: nn.Module
    pad_token_id: int
    batch_tokens: int | None
    seed: int
    content: str
    """Digest of model and settings."""
    ids: Sequence[str]
    tokens: Int[np.ndarray, " n"]
    """Of each row."""
    shards: Callable[[], Iterator[Pool]]
    """All rows, tokenized, shard by shard."""
    taken: Callable[[Int[np.ndarray, " k"]], Pool]
    """These rising rows, tokenized."""
    dtype: str
    progress: Callable[[int], None] | None

    def influence(self, name: str, spec: AuxiliarySpec, target: Pool) -> SignalStore:
        """Write ``influence`` of all rows on the tasks of a target set into the folder ``name``.

        The phases are the warm-up's epochs, a gradient store for each of them, and the target's gradients. The first
        two are made once for all target sets.
        """
        from longgame.training.auxiliary import drawn_rows

        influence = Influence([example.skill for example in target.examples], spec.published)
        total = np.zeros((len(self.ids), len(influence.tasks)))
        folder = self.folder / apart("warmup", spec)

        def warmup_pool() -> Pool:
            return self.taken(drawn_rows(self.ids, self.tokens, spec.share, self._seed, "the warm-up"))

        def measure(engine: SignalEngine, epoch: Epoch) -> None:
            engine.preconditioner = epoch.adam
            store = self._store(engine, folder / f"gradients-{epoch.number}", [_STEP])
            targets = engine(target, ["grad_sketch"])["grad_sketch"]
            for start in range(0, len(store), _BLOCK):
                rows = slice(start, start + _BLOCK)
                total[rows] += influence.of_checkpoint(epoch.learning_rate, store.column(_STEP)[rows], targets)

        self._run(folder, warmup_pool, spec, measure, "the warm-up")
        return self._write(name, {"influence": total})

    def reference_loss(self, name: str, spec: AuxiliarySpec, target: Pool) -> SignalStore:
        """Write ``reference_loss`` of all rows, under a copy of the model trained on ``target``, into ``name``."""

        def measure(engine: SignalEngine, epoch: Epoch) -> None:
            if epoch.number == spec.epochs:
                stream_signals(
                    lambda pool, _names: {"reference_loss": engine(pool, ["loss"])["loss"]},
                    self.shards(),
                    ["reference_loss"],
                    self.folder / name,
                    fingerprint=self.content,
                    on_shard=self.progress,
                )

        self._run(self.folder / f"training-{name}", lambda: target, spec, measure, "the reference model")
        return SignalStore(self.folder / name)

    def log(self, spec: AuxiliarySpec) -> list[SignalStore]:
        """Train on all rows, and return ``loss`` and ``token_accuracy`` of all rows at the end of every epoch."""
        folder, stores = self.folder / apart("log", spec), []

        def measure(engine: SignalEngine, epoch: Epoch) -> None:
            stores.append(self._store(engine, folder / f"measured-{epoch.number}", ["loss", "token_accuracy"]))

        self._run(folder, lambda: self.taken(np.arange(len(self.ids))), spec, measure, "the training of the log")
        return stores

    @property
    def _seed(self) -> int:
        return stream_seed(self.seed, "auxiliary")

    def _run(
        self,
        folder: Path,
        pool: Callable[[], Pool],
        spec: AuxiliarySpec,
        measure: Callable[[SignalEngine, Epoch], None],
        where: str,
    ) -> None:
        from longgame.signals.engine import SignalEngine
        from longgame.training.auxiliary import auxiliary_run, with_adapter

        with with_adapter(self.model, self._seed) as model:
            engine = SignalEngine(
                model,
                pad_token_id=self.pad_token_id,
                seed=stream_seed(self.seed, "sketch"),
                max_batch_tokens=self.batch_tokens,
            )
            auxiliary_run(
                model,
                pool,
                dataclasses.replace(spec, share=1.0),
                pad_token_id=self.pad_token_id,
                seed=self._seed,
                at_epoch=lambda epoch: measure(engine, epoch),
                folder=folder,
                content=f"{self.content} {spec.share}",
                where=where,
            )

    def _store(self, engine: SignalEngine, path: Path, names: Sequence[str]) -> SignalStore:
        """All rows' signals under the model as it is now; computed once."""
        if not path.is_dir():
            stream_signals(
                engine,
                self.shards(),
                names,
                path,
                fingerprint=self.content,
                dtype=self.dtype,
                on_shard=self.progress,
            )
        store = SignalStore(path)
        store.verify(names)
        return store

    def _write(self, name: str, columns: Mapping[str, Float[np.ndarray, "n ..."]]) -> SignalStore:
        with SignalWriter(self.folder / name, dict.fromkeys(columns, "float32"), self.content) as writer:
            if not writer.rows:  # else a killed call has appended them
                writer.append(self.ids, columns)
            return writer.finish()
