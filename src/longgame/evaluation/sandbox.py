"""A program of a model and its tests, run in a process of their own that the kernel shuts in (docs/scorers.md)."""

from __future__ import annotations

import json
import math
import os
import secrets
import select
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from longgame.errors import ModelError

_RUNNER = Path(__file__).with_name("_runner.py")
_MOST_SOURCE = 200_000
"""Characters of a program or its tests; a longer one is not run and has not passed."""
OUT_OF_TIME = "no processor time left"
_MOST_RESULT = 4096
_END_SECONDS = 5.0
"""Wall-clock time of a process to end after it closed its result; it decides a word alone."""
_SIGNALED = 128
"""Exit status of the sandbox's outer processes where a signal ended the program: this plus its number (`_runner`)."""
_WAITS, _STARVED = "waits", "the machine was too busy"
_WALL = 5.0
"""Seconds that a program may wait (sleep, a lock), for each of processor time; waiting for a processor is none."""
_PATIENCE = 60.0
"""Wall-clock seconds of a program on a busy machine, for each of processor time; then its run is undecided."""
_START_SECONDS = 120.0
"""Wall-clock time for the interpreter and the sandbox to start, on top of the program's."""
_SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/etc/ld.so.cache", "/etc/localtime")
_ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "HOME": "/longgame-program",
    "TMPDIR": "/longgame-program",
    **dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
}
"""All that the process gets of an environment; no thread can start in it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use."""

    seconds: int = 10
    """Processor time; a program may wait (sleep) for five times as long."""
    memory: int = 1024 * 2**20
    """Bytes of address space."""
    disk: int = 16 * 2**20
    """Bytes of all its files."""


@dataclass(frozen=True, slots=True)
class ProgramOutcome:
    """How a run ended."""

    passed: bool
    reason: str
    """``passed``, the name of the exception, ``no processor time left``, ``waits``, ``ended early``, ``too long`` …"""
    decided: bool = True
    """False where the machine, not the program, kept the run from ending: it says nothing about the program."""


@cache
def readable_folders() -> tuple[str, ...]:
    """Folders that a program may read: the system's libraries, and the interpreter's own."""
    paths = sysconfig.get_paths()
    mine = [
        sys.base_prefix,
        sys.base_exec_prefix,
        sys.prefix,
        *(paths[name] for name in ("stdlib", "purelib", "platlib")),
    ]
    places = dict.fromkeys(
        [*_SYSTEM, *(str(Path(path)) for path in mine), *(str(Path(path).resolve()) for path in mine)]
    )
    chosen: list[str] = []
    for place in sorted(places, key=len):
        if place != "/" and not any(place == other or place.startswith(other + os.sep) for other in chosen):
            chosen.append(place)
    return tuple(chosen)


