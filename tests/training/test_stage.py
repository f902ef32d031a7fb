"""One stage: the same numbers as a bare loop, the budget kept, nothing left behind."""

import copy
import dataclasses
import functools
import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from longgame.errors import BudgetError, ModelError, NumericalError, RecipeError
from longgame.models.fused import ThinProducts
from longgame.recipe import TrainingSpec
from longgame.seeding import generator
from longgame.selection.base import Reserve, build_selector
from longgame.selection.history import History
from longgame.selection.interventions import Replay
from longgame.selection.policy import SelectionPolicy
from longgame.signals.base import Signals
from longgame.training import stage as stages
from longgame.training.config import SelectionConfig
from longgame.training.schedule import stage_order
from longgame.training.stage import learning_rate_share, run_stage
from support.training import PAD, Coin, Peek, loss_scorer, make_model, make_policy, make_pool

SPEC = TrainingSpec(steps=6, learning_rate=2e-2, warmup_steps=2)


def stage(model, pool, selector=None, spec=SPEC, scorer=None, on_step=None, seed=5, **options):
    policy = make_policy(selector, seed)
    report = run_stage(
        model,
        pad_token_id=PAD,
        pool=pool,
        policy=policy,
        selection=SelectionConfig(**{"seed": seed, **options}),
        spec=spec,
        scorer=scorer or (lambda pool, names: Signals(pool.ids, {})),
        on_step=on_step,
        where="stage 3",
    )
    return report, policy


def weights(model):
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def bare_loop(model, pool, steps, seed, spec, selector_seed):
    """What the stage should do, written down without a trainer: random selection of everything, AdamW, clipping."""
    parameters = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=spec.learning_rate, weight_decay=0.0, fused=True)
    chunks = np.array_split(stage_order(pool, generator(seed, "candidates")), steps)
    rng = generator(selector_seed, "select")
    losses, model_ = [], model.get_base_model()
    model.train()
    for step, chunk in enumerate(chunks):
        rows = chunk[rng.permutation(len(chunk))]
        width = max(len(pool.input_ids[row]) for row in rows)
        ids = torch.full((len(rows), width), PAD)
        keep = torch.zeros(len(rows), width, dtype=torch.bool)
        for i, row in enumerate(rows):
            length, start = len(pool.input_ids[row]), int(pool.prompt_tokens[row])
            ids[i, :length] = torch.as_tensor(pool.input_ids[row])
            keep[i, start:length] = True
        hidden = model_.model(input_ids=ids).last_hidden_state[:, :-1][keep[:, 1:]]
        logits = model_.lm_head(hidden)
        loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:][keep[:, 1:]], reduction="sum") / keep[:, 1:].sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, spec.max_grad_norm)
        warm = (step + 1) / 2 if step < 2 else 1 - 0.9 * (step - 1) / 4
        for group in optimizer.param_groups:
            group["lr"] = spec.learning_rate * warm
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_full_budget_equals_a_bare_adamw_loop_bit_for_bit(pool):
    ours, theirs = make_model(), make_model()
    report, _ = stage(ours, pool, budget=1.0)
    expected = bare_loop(theirs, pool, 6, 5, SPEC, 5)
    assert report.losses.tolist() == expected
    for name, value in weights(theirs).items():
        assert torch.equal(weights(ours)[name], value), name


def test_learning_rate_warms_up_and_ends_at_its_final_share():
    shares = [learning_rate_share(step, 6, 2, 0.1) for step in range(6)]
    np.testing.assert_allclose(shares, [0.5, 1.0, 0.775, 0.55, 0.325, 0.1], rtol=1e-12)
    assert learning_rate_share(0, 4, 0, 0.0) == 0.75


def test_without_the_shortcut_a_stage_learns_the_same(pool, monkeypatch):
    quick, _ = stage(make_model(), pool)
    monkeypatch.setattr(stages, "has_other_loss", lambda model: True)
    plain, _ = stage(make_model(), pool)
    np.testing.assert_allclose(plain.losses, quick.losses, rtol=1e-5)


