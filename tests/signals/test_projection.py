import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longgame.errors import PluginError
from longgame.seeding import generator
from longgame.signals import projection
from longgame.signals.projection import CountSketch, UpdateSketch


def vectors(n, count, seed):
    return torch.from_numpy(generator(seed, "vectors").standard_normal((count, n)).astype(np.float32))


def explicit_matrix(name, n, dim, seed):
    """The sketch as a dense n × dim matrix, read off the unit vectors."""
    return CountSketch(dim, seed).project(name, torch.eye(n)).numpy()


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 70), dim=st.integers(1, 40), seed=st.integers(0, 99))
def test_each_entry_has_one_sign_and_one_bucket(n, dim, seed):
    matrix = explicit_matrix("w", n, dim, seed)
    np.testing.assert_array_equal(np.abs(matrix).sum(axis=1), np.ones(n))
    assert set(np.unique(matrix)) <= {-1.0, 0.0, 1.0}
    assert np.abs(matrix).sum(axis=0).max() <= -(-n // dim)


def test_inner_products_are_kept_with_the_stated_variance():
    g, h = vectors(96, 2, 0)
    h = 0.5 * g + h  # correlated, so that the expectation is far from 0
    dim, draws = 16, 4000
    result = []
    for seed in range(draws):
        s = CountSketch(dim, seed).project("w", torch.stack([g, h]))
        result.append(float(s[0] @ s[1]))
    true = float(g @ h)
    bound = ((float(g @ g) * float(h @ h) + true**2) / dim) ** 0.5
    assert np.std(result) < bound
    assert abs(np.mean(result) - true) < 4 * np.std(result) / draws**0.5


def test_parts_with_different_names_do_not_share_signs():
    single, other = (explicit_matrix(name, 60, 20, 0) for name in ("a", "b"))
    assert np.abs(single - other).sum() > 30


def test_the_projection_is_the_same_on_every_machine():
    matrix = explicit_matrix("layers.0.q_proj.lora_A.weight", 5, 4, 3)
    bucket, sign = np.abs(matrix).argmax(axis=1), matrix.sum(axis=1)
    assert bucket.tolist() == [0, 3, 2, 1, 3]
    assert sign.tolist() == [1.0, 1.0, -1.0, 1.0, 1.0]


def test_long_vectors_are_sketched_with_bounded_tables(monkeypatch):
    monkeypatch.setattr(projection, "_BLOCK", 10)
    monkeypatch.setattr(projection, "_CHUNK", 10)
    rows = vectors(37, 3, 1)
    free = CountSketch(8, 0)
    expected = free.project("w", rows)
    monkeypatch.setattr(projection, "sketch_table_bytes", lambda _: 0)
    frugal = CountSketch(8, 0)
    assert torch.equal(frugal.project("w", rows), expected)
    assert len(free._tables) == 4
    assert len(frugal._tables) == 0
    np.testing.assert_allclose(expected, rows.numpy() @ explicit_matrix("w", 37, 8, 0), rtol=1e-5, atol=1e-6)


def test_parts_are_sketched_together_as_one_by_one(monkeypatch):
    monkeypatch.setattr(projection, "_BLOCK", 10)
    lengths = {"layers.0.a": 7, "layers.0.b": 23, "layers.0.c": 1}
    rows = vectors(31, 3, 1)
    parts = rows.split([*lengths.values()], dim=1)
    expected = sum(CountSketch(8, 0).project(name, part) for name, part in zip(lengths, parts, strict=True))
    for entries in (1, 12, 1000):
        monkeypatch.setattr(projection, "_CHUNK", entries)
        torch.testing.assert_close(CountSketch(8, 0).project_parts(lengths, rows), expected)


def test_an_update_sketch_is_linear_in_its_parts():
    a, b = vectors(30, 2, 2)
    complete, parts = UpdateSketch(16, 1), UpdateSketch(16, 1)
    complete.add("w", (a + 2 * b).reshape(5, 6))
    parts.add("w", a.reshape(5, 6))
    parts.add("w", 2 * b.reshape(6, 5))
    np.testing.assert_allclose(complete.vector(), parts.vector(), rtol=1e-5, atol=1e-6)
    assert complete.vector().dtype == np.float32


def test_update_sketches_keep_the_inner_product_of_a_model():
    """One draw at 4096 numbers: within 5 standard deviations of √(2/dim)."""
    shapes = {"a": (30, 40), "b": (700,), "c": (8, 90)}
    draw = {name: vectors(int(np.prod(shape)), 2, index) for index, (name, shape) in enumerate(shapes.items())}
    sketches = []
    for row in (0, 1):
        sketch = UpdateSketch(4096, 7)
        for name, shape in shapes.items():
            sketch.add(name, (draw[name][row] + draw[name][0]).reshape(shape))
        sketches.append(sketch.vector())
    u, v = (torch.cat([part[row] + part[0] for part in draw.values()]).numpy() for row in (0, 1))
    error = abs(float(sketches[0] @ sketches[1]) - float(u @ v))
    assert error < 5 * (2 / 4096) ** 0.5 * np.linalg.norm(u) * np.linalg.norm(v)


def test_a_sketch_of_no_numbers_is_refused():
    with pytest.raises(PluginError, match="at least 1"):
        CountSketch(0, 0)
