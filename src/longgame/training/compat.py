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
from transformers import TrainingArguments

from longgame.errors import PluginError, RecipeError
from longgame.signals.gradients import Moments
from longgame.training.config import SelectionConfig

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

SFT_ATTRIBUTES: tuple[str, ...] = (
    "_formatting_func",
    "_metrics",  # micro-batches without picks are taken out of the averages
    "_total_train_tokens",  # … and of the count
)
"""Private attributes of an SFTTrainer that are read or set."""


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


# Set-ups that selection does not go with

_DIVIDED = {
    "FSDP1": "it flattens weights, so no gradient of a layer is left. Set fsdp_config={'version': 2}",
    "FSDP on XLA": "it divides weights in the compiler. Use FSDP2 (fsdp_config={'version': 2}) on GPUs",
    "DeepSpeed ZeRO-3": "it divides weights, and scoring needs them whole. Use ZeRO-1, ZeRO-2 or FSDP2",
    "tensor, context or sequence parallelism": "it divides weights or sequences, and scoring needs them whole. Use "
    "several processes with a whole model each, or FSDP2",
}


def refuse_parallel(args: TrainingArguments, shares: bool = True) -> None:
    """Raise RecipeError where a training runs on several GPUs in one process.

    Args:
        shares: whether several processes may train together.
    """
    if args.n_gpu > 1:
        raise RecipeError(
            f"selection does not run on {args.n_gpu} GPUs in one process (nn.DataParallel), which copies the model at "
            f"every step. Start a process for each (torchrun --nproc_per_node {args.n_gpu}), or use one GPU "
            "(CUDA_VISIBLE_DEVICES=0)."
        )
    if args.world_size > 1 and not shares:
        raise RecipeError(
            f"a trial of an audit trains in one process, and there are {args.world_size}. Start longgame audit without "
            "torchrun or accelerate launch; its trials run in workers of their own."
        )


def refuse_setup(trainer: Any, shares: bool) -> None:
    """Raise RecipeError where a Trainer is set up in a way that selection does not go with.

    Args:
        trainer: after its construction.
        shares: whether several processes may train together.
    """
    args = trainer.args
    refuse_parallel(args, shares)
    divided = {
        "FSDP1": trainer.is_fsdp_enabled and trainer.accelerator.state.fsdp_plugin.fsdp_version == 1,
        "FSDP on XLA": bool(trainer.is_fsdp_xla_enabled),
        "DeepSpeed ZeRO-3": trainer.is_deepspeed_enabled and zero_stage(trainer.accelerator) == 3,
        "tensor, context or sequence parallelism": max(
            trainer.get_tp_size(), trainer.get_cp_size(), trainer.get_sp_size()
        )
        > 1,
    }
    for setup, is_enabled in divided.items():
        if is_enabled:
            raise RecipeError(f"selection does not run with {setup}: {_DIVIDED[setup]}.")
    if args.world_size > 1 and not args.average_tokens_across_devices:
        raise RecipeError(
            "average_tokens_across_devices is False, so each process would weigh its own picks by its own tokens. "
            "Set it to True, or use one process."
        )
    if args.auto_find_batch_size:
        raise RecipeError("auto_find_batch_size starts training over and would select twice; set a batch size.")
    if args.train_sampling_strategy == "batch_rebalance":
        raise RecipeError("train_sampling_strategy='batch_rebalance' builds its own batches; use another strategy.")


def refuse_packing(arguments: Any, selection: SelectionConfig) -> None:
    """Raise RecipeError where packing would select packs, or cut examples that were selected."""
    reason = None
    if selection.rounds == "step":
        reason = "joins what a round selected, and rounds='step' selects anew at every step. Set rounds=1 or more, or"
    elif arguments.packing_strategy != "bfd":
        reason = f"with packing_strategy='{arguments.packing_strategy}' cuts examples. Use 'bfd', or"
    elif arguments.max_length is None:
        reason = "needs max_length, the tokens of a packed sequence. Set it, or"
    elif selection.budget_of != "tokens":
        reason = f"needs a budget of tokens, and budget_of is '{selection.budget_of}'. Use budget_of='tokens', or"
    if reason is not None:
        raise RecipeError(f"packing=True {reason} set packing=False.")


# Several processes


def zero_stage(accelerator: Any) -> int:
    """The stage of DeepSpeed's ZeRO that a training runs under."""
    return int(accelerator.state.deepspeed_plugin.hf_ds_config.get_value("zero_optimization.stage", 0))


def gathered_moments(optimizer: Any, model: nn.Module) -> dict[str, Moments]:
    """Return Adam's moments of every trainable parameter, which DeepSpeed's ZeRO-1 and 2 divide between processes.

    All processes call it.

    Args:
        optimizer: accelerate's wrapper around DeepSpeed's optimizer, after at least one step.

    Raises:
        PluginError: another optimizer than Adam or AdamW, or groups of parameters with other β or ε.
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    groups = {(*map(float, group.get("betas", ())), float(group["eps"])) for group in optimizer.param_groups}
    steps = {int(state["step"]) for state in optimizer.state.values() if "step" in state}
    if len(groups) != 1 or len(steps) != 1 or len(next(iter(groups))) != 3:
        raise PluginError(
            f"Adam-aware gradients under DeepSpeed need one β₁, β₂, ε and step for all parameters, and the optimizer "
            f"has {sorted(groups)} at the steps {sorted(steps)}. Train with adamw_torch, or use grad_sketch."
        )
    (beta1, beta2, eps), step = groups.pop(), steps.pop()
    moments = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            first, second = (safe_get_full_optimizer_state(weight, key) for key in ("exp_avg", "exp_avg_sq"))
            moments[name] = Moments(first, second, (beta1, beta2), eps, step)
    return moments


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