@pytest.mark.parametrize("rounds", ["step", 1, 3])
@pytest.mark.parametrize("budget", [0.25, 0.5, 1.0])
def test_rounds_spend_the_budget_to_within_one_example(rounds, budget):
    pool = make_pool(60)
    report, policy = stage(make_model(), pool, rounds=rounds, budget=budget)
    assert abs(report.selected_tokens - budget * pool.tokens.sum()) <= pool.tokens.max()
    assert report.selected_tokens == report.optimiser_tokens
    assert report.selected_tokens == sum(done.selection.tokens for done in policy.rounds)
    assert report.candidate_tokens == sum(
        pool.tokens[[pool.index[i] for i in r.candidate_ids]].sum() for r in policy.rounds
    )
    assert len(policy.rounds) == (6 if rounds == "step" else rounds)
    assert report.losses.shape == (6,)
    assert np.isfinite(report.losses).all()
    assert np.isnan(report.drift)


def test_candidate_stream_is_the_same_for_every_selector(pool):
    model = make_model()
    _, random_ = stage(make_model(), pool, Coin())
    _, peek = stage(model, pool, Peek(), scorer=loss_scorer(model))
    assert [r.candidate_ids for r in random_.rounds] == [r.candidate_ids for r in peek.rounds]
    assert sorted(i for r in random_.rounds for i in r.candidate_ids) == list(pool.ids)


@pytest.mark.parametrize("rounds", ["step", 2])
def test_accumulation_is_memory_not_mathematics(rounds):
    pool = make_pool(60)
    runs = []
    for accumulation in (1, 2, 4):
        model = make_model()
        spec = SPEC.model_copy(update={"accumulation": accumulation})
        report, policy = stage(model, pool, Peek(), spec=spec, scorer=loss_scorer(model), rounds=rounds)
        runs.append((report, [r.picked_ids for r in policy.rounds]))
    for report, picks in runs[1:]:
        assert picks == runs[0][1]
        np.testing.assert_allclose(report.losses, runs[0][0].losses, rtol=1e-5)


class Weighted(Coin):
    """Coin's picks with weights from 0.5 to 2."""

    name = "weighted"

    def select(self, *arguments):
        picks = super().select(*arguments)
        return dataclasses.replace(picks, weights=np.linspace(0.5, 2, len(picks.rows)))


@pytest.mark.parametrize(
    "memory",
    [
        {"micro_tokens": 40},
        {"micro_tokens": 1},
        {"micro_tokens": 60, "accumulation": 2},
        {"gradient_checkpointing": True},
    ],
    ids=str,
)
def test_smaller_passes_are_memory_not_mathematics(pool, memory, monkeypatch):
    widest, loss = [], stages.response_loss

    def watched(model, inputs, *rest):
        widest.append(inputs["labels"].shape)
        return loss(model, inputs, *rest)

    monkeypatch.setattr(stages, "response_loss", watched)
    plain, small = make_model(), make_model()
    report, policy = stage(plain, pool, Weighted(), budget=0.8)
    widest.clear()
    other, other_policy = stage(small, pool, Weighted(), spec=SPEC.model_copy(update=memory), budget=0.8)
    assert [a.picked_ids for a in policy.rounds] == [b.picked_ids for b in other_policy.rounds]
    np.testing.assert_allclose(other.losses, report.losses, rtol=1e-4)
    for name, value in weights(small).items():
        torch.testing.assert_close(value, weights(plain)[name], rtol=1e-3, atol=1e-5)
    if "micro_tokens" in memory:
        assert all(rows * width <= memory["micro_tokens"] or rows == 1 for rows, width in widest)
        assert len(widest) > SPEC.steps
    assert not any(getattr(module, "gradient_checkpointing", False) for module in small.modules())


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_training_that_does_not_fit_is_one_sentence(pool, monkeypatch, error):
    def fill(*_):
        raise error

    monkeypatch.setattr(stages, "response_loss", fill)
    with pytest.raises(ModelError, match=r"^stage 3, step 1 of 6: .*Set training.micro_tokens lower, .*--workers\.$"):
        stage(make_model(), pool)