@cache
def why_no_namespaces() -> str:
    """What the kernel said when a process asked for namespaces of its own; empty where it gave them.

    Raises:
        ModelError: it refused, and this process is root's, so nothing would hold a program; or nothing can be started.
    """
    with tempfile.TemporaryDirectory(prefix="longgame-program-", ignore_cleanup_errors=True) as folder:
        data, _, _ = _run("", "", Limits(), os.path.realpath(folder), True)
    try:
        refused = str(json.loads(data.partition(b"\n")[0])["refused"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"the sandbox for programs does not start ({data[:200].decode('ascii', 'replace') or 'no word'}). Check "
            f"that {sys.executable} runs alone, or leave the scorer pass_at_1 out."
        ) from error
    if refused and os.geteuid() == 0:
        raise ModelError(
            f"programs of a model would run as root, and the kernel allows no namespaces here ({refused}), so nothing "
            "would hold them. Run as another user, or let the container unshare (docs/scorers.md)."
        )
    return refused


def run_program(
    program: str, tests: str, limits: Limits = Limits(), *, namespaces: bool | None = None
) -> ProgramOutcome:
    """Run ``program``, then ``tests`` in its names; it has passed if the last line of the tests was reached.

    The process has an empty environment, no stdin, no terminal, a session of its own, an empty temporary folder, and
    the `Limits`; its output is thrown away. Where the kernel gives namespaces it has no network, sees no other process
    and no file but the libraries of the system and the interpreter (read-only), and has no rights. Elsewhere Python
    itself refuses sockets, processes, signals and files outside of the folder.

    Args:
        namespaces: None: where the kernel gives them (`why_no_namespaces`).

    Raises:
        ModelError: as `why_no_namespaces`.
    """
    if max(len(program), len(tests)) > _MOST_SOURCE:
        return ProgramOutcome(False, "too long")
    if namespaces is None:
        namespaces = not why_no_namespaces()
    with tempfile.TemporaryDirectory(prefix="longgame-program-", ignore_cleanup_errors=True) as folder:
        data, secret, end = _run(program, tests, limits, os.path.realpath(folder), namespaces)
    _, started, rest = data.partition(b"\n")
    if rest == secret:
        return ProgramOutcome(True, "passed")
    if not started:
        return ProgramOutcome(False, "did not start", decided=False)
    text = rest.decode("ascii", "replace")
    if text.startswith("failed "):
        return ProgramOutcome(False, text.removeprefix("failed "))
    return ProgramOutcome(False, end, decided=end != _STARVED)


def _run(program: str, tests: str, limits: Limits, folder: str, namespaces: bool) -> tuple[bytes, bytes, str]:
    """What the process wrote as its result, the secret that it writes where the tests pass, and how it ended."""
    secret = secrets.token_hex(16).encode()
    result, result_end = os.pipe()
    secret_end, secret_source = os.pipe()
    os.write(secret_source, secret)
    os.close(secret_source)
    job = {
        "program": program,
        "tests": tests,
        "folder": folder,
        "readable": readable_folders(),
        "seconds": limits.seconds,
        "memory": limits.memory,
        "disk": limits.disk,
        "result": result_end,
        "secret": secret_end,
        "namespaces": namespaces,
    }
    process = None
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(_RUNNER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=_ENVIRONMENT,
            cwd=folder,
            pass_fds=(result_end, secret_end),
            start_new_session=True,
        )
        os.close(result_end)
        result_end = -1
        data, end = _talk(process, json.dumps(job).encode(), result, limits.seconds)
        return data, secret, end or _ending(process)
    finally:
        for descriptor in (result, result_end, secret_end):
            if descriptor >= 0:
                os.close(descriptor)
        if process is not None:
            _end(process)


def _ending(process: subprocess.Popen[bytes]) -> str:
    """How a process that closed its result ended."""
    try:
        code = process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        return "ended early"
    return OUT_OF_TIME if signal.SIGXCPU in (-code, code - _SIGNALED) else "ended early"


def _talk(process: subprocess.Popen[bytes], job: bytes, result: int, seconds: float) -> tuple[bytes, str]:
    """Send the job; return what the process wrote as its result, and `_WAITS` or `_STARVED` where it did not end.

    Time that the program waits for a processor is not its own, so a busy machine does not end it: it may wait
    otherwise for `_WALL` seconds of each of processor time, which the kernel bounds itself. Time in which this process
    did not run either (suspended, frozen) counts for nobody.
    """
    if process.stdin is not None:
        with suppress(BrokenPipeError):
            process.stdin.write(job)
            process.stdin.close()
    data, away = b"", 0.0
    begin = time.monotonic()
    deadline, patience = begin + _START_SECONDS, _WALL * seconds
    while len(data) < _MOST_RESULT:
        if not select.select([result], [], [], max(0.0, deadline - time.monotonic()))[0]:
            now = time.monotonic()
            away += max(0.0, now - deadline)
            if not data:
                return data, _STARVED
            busy = _busy_seconds(process.pid)
            waited = 0.0 if busy is None else now - begin - away - busy
            if waited >= patience:
                return data, _WAITS
            if busy is None or now - begin - away >= _PATIENCE * seconds:
                return data, _STARVED
            deadline = now + max(0.05, min(patience, patience - waited, begin + away + _PATIENCE * seconds - now))
            continue
        part = os.read(result, _MOST_RESULT)
        if not part:
            break
        if not data:  # it has started: its own time counts now
            begin, away = time.monotonic(), 0.0
            deadline = begin + patience
        data += part
    return data, ""


def _busy_seconds(pid: int) -> float | None:
    """Seconds that the last descendant of a process, which runs the program, ran or waited for a processor.

    None where the kernel does not count them; infinite while it waits for one, as the kernel counts a wait at its end.
    """
    try:
        while children := Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split():
            pid = int(children[0])
        ran, waited, _ = Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()
        if Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"R":
            return math.inf
    except (OSError, ValueError):
        return None
    return (int(ran) + int(waited)) / 1e9


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and its group; inside a PID namespace everything ends with its first process."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(ProcessLookupError):
        process.kill()
    process.wait()
