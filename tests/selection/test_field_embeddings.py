"""Methods of the field that read embeddings, each against its formula: a slow loop, or numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longgame.errors import RecipeError
from longgame.selection.algorithms import clusters
from longgame.selection.algorithms.clusters import without_near_duplicates
from longgame.selection.algorithms.nearest import unit_rows
from longgame.selection.base import build_selector
from longgame.selection.methods.d4 import D4Selector
from longgame.selection.methods.deita import DEITASelector
from longgame.selection.methods.diversity import DiversitySelector
from longgame.selection.methods.k_center import KCenterSelector
from longgame.selection.methods.prototypes import PrototypesSelector
from longgame.selection.methods.qdit import QDITSelector
from longgame.selection.methods.semdedup import SemDeDupSelector
from tests.selection.conftest import World


def on_circle(*degrees: float) -> np.ndarray:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def blobs(n: int, seed: int) -> np.ndarray:
    """Points about a few directions, many of them nearly equal."""
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((4, 5))
    spread = rng.choice([0.01, 0.2, 0.8], n)[:, None]
    return (centers[rng.integers(0, 4, n)] + spread * rng.standard_normal((n, 5))).astype(np.float32)


def test_k_center_picks_what_diversity_picks(world) -> None:
    scene = world([3] * 30, ids=[f"{row:02}" for row in range(30)], embedding=blobs(30, 1))
    plain, named = scene.select(DiversitySelector(), 40), scene.select(KCenterSelector(), 40)
    assert plain.rows.tolist() == named.rows.tolist()
    assert named.scores["score"].tolist() == plain.scores["score"].tolist()


def test_k_center_score_is_a_plain_distance_from_a_fixed_start(world) -> None:
    scene = world([1] * 3, embedding=[[0, 0], [0, 3], [0, 4]])  # mean (0, 7/3): b is nearest to it
    for seed in range(3):
        selection = scene.select(KCenterSelector(), 3, seed=seed)
        assert scene.names(selection) == "bac"
        assert selection.scores["score"].tolist() == [3.0, 3.0, 1.0]


def test_k_center_starts_from_earlier_picks_if_told_to(world) -> None:
    scene = world([1] * 3, embedding=[[0, 0], [0, 3], [0, 4]])
    assert scene.picks(KCenterSelector(use_history=True), 2, scene.remembered([0])) == "cb"


def test_prototypes_are_easy_first_at_small_budgets_only(world) -> None:
    # one cluster about 0°: b is at its center, a and c are 40° away, d 60°
    scene = world([1] * 4, embedding=on_circle(40, 5, -40, 60))
    order = "badc"  # center near 17°: 12, 23, 43, 57 degrees
    assert scene.picks(PrototypesSelector("easy", clusters=1), 4) == order
    assert scene.picks(PrototypesSelector("hard", clusters=1), 4) == order[::-1]
    auto = PrototypesSelector(clusters=1, easy_below=0.5)
    assert scene.picks(auto, 1) == order[0]
    assert scene.picks(auto, 2) == order[::-1][:2]


def test_prototypes_measure_unit_embeddings_to_their_own_center(world) -> None:
    points = np.concatenate([on_circle(0, 10, 20) * 50, on_circle(170, 180, 190)])
    scene = world([1] * 6, embedding=points)
    distance = scene.select(PrototypesSelector(clusters=2), 6).scores["distance"]
    units = points / np.linalg.norm(points, axis=1, keepdims=True)
    for part in (slice(0, 3), slice(3, 6)):
        expected = np.linalg.norm(units[part] - units[part].mean(axis=0), axis=1)
        assert distance[part] == pytest.approx(expected, abs=1e-5)


def slow_keep(points: np.ndarray, labels: np.ndarray, order: np.ndarray, epsilon: float) -> tuple[list, list]:
    """SemDeDup's rule, one pair at a time, in float64."""
    units = points.astype(np.float64) / np.linalg.norm(points.astype(np.float64), axis=1, keepdims=True)
    kept: list[int] = []
    closest = [-1.0] * len(points)
    for row in order.tolist():
        closest[row] = max([units[row] @ units[other] for other in kept if labels[other] == labels[row]], default=-1.0)
        if closest[row] <= 1 - epsilon:
            kept.append(row)
    return sorted(kept), closest


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60), st.floats(0.01, 1.5))
def test_semdedup_keeps_what_the_slow_loop_keeps(seed: int, n: int, epsilon: float) -> None:
    rng = np.random.default_rng(seed)
    points, labels, order = blobs(n, seed), rng.integers(0, 3, n), rng.permutation(n)
    expected, closest = slow_keep(points, labels, order, epsilon)
    if min(abs(value - 1 + epsilon) for value in closest) < 1e-5:
        return  # at the limit, rounding may decide
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clusters, "_BLOCK", int(rng.integers(1, 9)))
        kept, similarity = without_near_duplicates(unit_rows(points), labels, order, epsilon)
    assert np.flatnonzero(kept).tolist() == expected
    np.testing.assert_allclose(similarity, np.where(kept, np.nan, closest), atol=1e-5)


