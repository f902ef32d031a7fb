"""Functions that worker processes run in the tests of the local backend."""

import errno
import logging
import os
import signal
import time
from pathlib import Path

from longgame.errors import DataError


def write_threads(folder, name, notify):
    notify(name, 1, "work", 1, 2)
    Path(folder, name).write_text(os.environ["OMP_NUM_THREADS"])


def do_nothing(notify):
    pass


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


def write_what_is_there(folder, name, notify):
    there = " ".join(path.name for path in Path(folder).iterdir())
    Path(folder, name).write_text(there)


def write_after(folder, name, other, notify):
    """Write once the other file is there: only a worker that goes on meanwhile can make it."""
    deadline = time.monotonic() + 60
    while not Path(folder, other).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    Path(folder, name).write_text("late")


def tell_torch_threads(name, notify):
    import torch

    notify(name, 0, "threads", torch.get_num_threads(), 1)


def leave(status, notify):
    os._exit(status)


def log(text, notify):
    for _ in range(3):
        logging.getLogger("longgame.somewhere").warning("%s", text)
    logging.getLogger("longgame.somewhere").info("silent")


def write_gpu_with_both_at_work(folder, name, jobs, notify):
    """Write the GPU that this worker sees, and stay until so many workers have written theirs."""
    path = Path(folder) / name
    path.write_text(os.environ["CUDA_VISIBLE_DEVICES"])
    deadline = time.monotonic() + 60
    while len(list(Path(folder).iterdir())) < jobs and time.monotonic() < deadline:
        time.sleep(0.01)


def power(number, exponent):
    return number**exponent


def fail_at_three(number):
    if number == 3:
        raise DataError("part 3 is empty")
    return number


def leave_at_three(number):
    if number == 3:
        os._exit(9)
    return number


def process_of(driver):
    """Contents that differ between the driver and a worker."""
    return {"data.jsonl": "here" if str(os.getpid()) == driver else "there"}


def process_id(part):
    time.sleep(0.2)  # so that one worker does not answer alone
    return os.getpid()


def process_id_after(seconds):
    time.sleep(seconds)
    return os.getpid()
