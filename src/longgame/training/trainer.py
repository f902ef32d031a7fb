"""Selection inside transformers' Trainer and TRL's SFTTrainer.

The training dataloader becomes a clock that yields *candidates*, ``candidate_ratio`` times as many as a batch holds,
so steps, learning-rate schedule and skipping on resume stay the Trainer's own. What a step then trains on is decided
in ``get_batch_samples``, the one place that sees all micro-batches of a step and sets the loss denominator.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from longgame.data.examples import Pool
from longgame.errors import RecipeError
from longgame.models.head import evaluating
from longgame.seeding import stream_seed
from longgame.selection.base import Selector
from longgame.selection.policy import Scorer, SelectionPolicy
from longgame.signals.base import Signals
from longgame.signals.source import SignalSource
from longgame.storage import read_state, write_state
from longgame.training.candidates import ID, OWN_COLUMNS, Candidates, pool_of, with_ids
from longgame.training.config import SelectionConfig
from longgame.training.feed import SelectionFeed, split_micro

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

STATE = "selection"
"""Name of the selection state in a checkpoint: ``selection.json`` and ``selection.safetensors``."""


class SelectionMixin(_Trainer):
    """Put before a Trainer class: ``class MyTrainer(SelectionMixin, Trainer)``.

    Examples are known by a ``sample_id`` column; a dataset without one gets ids by a hash of tokens and labels.
    Columns ``skill`` and ``quality`` reach the selector where the dataset has them. Budgets count prompt + response
    tokens; what a round leaves over goes to the next. Selection draws on its own generator, never on a global one,
    and its state is in every checkpoint: a resumed run picks and learns what an undisturbed one does.

    Args:
        selection: a `SelectionConfig`, or in short a selector (its name, a `Selector` or a `SelectionPolicy`) or a
            mapping of the config's fields.
        signals: (pool, names) → Signals; default a `SignalSource` on the model.

    Raises:
        RecipeError: a wrong value, or a set-up that selection does not go with: packing or padding-free batches,
            several processes or GPUs, FSDP, DeepSpeed, ``auto_find_batch_size``, ``batch_rebalance``.
        DataError: see `with_ids`.
    """

    if TYPE_CHECKING:
        model: Any
        train_dataset: Any
        data_collator: Any
        _signature_columns: Any
        _get_train_sampler: Any

    def __init__(
        self,
        *args: Any,
        selection: SelectionConfig | Mapping[str, Any] | str | Selector | SelectionPolicy = SelectionConfig(),
        signals: Scorer | None = None,
        **kwargs: Any,
    ) -> None:
        self.selection = SelectionConfig.of(selection)
        _refuse_packing(kwargs.get("args", args[1] if len(args) > 1 else None))
        self._selection_scorer = signals
        self._selection_feed: SelectionFeed | None = None
        self._selection_clock: Any = None
        self._selection_whole: tuple[Pool, dict[str, int]] | None = None
        super().__init__(*args, **kwargs)
        self._refuse_selection()
        # Sending batches from the main process to the others (accelerate's way with streams) knows tensors only.
        self.accelerator.dataloader_config.dispatch_batches = False
        self.selection_policy = self.selection.build_policy(self._selection_seed())
        if self.train_dataset is not None:
            self.train_dataset = self._selection_dataset(self.train_dataset)

    # What the Trainer calls, in the order in which it does

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; every call counts rounds and budget from the start (the selector's history goes on)."""
        self._selection_feed = None
        return super().train(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """Return the clock: batches of candidates, their columns uncollated."""
        collator, columns = self.data_collator, self._signature_columns
        self._set_signature_columns_if_needed()
        self.data_collator = Candidates
        self._signature_columns = [*dict.fromkeys([*(self._signature_columns or ()), *OWN_COLUMNS])]
        try:
            loader = self._get_dataloader(
                dataset=self.train_dataset,
                description="Training",
                batch_size=self._train_batch_size * self.selection.ratio,
                sampler_fn=self._get_train_sampler,
                is_training=True,
            )
        finally:
            self.data_collator, self._signature_columns = collator, columns
        self._selection_clock = loader
        return loader

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._open_selection().load_state_dict(read_state(checkpoint, STATE))

    def get_batch_samples(
        self, epoch_iterator: Iterator[Candidates], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Choose what this step learns, and give it in exactly ``num_batches`` micro-batches.

        The selector sees the candidates of all micro-batches together: accumulation is memory, not mathematics.
        """
        ticks = list(itertools.islice(epoch_iterator, num_batches))
        if not ticks:
            return [], None
        feed = self._open_selection()
        step = int(self.state.global_step)
        batches = self._selection_batches(feed, step, [row for tick in ticks for row in tick.rows], len(ticks))
        return batches, self._get_num_items_in_batch(batches, device)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Before the rest: pushing to the hub and deleting old checkpoints happen inside super().
        if not self.args.save_only_model:
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            write_state(folder, STATE, self._open_selection().state_dict())
        super()._save_checkpoint(model, trial)

    # Selection

    def _selection_batches(self, feed: SelectionFeed, step: int, rows: Sequence[Any], parts: int) -> list[Any]:
        """Micro-batches of this step."""
        if self.selection.rounds == "step":
            offered = {str(row[ID]): row for row in rows}
            ids = feed.batch(step, lambda _: pool_of(rows, self._selection_decode()))
            features = [offered[sample_id] for sample_id in ids]
        else:
            ids = feed.batch(step, self._selection_rest)
            _, place = self._selection_pool()
            features = self._selection_fetch([place[sample_id] for sample_id in ids])
        lengths = [len(feature["input_ids"]) for feature in features]
        split = split_micro(lengths, parts)
        return [self._selection_collate([features[i] for i in part] or features[:1], masked=not part) for part in split]

    def _selection_collate(self, features: list[dict[str, Any]], masked: bool) -> Any:
        """Collate; ``masked`` makes a micro-batch that adds nothing (a step with fewer picks than micro-batches)."""
        batch = self.data_collator([{k: v for k, v in row.items() if k not in OWN_COLUMNS} for row in features])
        if masked:
            batch["labels"] = torch.full_like(batch["labels"], -100)
        return batch

    def _open_selection(self) -> SelectionFeed:
        if self._selection_feed is None:
            steps = int(self.state.max_steps)
            self._selection_feed = SelectionFeed(
                self.selection_policy,
                self._selection_score,
                dataclasses.replace(
                    self.selection,
                    epochs=self._selection_passes(steps),
                    seed=stream_seed(self._selection_seed(), "selection", "deal"),
                ),
                steps,
            )
        return self._selection_feed

    def _selection_passes(self, steps: int) -> int:
        if self.selection.rounds == "step" or self.selection.epochs is not None:
            return self.selection.epochs or 1
        offered = steps * self.args.gradient_accumulation_steps * self._train_batch_size * self.selection.ratio
        return max(1, round(offered / len(self.train_dataset)))

    def _selection_score(self, pool: Pool, names: Sequence[str]) -> Signals:
        if self.selection_policy.rounds and not self.selection.keep_signals:
            last = self.selection_policy.rounds[-1]
            self.selection_policy.rounds[-1] = dataclasses.replace(last, signals=Signals(last.signals.ids, {}))
        if not names:
            return Signals(pool.ids, {})
        if self._selection_scorer is None:
            pad, seed = self._selection_pad_token(), self._selection_seed()
            stream = isinstance(self.train_dataset, IterableDataset)
            self._selection_scorer = SignalSource.of_model(
                self.model,
                pad_token_id=pad,
                seed=seed,
                candidates=None if stream else lambda: [self._selection_pool()[0]],
            )
            self._selection_scorer.begin_stage()
        if isinstance(self._selection_scorer, SignalSource):
            self._selection_scorer.step = int(self.state.global_step)
        with evaluating(self.model.modules()):
            return self._selection_scorer(pool, names)

    def _selection_fetch(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Rows of the training dataset as the clock gives them (columns removed alike)."""
        return self._selection_clock.collate_fn([self._selection_clock.dataset[row] for row in rows]).rows

    def _selection_pool(self) -> tuple[Pool, dict[str, int]]:
        """The whole dataset as a pool, and the row of every id; made once."""
        if self._selection_whole is None:
            pool = pool_of(self._selection_fetch(range(len(self.train_dataset))), self._selection_decode())
            self._selection_whole = (pool, dict(pool.index))
        return self._selection_whole

    def _selection_rest(self, taken: Collection[str]) -> Pool:
        pool, _ = self._selection_pool()
        return pool.take([row for row, sample_id in enumerate(pool.ids) if sample_id not in taken])

    # Set-up

    def _selection_dataset(self, dataset: Any) -> Any:
        return with_ids(dataset, self.selection.rounds)

    def _selection_seed(self) -> int:
        seeds = (self.selection.seed, self.args.data_seed, self.args.seed)
        return int(next(seed for seed in seeds if seed is not None))

    def _selection_tokenizer(self) -> Any:
        held = self.processing_class
        return getattr(held, "tokenizer", held)

    def _selection_decode(self) -> Any:
        tokenizer = self._selection_tokenizer()
        return None if tokenizer is None else lambda ids: tokenizer.decode(ids, skip_special_tokens=True)

    def _selection_pad_token(self) -> int | None:
        holders = (self._selection_tokenizer(), self.data_collator, getattr(self.model, "config", None))
        found = (getattr(holder, "pad_token_id", None) for holder in holders)
        return next((int(token) for token in found if token is not None), None)

    def _refuse_selection(self) -> None:
        args = self.args
        wrong = {
            "several processes": args.world_size > 1,
            f"{args.n_gpu} GPUs in one process (nn.DataParallel)": args.n_gpu > 1,
            "FSDP": bool(self.is_fsdp_enabled or self.is_fsdp_xla_enabled),
            "DeepSpeed": bool(self.is_deepspeed_enabled),
        }
        for what, found in wrong.items():
            if found:
                raise RecipeError(
                    f"selection does not run with {what}: every rank would score and choose on its own. "
                    "Use one process and one GPU (CUDA_VISIBLE_DEVICES=0)."
                )
        if args.auto_find_batch_size:
            raise RecipeError("auto_find_batch_size starts training over and would select twice; set a batch size.")
        if args.train_sampling_strategy == "batch_rebalance":
            raise RecipeError("train_sampling_strategy='batch_rebalance' builds its own batches; use another strategy.")
        if self.selection.rounds != "step" and isinstance(self.train_dataset, IterableDataset):
            self._selection_dataset(self.train_dataset)


def _refuse_packing(arguments: Any) -> None:
    for name in ("packing", "padding_free"):
        if getattr(arguments, name, False):
            raise RecipeError(
                f"{name}=True joins examples into one row, and their ids are lost before anything can be selected. "
                f"Set {name}=False."
            )
