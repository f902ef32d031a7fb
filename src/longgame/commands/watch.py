"""``longgame watch``: the scorecard of a run that is at work, filling, with the time left."""

from __future__ import annotations

import io
import time
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table as RichTable
from rich.text import Text

from longgame.audit.parts import FinishedPart
from longgame.commands.terminal import Terminal

LEISURE = 9
"""Seconds of rest per second of reading: looking at a large run must not slow it down."""
RECENT = 24
"""Finished stages from which the pace is taken: the last ones, as selectors and stages differ in length."""


def watch(
    run: Annotated[Path, typer.Argument(help="The directory of a run, at work or finished.")],
    every: Annotated[float, typer.Option(min=0.5, help="Seconds between looks at the directory.")] = 5.0,
    once: Annotated[bool, typer.Option("--once", help="Print the state and stop.")] = False,
) -> None:
    """Show a run's progress, time left and scorecard, and go on until it is finished (Ctrl-C stops looking).

    Example: longgame watch runs/quickstart
    """
    console = Terminal(highlight=False)
    watched = Watched(run, console)
    if once or not console.is_terminal:
        console.print(watched.view())
        return
    try:
        with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
            while not watched.finished:
                begun = time.perf_counter()
                live.update(watched.view(), refresh=True)
                looked = time.perf_counter() - begun
                time.sleep(0 if watched.finished else max(every, LEISURE * looked))
    except KeyboardInterrupt:
        console.print("Stopped looking; the audit itself goes on.")


class Watched:
    """A run directory that is looked at again and again; its records are read only when a stage was finished."""

    def __init__(self, folder: Path, console: Console) -> None:
        from longgame.audit.run import Run

        self.folder = folder
        self.finished = False
        self._console = console
        self._stages = len(Run.open(folder).plan.stages)
        self._shown: list[tuple[str, float]] = []
        self._scorecard = Text("No stage is finished yet.", style="dim")

    def view(self) -> RenderableType:
        """Progress, time left and scorecard as they are now. The recipe is read anew: trials may have been added."""
        from longgame.audit.run import Run

        held = Run.open(self.folder)
        marks = finish_times(self.folder, [trial.name for trial in held.plan.trials], self._stages)
        total = len(held.plan.trials) * self._stages
        own = {trial.name for trial in held.plan.trials if trial.condition == ""}
        if marks != self._shown and any(name in own for name, _ in marks):
            self._scorecard = self._read()
            self._shown = marks
        self.finished = len(marks) >= total
        times = [at for _, at in marks]
        return Group(progress_line(held.recipe.name, times, total, time.time(), self._console.width), self._scorecard)

    def _read(self) -> Text:
        """The scorecard as `longgame audit` prints it, for this console."""
        from longgame.audit.run import load_run
        from longgame.report.layout import report_layout
        from longgame.report.render import print_layout

        loaded = load_run(self.folder)
        colours = self._console.color_system or "standard"
        paper = Terminal(
            file=io.StringIO(),
            width=self._console.width,
            force_terminal=self._console.is_terminal,
            color_system="truecolor" if colours == "truecolor" else "standard",
        )
        with paper.capture() as printed:
            print_layout(report_layout(loaded), paper, "summary")
        return Text.from_ansi(printed.get())


def finish_times(folder: Path, trials: list[str], stages: int) -> list[tuple[str, float]]:
    """(trial, time) of every finished stage, in the order in which they were finished."""
    found = []
    for name in trials:
        for stage in range(1, stages + 1):
            part = FinishedPart.find(folder / "trials" / name, f"stage-{stage}")
            if part is None:
                break
            found.append((name, part.finished_at))
    return sorted(found, key=lambda pair: pair[1])


def seconds_left(times: list[float], total: int, now: float) -> float | None:
    """Seconds until all ``total`` stages are finished, at the pace of the last ones; None where there is no pace yet.

    The pause before now counts, so that a run that stands still does not promise an end.
    """
    recent = times[-RECENT:]
    if len(times) >= total or len(recent) < 3 or now <= recent[0]:
        return None
    return (total - len(times)) * (now - recent[0]) / (len(recent) - 1)


def progress_line(name: str, times: list[float], total: int, now: float, width: int) -> RenderableType:
    """Name, bar, finished stages and time left, in one line of at most ``width`` cells."""
    left = seconds_left(times, total, now)
    note = "finished" if len(times) >= total else "" if left is None else f"about {timedelta(seconds=round(left))} left"
    count = f"{len(times):,}/{total:,} stages"
    free = max(2, width - len(count) - len(note) - 3)  # three gaps
    bar = min(30, max(1, free - min(cell_len(name), free // 2)))
    title = Text(name, style="bold")
    title.truncate(free - bar, overflow="ellipsis")
    line = RichTable.grid(padding=(0, 1))
    line.add_row(
        title, ProgressBar(total=max(total, 1), completed=len(times), width=bar), Text(count), Text(note, style="dim")
    )
    return line
