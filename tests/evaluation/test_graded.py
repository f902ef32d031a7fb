"""Open answers graded by a judge behind a server: scale, rubric, missing grades that stay counted."""

from __future__ import annotations

import pytest

from longgame.data.examples import Example, Task
from longgame.errors import ModelError, RecipeError
from longgame.evaluation.evaluator import Evaluator
from longgame.evaluation.scorers import Evidence, build_scorer
from support.judge_server import serving


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LONGGAME_CACHE", str(tmp_path / "cache"))


def judge(server, tmp_path, **options):
    lines = {"model": "tiny-judge", "url": server.url, "views": 1, "backoff": 0.01, "attempts": 2, **options}
    file = tmp_path / "judge.yaml"
    file.write_text("\n".join(f"{name}: {value}" for name, value in lines.items()))
    return f"judge:{file}"


def items(count: int) -> tuple[Example, ...]:
    return tuple(Example.make(f"question {n}", "gold answer") for n in range(count))


def test_the_grade_is_a_share_of_the_scale(tmp_path) -> None:
    with serving("grade 7.5") as server:
        values = build_scorer(judge(server, tmp_path)).score_all(items(1), [Evidence(generated="my own words")])
        text = server.bodies[0]["messages"][0]["content"]
    assert values == [0.75]
    assert "my own words" in text
    assert "gold answer" not in text
    assert "from 1 to 10" in text
    assert "training data" not in text


def test_a_rubric_that_is_named_grades(tmp_path) -> None:
    with serving("grade 4") as server:
        scorer = build_scorer(judge(server, tmp_path, rubric="alpagasus"))
        values = scorer.score_all(items(1), [Evidence(generated="my own words")])
        text = server.bodies[0]["messages"][0]["content"]
    assert values == [0.8]
    assert "from 0 to 5" in text


def test_thoughts_are_not_shown_to_the_judge(tmp_path) -> None:
    shown = [Evidence(generated="<think>hidden</think>seen"), Evidence(generated="")]
    with serving("grade 1") as server:
        build_scorer(judge(server, tmp_path)).score_all(items(2), shown)
        texts = "".join(body["messages"][0]["content"] for body in server.bodies)
    assert "hidden" not in texts
    assert "seen" in texts
    assert "(no answer)" in texts


def test_missing_grades_are_counted_beside_the_mean(model, tokenizer, tmp_path, caplog) -> None:
    def plan(_number, body):
        return "refused" if "question 3" in body["messages"][0]["content"] else "grade 4"

    with serving(plan) as server:
        name = judge(server, tmp_path)
        task = Task("open", items(5), scorers=("token_accuracy", name), max_new_tokens=4)
        scores = Evaluator(model, tokenizer, pad_token_id=0).score([task])
    values = {score.scorer: (score.value, score.items) for score in scores}
    assert values[name] == (pytest.approx(40), 4)
    assert values[f"{name} missing"] == (pytest.approx(20), 5)
    assert "no result for 1 of 5 items of task 'open'" in caplog.text
    assert "refused" in caplog.text


def test_too_many_missing_grades_end_the_work(tmp_path) -> None:
    with serving("refused") as server, pytest.raises(ModelError, match="no grade for 5 of 5"):
        build_scorer(judge(server, tmp_path)).score_all(items(5), [Evidence(generated="x")] * 5)


def test_a_judge_without_a_model_is_refused_before_any_work(tmp_path) -> None:
    with pytest.raises(RecipeError, match="no model is named"):
        build_scorer("judge")
    with pytest.raises(RecipeError, match="does not exist"):
        build_scorer("judge:nowhere.yaml")
