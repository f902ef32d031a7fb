"""The processes of one training (``torchrun``, ``accelerate launch``): what they compute together, and agree on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
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

    def _gather(self, value: Any) -> list[Any]:
        answers: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(answers, value)
        except RuntimeError as error:  # torch's errors of a connection are no class of their own
            self._stop(error)
        return answers

    def _stop(self, error: RuntimeError) -> NoReturn:
        reason = " ".join(str(error).split())[:120]
        raise ModelError(
            f"process {self.rank} of {self.size} cannot reach the others ({reason}): one of them ended, and its own "
            "output says why. Start all of them again, from the last checkpoint."
        ) from error


def _plain(error: Exception, rank: int) -> LonggameError:
    """The error in a form that another process can raise."""
    if isinstance(error, LonggameError):
        return type(error)(*error.args)
    return ModelError(f"process {rank} failed: {type(error).__name__}: {error}. Its own output says where.")
