"""What longgame does on a GPU: right numbers, time, memory, and how both compare with what was predicted without one.

```
python -m benchmarks.gpu --out gpu                    # all parts, at most 9 minutes; run it again to go on
python -m benchmarks.gpu --part env,correct           # these parts
python -m benchmarks.gpu --device cpu --quick         # every part in its smallest form, at most a minute
```

Each part runs in a process of its own and ends within its budget. Every side is kept in ``OUT/PART.json`` as soon as it
is measured, and not measured again. ``docs/gpu.md`` says what each number means. Neither a network nor data is needed:
SmolLM2-135M is read from the GGUF that ``LONGGAME_SMOLLM2_GGUF`` names, and otherwise has random weights.
"""

from __future__ import annotations

import argparse
import copy
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import queue
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.harness import (
    Deadline,
    Figure,
    at_least,
    at_most,
    best_seconds,
    peak_memory,
    process_age,
    product_rate,
    reported,
    take_turns,
)
from benchmarks.parts import Sides, end_with_parent, process_context, run_part, start_server
from longgame.errors import LonggameError, ModelError, RecipeError, unknown

CALL_SECONDS, QUICK_SECONDS = 540.0, 60.0
LEAST_SECONDS = 5.0
"""A part is not begun with less."""
GGUF = "LONGGAME_SMOLLM2_GGUF"
FORWARD = ("loss", "el2n", "logit_nuclear_norm", "logit_sketch", "embedding")
ALL = (*FORWARD, "grad_norm", "grad_sketch")
PEAKS = {"H100": 990e12, "H200": 990e12, "A100": 312e12}
"""Dense bfloat16 FLOP/s of a card's data sheet."""
GIB = 2**30
Values = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Setting:
    """What all parts share."""

    device: str
    quick: bool
    out: Path
    data_dir: Path | None = None

    @property
    def target(self) -> torch.device:
        return torch.device(self.device)

    @property
    def full(self) -> bool:
        """Whether the numbers are those that requirements and predictions are about."""
        return self.device == "cuda" and not self.quick

    def speed(self, figure: Figure) -> Figure:
        """The figure on a GPU in full size; elsewhere its number alone."""
        return figure if self.full else reported(figure.name, figure.value)


@dataclass(frozen=True)
class Part:
    """A part of the benchmark: its sides, and the figures that are made of their numbers."""

    seconds: float
    quick_seconds: float
    run: Callable[[Sides, Setting], None]
    figures: Callable[[Values, Setting], list[Figure]]


# ----------------------------------------------------------------------------------------------------- env

_PACKAGES = (
    "torch",
    "numpy",
    "transformers",
    "tokenizers",
    "peft",
    "accelerate",
    "pydantic",
    "gguf",
    "datasets",
    "trl",
)
_PREDICTED_RATES = {"bfloat16": 700.0, "float32": 52.0, "float64": 50.0}
"""TFLOP/s that the predictions assume of an H100."""


def run_env(sides: Sides, setting: Setting) -> None:
    """Versions, and the ceilings of the card: products, copies, launches."""
    device, quick = setting.target, setting.quick
    sides.run("versions", lambda: versions(device), 5)
    for name, size in (("bfloat16", 8192), ("float32", 4096), ("float64", 4096)):
        size = 512 if quick else size
        work = functools.partial(product_rate, getattr(torch, name), size, device)
        sides.run(f"product {name}", lambda work=work, size=size: {"size": size, "tflops": work() / 1e12}, 1)  # type: ignore[misc]
    count = 1 << (22 if quick else 30)
    sides.run("copies", lambda: copies(device, count), 5)
    sides.run("launch", lambda: {"us": launch_seconds(device) * 1e6}, 1)


def versions(device: torch.device) -> dict[str, Any]:
    """Card, driver, and packages; of those that are missing, their names."""
    packages: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = None
    values: dict[str, Any] = {
        "python": platform.python_version(),
        "packages": packages,
        "missing": [name for name, version in packages.items() if version is None],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
    }
    if device.type == "cuda":
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit", "--format=csv"]
        try:
            values["nvidia-smi"] = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
        except (OSError, subprocess.SubprocessError) as error:
            values["nvidia-smi"] = str(error)
        values["card"] = torch.cuda.get_device_name(device)
        values["memory_gib"] = torch.cuda.get_device_properties(device).total_memory / GIB
    return values


