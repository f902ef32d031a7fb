"""Choose where work runs: processes of this machine, or a Ray cluster."""

from __future__ import annotations

import multiprocessing
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from itertools import islice
from multiprocessing.synchronize import Event
from signal import SIGTERM
from typing import Any, TypeVar

from longgame.engines.local import (
    Needs,
    Warn,
    WorkerError,
    as_error,
    end_with_parent,
    interrupts_for_parent_alone,
    thread_variables,
    threads_here,
    why_ended,
)
from longgame.errors import RecipeError

_Part = TypeVar("_Part")
Result = TypeVar("Result")

LOCAL = "local"
_AHEAD = 2
"""Parts per worker that are begun before earlier results are read: it bounds what waits in memory."""


def check_engine(engine: str) -> str:
    """Return the name of an engine: ``local``, ``ray``, ``auto`` or ``ray://HOST:PORT``.

    Raises:
        RecipeError: it is none of them.
    """
    if engine in (LOCAL, "ray", "auto") or re.fullmatch(r"ray://[^\s/:]+:[0-9]{1,5}", engine):
        return engine
    raise RecipeError(
        f"--engine is '{engine}'. Use local, ray (Ray on this machine), auto (the running cluster, or RAY_ADDRESS) or "
        "ray://HOST:PORT."
    )


@contextmanager
def mapper(
    function: Callable[[_Part], Result],
    engine: str = LOCAL,
    *,
    workers: int | None = 1,
    threads: int = 1,
    needs: Needs | None = None,
    warn: Warn | None = None,
    contents: Callable[[], Mapping[str, str]] | None = None,
) -> Iterator[Callable[[Iterable[_Part]], Iterator[Result]]]:
    """Give a callable that yields ``function(part)`` of every part, in order; workers serve all its calls.

    ```python
    with mapper(partial(farthest_of_part, scores=folder, k=500), engine) as farthest:
        first = list(farthest(ranges))
        second = list(farthest(ranges_of(first)))
    ```

    The function is one of a module, a `functools.partial` of one, or an object of a module's class with ``__call__``,
    so that another process finds it. Each worker receives it once: what it loads at its first call (a model, a store)
    serves its further calls. Parts should be small (a range of rows rather than the rows) and are read as they are
    needed. On Ray a part whose worker is lost is computed again on another, so a function may run twice on a part: let
    it return its result and write nothing. A few parts per worker are begun ahead of the one that is read. The results
    of one call are read to the end before the next call.

    Args:
        engine: as in `check_engine`; ``local``: this process where ``workers`` is 1, else so many processes.
        workers: at most so many; None: one per core, or as many as the cluster holds.
        threads: of each worker.
        needs: of each worker on Ray; None: ``threads`` cores.
        warn: shows warnings; None: they are logged.
        contents: name → digest of each file that the function reads, computed here and on each node of a cluster; a
            node whose files differ is refused.

    Raises:
        RecipeError: no such engine, Ray is missing, or it has too little for one worker.
        WorkerError: a worker ended, or the function met an unforeseen error. LonggameError: what the function raised.
    """
    if check_engine(engine) != LOCAL:
        from longgame.engines.ray import mapper_on_ray

        with mapper_on_ray(function, engine, workers, threads, needs or Needs(threads), warn, contents) as run:
            yield run
    elif workers == 1:
        yield partial(_mapped_here, function, threads)
    else:
        size, context = workers or multiprocessing.cpu_count(), multiprocessing.get_context("spawn")
        began = context.Event()
        pool = ProcessPoolExecutor(size, context, _receive, (function, began))
        try:
            yield partial(_mapped_in_processes, pool, size, threads, began)
        except BaseException:
            for process in _processes(pool):
                process.kill()
            pool.shutdown()
            raise
        else:
            pool.shutdown(wait=False, cancel_futures=True)


def mapped(
    function: Callable[[_Part], Result],
    parts: Iterable[_Part],
    engine: str = LOCAL,
    *,
    workers: int | None = 1,
    threads: int = 1,
    needs: Needs | None = None,
    warn: Warn | None = None,
    contents: Callable[[], Mapping[str, str]] | None = None,
) -> Iterator[Result]:
    """Yield ``function(part)`` of every part, in the order of the parts: one call of `mapper`, with its arguments."""
    with mapper(function, engine, workers=workers, threads=threads, needs=needs, warn=warn, contents=contents) as run:
        yield from run(parts)


_function: Callable[..., object] | None = None
"""Of this worker process."""


def _receive(function: Callable[[_Part], Result], began: Event) -> None:
    global _function
    _function = function
    end_with_parent()
    began.set()


def _called(function: Callable[[_Part], Result] | None, part: _Part) -> Result:
    try:
        return (function or _function)(part)  # type: ignore[misc, return-value]
    except Exception as error:
        raise as_error("a worker", error) from error


def _mapped_here(function: Callable[[_Part], Result], threads: int, parts: Iterable[_Part]) -> Iterator[Result]:
    for part in parts:
        with threads_here(threads):
            result = _called(function, part)
        yield result


def _processes(pool: ProcessPoolExecutor) -> list[Any]:
    return list((pool._processes or {}).values())  # `ProcessPoolExecutor.kill_workers` is Python 3.14's


def _mapped_in_processes(
    pool: ProcessPoolExecutor, workers: int, threads: int, began: Event, parts: Iterable[_Part]
) -> Iterator[Any]:
    left = iter(parts)
    futures: deque[Future[Any]] = deque()

    def begin(count: int) -> None:
        for part in islice(left, count):
            with interrupts_for_parent_alone():
                futures.append(pool.submit(_called, None, part))

    with thread_variables(threads):  # workers start as parts are submitted
        try:
            begin(_AHEAD * workers)
            while futures:
                result = futures.popleft().result()
                begin(1)
                yield result
        except BrokenProcessPool as error:
            processes = _processes(pool)
            pool.shutdown()  # the pool ends the others by SIGTERM
            codes = {process.exitcode for process in processes} - {0, None, -SIGTERM}
            code = max(codes, default=-SIGTERM)
            raise WorkerError(
                f"a worker process ended (exit code {code}): {why_ended(code, began.is_set())}."
            ) from error
