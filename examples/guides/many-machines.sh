#!/usr/bin/env bash
# Many GPUs and machines: the commands of docs/guides/many-machines.md, which explains them.
#
#   bash examples/guides/many-machines.sh [FOLDER]
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

cat > sft.yaml <<'END'
model_name_or_path: tiny
dataset_name: examples/instructions.jsonl
output_dir: runs/sft
max_steps: 4
per_device_train_batch_size: 2
learning_rate: 2.0e-3
use_peft: true
bf16: false
use_cpu: true
report_to: []
selection:
  selector: loss
  budget: 25%
END

torchrun --standalone --nproc_per_node 2 -m longgame.cli train --config sft.yaml

python - <<'END'
import longgame

picks = longgame.read_picks("runs/sft")
print(picks["step"].nunique(), "steps with picks")
END

longgame audit quadratic --selectors random,loss --seeds 0-2 --workers 2 --threads 1 --out runs/local

longgame audit quadratic --selectors random,loss --seeds 0-2 --engine ray --workers 2 --out runs/ray

python - <<'END'
import longgame

local, ray = (longgame.load_run(f"runs/{name}").results for name in ("local", "ray"))
print(local[local["unit"] != "s"]["value"].equals(ray[ray["unit"] != "s"]["value"]))
END

python - <<'END'
import json
from pathlib import Path

rows = [{"prompt": f"{a} + {b} =", "completion": f" {a + b}"} for a in range(100) for b in range(50)]
Path("pool.jsonl").write_text("\n".join(map(json.dumps, rows)))
END

cat > score.sh <<'END'
#!/bin/bash
#SBATCH --array=1-2
#SBATCH --gres=gpu:1
#SBATCH --time=12:00:00
longgame score pool.jsonl --model "${MODEL:-tiny}" --signals loss --out scores --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
END

SLURM_ARRAY_TASK_ID=1 SLURM_ARRAY_TASK_COUNT=2 bash score.sh
SLURM_ARRAY_TASK_ID=2 SLURM_ARRAY_TASK_COUNT=2 bash score.sh

longgame merge merged scores
longgame select pool.jsonl --scores merged --selector loss --budget 10% --out subset.jsonl
