"""What an audit costs beside scoring, training and evaluation, and how it scales.

```
python -m benchmarks.audit                      # some twenty minutes on two idle cores; --quick: at most one
python -m benchmarks.audit --only tables --json audit.json
```

Required: overhead ≤ 15 % on the tiny model, two workers ≥ 1.7 × as fast as one (tiny and closed form); the tables
of 10,000 trials in ≤ 10 s. Every audit runs as a command would, in a new process whose start and imports count, from
an empty directory and an empty cache of signals; one and two workers take turns and the faster repeat counts. Two
workers need two idle cores.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from benchmarks.harness import Form, Report, at_least, at_most, measure_machine, quick_deadline, run_parts
from longgame.audit.execute import run_audit
from longgame.audit.learner import make_learner, outline, sequence_of
from longgame.audit.plan import order_groups
from longgame.audit.run import Run
from longgame.audit.store import RESULT_COLUMNS
from longgame.metrics.comparisons import Across
from longgame.metrics.scorecard import Scorecard
from longgame.recipe import Recipe, parse_recipe
from longgame.seeding import generator

OVERHEAD, SPEED_UP, TABLES_SECONDS = 0.15, 1.7, 10.0
TRIALS = 10_000
_PURE = ("select_seconds", "train_seconds", "evaluate_seconds", "probe_seconds")
"""Scoring, training and evaluation, as every trial notes them; a probe is training and evaluation."""


class QuietDisplay:
    """Shows nothing."""

    def warn(self, text: str) -> None: ...

    def begin(self, phase: str, jobs: list[str], stages: int) -> None: ...

    def progress(self, job: str, stage: int, activity: str, step: int, steps: int) -> None: ...

    def finished(self, job: str) -> None: ...

    def failed(self, job: str, reason: str) -> None: ...


@dataclass(frozen=True)
class Timed:
    """One audit and the seconds it took, from an empty directory and an empty cache to its report."""

    results: pd.DataFrame
    seconds: float

    def spent(self, names: tuple[str, ...]) -> float:
        """Seconds of all trials that went into these parts."""
        rows = (self.results["kind"] == "cost") & self.results["name"].isin(names)
        return float(self.results.loc[rows, "value"].sum())


@contextmanager
def _empty_cache(folder: Path) -> Iterator[None]:
    """Signals of earlier runs would make this one faster than it is; packed base models stay where they are."""
    before = os.environ.get("LONGGAME_CACHE")
    os.environ["LONGGAME_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["LONGGAME_CACHE"]
        else:
            os.environ["LONGGAME_CACHE"] = before


def audited(recipe: Recipe, workers: int) -> pd.DataFrame:
    """Results of an audit in a folder of its own that is deleted afterwards, one thread a worker."""
    with tempfile.TemporaryDirectory() as folder, _empty_cache(Path(folder) / "cache"):
        run = Path(folder) / "run"
        return run_audit(recipe, run, workers=workers, threads=1, display=QuietDisplay()).results


def timed(recipe: Recipe, workers: int) -> Timed:
    """`audited` as a command would run it: a new process, whose start and imports count."""
    start = time.perf_counter()
    results = _apart(audited, recipe, workers)
    return Timed(results, time.perf_counter() - start)


def _apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own, which loads every library anew."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def small(name: str, quick: bool, quick_seeds: int = 11) -> Recipe:
    """A recipe of many trials: ten on ``tiny`` in minutes, or hundreds on ``quadratic`` with three budgets."""
    quadratic = name == "quadratic"
    seeds = (quick_seeds if quick else 30) if quadratic else (1 if quick else 2)
    steps, pool = (24, 480) if quadratic else (4, 60) if quick else (16, 480)
    data = {"sequence": "quadratic"} if quadratic else {"items_per_skill": 1 if quick else 5, "ood_items_per_skill": 1}
    return parse_recipe(
        {
            "name": name,
            "model": {"name": name},
            "data": {**data, "pool_size": pool},
            "selectors": ["random", "loss", "gradient", "utility-diversity", "lhas"][: 2 if quick else 5],
            "seeds": list(range(seeds)),
            "training": {"steps": steps, "warmup_steps": 2, "learning_rate": 0.1 if quadratic else 2e-3},
            "probe": {"steps": 2 if quick else 8, "points": 3 if quick else 5},
            "axes": {"budget": [0.1, 0.5]} if quadratic or quick else {},
        }
    )


def shared_seconds(recipe: Recipe) -> float:
    """Seconds of one seed's shared work on one thread, libraries warm: frozen pass and row 0 of R."""
    return float(_apart(_shared_seconds, recipe))


