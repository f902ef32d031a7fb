"""Faster ways through PEFT's plain LoRA layers: fused for one pass with gradients, folded for many passes without, and
thin products in training.

PEFT runs a layer as its base, two thin products, a scaling and an addition. Over a bfloat16 base it copies every
activation to float32 for each adapted layer, because the factors are float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from longgame.models.lora import Recording

Layers = Mapping[str, LoraLinear]

_LARGEST_FOLD = 2**28
"""Weights of all adapted layers together above which nothing is folded: the folded copies take as much memory again."""


def plain_layers(named: Mapping[str, nn.Module]) -> Layers:
    """Return those of a causal LM's modules (by name) that can run fused; none of them under autocast."""
    plain = {name: module for name, module in named.items() if isinstance(module, LoraLinear) and _is_plain(module)}
    devices = {str(next(module.parameters()).device.type) for module in plain.values()}
    return {} if any(torch.is_autocast_enabled(device) for device in devices) else plain


def _is_plain(layer: LoraLinear) -> bool:
    """Whether the layer computes x (W + s·BA)ᵀ + b in float32 or bfloat16, and no hook or patch is inside it."""
    if type(layer) is not LoraLinear:  # subclasses quantize or replicate
        return False
    patch = vars(layer).get("forward")
    if layer.disable_adapters or layer.merged or not isinstance(patch, ThinForward | None):
        return False
    active = [adapter for adapter in layer.active_adapters if adapter in layer.lora_A]
    if len(active) != 1 or active[0] in layer.lora_variant or type(layer.base_layer) is not nn.Linear:
        return False
    parts = (layer.base_layer, layer.lora_A[active[0]], layer.lora_B[active[0]], layer.lora_dropout[active[0]])
    if any("forward" in vars(part) or part._forward_pre_hooks for part in parts) or layer.base_layer._forward_hooks:
        return False
    weights = [weight for part in parts for weight in part._parameters.values() if weight is not None]
    if parts[2].bias is not None or not all(type(weight) is nn.Parameter for weight in weights):
        return False
    base = layer.base_layer.weight.dtype
    factors = {parts[1].weight.dtype, parts[2].weight.dtype}
    return (base == torch.float32 and factors == {base}) or (
        base == torch.bfloat16 and factors <= {base, torch.float32}
    )


@contextmanager
def fused_lora(layers: Layers, record: Recording | None = None) -> Iterator[None]:
    """Inside, these `plain_layers` of a model in evaluation mode run fused; their own forward is back afterwards.

    Args:
        layers: what `plain_layers` returned.
        record: where per-example gradients are needed, the recording that the layers' factors report to.
    """
    before = {name: vars(layer).get("forward") for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            vars(layer)["forward"] = _fused_forward(name, layer, record)
        yield
    finally:
        for name, layer in layers.items():
            vars(layer).pop("forward", None)
            if before[name] is not None:
                vars(layer)["forward"] = before[name]


def _fused_forward(name: str, layer: LoraLinear, record: Recording | None) -> Callable[..., Tensor]:
    """Float32: multiply once by W + s·BA, merged for this pass. Bfloat16, where merging would round: add x Aᵀ (sB)ᵀ."""
    original = layer.forward
    adapter = next(adapter for adapter in layer.active_adapters if adapter in layer.lora_A)
    base: Any = layer.base_layer
    weight, bias = base.weight.detach(), None if base.bias is None else base.bias.detach()
    a, b = (factor[adapter].get_parameter("weight").detach() for factor in (layer.lora_A, layer.lora_B))
    scale, shortest = float(layer.scaling[adapter]), 0
    if weight.dtype == torch.bfloat16:
        a, b = a.to(weight.dtype), (b * scale).to(weight.dtype)
    else:  # merging costs r·o·i, the two thin products r·(o + i) a token
        shortest = weight.shape[0] * weight.shape[1] // (weight.shape[0] + weight.shape[1])

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or x.dtype != weight.dtype or x.numel() // x.shape[-1] < shortest:
            return original(x, *args, **kwargs)
        if record is None:
            return _product(x, weight, bias, a, b, scale)[0]
        output: Tensor = _Fused.apply(record.by_example(x), weight, bias, a, b, scale, name, record)
        for factor in ("lora_A", "lora_B"):
            record.claim(f"{name}.{factor}.weight", output.shape)
        return output.reshape(*x.shape[:-1], output.shape[-1])

    return forward


def _product(
    x: Float[Tensor, "b T i"],
    weight: Float[Tensor, "o i"],
    bias: Float[Tensor, " o"] | None,
    a: Float[Tensor, "r i"],
    b: Float[Tensor, "o r"],
    scale: float,
) -> tuple[Float[Tensor, "b T o"], Float[Tensor, "b T r"] | None]:
    """x (W + s·BA)ᵀ + bias; of bfloat16, where B holds the scale, also x Aᵀ."""
    if weight.dtype != torch.bfloat16:
        return F.linear(x, torch.addmm(weight, b, a, alpha=scale), bias), None
    output, inner = F.linear(x, weight, bias), F.linear(x, a)
    output.flatten(0, -2).addmm_(inner.flatten(0, -2), b.T)
    return output, inner


class _Fused(torch.autograd.Function):
    """`_product` with both factors' gradients reported; W + s·BA is merged again in the backward pass, not stored."""

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
        output, inner = _product(x, weight, bias, a, b, scale)
        ctx.save_for_backward(x, weight, a, b, inner)
        ctx.settings = (scale, name, record)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Float[Tensor, "b T o"]) -> tuple[Tensor | None, ...]:
        (delta,) = grads
        x, weight, a, b, inner = ctx.saved_tensors
        scale, name, record = ctx.settings
        if inner is None:
            record.receive(f"{name}.lora_B.weight", delta, (x @ a.T).mul_(scale))
            record.receive(f"{name}.lora_A.weight", (delta @ b).mul_(scale), x)
            back = delta @ torch.addmm(weight, b, a, alpha=scale)
        else:
            outward = delta @ b
            record.receive(f"{name}.lora_B.weight", delta, inner * scale)
            record.receive(f"{name}.lora_A.weight", outward, x)
            back = delta @ weight
            back.flatten(0, -2).addmm_(outward.flatten(0, -2), a)
        return (back, *[None] * 7)


