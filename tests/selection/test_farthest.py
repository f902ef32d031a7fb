"""Farthest-first, lazy and blocked, against the loop that computes every distance after every pick."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longgame.selection.algorithms import farthest, nearest, products
from longgame.selection.algorithms.farthest import farthest_first, farthest_first_partitioned, mean_row
from longgame.selection.algorithms.nearest import Cloud, PairFilter, scale_of, squared_to


def textbook(
    rows: np.ndarray, tokens: np.ndarray, budget: int, known: np.ndarray | None = None, rank: np.ndarray | None = None
) -> tuple[list[int], np.ndarray]:
    """Gonzalez' loop: one pass over all rows a pick, distances by direct differences."""
    n = len(rows)
    rank = np.arange(n) if rank is None else rank
    near = np.full(n, np.inf, dtype=rows.dtype)
    for point in () if known is None else known.astype(rows.dtype):
        np.minimum(near, squared_to(rows, point), out=near)
    final, running, picks, left = np.zeros(n, dtype=rows.dtype), np.ones(n, dtype=bool), [], budget
    while True:
        closed = running & (tokens > left)
        final[closed] = near[closed]
        running &= ~closed
        going = np.flatnonzero(running)
        if not len(going):
            return picks, np.sqrt(final)
        value = -squared_to(rows, mean_row(rows, rank)) if known is None and not picks else near
        pick = int(going[np.lexsort((rank[going], -value[going]))[0]])
        picks.append(pick)
        left -= int(tokens[pick])
        running[pick], final[pick] = False, near[pick]
        np.minimum(near, squared_to(rows, rows[pick]), out=near)
        if known is None and len(picks) == 1:
            final[~running] = near[~running]
            final[pick] = near.max()


SHAPES = ("gaussian", "grid", "copies", "clusters", "tiny", "huge", "shifted", "equal", "underflow", "overflow")


