"""Trainings beside the trial's own: the model stays as it was, epochs are kept, a killed run ends equal."""

import dataclasses

import numpy as np
import pytest
import torch

from longgame.errors import BudgetError, ModelError, RecipeError, ResumeError
from longgame.models.lora import canonical_name
from longgame.seeding import generator, stream_seed
from longgame.selection.base import build_selector
from longgame.selection.history import History
from longgame.signals.auxiliary import AuxiliarySpec
from longgame.signals.base import Signals
from longgame.signals.cache import model_fingerprint
from longgame.training import auxiliary
from longgame.training.auxiliary import auxiliary_run, drawn_rows, with_adapter
from longgame.training.feed import deal
from support.training import PAD, make_model, make_pool

SPEC = AuxiliarySpec(share=1, epochs=3, learning_rate=1e-2, batch=6)


def weights(model):
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def run(model, pool, spec=SPEC, seed=3, **options):
    """The epochs of a run: weights, moments, mean learning rate."""
    epochs = []

    def at_epoch(epoch):
        assert not model.training
        epochs.append((weights(model), dict(epoch.adam.moments), epoch.learning_rate, epoch.losses))

    report = auxiliary_run(model, pool, spec, pad_token_id=PAD, seed=seed, at_epoch=at_epoch, **options)
    return epochs, report


def same(left, right):
    assert len(left) == len(right)
    for (one, adam, rate, losses), (other, other_adam, other_rate, other_losses) in zip(left, right, strict=True):
        assert rate == other_rate
        assert losses == other_losses
        assert all(torch.equal(one[name], other[name]) for name in one)
        for name, moment in adam.items():
            assert torch.equal(moment.first, other_adam[name].first)
            assert moment.step == other_adam[name].step
            assert torch.equal(moment.second, other_adam[name].second)
            assert moment.betas == other_adam[name].betas


@pytest.mark.parametrize("lora", [True, False])
def test_auxiliary_run_leaves_the_model_as_it_was(lora):
    model, pool = make_model(lora=lora), make_pool()
    model.train()
    before, state = model_fingerprint(model), torch.random.get_rng_state()
    epochs, report = run(model, pool)
    assert model_fingerprint(model) == before
    assert model.training
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(value.grad is None for value in model.parameters())
    assert len(epochs) == 3
    assert report.examples == 24
    assert report.tokens == 3 * pool.tokens.sum()
    assert not all(torch.equal(value, epochs[0][0][name]) for name, value in weights(model).items())


