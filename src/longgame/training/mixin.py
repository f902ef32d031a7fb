"""Selection inside transformers' Trainer and TRL's SFTTrainer.

The training dataloader becomes a clock that yields *candidates*, ``candidate_ratio`` times as many as a batch holds,
so steps, learning-rate schedule and skipping on resume stay the Trainer's own. What a step then trains on is decided
in ``get_batch_samples``, the one place that sees all micro-batches of a step and sets the loss denominator.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from longgame.data.examples import Pool
from longgame.errors import RecipeError
from longgame.seeding import generator, stream_seed
from longgame.selectors.base import Selector, build_selector
from longgame.selectors.history import History
from longgame.selectors.policy import Scorer, SelectionPolicy
from longgame.signals.base import Signals
from longgame.statefile import read_state, write_state
from longgame.training.candidates import ID, OWN_COLUMNS, Candidates, pool_of, with_ids
from longgame.training.feed import Rounds, SelectionFeed, check_plan, split_micro
from longgame.training.isolation import evaluating

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
        selector: a name (`longgame.selectors`), a `Selector`, or a `SelectionPolicy` that brings history and generator.
        selection_budget: share of the candidates' tokens that is trained on, in (0, 1].
        rounds: "step" chooses anew at every step from the step's own candidates; a number n splits the training into
            n rounds, at the start of each all examples not yet picked are scored and the round's share is chosen
            (n = 1 is one offline choice).
        candidate_ratio: candidates per place in a batch; default ⌈1 / selection_budget⌉.
        signals: (pool, names) → Signals; default `longgame.training.scoring.ModelScorer`.
        selection_epochs: passes over what a round picked; default: as many as the run makes over the dataset
            (always 1 with ``rounds="step"``).

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

    _keep_signals = False
    """Whether the policy's log keeps what the selector saw (grows with every round)."""

    def __init__(
        self,
        *args: Any,
        selector: str | Selector | SelectionPolicy = "random",
        selection_budget: float = 0.25,
        rounds: Rounds = "step",
        candidate_ratio: int | None = None,
        signals: Scorer | None = None,
        selection_epochs: int | None = None,
        **kwargs: Any,
    ) -> None:
        check_plan(rounds, selection_budget, selection_epochs or 1)
        ratio = math.ceil(round(1 / selection_budget, 9)) if candidate_ratio is None else candidate_ratio
        if ratio < 1:
            raise RecipeError(f"candidate_ratio is {ratio}; use 1 or more candidates per place in a batch.")
        _refuse_packing(kwargs.get("args", args[1] if len(args) > 1 else None))
        self.selection_budget, self.rounds, self.candidate_ratio = selection_budget, rounds, ratio
        self.selection_epochs = selection_epochs
        self._scorer = signals
        self._feed: SelectionFeed | None = None
        self._clock: Any = None
        self._whole: tuple[Pool, dict[str, int]] | None = None
        super().__init__(*args, **kwargs)
        self._refuse_setup()
        self.policy = self._policy_of(selector)
        if self.train_dataset is not None:
            self.train_dataset = self._identified(self.train_dataset)

    # What the Trainer calls, in the order in which it does

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; every call counts rounds and budget from the start (the selector's history goes on)."""
        self._feed = None
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
                batch_size=self._train_batch_size * self.candidate_ratio,
                sampler_fn=self._get_train_sampler,
                is_training=True,
            )
        finally:
            self.data_collator, self._signature_columns = collator, columns
        self._clock = loader
        return loader

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._open_feed().load_state_dict(read_state(checkpoint, STATE))

    def get_batch_samples(
        self, epoch_iterator: Iterator[Candidates], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Choose what this step learns, and give it in exactly ``num_batches`` micro-batches.

        The selector sees the candidates of all micro-batches together: accumulation is memory, not mathematics.
        """
        ticks = list(itertools.islice(epoch_iterator, num_batches))
        if not ticks:
            return [], None
        feed = self._open_feed()
        step = int(self.state.global_step)
        batches = self._collated(feed, step, [row for tick in ticks for row in tick.rows], len(ticks))
        return batches, self._get_num_items_in_batch(batches, device)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Before the rest: pushing to the hub and deleting old checkpoints happen inside super().
        if not self.args.save_only_model:
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            write_state(folder, STATE, self._open_feed().state_dict())
        super()._save_checkpoint(model, trial)

    # Selection

    def _collated(self, feed: SelectionFeed, step: int, rows: Sequence[Any], parts: int) -> list[Any]:
        """Micro-batches of this step."""
        if self.rounds == "step":
            offered = {str(row[ID]): row for row in rows}
            ids = feed.batch(step, lambda _: pool_of(rows, self._decode()))
            features = [offered[sample_id] for sample_id in ids]
        else:
            ids = feed.batch(step, self._rest)
            _, place = self._whole_pool()
            features = self._fetch([place[sample_id] for sample_id in ids])
        lengths = [len(feature["input_ids"]) for feature in features]
        split = split_micro(lengths, parts)
        return [self._collate([features[i] for i in part] or features[:1], masked=not part) for part in split]

    def _collate(self, features: list[dict[str, Any]], masked: bool) -> Any:
        """Collate; ``masked`` makes a micro-batch that adds nothing (a step with fewer picks than micro-batches)."""
        batch = self.data_collator([{k: v for k, v in row.items() if k not in OWN_COLUMNS} for row in features])
        if masked:
            batch["labels"] = torch.full_like(batch["labels"], -100)
        return batch

    def _open_feed(self) -> SelectionFeed:
        if self._feed is None:
            steps = int(self.state.max_steps)
            self._feed = SelectionFeed(
                self.policy,
                self._score,
                rounds=self.rounds,
                budget=self.selection_budget,
                steps=steps,
                epochs=self._epochs(steps),
                seed=stream_seed(self._seed(), "selection", "deal"),
            )
        return self._feed

    def _epochs(self, steps: int) -> int:
        if self.rounds == "step" or self.selection_epochs is not None:
            return self.selection_epochs or 1
        offered = steps * self.args.gradient_accumulation_steps * self._train_batch_size * self.candidate_ratio
        return max(1, round(offered / len(self.train_dataset)))

    def _score(self, pool: Pool, names: Sequence[str]) -> Signals:
        if self.policy.rounds and not self._keep_signals:
            last = self.policy.rounds[-1]
            self.policy.rounds[-1] = dataclasses.replace(last, signals=Signals(last.signals.ids, {}))
        if not names:
            return Signals(pool.ids, {})
        if self._scorer is None:
            from longgame.training.scoring import ModelScorer

            self._scorer = ModelScorer(self.model, pad_token_id=self._pad_token_id(), seed=self._seed())
        with evaluating(self.model):
            return self._scorer(pool, names)

    def _fetch(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Rows of the training dataset as the clock gives them (columns removed alike)."""
        return self._clock.collate_fn([self._clock.dataset[row] for row in rows]).rows

    def _whole_pool(self) -> tuple[Pool, dict[str, int]]:
        """The whole dataset as a pool, and the row of every id; made once."""
        if self._whole is None:
            pool = pool_of(self._fetch(range(len(self.train_dataset))), self._decode())
            self._whole = (pool, dict(pool.index))
        return self._whole

    def _rest(self, taken: Collection[str]) -> Pool:
        pool, _ = self._whole_pool()
        return pool.take([row for row, sample_id in enumerate(pool.ids) if sample_id not in taken])

    # Set-up

    def _identified(self, dataset: Any) -> Any:
        return with_ids(dataset, self.rounds)

    def _seed(self) -> int:
        return int(self.args.seed if self.args.data_seed is None else self.args.data_seed)

    def _policy_of(self, selector: str | Selector | SelectionPolicy) -> SelectionPolicy:
        if isinstance(selector, SelectionPolicy):
            return selector
        if isinstance(selector, str):
            selector = build_selector(selector)
        if not isinstance(selector, Selector):
            raise RecipeError(
                f"selector is a {type(selector).__name__}; give a name, a Selector instance or a SelectionPolicy."
            )
        history = History(seed=stream_seed(self._seed(), "selection", "history"))
        return SelectionPolicy(selector, history, generator(self._seed(), "selection", "select"))

    def _tokenizer(self) -> Any:
        held = self.processing_class
        return getattr(held, "tokenizer", held)

    def _decode(self) -> Any:
        tokenizer = self._tokenizer()
        return None if tokenizer is None else lambda ids: tokenizer.decode(ids, skip_special_tokens=True)

    def _pad_token_id(self) -> int | None:
        holders = (self._tokenizer(), self.data_collator, getattr(self.model, "config", None))
        found = (getattr(holder, "pad_token_id", None) for holder in holders)
        return next((int(token) for token in found if token is not None), None)

    def _refuse_setup(self) -> None:
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
        if self.rounds != "step" and isinstance(self.train_dataset, IterableDataset):
            self._identified(self.train_dataset)


def _refuse_packing(arguments: Any) -> None:
    for name in ("packing", "padding_free"):
        if getattr(arguments, name, False):
            raise RecipeError(
                f"{name}=True joins examples into one row, and their ids are lost before anything can be selected. "
                f"Set {name}=False."
            )
