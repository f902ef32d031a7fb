"""Methods of the field that weight their picks, each against its formula: slow loops, brute force, numbers by hand."""

from __future__ import annotations

import dataclasses
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from longgame.errors import RecipeError
from longgame.selection.algorithms.pursuit import gradient_matching, nonnegative_pursuit
from longgame.selection.algorithms.sampling import priority_sample
from longgame.selection.base import build_selector
from longgame.selection.methods.craig import CRAIGSelector
from longgame.selection.methods.gradmatch import GradMatchSelector
from longgame.selection.methods.importance import ImportanceSelector
from longgame.selection.methods.tagcos import TAGCOSSelector
from tests.selection.conftest import World

# Priority sampling


def slow_walk(priority, costs, budget):
    """Rows by falling priority, each that still fits."""
    rows, left = [], budget
    for row in np.argsort(-priority, kind="stable").tolist():
        if costs[row] <= left:
            rows.append(row)
            left -= costs[row]
    return rows


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 9), st.floats(0.05, 1.2))
def test_priority_sample_knows_the_probability_of_each_pick(seed, n, share) -> None:
    rng = np.random.default_rng(seed)
    sizes, draws = rng.random(n) + 0.05, 1 - rng.random(n)
    costs = rng.integers(1, 8, n)
    budget = max(int(costs.min()), int(share * costs.sum()))
    rows, inverse = priority_sample(sizes, costs, budget, draws)
    assert rows.tolist() == slow_walk(sizes / draws, costs, budget)
    for row, value in zip(rows.tolist(), inverse.tolist(), strict=True):
        # with all other draws as they are, it is picked exactly where its own draw is at most 1/inverse
        for draw in (1 / value * (1 - 1e-9), min(1.0, 1 / value * (1 + 1e-9))):
            other = draws.copy()
            other[row] = draw
            is_picked = row in slow_walk(sizes / other, costs, budget)
            assert is_picked == (draw * value <= 1 or value == 1.0)


def test_priority_sample_of_everything_weighs_everything_alike() -> None:
    rows, inverse = priority_sample(np.array([1.0, 5.0, 2.0]), np.array([3, 1, 4]), 8, np.array([0.5, 0.9, 0.1]))
    assert sorted(rows.tolist()) == [0, 1, 2]
    assert inverse.tolist() == [1.0] * 3


# Importance sampling


@pytest.mark.parametrize("tokens", [[4] * 6, [2, 5, 3, 7, 4, 9]], ids=["equal lengths", "unequal lengths"])
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_importance_gives_an_unbiased_mean_gradient(world, tokens, share) -> None:
    """The published method's point: over many draws, the weighted step is the step on all candidates."""
    norms = [0.1, 3.0, 0.5, 1.0, 2.0, 0.2]
    scene = world(tokens, grad_norm=norms)
    gradients = np.array(norms)[:, None] * np.random.default_rng(0).standard_normal((6, 3))
    learned = np.asarray(scene.pool.response_tokens) * np.array([1, 2, 3, 1, 2, 3])
    scene.pool = scene.pool.__class__(
        scene.pool.examples, scene.pool.input_ids, np.asarray(tokens) * 3 - learned, learned
    )
    full = learned @ gradients / learned.sum()
    selector, steps = ImportanceSelector(uniform_share=share), []
    for seed in range(6000):
        picked = scene.select(selector, int(scene.pool.costs.sum() * 0.5), seed=seed)
        part = learned[picked.rows]
        steps.append((picked.weights * part) @ gradients[picked.rows] / part.sum())
    steps = np.array(steps)
    error = steps.std(axis=0) / len(steps) ** 0.5
    assert np.all(np.abs(steps.mean(axis=0) - full) < 4.5 * error + 1e-9)


def test_importance_weights_are_one_over_n_p(world) -> None:
    # equal norms and lengths: k of n are drawn with probability k/n each, p = 1/n, so every weight is 1
    scene = world([3] * 8, grad_norm=[2.0] * 8)
    picked = scene.select(ImportanceSelector(), 12)
    mean = np.mean([scene.select(ImportanceSelector(), 12, seed=seed).weights.mean() for seed in range(2000)])
    assert len(picked.rows) == 4
    assert mean == pytest.approx(1.0, abs=0.03)


