"""A pretend GPU: a device that computes on the CPU, obeys a GPU's rules, and counts what a GPU would wait for.

Tensors on ``gpu:0`` hold real numbers. An operation that mixes them with tensors of the CPU fails as on a GPU. Every
synchronization, copy to the host and upload is counted by the line of longgame that caused it. Importing this module
registers the device for the whole process.

It cannot show a GPU's own rounding, nondeterminism or speed.
"""

from __future__ import annotations

import builtins
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

import longgame
from longgame.models import fused


class _Module(_DummyBackendModule):
    """``torch.gpu``: what torch asks of the module of a device."""

    def get_rng_state(self, _device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, _device: Any = None) -> None:
        torch.set_rng_state(state)

    def manual_seed_all(self, _seed: int) -> None:
        pass


_setup_privateuseone_for_python_backend("gpu", backend_module=_Module())
torch._C._set_only_lift_cpu_tensors(True)
GPU, CPU = torch.device("gpu:0"), torch.device("cpu")
aten = torch.ops.aten
PACKAGE = str(Path(longgame.__file__).parent) + "/"

WAITS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten._linalg_eigh.default,
    aten._unique2.default,
    aten.repeat_interleave.Tensor,
    aten._linalg_check_errors.default,
}
"""Operations whose result, or its shape, the host waits for."""
INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
COPIES = {aten.copy_.default, aten._to_copy.default}
UNCOUNTED = ("aten::detach", "aten::alias", "aten::_unsafe_view", "aten::lift")


@dataclass
class Counts:
    """What happened on the device since the last `watching`."""

    kernels: int = 0
    waits: Counter[str] = field(default_factory=Counter)
    """Times that the host waited, by place."""
    bytes_down: Counter[str] = field(default_factory=Counter)
    """Bytes copied to the host, by place."""
    uploads: Counter[str] = field(default_factory=Counter)
    bytes_up: Counter[str] = field(default_factory=Counter)

    def summary(self) -> dict[str, Any]:
        """Totals, and the places."""
        totals = {name: sum(getattr(self, name).values()) for name in ("waits", "bytes_down", "uploads", "bytes_up")}
        places = {name: dict(getattr(self, name).most_common(12)) for name in ("waits", "bytes_down", "uploads")}
        return {"kernels": self.kernels, **totals, "places": places}


counts = Counts()


def place() -> str:
    """``signals/engine.py:245``: the innermost line of longgame at work, or else of another library than torch."""
    frame, other = sys._getframe(1), "?"
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(PACKAGE):
            return f"{name.removeprefix(PACKAGE)}:{frame.f_lineno}"
        if other == "?" and "site-packages/" in name and "/torch/" not in name:
            other = f"{name.rpartition('site-packages/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return other


class OnGpu(torch.Tensor):
    """A tensor of the pretend GPU around one of the CPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnGpu:
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=GPU,
        )
        wrapper.inner = inner
        return wrapper

    def __repr__(self) -> str:
        return f"OnGpu({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class Driver(TorchDispatchMode):
    """Inside, factory functions can make tensors on the pretend GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    inside = [tensor for tensor in tensors if isinstance(tensor, OnGpu)]
    outside = [tensor for tensor in tensors if not isinstance(tensor, OnGpu)]
    device = kwargs.get("device")
    goes_up = device is not None and torch.device(device).type == "gpu"
    if not inside and not goes_up:
        return func(*args, **kwargs)
    goes_down = bool(inside) and device is not None and not goes_up
    _check(func, args, inside, outside, goes_down)
    _count(func, args, inside, outside, goes_up, goes_down)
    plain_args, plain = tree_map(_unwrapped, (args, kwargs))
    plain = {name: CPU if name == "device" and value else value for name, value in plain.items()}
    plain.pop("pin_memory", None)
    result = func(*plain_args, **plain)
    if goes_down or func is aten._local_scalar_dense.default:
        return result
    if func is aten.copy_.default and not isinstance(args[0], OnGpu):
        return args[0]
    if func._schema.is_mutable and not func.is_view:
        wrappers = {id(tensor.inner): tensor for tensor in inside}
        for tensor in inside:
            assert tensor.inner.shape == tensor.shape, f"{func} changes a shape in place"
        return tree_map(lambda leaf: wrappers.get(id(leaf)) if id(leaf) in wrappers else _wrapped(leaf), result)
    return return_and_correct_aliasing(func, args, kwargs, tree_map(_wrapped, result))


