"""Which weights a gradient signal is about, and the activations that make up their gradients.

For a linear map y = x Wᵀ the gradient of one example is Σ_t δ_t x_tᵀ with δ = ∂(its loss)/∂y. LoRA is two such maps in
a row, A on x and B on A x. PEFT runs both as ``nn.Linear`` modules, so hooks on these two see everything, whatever the
base layer is (Linear, Conv1D, quantised), and the LoRA scaling is already in δ. On the input embedding A is looked up
by token id, which is the same map on one-hot rows. DoRA's magnitude m multiplies rows of a weight whose norm counts as
constant (arXiv 2402.09353, §4.3), so its gradient is Σ_t δ_t ∘ (y_t − bias)/m.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Embedding as LoraEmbedding
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import MultiheadAttention, ParamWrapper
from peft.tuners.lora.variants import DoraLinearVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from longgame.errors import ModelError, PluginError
from longgame.models.head import decoder_of


@dataclass(frozen=True)
class OneHot:
    """Inputs that are rows of an identity matrix of this size, given by where the 1 stands (−1: a row of zeros)."""

    index: Int[Tensor, "b T"]
    size: int


Receiver = Callable[[str, Float[Tensor, "b T o"], Float[Tensor, "b T i"] | OneHot], None]
"""Called as (weight name, δ, x) once per weight during the backward pass; the gradient is Σ_t δ_t x_tᵀ (o × i)."""


@dataclass(frozen=True)
class LoraOnEmbedding:
    """LoRA of the input embedding: y = E[id] + s·B A[:, id]."""

    name: str
    layer: LoraEmbedding
    adapter: str

    def report(self, receive: Receiver, ids: Int[Tensor, "b T"], delta: Float[Tensor, "b T d"]) -> None:
        """Tell the receiver what makes up the gradients of B (d × r) and of A (r × V)."""
        a = self.layer.lora_embedding_A[self.adapter].detach()
        b = self.layer.lora_embedding_B[self.adapter].detach()
        scale = self.layer.scaling[self.adapter]
        embed_scale = getattr(self.layer.base_layer, "embed_scale", None)  # Gemma scales what it looks up
        delta = delta.to(b.dtype) * (scale if embed_scale is None else scale * embed_scale)
        receive(f"{self.name}.lora_embedding_B", delta, nn.functional.embedding(ids, a.T))
        padding = getattr(self.layer.base_layer, "padding_idx", None)
        if padding is not None:  # F.embedding gives this row no gradient
            ids = torch.where(ids.eq(padding), -1, ids)
        receive(f"{self.name}.lora_embedding_A", delta @ b, OneHot(ids, a.shape[1]))


@dataclass(frozen=True)
class GradientTargets:
    """Weights whose per-example gradients are measured, by canonical name (`projection.canonical_name`)."""

    weights: dict[str, Tensor]
    linear: dict[str, nn.Module]
    """Name without ``.weight`` → the linear map that applies it (and its bias, where that is among ``weights``)."""
    magnitudes: dict[str, nn.Module] = field(default_factory=dict)
    """Name without ``.weight`` → DoRA's module that applies it."""
    embedding: LoraOnEmbedding | None = None
    lora: bool = True
    """LoRA's weights, or full fine-tuning's weight matrices."""
    first_block: nn.Module | None = None
    """Decoder layer before which no gradient is taken; None: all layers count."""

    @property
    def size(self) -> int:
        """Entries of the gradient."""
        return sum(weight.numel() for weight in self.weights.values())


