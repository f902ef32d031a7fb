"""lm-evaluation-harness as a scorer: its own numbers on the same model, and what is said where it is missing."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from longgame.data.examples import Example, Task
from longgame.errors import PluginError, RecipeError
from longgame.evaluation.benchmarks import gsm_answer
from longgame.evaluation.evaluator import Evaluator
from longgame.evaluation.harness import LmEval
from longgame.evaluation.scorers import Evidence, build_scorer
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


ODD = (
    "#### 1,234", "#### $1,234.50", "#### -7", "####12", "#### 12 #### 13", "#### a\n#### 5", "so 3.0", "3.", "-", "$",
    ".,", "1,2,3", "--5", "-$5", "$-5", "5%", "1e3", "#### 1.000.000", "the answer is 5", "no number", "", " ", "#### ",
    "#### \u0661\u0662", "x = 3 Question: 4", "9</s>8", "9<|im_end|>8", "#### 18.", "#### 18..", "#### ,", "18\n\n",
    "2 + 2 = 4 apples #### 4 apples", "\u22125", "1 234", "#### +5", "0", "-0", "00012", "12" * 6_000,
)  # fmt: skip
GOLDS = ("18", "1,234", "-7", "5", "0", "1234.50", "3")


@pytest.mark.slow
@installed
def test_gsm8k_reads_texts_as_the_harness_does(tmp_path, monkeypatch) -> None:
    """The harness's own GSM8K task on answers of the tiny model and on odd ones: equal extraction and equal scores."""
    import lm_eval.tasks
    import yaml
    from lm_eval import simple_evaluate
    from lm_eval.models.dummy import DummyLM
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    loaded = load_model(ModelSpec(name="tiny"))
    evaluator = Evaluator(loaded.model, loaded.tokenizer, pad_token_id=loaded.pad_token_id)
    rng = np.random.default_rng(0)
    prompts = [f"add {a} and {b} and {c}" for a, b, c in rng.integers(0, 10_000, (200, 3))]
    texts = evaluator.answers([Example.make(prompt, "#### 0") for prompt in prompts], 24)
    signs = [*"0123456789.,$-# #\n", "#### ", "Question:", " x"]
    texts += ["".join(rng.choice(signs, size=12)) for _ in range(400)] + list(ODD)
    golds = [
        number if (number := gsm_answer(text, "flexible")) and number[-1].isdigit() and place % 2 else GOLDS[place % 7]
        for place, text in enumerate(texts)
    ]
    rows = [{"question": f"q{place}", "answer": f"because\n#### {gold}"} for place, gold in enumerate(golds)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    theirs = yaml.safe_load((Path(lm_eval.tasks.__file__).parent / "gsm8k" / "gsm8k.yaml").read_text(encoding="utf-8"))
    for key in ("dataset_name", "tag", "training_split", "fewshot_split"):
        theirs.pop(key)
    theirs |= {"task": "own_gsm8k", "dataset_path": "json", "num_fewshot": 0}
    theirs["dataset_kwargs"] = {"data_files": {"test": str(tmp_path / "rows.jsonl")}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(theirs))

    class Speaks(DummyLM):
        def generate_until(self, requests, disable_tqdm=False):
            ends = theirs["generation_kwargs"]["until"]
            answers = [texts[int(request.args[0].split("q")[1].split("\n")[0])] for request in requests]
            return [min((answer.split(end)[0] for end in ends), key=len) for answer in answers]

    results = simple_evaluate(
        model=Speaks(),
        tasks=["own_gsm8k"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    compared = 0
    for sample in results["samples"]["own_gsm8k"]:
        place = int(sample["doc"]["question"][1:])
        item = Example.make("q", rows[place]["answer"], answer=golds[place])
        form = {"strict-match": "strict", "flexible-extract": "flexible"}[sample["filter"]]
        number = gsm_answer(texts[place], form)
        assert ("[invalid]" if number is None else number) == sample["filtered_resps"][0], texts[place]
        score = build_scorer(f"gsm8k(form={form})").score(item, Evidence(generated=texts[place]))
        assert score == sample["exact_match"], texts[place]
        compared += 1
    assert compared == 2 * len(texts)
    assert sum(sample["exact_match"] for sample in results["samples"]["own_gsm8k"]) > 100


def test_a_metric_of_which_less_is_better_is_no_score(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)  # no task is run
    values = {"alias": "t", "bits_per_byte,none": 0.68, "acc,none": 0.5}
    falling = {"bits_per_byte": False, "acc": True}
    assert LmEval("t")._value("t", values, falling) == 0.5
    with pytest.raises(PluginError, match="of bits_per_byte, less is better"):
        LmEval("t", metric="bits_per_byte")._value("t", values, falling)
