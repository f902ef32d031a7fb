"""Models whose weights FSDP2 divides between processes: how they are run, and where their weights are whole.

A weight is whole only while its own unit runs, and units are entered from the root. So the whole model runs, and what
needs the output head's weights is computed in a hook of the head. Every pass is a collective operation: all processes
make the same number of passes, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn

from longgame.models.head import unwrap, without_autocast

_T = TypeVar("_T")


def shards(model: nn.Module) -> list[Any]:
    """Return the units of FSDP2 in a model; none where every process has the whole model."""
    if not (dist.is_available() and dist.is_initialized()):
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def whole(weight: Tensor) -> Tensor:
    """Return a tensor that may be divided between the processes, of which then all call this."""
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight


def reshard(model: nn.Module) -> None:
    """Leave every process its own part of the weights alone.

    FSDP2 leaves the last unit whole after a pass without gradients, and the model's parameters then are not those that
    the optimizer trains.
    """
    for unit in shards(model):
        unit.reshard()


@contextmanager
def passes(model: nn.Module) -> Iterator[None]:
    """Inside, passes without training through weights that may be divided."""
    reshard(model)
    try:
        yield
    finally:
        reshard(model)


def run_to_head(
    model: nn.Module, input_ids: Int[Tensor, "b T"], measure: Callable[[Float[Tensor, "b T d"]], _T]
) -> tuple[_T, Float[Tensor, "b 1 V"]]:
    """Run the model, and ``measure`` its last hidden states where the output head's weights are whole.

    Returns:
        What ``measure`` returned, and the model's own logits at the last position.
    """
    results: list[_T] = []

    def at_head(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        results.append(measure(hidden[:, -input_ids.shape[1] :]))  # prompt learning puts its prompt before them
        return (hidden[:, -1:], *args[1:])

    head: Any = unwrap(model).get_output_embeddings()
    handle = head.register_forward_pre_hook(at_head)
    try:
        with without_autocast(model):
            logits = model(input_ids=input_ids, use_cache=False).logits
    finally:
        handle.remove()
    return results[0], logits
