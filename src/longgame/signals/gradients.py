"""Per-example gradients: norms, sketches, and the step that Adam would take on one example (LESS).

`BatchGradients` receives each weight's output gradient and input while one backward pass runs, so no gradient of a
whole model is ever formed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import Optimizer

from longgame.errors import PluginError
from longgame.models.lora import GradientTargets, OneHot, canonical_name
from longgame.models.sharding import whole
from longgame.signals.projection import CountSketch, layer_of, signs

SIDE = 64
"""Full fine-tuning: a weight's gradient is first projected to at most SIDE × SIDE, then count-sketched."""

LOSS_SCALE = 256.0
"""Float16: slope of the scaled loss by each token's NLL."""
_RETREAT = 64.0
"""Float16: factor by which the scale falls after an overflow, at most `_RETREATS` times."""
_RETREATS = 3


@dataclass(frozen=True)
class Moments:
    """Adam's moments and settings for one parameter."""

    first: Float[Tensor, ...]
    """m, float32, in the parameter's shape."""
    second: Float[Tensor, ...]
    """v, float32."""
    betas: tuple[float, float]
    eps: float
    step: int
    """Steps taken so far; 0 where the parameter had no gradient yet, and both moments are 0."""


def is_adam(optimizer: Optimizer) -> bool:
    """Whether each weight that was trained so far has Adam's moments of its own shape, and at least one has them.

    Adafactor has a second moment for vectors alone, schedule-free Adam no first one, and GaLore projected ones.
    """
    states = [(weight, state) for weight, state in optimizer.state.items() if state]
    return (
        bool(states)
        and all(
            {"exp_avg", "exp_avg_sq", "step"} <= state.keys()
            and state["exp_avg"].shape == state["exp_avg_sq"].shape == weight.shape
            for weight, state in states
        )
        and all("betas" in group and not group.get("amsgrad") for group in optimizer.param_groups)
    )