def gradient_targets(
    base: PreTrainedModel, named: Mapping[str, nn.Module], layers: int | None = None
) -> GradientTargets:
    """Find what the gradient is taken of: the active LoRA weights, or else every trainable linear weight.

    With LoRA (A, B, B's bias, DoRA's magnitude) nothing else may be trainable, or the signal would leave it out unsaid.
    Without adapters (full fine-tuning) the gradient covers the weight matrices of trainable linear layers inside the
    decoder; embeddings, the output head (tied or not), norms and biases are not part of it.

    Args:
        base: the causal LM.
        named: its modules by name.
        layers: take the last so many decoder layers only (weights outside of them are then left out on purpose).

    Raises:
        ModelError: a 4-bit layer repacked for inference, a LoRA variant other than DoRA, LoRA on a convolution or on an
            embedding that is not the input embedding, merged or disabled adapters, two active adapters, another PEFT
            method, other trainable matrices, a matrix that two layers share, or nothing trainable at all.
        PluginError: ``layers`` is below 1 or above the number of decoder layers.
    """
    for name, module in named.items():
        if is_repacked(module):
            raise ModelError(
                f"the 4-bit layer '{name}' was run in evaluation mode on the CPU, where bitsandbytes repacks its "
                "weights for inference and stops passing gradients on (training would suffer too). Load it again."
            )
    inside, first_block = _last_blocks(base, layers)
    tuned = {name: module for name, module in named.items() if isinstance(module, BaseTunerLayer)}
    targets = _Collected()
    if tuned:
        for name, layer in tuned.items():
            if not isinstance(layer, LoraLayer):
                seen = type(layer).__name__
                raise ModelError(f"gradient signals support LoRA only; layer '{name}' is {seen}. Use LoRA.")
            targets.add_lora(name, layer, layer is base.get_input_embeddings(), name.startswith(inside))
    else:
        targets.add_full(base, named, inside)
    _refuse_others(base, named, targets)
    if not targets.weights:
        where = "" if layers is None else f" in its last {layers} decoder layer(s)"
        raise ModelError(
            f"gradient signals need trainable weights, and the model has no LoRA adapter and no trainable linear "
            f"layer{where}. Attach a LoRA adapter, or set requires_grad on the weights to be trained."
        )
    return GradientTargets(
        targets.weights, targets.linear, targets.magnitudes, targets.embedding, bool(tuned), first_block
    )


def _last_blocks(base: PreTrainedModel, layers: int | None) -> tuple[tuple[str, ...], nn.Module | None]:
    """Name prefixes of the last decoder layers ("" for everything), and the first of these layers."""
    if layers is None:
        return ("",), None
    name, blocks = decoder_blocks(base)
    if not 1 <= layers <= len(blocks):
        raise PluginError(f"gradient_layers is {layers}; {type(base).__name__} has 1 to {len(blocks)} to take it from.")
    first = len(blocks) - layers
    return tuple(f"{name}.{index}." for index in range(first, len(blocks))), blocks[first]


