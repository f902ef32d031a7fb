"""A judge in jobs: the key stands nowhere, a killed job goes on, faults end in one clear error."""

from __future__ import annotations

import json
import os
import signal
import time

import pandas as pd
import pytest

from support.cli import longgame_here, start
from support.judge_server import KEY, serving

ROWS = [{"prompt": f"What is {n} and {n}?", "response": f"It is {2 * n}."} for n in range(24)]
RECIPE = """
name: judged
model: {{name: tiny}}
data:
  sequence: procedural
  stages: [{{name: office, skills: [extract-field, redact]}}, {{name: law, skills: [penalty, clause-find]}}]
  pool_size: 12
  items_per_skill: 1
  ood_items_per_skill: 1
selectors: [alpagasus, mods]
seeds: [0]
rounds: 1
training: {{steps: 2, warmup_steps: 1}}
probe: {{kinds: [own], steps: 2, points: 2}}
proxy: {{items_per_skill: 0}}
quality: {{name: judge, model: tiny, url: "{url}", views: 1, backoff: 0.01}}
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LONGGAME_JUDGE_KEY", KEY)
    monkeypatch.setenv("LONGGAME_CACHE", str(tmp_path / "cache"))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def source(server, **more):
    options = {"model": "tiny", "url": server.url, "views": 1, "backoff": 0.01, **more}
    return "judge:" + ",".join(f"{name}={value}" for name, value in options.items())


def files_with_key(folder):
    return [path for path in folder.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def select(home, quality, *more):
    arguments = ("--selector", "alpagasus", "--quality", quality, "--budget", "6rows", "--out", "picked.jsonl")
    return longgame_here("select", "rows.jsonl", *arguments, *more, cwd=home)


def test_the_key_stands_in_no_file_of_a_job(home) -> None:
    with serving(lambda n, _body: "status 500" if n % 7 == 3 else "grade") as server:
        runs = [
            select(home, source(server), "--explain"),
            longgame_here(
                *("score", "rows.jsonl", "--model", "tiny", "--signals", "quality,grade", "--out", "scores"),
                *("--quality", source(server)),
                cwd=home,
            ),
            select(home, source(server, url="http://127.0.0.1:9/v1", attempts=1), "--overwrite"),
        ]
        server.plan = lambda _number, _body: "status 401"
        runs.append(select(home, source(server, dimension="depth"), "--overwrite"))
        assert set(server.keys) == {f"Bearer {KEY}"}
    assert [run.returncode for run in runs] == [0, 0, 1, 1], [run.stderr for run in runs]
    assert all(KEY not in run.stdout + run.stderr for run in runs)
    assert "status 401" in runs[-1].stderr
    assert not files_with_key(home)
    grades = json.loads((home / "picked.manifest.json").read_text())["grading"]["quality"]
    assert (grades["calls"], grades["examples"], grades["missing"]) == (24, 24, 0)
    told = json.loads((home / "scores" / "quality.json").read_text())["quality"]
    assert (told["calls"], told["cached"]) == (0, 24)
    assert len(pd.read_parquet(home / "scores" / "scores.parquet").grade) == 24


def test_scores_by_one_judge_are_not_taken_for_those_of_another(home) -> None:
    arguments = ("score", "rows.jsonl", "--model", "tiny", "--signals", "grade", "--out", "scores", "--quality")
    with serving() as server:
        assert longgame_here(*arguments, source(server), cwd=home).returncode == 0
        other = longgame_here(*arguments, source(server, dimension="depth"), cwd=home)
    assert other.returncode == 1
    assert "holds quality by judge alpagasus (accuracy) by tiny" in other.stderr


def test_an_estimate_asks_nothing_and_writes_nothing(home) -> None:
    with serving() as server:
        done = select(home, source(server, price_in=1, price_out=2), "--estimate")
        assert not server.bodies
    assert "24 calls (0 replies are stored)" in done.stdout
    assert not (home / "picked.jsonl").exists()


def test_missing_grades_are_told_in_summary_and_manifest(home) -> None:
    with serving(lambda _n, body: "refused" if "What is 3 " in body["messages"][0]["content"] else "grade 4") as server:
        done = select(home, source(server))
    assert done.returncode == 0, done.stderr
    assert "1 of 24 candidates have none" in " ".join(done.stdout.split())
    assert json.loads((home / "picked.manifest.json").read_text())["grading"]["quality"]["missing"] == 1


@pytest.mark.slow
def test_a_killed_job_asks_only_for_what_it_lacks(home) -> None:
    with serving("slow 0.2") as server:
        quality = source(server, concurrency=1)
        arguments = ("--selector", "quality", "--quality", quality, "--budget", "6rows", "--out", "picked.jsonl")
        process = start("select", "rows.jsonl", *arguments, cwd=home)
        deadline = time.monotonic() + 120
        while len(server.bodies) < 5 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        asked = len(server.bodies)
        server.plan = lambda _number, _body: "grade 3"
        done = select(home, source(server, concurrency=1))
        assert done.returncode == 0, done.stderr
        assert 24 <= len(server.bodies) <= 25  # the one under way at the kill is asked for again
    assert 5 <= asked < 24


@pytest.mark.slow
def test_an_audit_grades_by_a_judge_and_charges_its_tokens(home) -> None:
    with serving() as server:
        (home / "judged.yaml").write_text(RECIPE.format(url=server.url))
        done = longgame_here("audit", "judged.yaml", "--workers", "1", "--threads", "1", cwd=home)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not files_with_key(home)
    results = pd.read_parquet(home / "runs" / "judged" / "results.parquet")
    costs = results[results.kind == "cost"].set_index(["trial", "stage", "name"]).value
    for trial in ("alpagasus-s0", "mods-s0"):
        assert costs[trial, 1, "scored_tokens"] >= 12 * 107
        assert pd.isna(costs[trial, 1, "score_flops"])  # those of a judge are not known


def test_a_recipe_without_a_source_of_grades_is_refused_first(home) -> None:
    text = RECIPE.format(url="http://h/v1").replace("quality: {", "complexity: {").replace(", mods", "")
    (home / "judged.yaml").write_text(text)
    done = longgame_here("audit", "judged.yaml", cwd=home)
    assert done.returncode == 2
    assert "requires grade, and the recipe names no source of quality" in done.stderr
