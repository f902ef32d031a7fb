"""The step that Adam would take on one example, from the moments it has gathered (LESS, arXiv 2402.04333, §3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from longgame.errors import PluginError
from longgame.signals.adapters import GradientTargets
from longgame.signals.projection import canonical_name


@dataclass(frozen=True)
class Moments:
    """What Adam remembers about one parameter, and its settings there."""

    first: Float[Tensor, ...]
    """m, float32, in the parameter's shape."""
    second: Float[Tensor, ...]
    """v, float32."""
    betas: tuple[float, float]
    eps: float
    step: int
    """Steps taken so far, ≥ 1."""


class AdamPreconditioner:
    """Γ(g) = (β₁m + (1−β₁)g) / (√(β₂v + (1−β₂)g²) + ε) per weight, for one example's gradient g.

    As FORMULAS states it: ε stands outside of the root, as in Adam (the published LESS code has it inside, which
    damps weights with a small v up to a hundredfold). Weight decay and the learning rate are no part of Γ.

    Args:
        moments: per weight, by its parameter name.
        bias_correction: divide both moments by 1 − βᵗ⁺¹ first, as the LESS paper writes it and Adam's own step does.
            Off by default, as in the published code: it rescales every Γ of a weight alike but for ε.
    """

    def __init__(self, moments: Mapping[str, Moments], *, bias_correction: bool = False) -> None:
        self._moments = {canonical_name(name): moment for name, moment in moments.items()}
        self._correct = bool(bias_correction)

    @classmethod
    def from_optimizer(
        cls, optimizer: Optimizer, model: nn.Module, *, bias_correction: bool = False
    ) -> AdamPreconditioner:
        """Copy the moments of every trainable parameter; later steps of the optimizer do not change the copy.

        Args:
            optimizer: torch's Adam or AdamW (or accelerate's wrapper around one) after at least one step.
            model: the model whose parameters it changes.

        Raises:
            PluginError: not Adam, no step yet, a parameter unknown to the optimizer, or moments of another shape
                (flattened, sharded or 8-bit).
        """
        groups = {id(weight): group for group in optimizer.param_groups for weight in group["params"]}
        moments = {}
        for name, weight in model.named_parameters():
            if not weight.requires_grad:
                continue
            if id(weight) not in groups:
                raise PluginError(f"the optimizer does not train '{name}'. Pass the optimizer of this model.")
            state, group = optimizer.state.get(weight, {}), groups[id(weight)]
            if not state:
                raise PluginError(
                    f"the optimizer holds no moments of '{name}' yet: Adam-aware gradients need at least one optimizer "
                    "step (LESS warms up on a random subset first). Take one, or use plain gradients (grad_sketch)."
                )
            if "exp_avg" not in state or "exp_avg_sq" not in state or group.get("amsgrad", False):
                kind = "amsgrad" if group.get("amsgrad", False) else f"{type(optimizer).__name__} keeps {sorted(state)}"
                raise PluginError(
                    f"Adam-aware gradients need exp_avg and exp_avg_sq of Adam or AdamW, but the state of '{name}' is "
                    f"another: {kind}. Train with adamw_torch."
                )
            if state["exp_avg"].shape != weight.shape:
                raise PluginError(
                    f"the moments of '{name}' have shape {tuple(state['exp_avg'].shape)}, the parameter has "
                    f"{tuple(weight.shape)}. Pass an optimizer that is not sharded or flattened."
                )
            moments[name] = Moments(
                state["exp_avg"].detach().float().clone(),
                state["exp_avg_sq"].detach().float().clone(),
                (float(group["betas"][0]), float(group["betas"][1])),
                float(group["eps"]),
                int(state["step"]),
            )
        return cls(moments, bias_correction=bias_correction)

    def settings(self) -> dict[str, Any]:
        """Everything that Γ depends on, as plain numbers and tensors: for `signal_fingerprint`'s ``settings``."""
        held = {
            name: {field.name: getattr(moment, field.name) for field in fields(Moments)}
            for name, moment in self._moments.items()
        }
        return {"bias_correction": self._correct, "moments": held}

    def check(self, weights: Mapping[str, Tensor]) -> None:
        """Raise PluginError unless there are moments of the right size for each of these weights."""
        for name, weight in weights.items():
            moment = self._moments.get(canonical_name(name))
            if moment is None or moment.first.numel() != weight.numel():
                seen = "no moments" if moment is None else f"moments of shape {tuple(moment.first.shape)}"
                raise PluginError(
                    f"the Adam preconditioner holds {seen} for '{name}' of shape {tuple(weight.shape)}. Build it from "
                    "the optimizer that trains this model (AdamPreconditioner.from_optimizer)."
                )

    def __call__(self, name: str, gradient: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """Γ of each row, a flattened gradient of the weight ``name``."""
        return self._step(name, gradient, slice(None))

    def at(self, name: str, gradient: Float[Tensor, "b m"], entry: Tensor) -> Float[Tensor, "b m"]:
        """Γ at these entries (b × m indices) of the flattened weight ``name``, from the gradient there."""
        return self._step(name, gradient, entry)

    def _step(self, name: str, gradient: Tensor, entry: Tensor | slice) -> Tensor:
        moment = self._moments[canonical_name(name)]
        first, second = (part.flatten().to(gradient.device)[entry] for part in (moment.first, moment.second))
        one, two = moment.betas
        mean = torch.add(one * first, gradient, alpha=1 - one)
        square = torch.addcmul(two * second, gradient, gradient, value=1 - two)
        if self._correct:
            mean /= 1 - one ** (moment.step + 1)
            square /= 1 - two ** (moment.step + 1)
        return mean.div_(square.sqrt_().add_(moment.eps))


def check_preconditioner(preconditioner: AdamPreconditioner | None, targets: GradientTargets) -> None:
    """Raise PluginError unless Adam-aware gradients of these targets can be taken."""
    if preconditioner is None:
        raise PluginError(
            "adam_grad_sketch needs Adam's moments, and the engine has none. Set "
            "engine.preconditioner = AdamPreconditioner.from_optimizer(optimizer, model) after a first step, or use "
            "grad_sketch."
        )
    if not targets.lora:
        raise PluginError(
            "adam_grad_sketch is for LoRA: in full fine-tuning no example's gradient is ever written out. "
            "Use grad_sketch, or train a LoRA adapter."
        )
    preconditioner.check(targets.weights)
