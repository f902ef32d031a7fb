"""What a batch's output says token by token: weights in the loss, and how well each token was predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from longgame.errors import ModelError, RecipeError


def labeled_tokens(labels: Int[Tensor, "b T"]) -> Int[Tensor, ""]:
    """Return the number of tokens that a loss is taken on: labeled ones that something predicts."""
    return (labels[:, 1:] != -100).sum()


def token_weights(
    labels: Int[Tensor, "b T"], weights: Float[np.ndarray, " k"], lengths: Sequence[int]
) -> Float[Tensor, "b T"]:
    """Return the weight of each token of a batch: k examples, a row each, or joined in one row without padding.

    Args:
        lengths: tokens of each example.

    Raises:
        RecipeError: the collator made another batch of them.
    """
    factors = torch.from_numpy(weights).float()
    if len(labels) == len(weights):
        return factors[:, None].expand(labels.shape).contiguous()
    if len(labels) != 1 or labels.shape[1] < sum(lengths):
        raise RecipeError(
            f"the data collator made a batch of shape {tuple(labels.shape)} of {len(weights)} examples with weights, "
            "so it is not known which token has which weight. Use a collator that gives every example a row."
        )
    joined = torch.ones(labels.shape)
    joined[0, : sum(lengths)] = torch.repeat_interleave(factors, torch.as_tensor(lengths))
    return joined


def weight_excess(output: Any, labels: Int[Tensor, "b T"], weights: Float[Tensor, "b T"]) -> Float[Tensor, ""]:
    """Return Σ (weight − 1) · NLL over the labeled tokens, with its gradient; exactly 0 for weights of 1.

    Args:
        output: of the model: logits, or what TRL's fused head gives (``log_probs``).
        labels: of the batch; tokens of a prompt-learning adapter stand before them in the output.
        weights: of each token.

    Raises:
        ModelError: the output has neither.
    """
    width = labels.shape[1] - 1
    excess = (weights[:, 1:] - 1).masked_fill(labels[:, 1:] == -100, 0)
    if getattr(output, "log_probs", None) is not None:
        return -(excess * output.log_probs[:, -width:].float()).sum()
    if getattr(output, "logits", None) is None:
        raise ModelError(
            "weights of a selection need the model's logits, and its output has none (a fused loss). Use a selector "
            "and a dataset without weights."
        )
    rows, columns = excess.nonzero(as_tuple=True)
    logits = output.logits[:, -width - 1 : -1][rows, columns].float()
    nll = functional.cross_entropy(logits, labels[rows, columns + 1].to(logits.device), reduction="none")
    return (excess[rows, columns].to(logits.device) * nll).sum()


class TokenScores(NamedTuple):
    """How well a batch was predicted, token by token; token j + 1 of a row stands at j."""

    nll: Float[np.ndarray, "b m"]
    """0 where no loss is taken."""
    hits: Bool[np.ndarray, "b m"]
    """Whether the token is the most likely one."""
    learned: Bool[np.ndarray, "b m"]

    def of_examples(self, lengths: Sequence[int]) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
        """Return mean NLL (nats/token) and token accuracy of k examples: a row each, or in a row without padding.

        Args:
            lengths: tokens of each example.
        """
        if len(self.nll) == len(lengths):
            nll, hits, learned = (np.sum(values, axis=1, dtype=np.float64) for values in self)
        else:
            starts = np.asarray([0, *np.cumsum(lengths)[:-1]])
            flat = [np.concatenate([[0.0], values[0]])[: sum(lengths)] for values in self]  # by token; 0 for the first
            nll, hits, learned = (np.add.reduceat(values, starts) for values in flat)
        return np.asarray(nll / learned), np.asarray(hits / learned)


@torch.no_grad()
def outcome(output: Any, labels: Int[Tensor, "b T"]) -> TokenScores:
    """Return how well a batch was predicted.

    Args:
        output: of the model: logits, or what TRL's fused head gives (``log_probs``, ``is_top1``, ``label_mask``).
        labels: of the batch; tokens of a prompt-learning adapter stand before them in the output.

    Raises:
        ModelError: the output has neither.
    """
    width = labels.shape[1] - 1
    targets = labels[:, 1:]
    learned = targets != -100
    if getattr(output, "log_probs", None) is not None:
        nll, hits = -output.log_probs[:, -width:].float(), output.is_top1[:, -width:].bool()
    elif getattr(output, "logits", None) is not None:
        logits = output.logits[:, -width - 1 : -1]
        targets, learned = targets.to(logits.device), learned.to(logits.device)
        nll, hits = logits.new_zeros(targets.shape, dtype=torch.float32), torch.zeros_like(learned)
        for row in range(len(labels)):  # example by example: never more than one example's logits in float32
            mask = learned[row]
            chosen, target = logits[row][mask].float(), targets[row][mask]
            nll[row, mask] = functional.cross_entropy(chosen, target, reduction="none")
            hits[row, mask] = chosen.argmax(dim=-1) == target
    else:
        raise ModelError(
            "training_log reads the logits, and the model's output has none (a fused loss, as of Liger). "
            "Set use_liger_kernel=False, or training_log=False."
        )
    return TokenScores(nll.cpu().numpy(), hits.cpu().numpy(), learned.cpu().numpy())
