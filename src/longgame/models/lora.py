"""All that longgame knows of PEFT's LoRA layers.

Three parts: which weights a gradient signal is about; the activations that make up their per-example gradients; the
adapter as numbers (factors, effective weights, sizes). `longgame.models.fused` has faster ways through its layers.

For a linear map y = x Wᵀ the gradient of one example is Σ_t δ_t x_tᵀ with δ = ∂(its loss)/∂y. LoRA is two such maps in
a row, A on x and B on A x. PEFT runs both as ``nn.Linear`` modules, so hooks on these two see everything, whatever the
base layer is (Linear, Conv1D, quantized), and the LoRA scaling is already in δ. On the input embedding A is looked up
by token id, which is the same map on one-hot rows. DoRA's magnitude m multiplies rows of a weight whose norm counts as
constant (arXiv 2402.09353, §4.3), so its gradient is Σ_t δ_t ∘ (y_t − bias)/m.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Embedding as LoraEmbedding
from peft.tuners.lora.layer import MultiheadAttention, ParamWrapper
from peft.tuners.lora.variants import DoraLinearVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from longgame.errors import ModelError, PluginError
from longgame.models.device import to_host
from longgame.models.head import decoder_of

# Which weights a gradient signal is about


@dataclass(frozen=True)
class OneHot:
    """Inputs that are rows of an identity matrix of this size, given by the place of the 1 (−1: a row of zeros)."""

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
        """Call the receiver with what makes up the gradients of B (d × r) and of A (r × V)."""
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


@dataclass
class GradientTargets:
    """Weights whose per-example gradients are measured, by canonical name (`canonical_name`)."""

    lora: bool
    """LoRA's weights, or full fine-tuning's weight matrices."""
    first_block: nn.Module | None = None
    """Decoder layer before which no gradient is taken; None: all layers count."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    linear: dict[str, nn.Module] = field(default_factory=dict)
    """Name without ``.weight`` → the linear map that applies it (and its bias, where that is among ``weights``)."""
    magnitudes: dict[str, nn.Module] = field(default_factory=dict)
    """Name without ``.weight`` → DoRA's module that applies it."""
    embedding: LoraOnEmbedding | None = None
    covered: set[int] = field(default_factory=set)
    """Ids of ``weights`` and of their like in layers before ``first_block``."""

    @property
    def size(self) -> int:
        """Entries of the gradient."""
        return sum(weight.numel() for weight in self.weights.values())

    @property
    def transposed(self) -> set[str]:
        """Names of the weights that are stored (in × out); all gradients are (out × in)."""
        return {f"{name}.weight" for name, module in self.linear.items() if isinstance(module, Conv1D)}

    def add(self, inside: bool, weights: Mapping[str, Tensor]) -> bool:
        """Cover these weights, and take their gradients if they are ``inside`` the chosen layers; return ``inside``."""
        self.covered |= {id(weight) for weight in weights.values()}
        if inside:
            self.weights |= weights
        return inside


