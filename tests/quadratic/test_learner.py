import math
import subprocess
import sys

import numpy as np
import pytest

from longgame.errors import BudgetError, DataError, NumericalError, PluginError, RecipeError, ResumeError
from longgame.quadratic.learner import (
    LIVE,
    TOLERANCE,
    QuadraticLearner,
    build_quadratic_sequence,
    learning_rates,
)
from longgame.recipe import parse_recipe
from longgame.seeding import generator
from longgame.selection.base import build_selector
from longgame.selection.history import History
from longgame.selection.policy import SelectionPolicy
from longgame.signals.base import SIGNALS
from longgame.signals.frozen import COLUMNS
from longgame.training.config import SelectionConfig


@pytest.fixture
def sequence(recipe):
    return build_quadratic_sequence(recipe, 0)


@pytest.fixture
def learner(recipe, sequence):
    made = QuadraticLearner(recipe, 0)
    made.use(sequence, made.prepare(sequence))
    return made


def policy(name="loss", seed=0):
    return SelectionPolicy(build_selector(name), History(), generator(seed, "test"))


def walk(learner, sequence, name="loss", stages=None, steps=8, **options):
    held = policy(name)
    reports = []
    for number, stage in enumerate(sequence.stages[:stages]):
        held.begin_stage(generator(1, number))
        selection = SelectionConfig(**{"seed": number, **options})
        reports.append(learner.train(stage.pool, held, selection, steps))
    return reports


def changed(recipe, **sections):
    raw = recipe.model_dump()
    for section, values in sections.items():
        raw[section] = {**raw[section], **values}
    return parse_recipe(raw)


def test_no_torch_behind_the_learner():
    code = "import sys, longgame.quadratic.learner; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_signal_exists_finite_and_in_its_type(learner, sequence):
    pool = sequence.stages[1].pool
    names = (*LIVE, *COLUMNS)
    signals = learner.signals(pool, [*names, "future_proxy"])
    for name in names:
        column = signals[name]
        assert column.ndim == (2 if SIGNALS[name].width else 1)
        assert column.dtype == (np.int64 if name == "cluster" else np.float32)