def test_a_stage_trains_on_one_of_several_gpus(pool, monkeypatch):
    setup = stages.TrainingArguments._setup_devices.func

    def two_gpus(self):
        device = setup(self)
        self._n_gpu = 2
        return device

    two = functools.cached_property(two_gpus)
    two.__set_name__(stages.TrainingArguments, "_setup_devices")
    monkeypatch.setattr(stages.TrainingArguments, "_setup_devices", two)
    several, alone = make_model(), make_model()
    stage(several, pool)
    monkeypatch.undo()
    stage(alone, pool)
    assert all(torch.equal(value, weights(alone)[name]) for name, value in weights(several).items())


def test_more_micro_batches_than_picks_changes_nothing():
    pool = make_pool(18)
    plain, _ = stage(make_model(), pool)
    many, policy = stage(make_model(), pool, spec=SPEC.model_copy(update={"accumulation": 3}))
    assert min(len(r.picked_ids) for r in policy.rounds) < 3
    np.testing.assert_allclose(many.losses, plain.losses, rtol=1e-5)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_stage_does_not_need_a_model_that_counts_tokens(accumulation):
    pool, spec = make_pool(18), SPEC.model_copy(update={"accumulation": accumulation})
    uncounted = make_model()
    uncounted.base_model.model.accepts_loss_kwargs = False
    expected, _ = stage(make_model(), pool, spec=spec)
    report, _ = stage(uncounted, pool, spec=spec)
    assert report.losses.tolist() == expected.losses.tolist()


def test_scoring_and_on_step_see_the_model_in_eval_mode(pool):
    scored, steps, model = [], [], make_model(dropout=0.5)
    model.eval()

    def on_step(info):
        steps.append((info, model.training))

    report, _ = stage(model, pool, Peek(), scorer=loss_scorer(model, scored), on_step=on_step)
    assert not any(training for _, _, training in scored)
    assert not any(training for _, training in steps)
    assert not model.training
    infos = [info for info, _ in steps]
    assert [info.step for info in infos] == list(range(7))
    assert np.isnan(infos[0].loss)
    assert infos[0].selected_tokens == 0
    assert [info.loss for info in infos[1:]] == report.losses.tolist()
    assert infos[-1].selected_tokens == report.optimiser_tokens


def test_a_layer_left_in_eval_mode_trains_at_the_next_step(pool):
    model, passes = make_model(), []

    class Careless(Coin):
        def select(self, *arguments):
            list(model.modules())[-1].eval()
            return super().select(*arguments)

    handle = model.register_forward_pre_hook(
        lambda module, *_: passes.append(all(part.training for part in module.modules()))
    )
    stage(model, pool, Careless())
    handle.remove()
    assert passes == [True] * SPEC.steps
    assert {"train", "zero_grad"}.isdisjoint(vars(model))


def test_global_draws_of_on_step_do_not_reach_dropout(pool):
    quiet, _ = stage(make_model(dropout=0.5), pool)
    loud, _ = stage(make_model(dropout=0.5), pool, on_step=lambda info: torch.rand(info.step + 1))
    assert quiet.losses.tolist() == loud.losses.tolist()


def test_stage_has_a_fresh_optimizer_and_repeats_exactly(pool):
    model = make_model()
    start = copy.deepcopy(weights(model))
    runs = []
    for _ in range(2):
        with torch.no_grad():
            for name, value in model.named_parameters():
                if value.requires_grad:
                    value.copy_(start[name])
        runs.append(stage(model, pool)[0])
    assert runs[0].losses.tolist() == runs[1].losses.tolist()
    np.testing.assert_array_equal(runs[0].gradient_gram, runs[1].gradient_gram)


