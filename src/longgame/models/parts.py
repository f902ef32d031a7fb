"""The parts of a causal LM that signals work with: the model under PEFT's wrapper, its decoder, its modes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from longgame.errors import ModelError

_REPACKS = "support_avx512bf16_for_cpu"
"""Attribute of bitsandbytes' Linear4bit: whether it may repack its weights for inference."""


def unwrap(model: nn.Module) -> PreTrainedModel:
    """Return the causal LM itself, with adapter layers in place where PEFT has put them.

    Raises:
        ModelError: not a transformers model, or a PEFT method that lives outside the layers (prompt learning).
    """
    if isinstance(model, PeftModel):
        if model.active_peft_config.is_prompt_learning:
            kind = str(model.active_peft_config.peft_type)
            raise ModelError(f"signals do not support the adapter type {kind} (prompt learning). Use LoRA.")
        model = model.get_base_model()
    if not isinstance(model, PreTrainedModel):
        seen = type(model).__name__
        raise ModelError(f"signals need a transformers causal LM or a PeftModel around one, not {seen}.")
    return model


def decoder_of(base: PreTrainedModel) -> nn.Module:
    """Return the stack from token ids to the last hidden state, without the output head.

    Raises:
        ModelError: the model does not say which of its parts that is.
    """
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else None
    if decoder is None or decoder is base:
        raise ModelError(
            f"{type(base).__name__} names no decoder (get_decoder()). Signals need a decoder-only causal LM."
        )
    return decoder


def decoder_blocks(base: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Return the decoder's layers in order, and the list's name among the causal LM's modules.

    Raises:
        ModelError: the decoder holds no list of ``num_hidden_layers`` layers.
    """
    count = base.config.get_text_config().num_hidden_layers
    decoder = decoder_of(base)
    for name, module in base.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and module in decoder.children():
            return name, module
    raise ModelError(
        f"{type(decoder).__name__} keeps its {count} layers in no list of its own, so the last ones cannot be told. "
        "Leave gradient_layers out."
    )


@contextmanager
def evaluating(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put each of these modules into evaluation mode, and back into its own mode afterwards.

    bitsandbytes' 4-bit layers are kept from repacking their weights: on a CPU with bfloat16 instructions they do so at
    the first forward pass in evaluation mode without gradient, for good, and pass no gradient on ever after.
    """
    modules = list(modules)
    training = [module for module in modules if module.training]
    packing = [module for module in modules if vars(module).get(_REPACKS)]
    try:
        for module in training:
            vars(module)["training"] = False  # nn.Module.__setattr__ takes ten times as long, on every call
        for module in packing:
            vars(module)[_REPACKS] = False
        yield
    finally:
        for module in training:
            vars(module)["training"] = True
        for module in packing:
            vars(module)[_REPACKS] = True


def is_repacked(module: nn.Module) -> bool:
    """Whether this is a 4-bit layer that has repacked its weights for inference and passes no gradient on."""
    state = getattr(module._parameters.get("weight"), "quant_state", None)
    return bool(getattr(state, "packing_format_for_cpu", False))
