"""Selection algorithms: our side against the textbook loops, and against other packages where they are installed.

```
python -m benchmarks.selection --json selection.json     # everything; the textbook loop alone takes about ten minutes
python -m benchmarks.selection --quick                   # under a minute
pip install fpsample torch-quickfps k-center divsel      # the packages it compares with; none is a dependency
```

Packages run the same farthest-first task (divsel: max-min diversity by its own algorithm) on the plain Gaussian cloud,
by turns with ours in one process, the best run of each. A package that is not installed leaves its figure out.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int

from benchmarks.harness import (
    Form,
    Report,
    at_least,
    at_most,
    measure_machine,
    peak_memory,
    quick_deadline,
    run_parts,
    take_turns,
)
from longgame.data.examples import Example, Pool
from longgame.seeding import generator
from longgame.selection.algorithms.facility import facility_location
from longgame.selection.algorithms.farthest import farthest_first, farthest_first_partitioned
from longgame.selection.algorithms.nearest import threshold_diverse
from longgame.selection.base import Selector, build_selector
from longgame.selection.budget import fill_by_score
from longgame.selection.history import History, Selection
from longgame.signals.base import Signals

WIDTH = 384
SHARE = 0.1
"""Share of the pool's tokens that the budget holds, where it grows with the pool."""


def gaussian(n: int, seed: int = 0) -> Float[np.ndarray, "n 384"]:
    """Independent normal numbers: distances hardly differ, so neither bounds nor clusters exclude anything."""
    return generator(seed, "bench", "gaussian").standard_normal((n, WIDTH), dtype=np.float32)


def mixture(n: int, seed: int = 0) -> Float[np.ndarray, "n 384"]:
    """Like sentence embeddings: unit vectors, a decaying spectrum, 1000 unequal clusters of unequal width."""
    rng = generator(seed, "bench", "mixture")
    spectrum = np.exp(-np.arange(WIDTH) / 60.0).astype(np.float32)
    centres = rng.standard_normal((1000, WIDTH), dtype=np.float32) * spectrum
    cluster = rng.choice(1000, n, p=rng.dirichlet(np.full(1000, 0.5)))
    rows = rng.standard_normal((n, WIDTH), dtype=np.float32)
    rows *= spectrum
    rows *= 0.3 + 0.7 * rng.random((n, 1), dtype=np.float32)
    for start in range(0, n, 8192):
        rows[start : start + 8192] += centres[cluster[start : start + 8192]]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


CLOUDS: Mapping[str, Callable[[int], np.ndarray]] = {"gaussian": gaussian, "mixture": mixture}


def textbook(rows: Float[np.ndarray, "n d"], k: int, device: torch.device | None = None) -> Int[np.ndarray, " k"]:
    """Farthest-first as it is usually written: one matrix-vector product a pick; starts nearest to the mean."""
    matrix = torch.from_numpy(rows).to(device or torch.device("cpu"))
    norms = (matrix * matrix).sum(dim=1)
    first = int(((matrix - matrix.mean(dim=0)) ** 2).sum(dim=1).argmin())
    nearest = torch.full_like(norms, torch.inf)
    picks = torch.empty(k, dtype=torch.int64)
    pick = first
    for number in range(k):
        picks[number] = pick
        nearest = torch.minimum(nearest, torch.addmv(norms + norms[pick], matrix, matrix[pick], alpha=-2.0))
        nearest[pick] = -torch.inf
        pick = int(nearest.argmax())
    return picks.numpy()


def lazy(rows: Float[np.ndarray, "n d"], k: int, device: str = "cpu") -> Int[np.ndarray, " k"]:
    """`farthest_first` for k picks."""
    return farthest_first(rows, np.ones(len(rows), dtype=np.int64), k, device=device)[0]


def sorted_walk(
    score: Float[np.ndarray, " n"], ids: tuple[str, ...], tokens: Int[np.ndarray, " n"], budget: int
) -> Int[np.ndarray, " k"]:
    """Budgeted top-k as it is usually written: sort all rows by id and score, then walk them one by one."""
    by_id = np.asarray(sorted(range(len(ids)), key=ids.__getitem__))
    picks, left, shortest = [], budget, int(tokens.min())
    for row in by_id[np.argsort(-score[by_id].astype(np.float64), kind="stable")]:
        if left < shortest:
            break
        if tokens[row] <= left:
            picks.append(int(row))
            left -= int(tokens[row])
    return np.asarray(picks, dtype=np.int64)


