"""Run jobs with a bounded number of threads: in processes of their own, or one after another in this one."""

from __future__ import annotations

import errno
import gc
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from threadpoolctl import threadpool_limits

from longgame.errors import LonggameError, StorageError

Notify = Callable[[str, int, str, int, int], None]
"""(job, stage, activity, step, steps): progress, as jobs send it."""

Warn = Callable[[str], None]
"""What shows a warning that a job logs."""

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Job:
    """A function of a module (so that another process finds it) with its arguments; it is also given a `Notify`."""

    name: str
    function: Callable[..., None]
    arguments: tuple[Any, ...]
    after: str = ""
    """Name of a job that has to be done before this one begins; one that is not to be run counts as done."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What one worker takes of a cluster's node."""

    cpus: int = 1
    """Cores, as many as its threads."""
    memory: int = 0
    """Bytes of main memory; 0: not counted."""
    gpu: bool | None = False
    """Whether it runs on a GPU; None: where a node of the cluster has one."""
    gpu_memory: int = 0
    """Bytes of a GPU's memory: workers share a GPU that holds several; 0: each has a GPU."""


class WorkerError(LonggameError):
    """A worker process was ended from outside (killed, out of memory) or met an unforeseen error."""


def thread_values(threads: int) -> dict[str, str]:
    """Environment variables that bind the libraries of a process to so many threads."""
    return {**dict.fromkeys(_THREAD_VARIABLES, str(threads)), "TOKENIZERS_PARALLELISM": "false"}


