"""How long `longgame report` takes on a run of 10,000 trials, and how large its page is.

```
python -m benchmarks.report                      # about 3 minutes; --quick: 2,000 trials, at most 60 s
python -m benchmarks.report --json report.json
```

Required: ≤ 10 s from the command to the page on disk, ≤ 15 MB. The run is made here: one seed of the closed-form world,
2,000 times over with noise on every value. Nothing is left out of the page to make it small: it has a row for every
trial, and its figures are made of all of them.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.audit import TRIALS, QuietDisplay, many_trials, small
from benchmarks.harness import Report, at_most, measure_machine
from longgame.audit.execute import run_audit
from longgame.audit.picks import write_picks
from longgame.audit.results import write_results
from longgame.audit.run import Run
from longgame.recipe import parse_recipe
from longgame.storage import DONE, sealed

REPORT_SECONDS, REPORT_MB = 10.0, 15.0
_SELECTION = "selection.parquet"
"""What a report reads of a stage of a finished run, beside its mark; its records stand in results.parquet."""


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
        base = run.seed_store(seed).path("base")
        base.mkdir(parents=True)
        (base / DONE).write_text(sealed({"key": run.seed_store(seed).key}))
    digests = {
        path: {_SELECTION: hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in single.folder.glob(f"trials/*/*/{_SELECTION}")
    }
    for trial in run.plan.trials:
        for stage in range(1, len(run.plan.stages) + 1):
            part = run.folder / "trials" / trial.name / f"stage-{stage}"
            part.mkdir(parents=True)
            source = single.folder / "trials" / f"{trial.selector.key}-s0" / part.name / _SELECTION
            os.link(source, part / _SELECTION)
            mark = {"key": run.trial_store(trial).key, "part": part.name, "sha256": digests[source]}
            (part / DONE).write_text(sealed(mark))
    results = many_trials(recipe, single.results, len(run.plan.trials), 1)
    results["trial"] = results["trial"].cat.rename_categories(lambda name: name.removesuffix("@"))
    write_results(run.folder, run.plan, run.finished_stages, results)
    return run


def report_page(report: Report, quick: bool, repeats: int) -> None:
    """Figures: seconds of the command and megabytes of its page; the faster repeat counts.

    The audit leaves picks.parquet behind; how long that takes stands in the row beside.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = run_of_many(Path(folder), TRIALS // 5 if quick else TRIALS)
        stages = len(run.plan.stages)
        start = time.perf_counter()
        write_picks(run.folder, run.plan, run.finished_stages, run.picks)
        gathered = time.perf_counter() - start
        page = Path(folder) / "report.html"
        seconds, cpu = min(_command_seconds(run.folder, page) for _ in range(repeats))
        trials, megabytes = len(run.plan.trials), page.stat().st_size / 1e6
    report.add(
        [
            at_most(f"report_{trials}_trials_s", seconds, REPORT_SECONDS),
            at_most(f"report_{trials}_trials_mb", megabytes, REPORT_MB),
        ],
        [
            {
                "trials": trials,
                "selection tables": trials * stages,
                "report s": seconds,
                "of it CPU s": cpu,
                "page MB": megabytes,
                "selections reduced at the audit's end s": gathered,
            }
        ],
    )


def _command_seconds(run: Path, page: Path) -> tuple[float, float]:
    """Seconds on the clock, and of the CPU: where the first are many more, other work had the cores."""
    start, before = time.perf_counter(), os.times()
    subprocess.run(
        [sys.executable, "-m", "longgame.cli", "report", str(run), "--out", str(page)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - start, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2,000 trials and one repeat")
    parser.add_argument("--json", type=Path, help="write figures, rows and machine to this file")
    parser.add_argument("--repeats", type=int, help="timed repeats (default 3, --quick 1)")
    options = parser.parse_args()
    report = Report("report", measure_machine(torch.device("cpu")))
    print(report.machine, flush=True)
    report_page(report, options.quick, options.repeats or (1 if options.quick else 3))
    for row in report.rows:
        print(", ".join(f"{key} {value:.3g}" for key, value in row.items()), flush=True)
    report.finish(options.json)


if __name__ == "__main__":
    main()
