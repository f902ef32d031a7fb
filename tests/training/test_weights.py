"""Weights of a selection and of a dataset in the loss, against gradients that autograd gives example by example."""

import dataclasses

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import Trainer

import longgame
from longgame.errors import DataError, PluginError, RecipeError
from longgame.recipe import TrainingSpec
from longgame.selection.history import Selection
from longgame.signals.base import Signals
from longgame.training.candidates import pool_of
from longgame.training.config import SelectionConfig
from longgame.training.stage import run_stage
from longgame.training.trainer import SelectionMixin
from support.trainers import losses, make_trainer, rows_of, sft
from support.training import PAD, Coin, make_model, make_policy, make_pool

ONE_STEP = {"max_steps": 1, "learning_rate": 1.0, "optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}


def factor_of(sample_id):
    """A weight by the id."""
    return 0.2 + (31 * sum(map(ord, sample_id)) % 7) / 2


class Weighted(Coin):
    """A draw whose picks have weights by their ids."""

    name = "weighted"

    def select(self, pool, signals, history, budget, rng):
        picked = super().select(pool, signals, history, budget, rng)
        return dataclasses.replace(picked, weights=np.array([factor_of(pool.ids[row]) for row in picked.rows]))


class Unit(Coin):
    name = "unit"

    def select(self, pool, signals, history, budget, rng):
        picked = super().select(pool, signals, history, budget, rng)
        return dataclasses.replace(picked, weights=np.ones(len(picked.rows)))


def trainable(model):
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def expected_step(model, pool, rows, weights):
    """Loss Σ w·NLL / tokens and its gradient, one example at a time."""
    total, gradient = 0.0, {name: torch.zeros_like(value) for name, value in trainable(model).items()}
    tokens = sum(len(pool.predicted(row)) for row in rows)
    for row, weight in zip(rows, weights, strict=True):
        ids, places = torch.tensor(np.array(pool.input_ids[row])), torch.tensor(pool.predicted(row))
        logits = model(input_ids=ids[None]).logits[0]
        loss = torch.nn.functional.cross_entropy(logits[places - 1], ids[places], reduction="sum")
        model.zero_grad()
        loss.backward()
        total += weight * loss.item() / tokens
        for name, value in model.named_parameters():
            if value.requires_grad:
                gradient[name] += weight / tokens * value.grad
    model.zero_grad()
    return total, gradient


def perturbed(seed=0):
    """A model whose LoRA factors are both non-zero."""
    model = make_model(seed)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    return model


def check_step(trainer, model, pool, weight_of):
    before = trainable(model)
    rows = [pool.index[name] for name in trainer_picks(trainer, run=True)]
    after, start = trainable(model), perturbed()
    loss, gradient = expected_step(start, pool, rows, [weight_of(pool.ids[row]) for row in rows])
    assert losses(trainer)[0] == pytest.approx(loss, rel=1e-4)
    for name, value in gradient.items():
        torch.testing.assert_close(before[name] - after[name], value, rtol=1e-3, atol=1e-6)


def trainer_picks(trainer, run=False):
    if run:
        trainer.train()
    pool, rows = trainer.selection_picks
    return [pool.ids[row] for row in rows]


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("accumulation", [1, 3, 8])
def test_weights_multiply_each_examples_gradient(tmp_path, tokenizer, accumulation, counts):
    model, pool = perturbed(), make_pool(40)
    model.base_model.model.accepts_loss_kwargs = counts
    args = {**ONE_STEP, "per_device_train_batch_size": 2, "gradient_accumulation_steps": accumulation}
    trainer = make_trainer(tmp_path, tokenizer, pool=pool, model=model, selector=Weighted(), args=args)
    check_step(trainer, model, pool, factor_of)


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ({}, {}),
        ({"padding_free": True, "max_length": None}, {}),
        ({"packing": True, "num_train_epochs": 1}, {"rounds": 1, "budget": 0.5}),
    ],
    ids=["padded", "padding-free", "packed"],
)
def test_weights_reach_the_loss_of_trl(tmp_path, tokenizer, args, options):
    model = perturbed()
    trainer = sft(tmp_path, tokenizer, model=model, selector=Weighted(), args={**ONE_STEP, **args}, **options)
    rows = [trainer.train_dataset[row] for row in range(len(trainer.train_dataset))]
    check_step(trainer, model, pool_of(rows), factor_of)


