"""The processes of one training (``torchrun``, ``accelerate launch``): what they compute together, and agree on."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import torch.distributed as dist

from longgame.errors import LonggameError, ModelError, RecipeError

_T = TypeVar("_T")


class Processes:
    """The processes that train one model; every method is called by all of them, in the same order.

    Args:
        rank: number of this process, from 0.
        size: number of all.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @classmethod
    def current(cls) -> Processes:
        """Return those of torch's default process group; without one, this process alone."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def each(self, work: Callable[[], _T]) -> list[_T]:
        """Return what every process's work gives, in their order.

        Raises:
            LonggameError: the work failed in one of them; all raise its error, so none waits for it.
            ModelError: one of them ended, or failed with an error that is not of longgame.
        """
        if self.size == 1:
            return [work()]
        failure: Exception | None = None
        answer: Any = None
        try:
            answer = work()
        except Exception as error:  # noqa: BLE001 - raised below, once the others know
            failure = error
        answers = self._gather((answer, None if failure is None else _plain(failure, self.rank)))
        if failure is not None:
            raise failure
        for _, cause in answers:
            if cause is not None:
                raise cause
        return [value for value, _ in answers]

    def first(self, work: Callable[[], _T]) -> _T:
        """Return what the work gives in the first process, which alone does it."""
        answers: list[Any] = self.each(lambda: work() if self.rank == 0 else None)
        return answers[0]

    def agree(self, what: str, value: str, fix: str) -> None:
        """Compare a value between the processes.

        Raises:
            RecipeError: they differ.
        """
        if self.size == 1:
            return
        digests = self.each(lambda: hashlib.sha256(value.encode(errors="surrogatepass")).hexdigest()[:16])
        for rank, digest in enumerate(digests):
            if digest != digests[0]:
                raise RecipeError(
                    f"process {rank} of {self.size} has {what} other than process 0 (digest {digest}, not "
                    f"{digests[0]}). {fix}"
                )

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Inside, a broken connection is an error that says what to do.

        Raises:
            ModelError: another process ended, or does not answer.
        """
        try:
            yield
        except RuntimeError as error:
            if self.size > 1 and _is_of_connection(error):
                self._stop(error)
            raise

    def _gather(self, value: Any) -> list[Any]:
        answers: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(answers, value)
        except RuntimeError as error:  # nothing of this machine can fail here
            self._stop(error)
        return answers

    def _stop(self, error: RuntimeError) -> NoReturn:
        reason = " ".join(str(error).split())[:120]
        if "timed out" in str(error).lower():
            raise ModelError(
                f"process {self.rank} of {self.size} got no answer from the others in time ({reason}): one of them is "
                "stuck or much slower, and its own output says where. Where it is only slow, raise ddp_timeout; then "
                "start all of them again, from the last checkpoint."
            ) from error
        raise ModelError(
            f"process {self.rank} of {self.size} cannot reach the others ({reason}): one of them ended, and its own "
            "output says why. Start all of them again, from the last checkpoint."
        ) from error


def split_evenly(costs: Sequence[int], parts: int) -> list[list[int]]:
    """Split pieces of work into parts of nearly equal cost: the most expensive first, into the cheapest part.

    Returns:
        ``parts`` lists of places in ascending order; some are empty where there are fewer pieces than parts.
    """
    split: list[list[int]] = [[] for _ in range(parts)]
    totals = [0] * parts
    for place in sorted(range(len(costs)), key=lambda place: (-costs[place], place)):
        cheapest = totals.index(min(totals))
        split[cheapest].append(place)
        totals[cheapest] += costs[place]
    return [sorted(places) for places in split]


def split_by_length(lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Split rows that are padded to the longest of their part, so that the largest part, padding counted, is smallest.

    Rows of like length then share a part: long ones are few, short ones are many.

    Returns:
        ``parts`` lists of places in ascending order; some are empty where there are fewer rows than parts.
    """
    order = sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))

    def filled(bound: int) -> list[list[int]]:
        """Parts of at most ``bound`` padded tokens, in descending length; none is left out while rows last."""
        split: list[list[int]] = []
        for left, place in zip(range(len(order), 0, -1), order, strict=True):
            if not split or left <= parts - len(split) or (len(split[-1]) + 1) * lengths[split[-1][0]] > bound:
                split.append([])
            split[-1].append(place)
        return split

    bounds = range(max(lengths, default=0), len(lengths) * max(lengths, default=0) + 1)
    bound = bisect_left(bounds, True, key=lambda bound: len(filled(bound)) <= parts)
    split = filled(bounds[bound])
    return [sorted(places) for places in split] + [[] for _ in range(parts - len(split))]


def split_micro_batches(
    lengths: Sequence[int], parts: int, processes: int = 1, padded: bool = True
) -> list[list[list[int]]]:
    """Split the rows of a step into micro-batches, and deal these to the processes.

    The most expensive micro-batches come first and are dealt to and fro, so that all processes have nearly the same to
    do in every pass, and in the whole step.

    Args:
        lengths: tokens of the rows.
        parts: micro-batches of each process.
        padded: whether rows are padded to the longest of their micro-batch (`split_by_length`, else `split_evenly`).

    Returns:
        Process → its micro-batches, places in ascending order; some are empty where there are few rows.
    """
    count = parts * processes
    split = split_by_length(lengths, count) if padded else split_evenly(lengths, count)

    def cost(part: list[int]) -> int:
        tokens = [lengths[place] for place in part]
        return len(tokens) * max(tokens, default=0) if padded else sum(tokens)

    split.sort(key=cost, reverse=True)
    passes = [split[first : first + processes] for first in range(0, count, processes)]
    for backwards in passes[1::2]:
        backwards.reverse()
    return [list(dealt) for dealt in zip(*passes, strict=True)]


_CONNECTION = ("gloo", "nccl", "connection closed", "connection reset")


def _is_of_connection(error: RuntimeError) -> bool:
    """Whether a collective operation failed; gloo raises no class of its own."""
    classes = (dist.DistError,) if dist.is_available() else ()
    return isinstance(error, classes) or any(word in str(error).lower() for word in _CONNECTION)


def _plain(error: Exception, rank: int) -> LonggameError:
    """The error in a form that another process can raise."""
    if isinstance(error, LonggameError):
        return type(error)(*error.args)
    return ModelError(f"process {rank} failed: {type(error).__name__}: {error}. Its own output says where.")
