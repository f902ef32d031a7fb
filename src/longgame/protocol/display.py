"""Progress for a person: which trial, which stage, which step, how long still."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class RichDisplay:
    """A bar for the whole audit and a line for each running job; plain lines where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._lines: dict[str, TaskID] = {}
        self._shares: dict[str, float] = {}
        self._total: TaskID | None = None
        self._jobs = 0
        self._done = 0
        self._begun = 0.0
        self._stages = 1

    def __enter__(self) -> RichDisplay:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def warn(self, text: str) -> None:
        """Print what had better be known before the work is done."""
        self.console.print(f"Warning: {text}", style="yellow", markup=False, highlight=False)

    def begin(self, phase: str, jobs: list[str], stages: int) -> None:
        for line in [*self._lines.values(), *([self._total] if self._total is not None else [])]:
            self.bars.remove_task(line)
        self._lines, self._shares, self._total = {}, {}, None
        self._jobs, self._done, self._begun, self._stages = len(jobs), 0, time.monotonic(), max(1, stages)
        if jobs:
            self._total = self.bars.add_task(phase, total=len(jobs), note="")
            if not self.console.is_terminal:
                self.console.print(f"{phase}: {len(jobs)}")

    def progress(self, job: str, stage: int, activity: str, step: int, steps: int) -> None:
        if job not in self._lines:
            self._lines[job] = self.bars.add_task(job, total=steps, note="")
        where = f"stage {stage}/{self._stages} · {activity}" if stage else activity
        self.bars.update(self._lines[job], completed=step, total=steps, note=where)
        if not stage:  # the shared work of a seed tells what it does, not how far it is
            return
        inside = 0.6 * step / max(1, steps) if activity == "train" else 0.8
        self._shares[job] = max(self._shares.get(job, 0.0), (max(0, stage - 1) + inside) / self._stages)
        self._update_total()

    def finished(self, job: str) -> None:
        self._done += 1
        self._shares.pop(job, None)
        line = self._lines.pop(job, None)
        if line is not None:
            self.bars.remove_task(line)
        self._update_total()
        if not self.console.is_terminal:
            self.console.print(f"  {job} done ({self._done}/{self._jobs}), {self.time_left()}")

    def time_left(self) -> str:
        """Time left by the share of the work that is done; empty until a twentieth is."""
        share = (self._done + sum(self._shares.values())) / max(1, self._jobs)
        if share < 0.05:
            return ""
        left = (time.monotonic() - self._begun) * (1 - share) / share
        return f"{int(left // 60)}:{int(left % 60):02d} left"

    def _update_total(self) -> None:
        if self._total is not None:
            self.bars.update(self._total, completed=self._done, note=self.time_left())
