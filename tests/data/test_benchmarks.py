"""Rows as public benchmarks have them, and the paper's own recipes on local stand-ins with the same columns."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from longgame.audit.estimate import print_plan
from longgame.audit.plan import Plan
from longgame.data.formats import RowError, RowRules, read_row
from longgame.data.sequences import build_sequence
from longgame.errors import DataError
from longgame.recipe import Recipe, load_recipe

HUMANEVAL = {
    "task_id": "HumanEval/1",
    "prompt": "def one() -> int:\n    ''' Give 1. '''\n",
    "canonical_solution": "    return 1\n",
    "test": "def check(candidate):\n    assert candidate() == 1\n",
    "entry_point": "one",
}
MBPP = {
    "source_file": "a.ipynb",
    "task_id": 2,
    "prompt": "Write a function that gives one.",
    "code": "def one():\n    return 1",
    "test_imports": ["import math"],
    "test_list": ["assert one() == 1", "assert math.sqrt(one()) == 1"],
}
MMLU = {"question": "What is 1 + 1?", "subject": "algebra", "choices": ["1", "2", "3"], "answer": 1}
ARC = {
    "id": "a",
    "question": "What is hot?",
    "choices": {"text": ["ice", "fire"], "label": ["1", "2"]},
    "answerKey": "2",
}
TRUTHFUL = {
    "question": "Do pigs fly?",
    "mc1_targets": {"choices": ["No", "Yes", "At night"], "labels": [1, 0, 0]},
    "mc2_targets": {"choices": ["No", "They cannot", "Yes", "At night"], "labels": [1, 1, 0, 0]},
}


@pytest.mark.parametrize("row", [HUMANEVAL, MBPP, MMLU, ARC, TRUTHFUL])
def test_columns_beside_a_benchmark_are_read(row: dict[str, Any]) -> None:
    beside = {"skill": "s", "source": "t", "quality": 0.5, "longgame_weight": 2.0, "system": "Be short."}
    rules = RowRules(columns=("stars",))
    plain, example = (read_row(row | more, rules)[0] for more in ({}, {**beside, "stars": 3}))
    assert (example.skill, example.source, example.quality, example.weight) == ("s", "t", 0.5, 2.0)
    assert example.columns == {"stars": 3}
    assert example.messages[0] == ("system", "Be short.")
    assert (example.response, example.answer, example.choices) == (plain.response, plain.answer, plain.choices)


@pytest.mark.parametrize("answer", ["Paris", "B"])
def test_a_row_with_a_subject_and_an_answer_in_words_is_no_benchmark_s(answer: str) -> None:
    row = {"question": "Capital of France?\nA. Rome\nB. Paris", "choices": ["Rome", "Paris"], "answer": answer}
    plain, form = read_row(row, RowRules())
    assert form == "question-answer"
    assert read_row(row | {"subject": "geography"}, RowRules()) == (plain, form)


def test_a_coding_row_brings_its_tests_as_the_answer() -> None:
    example, name = read_row(HUMANEVAL, RowRules())
    assert name == "humaneval"
    assert (example.prompt, example.response) == (HUMANEVAL["prompt"], HUMANEVAL["canonical_solution"])
    assert example.answer == "def check(candidate):\n    assert candidate() == 1\n\n\ncheck(one)\n"
    example, name = read_row(MBPP, RowRules())
    assert name == "mbpp"
    assert example.prompt.endswith("one. Your code should pass these tests:\n" + "\n".join(MBPP["test_list"]))
    assert example.answer == "import math\nassert one() == 1\nassert math.sqrt(one()) == 1"
    plain = {"text": "Give one.", "code": "x", "test_list": ["assert True"], "test_setup_code": ""}
    assert read_row(plain, RowRules())[0].answer == "assert True"


def test_a_choice_row_shows_its_options_and_names_the_right_one() -> None:
    example, name = read_row(MMLU, RowRules())
    assert (name, example.answer, example.response) == ("mmlu", "B", "B. 2")
    assert example.prompt == "What is 1 + 1?\nA. 1\nB. 2\nC. 3\nAnswer:"
    assert example.choices == ("1", "2", "3")
    example, name = read_row(ARC, RowRules())
    assert (name, example.answer, example.choices) == ("arc", "B", ("ice", "fire"))


def test_a_truthfulqa_row_names_the_best_true_answer_first() -> None:
    example, name = read_row(TRUTHFUL, RowRules())
    assert (name, example.response, example.answer) == ("truthfulqa", "No", ("No", "They cannot"))
    assert example.choices == ("No", "They cannot", "Yes", "At night")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (MMLU | {"answer": 3}, "not the number of one of 3 choices"),
        (MMLU | {"answer": True}, "not the number"),
        (MMLU | {"choices": "1, 2"}, "not a list of texts"),
        (ARC | {"answerKey": "C"}, "none of the labels"),
        (ARC | {"choices": {"text": ["ice"]}}, "has no 'label'"),
        (HUMANEVAL | {"test": 3}, "'test' is a int"),
        (TRUTHFUL | {"mc1_targets": {"choices": ["Never"], "labels": [1]}}, "none of the choices"),
        (TRUTHFUL | {"mc1_targets": {"choices": ["No"], "labels": [0]}}, "has no right answer"),
        (TRUTHFUL | {"mc2_targets": {"choices": ["No", "Yes"], "labels": [1]}}, "2 choices and 1 labels"),
        (MBPP | {"test_list": [1]}, "not a list of texts"),
    ],
)
def test_a_contradictory_row_is_refused_by_name(row, message) -> None:
    with pytest.raises(RowError, match=message):
        read_row(row, RowRules())


def talk(n: int) -> list[tuple[str, str]]:
    return [("user", f"please tell number {n * 7919 % 1000} {n}"), ("assistant", f"it is {n}")]


STAND_INS: dict[str, Any] = {
    "teknium/OpenHermes-2.5": lambda n: {
        "conversations": [{"from": {"user": "human"}.get(role, "gpt"), "value": text} for role, text in talk(n)],
        "source": "airoboros", "category": None, "system_prompt": None, "id": str(n),
    },
    "HuggingFaceH4/ultrachat_200k": lambda n: {
        "prompt": talk(n)[0][1], "prompt_id": str(n),
        "messages": [{"role": role, "content": text} for role, text in talk(n)],
    },
    "openai/gsm8k": lambda n: {"question": f"What is {n} and {n + 3}?", "answer": f"{n} + {n + 3}\n#### {2 * n + 3}"},
    "TIGER-Lab/MathInstruct": lambda n: {"source": "CoT", "instruction": f"Solve x - {n} = 0", "output": f"{n}"},
    "sahil2801/CodeAlpaca-20k": lambda n: {"instruction": f"Print {n}", "input": "", "output": f"print({n})"},
    "google-research-datasets/mbpp": lambda n: MBPP | {"prompt": f"Write a function number {n} of many.", "task_id": n},
    "openai/openai_humaneval": lambda n: HUMANEVAL | {"prompt": f"def one() -> int:\n    ''' Give 1, case {n}. '''\n"},
    "allenai/ai2_arc": lambda n: ARC | {"question": f"What is hot, case {n} of all?", "id": str(n)},
    "cais/mmlu": lambda n: MMLU | {"question": f"What is 1 + 1 in case {n}?"},
    "truthfulqa/truthful_qa": lambda n: TRUTHFUL | {"question": f"Do pigs fly, case {n}?"},
    "LLM-LAT/harmful-dataset": lambda n: {"prompt": f"Harm {n}", "chosen": "I cannot help.", "rejected": "Sure."},
    "databricks/databricks-dolly-15k": lambda n: {
        "instruction": f"Name {n}", "context": "", "response": f"name {n}", "category": "open_qa",
    },
    "medalpaca/medical_meadow_medqa": lambda n: {"input": f"Case {n}?", "instruction": "Answer.", "output": "B: rest"},
    "dzunggg/legal-qa-v1": lambda n: {"question": f"May I, case {n}?", "answer": "You may."},
    "gbharti/finance-alpaca": lambda n: {"instruction": f"What is stock {n}?", "input": "", "output": "A share."},
}  # fmt: skip
"""Data set of the hub → a row with its columns."""


def with_stand_ins(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with a file of 60 rows for each reference of the hub."""

    def local(reference: str, first: int) -> str:
        name = reference.removeprefix("hub:").partition(":")[0]
        assert reference.startswith("hub:")
        file = folder / (reference.translate(str.maketrans(":/[]%", "_____")) + ".jsonl")
        rows = [STAND_INS[name](first + n) for n in range(60)]
        file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return str(file)

    number = iter(range(0, 10**6, 1000))
    tasks = [
        [
            task.model_copy(update={key: tuple(local(name, next(number)) for name in getattr(task, key))
                                    for key in ("train", "eval")})
            for task in part
        ]
        for part in (recipe.data.stages, recipe.data.ood)
    ]  # fmt: skip
    return recipe.replace({"data.stages": tuple(tasks[0]), "data.ood": tuple(tasks[1])})


