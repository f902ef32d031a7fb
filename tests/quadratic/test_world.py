import dataclasses

import numpy as np
import pytest

from longgame.errors import DataError, RecipeError
from longgame.quadratic.world import QuadraticWorld, WorldSpec, skill_name
from longgame.recipe import parse_recipe

SPEC = WorldSpec(stages=("a", "b", "c"), ood=("a-rotated", "b-shifted"), pool_size=400, noise=0.1, unseen=0.25)


@pytest.fixture(scope="module")
def world():
    return QuadraticWorld(SPEC, 3)


def test_a_seed_names_one_world(world):
    again, other = QuadraticWorld(SPEC, 3), QuadraticWorld(SPEC, 4)
    assert again.sequence == world.sequence
    np.testing.assert_array_equal(again.features, world.features)
    assert not set(other.index) & set(world.index)


def test_ids_lead_to_the_rows_they_were_drawn_with(world):
    for stage in world.sequence.stages:
        for example in (*stage.candidates[:50], *stage.task.items[:5], *stage.proxy):
            row = world.index[example.sample_id]
            assert float(example.response) == pytest.approx(world.labels[row], abs=1e-6)
            assert example.skill == skill_name(world.capability[row])
            assert example.quality == world.quality[row]


def test_pool_holds_the_stated_copies_noise_and_token_costs(world):
    for stage in world.sequence.stages:
        rows = world.rows([example.sample_id for example in stage.candidates])
        copies = [example for example in stage.candidates if "#" in example.sample_id]
        assert len(copies) == round(SPEC.duplicates * SPEC.pool_size)
        noisy = np.array([example.noisy for example in stage.candidates])
        np.testing.assert_array_equal(noisy, world.label_sd[rows] == SPEC.damage)
        assert 0.04 < noisy.mean() < 0.17
        tokens = (world.prompt_tokens + world.response_tokens)[rows]
        assert tokens.min() == 8
        assert tokens.max() == 24
    for copy in copies:
        original = world.index[copy.sample_id.partition("#")[0]]
        row = world.index[copy.sample_id]
        assert world.label_of[row] == world.label_of[original]
        np.testing.assert_array_equal(world.features[row], world.features[original])


def test_noisy_examples_carry_lower_quality(world):
    noisy = world.label_sd == SPEC.damage
    assert world.quality[noisy].mean() < world.quality[~noisy].mean() - 0.15


def test_unseen_share_of_a_pool_is_what_was_asked(world):
    big = QuadraticWorld(dataclasses.replace(SPEC, pool_size=4000), 0)
    pool = big.capability[: big.candidates]
    assert np.isin(pool, big.unseen_capabilities).mean() == pytest.approx(0.25, abs=0.02)
    assert not QuadraticWorld(dataclasses.replace(SPEC, unseen=0.0), 0).unseen_capabilities


def test_closed_form_loss_is_the_mean_over_fresh_draws():
    spec = dataclasses.replace(SPEC, pool_size=2, items_per_skill=4_000, ood_items_per_skill=4_000, label_noise=0.0)
    world = QuadraticWorld(spec, 1)
    theta = world.base + 0.3
    exact = world.sub_skill_losses(theta)
    for task in world.sequence.tasks:
        rows = world.rows([item.sample_id for item in task.items])
        losses = 0.5 * (world.features[rows] @ theta - world.labels[rows]) ** 2
        sampled = losses.reshape(len(exact[task.name]), -1).mean(axis=1)
        np.testing.assert_allclose(sampled, exact[task.name], rtol=0.12)


def test_base_is_the_best_fit_to_what_it_has_seen_and_blind_elsewhere(world):
    gradient = np.zeros(SPEC.dimensions)
    for name in SPEC.stages:
        population = world.populations[name]
        for k, covariance in zip(population.skills, population.covariances, strict=True):
            if k not in world.unseen_capabilities:
                gradient += covariance @ (world.base - population.optimum)
    np.testing.assert_allclose(gradient, 0, atol=1e-4)
    for k in world.unseen_capabilities:
        direction = next(
            p.covariances[p.skills.index(k)] for p in world.populations.values() if k in p.skills and "-" not in p.name
        )
        np.testing.assert_allclose(direction @ world.base, 0, atol=1e-8)


def some_batches(world, steps=12, size=5):
    rng = np.random.default_rng(0)
    ids = [example.sample_id for stage in world.sequence.stages for example in stage.candidates]
    copies = [name for name in ids if "#" in name][:6]
    batches = [[ids[i] for i in rng.choice(len(ids), size, replace=False)] for _ in range(steps)]
    return [*batches, copies, [name.partition("#")[0] for name in copies]], rng.uniform(0.02, 0.15, steps + 2)


def test_outcome_is_where_step_by_step_descent_ends(world):
    batches, rates = some_batches(world)
    theta = world.base.copy()
    for batch, rate in zip(batches, rates, strict=True):
        gradient = np.zeros_like(theta)
        for name in batch:
            a, y = world.features[world.index[name]], world.labels[world.index[name]]
            gradient += a * (a @ theta - y) / len(batch)
        theta = theta - rate * (gradient + 0.1 * theta)
    outcome = world.outcome(batches, rates, weight_decay=0.1)
    np.testing.assert_allclose(outcome.theta, theta, atol=1e-12)
    assert outcome.losses == pytest.approx(world.losses(theta))


def test_expected_outcome_is_the_mean_over_redrawn_labels(world):
    batches, rates = some_batches(world)
    rng = np.random.default_rng(7)
    rows = [world.rows(batch) for batch in batches]
    draws = 4000
    noise = rng.standard_normal((draws, len(world.labels)))
    theta = np.tile(world.base, (draws, 1))
    for batch, rate in zip(rows, rates, strict=True):
        a = world.features[batch]
        y = world.clean_labels[batch] + world.label_sd[batch] * noise[:, world.label_of[batch]]
        theta = theta - rate * (theta @ a.T - y) @ a / len(batch)
    expected = world.outcome(batches, rates).expected
    for name, population in world.populations.items():
        away = theta - population.optimum
        losses = 0.5 * np.einsum("nd,de,ne->n", away, population.curvature, away)
        error = losses.std() / np.sqrt(draws)
        assert expected[name] == pytest.approx(losses.mean(), abs=5 * error)


def test_foreign_ids_and_impossible_worlds_are_refused(world):
    with pytest.raises(DataError, match="not of the quadratic world of seed 3"):
        world.rows(["0123456789abcdef"])
    with pytest.raises(DataError, match="as many learning rates"):
        world.outcome([], np.ones(1))
    with pytest.raises(RecipeError, match="different names"):
        QuadraticWorld(dataclasses.replace(SPEC, ood=("a",)), 0)


def test_recipe_names_the_stages_and_sizes(recipe):
    spec = WorldSpec.of(recipe)
    assert (spec.stages, spec.ood, spec.pool_size) == (("a", "b", "c"), ("a-rotated", "b-shifted"), 120)
    plain = parse_recipe(
        {"name": "x", "model": {"name": "quadratic"}, "data": {"sequence": "quadratic"}, "selectors": ["random"]}
    )
    assert len(WorldSpec.of(plain).stages) == 5
