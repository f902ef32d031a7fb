"""lm-evaluation-harness as a scorer: its own numbers on the same model, and what is said where it is missing."""

from __future__ import annotations

import importlib.util
import json
import random

import numpy as np
import pytest
import torch

from longgame.data.examples import Task
from longgame.errors import RecipeError
from longgame.evaluation.evaluator import Evaluator
from longgame.evaluation.scorers import build_scorer
from longgame.models.load import load_model
from longgame.recipe import ModelSpec, brings_items

installed = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed")
ROWS = [
    {"question": "what is 1 + 1", "choices": ["2", "three", "nine"], "gold": 0},
    {"question": "which of them is red", "choices": ["the sky", "a rose"], "gold": 1},
    {"question": "what is 2 + 3", "choices": ["four", "5", "6 or 7"], "gold": 1},
    {"question": "say no", "choices": ["no", "yes"], "gold": 0},
]


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder with a multiple-choice task, one that generates, and a group of both, on local rows."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(map(json.dumps, ROWS)))
    data = (
        f"dataset_path: json\ndataset_name: null\ndataset_kwargs:\n  data_files:\n    test: {rows}\ntest_split: test\n"
        'doc_to_text: "Q: {{question}}\\nA:"\n'
    )
    (tmp_path / "words.yaml").write_text(
        f"task: own_words\n{data}output_type: multiple_choice\n"
        "doc_to_choice: choices\ndoc_to_target: gold\nmetric_list:\n  - metric: acc\n  - metric: acc_norm\n"
    )
    (tmp_path / "texts.yaml").write_text(
        f'task: own_texts\n{data}output_type: generate_until\ndoc_to_target: "{{{{choices[gold]}}}}"\n'
        "generation_kwargs:\n  max_gen_toks: 4\n  until: ['Q']\nmetric_list:\n  - metric: exact_match\n"
    )
    (tmp_path / "group.yaml").write_text("group: own_group\ntask: [own_words, own_texts]\n")
    return tmp_path


def test_without_the_harness_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(RecipeError, match=r"pip install 'longgame\[eval\]'"):
        build_scorer("lm_eval:arc_easy")
    with pytest.raises(RecipeError, match="names no task"):
        build_scorer("lm_eval")


def test_a_task_scored_by_the_harness_alone_needs_no_items() -> None:
    assert brings_items(["lm_eval:arc_easy", "lm_eval(task=boolq)"])
    assert not brings_items(["lm_eval:arc_easy", "token_accuracy"])


@pytest.mark.slow
@installed
def test_scores_equal_those_of_the_harness(tasks, tmp_path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    loaded = load_model(ModelSpec(name="tiny"))
    folder = tmp_path / "model"
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    theirs = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder), "dtype": "float32"},
        tasks=["own_group"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
        device="cpu",
    )["results"]
    names = (f"lm_eval:own_group(include={tasks})", f"lm_eval:own_words(include={tasks}, metric=acc_norm)")
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    scores = Evaluator(loaded.model, loaded.tokenizer, pad_token_id=loaded.pad_token_id).score(
        [Task("open", (), scorers=names)]
    )
    assert state == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
    values = {(score.scorer, score.sub_skill): (score.value, score.items) for score in scores}
    assert values == {
        (names[0], "own_words"): (pytest.approx(100 * theirs["own_words"]["acc,none"]), 4),
        (names[0], "own_texts"): (pytest.approx(100 * theirs["own_texts"]["exact_match,none"]), 4),
        (names[1], "own_words"): (pytest.approx(100 * theirs["own_words"]["acc_norm,none"]), 4),
    }


@pytest.mark.slow
@installed
def test_unknown_tasks_and_metrics_are_explained(tasks) -> None:
    loaded = load_model(ModelSpec(name="tiny"))
    with pytest.raises(RecipeError, match="has no task 'own_wrds'"):
        build_scorer(f"lm_eval:own_wrds(include={tasks})").score_model(loaded.model, loaded.tokenizer, 256)
    with pytest.raises(RecipeError, match=r"gives acc,none, acc_norm,none .*not f1"):
        build_scorer(f"lm_eval:own_words(include={tasks}, metric=f1)").score_model(loaded.model, loaded.tokenizer, 256)
