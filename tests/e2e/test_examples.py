"""The files under examples/ run, and do what they say."""

import importlib.util
import json
import shutil
from pathlib import Path

from longgame.data.synthetic import build_procedural_sequence
from longgame.models.adaptation import adapt
from longgame.models.load import load_model
from longgame.recipe import DataSpec, ModelSpec, ProxySpec

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_transformers_and_trl_pick_and_learn_the_same(tmp_path):
    example = load("select_while_training")
    candidates = build_procedural_sequence(DataSpec(pool_size=64), 0, ProxySpec()).stages[1].candidates
    picks, losses = [], []
    for make in (example.with_transformers, example.with_trl):
        loaded = load_model(ModelSpec(name="tiny"))
        model = adapt(loaded.model, ModelSpec(name="tiny"), seed=0).model
        trainer = make(model, loaded.tokenizer, candidates, str(tmp_path))
        losses.append(trainer.train().training_loss)
        picks.append([made.picked_ids for made in trainer.selection_policy.rounds])
    assert picks[0] == picks[1]
    assert sum(map(len, picks[0])) > 0
    assert abs(losses[0] - losses[1]) < 1e-4


def test_every_cell_of_the_notebook_runs(tmp_path, monkeypatch):
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    monkeypatch.chdir(tmp_path / "examples")
    notebook = json.loads((EXAMPLES / "select_and_train.ipynb").read_text(encoding="utf-8"))
    variables = {"__name__": "__main__"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec(compile("".join(cell["source"]), cell["id"], "exec"), variables)
    assert len(variables["subset"]) > 0
    assert len(variables["picks"]) > 0
    assert "myopic" in variables["run"]._repr_html_()