class _Collected:
    """What `gradient_targets` has found so far; ``covered`` also holds what lies outside the chosen layers."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}
        self.linear: dict[str, nn.Module] = {}
        self.magnitudes: dict[str, nn.Module] = {}
        self.embedding: LoraOnEmbedding | None = None
        self.covered: set[int] = set()

    def _take(self, inside: bool, weights: Mapping[str, Tensor]) -> bool:
        self.covered |= {id(weight) for weight in weights.values()}
        if inside:
            self.weights |= weights
        return inside

    def add_full(self, base: PreTrainedModel, named: Mapping[str, nn.Module], inside: tuple[str, ...]) -> None:
        head = base.get_output_embeddings()
        found = {
            name: module
            for name, module in named.items()
            if isinstance(module, nn.Linear | Conv1D) and module is not head and module.weight.requires_grad
        }
        uses = Counter(id(module.weight) for module in found.values())
        for name, module in found.items():
            if uses[id(module.weight)] > 1:
                raise ModelError(
                    f"'{name}.weight' is shared by {uses[id(module.weight)]} layers, and the norm of a shared weight's "
                    "gradient is not that of its parts. Use LoRA, or freeze the shared weight."
                )
            if self._take(name.startswith(inside), {f"{name}.weight": module.weight}):
                self.linear[name] = module

    def add_lora(self, name: str, layer: LoraLayer, is_input: bool, inside: bool) -> None:
        adapter = _active_adapter(name, layer)
        if adapter is None:
            return
        if isinstance(layer, LoraEmbedding):
            if not is_input or adapter in layer.lora_variant:
                raise ModelError(
                    f"gradient signals support plain LoRA on the input embedding; layer '{name}' "
                    + (f"uses {type(layer.lora_variant[adapter]).__name__}." if is_input else "is another embedding.")
                    + " Take it out of target_modules."
                )
            a, b = layer.lora_embedding_A[adapter], layer.lora_embedding_B[adapter]
            if self._take(inside, {f"{name}.lora_embedding_A": a, f"{name}.lora_embedding_B": b}):
                self.embedding = LoraOnEmbedding(name, layer, adapter)
            return
        for key, part in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
            factor = part[adapter] if adapter in part else None  # noqa: SIM401 (a ModuleDict has no get)
            if not isinstance(factor, nn.Linear) or isinstance(layer, MultiheadAttention | ParamWrapper):
                raise ModelError(
                    f"gradient signals support LoRA on linear layers and the input embedding; layer '{name}' is LoRA's "
                    f"{type(layer).__name__}. Take it out of target_modules (or target_parameters)."
                )
            bias = {} if factor.bias is None else {f"{name}.{key}.bias": factor.bias}
            if self._take(inside, {f"{name}.{key}.weight": factor.weight} | bias):
                self.linear[f"{name}.{key}"] = factor
        if adapter in layer.lora_variant:
            magnitude = layer.lora_magnitude_vector[adapter]
            weight = magnitude.get_parameter("weight")
            if not bool((weight != 0).all()):
                raise ModelError(f"DoRA's magnitude in layer '{name}' holds a 0, where its gradient cannot be told.")
            if self._take(inside, {f"{name}.lora_magnitude_vector.weight": weight}):
                self.magnitudes[f"{name}.lora_magnitude_vector"] = magnitude


def _active_adapter(name: str, layer: LoraLayer) -> str | None:
    active = [adapter for adapter in layer.active_adapters if adapter in layer.scaling]
    if layer.disable_adapters or layer.merged:
        state = "disabled" if layer.disable_adapters else "merged"
        raise ModelError(
            f"gradient signals need LoRA at work, but it is {state} in layer '{name}'. Enable or unmerge it."
        )
    if len(active) > 1:
        raise ModelError(
            f"layer '{name}' has {len(active)} active adapters ({active}). Activate the one being trained."
        )
    if not active:
        return None
    variant = layer.lora_variant.get(active[0])
    if variant is not None and type(variant) is not DoraLinearVariant and not isinstance(layer, LoraEmbedding):
        raise ModelError(
            f"gradient signals support plain LoRA and DoRA on linear layers; layer '{name}' uses "
            f"{type(variant).__name__}. Turn the variant off."
        )
    return str(active[0])


def _refuse_others(base: PreTrainedModel, named: Mapping[str, nn.Module], targets: _Collected) -> None:
    """Refuse trainable weights that the signal would miss; full fine-tuning's stated exceptions pass."""
    full = not any(isinstance(module, BaseTunerLayer) for module in named.values())
    tables = {id(part.weight) for part in (base.get_input_embeddings(), base.get_output_embeddings()) if part}
    others = [
        f"{name}.{key}"
        for name, module in named.items()
        for key, weight in module._parameters.items()
        if weight is not None
        and weight.requires_grad
        and id(weight) not in targets.covered
        and not (full and (weight.ndim < 2 or id(weight) in tables or isinstance(module, nn.Embedding)))
    ]
    if not others:
        return
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    if full:
        raise ModelError(
            f"gradient signals of full fine-tuning cover linear layers, but '{others[0]}'{more} is trainable and none. "
            "Freeze it, or use LoRA on the linear layers."
        )
    raise ModelError(
        f"gradient signals cover LoRA's weights, but '{others[0]}'{more} is trainable too. "
        "Freeze it (no modules_to_save, bias='none', one trainable adapter)."
    )


@dataclass
class Recording:
    """What a recorded forward pass left behind."""

    receive: Receiver
    inputs: list[Tensor] = field(default_factory=list)
    """The input embeddings, or what enters the first layer that counts, once the forward pass has run."""
    seen: set[str] = field(default_factory=set)
    """Targets that took part."""

    def claim(self, name: str, shape: tuple[int, ...]) -> None:
        """Note that a target with activations of this shape takes part.

        Raises:
            PluginError: it takes part a second time, or its activations are not (batch, tokens, features).
        """
        if len(shape) != 3 or not self.inputs or shape[:2] != self.inputs[0].shape[:2]:
            raise PluginError(
                f"'{name}' gives activations of shape {tuple(shape)}, not (batch, tokens, features): "
                "per-example gradients cannot be told apart there. Take that layer out of target_modules."
            )
        if name in self.seen:
            raise PluginError(f"'{name}' is used twice in one forward pass; gradient signals need it used once.")
        self.seen.add(name)


