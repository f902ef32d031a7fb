"""Trainings in several processes of this machine (gloo), forked from one server that has imported what they need."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback

PRELOAD = ["support.trainers", "longgame.training.trainer", "datasets", "peft"]


def run_in_processes(work, size, *arguments, timeout=300):
    """Return ``work(*arguments)`` of each of ``size`` processes, in their order; an error is returned as its text.

    ``work`` must be a function of a module.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = context.SimpleQueue()
    workers = [
        context.Process(target=_process, args=(queue, work, rank, size, port, arguments), daemon=True)
        for rank in range(size)
    ]
    for worker in workers:
        worker.start()
    answers = {}
    while len(answers) < size:
        rank, answer = queue.get()
        answers[rank] = answer
    for worker in workers:
        worker.join(timeout)
    return [answers[rank] for rank in range(size)]


def _process(queue, work, rank, size, port, arguments):
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ.update({name: str(value) for name, value in names.items()} if size > 1 else {})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"})
    import torch

    torch.set_num_threads(1)
    try:
        queue.put((rank, work(*arguments)))
    except Exception:  # noqa: BLE001 - the test reads it
        queue.put((rank, traceback.format_exc()))
