"""Parts of a long benchmark: each in a process that ends within its time, each side kept as soon as it is measured."""

from __future__ import annotations

import gc
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Deadline
from longgame.errors import LonggameError, ResumeError
from longgame.limits import is_out_of_memory

SPARE_SECONDS = 2.0
"""A part stops so long before its process is killed."""
MEASURED, OUT_OF_MEMORY, CUT_OFF = "measured", "out of memory", "cut off"
FAILED, REFUSED, NO_PACKAGE = "failed", "refused", "missing package"
ATTEMPTS = 2
"""A side that was cut off so often is not tried again."""


class Sides:
    """The sides of one part of a benchmark: each is measured once and kept in a JSON file as soon as it ends.

    A side that runs out of memory, needs a package that is not installed, or fails is a result and does not end the
    part. Sides that failed, or were cut off once, are tried again when the part is run again.

    Args:
        file: written after every side.
        deadline: sides that do not fit before it are left out.
        about: what measurements in one file must have in common: the device, the size.

    Raises:
        ResumeError: the file holds other measurements, or cannot be read.
    """

    def __init__(self, file: Path, deadline: Deadline, about: Mapping[str, Any]) -> None:
        self.deadline = deadline
        self._file, self._about = file, dict(about)
        self.entries: dict[str, dict[str, Any]] = {}
        if file.exists():
            self.entries = self._read()

    def _read(self) -> dict[str, dict[str, Any]]:
        remedy = "Give another folder (--out), or delete the file."
        try:
            payload = json.loads(self._file.read_text())
            about, entries = payload["about"], payload["sides"]
        except (ValueError, KeyError, TypeError) as error:
            raise ResumeError(f"'{self._file}' cannot be read as finished sides ({error}). {remedy}") from error
        if about != self._about:
            raise ResumeError(f"'{self._file}' holds measurements of {about}, and these are of {self._about}. {remedy}")
        return dict(entries)

    def run(self, side: str, work: Callable[[], Mapping[str, Any]], seconds: float = 0.0) -> dict[str, Any] | None:
        """Return the numbers of a side, measured now or by an earlier call; None where there are none.

        Args:
            work: returns plain numbers, strings, lists and mappings of them.
            seconds: about how long it takes.
        """
        entry = self.entries.get(side, {})
        if self.final(entry):
            return entry.get("values")
        if not self.deadline.allows(side, seconds):
            return None
        # what stands if this process is killed in the middle of it
        attempts = entry.get("attempts", 0) + 1
        self._keep(side, {"outcome": CUT_OFF, "attempts": attempts})
        start, cpu = time.perf_counter(), time.process_time()  # the latter tells how busy the machine was
        result: dict[str, Any]
        try:
            result = {"outcome": MEASURED, "values": dict(work())}
        except ModuleNotFoundError as error:
            result = {"outcome": NO_PACKAGE, "reason": f"{error}; install it, and run again"}
        except Exception as error:  # noqa: BLE001 - a result of the side; the others go on
            result = {"outcome": _outcome(error), "reason": f"{type(error).__name__}: {error}"[:2000]}
        if torch.cuda.is_initialized():  # what a side had on the GPU, the next one needs
            gc.collect()
            torch.cuda.empty_cache()
        result |= {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
        result["attempts"] = attempts
        self._keep(side, result)
        print(f"{self._file.stem}: {side}: {describe(result)}", flush=True)
        return result.get("values")

    @staticmethod
    def final(entry: Mapping[str, Any]) -> bool:
        """Whether a side is not run again."""
        cut_off = entry.get("outcome") == CUT_OFF and entry["attempts"] >= ATTEMPTS
        return cut_off or entry.get("outcome") in (MEASURED, OUT_OF_MEMORY)

    def values(self) -> dict[str, dict[str, Any]]:
        """Numbers of the measured sides."""
        return {side: entry["values"] for side, entry in self.entries.items() if entry["outcome"] == MEASURED}

    def _keep(self, side: str, entry: Mapping[str, Any]) -> None:
        self.entries[side] = dict(entry)
        write_json(self._file, {"about": self._about, "sides": self.entries})


def describe(entry: Mapping[str, Any]) -> str:
    """A side's outcome in one line."""
    if entry["outcome"] == CUT_OFF:
        return f"cut off by its time limit (attempt {entry['attempts']} of {ATTEMPTS})"
    reason = f": {entry['reason'].splitlines()[0]}" if "reason" in entry else ""
    return f"{entry['outcome']} after {entry['seconds']:.1f} s{reason}"


def _outcome(error: BaseException | None) -> str:
    outcome = REFUSED if isinstance(error, LonggameError) else FAILED
    while error is not None:
        if is_out_of_memory(error):
            return OUT_OF_MEMORY
        error = error.__cause__
    return outcome


def write_json(file: Path, payload: Any) -> None:
    """Write a file in one step: a process that is killed leaves the old one or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.name}.part")
    unfinished.write_text(json.dumps(payload, indent=1, ensure_ascii=False) + "\n")
    unfinished.replace(file)


def process_context() -> Any:
    """Processes are forked from one that has imported what they need and uses no GPU."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers", "peft", "longgame.signals.engine", "benchmarks.workload"])
    return context