def cloud(shape: str, rng: np.random.Generator) -> np.ndarray:
    n, d = int(rng.integers(1, 90)), int(rng.integers(1, 24))
    rows = rng.standard_normal((n, d))
    if shape == "grid":  # ties everywhere
        rows = rng.integers(-1, 2, (n, d)).astype(float)
    elif shape == "copies":
        rows = rows[rng.integers(0, max(1, n // 4), n)]
    elif shape == "clusters":
        rows = rng.standard_normal((5, d))[rng.integers(0, 5, n)] * 100 + rows * 10.0 ** -rng.integers(0, 5)
    elif shape == "shifted":
        rows = rows + 1e4
    elif shape == "equal":
        rows = np.ones((n, d))
    elif shape in ("tiny", "huge", "underflow", "overflow"):
        rows = rows * {"tiny": 1e-15, "huge": 1e15, "underflow": 1e-24, "overflow": 1e37}[shape]
    return rows.astype(np.float32)


def small_blocks(patch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    """Sizes at which a few dozen rows take many epochs, tiles and changes of precision."""
    for module, name, value in (
        (farthest, "_ACTIVE", int(rng.integers(1, 40))),
        (farthest, "_AHEAD", int(rng.integers(1, 9))),
        (farthest, "_PATIENCE", int(rng.integers(0, 3))),
        (products.Products, "rows", int(rng.integers(1, 20))),
        (products._on_torch("cpu"), "rows", int(rng.integers(1, 20))),
        (products, "_SMALL", int(rng.choice([0, 1 << 21]))),
        (nearest, "_PREPARED", int(rng.integers(1, 30))),
        (nearest, "_FEW", int(rng.integers(0, 9))),
        (nearest, "_FAILURES", 1),
    ):
        patch.setattr(module, name, value)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(SHAPES), st.integers(0, 2**31), st.booleans(), st.booleans())
@pytest.mark.filterwarnings("ignore:overflow", "ignore:underflow")
def test_farthest_equals_the_textbook_loop_bit_for_bit(shape: str, seed: int, with_known: bool, ranked: bool) -> None:
    rng = np.random.default_rng(seed)
    rows = cloud(shape, rng)
    tokens = rng.integers(1, int(rng.choice([2, 9, 100])), len(rows))
    budget = int(max(tokens.min(), tokens.sum() * rng.random()))
    known = rows[rng.integers(0, len(rows), 3)] * np.float32(1.5) if with_known else None
    rank = rng.permutation(len(rows)) if ranked else None
    expected, distance = textbook(rows, tokens, budget, known, rank)
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch, rng)
        found = farthest_first(rows, tokens, budget, known, rank)
    assert found[0].tolist() == expected
    assert np.array_equal(found[1], distance)


@pytest.mark.parametrize("level", [products.BFLOAT16, products.FLOAT32, products.FLOAT64])
@pytest.mark.parametrize("shape", ["gaussian", "clusters", "shifted", "huge", "tiny"])
def test_no_pair_below_its_limit_is_ever_excluded(level: products.Level, shape: str) -> None:
    place = products._on_torch("cpu")
    for seed in range(30):
        rng = np.random.default_rng(seed)
        rows = cloud(shape, rng)
        scale, everything = scale_of(rows), np.arange(len(rows))
        both = Cloud(rows, mean_row(rows), scale)
        used = PairFilter(rows.shape[1], rows.dtype, scale, place, level)
        product = place.host(place.product(used.candidates(both, everything), used.picks(both, everything)))
        for column, point in enumerate(rows):
            distance = squared_to(rows, point)
            limit = np.nextafter(distance, np.float32(np.inf))  # the tightest limit that the pair is below
            tau = used.thresholds(both.norms, limit)
            assert (product[:, column] >= tau).all()


def test_filter_excludes_nearly_all_pairs_of_a_gaussian_cloud() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((400, 384)).astype(np.float32)
    place = products._on_torch("cpu")
    both, everything = Cloud(rows, mean_row(rows), 1.0), np.arange(400)
    near = np.array([np.sort(squared_to(rows, row))[1] for row in rows])
    for level, most in ((products.BFLOAT16, 0.03), (products.FLOAT32, 0.003), (products.FLOAT64, 0.003)):
        used = PairFilter(384, rows.dtype, 1.0, place, level)
        product = place.host(place.product(used.candidates(both, everything), used.picks(both, everything)))
        kept = product >= used.thresholds(both.norms, near)[:, None]
        assert kept.sum() - 400 <= most * kept.size


def test_float64_rows_keep_their_precision() -> None:
    rows = np.array([[0.0], [1.0], [1.0 + 1e-12], [0.5]])
    picks, distance = farthest_first(rows, np.ones(4, dtype=int), 4)
    expected = textbook(rows, np.ones(4, dtype=int), 4)
    assert picks.tolist() == expected[0]
    assert np.array_equal(distance, expected[1])


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(("gaussian", "grid", "copies")), st.integers(0, 2**31))
def test_the_order_of_the_pool_changes_no_pick(shape: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = cloud(shape, rng)
    tokens, rank = rng.integers(1, 9, len(rows)), rng.permutation(len(rows))
    budget = int(max(tokens.min(), tokens.sum() // 3))
    shuffled = rng.permutation(len(rows))
    first, distance = farthest_first(rows, tokens, budget, rank=rank)
    second, other = farthest_first(rows[shuffled], tokens[shuffled], budget, rank=rank[shuffled])
    assert shuffled[second].tolist() == first.tolist()
    assert np.array_equal(distance[shuffled], other)


def test_the_number_of_threads_changes_no_bit() -> None:
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((3000, 64)).astype(np.float32)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(farthest_first(rows, np.ones(3000, dtype=int), 700))
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(found[0][0], found[1][0])
    assert np.array_equal(found[0][1], found[1][1])


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(("gaussian", "grid", "copies", "clusters", "equal")),
    st.integers(0, 2**31),
    st.integers(1, 6),
    st.sampled_from([0.5, 1.0, 4.0, 9.0]),
)
def test_partitioned_bound_holds_for_every_row(shape: str, seed: int, parts: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    rows = cloud(shape, rng)
    tokens, rank = rng.integers(1, 9, len(rows)), rng.permutation(len(rows))
    budget = int(max(tokens.min(), tokens.sum() * rng.random()))
    found = farthest_first_partitioned(rows, tokens, budget, parts, share, rank=rank)
    wide = rows.astype(np.float64)
    gap = np.array([np.sqrt(((wide[found.rows] - row) ** 2).sum(axis=1).min()) for row in wide])
    assert (gap <= found.within).all()
    assert found.radius == found.within.max()
    left = budget - tokens[found.rows].sum()
    assert left >= 0
    assert (np.delete(tokens, found.rows) > left).all()
    assert len(set(found.rows.tolist())) == len(found.rows)


@given(st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_full_share_radius_is_at_most_four_times_optimum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((11, 2)).astype(np.float32)
    k, wide = 3, rows.astype(np.float64)
    gaps = np.sqrt(((wide[:, None] - wide) ** 2).sum(axis=2))
    centres = [(a, b, c) for a in range(11) for b in range(a) for c in range(b)]
    optimum = min(gaps[:, list(chosen)].min(axis=1).max() for chosen in centres)
    found = farthest_first_partitioned(rows, np.ones(11, dtype=int), k, parts=3, share=3.0)
    assert found.radius <= 4 * optimum * (1 + 1e-5)
    assert 0 < found.lower_bound <= optimum


@given(st.sampled_from(("clusters", "copies", "grid")), st.integers(0, 2**31), st.integers(1, 4), st.booleans())
@settings(max_examples=60, deadline=None)
def test_lower_bound_is_below_the_best_radius(shape: str, seed: int, parts: int, started: bool) -> None:
    rng = np.random.default_rng(seed)
    rows = cloud(shape, rng)[:9]
    n, start = len(rows), rows[-1:] + np.float32(0.5) if started else None
    tokens = rng.integers(1, 4, n) if rng.random() < 0.5 else np.full(n, 2)
    found = farthest_first_partitioned(rows, tokens, 8, parts, share=1.0, start_points=start)
    wide = rows.astype(np.float64)
    gaps = np.sqrt(((wide[:, None] - wide) ** 2).sum(axis=2))
    near = np.full(n, np.inf) if start is None else np.sqrt(((wide - start) ** 2).sum(axis=1))
    choices = (list(chosen) for k in range(1, 9) for chosen in itertools.combinations(range(n), k))
    best = min(np.minimum(gaps[:, c].min(axis=1), near).max() for c in choices if tokens[c].sum() <= 8)
    assert found.lower_bound <= best <= found.radius
