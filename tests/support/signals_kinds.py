"""A model of each kind that per-example gradients are taken of, and all of its signals."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from longgame.data.examples import Pool
from longgame.signals.engine import ADAM, BACKWARD, FORWARD
from longgame.signals.gradients import AdamPreconditioner, Moments
from support.signals import llama, perturb, with_lora
from support.signals_exact import engine_of

ALL = (*FORWARD, *BACKWARD, ADAM)


def model_of(kind: str) -> tuple[nn.Module, AdamPreconditioner | None]:
    """A model of each kind of gradient; the moments of Adam are made up."""
    if kind == "full":
        return llama(), None
    base = llama(tie_word_embeddings=kind == "embedding").to(torch.bfloat16 if kind == "bfloat16" else torch.float32)
    model = with_lora(
        base,
        use_dora=kind == "dora",
        target_modules=["embed_tokens", "q_proj", "up_proj"] if kind == "embedding" else "all-linear",
    )
    perturb(model, "lora_embedding_A", 0.1, 5)
    moments = {
        name: Moments(0.01 * weight.detach().float(), weight.detach().float() ** 2, (0.9, 0.999), 1e-8, 3)
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }
    return model, AdamPreconditioner(moments)


def signals(kind: str, pool: Pool, **options: object) -> dict[str, np.ndarray]:
    model, adam = model_of(kind)
    return engine_of(model, preconditioner=adam, **options)(pool, ALL if adam is not None else ALL[:-1])
