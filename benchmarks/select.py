"""`longgame select` from a file to a file: beside scoring alone, on a million rows, after a kill, beside a peer.

```
python -m benchmarks.select --data-dir DATA --json select.json     # tiny, and SmolLM2-135M on 512 rows of DATA/train
python -m benchmarks.select --model tiny --quick                   # made-up rows, at most a minute
```

Required: reading, tokenizing, scoring, picking and writing take at most 1.10 × the forward passes of the scores alone;
a million rows without a model at most 1.5 GiB and at least 50,000 rows a second; a job that was killed half-way and run
again ends in at most 0.60 × its whole time with equal bytes; near-duplicates are found no slower than by datasketch.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cache, partial
from itertools import cycle, islice
from pathlib import Path

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
from benchmarks.workload import FILES
from longgame.data.sources import open_source
from longgame.offline.options import SelectOptions
from longgame.offline.rows import SHARD_ROWS, DataRows, TokenizedRows
from longgame.offline.scorer import LoadedScorer, ModelOptions
from longgame.offline.selecting import select_to
from longgame.seeding import generator
from longgame.signals.engine import SignalEngine

OVERHEAD, PEAK_GIB, RATE, RESUMED, PEER = 1.10, 1.5, 50_000, 0.60, 1.0
MILLION, QUICK_ROWS = 1_000_000, 20_000
_MILLION = """
import json, sys, time
from benchmarks.harness import peak_resident
from longgame.offline.options import SelectOptions
from longgame.offline.selecting import select_to
import longgame.selection.methods.{name}, pandas, scipy.stats
start = time.perf_counter()
outcome, _ = select_to(sys.argv[1], sys.argv[2], SelectOptions(selector="{name}", dedup={dedup!r}), overwrite=True)
seconds, peak = time.perf_counter() - start, peak_resident()
print(json.dumps({{"seconds": seconds, "peak": peak, "rows": len(outcome.rows), "picks": len(outcome.picks)}}))
"""


def rows_of(data_dir: Path | None, count: int) -> list[dict[str, str]]:
    """Rows of real files, in turn and numbered where they repeat; made-up ones without a folder."""
    if data_dir is None:
        rng = generator(0, "rows")
        words = [f"w{number}" for number in range(5000)]
        texts = [
            [words[place] for place in rng.integers(0, 5000, rng.integers(10, 80))] for _ in range(min(count, 5000))
        ]
        rows = [{"prompt": " ".join(text[:-5]), "response": " ".join(text[-5:])} for text in texts]
    else:
        sources = [open_source(data_dir / "train" / f"{name}.jsonl.gz") for name in FILES]
        rows = []
        for lines in zip(*(source.rows() for source in sources), strict=False):
            rows += [{name: row[name] for name in ("prompt", "response")} for row in (read() for *_, read in lines)]
    return [
        {**row, "response": f"{row['response']} {number // len(rows)}"} if number >= len(rows) else row
        for number, row in enumerate(islice(cycle(rows), count))
    ]


def write(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def overhead(report: Report, model: str, data: Path, folder: Path, repeats: int) -> None:
    """Select from a file to a file, beside the engine on pools that are tokenized already."""
    options = ModelOptions(name=model, max_length=512)
    scorer = LoadedScorer.load(options)
    rows = DataRows(open_source(data))
    pools = list(TokenizedRows(rows, scorer.tokenizer, scorer.max_length, on_bad_row="skip").shards())
    engine = SignalEngine(scorer.model, pad_token_id=int(scorer.tokenizer.pad_token_id))

    def bare() -> None:
        for pool in pools:
            engine(pool, ["loss"])

    def whole() -> None:
        settings = SelectOptions(selector="loss", on_bad_row="skip")
        select_to(data, folder / "out.jsonl", settings, model=options, overwrite=True)

    times = take_turns({"bare": bare, "select": whole}, repeats, warmup=0)
    ratio = times["select"].best / times["bare"].best
    tokens = int(sum(pool.tokens.sum() for pool in pools))
    report.add(
        [at_most(f"select_over_scoring_{model}", ratio, OVERHEAD)],
        [{"model": model, "rows": sum(map(len, pools)), "tokens": tokens, "seconds": times["bare"].best}],
    )


def million(report: Report, data: Path, folder: Path) -> None:
    """Selectors without a model in a process of their own."""
    for name, dedup in (("longest", None), ("random", None), ("random", "exact")):
        code = _MILLION.format(name=name, dedup=dedup)
        command = [sys.executable, "-c", code, str(data), str(folder / "million.jsonl")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        result = json.loads(done.stdout.splitlines()[-1])
        label = name + (f"_{dedup}" if dedup else "")
        report.add(
            [
                at_least(f"rows_per_second_{label}", result["rows"] / result["seconds"], RATE),
                at_most(f"peak_gib_{label}", result["peak"] / 2**30, PEAK_GIB),
            ],
            [{"selector": label, **result}],
        )


def killed(report: Report, model: str, data: Path, folder: Path) -> None:
    """Kill the command when half of the shards are scored, and run it again."""

    def command(out: Path) -> list[str]:
        options = ["--model", model, "--max-length", "512", "--selector", "loss", "--out", str(out), "--no-page"]
        options += ["--on-bad-row", "skip"]
        return [sys.executable, "-m", "longgame.cli", "select", str(data), *options]

    start = time.perf_counter()
    subprocess.run(command(folder / "whole.jsonl"), check=True, capture_output=True)
    whole = time.perf_counter() - start
    rows = sum(1 for _ in open_source(data).rows())
    half = -(-rows // SHARD_ROWS) // 2
    process = subprocess.Popen(command(folder / "again.jsonl"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        lines = [path.read_bytes().count(b"\n") for path in folder.glob("again.jsonl.scores/*.part/ranges.jsonl")]
        if lines and max(lines) >= half:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.02)
    process.wait()
    start = time.perf_counter()
    subprocess.run(command(folder / "again.jsonl"), check=True, capture_output=True)
    again = time.perf_counter() - start
    first, second = (hashlib.sha256((folder / f"{name}.jsonl").read_bytes()).hexdigest() for name in ("whole", "again"))
    report.add(
        [at_most("resumed_over_whole", again / whole, RESUMED), at_most("other_bytes", float(first != second), 0.0)],
        [{"whole_seconds": whole, "resumed_seconds": again, "killed": process.returncode == -signal.SIGKILL}],
    )


def near_duplicates(report: Report, rows: Sequence[dict[str, str]], repeats: int) -> None:
    """Near-duplicates by `longgame.signals.texts`, beside datasketch's MinHashLSH on the same shingles."""
    try:
        from datasketch import MinHash, MinHashLSH
    except ModuleNotFoundError:
        print("datasketch is not installed; near-duplicates have no peer here")
        return
    from longgame.data.examples import Example
    from longgame.signals.texts import NEAR, near_duplicates_of, shingles

    examples = [Example.make(row["prompt"], row["response"]) for row in rows]

    def peer() -> None:
        index = MinHashLSH(threshold=NEAR, num_perm=128)
        for number, example in enumerate(examples):
            sketch = MinHash(num_perm=128)
            sketch.update_batch([text.encode() for text in shingles(example)])
            if not index.query(sketch):
                index.insert(str(number), sketch)

    times = take_turns({"peer": peer, "ours": lambda: near_duplicates_of(examples, len(examples), NEAR)}, repeats)
    report.add([at_most("near_duplicates_over_datasketch", times["ours"].best / times["peer"].best, PEER)])