@contextmanager
def recording(base: PreTrainedModel, targets: GradientTargets, receive: Receiver) -> Iterator[Recording]:
    """Inside, a forward pass prepares every target to report (δ, x) to ``receive`` as the backward pass reaches it.

    ``torch.autograd.grad`` with respect to ``Recording.inputs`` drives that pass over activations alone: no parameter's
    ``grad`` or ``requires_grad`` is touched. Reporting during the pass keeps only one layer's δ in memory. The hooks on
    the modules are gone when the context ends; those on activations go with the graph. Layers before
    ``targets.first_block`` run without a graph: let a ``torch.enable_grad()`` inside this context restore the mode.

    Raises:
        PluginError: (in the forward pass) a target runs twice, or sees activations without a batch dimension.
    """
    record = Recording(receive)
    handles: list[RemovableHandle] = []
    try:
        handles.append(base.get_input_embeddings().register_forward_hook(_at_embedding(record, targets)))
        if targets.first_block is not None:
            start = _at_first_block(record)
            handles.append(targets.first_block.register_forward_pre_hook(start, with_kwargs=True))
        handles += [
            module.register_forward_hook(_at_linear(record, n, targets)) for n, module in targets.linear.items()
        ]
        handles += [
            module.register_forward_hook(_at_magnitude(record, name), with_kwargs=True)
            for name, module in targets.magnitudes.items()
        ]
        yield record
    finally:
        for handle in handles:
            handle.remove()


def _at_embedding(record: Recording, targets: GradientTargets) -> Callable[..., Tensor]:
    def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if targets.first_block is not None:
            torch.set_grad_enabled(False)  # until the first layer that counts
            record.inputs = [output.detach()]
            return record.inputs[0]
        entrance = output.detach().requires_grad_()
        record.inputs = [entrance]
        source, ids = targets.embedding, args[0]
        if source is not None:
            record.claim(source.name, output.shape)
            entrance.register_hook(lambda delta: source.report(record.receive, ids, delta))
        return entrance

    return hook


