"""`longgame select` on large pools: linear fits of processor time and memory, and ten million rows without a model.

```
python -m benchmarks.scale --json scale.json     # up to 10 million rows: 3 GB of disk, about 10 minutes
python -m benchmarks.scale --quick               # up to 40,000 rows, without near-duplicates
python -m benchmarks.scale --table               # the cost model of docs/scale.md, from the figures in this file
```

Score columns are written directly, as no model could score so many rows here. Every measurement is a process of its
own: processor time (not wall-clock) and the highest resident memory. A line is fitted through three sizes. Required:
the fit is off by at most 15 %, it predicts the largest size within 25 %, and memory grows by at most 160 bytes a row in
parts (with --quick it is shown without a limit).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from benchmarks.harness import (
    Form,
    Report,
    at_most,
    measure_machine,
    peak_resident,
    quick_deadline,
    reported,
    run_parts,
)
from longgame.data.formats import read_row
from longgame.data.sources import open_source
from longgame.offline.near import write_sketches
from longgame.offline.rows import DataRows
from longgame.offline.score_folder import CONFIG, STORE, TABLE
from longgame.seeding import generator
from longgame.signals.store import SignalWriter

RESIDUAL, PREDICTED, BYTES = 0.15, 0.25, 160.0
BYTES_NAME = "parts_bytes_per_row"
LARGEST, SIZES, PART = 10_000_000, (500_000, 1_000_000, 2_000_000), 500_000
QUICK_LARGEST, QUICK_SIZES, QUICK_PART = 40_000, (8_000, 16_000, 24_000), 4_000
ROUNDS = (8_000, 16_000, 32_000)
"""Rows of the two rounds of farthest-first: its work is n·k, of which a part does its share."""
QUICK_ROUNDS = (1_000, 2_000, 4_000)
NEAR = (10_000, 20_000, 40_000)
"""Rows whose texts are sketched, and of which near-duplicates are left out."""
QUICK_SECONDS = {"pool": 14.0, "parts": 20.0, "rounds": 16.0}
"""Processor time of each part of a quick run, most of it the imports of a process for each measurement."""
WIDTH = 64
_WRITTEN = 100_000
"""Rows that are written together."""


def rows_of(start: int, stop: int) -> Iterator[dict[str, str]]:
    """Short rows that differ."""
    return ({"prompt": f"question {row}", "response": f"answer {row * 7919 % 1_000_003}"} for row in range(start, stop))


WORDS = 60
"""Of a row of `texts_of`."""


def texts_of(start: int, stop: int) -> Iterator[dict[str, str]]:
    """Rows of words drawn from 5,000; every tenth repeats the one before it but for one word."""
    for row in range(start, stop):
        words = [f"word{word}" for word in generator(0, "texts", row - (row % 10 == 9)).integers(0, 5_000, WORDS)]
        if row % 10 == 9:
            words[row % WORDS] = "other"
        yield {"prompt": " ".join(words[:20]), "response": " ".join(words[20:])}


def write_pool(folder: Path, rows: int, embedded: bool = False, sketched: bool = False) -> Path:
    """Write data and the folder of scores that a job would have made of it, with numbers drawn at random."""
    folder.mkdir()
    data, scores = folder / "data.jsonl", folder / "scores"
    names = ("prompt_tokens", "response_tokens", "loss", *(["embedding"] if embedded else []))
    schema = pa.schema({"sample_id": pa.string(), "file": pa.dictionary(pa.int32(), pa.string()), "row": pa.int64()})
    scores.mkdir()
    with (
        data.open("w", encoding="utf-8") as lines,
        SignalWriter(scores / f"{STORE}00000000", dict.fromkeys(names, "float32"), "made") as writer,
        pq.ParquetWriter(scores / TABLE, schema, compression="zstd") as table,
    ):
        for start in range(0, rows, _WRITTEN):
            stop = min(rows, start + _WRITTEN)
            ids = []
            for row in (texts_of if sketched else rows_of)(start, stop):
                lines.write(json.dumps(row) + "\n")
                ids.append(read_row(row)[0].sample_id)
            rng = generator(0, "scale", start)
            columns = {
                "prompt_tokens": rng.integers(20, 400, len(ids)).astype(np.float32),
                "response_tokens": rng.integers(10, 600, len(ids)).astype(np.float32),
                "loss": rng.gamma(4.0, 0.5, len(ids)).astype(np.float32),
            }
            if embedded:
                columns["embedding"] = rng.standard_normal((len(ids), WIDTH)).astype(np.float32)
            writer.append(ids, columns)
            numbers = pa.array(np.arange(start + 1, stop + 1))
            names_of_file = pa.array([str(data)] * len(ids)).dictionary_encode()
            table.write_table(pa.table([pa.array(ids), names_of_file, numbers], schema=schema))
        writer.finish()
    config = {
        "data": str(data), "rows": rows, "digest": "made", "turns": "all", "where": None, "model": {"name": "made"},
        "weights": "made", "fingerprint": "made", "seed": 0, "grading": {}, "target": None, "versions": {},
    }  # fmt: skip
    (scores / CONFIG).write_text(yaml.safe_dump(config), encoding="utf-8")
    if sketched:
        write_sketches(scores, DataRows(open_source(data)))
    return folder


def child(kind: str, folder: Path, parts: int) -> None:
    """One measurement, printed as JSON: seconds of the processor, and peak memory beyond what the imports take."""
    import scipy.stats  # noqa: F401 - loaded before memory is counted
    import sklearn.cluster  # noqa: F401

    from longgame.offline.options import SelectOptions
    from longgame.offline.partitioned import select_in_parts
    from longgame.offline.selecting import select_to

    data, out, scores = folder / "data.jsonl", folder / f"{kind}.jsonl", folder / "scores"
    rows = DataRows(open_source(data)) if kind == "sketches" else None
    imports, start, clock = peak_resident(), time.process_time(), time.perf_counter()
    selector = "diversity" if kind == "rounds" else "loss"
    dedup = "near" if kind.startswith("near") else None
    options = SelectOptions(selector=selector, budget="2%" if kind == "rounds" else "10%", dedup=dedup)
    if rows is not None:
        with tempfile.TemporaryDirectory(dir=folder) as written:
            write_sketches(Path(written), rows)
        picks = 0
    elif kind in ("pool", "near_pool"):
        outcome, _ = select_to(data, out, options, scores=scores, overwrite=True)
        picks = len(outcome.picks)
    else:
        result, _ = select_in_parts(data, out, options, scores=scores, partitions=parts, overwrite=True)
        picks = len(result.rank)
    seconds = time.process_time() - start
    memory = peak_resident()
    print(
        json.dumps(
            {
                "seconds": seconds,
                "clock": time.perf_counter() - clock,
                "peak": memory,
                "own": memory - imports,
                "picks": picks,
            }
        )
    )


def measured(kind: str, folder: Path, parts: int) -> dict[str, float]:
    """`child` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scale", "--child", kind, str(folder), str(parts)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def fit(sizes: Sequence[int], values: Sequence[float]) -> tuple[float, float, float]:
    """Slope and intercept of the least-squares line, and the largest relative distance of a value from it."""
    slope, intercept = np.polyfit(sizes, values, 1)
    line = intercept + slope * np.asarray(sizes)
    return float(slope), float(intercept), float(np.max(np.abs(line / np.asarray(values) - 1.0)))


