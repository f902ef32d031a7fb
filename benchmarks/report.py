"""How long `longgame report` takes on a run of 10,000 trials, and how large its page is.

```
python benchmarks/report.py                      # about 3 minutes; --quick: 2,000 trials, at most 60 s
python benchmarks/report.py --json report.json
```

Required: ≤ 10 s from the command to the page on disk, ≤ 15 MB. The run is made here: one seed of the closed-form world,
2,000 times over with noise on every value. Nothing is left out of the page to make it small: it has a row for every
trial, and its figures are made of all of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from suite.harness import Report
from suite.machine import measure
from suite.report import report_page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2,000 trials and one repeat")
    parser.add_argument("--json", type=Path, help="write figures, rows and machine to this file")
    parser.add_argument("--repeats", type=int, help="timed repeats (default 3, --quick 1)")
    given = parser.parse_args()
    report = Report("report", measure(torch.device("cpu")))
    print(report.machine, flush=True)
    report_page(report, given.quick, given.repeats or (1 if given.quick else 3))
    for row in report.rows:
        print(", ".join(f"{key} {value:.3g}" for key, value in row.items()), flush=True)
    report.finish(given.json)


if __name__ == "__main__":
    main()