def _at_first_block(record: Recording) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        torch.set_grad_enabled(True)
        entrance = (args[0] if args else kwargs["hidden_states"]).detach().requires_grad_()
        record.inputs = [entrance]
        record.seen.clear()  # layers before this one
        return ((entrance, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": entrance})

    return hook


def _at_linear(record: Recording, name: str, targets: GradientTargets) -> Callable[..., None]:
    biased = f"{name}.bias" in targets.weights
    in_dora = f"{name.rpartition('.')[0]}.lora_magnitude_vector" in targets.magnitudes

    def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        x = args[0].detach()
        if x.ndim == 2 and in_dora:
            return  # PEFT's DoRA sends an identity matrix through A and B to multiply them out
        record.claim(f"{name}.weight", output.shape)

        def report(delta: Float[Tensor, "b T o"]) -> None:
            record.receive(f"{name}.weight", delta, x)
            if biased:
                record.receive(f"{name}.bias", delta, delta.new_ones(*delta.shape[:2], 1))

        if output.requires_grad:
            output.register_hook(report)

    return hook


def _at_magnitude(record: Recording, name: str) -> Callable[..., None]:
    def hook(module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        record.claim(f"{name}.weight", output.shape)
        bias, magnitude = kwargs["base_layer"].bias, module.get_parameter("weight").detach()
        whole = output.detach() + kwargs["base_result"].detach()  # m/‖W + sBA‖ · (W + sBA) x, and the bias
        if bias is not None:
            whole -= bias.detach()

        def report(delta: Float[Tensor, "b T o"]) -> None:
            record.receive(f"{name}.weight", delta.float() * whole / magnitude, delta.new_ones(*delta.shape[:2], 1))

        if output.requires_grad:
            output.register_hook(report)

    return hook


# A leaner way through PEFT's LoRA layers, for as long as signals are computed.

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


# The adapter as numbers: effective updates, sizes.


class Factors(NamedTuple):
    """One LoRA module: effective update ``scale · B @ A``."""

    B: Float[np.ndarray, "out r"]
    A: Float[np.ndarray, "r in"]
    scale: float


def lora_factors(model: PeftModel, weights: Mapping[str, Tensor]) -> list[Factors]:
    """Return every adapted layer's factors, float32, with these values of the trained weights (by name)."""
    return [
        Factors(_array(weights[b]), _array(weights[a]), float(layer.scaling[adapter]))
        for _, layer, adapter, a, b in _adapted(model)
    ]


def dora_weights(model: PeftModel, weights: Mapping[str, Tensor] | None) -> Iterator[Float[np.ndarray, "out in"]]:
    """Yield each DoRA layer's effective weight m ∘ (W + s·BA)/‖W + s·BA‖, float32; without ``weights`` the base's W."""
    for name, layer, adapter, a, b in _adapted(model):
        weight = dequantize_module_weight(layer.get_base_layer()).detach().float()
        weight = weight.T if getattr(layer, "fan_in_fan_out", False) else weight
        if weights is not None:
            weight = weight + layer.scaling[adapter] * (weights[b].detach().float() @ weights[a].detach().float())
            magnitude = weights[f"{name}.lora_magnitude_vector.{adapter}.weight"].detach().float()
            weight = (magnitude / torch.linalg.norm(weight, dim=1))[:, None] * weight
        yield _array(weight)


def factor_sizes(decoder: nn.Module) -> tuple[int, set[int]]:
    """Return the entries of all factors that multiply activations, and the ids of all factors.

    An embedding's A is looked up, so it multiplies nothing.
    """
    size, ids = 0, set()
    for name, module in decoder.named_modules():
        path = name.split(".")
        if isinstance(module, nn.ParameterDict) and path[-1] in ("lora_embedding_A", "lora_embedding_B"):
            ids |= {id(factor) for factor in module.values()}
            size += sum(factor.numel() for factor in module.values()) if path[-1] == "lora_embedding_B" else 0
        elif isinstance(module, nn.Linear) and {"lora_A", "lora_B"} & {*path}:
            ids.add(id(module.weight))
            size += module.weight.numel()
    return size, ids


def _adapted(model: PeftModel) -> Iterator[tuple[str, LoraLayer, str, str, str]]:
    """(name, layer, adapter, names of the weights A and B) of every layer that the active adapter changes."""
    adapter = model.active_adapter
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer) or adapter not in layer.scaling:
            continue
        a, b = ("lora_A", "lora_B") if adapter in layer.lora_A else ("lora_embedding_A", "lora_embedding_B")
        suffix = f"{adapter}.weight" if adapter in layer.lora_A else adapter
        yield name, layer, adapter, f"{name}.{a}.{suffix}", f"{name}.{b}.{suffix}"


def _array(tensor: Tensor) -> Float[np.ndarray, ...]:
    return tensor.detach().float().cpu().numpy()


# Plain LoRA folded into its base weights for the time of a measurement (a third of the matrix products is enough).

_LARGEST = 2**28
"""Weights of all adapted layers together above which nothing is folded: the folded copies take as much memory again."""


@contextmanager
def folded_lora(model: nn.Module) -> Iterator[bool]:
    """Inside, every adapted layer multiplies once, by W + s·B·A; outside, its weights are the very tensors they were.

    Only where that changes nothing but rounding in float32: plain LoRA on `torch.nn.Linear`, active, not merged by
    anyone else, its weights shared with no other module. Any other model (bfloat16, quantised, DoRA, several adapter
    kinds, very large) runs as it is. PEFT's own merge and unmerge would leave rounding errors in the base weights, so
    the original tensors are put back instead.

    Yields:
        Whether the adapters were folded.
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    plain = [cast(LoraLinear, layer) for layer in layers if isinstance(layer, LoraLinear) and _foldable(layer)]
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


def _base(layer: LoraLinear) -> nn.Linear:
    return cast(nn.Linear, layer.get_base_layer())


def _names(layer: LoraLinear) -> list[str]:
    """Adapters that the layer applies."""
    return [name for name in layer.active_adapters if name in layer.lora_A]


def _foldable(layer: LoraLinear) -> bool:
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


def decoder_blocks(base: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Return the decoder's layers in order, and the list's name among the causal LM's modules.

    Raises:
        ModelError: the decoder holds no list of ``num_hidden_layers`` layers.
    """
    count = base.config.get_text_config().num_hidden_layers
    decoder = decoder_of(base)
    for name, module in base.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and module in decoder.children():
            return name, module
    raise ModelError(
        f"{type(decoder).__name__} keeps its {count} layers in no list of its own, so the last ones cannot be told. "
        "Leave gradient_layers out."
    )


def is_repacked(module: nn.Module) -> bool:
    """Whether this is a 4-bit layer that has repacked its weights for inference and passes no gradient on."""
    state = getattr(module._parameters.get("weight"), "quant_state", None)
    return bool(getattr(state, "packing_format_for_cpu", False))
