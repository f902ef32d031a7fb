"""Two processes against one: a training step with online selection, on two cores.

```
python -m benchmarks.processes                        # SmolLM2-135M, some ten minutes on two idle cores
python -m benchmarks.processes --quick                # a smaller shape and fewer steps, under a minute
```

Both sides make the same picks of the same candidates: one process with a batch of 16 places, two with 8 each (half of
it with --quick), one thread per process. They take turns, and the best of each counts. A step is timed from the moment
that its candidates are read to that of the next ones, in the first process; the first step, which allocates, is left
out. Beside it stands the processor time of that process, which other work on the machine changes little; the figure is
of wall-clock time and needs idle cores. Where the weights of SmolLM2-135M cannot be had, its shape with random weights
takes their place.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import LlamaConfig, TrainingArguments

from benchmarks.harness import Form, Report, at_least, measure_machine, quick_deadline, run_parts
from benchmarks.trainers import pad
from benchmarks.workload import Workload, mixed_lengths, real, shaped
from longgame.training.config import SelectionConfig
from longgame.training.trainer import SelectionTrainer

PLACES, QUICK_PLACES = 16, 8
"""Of a step, over all processes; a selector sees four candidates for each."""
QUICK_SECONDS = {4: 40.0, 2: 30.0}
"""Steps of a quick run → processor time of one turn of both sides, imports of three processes included."""
SMALL = LlamaConfig(
    vocab_size=8192,
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=8,
    num_attention_heads=4,
    tie_word_embeddings=True,
)


def workload(quick: bool, steps: int) -> Workload:
    """The model with its adapter, and candidates of so many steps."""
    count = 4 * (QUICK_PLACES if quick else PLACES) * steps
    if quick:
        return shaped(SMALL, dtype=torch.float32, lengths=mixed_lengths(count, 192), name="8 layers of width 256")
    return real(count, dtype="float32", data_dir=None, max_length=256)


class Outcome(NamedTuple):
    """What one process measured."""

    seconds: float
    """Of a step, the mean without the first."""
    processor_seconds: float
    """The same of this process's processor time, which does not count waiting."""
    picks: list[tuple[str, ...]]
    model: str


def train(size: int, quick: bool, steps: int) -> Outcome:
    """Train in this process, one of ``size``."""
    torch.set_num_threads(1)
    places = QUICK_PLACES if quick else PLACES
    load = workload(quick, steps)
    load.base.config.pad_token_id = load.pad_token_id
    rows = []
    for row, ids in enumerate(load.pool.input_ids):
        labels = [-100] * int(load.pool.prompt_tokens[row]) + ids[load.pool.prompt_tokens[row] :].tolist()
        feature = {"input_ids": ids.tolist(), "labels": labels, "attention_mask": [1] * len(ids)}
        rows.append({**feature, "sample_id": load.pool.ids[row]})
    with tempfile.TemporaryDirectory() as folder:
        trainer = Timed(
            load.model,
            TrainingArguments(
                folder, max_steps=steps, per_device_train_batch_size=places // size, report_to=[], save_strategy="no",
                logging_strategy="no", disable_tqdm=True, use_cpu=True,
            ),
            data_collator=pad,
            train_dataset=rows,
            selection=SelectionConfig(selector="loss", budget=0.25),
        )  # fmt: skip
        trainer.train()
    picks = [entry.picked_ids for entry in trainer.selection_policy.rounds]
    seconds, processor = np.diff(np.asarray(trainer.times), axis=0)[1:].mean(axis=0).tolist()
    return Outcome(seconds, processor, picks, load.name)


class Timed(SelectionTrainer):
    """Notes when each step begins to read its candidates, and when training ends."""

    def get_batch_samples(self, *arguments: Any) -> Any:
        self.times.append((time.perf_counter(), time.process_time()))
        return super().get_batch_samples(*arguments)

    def train(self, *arguments: Any, **options: Any) -> Any:
        self.times: list[tuple[float, float]] = []
        output = super().train(*arguments, **options)
        self.times.append((time.perf_counter(), time.process_time()))
        return output


def _process(pipe: Any, rank: int, size: int, port: int, quick: bool, steps: int) -> None:
    if size > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"})
    os.environ["ACCELERATE_USE_CPU"] = "true"
    pipe.send(train(size, quick, steps))


def run(size: int, quick: bool, steps: int) -> Outcome:
    """Train in ``size`` processes; return what the first one measured."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    receiver, sender = context.Pipe(duplex=False)
    others = [context.Pipe(duplex=False) for _ in range(1, size)]
    ends = [sender, *(end for _, end in others)]
    workers = [
        context.Process(target=_process, args=(end, rank, size, port, quick, steps)) for rank, end in enumerate(ends)
    ]
    for worker in workers:
        worker.start()
    sender.close()
    outcome: Outcome = receiver.recv()
    for worker in workers:
        worker.join()
    return outcome


def compare(report: Report, quick: bool, steps: int, turns: int) -> None:
    """Train in one process and in two, by turns."""
    best: dict[int, float] = {}
    picks: dict[int, list[tuple[str, ...]]] = {}
    for turn in range(turns):
        for size in (1, 2):
            outcome = run(size, quick, steps)
            picks[size] = outcome.picks
            best[size] = min(outcome.seconds, best.get(size, outcome.seconds))
            print(
                f"turn {turn + 1}, {size} process(es): {outcome.seconds:.2f} s a step, "
                f"{outcome.processor_seconds:.2f} s of them computing ({outcome.model})",
                flush=True,
            )
            measured = {name: getattr(outcome, name) for name in ("seconds", "processor_seconds", "model")}
            report.add(rows=[{"processes": size, "turn": turn + 1, **measured}])
    if picks[1] != picks[2]:
        raise SystemExit("two processes picked other examples than one")
    report.add([at_least("two_processes", best[1] / best[2], 1.8)])


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller shape, few steps, one turn")
    parser.add_argument("--steps", type=int, help="of each training (default 5, --quick 4 or 2)")
    parser.add_argument("--turns", type=int, help="of each side (default 2, --quick 1)")
    parser.add_argument("--json", type=Path, help="write everything here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = Report("processes", measure_machine(), quick=options.quick)
    print(report.machine, flush=True)
    turns, counts = options.turns or (1 if options.quick else 2), {5: 0.0}
    if options.quick:
        counts = QUICK_SECONDS
    if options.steps:
        counts = {options.steps: 0.0}
    forms = [
        Form(partial(compare, report, options.quick, steps, turns), turns * seconds)
        for steps, seconds in counts.items()
    ]
    sys.exit(0 if run_parts(report, {"two processes": forms}, options.json, quick_deadline(options.quick)) else 1)


if __name__ == "__main__":
    main()
