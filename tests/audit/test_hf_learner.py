"""The learner with a real model behind it (tiny substrate)."""

import json
import re

import numpy as np
import pytest
import torch

from longgame.audit.estimate import auxiliary_tokens
from longgame.audit.execute import seed_job, trial_job
from longgame.audit.hf_learner import HFLearner
from longgame.audit.learner import sequence_of
from longgame.audit.plan import Plan
from longgame.audit.run import Run
from longgame.audit.walk import Walk, _check_origin, prepare_seed, stage_work
from longgame.data.sequences import Contamination, measure_contamination
from longgame.errors import NumericalError, ResumeError
from longgame.recipe import parse_recipe
from longgame.seeding import generator
from longgame.selection.base import build_selector
from longgame.selection.history import History
from longgame.selection.interventions import selector_of
from longgame.selection.policy import SelectionPolicy
from longgame.signals.texts import ImportanceRatios
from longgame.training.config import SelectionConfig
from support.run_parts import as_older_version


def recipe(**more):
    base = {
        "name": "t",
        "data": {"pool_size": 40, "items_per_skill": 1, "ood_items_per_skill": 1},
        "selectors": ["random", "lhas"],
        "seeds": [0],
        "training": {"steps": 3, "warmup_steps": 1},
        "probe": {"steps": 2, "points": 2},
    }
    return parse_recipe({**base, **more})


def learner_of(rec, seed=0):
    sequence = sequence_of(rec, seed)
    learner = HFLearner(rec, seed)
    learner.use(sequence, learner.prepare(sequence))
    return learner, sequence


def policy_of(name="random"):
    return SelectionPolicy(build_selector(name), History(), generator(0, "select", 1))


