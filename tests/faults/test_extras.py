"""Packages that an extra brings: a missing one is a sentence that names the extra; the page of installing has all."""

import ast
import importlib.util
import json
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import longgame
from longgame.errors import LonggameError
from support.cli import longgame_here

ROOT = Path(__file__).parents[2]
SOURCE = Path(longgame.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {name: packages for name, packages in PROJECT["optional-dependencies"].items() if name != "dev"}
PACKAGES = {
    "gguf": "gguf",
    "lm_eval": "lm-eval",
    "grpc": "ray",
    "yaml": "pyyaml",
    "sklearn": "scikit-learn",
    "sentence_transformers": "sentence-transformers",
}
"""Modules whose distribution has another name, and may not be installed here."""
WITHOUT_EXTRA = {"deepspeed"}
"""Imported only where a trainer runs under it already."""
SMALL = (
    "name: t\nselectors: [random]\nseeds: [0]\nmodel: {name: tiny, %s}\ndata: {pool_size: 40, %s}\n"
    "training: {steps: 4}\nprobe: {steps: 2, points: 2}\nproxy: {items_per_skill: 1}\n"
)
STAGES = "stages: [{name: a, train: [data.jsonl], eval: [data.jsonl], scorers: ['lm_eval:arc_easy']}]"


def distribution(requirement):
    return re.match(r"[\w.-]+", requirement)[0].lower()


def select(*options):
    return ["select", "data.jsonl", "--selector", "random", "--out", "s.jsonl", *options]


CASES = {
    "train": ("trl", "trl", ["train", "--config", "sft.yaml"]),
    "near": ("dedup", "rensa", select("--dedup", "near")),
    "dedup-minhash": ("dedup", "rensa", ["select", "data.jsonl", "--selector", "dedup-minhash", "--out", "s.jsonl"]),
    "model2vec": ("embed", "model2vec", ["select", "data.jsonl", "--selector", "diversity", "--embedder",
                                         "model2vec:owner/name", "--out", "s.jsonl"]),
    "sentence-transformers": ("embed", "sentence_transformers", ["select", "data.jsonl", "--selector", "diversity",
                                         "--embedder", "sentence-transformers:owner/name", "--out", "s.jsonl"]),
    "lm_eval": ("eval", "lm_eval", ["audit", "eval.yaml", "--dry-run"]),
    "qlora": ("qlora", "bitsandbytes", ["audit", "qlora.yaml", "--out", "run"]),
    "audit on Ray": ("ray", "ray", ["audit", "quadratic", "--engine", "ray", "--out", "run"]),
    "score on Ray": ("ray", "ray", ["score", "data.jsonl", "--model", "tiny", "--signals", "loss", "--engine", "ray",
                                    "--out", "scores"]),
}  # fmt: skip
"""Command → extra, module that is missing, arguments."""


@pytest.fixture
def home(tmp_path):
    rows = [{"prompt": f"say {n}", "response": f"it is {n}"} for n in range(12)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "sft.yaml").write_text("model_name_or_path: tiny\ndataset_name: data.jsonl\n")
    (tmp_path / "eval.yaml").write_text(SMALL % ("max_length: 64", STAGES))
    (tmp_path / "qlora.yaml").write_text(SMALL % ("adaptation: qlora", "noise: 0"))
    return tmp_path


@pytest.mark.parametrize("case", CASES)
def test_missing_package_names_its_extra(case, home, monkeypatch):
    extra, module, arguments = CASES[case]
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == module else find(name, *rest))
    monkeypatch.setitem(sys.modules, module, None)
    done = longgame_here(*arguments, cwd=home)
    assert done.returncode != 0
    assert f"pip install 'longgame[{extra}]'" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_every_extra_has_a_case_and_a_row_on_the_page():
    page = (ROOT / "docs" / "start" / "install.md").read_text(encoding="utf-8")
    assert set(EXTRAS) - {"docs"} == {extra for extra, _, _ in CASES.values()}
    assert re.findall(r"^\| `(\w+)` \|", page.partition("| extra |")[2].partition("\n\n")[0], flags=re.MULTILINE) == [
        *sorted(EXTRAS)
    ]


def test_messages_and_pages_name_extras_that_exist():
    sources = [path for folder in (SOURCE, ROOT / "studies") for path in folder.rglob("*.py")]
    texts = [*sources, *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    named = {
        name.strip()
        for path in texts
        for names in re.findall(r"(?:longgame|\.)\[([a-z, ]+)\]['\"]", path.read_text(encoding="utf-8"))
        for name in names.split(",")
    }
    assert named <= {*EXTRAS, "dev"}


def test_optional_packages_of_the_source_are_brought_by_an_extra():
    required = {distribution(requirement) for requirement in PROJECT["dependencies"]}
    optional = {distribution(requirement) for packages in EXTRAS.values() for requirement in packages}
    installed = packages_distributions()
    imported = {
        name.partition(".")[0]
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom) and not node.level
            else []
        )
    } - {*sys.stdlib_module_names, "longgame", ""}
    unknown = {
        name
        for name in imported - WITHOUT_EXTRA
        if not {PACKAGES.get(name, name), *map(str.lower, installed.get(name, ()))} & (required | optional)
    }
    assert unknown == set()


def test_a_judge_needs_no_package(home):
    (home / "judge.yaml").write_text("model: m\nurl: http://localhost:1/v1\nrubric: alpagasus\n")
    done = longgame_here(*select("--quality", "judge:judge.yaml", "--estimate"), cwd=home)
    assert done.returncode == 0, done.stderr
    assert "pip install" not in done.stderr + done.stdout


def test_longgame_error_is_what_a_missing_package_raises_in_python(home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(LonggameError, match=r"longgame\[dedup\]"):
        longgame.select("data.jsonl", selector="random", dedup="near")