@pytest.mark.parametrize("mean", [0.0, 3.0])
@pytest.mark.parametrize("copies", [0.05, 0.9])
def test_semdedup_excludes_pairs_without_losing_any(mean: float, copies: float) -> None:
    # wide enough and in cells large enough for products of few directions; 0.9: too many close pairs for them
    rng = np.random.default_rng(5)
    points = rng.normal(mean, 1, (300, 160)).astype(np.float32)
    source = np.where(rng.random(300) < copies, rng.integers(0, 10, 300), np.arange(300))
    points = points[source] + 0.15 * rng.normal(size=points.shape).astype(np.float32)
    labels, order = np.repeat([0, 1], [290, 10]), rng.permutation(300)
    expected, closest = slow_keep(points, labels, order, 0.04)
    assert min(abs(value - 0.96) for value in closest) > 1e-5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clusters, "_BLOCK", 50)
        patch.setattr(clusters, "_SMALL", 20)
        kept, similarity = without_near_duplicates(unit_rows(points), labels, order, 0.04)
    assert np.flatnonzero(kept).tolist() == expected
    assert 0 < (~kept).sum() < 290
    np.testing.assert_allclose(similarity, np.where(kept, np.nan, closest), atol=1e-5)


def test_semdedup_counts_cosines_with_kept_examples_only(world) -> None:
    # 0°, 10°, 20° with a limit of 15°: the dropped 10° must not drop the third one
    points, limit = on_circle(0, 10, 20), 1 - np.cos(np.radians(15))
    kept, _ = without_near_duplicates(unit_rows(points), np.zeros(3, int), np.arange(3), limit)
    assert kept.tolist() == [True, False, True]


def test_semdedup_compat_drops_what_the_published_code_drops(world) -> None:
    points, epsilon = on_circle(0, 10, 20, 90), 1 - np.cos(np.radians(15))
    scene = world([1] * 4, embedding=points)
    options = {"epsilon": epsilon, "clusters": 1, "rejected": "never"}
    assert len(scene.select(SemDeDupSelector(**options), 4).rows) == 3
    assert len(scene.select(SemDeDupSelector(**options, compat="reference"), 4).rows) == 2


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 60), st.floats(0.01, 1.0))
def test_published_semdedup_compares_with_all_earlier_rows(seed: int, n: int, epsilon: float) -> None:
    rng = np.random.default_rng(seed)
    units, labels, order = unit_rows(blobs(n, seed)), rng.integers(0, 2, n), rng.permutation(n)
    earlier = np.argsort(order)[:, None] > np.argsort(order)[None, :]
    cosines = np.where(earlier & (labels[:, None] == labels), units.astype(np.float64) @ units.T, -1.0)
    if np.abs(cosines - 1 + epsilon).min() < 1e-5:
        return  # at the limit, rounding may decide
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clusters, "_BLOCK", int(rng.integers(1, 9)))
        kept, closest = without_near_duplicates(units, labels, order, epsilon, count_removed=True)
    assert (kept == (cosines.max(axis=1) <= 1 - epsilon)).all()
    np.testing.assert_allclose(closest[~kept], cosines.max(axis=1)[~kept], atol=1e-5)


def test_semdedup_scales_embeddings_to_unit_length(world) -> None:
    # products of 0.1 and 9 would be below and above any limit
    points = on_circle(0, 1, 90, 91) * np.array([[0.1], [0.2], [3.0], [9.0]], dtype=np.float32)
    kept, _ = without_near_duplicates(unit_rows(points), np.zeros(4, int), np.arange(4), 0.05)
    assert kept.tolist() == [True, False, True, False]


def test_semdedup_keeps_one_of_equal_examples_and_fills_up_last(world) -> None:
    scene = world([1] * 4, embedding=on_circle(30, 30, 120, 30))
    selection = scene.select(SemDeDupSelector(clusters=1), 2)
    assert {scene.names(selection)[0], scene.names(selection)[1]} >= {"c"}
    assert selection.scores["score"].tolist().count(-2.0) == 2
    assert len(scene.select(SemDeDupSelector(clusters=1), 4).rows) == 4
    assert len(scene.select(SemDeDupSelector(clusters=1, rejected="never"), 4).rows) == 2


