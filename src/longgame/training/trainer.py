"""Selection inside transformers' Trainer and TRL's SFTTrainer.

The training dataloader becomes a clock that yields *candidates*, ``candidate_ratio`` times as many as a batch holds,
so steps, learning-rate schedule and skipping on resume stay the Trainer's own. What a step then trains on is selected
in ``get_batch_samples``, the one place that sees all micro-batches of a step and sets the loss denominator.

`longgame.training.compat` lists the private members of Trainer that this relies on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import itertools
import json
import logging
import math
import re
import time
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy

from longgame.data.examples import WEIGHT, Pool
from longgame.errors import BudgetError, RecipeError, ResumeError, did_you_mean
from longgame.models.embedders import encoder_of
from longgame.models.fused import thin_lora
from longgame.models.head import evaluating
from longgame.models.processes import Processes, split_micro_batches
from longgame.models.sharding import reshard
from longgame.seeding import stream_seed
from longgame.selection.policy import ComputeSignals
from longgame.signals.base import CONTEXT, SIGNALS, Signals
from longgame.signals.cache import pool_fingerprint
from longgame.signals.gradients import AdamPreconditioner, is_adam
from longgame.signals.quality.base import ColumnQuality, QualitySource
from longgame.signals.scorer_model import ReferenceModel, ScorerModel
from longgame.signals.source import SignalSource
from longgame.storage import read_json, read_state, write_state
from longgame.training.candidates import (
    SELECTION_COLUMNS,
    Candidates,
    FreshFirst,
    Passes,
    SeededByEpoch,
    first_tokens,
    ids_of,
    pool_of,
    ratings,
    with_ids,
)
from longgame.training.compat import gathered_moments, refuse_packing, refuse_setup, undivided
from longgame.training.config import AnySelector, SelectionConfig
from longgame.training.feed import SelectionFeed, epoch_steps, round_of
from longgame.training.log import SelectionRecord, read_trajectories
from longgame.training.loss import TokenScores, labeled_tokens, outcome, token_weights, weight_excess

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object

_log = logging.getLogger(__name__)

STATE = "selection"
"""Name of the selection state in a checkpoint: ``selection.json`` and ``selection.safetensors``."""

ROW = "row"
"""Row-aligned key of `Pool.info`: the row of the training dataset."""

PLACE = "place"
"""Row-aligned key of `Pool.info`: the place among the candidates of a step."""

STAND_IN_TOKENS = 2
"""Tokens of a micro-batch without picks: the fewest of which one predicts another."""


class SelectionMixin(_Base):
    """Put before a Trainer class: ``class MyTrainer(SelectionMixin, Trainer)``.

    Examples are known by a ``sample_id`` column; a dataset without one gets ids by a hash of tokens and labels.
    Columns ``skill`` and ``quality`` reach the selector where the dataset has them. A column ``longgame_weight`` (of
    `longgame select`) multiplies the loss of its row, as `Selection.weights` do; where both are given, the two are
    multiplied. Budgets count prompt + response
    tokens; what a round leaves over goes to the next. Selection draws on its own generator, never on a global one,
    and its state is in every checkpoint: on the same machine, a resumed training selects and trains as an uninterrupted
    one.

    Args:
        selection: a `SelectionConfig`, or in short a selector (name, class or instance) or a mapping of the config's
            fields.
        signals: (pool, names) → Signals; default: a `SignalSource` on the model.
        proxy_dataset: examples that stand for the future, in the form of the training dataset; for selectors that
            compare with them (signals that need ``proxy`` or ``target``), such as ``lhas``. They are never trained on.
        target_dataset: the same items under the name that targeted selection has for them: examples of the task to
            select for. Give one of the two.

    Raises:
        RecipeError: a wrong value, a misspelt argument, or a set-up that selection does not go with: packing with
            ``rounds="step"``, several GPUs in one process, FSDP1, DeepSpeed ZeRO-3, tensor, context or sequence
            parallelism, ``auto_find_batch_size``, ``batch_rebalance``. When training starts: processes differ in what
            they train.
        DataError: see `with_ids`.

    Several processes (``torchrun``, ``accelerate launch``) train as one: each step makes one choice among the
    candidates of all of them, which share the work of scoring and of training. One process with as many times the
    batch size, or the accumulation, makes the same picks.
    """

    selection_shares = True
    """Whether several processes may train together."""

    if TYPE_CHECKING:
        model: Any
        train_dataset: Any
        data_collator: Any
        _signature_columns: Any
        _get_train_sampler: Any

    def __init__(
        self,
        *args: Any,
        selection: SelectionConfig | AnySelector = SelectionConfig(),
        signals: ComputeSignals | None = None,
        proxy_dataset: Any = None,
        target_dataset: Any = None,
        **kwargs: Any,
    ) -> None:
        self._check_arguments(kwargs)
        self.selection = SelectionConfig.of(selection)
        if proxy_dataset is not None and target_dataset is not None:
            raise RecipeError(
                "proxy_dataset and target_dataset are two names of one set of items that candidates are compared with. "
                "Give one of them."
            )
        arguments = kwargs.get("args", args[1] if len(args) > 1 else None)
        self._selection_packs = bool(getattr(arguments, "packing", False))
        if self._selection_packs:
            refuse_packing(arguments, self.selection)
        self.selection_seconds = 0.0
        """Wall-clock of computing signals and selecting, over all steps."""
        self.selection_picks: tuple[Pool, Sequence[int]]
        """What the last step trained on: a pool, and rows of it."""
        self.selection_signals = signals
        """What computes signals; made when training starts if it was not given."""
        self._selection_makes_signals = signals is None
        self._selection_feed: SelectionFeed | None = None
        self._selection_pool: Pool | None = None
        self._selection_loader: Any = None
        self._selection_clock: Any = None
        self._selection_passes: Passes | None = None
        self._selection_digest: str | None = None
        self._selection_index: dict[str, int] | None = None
        self._selection_micro: list[list[str]] = []
        """Ids of the micro-batches that this step has still to train on; none where a batch learns nothing."""
        self._selection_weights: Float[Tensor, "b T"] | None = None
        """Weights of the tokens of the micro-batch whose loss is computed next; None: 1 for all."""
        self._selection_items: Tensor | None = None
        """Labeled tokens of this step, where the Trainer would take the mean over micro-batches; else None."""
        self._selection_patches: ExitStack | None = None
        """What the model runs with while it trains."""
        self.selection_record: SelectionRecord | None = None
        """Picks, statistics and training log of the training; None where none is kept."""
        super().__init__(*args, **kwargs)
        self._refuse_selection()
        self._selection_processes = Processes.current()
        # Sending batches from the main process to the others (accelerate's way with streams) knows tensors only.
        self.accelerator.dataloader_config.dispatch_batches = False
        self.selection_policy = self.selection.build_policy(self._selection_seed())
        if self.train_dataset is not None:
            self.train_dataset = self._selection_dataset(self.train_dataset)
        items = target_dataset if proxy_dataset is None else proxy_dataset
        self.proxy_dataset = None if items is None else with_ids(self._selection_prepare(items), 1)
        if items is not None and not _reads_proxy(self.selection_policy.required):
            _log.warning(
                "selector '%s' compares candidates with no other items, so the proxy or target dataset is not read.",
                self.selection_policy.selector.name,
            )

    # What the Trainer calls, in the order in which it does

    def get_train_dataloader(self) -> DataLoader:
        """Return the clock: batches of candidates, their columns uncollated. Rounds and budget start over with it."""
        self._selection_agree()
        if isinstance(self.selection_signals, SignalSource):
            self.selection_signals.share(self._selection_processes)
        self._selection_feed = None
        self.selection_record = self._selection_new_record()
        self.selection_seconds = 0.0
        collator, columns = self.data_collator, self._signature_columns
        self._selection_fuse()
        self._set_signature_columns_if_needed()
        self.data_collator = Candidates
        self._signature_columns = [*dict.fromkeys([*(self._signature_columns or ()), *SELECTION_COLUMNS])]
        try:
            with undivided(self.accelerator):
                self._selection_open_clock()
        finally:
            self.data_collator, self._signature_columns = collator, columns
        batches: Any = self._selection_clock.batch_sampler
        if isinstance(getattr(batches, "sampler", None), LengthGroupedSampler):
            batches.sampler = SeededByEpoch(batches.sampler, self._selection_seed())
        if not self.selection.repeat and self.selection.rounds == "step" and self._selection_epoch:
            batches.sampler = FreshFirst(batches.sampler, self._selection_fresh_rows)
        return self._selection_clock

    def _selection_fuse(self) -> None:
        """Train plain LoRA by thin products until `train` ends (`SelectionConfig.fused_lora`)."""
        if self._selection_patches is not None and self.selection.fused_lora and not self.args.torch_compile:
            self._selection_patches.enter_context(thin_lora(self.model))

    def _selection_open_clock(self) -> None:
        dataset: Any = self.train_dataset
        if isinstance(dataset, IterableDataset) and not hasattr(dataset, "__len__"):
            self._selection_passes = dataset = Passes(dataset)
        self._selection_loader = self._selection_clock = self._get_dataloader(
            dataset=dataset,
            description="Training",
            batch_size=self._selection_batch_size * self.selection.ratio,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )
        if self._selection_packs:
            places: Any = range(self._selection_places())
            self._selection_clock = self._get_dataloader(
                dataset=places, description="Training", batch_size=self._selection_batch_size, is_training=True
            )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            state = read_state(checkpoint, STATE)
            _check_step(Path(checkpoint), state.get("step"))
            if state.get("dataset") != self._selection_fingerprint():
                raise ResumeError(
                    f"the checkpoint '{checkpoint}' was made with another training dataset (other rows, or in another "
                    f"order; this one has {len(self.train_dataset)}). Resume with the dataset it was started with, or "
                    "start a new training."
                )
            self.selection_feed.load_state_dict(state["feed"])
            if self.selection_record is not None:
                if "record" not in state:
                    raise ResumeError(
                        f"the checkpoint '{checkpoint}' is of an older version, which did not record what was "
                        "selected. Start a new training."
                    )
                self.selection_record.load(Path(checkpoint), state["record"])
            if isinstance(self.selection_signals, SignalSource):
                self.selection_signals.load_state_dict(state["signals"])
            if self._selection_passes is not None and "passes" in state:
                self._selection_resume_pass(*state["passes"])

    def get_batch_samples(
        self, epoch_iterator: Iterator[Candidates], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Select what this step trains on, and return it in exactly ``num_batches`` micro-batches.

        The selector sees the candidates of all micro-batches together, so accumulation does not change what it selects.
        The last step of a pass over a stream may have fewer candidates, and never fewer micro-batches: the optimizer
        takes its step by their count.
        """
        if self._selection_passes is not None:  # also where a resumed pass has nothing left
            self._selection_passes.follow(epoch_iterator, int(self.state.global_step))
        ticks = list(itertools.islice(epoch_iterator, num_batches))
        if not ticks:
            return [], None
        batches = self._selection_batches([row for tick in ticks for row in tick.rows], num_batches)
        items = self._get_num_items_in_batch(batches, device)
        self._selection_items = None
        if items is None and "labels" in batches[0] and not getattr(self, "loss_is_scaled_for_ga", None):
            labeled: Any = sum(labeled_tokens(batch["labels"]) for batch in batches)
            self._selection_items = self.accelerator.gather(labeled.to(device)).sum()
        return batches, items

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Train on a micro-batch, and record how well its examples were learned before (`training_log`)."""
        self._selection_weights = inputs.pop(WEIGHT, None) if isinstance(inputs, MutableMapping) else None
        loss = self._selection_training_step(model, inputs, num_items_in_batch)
        if self._selection_weights is not None:
            raise RecipeError(_OWN_LOSS.format(name=type(self).__name__))
        return loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Compute the loss; where the selection gives weights, each pick's NLL counts times its weight.

        A model that takes no count of tokens gives the mean over the micro-batch, which is scaled to the micro-batch's
        share of the step's tokens.
        """
        if self._selection_items is None or num_items_in_batch is not None or not self.model.training:
            return self._selection_loss(model, inputs, return_outputs, num_items_in_batch)
        labeled = labeled_tokens(inputs["labels"])
        if not labeled:  # the mean over no token is 0/0; 0 times that over its input adds nothing
            inputs = {**inputs, "labels": inputs["input_ids"]}
        result: Any = self._selection_loss(model, inputs, return_outputs, None)
        loss, outputs = result if return_outputs else (result, None)
        parts = self.current_gradient_accumulation_steps * self._selection_processes.size  # which it is divided by
        loss = loss * (labeled * parts / self._selection_items).to(loss.device)
        return (loss, outputs) if return_outputs else loss

    def _selection_loss(self, model: Any, inputs: Any, return_outputs: bool, num_items_in_batch: Any) -> Any:
        labels = inputs.get("labels")
        weights = None if labels is None else self._selection_take_weights(labels.device)
        if labels is None or weights is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs: list[Any] = []
        handle = model.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        try:
            result: Any = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        finally:
            handle.remove()
        loss, last = result if return_outputs else (result, None)
        excess = weight_excess(outputs[0], labels, weights)
        items: Any = labeled_tokens(labels)
        if num_items_in_batch is not None:  # of all processes, whose gradients are averaged
            items = num_items_in_batch / self._selection_processes.size
        loss = loss + (excess / items).to(loss.device)
        return (loss, last) if return_outputs else loss

    def _selection_take_weights(self, device: Any) -> Float[Tensor, "b T"] | None:
        """Return the token weights of this micro-batch, once; what is not taken was not applied."""
        weights, self._selection_weights = self._selection_weights, None
        return None if weights is None else weights.to(device)

    def _selection_training_step(self, model: Any, inputs: Any, num_items_in_batch: Any) -> torch.Tensor:
        if not self.selection.training_log or self.selection_record is None:
            return super().training_step(model, inputs, num_items_in_batch)
        ids, labels = self._selection_micro.pop(0), inputs["labels"]
        outcomes: list[TokenScores] = []
        handle = model.register_forward_hook(lambda _module, _inputs, output: outcomes.append(outcome(output, labels)))
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)
        finally:
            handle.remove()
        pool = self.selection_picks[0]
        lengths = [int(pool.tokens[pool.index[sample_id]]) for sample_id in ids]
        measured = (ids, *outcomes[-1].of_examples(lengths)) if ids else None
        for part in self._selection_processes.each(lambda: measured):
            if part is None:
                continue
            ids, losses, accuracies = part
            step, plan = int(self.state.global_step), self.selection_feed
            number = step if plan.rounds == "step" else round_of(step, plan.steps, plan.rounds)
            epoch = step // self._selection_epoch if self._selection_epoch else 0
            self.selection_record.add_learned(ids, losses, accuracies, step=step, epoch=epoch, number=number)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the statistics of selection beside the loss (`SelectionConfig.log_statistics`)."""
        if self.selection.log_statistics and "loss" in logs and self.selection_record is not None:
            feed = self.selection_feed
            totals = {"selection/total_kept_tokens": feed.spent, "selection/total_offered_tokens": feed.scored}
            logs = {**logs, **self.selection_record.statistics(self.selection_seconds), **totals}
        super().log(logs, start_time)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, and write the selection tables into the output directory unless ``save_strategy`` is "no"."""
        with self._selection_processes.connected(), ExitStack() as self._selection_patches:
            output = super().train(*args, **kwargs)
        self._selection_patches = None
        if self.args.save_strategy != SaveStrategy.NO:
            self.save_selection(str(self.args.output_dir))
        return output

    def save_selection(self, folder: str | Path) -> None:
        """Write what was selected (and the training log) into a folder, for `longgame.read_picks`.

        Of several processes the first one writes.

        Raises:
            StorageError: the disk is full or not writable.
        """
        if self.selection_record is not None and self.args.should_save:
            self.selection_record.write(Path(folder))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Before the rest: pushing to the hub and deleting old checkpoints happen inside super().
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self.save_selection(folder)
        if self.args.should_save and not self.args.save_only_model:
            source, record = self.selection_signals, self.selection_record
            signals = source.state_dict() if isinstance(source, SignalSource) else {}
            step = int(self.state.global_step)
            state = {"feed": self.selection_feed.state_dict(), "signals": signals, "step": step}
            if record is not None:
                state["record"] = record.state_dict()
            if self._selection_passes is not None:
                state["passes"] = [self._selection_passes.finished, self._selection_passes.start]
            write_state(folder, STATE, {**state, "dataset": self._selection_fingerprint()})
        super()._save_checkpoint(model, trial)

    # Selection

    @property
    def selection_feed(self) -> SelectionFeed:
        """The feed of this training: tokens selected, scored and trained on so far."""
        if self._selection_feed is None:
            steps, selection = int(self.state.max_steps), self.selection
            pool = None if selection.rounds == "step" else self._selection_candidates()
            if pool is not None:
                self._selection_agree_on(pool)
            epochs, seed = self._selection_epochs(steps), stream_seed(self._selection_seed(), "selection", "deal")
            budget = self._selection_budget(steps, epochs)
            selection = dataclasses.replace(selection, epochs=epochs, seed=seed, budget=budget)
            self._check_repeat(steps)
            if self._selection_makes_signals and self.selection_policy.required:
                self._selection_begin_signals()
            self._selection_feed = SelectionFeed(self.selection_policy, self._selection_score, selection, steps, pool)
        return self._selection_feed

    def _selection_batches(self, candidates: Sequence[Any], parts: int) -> list[Any]:
        """Return the micro-batches of this step; ``candidates`` are what the clock offers to it."""
        started = time.perf_counter()
        feed, step, record = self.selection_feed, int(self.state.global_step), self.selection_record
        offer = self._selection_offer(candidates) if self.selection.rounds == "step" else None
        if offer is not None:
            self._selection_agree_on(offer)
        skip = record.last_pick if record is not None and not self.selection.repeat else frozenset()
        decisions = len(self.selection_policy.rounds)
        pool, rows = feed.batch(step, offer, skip)
        self.selection_picks = pool, rows
        processes = self._selection_processes
        if processes.size > 1:
            picks = [[pool.ids[row] for row in rows], None if feed.weights is None else feed.weights.tolist()]
            processes.agree(f"picks of step {step + 1}", json.dumps(picks), _SAME_NUMBERS)
        if record is not None and len(self.selection_policy.rounds) > decisions:
            decision = self.selection_policy.rounds[-1]
            epoch = self._selection_epoch if self.selection.rounds == "step" else 0
            record.add_selection(step, pool, decision, self._selection_rows(decision.picked_ids), epoch)
        self.selection_seconds += time.perf_counter() - started
        padded = not (self._selection_packs or getattr(self.args, "padding_free", False))
        split = split_micro_batches(pool.tokens[rows].tolist(), parts, processes.size, padded)[processes.rank]
        shortest = min(rows, key=lambda row: int(pool.tokens[row]))  # stands in where there are fewer picks than parts
        batches = [
            self._selection_collate(pool, [rows[place] for place in part])
            if part
            else self._selection_collate(pool, [shortest], STAND_IN_TOKENS)
            for part in split
        ]
        for part, batch in zip(split, batches, strict=True):
            if feed.weights is not None and part:
                self._refuse_weights()
                lengths = [int(pool.tokens[rows[place]]) for place in part]
                batch[WEIGHT] = token_weights(batch["labels"], feed.weights[part], lengths)
            if not part:  # a stand-in is read without labels and adds nothing
                batch["labels"] = torch.full_like(batch["labels"], -100)
        self._selection_micro = [[pool.ids[rows[place]] for place in part] for part in split]
        return batches

    @property
    def _selection_batch_size(self) -> int:
        """Places of a batch over all processes."""
        return self._train_batch_size * self._selection_processes.size

    def _selection_agree(self) -> None:
        """Raise RecipeError where the processes do not train the same."""
        processes = self._selection_processes
        if processes.size == 1:
            return
        fixed = {
            item.name: _same_text(getattr(self.selection, item.name)) for item in dataclasses.fields(self.selection)
        }
        fixed["selector"] = self.selection_policy.selector.name
        same = "Start all of them with the same {}."
        versions = [f"{name} {_version(name)}" for name in ("longgame", "torch", "transformers", "numpy")]
        processes.agree("versions", ", ".join(versions), same.format("installation"))
        processes.agree("a training dataset", self._selection_fingerprint(), same.format("rows, in the same order"))
        processes.agree("a selection", json.dumps(fixed), same.format("arguments"))
        batch = (self._train_batch_size, self.args.gradient_accumulation_steps, self._selection_seed())
        processes.agree("a batch size, accumulation or seed", repr(batch), same.format("arguments"))

    def _selection_agree_on(self, pool: Pool) -> None:
        """Raise RecipeError where the processes do not have the same candidates."""
        if self._selection_processes.size > 1:
            self._selection_processes.agree("candidates", pool_fingerprint(pool), _SAME_ROWS)

    def _selection_offer(self, candidates: Sequence[Any]) -> Pool:
        """Return the candidates of a step as a pool, row by row."""
        self._selection_features = candidates
        pool = self._selection_pool_of(candidates)
        return dataclasses.replace(pool, info={**pool.info, PLACE: np.arange(len(pool))})

    def _selection_candidates(self) -> Pool:
        """Return the whole dataset as a pool; made once."""
        if self._selection_pool is None:
            pool = self._selection_pool_of(self._selection_fetch(range(len(self.train_dataset))))
            self._selection_pool = dataclasses.replace(pool, info={**pool.info, ROW: np.arange(len(pool))})
        return self._selection_pool

    def _selection_collate(self, pool: Pool, rows: Sequence[int], most: int | None = None) -> Any:
        """Return these rows of the pool as a batch, or the first ``most`` tokens of each."""
        if ROW in pool.info:
            features = self._selection_fetch(pool.info[ROW][rows].tolist())
        else:
            features = [self._selection_features[place] for place in pool.info[PLACE][rows]]
        if most is not None:
            features = [first_tokens(feature, most) for feature in features]
        return self.data_collator([{k: v for k, v in row.items() if k not in SELECTION_COLUMNS} for row in features])

    def _selection_fetch(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Return rows of the training dataset with the columns that the clock gives."""
        loader = self._selection_loader
        return loader.collate_fn([loader.dataset[row] for row in rows]).rows

    def _selection_begin_signals(self) -> ComputeSignals:
        """Return the source of signals, made if there is none, with its steps counted from here."""
        source = self.selection_signals
        if source is None:
            stream = isinstance(self.train_dataset, IterableDataset)
            items, proxy = self.proxy_dataset, None
            if items is not None:
                proxy = self._selection_pool_of([items[row] for row in range(len(items))])
            grading = self.selection.grading()
            if isinstance(grading.quality, ColumnQuality) and not stream:  # the first step's candidates may have none
                grading.quality.begin((), ("quality",) if any(ratings(self.train_dataset)) else ())
            self.selection_signals = source = SignalSource.of_model(
                self.model,
                pad_token_id=self._selection_pad_token(),
                seed=self._selection_seed(),
                candidates=None if stream else lambda: [self._selection_candidates()],
                proxy=None if proxy is None else lambda: proxy,
                target=lambda: proxy,
                scorer=self._selection_scorer(),
                auxiliary=self._selection_reference(),
                embedder=encoder_of(self.selection.embedder, str(self.model.device)),
                log=None if self.selection.trajectories is None else read_trajectories(self.selection.trajectories),
                preconditioner=self._selection_preconditioner,
                proxy_refresh=self.selection.proxy_refresh_steps,
                clusters=self.selection.clusters,
                past=self.selection_policy.history,
                quality=grading.quality,
                rated=None if stream else lambda: all(ratings(self.train_dataset)),
                complexity=grading.complexity,
            )
        if isinstance(source, SignalSource):
            source.share(self._selection_processes)
            source.begin_stage()
            if self.state.global_step == 0:  # a resumed training finds the base's signals in its checkpoint
                with evaluating(self.model.modules()), self.accelerator.autocast():
                    source.prepare(self.selection_policy.required)
        return source

    def _selection_scorer(self) -> ScorerModel | None:
        """The scorer model; None where none is named."""
        name = self.selection.scorer_model
        return None if name is None else ScorerModel(name, device=str(self.model.device), seed=self._selection_seed())

    def _selection_reference(self) -> ReferenceModel | None:
        """The reference model; None where none is named."""
        name = self.selection.reference_model
        return None if name is None else ReferenceModel(name, device=str(self.model.device))

    def _selection_preconditioner(self) -> AdamPreconditioner | None:
        """Adam's moments as they are now; None before its first step, or where another optimizer trains."""
        optimizer: Any = self.optimizer
        reshard(self.model)
        if optimizer is None or not is_adam(optimizer):
            return None
        if self.is_deepspeed_enabled:
            return AdamPreconditioner(gathered_moments(optimizer, self.model))
        return AdamPreconditioner.from_optimizer(optimizer, self.model)

    def _selection_score(self, pool: Pool, names: Sequence[str]) -> Signals:
        rounds = self.selection_policy.rounds
        if rounds and not self.selection.keep_signals:
            rounds[-1] = dataclasses.replace(rounds[-1], signals=Signals(rounds[-1].signals.ids, {}))
        if not names:
            return Signals(pool.ids, {})
        source = self.selection_signals or self._selection_begin_signals()
        if isinstance(source, SignalSource):
            source.step = int(self.state.global_step)
        with evaluating(self.model.modules()), self.accelerator.autocast():  # scored as it is trained
            return source(pool, names)

    # Set-up

    def _selection_dataset(self, dataset: Any) -> Any:
        return with_ids(dataset, self.selection.rounds)

    def _selection_prepare(self, dataset: Any) -> Any:
        """Return the proxy dataset tokenized as the trainer tokenizes the training dataset."""
        return dataset

    def _selection_seed(self) -> int:
        seeds = (self.selection.seed, self.args.data_seed, self.args.seed)
        return int(next(seed for seed in seeds if seed is not None))

    def _selection_new_record(self) -> SelectionRecord | None:
        selection = self.selection
        stream = isinstance(self.train_dataset, IterableDataset)
        remember = selection.rounds == "step" and not (stream and selection.repeat)
        return SelectionRecord(selection.training_log, remember)

    @property
    def _selection_epoch(self) -> int:
        """Optimizer steps of an epoch; 0 for a stream."""
        if isinstance(self.train_dataset, IterableDataset):
            return 0
        return epoch_steps(len(self._selection_clock), self.args.gradient_accumulation_steps)

    def _selection_resume_pass(self, finished: int, start: int) -> None:
        workers = self.args.dataloader_num_workers
        if finished and workers > 1:
            raise ResumeError(
                f"the stream is in pass {finished + 1}, and {workers} workers would read it in another order. "
                "Resume with dataloader_num_workers=1."
            )
        batches = self.args.gradient_accumulation_steps * self._selection_batch_size * self.selection.ratio
        if self._selection_passes is not None:
            self._selection_passes.resume(finished, start, batches)

    def _selection_fresh_rows(self) -> Bool[np.ndarray, " n"]:
        """Return which rows of the dataset no earlier epoch selected."""
        step, epoch, record = int(self.state.global_step), self._selection_epoch, self.selection_record
        start, last = step // epoch * epoch, {} if record is None else record.last_pick
        return np.asarray([last.get(sample_id, start) >= start for sample_id in self._selection_row_of])

    @property
    def _selection_row_of(self) -> Mapping[str, int]:
        """Id → row of the training dataset."""
        if self._selection_index is None:
            self._selection_index = {sample_id: row for row, sample_id in enumerate(ids_of(self.train_dataset))}
        return self._selection_index

    def _selection_rows(self, ids: Sequence[str]) -> list[int] | None:
        if isinstance(self.train_dataset, IterableDataset):
            return None
        return [self._selection_row_of[sample_id] for sample_id in ids]

    def _check_repeat(self, steps: int) -> None:
        if self.selection.repeat or self.selection.rounds != "step" or not self._selection_epoch:
            return
        epochs, budget = steps / self._selection_epoch, self.selection.budget
        if budget * epochs > 1 + 1e-9:
            raise BudgetError(
                f"repeat is False, but {epochs:g} epochs with a budget of {budget:g} select {budget * epochs:.3g} of "
                f"the dataset. Train for at most {math.floor(1 / budget + 1e-9)} epochs, lower the budget, or set "
                "repeat=True."
            )

    def _selection_epochs(self, steps: int) -> int:
        if self.selection.rounds == "step" or self.selection.epochs is not None:
            return self.selection.epochs or 1
        return max(1, round(self._selection_offered(steps) / len(self.train_dataset)))

    def _selection_offered(self, steps: int) -> float:
        """Candidates that so many steps take, if a pass over the selection takes the dataset."""
        places = steps * self.args.gradient_accumulation_steps * self._selection_batch_size
        if self._selection_packs:
            return places * len(self.train_dataset) / self._selection_places()
        return places * self.selection.ratio

    def _selection_places(self) -> int:
        """Sequences of ``max_length`` tokens that a pass over a packed selection fills."""
        tokens = self.selection.budget * int(self._selection_candidates().tokens.sum())
        arguments: Any = self.args
        return max(1, math.ceil(tokens / arguments.max_length))

    def _selection_budget(self, steps: int, epochs: int) -> float:
        """The share to select: less than the budget where ``max_steps`` ends before all of it was learned once."""
        budget = self.selection.budget
        if self.selection.rounds == "step":
            return budget
        share = min(1.0, self._selection_offered(steps) / (epochs * len(self.train_dataset)))
        if share < 1:
            _log.warning(
                "%d steps of this batch size hold %.3g of what a budget of %.3g selects (%d pass(es) over it), so the "
                "best %.3g of the tokens are selected instead.",
                steps,
                share,
                budget,
                epochs,
                share * budget,
            )
        return share * budget

    def _selection_fingerprint(self) -> str:
        """Digest of the training dataset's ids in their order; empty for a stream, which has none."""
        if isinstance(self.train_dataset, IterableDataset):
            return ""
        if self._selection_digest is None:
            self._selection_digest = hashlib.sha256(json.dumps([*self._selection_row_of]).encode()).hexdigest()[:16]
        return self._selection_digest

    def _selection_pool_of(self, features: Sequence[Any]) -> Pool:
        tokenizer: Any = getattr(self.processing_class, "tokenizer", self.processing_class)
        if tokenizer is None:
            return pool_of(features)
        return pool_of(features, lambda ids: tokenizer.decode(ids, skip_special_tokens=True))

    def _selection_pad_token(self) -> int | None:
        tokenizer = getattr(self.processing_class, "tokenizer", self.processing_class)
        sources = (tokenizer, self.data_collator, getattr(self.model, "config", None))
        tokens = (getattr(source, "pad_token_id", None) for source in sources)
        return next((int(token) for token in tokens if token is not None), None)

    def _check_arguments(self, arguments: Mapping[str, Any]) -> None:
        """Raise RecipeError for a keyword argument that no class behind the mixin takes."""
        classes = type(self).__mro__
        names = ["selection", "signals", "proxy_dataset", "target_dataset"]
        for cls in classes[classes.index(SelectionMixin) + 1 :]:
            if "__init__" not in vars(cls):
                continue
            parameters = inspect.signature(cls).parameters.values()
            names += [item.name for item in parameters if item.kind is item.POSITIONAL_OR_KEYWORD]
            if not any(item.kind is item.VAR_KEYWORD for item in parameters):
                break
        for name in arguments:
            if name not in names:
                fields = [item.name for item in dataclasses.fields(SelectionConfig)]
                place = f" It is a field of selection=SelectionConfig({name}=…)." if name in fields else ""
                raise RecipeError(
                    f"{type(self).__name__} has no argument '{name}'.{place or did_you_mean(name, names)} "
                    f"It takes: {', '.join(sorted(set(names)))}."
                )

    def _refuse_weights(self) -> None:
        """Raise RecipeError where the loss is no sum of token NLLs that weights could enter."""
        args: Any = self.args
        classes = type(self).__mro__
        behind = (cls for cls in classes[classes.index(SelectionMixin) + 1 :] if "compute_loss" in vars(cls))
        unsupported = {
            "label_smoothing_factor": args.label_smoothing_factor > 0,
            "compute_loss_func": self.compute_loss_func is not None,
            f"loss_type='{getattr(args, 'loss_type', '')}'": getattr(args, "loss_type", "nll") != "nll",
            "use_liger_kernel": bool(args.use_liger_kernel),
            "a compute_loss of its own": next(behind).__module__.partition(".")[0] not in ("transformers", "trl"),
        }
        for setup, is_enabled in unsupported.items():
            if is_enabled:
                raise RecipeError(
                    f"the selection gives weights, which multiply the NLL of each pick, and the trainer has {setup}. "
                    f"Leave it out, or use a selector and a dataset without weights ({WEIGHT})."
                )

    def _refuse_selection(self) -> None:
        refuse_setup(self, self.selection_shares)


def _same_text(value: Any) -> str:
    """Return a text of a value that is the same in every process: its ``repr`` without addresses in memory."""
    if isinstance(value, QualitySource):
        return value.identity()
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "from source"


_SAME_ROWS = (
    "Give every process the same rows in the same order: no shard of its own (split_dataset_by_node), and no random "
    "changes when a row is read."
)
_SAME_NUMBERS = (
    "The same examples got other scores or other choices there. Use devices of one kind and one installation, and a "
    "selector that draws on the generator it is given alone."
)


def _reads_proxy(names: Sequence[str]) -> bool:
    """Whether one of these signals compares candidates with the proxy or target items."""
    table = {**SIGNALS, **CONTEXT}
    return any({"proxy", "target"} & {*table[name].needs} for name in names)


_OWN_LOSS = (
    "the selection gives weights, and compute_loss of {name} did not apply them. Let it call super().compute_loss, or "
    f"use a selector and a dataset without weights ({WEIGHT})."
)


class SelectionTrainer(SelectionMixin, Trainer):
    """transformers' Trainer that selects what it trains on; arguments of both (see `SelectionMixin`).

    ```python
    trainer = SelectionTrainer(model, args, train_dataset=dataset, selection=SelectionConfig(selector="loss"))
    ```
    """


def _check_step(checkpoint: Path, step: int | None) -> None:
    """Raise ResumeError where a checkpoint holds the selection state of another step (older ones name none)."""
    path = checkpoint / TRAINER_STATE_NAME
    if step is None or not path.is_file():
        return
    saved = read_json(path).get("global_step")
    if saved != step:
        raise ResumeError(
            f"{checkpoint} holds the selection state of step {step} ({STATE}.json) and the training state of step "
            f"{saved}. Put back the {STATE} files that belong to it, or resume from another checkpoint."
        )
