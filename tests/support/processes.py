"""Trainings in several processes of this machine (gloo), forked from one server that has imported what they need."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor

from longgame.models.processes import Processes

PRELOAD = ["support.trainers", "longgame.training.trainer", "datasets", "peft"]


def run_in_processes(work, size, *arguments, timeout=300):
    """Return ``work(*arguments)`` of each of ``size`` processes, in their order.

    Of an error the text is returned, and None of a process that ended without an answer.
    ``work`` must be a function of a module.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = [context.Pipe(duplex=False) for _ in range(size)]
    workers = [
        context.Process(target=_process, args=(answer, work, rank, size, port, arguments), daemon=True)
        for rank, (_, answer) in enumerate(pipes)
    ]
    for worker in workers:
        worker.start()
    for _, answer in pipes:
        answer.close()  # so that the end of a process is the end of its pipe
    answers = []
    for answers_of_one, _ in pipes:
        try:
            answers.append(answers_of_one.recv() if answers_of_one.poll(timeout) else "no answer in time")
        except EOFError:
            answers.append(None)
    for worker in workers:
        worker.terminate()
    return answers


def _process(pipe, work, rank, size, port, arguments):
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ.update({name: str(value) for name, value in names.items()} if size > 1 else {})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"})
    import torch

    torch.set_num_threads(1)
    try:
        pipe.send(work(*arguments))
    except Exception:  # noqa: BLE001 - the test reads it
        pipe.send(traceback.format_exc())


class Threads(Processes):
    """The same in threads of one process: cheap where nothing is trained.

    Args:
        board: shared by all of one training (`Threads.together`).
    """

    def __init__(self, rank, size, board):
        super().__init__(rank, size)
        self._values, self._barrier = board

    def _gather(self, value):
        self._values[self.rank] = pickle.dumps(value)
        self._barrier.wait()
        answers = [pickle.loads(part) for part in self._values]
        self._barrier.wait()
        return answers

    @classmethod
    def together(cls, work, size):
        """Return ``work(processes)`` of each of ``size`` threads."""
        board = [None] * size, threading.Barrier(size, timeout=120)
        with ThreadPoolExecutor(size) as pool:
            return list(pool.map(lambda rank: work(cls(rank, size, board)), range(size)))