def _check(func: Any, args: Any, inside: list[Any], outside: list[Any], goes_down: bool) -> None:
    if not inside or goes_down or func in COPIES or func in INDEXING:
        return
    shapes = [tuple(tensor.shape) for tensor in outside if tensor.dim()]
    if shapes:
        raise RuntimeError(f"{func}: tensors are on gpu:0 and on the cpu {shapes} at {place()}")


def _count(func: Any, args: Any, inside: list[Any], outside: list[Any], goes_up: bool, goes_down: bool) -> None:
    if not func.is_view and not func._schema.name.startswith(UNCOUNTED):
        counts.kernels += 1
    masks = (torch.bool, torch.uint8)
    indices = [leaf for leaf in args[1] if isinstance(leaf, torch.Tensor)] if func in INDEXING else []
    if func in WAITS or any(index.dtype in masks for index in indices):
        counts.waits[place()] += 1
    if goes_down or (func is aten.copy_.default and not isinstance(args[0], OnGpu)):
        source = inside[-1]
        counts.waits[place()] += 1
        counts.bytes_down[place()] += source.inner.nbytes
    rising = outside if goes_up and not inside else [index for index in indices if not isinstance(index, OnGpu)]
    if func is aten.copy_.default and isinstance(args[0], OnGpu):
        rising = outside
    for tensor in rising:
        counts.uploads[place()] += 1
        counts.bytes_up[place()] += tensor.nbytes


def _unwrapped(leaf: Any) -> Any:
    return leaf.inner if isinstance(leaf, OnGpu) else leaf


def _wrapped(leaf: Any) -> Any:
    return OnGpu(leaf) if isinstance(leaf, torch.Tensor) and not isinstance(leaf, OnGpu) else leaf


def on_gpu(module: Any) -> Any:
    """Move a module's parameters and buffers to the pretend GPU, in place; what is tied stays tied."""
    moved: dict[int, Any] = {}
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for name, tensor in table.items():
                if tensor is None or isinstance(tensor, OnGpu):
                    continue
                if id(tensor) not in moved:
                    wrapper = OnGpu(tensor.detach().clone())
                    is_parameter = isinstance(tensor, nn.Parameter)
                    moved[id(tensor)] = nn.Parameter(wrapper, tensor.requires_grad) if is_parameter else wrapper
                table[name] = moved[id(tensor)]
    return module


def moments_on_gpu(moments: Any) -> Any:
    """Adam's moments of a parameter, on the pretend GPU."""
    return type(moments)(OnGpu(moments.first.clone()), OnGpu(moments.second.clone()), *list(vars(moments).values())[2:])


@contextmanager
def pretending() -> Iterator[None]:
    """Inside, models on the pretend GPU run as on a GPU, and trainers take it as their device.

    A wrapper tensor is no plain Parameter by type, takes no ``.data``, and knows no inference mode. So layers count as
    plain by kind, adapters are not folded, and inference mode is no_grad.
    """
    fused_module: Any = fused
    device_of_arguments = transformers.TrainingArguments.device
    device_of_accelerator, inference = accelerate.Accelerator.device, torch.inference_mode
    largest = fused._LARGEST_FOLD
    try:
        fused_module.type = lambda value: nn.Parameter if isinstance(value, nn.Parameter) else builtins.type(value)
        fused_module._LARGEST_FOLD = 0
        transformers.TrainingArguments.device = property(
            lambda self: (self._setup_devices, CPU if self.use_cpu else GPU)[1]
        )
        accelerate.Accelerator.device = property(lambda _: GPU)
        torch.inference_mode = torch.no_grad
        with Driver():
            yield
    finally:
        del fused_module.type
        fused_module._LARGEST_FOLD = largest
        transformers.TrainingArguments.device = device_of_arguments
        accelerate.Accelerator.device, torch.inference_mode = device_of_accelerator, inference


@contextmanager
def watching() -> Iterator[Counts]:
    """Count from here on."""
    for name, value in vars(Counts()).items():
        setattr(counts, name, value)
    yield counts