@contextmanager
def folded_lora(model: nn.Module) -> Iterator[bool]:
    """Inside, every adapted layer multiplies once, by W + s·BA; outside, its weights are the very tensors they were.

    Only where that changes nothing but rounding: `plain_layers` in float32 whose weights no other module shares. Any
    other model (bfloat16, quantized, DoRA, very large) runs as it is. PEFT's own merge and unmerge would leave rounding
    errors in the base weights, so the original tensors are put back instead.

    Yields:
        Whether the adapters were folded.
    """
    modules = [*model.modules()]
    layers = [module for module in modules if isinstance(module, BaseTunerLayer)]
    plain: list[Any] = [layer for layer in layers if isinstance(layer, LoraLinear) and _is_plain(layer)]
    weights: list[Tensor] = [layer.base_layer.weight for layer in plain]
    tables = [module.weight for module in modules if isinstance(module, nn.Embedding)]
    shared = len({id(weight) for weight in (*weights, *tables)}) < len(weights) + len({id(table) for table in tables})
    size, kinds = sum(weight.numel() for weight in weights), {weight.dtype for weight in weights}
    if kinds != {torch.float32} or shared or len(plain) < len(layers) or size > _LARGEST_FOLD:
        yield False
        return
    originals = [weight.data for weight in weights]
    try:
        with torch.no_grad():
            for layer, weight in zip(plain, weights, strict=True):
                adapter = next(adapter for adapter in layer.active_adapters if adapter in layer.lora_A)
                weight.data = weight.data + layer.get_delta_weight(adapter)
                layer.merged_adapters.append(adapter)
        yield True
    finally:
        for layer, weight, original in zip(plain, weights, originals, strict=True):
            weight.data = original
            layer.merged_adapters.clear()


# Training


class ThinForward:
    """The forward of a plain LoRA layer that trains over a bfloat16 base (`thin_lora`).

    It looks at every call whether the layer is still plain, and lets PEFT's forward do all else: evaluation, dropout,
    disabled or merged adapters, hooks, another dtype.
    """

    def __init__(self, layer: LoraLinear) -> None:
        self._layer = layer
        self._original = layer.forward

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As the layer's own forward."""
        layer = self._layer
        plain = not args and not kwargs and x.ndim >= 2 and x.dtype == torch.bfloat16 and layer.training
        if not plain or _in_other_autocast(x.device.type) or not _trains_thin(layer):
            return self._original(x, *args, **kwargs)
        adapter = next(adapter for adapter in layer.active_adapters if adapter in layer.lora_A)
        base: Any = layer.base_layer
        a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        return ThinProducts.apply(x, base.weight, base.bias, a, b, float(layer.scaling[adapter]))


