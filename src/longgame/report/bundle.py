"""Vega, Vega-Lite and vega-embed as one script, in the version that altair's specifications are written for.

``python -m longgame.report.bundle VERSION`` prints it: making it takes a second in which no other thread of a process
gets on, so a command that will need it begins early, in a process beside its own.
"""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache

import vl_convert


def make_bundle(version: str) -> str:
    """The script for this version of Vega-Lite ("6.1"), safe between script tags."""
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)
    return re.sub(r"</(?=script)", r"<\\/", bundle, flags=re.IGNORECASE)


@cache
def begin_bundle(version: str) -> subprocess.Popen[bytes]:
    """Begin making it in a process beside this one; `finish_bundle` waits for it."""
    command = [sys.executable, "-m", __name__, version]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


@cache
def finish_bundle(version: str) -> str:
    """The script; made here where no process was begun (or where it was stopped)."""
    if begin_bundle.cache_info().currsize:
        process = begin_bundle(version)
        bundle = process.communicate()[0]
        if process.returncode == 0:
            return bundle.decode()
    return make_bundle(version)


if __name__ == "__main__":
    sys.stdout.buffer.write(make_bundle(sys.argv[1]).encode())
