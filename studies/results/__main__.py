"""The project's own results: run the audits, keep their measurements, make the pages of docs/results.

```
python -m studies.results run                          # about two hours on two cores; finished trials stay
python -m studies.results run --data-dir DATA          # the step on real data, too
python -m studies.results run --only skill --minutes 30
python -m studies.results keep                         # measurements of finished trials → docs/results/data
python -m studies.results pages                        # docs/results/data → tables and figures
```
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from studies.results.data import DATA, keep
from studies.results.pages import write_pages
from studies.results.steps import DEVELOPMENT, STEPS, pretrain_bases, run_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    run = actions.add_parser("run", help="run what is not finished, in the order of the steps")
    run.add_argument("--only", nargs="+", choices=sorted({step.name for step in STEPS}), help="default: all steps")
    run.add_argument("--data-dir", type=Path, help="folder with train/ and eval/ files, for the step on real data")
    run.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long; finished stages stay")
    run.add_argument("--workers", type=int, default=2)
    for name, what in (
        ("keep", "put the measurements of finished trials beside the pages"),
        ("pages", "make the pages"),
    ):
        actions.add_parser(name, help=what).add_argument("--data", type=Path, default=DATA)
    given = parser.parse_args()
    if given.action == "keep":
        keep(given.data)
    elif given.action == "pages":
        write_pages(given.data)
    else:
        run_all(given.only, given.data_dir, given.minutes, given.workers)


def run_all(only: list[str] | None, data_dir: Path | None, minutes: float, workers: int) -> None:
    """Run the steps in order until all are done or the time is over."""
    deadline = time.monotonic() + 60 * minutes
    wanted = [step for step in STEPS if only is None or step.name in only]
    if any(not step.real_data and step.name not in DEVELOPMENT for step in wanted) and not pretrain_bases(
        workers, deadline
    ):
        print("the time is over: base models are missing")
        return
    for step in wanted:
        if step.real_data and data_dir is None:
            print(f"{step.name}: left out (it needs --data-dir)", flush=True)
        elif time.monotonic() > deadline or not run_step(step, data_dir, workers, deadline):
            print(f"{step.name}: the time is over", flush=True)
            return


if __name__ == "__main__":
    main()
