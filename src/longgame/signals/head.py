"""The vocabulary projection, only where the response is predicted and never as a whole (batch, length, V) block."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from longgame.errors import ModelError

LOGIT_ENTRIES = 1 << 22
"""Logits that exist at one time."""


class LogitHead:
    """Output head of a causal LM: logits = cap(scale · (h Wᵀ + b)), with cap the identity or c·tanh(·/c).

    The scale is read from ``logit_scale`` (Cohere) or ``logits_scaling`` (Granite, a divisor), the cap from
    ``final_logit_softcapping`` (Gemma); `SignalEngine` compares with the model's own logits before it trusts them.

    Args:
        base: the causal LM (not the PEFT wrapper).

    Raises:
        ModelError: there is no output head, or an adapter or wrapper sits on it.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        head = base.get_output_embeddings()
        if type(head) is not nn.Linear:
            seen = "none" if head is None else type(head).__name__
            raise ModelError(
                f"the model's output head is {seen}; signals need a plain torch.nn.Linear. "
                "Load a causal LM, and keep adapters and modules_to_save off its head (e.g. off `lm_head`)."
            )
        config = base.config
        multiply, divide = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)
        cap = getattr(config, "final_logit_softcapping", None)
        self.module: nn.Linear = head
        self.scale = (1.0 if multiply is None else float(multiply)) / (1.0 if divide is None else float(divide))
        self.cap = float(cap) if cap else None

    @property
    def version(self) -> tuple[int, ...]:
        """Changes whenever the head's weights are written in place or replaced."""
        weight, bias = self.module.weight, self.module.bias
        return (weight.data_ptr(), weight._version, -1 if bias is None else bias._version)

    @property
    def trainable(self) -> bool:
        """Whether training moves the head (also when it is tied to trained input embeddings)."""
        return self.module.weight.requires_grad

    def logits(self, hidden: Float[Tensor, "m d"]) -> Float[Tensor, "m V"]:
        """Return the float32 logits of these hidden states."""
        return self.finish(self.module(hidden).float())

    def finish(self, raw: Float[Tensor, ...]) -> Float[Tensor, ...]:
        """Turn h Wᵀ + b into logits (scale, then soft cap), in place."""
        if self.scale != 1.0:
            raw *= self.scale
        if self.cap is not None:
            raw.div_(self.cap).tanh_().mul_(self.cap)
        return raw

    @torch.no_grad()
    def tokens(
        self,
        hidden: Float[Tensor, "m d"],
        target: Int[Tensor, " m"],
        *,
        el2n: bool = False,
        weight: Float[Tensor, " m"] | None = None,
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"] | None, Float[Tensor, "m d"] | None]:
        """Return per response token its NLL (nats), ‖softmax − one-hot‖₂, and weight · ∂NLL/∂hidden.

        The last two are None where they are not asked for (``el2n=False``, ``weight=None``).
        """
        vocabulary = self.module.weight
        nll = hidden.new_empty(len(target), dtype=torch.float32)
        error = torch.empty_like(nll) if el2n else None
        gradient = None if weight is None else torch.empty_like(hidden)
        chunk = max(1, LOGIT_ENTRIES // len(vocabulary))
        for start in range(0, len(target), chunk):
            part = slice(start, start + chunk)
            logits, at = self.logits(hidden[part]), target[part, None]
            slope = None
            if gradient is not None and self.cap is not None:
                slope = 1 - (logits / self.cap).square_()  # derivative of c·tanh(z/c)
            logits -= logits.amax(1, keepdim=True)
            picked = logits.gather(1, at)
            mass = logits.exp_().sum(1, keepdim=True)
            nll[part] = (mass.log() - picked)[:, 0]
            if error is None and gradient is None:
                continue
            miss = logits.div_(mass)
            miss.scatter_add_(1, at, miss.new_full(at.shape, -1.0))  # softmax − one-hot
            if error is not None:
                error[part] = torch.linalg.vector_norm(miss, dim=1)
            if gradient is not None and weight is not None:
                if slope is not None:
                    miss *= slope
                miss *= weight[part, None] * self.scale
                gradient[part] = miss.to(vocabulary.dtype) @ vocabulary
        return nll, error, gradient
