"""A leaner way through PEFT's LoRA layers, for as long as signals are computed.

PEFT runs a LoRA layer as two thin products, a scaling and an addition, each over all tokens, and autograd walks all of
them back. On small models these passes over memory cost as much as the layer itself. Here y = x (W + s·BA)ᵀ is one
product with a weight merged for the moment (not in place: W stays as it is), and the backward pass reports the factors'
(δ, x) by itself. The numbers agree to float32 rounding. Whatever is not plain float32 LoRA on ``nn.Linear`` keeps
PEFT's own forward: merging into bfloat16 or quantised weights would round the adapter away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from longgame.signals.adapters import Recording

Layers = Mapping[str, LoraLinear]


def plain_layers(named: Mapping[str, nn.Module]) -> Layers:
    """Return those of a causal LM's modules (by name) that can run fused; none of them under autocast."""
    found = {name: module for name, module in named.items() if isinstance(module, LoraLinear) and _is_plain(module)}
    devices = {str(next(module.parameters()).device.type) for module in found.values()}
    return {} if any(torch.is_autocast_enabled(device) for device in devices) else found


@contextmanager
def fused_lora(layers: Layers, record: Recording | None = None) -> Iterator[None]:
    """Inside, these `plain_layers` of a model in evaluation mode run fused; their own forward is back afterwards.

    Args:
        layers: what `plain_layers` returned.
        record: where per-example gradients are wanted, the recording that the layers' factors report to.
    """
    try:
        for name, layer in layers.items():
            vars(layer)["forward"] = _forward(name, layer, record)
        yield
    finally:
        for layer in layers.values():
            vars(layer).pop("forward", None)


def _is_plain(layer: LoraLinear) -> bool:
    """Whether the layer computes x (W + s·BA)ᵀ + b in float32 and nobody listens inside it."""
    if type(layer) is not LoraLinear:  # subclasses quantise or replicate
        return False
    if layer.disable_adapters or layer.merged or "forward" in vars(layer):
        return False
    active = [adapter for adapter in layer.active_adapters if adapter in layer.lora_A]
    if len(active) != 1 or active[0] in layer.lora_variant or type(layer.base_layer) is not nn.Linear:
        return False
    parts = (layer.base_layer, layer.lora_A[active[0]], layer.lora_B[active[0]], layer.lora_dropout[active[0]])
    if any("forward" in vars(part) or part._forward_pre_hooks for part in parts) or layer.base_layer._forward_hooks:
        return False
    weights = [weight for part in parts for weight in part.parameters()]
    return parts[2].bias is None and all(type(weight) is nn.Parameter for weight in weights) and _all_float32(weights)


def _all_float32(tensors: list[Tensor]) -> bool:
    return all(tensor.dtype == torch.float32 for tensor in tensors)


def _forward(name: str, layer: LoraLinear, record: Recording | None) -> Callable[..., Tensor]:
    original = layer.forward
    adapter = next(adapter for adapter in layer.active_adapters if adapter in layer.lora_A)
    held = dict(layer.base_layer.named_parameters())
    weight, bias = held["weight"].detach(), held["bias"].detach() if "bias" in held else None
    a, b = (factor[adapter].get_parameter("weight").detach() for factor in (layer.lora_A, layer.lora_B))
    scale = float(layer.scaling[adapter])
    # merging costs r·o·i, the two thin products r·(o + i) a token
    worth = weight.shape[0] * weight.shape[1] // (weight.shape[0] + weight.shape[1])

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or x.dtype != torch.float32 or x.numel() // x.shape[-1] < worth:
            return original(x, *args, **kwargs)
        if record is None:
            return F.linear(x, torch.addmm(weight, b, a, alpha=scale), bias)
        output: Tensor = _Merged.apply(x, weight, bias, a, b, scale, name, record)
        for factor in ("lora_A", "lora_B"):
            record.claim(f"{name}.{factor}.weight", output.shape)
        return output

    return forward


class _Merged(torch.autograd.Function):
    """y = x (W + s·BA)ᵀ + b; merged again in the backward pass, so that no second copy of W is kept."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "b T i"],
        weight: Float[Tensor, "o i"],
        bias: Float[Tensor, " o"] | None,
        a: Float[Tensor, "r i"],
        b: Float[Tensor, "o r"],
        scale: float,
        name: str,
        record: Recording,
    ) -> Float[Tensor, "b T o"]:
        ctx.save_for_backward(x, weight, a, b)
        ctx.rest = (scale, name, record)
        return F.linear(x, torch.addmm(weight, b, a, alpha=scale), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Float[Tensor, "b T o"]) -> tuple[Tensor | None, ...]:
        (delta,) = grads
        x, weight, a, b = ctx.saved_tensors
        scale, name, record = ctx.rest
        record.receive(f"{name}.lora_B.weight", delta, (x @ a.T).mul_(scale))
        record.receive(f"{name}.lora_A.weight", (delta @ b).mul_(scale), x)
        return (delta @ torch.addmm(weight, b, a, alpha=scale), *[None] * 7)
