"""Summaries of what was selected: frequent directions and the buffer of sketches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longgame.errors import PluginError, ResumeError
from longgame.selection.algorithms.directions import FrequentDirections, SketchBuffer


def matrix(n: int, d: int, decay: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) * decay ** np.arange(d)


def decomposed(gradients: np.ndarray, rows: int) -> np.ndarray:
    """BᵀB by singular values of the full buffer, as the paper has it."""
    buffer: list[np.ndarray] = []
    for gradient in gradients:
        if len(buffer) == 2 * rows:
            _, values, axes = np.linalg.svd(np.stack(buffer), full_matrices=False)
            squares = np.append(values, np.zeros(rows + 1))[: 2 * rows] ** 2
            lengths = np.sqrt(np.maximum(squares[:rows] - squares[rows], 0))[: len(axes)]
            buffer = [length * axis for length, axis in zip(lengths, axes, strict=False) if length > 1e-7 * values[0]]
        buffer.append(gradient)
    return np.stack(buffer).T @ np.stack(buffer)


@pytest.mark.parametrize("scale", [1.0, 1e-150, 1e150])
@pytest.mark.parametrize(("d", "rank"), [(40, 40), (12, 2), (3, 3)])
def test_the_gram_matrix_gives_what_singular_values_give(d: int, rank: int, scale: float) -> None:
    rng = np.random.default_rng(1)
    gradients = scale * rng.standard_normal((70, rank)) @ rng.standard_normal((rank, d))
    sketch = FrequentDirections(4)
    sketch.update(gradients)
    expected = decomposed(gradients / scale, 4)
    np.testing.assert_allclose(sketch.matrix.T / scale @ sketch.matrix / scale, expected, atol=1e-11 * expected.max())


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 120),
    d=st.integers(1, 20),
    rows=st.integers(1, 8),
    decay=st.floats(0.3, 1.0),
    seed=st.integers(0, 9),
)
def test_the_sketch_never_overstates_and_stays_within_its_bound(
    n: int, d: int, rows: int, decay: float, seed: int
) -> None:
    gradients = matrix(n, d, decay, seed)
    sketch = FrequentDirections(rows)
    sketch.update(gradients)
    gap = np.linalg.eigvalsh(gradients.T @ gradients - sketch.matrix.T @ sketch.matrix)
    slack = 1e-9 * sketch.energy
    assert gap.min() >= -slack
    assert gap.max() <= sketch.error_bound + slack
    tails = np.append(np.cumsum(np.linalg.svd(gradients, compute_uv=False)[::-1] ** 2)[::-1], np.zeros(rows + 1))
    for k in range(rows + 1):
        assert sketch.error_bound <= tails[k] / (rows + 1 - k) + slack


@given(cut=st.lists(st.integers(1, 15), min_size=1, max_size=8))
def test_batching_of_rows_changes_nothing(cut: list[int]) -> None:
    gradients = matrix(sum(cut), 12, 0.8, 0)
    whole, parts = FrequentDirections(3), FrequentDirections(3)
    whole.update(gradients)
    for part in np.split(gradients, np.cumsum(cut)[:-1]):
        parts.update(part)
    assert np.array_equal(whole.matrix, parts.matrix)
    assert (whole.energy, whole.error_bound) == (parts.energy, parts.error_bound)


def test_few_rows_are_kept_exactly() -> None:
    gradients = matrix(8, 30, 1.0, 1)
    sketch = FrequentDirections(4)
    sketch.update(gradients)
    assert sketch.error_bound == 0.0
    assert np.array_equal(sketch.matrix, gradients)
    assert sketch.energy == pytest.approx((gradients**2).sum())


def test_top_direction_is_the_planted_one() -> None:
    rng = np.random.default_rng(3)
    planted = np.array([0.6, -0.8, 0.0, 0.0])
    gradients = 5 * rng.standard_normal((200, 1)) * planted + 0.1 * rng.standard_normal((200, 4))
    sketch = FrequentDirections(2)
    sketch.update(gradients)
    top = sketch.top_direction()
    assert top is not None
    assert abs(top @ planted) > 0.999
    assert np.linalg.norm(top) == pytest.approx(1.0)
    assert top[np.argmax(np.abs(top))] > 0


def test_zero_gradients_have_no_direction() -> None:
    sketch = FrequentDirections(2)
    assert sketch.top_direction() is None
    sketch.update(np.zeros((9, 3)))
    assert sketch.top_direction() is None
    assert sketch.count == 9


def test_restoring_continues_bit_for_bit() -> None:
    gradients = matrix(50, 9, 0.9, 4)
    one, two = FrequentDirections(3), FrequentDirections(3)
    one.update(gradients[:23])
    two.load_state_dict(one.state_dict())
    one.update(gradients[23:])
    two.update(gradients[23:])
    assert np.array_equal(one.matrix, two.matrix)
    assert (one.count, one.energy, one.error_bound) == (two.count, two.energy, two.error_bound)


def test_another_width_or_a_larger_saved_sketch_is_refused() -> None:
    sketch = FrequentDirections(4)
    sketch.update(np.ones((8, 5)))
    with pytest.raises(PluginError, match="width 6 came after ones of width 5"):
        sketch.update(np.ones((1, 6)))
    with pytest.raises(ResumeError, match="gradient_rows is 2"):
        FrequentDirections(2).load_state_dict(sketch.state_dict())


@given(size=st.integers(1, 7), pushes=st.lists(st.integers(0, 10), max_size=8))
def test_buffer_holds_the_last_pushed_and_survives_saving(size: int, pushes: list[int]) -> None:
    buffer, everything = SketchBuffer(size), np.zeros((0, 1), dtype=np.float32)
    for number, k in enumerate(pushes):
        new = np.arange(k, dtype=np.float32)[:, None] + 100 * number
        buffer.push(new)
        everything = np.concatenate([everything, new])
        restored = SketchBuffer(size)
        restored.load_state_dict(buffer.state_dict())
        buffer = restored
    expected = everything[-size:] if len(everything) else everything
    assert sorted(buffer.state_dict()["sketches"].ravel().tolist()) == sorted(expected.ravel().tolist())
    assert len(buffer) == len(expected)


def test_mean_distance_by_hand() -> None:
    buffer = SketchBuffer(2)
    assert buffer.mean_distance(np.ones((1, 2))).tolist() == [0.0]
    buffer.push(np.array([[9.0, 9.0], [0.0, 0.0], [0.0, 8.0]]))  # the first is gone
    assert buffer.mean_distance(np.array([[0.0, 4.0], [6.0, 8.0]])).tolist() == [4.0, 8.0]


def test_another_width_or_size_is_refused() -> None:
    buffer = SketchBuffer(3)
    buffer.push(np.ones((5, 2)))
    with pytest.raises(PluginError, match="width 4 came after ones of width 2"):
        buffer.push(np.ones((1, 4)))
    with pytest.raises(ResumeError, match="buffer_size is 2"):
        SketchBuffer(2).load_state_dict(buffer.state_dict())