def parts_of(report: Report, quick: bool, device: str = "cpu") -> dict[str, list[Form]]:
    """The parts of the benchmark; of a quick run the first ones with fewer picks, too."""
    forms = [Form(partial(farthest, report, quick, device, k), seconds) for k, seconds in ((2_500, 33), (600, 10))]
    return {
        "farthest-first": forms[: 2 if quick else 1],
        "ranking": [Form(partial(ranking, report, quick), 8)],
        "selectors": [Form(partial(selectors, report, quick), 4)],
        "packages": [Form(partial(packages, report, quick), 5)],
        "others": [Form(partial(others, report, quick), 5)],
        "partitioned": [Form(partial(partitioned, report, quick, device), 3)],
        "memory": [Form(partial(memory, report, quick, device), 2)],
    }


def farthest(report: Report, quick: bool, device: str = "cpu", quick_picks: int = 2_500) -> None:
    """Farthest-first against the textbook loop.

    Ten times as fast is required at n = 100,000 and k = 25,000; of the quick pools, where the first picks leave little
    to put off, only that ours is faster, and their figures have their size in the name.
    """
    n, k = (40_000, quick_picks) if quick else (100_000, 25_000)
    size, required = (f"_{n}_{k}", 1) if quick else ("", 10)
    lazy(gaussian(6_000), 10, device)
    for name, cloud in CLOUDS.items():
        rows = cloud(n)
        slow, picks = _timed(partial(textbook, rows, k, torch.device(device)))
        fast, ours = min((_timed(partial(lazy, rows, k, device)) for _ in range(3)), key=lambda got: got[0])
        same = float((picks == ours).mean())
        report.add(
            [at_least(f"farthest_first_speedup_{name}{size}", slow / fast, required)],
            [_row("farthest-first, textbook", name, n, k, slow), _row("farthest-first", name, n, k, fast, same=same)],
        )


def memory(report: Report, quick: bool, device: str = "cpu") -> None:
    """What farthest-first needs beside the matrix."""
    n, k = 100_000, (2_000 if quick else 25_000)
    _farthest_memory(report, "farthest_first_memory_ratio", n, k, device)
    if not quick:
        _farthest_memory(report, "farthest_first_1m_memory_ratio", 1_000_000, 10_000, device)


def partitioned(report: Report, quick: bool, device: str = "cpu") -> None:
    """The variant in parts: its radius beside a lower bound of the best one."""
    n, k, parts = (50_000, 1_000, 8) if quick else (400_000, 10_000, 8)
    rows, ones = mixture(n), np.ones(n, dtype=np.int64)
    exact_seconds, (_, distance) = _timed(lambda: farthest_first(rows, ones, k, device=device))
    parts_seconds, answer = _timed(lambda: farthest_first_partitioned(rows, ones, k, parts, device=device))
    report.add(
        [at_most("partitioned_radius_over_lower_bound", answer.radius / answer.lower_bound, 8)],
        [
            _row("farthest-first", "mixture", n, k, exact_seconds, radius=float(np.sort(distance)[: n - k].max())),
            _row(
                "farthest-first, 8 parts",
                "mixture",
                n,
                k,
                parts_seconds,
                radius=answer.radius,
                lower_bound=answer.lower_bound,
            ),
        ],
    )


def _farthest_memory(report: Report, name: str, n: int, k: int, device: str) -> None:
    rows = gaussian(n)
    seconds: list[float] = []
    rise = peak_memory(lambda: seconds.append(_timed(lambda: lazy(rows, k, device))[0]))
    ratio = 1.0 + rise / rows.nbytes
    report.add([at_most(name, ratio, 1.5)], [_row("farthest-first", "gaussian", n, k, seconds[0], memory=ratio)])


