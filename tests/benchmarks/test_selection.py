"""Both sides of the selection benchmark do the same job, and its growth exponent is one."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import selection
from longgame.selection.base import build_selector
from longgame.selection.budget import fill_by_score
from longgame.selection.history import History


@pytest.mark.parametrize("name", sorted(selection.CLOUDS))
def test_the_textbook_side_and_ours_pick_the_same_rows(name: str) -> None:
    rows = selection.CLOUDS[name](400)
    assert selection.textbook(rows, 60).tolist() == selection.lazy(rows, 60).tolist()


def test_both_top_k_sides_pick_the_same_rows() -> None:
    rng = np.random.default_rng(0)
    score, tokens = rng.integers(0, 9, 300).astype(np.float32), rng.integers(1, 50, 300)
    ids = tuple(str(number) for number in rng.permutation(300))
    expected = selection.sorted_walk(score, ids, tokens, 900)
    assert fill_by_score(score, ids, tokens, 900).tolist() == expected.tolist()


def test_growth_is_the_exponent() -> None:
    sizes = (10, 100, 1000)
    assert selection.growth(sizes, [3.0 * n for n in sizes]) == pytest.approx(1.0)
    assert selection.growth(sizes, [0.1 * n**2 for n in sizes]) == pytest.approx(2.0)


def test_the_mixture_is_made_of_clusters_of_unit_vectors() -> None:
    rows = selection.mixture(2000)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1.0, abs=1e-5)
    nearest = np.sort(rows @ rows.T, axis=1)[:, -2]
    assert np.median(nearest) > np.median(rows @ rows.T) + 0.2


@pytest.mark.parametrize("name", ["utility-diversity", "lhas"])
def test_the_scene_carries_every_signal_a_selector_asks_for(name: str) -> None:
    pool, signals = selection.scene(50)
    chosen = build_selector(name).select(pool, signals, History(), 500, np.random.default_rng(0))
    assert chosen.tokens <= 500
    assert len(chosen.rows)


def test_every_row_of_the_selection_benchmark_becomes_one_line():
    rows = [
        {"what": "top-k", "data": "random scores", "n": 1000, "k": None, "seconds": 0.25},
        {"what": "farthest-first", "data": "mixture", "n": 1000, "k": 10, "seconds": 1.5, "memory": 1.25},
    ]
    lines = selection.table(rows).splitlines()
    assert len(lines) == 3
    assert lines[1].split() == ["top-k", "random", "scores", "1000", "–", "0.25"]
    assert lines[2].endswith("1.5  memory 1.25")