@pytest.mark.parametrize("selector", [Coin, Weighted])
def test_weights_of_a_column_multiply_those_of_the_selector(tmp_path, tokenizer, selector):
    model, pool = perturbed(), make_pool(40)
    rows = [{**row, "longgame_weight": None if place % 3 else 2.5} for place, row in enumerate(rows_of(pool))]
    trainer = make_trainer(
        tmp_path, tokenizer, model=model, train=Dataset.from_list(rows), selector=selector(), args=ONE_STEP
    )

    def weight_of(sample_id):
        factor = factor_of(sample_id) if selector is Weighted else 1.0
        return factor * (1.0 if pool.index[sample_id] % 3 else 2.5)

    check_step(trainer, model, pool, weight_of)


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("other_loss", [False, True])
def test_weights_multiply_gradients_in_a_stage(monkeypatch, accumulation, other_loss, counts):
    model, pool = perturbed(), make_pool(24)
    model.base_model.model.accepts_loss_kwargs = counts
    monkeypatch.setattr("longgame.training.stage.has_other_loss", lambda _model: other_loss)
    spec = TrainingSpec(steps=1, learning_rate=1e-3, warmup_steps=0, accumulation=accumulation, max_grad_norm=1e9)
    policy = make_policy(Weighted())
    gradients = {}
    monkeypatch.setattr(
        "longgame.training.stage.GradientRecorder.record",
        lambda self: gradients.update({name: value.grad.clone() for name, value in self._parameters}),
    )
    report = _stage(model, pool, policy, spec)
    decision = policy.rounds[0]
    rows = decision.selection.rows.tolist()
    start = perturbed()
    loss, expected = expected_step(start, pool, rows, [factor_of(pool.ids[row]) for row in rows])
    assert report.losses[0] == pytest.approx(loss, rel=1e-5)
    for name, value in expected.items():
        torch.testing.assert_close(gradients[name], value, rtol=1e-3, atol=1e-6)


def _stage(model, pool, policy, spec):
    return run_stage(
        model,
        pad_token_id=PAD,
        pool=pool,
        policy=policy,
        selection=SelectionConfig(budget=0.5, rounds=1, seed=3),
        spec=spec,
        scorer=lambda part, _names: Signals(part.ids, {}),
    )


def test_unit_weights_train_bit_for_bit_as_none(tmp_path, tokenizer, pool):
    runs = []
    for selector in (Coin(), Unit()):
        trainer = make_trainer(tmp_path, tokenizer, selector=selector, args={"gradient_accumulation_steps": 2})
        trainer.train()
        runs.append((losses(trainer), trainable(trainer.model)))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(value, runs[1][1][name]) for name, value in runs[0][1].items())
    spec = TrainingSpec(steps=3, learning_rate=1e-2)
    reports = [_stage(make_model(), pool, make_policy(selector), spec) for selector in (Coin(), Unit())]
    np.testing.assert_allclose(reports[0].losses, reports[1].losses, rtol=1e-6)


@pytest.mark.parametrize("epochs", [1, 2])
def test_every_pass_over_a_pick_has_its_weight(tmp_path, tokenizer, epochs):
    trainer = make_trainer(
        tmp_path, tokenizer, pool=make_pool(24), selector=Weighted(), rounds=2, budget=0.5, epochs=epochs,
        args={"max_steps": 4},
    )  # fmt: skip
    batches = []
    dealt = trainer._selection_collate
    trainer._selection_collate = lambda pool, rows: (
        batches.append((tuple(pool.ids[row] for row in rows), trainer.selection_feed.weights)),
        dealt(pool, rows),
    )[1]
    trainer.train()
    assert batches
    for ids, weights in batches:
        assert sorted(weights.tolist()) == sorted(map(factor_of, ids))


