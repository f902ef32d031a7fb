"""Timing of sides that take turns, peak memory, deadlines, and figures with what is required of them."""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import json
import math
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import torch


@dataclass(frozen=True)
class Machine:
    """Where a benchmark ran, and the limits that bound it."""

    processor: str
    threads: int
    device: str
    memory_gb_per_s: float
    """Read bandwidth of a large matrix-vector product, GB/s."""
    float32_gflops: float
    bfloat16_gflops: float
    """Rate of a 1024³ matrix product, on a GPU of 8192³."""
    torch: str
    numpy: str
    python: str

    def __str__(self) -> str:
        return (
            f"{self.processor}, {self.threads} threads, {self.device}: {self.memory_gb_per_s:.1f} GB/s read, "
            f"{self.float32_gflops:.0f} GFLOP/s float32, {self.bfloat16_gflops:.0f} GFLOP/s bfloat16; "
            f"torch {self.torch}, NumPy {self.numpy}, Python {self.python}"
        )


def measure_machine(device: torch.device | None = None) -> Machine:
    """Measure the limits of a device (default: the CPU), a second or two."""
    device = device or torch.device("cpu")
    return Machine(
        _processor(),
        torch.get_num_threads(),
        torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        _bandwidth(device),
        _product_rate(torch.float32, device),
        _product_rate(torch.bfloat16, device),
        torch.__version__,
        np.__version__,
        platform.python_version(),
    )


def _bandwidth(device: torch.device) -> float:
    rows = 1 << (20 if device.type == "cuda" else 16)  # 4 GiB: a GPU reads 256 MB in the time of a few launches
    matrix = torch.ones(rows, 1 << 10, device=device)
    vector = torch.ones(1 << 10, device=device)
    return matrix.nbytes / best_seconds(lambda: matrix @ vector, device) / 1e9


def _product_rate(dtype: torch.dtype, device: torch.device) -> float:
    return product_rate(dtype, 8192 if device.type == "cuda" else 1024, device) / 1e9


def product_rate(dtype: torch.dtype, size: int, device: torch.device) -> float:
    """Return the FLOP/s of a product of two square matrices of this size.

    Their entries are random: products of ones draw less power, and a GPU clocks higher.
    """
    square = torch.randn(size, size, device=device).to(dtype)
    return 2 * size**3 / best_seconds(lambda: square @ square, device)


def best_seconds(work: Callable[[], object], device: torch.device, repeats: int = 7) -> float:
    """Return the seconds of the fastest of some runs, after one that is not timed; the clock waits for the device."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _processor() -> str:
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Figure:
    """A number, what is required of it, and what was predicted before it was measured."""

    name: str
    value: float
    required: float | None
    """None: nothing is required."""
    sense: Literal["<=", ">=", "-"]
    predicted: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the requirement is met (NaN never meets one)."""
        if self.required is None:
            return True
        return self.value <= self.required if self.sense == "<=" else self.value >= self.required

    def __str__(self) -> str:
        """``figure NAME VALUE REQUIRED ok|short``; ``-`` where nothing is required."""
        word = "ok" if self.ok else "short"
        required = "-" if self.required is None else f"{self.sense}{self.required:.4g}"
        predicted = "" if self.predicted is None else f" (predicted {self.predicted:.4g}, measured {self.value:.4g})"
        return f"figure {self.name} {self.value:.4g} {required} {word}{predicted}"


def at_most(name: str, value: float, required: float, predicted: float | None = None) -> Figure:
    """A figure that must not exceed ``required``."""
    return Figure(name, float(value), float(required), "<=", predicted)


def at_least(name: str, value: float, required: float, predicted: float | None = None) -> Figure:
    """A figure that must reach ``required``."""
    return Figure(name, float(value), float(required), ">=", predicted)


def reported(name: str, value: float, predicted: float | None = None) -> Figure:
    """A figure of which nothing is required."""
    return Figure(name, float(value), None, "-", predicted)


