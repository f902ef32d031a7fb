"""The public names of the package, and an audit in Python with defaults for everything."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import longgame
from longgame.errors import RecipeError
from longgame.recipe import parse_recipe
from support.quadratic_audit import Silent


def test_dir_lists_every_public_name_and_each_resolves():
    assert dir(longgame) == sorted(longgame.__all__)
    for name in dir(longgame):
        assert getattr(longgame, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'scroe'"):
        _ = longgame.scroe


def test_every_public_name_has_a_type():
    tree = ast.parse(Path(longgame.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    typed = {alias.name: node.module for node in block.body for alias in node.names}
    assert typed.keys() | {"__version__"} == set(longgame.__all__)
    assert typed.items() - longgame._LAZY.items() == {("audit", "longgame.commands.audit")}
    assert Path(longgame.__file__).with_name("py.typed").is_file()


def test_import_loads_no_library():
    code = "import sys, longgame; print(sorted({'numpy', 'pandas', 'torch', 'pydantic', 'yaml'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


SMALL = {
    "model": {"name": "quadratic"},
    "data": {"sequence": "quadratic", "pool_size": 48},
    "seeds": [0],
    "training": {"steps": 4},
    "probe": {"steps": 2, "points": 2},
}


def test_an_audit_of_a_mapping_returns_a_run_that_a_notebook_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("longgame.report.render.html_page", lambda *_: "")
    run = longgame.audit(SMALL, display=Silent())
    again = longgame.load_run("runs/audit")
    assert repr(run) == repr(again) == "Run('runs/audit')"
    html, text = again._repr_html_(), again._repr_markdown_()
    for selector in ("random", "loss", "lhas"):
        assert f"<th>{selector}</th>" in html
        assert f"| {selector} |" in text
    assert "No verdict" in html or "difference" in html
    assert "<script" not in html
    assert str(tmp_path) not in html + text


def test_a_run_without_a_finished_stage_is_shown_with_its_progress(tmp_path):
    run = longgame.Run.create(tmp_path / "q", parse_recipe(SMALL))
    assert "0 of 3 trials" in run._repr_html_()
    assert "0 of 3 trials" in run._repr_markdown_()


@pytest.mark.parametrize("given", ["quikstart", Path("none.yaml"), {"selectros": ["loss"]}])
def test_a_wrong_recipe_is_one_sentence(given):
    with pytest.raises(RecipeError):
        longgame.audit(given, display=Silent())


def test_stages_say_which_sequence_they_belong_to():
    stage = {"name": "a", "train": "a.jsonl", "eval": ["b.jsonl"]}
    recipe = parse_recipe({"data": {"stages": [stage]}})
    assert (recipe.data.sequence, recipe.data.stages[0].train) == ("files", ("a.jsonl",))
    procedural = parse_recipe({"data": {"stages": [{"name": "a", "skills": ["sums"]}]}})
    assert procedural.data.sequence == "procedural"
    with pytest.raises(RecipeError, match="has stages of its own"):
        parse_recipe({"data": {"sequence": "procedural-skill", "stages": [stage]}})


LARGEST = 6 * 1024**2
"""Bytes of a wheel, and of a source distribution."""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=Path(__file__).parents[1], check=True, capture_output=True)
    return sorted(folder.iterdir())


def test_wheel_and_source_distribution_are_small(built):
    assert [path.name.partition("-")[0] for path in built] == ["longgame", "longgame"]
    assert {path.suffix: path.stat().st_size < LARGEST for path in built} == {".whl": True, ".gz": True}


def test_installed_wheel_selects_and_finds_its_recipes(built, tmp_path):
    (wheel,) = (path for path in built if path.suffix == ".whl")
    place = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(place), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    rows = [json.dumps({"prompt": f"{n} + 1 =", "response": str(n + 1)}) for n in range(20)]
    (tmp_path / "sums.jsonl").write_text("\n".join(rows))
    environment = {**os.environ, "PYTHONPATH": str(place), "HF_HUB_OFFLINE": "1"}
    for arguments in (
        ["select", "sums.jsonl", "--model", "tiny", "--selector", "loss", "--budget", "5rows", "--out", "subset.jsonl"],
        ["audit", "quadratic", "--dry-run"],
    ):
        code = f"import longgame, sys; assert longgame.__file__.startswith({str(place)!r}); sys.argv[0] = 'longgame'"
        code += "; from longgame.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert len((tmp_path / "subset.jsonl").read_text().splitlines()) == 5
