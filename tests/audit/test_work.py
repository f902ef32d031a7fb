"""Tokens and FLOPs of a stage, told from its decisions."""

import dataclasses

import numpy as np
import pytest

from longgame.audit.walk import stage_work
from longgame.data.examples import Example, Pool
from longgame.models.flops import ModelFlops
from longgame.selection.base import Selector
from longgame.selection.history import History, Selection
from longgame.selection.interventions import ClusterFloor
from longgame.selection.methods.from_scores import FromScores
from longgame.selection.policy import SelectionPolicy
from longgame.signals.base import Signals
from longgame.training.schedule import TrainingReport

SIZES = ModelFlops(dense=10, lora=3, attention=4, hidden=2, head=14)


class Named(Selector):
    """Picks the first examples; requires what it is told to."""

    name = "named"

    def __init__(self, *requires):
        self.requires = requires

    def select(self, pool, signals, history, budget, rng):
        return Selection.of(pool, np.array([0]))


def pool_of(*lengths, name="e"):
    prompt, response = (np.array(side) for side in zip(*lengths, strict=True))
    ids = tuple(np.arange(total) for total in prompt + response)
    return Pool(tuple(Example(f"{name}{row}", "p", "r") for row in range(len(ids))), ids, prompt, response)


POOL = pool_of((3, 2), (2, 4), (5, 3), (1, 1))
PROXY = pool_of((2, 2), (3, 3), name="proxy")


def report(**more):
    gram = np.zeros((1, 1))
    return TrainingReport(1, 0, 0, 0, np.zeros(1), gram, 4, 0.0, 0.0, **{"model": SIZES, **more})


def decided(selector, rounds=((0, 1, 2, 3),), gradient_every=0):
    """A policy that decided over these rows, one list a round."""
    policy = SelectionPolicy(selector, History(), np.random.default_rng(0), gradient_every=gradient_every)

    def score(pool, names):
        return Signals(
            pool.ids, {name: np.ones((len(pool), 2), np.float32) for name in names if name != "future_proxy"}
        )

    for rows in rounds:
        policy.choose(POOL.take(rows), 50, score)
    return policy


def forward(tokens, head):
    return 2 * 13 * tokens + 4 * 4 * tokens**2 + 2 * 14 * head


def backward(tokens, head):
    return 2 * 13 * tokens + 8 * 4 * tokens**2 + 2 * 14 * head + 2 * 3 * tokens


def test_a_forward_signal_costs_one_pass_over_every_candidate():
    found = stage_work(report(), decided(Named("loss")), POOL, (), 1)
    assert found["pool_tokens"] == found["scored_tokens"] == 5 + 6 + 8 + 2
    assert found["score_flops"] == forward(5, 2) + forward(6, 4) + forward(8, 3) + forward(2, 1)
    assert found["train_flops"] == forward(5, 2) + backward(5, 2)
    assert found["frozen_flops"] == found["diagnose_flops"] == 0


def test_what_reads_nothing_of_the_model_costs_nothing_to_choose():
    for selector in (Named(), Named("quality")):
        found = stage_work(report(), decided(selector), POOL, (), 1)
        assert found["score_flops"] == found["scored_tokens"] == 0
        assert found["train_flops"] > 0


def test_candidates_count_each_time_they_are_scored_and_picks_each_time_they_are_learned():
    policy = decided(Named("loss"), rounds=((0, 1), (1, 2)))
    found = stage_work(report(), policy, POOL, (), 3)
    assert found["scored_tokens"] == 5 + 6 + 6 + 8
    assert found["score_flops"] == forward(5, 2) + 2 * forward(6, 4) + forward(8, 3)
    assert found["train_flops"] == 3 * (forward(5, 2) + backward(5, 2) + forward(6, 4) + backward(6, 4))


def test_the_frozen_pass_counts_once_over_the_pool_however_many_rounds_read_it():
    policy = decided(Named("embedding", "loss"), rounds=((0, 1), (1, 2)))
    found = stage_work(report(), policy, POOL, (), 1)
    still = forward(5, 0) + forward(6, 0) + forward(8, 0) + forward(2, 0)
    assert found["frozen_flops"] == still
    assert found["score_flops"] == still + forward(5, 2) + 2 * forward(6, 4) + forward(8, 3)
    assert found["scored_tokens"] == 21 + 25


def test_every_measurement_of_the_proxy_is_a_gradient_of_all_its_items():
    policy = decided(Named("grad_sketch"), rounds=((0,),))
    own = forward(5, 2) + backward(5, 2)
    proxy = forward(4, 2) + backward(4, 2) + forward(6, 3) + backward(6, 3)
    found = stage_work(report(), policy, POOL, [(2, PROXY), (0, None)], 1)
    assert found["score_flops"] == own + 2 * proxy
    assert found["scored_tokens"] == 5 + 2 * 10


def test_gradients_that_only_the_diagnostics_read_are_not_the_selectors_cost():
    found = stage_work(report(), decided(Named("loss"), gradient_every=1), POOL, (), 1)
    assert found["diagnose_flops"] == forward(5, 2) + backward(5, 2)
    assert found["score_flops"] == forward(5, 2) + forward(6, 4) + forward(8, 3) + forward(2, 1)
    assert stage_work(report(), decided(Named("grad_sketch"), gradient_every=1), POOL, (), 1)["diagnose_flops"] == 0


def test_a_closed_form_has_tokens_and_no_flops():
    assert set(stage_work(report(model=None), decided(Named("loss")), POOL, (), 1)) == {
        "pool_tokens",
        "scored_tokens",
        "response_tokens",
    }


def test_response_tokens_are_those_of_the_picks_in_every_round():
    policy = decided(Named("loss"), rounds=((0, 1), (1, 2)))
    picked = [POOL.response_tokens[POOL.index[name]] for entry in policy.rounds for name in entry.picked_ids]
    assert stage_work(report(), policy, POOL, (), 3)["response_tokens"] == sum(picked) > 0


@pytest.mark.parametrize("wrapped", [False, True])
def test_what_another_system_spent_on_its_scores_is_not_known(tmp_path, wrapped):
    file = tmp_path / "scores.csv"
    file.write_text("sample_id,score\n" + "".join(f"{name},1\n" for name in POOL.ids))
    policy = decided(Named("loss"))
    policy = dataclasses.replace(policy, selector=FromScores(str(file)))
    if wrapped:
        policy.selector = ClusterFloor(policy.selector, 0.1)
    found = stage_work(report(), policy, POOL, (), 1)
    assert np.isnan([found["score_flops"], found["frozen_flops"], found["scored_tokens"]]).all()
    assert found["train_flops"] > 0


@pytest.mark.parametrize(
    ("signal", "name"),
    [
        ("influence", "warmup"),
        ("reference_loss", "reference"),
        ("loss_trajectory", "log"),
        ("scorer_loss", "scorer"),
        ("grade", "judge"),
        ("quality", "judge"),
    ],
)
def test_a_training_beside_the_stage_is_charged_and_named(signal, name):
    policy = decided(Named(signal))
    found = stage_work(report(auxiliary_tokens=40, auxiliary_flops=7.0), policy, POOL, (), 1)
    plain = stage_work(report(), policy, POOL, (), 1)
    assert (found[f"{name}_tokens"], found[f"{name}_flops"]) == (40, 7)
    assert found["scored_tokens"] == plain["scored_tokens"] + 40
    assert found["score_flops"] == plain["score_flops"] + 7
    assert f"{name}_flops" not in plain