def test_importance_forgets_no_weight(world) -> None:
    """The fault of published code: a draw by gradient norm whose weights never reach the loss is biased."""
    scene = world([1] * 4, grad_norm=[1.0, 2.0, 4.0, 8.0])
    picked = scene.select(ImportanceSelector(uniform_share=0), 2)
    assert picked.weights is not None
    assert len(picked.weights) == 2
    by_row = dict(zip(picked.rows.tolist(), picked.weights.tolist(), strict=True))
    rows = sorted(by_row)
    assert by_row[rows[0]] >= by_row[rows[1]]  # the smaller gradient counts more


def test_importance_draws_large_gradients_more_often(world) -> None:
    scene = world([1] * 2, grad_norm=[1.0, 3.0])
    first = [scene.picks(ImportanceSelector(uniform_share=0), 1, seed=seed) for seed in range(2000)]
    # P(3/u > 1/v) = 1 − 1/6
    assert first.count("b") / 2000 == pytest.approx(5 / 6, abs=0.03)


def test_importance_last_layer_bound_needs_a_forward_pass_only(world) -> None:
    selector = ImportanceSelector("last-layer")
    assert selector.requires == ("el2n",)
    scene = world([1] * 4, el2n=[0.1, 0.2, 0.3, 0.4])
    assert scene.select(selector, 4).weights.tolist() == [1.0] * 4


def test_importance_of_gradients_that_are_all_zero_is_uniform(world) -> None:
    scene = world([1] * 4, grad_norm=[0.0] * 4)
    first = [scene.picks(ImportanceSelector(uniform_share=0), 1, seed=seed) for seed in range(800)]
    counts = np.array([first.count(name) for name in "abcd"])
    assert ((counts - 200) ** 2 / 200).sum() < 16.3  # chi-square, 3 degrees of freedom, p = .001


def test_importance_weights_stay_finite_for_a_zero_gradient(world) -> None:
    scene = world([1] * 3, grad_norm=[0.0, 1.0, 0.0])
    for seed in range(50):
        weights = scene.select(ImportanceSelector(uniform_share=0), 2, seed=seed).weights
        assert np.isfinite(weights).all()
        assert (weights > 0).all()


# CRAIG


def gradients_of(n: int, seed: int, d: int = 5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centers = 2 * rng.standard_normal((3, d)) + rng.standard_normal(d)
    return (centers[rng.integers(0, 3, n)] + 0.4 * rng.standard_normal((n, d))).astype(np.float32)


def distances(points: np.ndarray) -> np.ndarray:
    wide = points.astype(np.float64)
    return np.sqrt(((wide[:, None] - wide[None]) ** 2).sum(axis=2))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 30))
def test_craig_pick_lowers_the_distances_most(seed: int, n: int) -> None:
    points = gradients_of(n, seed)
    apart, reached = distances(points), np.full(n, 1e3)
    picked = many(n, grad_sketch=points).select(CRAIGSelector(), max(1, n // 3))
    for place, pick in enumerate(picked.rows.tolist()):
        rest = np.setdiff1d(np.arange(n), picked.rows[:place])
        gains = np.maximum(reached - apart[rest], 0).sum(axis=1)
        assert gains[rest == pick][0] >= gains.max() - 1e-4
        reached = np.minimum(reached, apart[pick])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 30))
