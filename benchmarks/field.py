"""The field's selectors: what each costs beside the plain work that bounds it, or beside the textbook's loop.

```
python -m benchmarks.field --data-dir DATA --json field.json       # SmolLM2-135M on rows of DATA/train
python -m benchmarks.field --quick --model tiny                    # small sizes, at most a minute
python -m benchmarks.field --only ifd semdedup
```
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from transformers import TrainerCallback

from benchmarks.harness import (
    Form,
    Report,
    at_least,
    at_most,
    measure_machine,
    quick_deadline,
    run_parts,
    take_turns,
)
from benchmarks.select import rows_of, write
from benchmarks.selection import mixture
from benchmarks.signals import plain_sides
from benchmarks.workload import Workload, real
from longgame.data.sources import open_source
from longgame.errors import LonggameError
from longgame.offline.rows import DataRows, TokenizedRows
from longgame.offline.scorer import LoadedScorer, ModelOptions
from longgame.seeding import generator
from longgame.selection.algorithms.clusters import k_means, kmeans_plus_plus, without_near_duplicates
from longgame.selection.base import build_selector
from longgame.selection.families import needs_of
from longgame.selection.history import History
from longgame.selection.policy import SelectionPolicy
from longgame.signals.engine import batches
from longgame.signals.source import SignalSource

IFD, GREATS, SEMDEDUP, BADGE, DSIR_RATE, DSIR_GIB, LESS = 1.5, 1.3, 5.0, 10.0, 50_000, 1.0, 100.0
TARGETS = 5
_DSIR = """
import json, sys, time
from benchmarks.harness import peak_resident
from longgame.offline.options import SelectOptions
from longgame.offline.selecting import select_to
import longgame.selection.methods.dsir, pandas, scipy.stats
start = time.perf_counter()
options = SelectOptions(selector="dsir")
outcome, _ = select_to(sys.argv[1], sys.argv[2], options, target=sys.argv[3], overwrite=True)
seconds, peak = time.perf_counter() - start, peak_resident()
print(json.dumps({"seconds": seconds, "peak": peak, "rows": len(outcome.rows), "picks": len(outcome.picks)}))
"""


def ifd(report: Report, work: Workload, quick: bool) -> None:
    """Both losses of IFD, beside one plain forward pass of prompt and response with logits at every token."""
    source = SignalSource.of_model(work.model, pad_token_id=work.pad_token_id)
    plain = plain_sides(work)
    sides: dict[str, Callable[[], object]] = {name: plain[name] for name in plain if "logits" in name}
    sides["ifd"] = lambda: source(work.pool, ("loss", "loss_without_prompt"))
    times = take_turns(sides, 1 if quick else 3)
    best = min(times[name].best for name in sides if name != "ifd")
    share = float(work.pool.response_tokens.sum() / work.pool.tokens.sum())
    report.add(
        [at_most("ifd_over_forward", times["ifd"].best / best, IFD)],
        [{"task": "ifd", "data": work.name, "response_share": share, **{name: times[name].best for name in times}}],
    )


def greats(report: Report, work: Workload, quick: bool) -> None:
    """Steps that select by GREATS, beside plain forward and backward passes of the same candidates.

    16 candidates a step, a quarter of their tokens picked; the gradient of 8 target examples is measured every 8 steps.
    """
    pool, target = work.pool.take(range(len(work.pool) - 8)), work.pool.take(range(len(work.pool) - 8, len(work.pool)))
    parts = [pool.take(range(start, min(len(pool), start + 16))) for start in range(0, len(pool), 16)]
    plain = [plain_sides(dataclasses.replace(work, pool=part), (1024,)) for part in parts]
    names = [name for name in plain[0] if "backward" in name]

    def select() -> None:
        source = SignalSource.of_model(work.model, pad_token_id=work.pad_token_id, target=lambda: target)
        policy = SelectionPolicy(build_selector("greats"), History(), generator(0, "bench", "greats"))
        source.begin_stage()
        for source.step, part in enumerate(parts):
            policy.choose(part, int(part.tokens.sum()) // 4, source)

    sides: dict[str, Callable[[], object]] = {
        name: lambda name=name: [side[name]() for side in plain]  # type: ignore[misc]
        for name in names
    }
    sides["greats"] = select
    times = take_turns(sides, 1 if quick else 3)
    best = min(times[name].best for name in names)
    report.add(
        [at_most("greats_over_forward_and_backward", times["greats"].best / best, GREATS)],
        [{"task": "greats", "data": work.name, "steps": len(parts), **{name: times[name].best for name in times}}],
    )


def textbook_semdedup(
    units: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], order: Int[np.ndarray, " n"], epsilon: float
) -> Bool[np.ndarray, " n"]:
    """SemDeDup as it is published: all cosines of a cell, their upper triangle, and the largest of each column.

    A row is compared with removed ones, too, so that it keeps no more than `without_near_duplicates`.
    """
    result = np.zeros(len(units), dtype=bool)
    by_cell = order[np.argsort(labels[order], kind="stable")]
    for rows in np.split(by_cell, np.flatnonzero(np.diff(labels[by_cell])) + 1):
        part = torch.from_numpy(units[rows])
        cosines = part @ part.T
        cosines.fill_diagonal_(0.0)
        largest = torch.triu(cosines, diagonal=1).max(dim=0).values
        result[rows] = (largest <= 1 - epsilon).numpy()
    return result


def slow_semdedup(
    units: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], order: Int[np.ndarray, " n"], epsilon: float
) -> Bool[np.ndarray, " n"]:
    """Keep what is not close to a kept row of its cell, one row at a time, in float64."""
    result = np.zeros(len(units), dtype=bool)
    wide = units.astype(np.float64)
    for cell in range(int(labels.max()) + 1):
        rows = order[labels[order] == cell]
        members, count = np.empty((len(rows), units.shape[1])), 0
        for row in rows.tolist():
            if not count or float((members[:count] @ wide[row]).max()) <= 1 - epsilon:
                members[count], result[row] = wide[row], True
                count += 1
    return result


def published_cells(units: Float[np.ndarray, "n d"], cells: int) -> Int[np.ndarray, " n"]:
    """Spherical k-means as the published clustering asks faiss for it, on one thread in float32.

    100 iterations from random rows, over at most 256 rows a cell; then every row joins its nearest center.
    """
    rows, source = torch.from_numpy(units), torch.Generator().manual_seed(0)
    sample = rows[torch.randperm(len(rows), generator=source)[: 256 * cells]]
    centers = sample[:cells].clone()
    for _ in range(100):
        labels = (sample @ centers.T).argmax(dim=1)
        sums = torch.zeros_like(centers).index_add_(0, labels, sample)
        filled = torch.bincount(labels, minlength=cells) > 0
        centers = torch.nn.functional.normalize(torch.where(filled[:, None], sums, centers), dim=1)
    return (rows @ centers.T).argmax(dim=1).numpy()


def semdedup(report: Report, quick: bool) -> None:
    """Near-duplicates within cells of k-means, beside the published loop over the same cells; and both with k-means.

    Cells are as large as the published ones (440M rows in 50,000 cells), smaller, and √n, the selector's default.
    """
    n, epsilon = (10_000 if quick else 100_000), 0.05
    rng = generator(0, "bench", "copies")
    rows = mixture(n)
    copies = np.flatnonzero(rng.random(n) < 0.2)
    rows[copies] = rows[rng.integers(0, n, len(copies))]
    rows[copies] += 0.05 * rows.std() * rng.standard_normal((len(copies), rows.shape[1]), dtype=np.float32)
    units = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    for cells in (max(2, n // 8800), n // 1000, round(n**0.5)):
        labels, distance = k_means(units, cells, generator(0, "bench", "cells"))
        order = np.argsort(-distance, kind="stable")
        answers = {}

        def ours(labels: np.ndarray = labels, order: np.ndarray = order, answers: dict = answers) -> None:
            answers["ours"] = without_near_duplicates(units, labels, order, epsilon)[0]

        def published(labels: np.ndarray = labels, order: np.ndarray = order, answers: dict = answers) -> None:
            answers["published"] = textbook_semdedup(units, labels, order, epsilon)

        def ours_whole(cells: int = cells) -> None:
            labels, distance = k_means(units, cells, generator(0, "bench", "cells"))
            without_near_duplicates(units, labels, np.argsort(-distance, kind="stable"), epsilon)

        def published_whole(cells: int = cells, order: np.ndarray = order) -> None:
            textbook_semdedup(units, published_cells(units, cells), order, epsilon)

        times = take_turns({"published": published, "ours": ours}, 1 if quick else 3)
        whole = take_turns({"published": published_whole, "ours": ours_whole}, 1 if quick else 3)
        differing = int((answers["ours"] != slow_semdedup(units, labels, order, epsilon)).sum())
        report.add(
            [
                at_least(
                    f"semdedup_{cells}_cells_over_published", times["published"].best / times["ours"].best, SEMDEDUP
                ),
                at_least(
                    f"semdedup_{cells}_cells_with_k_means_over_published",
                    whole["published"].best / whole["ours"].best,
                    SEMDEDUP,
                ),
                at_most(f"semdedup_{cells}_cells_other_picks", differing, 0),
            ],
            [
                {
                    "task": "semdedup",
                    "n": n,
                    "cells": cells,
                    "largest_cell": int(np.bincount(labels).max()),
                    "kept": int(answers["ours"].sum()),
                    "kept_by_published": int(answers["published"].sum()),
                    "seconds": times["ours"].best,
                    "published_seconds": times["published"].best,
                    "seconds_with_k_means": whole["ours"].best,
                    "published_seconds_with_k_means": whole["published"].best,
                }
            ],
        )


def textbook_seeding(points: Float[np.ndarray, "n d"], k: int, rng: np.random.Generator) -> Int[np.ndarray, " k"]:
    """k-means++ seeding as textbooks and the published BADGE write it: all distances to each new pick, then a draw."""
    picks = [int(rng.integers(len(points)))]
    nearest = np.square(points - points[picks[0]]).sum(axis=1)
    while len(picks) < k:
        picks.append(int(rng.choice(len(points), p=nearest / nearest.sum())))
        np.minimum(nearest, np.square(points - points[picks[-1]]).sum(axis=1), out=nearest)
    return np.asarray(picks)


def badge(report: Report, quick: bool) -> None:
    """The draws of BADGE on sketches of 1,024 numbers, beside the textbook's loop; both sides draw k rows."""
    n, k = (2000, 200) if quick else (10_000, 1000)
    points = generator(0, "bench", "sketches").standard_normal((n, 1024), dtype=np.float32)
    points *= generator(0, "bench", "lengths").lognormal(0, 1, (n, 1)).astype(np.float32)
    costs = np.ones(n, dtype=np.int64)
    sides = {
        "textbook": lambda: textbook_seeding(points, k, generator(0, "bench", "draws")),
        "ours": lambda: kmeans_plus_plus(points, costs, k, generator(0, "bench", "draws")),
    }
    times = take_turns(sides, 1 if quick else 3)
    report.add(
        [at_least("badge_over_textbook", times["textbook"].best / times["ours"].best, BADGE)],
        [{"task": "badge", "n": n, "k": k, **{name: times[name].best for name in times}}],
    )


