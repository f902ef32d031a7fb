"""The command line: every command ends with one clear sentence and an exit code other than 0 when it fails."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from types import FrameType
from typing import Annotated, NoReturn

import typer

import longgame
from longgame.errors import LonggameError, stopped_code

_USE, _STUDY, _MORE = "Select and train", "Audit", "Reports and plug-ins"


def _print_version(show: bool) -> None:
    if show:
        _tell_version()
        raise typer.Exit


def _tell_version() -> None:
    typer.echo(f"longgame {longgame.__version__}")


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Data selection for LLM fine-tuning that plays the long game."""


_FREE = {"allow_extra_args": True, "ignore_unknown_options": True}
_COMMANDS: dict[str, tuple[str, str, dict[str, bool]]] = {
    "check": ("check.check_command", _USE, {}),
    "score": ("score.score_command", _USE, {}),
    "merge": ("merge.merge_command", _USE, {}),
    "select": ("select.select_command", _USE, {}),
    "train": ("train.train", _USE, _FREE),
    "audit": ("audit.audit_command", _STUDY, {}),
    "init": ("init.init", _STUDY, {}),
    "pools": ("pools.pools", _STUDY, {}),
    "watch": ("watch.watch", _STUDY, {}),
    "report": ("report.report", _MORE, {}),
    "compare": ("report.compare", _MORE, {}),
    "selectors": ("selectors.selectors", _MORE, {}),
    "check-selector": ("selectors.check_selector_command", _MORE, {}),
}
"""Command → its function in `longgame.commands`, the group of the help, settings of its context."""


@cache
def _application(command: str = "") -> typer.Typer:
    """One command, or all of them, as the help and an unknown name need: their imports take most of a second."""
    app = typer.Typer(
        help="Data selection for LLM fine-tuning that plays the long game.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for name in [command] if command in _COMMANDS else _COMMANDS:
        place, group, settings = _COMMANDS[name]
        module, function = place.split(".")
        run = getattr(import_module(f"longgame.commands.{module}"), function)
        app.command(name, rich_help_panel=group, context_settings=settings)(run)
    return app


def __getattr__(name: str) -> typer.Typer:
    """``app``, made when it is first asked for."""
    if name != "app":
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return _application()


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Print an error of longgame, or of the system, as one sentence and exit with its code."""
    try:
        yield
    except LonggameError as error:
        _fail(str(error), error.exit_code)
    except BrokenPipeError:  # the reader of the output has gone, as head does
        _drop_output()
        sys.exit(1)
    except OSError as error:
        place = f" '{error.filename}'" if error.filename is not None else ""
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EBADF, errno.EIO) and not place:
            _drop_output()
            place = " the output"
        _fail(f"cannot use{place or ' a file'}: {reason}. Give another path, or make room.", 1)
    except KeyboardInterrupt as stop:
        _fail("stopped.", stopped_code(stop))


def _fail(message: str, code: int) -> NoReturn:
    from longgame.commands.terminal import Terminal

    with suppress(OSError, ValueError):  # stderr is closed or full
        Terminal(stderr=True).print(
            f"longgame: {message}", style="bold red", markup=False, highlight=False, soft_wrap=True
        )
    sys.exit(code)


def _drop_output() -> None:
    """Let what is still buffered go nowhere, so that Python's own flush at the end says nothing."""
    with suppress(OSError, ValueError, AttributeError):  # it is closed already
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())


def _interrupt_once(number: int, _frame: FrameType | None) -> NoReturn:
    """Stop at the first Ctrl-C or SIGTERM; a further Ctrl-C does not disturb the end, a second SIGTERM ends at once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise KeyboardInterrupt(number)


def _with_home(argument: str) -> str:
    """``--out=~/file`` with the home folder in place of ~, which a shell puts there only at the start of a word."""
    option, equals, value = argument.partition("=")
    is_path = option.startswith("--") and equals and (value == "~" or value.startswith("~/"))
    return f"{option}={os.path.expanduser(value)}" if is_path else argument  # noqa: PTH111


def main() -> None:
    """Entry point of the command."""
    if threading.current_thread() is threading.main_thread():
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _interrupt_once)
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _interrupt_once)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an ASCII terminal shows ? for what it lacks
            stream.reconfigure(errors="replace")
    with errors_as_sentences():
        if sys.flags.optimize > 1:
            raise LonggameError(
                "Python runs with -OO, which removes the docstrings that libraries read. Unset PYTHONOPTIMIZE, or set "
                "it to 1."
            )
        try:
            sys.argv[1:] = map(_with_home, sys.argv[1:])
            if sys.argv[1:] == ["--version"]:  # the one answer that needs no command
                _tell_version()
            else:
                _application(sys.argv[1] if len(sys.argv) > 1 else "")()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()


if __name__ == "__main__":
    main()