def _shared_seconds(recipe: Recipe) -> float:
    torch.set_num_threads(1)
    seed = recipe.seeds[0]
    sequence = sequence_of(recipe, seed)
    took = []
    with threadpool_limits(limits=1):
        for _ in range(2):
            with tempfile.TemporaryDirectory() as folder, _empty_cache(Path(folder)):
                learner = make_learner(recipe, seed)
                start = time.perf_counter()
                learner.prepare(sequence)
                learner.score(sequence.tasks)
                took.append(time.perf_counter() - start)
    return min(took)


def workers_and_overhead(report: Report, name: str, quick: bool, repeats: int, quick_seeds: int = 11) -> None:
    """Figures: seconds beside scoring, training and evaluation, and how much faster two workers are than one.

    One worker and two take turns; the faster repeat of each counts. Overhead is what one worker's wall-clock has beyond
    the seconds that its trials and the seeds' shared work spent on scoring, training and evaluation: the start of
    Python and its imports, data, models, diagnostics, writing, tables and report.
    """
    recipe = small(name, quick, quick_seeds)
    rounds = [(timed(recipe, 1), timed(recipe, 2)) for _ in range(repeats)]
    single, two = (min((pair[side] for pair in rounds), key=lambda run: run.seconds) for side in (0, 1))
    shared = shared_seconds(recipe)
    pure = single.spent(_PURE) + shared * len(recipe.seeds)
    diagnosed = single.spent(("diagnose_seconds",))
    overhead = single.seconds / pure - 1
    trials = single.results["trial"].nunique()
    figures = [at_least(f"{name}_two_workers", single.seconds / two.seconds, SPEED_UP)]
    if name != "quadratic":  # whose work is milliseconds: what is written costs more than it
        figures.append(at_most(f"{name}_overhead", overhead, OVERHEAD))
    report.add(
        figures,
        [
            {
                "substrate": name,
                "trials": trials,
                "one worker s": single.seconds,
                "two workers s": two.seconds,
                "scoring, training, evaluation s": pure,
                "diagnostics s": diagnosed,
                "overhead": overhead,
                "overhead without diagnostics": (single.seconds - diagnosed) / pure - 1,
                "shared work s per seed": shared,
            }
        ],
    )


def sharing(report: Report, name: str, quick: bool) -> None:
    """Rows: an audit of conditions against the same conditions as audits of their own, which share nothing."""
    base = small(name, quick)
    rounds = {"rounds": 1, "axes": {"budget": [0.1, 0.5], "order": {"permutations": 1}}}
    recipe = parse_recipe({**base.model_dump(mode="json"), **rounds, "seeds": list(base.seeds[:2])})
    together = timed(recipe, 1)
    conditions = Run(Path(), recipe).plan.conditions.values()
    apart = [timed(condition.recipe, 1) for condition in conditions]
    alone = sum(run.seconds for run in apart)
    chosen = ("select_seconds",)
    report.add(
        rows=[
            {
                "substrate": name,
                "conditions": len(apart),
                "together s": together.seconds,
                "apart s": alone,
                "saved": 1 - together.seconds / alone,
                "selection together s": together.spent(chosen),
                "selection apart s": sum(run.spent(chosen) for run in apart),
            }
        ]
    )


