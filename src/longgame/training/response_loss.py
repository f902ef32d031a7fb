"""The language-model loss with the head applied to response positions only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


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