def dsir(report: Report, data_dir: Path | None, quick: bool) -> None:
    """DSIR from a file to a file, one thread, in a process of its own; rows that repeat are numbered apart."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = rows_of(data_dir, 20_000 if quick else 1_000_000)
        data = write(folder / "data.jsonl", rows)
        target = write(folder / "target.jsonl", [{**row, "prompt": f"{row['prompt']} ?"} for row in rows[:200]])
        code = [sys.executable, "-c", _DSIR, str(data), str(folder / "out.jsonl"), str(target)]
        done = subprocess.run(code, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    report.add(
        [
            at_least("dsir_rows_per_second", result["rows"] / result["seconds"], DSIR_RATE),
            at_most("dsir_peak_gib", result["peak"] / 2**30, DSIR_GIB),
        ],
        [{"task": "dsir", **result}],
    )


def less(report: Report, data_dir: Path | None, count: int) -> None:
    """LESS on tiny for several target sets: everything anew for each, and from the gradient store of the first."""
    import longgame

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = rows_of(data_dir, count)
        data = write(folder / "data.jsonl", rows)
        options: dict[str, Any] = {"selector": "less", "budget": "5%", "model": "tiny", "on_bad_row": "skip"}

        def select(number: int) -> float:
            items = [{**row, "prompt": f"{row['prompt']} ?"} for row in rows[10 * number : 10 * number + 10]]
            target = write(folder / f"target-{number}.jsonl", items)
            start = time.perf_counter()
            longgame.select(data, target=target, scores=folder / "scores", **options)
            return time.perf_counter() - start

        first = select(0)
        others = [select(number) for number in range(1, TARGETS + 1)]
    ratio = TARGETS * first / sum(others)
    report.add(
        [at_least("less_targets_from_store", ratio, LESS)],
        [{"task": "less", "rows": len(rows), "first_seconds": first, "other_seconds": others}],
    )


class Clock(TrainerCallback):
    """Seconds of every step, from the end of the one before, and the part of it that was spent on selecting."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.seconds: list[float] = []
        self.shares: list[float] = []

    def on_train_begin(self, *_event: Any, **_state: Any) -> None:
        self._last = time.perf_counter(), self._trainer.selection_seconds

    def on_step_end(self, *_event: Any, **_state: Any) -> None:
        now = time.perf_counter(), self._trainer.selection_seconds
        self.seconds.append(now[0] - self._last[0])
        self.shares.append((now[1] - self._last[1]) / self.seconds[-1])
        self._last = now


