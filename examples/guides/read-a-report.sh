#!/usr/bin/env bash
# Read a report: the commands of docs/guides/read-a-report.md, which explains them.
#
#   bash examples/guides/read-a-report.sh [FOLDER]
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

longgame audit quadratic --selectors random,loss,gradient --seeds 0-4 --out runs/report
longgame report runs/report --out report.html --markdown report.md --card card.md

head -5 report.md

longgame audit quadratic --selectors random,loss,gradient --seeds 0-7 --out runs/report