def gradient_targets(
    base: PreTrainedModel, named: Mapping[str, nn.Module], layers: int | None = None
) -> GradientTargets:
    """Find the weights of the gradient: the active LoRA weights, or else every trainable linear weight.

    With LoRA (A, B, B's bias, DoRA's magnitude) nothing else may be trainable, since the signal would leave it out.
    Without adapters (full fine-tuning) the gradient covers the weight matrices of trainable linear layers inside the
    decoder; embeddings, the output head (tied or not), norms and biases are not part of it.

    Args:
        base: the causal LM.
        named: its modules by name.
        layers: take the last so many decoder layers only.

    Raises:
        ModelError: a 4-bit layer repacked for inference, a LoRA variant other than DoRA, LoRA on a convolution or on an
            embedding that is not the input embedding, merged or disabled adapters, two active adapters, another PEFT
            method, other trainable matrices, a matrix that two layers share, or nothing trainable at all.
        PluginError: ``layers`` is below 1 or above the number of decoder layers.
    """
    for name, module in named.items():
        if is_repacked(module):
            raise ModelError(
                f"the 4-bit layer '{name}' ran in evaluation mode on the CPU, where bitsandbytes repacks its weights "
                "for inference and passes no gradients on from then (training would suffer too). Load the model again."
            )
    inside, first_block = _last_blocks(base, layers)
    adapted = {name: module for name, module in named.items() if isinstance(module, BaseTunerLayer)}
    targets = GradientTargets(bool(adapted), first_block)
    for name, layer in adapted.items():
        if not isinstance(layer, LoraLayer):
            kind = f"{type(layer).__module__.split('.')[-2]}'s {type(layer).__name__}"
            raise ModelError(f"gradient signals support LoRA only; layer '{name}' is {kind}. Use LoRA.")
        _add_lora(targets, name, layer, layer is base.get_input_embeddings(), name.startswith(inside))
    if not adapted:
        _add_full(targets, base, named, inside)
    _refuse_others(base, named, targets)
    _check_magnitudes(targets)
    if not targets.weights:
        where = "" if layers is None else f" in its last {layers} decoder layer(s)"
        raise ModelError(
            f"gradient signals need trainable weights, and the model has no LoRA adapter and no trainable linear "
            f"layer{where}. Attach a LoRA adapter, or set requires_grad on the weights to be trained."
        )
    return targets


def is_repacked(module: nn.Module) -> bool:
    """Whether this is a 4-bit layer that has repacked its weights for inference and passes no gradient on."""
    state = getattr(module._parameters.get("weight"), "quant_state", None)
    return bool(getattr(state, "packing_format_for_cpu", False))


def _last_blocks(base: PreTrainedModel, layers: int | None) -> tuple[tuple[str, ...], nn.Module | None]:
    """Name prefixes of the last decoder layers ("" for everything), and the first of these layers."""
    if layers is None:
        return ("",), None
    decoder, count = decoder_of(base), base.config.get_text_config().num_hidden_layers
    for name, blocks in base.named_modules():
        if isinstance(blocks, nn.ModuleList) and len(blocks) == count and blocks in decoder.children():
            if not 1 <= layers <= count:
                raise PluginError(
                    f"gradient_layers is {layers}; {type(base).__name__} has 1 to {count} to take it from."
                )
            return tuple(f"{name}.{index}." for index in range(count - layers, count)), blocks[count - layers]
    raise ModelError(
        f"{type(decoder).__name__} holds no list of its {count} layers, so the last ones cannot be found. "
        "Leave gradient_layers out."
    )


def _add_full(
    targets: GradientTargets, base: PreTrainedModel, named: Mapping[str, nn.Module], inside: tuple[str, ...]
) -> None:
    head = base.get_output_embeddings()
    linear = {
        name: module
        for name, module in named.items()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and module.weight.requires_grad
    }
    uses = Counter(id(module.weight) for module in linear.values())
    for name, module in linear.items():
        if uses[id(module.weight)] > 1:
            raise ModelError(
                f"'{name}.weight' is shared by {uses[id(module.weight)]} layers, and the norm of a shared weight's "
                "gradient is not that of its parts. Use LoRA, or freeze the shared weight."
            )
        if targets.add(name.startswith(inside), {f"{name}.weight": module.weight}):
            targets.linear[name] = module


