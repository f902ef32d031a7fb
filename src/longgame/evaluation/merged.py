"""Plain LoRA folded into its base weights for the time of a measurement (a third of the matrix products is enough)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from peft.tuners.lora import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

_LARGEST = 2**28
"""Weights of all adapted layers together above which nothing is folded: the folded copies take as much memory again."""


@contextmanager
def folded_adapters(model: nn.Module) -> Iterator[bool]:
    """Inside, every adapted layer multiplies once, by W + s·B·A; outside, its weights are the very tensors they were.

    Only where that changes nothing but rounding in float32: plain LoRA on `torch.nn.Linear`, active, not merged by
    anyone else, its weights shared with no other module. Any other model (bfloat16, quantised, DoRA, several adapter
    kinds, very large) runs as it is. PEFT's own merge and unmerge would leave rounding errors in the base weights, so
    the original tensors are put back instead.

    Yields:
        Whether the adapters were folded.
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    plain = [cast(Linear, layer) for layer in layers if isinstance(layer, Linear) and _foldable(layer)]
    weights = [_base(layer).weight for layer in plain]
    shared = len({id(weight) for weight in weights}) < len(weights) or any(
        module.weight is weight for module in model.modules() if isinstance(module, nn.Embedding) for weight in weights
    )
    if not plain or shared or len(plain) < len(layers) or sum(weight.numel() for weight in weights) > _LARGEST:
        yield False
        return
    originals = [weight.data for weight in weights]
    try:
        with torch.no_grad():
            for layer, weight in zip(plain, weights, strict=True):
                for name in _names(layer):
                    weight.data = weight.data + layer.get_delta_weight(name)
                    layer.merged_adapters.append(name)
        yield True
    finally:
        for layer, weight, original in zip(plain, weights, originals, strict=True):
            weight.data = original
            layer.merged_adapters.clear()


def _base(layer: Linear) -> nn.Linear:
    return cast(nn.Linear, layer.get_base_layer())


def _names(layer: Linear) -> list[str]:
    """Adapters that the layer applies."""
    return [name for name in layer.active_adapters if name in layer.lora_A]


def _foldable(layer: Linear) -> bool:
    base, names = _base(layer), _names(layer)
    return (
        type(base) is nn.Linear
        and base.weight.dtype == torch.float32
        and bool(names)
        and not layer.merged
        and not layer.disable_adapters
        and not any(name in layer.lora_variant or layer.lora_bias[name] for name in names)
        and all(cast(nn.Linear, layer.lora_B[name]).weight.dtype == torch.float32 for name in names)
    )
