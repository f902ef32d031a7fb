"""TSDS against the linear program of its paper."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linprog

from longgame.errors import RecipeError
from longgame.selection.base import build_selector
from longgame.selection.methods import tsds
from longgame.selection.methods.tsds import TSDSSelector, transport_masses


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def slow_masses(units, targets, alpha, reach):
    """Σ_i γ_ij of the paper's problem by a general solver: variables γ and the cap t."""
    gaps = np.linalg.norm(targets[:, None] - units[None], axis=2)
    pairs = np.linalg.norm(units[:, None] - units[None], axis=2)
    density = np.maximum(0, 1 - pairs**2 / reach**2).sum(axis=1)
    (m, n), scale = gaps.shape, gaps.mean()
    costs = np.r_[alpha / scale * gaps.ravel(), 1 - alpha]
    rows = np.kron(np.eye(m), np.ones(n))
    caps = np.hstack([np.diag(np.tile(m * density, m)), -np.ones((m * n, 1))])
    answer = linprog(
        costs,
        A_eq=np.hstack([rows, np.zeros((m, 1))]),
        b_eq=np.full(m, 1 / m),
        A_ub=caps,
        b_ub=np.zeros(m * n),
        method="highs",
    )
    return answer.x[:-1].reshape(m, n).sum(axis=0), density, answer.fun, costs


@pytest.mark.parametrize("alpha", [0.05, 0.4, 0.6, 0.9])
@pytest.mark.parametrize("first", [2, 64])
def test_tsds_masses_are_those_of_the_linear_program(alpha, first, monkeypatch):
    monkeypatch.setattr(tsds, "_FIRST_NEIGHBORS", first)
    rng = np.random.default_rng(3)
    units, targets = unit(rng.normal(size=(14, 3))), unit(rng.normal(size=(4, 3)))
    units[5] = units[2]  # a duplicate
    expected, density, _, _ = slow_masses(units, targets, alpha, 0.6)
    mass, measured, distance = transport_masses(units, targets, alpha, 0.6)
    assert mass.sum() == pytest.approx(1)
    np.testing.assert_allclose(mass, expected, atol=1e-7)
    np.testing.assert_allclose(measured[mass > 0], density[mass > 0], rtol=1e-9)
    np.testing.assert_allclose(distance, np.linalg.norm(units[:, None] - targets, axis=2).min(axis=1), atol=1e-7)


def test_tsds_copies_share_the_mass_of_one(world):
    rng = np.random.default_rng(0)
    units, targets = unit(rng.normal(size=(12, 4))), unit(rng.normal(size=(3, 4)))
    alone = transport_masses(units, targets, 0.5, 0.01)[0]
    copied = transport_masses(np.concatenate([units, units[:1], units[:1]]), targets, 0.5, 0.01)[0]
    group = copied[0] + copied[12:].sum()
    # the mean distance C moves a little with the copies
    assert group == pytest.approx(alone[0], rel=0.2)


def scene_of(world, n=20):
    rng = np.random.default_rng(1)
    names = [f"{row:02d}" for row in range(n)]
    return world([1] * n, names, embedding=rng.normal(size=(n, 4)), target_embedding=rng.normal(size=(3, 4)))


def test_tsds_draws_without_replacement_and_seeded(world):
    scene = scene_of(world)
    first = scene.select(TSDSSelector(), 20, seed=1)
    assert len(set(first.rows.tolist())) == 20
    assert scene.picks(TSDSSelector(), 8, seed=1) == scene.picks(TSDSSelector(), 8, seed=1)
    assert scene.picks(TSDSSelector(), 8, seed=1) != scene.picks(TSDSSelector(), 8, seed=2)


def test_tsds_prefers_mass_then_closeness(world):
    scene = scene_of(world)
    selection = scene.select(TSDSSelector(alpha=1.0), 20)
    scores = selection.scores
    has_mass = scores["mass"] > 0
    assert 1 <= has_mass.sum() <= 3  # each target's nearest candidate alone
    assert has_mass[selection.rows[: has_mass.sum()]].all()
    rest = selection.rows[has_mass.sum() :]
    assert (np.diff(scores["distance"][rest]) >= 0).all()


@pytest.mark.parametrize("parameters", [{"alpha": 0}, {"alpha": 2}, {"epsilon": 0}, {"epsilon": 3}])
def test_tsds_refuses_values_out_of_range(parameters):
    with pytest.raises(RecipeError, match=next(iter(parameters))):
        build_selector("tsds", parameters)
