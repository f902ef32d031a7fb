"""Run jobs with a bounded number of threads: in processes of their own, or one after another in this one."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from threadpoolctl import threadpool_limits

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


_leave = os._exit
"""Kept, as plug-ins at work find another function under that name (`longgame.registry.plugin_at_work`)."""


def _end_with_parent() -> None:
    """Leave at once when the parent is gone (even by SIGKILL), so that no orphan writes into the run directory."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        _leave(1)

    threading.Thread(target=watch, daemon=True).start()


def _settle_garbage() -> None:
    """Take what lives between two jobs (libraries, data, never a model) out of later garbage collections.

    Trainers collect garbage at every start, which otherwise searches all of it each time.
    """
    gc.collect()
    gc.freeze()


@contextmanager
def _threads_here(threads: int) -> Iterator[None]:
    """Bound the threads of the libraries that are loaded in this process, and put their numbers back."""
    torch = sys.modules.get("torch")
    before = None if torch is None else torch.get_num_threads()
    with _threads_for_children(threads), threadpool_limits(limits=threads):
        try:
            if torch is not None:  # its MKL is linked statically, where threadpoolctl does not see it
                torch.set_num_threads(threads)
            yield
        finally:
            if torch is not None:
                torch.set_num_threads(before)


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
        _settle_garbage()


def run_here(jobs: Sequence[Job], threads: int, notify: Notify, finished: Callable[[str], None]) -> None:
    """Run the jobs in this process, one after another, the first that waits for no other first.

    One worker needs no process of its own, which would load every library once more. Only libraries that are loaded
    before are bound to ``threads`` threads and given their own number back.

    Raises:
        LonggameError: what a job raised; a full disk is one of them. Anything unforeseen is raised as it is.
    """
    waiting = {job.name: job for job in jobs}
    frozen = gc.get_freeze_count()
    try:
        with _threads_here(threads):
            while waiting:
                job = next(job for job in waiting.values() if job.after not in waiting)
                try:
                    job.function(*job.arguments, notify)
                except Exception as error:
                    kind, _, told = _told(job.name, error)
                    if kind == "crash" or told is error:
                        raise
                    raise told from error
                del waiting[job.name]
                finished(job.name)
                _settle_garbage()
    finally:
        if not frozen:
            gc.unfreeze()


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