def online(report: Report, model: str, data_dir: Path | None, quick: bool) -> None:
    """Share of the step that each method takes in TRL's trainer; a method that refuses to run online says why.

    LoRA r 16, two rows of at most 128 tokens learned of eight candidates; the first step is left out.
    """
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from trl import SFTConfig

    from longgame.models.load import load_model
    from longgame.recipe import ModelSpec
    from longgame.selection.base import SELECTORS
    from longgame.training.config import SelectionConfig
    from longgame.training.sft import SelectionSFTTrainer

    disable_progress_bars()
    steps = 2 if quick else 4
    rows = [
        {"prompt": row["prompt"][:400], "completion": row["response"][:200]} for row in rows_of(data_dir, 8 * steps + 8)
    ]
    loaded = load_model(ModelSpec(name=model), attention="sdpa")
    weights = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    for selector in SELECTORS.builtin_names():
        loaded.model.load_state_dict(weights)
        with tempfile.TemporaryDirectory() as folder:
            arguments = SFTConfig(
                folder, max_steps=steps, per_device_train_batch_size=2, max_length=128, report_to=[], use_cpu=True,
                save_strategy="no", logging_strategy="no", disable_tqdm=True, packing=False,
            )  # fmt: skip
            try:
                trainer = SelectionSFTTrainer(
                    model=loaded.model,
                    args=arguments,
                    train_dataset=Dataset.from_list(rows[: 8 * steps]),
                    processing_class=loaded.tokenizer,
                    peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
                    selection=SelectionConfig(selector=selector, budget=0.25),
                    target_dataset=Dataset.from_list(rows[8 * steps :]),
                )
                clock = Clock(trainer)
                trainer.add_callback(clock)
                trainer.train()
            except LonggameError as error:
                report.add(rows=[{"task": "online", "selector": selector, "refused": str(error)}])
                print(f"online {selector}: refused: {error}")
            else:
                share = statistics.median(clock.shares[1:])
                report.add(rows=[{"task": "online", "selector": selector, "share": share, "seconds": clock.seconds}])
                print(f"online {selector}: {share:.0%} of the step")
            if hasattr(trainer.model, "unload"):
                trainer.model.unload()


