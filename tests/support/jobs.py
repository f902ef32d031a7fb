"""Functions that worker processes run in the tests of the local backend."""

import errno
import os
import signal
import time
from pathlib import Path

from longgame.errors import DataError


def write_threads(folder, name, notify):
    notify(name, 1, "work", 1, 2)
    Path(folder, name).write_text(os.environ["OMP_NUM_THREADS"])


def fail(message, notify):
    raise DataError(message)


def fill_the_disk(notify):
    raise OSError(errno.ENOSPC, "No space left on device", "/tmp/x")


def crash(notify):
    raise ZeroDivisionError("not of the family")


def kill_self(notify):
    os.kill(os.getpid(), signal.SIGKILL)


def sleep_then_write(folder, name, seconds, notify):
    time.sleep(seconds)
    Path(folder, name).write_text("late")