class Deadline:
    """A moment by which a benchmark ends, and the sides that it leaves out to do so.

    Args:
        seconds: from now on.
        clock: seconds that only grow.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.end = clock() + seconds
        """On the clock."""
        self.left_out: list[str] = []

    @property
    def left(self) -> float:
        """Seconds until the end, below 0 after it."""
        return self.end - self._clock()

    def allows(self, side: str, seconds: float = 0.0) -> bool:
        """Whether a side that takes so many seconds still fits; one that does not is named in `left_out`."""
        if seconds <= self.left:
            return True
        if side not in self.left_out:
            self.left_out.append(side)
        return False


def process_age() -> float:
    """Seconds since this process began, so that imports count, too (Linux; elsewhere 0)."""
    stat = Path("/proc/self/stat")
    if not stat.exists():
        return 0.0
    started = int(stat.read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


QUICK_SECONDS = 60.0
"""A quick run of any benchmark ends in this time, its imports included."""
UNIT_SECONDS = 0.3
"""Processor time of `unit_seconds` on the machine where the parts of quick runs were timed (AMD EPYC, one thread)."""


_STOP_SECONDS = 1.0
"""Before the deadline: in which the figures are printed and children are ended."""


def unit_seconds() -> float:
    """Seconds of a fixed piece of work now: matrix products, reads of memory, and loops of Python."""
    square = torch.ones(256, 256)
    block = np.ones(1 << 21, dtype=np.float32)
    start = time.perf_counter()
    for _ in range(9):
        for _ in range(40):
            square @ square
            block.sum()
        sum(number * number for number in range(200_000))
    return time.perf_counter() - start


def quick_deadline(quick: bool = True) -> Deadline | None:
    """The end of a quick run, counted from the start of the process; None of another run."""
    return Deadline(QUICK_SECONDS - process_age()) if quick else None


def _processor_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@dataclass(frozen=True)
class Form:
    """One way to run a part of a benchmark."""

    work: Callable[[], object]
    seconds: float = 0.0
    """Processor time that it took on the machine of `UNIT_SECONDS`."""


Parts = Mapping[str, Sequence[Form]]
"""Part → its forms, from the largest to the smallest."""


def run_parts(report: Report, parts: Parts, file: Path | None, deadline: Deadline | None = None) -> bool:
    """Run each part in its largest form that fits before the deadline, finish the report, and say whether all is met.

    What a form takes is estimated from the rate of this machine. At the deadline the process ends, whatever is at
    work. Parts that were left out are named, and so is the one that was cut off.

    Args:
        file: where figures and rows are written, if anywhere.
        deadline: None: no part is left out.
    """
    at_work: list[str] = []
    left = list(parts)
    pace = 1.0

    def finish_early() -> None:
        report.left_out += [f"{name} (cut off)" for name in at_work] + left
        report.finish(file)

    with ended_at(deadline, finish_early):
        if deadline is not None:
            pace = unit_seconds() / UNIT_SECONDS
        for name, forms in parts.items():
            left.remove(name)
            later = [parts[other] for other in left]
            seconds = math.inf if deadline is None else max(0.0, deadline.left)
            form = _fitting(forms, later, seconds / pace)
            if form is None:
                report.left_out.append(name)
                report.reasons[name] = (
                    f": about {forms[-1].seconds * pace:.0f} s on this machine, which now takes {pace:.1f} times as "
                    f"long as the one of the estimates; {seconds:.0f} s were left. Run it without --quick, or on an "
                    "idle machine"
                )
                continue
            at_work[:] = [name]
            start, cpu = time.perf_counter(), _processor_seconds()
            form.work()
            took = {"seconds": time.perf_counter() - start, "cpu_seconds": _processor_seconds() - cpu}
            report.parts[name] = {"form": forms.index(form), **took}
    return report.finish(file)


@contextmanager
def ended_at(deadline: Deadline | None, finish: Callable[[], object]) -> Iterator[None]:
    """End this process and its children at the deadline, whatever is at work inside; before that, call ``finish``."""
    if deadline is None:
        yield
        return

    def stop() -> None:
        try:
            finish()
            sys.stdout.flush()
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):  # it has ended by itself
                    process.kill()
        finally:
            os._exit(1)

    watch = threading.Timer(max(0.0, deadline.left - _STOP_SECONDS), stop)
    watch.daemon = True
    watch.start()
    # A library that keeps the interpreter's lock stops that thread, but not this one, which is of C.
    faulthandler.dump_traceback_later(max(0.1, deadline.left), exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        yield
    finally:
        watch.cancel()
        faulthandler.cancel_dump_traceback_later()


def _fitting(forms: Sequence[Form], later: Sequence[Sequence[Form]], seconds: float) -> Form | None:
    """The largest form that leaves time for the smallest ones of later parts; if none does, the smallest that fits."""
    reserved = sum(others[-1].seconds for others in later)
    for form in forms:
        if form.seconds + reserved <= seconds:
            return form
    return forms[-1] if forms[-1].seconds <= seconds else None


@dataclass(frozen=True)
class Times:
    """Seconds of each repeat of one side."""

    seconds: tuple[float, ...]

    @property
    def best(self) -> float:
        """The fastest repeat: whatever else the machine does can only add time."""
        return min(self.seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def take_turns(
    sides: Mapping[str, Callable[[], Any]], repeats: int, *, warmup: int = 1, device: torch.device | None = None
) -> dict[str, Times]:
    """Run every side once, then again from the first, ``repeats`` times, so that all meet the same machine.

    Args:
        sides: name → what is timed.
        repeats: timed rounds, ≥ 1.
        warmup: untimed rounds before them.
        device: where a CUDA device works asynchronously, the clock waits for it.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(warmup + repeats):
        for name, side in sides.items():
            gc.collect()
            start = time.perf_counter()
            side()
            if device is not None and device.type == "cuda":
                torch.cuda.synchronize(device)
            if number >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: Times(tuple(values)) for name, values in seconds.items()}


