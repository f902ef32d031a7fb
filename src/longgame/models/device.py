"""What depends on the device: which ones there are, attention kernels, sizes of chunks, copies to and from it.

The sizes were measured on CPUs, where they stay as they are. A GPU is given larger pieces, by its memory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from longgame.errors import ModelError, RecipeError

Attention = Literal["eager", "sdpa", "flash_attention_2"]
"""transformers' names of attention kernels."""

_CPU_LOGITS = 1 << 22
"""Logits per chunk on a CPU: 16 MB of float32, about what its last cache holds."""
_CPU_TABLES = 1 << 28
"""Bytes of sketch tables that a CPU keeps between calls."""
_UNKNOWN_BYTES = 1 << 33
"""Memory assumed of a device that does not tell it: the smallest that a language model is trained on."""


def device_of(name: str) -> torch.device:
    """Return the torch device of this name; ``auto`` is a GPU where there is one.

    Raises:
        ModelError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ModelError(
            f"device '{name}' cannot be used ({reason}). Give auto, cpu, or a device of this machine."
        ) from error
    return device


def device_name(device: torch.device) -> str:
    """``cpu``, ``cuda (NVIDIA H100 80GB HBM3)``: two cards of one kind round differently, so the card is named."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


def attention_of(setting: str, device: torch.device) -> Attention:
    """Return the attention kernel of `model.attention`; ``auto``: sdpa on a GPU, eager elsewhere.

    On the CPU eager attention leaves an example's float32 logits bit-equal whatever else is in its batch. On a GPU it
    would hold T × T weights per head: at 8B and 2,048 tokens a batch of gradients takes 88 GiB, with sdpa 40.

    Raises:
        ModelError: flash attention off CUDA.
    """
    if setting == "flash":
        if device.type != "cuda":
            raise ModelError(
                f"model.attention is flash, which runs on CUDA GPUs only, and the device is {device.type}. Use auto."
            )
        return "flash_attention_2"
    if setting == "auto":
        return "sdpa" if device.type == "cuda" else "eager"
    return "sdpa" if setting == "sdpa" else "eager"


def visible_gpus(device: torch.device, count: int | None = None) -> tuple[str, ...]:
    """Return what CUDA_VISIBLE_DEVICES names each GPU that may be used; empty off CUDA.

    Args:
        device: of the recipe; with an index, that GPU alone.
        count: so many of them; None: all.

    Raises:
        RecipeError: there are fewer than ``count``.
    """
    gpus: list[str] = []
    if device.type == "cuda":
        named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
        there = torch.cuda.device_count()
        gpus = named[:there] or [str(index) for index in range(there)]
        gpus = gpus if device.index is None else gpus[device.index : device.index + 1]
    if count is not None and count > len(gpus):
        there_are = f"there are {len(gpus)}" if gpus else f"the audit runs on the {device.type}"
        raise RecipeError(f"--gpus is {count}, but {there_are}. Lower it, or leave it out.")
    return tuple(gpus[:count])


def to_host(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Copy tensors to the host, those of an accelerator in one piece: the host waits for every copy of its own."""
    arrays = {name: tensor.numpy() for name, tensor in tensors.items() if tensor.device.type == "cpu"}
    far = {name: tensor.resolve_conj() for name, tensor in tensors.items() if name not in arrays}
    if not far:
        return arrays
    real = {name: torch.view_as_real(part) if part.is_complex() else part for name, part in far.items()}
    packed = torch.cat([part.flatten().view(torch.uint8) for part in real.values()]).cpu().numpy()
    start = 0
    for name, part in real.items():
        piece = packed[start : start + part.nbytes].copy()  # aligned
        start += part.nbytes
        kind = torch.empty(0, dtype=far[name].dtype).numpy().dtype
        arrays[name] = piece.view(kind).reshape(far[name].shape)
    return arrays


def to_device(arrays: Sequence[Int[np.ndarray, ...]], device: torch.device) -> list[Int[Tensor, ...]]:
    """Copy int64 arrays to a device in one piece."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    packed = torch.from_numpy(np.concatenate([array.ravel() for array in arrays])).to(device)
    parts = packed.split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


def device_bytes(device: torch.device) -> int:
    """Memory of an accelerator."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else _UNKNOWN_BYTES


def logit_entries(device: torch.device) -> int:
    """Logits that are held at once.

    Each chunk reads the whole head, 1 GB at 8B. With 32 rows a chunk, as on a CPU, that read takes seven times as long
    as the product. On a GPU a chunk takes a 64th of the memory in float32: 2²⁸ logits on 80 GB.
    """
    if device.type == "cpu":
        return _CPU_LOGITS
    return max(_CPU_LOGITS, 1 << ((device_bytes(device) // 256).bit_length() - 1))


def sketch_table_bytes(device: torch.device) -> int:
    """Bytes of sketch tables that are kept between calls; further ones are drawn on the CPU again for every batch.

    LoRA of rank 16 on an 8B model needs 335 MB. Drawing the part beyond 256 MB anew takes longer than the batch itself,
    so a GPU keeps up to a 32nd of its memory: 2.5 GB of 80.
    """
    return _CPU_TABLES if device.type == "cpu" else max(_CPU_TABLES, device_bytes(device) // 32)
