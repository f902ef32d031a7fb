"""Every code block of the reference pages runs, or carries one of the reasons that are counted here."""

import json
import runpy
import shutil
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from datasets import Dataset
from trl import SFTConfig

import longgame
from longgame import SelectionConfig, SelectionSFTTrainer
from longgame.models import hub
from longgame.offline import rows as rows_module
from longgame.offline import scoring
from support.cli import longgame_here
from support.pages import blocks, run_page

ROOT = Path(__file__).parents[1]
TINY = Path(longgame.__file__).parent / "assets" / "tiny"
PAGES = {page.stem: page for page in sorted((ROOT / "docs").glob("*.md"))}
NOT_RUN = {
    ("calibration", "takes minutes"): 1,
    ("gpu", "needs a GPU"): 1,
    ("gpu", "needs a package index"): 1,
    ("performance", "output of a benchmark"): 2,
    ("quality", "needs a server"): 2,
    ("quality", "needs the hub"): 1,
    ("recipe", "takes minutes"): 1,
    ("scale", "needs Slurm"): 1,
    ("theory", "takes minutes"): 1,
    ("scale", "needs a Ray cluster"): 1,
}
"""(page, reason) → blocks that no test runs."""
QUICK = (
    '"seeds": [0], "selectors": ["random"], "training": {"steps": 2, "warmup_steps": 1}, '
    '"probe": {"steps": 1, "points": 2}, "proxy": {"items_per_skill": 1}, '
)
STAND_INS = {
    "longgame select": "longgame select --overwrite",
    "smollm2-135m": "tiny",
    "HuggingFaceTB/SmolLM2-135M-Instruct": str(TINY),
    "use_peft: true\n": "use_peft: true\nbf16: false\nuse_cpu: true\nreport_to: []\nmax_steps: 4\n",
    '{"model": {"name"': f'{{{QUICK}"model": {{"name"',
    '"pool_size": 400': '"pool_size": 20',
}
"""A small model and short trainings in place of those that the pages name."""
QUICKSTART = """
name: quickstart
model: {name: quadratic}
data: {sequence: quadratic, stages: [{name: general}, {name: math}, {name: code}], pool_size: 96}
selectors: [random, loss]
seeds: [0, 1]
training: {steps: 8, warmup_steps: 1, learning_rate: 0.1}
probe: {steps: 4, points: 3}
"""


PREPARED = {"plugins", "recipe", "report", "scale", "select", "training"}
"""Pages that have a test of their own, as they take more than `home` as given or take long."""
SIMPLE = sorted(set(PAGES) - PREPARED)


@pytest.fixture(autouse=True)
def small_machine(monkeypatch):
    """No token of the hub, and shards that 40 rows fill."""
    monkeypatch.setattr(hub, "get_token", lambda: None)
    for module in (scoring, rows_module):
        monkeypatch.setattr(module, "SHARD_ROWS", 16)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """What the pages take as given: data, a recipe in the place of quickstart, and a run of it."""
    home = tmp_path_factory.mktemp("reference")
    lines = (ROOT / "examples" / "instructions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [{**json.loads(line), "stars": 1 + number % 5} for number, line in enumerate(lines)]
    files = {
        "train.jsonl": rows[:40],
        "data/train.jsonl": rows[:40],
        "exam.jsonl": rows[60:66],
        "target.jsonl": rows[60:66],
        "math_train.jsonl": rows[100:140],
        "math_eval.jsonl": rows[200:220],
    }
    for name, part in files.items():
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    (home / "recipes").mkdir()
    (home / "recipes" / "quickstart.yaml").write_text(QUICKSTART, encoding="utf-8")
    return home


def run_reference(name, home, folder, variables=None, **stand_ins):
    shutil.copytree(home, folder, dirs_exist_ok=True)
    run_page(PAGES[name], folder, variables, {**STAND_INS, **stand_ins})


@pytest.mark.parametrize("name", [*SIMPLE, pytest.param("recipe", marks=pytest.mark.slow)])
def test_reference_page_runs_as_it_stands(name, home, tmp_path):
    run_reference(name, home, tmp_path)


def test_page_of_select_runs(home, tmp_path):
    dataset = Dataset.from_json(str(home / "train.jsonl"))
    run_reference("select", home, tmp_path, {"dataset": dataset})


def test_page_of_training_runs(home, tmp_path):
    dataset, exam = (Dataset.from_json(str(home / f"{name}.jsonl")) for name in ("train", "exam"))
    config = partial(SFTConfig, bf16=False, use_cpu=True, report_to=[])
    variables = {
        "longgame": longgame,
        "SelectionSFTTrainer": SelectionSFTTrainer,
        "SelectionConfig": SelectionConfig,
        "SFTConfig": config,
        "dataset": dataset.rename_column("response", "completion"),
        "target": exam.rename_column("response", "completion"),
        "exam": exam,
        "model": str(TINY),
        "args": config("runs/other"),
    }
    run_reference("training", home, tmp_path, variables)


def test_page_of_plugins_runs(home, tmp_path):
    run_reference("plugins", home, tmp_path)
    names = runpy.run_path(str(tmp_path / "longgame-mine" / "tests" / "test_contract.py"))
    names["test_middle_loss_keeps_the_contract"]()


@pytest.mark.slow
def test_page_of_reports_runs(home, tmp_path):
    (home / "recipes" / "full.yaml").write_text(f"{QUICKSTART}full_data: true\n", encoding="utf-8")
    done = longgame_here("audit", "recipes/full.yaml", "--out", "runs/quickstart", cwd=home)
    assert done.returncode == 0, done.stderr
    for name in ("a", "b", "new", "old", "full"):
        shutil.copytree(home / "runs" / "quickstart", tmp_path / "runs" / name)
    run_reference("report", home, tmp_path, **{"audit recipes/quickstart.yaml": "audit recipes/full.yaml"})


def test_page_of_large_pools_runs(home, tmp_path):
    for shard in ("1/2", "2/2"):
        words = ["--model", "tiny", "--signals", "loss,embedding", "--out", "scores", "--shard", shard]
        assert longgame_here("score", "data", *words, cwd=home).returncode == 0
    run_reference("scale", home, tmp_path)


def test_blocks_that_no_test_runs_are_counted():
    reasons = Counter((name, block.reason) for name, page in PAGES.items() for block in blocks(page) if block.reason)
    assert reasons == NOT_RUN
