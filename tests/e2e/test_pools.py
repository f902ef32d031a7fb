"""From the candidates of a recipe to an audit of what a user's own system would select of them."""

import pandas as pd

from support.cli import longgame_here

RECIPE = """
name: q
model: {name: quadratic}
data: {sequence: quadratic, pool_size: 60, stages: [{name: a}, {name: b}]}
selectors: [random, {name: loss, replay: 0.3}]
seeds: [0, 1]
training: {steps: 5, warmup_steps: 1}
probe: {steps: 2, points: 2}
"""


def test_pools_are_written_and_their_scores_audited(tmp_path):
    (tmp_path / "q.yaml").write_text(RECIPE)
    done = longgame_here("pools", "q.yaml", "--out", "c", "--jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "candidates.jsonl (240 rows)" in done.stdout.replace("\n", "")
    candidates = pd.read_json(tmp_path / "c" / "candidates.jsonl", lines=True, dtype=False)
    scores = candidates[["sample_id"]].assign(score=range(len(candidates)))
    scores.to_csv(tmp_path / "mine.csv", index=False)
    done = longgame_here("audit", "q.yaml", "--selector", "scores:mine.csv", "--selector", "loss", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = pd.read_parquet(tmp_path / "runs" / "q" / "results.parquet")
    assert {"random", "loss + replay 30%", "scores:mine.csv", "loss"} <= set(results.selector)
    scores.iloc[5:].to_csv(tmp_path / "mine.csv", index=False)
    done = longgame_here("audit", "q.yaml", "--selector", "scores:mine.csv", "--out", "r", cwd=tmp_path)
    assert done.returncode != 0
    assert "does not name 5 of 240 candidates (in seed 0)" in " ".join(done.stderr.split())
    done = longgame_here("pools", "q.yaml", "--seeds", "0", "--axis", "data.noise=0.3", "--out", "n", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    pools = pd.read_parquet(tmp_path / "n" / "pools.parquet")
    assert pools.groupby("condition").size().to_dict() == {"": 120, "data.noise=0.3": 120}
