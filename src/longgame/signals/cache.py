"""Signals stored by content: a column computed once for the same weights, examples and settings is read from disk.

The key of a column is a digest of everything its numbers depend on: weights, buffers and attributes of the model,
tokenizer, settings, code, software and hardware. Code that is in no installed library of known version (a hook, a
module class of one's own) cannot be digested; signals of such a model are not cached.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import time
import types
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from hashlib import blake2b
from importlib import metadata, resources
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
from longgame.signals.base import Engine, work_of
from longgame.storage import write_file

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size, np.generic, Path)
_PASSIVE = {
    "_is_hf_initialized",
    "_output_capturing_hooks_installed",
    "_name_or_path",
    "_commit_hash",
    "base_model_name_or_path",
    "generation_config",
}
"""Attributes that change no signal: where a model was loaded from, how it generates."""
_WATCHING = "transformers.utils.output_capturing"
"""Module whose hooks only read activations; transformers adds them when they are first needed."""
_LIBRARIES = ("longgame", "torch", "transformers", "peft", "numpy", "bitsandbytes", "torchao")
"""Libraries whose versions are part of the key, so that their code is known by name."""
_SUFFIX = ".safetensors"
_STALE_SECONDS = 3600.0
"""Age from which a half-written file is taken for that of a killed process."""

_log = logging.getLogger(__name__)


def signal_fingerprint(
    model: nn.Module, *, tokenizer: PreTrainedTokenizerBase | None = None, settings: Mapping[str, Any] | None = None
) -> str:
    """Return a digest of everything but the examples that signals depend on (about a second per GB and thread).

    Args:
        model: the causal LM, with its adapters as they are now.
        tokenizer: what made the token ids, where it is at hand.
        settings: the arguments of `SignalEngine` (sketch sizes, seed, padding id …); tensors count by content.

    Raises:
        ModelError: the model or the settings hold code or objects of no known library.
    """
    text = None if tokenizer is None else tokenizer_fingerprint(tokenizer)
    parts = [model_fingerprint(model), text, _digest_of(dict(settings or {}), "settings"), _code(), _environment()]
    return _short(json.dumps(parts, sort_keys=True).encode())


def try_fingerprint(model: nn.Module, **options: Any) -> str | None:
    """As `signal_fingerprint`; None, with a warning, where the content of the model cannot be determined."""
    try:
        return signal_fingerprint(model, **options)
    except ModelError as error:
        _log.warning("signals are not cached: %s", error)
        return None


def model_fingerprint(model: nn.Module) -> str:
    """Return a digest of a model's modules: class, attributes, hooks, and every byte of parameters and buffers.

    Raises:
        ModelError: a module class, a hook or an attribute is of no known library.
    """
    blank = vars(nn.Module()).keys()
    names = {id(module): name for name, module in model.named_modules()}
    content: dict[str, Any] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if name != names[id(module)]:
            content[name] = names[id(module)]
            continue
        attributes = {key: value for key, value in vars(module).items() if key not in blank}
        for key, value in vars(module).items():
            if key.endswith("_hooks"):
                hooks = [hook for hook in value.values() if getattr(hook, "__module__", "") != _WATCHING]
                attributes |= {key: hooks} if hooks else {}
        content[name] = {"class": type(module), **module._parameters, **module._buffers, "attributes": attributes}
    return _digest_of(content, type(model).__name__, names)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a digest of vocabulary, merges, normalization, special tokens and chat template."""
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is None:
        content: Any = sorted(tokenizer.get_vocab().items())
    else:
        content = json.loads(inner.to_str())
        content = {key: value for key, value in content.items() if key not in ("padding", "truncation")}  # last call's
    parts = [type(tokenizer).__name__, content, tokenizer.chat_template, str(tokenizer.special_tokens_map)]
    return _short(json.dumps(parts, sort_keys=True).encode())


def pool_fingerprint(pool: Pool) -> str:
    """Return a digest of the examples in their order: ids, token ids, loss masks, prompt and response lengths."""
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
    for row, mask in enumerate(pool.loss_masks or ()):
        if mask is not None:
            digest.update(f"{row} ".encode() + np.packbits(mask).tobytes())
    return digest.hexdigest()


def _short(data: bytes | memoryview) -> str:
    return blake2b(data, digest_size=16).hexdigest()