def _in_other_autocast(device: str) -> bool:
    """Whether products are cast to another dtype than bfloat16."""
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) != torch.bfloat16


def _trains_thin(layer: LoraLinear) -> bool:
    """Whether the layer trains float32 factors on a frozen bfloat16 weight, without dropout, watched by no hook."""
    if not _is_plain(layer):
        return False
    adapter = next(adapter for adapter in layer.active_adapters if adapter in layer.lora_A)
    base, dropout = layer.base_layer, layer.lora_dropout[adapter]
    factors = (layer.lora_A[adapter], layer.lora_B[adapter])
    if any(weight.requires_grad for weight in base.parameters()) or base.weight.dtype != torch.bfloat16:
        return False
    if {factor.weight.dtype for factor in factors} != {torch.float32}:
        return False
    if type(dropout) is not nn.Identity and getattr(dropout, "p", 1.0) > 0:
        return False
    parts = (base, dropout, *factors)
    return not any(part._forward_hooks or part._backward_hooks or part._backward_pre_hooks for part in parts)


@contextmanager
def thin_lora(model: nn.Module) -> Iterator[int]:
    """Inside, plain LoRA layers with float32 factors on a frozen bfloat16 weight train through `ThinProducts`.

    Parameters, their hooks (of DDP, of accumulation) and checkpoints of weights and activations are as before. Layers
    in float32, with dropout, DoRA or another kind of adapter are PEFT's own.

    Yields:
        How many layers do so.
    """
    layers = [module for module in model.modules() if isinstance(module, LoraLinear) and _trains_thin(module)]
    layers = [layer for layer in layers if "forward" not in vars(layer)]
    try:
        for layer in layers:
            vars(layer)["forward"] = ThinForward(layer)
        yield len(layers)
    finally:
        for layer in layers:
            if isinstance(vars(layer).get("forward"), ThinForward):
                del vars(layer)["forward"]


class ThinProducts(torch.autograd.Function):
    """x Wᵀ + bias + scale · (x Aᵀ) Bᵀ, with A and B rounded to the dtype of x and W, and their gradients in their own.

    It keeps x, which layers of one input share, and x Aᵀ. PEFT keeps a float32 copy of x for each layer.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "... i"],
        weight: Float[Tensor, "o i"],
        bias: Float[Tensor, " o"] | None,
        a: Float[Tensor, "r i"],
        b: Float[Tensor, "o r"],
        scale: float,
    ) -> Float[Tensor, "... o"]:
        """Return the layer's output."""
        narrow_a, narrow_b = a.to(weight.dtype), b.to(weight.dtype)
        output, inner = F.linear(x, weight, bias), F.linear(x, narrow_a)
        output.flatten(0, -2).addmm_(inner.flatten(0, -2), narrow_b.T, alpha=scale)
        ctx.save_for_backward(x, weight, narrow_a, narrow_b, inner)
        ctx.settings = (scale, a.dtype, b.dtype)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Float[Tensor, "... o"]) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, A and B."""
        x, weight, a, b, inner = ctx.saved_tensors
        scale, dtype_a, dtype_b = ctx.settings
        needs_x, _, _, needs_a, needs_b, _ = ctx.needs_input_grad
        delta = grads[0].flatten(0, -2)
        outward = delta @ b
        grad_x = grad_a = grad_b = None
        if needs_x:
            grad_x = (delta @ weight).addmm_(outward, a, alpha=scale).view(x.shape)
        if needs_a:
            grad_a = _scaled_product(scale, outward.T, x.flatten(0, -2), dtype_a)
        if needs_b:
            grad_b = _scaled_product(scale, delta.T, inner.flatten(0, -2), dtype_b)
        return grad_x, None, None, grad_a, grad_b, None


def _scaled_product(
    scale: float, left: Float[Tensor, "m k"], right: Float[Tensor, "k n"], dtype: torch.dtype
) -> Float[Tensor, "m n"]:
    """scale · (left right) in a wider dtype; on CUDA without rounding the product first."""
    if left.is_cuda and dtype != left.dtype:
        return torch.mm(left, right, out_dtype=dtype).mul_(scale)
    return torch.addmm(left.new_zeros(()), left, right, beta=0, alpha=scale).to(dtype)
