"""Signals of a million short examples in bounded memory.

```
python benchmarks/streaming.py --json streaming.json     # 1,000,000 examples of 8–16 tokens, some minutes
python benchmarks/streaming.py --quick                   # 20,000
```

The `tiny` model with a LoRA adapter; loss, EL2N, nuclear norm, exact gradient norm, gradient sketch (64) and embedding
(float16) of examples that are made shard by shard go to a store on disk. Required: at most 3 GiB for the whole process,
and a rate over the last tenth of the pool of at least 0.9 × that over the first (the fastest shard of each).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from suite import machine, streaming
from suite.harness import Report


def main() -> None:
    """Run it; exit code 1 where a figure falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20,000 examples")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the machine, rows and figures there")
    options = parser.parse_args()
    report = Report("Streaming signals to disk", machine.measure())
    print(report.machine)
    streaming.run(report, options.quick)
    print(streaming.table(report.rows))
    sys.exit(0 if report.finish(options.json) else 1)


if __name__ == "__main__":
    main()