@lru_cache(maxsize=1)
def _code() -> str:
    """Digest of the source that computes signals, so that no version number has to be maintained."""
    digest = blake2b(digest_size=16)
    for package in ("longgame.models", "longgame.signals", "longgame"):
        for file in sorted(resources.files(package).iterdir(), key=lambda item: item.name):
            if file.name.endswith(".py") and (package != "longgame" or file.name == "seeding.py"):
                digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _environment() -> list[Any]:
    """Software, processor and the switches of torch on which the last bits depend."""
    versions = {}
    for name in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return [
        versions,
        platform.machine(),
        torch.backends.cpu.get_cpu_capability(),
        torch.get_num_threads(),
        [torch.cuda.get_device_name(device) for device in range(torch.cuda.device_count())],
        [torch.is_autocast_enabled(kind) and str(torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")],
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
        str(torch.get_default_dtype()),
        torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled,
        [torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()],
    ]


def _digest_of(content: Any, name: str, modules: Mapping[int, str] | None = None) -> str:
    """Digest of nested content, tensors by every byte; ``modules`` may be referred to, by id.

    Raises:
        ModelError: an object or code of no known library; its place is named.
    """
    tensors: dict[int, tuple[int, Tensor]] = {}

    def describe(value: Any, where: str) -> Any:
        """A value as JSON: tensors by number, objects of known libraries by class and attributes."""
        if isinstance(value, _PLAIN):
            return f"{type(value).__name__} {value!r}"
        if isinstance(value, Tensor):  # a quantized weight keeps its scales in attributes
            return [tensors.setdefault(id(value), (len(tensors), value))[0], describe(vars(value), where)]
        if isinstance(value, Mapping):
            pairs = [(key, item) for key, item in value.items() if key not in _PASSIVE]
            return [[describe(key, where), describe(item, f"{where}.{key}")] for key, item in pairs]
        if isinstance(value, list | tuple):
            return [describe(item, where) for item in value]
        if isinstance(value, set | frozenset):
            return sorted(repr(item) for item in value)
        if isinstance(value, types.MethodType):
            return [describe(value.__func__, where), type(value.__self__).__name__]
        if isinstance(value, nn.Module) and modules and id(value) in modules:
            return f"module {modules[id(value)]}"
        is_code = isinstance(value, type | types.FunctionType | types.BuiltinFunctionType)
        kind = value if is_code else type(value)
        label = f"{kind.__module__}.{kind.__qualname__}"
        if label.split(".")[0] not in _LIBRARIES or "<" in label or not (is_code or hasattr(value, "__dict__")):
            raise ModelError(
                f"Cannot hash {where}, a {label}, so signals of this model cannot be cached: only code of "
                f"{', '.join(_LIBRARIES)} is known by its version. Compute signals without a cache."
            )
        return label if is_code else [label, describe(vars(value), where)]

    try:
        text = json.dumps(describe(content, name))
    except RecursionError as error:
        raise ModelError(f"Cannot hash {name}: its attributes refer to each other in a circle.") from error
    with ThreadPoolExecutor(max_workers=max(1, min(8, os.cpu_count() or 1))) as pool:  # hashing releases the GIL
        digests = list(pool.map(_tensor_digest, (tensor for _, tensor in tensors.values())))
    return _short("\x1e".join([text, *digests]).encode(errors="surrogatepass"))


def _tensor_digest(tensor: Tensor) -> str:
    """Digest of dtype, shape, device kind, whether it is trained (gradients are of trained weights), and every byte."""
    kind = f"{tensor.dtype} {tuple(tensor.shape)} {tensor.device.type} {tensor.layout} {tensor.requires_grad}"
    if tensor.is_meta:
        raise ModelError("a weight is on the meta device and has no values; load the model before its signals.")
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return kind + " " + _short(flat.view(torch.uint8).numpy().data if flat.numel() else b"")


class SignalCache:
    """A directory of signal columns, one file per column; the longest unused columns make room for new ones.

    Equal names hold equal bytes, so nothing is ever invalidated and processes may share a directory. A damaged file is
    computed again; a column that cannot be written is left out. Both are logged as warnings.

    Args:
        directory: created at the first write.
        max_bytes: bound of the directory's size.
    """

    def __init__(self, directory: str | Path, max_bytes: int = 2 << 30) -> None:
        self.directory = Path(directory)
        self.max_bytes = int(max_bytes)
        self._writable = True

    def __call__(
        self, engine: Engine, pool: Pool, names: Sequence[str], fingerprint: str | None
    ) -> dict[str, np.ndarray]:
        """Return ``engine(pool, names)``, from disk if all of these columns are there.

        Args:
            fingerprint: content of what ``engine`` computes with now (`signal_fingerprint`); None: not cached.

        Raises:
            LonggameError: whatever the engine raises.
        """
        if fingerprint is None:
            return dict(engine(pool, names))
        # A pass that takes gradients gives other last bits, so it is part of the key.
        prefix = (fingerprint, pool_fingerprint(pool), work_of(names) == "backward")
        paths = {name: self.directory / f"{_key(*prefix, name)}{_SUFFIX}" for name in names}
        stored = {name: self._read(path, len(pool)) for name, path in paths.items()}
        columns = {name: column for name, column in stored.items() if column is not None}
        if len(columns) == len(paths):
            return columns
        computed = dict(engine(pool, names))
        for name in computed:
            if name not in columns:
                self._write(paths[name], computed[name])
        if self._writable:
            try:
                self._shrink()
            except OSError as error:
                self._give_up(error)
        return computed

    def _read(self, path: Path, rows: int) -> np.ndarray | None:
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
        with suppress(OSError):  # deleted meanwhile, or read-only: then its age decides
            os.utime(path)
        return column

    def _write(self, path: Path, column: np.ndarray) -> None:
        column = np.ascontiguousarray(column)
        if not self._writable or column.nbytes > self.max_bytes:
            return
        try:
            write_file(path, save({"column": column}, metadata={"digest": _digest(column)}))
        except StorageError as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._writable = False
        _log.warning("signals are not cached: %s", error)

    def _shrink(self) -> None:
        """Delete the longest unused columns until the others fit, and half-written files of killed processes."""
        if not self.directory.is_dir():
            return
        columns = []
        for path in self.directory.iterdir():
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            if path.name.endswith(_SUFFIX):
                columns.append((status.st_mtime_ns, path.name, status.st_size))
            elif path.name.endswith(".part") and time.time() - status.st_mtime > _STALE_SECONDS:
                path.unlink(missing_ok=True)
        total = sum(size for _, _, size in columns)
        for _, name, size in sorted(columns):
            if total <= self.max_bytes:
                return
            (self.directory / name).unlink(missing_ok=True)
            total -= size


def _key(fingerprint: str, content: str, backward: bool, name: str) -> str:
    text = "\x1e".join([fingerprint, content, name, "backward" if backward else "forward"])
    return blake2b(text.encode(), digest_size=20).hexdigest()


def _digest(column: np.ndarray) -> str:
    return _short(f"{column.dtype.str} {column.shape} ".encode() + column.tobytes())
