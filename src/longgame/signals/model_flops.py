"""Reading a model's sizes for the FLOP count."""

from __future__ import annotations

import logging

from torch import nn
from transformers.pytorch_utils import Conv1D

from longgame.signals.flops import ModelFlops
from longgame.signals.head import LogitHead
from longgame.signals.model_parts import decoder_of, unwrap

_FACTORS = ("lora_A", "lora_B")

_log = logging.getLogger(__name__)


def model_flops(model: nn.Module) -> ModelFlops | None:
    """Return what a token costs in this model, or None where its weights do not tell (then nothing is counted).

    Counted are linear layers, quantised ones by their nominal size. A weight matrix outside of them (experts, of which
    a token uses a few) leaves the model uncounted rather than counted wrongly.

    Args:
        model: a transformers causal LM, or a PeftModel around one, with the adapter and the ``requires_grad`` it is
            trained with.

    Raises:
        ModelError: not a causal LM with a decoder and a plain output head.
    """
    base = unwrap(model)
    head, decoder = LogitHead(base), decoder_of(base)
    dense = lora = 0
    trains_dense = False
    linear: set[int] = set()
    for name, module in decoder.named_modules():
        if isinstance(module, nn.Embedding):
            linear.add(id(module.weight))
        if isinstance(module, nn.ParameterDict) and name.endswith(("lora_embedding_A", "lora_embedding_B")):
            linear.update(id(factor) for factor in module.values())
            lora += sum(factor.numel() for factor in module.values()) if name.endswith("_B") else 0
        if not isinstance(module, nn.Linear | Conv1D):
            continue
        linear.add(id(module.weight))
        size = module.in_features * module.out_features if isinstance(module, nn.Linear) else module.weight.numel()
        if set(name.split(".")) & set(_FACTORS):
            lora += size
        else:
            dense += size
            trains_dense |= bool(module.weight.requires_grad)
    config = base.config.get_text_config()
    layers, heads = (getattr(config, name, None) for name in ("num_hidden_layers", "num_attention_heads"))
    odd = [name for name, weight in decoder.named_parameters() if weight.dim() > 1 and id(weight) not in linear]
    if odd or not layers or not heads:
        why = f"'{odd[0]}' is a weight outside linear layers" if odd else "its config names no attention heads"
        _log.warning("the FLOPs of %s are not counted: %s.", type(base).__name__, why)
        return None
    size_of_head = getattr(config, "head_dim", None) or config.hidden_size // heads
    return ModelFlops(
        dense=dense,
        lora=lora,
        attention=layers * heads * size_of_head,
        hidden=head.module.in_features,
        head=head.module.in_features * head.module.out_features,
        trains_dense=trains_dense,
        trains_head=head.trainable,
        capped=head.cap is not None,
    )
