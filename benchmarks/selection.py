"""Selection algorithms: our side against the textbook loops, and against other packages where they are installed.

```
python benchmarks/selection.py --json selection.json     # everything; the textbook loop alone takes about ten minutes
python benchmarks/selection.py --quick                   # under a minute
pip install fpsample torch-quickfps k-center divsel      # the packages it compares with; none is a dependency
```

Packages run the same farthest-first task (divsel: max-min diversity by its own algorithm) on the plain Gaussian cloud,
by turns with ours in one process, the best run of each. A package that is not installed leaves its figure out.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from suite.harness import Report, at_least, take_turns
from suite.machine import measure
from suite.selection import gaussian, lazy, run, table

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
                {"what": f"farthest-first, {side}", "data": "gaussian", "n": n, "k": k, "seconds": found.best}
                for side, found in times.items()
            ],
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller pools, under a minute")
    parser.add_argument("--json", type=Path, help="write figures and rows here")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where matrix products run")
    given = parser.parse_args()
    report = Report("selection", measure(torch.device(given.device)))
    print(report.machine)
    run(report, given.quick, given.device)
    packages(report, given.quick)
    print(table(report.rows))
    report.finish(given.json)


if __name__ == "__main__":
    main()
