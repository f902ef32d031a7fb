"""Training that leaves nothing behind: global random states, patches on the model, train/eval flags."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import nn


@contextmanager
def global_rng_kept() -> Iterator[None]:
    """Put Python's, NumPy's and torch's global random states back when the block ends.

    transformers' Trainer seeds all of them when it is made; longgame never lets that show outside.
    """
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 (kept, never drawn from)
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002


def shorten_walks(model: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
    """Spare a small model the walks over all its modules that the Trainer makes at every step.

    ``train()`` returns at once where the model already is in that mode, and ``zero_grad()`` visits ``parameters`` only.
    Both are methods put on this instance (a copy of the model gets its own); `model_untouched` takes them off.
    """
    model.train()

    def train(self: nn.Module, mode: bool = True) -> nn.Module:
        return self if self.training == mode else type(self).train(self, mode)

    def zero_grad(self: nn.Module, set_to_none: bool = True) -> None:
        for parameter in vars(self)["_learned_here"]:
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()

    vars(model).update(
        _learned_here=list(parameters), train=MethodType(train, model), zero_grad=MethodType(zero_grad, model)
    )


@contextmanager
def model_untouched(model: nn.Module) -> Iterator[None]:
    """Undo, when the block ends, what Trainer and accelerate put on the model besides new weights.

    Kept are instance attributes of every module (accelerate marks the model as prepared and, under mixed precision,
    wraps ``forward`` once more for every Trainer), hooks, train/eval flags, and ``config.use_cache``. Gradients are
    dropped.
    """
    modules = list(model.modules())
    attributes = [dict(vars(module)) for module in modules]
    hooks = [{key: dict(value) for key, value in held.items() if key.endswith("_hooks")} for held in attributes]
    config: Any = getattr(model, "config", None)
    use_cache = getattr(config, "use_cache", None)
    try:
        yield
    finally:
        for module, held, hook in zip(modules, attributes, hooks, strict=True):
            now = vars(module)
            for name in [name for name in now if name not in held]:
                del now[name]
            now.update(held)
            for name, entries in hook.items():
                if len(now[name]) != len(entries):
                    now[name].clear()
                    now[name].update(entries)
        if use_cache is not None:
            config.use_cache = use_cache
        model.zero_grad(set_to_none=True)