def offline(report: Report, model: str, data_dir: Path | None, quick: bool, file: Path | None) -> None:
    """`longgame select` by each method, from a file to a file, in forward passes over the same rows.

    12 rows of the data are the target set; grades and complexity are columns of made-up numbers; the scorer model is
    `tiny`. Trainings beside the selection (warm-up, reference model, training log) are part of the time. Times are
    those of the processor, so that other work on the machine hardly changes them.
    """
    import longgame
    from longgame.selection.base import SELECTORS

    count = 24 if quick else 48
    rows = [{"prompt": row["prompt"][:300], "response": row["response"][:200]} for row in rows_of(data_dir, count + 12)]
    rng = generator(0, "bench", "grades")
    for row in rows:
        row |= {"grade": float(rng.uniform(1, 5)), "hard": float(rng.uniform(1, 6))}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, target = write(folder / "data.jsonl", rows[:count]), write(folder / "target.jsonl", rows[count:])
        settings: dict[str, Any] = {"model": model, "budget": "30%", "max_length": 512}
        loaded = LoadedScorer.load(ModelOptions(name=model, max_length=512))
        pool = next(iter(TokenizedRows(DataRows(open_source(data)), loaded.tokenizer, 512).shards()))
        ready = list(batches(pool, int(loaded.tokenizer.pad_token_id), 1024, torch.device("cpu")))

        @torch.no_grad()
        def plain() -> None:
            for batch in ready:
                loaded.model(input_ids=batch.input_ids, use_cache=False)

        times = []
        for _ in range(3):
            start = time.process_time()
            plain()
            times.append(time.process_time() - start)
        forward = min(times)
        start = time.process_time()
        longgame.select(data, selector="random", **settings)
        loading = time.process_time() - start
        for selector in SELECTORS.builtin_names():
            needs = needs_of(build_selector(selector))
            extra: dict[str, Any] = {}
            if {"target set", "reference model", "proxy items"} & {*needs}:
                extra["target"] = target
            if "answers of the model" in needs:  # a column cannot grade them
                extra["quality"] = "rules"
            elif any("judge" in need for need in needs) or selector == "deita":
                extra |= {"quality": "column:grade,low=1,high=5", "complexity": "column:hard,low=1,high=6"}
            if "scorer model" in needs:
                extra["scorer_model"] = "tiny"
            start = time.process_time()
            try:
                longgame.select(data, selector=selector, out=folder / f"{selector}.jsonl", **settings, **extra)
            except LonggameError as error:
                report.add(rows=[{"task": "offline", "selector": selector, "refused": str(error)}])
                print(f"offline {selector}: refused: {error}", flush=True)
                continue
            seconds = time.process_time() - start
            passes = max(0.0, seconds - loading) / forward
            picks = sum(1 for _ in (folder / f"{selector}.jsonl").open())
            report.add(
                rows=[{"task": "offline", "selector": selector, "seconds": seconds, "passes": passes, "picks": picks}]
            )
            report.save(file)
            print(f"offline {selector}: {passes:.1f} forward passes, {picks} rows", flush=True)
        report.add(rows=[{"task": "offline", "rows": count, "forward_seconds": forward, "loading_seconds": loading}])