def test_three_runs_leave_nothing_but_new_weights(pool, capfd, tmp_path, monkeypatch):
    model = make_model()
    monkeypatch.chdir(tmp_path)
    stage(model, pool)
    capfd.readouterr()
    modules = list(model.modules())

    def snapshot():
        return [
            {key: len(value) if hasattr(value, "__len__") else id(value) for key, value in vars(module).items()}
            for module in modules
        ]

    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    before = snapshot()
    forward = model.forward.__func__
    for _ in range(3):
        stage(model, pool, on_step=lambda info: None)
    assert snapshot() == before
    assert model.forward.__func__ is forward
    assert all(value.grad is None for value in model.parameters())
    drawn = (random.random(), np.random.rand(), torch.rand(1).item())  # noqa: NPY002
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    assert drawn == (random.random(), np.random.rand(), torch.rand(1).item())  # noqa: NPY002
    assert capfd.readouterr() == ("", "")
    assert not list(Path(tmp_path).iterdir())


def test_failed_stage_leaves_the_model_clean(pool):
    model = make_model()
    keys = [set(vars(module)) for module in model.modules()]

    def fail(info):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage(model, pool, on_step=fail)
    assert [set(vars(module)) for module in model.modules()] == keys


def test_nan_loss_names_stage_step_and_examples(pool):
    model = make_model()
    order = stage_order(pool, generator(5, "candidates"))
    bad = int(order[10])  # in the third step's chunk of four
    ids = [np.full_like(ids, 3) if row == bad else np.where(ids == 3, 4, ids) for row, ids in enumerate(pool.input_ids)]
    pool = dataclasses.replace(pool, input_ids=tuple(ids))
    with torch.no_grad():
        model.get_input_embeddings().weight[3] = float("nan")
    with pytest.raises(NumericalError, match=rf"stage 3, step 3 of 6: the loss is nan .*{pool.ids[bad]}"):
        stage(model, pool, budget=1.0)
    assert all(torch.isfinite(value).all() for value in weights(model).values())


def test_an_infinite_gradient_is_refused_before_the_step(pool):
    model = make_model()
    name, parameter = next((n, p) for n, p in model.named_parameters() if "lora_B" in n)
    before = weights(model)
    parameter.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NumericalError, match="step 1 of 6: the gradient norm is"):
        stage(model, pool)
    assert torch.equal(weights(model)[name], before[name])


def test_gradient_gram_is_that_of_gradients_before_clipping(pool, monkeypatch):
    model, gradients = make_model(), []
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    original = torch.nn.utils.clip_grad_norm_

    def clip(parameters, *limit):
        parts = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in trained]
        gradients.append(torch.cat([part.reshape(-1) for part in parts]).double())
        return original(parameters, *limit)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
    report, _ = stage(model, pool)
    rows = torch.stack(gradients)
    gram, size = report.gradient_gram, sum(parameter.numel() for parameter in trained)
    assert report.gradient_width == size
    np.testing.assert_allclose(gram, (rows @ rows.T).numpy(), rtol=1e-4, atol=1e-9)
    monkeypatch.setattr(stages, "EXACT_FLOATS", 0)
    sketched, _ = stage(make_model(), pool)
    scale = np.sqrt(np.outer(np.diag(gram), np.diag(gram)))
    assert sketched.gradient_width == stages.SKETCH_DIM
    assert np.abs((sketched.gradient_gram - gram) / scale).max() < 6 * np.sqrt(2 / stages.SKETCH_DIM)
    assert not np.array_equal(sketched.gradient_gram, gram)


def test_full_fine_tuning_in_bfloat16_moves_every_weight(pool):
    model = make_model(lora=False).bfloat16()
    before = weights(model)
    report, _ = stage(model, pool)
    assert np.isfinite(report.losses).all()
    moved = [not torch.equal(before[name], value) for name, value in weights(model).items()]
    assert all(moved)
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}


