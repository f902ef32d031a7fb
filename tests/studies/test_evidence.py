"""Proposition 1 on the quadratic world itself: real gradients of real picks, true losses of the next stage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from longgame.quadratic.learner import QuadraticLearner, build_quadratic_sequence
from longgame.seeding import generator
from studies.theory.__main__ import app
from studies.theory.evidence import NEXT, NOW, next_loss, ordering_table, stage_summary, stage_table, theory_recipe
from studies.theory.proposition import equal_gain_rate, ordering_holds, ordering_margin, quadratic_loss


@pytest.fixture(scope="module")
def worlds():
    """Per seed: the learner and the exact gradients of the first stage's candidates."""
    recipe = theory_recipe()
    pairs = []
    for seed in range(3):
        learner = QuadraticLearner(recipe, seed)
        pool = build_quadratic_sequence(recipe, seed).stages[0].pool
        a, y = pool.info["features"], pool.info["label"]
        pairs.append((learner, a * (a @ learner.theta - y)[:, None]))
    return pairs


def drawn(worlds, case):
    world, draw, batch = case
    learner, gradients = worlds[world]
    rows = generator(draw, "batches").permutation(len(gradients))[: 2 * batch].reshape(2, batch)
    return learner, gradients[rows].mean(axis=1)


cases = st.tuples(st.integers(0, 2), st.integers(0, 10_000), st.integers(1, 40))


@settings(max_examples=80, deadline=None)
@given(cases, st.floats(1e-3, 30))
def test_exact_condition_has_the_sign_of_the_true_difference(worlds, case, rate):
    learner, (a, b) = drawn(worlds, case)
    population = learner.world.populations[NEXT]
    first, second = (next_loss(learner.world, learner.theta - rate * g) for g in (a, b))
    ahead = (learner.theta, rate, population.optimum, population.curvature)
    assert ordering_margin(a, b, *ahead) == pytest.approx(first - second, abs=1e-9 * max(first, second))
    if abs(first - second) > 1e-10 * max(first, second):
        assert ordering_holds(a, b, *ahead) == (first > second)


@settings(max_examples=80, deadline=None)
@given(cases, st.floats(1e-3, 3))
def test_equal_gain_is_equal_now_and_condition_orders_the_next(worlds, case, rate):
    learner, (a, b) = drawn(worlds, case)
    world, theta = learner.world, learner.theta
    now, following = world.populations[NOW], world.populations[NEXT]
    step = equal_gain_rate(a, rate, b, theta, now.optimum, now.curvature)
    if np.isnan(step):  # nowhere along b is the current loss as low (or high) as after a
        target = quadratic_loss(theta - rate * a, now.optimum, now.curvature)
        losses = np.array(
            [quadratic_loss(theta - s * b, now.optimum, now.curvature) for s in np.geomspace(1e-4, 1e3, 400)]
        )
        assert (losses > target).all() or (losses < target).all()
        return
    assert step > 0
    after = [world.losses(theta - moved)[NOW] for moved in (rate * a, step * b)]
    assert after[0] == pytest.approx(after[1], rel=1e-7)
    first, second = (next_loss(world, theta - moved) for moved in (rate * a, step * b))
    if abs(first - second) > 1e-9 * max(first, second):
        predicted = ordering_holds(rate * a, step * b, theta, 1.0, following.optimum, following.curvature)
        assert predicted == (first > second)


def test_tables_count_exact_condition_right_at_every_rate():
    table = {row["rate"]: row for row in ordering_table(worlds=2, pairs=30, rates=(0.01, 10.0))}
    assert all(row["exact"] == row["exact, equal gain"] == 1 for row in table.values())
    assert table[0.01]["paper"] > 0.95 > table[10.0]["paper"]
    stages = stage_table(worlds=2, selectors=("random", "loss"), directions=2_000)
    for row in stages:
        assert row["least"] <= row["relative_variance"] <= row["greatest"]
    summary = {row["selector"]: row for row in stage_summary(stages)}
    assert summary["loss"]["exact"] == 1
    assert np.isnan(summary["random"]["higher"])


def test_command_prints_tables_and_writes_its_figure(tmp_path):
    done = CliRunner().invoke(app, ["--worlds", "1", "--out", str(tmp_path), "--json", str(tmp_path / "t.json")])
    lines = done.output.rstrip().splitlines()
    assert done.exit_code == 0, done.output
    assert [line.split()[1] for line in lines[-4:]] == [
        "theory.exact_condition_right",
        "theory.exact_condition_right.stage",
        "theory.variance_outside_bounds",
        "theory.variance_formula_error",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.json", "theory.png", "theory.svg"]
