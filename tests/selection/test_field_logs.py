"""Methods of a training log, each against its formula on numbers worked out by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from longgame.errors import RecipeError
from longgame.selection.base import build_selector
from longgame.selection.methods.cartography import CartographySelector
from longgame.selection.methods.forgetting_events import ForgettingEventsSelector
from longgame.selection.methods.s2l import S2LSelector

ACCURACIES = [
    [0.9, 0.2, 0.9, 0.2],  # a: forgotten twice
    [0.1, 0.5, 0.6, 0.9],  # b: learned, never forgotten
    [0.4, 0.4, 0.1, 0.4],  # c: never learned
    [0.5, 0.5, 0.49, 0.9],  # d: forgotten once
]


def test_forgetting_events_count_right_then_wrong(world) -> None:
    scene = world([1] * 4, accuracy_trajectory=ACCURACIES)
    selection = scene.select(ForgettingEventsSelector(), 4)
    assert selection.scores["events"].tolist() == [2, 0, 0, 1]
    assert selection.scores["learned"].tolist() == [1, 1, 0, 1]
    assert scene.names(selection) == "cadb"


def test_forgetting_never_learned_is_above_any_count(world) -> None:
    # coded as the number of presentations of a shorter log it would tie with, or come behind, what is forgotten often
    for epochs in range(2, 8):
        rows = [list(values) for values in itertools.product([0.0, 1.0], repeat=epochs)]
        scene = world([1] * len(rows), [f"{row:03d}" for row in range(len(rows))], accuracy_trajectory=rows)
        scores = scene.select(ForgettingEventsSelector(), 1).scores
        never = scores["learned"] == 0
        assert never.sum() == 1
        assert scores["score"][never][0] > scores["score"][~never].max()
    last = scene.select(ForgettingEventsSelector(never_learned="last"), 1).scores["score"]
    assert last[never][0] < last[~never].min()


def test_forgetting_threshold_defines_what_is_right(world) -> None:
    scene = world([1] * 4, accuracy_trajectory=ACCURACIES)
    scores = scene.select(ForgettingEventsSelector(threshold=0.4), 4).scores
    assert scores["events"].tolist() == [2, 0, 1, 0]
    assert scores["learned"].tolist() == [1, 1, 1, 1]


def test_cartography_is_mean_and_population_sd_of_exp(world) -> None:
    losses = [[math.log(2), math.log(4)], [0.0, math.log(2)], [math.log(8), math.log(8)]]  # ½ ¼ · 1 ½ · ⅛ ⅛
    scene = world([1] * 3, loss_trajectory=losses)
    selection = scene.select(CartographySelector(), 3)
    assert selection.scores["confidence"] == pytest.approx([0.375, 0.75, 0.125])
    assert selection.scores["variability"] == pytest.approx([0.125, 0.25, 0.0], abs=1e-7)
    assert scene.names(selection) == "bac"
    assert scene.picks(CartographySelector("hard"), 3) == "cab"
    assert scene.picks(CartographySelector("easy"), 3) == "bac"


@pytest.mark.parametrize("k", range(1, 7))
def test_cartography_picks_the_k_most_extreme(world, k) -> None:
    # the published code's slices are off by one
    losses = np.arange(12.0).reshape(6, 2) ** 1.5 / 10
    scene = world([1] * 6, loss_trajectory=losses)
    variability = np.exp(-losses).std(axis=1)
    expected = "".join("abcdef"[row] for row in np.argsort(-variability)[:k])
    assert scene.picks(CartographySelector(), k) == expected


def groups(sizes) -> list[list[float]]:
    """Trajectories around (number, number) for each group."""
    rng = np.random.default_rng(1)
    return [[10 * number + rng.uniform(), 10 * number] for number, size in enumerate(sizes) for _ in range(size)]


def test_s2l_gives_equal_shares_from_the_smallest_on(world) -> None:
    sizes = [2, 5, 20]
    scene = world([1] * 27, [f"{row:02d}" for row in range(27)], loss_trajectory=groups(sizes))
    for budget, shares in ((3, [1, 1, 1]), (9, [2, 3, 4]), (12, [2, 5, 5]), (20, [2, 5, 13]), (27, sizes)):
        selection = scene.select(S2LSelector(3), budget)
        cluster = np.repeat([0, 1, 2], sizes)
        assert np.bincount(cluster[selection.rows], minlength=3).tolist() == shares
        assert selection.scores["cluster"].tolist() == cluster.tolist()
        # the smallest cluster first
        assert (np.diff(cluster[selection.rows]) >= 0).all()


def test_s2l_prefers_rare_curves_with_less_than_a_row_a_cluster(world) -> None:
    n, rng = 400, np.random.default_rng(1)
    rare = np.arange(n) >= 340
    common = np.linspace(3, 1, 4) + 0.05 * rng.normal(size=(n, 4))
    curves = np.where(rare[:, None], rng.uniform(0, 6, size=(n, 4)), common)
    scene = world(rng.integers(5, 41, n).tolist(), [f"{row:03d}" for row in range(n)], loss_trajectory=curves)
    selection = scene.select(S2LSelector(), int(scene.pool.costs.sum()) // 20)  # 20 rows, and 100 clusters asked for
    assert rare[selection.rows].mean() > 0.5


def test_s2l_draws_a_few_candidates_by_the_seed(world) -> None:
    curves = np.random.default_rng(2).uniform(0, 6, size=(80, 4))
    scene = world([10] * 80, [f"{row:02d}" for row in range(80)], loss_trajectory=curves)
    first, second = ({*scene.select(S2LSelector(), 200, seed=seed).rows.tolist()} for seed in (0, 7))
    assert len(first & second) < 15  # of 20


def test_s2l_is_seeded(world) -> None:
    scene = world([1] * 27, [f"{row:02d}" for row in range(27)], loss_trajectory=groups([2, 5, 20]))
    draws = {scene.picks(S2LSelector(3), 9, seed=seed) for seed in (0, 0, 1, 2)}
    assert len(draws) == 3


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("forgetting-events", {"threshold": 0}),
        ("forgetting-events", {"threshold": 1.5}),
        ("forgetting-events", {"never_learned": "maybe"}),
        ("cartography", {"region": "middle"}),
        ("s2l", {"clusters": 0}),
    ],
)
def test_log_methods_refuse_values_out_of_range(name, parameters) -> None:
    with pytest.raises(RecipeError, match=next(iter(parameters))):
        build_selector(name, parameters)