def bare_loop(model, pool, seed, spec):
    """Every epoch learns all rows once with one AdamW: written down without a trainer."""
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=spec.learning_rate, weight_decay=0.0, fused=True)
    per_epoch, step, rates = round(len(pool) / spec.batch), 0, []
    total, warm = per_epoch * spec.epochs, 1
    for number in range(1, spec.epochs + 1):
        epoch_seed = stream_seed(seed, "auxiliary", "epoch", number)
        rng, tokens = generator(epoch_seed, "order"), int(pool.tokens.sum())
        picked = build_selector("random").select(pool, Signals(pool.ids, {}), History(), tokens, rng).rows
        dealt = deal(
            pool.tokens[picked], per_epoch, 1, generator(stream_seed(epoch_seed, "selection", "deal"), "deal", 0)
        )
        used = []
        for places in dealt:
            rows = picked[places]
            losses, count = 0.0, 0
            for row in rows:
                ids = torch.tensor(pool.input_ids[row])[None]
                logp = model(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
                first = int(pool.prompt_tokens[row]) - 1
                losses, count = losses - logp[first:].sum(), count + len(logp) - first
            (losses / count).backward()
            torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            share = (step + 1) / warm if step < warm else 1 - 0.9 * (step - warm + 1) / (total - warm)
            used.append(spec.learning_rate * share)
            for group in optimizer.param_groups:
                group["lr"] = used[-1]
            optimizer.step()
            optimizer.zero_grad()
            step += 1
        rates.append(np.mean(used))
    return parameters, optimizer, rates


def test_auxiliary_epochs_equal_one_bare_adam_loop():
    pool, seed = make_pool(), 3
    epochs, _ = run(make_model(), pool, seed=seed)
    slow = make_model()
    slow.train()
    parameters, optimizer, rates = bare_loop(slow, pool, seed, SPEC)
    last, moments, _, _ = epochs[-1]
    assert np.allclose([epoch[2] for epoch in epochs], rates, rtol=1e-12)
    for name, value in parameters.items():
        torch.testing.assert_close(last[name], value.detach(), rtol=1e-4, atol=2e-5)
        moment, state = moments[canonical_name(name)], optimizer.state[value]
        torch.testing.assert_close(moment.first, state["exp_avg"], rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(moment.second, state["exp_avg_sq"], rtol=1e-3, atol=1e-9)
        assert moment.step == int(state["step"]) == 12


@pytest.mark.parametrize("lora", [True, False])
def test_auxiliary_run_killed_in_any_epoch_ends_equal(lora, tmp_path, monkeypatch):
    pool = make_pool()
    expected, report = run(make_model(lora=lora), pool)
    for killed in (1, 2, 3):
        folder, learn = tmp_path / f"{lora}-{killed}", auxiliary._learn

        def die(*args, learn=learn, killed=killed):
            if args[4] == killed:
                raise KeyboardInterrupt
            return learn(*args)

        monkeypatch.setattr(auxiliary, "_learn", die)
        with pytest.raises(KeyboardInterrupt):
            run(make_model(lora=lora), pool, folder=folder)
        monkeypatch.setattr(auxiliary, "_learn", learn)
        epochs, again = run(make_model(lora=lora), pool, folder=folder)
        same(epochs, expected)
        assert (again.examples, again.tokens, again.flops) == (report.examples, report.tokens, report.flops)

    def never():
        raise AssertionError("the pool was read")

    same(run(make_model(lora=lora), never, folder=folder)[0], expected)


def test_auxiliary_share_is_drawn_once_whatever_the_order():
    pool = make_pool(60)
    spec = dataclasses.replace(SPEC, share=0.3)
    drawn = pool.take(drawn_rows(pool.ids, pool.tokens, 0.3, 3, "x"))
    shuffled = pool.take(np.random.default_rng(0).permutation(60))
    shuffled = shuffled.take(drawn_rows(shuffled.ids, shuffled.tokens, 0.3, 3, "x"))
    assert set(drawn.ids) == set(shuffled.ids)
    assert 0.2 < drawn.tokens.sum() / pool.tokens.sum() < 0.31
    _, report = run(make_model(), pool, spec)
    assert report.examples == len(drawn)
    assert report.tokens == 3 * drawn.tokens.sum()


def test_with_adapter_takes_its_adapter_off_again():
    model, pool = make_model(lora=False), make_pool()
    model.requires_grad_(False)
    before = model_fingerprint(model)
    with with_adapter(model, 5) as adapted:
        epochs, _ = run(adapted, pool)
    assert model_fingerprint(model) == before
    assert len(epochs) == 3
    assert all("lora_" in name for name in epochs[0][0])
    lora = make_model()
    with with_adapter(lora, 5) as adapted:
        assert adapted is lora


def damage(path):
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(bytes(data))


FAULTS = {
    "share too small": (lambda: AuxiliarySpec(share=0.001), {}, BudgetError, "Raise the share"),
    "nothing trainable": (lambda: SPEC, {"frozen": True}, ModelError, "Attach an adapter"),
    "other settings": (lambda: dataclasses.replace(SPEC, epochs=2), {"used": True}, ResumeError, "settings"),
    "other data": (lambda: SPEC, {"used": True, "content": "other"}, ResumeError, "model or data"),
    "damaged weights": (lambda: SPEC, {"used": True, "damaged": "weights.safetensors"}, ResumeError, "Delete it"),
    "damaged numbers": (lambda: SPEC, {"used": True, "damaged": "epoch.json"}, ResumeError, "Delete it"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_auxiliary_run_refuses_each_fault_in_one_error(name, tmp_path):
    spec, how, error, words = FAULTS[name]
    model, pool = make_model(), make_pool()
    if how.get("used"):
        run(model, pool, folder=tmp_path / "run")
    if how.get("damaged"):
        damage(tmp_path / "run" / "epoch-2" / how["damaged"])
    if how.get("frozen"):
        model.requires_grad_(False)
    before = weights(model)
    with pytest.raises(error, match=words):
        run(model, pool, spec(), folder=tmp_path / "run", content=how.get("content", ""))
    assert all(torch.equal(value, before[key]) for key, value in weights(model).items())


@pytest.mark.parametrize(
    "values", [{"share": 0}, {"share": 1.5}, {"epochs": 0}, {"batch": 2.5}, {"learning_rate": float("nan")}]
)
def test_auxiliary_spec_refuses_values_out_of_range(values):
    with pytest.raises(RecipeError, match=next(iter(values))):
        AuxiliarySpec(**values)
