"""Methods of the field that read grades, against slow loops and numbers worked out by hand, with grades missing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from longgame.errors import RecipeError
from longgame.selection.base import build_selector
from longgame.selection.budget import missing_last
from longgame.selection.methods.alpagasus import AlpaGasusSelector
from longgame.selection.methods.deita import DEITASelector
from longgame.selection.methods.diversity import DiversitySelector
from longgame.selection.methods.mods import MoDSSelector
from longgame.selection.methods.qdit import QDITSelector
from longgame.selection.methods.quality import QualitySelector

NAN = math.nan


def test_alpagasus_picks_the_highest_grades_from_the_threshold(world) -> None:
    scene = world([1] * 5, grade=[4.5, 5.0, 4.4, 4.5, 2.0])
    selection = scene.select(AlpaGasusSelector(rejected="never"), 5)
    assert scene.names(selection) == "bad"
    assert selection.scores["accepted"].tolist() == [1, 1, 0, 1, 0]
    assert scene.picks(AlpaGasusSelector(), 5) == "badce"
    assert scene.picks(AlpaGasusSelector(threshold=2, rejected="never"), 5) == "badce"


def test_alpagasus_never_takes_a_missing_grade_for_a_number(world) -> None:
    """FIELD.md: a failed parse becomes −1 or the first digit in published code."""
    scene = world([1] * 4, grade=[NAN, 1.0, NAN, 4.8])
    assert scene.picks(AlpaGasusSelector(threshold=-5, rejected="never"), 4) == "db"
    selection = scene.select(AlpaGasusSelector(), 4)
    assert scene.names(selection) == "dbac"
    assert np.isnan(selection.scores["grade"]).tolist() == [True, False, True, False]
    assert selection.scores["accepted"].tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(
    "selector",
    [
        QualitySelector(),
        DEITASelector(),
        DEITASelector(complexity="complexity", quality="grade"),
        DiversitySelector("threshold"),
        AlpaGasusSelector(),
        MoDSSelector(),
        QDITSelector(alpha=1.0),
    ],
)
def test_missing_grades_come_after_all_others(world, selector) -> None:
    rng = np.random.default_rng(0)
    n, missing = 20, [3, 8, 15]
    columns = {name: rng.uniform(0.1, 1, n) for name in ("quality", "grade", "complexity", "own_answer_quality")}
    for name in ("quality", "grade"):
        columns[name][missing] = NAN
    columns |= {"difficulty": rng.uniform(0.1, 1, n), "embedding": rng.standard_normal((n, 4))}
    scene = world([1] * n, ids=[f"{row:02}" for row in range(n)], **columns)
    rows = scene.select(selector, n).rows.tolist()
    assert len(rows) == n
    assert set(rows[-3:]) == set(missing)
    assert not set(scene.select(selector, n - 3).rows.tolist()) & set(missing)


def test_all_grades_missing_leave_the_order_of_ids(world) -> None:
    assert world([1] * 3, grade=[NAN] * 3).picks(AlpaGasusSelector(), 3) == "abc"


def test_missing_last_leaves_complete_values_as_they_are() -> None:
    values = np.asarray([0.5, 0.25], dtype=np.float32)
    assert missing_last(values) is values
    assert missing_last(np.asarray([3.0, NAN, 1.0])).tolist() == [3.0, -2.0, 1.0]


def test_deita_multiplies_both_grades_on_their_scales(world) -> None:
    scene = world([1] * 4, complexity=[6, 1, 3, 2], grade=[1, 6, 4, 2], embedding=np.eye(4))
    selection = scene.select(DEITASelector(complexity="complexity", quality="grade"), 4)
    assert scene.names(selection) == "cabd"
    assert selection.scores["score"].tolist() == [6, 6, 12, 4]
    with pytest.raises(RecipeError, match="complexity is 'difficulti'"):
        build_selector("deita", {"complexity": "difficulti"})


def slow_mods(points, quality, answered, costs, budget, theta, beta, share):
    """The three steps as loops over all distances; ids are in the order of the rows."""
    picks: list[int] = []
    good = [row for row in range(len(points)) if quality[row] >= theta]
    needed = [row for row in good if not answered[row] >= beta]
    for candidates, limit in ((good, round(share * budget)), (needed, budget), (good, budget)):
        rows = [row for row in candidates if row not in picks]
        first = not picks
        center = np.mean([points[row] for row in rows], axis=0) if rows else None
        while True:
            left = limit - sum(costs[row] for row in picks)
            open_rows = [row for row in rows if row not in picks and costs[row] <= left]
            if not open_rows:
                break
            if first:
                chosen = min(open_rows, key=lambda row: (float(np.linalg.norm(points[row] - center)), row))
                first = False
            else:
                nearest = {row: min(float(np.linalg.norm(points[row] - points[p])) for p in picks) for row in open_rows}
                chosen = max(open_rows, key=lambda row: (nearest[row], -row))
            picks.append(chosen)
    for row in sorted(range(len(points)), key=lambda row: (-quality[row] if quality[row] == quality[row] else 9, row)):
        if row not in picks and costs[row] <= budget - sum(costs[p] for p in picks):
            picks.append(row)
    return picks


@pytest.mark.parametrize("seed", range(6))
def test_mods_follows_its_three_steps(world, seed) -> None:
    rng = np.random.default_rng(seed)
    n = 24
    points = rng.standard_normal((n, 3)).astype(np.float32).astype(np.float64)
    quality, answered = (rng.uniform(0, 1, n).astype(np.float32).astype(np.float64) for _ in range(2))
    quality[rng.integers(n)] = answered[rng.integers(n)] = NAN
    costs = rng.integers(1, 4, n)
    scene = world(
        costs, ids=[f"{r:02}" for r in range(n)], quality=quality, own_answer_quality=answered, embedding=points
    )
    share = (0.5, 0.0, 1.0)[seed % 3]
    selection = scene.select(MoDSSelector(threshold=0.4, answer_threshold=0.6, seed_share=share), 25)
    expected = slow_mods(points, quality, answered, costs, 25, 0.4, 0.6, share)
    assert selection.rows.tolist() == expected
    strict = scene.select(MoDSSelector(threshold=0.4, rejected="never"), 60)
    assert all(quality[row] >= 0.4 for row in strict.rows)
    np.testing.assert_array_equal(selection.scores["quality"], quality)


def test_mods_prefers_what_the_model_answers_badly(world) -> None:
    scene = world(
        [1] * 4,
        quality=[0.9, 0.9, 0.9, 0.1],
        own_answer_quality=[0.9, 0.2, 0.9, 0.1],
        embedding=[[0.0], [0.1], [5.0], [9.0]],
    )
    assert scene.picks(MoDSSelector(seed_share=0.0), 1) == "b"
    assert scene.picks(MoDSSelector(seed_share=0.0), 4) == "bcad"


def test_mods_reads_the_embeddings_of_the_pool_at_hand(world) -> None:
    """FIELD.md: published code keeps a cache of embeddings that belong to another pool."""
    columns = {"quality": [0.9] * 6, "own_answer_quality": [0.1] * 6}
    first = world([1] * 6, embedding=np.eye(6)[:, :3], **columns)
    second = world([1] * 6, embedding=np.arange(12).reshape(6, 2) ** 2, **columns)
    selector = MoDSSelector()
    first.select(selector, 3)
    assert second.select(selector, 3).rows.tolist() == second.select(MoDSSelector(), 3).rows.tolist()
