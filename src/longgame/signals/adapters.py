"""Which weights a gradient signal is about, and the activations that make up their gradients.

For a linear map y = x Wᵀ the gradient of one example is Σ_t δ_t x_tᵀ with δ = ∂(its loss)/∂y. LoRA is two such maps in
a row, A on x and B on A x. PEFT runs both as ``nn.Linear`` modules, so hooks on these two see everything, whatever the
base layer is (Linear, Conv1D, quantised), and the LoRA scaling is already in δ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from jaxtyping import Float
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from longgame.errors import ModelError, PluginError

Receiver = Callable[[str, Float[Tensor, "b T o"], Float[Tensor, "b T i"]], None]
"""Called as (weight name, δ, x) once per weight during the backward pass."""


@dataclass(frozen=True)
class GradientTargets:
    """Linear maps whose weights' per-example gradients are measured."""

    modules: dict[str, nn.Linear | Conv1D]
    """Weight name (canonical, as in `longgame.signals.projection.canonical_name`) → module that applies it."""
    lora: bool
    """LoRA factors, or full fine-tuning's weight matrices."""
    size: int
    """Entries of the gradient."""


def gradient_targets(base: PreTrainedModel, named: Mapping[str, nn.Module]) -> GradientTargets:
    """Find what the gradient is taken of: the active LoRA factors, or else every trainable linear weight.

    With LoRA nothing else may be trainable, or the signal would leave it out unsaid. Without adapters (full
    fine-tuning) the gradient covers the weight matrices of trainable linear layers inside the decoder; embeddings, the
    output head (tied or not), norms and biases are not part of it.

    Args:
        base: the causal LM.
        named: its modules by name.

    Raises:
        ModelError: DoRA or another LoRA variant, LoRA on an embedding or convolution, merged or disabled adapters, two
            active adapters, another PEFT method, trainable weights beside LoRA, or nothing trainable at all.
    """
    layers = {name: module for name, module in named.items() if isinstance(module, BaseTunerLayer)}
    if layers:
        modules: dict[str, nn.Linear | Conv1D] = {}
        for name, layer in layers.items():
            if not isinstance(layer, LoraLayer):
                seen = type(layer).__name__
                raise ModelError(f"gradient signals support LoRA only; layer '{name}' is {seen}. Use LoRA.")
            modules |= _lora_factors(name, layer)
        _refuse_others(named, modules)
    else:
        head = base.get_output_embeddings()
        modules = {
            f"{name}.weight": module
            for name, module in named.items()
            if isinstance(module, nn.Linear | Conv1D) and module is not head and module.weight.requires_grad
        }
        if not modules:
            raise ModelError(
                "gradient signals need trainable weights, and the model has no LoRA adapter and no trainable linear "
                "layer. Attach a LoRA adapter, or set requires_grad on the weights to be trained."
            )
    return GradientTargets(modules, bool(layers), sum(module.weight.numel() for module in modules.values()))


def _lora_factors(name: str, layer: LoraLayer) -> dict[str, nn.Linear | Conv1D]:
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
        return {}
    adapter = active[0]
    variant = layer.lora_variant.get(adapter)
    if variant is not None:
        raise ModelError(
            f"gradient signals support plain LoRA; layer '{name}' uses {type(variant).__name__}. "
            "Turn the variant off (e.g. use_dora=False)."
        )
    factors: dict[str, nn.Linear | Conv1D] = {}
    for key, part in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
        module = part[adapter] if adapter in part else None  # noqa: SIM401 (a ModuleDict has no get)
        if not isinstance(module, nn.Linear):
            raise ModelError(
                f"gradient signals support LoRA on linear layers; layer '{name}' is LoRA's {type(layer).__name__}. "
                "Take it out of target_modules."
            )
        factors[f"{name}.{key}.weight"] = module
    return factors


def _refuse_others(named: Mapping[str, nn.Module], modules: dict[str, nn.Linear | Conv1D]) -> None:
    covered = {id(module.weight) for module in modules.values()}
    others = [
        f"{name}.{key}"
        for name, module in named.items()
        for key, weight in module._parameters.items()
        if weight is not None and weight.requires_grad and id(weight) not in covered
    ]
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise ModelError(
            f"gradient signals cover LoRA's A and B factors, but '{others[0]}'{more} is trainable too. "
            "Freeze it (no modules_to_save, bias='none', one trainable adapter)."
        )


@dataclass
class Recording:
    """What a recorded forward pass left behind."""

    receive: Receiver
    inputs: list[Tensor] = field(default_factory=list)
    """The input embeddings, once the forward pass has run."""
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
    the modules are gone when the context ends; those on activations go with the graph.

    Raises:
        PluginError: (in the forward pass) a target runs twice, or sees activations without a batch dimension.
    """
    record = Recording(receive)
    handles = []

    def at_embedding(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        record.inputs = [output.detach().requires_grad_()]
        return record.inputs[0]

    def at(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            record.claim(name, output.shape)
            if output.requires_grad:
                x = args[0].detach()
                output.register_hook(lambda delta: receive(name, delta, x))

        return hook

    try:
        handles.append(base.get_input_embeddings().register_forward_hook(at_embedding))
        handles += [module.register_forward_hook(at(name)) for name, module in targets.modules.items()]
        yield record
    finally:
        for handle in handles:
            handle.remove()