SMALL = {
    "data.pool_size": 24,
    "data.items_per_skill": 3,
    "data.ood_items_per_skill": 3,
    "proxy.items_per_skill": 2,
    "training.steps": 4,
    "training.warmup_steps": 1,
    "probe.steps": 2,
    "probe.points": 2,
}


@pytest.mark.parametrize("name", ["paper-8b", "paper-8b-domain"])
def test_the_papers_recipe_has_the_papers_setting(name) -> None:
    recipe = load_recipe(name)
    assert (recipe.model.adaptation, recipe.model.lora.r, recipe.model.dtype) == ("lora", 16, "bfloat16")
    assert [len(recipe.data.stages), len(recipe.selectors), len(recipe.seeds)] == [5, 7, 3]
    assert sorted([recipe.budget, *recipe.axes.budget]) == [0.1, 0.25, 0.5]
    assert len(Plan(recipe).trials) == 7 * 3 * 3


@pytest.mark.parametrize("name", ["paper-8b", "paper-8b-domain"])
def test_the_papers_recipe_is_planned_on_stand_ins(name, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = with_stand_ins(load_recipe(name, {**SMALL, "model.name": "tiny", "model.dtype": "float32"}), tmp_path)
    recipe = recipe.replace({"model.max_length": 256, "selectors": recipe.selectors[:1], "axes.budget": ()})
    sequence = build_sequence(recipe, 0)
    assert [stage.name for stage in sequence.stages] == [stage.name for stage in recipe.data.stages]
    assert all(len(stage.candidates) == 24 for stage in sequence.stages)
    out = io.StringIO()
    print_plan(Plan(recipe), tmp_path / "run", 1, 1, Console(file=out, width=200))
    assert "tokens trained" in out.getvalue()
    assert "Peak memory while measuring" in out.getvalue()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["paper-8b", "paper-8b-domain"])
def test_without_the_hub_the_papers_recipe_says_what_to_do(name, monkeypatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"hub:.* is not in the local cache.*--data-dir"):
        build_sequence(load_recipe(name), 0)
