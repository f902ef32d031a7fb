"""What longgame relies on inside transformers' Trainer, accelerate and TRL, and how it cleans up after them.

Private members are listed here with their reason, and `tests/training/test_compat.py` holds their signatures. The upper
bound on transformers in pyproject.toml ends where they were last checked.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from torch import nn
from torch.utils.data import DataLoader

TRAINER_METHODS: Mapping[str, tuple[str, ...]] = {
    # A loader of candidates needs the Trainer's own seeding and resuming, but another batch size and collator.
    "_get_dataloader": ("dataset", "description", "batch_size", "sampler_fn", "is_training"),
    "_get_train_sampler": ("train_dataset",),
    "_set_signature_columns_if_needed": (),
    # The one place that sees all micro-batches of a step; its second result is the denominator of the loss.
    "get_batch_samples": ("epoch_iterator", "num_batches", "device"),
    "_get_num_items_in_batch": ("batch_samples", "device"),
    # State of the selection goes into every checkpoint; at _load_rng_state it would come too late.
    "_save_checkpoint": ("model", "trial"),
    "_get_output_dir": ("trial",),
    "_load_optimizer_and_scheduler": ("checkpoint",),
    # The audit stops at a gradient that is not finite, before the optimizer spoils the weights.
    "_clip_grad_norm": ("model",),
    "training_step": ("model", "inputs", "num_items_in_batch"),
    "compute_loss": ("model", "inputs", "return_outputs", "num_items_in_batch"),
    "create_scheduler": ("num_training_steps", "optimizer"),
    "floating_point_ops": ("inputs",),
    "log": ("logs", "start_time"),
}
"""Methods of Trainer that are called or overridden, and the parameters that longgame relies on."""

TRAINER_ATTRIBUTES: tuple[str, ...] = (
    "_signature_columns",  # columns that reach the collator: those of the selection are added
    "_train_batch_size",  # places in a batch, from which the number of candidates follows
    "_created_lr_scheduler",  # set where create_scheduler is overridden, as Trainer does
)
"""Private attributes of a Trainer that are read or set."""

SFT_METHODS: Mapping[str, tuple[str, ...]] = {
    # The proxy dataset is tokenized as SFTTrainer tokenizes the training dataset.
    "_prepare_dataset": ("dataset", "processing_class", "args", "packing", "formatting_func", "dataset_name"),
}
"""Methods of TRL's SFTTrainer, likewise."""

SFT_ATTRIBUTES: tuple[str, ...] = ("_formatting_func",)
"""Private attributes of an SFTTrainer that are read."""


@contextmanager
def undivided(accelerator: Any) -> Iterator[None]:
    """Within the block, every process that prepares a data loader gets all of its batches, as one process would."""
    if accelerator.num_processes == 1:
        yield
        return

    def prepare(loader: DataLoader, *_arguments: Any, **_options: Any) -> DataLoader:
        prepared = prepare_data_loader(
            loader,
            accelerator.device,
            num_processes=1,
            process_index=0,
            split_batches=accelerator.split_batches,
            put_on_device=accelerator.device_placement,
            rng_types=accelerator.rng_types.copy(),
            dispatch_batches=False,
            even_batches=accelerator.even_batches,
            use_seedable_sampler=accelerator.use_seedable_sampler,
            data_seed=accelerator.dataloader_config.data_seed,
            non_blocking=accelerator.non_blocking,
            use_stateful_dataloader=accelerator.use_stateful_dataloader,
        )
        accelerator._dataloaders.append(prepared)
        return prepared

    vars(accelerator)["prepare_data_loader"] = prepare
    try:
        yield
    finally:
        del vars(accelerator)["prepare_data_loader"]


@contextmanager
def global_rng_restored() -> Iterator[None]:
    """Restore Python's, NumPy's and torch's global random states when the block ends.

    transformers' Trainer seeds all of them when it is made; longgame never lets that show outside.
    """
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 (restored, never drawn from)
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002


@contextmanager
def model_untouched(model: nn.Module) -> Iterator[None]:
    """Undo, when the block ends, what Trainer and accelerate put on the model besides new weights.

    Instance attributes of every module are restored (accelerate marks the model as prepared and, under mixed precision,
    wraps ``forward`` once more for every Trainer), and so are hooks, train/eval flags and ``config.use_cache``.
    Gradients are dropped.
    """
    modules = list(model.modules())
    attributes = [dict(vars(module)) for module in modules]
    hooks = [{key: dict(value) for key, value in before.items() if key.endswith("_hooks")} for before in attributes]
    config: Any = getattr(model, "config", None)
    use_cache = getattr(config, "use_cache", None)
    try:
        yield
    finally:
        for module, before, module_hooks in zip(modules, attributes, hooks, strict=True):
            now = vars(module)
            for name in [name for name in now if name not in before]:
                del now[name]
            now.update(before)
            for name, entries in module_hooks.items():
                if len(now[name]) != len(entries):
                    now[name].clear()
                    now[name].update(entries)
        if use_cache is not None:
            config.use_cache = use_cache
        model.zero_grad(set_to_none=True)