def test_live_signals_agree_with_finite_differences_of_the_loss(learner, sequence):
    walk(learner, sequence, stages=1)
    pool = sequence.stages[1].pool.take(range(20))
    signals = learner.signals(pool, ("loss", "grad_sketch", "grad_norm", "el2n", "logit_nuclear_norm", "logit_sketch"))
    h = 1e-3
    theta = learner.theta.copy()

    def losses(point):
        return np.array([0.5 * (sum(a * point) - y) ** 2 for a, y in zip(*rows, strict=True)])

    ids = [learner.world.index[name] for name in pool.ids]
    rows = learner.world.features[ids], learner.world.labels[ids]
    slow = np.stack([(losses(theta + h * e) - losses(theta - h * e)) / (2 * h) for e in np.eye(len(theta))], axis=1)
    np.testing.assert_allclose(signals["loss"], losses(theta), rtol=1e-5)
    np.testing.assert_allclose(signals["grad_sketch"], slow, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(signals["grad_norm"], np.linalg.norm(slow, axis=1), rtol=1e-4)
    np.testing.assert_allclose(signals["el2n"], np.sqrt(2 * losses(theta)), rtol=1e-4)
    np.testing.assert_allclose(np.abs(signals["logit_sketch"].sum(axis=1)), signals["logit_nuclear_norm"], rtol=1e-4)


def test_future_proxy_is_the_mean_gradient_over_the_proxy_items_of_all_stages(learner, sequence):
    items = [item for stage in sequence.stages for item in stage.proxy]
    slow = np.zeros_like(learner.theta)
    for item in items:
        a = learner.world.features[learner.world.index[item.sample_id]]
        slow += a * (a @ learner.theta - float(item.response)) / len(items)
    pool = sequence.stages[0].pool.take(range(2))
    np.testing.assert_allclose(learner.signals(pool, ("future_proxy",))["future_proxy"], slow, atol=1e-5)


def test_future_proxy_is_refreshed_every_few_steps_while_training_and_always_fresh_outside(recipe, sequence):
    learner = QuadraticLearner(changed(recipe, proxy={"refresh_steps": 3}), 0)
    held = policy("random")
    held.selector.requires = ("future_proxy",)
    learner.train(sequence.stages[0].pool, held, SelectionConfig(), 8)
    seen = [entry.signals["future_proxy"] for entry in held.rounds]
    same = [bool(np.array_equal(seen[i], seen[i + 1])) for i in range(7)]
    assert same == [True, True, False, True, True, False, True]
    pool = sequence.stages[0].pool.take(range(1))
    before = learner.signals(pool, ("future_proxy",))["future_proxy"]
    learner.theta = learner.theta + 1
    assert not np.array_equal(before, learner.signals(pool, ("future_proxy",))["future_proxy"])


def test_frozen_signals_do_not_move_with_the_model(learner, sequence):
    names = ("embedding", "base_loss", "difficulty", "quality", "cluster")
    pool = sequence.stages[2].pool
    before = learner.signals(pool, names)
    walk(learner, sequence, stages=2)
    after = learner.signals(pool, names)
    for name in names:
        np.testing.assert_array_equal(before[name], after[name])
    order = np.argsort(before["base_loss"], kind="stable")
    assert (np.diff(before["difficulty"][order]) >= 0).all()
    assert before["difficulty"].mean() == pytest.approx(0.5, abs=1e-6)


def test_frozen_pass_of_another_seed_or_none_is_refused(recipe, learner, sequence):
    other = QuadraticLearner(recipe, 1)
    with pytest.raises(DataError, match="unknown to the frozen signals"):
        other.use(build_quadratic_sequence(recipe, 1), learner.prepare(sequence))
    bare = QuadraticLearner(recipe, 0)
    with pytest.raises(DataError, match="call use"):
        bare.signals(sequence.stages[0].pool, ("quality",))
    with pytest.raises(DataError, match="unknown to the frozen signals"):
        learner.signals(learner.world.pool(sequence.stages[0].task.items), ("quality",))
    with pytest.raises(PluginError, match="Did you mean 'loss'"):
        learner.signals(sequence.stages[0].pool, ("los",))


def test_scores_are_the_stated_functions_of_the_exact_loss(learner, sequence):
    losses = learner.world.sub_skill_losses(learner.theta)
    scores = learner.score(sequence.tasks)
    assert len(scores) == 2 * sum(len(values) for values in losses.values())
    for name, values in losses.items():
        found = [score.value for score in scores if score.task == name and score.scorer == "token_accuracy"]
        np.testing.assert_allclose(found, 100 * np.exp(-values))
    # at an optimum nothing is left to learn
    learner.theta = learner.world.populations["a"].optimum.copy()
    assert {score.value for score in learner.score(sequence.tasks[:1])} == {100.0}


def test_exact_match_is_the_share_of_fresh_answers_within_tolerance(recipe):
    many = changed(recipe, data={"items_per_skill": 4_000, "pool_size": 20})
    learner = QuadraticLearner(many, 0)
    sequence = build_quadratic_sequence(many, 0)
    for score in learner.score(sequence.tasks[:1]):
        if score.scorer != "exact_match":
            continue
        items = [item for item in sequence.tasks[0].items if item.skill == score.sub_skill]
        rows = learner.world.rows([item.sample_id for item in items])
        error = learner.world.features[rows] @ learner.theta - learner.world.clean_labels[rows]
        assert score.items == len(items)
        assert score.value == pytest.approx(100 * (np.abs(error) <= TOLERANCE).mean(), abs=3)


def test_training_is_gradient_descent_on_the_picks_with_an_exact_report(learner, sequence):
    told = []
    held = policy("loss")
    pool = sequence.stages[0].pool
    theta, start = learner.theta.copy(), learner.theta.copy()
    report = learner.train(pool, held, SelectionConfig(), 8, told.append)
    rates = learning_rates(learner.recipe.training, 8)
    gradients = []
    for number, batch in enumerate(learner.picks):
        loss, gradient = 0.0, np.zeros_like(theta)
        for name in batch:
            a, y = learner.world.features[learner.world.index[name]], learner.world.labels[learner.world.index[name]]
            loss += 0.5 * (a @ theta - y) ** 2 / len(batch)
            gradient += a * (a @ theta - y) / len(batch)
        assert report.losses[number] == pytest.approx(loss)
        gradients.append(gradient)
        theta = theta - rates[number] * gradient
    np.testing.assert_allclose(learner.theta, theta, atol=1e-12)
    gram = [[float(a @ b) for b in gradients] for a in gradients]
    np.testing.assert_allclose(report.gradient_gram, gram, atol=1e-12)
    assert report.update_norm == pytest.approx(np.linalg.norm(theta - start))
    assert math.isnan(report.drift)
    assert [info.step for info in told] == list(range(9))
    assert math.isnan(told[0].loss)
    assert told[0].selected_tokens == 0
    assert told[-1].selected_tokens == report.selected_tokens == sum(r.selection.tokens for r in held.rounds)
    assert report.candidate_tokens == pool.tokens.sum()
    assert 0.25 * pool.tokens.sum() - 24 <= report.selected_tokens <= 0.25 * pool.tokens.sum() + 1


def test_weights_of_picks_multiply_their_gradients(learner, sequence):
    held = policy("importance")
    theta = learner.theta.copy()
    report = learner.train(sequence.stages[0].pool, held, SelectionConfig(), 3, None)
    rates = learning_rates(learner.recipe.training, 3)
    for number, entry in enumerate(held.rounds):
        rows = [learner.world.index[name] for name in entry.picked_ids]
        a, y, weights = learner.world.features[rows], learner.world.labels[rows], entry.selection.weights
        assert report.losses[number] == pytest.approx(0.5 * np.mean(weights * (a @ theta - y) ** 2))
        theta = theta - rates[number] * (weights * (a @ theta - y)) @ a / len(rows)
    np.testing.assert_allclose(learner.theta, theta, atol=1e-12)


def test_drift_is_measured_against_the_sum_of_earlier_changes(learner, sequence):
    base = learner.theta.copy()
    walk(learner, sequence, stages=2)
    middle = learner.theta.copy()
    held = policy("random")
    report = learner.train(sequence.stages[2].pool, held, SelectionConfig(), 8)
    change, before = learner.theta - middle, middle - base
    cosine = change @ before / np.linalg.norm(change) / np.linalg.norm(before)
    assert report.drift == pytest.approx(1 - cosine)


@pytest.mark.parametrize("rounds", [1, 3, 8])
def test_rounds_spend_the_same_budget_and_never_pick_twice(learner, sequence, rounds):
    held = policy("loss")
    pool = sequence.stages[0].pool
    report = learner.train(pool, held, SelectionConfig(rounds=rounds, epochs=2), 8)
    picked = [name for entry in held.rounds for name in entry.picked_ids]
    assert len(held.rounds) == rounds
    assert len(set(picked)) == len(picked)
    assert sorted(name for batch in learner.picks for name in batch) == sorted([*picked, *picked])
    assert 0.25 * pool.tokens.sum() - 24 <= report.selected_tokens <= 0.25 * pool.tokens.sum() + 1
    assert report.optimiser_tokens == 2 * report.selected_tokens
    assert len(held.rounds[-1].candidate_ids) == len(pool) - sum(len(e.picked_ids) for e in held.rounds[:-1])


def test_later_rounds_see_the_model_as_it_is_then(learner, sequence):
    held = policy("loss")
    pool = sequence.stages[0].pool
    before = dict(zip(pool.ids, learner.signals(pool, ("loss",))["loss"], strict=True))
    learner.train(pool, held, SelectionConfig(rounds=2), 8)
    first, second = held.rounds
    np.testing.assert_array_equal(first.signals["loss"], [before[name] for name in first.candidate_ids])
    assert not np.array_equal(second.signals["loss"], [before[name] for name in second.candidate_ids])


def test_candidate_stream_is_the_same_for_every_selector(recipe, sequence):
    streams = []
    for name in ("random", "loss"):
        learner = QuadraticLearner(recipe, 0)
        held = policy(name)
        learner.train(sequence.stages[0].pool, held, SelectionConfig(seed=5), 8)
        streams.append([entry.candidate_ids for entry in held.rounds])
    assert streams[0] == streams[1]


def test_fork_leaves_no_trace(learner, sequence):
    walk(learner, sequence, stages=1)
    theta, picks = learner.theta.copy(), list(learner.picks)
    with learner.fork() as fork:
        np.testing.assert_array_equal(fork.theta, theta)
        walk(fork, sequence, "random")
        assert not np.array_equal(fork.theta, theta)
    np.testing.assert_array_equal(learner.theta, theta)
    assert learner.picks == picks
    assert learner.stages_trained == 1


def test_resume_ends_where_the_undisturbed_walk_ends(recipe, learner, sequence, tmp_path):
    walk(learner, sequence, stages=2)
    learner.save(tmp_path)
    again = QuadraticLearner(recipe, 0)
    again.load(tmp_path)
    assert (again.picks, again.rates, again.stages_trained) == (learner.picks, learner.rates, 2)
    stage = sequence.stages[2]
    reports = [one.train(stage.pool, policy(), SelectionConfig(), 8) for one in (learner, again)]
    np.testing.assert_array_equal(learner.theta, again.theta)
    assert reports[0].drift == reports[1].drift
    outcome = again.world.outcome(again.picks, np.array(again.rates))
    np.testing.assert_allclose(outcome.theta, again.theta, atol=1e-12)


def test_state_of_another_world_or_a_damaged_one_is_refused(recipe, learner, tmp_path):
    learner.save(tmp_path)
    with pytest.raises(ResumeError, match="belongs to world"):
        QuadraticLearner(recipe, 1).load(tmp_path)
    (tmp_path / "quadratic.json").write_text("{")
    with pytest.raises(ResumeError, match="no readable quadratic learner"):
        learner.load(tmp_path)


def test_impossible_asks_end_with_a_sentence(recipe, learner, sequence):
    pool = sequence.stages[0].pool
    with pytest.raises(BudgetError, match="cannot feed 121 online steps"):
        learner.train(pool, policy(), SelectionConfig(), 121)
    with pytest.raises(BudgetError):
        learner.train(pool, policy(), SelectionConfig(budget=0.001, rounds=1), 8)
    without = QuadraticLearner(changed(recipe, proxy={"items_per_skill": 0}), 0)
    with pytest.raises(RecipeError, match="set proxy.items_per_skill"):
        without.signals(pool, ("future_proxy",))
    wild = QuadraticLearner(changed(recipe, training={"learning_rate": 1e200}), 0)
    with pytest.raises(NumericalError, match="step 2 of stage 1"), np.errstate(all="ignore"):
        wild.train(sequence.stages[0].pool, policy("random"), SelectionConfig(), 8)


def test_learning_rate_rises_then_falls_to_its_final_share(recipe):
    changes = {"steps": 5, "learning_rate": 0.3, "warmup_steps": 2, "final_lr_share": 0.1}
    training = recipe.training.model_copy(update=changes)
    np.testing.assert_allclose(learning_rates(training, 5), [0.15, 0.3, 0.21, 0.12, 0.03])


def test_a_short_run_warms_up_in_proportion(recipe):
    training = recipe.training.model_copy(update={"steps": 10, "learning_rate": 1, "warmup_steps": 4})
    np.testing.assert_allclose(learning_rates(training, 5)[:3], [0.5, 1.0, 0.7])
