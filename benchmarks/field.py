"""The field's selectors: what each costs beside the plain work that bounds it, or beside the textbook's loop.

```
python -m benchmarks.field --data-dir DATA --json field.json       # SmolLM2-135M on rows of DATA/train
python -m benchmarks.field --quick --model tiny                    # made-up tokens, small sizes
python -m benchmarks.field --only ifd semdedup
```
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from benchmarks.harness import Report, at_least, at_most, measure_machine, take_turns
from benchmarks.selection import mixture
from benchmarks.signals import plain_sides
from benchmarks.workload import Workload, real
from longgame.seeding import generator
from longgame.selection.algorithms.clusters import k_means, without_near_duplicates
from longgame.signals.source import SignalSource

IFD, SEMDEDUP = 1.5, 5.0


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


def semdedup(report: Report, quick: bool) -> None:
    """Near-duplicates within cells of k-means, the same cells for both sides, beside the published loop.

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

        times = take_turns({"published": published, "ours": ours}, 1 if quick else 3)
        differing = int((answers["ours"] != slow_semdedup(units, labels, order, epsilon)).sum())
        report.add(
            [
                at_least(
                    f"semdedup_{cells}_cells_over_published", times["published"].best / times["ours"].best, SEMDEDUP
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
                }
            ],
        )


PARTS = ("ifd", "semdedup")


def run(report: Report, only: tuple[str, ...], model: str, data_dir: Path | None, quick: bool) -> None:
    """The named parts."""
    if "ifd" in only:
        ifd(report, real(16 if quick else 64, dtype="float32", data_dir=data_dir, model=model), quick)
    if "semdedup" in only:
        semdedup(report, quick)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report = Report("field", measure_machine())
    print(report.machine)
    run(report, tuple(options.only), options.model, options.data_dir, options.quick)
    sys.exit(0 if report.finish(options.json) else 1)


if __name__ == "__main__":
    main()