def test_seconds_are_reported_by_part(pool):
    report, _ = stage(make_model(), pool, on_step=lambda info: None)
    assert set(report.seconds) == {"train", "select", "diagnose", "callbacks"}
    assert all(report.seconds[part] > 0 for part in ("train", "select", "callbacks"))
    assert report.seconds["diagnose"] == 0  # this policy measures no gradients for diagnostics


def test_too_small_a_pool_and_a_frozen_model_are_refused():
    with pytest.raises(BudgetError, match="stage 3: 4 candidates cannot be dealt to 6 steps"):
        stage(make_model(), make_pool(4))
    with pytest.raises(ModelError, match="no trainable parameter"):
        stage(make_model().requires_grad_(False), make_pool(12))


@pytest.mark.parametrize("rounds", ["step", 2])
def test_stage_trains_on_replayed_picks_too(monkeypatch, rounds):
    both = make_pool()
    half = len(both) // 2
    candidates, earlier = both.take(range(half)), both.take(range(half, len(both)))
    policy = SelectionPolicy(Replay(build_selector("random"), 0.4), History(), np.random.default_rng(0))
    policy.begin_stage(np.random.default_rng(1), Reserve(candidates, (earlier,), None, 1, np.random.default_rng(2)))
    learned = []

    def spy(pool, rows, pad):
        batch = padded(pool, rows, pad)
        learned.extend(pool.ids[row] for row in rows)
        for row, ids in zip(rows, batch["input_ids"].tolist(), strict=True):
            tokens = both.input_ids[both.index[pool.ids[row]]].tolist()
            assert ids[: len(tokens)] == tokens
        return batch

    padded = stages.padded_batch
    monkeypatch.setattr(stages, "padded_batch", spy)
    report = run_stage(
        make_model(),
        pad_token_id=PAD,
        pool=candidates,
        policy=policy,
        selection=SelectionConfig(budget=0.5, rounds=rounds, seed=3),
        spec=TrainingSpec(steps=2, warmup_steps=1),
        scorer=lambda pool, names: Signals(pool.ids, {}),
    )
    picks = [name for entry in policy.rounds for name in entry.picked_ids]
    assert sorted(learned) == sorted(picks)
    assert set(picks) & set(candidates.ids)
    assert set(picks) & set(earlier.ids)
    assert report.selected_tokens == report.optimiser_tokens == sum(both.tokens[both.index[name]] for name in picks)
    assert report.selected_tokens <= 0.5 * candidates.tokens.sum()
    assert report.candidate_tokens >= candidates.tokens.sum()


def test_a_stage_leaves_the_temporary_directory_empty(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    looks = []
    stage(make_model(), make_pool(), on_step=lambda info: looks.append(list(tmp_path.iterdir())))
    assert looks
    assert [paths for paths in [*looks, list(tmp_path.iterdir())] if paths] == []


def test_a_trial_in_several_processes_is_refused(monkeypatch):
    monkeypatch.setattr(stages.TrainingArguments, "world_size", property(lambda self: 2))
    with pytest.raises(RecipeError, match="a trial of an audit trains in one process, and there are 2"):
        stage(make_model(), make_pool())


def test_a_stage_over_a_bfloat16_base_trains_by_thin_products(monkeypatch):
    calls = []
    apply = ThinProducts.apply
    monkeypatch.setattr(ThinProducts, "apply", lambda *inputs: calls.append(1) or apply(*inputs))
    for dtype, expected in ((torch.float32, 0), (torch.bfloat16, 6 * 14)):
        model = make_model().to(dtype)
        for name, weight in model.named_parameters():
            weight.data = weight.data.float() if "lora_" in name else weight.data
        report, _ = stage(model, make_pool(24))
        assert np.isfinite(report.losses).all()
        assert len(calls) == expected
        assert not any("forward" in vars(module) for module in model.modules())
