"""Adapter drift by low-rank traces against dense matrices."""

import numpy as np
import pytest

from longgame.errors import DataError
from longgame.metrics.diagnostics import (
    Factors,
    adapter_difference,
    adapter_drift,
    adapter_inner,
    dense_drift,
    update_norm,
)
from longgame.seeding import generator

SHAPES = [(12, 7, 3, 0.5), (5, 9, 2, 2.0)]


def adapter(name, rank_change=0):
    rng = generator(0, name)
    return [
        Factors(rng.standard_normal((out, r + rank_change)), rng.standard_normal((r + rank_change, into)), scale)
        for out, into, r, scale in SHAPES
    ]


def dense(modules):
    return [scale * B @ A for B, A, scale in modules]


def flat(matrices):
    return np.concatenate([matrix.ravel() for matrix in matrices])


@pytest.mark.parametrize("rank_change", [0, 1])
def test_low_rank_values_equal_dense_ones(rank_change):
    start, before, after = adapter("start"), adapter("before", rank_change), adapter("after")
    w0, w1, w2 = flat(dense(start)), flat(dense(before)), flat(dense(after))
    update, past = w2 - w1, w1 - w0
    cosine = update @ past / np.linalg.norm(update) / np.linalg.norm(past)
    assert adapter_inner(before, after) == pytest.approx(w1 @ w2)
    assert update_norm(before, after) == pytest.approx(np.linalg.norm(update))
    assert adapter_drift(before, after, start) == pytest.approx(1 - cosine)
    np.testing.assert_allclose(flat(dense(adapter_difference(before, after))), update, atol=1e-12)
    separate = [a - b for a, b in zip(dense(before), dense(start), strict=True)]
    now = [a - b for a, b in zip(dense(after), dense(before), strict=True)]
    assert dense_drift(separate, now) == pytest.approx(1 - cosine)


def test_without_a_start_the_adapter_began_at_zero():
    before, after = adapter("before"), adapter("after")
    zero = [Factors(np.zeros_like(B), A, scale) for B, A, scale in before]
    assert adapter_drift(before, after) == pytest.approx(adapter_drift(before, after, zero))


def test_drift_does_not_depend_on_the_gauge_of_the_factors():
    start, before, after = adapter("start"), adapter("before"), adapter("after")
    rng = generator(1, "gauge")

    def turned(modules):
        result = []
        for B, A, scale in modules:
            G = rng.standard_normal((A.shape[0],) * 2) + 3 * np.eye(A.shape[0])
            result.append(Factors(B @ G / 2, np.linalg.solve(G, A), 2 * scale))
        return result

    expected = adapter_drift(before, after, start)
    assert adapter_drift(turned(before), turned(after), turned(start)) == pytest.approx(expected)


def test_drift_is_0_onwards_1_across_2_back():
    def at(x, y):
        return [Factors(np.eye(2), np.diag([x, y]), 1.0)]

    assert adapter_drift(at(1, 0), at(3, 0)) == pytest.approx(0, abs=1e-12)
    assert adapter_drift(at(1, 0), at(1, 5)) == pytest.approx(1)
    assert adapter_drift(at(1, 0), at(0.5, 0)) == pytest.approx(2)
    # past (1, 0), update (1, 1): 1 − 1/√2
    assert adapter_drift(at(1, 0), at(2, 1)) == pytest.approx(1 - np.sqrt(0.5))


def test_drift_is_unmeasured_at_stage_1_and_when_nothing_moved():
    start, before = adapter("start"), adapter("before")
    assert np.isnan(adapter_drift(start, before, start))
    assert np.isnan(adapter_drift(before, before, start))
    assert np.isnan(dense_drift([np.zeros(3)], [np.ones(3)]))


def test_a_tiny_step_of_a_large_float32_adapter_keeps_its_direction():
    B, A, _ = adapter("before")[0]
    B, A = (1e3 * B).astype(np.float32), A.astype(np.float32)
    step = np.zeros_like(B)
    step[0, 0] = 1.0
    moved = [Factors(B + step, A, 1.0)]
    exact = np.zeros((12, 7))
    exact[0] = (B + step)[0, 0].astype(float) - B[0, 0].astype(float)
    exact[0] *= A[0].astype(float)
    assert update_norm([Factors(B, A, 1.0)], moved) == pytest.approx(np.linalg.norm(exact), rel=1e-9)


def test_different_modules_are_refused():
    with pytest.raises(DataError, match="one adapter has 2 modules, the other 1"):
        adapter_inner(adapter("a"), adapter("b")[:1])
    with pytest.raises(DataError, match="12×7 before and 5×9 after"):
        adapter_difference(adapter("a"), adapter("b")[::-1])
    with pytest.raises(DataError, match="do not multiply"):
        adapter_inner(
            [Factors(np.ones((3, 2)), np.ones((3, 2)), 1.0)], [Factors(np.ones((3, 2)), np.ones((2, 3)), 1.0)]
        )
    with pytest.raises(DataError, match="list the same ones"):
        dense_drift([np.ones(3)], [np.ones(4)])