@contextmanager
def thread_variables(threads: int, gpu: str | None = None) -> Iterator[None]:
    """Set the variables of threads, and of the one GPU, that a child reads when it starts; put the parent's back."""
    variables = thread_values(threads)
    variables |= {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def interrupts_for_parent_alone() -> Iterator[None]:
    """Block SIGINT while children are started: they inherit it blocked, even while they still import.

    One that comes meanwhile reaches the parent at the end of the block.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def why_ended(code: int | None, began: bool) -> str:
    """Why a worker process ended with this exit code, with the fix.

    Args:
        began: whether it could start: a spawned process first imports the caller's script.
    """
    if code == -signal.SIGKILL:
        return "-9 usually means out of memory: use fewer workers (--workers)"
    if began or code is None or code <= 0:
        return "its own code ended it"
    return (
        "it could not start, and printed why above. Each worker imports the script that calls longgame, so the script "
        'has to put its work under the line: if __name__ == "__main__":'
    )


_log = logging.getLogger(__name__)
_leave = os._exit
"""Kept, as plug-ins at work find another function under that name (`longgame.registry.plugin_at_work`)."""


def end_with_parent() -> None:
    """Leave at once when the parent is gone (even by SIGKILL), so that no orphan writes into the run directory."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        _leave(1)

    threading.Thread(target=watch, daemon=True).start()


def settle_garbage() -> None:
    """Take what lives between two jobs (libraries, data, never a model) out of later garbage collections.

    Trainers collect garbage at every start, which otherwise searches all of it each time.
    """
    gc.collect()
    gc.freeze()


@contextmanager
def threads_here(threads: int) -> Iterator[None]:
    """Bound the threads of the libraries that are loaded in this process, and put their numbers back."""
    torch = sys.modules.get("torch")
    before = None if torch is None else torch.get_num_threads()
    with thread_variables(threads), threadpool_limits(limits=threads):
        try:
            if torch is not None:  # its MKL is linked statically, where threadpoolctl does not see it
                torch.set_num_threads(threads)
            yield
        finally:
            if torch is not None:
                torch.set_num_threads(before)


def as_error(job: str, error: Exception) -> LonggameError:
    """An error of the family as it is; anything unforeseen as a WorkerError with its traceback."""
    if isinstance(error, LonggameError):
        known = type(error).__module__.startswith("longgame.")  # the parent may be unable to import another class
        return error if known else LonggameError(str(error))
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # a temporary folder, a cache
        place = error.filename or tempfile.gettempdir()
        return StorageError(
            f"{job}: {error.strerror} ({place}). Finished stages are safe; free the disk and run the command again."
        )
    return WorkerError(f"{job} met an unforeseen error; finished stages are safe.\n{traceback.format_exc()}")


class _Warnings(logging.Handler):
    """Gives each warning of longgame to what shows it, once."""

    def __init__(self, warn: Warn) -> None:
        super().__init__(logging.WARNING)
        self._warn, self._texts = warn, set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self._texts:
            self._texts.add(text)
            self._warn(text)


@contextmanager
def warnings_to(warn: Warn | None) -> Iterator[None]:
    """Inside, what longgame logs goes to ``warn`` instead of stderr, where it would tear progress bars."""
    if warn is None:
        yield
        return
    handler, logger = _Warnings(warn), logging.getLogger("longgame")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _work(pipe: Any) -> None:
    end_with_parent()
    lock = threading.Lock()

    def send(*event: Any) -> None:
        with lock:  # a thread of a job may log while the job tells its progress
            pipe.send(event)

    send("ready", "", None)
    with warnings_to(lambda text: send("warning", "", text)):
        while True:
            job: Job | None = pipe.recv()
            if job is None:
                return
            try:
                job.function(*job.arguments, lambda *progress: send("progress", *progress))
            except Exception as error:  # noqa: BLE001 - told to the parent, which decides whether the others go on
                send("error", job.name, as_error(job.name, error))
            else:
                send("done", job.name, None)
            settle_garbage()


Failed = Callable[[str, LonggameError], None]
"""(job, error): what to do about a job that failed; it may raise, which stops everything."""


def raise_at_once(_job: str, error: LonggameError) -> None:
    """Stop at the first failed job."""
    raise error


def run_here(
    jobs: Sequence[Job],
    threads: int,
    notify: Notify,
    finished: Callable[[str], None],
    failed: Failed = raise_at_once,
    warn: Warn | None = None,
) -> None:
    """Run the jobs in this process, one after another, the first that waits for no other first.

    One worker needs no process of its own, which would load every library once more. Only libraries that are loaded
    before are bound to ``threads`` threads and given their own number back.

    Args:
        failed: called for each job that raised, and for those that waited for it.
        warn: called with each warning that jobs log, once; None: they are logged.

    Raises:
        LonggameError: what ``failed`` raised.
    """
    waiting = {job.name: job for job in jobs}
    frozen = gc.get_freeze_count()
    try:
        with threads_here(threads), warnings_to(warn):
            while waiting:
                job = next(job for job in waiting.values() if job.after not in waiting)
                del waiting[job.name]
                try:
                    job.function(*job.arguments, notify)
                except Exception as error:  # noqa: BLE001 - the caller decides whether the others go on
                    for name, reason in _losses(job.name, as_error(job.name, error), waiting):
                        failed(name, reason)
                else:
                    finished(job.name)
                settle_garbage()
    finally:
        if not frozen:
            gc.unfreeze()


def _losses(name: str, error: LonggameError, waiting: dict[str, Job]) -> list[tuple[str, LonggameError]]:
    """The failed job, and those that waited for it, which cannot be run: they are taken out of ``waiting``."""
    lost = [(name, error)]
    for job in [job for job in waiting.values() if job.after == name]:
        del waiting[job.name]
        lost += _losses(job.name, type(error)(f"{name}, which it needs, failed: {error}"), waiting)
    return lost


def run_local(
    jobs: Sequence[Job],
    workers: int,
    threads: int,
    notify: Notify,
    finished: Callable[[str], None],
    failed: Failed = raise_at_once,
    warn: Warn | None = None,
    gpus: Sequence[str] = (),
) -> None:
    """Run the jobs, at most ``workers`` at a time, each in a process with ``threads`` threads.

    A free worker takes the first job of the list that waits for no other. A worker that was ended from outside (killed,
    out of memory, `os._exit`) fails its job, and another takes its place. With KeyboardInterrupt the workers are ended
    before it goes on to the caller.

    Args:
        failed: called for each job that raised, and for those that waited for it.
        warn: called with each warning that jobs log, once; None: they are logged.
        gpus: what CUDA_VISIBLE_DEVICES is set to for each worker, in turn; empty: workers see what this process sees.

    Raises:
        LonggameError: what ``failed`` raised.
        WorkerError: a worker was ended between two jobs.
    """
    if jobs:
        follow(_Crew(jobs, min(workers, len(jobs)), threads, gpus), notify, finished, failed, warn)


class Crew(Protocol):
    """Workers, and the jobs that are left."""

    waiting: dict[str, Job]
    """Jobs that no worker has."""
    left: set[str]
    """Names of the jobs that are not done."""

    def hand_out(self) -> None:
        """Give free workers the first jobs that wait for none of those left."""
        ...

    def events(self) -> list[tuple[Any, ...]]:
        """Wait for news: (kind, job, …) with kind ready, progress, done, warning or error."""
        ...

    def end(self) -> None:
        """End the workers."""
        ...


def follow(crew: Crew, notify: Notify, finished: Callable[[str], None], failed: Failed, warn: Warn | None) -> None:
    """Hand out jobs until none is left, and report what the workers send."""
    texts = set[str]()
    try:
        while crew.left:
            crew.hand_out()
            for kind, name, *rest in crew.events():
                if kind == "progress":
                    notify(name, *rest)
                elif kind == "done":
                    finished(name)
                elif kind == "warning" and rest[0] not in texts:
                    texts.add(rest[0])
                    (_log.warning if warn is None else warn)(rest[0])
                elif kind == "error":
                    for job, error in _losses(name, rest[0], crew.waiting):
                        crew.left.discard(job)
                        failed(job, error)
    finally:
        crew.end()


@dataclass
class _Worker:
    """A worker process, the parent's end of its pipe, and its job."""

    process: Any
    pipe: Any
    gpu: str | None = None
    ready: bool = False
    job: str = ""


class _Crew:
    """The workers, and the jobs that are left.

    Each worker has a pipe of its own: one that is killed in the middle of a message leaves no lock behind.
    """

    def __init__(self, jobs: Sequence[Job], workers: int, threads: int, gpus: Sequence[str]) -> None:
        self.waiting = {job.name: job for job in jobs}
        self.left = set(self.waiting)
        self._threads = threads
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        for place in range(workers):
            self._start(gpus[place % len(gpus)] if gpus else None)

    def _start(self, gpu: str | None) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs,), daemon=True)
        with thread_variables(self._threads, gpu), interrupts_for_parent_alone():
            process.start()
        self._workers.append(_Worker(process, ours, gpu))
        theirs.close()  # so that the worker's end is the only one, and its death is an end of file

    def hand_out(self) -> None:
        """Give free workers the first jobs that wait for none of those left."""
        jobs = [job for job in self.waiting.values() if job.after not in self.left]
        free = [worker for worker in self._workers if worker.ready and not worker.job]
        for job, worker in zip(jobs, free, strict=False):
            try:
                worker.pipe.send(job)
            except OSError:  # it has just ended, which `events` reports
                continue
            worker.job = job.name
            del self.waiting[job.name]

    def events(self) -> list[tuple[Any, ...]]:
        """Wait for news of at least one worker."""
        by_pipe = {worker.pipe: worker for worker in self._workers}
        events = []
        for pipe in multiprocessing.connection.wait(list(by_pipe)):
            worker = by_pipe[pipe]
            try:
                event = worker.pipe.recv()
            except (EOFError, OSError):
                event = self._loss(worker)
            if event[0] == "ready":
                worker.ready = True
            elif event[0] in ("done", "error"):
                worker.job = ""
                self.left.discard(event[1])
            events.append(event)
        return events

    def _loss(self, worker: _Worker) -> tuple[Any, ...]:
        """The error of a worker that is no longer there; another is started in its place."""
        worker.process.join()
        code, name = worker.process.exitcode, worker.job
        reason = why_ended(code, worker.ready)
        if not name:
            raise WorkerError(
                f"a worker process ended between two jobs (exit code {code}; {reason}) with {len(self.left)} jobs "
                "left. Finished stages are safe; run the command again."
            )
        self._workers.remove(worker)
        self._start(worker.gpu)
        return "error", name, WorkerError(f"the worker process of {name} ended (exit code {code}): {reason}.")

    def end(self) -> None:
        """Let the workers end, or kill them where jobs are left, and wait for them."""
        for worker in self._workers:
            if self.left:
                worker.process.kill()
            else:
                with suppress(OSError):  # it is gone already
                    worker.pipe.send(None)
        for worker in self._workers:
            worker.process.join()
            worker.pipe.close()