def weights(learner):
    return {name: value.detach().clone() for name, value in learner.model.named_parameters()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


SELECTION = SelectionConfig(budget=0.25, seed=7)


@pytest.mark.parametrize("adaptation", ["lora", "full"])
def test_a_fork_leaves_no_trace_and_a_saved_learner_comes_back_exactly(tmp_path, adaptation):
    rec = recipe(model={"name": "tiny", "adaptation": adaptation})
    learner, sequence = learner_of(rec)
    pool = sequence.stages[0].pool
    learner.train(pool, policy_of(), SELECTION, 3)
    before, scores = weights(learner), learner.score(sequence.tasks[:2])
    with learner.fork() as fork:
        fork.train(pool, policy_of("lhas"), SELECTION, 3)
        assert not same(before, weights(fork))
    assert same(before, weights(learner))
    assert learner.score(sequence.tasks[:2]) == scores
    learner.save(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    again, _ = learner_of(rec)
    again.load(tmp_path)
    assert same(before, weights(again))
    first = learner.train(pool, policy_of(), SELECTION, 3)
    second = again.train(pool, policy_of(), SELECTION, 3)
    np.testing.assert_array_equal(first.losses, second.losses)
    assert first.drift == second.drift


def test_training_moves_only_the_adapter_and_reports_drift_from_the_second_stage_on():
    learner, sequence = learner_of(recipe())
    before = weights(learner)
    reports = [learner.train(stage.pool, policy_of(), SELECTION, 3) for stage in sequence.stages[:2]]
    after = weights(learner)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all("lora_" in name for name in moved)
    assert np.isnan(reports[0].drift)
    assert 0 <= reports[1].drift <= 2
    assert all(report.update_norm > 0 for report in reports)


def test_frozen_signals_do_not_move_while_live_ones_do():
    learner, sequence = learner_of(recipe())
    pool = sequence.stages[0].pool.take(range(8))
    names = ("embedding", "base_loss", "cluster", "difficulty", "quality", "loss")
    first = learner.signals(pool, names)
    np.testing.assert_allclose(first["loss"], first["base_loss"], rtol=1e-5)
    learner.train(sequence.stages[0].pool, policy_of(), SELECTION, 3)
    second = learner.signals(pool, names)
    for name in names[:-1]:
        np.testing.assert_array_equal(first[name], second[name])
    assert not np.allclose(first["loss"], second["loss"])


def test_a_frozen_pass_that_was_kept_is_the_one_that_is_computed(tmp_path, monkeypatch):
    monkeypatch.setenv("LONGGAME_CACHE", str(tmp_path))
    rec = recipe()
    sequence = sequence_of(rec, 0)
    first = HFLearner(rec, 0).prepare(sequence)
    assert len(list((tmp_path / "signals").iterdir())) >= 2 * len(sequence.stages)
    again, trained = HFLearner(rec, 0), HFLearner(rec, 0)
    monkeypatch.setattr(again.source, "engine", lambda *_: pytest.fail("the model was asked"))
    for name, array in again.prepare(sequence).items():
        np.testing.assert_array_equal(array, first[name], strict=True)
    trained.train(sequence.stages[0].pool, policy_of(), SELECTION, 3)
    assert not np.array_equal(trained.prepare(sequence)["base_loss"], first["base_loss"])


def test_the_future_proxy_is_the_mean_gradient_sketch_of_the_mixture_and_is_refreshed_in_training():
    learner, sequence = learner_of(recipe(proxy={"items_per_skill": 1, "refresh_steps": 2}))
    items = sequence.proxy_pool
    pool = sequence.stages[0].pool
    first = learner.signals(pool.take([0]), ("future_proxy",))["future_proxy"]
    np.testing.assert_allclose(first, learner.signals(items, ("grad_sketch",))["grad_sketch"].mean(axis=0), atol=1e-7)
    learner.train(pool, policy_of("lhas"), SELECTION, 3)
    assert not np.array_equal(first, learner.signals(pool.take([0]), ("future_proxy",))["future_proxy"])


def test_the_target_of_a_stage_is_its_own_development_items():
    learner, sequence = learner_of(recipe(proxy={"items_per_skill": 1}))
    for stage in sequence.stages[:2]:
        assert [example.sample_id for example in stage.target_pool.examples] == [item.sample_id for item in stage.proxy]
        target = learner.signals(stage.pool.take([0]), ("target_gradient",))["target_gradient"]
        slow = learner.signals(stage.target_pool, ("grad_sketch",))["grad_sketch"].mean(axis=0)
        np.testing.assert_allclose(target, slow, atol=1e-7)
        learner.train(stage.pool, policy_of(), SELECTION, 3)


@pytest.mark.parametrize("name", ["less", "rho", "cartography"])
def test_trainings_beside_a_stage_are_charged_to_it(name):
    selector = {"less": {"share": 0.5, "epochs": 2}, "rho": {"epochs": 2}, "cartography": {"epochs": 2}}[name]
    learner, sequence = learner_of(recipe(proxy={"items_per_skill": 1}))
    policy = SelectionPolicy(build_selector(name, selector), History(), generator(0, "select", 1))
    stage = sequence.stages[0]
    report = learner.train(stage.pool, policy, SELECTION, 3)
    pool, target = int(stage.pool.tokens.sum()), int(stage.target_pool.tokens.sum())
    if name == "less":
        assert 2 * (pool + target) < report.auxiliary_tokens <= 2 * (pool + target) + pool
    else:
        assert report.auxiliary_tokens == {"rho": 2 * target + pool, "cartography": 4 * pool}[name]
    planned = sum(auxiliary_tokens(policy.selector, [stage.pool], [stage.target_pool]))
    assert report.auxiliary_tokens == pytest.approx(planned, rel=0.02)
    work = stage_work(report, policy, stage.pool, [], 1)
    live = pool if name == "rho" else 0
    assert work["scored_tokens"] == live + report.auxiliary_tokens
    assert work["score_flops"] >= report.auxiliary_flops > 0
    assert learner.source.auxiliary is None
    assert learner.source.log is None
    assert all(np.isfinite(entry.selection.scores["score"]).all() for entry in policy.rounds)


def test_the_target_follows_the_order_of_the_walk():
    learner, sequence = learner_of(recipe(proxy={"items_per_skill": 1}))
    learner.use(sequence, learner.prepare(sequence), walked=sequence.stages[::-1])
    assert learner.source.target() is sequence.stages[-1].target_pool


def test_shared_work_holds_the_contamination_of_its_data(tmp_path, caplog, monkeypatch):
    rec = recipe(seeds=[0, 1])
    run = Run.create(tmp_path / "r", rec)
    assert run.contamination is None
    seed_job(str(run.folder), None, 0, "", lambda *_: None)
    first = measure_contamination(sequence_of(rec, 0))
    assert Run.open(run.folder).contamination == first
    assert first.candidates == 200
    assert caplog.records == []
    monkeypatch.setattr(Contamination, "is_much", True)
    seed_job(str(run.folder), None, 1, "", lambda *_: None)
    second = measure_contamination(sequence_of(rec, 1))
    assert Run.open(run.folder).contamination == Contamination.total([first, second])
    assert [record.getMessage() for record in caplog.records] == [f"seed-1: {second}."]


@pytest.mark.parametrize("rounds", [1, 2])
def test_offline_and_round_wise_selection_walk_all_stages_of_a_real_model(tmp_path, rounds):
    rec = recipe(rounds=rounds, probe={"steps": 1, "points": 2}, selectors=["loss"])
    run = Run.create(tmp_path / "r", rec)
    seed_job(str(run.folder), None, 0, "", lambda *_: None)
    trial = Plan(rec).trials[0]
    trial_job(str(run.folder), None, trial, False, lambda *_: None)
    records = run.results
    assert run.trial_store(trial).finished_stages(5) == 5
    assert records[records.kind == "score"].value.dropna().between(0, 100).all()
    assert (records[records.name == "selected_examples"].value > 0).all()


def test_a_loss_that_is_not_finite_names_example_stage_and_step_and_spoils_nothing():
    learner, sequence = learner_of(recipe(training={"steps": 3, "warmup_steps": 1, "learning_rate": 1e-3}))
    pool = sequence.stages[0].pool
    learner.train(pool, policy_of(), SELECTION, 3)
    before = weights(learner)
    embedding = learner.model.get_input_embeddings()
    token = int(pool.input_ids[3][0])
    kept = embedding.weight.data[token].clone()
    embedding.weight.data[token] = float("nan")
    with pytest.raises(NumericalError) as caught:
        learner.train(pool, policy_of(), SELECTION, 3)
    embedding.weight.data[token] = kept
    message = str(caught.value)
    assert "stage 2" in message
    assert "step 1" in message
    assert any(sample_id in message for sample_id in pool.ids)
    assert same(
        {n: v for n, v in before.items() if "lora" in n}, {n: v for n, v in weights(learner).items() if "lora" in n}
    )


OTHER_ORIGINS = {"weights": "hub other/model", "device": "cuda (NVIDIA H100)", "dtype": "x", "attention": "sdpa"}


@pytest.mark.parametrize("key", OTHER_ORIGINS)
def test_a_run_does_not_go_on_with_other_weights_or_devices(tmp_path, monkeypatch, key):
    rec = recipe(selectors=["random"])
    run = Run.create(tmp_path / "r", rec)
    seed_job(str(run.folder), None, 0, "", lambda *_: None)
    describe = HFLearner.describe
    monkeypatch.setattr(HFLearner, "describe", lambda self: {**describe(self), key: OTHER_ORIGINS[key]})
    trial = Plan(rec).trials[0]
    with pytest.raises(ResumeError, match=re.escape(f"Differing: {key}: ") + ".*" + re.escape(OTHER_ORIGINS[key])):
        trial_job(str(run.folder), None, trial, False, lambda *_: None)


def test_a_run_of_an_older_version_goes_on_without_its_attention(tmp_path):
    rec = recipe(selectors=["random"])
    learner, sequence = learner_of(rec)
    store = Run.create(tmp_path / "r", rec).seed_store(0)
    prepare_seed(0, learner, sequence, store)
    as_older_version(tmp_path / "r", lambda mark: {"key": mark["key"]})
    origin = store.folder / "base" / "learner.json"
    older = {key: value for key, value in json.loads(origin.read_text()).items() if key != "attention"}
    origin.write_text(json.dumps(older))
    _check_origin(learner, sequence, store)


def test_the_shared_work_of_a_seed_is_the_same_whatever_the_adaptation(monkeypatch):
    """What lets conditions that differ in the adapter share it: B is 0, and full fine-tuning starts from the base."""
    sequence = sequence_of(recipe(), 0)
    found = []
    for model in ({"lora": {"r": 4, "alpha": 1}}, {"lora": {"r": 16}}, {"adaptation": "full"}):
        learner = HFLearner(recipe(model={"name": "tiny", **model}), 0)
        monkeypatch.setattr(learner.source, "cache", None)
        found.append((learner.prepare(sequence), learner.score(sequence.tasks)))
    for arrays, scores in found[1:]:
        assert scores == found[0][1]
        for name, array in found[0][0].items():
            np.testing.assert_array_equal(arrays[name], array, strict=True)


@pytest.mark.parametrize("selector", ["loss", "lhas"])
def test_the_first_choice_from_a_whole_pool_is_computed_once_and_changes_nothing(tmp_path, monkeypatch, selector):
    monkeypatch.setenv("LONGGAME_CACHE", str(tmp_path))
    offline = SelectionConfig(budget=0.25, rounds=1, seed=7)
    asked, ends, picks = [], [], []
    for kept in (False, True, True):
        learner, sequence = learner_of(recipe(rounds=1))
        if not kept:
            monkeypatch.setattr(learner.source, "cache", None)
        engine, sizes = learner.source.engine, []

        class Counting:
            def __call__(self, pool, names, engine=engine, sizes=sizes):
                sizes.append(len(pool))
                return engine(pool, names)

            def __getattr__(self, name, engine=engine):
                return getattr(engine, name)

        monkeypatch.setattr(learner.source, "engine", Counting())
        pool = sequence.stages[0].pool
        policy = policy_of(selector)
        report = learner.train(pool, policy, offline, 3)
        asked.append(sizes.count(len(pool)))
        ends.append((weights(learner), report.losses))
        picks.append(policy.rounds[0].picked_ids)
        learner.train(pool, policy_of(selector), offline, 3)
        assert sizes.count(len(pool)) == asked[-1] + 1  # a model that has learned is always asked
    assert asked[0] == 1
    assert asked[2] == 0
    assert picks[0] == picks[1] == picks[2]
    for end, losses in ends[1:]:
        assert same(ends[0][0], end)
        np.testing.assert_array_equal(ends[0][1], losses)


def test_proxy_items_and_earlier_stages_can_be_learned_and_measured_beside_a_stages_own_candidates():
    spec = {"name": "loss", "replay": 0.2, "min_cluster_share": 0.1, "proxy_as_data": True}
    rec = recipe(selectors=[spec], proxy={"items_per_skill": 1})
    learner, sequence = learner_of(rec)
    pool = sequence.stages[1].pool
    policy = SelectionPolicy(selector_of(rec.selectors[0]), History(), generator(0, "select", 1))
    reserve = Walk(rec, 0, learner, sequence, policy).reserve(2, pool)
    policy.begin_stage(generator(0, "select", 2), reserve)
    report = learner.train(pool, policy, SelectionConfig(budget=0.5, rounds=1, seed=7), 2)
    learnable = policy.learnable(pool)
    chosen = learnable.take([learnable.index[name] for name in policy.rounds[0].picked_ids])
    earlier = {example.sample_id for example in sequence.stages[0].candidates}
    proxy = {item.sample_id for stage in sequence.stages for item in stage.proxy}
    assert earlier & set(chosen.ids)
    assert proxy & set(chosen.ids)
    assert report.selected_tokens == chosen.tokens.sum() <= 0.5 * pool.tokens.sum()
    frozen = learner.signals(chosen, ("cluster", "difficulty", "quality", "embedding"))
    assert frozen["difficulty"].min() >= 0
    assert frozen["difficulty"].max() <= 1


@pytest.mark.parametrize(("name", "rounds"), [("dsir", "step"), ("dsir", 1), ("dedup-exact", 2), ("dedup-minhash", 1)])
def test_methods_of_texts_are_fitted_to_each_stage(name, rounds):
    learner, sequence = learner_of(recipe())
    for number, stage in enumerate(sequence.stages[:2]):
        policy = policy_of(name)
        learner.train(stage.pool, policy, SelectionConfig(budget=0.25, seed=7, rounds=rounds), 3)
        assert all({*entry.candidate_ids} <= {*stage.pool.ids} for entry in policy.rounds)
        if name == "dsir":  # the target is what the stage itself is validated on
            ratios = ImportanceRatios(stage.target_pool.examples, [stage.pool])
            entry = policy.rounds[-1]
            rows = [stage.pool.index[sample_id] for sample_id in entry.candidate_ids]
            expected = ratios.of(stage.pool)[0][rows].astype(np.float32)
            assert entry.signals["dsir_ratio"].tolist() == expected.tolist(), number