def _add_lora(targets: GradientTargets, name: str, layer: LoraLayer, is_input: bool, inside: bool) -> None:
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
        if targets.add(inside, {f"{name}.lora_embedding_A": a, f"{name}.lora_embedding_B": b}):
            targets.embedding = LoraOnEmbedding(name, layer, adapter)
        return
    for key, part in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
        factor = part[adapter] if adapter in part else None  # noqa: SIM401 (a ModuleDict has no get)
        if not isinstance(factor, nn.Linear) or isinstance(layer, MultiheadAttention | ParamWrapper):
            raise ModelError(
                f"gradient signals support LoRA on linear layers and the input embedding; layer '{name}' is LoRA's "
                f"{type(layer).__name__}. Take it out of target_modules (or target_parameters)."
            )
        bias = {} if factor.bias is None else {f"{name}.{key}.bias": factor.bias}
        if targets.add(inside, {f"{name}.{key}.weight": factor.weight} | bias):
            targets.linear[f"{name}.{key}"] = factor
    if adapter in layer.lora_variant:
        magnitude = layer.lora_magnitude_vector[adapter]
        weight = magnitude.get_parameter("weight")
        if targets.add(inside, {f"{name}.lora_magnitude_vector.weight": weight}):
            targets.magnitudes[f"{name}.lora_magnitude_vector"] = magnitude


