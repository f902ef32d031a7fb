#!/usr/bin/env bash
# Gate a data pipeline in CI: the commands of docs/guides/gate-a-pipeline.md, which explains them.
#
#   bash examples/guides/gate-a-pipeline.sh [FOLDER]
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

longgame check examples/instructions.jsonl --model tiny --strict --no-near

cat > broken.jsonl <<'END'
{"prompt": "2 + 2 =", "response": "4"}
{"prompt": "3 + 3 =", "response": null}
END

longgame check broken.jsonl --model tiny --strict || echo "exit code $?"

longgame select examples/instructions.jsonl --model tiny --selector loss --budget 20% --out subset.jsonl

python - <<'END'
import json

manifest = json.load(open("subset.manifest.json"))
print(manifest["picked"]["rows"], "of", manifest["data"]["rows"], "rows")
END

longgame audit quadratic --selectors random,loss --seeds 0-4 --out runs/gate
longgame report runs/gate --fail-if "myopic(loss) or worse(loss)" --out gate.html || echo "exit code $?"

longgame audit quadratic --selectors random,loss --seeds 0-4 --budget 0.5 --out runs/larger
longgame report runs/larger --compare runs/gate --markdown change.md