def test_weights_are_restored_with_the_picks(tmp_path, tokenizer):
    args = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4}
    options = {"pool": make_pool(40), "selector": Weighted(), "rounds": 2, "budget": 0.5}
    whole = make_trainer(tmp_path / "a", tokenizer, args=args, **options)
    whole.train()
    resumed = make_trainer(tmp_path / "b", tokenizer, args=args, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-1"))
    assert losses(resumed) == losses(whole)


def test_picks_on_disk_have_their_weights(tmp_path, tokenizer):
    trainer = make_trainer(tmp_path, tokenizer, selector=Weighted(), args={"max_steps": 2, "save_strategy": "epoch"})
    trainer.train()
    table = longgame.read_picks(tmp_path)
    assert table["weight"].tolist() == [factor_of(sample_id) for sample_id in table["sample_id"]]
    plain = make_trainer(tmp_path, tokenizer, selector=Coin(), args={"max_steps": 2, "save_strategy": "epoch"})
    plain.train()
    assert "weight" not in longgame.read_picks(tmp_path)


@pytest.mark.parametrize("selector", ["importance", "craig", "gradmatch", "tagcos"])
def test_weights_of_the_field_reach_the_loss(tmp_path, tokenizer, selector):
    model, pool = perturbed(), make_pool(40)
    trainer = make_trainer(
        tmp_path,
        tokenizer,
        pool=pool,
        model=model,
        selector=selector,
        args={**ONE_STEP, "per_device_train_batch_size": 4},
    )
    decisions = trainer.selection_policy.rounds
    check_step(trainer, model, pool, lambda sample_id: dict(
        zip(decisions[0].picked_ids, decisions[0].selection.weights, strict=True)
    )[sample_id])  # fmt: skip
    assert len({*np.round(decisions[0].selection.weights, 6)}) > 1


class OwnLoss(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


class Behind(SelectionMixin, OwnLoss):
    pass


class Before(SelectionMixin, Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return model(**inputs).loss


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"args": {"label_smoothing_factor": 0.1}}, "label_smoothing_factor"),
        ({"compute_loss_func": lambda *_a, **_k: None}, "compute_loss_func"),
        ({"cls": Behind}, "compute_loss of its own"),
        ({"cls": Before}, "did not apply them"),
    ],
)
def test_losses_that_weights_cannot_enter_are_refused(tmp_path, tokenizer, options, message):
    with pytest.raises(RecipeError, match=message):
        make_trainer(tmp_path, tokenizer, selector=Weighted(), **options).train()


def test_losses_of_trl_that_weights_cannot_enter_are_refused(tmp_path, tokenizer):
    with pytest.raises(RecipeError, match="loss_type='dft'"):
        sft(tmp_path, tokenizer, selector=Weighted(), args={"loss_type": "dft"}).train()


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_a_column_of_unusable_weights_is_refused(tmp_path, tokenizer, weight):
    rows = [{**row, "longgame_weight": weight if place == 3 else 1.0} for place, row in enumerate(rows_of(make_pool()))]
    with pytest.raises(DataError, match="id003 has the longgame_weight"):
        make_trainer(
            tmp_path, tokenizer, train=Dataset.from_list(rows), selector=Coin(), rounds=1, args={"max_steps": 1}
        ).train()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "shape"),
        ([[1.0, 1.0]], "shape"),
        ([1.0, float("nan")], "pick 2 of 2 is nan"),
        ([0.0, 1.0], "pick 1 of 2 is 0.0"),
        ([1.0, -2.0], "is -2.0"),
        ([1.0, float("inf")], "is inf"),
        (["a", "b"], "array of <U1"),
        ([True, True], "array of bool"),
        ([[1.0], 1.0], "no array"),
    ],
)
def test_weights_are_one_positive_number_per_pick(weights, message):
    pool = make_pool(4)
    with pytest.raises(PluginError, match=message):
        Selection.of(pool, np.array([0, 1]), weights=weights)

    class Wrong(Coin):
        def select(self, pool, signals, history, budget, rng):
            return Selection(np.array([0, 1]), int(pool.costs[:2].sum()), {}, weights)

    with pytest.raises(PluginError, match="selector 'coin': .*" + message):
        make_policy(Wrong()).choose(pool, int(pool.costs.sum()), lambda part, _names: Signals(part.ids, {}))