def lines(report: Report, kind: str, sizes: Sequence[int], part: int, pool: Callable[[int], Path]) -> None:
    """Measure a kind at each size, and fit time and memory."""
    results = [measured(kind, pool(rows), max(1, rows // part)) for rows in sizes]
    for what, unit in (("seconds", 1e6), ("own", 1.0)):
        if (kind, what) == ("sketches", "own"):
            continue  # rows are sketched and written in batches of one size
        slope, intercept, residual = fit(sizes, [result[what] for result in results])
        name = "time" if what == "seconds" else "memory"
        report.add([at_most(f"{kind}_{name}_fit_residual", residual, RESIDUAL)])
        report.add(rows=[{"kind": kind, "of": name, "per_row": slope * unit, "at_zero": intercept, "sizes": [*sizes]}])
        if name == "memory" and kind == "parts":
            # Pages and buffers of a fixed size outweigh the rows of a quick run.
            report.add([reported(BYTES_NAME, slope) if report.quick else at_most(BYTES_NAME, slope, BYTES)])
    report.add(rows=[{"kind": kind, "rows": rows, **result} for rows, result in zip(sizes, results, strict=True)])


def parts_of(report: Report, folder: Path, quick: bool) -> dict[str, list[Form]]:
    """Fits of both ways, two rounds and near-duplicates; and the largest pool, which the fit of the parts predicts."""
    largest, sizes, part = (QUICK_LARGEST, QUICK_SIZES, QUICK_PART) if quick else (LARGEST, SIZES, PART)

    @cache
    def pool(rows: int, embedded: bool = False, sketched: bool = False) -> Path:
        kind = "embedded" if embedded else "sketched" if sketched else "rows"
        return write_pool(folder / f"{kind}-{rows}", rows, embedded, sketched)

    def in_parts() -> None:
        lines(report, "parts", sizes, part, pool)
        result = measured("parts", pool(largest), largest // part)
        report.add(rows=[{"kind": "parts", "rows": largest, **result}])
        fits = {row["of"]: row for row in report.rows if row.get("kind") == "parts" and "per_row" in row}
        seconds = fits["time"]["at_zero"] + fits["time"]["per_row"] / 1e6 * largest
        memory = fits["memory"]["at_zero"] + fits["memory"]["per_row"] * largest
        report.add(
            [
                at_most("largest_seconds_off_the_line", abs(result["seconds"] / seconds - 1), PREDICTED),
                at_most("largest_memory_off_the_line", abs(result["own"] / memory - 1), PREDICTED),
            ]
        )

    rounds = QUICK_ROUNDS if quick else ROUNDS

    def near_duplicates() -> None:
        for kind in ("sketches", "near", "near_pool"):
            lines(report, kind, NEAR, NEAR[0] // 2, partial(pool, sketched=True))

    works = {
        "pool": lambda: lines(report, "pool", sizes, part, pool),
        "parts": in_parts,
        "rounds": lambda: lines(report, "rounds", rounds, rounds[0] // 2, partial(pool, embedded=True)),
    }
    parts = {name: [Form(work, QUICK_SECONDS[name])] for name, work in works.items()}
    return parts if quick else parts | {"near-duplicates": [Form(near_duplicates)]}


# Cost model

MODELS = {"SmolLM2-135M": 0.135e9, "8B": 8.0e9}
TOKENS = 300.0
"""Of a row, prompt and response."""
FLOPS = {"loss": 2.0, "gradient sketch": 6.0}
"""Per parameter and token: a forward pass; with the backward pass."""
GPU_RATE = 4.0e14
"""FLOP/s of an H100 in bfloat16, at 40 % of its peak."""
BYTES_OF_ROW = {"loss": 1_200.0 + 100.0, "gradient sketch": 1_200.0 + 100.0 + 4_096.0}
"""Text that is read, and what is written: ids, counts, loss; a sketch of 1,024 numbers in float32."""
SELECT_SECONDS = 4e-6
"""Processor time of a row, selected in parts (measured; see docs/scale.md)."""


def table() -> Iterator[str]:
    """Rows of the cost model as Markdown."""
    yield "| rows | model | signal | FLOP | 1 GPU | 8 GPUs | 256 GPUs | read and written | select, one core |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for rows in (1e6, 1e8, 1e10):
        for model, parameters in MODELS.items():
            for signal, per in FLOPS.items():
                flop = rows * TOKENS * per * parameters
                cells = [_time(flop / GPU_RATE / gpus) for gpus in (1, 8, 256)]
                moved = _size(rows * BYTES_OF_ROW[signal])
                cells += [moved, _time(rows * SELECT_SECONDS)]
                yield f"| {rows:.0e} | {model} | {signal} | {flop:.1e} | " + " | ".join(cells) + " |"


def _time(seconds: float) -> str:
    for size, unit in ((31_557_600, "years"), (86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} s"


def _size(count: float) -> str:
    for size, unit in ((1e12, "TB"), (1e9, "GB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e6:.3g} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=3, metavar=("KIND", "FOLDER", "PARTS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, folder, parts = options.child
        child(kind, Path(folder), int(parts))
        return
    if options.table:
        print("\n".join(table()))
        return
    report = Report("scale", measure_machine(), quick=options.quick)
    print(report.machine, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        parts = parts_of(report, Path(folder), options.quick)
        met = run_parts(report, parts, options.json, quick_deadline(options.quick))
    for row in report.rows:
        print(row)
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
