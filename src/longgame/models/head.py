"""The vocabulary projection, only where the response is predicted and never as a whole (batch, length, V) block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
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


# The language-model loss with the head applied to response positions only.


class ResponseHead:
    """Mean response NLL without the logits of prompt and padding positions.

    The backbone gives the hidden states, and only those that predict a labelled token pass the output layer: the same
    sum over the same tokens as the model's own loss, without (batch, length, vocabulary) logits.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        self.backbone, self.head = backbone, head

    @classmethod
    @torch.no_grad()
    def of(cls, model: Any) -> ResponseHead | None:
        """Return the shortcut for this model, or None where it would not give the model's own logits.

        A model may scale, cap or otherwise change what its output layer gives, or put virtual tokens before the
        input; whether this one does is tried on four tokens rather than guessed from its class.
        """
        inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
        backbone = getattr(inner, "base_model", None)
        if head is None or not isinstance(backbone, nn.Module) or backbone is inner:
            return None
        if getattr(inner.config.get_text_config(), "output_router_logits", False):
            return None  # the model's own loss carries a load-balancing term
        device = next(model.parameters()).device
        tokens = torch.arange(4, device=device)[None] % inner.config.get_text_config().vocab_size
        mask = torch.ones_like(tokens)
        training = model.training
        model.eval()
        try:
            expected = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
            found = head(backbone(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state)
        finally:
            model.train(training)
        if expected.shape != found.shape or not torch.allclose(expected, found, rtol=1e-3, atol=1e-3):
            return None
        return cls(backbone, head)

    def loss(self, inputs: Mapping[str, Tensor], items: Tensor | int) -> Float[Tensor, ""]:
        """Sum of response NLL in this micro-batch over ``items``, the labelled tokens of the whole step (nats/token).

        Args:
            inputs: what the model takes, with ``labels`` [b, n] that are −100 where no loss is taken.
        """
        asked = {name: value for name, value in inputs.items() if name != "labels"}
        hidden = self.backbone(**asked, use_cache=False).last_hidden_state
        targets = inputs["labels"][:, 1:]
        rows, columns = (targets != -100).nonzero(as_tuple=True)
        logits = self.head(hidden[rows, columns])  # (response tokens, V)
        return functional.cross_entropy(logits.float(), targets[rows, columns], reduction="sum") / items
