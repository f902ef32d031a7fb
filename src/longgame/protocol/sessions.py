"""How long an audit was at work, kept on disk while it works."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Protocol

from longgame.protocol.files import write_json

EVERY = 10.0
"""Seconds between two notes of the time: at most so much of a killed session is not counted."""


class Display(Protocol):
    """What shows the progress of an audit to a person."""

    def warn(self, text: str) -> None: ...

    def begin(self, phase: str, jobs: list[str], stages: int) -> None: ...

    def progress(self, job: str, stage: int, activity: str, step: int, steps: int) -> None: ...

    def finished(self, job: str) -> None: ...


class SessionClock:
    """A display that hands everything on and notes the time at work in ``environment.json`` as it goes.

    Args:
        display: what is told of the progress.
        path: environment.json of the run.
        environment: its content; an entry of ``sessions`` (seconds) is added and kept up to date.
    """

    def __init__(self, display: Display, path: Path, environment: dict[str, Any]) -> None:
        self._display, self._path, self._environment = display, path, environment
        self._begun = self._noted = time.perf_counter()
        environment["sessions"].append(0.0)

    def warn(self, text: str) -> None:
        self._display.warn(text)

    def begin(self, phase: str, jobs: list[str], stages: int) -> None:
        self._display.begin(phase, jobs, stages)

    def progress(self, job: str, stage: int, activity: str, step: int, steps: int) -> None:
        self._display.progress(job, stage, activity, step, steps)
        if time.perf_counter() - self._noted >= EVERY:
            self.note()

    def finished(self, job: str) -> None:
        self._display.finished(job)

    def note(self) -> None:
        """Write down the seconds of this session so far."""
        self._noted = time.perf_counter()
        self._environment["sessions"][-1] = round(self._noted - self._begun, 1)
        write_json(self._path, self._environment)