def peak_memory(work: Callable[[], Any], device: torch.device | None = None) -> int:
    """Return by how many bytes memory rose, at its highest, above what was in use when ``work`` began.

    On a CUDA device it is the allocator's peak; on Linux the process' peak resident memory. Elsewhere there is no such
    number, and it raises OSError.
    """
    gc.collect()
    if device is not None and device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    _give_back()
    _CLEAR.write_text("5")  # the peak starts anew at what is resident now
    before = resident()
    work()
    return max(0, _field("VmHWM") - before)


def resident() -> int:
    """Resident memory of this process, bytes (Linux)."""
    return _field("VmRSS")


def peak_resident() -> int:
    """Highest resident memory of this process since it began, bytes (Linux); the system's own maximum outlives exec."""
    return _field("VmHWM")


def _field(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {name}.")


def _give_back() -> None:
    """Return freed memory to the system, so that a peak does not hide in it (glibc; elsewhere nothing happens)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@dataclass
class Report:
    """Figures and table rows of one benchmark, printed as they come."""

    title: str
    machine: Machine
    figures: list[Figure] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    quick: bool = False
    """Whether the figures are those of small sizes and few repeats; their lines say so."""
    parts: dict[str, dict[str, float]] = field(default_factory=dict)
    """Part → which form of it was run, and what it took; children's processor time counts."""
    left_out: list[str] = field(default_factory=list)
    """Parts for which a quick run had no time."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Part that was left out → what it takes on this machine."""

    def add(self, figures: Iterable[Figure] = (), rows: Sequence[Mapping[str, Any]] = ()) -> None:
        """Keep figures and table rows (plain numbers and strings)."""
        self.figures += figures
        self.rows += [dict(row) for row in rows]

    def finish(self, file: Path | None) -> bool:
        """Print one line a figure, write everything to ``file`` as JSON, and return whether all is met and measured."""
        for figure in self.figures:
            print(f"{figure} quick" if self.quick else figure)
        for name in self.left_out:
            print(f"left out: {name}, for which the time of this run did not suffice{self.reasons.get(name, '')}")
        self.save(file)
        return all(figure.ok for figure in self.figures) and not self.left_out

    def save(self, file: Path | None) -> None:
        """Write what there is so far to ``file`` as JSON, if one was named: a long benchmark may be stopped."""
        if file is None:
            return
        payload = {
            "title": self.title,
            "machine": asdict(self.machine),
            "quick": self.quick,
            "parts": self.parts,
            "left_out": self.left_out,
            "reasons": self.reasons,
            "figures": [asdict(figure) | {"ok": figure.ok} for figure in self.figures],
            "rows": self.rows,
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(payload, indent=2, ensure_ascii=False) + "\n")
