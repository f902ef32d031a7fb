"""What the numbers of a signal come from, as one digest: equal digests, equal bits.

Nothing that the forward pass could read is left out, so a digest may change where the numbers would not (a module's
attribute that plays no part, another thread count), and then something is computed again; never the other way round.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import time
import types
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from enum import Enum
from functools import lru_cache, partial
from hashlib import blake2b
from importlib import metadata, resources
from logging import Logger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from longgame.data.examples import Pool
from longgame.errors import ModelError, StorageError
from longgame.signals.base import SIGNALS, Engine
from longgame.storage import write_file

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


def try_fingerprint(model: nn.Module, **options: Any) -> str | None:
    """As `signal_fingerprint`; None, with a warning, where the content of the model cannot be determined."""
    try:
        return signal_fingerprint(model, **options)
    except ModelError as error:
        _log.warning("signals are not cached: %s", error)
        return None


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
    for package in ("longgame.signals", "longgame.models", "longgame"):
        for file in sorted(resources.files(package).iterdir(), key=lambda item: item.name):
            if file.name.endswith(".py") and (package != "longgame" or file.name == "seeding.py"):
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


# Signals kept by content: what was computed once for the same weights, examples and settings is read from disk.

_SUFFIX = ".safetensors"
_STALE_SECONDS = 3600.0
"""Age from which a half-written file is taken for that of a killed process."""
_log = logging.getLogger(__name__)


class SignalCache:
    """A directory of signal columns, one file each, at most ``max_bytes`` in all; the longest unused go first.

    A column's name on disk is the digest of all it depends on: weights, adapter state, configuration, tokenizer,
    settings, code and software (`signal_fingerprint`), the examples' ids, tokens and prompt lengths
    (`pool_fingerprint`), the signal, and whether gradients were taken in the same pass. There is nothing to
    invalidate. Processes may share a directory: files appear whole, and equal names hold equal bytes.

    A cache is never needed: a file that is damaged is computed again and one that cannot be written is left out, both
    with a warning in the log.

    Args:
        directory: made when something is first kept.
        max_bytes: bound of the directory's size.
    """

    def __init__(self, directory: str | Path, max_bytes: int = 2 << 30) -> None:
        self.directory = Path(directory)
        self.max_bytes = int(max_bytes)
        self._writable = True

    def __call__(
        self, engine: Engine, pool: Pool, names: Sequence[str], fingerprint: str | None
    ) -> dict[str, np.ndarray]:
        """Give ``engine(pool, names)``, from disk where all of these columns are there.

        Args:
            fingerprint: what ``engine`` computes with, as it is now (`signal_fingerprint`); None keeps nothing.

        Raises:
            LonggameError: whatever the engine raises.
        """
        if fingerprint is None:
            return dict(engine(pool, names))
        content = pool_fingerprint(pool)
        backward = any(name in SIGNALS and SIGNALS[name].cost == "backward" for name in names)
        keys = {name: _key(fingerprint, content, name, backward) for name in names}
        held = {name: self._read(key, len(pool)) for name, key in keys.items()}
        kept = {name: column for name, column in held.items() if column is not None}
        if len(kept) == len(keys):
            return kept
        found = dict(engine(pool, names))
        for name, column in found.items():
            if name not in kept:
                self._write(keys[name], column)
        if self._writable:
            try:
                self._shrink()
            except OSError as error:
                self._give_up(error)
        return found

    def _read(self, key: str, rows: int) -> np.ndarray | None:
        path = self.directory / f"{key}{_SUFFIX}"
        try:
            if not path.is_file():
                return None
            with safe_open(path, framework="numpy") as file:
                column = file.get_tensor("column")
                intact = (file.metadata() or {}).get("digest") == _digest(column) and len(column) == rows
        except FileNotFoundError:  # another process made room
            return None
        except (OSError, SafetensorError, ValueError) as error:
            _log.warning("%s cannot be read (%s); the signal is computed again.", path, error)
            return None
        if not intact:
            _log.warning("%s is damaged; the signal is computed again.", path)
            return None
        with suppress(OSError):  # gone meanwhile, or not ours to change: then its age decides
            os.utime(path)
        return column

    def _write(self, key: str, column: np.ndarray) -> None:
        column = np.ascontiguousarray(column)
        if not self._writable or column.nbytes > self.max_bytes:
            return
        try:
            data = save({"column": column}, metadata={"digest": _digest(column)})
            write_file(self.directory / f"{key}{_SUFFIX}", data)
        except StorageError as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._writable = False
        _log.warning("signals are not kept: %s", error)

    def _shrink(self) -> None:
        """Delete the longest unused columns until the rest fits, and what killed processes left half-written."""
        if not self.directory.is_dir():
            return
        found = []
        for path in self.directory.iterdir():
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            if path.name.endswith(_SUFFIX):
                found.append((status.st_mtime_ns, path.name, status.st_size))
            elif path.name.endswith(".part") and time.time() - status.st_mtime > _STALE_SECONDS:
                path.unlink(missing_ok=True)
        total = sum(size for _, _, size in found)
        for _, name, size in sorted(found):
            if total <= self.max_bytes:
                return
            (self.directory / name).unlink(missing_ok=True)
            total -= size


def _key(fingerprint: str, content: str, name: str, backward: bool) -> str:
    text = "\x1e".join([fingerprint, content, name, "backward" if backward else "forward"])
    return blake2b(text.encode(), digest_size=20).hexdigest()


def _digest(column: np.ndarray) -> str:
    kind = f"{column.dtype.str} {column.shape} ".encode()
    return blake2b(kind + column.tobytes(), digest_size=16).hexdigest()
