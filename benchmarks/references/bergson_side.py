"""Gradient features with bergson, in this process and in memory.

bergson (EleutherAI, MIT licence) hooks the linear modules of one batched forward and backward pass, as longgame does,
and stores per module the p × p matrix P_out G P_inᵀ of the gradient G. Its features are those of all modules side by
side, so their number follows from the model and p: 2 · 7 · 30 · p² for LoRA on the linear layers of SmolLM2-135M
(p = 4: 6,720; p = 16: 107,520). "The same projection size" therefore means: `feature_size` numbers on both sides.

It is no dependency; `available` says whether it is there, `HOW_TO_INSTALL` how it gets there.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import random
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from jaxtyping import Float
from peft import PeftModel, get_peft_model_state_dict

from longgame.data.examples import Pool
from longgame.errors import ModelError

HOW_TO_INSTALL = (
    "pip install --no-deps 'bergson==2.5.*' && pip install --no-deps "
    "jaxtyping natsort petname simple-parsing ml_dtypes torchopt optree docstring-parser"
)
"""Without its dependencies' pins, which would replace the installed torch."""


def available() -> bool:
    """Whether bergson is installed."""
    return importlib.util.find_spec("bergson") is not None


def factors(model: PeftModel) -> set[str]:
    """Names by which bergson knows the LoRA factors, in the module below the PeftModel."""
    names = get_peft_model_state_dict(model)
    return {f"{name.removesuffix('.weight')}.default".removeprefix("base_model.") for name in names}


def feature_size(model: PeftModel, projection_dim: int) -> int:
    """Numbers in an example's features."""
    return len(factors(model)) * projection_dim**2


def bergson_features(
    model: PeftModel, pool: Pool, *, projection_dim: int | None, max_batch_tokens: int = 1024
) -> Float[np.ndarray, "n features"]:
    """Return the projected LoRA gradients of the mean response NLL, module after module.

    The library does everything: batches by its own token budget, forward and backward pass, projections, assembly. The
    model is prepared as its command line does, with the input embeddings as the only weights that require a gradient;
    that state, the module-level random generator and the logging set-up are put back.

    Args:
        model: PEFT LoRA model in evaluation mode, with one adapter called ``default``.
        pool: the examples.
        projection_dim: p, or None for the gradients themselves (memory: n · P floats).
        max_batch_tokens: padded tokens of a batch, at least the longest example. On a CPU 512 and 1024 are fastest, and
            2048 (bergson's own default) and more cost up to twice that: it forms all logits of a batch.

    Raises:
        ModelError: an adapter of another name.
    """
    if list(model.peft_config) != ["default"]:
        raise ModelError(f"bergson_features needs one adapter called 'default', not {list(model.peft_config)}.")
    with _quietly():
        from bergson.collector.collector import CollectorComputer
        from bergson.collector.in_memory_collector import InMemoryCollector
        from bergson.config import IndexConfig
        from bergson.data import allocate_batches
        from bergson.gradients import GradientProcessor
    with tempfile.TemporaryDirectory() as folder, _quietly(), _embeddings_only(model):
        config = IndexConfig(
            run_path=str(Path(folder) / "run"),
            projection_dim=projection_dim or 0,
            token_batch_size=max_batch_tokens,
            loss_reduction="mean",
        )
        config.partial_run_path.mkdir()
        data = _dataset(pool)
        collector = InMemoryCollector(
            model=model.base_model,
            data=data,
            cfg=config,
            processor=GradientProcessor(projection_dim=projection_dim),
            target_modules=factors(model),
        )
        batches = allocate_batches([len(ids) for ids in data["input_ids"]], max_batch_tokens)
        CollectorComputer(model, data, collector=collector, batches=batches, cfg=config).run_with_collector_hooks()
        return collector.builder.grad_buffer.astype(np.float32, copy=False)


def _dataset(pool: Pool) -> Dataset:
    """Token ids, and labels that leave out the prompt."""
    ids = [np.asarray(part).tolist() for part in pool.input_ids]
    labels = [[-100] * int(n) + part[int(n) :] for n, part in zip(pool.prompt_tokens, ids, strict=True)]
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


@contextmanager
def _embeddings_only(model: PeftModel) -> Iterator[None]:
    """Inside, the input embeddings are all that requires a gradient."""
    before = [(weight, weight.requires_grad) for weight in model.parameters()]
    try:
        model.requires_grad_(False)
        model.get_input_embeddings().requires_grad_(True)
        yield
    finally:
        for weight, required in before:
            weight.requires_grad_(required)


@contextmanager
def _quietly() -> Iterator[None]:
    """Inside, no progress bar and no log lines; bergson's own set-up of the root logger and random seed is undone."""
    root, state = logging.getLogger(), random.getstate()
    handlers, level, disabled = [*root.handlers], root.level, root.manager.disable
    try:
        logging.disable(logging.INFO)
        with redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(state)
        logging.disable(disabled)
        root.handlers[:] = handlers
        root.setLevel(level)


def version() -> str:
    """Return bergson's version (for the report)."""
    import bergson

    features: Any = getattr(bergson, "__version__", "unknown")
    return str(features)
