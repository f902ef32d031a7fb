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
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from longgame.data.examples import Pool
from longgame.errors import RecipeError, ResumeError, did_you_mean
from longgame.models.head import evaluating
from longgame.seeding import stream_seed
from longgame.selection.policy import ComputeSignals
from longgame.signals.base import CONTEXT, SIGNALS, Signals
from longgame.signals.gradients import AdamPreconditioner
from longgame.signals.source import SignalSource
from longgame.storage import read_json, read_state, write_state
from longgame.training.candidates import SELECTION_COLUMNS, Candidates, ids_of, pool_of, with_ids
from longgame.training.config import AnySelector, SelectionConfig
from longgame.training.feed import SelectionFeed, split_micro

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object

_log = logging.getLogger(__name__)

STATE = "selection"
"""Name of the selection state in a checkpoint: ``selection.json`` and ``selection.safetensors``."""

ROW = "row"
"""Row-aligned key of `Pool.info`: the row of the training dataset."""


class SelectionMixin(_Base):
    """Put before a Trainer class: ``class MyTrainer(SelectionMixin, Trainer)``.

    Examples are known by a ``sample_id`` column; a dataset without one gets ids by a hash of tokens and labels.
    Columns ``skill`` and ``quality`` reach the selector where the dataset has them. Budgets count prompt + response
    tokens; what a round leaves over goes to the next. Selection draws on its own generator, never on a global one,
    and its state is in every checkpoint: on the same machine, a resumed training selects and trains as an uninterrupted
    one.

    Args:
        selection: a `SelectionConfig`, or in short a selector (name, class or instance) or a mapping of the config's
            fields.
        signals: (pool, names) → Signals; default: a `SignalSource` on the model.
        proxy_dataset: examples that stand for the future, in the form of the training dataset; for selectors that
            compare with them (signals that need ``proxy``), such as ``lhas``. They are never trained on.
        target_dataset: the same items under the name that targeted selection has for them: examples of the task to
            select for. Give one of the two.

    Raises:
        RecipeError: a wrong value, a misspelt argument, or a set-up that selection does not go with: packing or
            padding-free batches, several processes or GPUs, FSDP, DeepSpeed, ``auto_find_batch_size``,
            ``batch_rebalance``.
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
        _refuse_packing(kwargs.get("args", args[1] if len(args) > 1 else None))
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
        self._selection_digest: str | None = None
        super().__init__(*args, **kwargs)
        self._refuse_selection()
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
        self._selection_feed = None
        collator, columns = self.data_collator, self._signature_columns
        self._set_signature_columns_if_needed()
        self.data_collator = Candidates
        self._signature_columns = [*dict.fromkeys([*(self._signature_columns or ()), *SELECTION_COLUMNS])]
        try:
            self._selection_loader = self._get_dataloader(
                dataset=self.train_dataset,
                description="Training",
                batch_size=self._train_batch_size * self.selection.ratio,
                sampler_fn=self._get_train_sampler,
                is_training=True,
            )
        finally:
            self.data_collator, self._signature_columns = collator, columns
        return self._selection_loader

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
            if isinstance(self.selection_signals, SignalSource):
                self.selection_signals.load_state_dict(state["signals"])

    def get_batch_samples(
        self, epoch_iterator: Iterator[Candidates], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Select what this step trains on, and return it in exactly ``num_batches`` micro-batches.

        The selector sees the candidates of all micro-batches together, so accumulation does not change what it selects.
        """
        ticks = list(itertools.islice(epoch_iterator, num_batches))
        if not ticks:
            return [], None
        batches = self._selection_batches([row for tick in ticks for row in tick.rows], len(ticks))
        return batches, self._get_num_items_in_batch(batches, device)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the statistics of selection beside the loss (`SelectionConfig.log_statistics`)."""
        if self.selection.log_statistics and "loss" in logs and self._selection_feed is not None:
            feed = self._selection_feed
            counts = {"selected_tokens": feed.spent, "candidate_tokens": feed.scored}
            logs = {**logs, **counts, "selection_seconds": round(self.selection_seconds, 3)}
        super().log(logs, start_time)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Before the rest: pushing to the hub and deleting old checkpoints happen inside super().
        if not self.args.save_only_model:
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            source = self.selection_signals
            signals = source.state_dict() if isinstance(source, SignalSource) else {}
            step = int(self.state.global_step)
            state = {"feed": self.selection_feed.state_dict(), "signals": signals, "step": step}
            write_state(folder, STATE, {**state, "dataset": self._selection_fingerprint()})
        super()._save_checkpoint(model, trial)

    # Selection

    @property
    def selection_feed(self) -> SelectionFeed:
        """The feed of this training: tokens selected, scored and trained on so far."""
        if self._selection_feed is None:
            steps, selection = int(self.state.max_steps), self.selection
            pool = None if selection.rounds == "step" else self._selection_candidates()
            epochs, seed = self._selection_epochs(steps), stream_seed(self._selection_seed(), "selection", "deal")
            budget = self._selection_budget(steps, epochs)
            selection = dataclasses.replace(selection, epochs=epochs, seed=seed, budget=budget)
            if self._selection_makes_signals and self.selection_policy.required:
                self._selection_begin_signals()
            self._selection_feed = SelectionFeed(self.selection_policy, self._selection_score, selection, steps, pool)
        return self._selection_feed

    def _selection_batches(self, candidates: Sequence[Any], parts: int) -> list[Any]:
        """Return the micro-batches of this step; ``candidates`` are what the clock offers to it."""
        started = time.perf_counter()
        feed, step = self.selection_feed, int(self.state.global_step)
        pool, rows = feed.batch(step, self._selection_offer(candidates) if self.selection.rounds == "step" else None)
        self.selection_picks = pool, rows
        self.selection_seconds += time.perf_counter() - started
        split = split_micro(pool.tokens[rows].tolist(), parts)
        batches = [self._selection_collate(pool, [rows[place] for place in part] or rows[:1]) for part in split]
        for part, batch in zip(split, batches, strict=True):
            if not part:  # fewer picks than micro-batches: a pick is repeated without labels and adds nothing
                batch["labels"] = torch.full_like(batch["labels"], -100)
        return batches

    def _selection_offer(self, candidates: Sequence[Any]) -> Pool:
        """Return the candidates of a step as a pool, row by row."""
        self._selection_features = candidates
        return self._selection_pool_of(candidates)

    def _selection_candidates(self) -> Pool:
        """Return the whole dataset as a pool; made once."""
        if self._selection_pool is None:
            pool = self._selection_pool_of(self._selection_fetch(range(len(self.train_dataset))))
            self._selection_pool = dataclasses.replace(pool, info={**pool.info, ROW: np.arange(len(pool))})
        return self._selection_pool

    def _selection_collate(self, pool: Pool, rows: Sequence[int]) -> Any:
        """Return these rows of the pool as a batch."""
        if ROW in pool.info:
            features = self._selection_fetch(pool.info[ROW][rows].tolist())
        else:
            features = [self._selection_features[row] for row in rows]
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
            self.selection_signals = source = SignalSource.of_model(
                self.model,
                pad_token_id=self._selection_pad_token(),
                seed=self._selection_seed(),
                candidates=None if stream else lambda: [self._selection_candidates()],
                proxy=None if proxy is None else lambda: proxy,
                preconditioner=self._selection_preconditioner,
                proxy_refresh=self.selection.proxy_refresh_steps,
                clusters=self.selection.clusters,
            )
        if isinstance(source, SignalSource):
            source.begin_stage()
            if self.state.global_step == 0:  # a resumed training finds the base's signals in its checkpoint
                with evaluating(self.model.modules()):
                    source.prepare(self.selection_policy.required)
        return source

    def _selection_preconditioner(self) -> AdamPreconditioner | None:
        """Adam's moments as they are now; None before its first step, or where another optimizer trains."""
        optimizer: Any = self.optimizer
        if optimizer is None or not any("exp_avg_sq" in state for state in optimizer.state.values()):
            return None
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
        with evaluating(self.model.modules()):
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

    def _selection_epochs(self, steps: int) -> int:
        if self.selection.rounds == "step" or self.selection.epochs is not None:
            return self.selection.epochs or 1
        return max(1, round(self._selection_offered(steps) / len(self.train_dataset)))

    def _selection_offered(self, steps: int) -> int:
        """Candidates that the batches of so many steps hold."""
        return steps * self.args.gradient_accumulation_steps * self._train_batch_size * self.selection.ratio

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
            self._selection_digest = hashlib.sha256(json.dumps(ids_of(self.train_dataset)).encode()).hexdigest()[:16]
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

    def _refuse_selection(self) -> None:
        args = self.args
        unsupported = {
            "several processes": args.world_size > 1,
            f"{args.n_gpu} GPUs in one process (nn.DataParallel)": args.n_gpu > 1,
            "FSDP": self.is_fsdp_enabled or self.is_fsdp_xla_enabled,
            "DeepSpeed": self.is_deepspeed_enabled,
        }
        enabled = [setup for setup, is_enabled in unsupported.items() if is_enabled]
        if enabled:
            raise RecipeError(
                f"selection does not run with {enabled[0]}: every rank would score and select on its own. "
                "Use one process and one GPU (CUDA_VISIBLE_DEVICES=0)."
            )
        if args.auto_find_batch_size:
            raise RecipeError("auto_find_batch_size starts training over and would select twice; set a batch size.")
        if args.train_sampling_strategy == "batch_rebalance":
            raise RecipeError("train_sampling_strategy='batch_rebalance' builds its own batches; use another strategy.")


def _reads_proxy(names: Sequence[str]) -> bool:
    """Whether one of these signals compares candidates with the proxy items."""
    table = {**SIGNALS, **CONTEXT}
    return any("proxy" in table[name].needs for name in names)


def _refuse_packing(arguments: Any) -> None:
    for name in ("packing", "padding_free"):
        if getattr(arguments, name, False):
            raise RecipeError(
                f"{name}=True joins examples into one row, and their ids are lost before anything can be selected. "
                f"Set {name}=False."
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