def many_trials(recipe: Recipe, results: pd.DataFrame, trials: int, conditions: int) -> pd.DataFrame:
    """Results of ``trials`` trials in ``conditions`` conditions, from those of one seed with noise on every value."""
    seed_rows = results[(results["seed"] == recipe.seeds[0]) & (results["condition"] == "")].reset_index(drop=True)
    selectors = list(seed_rows["selector"].cat.categories)
    copies = -(-trials // len(selectors))
    names = [f"budget={0.1 + 0.8 * number / conditions:.3f}" if number else "" for number in range(conditions)]
    condition = np.arange(copies) % conditions
    labels = [f"{name}-s{copy // conditions}@{names[condition[copy]]}" for copy in range(copies) for name in selectors]
    noise = generator(0, "many trials").normal(0, 0.5, copies * len(seed_rows))
    columns: dict[str, Any] = {}
    for name in RESULT_COLUMNS:
        column = seed_rows[name]
        if name == "trial":
            codes = seed_rows["selector"].cat.codes.to_numpy(np.int64) + len(selectors) * np.arange(copies)[:, None]
            columns[name] = _words(codes.reshape(-1), labels)
        elif name == "condition":
            columns[name] = _words(np.repeat(condition, len(seed_rows)), names)
        elif name == "seed":
            columns[name] = np.repeat(np.arange(copies) // conditions, len(seed_rows))
        elif column.dtype == "category":
            columns[name] = _words(np.tile(column.cat.codes.to_numpy(), copies), list(column.cat.categories))
        else:
            columns[name] = np.tile(column.to_numpy(), copies)
    counted = np.tile((seed_rows["kind"] == "picks").to_numpy(bool), copies)
    columns["value"] = columns["value"] + np.where(counted, 0.0, noise)  # selected tokens stay counts
    return pd.DataFrame(columns)


def _words(codes: np.ndarray, words: list[str]) -> Any:
    return pd.Categorical.from_codes(codes.tolist(), pd.Index(words))


def tables(report: Report, count: int = TRIALS, conditions: int = 10) -> None:
    """Figure: seconds from the results of so many trials to the scorecards of all conditions and the tables across."""
    recipe = parse_recipe({**small("quadratic", True).model_dump(mode="json"), "seeds": [0], "axes": {}})
    results = many_trials(recipe, audited(recipe, 1), count, conditions)
    plan = outline(recipe)

    def cards() -> Mapping[str, Scorecard]:
        return {
            str(name): Scorecard.build(
                results[results["condition"] == name],
                tasks=plan.stages,
                ood=plan.ood,
                primary=plan.primary,
                metric_spec=recipe.metrics,
                threshold=recipe.probe.threshold,
            )
            for name in results["condition"].cat.categories
        }

    seconds = min(_seconds(lambda: Across.build(scorecards := cards(), order_groups(scorecards))) for _ in range(2))
    trials = results["trial"].nunique()
    report.add(
        [at_most(f"tables_{count}_trials_s", seconds, TABLES_SECONDS)],
        [{"trials": trials, "rows": len(results), "conditions": conditions, "tables s": seconds}],
    )


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


PARTS = ("tables", "quadratic", "tiny", "sharing")
QUICK = ("tables", "quadratic")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few small trials, in which start-up weighs most")
    parser.add_argument("--json", type=Path, help="write figures, rows and machine to this file")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="default: all; --quick: " + " ".join(QUICK))
    parser.add_argument("--repeats", type=int, help="timed rounds (default 2, --quick 1)")
    options = parser.parse_args()
    repeats = options.repeats or (1 if options.quick else 2)
    report = Report("audit", measure_machine(torch.device("cpu")), quick=options.quick)
    print(report.machine, flush=True)

    def measured(part: str, work: Callable[[], None]) -> None:
        before = len(report.rows)
        work()
        for row in report.rows[before:]:
            shown = (
                f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
            )
            print(part + ": " + ", ".join(shown), flush=True)

    compared = partial(workers_and_overhead, report, quick=options.quick, repeats=repeats)
    shared = partial(sharing, report, "quadratic" if options.quick else "tiny", options.quick)
    forms: dict[str, dict[Callable[[], None], float]] = {
        "tables": {partial(tables, report): 24, partial(tables, report, TRIALS // 5): 9},
        "quadratic": {partial(compared, "quadratic"): 50, partial(compared, "quadratic", quick_seeds=3): 22},
        "tiny": {partial(compared, "tiny"): 90},
        "sharing": {shared: 40},
    }
    parts = {
        name: [Form(partial(measured, name, work), seconds) for work, seconds in forms[name].items()]
        for name in options.only or (QUICK if options.quick else PARTS)
    }
    run_parts(report, parts, options.json, quick_deadline(options.quick))


if __name__ == "__main__":
    main()
