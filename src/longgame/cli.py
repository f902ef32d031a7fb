"""The command line: every command ends with one clear sentence and an exit code other than 0 when it fails."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

import longgame
from longgame.commands.audit import audit_command
from longgame.commands.pools import pools
from longgame.commands.report import compare, report
from longgame.commands.selectors import selectors
from longgame.commands.terminal import Terminal
from longgame.commands.watch import watch
from longgame.errors import LonggameError

app = typer.Typer(
    help="Data selection for LLM fine-tuning that plays the long game.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(show: bool) -> None:
    if show:
        typer.echo(f"longgame {longgame.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Data selection for LLM fine-tuning that plays the long game."""


app.command("audit")(audit_command)
app.command()(pools)
app.command()(selectors)
app.command()(report)
app.command()(compare)
app.command()(watch)


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Print an error of longgame as one sentence and exit with its code."""
    try:
        yield
    except LonggameError as error:
        console = Terminal(stderr=True)
        console.print(f"longgame: {error}", style="bold red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)


def main() -> None:
    """Entry point of the command."""
    with errors_as_sentences():
        app()


if __name__ == "__main__":
    main()
