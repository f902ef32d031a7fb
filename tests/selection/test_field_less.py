"""LESS and RHO against slow implementations: every example alone, whole-model autograd, Adam written down."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from longgame.data.examples import Example
from longgame.errors import ModelError, NumericalError, RecipeError
from longgame.models.lora import canonical_name
from longgame.seeding import generator, stream_seed
from longgame.selection.base import build_selector
from longgame.selection.history import History
from longgame.signals.auxiliary import AuxiliarySpec, Influence
from longgame.signals.base import Signals
from longgame.signals.projection import UpdateSketch
from longgame.signals.source import SignalSource
from longgame.training import auxiliary
from longgame.training.auxiliary import ModelAuxiliary, drawn_rows
from longgame.training.feed import deal
from support.training import PAD, make_model, make_pool

SPEC = AuxiliarySpec(share=0.5, epochs=3, learning_rate=5e-3, batch=4)
SEED, SKETCH_SEED, DIM = 3, 7, 1024


def target_pool():
    """Five target examples of two tasks, one of them without a name."""
    pool = make_pool(5, seed=9)
    skills = ("a", None, "a", None, "a")
    examples = tuple(Example(f"t{row}", "p", "r", skill=skill) for row, skill in enumerate(skills))
    return dataclasses.replace(pool, examples=examples)


def auxiliary_of(model, pool, target=None, spec=SPEC):
    return ModelAuxiliary(
        model,
        pad_token_id=PAD,
        spec=spec,
        seed=SEED,
        sketch_seed=SKETCH_SEED,
        candidates=lambda: pool,
        target=lambda _name: target_pool() if target is None else target,
    )


def drawn(pool, share, seed):
    return pool.take(drawn_rows(pool.ids, pool.tokens, share, seed, "x"))


def trained_of(model):
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def nll(model, pool, row):
    """NLL of each response token of an example."""
    ids = torch.tensor(pool.input_ids[row])[None]
    logp = model(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    return -logp[int(pool.prompt_tokens[row]) - 1 :]


class SlowAdam:
    """AdamW without decay as its paper writes it."""

    def __init__(self, weights):
        self.weights, self.step = weights, 0
        self.m = {name: torch.zeros_like(value) for name, value in weights.items()}
        self.v = {name: torch.zeros_like(value) for name, value in weights.items()}

    @torch.no_grad()
    def update(self, gradients, rate):
        norm = torch.sqrt(sum((g**2).sum() for g in gradients.values()))
        self.step += 1
        for name, g in gradients.items():
            g = g * min(1.0, 1.0 / (float(norm) + 1e-6))
            self.m[name] = 0.9 * self.m[name] + 0.1 * g
            self.v[name] = 0.999 * self.v[name] + 0.001 * g**2
            mean, square = self.m[name] / (1 - 0.9**self.step), self.v[name] / (1 - 0.999**self.step)
            self.weights[name] -= rate * mean / (square.sqrt() + 1e-8)

    def gamma(self, name, g, published=False):
        """The step that Adam would take on this gradient, or what the published code takes for it."""
        if published:
            return (0.9 * self.m[name] + 0.1 * g) / torch.sqrt(0.999 * self.v[name] + 0.001 * g**2 + 1e-8)
        step = self.step + 1
        mean = (0.9 * self.m[name] + 0.1 * g) / (1 - 0.9**step)
        square = (0.999 * self.v[name] + 0.001 * g**2) / (1 - 0.999**step)
        return mean / (square.sqrt() + 1e-8)


def slow_epochs(model, pool, spec):
    """Yield the optimizer and the mean learning rate after every epoch of a warm-up on ``pool``."""
    weights = trained_of(model)
    adam, step = SlowAdam(weights), 0
    per_epoch = max(1, round(len(pool) / spec.batch))
    total = per_epoch * spec.epochs
    for number in range(1, spec.epochs + 1):
        seed = stream_seed(SEED, "auxiliary", "epoch", number)
        tokens, rng = int(pool.tokens.sum()), generator(seed, "order")
        picked = build_selector("random").select(pool, Signals(pool.ids, {}), History(), tokens, rng).rows
        dealt = deal(pool.tokens[picked], per_epoch, 1, generator(stream_seed(seed, "selection", "deal"), "deal", 0))
        rates = []
        for places in dealt:
            losses = torch.cat([nll(model, pool, row) for row in picked[places]])
            gradients = dict(zip(weights, torch.autograd.grad(losses.mean(), list(weights.values())), strict=True))
            rates.append(spec.learning_rate * (1 if step == 0 else 1 - 0.9 * step / (total - 1)))
            adam.update(gradients, rates[-1])
            step += 1
        yield adam, float(np.mean(rates))


def sketched(parts):
    total = UpdateSketch(DIM, SKETCH_SEED)
    for name, part in parts.items():
        total.add(canonical_name(name), part)
    return total.vector()


def gradients_of(model, pool, row):
    weights = trained_of(model)
    return dict(zip(weights, torch.autograd.grad(nll(model, pool, row).mean(), list(weights.values())), strict=True))


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def slow_influence(model, pool, target, spec, drawn):
    """Σ over epochs of rate · cosine, per example and task."""
    tasks = list(dict.fromkeys(example.skill for example in target.examples))
    total = np.zeros((len(pool), len(tasks)))
    for adam, rate in slow_epochs(model, drawn, spec):
        of_task = [
            [sketched(gradients_of(model, target, j)) for j, e in enumerate(target.examples) if e.skill == task]
            for task in tasks
        ]
        for row in range(len(pool)):
            gradients = gradients_of(model, pool, row)
            steps = sketched({name: adam.gamma(name, g, spec.published) for name, g in gradients.items()})
            if spec.published:
                total[row] += [rate * np.mean([cosine(steps, one) for one in items]) for items in of_task]
            else:
                total[row] += [rate * cosine(steps, np.mean(items, axis=0)) for items in of_task]
    return total


@pytest.fixture(scope="module")
def golden():
    pool = make_pool(16)
    fast = auxiliary_of(make_model(), pool)(pool, "influence")
    slow = slow_influence(make_model(), pool, target_pool(), SPEC, drawn(pool, 0.5, SEED))
    return pool, fast, slow


def test_less_influence_is_that_of_the_slow_loop(golden):
    pool, fast, slow = golden
    assert fast.shape == (16, 2)
    np.testing.assert_allclose(fast, slow, atol=2e-3 * np.abs(slow).max())
    selector = build_selector("less")
    scores = selector.score(pool, Signals(pool.ids, {"influence": fast}), History())
    np.testing.assert_array_equal(scores, fast.max(axis=1))


def test_less_compat_reference_is_the_published_formula(golden):
    pool, paper, _ = golden
    pool, spec = pool.take(range(6)), dataclasses.replace(SPEC, published=True)
    fast = auxiliary_of(make_model(), pool, spec=spec)(pool, "influence")
    slow = slow_influence(make_model(), pool, target_pool(), spec, drawn(pool, 0.5, SEED))
    np.testing.assert_allclose(fast, slow, atol=2e-3 * np.abs(slow).max())
    assert np.abs(fast - paper[:6]).max() > 0.02 * np.abs(slow).max()
    assert build_selector("less", {"compat": "reference"}).auxiliary.published


def test_less_takes_the_moments_of_its_own_warm_up(golden, monkeypatch):
    """Zero moments, or those of one epoch for all, are other numbers."""
    pool, fast, _ = golden
    restored = auxiliary._State.epoch

    def without_moments(state, published):
        epoch = restored(state, published)
        zero = {
            name: dataclasses.replace(
                moment, first=torch.zeros_like(moment.first), second=torch.zeros_like(moment.second)
            )
            for name, moment in epoch.adam.moments.items()
        }
        return dataclasses.replace(epoch, adam=auxiliary.AdamPreconditioner(zero, bias_correction=True))

    monkeypatch.setattr(auxiliary._State, "epoch", without_moments)
    other = auxiliary_of(make_model(), pool)(pool, "influence")
    assert np.abs(other - fast).max() > 0.1 * np.abs(fast).max()


def test_less_influence_is_the_same_one_by_one_in_any_order(golden):
    pool, fast, _ = golden
    alone = auxiliary_of(make_model(), pool)
    order = np.random.default_rng(0).permutation(len(pool))
    for row in order:
        one = alone(pool.take([row]), "influence")
        np.testing.assert_allclose(one[0], fast[row], atol=1e-4 * np.abs(fast).max())
    whole = auxiliary_of(make_model(), pool)
    whole(pool, "influence")
    assert alone.tokens == whole.tokens  # neither the warm-up nor the target is read again
    np.testing.assert_allclose(alone(pool.take(order), "influence"), fast[order], atol=1e-4 * np.abs(fast).max())


def test_less_weights_each_checkpoint_by_its_own_rate():
    """Two checkpoints, hand-checked: 0.3 · cos + 0.1 · cos; a task's mean is taken before the cosine."""
    influence = Influence(["x", "y", "x"])
    assert influence.tasks == ("x", "y")
    targets = np.array([[2.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    first = influence.of_checkpoint(0.3, np.array([[1.0, 0.0], [0.0, 0.0]]), targets)
    second = influence.of_checkpoint(0.1, np.array([[0.0, 5.0], [1.0, 0.0]]), targets)
    root = 0.5**0.5
    np.testing.assert_allclose(first + second, [[0.3 * root + 0.1 * root, 0.1], [0.1 * root, 0.0]], atol=1e-12)


def test_less_leaves_the_model_as_it_was():
    model, pool = make_model(), make_pool(16)
    before = {name: value.detach().clone() for name, value in trained_of(model).items()}
    work = auxiliary_of(model, pool)
    work(pool, "influence")
    assert all(torch.equal(value, before[name]) for name, value in trained_of(model).items())
    learned = int(drawn(pool, 0.5, SEED).tokens.sum())
    passes = int(pool.tokens.sum()) + int(target_pool().tokens.sum())
    assert work.tokens == 3 * (learned + passes)
    assert work.flops > 0


def test_rho_is_the_loss_less_that_of_a_model_of_the_target():
    pool, target = make_pool(8), target_pool()
    spec = AuxiliarySpec(epochs=2, learning_rate=4e-2, batch=2)
    reference = auxiliary_of(make_model(), pool, spec=spec)(pool, "reference_loss")
    slow = make_model()
    with torch.no_grad():
        before = np.array([float(nll(slow, pool, row).mean()) for row in range(len(pool))])
    for _ in slow_epochs(slow, target, spec):
        pass
    with torch.no_grad():
        after = np.array([float(nll(slow, pool, row).mean()) for row in range(len(pool))])
    np.testing.assert_allclose(reference, after, atol=1e-3)
    terms = build_selector("rho").score(
        pool, Signals(pool.ids, {"loss": before.astype(np.float32), "reference_loss": reference}), History()
    )
    np.testing.assert_allclose(terms["score"], before - after, atol=2e-3)
    assert np.abs(before - after).max() > 1e-2


def test_a_log_holds_every_epoch_over_all_candidates():
    pool = make_pool(8)
    losses, accuracies = auxiliary_of(make_model(), pool).log(pool)
    slow = make_model()
    for number, _ in enumerate(slow_epochs(slow, pool, SPEC)):
        with torch.no_grad():
            column = [float(nll(slow, pool, row).mean()) for row in range(len(pool))]
        np.testing.assert_allclose(losses[:, number], column, atol=1e-3)
    assert losses.shape == accuracies.shape == (8, 3)
    assert ((accuracies >= 0) & (accuracies <= 1)).all()


@pytest.mark.parametrize("name", ["influence", "reference_loss"])
def test_a_place_without_auxiliary_trainings_names_the_fix(name):
    source = SignalSource(lambda _pool, _names: {})
    with pytest.raises(RecipeError, match=r"longgame select.*signals="):
        source(make_pool(4), [name])


def test_less_of_a_model_trained_in_full_is_refused_before_training():
    with pytest.raises(ModelError, match="LoRA"):
        auxiliary_of(make_model(lora=False), make_pool(8))(make_pool(8), "influence")


def test_a_warm_up_that_diverges_names_itself():
    model = make_model()
    with torch.no_grad():
        next(iter(trained_of(model).values())).fill_(float("nan"))
    with pytest.raises(NumericalError, match="the warm-up, epoch 1"):
        auxiliary_of(model, make_pool(8))(make_pool(8), "influence")
