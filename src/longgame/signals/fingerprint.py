"""What the numbers of a signal come from, as one digest: equal digests, equal bits.

Nothing that the forward pass could read is left out, so a digest may change where the numbers would not (a module's
attribute that plays no part, another thread count), and then something is computed again; never the other way round.
"""

from __future__ import annotations

import json
import os
import platform
import types
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from functools import lru_cache, partial
from hashlib import blake2b
from importlib import metadata, resources
from logging import Logger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from longgame.data.examples import Pool
from longgame.errors import ModelError

_PLAIN = (
    *(type(None), bool, int, float, complex, str, bytes, range, slice, types.EllipsisType, types.NotImplementedType),
    *(torch.dtype, torch.device, torch.Size, np.generic, np.dtype, Path),
)
_PASSIVE = {
    "training",
    "_is_hf_initialized",
    "_output_capturing_hooks_installed",
    "_name_or_path",
    "_commit_hash",
    "base_model_name_or_path",
    "generation_config",
}
"""Attributes that change no signal: the mode (always evaluation), where a model lay, how it generates."""
_REGISTRIES = ("_parameters", "_buffers", "_modules")
_WATCHES = "transformers.utils.output_capturing"
"""Module whose hooks look at activations and change nothing; transformers puts them in when they are first needed."""
_PACKAGES = ("longgame", "torch", "transformers", "peft", "numpy")


def signal_fingerprint(
    model: nn.Module, *, tokenizer: PreTrainedTokenizerBase | None = None, settings: Mapping[str, Any] | None = None
) -> str:
    """Digest of everything but the examples that signals depend on.

    Args:
        model: the causal LM, with its adapters as they are now.
        tokenizer: what made the token ids, where it is at hand.
        settings: the arguments that `SignalEngine` was made with (sketch sizes, seed, padding id …); tensors in them
            are digested by content, arguments that are not given stand at the defaults of this version's code.

    Raises:
        ModelError: the model or the settings hold an object whose effect cannot be told.
    """
    parts = {
        "model": model_fingerprint(model),
        "tokenizer": None if tokenizer is None else tokenizer_fingerprint(tokenizer),
        "settings": _digest_of(dict(settings or {}), "settings"),
        "code": _code(),
        "environment": _environment(),
    }
    return _short(json.dumps(parts, sort_keys=True).encode())


