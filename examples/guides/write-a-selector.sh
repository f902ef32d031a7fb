#!/usr/bin/env bash
# Write a selector: the commands of docs/guides/write-a-selector.md, which explains them.
#
#   bash examples/guides/write-a-selector.sh [FOLDER]
#
# FOLDER: a new folder for what the commands write; else a temporary one. Generated from the page.
set -euo pipefail
examples="$(cd "$(dirname "$0")/.." && pwd)"
folder="${1:-$(mktemp -d)}"
mkdir -p "$folder"
cd "$folder"
cp -r "$examples" examples
echo "The files are in $PWD"
set -x

cat > mine.py <<'END'
import numpy as np

from longgame import Selector


class MiddleLoss(Selector):
    """Prefer candidates whose loss is near the pool's median.

    Args:
        width: losses within this distance of the median are all alike, in nats per token.
    """

    name = "middle-loss"
    requires = ("loss",)

    def __init__(self, width: float = 0.1) -> None:
        self.width = width

    def score(self, pool, signals, history):
        distance = np.abs(signals["loss"] - np.median(signals["loss"]))
        return -np.maximum(distance, self.width)
END

longgame selectors --signals

longgame check-selector mine.py:MiddleLoss

longgame select examples/instructions.jsonl --model tiny --selector mine.py:MiddleLoss --budget 20% --out middle.jsonl
longgame select examples/instructions.jsonl --model tiny --selector mine.py:MiddleLoss:width=0.5 --budget 20% --out wide.jsonl
longgame audit quadratic --selectors random,mine.py:MiddleLoss --seeds 0-2 --out runs/mine

cat > spread.py <<'END'
import numpy as np

from longgame import Selection, Selector


class Spread(Selector):
    """Pick candidates in turn, each as far as can be from the mean of those picked before."""

    name = "spread"
    requires = ("embedding",)

    def select(self, pool, signals, history, budget, rng):
        vectors = signals["embedding"]
        order = np.argsort(pool.ids)  # so that the order of the rows does not matter
        scores = np.zeros(len(pool))
        picks, spent, mean = [], 0, vectors[order].mean(axis=0)
        open_rows = list(order)
        while open_rows:
            fits = [row for row in open_rows if spent + pool.costs[row] <= budget]
            if not fits:
                break
            distances = np.linalg.norm(vectors[fits] - mean, axis=1)
            row = fits[int(distances.argmax())]
            scores[row] = distances.max()
            picks.append(row)
            spent += int(pool.costs[row])
            mean = vectors[picks].mean(axis=0)
            open_rows.remove(row)
        return Selection.of(pool, np.asarray(picks), {"score": scores})
END

longgame select examples/instructions.jsonl --model tiny --selector spread.py:Spread --budget 5% --out spread.jsonl
