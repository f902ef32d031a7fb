from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from longgame.selection.algorithms.farthest import farthest_first
from longgame.selection.history import History, Selection
from longgame.selection.methods.diversity import DiversitySelector


def textbook(points: np.ndarray, tokens: list[int], budget: int, known: np.ndarray | None) -> list[int]:
    """Gonzalez' loop as it stands in the book: every distance anew, candidates that no longer fit left out."""
    picks: list[int] = []
    left = budget
    while True:
        rest = [row for row in range(len(points)) if row not in picks and tokens[row] <= left]
        if not rest:
            return picks
        centres = [points[row] for row in picks] + ([] if known is None else list(known))
        if centres:
            gap = {row: min(((points[row] - centre) ** 2).sum() for centre in centres) for row in rest}
            row = max(rest, key=lambda row: (gap[row], -row))
        else:
            gap = {row: ((points[row] - points.mean(axis=0)) ** 2).sum() for row in rest}
            row = min(rest, key=lambda row: (gap[row], row))
        picks.append(row)
        left -= tokens[row]


@st.composite
def clouds(draw) -> tuple[np.ndarray, list[int], int, np.ndarray | None]:
    n, d = draw(st.sampled_from([1, 2, 4, 8, 16])), draw(st.integers(1, 3))  # powers of two: the mean is exact
    grid = st.integers(-4, 4).map(float)  # small integers: sums are exact and ties are many
    points = draw(hnp.arrays(np.float32, (n, d), elements=grid))
    known = draw(st.none() | hnp.arrays(np.float32, (2, d), elements=grid))
    tokens = draw(st.lists(st.integers(1, 9), min_size=n, max_size=n))
    return points, tokens, draw(st.integers(min(tokens), 60)), known


@settings(max_examples=300, deadline=None)
@given(clouds())
def test_farthest_first_picks_what_the_textbook_loop_picks(case) -> None:
    points, tokens, budget, known = case
    rows, _ = farthest_first(points, np.array(tokens), budget, known)
    assert rows.tolist() == textbook(points, tokens, budget, known)


@given(seed=st.integers(0, 200))
def test_it_does_so_on_points_in_general_position(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((30, 6)).astype(np.float32)
    tokens = rng.integers(1, 9, 30)
    rows, distance = farthest_first(points, tokens, 50)
    assert rows.tolist() == textbook(points.astype(np.float64), tokens.tolist(), 50, None)
    assert (np.diff(distance[rows]) <= 0).all()


def test_a_line_by_hand(world) -> None:
    # mean 4.4 → d (4) first, then f (10), a (0), then b (2: 2 from a and d), c and e (1 from d): c by id
    scene = world([1] * 6, embedding=[[0], [2], [5], [4], [5.5], [10]])
    chosen = scene.select(DiversitySelector(), 4)
    assert scene.names(chosen) == "dfab"
    assert chosen.scores["score"].tolist() == [4.0, 2.0, 1.0, 6.0, 1.5, 6.0]


def test_duplicates_come_last_by_id(world) -> None:
    scene = world([1] * 5, ids="edcba", embedding=[[1, 1], [1, 1], [5, 5], [1, 1], [5, 5]])
    picks = scene.picks(DiversitySelector(), 5)
    assert {picks[0], picks[1]} == {"a", "b"}
    assert picks[2:] == "cde"


def test_history_decides_the_first_pick_only_if_asked(world) -> None:
    scene = world([1] * 4, embedding=[[0], [1], [2], [9]])
    history = scene.remembered([3])
    assert scene.picks(DiversitySelector(use_history=True), 2, history) == "ac"
    assert scene.picks(DiversitySelector(), 2, history) == scene.picks(DiversitySelector(), 2, History())


def test_without_any_history_use_history_starts_at_the_centre(world) -> None:
    scene = world([1] * 4, embedding=[[0], [1], [2], [9]])
    assert scene.picks(DiversitySelector(use_history=True), 4) == scene.picks(DiversitySelector(), 4)


def test_k_means_deals_over_the_clusters(world) -> None:
    # three blobs of 4, 3 and 2; the budget holds three: one of each, the larger blob first
    blobs = [[0, 0], [0, 1], [1, 0], [1, 1], [50, 50], [50, 51], [51, 50], [-50, 50], [-51, 50]]
    scene = world([1] * 9, embedding=blobs)
    blob_of = {name: blob for blob, names in enumerate(("abcd", "efg", "hi")) for name in names}
    for seed in range(5):
        chosen = scene.select(DiversitySelector("k-means"), 3, seed=seed)
        assert [blob_of[name] for name in scene.names(chosen)] == [0, 1, 2]
    dealt = scene.select(DiversitySelector("k-means", clusters=3), 9)
    assert [blob_of[name] for name in scene.names(dealt)] == [0, 1, 2, 0, 1, 2, 0, 1, 0]
    assert dealt.scores["centre_distance"][0] == pytest.approx(np.sqrt(0.5))
    assert dealt.scores["score"][dealt.rows] == pytest.approx(1 - np.arange(9) / 9)


def test_k_means_takes_fewer_clusters_where_points_coincide(world, recwarn) -> None:
    scene = world([1] * 6, embedding=[[0, 0]] * 5 + [[3, 3]])
    assert len(scene.picks(DiversitySelector("k-means", clusters=4), 3)) == 3
    assert not recwarn.list


def test_history_of_the_same_stage_counts(world) -> None:
    scene = world([1] * 4, embedding=[[0], [1], [2], [9]])
    history, selector = History(), DiversitySelector(use_history=True)
    picked = []
    for _ in range(3):
        chosen = scene.select(selector, 1, history)
        history.update(Selection.of(scene.pool, chosen.rows), scene.pool, scene.signals)
        picked += scene.names(chosen)
    assert picked == ["c", "d", "a"]