def model_fingerprint(model: nn.Module) -> str:
    """Digest of a model's computation: modules, weights, buffers, adapters, configuration, hooks.

    Every byte of every parameter and buffer counts, and so does every attribute of every module (LoRA scaling, active,
    disabled and merged adapters, eps, rope …), functions that are hooked in or put over a module's own included. About
    a second per GB and thread.

    Raises:
        ModelError: an attribute holds an object whose effect cannot be told.
    """
    return _digest_of(model, type(model).__name__)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Digest of vocabulary, merges, normalisation, special tokens and chat template."""
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is None:
        content: Any = sorted(tokenizer.get_vocab().items())
    else:
        content = json.loads(inner.to_str())
        content = {key: value for key, value in content.items() if key not in ("padding", "truncation")}  # last call's
    parts = [type(tokenizer).__name__, content, tokenizer.chat_template, str(tokenizer.special_tokens_map)]
    return _short(json.dumps(parts, sort_keys=True).encode())


def pool_fingerprint(pool: Pool) -> str:
    """Digest of the examples, in their order: ids, token ids, and how many tokens are prompt and response."""
    ids = [sample_id.encode(errors="surrogatepass") for sample_id in pool.ids]
    columns = (
        [len(item) for item in ids],
        [len(tokens) for tokens in pool.input_ids],
        pool.prompt_tokens,
        pool.response_tokens,
        np.concatenate([np.zeros(0, dtype=np.int64), *pool.input_ids]),
    )
    digest = blake2b(b"".join(ids), digest_size=16)
    for column in columns:
        digest.update(np.ascontiguousarray(column, dtype="<i8").tobytes())
    return digest.hexdigest()


def _short(data: bytes | memoryview) -> str:
    return blake2b(data, digest_size=16).hexdigest()


@lru_cache(maxsize=1)
def _code() -> str:
    """Digest of the source that computes signals: no version number has to be remembered."""
    digest = blake2b(digest_size=16)
    for package in ("longgame.signals", "longgame"):
        for file in sorted(resources.files(package).iterdir(), key=lambda item: item.name):
            if file.name.endswith(".py") and (package == "longgame.signals" or file.name == "seeding.py"):
                digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _environment() -> list[Any]:
    """Software, processor and the switches of torch on which the last bits depend."""
    versions = [f"{name} {metadata.version(name)}" for name in _PACKAGES]
    cuda = [torch.cuda.get_device_name(device) for device in range(torch.cuda.device_count())]
    autocast = [torch.is_autocast_enabled(kind) and str(torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]
    return [
        versions,
        platform.machine(),
        torch.backends.cpu.get_cpu_capability(),
        torch.get_num_threads(),
        cuda,
        autocast,
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
        str(torch.get_default_dtype()),
        torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled,
        [torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()],
    ]


def _digest_of(value: Any, where: str) -> str:
    walk = _Walk()
    walk.visit(value, where)
    return walk.digest()


class _Walk:
    """Goes through whatever hangs on an object once, and notes what it meets in the order of meeting."""

    def __init__(self) -> None:
        self._notes: list[str] = []
        self._met: dict[int, int] = {}
        self._alive: list[Any] = []
        """What was met, kept so that no id is given out twice."""
        self._tensors: list[Tensor] = []

    def digest(self) -> str:
        with ThreadPoolExecutor(max_workers=max(1, min(8, os.cpu_count() or 1))) as pool:  # hashing lets go of the GIL
            found = list(pool.map(_tensor_digest, self._tensors))
        return _short("\x1e".join([*self._notes, *found]).encode(errors="surrogatepass"))

    def visit(self, value: Any, where: str) -> None:
        if isinstance(value, _PLAIN):
            self._notes.append(f"{type(value).__name__} {value!r}")
        elif isinstance(value, Enum):
            self._notes.append(f"{_name(type(value))} {value.name}")
        elif isinstance(value, tuple | frozenset | types.CodeType):  # equal ones may be one object, or two
            self._enter(value, where)
        elif id(value) in self._met:
            self._notes.append(f"again {self._met[id(value)]}")
        else:
            self._met[id(value)] = len(self._alive)
            self._alive.append(value)
            self._enter(value, where)

    def _enter(self, value: Any, where: str) -> None:
        self._notes.append(_name(type(value)))
        if isinstance(value, Tensor):
            self._tensors.append(value)
            self._items(_state(value), where)  # a quantised weight carries its scales there
        elif isinstance(value, np.ndarray):
            self._tensors.append(torch.from_numpy(np.array(value)))
        elif isinstance(value, nn.Module):
            self._module(value, where)
        elif isinstance(value, Mapping):
            self._items(value, where)
        elif isinstance(value, list | tuple):
            self._items(dict(enumerate(value)), where)
        elif isinstance(value, set | frozenset):
            self._items(dict(enumerate(sorted(value, key=repr))), where)
        elif isinstance(value, type | types.BuiltinFunctionType | types.ModuleType | torch._ops.OpOverloadPacket):
            self._notes.append(_name(value))
        elif isinstance(value, types.FunctionType):
            self._function(value, where)
        elif isinstance(value, types.MethodType):
            self._items({"function": value.__func__, "self": value.__self__}, where)
        elif isinstance(value, partial):
            self._items({"function": value.func, "args": value.args, "keywords": value.keywords}, where)
        elif isinstance(value, weakref.ReferenceType):
            self.visit(value(), where)
        elif isinstance(value, types.CodeType):
            self._items({"code": value.co_code, "names": value.co_names, "constants": value.co_consts}, where)
        elif isinstance(value, Logger):
            self._notes.append(value.name)
        elif hasattr(value, "__dict__") or hasattr(type(value), "__slots__"):
            self._items(_state(value), where)
        else:
            raise ModelError(
                f"{where} is a {_name(type(value))}, of which cannot be told what it does to the numbers; signals of "
                "this model cannot be kept by content. Compute them without a cache."
            )

    def _items(self, items: Mapping[Any, Any], where: str) -> None:
        for key, item in items.items():
            self.visit(key, f"a key of {where}")
            self.visit(item, f"{where}.{key}")
        self._notes.append("end")

    def _module(self, module: nn.Module, where: str) -> None:
        blank = _blank()
        for registry in _REGISTRIES:
            self._items(getattr(module, registry), where)
        hooks = {key: value for key, value in vars(module).items() if key.endswith("_hooks") and value}
        for key, held in hooks.items():
            acting = [hook for hook in held.values() if getattr(hook, "__module__", "") != _WATCHES]
            if acting:
                self.visit([key, *acting], f"{where}.{key}")
        own = {key: value for key, value in _state(module).items() if key not in blank and key not in hooks}
        self._items(own, where)

    def _function(self, function: types.FunctionType, where: str) -> None:
        self._notes.append(_name(function))
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        parts = {
            "code": function.__code__,
            "defaults": function.__defaults__,
            "keywords": function.__kwdefaults__,
            "closure": cells,
        }
        self._items(parts, where)


@lru_cache(maxsize=1)
def _blank() -> frozenset[str]:
    """Attributes that every module has of itself."""
    return frozenset(vars(nn.Module()))


def _name(value: Any) -> str:
    return (
        f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', None) or getattr(value, '__name__', '')}"
    )


def _state(value: Any) -> dict[str, Any]:
    """Attributes of an object that may play a part."""
    slots = [name for kind in type(value).__mro__ for name in _slots(kind)]
    held = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    held |= vars(value) if hasattr(value, "__dict__") else {}
    return {name: item for name, item in held.items() if name not in _PASSIVE}


def _slots(kind: type) -> Sequence[str]:
    slots = kind.__dict__.get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _tensor_digest(tensor: Tensor) -> str:
    """Digest of dtype, shape, device kind, whether it is trained (gradients are taken of what is), and every byte."""
    kind = f"{tensor.dtype} {tuple(tensor.shape)} {tensor.device.type} {tensor.layout} {tensor.requires_grad}"
    if tensor.is_meta:
        raise ModelError("a weight is on the meta device and has no values; load the model before its signals.")
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return kind + " " + _short(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
