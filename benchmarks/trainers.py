"""What the options of `SelectionTrainer` cost: the training log, checkpoints' tables, and torch_compile on a CPU.

```
python -m benchmarks.trainers                         # the tiny shape
python -m benchmarks.trainers --model smollm2-135m --steps 6
```

All sides train on the same candidates in one process, by turns, selecting at random (so they train on the same picks);
the median step of the best run counts, without the first one, which compiles. Weights are random.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainingArguments

from benchmarks.harness import Form, Report, measure_machine, quick_deadline, reported, run_parts
from benchmarks.training import CASES, PAD, make_model, make_pool
from longgame.training.config import SelectionConfig
from longgame.training.log import Parts
from longgame.training.trainer import SelectionTrainer

SIDES: dict[str, dict[str, Any]] = {
    "plain": {},
    "training log": {"training_log": True},
    "torch_compile": {"torch_compile": True},
}


def pad(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Collate features with right padding."""
    width = max(len(feature["input_ids"]) for feature in features)
    fill = {"input_ids": PAD, "attention_mask": 0, "labels": -100}
    columns = {
        name: [[*feature[name], *[value] * (width - len(feature[name]))] for feature in features]
        for name, value in fill.items()
    }
    return {name: torch.tensor(rows) for name, rows in columns.items()}


class Clock(TrainerCallback):
    """Seconds of every step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_step_begin(self, *_event: Any, **_state: Any) -> None:
        self._start = time.perf_counter()

    def on_step_end(self, *_event: Any, **_state: Any) -> None:
        self.seconds.append(time.perf_counter() - self._start)


def run(name: str, steps: int, folder: str, training_log: bool = False, torch_compile: bool = False) -> list[float]:
    """Seconds of each step of a training."""
    case = CASES[name]
    pool = make_pool(case, steps)
    rows = []
    for ids, prompt, example in zip(pool.input_ids, pool.prompt_tokens, pool.examples, strict=True):
        labels = [-100] * int(prompt) + ids[prompt:].tolist()
        row = {"input_ids": ids.tolist(), "labels": labels, "attention_mask": [1] * len(ids)}
        rows.append({**row, "sample_id": example.sample_id})
    torch.compiler.reset()
    trainer = SelectionTrainer(
        make_model(case, "cpu"),
        TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=max(1, case.candidates // 4), report_to=[],
            save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True, torch_compile=torch_compile,
        ),
        data_collator=pad,
        train_dataset=rows,
        selection=SelectionConfig(budget=0.25, training_log=training_log),
    )  # fmt: skip
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    return clock.seconds


def checkpoint_tables(checkpoints: int, rows: int, folder: Path) -> list[float]:
    """Seconds that each checkpoint of a long training takes for a table that grows by so many rows."""
    table, seconds = Parts(), []
    for number in range(checkpoints):
        start = number * rows
        ids = [f"{row:016x}" for row in range(start, start + rows)]
        table.append({"step": np.arange(start, start + rows), "sample_id": ids, "term_score": np.random.rand(rows)})  # noqa: NPY002
        began = time.perf_counter()
        table.write(folder / str(number))
        seconds.append(time.perf_counter() - began)
    return seconds


def options_cost(report: Report, model: str, steps: int, repeats: int, sides: Mapping[str, dict[str, Any]]) -> None:
    """Figures: the median step with each option over the plain one."""
    medians: dict[str, list[float]] = {side: [] for side in sides}
    first: dict[str, list[float]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeats):
            for side, extra in sides.items():
                seconds = run(model, steps, folder, **extra)
                medians[side].append(statistics.median(seconds[1:]))
                first[side].append(seconds[0])
    base = min(medians["plain"])
    for side in sides:
        best = min(medians[side])
        name = f"trainers.{model}.{side}".replace(" ", "_")
        row = {"model": model, "side": side, "ms_per_step": 1e3 * best, "first_step_seconds": min(first[side])}
        report.add([reported(name, best / base)], [row])
        print(f"{name}: {1e3 * best:.2f} ms/step, first step {min(first[side]):.2f} s", flush=True)


def tables_cost(report: Report, checkpoints: int) -> None:
    """Figure: the last checkpoints' table over the first ones', which hold a hundredth of its rows."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = checkpoint_tables(checkpoints, 5000, Path(folder))
    part = max(1, checkpoints // 10)
    early, late = statistics.median(seconds[:part]), statistics.median(seconds[-part:])
    row = {"checkpoints": checkpoints, "first_ms": 1e3 * early, "last_ms": 1e3 * late, "seconds": sum(seconds)}
    report.add([reported(f"trainers.tables_{checkpoints}", late / early)], [row])
    print(f"tables of {checkpoints} checkpoints: {1e3 * early:.1f} ms first, {1e3 * late:.1f} ms last", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=list(CASES), default="tiny-like")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="without torch_compile, at most a minute")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    sides = {name: extra for name, extra in SIDES.items() if not (options.quick and "torch_compile" in extra)}
    report = Report("trainers", measure_machine(), quick=options.quick)
    print(f"{report.machine}; float32, LoRA r=16")

    def steps(count: int, repeats: int) -> Callable[[], None]:
        return partial(options_cost, report, options.model, count, repeats, sides)

    weight = 1.0 if options.model == "tiny-like" else 20.0
    parts = {
        "options": [Form(steps(options.steps, options.repeats), 10 * weight), Form(steps(6, 1), 3 * weight)],
        "tables": [Form(partial(tables_cost, report, 200), 5), Form(partial(tables_cost, report, 20), 1)],
    }
    return int(not run_parts(report, parts, options.json, quick_deadline(options.quick)))


if __name__ == "__main__":
    raise SystemExit(main())