PARTS = ("badge", "dsir", "semdedup", "ifd", "less", "greats", "offline", "online")


def parts_of(
    report: Report, only: Collection[str], model: str, data_dir: Path | None, quick: bool, file: Path | None
) -> dict[str, list[Form]]:
    """The named parts; of a quick run the shortest ones come first, and the longest have no time on most machines."""
    examples = 40 if quick else 136
    work = cache(lambda: real(examples, dtype="float32", data_dir=data_dir, model=model))

    def pool(count: int) -> Workload:
        return dataclasses.replace(work(), pool=work().pool.take(range(count)))

    parts = {
        "badge": [Form(lambda: badge(report, quick), 2.5)],
        "dsir": [Form(lambda: dsir(report, data_dir, quick), 5)],
        "semdedup": [Form(lambda: semdedup(report, quick), 9)],
        "ifd": [
            Form(lambda: ifd(report, pool(16 if quick else 64), quick), 45 if model != "tiny" else 3),
            Form(lambda: ifd(report, pool(4), quick), 18 if model != "tiny" else 2),
        ],
        "less": [
            Form(lambda: less(report, data_dir, 2_000 if quick else 20_000), 170),
            Form(lambda: less(report, data_dir, 250), 28),
        ],
        "greats": [
            Form(lambda: greats(report, work(), quick), 90 if model != "tiny" else 6),
            Form(lambda: greats(report, pool(12), quick), 50 if model != "tiny" else 5),
        ],
        "offline": [Form(lambda: offline(report, model, data_dir, quick, file), 300)],
        "online": [Form(lambda: online(report, model, data_dir, quick), 300)],
    }
    return {name: forms if quick else forms[:1] for name, forms in parts.items() if name in only}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true", help="small sizes, at most a minute")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report = Report("field", measure_machine(), quick=options.quick)
    print(report.machine)
    parts = parts_of(report, options.only, options.model, options.data_dir, options.quick, options.json)
    sys.exit(0 if run_parts(report, parts, options.json, quick_deadline(options.quick)) else 1)


if __name__ == "__main__":
    main()