class AdamPreconditioner:
    """Γ(g) = (β₁m + (1−β₁)g) / (√(β₂v + (1−β₂)g²) + ε) per weight, for one example's gradient g.

    The step that Adam would take (LESS, arXiv 2402.04333, §3.1), without learning rate and weight decay. ε stands
    outside of the root, as in Adam; the published LESS code has it inside, which damps weights with a small v up to a
    hundredfold.

    Args:
        moments: per weight, by its parameter name.
        bias_correction: divide both moments by 1 − βᵗ⁺¹ first, as the LESS paper writes it and Adam's own step does.
            Off by default, as in the published code: up to ε it rescales every Γ of a weight alike.
        epsilon_inside: add ε under the root, as the published code of LESS does.
    """

    def __init__(
        self, moments: Mapping[str, Moments], *, bias_correction: bool = False, epsilon_inside: bool = False
    ) -> None:
        self._moments = {canonical_name(name): moment for name, moment in moments.items()}
        self._correct, self._inside = bool(bias_correction), bool(epsilon_inside)

    @classmethod
    def from_optimizer(
        cls, optimizer: Optimizer, model: nn.Module, *, bias_correction: bool = False
    ) -> AdamPreconditioner:
        """Copy the moments of every trainable parameter; later steps of the optimizer do not change the copy.

        A parameter that had no gradient in any step (an expert that no token reached) has moments of 0. Of parameters
        that FSDP2 divides, all processes call it, and get the moments whole.

        Args:
            optimizer: torch's Adam or AdamW (or accelerate's wrapper around one) after at least one step.
            model: the model whose parameters it changes.

        Raises:
            PluginError: not Adam, no step yet, a parameter unknown to the optimizer, or moments of another shape
                (flattened, sharded or 8-bit).
        """
        groups = {id(weight): group for group in optimizer.param_groups for weight in group["params"]}
        weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        for name, weight in weights.items():
            if id(weight) not in groups:
                raise PluginError(f"the optimizer does not train '{name}'. Pass the optimizer of this model.")
        if not any(optimizer.state.get(weight) for weight in weights.values()):
            raise PluginError(
                "the optimizer has no moments yet: Adam-aware gradients need at least one optimizer step (LESS warms "
                "up on a random subset first). Take one, or use grad_sketch."
            )
        moments = {}
        for name, weight in weights.items():
            state, group = optimizer.state.get(weight, {}), groups[id(weight)]
            if not state:
                zero = torch.zeros_like(weight, dtype=torch.float32)
                state = {"exp_avg": zero, "exp_avg_sq": zero, "step": 0}
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
                whole(state["exp_avg"].detach()).float().clone(),
                whole(state["exp_avg_sq"].detach()).float().clone(),
                (float(group["betas"][0]), float(group["betas"][1])),
                float(group["eps"]),
                int(state["step"]),
            )
        return cls(moments, bias_correction=bias_correction)

    @property
    def moments(self) -> Mapping[str, Moments]:
        """Per weight, by its canonical name."""
        return MappingProxyType(self._moments)

    def restore(self, optimizer: Optimizer, model: nn.Module) -> None:
        """Put the moments into an AdamW that has taken no step; training goes on as if it had taken these.

        Raises:
            PluginError: a trainable parameter has no moments, or some of another shape.
        """
        weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.check(weights)
        for name, weight in weights.items():
            moment = self._moments[canonical_name(name)]
            if moment.step == 0:
                continue
            optimizer.state[weight] = {
                "step": torch.tensor(float(moment.step), device=weight.device),
                "exp_avg": moment.first.to(weight, copy=True),
                "exp_avg_sq": moment.second.to(weight, copy=True),
            }

    def settings(self) -> dict[str, Any]:
        """Everything that Γ depends on, as numbers and tensors, for the ``settings`` of `signal_fingerprint`."""
        moments = {
            name: {field.name: getattr(moment, field.name) for field in fields(Moments)}
            for name, moment in self._moments.items()
        }
        inside = {"epsilon_inside": True} if self._inside else {}
        return {"bias_correction": self._correct, "moments": moments, **inside}

    def check(self, weights: Mapping[str, Tensor]) -> None:
        """Raise PluginError unless there are moments of the same shape for each of these weights."""
        for name, weight in weights.items():
            moment = self._moments.get(canonical_name(name))
            if moment is None or moment.first.shape != weight.shape:
                present = "no moments" if moment is None else f"moments of shape {tuple(moment.first.shape)}"
                raise PluginError(
                    f"the Adam preconditioner has {present} for '{name}' of shape {tuple(weight.shape)}. "
                    "Build it from the optimizer that trains this model (AdamPreconditioner.from_optimizer)."
                )

    def scale(self, name: str, directions: Float[Tensor, "h n"], *, transposed: bool = False) -> Float[Tensor, "h n"]:
        """Each flattened direction of the weight ``name``, divided by √v̂ + ε (v̂: v over 1 − β₂ᵗ) entry by entry.

        The inner product of a gradient g with it is, up to the learning rate, how far a step of Adam along g goes in
        the direction, its moments left as they are. A weight without a step so far has no √v̂, and its direction
        becomes 0.

        Args:
            transposed: whether the weight is stored (in × out); directions are (out × in).
        """
        moment = self._moments[canonical_name(name)]
        if moment.step == 0:
            return torch.zeros_like(directions)
        second = moment.second.T if transposed else moment.second
        second = second.flatten().to(directions.device) / (1 - moment.betas[1] ** moment.step)
        return directions / (second.sqrt() + moment.eps)

    def __call__(self, name: str, gradient: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """Γ of each row, a flattened gradient of the weight ``name``."""
        return self._step(name, gradient, slice(None))

    def at(self, name: str, gradient: Float[Tensor, "b m"], entry: Tensor) -> Float[Tensor, "b m"]:
        """Γ at these entries (b × m indices) of the flattened weight ``name``, from the gradient there."""
        return self._step(name, gradient, entry)

    def _step(self, name: str, gradient: Tensor, entry: Tensor | slice) -> Tensor:
        moment = self._moments[canonical_name(name)]
        first, second = (part.flatten().to(gradient.device)[entry] for part in (moment.first, moment.second))
        beta1, beta2 = moment.betas
        mean = torch.add(beta1 * first, gradient, alpha=1 - beta1)
        square = torch.addcmul(beta2 * second, gradient, gradient, value=1 - beta2)
        if self._correct:
            mean /= 1 - beta1 ** (moment.step + 1)
            square /= 1 - beta2 ** (moment.step + 1)
        if self._inside:
            return mean.div_(square.add_(moment.eps).sqrt_())
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
            "adam_grad_sketch needs LoRA: in full fine-tuning no example's gradient is ever formed. "
            "Use grad_sketch, or train a LoRA adapter."
        )
    preconditioner.check(targets.weights)