def _active_adapter(name: str, layer: LoraLayer) -> str | None:
    active = [adapter for adapter in layer.active_adapters if adapter in layer.scaling]
    if layer.disable_adapters or layer.merged:
        state = "disabled" if layer.disable_adapters else "merged"
        raise ModelError(
            f"gradient signals need an active LoRA adapter, but it is {state} in layer '{name}'. Enable or unmerge it."
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


def _check_magnitudes(targets: GradientTargets) -> None:
    """Look at all DoRA magnitudes at once: each look makes the host wait for a GPU."""
    names = [*targets.magnitudes]
    if not names:
        return
    smallest = torch.stack([targets.weights[f"{name}.weight"].detach().abs().amin() for name in names])
    for name, value in zip(names, smallest.cpu().tolist(), strict=True):
        if value == 0:
            layer = name.removesuffix(".lora_magnitude_vector")
            raise ModelError(f"DoRA's magnitude in layer '{layer}' holds a 0, where its gradient is not defined.")


def _refuse_others(base: PreTrainedModel, named: Mapping[str, nn.Module], targets: GradientTargets) -> None:
    """Refuse trainable weights that the signal would miss; full fine-tuning's documented exceptions pass."""
    tables = {id(part.weight) for part in (base.get_input_embeddings(), base.get_output_embeddings()) if part}
    others = [
        f"{name}.{key}"
        for name, module in named.items()
        for key, weight in module._parameters.items()
        if weight is not None
        and weight.requires_grad
        and id(weight) not in targets.covered
        and (targets.lora or not (weight.ndim < 2 or id(weight) in tables or isinstance(module, nn.Embedding)))
    ]
    if not others:
        return
    names = f"'{others[0]}'" + (f" and {len(others) - 1} more" if len(others) > 1 else "")
    if targets.lora:
        raise ModelError(
            f"gradient signals cover LoRA's weights, but {names} is trainable too. "
            "Freeze it (no modules_to_save, bias='none', one trainable adapter)."
        )
    raise ModelError(
        f"gradient signals of full fine-tuning cover linear layers, but {names} is trainable and none. "
        "Freeze it, or use LoRA on the linear layers."
    )


# The activations that make up per-example gradients


@dataclass
class Recording:
    """State of one recorded forward pass."""

    receive: Receiver
    inputs: list[Tensor] = field(default_factory=list)
    """The input embeddings, or what enters the first layer that counts, once the forward pass has run."""
    used: set[str] = field(default_factory=set)
    """Targets that took part."""

    def by_example(self, states: Tensor) -> Tensor:
        """States as (batch, tokens, features): some layers see all tokens in a row (OPT, shared experts)."""
        batch = self.inputs[0].shape[:2] if self.inputs else ()
        if states.ndim != 2 or len(batch) != 2 or len(states) != batch[0] * batch[1]:
            return states
        return states.unflatten(0, batch)

    def claim(self, name: str, shape: tuple[int, ...]) -> None:
        """Note that a target with activations of this shape takes part.

        Raises:
            PluginError: it takes part a second time, or its activations are not (batch, tokens, features).
        """
        if len(shape) != 3 or not self.inputs or shape[:2] != self.inputs[0].shape[:2]:
            raise PluginError(
                f"'{name}' gives activations of shape {tuple(shape)}, not (batch, tokens, features), so its gradients "
                "cannot be separated by example. Take that layer out of target_modules."
            )
        if name in self.used:
            raise PluginError(f"'{name}' is used twice in one forward pass; gradient signals need it used once.")
        self.used.add(name)


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
        for name, module in targets.linear.items():
            handles.append(module.register_forward_hook(_at_linear(record, name, targets)))
        for name, module in targets.magnitudes.items():
            handles.append(module.register_forward_hook(_at_magnitude(record, name), with_kwargs=True))
        yield record
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def recomputing(base: PreTrainedModel, record: Recording) -> Iterator[None]:
    """Inside, decoder layers under gradient checkpointing keep what enters them, and run again in the backward pass.

    transformers checkpoints layers in training mode only, and signals are computed in evaluation mode. The backward
    pass must end inside this context and that of `recording`, whose hooks report when a layer runs again.
    """
    blocks: list[nn.Module] = []
    for parts in decoder_of(base).modules():
        if isinstance(parts, nn.ModuleList):
            inside = {id(module) for block in blocks for module in block.modules()}
            blocks += [b for b in parts if getattr(b, "gradient_checkpointing", False) and id(b) not in inside]
    before = {block: vars(block).get("forward") for block in blocks}
    try:
        for block in blocks:
            vars(block)["forward"] = _running_again(block.forward, record)
        yield
    finally:
        for block, forward in before.items():
            del vars(block)["forward"]
            if forward is not None:
                vars(block)["forward"] = forward


def _running_again(original: Callable[..., Any], record: Recording) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        states = args[0] if args else kwargs.get("hidden_states")
        trailing, positional = args[1:], bool(args)
        named = {name: value for name, value in kwargs.items() if args or name != "hidden_states"}
        joined = any(isinstance(value, Tensor) and value.requires_grad for value in (*trailing, *named.values()))
        if joined or not (torch.is_grad_enabled() and isinstance(states, Tensor) and states.requires_grad):
            return original(*args, **kwargs)

        def run(entering: Tensor) -> Any:
            return original(entering, *trailing, **named) if positional else original(hidden_states=entering, **named)

        further: list[Any] = []
        output = _Again.apply(states, run, record, further)
        return (output, *further[1:]) if further else output

    return forward


class _Again(torch.autograd.Function):
    """A decoder layer that keeps its input alone; ``run`` computes it, in either pass."""

    @staticmethod
    def forward(
        ctx: Any, states: Float[Tensor, "b T d"], run: Callable[[Tensor], Any], record: Recording, further: list[Any]
    ) -> Float[Tensor, "b T d"]:
        device = states.device.type
        ctx.save_for_backward(states)
        ctx.settings = (run, record, device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        output = run(states)
        if isinstance(output, tuple):
            further.extend(output)
            return output[0]
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Float[Tensor, "b T d"]) -> tuple[Tensor | None, ...]:
        run, record, device, cast, dtype = ctx.settings
        states = ctx.saved_tensors[0].detach().requires_grad_()
        used, record.used = record.used, set()  # what takes part the second time is no second use
        try:
            with torch.enable_grad(), torch.autocast(device, dtype) if cast else nullcontext():
                output = run(states)
            grad = torch.autograd.grad(output[0] if isinstance(output, tuple) else output, states, grads[0])
        finally:
            record.used = used
        return (*grad, None, None, None)


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
        record.used.clear()  # layers before this one
        return ((entrance, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": entrance})

    return hook


def _at_linear(record: Recording, name: str, targets: GradientTargets) -> Callable[..., None]:
    biased = f"{name}.bias" in targets.weights
    in_dora = f"{name.rpartition('.')[0]}.lora_magnitude_vector" in targets.magnitudes

    def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        x = args[0].detach()
        if x.ndim == 2 and in_dora:
            return  # PEFT's DoRA sends an identity matrix through A and B to multiply them out
        x = record.by_example(x)
        record.claim(f"{name}.weight", record.by_example(output).shape)

        def report(delta: Tensor) -> None:
            delta = record.by_example(delta)
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
        product = output.detach() + kwargs["base_result"].detach()  # m/‖W + sBA‖ · (W + sBA) x, and the bias
        if bias is not None:
            product -= bias.detach()

        def report(delta: Float[Tensor, "b T o"]) -> None:
            record.receive(f"{name}.weight", delta.float() * product / magnitude, delta.new_ones(*delta.shape[:2], 1))

        if output.requires_grad:
            output.register_hook(report)

    return hook


# The adapter as numbers


class Factors(NamedTuple):
    """One LoRA module: effective update ``scale · B @ A``."""

    B: Float[np.ndarray, "out r"]
    A: Float[np.ndarray, "r in"]
    scale: float


def lora_factors(model: PeftModel, weights: Mapping[str, Tensor]) -> list[Factors]:
    """Return every adapted layer's factors, float32, with these values of the trained weights (by name).

    A factor that does not train (MiCA's B) is the model's own.
    """
    layers = [*_adapted(model)]
    names = dict.fromkeys(name for *_, a, b in layers for name in (a, b))
    others = {name: model.get_parameter(name) for name in names if name not in weights}
    frozen = {name: factor for name, factor in others.items() if not factor.requires_grad}
    arrays = to_host({name: (frozen if name in frozen else weights)[name].detach().float() for name in names})
    return [Factors(arrays[b], arrays[a], float(layer.scaling[adapter])) for _, layer, adapter, a, b in layers]


def dora_weights(model: PeftModel, weights: Mapping[str, Tensor] | None) -> Iterator[Float[np.ndarray, "out in"]]:
    """Yield each DoRA layer's effective weight m ∘ (W + s·BA)/‖W + s·BA‖, float32; without ``weights`` the base's W.

    An embedding is a linear map of one-hot rows: its W is the transposed table.
    """
    for name, layer, adapter, a, b in _adapted(model):
        weight = dequantize_module_weight(layer.get_base_layer()).detach().float()
        turned = isinstance(layer, LoraEmbedding) or getattr(layer, "fan_in_fan_out", False)
        weight = weight.T if turned else weight
        if weights is not None:
            magnitude_name = f"{name}.lora_magnitude_vector.{adapter}.weight"
            A, B, magnitude = (weights[part].detach().to(weight) for part in (a, b, magnitude_name))
            weight = weight + layer.scaling[adapter] * (B @ A)
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


@lru_cache(maxsize=1 << 16)
def canonical_name(name: str) -> str:
    """Return a parameter's name without PEFT's prefix and adapter name.

    ``base_model.model.model.layers.0.q_proj.lora_A.default.weight`` → ``model.layers.0.q_proj.lora_A.weight`` (likewise
    B's bias, DoRA's magnitude and an embedding's factors), so that a gradient's sketch and an update's sketch meet
    under one name.
    """
    name = name.removeprefix("base_model.model.")
    name = re.sub(r"\.(lora_[AB]|lora_magnitude_vector)\.[^.]+\.(weight|bias)$", r".\1.\2", name)
    return re.sub(r"\.(lora_embedding_[AB])\.[^.]+$", r".\1", name)


def _adapted(model: PeftModel) -> Iterator[tuple[str, LoraLayer, str, str, str]]:
    """(name, layer, adapter, names of the weights A and B) of every layer that the active adapter changes."""
    adapter = model.active_adapter
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer) and adapter in layer.scaling:
            linear = adapter in layer.lora_A
            a, b = (f"{name}.lora_{'' if linear else 'embedding_'}{factor}.{adapter}" for factor in "AB")
            yield name, layer, adapter, *((f"{a}.weight", f"{b}.weight") if linear else (a, b))


def _array(tensor: Tensor) -> Float[np.ndarray, ...]:
    return tensor.detach().float().cpu().numpy()
