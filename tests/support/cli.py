"""Run the command line: in another process, as a user does, or in this one, which saves the seconds of its imports."""

import contextlib
import io
import os
import signal
import subprocess
import sys
from unittest import mock


def environment():
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


def run_python(arguments, cwd, timeout=300):
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout, check=False
    )


def longgame(*arguments, cwd, timeout=300):
    return run_python(["-m", "longgame.cli", *map(str, arguments)], cwd, timeout)


def longgame_here(*arguments, cwd):
    """The same in this process; returns what `longgame` returns."""
    from longgame.cli import main

    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.dict(os.environ, environment()),
        mock.patch.object(sys, "argv", ["longgame", *map(str, arguments)]),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def _heed_ctrl_c():
    """A shell starts background jobs with SIGINT ignored, and children of an ignoring suite would ignore it, too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(*arguments, cwd):
    """Start in a process group of its own, so that a test can kill all of it at once."""
    command = [sys.executable, "-m", "longgame.cli", *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=_heed_ctrl_c,
    )
