#!/usr/bin/env bash
# Audit the selector that you already use: the commands of docs/guides/audit-your-selector.md, which explains them.
#
#   bash examples/guides/audit-your-selector.sh [FOLDER]
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

longgame pools quickstart --seeds 0 --out candidates --jsonl
ls candidates

python - <<'END'
import json
from pathlib import Path

rows = [json.loads(line) for line in Path("candidates/candidates.jsonl").read_text().splitlines()]
scores = [{"sample_id": row["sample_id"], "score": len(row["response"])} for row in rows]
Path("scores.jsonl").write_text("\n".join(map(json.dumps, scores)))
print(len(scores), "scores")
END

longgame audit quickstart --selectors random,loss --selector mine=scores:scores.jsonl --seeds 0 --dry-run