def ranking(report: Report, quick: bool) -> None:
    """Budgeted top-k against sorting everything."""
    sizes = (10_000, 30_000, 100_000, 300_000) if quick else (10_000, 30_000, 100_000, 300_000, 1_000_000)
    seconds: dict[str, list[float]] = {"top-k": [], "top-k, sorted": []}
    for n in sizes:
        rng = generator(0, "bench", "ranking")
        ids = tuple(f"{number:016x}" for number in rng.integers(0, 2**62, n))
        score, tokens = rng.standard_normal(n).astype(np.float32), rng.integers(20, 500, n)
        budget = int(SHARE * tokens.sum())
        times = take_turns(
            {
                "top-k": partial(fill_by_score, score, ids, tokens, budget),
                "top-k, sorted": partial(sorted_walk, score, ids, tokens, budget),
            },
            5,
        )
        for name, side in times.items():
            seconds[name].append(side.best)
            report.add(rows=[_row(name, "random scores", n, None, side.best)])
    report.add(
        [
            at_most("topk_growth", growth(sizes, seconds["top-k"]), 1.15),
            at_least("topk_speedup", seconds["top-k, sorted"][-1] / seconds["top-k"][-1], 1),
        ]
    )


def selectors(report: Report, quick: bool) -> None:
    """How UDS and LHAS grow with the pool, at a fixed share of it as budget and at a fixed budget; history updates."""
    sizes = (5_000, 10_000, 20_000) if quick else (5_000, 20_000, 50_000, 100_000, 200_000)
    cases = {
        "uds": ("utility-diversity", SHARE),
        "lhas": ("lhas", SHARE),
        "lhas_fixed_budget": ("lhas", None),
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for n in sizes:
        pool, signals = scene(n)
        for name, (selector, share) in cases.items():
            budget = int(share * pool.tokens.sum()) if share else 100_000
            best = min(_decision(selector, pool, signals, budget)[0] for _ in range(2))
            seconds[name].append(best)
            report.add(rows=[_row(name, "random signals", n, None, best, budget=budget)])
    report.add([at_most(f"{name}_growth", growth(sizes, times), 1.15) for name, times in seconds.items()])
    history, updates = History(), []
    pool, signals = scene(5_000)
    chosen = Selection.of(pool, np.arange(500))
    for _ in range(20 if quick else 100):
        updates.append(_timed(lambda: history.update(chosen, pool, signals))[0])
    half = len(updates) // 2
    report.add(
        [at_most("history_update_growth", min(updates[half:]) / min(updates[:half]), 1.5)],
        [_row("history update", "500 picks", 5_000, 500, min(updates[half:]))],
    )


def others(report: Report, quick: bool) -> None:
    """The other ways to be diverse, one row each."""
    n, k = (5_000, 200) if quick else (100_000, 5_000)
    rows, ones = mixture(n), np.ones(n, dtype=np.int64)
    order = np.arange(n)
    duration, (picks, _) = _timed(lambda: threshold_diverse(rows, order, ones, n, 0.9))
    report.add(rows=[_row("threshold", "mixture", n, len(picks), duration)])
    picked = min(k, 1_000)
    ways: tuple[Literal["lazy", "stochastic"], ...] = ("lazy", "stochastic")
    for greedy in ways:
        duration, chosen = _timed(partial(facility_location, rows, ones, picked, generator(0, "bench"), greedy))
        report.add(rows=[_row(f"facility location, {greedy}", "mixture", n, picked, duration, value=chosen.value)])
    pool = _pool(n)
    signals = Signals(pool.ids, {"embedding": rows})
    duration, _ = _decision("diversity", pool, signals, int(SHARE * pool.tokens.sum()), {"method": "k-means"})
    report.add(rows=[_row("k-means", "mixture", n, None, duration)])


def scene(n: int, width: int = 64) -> tuple[Pool, Signals]:
    """A pool of n candidates of 20 to 499 tokens, with every signal that UDS and LHAS ask for."""
    rng = generator(n, "bench", "signals")
    columns: dict[str, np.ndarray] = {
        "logit_nuclear_norm": rng.gamma(4.0, size=n).astype(np.float32),
        "cluster": rng.integers(0, 100, n),
    }
    columns["adam_future_alignment"] = rng.uniform(-1, 1, (n, 2)).astype(np.float32)
    for name in ("logit_sketch", "embedding", "grad_sketch"):
        columns[name] = rng.standard_normal((n, width), dtype=np.float32)
    pool = _pool(n)
    return pool, Signals(pool.ids, columns, {"future_proxy": rng.standard_normal(width).astype(np.float32)})


def _pool(n: int) -> Pool:
    rng = generator(n, "bench", "pool")
    examples = tuple(Example(f"{number:016x}", "p", "r") for number in rng.permutation(n))
    none = np.zeros(0, dtype=np.int64)
    return Pool(examples, (none,) * n, rng.integers(10, 300, n), rng.integers(10, 200, n))


def _decision(
    name: str, pool: Pool, signals: Signals, budget: int, parameters: Mapping[str, Any] | None = None
) -> tuple[float, Selection]:
    """Seconds of the second of two rounds, so that every term has a history to look at."""
    selector: Selector = build_selector(name, parameters)
    history = History()
    first = Selection.of(pool, np.arange(min(1_000, len(pool))))
    history.update(first, pool, signals)
    if name != "diversity":
        selector.select(pool, signals, history, 20_000, generator(0, "bench", "first"))
    return _timed(lambda: selector.select(pool, signals, history, budget, generator(0, "bench", "second")))


def growth(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Exponent e of seconds ∝ nᵉ over the sizes (slope of the least-squares line in logarithms); 1 is linear."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Aligned text of the rows; what a row has beyond seconds stands behind them."""
    lines = [f"{'what':30} {'data':15} {'n':>9} {'k':>7} {'seconds':>9}"]
    for line in rows:
        extras = {key: value for key, value in line.items() if key not in ("what", "data", "n", "k", "seconds")}
        extra = ", ".join(f"{key} {value:.4g}" for key, value in extras.items())
        picks = "–" if line["k"] is None else line["k"]
        lines.append(f"{line['what']:30} {line['data']:15} {line['n']:>9} {picks:>7} {line['seconds']:>9.3g}  {extra}")
    return "\n".join(lines)


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def _row(task: str, data: str, n: int, k: int | None, seconds: float, **extras: float) -> dict[str, Any]:
    return {"what": task, "data": data, "n": n, "k": k, "seconds": seconds, **extras}


Side = Callable[[np.ndarray, int], object]


def fpsample(rows: np.ndarray, k: int) -> object:
    return importlib.import_module("fpsample").fps_sampling(rows, k, start_idx=0)


def torch_quickfps(rows: np.ndarray, k: int) -> object:
    return importlib.import_module("torch_quickfps").sample_idx_baseline(torch.from_numpy(rows)[None], k, start_idx=0)


def torch_quickfps_buckets(rows: np.ndarray, k: int) -> object:
    return importlib.import_module("torch_quickfps").sample_idx(torch.from_numpy(rows)[None], k, start_idx=0)


def k_center(rows: np.ndarray, k: int) -> object:
    return importlib.import_module("k_center").KCenter(n_clusters=k, random_state=None).fit(rows)


def divsel(rows: np.ndarray, k: int) -> object:
    """GIST with no utility: the threshold sets of max-min diversity (the diameter by sweeps, its fast setting)."""
    return importlib.import_module("divsel").gist_select(rows, k=k, metric="euclidean", diameter="approx")


PACKAGES: dict[str, tuple[str, Side]] = {
    "fpsample": ("fpsample", fpsample),
    "torch_quickfps": ("torch_quickfps", torch_quickfps),
    "torch_quickfps_buckets": ("torch_quickfps", torch_quickfps_buckets),
    "k_center": ("k_center", k_center),
    "divsel": ("divsel", divsel),
}
SLOW = {"divsel"}
"""Run on 2000 rows, and not in quick mode."""


def packages(report: Report, quick: bool) -> None:
    """Farthest-first against what is installed."""
    for name, (module, side) in PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            print(f"{name}: not installed (pip install {module.replace('_', '-')}); its figure is left out.")
            continue
        n, k = (2_000, 200) if name in SLOW else (5_000, 500) if quick else (20_000, 2_000)
        if quick and name in SLOW:
            print(f"{name}: too slow for --quick; its figure is left out.")
            continue
        rows = gaussian(n)
        times = take_turns({name: partial(side, rows, k), "ours": partial(lazy, rows, k)}, 1 if quick else 2, warmup=1)
        report.add(
            [at_least(f"farthest_first_vs_{name}", times[name].best / times["ours"].best, 1)],
            [
                {"what": f"farthest-first, {side}", "data": "gaussian", "n": n, "k": k, "seconds": time.best}
                for side, time in times.items()
            ],
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller pools, under a minute")
    parser.add_argument("--json", type=Path, help="write figures and rows here")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where matrix products run")
    options = parser.parse_args()
    report = Report("selection", measure_machine(torch.device(options.device)), quick=options.quick)
    print(report.machine)
    run_parts(report, parts_of(report, options.quick, options.device), options.json, quick_deadline(options.quick))
    print(table(report.rows))


if __name__ == "__main__":
    main()
