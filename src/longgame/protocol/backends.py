"""Run independent jobs in processes of a bounded number of threads."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from longgame.errors import LonggameError, StorageError

Notify = Callable[[str, int, str, int, int], None]
"""(job, stage, activity, step, steps): progress, as jobs send it."""

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TOKENIZERS_PARALLELISM")


@dataclass(frozen=True)
class Job:
    """A function of a module (so that another process finds it) with its arguments; it is also given a `Notify`."""

    name: str
    function: Callable[..., None]
    arguments: tuple[Any, ...]
    after: str = ""
    """Name of a job that has to be done before this one begins; one that is not to be run counts as done."""


class WorkerError(LonggameError):
    """A worker process ended without a word (killed, out of memory) or met an unforeseen error."""


@contextmanager
def _threads_for_children(threads: int) -> Iterator[None]:
    """Set the thread variables that a child reads when it starts, and put the parent's back."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update({name: str(threads) for name in _THREAD_VARIABLES[:3]})
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _interrupts_for_parent_alone() -> Iterator[None]:
    """Block SIGINT while children are started: they inherit it blocked, even while they still import.

    One that comes meanwhile reaches the parent at the end of the block.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """Leave at once when the parent is gone (even by SIGKILL), so that no orphan writes into the run directory."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def settle_garbage() -> None:
    """In a worker, take what lives now (libraries, data, model) out of later garbage collections.

    Trainers collect garbage at every start, which otherwise searches all of it each time.
    """
    if multiprocessing.parent_process() is not None:
        gc.collect()
        gc.freeze()


def _told(job: str, error: Exception) -> tuple[str, str, Any]:
    """What the parent hears of an error: one of the family as it is, anything unforeseen with its traceback."""
    if isinstance(error, LonggameError):
        return "error", job, error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # a temporary folder, a cache
        place = error.filename or tempfile.gettempdir()
        said = f"{job}: {error.strerror} ({place}). Finished stages are safe; free the disk and run the command again."
        return "error", job, StorageError(said)
    return "crash", job, traceback.format_exc()


def _work(jobs: Any, events: Any) -> None:
    _end_with_parent()
    while True:
        job: Job | None = jobs.get()
        if job is None:
            return
        events.put(("start", job.name, None))
        try:
            job.function(*job.arguments, lambda *progress: events.put(("progress", *progress)))
        except Exception as error:  # noqa: BLE001 - told to the parent, which stops the audit
            events.put(_told(job.name, error))
            return
        events.put(("done", job.name, None))


def run_local(
    jobs: Sequence[Job],
    workers: int,
    threads: int,
    notify: Notify,
    finished: Callable[[str], None],
) -> None:
    """Run the jobs, at most ``workers`` at a time, each in a process with ``threads`` threads.

    A free worker takes the first job of the list that waits for no other. The first error stops everything; what jobs
    have made durable stays. With KeyboardInterrupt the workers are ended before it goes on to the caller.

    Raises:
        LonggameError: what a job raised.
        WorkerError: a worker was killed, or met an error that is not of the family (with its traceback).
    """
    if not jobs:
        return
    context = multiprocessing.get_context("spawn")
    todo, events = context.Queue(), context.Queue()
    waiting = {job.name: job for job in jobs}
    left = set(waiting)
    free = count = min(workers, len(jobs))
    processes: list[Any] = []
    try:
        with _threads_for_children(threads), _interrupts_for_parent_alone():
            for _ in range(count):
                processes.append(context.Process(target=_work, args=(todo, events), daemon=True))
                processes[-1].start()
        while left:
            free -= _hand_out(waiting, left, free, todo)
            try:
                kind, name, *rest = events.get(timeout=0.5)
            except queue.Empty:
                _check_alive(processes, left)
                continue
            if kind == "progress":
                notify(name, *rest)
            elif kind == "done":
                left.discard(name)
                free += 1
                finished(name)
            elif kind == "error":
                raise rest[0]
            elif kind == "crash":
                raise WorkerError(f"{name} met an unforeseen error; finished stages are safe.\n{rest[0]}")
        for _ in range(count):
            todo.put(None)
    finally:
        started = [process for process in processes if process.pid is not None]
        for process in started if left else ():
            process.kill()
        for process in started:
            process.join()


def _hand_out(waiting: dict[str, Job], left: set[str], free: int, todo: Any) -> int:
    """Give free workers the first jobs that wait for none of those left; return how many were given."""
    ready = [job for job in waiting.values() if job.after not in left][:free]
    for job in ready:
        todo.put(waiting.pop(job.name))
    return len(ready)


def _check_alive(processes: Sequence[Any], left: set[str]) -> None:
    if all(process.exitcode is not None for process in processes) or any(
        process.exitcode not in (None, 0) for process in processes
    ):
        codes = sorted({process.exitcode for process in processes if process.exitcode})
        raise WorkerError(
            f"a worker process ended (exit code {', '.join(map(str, codes)) or 0}) with {len(left)} jobs left; "
            "-9 usually means out of memory: use fewer --workers. Finished stages are safe; run the command again."
        )