def parts_of(
    report: Report, folder: Path, model: str, data_dir: Path | None, quick: bool, rows_only: bool = False
) -> dict[str, list[Form]]:
    """All parts, or the million rows alone; ``quick`` makes them small."""

    @cache
    def data(shards: int) -> Path:
        return write(folder / f"data-{shards}.jsonl", rows_of(data_dir, shards * SHARD_ROWS))

    def rows() -> None:
        million(
            report, write(folder / "million-rows.jsonl", rows_of(data_dir, QUICK_ROWS if quick else MILLION)), folder
        )

    def few() -> None:
        overhead(report, model, write(folder / "few.jsonl", rows_of(data_dir, 32 if quick else 512)), folder, 1)

    def peer(count: int) -> None:
        near_duplicates(report, rows_of(data_dir, count), 1 if quick else 3)

    parts = {"a million rows": [Form(rows, 20)]}
    if rows_only:
        return parts
    shards, repeats = (1, 1) if quick else (4, 3)
    parts["overhead tiny"] = [Form(lambda: overhead(report, "tiny", data(shards), folder, repeats), 16)]
    parts["near-duplicates"] = [Form(partial(peer, 2000 if quick else 10_000), 6), Form(partial(peer, 500), 2)]
    if model != "tiny":
        parts[f"overhead {model}"] = [Form(few, 25)]
    parts["killed"] = [Form(lambda: killed(report, "tiny", data(2 if quick else 4), folder), 45)]
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--quick", action="store_true", help="small sizes, at most a minute")
    parser.add_argument("--rows-only", action="store_true", help="only the million rows")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report = Report("select", measure_machine(), quick=options.quick)
    print(report.machine)
    with tempfile.TemporaryDirectory() as folder:
        parts = parts_of(report, Path(folder), options.model, options.data_dir, options.quick, options.rows_only)
        met = run_parts(report, parts, options.json, quick_deadline(options.quick))
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
