"""What the signals are measured against computes what it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks.references import bergson_side, less, uds
from benchmarks.references.uds import bilinear, fourier, uds_signals
from longgame.errors import PluginError
from support.signals import VOCABULARY, autograd_gradients, llama, random_pool, response_logits, with_lora

GROUPS = [np.asarray([3, 0, 8, 5]), np.asarray([1, 2, 4]), np.asarray([6, 7])]


@pytest.fixture(scope="module")
def model():
    return with_lora(llama()).eval()


@pytest.fixture(scope="module")
def gradients(model, pool):
    """Flat LoRA gradients by a plain loop, in the order of the parameters."""
    parts = autograd_gradients(model, pool, lambda name: "lora_" in name)
    return torch.stack([torch.cat([part.flatten() for part in parts_of.values()]) for parts_of in parts])


@pytest.fixture(scope="module")
def pool():
    return random_pool()


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_uds_signals_equal_numpys_svd_and_products(model, pool):
    left, right = drawn(30, 3), drawn(VOCABULARY, 5)
    signals = uds_signals(model, pool, GROUPS, bilinear(left, right), pad_token_id=0)
    assert signals.sketch.shape == (9, 15)
    assert signals.forward_seconds > 0
    assert signals.signal_seconds > 0
    for row in range(len(pool)):
        with torch.no_grad():
            logits = response_logits(model, pool, row)[0].double().numpy()
        singular = np.linalg.svd(logits, compute_uv=False)
        product = left[: len(logits)].double().numpy().T @ logits @ right.double().numpy()
        np.testing.assert_allclose(signals.nuclear_norm[row], singular.sum(), rtol=1e-5)
        np.testing.assert_allclose(signals.sketch[row], product.ravel(), rtol=1e-4, atol=1e-4)


def test_uds_signals_everywhere_are_of_padded_logits(model, pool):
    rows = GROUPS[0]
    left, right = drawn(30, 3), drawn(VOCABULARY, 5)
    signals = uds_signals(
        model, pool.take(rows), [np.arange(4)], bilinear(left, right), pad_token_id=7, everywhere=True
    )
    longest = max(len(pool.input_ids[row]) for row in rows)
    for k, row in enumerate(rows):
        ids = torch.full((1, longest), 7)
        ids[0, : len(pool.input_ids[row])] = torch.tensor(pool.input_ids[row])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0].double().numpy()
        expected = np.linalg.svd(logits, compute_uv=False).sum()
        np.testing.assert_allclose(signals.nuclear_norm[k], expected, rtol=1e-5)
        product = left[:longest].double().numpy().T @ logits @ right.double().numpy()
        np.testing.assert_allclose(signals.sketch[k], product.ravel(), rtol=1e-4, atol=1e-4)


def test_fourier_sketch_is_the_cosine_sums_of_its_definition():
    positions, vocabulary, shape, device = 5, 7, (2, 3), torch.device("cpu")
    sketch = fourier(positions, vocabulary, shape, torch.Generator().manual_seed(3), device)
    again = torch.Generator().manual_seed(3)
    signs, at = [], []
    for length, count in zip((positions, vocabulary), shape, strict=True):
        signs.append(torch.randint(0, 2, (length,), generator=again).numpy() * 2.0 - 1)
        at.append(torch.randint(0, length, (count,), generator=again).numpy())
    logits = drawn(4, vocabulary)  # a response of four tokens: the fifth position is zero
    expected = np.zeros(shape)
    for a, f in enumerate(at[0]):
        for b, g in enumerate(at[1]):
            for t in range(4):
                for v in range(vocabulary):
                    wave = math.cos(2 * math.pi * f * t / positions) * math.cos(2 * math.pi * g * v / vocabulary)
                    expected[a, b] += signs[0][t] * signs[1][v] * wave * float(logits[t, v])
    expected *= math.sqrt(positions / shape[0] * vocabulary / shape[1])
    np.testing.assert_allclose(sketch(logits).numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("draw", ["bits", "randint"])
def test_less_features_are_gradients_times_one_sign_matrix(model, pool, gradients, draw):
    blocks = less.sign_blocks(gradients.shape[1], 128, 5, torch.device("cpu"), draw)
    matrix = torch.cat([block.clone() for block in blocks])
    assert set(matrix.unique().tolist()) == {-1.0, 1.0}
    features = less.less_features(model, pool, dim=128, interval=4, seed=5, draw=draw)
    np.testing.assert_allclose(features.features, (gradients @ matrix).numpy() / math.sqrt(128), rtol=1e-4, atol=1e-5)
    assert features.backward_seconds > 0
    assert features.projection_seconds > 0


@pytest.mark.parametrize("draw", ["bits", "randint"])
def test_sign_matrix_depends_on_the_seed_not_on_blocks(monkeypatch, draw):
    gradients = torch.eye(37)
    projected = less.project(gradients, 64, 1, draw)
    monkeypatch.setitem(less.BLOCK_ENTRIES, "cpu", 64 * 5)
    assert torch.equal(less.project(gradients, 64, 1, draw), projected)
    assert not torch.equal(less.project(gradients, 64, 2, draw), projected)


@pytest.mark.parametrize("draw", ["bits", "randint"])
def test_signs_are_balanced_and_rows_uncorrelated(draw):
    matrix = less.project(torch.eye(64), 8192, 0, draw)  # rows of norm 1
    gram = matrix @ matrix.T - torch.eye(64)
    assert gram.abs().max() < 6 / math.sqrt(8192)
    assert matrix.mean(1).abs().max() * math.sqrt(8192) < 6 / math.sqrt(8192)


def test_adam_direction_by_hand():
    state = less.AdamState(torch.tensor([0.5, 0.0]), torch.tensor([0.04, 0.0]), beta1=0.9, beta2=0.99, epsilon=1e-3)
    features = state.direction(torch.tensor([1.0, -2.0]))
    first = (0.9 * 0.5 + 0.1 * 1.0) / (math.sqrt(0.99 * 0.04 + 0.01 * 1.0) + 1e-3)
    second = (0.1 * -2.0) / (math.sqrt(0.01 * 4.0) + 1e-3)
    np.testing.assert_allclose(features.numpy(), [first, second], rtol=1e-5)


def test_adam_aware_features_project_the_direction(model, pool, gradients):
    state = less.AdamState(gradients.mean(0), gradients.square().mean(0))
    features = less.less_features(model, pool, dim=64, adam=state).features
    directions = torch.stack([state.direction(gradient) for gradient in gradients])
    np.testing.assert_allclose(features, less.project(directions, 64, 0).numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dim", [0, 100])
def test_a_projection_that_is_no_multiple_of_64_is_an_error(dim):
    with pytest.raises(PluginError, match="multiple of 64"):
        less.project(torch.zeros(1, 3), dim, 0)


def test_references_leave_the_model_as_it_was(model, pool):
    before = {name: (weight.grad, weight.requires_grad) for name, weight in model.named_parameters()}
    uds.uds_signals(model, pool, GROUPS, bilinear(drawn(30, 1), drawn(VOCABULARY, 1)), pad_token_id=0)
    less.less_features(model, pool, dim=64)
    if bergson_side.available():
        bergson_side.bergson_features(model, pool, projection_dim=2)
    assert {name: (weight.grad, weight.requires_grad) for name, weight in model.named_parameters()} == before


@pytest.mark.skipif(not bergson_side.available(), reason=bergson_side.HOW_TO_INSTALL)
class TestBergson:
    def test_unprojected_features_have_autograds_norms_and_products(self, model, pool, gradients):
        features = bergson_side.bergson_features(model, pool, projection_dim=None, max_batch_tokens=64)
        np.testing.assert_allclose(features @ features.T, (gradients @ gradients.T).numpy(), rtol=1e-4, atol=1e-4)

    def test_its_projected_features_have_the_size_that_is_told(self, model, pool):
        features = bergson_side.bergson_features(model, pool, projection_dim=4, max_batch_tokens=64)
        assert features.shape == (len(pool), bergson_side.feature_size(model, 4))
        assert np.isfinite(features).all()
        assert (np.linalg.norm(features, axis=1) > 0).all()
