"""A leaner way through PEFT's LoRA layers, for as long as signals are computed.

PEFT runs a LoRA layer as two thin products, a scaling and an addition, each over all tokens, and autograd walks all of
them back. On small models these passes over memory cost as much as the layer itself. Here y = x (W + s·BA)ᵀ is one
product with a weight merged for the moment (not in place: W stays as it is), and the backward pass reports the factors'
(δ, x) by itself. The numbers agree to float32 rounding.

Beside a bfloat16 base PEFT keeps the factors in float32 and converts every activation to float32 and back, which takes
longer than the layer's own product. Merging would round the adapter away there, so the two thin products stay, run in
bfloat16 (accumulated in float32) and add into the base's output in place. That rounds the factors to 8 bits of
mantissa, as every activation around them is rounded.

Whatever is not plain LoRA on a float32 or bfloat16 ``nn.Linear`` (quantised, float16, DoRA) keeps PEFT's own forward.
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
    """Whether the layer computes x (W + s·BA)ᵀ + b in float32 or bfloat16 and nobody listens inside it."""
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
    if parts[2].bias is not None or not all(type(weight) is nn.Parameter for weight in weights):
        return False
    base = layer.base_layer.weight.dtype
    factors = {parts[1].weight.dtype, parts[2].weight.dtype}
    return (base == torch.float32 and factors == {base}) or (
        base == torch.bfloat16 and factors <= {base, torch.float32}
    )


def _forward(name: str, layer: LoraLinear, record: Recording | None) -> Callable[..., Tensor]:
    original = layer.forward
    adapter = next(adapter for adapter in layer.active_adapters if adapter in layer.lora_A)
    held = dict(layer.base_layer.named_parameters())
    weight, bias = held["weight"].detach(), held["bias"].detach() if "bias" in held else None
    a, b = (factor[adapter].get_parameter("weight").detach() for factor in (layer.lora_A, layer.lora_B))
    scale = float(layer.scaling[adapter])
    if weight.dtype == torch.bfloat16:
        return _thin_forward(
            name, original, weight, bias, a.to(weight.dtype), (b * scale).to(weight.dtype), scale, record
        )
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


def _thin_forward(
    name: str,
    original: Callable[..., Tensor],
    weight: Float[Tensor, "o i"],
    bias: Float[Tensor, " o"] | None,
    a: Float[Tensor, "r i"],
    b: Float[Tensor, "o r"],
    scale: float,
    record: Recording | None,
) -> Callable[..., Tensor]:
    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or x.dtype != weight.dtype:
            return original(x, *args, **kwargs)
        if record is None:
            return _thin(x, weight, bias, a, b)[0]
        output: Tensor = _Thin.apply(x, weight, bias, a, b, scale, name, record)
        for factor in ("lora_A", "lora_B"):
            record.claim(f"{name}.{factor}.weight", output.shape)
        return output

    return forward


def _thin(
    x: Float[Tensor, "b T i"],
    weight: Float[Tensor, "o i"],
    bias: Float[Tensor, " o"] | None,
    a: Float[Tensor, "r i"],
    b: Float[Tensor, "o r"],
) -> tuple[Float[Tensor, "b T o"], Float[Tensor, "b T r"]]:
    """x Wᵀ + bias + (x Aᵀ) Bᵀ, and x Aᵀ."""
    output, inner = F.linear(x, weight, bias), F.linear(x, a)
    output.flatten(0, -2).addmm_(inner.flatten(0, -2), b.T)
    return output, inner


class _Thin(torch.autograd.Function):
    """y = x Wᵀ + bias + (x Aᵀ) Bᵀ with the scaling inside B; keeps x and the thin x Aᵀ for the backward pass."""

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
        output, inner = _thin(x, weight, bias, a, b)
        ctx.save_for_backward(x, inner, weight, a, b)
        ctx.rest = (scale, name, record)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Float[Tensor, "b T o"]) -> tuple[Tensor | None, ...]:
        (delta,) = grads
        x, inner, weight, a, b = ctx.saved_tensors
        scale, name, record = ctx.rest
        outward = delta @ b
        record.receive(f"{name}.lora_B.weight", delta, inner * scale)
        record.receive(f"{name}.lora_A.weight", outward, x)
        back = delta @ weight
        back.flatten(0, -2).addmm_(outward.flatten(0, -2), a)
        return (back, *[None] * 7)