def test_craig_weights_are_the_sizes_of_the_cells(seed: int, n: int) -> None:
    points = gradients_of(n, seed)
    picked = many(n, grad_sketch=points).select(CRAIGSelector(), max(1, n // 4))
    nearest = distances(points)[:, picked.rows].argmin(axis=1)
    sizes = np.bincount(nearest, minlength=len(picked.rows))
    assert picked.weights == pytest.approx(sizes / sizes.mean())
    assert picked.weights.mean() == pytest.approx(1.0)


def test_craig_numbers_by_hand(world) -> None:
    scene = world([1] * 7, grad_sketch=[[0], [1], [2], [3], [20], [21], [23]])
    picked = scene.select(CRAIGSelector(), 2)
    # sums of distances: d 61, c 62, e 78; then f gains 16 + 18 + 18 = 52, e 51, g 50
    assert scene.names(picked) == "df"
    assert picked.weights == pytest.approx([4 / 3.5, 3 / 3.5])


def test_craig_keeps_lengths_of_gradients_apart(world) -> None:
    # a cosine cannot tell the first two from each other
    scene = world([1] * 3, grad_sketch=[[1, 0], [9, 0], [1.1, 0]])
    assert set(scene.picks(CRAIGSelector(), 2)) in ({"a", "b"}, {"c", "b"})


def test_craig_of_equal_gradients_weighs_every_pick(world) -> None:
    scene = world([1] * 4, grad_sketch=[[1, 2]] * 4)
    weights = scene.select(CRAIGSelector(), 3).weights
    assert (weights > 0).all()
    assert weights.mean() == pytest.approx(1.0)


def test_craig_builds_no_matrix_of_all_pairs() -> None:
    n = 8000
    scene = many(n, grad_sketch=np.random.default_rng(0).standard_normal((n, 4)))
    tracemalloc.start()
    scene.select(CRAIGSelector(references=128), 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < n * n  # bytes; float32 pairs would take 4 n²


# Gradient matching


def slow_pursuit(points: np.ndarray, ridge: float, count: int) -> dict[int, float]:
    """GRAD-MATCH's OMP, with all weights solved for by SciPy's NNLS of [Gᵀ; √λ I] before every pick."""
    wide = points.astype(np.float64)
    target = wide.mean(axis=0)
    scaled = ridge * (wide**2).sum(axis=1).mean()
    rows: list[int] = []
    weights = np.zeros(0)
    while len(rows) < count:
        correlation = wide @ (target - weights @ wide[rows])
        correlation[rows] = -np.inf
        if correlation.max() <= 1e-9:
            break
        rows.append(int(correlation.argmax()))
        matrix = np.vstack([wide[rows].T, scaled**0.5 * np.eye(len(rows))])
        weights = nnls(matrix, np.concatenate([target, np.zeros(len(rows))]))[0]
        if (weights <= 1e-12).any():
            return {}  # picks that go out again are checked by the conditions of an optimum
    return dict(zip(rows, weights, strict=True))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 20), st.sampled_from([0.01, 0.5, 3.0]))
def test_gradmatch_picks_and_weights_are_those_of_nnls_pursuit(seed: int, n: int, ridge: float) -> None:
    points = gradients_of(n, seed, d=8)
    count = max(1, n // 3)
    expected = slow_pursuit(points, ridge, count)
    if len(expected) < count:
        return
    picked = many(n, grad_sketch=points).select(GradMatchSelector(ridge), count)
    rows, _ = nonnegative_pursuit_of(points, ridge, count)
    if len(rows) < count:
        return  # the residual was spent, and a second pursuit began
    assert picked.rows.tolist() == list(expected)
    values = np.array(list(expected.values()))
    np.testing.assert_allclose(picked.weights, values / values.mean(), rtol=1e-5)


def nonnegative_pursuit_of(points, ridge, count):
    wide = points.astype(np.float64)
    scaled = ridge * (wide**2).sum(axis=1).mean()
    score = np.zeros(len(wide))
    return nonnegative_pursuit(
        wide, wide.mean(axis=0), np.ones(len(wide), dtype=np.int64), count, scaled, 512, 0.01, score
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.sampled_from([1e-3, 0.1, 2.0]))
def test_pursuit_weights_are_the_optimum_of_their_rows(seed: int, n: int, ridge: float) -> None:
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((n, 4)) + rng.standard_normal(4) * rng.integers(0, 2)
    rows, weights = nonnegative_pursuit_of(points, ridge, n)
    if not rows:
        return
    scaled = ridge * (points**2).sum(axis=1).mean()
    residual = points.mean(axis=0) - weights @ points[rows]
    assert (weights > 0).all()
    np.testing.assert_allclose(points[rows] @ residual, scaled * weights, atol=1e-8)  # the gradient is 0


@pytest.mark.parametrize(
    "points",
    [
        np.zeros((6, 3)),
        np.ones((6, 3)),
        np.array([[1, 0], [-1, 0], [0, 1], [0, -1], [1, 1], [-1, -1]]),
        np.array([[1e-30, 0]] * 3 + [[0, 1e30]] * 3),
        np.array([[1, 0]] * 5 + [[-4, 0]]),
    ],
    ids=["zero", "equal", "mean zero", "scales", "one opposes"],
)
@pytest.mark.parametrize("name", ["gradmatch", "tagcos"])
def test_pursuit_always_ends_and_fills_the_budget(world, points, name) -> None:
    """The fault of published code: an endless loop when nothing points to the target."""
    scene = world([1] * 6, grad_sketch=points.astype(np.float32))
    for budget in (1, 3, 6):
        picked = scene.select(build_selector(name), budget)
        assert len(set(picked.rows.tolist())) == budget
        assert (picked.weights > 0).all()
        assert picked.weights.mean() == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["gradmatch", "tagcos"])
@pytest.mark.parametrize("ridge", [0, 0.0, -1.0])
def test_a_ridge_of_zero_is_refused(name, ridge) -> None:
    """The fault of published code: λ = 0, with weights that are not unique and explode."""
    with pytest.raises(RecipeError, match=f"selector '{name}': ridge"):
        build_selector(name, {"ridge": ridge})


def test_gradmatch_numbers_by_hand(world) -> None:
    # mean (1, 1): c correlates most; with λ · mean‖g‖² = .5 · 8/3 its weight is 4 / (8 + 4/3), and a residual is left
    scene = world([1] * 3, grad_sketch=[[1, 1], [0, 0], [2, 2]])
    picked = scene.select(GradMatchSelector(), 1)
    assert scene.names(picked) == "c"
    assert picked.weights.tolist() == [1.0]
    two = scene.select(GradMatchSelector(), 2)
    # ridge solution of both: proportional to the rows' products with the residual, so to their lengths
    assert dict(zip(scene.names(two), two.weights, strict=True)) == pytest.approx({"c": 4 / 3, "a": 2 / 3})


def test_gradmatch_needs_fewer_tokens_for_the_mean_than_a_draw() -> None:
    points = gradients_of(60, 4, d=6)
    picked = many(60, grad_sketch=points).select(GradMatchSelector(0.01), 5)
    mean, rng = points.mean(axis=0), np.random.default_rng(0)

    def error(rows, weights):
        return np.linalg.norm(weights @ points[rows] / weights.sum() - mean)

    draws = [error(rng.choice(60, 5, replace=False), np.ones(5)) for _ in range(200)]
    assert error(picked.rows, picked.weights) < np.quantile(draws, 0.1)


def test_tagcos_matches_the_mean_of_each_cluster(world) -> None:
    left, right = gradients_of(12, 1)[:, :3] * 0.05 + [5, 0, 0], gradients_of(6, 2)[:, :3] * 0.05 - [5, 0, 0]
    points = np.concatenate([left, right]).astype(np.float32)
    picked = many(18, grad_sketch=points).select(TAGCOSSelector(clusters=2), 6)
    cells = picked.scores["cell"]
    for part, share in ((np.arange(12), 4), (np.arange(12, 18), 2)):
        rows = picked.rows[np.isin(picked.rows, part)]
        assert len({*cells[part]}) == 1
        expected = gradient_matching(points[part], np.ones(len(part), dtype=np.int64), share, 0.5)
        assert rows.tolist() == part[expected.rows].tolist()
        weights = picked.weights[np.isin(picked.rows, part)]
        np.testing.assert_allclose(weights, expected.weights, rtol=1e-6)  # 3 candidates a pick in both


def test_tagcos_weights_of_a_cluster_sum_to_its_candidates() -> None:
    points = np.array([[5, 0]] * 9 + [[-5, 0]] * 3, dtype=np.float32)
    scene = many(12, grad_sketch=points)
    scene.pool = dataclasses.replace(scene.pool, prompt_tokens=np.array([0] * 9 + [2] * 3))  # 9 and 9 tokens
    picked = scene.select(TAGCOSSelector(clusters=2), 6)
    is_left = points[picked.rows, 0] > 0
    assert (is_left.sum(), (~is_left).sum()) == (3, 1)
    assert picked.weights[is_left].sum() / picked.weights[~is_left].sum() == pytest.approx(9 / 3)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("importance", {"size": "loss"}),
        ("importance", {"uniform_share": 1.5}),
        ("importance", {"uniform_share": -0.1}),
        ("craig", {"references": 0}),
        ("gradmatch", {"atoms": 0}),
        ("tagcos", {"clusters": 0}),
    ],
)
def test_parameters_of_weighted_methods_are_checked(name, parameters) -> None:
    with pytest.raises(RecipeError, match=f"selector '{name}'"):
        build_selector(name, parameters)


def many(n, **columns) -> World:
    return World([1] * n, ids=[f"{row:04}" for row in range(n)], **columns)
