"""How long `longgame report` takes on a run of 10,000 trials, and how large its page is.

```
python -m benchmarks.report                      # about 3 minutes; --quick: at most 2,000 trials and a minute
python -m benchmarks.report --json report.json
```

Required: ≤ 5 s from the command to the page on disk, ≤ 600 MB of memory, a page of ≤ 15 MB. The run is made here:
one seed of the closed-form world, 2,000 times over with noise on every value. The page has a row for each of the first
1,000 trials, and a file beside it for all; its figures are made of all of them. The other side of the comparison is the
same command where the run has no measured.safetensors, so that the records are read.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.audit import TRIALS, QuietDisplay, many_trials, small
from benchmarks.harness import Form, Report, at_most, measure_machine, quick_deadline, run_parts
from longgame.audit.execute import run_audit
from longgame.audit.parts import SUFFIX, write_archive
from longgame.audit.picks import SELECTION
from longgame.audit.results import MEASURED, sorted_rows, stamp_of, write_results
from longgame.audit.run import Run
from longgame.recipe import parse_recipe
from longgame.storage import parquet_bytes

REPORT_SECONDS, REPORT_MB = 5.0, 15.0
MEGABYTES = 600.0
"""Of memory, at the peak of the command."""
QUICK_FORMS = {2_000: 32.0, 500: 20.0}
"""Trials of a quick run → processor time."""


def run_of_many(folder: Path, trials: int) -> Run:
    """A finished run of the closed-form world: one seed is run, the others are that seed with noise on every value.

    Args:
        folder: an empty folder; the run is its subfolder ``many``.
        trials: about so many, the same number of every selector.
    """
    recipe = parse_recipe({**small("quadratic", False).model_dump(mode="json"), "seeds": [0], "axes": {}})
    single = run_audit(recipe, folder / "one", workers=1, threads=1, display=QuietDisplay())
    seeds = trials // len(recipe.selectors)
    run = Run.create(folder / "many", recipe.model_copy(update={"seeds": tuple(range(seeds))}))
    shutil.copy(single.folder / "environment.json", run.folder)
    for seed in run.recipe.seeds:
        store = run.seed_store(seed)
        store.folder.mkdir(parents=True)
        write_archive(store.folder / f"base{SUFFIX}", {"key": store.key, "part": "base"}, {})
    stages = [f"stage-{stage + 1}" for stage in range(len(run.plan.stages))]
    selections = {
        (trial.selector.key, stage): _first_rows(single.trial_store(trial).part(stage).read(SELECTION))
        for trial in single.plan.trials
        for stage in stages
    }
    for trial in run.plan.trials:
        store = run.trial_store(trial)
        store.folder.mkdir(parents=True)
        for stage in stages:
            files = {SELECTION: selections[trial.selector.key, stage]}
            write_archive(store.folder / f"{stage}{SUFFIX}", {"key": store.key, "part": stage}, files)
    results = many_trials(recipe, single.results, len(run.plan.trials), 1)
    results["trial"] = results["trial"].cat.rename_categories(lambda name: name.removesuffix("@"))
    # Categories and rows in alphabetical order of the trials, as an audit writes them.
    results["trial"] = results["trial"].cat.reorder_categories(sorted(results["trial"].cat.categories))
    results = results.take(sorted_rows(results)).reset_index(drop=True)
    stamp = stamp_of(run.folder, run.plan, run.finished_stages)
    write_results(run.folder, stamp, results)
    return run


def _first_rows(selection: bytes) -> bytes:
    """A selection table without most of its rows: what a report shows of all stages stands in its metadata."""
    return parquet_bytes(pq.read_table(pa.BufferReader(selection)).slice(0, 8))


def report_page(report: Report, count: int, repeats: int) -> None:
    """Figures: seconds of the command and megabytes of its page; the faster repeat counts.

    The audit leaves picks.parquet and measured.safetensors behind; how long that takes stands in the row beside.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = run_of_many(Path(folder), count)
        stages = len(run.plan.stages)
        start = time.perf_counter()
        run.write_tables()
        gathered = time.perf_counter() - start
        page = Path(folder) / "report.html"
        seconds, cpu, memory = min(_command_costs(run.folder, page) for _ in range(repeats))
        trials, megabytes = len(run.plan.trials), page.stat().st_size / 1e6
        (run.folder / MEASURED).unlink()
        _, records_cpu, records_memory = _command_costs(run.folder, page)
    report.add(
        [
            at_most(f"report_{trials}_trials_s", seconds, REPORT_SECONDS),
            at_most(f"report_{trials}_trials_memory_mb", memory, MEGABYTES),
            at_most(f"report_{trials}_trials_page_mb", megabytes, REPORT_MB),
            at_most(f"report_{trials}_trials_cpu_over_records", cpu / records_cpu, 1.0),
        ],
        [
            {
                "trials": trials,
                "selection tables": trials * stages,
                "report s": seconds,
                "of it CPU s": cpu,
                "memory MB": memory,
                "CPU s from the records": records_cpu,
                "memory MB from the records": records_memory,
                "page MB": megabytes,
                "tables written at the audit's end s": gathered,
            }
        ],
    )


_WATCH = """
import json, os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(process.pid, 0)
seconds = time.perf_counter() - start
print(json.dumps([status, seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""
"""A process starts with the peak of the one that starts it: a small one has to, not the benchmark, which is large."""


def _command_costs(run: Path, page: Path) -> tuple[float, float, float]:
    """Seconds on the clock, of the CPU, and megabytes of memory at the peak of the command."""
    command = [sys.executable, "-m", "longgame.cli", "report", str(run), "--out", str(page)]
    watched = subprocess.run([sys.executable, "-c", _WATCH, *command], stdout=subprocess.PIPE, check=True)
    status, seconds, cpu, memory = json.loads(watched.stdout)
    if status:
        raise RuntimeError(f"longgame report failed with status {status}; its output says why.")
    return seconds, cpu, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="at most 2,000 trials, one repeat and a minute")
    parser.add_argument("--json", type=Path, help="write figures, rows and machine to this file")
    parser.add_argument("--repeats", type=int, help="timed repeats (default 3, --quick 1)")
    options = parser.parse_args()
    report = Report("report", measure_machine(torch.device("cpu")), quick=options.quick)
    print(report.machine, flush=True)
    sizes = QUICK_FORMS if options.quick else {TRIALS: 0.0}
    repeats = options.repeats or (1 if options.quick else 3)
    forms = [Form(partial(report_page, report, count, repeats), seconds) for count, seconds in sizes.items()]
    run_parts(report, {"report": forms}, options.json, quick_deadline(options.quick))
    for row in report.rows:
        print(", ".join(f"{key} {value:.3g}" for key, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