def test_semdedup_keeps_the_farthest_from_the_center(world) -> None:
    scene = world([1] * 3, embedding=on_circle(0, 6, 8))  # center near 4.7°
    assert scene.picks(SemDeDupSelector(clusters=1, rejected="never"), 3) == "a"


def test_semdedup_draws_uniformly_from_what_it_keeps(world) -> None:
    scene = world([1] * 4, embedding=on_circle(0, 90, 180, 270))
    first = [scene.picks(SemDeDupSelector(clusters=1), 1, seed=seed) for seed in range(800)]
    counts = np.array([first.count(name) for name in "abcd"])
    assert ((counts - 200) ** 2 / 200).sum() < 16.3  # chi-square, 3 degrees of freedom, p = .001


def test_d4_clusters_again_without_the_dropped_examples(world) -> None:
    # of five copies at 0° one is kept: the center moves from 9° to 30°
    scene = world([1] * 7, embedding=on_circle(0, 0, 0, 0, 0, 30, 60))
    selection = scene.select(D4Selector(clusters=1), 7)
    units = on_circle(0, 30, 60)
    expected = np.linalg.norm(units - units.mean(axis=0), axis=1)
    assert selection.scores["distance"][[0, 5, 6]] == pytest.approx(expected, abs=1e-6)
    assert selection.scores["distance"][1:5].tolist() == [0.0] * 4
    assert set(scene.names(selection)[:2]) == {"a", "g"}
    assert scene.names(selection)[2:] == "fbcde"


def test_d4_drops_the_nearest_to_the_center_first(world) -> None:
    scene = world([1] * 20, ids=[f"{row:02}" for row in range(20)], embedding=blobs(20, 3))
    selection = scene.select(D4Selector(epsilon=0.02, clusters=3), 12)
    distance, score = selection.scores["distance"], selection.scores["score"]
    kept = np.flatnonzero(score >= 0)
    assert 5 < len(kept) < 20
    assert score[kept].tolist() == distance[kept].tolist()
    picked = np.isin(kept, selection.rows)
    assert picked.all() or distance[kept[picked]].min() >= distance[kept[~picked]].max()


def test_deita_ranks_by_complexity_times_quality(world) -> None:
    scene = world([1] * 3, difficulty=[0.5, 0.9, 0.2], quality=[0.8, 0.1, 0.9], embedding=np.eye(3))
    selection = scene.select(DEITASelector(), 3)  # products .4, .09, .18
    assert scene.names(selection) == "acb"
    assert selection.scores["score"] == pytest.approx([0.4, 0.09, 0.18])
    assert selection.scores["alike"].tolist() == [0, 0, 0]


def deita_world(world, *degrees: float):
    """Candidates a, b, c … by falling score, at these angles."""
    n = len(degrees)
    return world([1] * n, difficulty=np.linspace(0.9, 0.1, n), quality=[1.0] * n, embedding=on_circle(*degrees))


def test_deita_compares_with_accepted_candidates_only(world) -> None:
    # limit .9 = 25.8°: b is near a and passed over, so c (20° from b, 40° from a) is accepted
    scene = deita_world(world, 0, 20, 40)
    assert scene.picks(DEITASelector(rejected="never"), 3) == "ac"


def test_deita_threshold_is_the_largest_cosine_allowed(world) -> None:
    scene = deita_world(world, 0, 60, 10)
    assert scene.picks(DEITASelector(threshold=0.9, rejected="never"), 3) == "ab"
    assert scene.picks(DEITASelector(threshold=0.4, rejected="never"), 3) == "a"
    assert scene.picks(DEITASelector(threshold=0.999, rejected="never"), 3) == "abc"


def test_deita_keeps_one_of_a_duplicate_pair(world) -> None:
    scene = deita_world(world, 0, 0, 90)
    selection = scene.select(DEITASelector(), 3)
    assert scene.names(selection) == "acb"
    assert selection.scores["alike"].tolist() == [0, 1, 0]
    assert selection.scores["score"][1] < selection.scores["score"][[0, 2]].min()


@pytest.mark.parametrize("grades", [[-4, -5, -6, -7], [4, 3, 2, 1], [1, -1, -2, np.nan]])
def test_what_is_alike_is_scored_below_all_others(world, grades) -> None:
    for selector, term in (
        (DEITASelector(complexity="complexity", quality="grade"), "grade"),
        (DiversitySelector("threshold"), "quality"),
    ):
        scene = world([1] * 4, complexity=[1] * 4, embedding=on_circle(0, 0, 90, 180), **{term: grades})
        selection = scene.select(selector, 4)
        score, order = selection.scores["score"], [0, 2, 3, 1] if not np.isnan(grades[3]) else [0, 2, 1, 3]
        assert selection.rows.tolist() == order
        assert (np.diff(score[order]) < 0).all()  # so it is no better candidate than what is picked before it
        assert score[[0, 2]].tolist() == [grades[0], grades[2]]


