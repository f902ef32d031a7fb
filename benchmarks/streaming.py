"""Signals of a million short examples in bounded memory.

```
python -m benchmarks.streaming --json streaming.json     # 1,000,000 examples of 8–16 tokens, some minutes
python -m benchmarks.streaming --quick                   # as many as fit into a minute, at most 20,000
```

The `tiny` model with a LoRA adapter; loss, EL2N, nuclear norm, exact gradient norm, gradient sketch (64) and embedding
(float16) of examples that are made shard by shard go to a store on disk. Required: at most 3 GiB for the whole process,
and a rate over the last tenth of the pool of at least 0.9 × that over the first (the fastest shard of each).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.harness import (
    Form,
    Report,
    at_least,
    at_most,
    measure_machine,
    peak_memory,
    quick_deadline,
    resident,
    run_parts,
)
from benchmarks.workload import Workload, real
from longgame.data.examples import Example, Pool
from longgame.seeding import generator
from longgame.signals.cache import signal_fingerprint
from longgame.signals.engine import SignalEngine
from longgame.signals.store import SignalStore, stream_signals

COLUMNS = {
    "loss": "float32",
    "el2n": "float32",
    "logit_nuclear_norm": "float32",
    "grad_norm": "float32",
    "embedding": "float16",
    "grad_sketch": "float32",
}
SKETCH = 64
"""Numbers of a gradient sketch: 256 MB for a million examples."""
LENGTHS = (8, 16)
ROWS = 1_000_000
QUICK_FORMS = {20_000: 23.0, 8_000: 11.0, 2_000: 5.0}
"""Rows of a quick run → processor time."""
PEAK_GIB = 3.0
RATE = 0.9


def run(report: Report, rows: int = ROWS, shard: int = 8192) -> None:
    """Stream the signals of synthetic examples and add rows (a tenth of the pool each) and figures.

    The peak is the whole process: interpreter, libraries and model included.
    """
    work = real(8, dtype="float32", data_dir=None, model="tiny", max_length=64)
    with tempfile.TemporaryDirectory() as folder:
        before = resident()
        marks: list[tuple[int, float, int]] = []
        rise = peak_memory(lambda: _stream(work, rows, shard, Path(folder) / "signals", marks))
        size = sum(file.stat().st_size for file in (Path(folder) / "signals").iterdir())
        _read_back(Path(folder) / "signals", rows)
    tenths = list(_tenths(marks, rows))
    report.add(rows=[{**tenth, "rows": rows, "store_mib": size / 2**20} for tenth in tenths])
    name = "1m" if rows == ROWS else f"{rows // 1000}k"
    report.add(
        [
            at_most(f"stream_{name}_peak_gib", (before + rise) / 2**30, PEAK_GIB),
            at_least(
                f"stream_{name}_rate_last_to_first",
                float(tenths[-1]["rows_per_second"]) / float(tenths[0]["rows_per_second"]),
                RATE,
            ),
        ]
    )


def shards(rows: int, size: int, vocabulary: int) -> Iterator[Pool]:
    """Random examples of 8–16 tokens, made as they are asked for; a shard's depend on its place alone."""
    for start in range(0, rows, size):
        count = min(size, rows - start)
        draw = generator(0, "bench", "stream", start)
        lengths = draw.integers(LENGTHS[0], LENGTHS[1] + 1, count)
        prompts = draw.integers(2, lengths - 2)
        tokens = draw.integers(1, vocabulary, int(lengths.sum()))
        ends = np.cumsum(lengths)
        ids = tuple(tokens[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True))
        examples = tuple(Example(sample_id=f"{start + row:07d}", prompt="", response="") for row in range(count))
        yield Pool(examples, ids, prompts, lengths - prompts)


def table(rows: Iterable[dict[str, object]]) -> str:
    """Aligned text of the rows, one line a tenth of the pool."""
    lines = [f"{'up to row':>10} {'rows/s':>8} {'resident MiB':>13}"]
    for row in rows:
        lines.append(f"{row['up_to']:>10} {row['rows_per_second']:>8.0f} {row['resident_mib']:>13.0f}")
    return "\n".join(lines)


def _stream(work: Workload, rows: int, shard: int, path: Path, marks: list[tuple[int, float, int]]) -> None:
    """Fill ``marks`` with (rows done, clock, resident bytes), from the moment the engine is warm."""
    settings = {"pad_token_id": work.pad_token_id, "sketch_dim": SKETCH}
    engine = SignalEngine(work.model, pad_token_id=work.pad_token_id, sketch_dim=SKETCH)
    vocabulary = int(work.base.config.get_text_config().vocab_size)
    engine(next(shards(shard, shard, vocabulary)), list(COLUMNS))

    def mark(done: int) -> None:
        marks.append((done, time.perf_counter(), resident()))

    mark(0)
    stream_signals(
        engine,
        shards(rows, shard, vocabulary),
        list(COLUMNS),
        path,
        fingerprint=signal_fingerprint(work.model, settings=settings),
        dtype=COLUMNS,
        on_shard=mark,
    )


def _tenths(marks: list[tuple[int, float, int]], rows: int) -> Iterator[dict[str, float]]:
    """Rate of the fastest shard (load beside it only slows) and highest resident memory in each tenth of the pool."""
    for tenth in range(1, 11):
        first, last = (tenth - 1) * rows // 10, tenth * rows // 10
        pairs = [(start, ended) for start, ended in pairwise(marks) if first < ended[0] <= last]
        yield {
            "up_to": last,
            "rows_per_second": max((end[0] - begin[0]) / (end[1] - begin[1]) for begin, end in pairs),
            "resident_mib": max(end[2] for _, end in pairs) / 2**20,
        }


def _read_back(path: Path, rows: int) -> None:
    """Open the store, compare every byte with its digest, and look at every value."""
    signals = SignalStore(path).signals(widen=False)
    if len(signals.ids) != rows:
        raise ValueError(f"{len(signals.ids)} of {rows} rows were stored")


def main() -> None:
    """Run it; exit code 1 where a figure falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="at most 20,000 examples and a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the machine, rows and figures there")
    options = parser.parse_args()
    report = Report("Streaming signals to disk", measure_machine(), quick=options.quick)
    print(report.machine)
    forms = [Form(partial(run, report, rows, rows // 40), seconds) for rows, seconds in QUICK_FORMS.items()]
    parts = {"stream": forms if options.quick else [Form(partial(run, report))]}
    met = run_parts(report, parts, options.json, quick_deadline(options.quick))
    print(table(report.rows))
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
