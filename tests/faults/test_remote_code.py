"""The Python code that comes with a model runs only where the user said so."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import longgame
from longgame.audit.checks import check_trusted
from longgame.audit.plan import Plan, measured_by
from longgame.commands.options import recipe_changes
from longgame.errors import RecipeError
from support.chat_model import chat_tokenizer, save
from tests.support.cli import environment
from tests.support.quadratic_audit import recipe

CODE = """
import pathlib

pathlib.Path(__file__).parent.joinpath("ran").touch()
pathlib.Path({mark!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own-kind"


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""
LOAD = """
import sys
from pathlib import Path
from longgame.errors import LonggameError
from longgame.models.load import load_model, load_tokenizer
from longgame.recipe import ModelSpec
for trusted in (False, True):
    for load in (load_tokenizer, load_model):
        try:
            load(ModelSpec(name=sys.argv[1], trust_remote_code=trusted))
            print("loaded")
        except LonggameError as error:
            print(error)
    print("trusted" if trusted else "not trusted", Path(sys.argv[2]).exists())
"""


@pytest.fixture
def folder(tmp_path):
    """A model whose classes are in a Python file beside it."""
    path = Path(save(tmp_path / "model", chat_tokenizer()))
    (path / "own.py").write_text(CODE.format(mark=str(tmp_path / "mark")))
    config = json.loads((path / "config.json").read_text())
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    config |= {"model_type": "own-kind", "auto_map": classes}
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_code_of_a_model_runs_only_if_trusted(folder, tmp_path):
    environ = {**environment(), "HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder), str(tmp_path / "mark")],
        input="y\ny\ny\n",
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    before, after = done.stdout.split("not trusted False\n")
    assert "model.trust_remote_code: true (or give --trust-remote-code)" in before
    assert after == "loaded\nloaded\ntrusted True\n"


def test_every_loading_call_says_whether_code_is_trusted():
    calls = []
    for path in Path(longgame.__file__).parent.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            named = isinstance(call, ast.Call) and getattr(call.func, "attr", "") in ("from_pretrained", "from_config")
            if named and ast.unparse(call.func) != "StaticModel.from_pretrained":  # of model2vec, which runs no code
                names = {keyword.arg for keyword in call.keywords}
                calls.append((path.name, call.lineno, bool(names & {"trust_remote_code"})))
    assert len(calls) >= 5
    assert [call for call in calls if not call[2]] == []


def test_trust_is_recorded_and_changes_no_key(tmp_path):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"name": "r", "selectors": ["random"]}))
    assert recipe_changes(tmp_path / "r.yaml", trust_remote_code=True) == {"model.trust_remote_code": True}
    trusting = recipe().replace({"model.trust_remote_code": True})
    assert trusting.model_dump()["model"]["trust_remote_code"] is True
    assert measured_by(trusting) == measured_by(recipe())


def test_a_run_directory_cannot_trust_for_its_reader(tmp_path):
    trusting = Plan(recipe().replace({"model.trust_remote_code": True}))
    with pytest.raises(RecipeError, match="trust_remote_code.*--trust-code"):
        check_trusted(trusting, tmp_path)
    check_trusted(trusting, tmp_path, remote_code=True)
    with pytest.raises(RecipeError, match="cannot vary"):
        Plan(recipe(axes={"vary": {"model.trust_remote_code": [True]}}))