@given(st.integers(0, 2**31), st.integers(1, 40), st.floats(-0.5, 0.99))
@settings(max_examples=30, deadline=None)
def test_deita_accepts_what_the_slow_loop_accepts(seed: int, n: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    points = blobs(n, seed)
    units = points.astype(np.float64) / np.linalg.norm(points.astype(np.float64), axis=1, keepdims=True)
    if np.abs(np.tril(units @ units.T, -1) - threshold).min() < 1e-5:
        return  # at the limit, rounding may decide
    difficulty, quality = rng.random((2, n)).astype(np.float32)
    scene = World(
        [1] * n, ids=[f"{row:02}" for row in range(n)], difficulty=difficulty, quality=quality, embedding=points
    )
    accepted: list[int] = []
    for row in np.argsort(-(difficulty.astype(float) * quality), kind="stable").tolist():
        if all(units[row] @ units[other] < threshold for other in accepted):
            accepted.append(row)
    assert scene.select(DEITASelector(threshold=threshold, rejected="never"), n).rows.tolist() == accepted


def slow_qdit(points: np.ndarray, quality: np.ndarray, alpha: float, picks: list[int]) -> None:
    """Every sum anew before every pick: none is larger than that of the pick."""
    units = points.astype(np.float64) / np.linalg.norm(points.astype(np.float64), axis=1, keepdims=True)
    similar = np.maximum(units @ units.T, 0)
    ranks = [(np.sum(quality < q) + np.sum(quality <= q) - 1) / 2 / max(1, len(quality) - 1) for q in quality]
    reached, rest = np.zeros(len(points)), set(range(len(points)))
    largest = similar.sum(axis=1).max()
    for pick in picks:
        value = {
            row: (1 - alpha) * np.maximum(similar[row] - reached, 0).sum() / largest + alpha * ranks[row]
            for row in rest
        }
        assert value[pick] >= max(value.values()) - 1e-5
        rest.discard(pick)
        reached = np.maximum(reached, similar[pick])


@given(st.integers(0, 2**31), st.integers(2, 40), st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]))
@settings(max_examples=30, deadline=None)
def test_qdit_pick_has_the_largest_weighted_sum(seed: int, n: int, alpha: float) -> None:
    rng = np.random.default_rng(seed)
    quality = rng.choice(rng.random(5), n).astype(np.float32)
    scene = World([1] * n, ids=[f"{row:02}" for row in range(n)], quality=quality, embedding=blobs(n, seed))
    picks = scene.select(QDITSelector(alpha), max(1, n // 2)).rows.tolist()
    slow_qdit(scene.signals["embedding"], quality, alpha, picks)


def test_qdit_terms_are_on_one_scale(world) -> None:
    # quality in hundreds of a unit or in thousands: the picks are the same
    points = blobs(20, 5)
    quality = np.random.default_rng(0).random(20)
    small, large = (
        world([1] * 20, ids=[f"{row:02}" for row in range(20)], quality=quality * unit, embedding=points)
        for unit in (0.01, 1.0)
    )
    assert small.picks(QDITSelector(), 8) == large.picks(QDITSelector(), 8)
    first = small.select(QDITSelector(alpha=0), 1).scores["score"]
    assert first.max() == pytest.approx(1.0)


def test_qdit_does_not_prefer_short_candidates(world) -> None:
    scene = world([9, 1, 1], quality=[1.0, 0.5, 0.0], embedding=on_circle(0, 1, 2))
    assert scene.picks(QDITSelector(alpha=1), 9) == "a"


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("semdedup", {"epsilon": 0}),
        ("semdedup", {"epsilon": 2.5}),
        ("d4", {"rejected": "first"}),
        ("prototypes", {"easy_below": 0}),
        ("prototypes", {"keep": "typical"}),
        ("prototypes", {"clusters": 0}),
        ("k-center", {"device": "tpu"}),
        ("deita", {"threshold": 1.5}),
        ("deita", {"complexity": "length"}),
        ("qdit", {"alpha": 1.5}),
        ("qdit", {"alpha": -0.1}),
    ],
)
def test_parameters_out_of_range_are_refused(name, parameters) -> None:
    with pytest.raises(RecipeError, match=f"selector '{name}'"):
        build_selector(name, parameters)