class GradientSketch:
    """Sketch of a model's whole gradient: every weight's share is added into the same ``dim`` numbers.

    A LoRA factor (r × d) is count-sketched directly. A full weight matrix (o × i) would need tables as large as the
    model, so its gradient is first multiplied from both sides by seeded ±1/√64 matrices (a side of ≤ 64 stays exact).
    ``seed`` and the weights' names and shapes fix the projection, on every machine.
    """

    def __init__(self, dim: int, seed: int) -> None:
        self.count = CountSketch(dim, seed)
        self.dim = self.count.dim
        self._sides: dict[tuple[str, str, int, torch.device], Tensor] = {}

    def reduce(self, name: str, side: str, states: Float[Tensor, "b T n"]) -> Float[Tensor, "b T m"]:
        """Project the last dimension to SIDE numbers by signs, if it is longer than that."""
        size = states.shape[-1]
        if size <= SIDE:
            return states
        key = (name, side, size, states.device)
        if key not in self._sides:
            matrix = signs(self.count.seed, "gradient-side", name, side, shape=(size, SIDE)) / SIDE**0.5
            self._sides[key] = matrix.to(states.device)
        return states @ self._sides[key]


Directions = Mapping[str, Float[Tensor, "h n"]]
"""Per weight, h flattened directions in the space of the gradient."""


class UnitSum:
    """Weighted sums of the gradients of examples at unit length, exact; `add` is a `recording` receiver.

    A gradient's length is known only after the whole backward pass, so the pass keeps (δ, x) of every weight: about as
    much memory as the activations themselves.

    Args:
        weights: of each example of the batch in each of h sums.
        lora, device: those of `BatchGradients`.
    """

    def __init__(self, weights: Float[Tensor, "b h"], lora: bool, device: torch.device) -> None:
        self._weights = weights
        self._norms = BatchGradients(len(weights), None, True, lora, device)
        self._parts: list[tuple[str, Tensor, Tensor | OneHot]] = []

    def add(self, name: str, delta: Float[Tensor, "b T o"], x: Float[Tensor, "b T i"] | OneHot) -> None:
        """Take one weight's output gradient and input, as `BatchGradients.add`."""
        self._norms.add(name, delta, x)
        # An x with its graph would hold the hooks that hold this object: a cycle that nothing frees.
        self._parts.append((name, delta, x if isinstance(x, OneHot) else x.detach()))

    @torch.no_grad()
    def total(self) -> dict[str, Float[Tensor, "h n"]]:
        """Per weight, Σ_i weights[i, h] · g_i / ‖g_i‖; an example whose gradient is 0 adds nothing."""
        lengths = self._norms.lengths
        scales = torch.where(lengths > 0, 1 / lengths.clamp_min(1e-30), 0.0)
        factors = self._weights * scales[:, None].to(self._weights.dtype)
        return {name: _weighted_sum(factors, delta.float(), x) for name, delta, x in self._parts}


