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
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainingArguments

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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(CASES), default="tiny-like")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="without torch_compile: at most a minute")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    sides = {name: extra for name, extra in SIDES.items() if not (options.quick and "torch_compile" in extra)}
    figures: list[dict[str, Any]] = []
    print(f"torch {torch.__version__}, cpu, {torch.get_num_threads()} thread(s), float32, LoRA r=16")
    medians: dict[str, list[float]] = {side: [] for side in sides}
    first: dict[str, list[float]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.repeats):
            for side, extra in sides.items():
                seconds = run(options.model, options.steps, folder, **extra)
                medians[side].append(statistics.median(seconds[1:]))
                first[side].append(seconds[0])
        base = min(medians["plain"])
        for side in sides:
            best = min(medians[side])
            name = f"trainers.{options.model}.{side}"
            figures.append({"name": name, "value": best / base, "first": min(first[side])})
            print(
                f"figure {name.replace(' ', '_')} {1e3 * best:.2f} ms/step, "
                f"{best / base:.3f} of plain, first step {min(first[side]):.2f} s"
            )
        seconds = checkpoint_tables(200, 5000, Path(folder) / "tables")
        print(
            f"figure trainers.tables {1e3 * statistics.median(seconds[:20]):.1f} ms at the first checkpoints, "
            f"{1e3 * statistics.median(seconds[-20:]):.1f} ms at a million rows, {sum(seconds):.1f} s in all 200"
        )
        figures.append({"name": "trainers.tables", "value": seconds})
    if options.json:
        options.json.write_text(json.dumps({"figures": figures, "torch": torch.__version__}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
