#!/usr/bin/env bash
# A judge as a quality source: the commands of docs/guides/judge.md, which explains them.
#
#   bash examples/guides/judge.sh [FOLDER]
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

cat > judge.yaml <<'END'
model: my-judge
url: http://localhost:8000/v1
rubric: alpagasus
views: 2
price_in: 0.15
price_out: 0.60
END

longgame select examples/instructions.jsonl --model tiny --selector alpagasus --quality judge:judge.yaml --estimate --out graded.jsonl

longgame select examples/instructions.jsonl --model tiny --selector quality --quality rules --budget 20% --out by-rules.jsonl