def copies(device: torch.device, count: int) -> dict[str, float]:
    """GB/s of a copy on the device (read and written), to the host and from it."""
    source, target = torch.ones(count, device=device), torch.empty(count, device=device)
    part = source[: count // 16]
    host = part.cpu()
    return {
        "device_gb_per_s": 2 * source.nbytes / best_seconds(lambda: target.copy_(source), device) / 1e9,
        "to_host_gb_per_s": part.nbytes / best_seconds(lambda: host.copy_(part), device) / 1e9,
        "from_host_gb_per_s": part.nbytes / best_seconds(lambda: part.copy_(host), device) / 1e9,
    }


def launch_seconds(device: torch.device, count: int = 2000) -> float:
    """Seconds between two small operations."""
    number = torch.ones(8, device=device)

    def work() -> None:
        for _ in range(count):
            number.mul_(1.0)

    return best_seconds(work, device, 3) / count


def env_figures(values: Values, setting: Setting) -> list[Figure]:
    lines = [
        reported(f"gpu_env_{name}_tflops", values[side]["tflops"], predicted)
        for name, predicted in _PREDICTED_RATES.items()
        if (side := f"product {name}") in values
    ]
    if "copies" in values:
        lines.append(reported("gpu_env_copy_gb_per_s", values["copies"]["device_gb_per_s"], 3000))
        lines.append(reported("gpu_env_to_host_gb_per_s", values["copies"]["to_host_gb_per_s"], 6))
    if "launch" in values:
        lines.append(reported("gpu_env_launch_us", values["launch"]["us"], 6))
    return [setting.speed(line) for line in lines]


# ------------------------------------------------------------------------------------------------- correct

LIMITS = {"loss": 1e-5, "el2n": 1e-5, "embedding": 1e-5, "logit_nuclear_norm": 1e-4, "grad_norm": 1e-4}
"""Largest relative difference of an example between the CPU and the device, both float32."""
SKETCHES = ("logit_sketch", "grad_sketch", "adam_grad_sketch")
ANGLE = 1e-5
"""1 − cosine of a sketch on both, at most."""
RANKED = ("loss", "el2n", "logit_nuclear_norm", "grad_norm")
WAITS = {"lora": 6, "lora bfloat16": 6, "full": 8, "dora": 7}
"""Waits and uploads of two batches of all signals, as ``tests/device`` counts them; CUDA waits for an upload, too."""
KINDS: Mapping[str, Mapping[str, Any]] = {
    "lora": {},
    "dora": {"adaptation": "dora"},
    "full": {"adaptation": "full"},
    "adam": {},
}


def shape_of(name: str, setting: Setting) -> Any:
    """The configuration of ``tiny``, ``smollm2-135m`` or ``llama-8b``; quick: two layers and a small vocabulary."""
    from transformers import LlamaConfig

    from benchmarks.training import CASES
    from benchmarks.workload import SHAPES

    if name == "tiny":
        return LlamaConfig(**CASES["tiny-like"].config)
    config = copy.deepcopy(SHAPES[name])
    if setting.quick:
        config.num_hidden_layers, config.vocab_size, config.hidden_size, config.intermediate_size = 2, 512, 64, 128
        config.num_attention_heads, config.num_key_value_heads, config.head_dim = 4, 2, 16
    return config


def run_correct(sides: Sides, setting: Setting) -> None:
    """Numbers of the device beside those of the CPU, of themselves, and the host's waits by line."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # without it cuBLAS has no deterministic mode
    shapes = ("tiny",) if setting.quick else ("tiny", "smollm2-135m")
    for shape in shapes:
        for kind in KINDS:
            sides.run(f"{shape} {kind}", functools.partial(compared, shape, kind, setting), 4)
        sides.run(f"{shape} bfloat16", functools.partial(ranks, shape, setting), 3)
        for way in WAYS:
            sides.run(f"{shape} {way}", functools.partial(repeated, shape, way, setting), 3)
    for kind in WAITS:
        sides.run(f"waits {kind}", functools.partial(waits, kind, setting), 2)


def compared(shape: str, kind: str, setting: Setting) -> dict[str, float]:
    """Per signal, the largest difference of an example between the CPU and the device."""
    from benchmarks.workload import mixed_lengths, shaped
    from longgame.signals.engine import SignalEngine
    from longgame.signals.gradients import AdamPreconditioner

    torch.backends.cuda.matmul.allow_tf32 = False
    count = 4 if setting.quick else 12
    config = shape_of(shape, setting)
    work = shaped(config, dtype=torch.float32, lengths=mixed_lengths(count, 96), attention="eager", adapter=KINDS[kind])
    names: tuple[str, ...] = ("adam_grad_sketch",) if kind == "adam" else ALL
    if kind == "full" and shape != "tiny":  # its sketch would draw a table for each of 135 million entries
        names = (*FORWARD, "grad_norm")
    here, there = work.model, copy.deepcopy(work.model).to(setting.target)
    options: dict[str, Any] = {"pad_token_id": 0, "sketch_dim": 256}
    if kind == "adam":
        optimizer = torch.optim.AdamW([weight for weight in here.parameters() if weight.requires_grad], lr=1e-3)
        ids = torch.tensor(work.pool.input_ids[0])[None]
        here(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        there.load_state_dict(here.state_dict())
        moved = torch.optim.AdamW([weight for weight in there.parameters() if weight.requires_grad], lr=1e-3)
        moved.load_state_dict(optimizer.state_dict())
        expected = SignalEngine(here, preconditioner=AdamPreconditioner.from_optimizer(optimizer, here), **options)(
            work.pool, names
        )
        options["preconditioner"] = AdamPreconditioner.from_optimizer(moved, there)
    else:
        expected = SignalEngine(here, **options)(work.pool, names)
    return gaps(SignalEngine(there, **options)(work.pool, names), expected)


def gaps(measured: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Per signal, ‖difference‖ / ‖expected‖ of the worst example; of a sketch, 1 − cosine."""
    result = {}
    for name, values in expected.items():
        left, right = (part.reshape(len(part), -1).astype(np.float64) for part in (measured[name], values))
        norms = np.linalg.norm(right, axis=1)
        if name in SKETCHES:
            gap = 1 - (left * right).sum(1) / (np.linalg.norm(left, axis=1) * norms)
        else:
            gap = np.linalg.norm(left - right, axis=1) / norms
        result[name] = float(gap.max())
    return result


def ranks(shape: str, setting: Setting) -> dict[str, float]:
    """Of bfloat16 beside float32 on the device: rank correlation of a signal, and common picks of a 25 % budget."""
    from benchmarks.workload import mixed_lengths, shaped
    from longgame.selection.budget import fill_by_score
    from longgame.signals.engine import SignalEngine

    lengths = mixed_lengths(16 if setting.quick else 128, 128)
    columns = []
    for dtype in (torch.float32, torch.bfloat16):
        work = shaped(shape_of(shape, setting), dtype=torch.float32, lengths=lengths)
        model = work.model.to(setting.target)
        model.get_base_model().to(dtype)  # the same weights, rounded
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.data = weight.data.float()
        columns.append(SignalEngine(model, pad_token_id=0)(work.pool, RANKED))
    result = {}
    budget = int(work.pool.tokens.sum()) // 4
    for name in RANKED:
        wide, narrow = (column[name] for column in columns)
        places = [np.argsort(np.argsort(part)) for part in (wide, narrow)]
        picks = [set(fill_by_score(part, work.pool.ids, work.pool.tokens, budget).tolist()) for part in (wide, narrow)]
        result[f"{name} ranks"] = float(np.corrcoef(*places)[0, 1])
        result[f"{name} overlap"] = len(picks[0] & picks[1]) / max(1, len(picks[0]))
    return result


WAYS = ("same call twice", "alone and in a batch", "eager and sdpa", "deterministic twice")


def repeated(shape: str, way: str, setting: Setting) -> dict[str, Any]:
    """The same signals computed in two ways on the device: differences, and in how many low bits they lie."""
    from benchmarks.workload import mixed_lengths, shaped
    from longgame.signals.engine import SignalEngine

    lengths = mixed_lengths(4 if setting.quick else 32, 128)
    work = shaped(shape_of(shape, setting), dtype=torch.float32, device=setting.target, lengths=lengths)
    options: dict[str, Any] = {"pad_token_id": 0, "sketch_dim": 256}
    if way == "deterministic twice":
        torch.use_deterministic_algorithms(mode=True)
    try:
        first = SignalEngine(work.model, **options)(work.pool, ALL)
        if way == "eager and sdpa":
            work.base.set_attn_implementation("eager")
        if way == "alone and in a batch":
            options["max_batch_tokens"] = 1
        second = SignalEngine(work.model, **options)(work.pool, ALL)
    finally:
        torch.use_deterministic_algorithms(mode=False)
    return {"gaps": gaps(second, first), "bits": {name: low_bits(first[name], second[name]) for name in ALL}}


def low_bits(left: np.ndarray, right: np.ndarray) -> float:
    """In how many of the lowest bits two arrays of float32 differ; 0: they are equal."""
    steps = np.abs(_ordered(left) - _ordered(right))
    return float(np.log2(1 + steps.max()))


def _ordered(values: np.ndarray) -> np.ndarray:
    """Float32 numbers as integers, such that neighbors differ by 1."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def waits(kind: str, setting: Setting) -> dict[str, Any]:
    """How often the host waits for the device in two batches of all signals, by line (second call)."""
    from benchmarks.workload import shaped
    from longgame.signals.engine import SignalEngine

    kind, _, dtype = kind.partition(" ")
    lengths = [(4 + row, 2 + row % 5) for row in range(12)]
    work = shaped(
        shape_of("tiny", setting),
        dtype=getattr(torch, dtype or "float32"),
        device=setting.target,
        lengths=lengths,
        attention="eager",
        adapter=KINDS[kind],
    )
    engine = SignalEngine(work.model, pad_token_id=0, sketch_dim=32, max_batch_tokens=120)
    engine(work.pool, ALL)
    with counted_waits(setting.target) as places:
        engine(work.pool, ALL)
    return {"counted": setting.device == "cuda", "waits": sum(places.values()), "places": dict(places.most_common(20))}


@contextmanager
def counted_waits(device: torch.device) -> Iterator[Counter[str]]:
    """Fill a counter with the lines of longgame at which CUDA makes the host wait; empty elsewhere."""
    places: Counter[str] = Counter()
    if device.type != "cuda":
        yield places
        return

    def note(message: Warning | str, *_more: Any, **_options: Any) -> None:
        if "synchronizing" in str(message):
            places[package_line()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode("default")


def package_line() -> str:
    """``signals/engine.py:245``: the innermost line of longgame at work, or ``?``."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if "/longgame/" in name:
            return f"{name.rpartition('/longgame/')[2]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "?"


def correct_figures(values: Values, _setting: Setting) -> list[Figure]:
    lines = []
    sides = {side: part for side, part in values.items() if side.rpartition(" ")[2] in KINDS and "waits" not in side}
    for name in (*LIMITS, *SKETCHES):
        worst = [part[name] for part in sides.values() if name in part]
        if worst:
            lines.append(at_most(f"gpu_correct_{name}", max(worst), LIMITS.get(name, ANGLE)))
    for side, part in values.items():
        label = side.replace(" ", "_").replace("-", "_")
        if side.endswith(" bfloat16") and not side.startswith("waits"):
            lines += [reported(f"gpu_{label}_{key.replace(' ', '_')}", number) for key, number in part.items()]
        elif "bits" in part:
            lines.append(reported(f"gpu_{label}_bits", max(part["bits"].values())))
        elif side.startswith("waits ") and part["counted"]:
            lines.append(at_most(f"gpu_{label}", part["waits"], WAITS[side.removeprefix("waits ")]))
    return lines


# ---------------------------------------------------------------------------------------------------- eigh

EIGENVALUES = ((8, 128), (8, 256), (8, 512), (128, 256))
"""(matrices, side)"""
_PREDICTED_HOST = {(128, 256): 65.0}
"""Milliseconds on 16 cores."""


def run_eigh(sides: Sides, setting: Setting) -> None:
    """Eigenvalues in float64 on the device and on the host, and the root of the head's Gram matrix."""
    device = setting.target
    for count, side in EIGENVALUES[:1] if setting.quick else EIGENVALUES:
        sides.run(f"host {count} x {side}", functools.partial(eigenvalues, count, side, device, host=True), 1)
        sides.run(f"device {count} x {side}", functools.partial(eigenvalues, count, side, device, host=False), 8)
    size = 256 if setting.quick else 4096
    for name in ("cholesky", "eigh"):
        sides.run(f"{name} {size}", functools.partial(factor, name, size, device), 8)


def eigenvalues(count: int, side: int, device: torch.device, *, host: bool) -> dict[str, float]:
    """Milliseconds of the eigenvalues of a batch, on the host with the copy and a thread a matrix."""
    rows = torch.randn(count, side, 2 * side, dtype=torch.float64, device=device)
    gram = rows @ rows.mT
    if not host:
        return {"ms": best_seconds(lambda: torch.linalg.eigvalsh(gram), device, 2) * 1e3}
    with ThreadPoolExecutor(min(count, os.cpu_count() or 1)) as threads:
        return {
            "ms": best_seconds(lambda: list(threads.map(torch.linalg.eigvalsh, gram.cpu())), device, 2) * 1e3,
            "threads": min(count, os.cpu_count() or 1),
        }


def factor(name: str, size: int, device: torch.device) -> dict[str, float]:
    """Milliseconds of a decomposition of one float64 matrix."""
    rows = torch.randn(size, size + 64, dtype=torch.float64, device=device)
    gram = rows @ rows.mT
    return {"ms": best_seconds(lambda: getattr(torch.linalg, name)(gram), device, 1) * 1e3}


def eigh_figures(values: Values, setting: Setting) -> list[Figure]:
    lines = []
    for count, side in EIGENVALUES:
        host, device = (values.get(f"{where} {count} x {side}") for where in ("host", "device"))
        if host:
            lines.append(reported(f"gpu_eigh_host_{count}_{side}_ms", host["ms"], _PREDICTED_HOST.get((count, side))))
        if host and device:
            lines.append(reported(f"gpu_eigh_device_over_host_{count}_{side}", device["ms"] / host["ms"]))
    lines += [
        reported(f"gpu_{side.replace(' ', '_')}_ms", part["ms"])
        for side, part in values.items()
        if side.startswith(("cholesky", "eigh"))
    ]
    return [setting.speed(line) for line in lines]


# ---------------------------------------------------------------------------------------------------- 135m


def smollm2(examples: int, setting: Setting, longest: int = 512) -> Any:
    """SmolLM2-135M on the device in bfloat16; random weights where no GGUF is named."""
    from benchmarks.workload import mixed_lengths, real, shaped

    if os.environ.get(GGUF) and not setting.quick:
        work = real(examples, dtype="bfloat16", data_dir=setting.data_dir, max_length=longest)
        work.model.to(setting.target)
    else:
        work = shaped(
            shape_of("smollm2-135m", setting),
            dtype=torch.bfloat16,
            device=setting.target,
            lengths=mixed_lengths(examples, longest),
            name=f"SmolLM2-135M's shape with random weights ({'--quick' if setting.quick else f'{GGUF} is not set'})",
        )
    print(work.name, flush=True)
    return work


def run_135m(sides: Sides, setting: Setting) -> None:
    """Signals of a small model, which a GPU finishes faster than the host launches them."""
    work = functools.cache(lambda: smollm2(8 if setting.quick else 192, setting, 64 if setting.quick else 512))
    for tokens in (256,) if setting.quick else (1024, 4096, 16384):
        sides.run(f"batches of {tokens}", lambda tokens=tokens: passes(work(), tokens, 1 if setting.quick else 3), 12)  # type: ignore[misc]
    tokens = 256 if setting.quick else 4096
    for side, names in {"forward": FORWARD, "norms": ("grad_norm",), "all": ALL}.items():
        sides.run(f"kernels {side}", lambda names=names: kernels(work(), names, tokens), 8)  # type: ignore[misc]


def passes(work: Any, tokens: int, repeats: int, peaks: bool = False, names: Sequence[str] = ALL) -> dict[str, Any]:
    """Seconds of the plain passes and of the signals on the same batches, by turns; their peak memory in GiB."""
    from benchmarks.signals import plain_sides
    from longgame.signals.engine import SignalEngine

    engine = SignalEngine(work.model, pad_token_id=work.pad_token_id, max_batch_tokens=tokens)
    plain = {side.partition(" @")[0]: run for side, run in plain_sides(work, (tokens,)).items()}
    runs: dict[str, Callable[[], object]] = {
        **plain,
        "signals: forward": lambda: engine(work.pool, FORWARD),
        "signals: all": lambda: engine(work.pool, names),
    }
    times = take_turns(runs, repeats, device=work.device)
    result: dict[str, Any] = {"weights": work.name, "tokens": int(work.pool.tokens.sum())}
    result |= {side: time.best for side, time in times.items()}
    if peaks:
        result["peaks_gib"] = {side: peak_gib(run, work.device) for side, run in runs.items()}
    return result


def peak_gib(work: Callable[[], object], device: torch.device) -> float:
    """Memory at its highest, the model included on a GPU (on a CPU: above what was in use)."""
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    return (before + peak_memory(work, device)) / GIB


def kernels(work: Any, names: Sequence[str], tokens: int) -> dict[str, float]:
    """Kernels of a pass over the pool, the seconds in which the GPU works, and those of the clock.

    On a CPU: operations, and no more.
    """
    from longgame.signals.engine import SignalEngine

    engine = SignalEngine(work.model, pad_token_id=work.pad_token_id, max_batch_tokens=tokens)
    engine(work.pool, names)
    seconds = best_seconds(lambda: engine(work.pool, names), work.device, 2)
    cuda = work.device.type == "cuda"
    activity = torch.profiler.ProfilerActivity.CUDA if cuda else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profile:
        engine(work.pool, names)
        if cuda:
            torch.cuda.synchronize(work.device)
    events = [event for event in profile.events() if not cuda or event.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(event.self_device_time_total for event in events) / 1e6 if cuda else float("nan")
    return {"kernels": len(events), "busy_seconds": busy, "seconds": seconds}


def figures_135m(values: Values, setting: Setting) -> list[Figure]:
    lines = []
    for side, part in values.items():
        if side.startswith("batches of "):
            tokens = side.removeprefix("batches of ")
            predicted = 1.6 if tokens == "4096" else None
            forward = part["signals: forward"] / part["forward + logits"]
            lines.append(at_most(f"gpu_135m_forward_{tokens}", forward, 1.10))
            lines.append(
                at_most(f"gpu_135m_all_{tokens}", part["signals: all"] / part["forward + backward"], 1.10, predicted)
            )
        elif side.startswith("kernels "):
            label = side.replace(" ", "_")
            lines.append(reported(f"gpu_135m_{label}", part["kernels"]))
            lines.append(reported(f"gpu_135m_idle_{label}", 1 - part["busy_seconds"] / part["seconds"]))
    return [setting.speed(line) for line in lines if not math.isnan(line.value)]


# ------------------------------------------------------------------------------------------------------ 8b

SCALED = 4096
"""Tokens of a training step, and of a batch."""


def run_8b(sides: Sides, setting: Setting) -> None:
    """Llama-3-8B's shape with random weights, LoRA r = 16 on every linear layer: time, memory, share of the peak."""
    from benchmarks.workload import Workload, random_pool, shaped
    from longgame.models import head
    from longgame.signals import logits, projection

    quick = setting.quick
    config = shape_of("llama-8b", setting)
    length = 32 if quick else 512

    @functools.cache
    def model() -> Workload:
        return shaped(config, dtype=torch.bfloat16, device=setting.target, lengths=[(1, 1)], name="llama-8b")

    def work(count: int, length: int, attention: str = "sdpa") -> Workload:
        base = model()
        base.base.set_attn_implementation(attention)
        pool = random_pool([(length // 2, length // 2)] * count, config.vocab_size)
        return Workload(base.model, pool, 0, base.name)

    def load() -> dict[str, Any]:
        start = time.perf_counter()
        base = model()
        held = torch.cuda.memory_allocated(setting.target) if setting.device == "cuda" else 0
        return {
            "load_seconds": time.perf_counter() - start,
            "gib": held / GIB,
            "product_parameters": base.product_parameters,
            "head_parameters": config.vocab_size * config.hidden_size,
            "card": torch.cuda.get_device_name(setting.target) if setting.device == "cuda" else "cpu",
        }

    batch = 64 if quick else SCALED
    rounds = 1 if quick else 2
    count = 2 * batch // length
    sides.run("load", load, 25)
    sides.run("sdpa", lambda: passes(work(count, length), batch, rounds, peaks=True), 25)
    sides.run("training sdpa", lambda: training_step(work(batch // length, length)), 5)
    sides.run("one call", lambda: one_call(work(4 if quick else 128, length), batch), 20)
    sides.run("eager", lambda: signals_alone(work(count, length, "eager"), batch), 8)
    for entries in (1 << 12,) if quick else (1 << 22, 1 << 25, 1 << 28):

        def chunked(entries: int = entries) -> dict[str, Any]:
            with (
                patch.object(head, "logit_entries", lambda _device: entries),
                patch.object(logits, "logit_entries", lambda _device: entries),
            ):
                return signals_alone(work(count, length), batch)

        sides.run(f"head chunk {entries}", chunked, 8)

    def capped() -> dict[str, Any]:
        with patch.object(projection, "sketch_table_bytes", lambda _device: 1 << (12 if quick else 28)):
            return signals_alone(work(count, length), batch)

    sides.run("tables capped", capped, 20)
    sides.run("long sdpa", lambda: signals_alone(work(batch // (4 * length) or 1, 4 * length), batch), 8)
    sides.run("long eager", lambda: signals_alone(work(batch // (4 * length) or 1, 4 * length, "eager"), batch), 10)
    sides.run("training eager", lambda: training_step(work(batch // length, length, "eager")), 6)


def signals_alone(work: Any, tokens: int) -> dict[str, Any]:
    """Seconds and peaks of the signals, and the tokens that fit where a batch did not."""
    from longgame.signals.engine import SignalEngine

    engine = SignalEngine(work.model, pad_token_id=0, max_batch_tokens=tokens)
    result: dict[str, Any] = {"tokens": int(work.pool.tokens.sum()), "peaks_gib": {}}
    for side, names in {"signals: forward": FORWARD, "signals: all": ALL}.items():
        result["peaks_gib"][side] = peak_gib(functools.partial(engine, work.pool, names), work.device)
        result[side] = best_seconds(functools.partial(engine, work.pool, names), work.device, 1)
    result["fitting_tokens"] = {str(key): value for key, value in engine._fitting.items()}
    return result


def one_call(work: Any, tokens: int) -> dict[str, Any]:
    """Seconds of 128 candidates of 512 tokens in one call."""
    from longgame.signals.engine import SignalEngine

    engine = SignalEngine(work.model, pad_token_id=0, max_batch_tokens=tokens)
    result: dict[str, Any] = {
        "tokens": int(work.pool.tokens.sum()),
        "response_tokens": int(work.pool.response_tokens.sum()),
    }
    for side, names in {"forward": FORWARD, "all": ALL}.items():
        result[side] = best_seconds(functools.partial(engine, work.pool, names), work.device, 1)
    return result


def training_step(work: Any) -> dict[str, Any]:
    """Seconds and peak of a step: forward, backward, AdamW on the adapter."""
    from longgame.models.head import response_loss
    from longgame.training.candidates import padded_batch

    batch = {name: part.to(work.device) for name, part in padded_batch(work.pool, range(len(work.pool)), 0).items()}
    weights = [weight for weight in work.model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=0.0)
    items = int(work.pool.response_tokens.sum())

    def step() -> None:
        response_loss(work.model, batch, items).backward()
        optimizer.step()
        optimizer.zero_grad()

    work.model.train()
    try:
        peak = peak_gib(step, work.device)
        return {"tokens": int(work.pool.tokens.sum()), "seconds": best_seconds(step, work.device, 2), "peak_gib": peak}
    finally:
        work.model.eval()


def figures_8b(values: Values, setting: Setting) -> list[Figure]:
    lines: list[Figure] = []
    sdpa, load, call = values.get("sdpa"), values.get("load"), values.get("one call")
    if load and setting.full:
        lines.append(reported("gpu_8b_weights_gib", load["gib"], 15.3))
    if sdpa:
        plain = sdpa["forward + backward"]
        lines += [
            at_most("gpu_8b_forward_over_plain", sdpa["signals: forward"] / sdpa["forward + logits"], 1.10),
            at_most("gpu_8b_all_over_plain", sdpa["signals: all"] / plain, 1.10, 0.83),
        ]
    if call:
        lines.append(reported("gpu_8b_128_candidates_forward_s", call["forward"], 2.0))
        lines.append(reported("gpu_8b_128_candidates_all_s", call["all"], 5.1))
    if call and load:
        peak = next((rate for name, rate in PEAKS.items() if name in load["card"]), None)
        once = 2 * (load["product_parameters"] * call["tokens"] + load["head_parameters"] * call["response_tokens"])
        if peak:
            lines.append(at_least("gpu_8b_forward_mfu", once / call["forward"] / peak, 0.40, 0.48))
            lines.append(reported("gpu_8b_all_mfu", 2 * once / call["all"] / peak, 0.38))
    peaks = {
        ("sdpa", "signals: forward"): 15.8,
        ("sdpa", "signals: all"): 40.0,
        ("eager", "signals: forward"): 16.2,
        ("eager", "signals: all"): 51.9,
        ("long sdpa", "signals: all"): 40.0,
        ("long eager", "signals: all"): 88.4,
    }
    for (side, kind), predicted in peaks.items():
        if side in values:
            label = f"gpu_8b_{side.replace(' ', '_')}_{kind.removeprefix('signals: ')}_peak_gib"
            lines.append(reported(label, values[side]["peaks_gib"][kind], predicted))
    for attention, predicted in (("sdpa", 55.6), ("eager", 66.6)):
        if step := values.get(f"training {attention}"):
            lines.append(reported(f"gpu_8b_training_{attention}_peak_gib", step["peak_gib"], predicted))
    if step := values.get("training sdpa"):
        lines.append(reported("gpu_8b_training_step_s", step["seconds"], 0.434))
    base = sdpa and sdpa["signals: forward"]
    for side, part in values.items():
        if base and side.startswith("head chunk "):
            entries = side.removeprefix("head chunk ")
            lines.append(reported(f"gpu_8b_head_chunk_{entries}_over_default", part["signals: forward"] / base))
    if sdpa and "tables capped" in values:
        capped = values["tables capped"]["signals: all"] - sdpa["signals: all"]
        lines.append(reported("gpu_8b_capped_tables_added_s", capped, 1.2))
    return [setting.speed(line) for line in lines]


# -------------------------------------------------------------------------------------------------- select


def run_select(sides: Sides, setting: Setting) -> None:
    """Farthest-first by the package on the CPU and the device, by a dense loop on it, and by that loop compiled."""
    for n, k in ((1500, 60),) if setting.quick else ((100_000, 25_000), (1_000_000, 10_000)):
        sides.run(f"cpu {n} {k}", functools.partial(farthest, "cpu", n, k, setting), 12 if n < 10**6 else 25)
        for way in ("device", "dense", "fused"):
            sides.run(f"{way} {n} {k}", functools.partial(farthest, way, n, k, setting), 15)


def farthest(way: str, n: int, k: int, setting: Setting) -> dict[str, Any]:
    """Seconds of k picks of n rows of 384 numbers, and the share that is at the place of the CPU's picks."""
    from benchmarks.selection import gaussian, lazy, textbook

    rows = gaussian(n)
    start = time.perf_counter()
    if way == "cpu":
        picks = lazy(rows, k)
    elif way == "device":
        picks = lazy(rows, k, setting.device)
    else:
        picks = (textbook if way == "dense" else fused_loop)(rows, k, setting.target)
    seconds = time.perf_counter() - start
    reference = setting.out / f"select-{n}-{k}.npy"
    if way == "cpu":
        np.save(reference, picks)
    same = float((picks == np.load(reference)).mean()) if reference.exists() else float("nan")
    return {"seconds": seconds, "same_picks": same}


def fused_loop(rows: np.ndarray, k: int, device: torch.device) -> np.ndarray:
    """The dense loop with distance, minimum and next pick in one compiled pass over the rows, and no wait of the host.

    On a GPU ``torch.compile`` makes Triton kernels of it. Distances are sums of squared differences.
    """

    def step(matrix: torch.Tensor, nearest: torch.Tensor, pick: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        distance = (matrix - matrix.index_select(0, pick)).square().sum(dim=1)
        nearest = torch.minimum(nearest, distance)
        nearest = torch.where(torch.arange(len(nearest), device=nearest.device) == pick, -torch.inf, nearest)
        return nearest, nearest.argmax().view(1)

    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no pool of processes for two kernels
    compiled = torch.compile(step, dynamic=False)
    matrix = torch.from_numpy(rows).to(device)
    pick = ((matrix - matrix.mean(dim=0)) ** 2).sum(dim=1).argmin().view(1)
    nearest = torch.full((len(rows),), torch.inf, device=device)
    picks = torch.empty(k, dtype=torch.int64, device=device)
    for number in range(k):
        picks[number : number + 1] = pick
        nearest, pick = compiled(matrix, nearest, pick)
    return picks.cpu().numpy()


def select_figures(values: Values, setting: Setting) -> list[Figure]:
    lines = []
    for side, part in values.items():
        way, n, k = side.split()
        if way == "cpu":
            continue
        if way == "device":  # the package promises the picks of the CPU
            lines.append(at_least(f"gpu_select_{n}_{k}_same_picks", part["same_picks"], 1.0))
        if f"cpu {n} {k}" in values:
            ratio = values[f"cpu {n} {k}"]["seconds"] / part["seconds"]
            predicted = 1.6 if way == "device" and n == "100000" else None
            lines.append(setting.speed(reported(f"gpu_select_{n}_{k}_{way}_speedup", ratio, predicted)))
        if way == "dense":
            predicted = 1.7 if n == "100000" else None
            lines.append(setting.speed(reported(f"gpu_select_{n}_{k}_dense_s", part["seconds"], predicted)))
    return lines


# ---------------------------------------------------------------------------------------------------- less


def run_less(sides: Sides, setting: Setting) -> None:
    """Gradient features the LESS way beside the gradient sketch of the same size, by turns."""
    sides.run("135m", lambda: less_seconds(setting), 25)


def less_seconds(setting: Setting) -> dict[str, Any]:
    from benchmarks.references import less
    from longgame.signals.engine import SignalEngine

    dim = 64 if setting.quick else 8192
    work = smollm2(4 if setting.quick else 64, setting, 64 if setting.quick else 512)
    engine = SignalEngine(work.model, pad_token_id=work.pad_token_id, sketch_dim=dim)
    runs: dict[str, Callable[[], object]] = {
        "dense": lambda: less.less_features(work.model, work.pool, dim=dim),
        "sketch": lambda: engine(work.pool, ["grad_sketch"]),
    }
    times = take_turns(runs, 1, device=work.device)
    return {"weights": work.name, "numbers": dim, **{side: time.best for side, time in times.items()}}


def less_figures(values: Values, setting: Setting) -> list[Figure]:
    return [setting.speed(at_least("gpu_less_speed", part["dense"] / part["sketch"], 15)) for part in values.values()]


# ----------------------------------------------------------------------------------------------------- ddp


def run_ddp(sides: Sides, setting: Setting) -> None:
    """One training by one process and by two on the same device: the same picks."""
    for size in (1, 2):
        sides.run(f"{size} process", functools.partial(in_processes, size, setting, sides.deadline), 15)


def in_processes(size: int, setting: Setting, deadline: Deadline) -> dict[str, Any]:
    """Picks and seconds of a training by so many processes (gloo)."""
    context = process_context()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers: Any = context.Queue()
    workers = [context.Process(target=_train, args=(answers, rank, size, port, setting)) for rank in range(size)]
    for worker in workers:
        worker.start()
    try:
        results = {}
        while len(results) < size:
            try:
                rank, result = answers.get(timeout=0.5)
                results[rank] = result
            except queue.Empty:
                if deadline.left < 0 or any(worker.exitcode not in (None, 0) for worker in workers):
                    codes = [worker.exitcode for worker in workers]
                    raise ModelError(f"the processes did not end in time, or died (exit codes {codes}).") from None
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
    if failures := [result["failure"] for result in results.values() if "failure" in result]:
        raise ModelError(failures[0])
    return dict(results[0])


def _train(answers: Any, rank: int, size: int, port: int, setting: Setting) -> None:
    end_with_parent()
    ranks_of = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ.update({name: str(value) for name, value in ranks_of.items()} if size > 1 else {})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    if setting.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
        torch.set_num_threads(1)
    try:
        answers.put((rank, train_once(size, setting)))
    except Exception as error:  # noqa: BLE001 - reported by the process that waits
        answers.put((rank, {"failure": f"{type(error).__name__}: {error}"}))


def train_once(size: int, setting: Setting) -> dict[str, Any]:
    """Digest of the picks of a training with online selection by loss, in this process of ``size``."""
    from transformers import PrinterCallback, TrainingArguments

    from benchmarks.trainers import pad
    from benchmarks.workload import mixed_lengths, shaped
    from longgame.training.config import SelectionConfig
    from longgame.training.trainer import SelectionTrainer

    steps = 3 if setting.quick else 20
    config = shape_of("smollm2-135m", setting)
    config.pad_token_id = 0
    work = shaped(config, dtype=torch.float32, lengths=mixed_lengths(16 * steps, 96))
    rows = [
        {
            "input_ids": ids.tolist(),
            "labels": [-100] * int(prompt) + ids[int(prompt) :].tolist(),
            "attention_mask": [1] * len(ids),
            "sample_id": example.sample_id,
        }
        for ids, prompt, example in zip(work.pool.input_ids, work.pool.prompt_tokens, work.pool.examples, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=8 // size, gradient_accumulation_steps=2,
            report_to=[], save_strategy="no", logging_steps=1, disable_tqdm=True,
            ddp_backend="gloo" if size > 1 else None, use_cpu=setting.device == "cpu", seed=7, learning_rate=1e-3,
        )  # fmt: skip
        trainer = SelectionTrainer(
            work.model,
            arguments,
            data_collator=pad,
            train_dataset=rows,
            selection=SelectionConfig(selector="loss", budget=0.25),
        )
        trainer.remove_callback(PrinterCallback)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]  # over all processes
    picks = [list(decision.picked_ids) for decision in trainer.selection_policy.rounds]
    digest = hashlib.sha256(json.dumps(picks).encode()).hexdigest()[:16]
    return {"picks": digest, "steps": len(picks), "loss": float(np.mean(losses)), "seconds": seconds}


def ddp_figures(values: Values, setting: Setting) -> list[Figure]:
    one, two = values.get("1 process"), values.get("2 process")
    if not (one and two):
        return []
    return [
        at_most("gpu_ddp_other_picks", float(one["picks"] != two["picks"]), 0),
        at_most("gpu_ddp_loss_gap", abs(two["loss"] / one["loss"] - 1), 1e-3),
        setting.speed(reported("gpu_ddp_two_processes_speedup", one["seconds"] / two["seconds"])),
    ]


# --------------------------------------------------------------------------------------------------- audit

_TAR_BYTES = 16 * 2**20
AUDIT_GRACE = 12.0
"""Seconds that an audit has to end after it was interrupted."""


def run_audit(sides: Sides, setting: Setting) -> None:
    """``longgame audit`` on the device, interrupted at the end of the budget and resumed by the next call."""
    calls = sides.values()
    if not any(part["finished"] for part in calls.values()):
        sides.run(f"call {1 + len(calls)}", lambda: audit(sides, setting), 10 if setting.quick else 30)


def audit_recipe(setting: Setting) -> tuple[dict[str, Any], str]:
    """The recipe, and why it is not the one on real data."""
    import yaml

    if setting.quick and setting.device == "cpu":  # the command and its resumption; a model's trial takes too long
        recipe: dict[str, Any] = {"model": {"name": "quadratic"}, "selectors": ["random", "loss"], "seeds": [0]}
        recipe["data"] = {"sequence": "quadratic"}
        why = "--quick on a CPU: the closed-form world"
    elif setting.quick:
        recipe = {
            "model": {"name": "tiny"},
            "data": {"pool_size": 24, "items_per_skill": 1, "ood_items_per_skill": 1},
            "selectors": ["random", "loss"],
            "seeds": [0],
            "training": {"steps": 2, "warmup_steps": 1},
            "probe": {"steps": 2, "points": 2},
        }
        why = "--quick: the tiny model"
    else:
        recipe = yaml.safe_load((Path(__file__).parents[1] / "recipes" / "smollm2-domain.yaml").read_text())
        why = ""
        if not os.environ.get(GGUF) or setting.data_dir is None:
            lacking = "data (--data-dir)" if os.environ.get(GGUF) else GGUF
            why = f"no {lacking}: the tiny model on procedural data"
            recipe = {**recipe, "model": {"name": "tiny"}, "data": {}, "name": "tiny"}
    recipe["name"] = "gpu"
    if recipe["model"]["name"] != "quadratic":
        recipe["model"]["device"] = setting.device
    return recipe, why


def audit(sides: Sides, setting: Setting) -> dict[str, Any]:
    """Run or resume the audit until it ends or the time is up; count its finished stages."""
    recipe, why = audit_recipe(setting)
    file, run = setting.out / "audit-recipe.json", setting.out / "audit"
    file.write_text(json.dumps(recipe))
    command = [sys.executable, "-m", "longgame.cli", "audit", str(file), "--out", str(run)]
    command += ["--workers", "1" if setting.quick else "4"]
    if setting.data_dir is not None:
        command += ["--data-dir", str(setting.data_dir)]
    before, start = finished_stages(run), time.perf_counter()
    with (setting.out / "audit.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        grace = 0.0 if setting.quick else AUDIT_GRACE
        try:
            process.wait(max(1.0, sides.deadline.left - grace))
            ended = True
        except subprocess.TimeoutExpired:
            ended = False
            process.send_signal(signal.SIGINT)
            try:
                process.wait(grace * 0.8)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    seconds, stages = time.perf_counter() - start, finished_stages(run)
    lines = (setting.out / "audit.log").read_text(errors="replace").strip().splitlines()
    if stages == before and process.returncode != 0:
        raise ModelError(
            f"the audit finished no stage in {seconds:.0f} s; the end of its log: {' / '.join(lines[-3:])}"
        )
    return {
        "recipe": why or "smollm2-domain",
        "stages": stages,
        "stages_before": before,
        "of": len(recipe["selectors"]) * len(recipe["seeds"]) * max(1, len(recipe["data"].get("stages", ()))),
        "finished": ended and process.returncode == 0,
        "exit_code": process.returncode,
        "run_seconds": seconds,
        "last_line": lines[-1] if lines else "",
        "archives": pack(run, setting.out),
    }


def finished_stages(run: Path) -> int:
    """Finished stages of trials; 0 without a run."""
    return sum(1 for _ in run.glob("trials/*/stage-*.zip"))


def pack(folder: Path, out: Path) -> list[str]:
    """Pack a folder into files of at most 16 MiB (``cat audit.tgz.* | tar xz``)."""
    for old in out.glob(f"{folder.name}.tgz.*"):
        old.unlink()
    names = []
    with tempfile.TemporaryFile() as packed:
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            archive.add(folder, folder.name)
        packed.seek(0)
        while block := packed.read(_TAR_BYTES):
            names.append(f"{folder.name}.tgz.{len(names):02d}")
            (out / names[-1]).write_bytes(block)
    return names


def audit_figures(values: Values, _setting: Setting) -> list[Figure]:
    calls = [part for side, part in values.items() if side.startswith("call ")]
    if not calls:
        return []
    seconds = sum(part["run_seconds"] for part in calls)
    return [
        reported("gpu_audit_finished_stages", calls[-1]["stages"]),
        reported("gpu_audit_seconds_per_stage", seconds / max(1, calls[-1]["stages"])),
    ]


# ---------------------------------------------------------------------------------------------- the program

PARTS: dict[str, Part] = {
    "env": Part(15, 4, run_env, env_figures),
    "correct": Part(70, 16, run_correct, correct_figures),
    "eigh": Part(30, 3, run_eigh, eigh_figures),
    "135m": Part(70, 6, run_135m, figures_135m),
    "8b": Part(150, 8, run_8b, figures_8b),
    "select": Part(60, 6, run_select, select_figures),
    "less": Part(30, 4, run_less, less_figures),
    "ddp": Part(40, 14, run_ddp, ddp_figures),
    "audit": Part(240, 25, run_audit, audit_figures),
}


def parse(arguments: Sequence[str] | None) -> tuple[list[str], Setting, float]:
    """Return the parts, the setting, and the seconds of the call in units of the default.

    Raises:
        RecipeError: an unknown part, or a folder that cannot be made. ModelError: no GPU.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", default=",".join(PARTS), help="comma-separated: " + ", ".join(PARTS))
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is a GPU")
    parser.add_argument("--quick", action="store_true", help="every part in its smallest form, at most a minute")
    parser.add_argument("--out", type=Path, help="folder of results (default: a new one for --quick, else gpu)")
    parser.add_argument("--data-dir", type=Path, help="folder with train/ and eval/, for 135m and audit")
    parser.add_argument(
        "--seconds", type=float, help=f"of the whole call (default {CALL_SECONDS:.0f}, --quick {QUICK_SECONDS:.0f})"
    )
    options = parser.parse_args(arguments)
    names = [name.strip() for name in options.part.split(",") if name.strip()]
    for name in names:
        if name not in PARTS:
            raise RecipeError(unknown("part", name, PARTS))
    if not names:
        raise RecipeError(f"--part names no part. Known: {', '.join(PARTS)}.")
    there = torch.cuda.is_available()
    if options.device == "cuda" and not there:
        raise ModelError(
            f"--device is cuda, but torch {torch.__version__} finds no CUDA GPU here. Use a build of torch with CUDA "
            "on a machine with a GPU, or --device cpu --quick."
        )
    if options.data_dir is not None and not options.data_dir.is_dir():
        raise RecipeError(f"--data-dir is '{options.data_dir}', which is no folder. Give one with train/ and eval/.")
    device = options.device or ("cuda" if there else "cpu")
    out = options.out or (Path(tempfile.mkdtemp(prefix="longgame-gpu-")) if options.quick else Path("gpu"))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"--out is '{out}', which is no folder that can be made ({error}). Give another.") from error
    usual = QUICK_SECONDS if options.quick else CALL_SECONDS
    if options.seconds is not None and not options.seconds > 0:
        raise RecipeError(f"--seconds is {options.seconds:g}; it must be above 0.")
    setting = Setting(device, options.quick, out.resolve(), options.data_dir and options.data_dir.resolve())
    return names, setting, (options.seconds or usual) / usual


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; 0 where every side has its numbers and every figure is met."""
    try:
        return run(*parse(arguments))
    except LonggameError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code


def run(names: Sequence[str], setting: Setting, pace: float = 1.0) -> int:
    """Run the parts one after the other, and print their figures.

    Args:
        pace: multiplies all budgets.
    """
    deadline = Deadline(pace * (QUICK_SECONDS if setting.quick else CALL_SECONDS) - process_age())
    card = torch.cuda.get_device_name(0) if setting.device == "cuda" else "cpu"
    about = {"device": card, "quick": setting.quick}
    print(f"{card}, torch {torch.__version__}, results in {setting.out}", flush=True)
    start_server()
    notes, short = [], False
    for name in names:
        part = PARTS[name]
        budget = pace * (part.quick_seconds if setting.quick else part.seconds)
        seconds = min(budget, deadline.left)
        if seconds < min(LEAST_SECONDS, budget):
            notes.append(f"{name}: left out, no time left; run again")
            continue
        outcome = run_part(functools.partial(part.run, setting=setting), setting.out / f"{name}.json", seconds, about)
        notes += outcome.notes
        for figure in part.figures(outcome.values, setting):
            short |= not figure.ok
            print(f"{figure}{' quick' if setting.quick else ''}", flush=True)
    for note in notes:
        print(f"no number: {note}")
    return int(short or bool(notes))


if __name__ == "__main__":
    sys.exit(main())
