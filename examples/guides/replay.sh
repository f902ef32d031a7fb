#!/usr/bin/env bash
# Keep what the model knows: replay: the commands of docs/guides/replay.md, which explains them.
#
#   bash examples/guides/replay.sh [FOLDER]
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

longgame select examples/instructions.jsonl --where 'skill == "general"' --selector random --budget 100% --out earlier.jsonl
longgame select examples/instructions.jsonl --where 'skill == "math"' --selector random --budget 100% --out new.jsonl
longgame select new.jsonl --model tiny --selector loss --budget 50% --replay earlier.jsonl --replay-share 0.2 --out mixed.jsonl

longgame select new.jsonl --model tiny --selector loss --budget 50% --replay earlier.jsonl --replay-share 0.2 --replay-choice surprise --out surprising.jsonl

longgame score earlier.jsonl --model tiny --signals loss --out after-general
longgame select new.jsonl --model tiny --selector loss --budget 50% --replay earlier.jsonl --replay-share 0.2 --replay-choice damage --replay-scores after-general --out damaged.jsonl

longgame audit replay --dry-run

cat > replay.yaml <<'END'
name: replay-of-loss
model: {name: quadratic}
data:
  sequence: quadratic
  stages: [{name: general}, {name: math}, {name: code}]
  pool_size: 240
selectors:
  - random
  - loss
  - {name: loss, replay: 0.2}
seeds: [0, 1, 2]
budget: 0.25
training: {steps: 12, learning_rate: 0.1}
END

longgame audit replay.yaml --out runs/replay
