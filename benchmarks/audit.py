"""What an audit costs beside scoring, training and evaluation, and how it scales.

```
python benchmarks/audit.py                      # some twenty minutes on two idle cores; --quick: one to two minutes
python benchmarks/audit.py --only tables --json audit.json
```

Required: overhead ≤ 15 % on the tiny model, two workers ≥ 1.7 × as fast as one (tiny and closed form); the tables
of 10,000 trials in ≤ 10 s. Every audit runs as a command would, in a new process whose start and imports count, from
an empty directory and an empty cache of signals; one and two workers take turns and the faster repeat counts. Two
workers need two idle cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from suite.audit import sharing, tables, workers_and_overhead
from suite.harness import Report
from suite.machine import measure

PARTS = ("tables", "quadratic", "tiny", "sharing")
QUICK = ("tables", "tiny")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few small trials, in which start-up weighs most")
    parser.add_argument("--json", type=Path, help="write figures, rows and machine to this file")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="default: all; --quick: tables tiny")
    parser.add_argument("--repeats", type=int, help="timed rounds (default 2, --quick 1)")
    given = parser.parse_args()
    repeats = given.repeats or (1 if given.quick else 2)
    report = Report("audit", measure(torch.device("cpu")))
    print(report.machine, flush=True)
    for part in given.only or (QUICK if given.quick else PARTS):
        before = len(report.rows)
        if part == "tables":
            tables(report)
        elif part == "sharing":
            sharing(report, "quadratic" if given.quick else "tiny", given.quick)
        else:
            workers_and_overhead(report, part, given.quick, repeats)
        for row in report.rows[before:]:
            shown = (
                f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
            )
            print(part + ": " + ", ".join(shown), flush=True)
    report.finish(given.json)


if __name__ == "__main__":
    main()