def _weighted_sum(
    factors: Float[Tensor, "b h"], delta: Float[Tensor, "b T o"], x: Float[Tensor, "b T i"] | OneHot
) -> Float[Tensor, "h n"]:
    """Σ_i factors[i, h] · g_i with g_i = Σ_t δ_t x_tᵀ, flattened."""
    if not isinstance(x, OneHot):
        wide = x.float().flatten(0, 1)
        return torch.stack([(delta * f[:, None, None]).flatten(0, 1).T @ wide for f in factors.T]).flatten(1)
    index, columns = _sum_by_index(delta, x.index)
    rows = torch.where(index[..., None] >= 0, columns, 0.0)
    total = delta.new_zeros(factors.shape[1], delta.shape[2], x.size)
    for half, factor in enumerate(factors.T):
        total[half].index_add_(1, index.clamp_min(0).flatten(), (rows * factor[:, None, None]).flatten(0, 1).T)
    return total.flatten(1)


class BatchGradients:
    """Accumulates ‖g‖² and the sketch of each example's gradient g; `add` is a `recording` receiver.

    The gradients of a layer's weights wait for one another, and are measured together: at 135M a GPU would spend more
    time on starting kernels for every weight than in them. A layer's are small beside one token's activations.

    Args:
        examples: b, examples in the batch.
        sketch: projection, or None where only the norm is asked for.
        norm: whether the norm is asked for.
        lora: whether gradients are of LoRA factors (small enough to be formed) or of full weights.
        preconditioned: the sketch and the preconditioner of Adam's step on each example; LoRA only.
        directions: per signal of `ALIGNMENTS` that is asked for, and per weight, h flattened vectors (h × n), h the
            same for all; the inner products of each example's gradient with them are taken exactly.
    """

    def __init__(
        self,
        examples: int,
        sketch: GradientSketch | None,
        norm: bool,
        lora: bool,
        device: torch.device,
        preconditioned: tuple[GradientSketch, AdamPreconditioner] | None = None,
        directions: Mapping[str, Directions] = MappingProxyType({}),
    ):
        self._sketch = sketch
        self._norm = norm or bool(directions)
        self._gives_norm = norm
        self._directions = directions
        self._products = {
            signal: torch.zeros(examples, len(next(iter(vectors.values()))), dtype=torch.float32, device=device)
            for signal, vectors in directions.items()
        }
        self._lora = lora
        self._preconditioned = preconditioned
        self._unscale: Tensor | None = None
        self._layer = ""
        self._formed: dict[str, Tensor] = {}
        """Gradients (b × n) of the layer that the backward pass is in."""
        self._reduced: dict[str, Tensor] = {}
        """Full weights: its projections by `GradientSketch.reduce`."""
        self._square = torch.zeros(examples, dtype=torch.float32, device=device)
        self._vector = torch.zeros(examples, 0 if sketch is None else sketch.dim, device=device)
        self._step = torch.zeros(examples, 0 if preconditioned is None else preconditioned[0].dim, device=device)

    def add(self, name: str, delta: Float[Tensor, "b T o"], x: Float[Tensor, "b T i"] | OneHot) -> None:
        """Take one weight's output gradient and input; its gradient is Σ_t δ_t x_tᵀ (o × i) per example."""
        if layer_of(name) != self._layer:
            self._measure_layer()
            self._layer = layer_of(name)
        if self._unscale is not None:
            delta = delta.float() * self._unscale[:, None, None]
        if isinstance(x, OneHot):
            self._add_columns(name, delta.float(), x)
        elif self._lora:
            self._formed[name] = _outer(delta, x).flatten(1)
        else:
            delta, x = delta.float(), x.float()
            if self._norm:
                self._square += _square_norms(delta, x)
            for signal, vectors in self._vectors_of(name):
                matrices = vectors.unflatten(1, (delta.shape[2], x.shape[2]))
                self._products[signal] += torch.stack([((delta @ one) * x).sum((1, 2)) for one in matrices], dim=1)
            if self._sketch is not None:
                left, right = self._sketch.reduce(name, "out", delta), self._sketch.reduce(name, "in", x)
                self._reduced[name] = (left.mT @ right).flatten(1)

    def backward(
        self,
        hidden: Float[Tensor, "b T d"],
        inputs: list[Tensor],
        slope: Float[Tensor, "b T d"],
        scale: Float[Tensor, " b"] | None = None,
    ) -> None:
        """Run the recorded backward pass from scale · ∂(loss)/∂hidden, and again at a smaller scale if it overflows.

        Args:
            hidden: the last hidden state of the recorded forward pass.
            inputs: `Recording.inputs`.
            slope: scale · ∂(loss)/∂hidden.
            scale: `loss_scale` of the examples; None: not scaled.
        """
        if scale is None:
            torch.autograd.grad(hidden, inputs, slope)
            self._measure_layer()
            return
        for retreats_left in range(_RETREATS, -1, -1):
            self._unscale = scale.reciprocal()
            torch.autograd.grad(hidden, inputs, slope, retain_graph=retreats_left > 0)
            self._measure_layer()
            totals = (self._square, self._vector, self._step, *self._products.values())
            if not retreats_left or all(bool(total.isfinite().all()) for total in totals):
                return
            for total in totals:
                total.zero_()
            slope, scale = slope / _RETREAT, scale / _RETREAT

    @torch.no_grad()
    def _measure_layer(self) -> None:
        """Add what the waiting gradients give."""
        if self._reduced and self._sketch is not None:
            self._vector += self._sketch.count.project_parts(_lengths(self._reduced), _joined(self._reduced))
        self._reduced.clear()
        if not self._formed:
            return
        lengths, gradient = _lengths(self._formed), _joined(self._formed)
        self._formed.clear()
        if self._norm:
            self._square += torch.linalg.vector_norm(gradient, dim=1).square_()
        if self._sketch is not None:
            self._vector += self._sketch.count.project_parts(lengths, gradient)
        if not self._directions and self._preconditioned is None:
            return
        parts = dict(zip(lengths, gradient.split([*lengths.values()], dim=1), strict=True))
        for name, part in parts.items():
            for signal, vectors in self._vectors_of(name):
                self._products[signal] += part @ vectors.T
        if self._preconditioned is not None:
            sketch, adam = self._preconditioned
            steps = torch.cat([adam(name, part) for name, part in parts.items()], dim=1)
            self._step += sketch.count.project_parts(lengths, steps)

    def _add_columns(self, name: str, delta: Float[Tensor, "b T o"], x: OneHot) -> None:
        """Add a gradient that is zero but for the columns that the example's tokens look up."""
        index, columns = _sum_by_index(delta, x.index)
        size = columns.shape[2] * x.size
        row = torch.arange(columns.shape[2], device=delta.device)
        entry = (row * x.size + index[..., None]).where(index[..., None] >= 0, -1).flatten(1)
        value = columns.flatten(1)
        if self._norm:
            self._square += torch.linalg.vector_norm(value, dim=1).square_()
        if self._sketch is not None:
            self._vector += self._sketch.count.project_entries(name, size, entry, value)
        for signal, vectors in self._vectors_of(name):
            present = torch.where(entry >= 0, value, 0.0)
            chosen = vectors[:, entry.clamp_min(0)]  # h × b × entries
            self._products[signal] += (chosen * present).sum(2).T
        if self._preconditioned is not None:  # elsewhere Γ is Γ(0), not zero: add Γ(0), and the difference at entries
            sketch, adam = self._preconditioned
            at_zero = adam(name, value.new_zeros(1, size))
            difference = adam.at(name, value, entry) - adam.at(name, torch.zeros_like(value), entry)
            self._step += sketch.count.project(name, at_zero)
            self._step += sketch.count.project_entries(name, size, entry, difference)

    @property
    def lengths(self) -> Float[Tensor, " b"]:
        """‖g‖₂ of each example, float64."""
        self._measure_layer()
        return self._square.double().sqrt()

    def signals(self) -> dict[str, Float[Tensor, "b ..."]]:
        """‖g‖₂, the sketch of g, the sketch of Adam's step and the alignments, those that were asked for."""
        norms = {"grad_norm": self.lengths} if self._gives_norm else {}
        sketches = {"grad_sketch": self._vector} if self._sketch is not None else {}
        steps = {"adam_grad_sketch": self._step} if self._preconditioned is not None else {}
        lengths = self.lengths.clamp_min(1e-30)[:, None]
        aligned = {signal: products.double() / lengths for signal, products in self._products.items()}
        return norms | sketches | steps | aligned

    def _vectors_of(self, name: str) -> list[tuple[str, Float[Tensor, "h n"]]]:
        """Per alignment that has them: its signal, and its directions of the weight ``name``."""
        return [(signal, vectors[name]) for signal, vectors in self._directions.items() if name in vectors]


