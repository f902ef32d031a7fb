"""What a plan counts is what an audit then does."""

import re

import pytest

from longgame.audit.estimate import Estimate, Rates, TrialCost, estimate, judge_lines
from longgame.audit.execute import run_audit
from longgame.audit.learner import sequence_of
from longgame.audit.plan import Plan
from longgame.recipe import parse_recipe
from support.quadratic_audit import Silent

RATES = Rates(forward=1.0, backward=1.0, items=1.0, step=1.0, startup=3.0)


def recipe(**more):
    base = {
        "name": "q",
        "model": {"name": "quadratic"},
        "data": {"sequence": "quadratic", "pool_size": 96},
        "selectors": ["random", "loss"],
        "seeds": [0],
        "training": {"steps": 12},
        "probe": {"steps": 6, "points": 4},
    }
    return parse_recipe({**base, **more})


@pytest.mark.parametrize(
    ("rounds", "epochs", "kinds"), [("step", 1, ("common", "own")), (1, 2, ("common", "own")), (3, 1, ("common",))]
)
def test_planned_tokens_are_those_of_the_audit(tmp_path, rounds, epochs, kinds):
    planned = recipe(rounds=rounds, training={"steps": 12, "epochs": epochs}, probe={"steps": 6, "kinds": kinds})
    random, loss = estimate(planned, threads=1).trials
    results = run_audit(planned, tmp_path / "run", workers=1, threads=1, display=Silent()).results
    spent = results[results.trial == "loss-s0"]
    cost = spent[spent.kind == "cost"].groupby("name").value.sum()
    curves = spent[(spent.kind == "curve") & (spent.sub_skill == "") & (spent.scorer == "token_accuracy")]
    probed = curves.groupby(["stage", "probe"]).tokens.max().groupby("probe").sum()
    assert loss.trained_tokens == pytest.approx(cost["optimiser_tokens"] + probed.sum(), rel=0.03)
    own = probed.get("own", 0) / epochs / planned.budget
    assert loss.scored_tokens == pytest.approx(cost["candidate_tokens"] + own, rel=0.05)
    assert random.scored_tokens == 0
    assert random.trained_tokens == loss.trained_tokens


@pytest.mark.parametrize("rounds", ["step", 1, 3])
def test_planned_tokens_of_the_proxy_are_those_of_the_audit(tmp_path, rounds):
    probe = {"steps": 6, "kinds": ()}
    planned = recipe(selectors=["random", "lhas"], rounds=rounds, training={"steps": 12}, probe=probe)
    lhas = estimate(planned, threads=1).trials[1]
    results = run_audit(planned, tmp_path / "run", workers=1, threads=1, display=Silent()).results
    spent = results[(results.trial == "lhas-s0") & (results.kind == "cost")].groupby("name").value.sum()
    assert lhas.scored_tokens == pytest.approx(spent["scored_tokens"] - spent["pool_tokens"], rel=0.05)


def test_planned_items_are_those_of_the_audit():
    quiet = recipe(probe={"steps": 6, "points": 4, "kinds": []})
    probed = recipe(probe={"steps": 6, "points": 4, "kinds": ["common"]})
    each = estimate(quiet, threads=1).trials[0].scored_items, estimate(probed, threads=1).trials[0].scored_items
    every = recipe(
        probe={"steps": 6, "points": 4, "kinds": []}, data={**quiet.data.model_dump(), "ood_after": "every-stage"}
    )
    rows = estimate(every, threads=1).trials[0].scored_items
    stage_items = (each[1] - each[0]) / 12  # four points on each of four later stages, the first of which is a row of R
    assert each[0] == pytest.approx(25 * stage_items + (rows - each[0]) / 4)


def test_workers_share_the_trials_and_each_seed_s_work():
    plan = Estimate((TrialCost("a", 0, 0, 0, 10.0), TrialCost("b", 0, 0, 0, 20.0)), 4.0, RATES)
    assert plan.seconds(seeds=3, workers=1) == 3 + 12 + 90
    assert plan.seconds(seeds=3, workers=3) == 3 + 4 + 30
    assert plan.seconds(seeds=1, workers=8) == 3 + 4 + 15  # more workers than trials do not help


def test_the_plan_counts_the_calls_of_a_judge_once_per_candidate(tmp_path, monkeypatch):
    monkeypatch.setenv("LONGGAME_CACHE", str(tmp_path))
    small = {"pool_size": 20, "items_per_skill": 1, "ood_items_per_skill": 1}
    judged = parse_recipe(
        {
            "name": "j",
            "model": {"name": "tiny"},
            "data": small,
            "selectors": ["random"],
            "seeds": [0],
            "training": {"steps": 2, "warmup_steps": 0},
            "probe": {"steps": 2, "points": 2},
        }
    )
    assert judge_lines(Plan(judged)) == []
    judged = judged.replace({"quality": {"name": "judge", "model": "m", "views": 2, "max_tokens": 10}})
    (line,) = judge_lines(Plan(judged))
    calls = int(re.match(r"quality: ([\d,]+) calls \(0 replies", line)[1].replace(",", ""))
    sequence = sequence_of(judged, 0)
    read = [*(item for stage in sequence.stages for item in stage.candidates), *sequence.proxy_pool.examples]
    assert calls == 2 * len({(item.prompt, item.response) for item in read})