def start_server() -> None:
    """Wait until the process that others are forked from has imported its libraries."""
    process = process_context().Process(target=os.getpid)
    process.start()
    process.join()


def end_with_parent() -> None:
    """Leave, with all of the process group, when the parent is gone, even by SIGKILL."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


@dataclass(frozen=True)
class Outcome:
    """What became of a part in this call."""

    values: Mapping[str, Mapping[str, Any]]
    """Numbers of its sides, also those of earlier calls."""
    notes: list[str]
    """Sides without numbers, and why."""


def run_part(work: Callable[[Sides], None], file: Path, seconds: float, about: Mapping[str, Any]) -> Outcome:
    """Run a part in a process of its own, which is killed when its time is up; finished sides stay in the file.

    Args:
        work: a function that can be pickled; it runs the part's sides.

    Raises:
        ResumeError: the file holds measurements of another device or size.
    """
    Sides(file, Deadline(0), about)  # refused here, if at all
    listed = file.with_suffix(".left-out")
    listed.unlink(missing_ok=True)
    process = process_context().Process(target=_part, args=(work, file, time.monotonic() + seconds, about))
    process.start()
    try:
        process.join(seconds)
    finally:
        stopped = process.is_alive()
        if stopped:
            _kill_group(process.pid)
            process.join()
    name, sides = file.stem, Sides(file, Deadline(0), about)
    notes = [
        f"{name}: {side}: {describe(entry)}" for side, entry in sides.entries.items() if entry["outcome"] != MEASURED
    ]
    if listed.exists():
        notes += [f"{name}: {side}: no time left; run again" for side in listed.read_text().splitlines()]
        listed.unlink()
    elif stopped:
        notes.append(f"{name}: stopped after {seconds:.0f} s; run again for the sides behind it")
    elif process.exitcode != 0:
        notes.append(f"{name}: its process ended with exit code {process.exitcode}; its output says why")
    return Outcome(sides.values(), notes)


def _part(work: Callable[[Sides], None], file: Path, end: float, about: Mapping[str, Any]) -> None:
    os.setsid()
    end_with_parent()
    gc.freeze()  # the libraries, which every collection between sides would search
    deadline = Deadline(end - SPARE_SECONDS - time.monotonic())
    work(Sides(file, deadline, about))
    if deadline.left_out:
        file.with_suffix(".left-out").write_text("\n".join(deadline.left_out))


def _kill_group(pid: int | None) -> None:
    """Kill a process that leads a group, with all of the group."""
    if pid is None:
        return
    for kill in (os.killpg, os.kill):  # killed at once, it may not lead a group yet
        try:
            kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