def loss_scale(counts: Int[np.ndarray, " b"], hidden: Float[Tensor, "b T d"]) -> Float[Tensor, " b"] | None:
    """Factor of each example's loss before its gradient is taken, so that float16 represents it; other dtypes: None.

    A mean over ``counts`` tokens gives each token a slope near 1/count, and softmax puts 1e-7 on most of the
    vocabulary. Below 6e-5 float16 loses bits, below 6e-8 all.
    """
    if hidden.dtype != torch.float16:
        return None
    return torch.from_numpy(counts * LOSS_SCALE).to(hidden.device, torch.float32)


def _sum_by_index(
    delta: Float[Tensor, "b T o"], index: Int[Tensor, "b T"]
) -> tuple[Int[Tensor, "b T"], Float[Tensor, "b T o"]]:
    """Sum each example's rows of equal index into the first of them; the others become zero, with index −1.

    A product with the T × T table of equal indices sums in the same order every time, unlike a scatter on a GPU.
    """
    same = index[:, :, None] == index[:, None, :]
    first = same.int().argmax(2) == torch.arange(index.shape[1], device=index.device)
    first &= index >= 0
    total = (same & first[:, :, None]).to(delta.dtype) @ delta
    return index.where(first, -1), total


def _outer(delta: Float[Tensor, "b T o"], x: Float[Tensor, "b T i"]) -> Float[Tensor, "b o i"]:
    """Σ_t δ_t x_tᵀ of each example, float32; of two bfloat16 factors summed in float32 and rounded to bfloat16 once."""
    if delta.dtype == x.dtype == torch.bfloat16:
        return delta.mT @ x
    return delta.float().mT @ x.float()


def _square_norms(delta: Float[Tensor, "b T o"], x: Float[Tensor, "b T i"]) -> Float[Tensor, " b"]:
    """‖Σ_t δ_t x_tᵀ‖² of each example, by the cheaper of two exact ways."""
    tokens, rows, columns = delta.shape[1], delta.shape[2], x.shape[2]
    if tokens * (rows + columns) >= rows * columns:
        return torch.linalg.vector_norm((delta.mT @ x).flatten(1), dim=1).square_()
    # Ghost form Σ_{s,t} (δ_s·δ_t)(x_s·x_t): no o × i matrix. Its terms cancel, hence float64.
    delta, x = delta.double(), x.double()
    return ((delta @ delta.mT) * (x @ x.mT)).sum((1, 2)).clamp_min_(0).float()


def _lengths(parts: Mapping[str, Float[Tensor, "b n"]]) -> dict[str, int]:
    return {name: part.shape[1] for name, part in parts.items()}


def _joined(parts: Mapping[str, Float[Tensor, "b n"]]) -> Float[Tensor, "b m"]:
    """Side by side, float32."""
    columns = [*parts.values()]
    return (columns[0] if len(columns) == 1 else torch.cat(columns, dim=1)).float()
