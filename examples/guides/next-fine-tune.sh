#!/usr/bin/env bash
# Pick data for your next fine-tune: the commands of docs/guides/next-fine-tune.md, which explains them.
#
#   bash examples/guides/next-fine-tune.sh [FOLDER]
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

longgame check examples/instructions.jsonl --model tiny --strict --json

longgame score examples/instructions.jsonl --model tiny --signals loss,loss_without_prompt,embedding --out scores

longgame select examples/instructions.jsonl --selector random --model tiny --budget 20% --dedup exact --out random.jsonl
longgame select examples/instructions.jsonl --scores scores --selector ifd --budget 20% --dedup exact --out ifd.jsonl
longgame select examples/instructions.jsonl --scores scores --selector diversity --budget 20% --dedup exact --out diversity.jsonl

python - <<'END'
import json
from collections import Counter
from pathlib import Path

subsets = {}
for name in ("random", "ifd", "diversity"):
    rows = [json.loads(line) for line in Path(f"{name}.jsonl").read_text().splitlines()]
    subsets[name] = {row["longgame_sample_id"] for row in rows}
    print(name, len(rows), "rows, most of", Counter(row["skill"] for row in rows).most_common(1)[0][0])
shared = subsets["ifd"] & subsets["diversity"]
print("ifd and diversity share", len(shared))
END
