"""Signals of one source: what is computed when, over which candidates, and the frozen pass on disk."""

import dataclasses
import io
from contextlib import nullcontext

import numpy as np
import pytest
from safetensors.numpy import load, save

from longgame.data.examples import Example, Pool
from longgame.errors import DataError, NumericalError, PluginError, RecipeError
from longgame.seeding import generator
from longgame.signals import frozen as module
from longgame.signals.cache import SignalCache
from longgame.signals.frozen import COLUMNS, FrozenSignals, cluster
from longgame.signals.quality.rules import rule_scores
from longgame.signals.source import SignalSource, half_weights


def pool_of(*ids):
    examples = tuple(Example(sample_id=sample_id, prompt="p", response="r") for sample_id in ids)
    ones = np.ones(len(ids), dtype=np.int64)
    return Pool(examples, tuple(np.array([1, 2]) for _ in ids), ones, ones)


def build(pools, losses, embeddings=None, clusters=2, seed=0):
    rng = generator(0, "embeddings")
    if embeddings is None:
        embeddings = [rng.standard_normal((len(pool), 3)).astype(np.float32) for pool in pools]
    quality = [np.linspace(0, 1, len(pool)) for pool in pools]
    columns = {"embedding": embeddings, "base_loss": losses, "quality": quality}
    return FrozenSignals.build(pools, columns, clusters, seed)


def blobs(seed=0, per=20):
    """Three directions with a little noise, lengths that vary: 3 clusters once normalised."""
    rng = generator(seed, "blobs")
    centers = np.repeat(np.eye(3), [per, per // 2, per // 4], axis=0)
    return (centers + 0.05 * rng.standard_normal(centers.shape)) * rng.uniform(0.1, 10, (len(centers), 1))


class Kept:
    """A past that notes how it is counted."""

    def __init__(self, embeddings):
        self.embeddings, self.clusters = np.asarray(embeddings, dtype=np.float32), None

    def count_anew(self, clusters):
        self.clusters = clusters


def test_picks_of_the_past_are_in_the_cluster_of_what_is_like_them():
    points = blobs()
    ids = [f"{row:02}" for row in range(len(points))]
    past = Kept(2 * points[[0, 1, 25, 33]])
    clusters = cluster(ids, points, 3, 0, past)
    np.testing.assert_array_equal(past.clusters, clusters[[0, 1, 25, 33]])
    np.testing.assert_array_equal(clusters, cluster(ids, points, 3, 0))
    order = generator(1, "order").permutation(len(ids))
    again = cluster([ids[row] for row in order], points[order], 3, 0, past)
    np.testing.assert_array_equal(again, clusters[order])


def test_picks_unlike_all_candidates_have_a_cluster_of_their_own():
    points = blobs()[:30]  # two of the three directions
    past = Kept(np.tile([[0.0, 0.0, 1.0]], (5, 1)))
    clusters = cluster([f"{row:02}" for row in range(30)], points, 3, 0, past)
    assert past.clusters.tolist() == [2] * 5
    assert set(clusters) == {0, 1}


def test_a_past_of_another_width_is_refused():
    with pytest.raises(PluginError, match="an embedding of width 3 came after ones of width 2"):
        cluster(["a", "b"], np.eye(2, 3), 2, 0, Kept(np.eye(2)))


def test_difficulty_is_the_mid_rank_within_the_stage_pool():
    pools = [pool_of("a", "b", "c", "d"), pool_of("e", "f")]
    frozen = build(pools, [[3.0, 1.0, 2.0, 2.0], [9.0, 8.0]])
    np.testing.assert_allclose(frozen.lookup(pools[0], ["difficulty"])["difficulty"], [0.875, 0.125, 0.5, 0.5])
    np.testing.assert_allclose(frozen.lookup(pools[1], ["difficulty"])["difficulty"], [0.75, 0.25])


def test_lookup_follows_ids_not_positions():
    pools = [pool_of("a", "b", "c"), pool_of("e", "f")]
    frozen = build(pools, [[3.0, 1.0, 2.0], [9.0, 8.0]])
    mixed = frozen.lookup(pool_of("f", "a"), ["base_loss", "embedding", "cluster"])
    assert list(mixed) == ["base_loss", "embedding", "cluster"]
    np.testing.assert_array_equal(mixed["base_loss"], np.float32([8, 3]))
    assert mixed["embedding"].shape == (2, 3)
    assert (mixed["embedding"].dtype, mixed["cluster"].dtype) == (np.float32, np.int64)


def test_an_example_of_two_pools_keeps_the_row_of_the_first():
    pools = [pool_of("a", "b"), pool_of("b", "c", "d")]
    frozen = build(pools, [[1.0, 2.0], [2.5, 7.0, 8.0]])
    assert frozen.ids == ("a", "b", "c", "d")
    row = frozen.lookup(pool_of("b"), ["base_loss", "difficulty"])
    assert (row["base_loss"][0], row["difficulty"][0]) == (2.0, 0.75)


def test_clusters_are_directions_numbered_by_falling_size():
    points = blobs()
    labels = cluster([f"{row:03d}" for row in range(len(points))], points, 3, 0)
    np.testing.assert_array_equal(labels, np.repeat([0, 1, 2], [20, 10, 5]))


def test_mini_batches_find_the_same_separated_clusters(monkeypatch):
    monkeypatch.setattr(module, "_MINI_BATCH_FROM", 10)
    points = blobs()
    labels = cluster([f"{row:03d}" for row in range(len(points))], points, 3, 0)
    np.testing.assert_array_equal(labels, np.repeat([0, 1, 2], [20, 10, 5]))


def test_row_order_changes_no_cluster():
    points = generator(1, "points").standard_normal((60, 5))
    ids = [f"{row:03d}" for row in range(60)]
    order = generator(2, "order").permutation(60)
    straight = cluster(ids, points, 6, 3)
    mixed = cluster([ids[row] for row in order], points[order], 6, 3)
    np.testing.assert_array_equal(mixed, straight[order])
    np.testing.assert_array_equal(cluster(ids, points, 6, 3), straight)
    assert np.bincount(straight, minlength=6).tolist() == sorted(np.bincount(straight), reverse=True)


def test_k_falls_to_the_number_of_distinct_directions():
    points = np.array([[1.0, 0], [2, 0], [0, 1], [0, 3], [0, 5]])
    assert cluster(list("abcde"), points, 8, 0).tolist() == [1, 1, 0, 0, 0]


def test_frozen_arrays_round_trip_without_pickle():
    pools = [pool_of("a", "b#2", "naïve"), pool_of("e")]
    original = build(pools, [[3.0, 1.0, 2.0], [9.0]])
    buffer = io.BytesIO()
    np.savez(buffer, **original.to_arrays())
    buffer.seek(0)
    with np.load(buffer, allow_pickle=False) as stored:
        from_npz = FrozenSignals.from_arrays(dict(stored))
    for restored in (FrozenSignals.from_arrays(load(save(original.to_arrays()))), from_npz):
        assert restored.ids == original.ids
        for pool in pools:
            left, other = restored.lookup(pool, COLUMNS), original.lookup(pool, COLUMNS)
            for name in COLUMNS:
                np.testing.assert_array_equal(left[name], other[name])
                assert left[name].dtype == other[name].dtype


def test_an_unknown_example_or_column_is_refused():
    frozen = build([pool_of("a", "b")], [[1.0, 2.0]])
    with pytest.raises(DataError, match="example x and 1 more is unknown"):
        frozen.lookup(pool_of("a", "x", "y"), ["quality"])
    with pytest.raises(PluginError, match="Did you mean 'quality'"):
        frozen.lookup(pool_of("a"), ["qualty"])


def test_nan_names_the_example_and_the_signal():
    with pytest.raises(NumericalError, match=r"'base_loss'.*example b"):
        build([pool_of("a", "b")], [[1.0, np.nan]])


def test_rows_that_do_not_match_their_pools_are_refused():
    with pytest.raises(DataError, match="'base_loss'"):
        build([pool_of("a", "b")], [[1.0]])
    with pytest.raises(DataError, match="empty"):
        build([pool_of()], [[]])
    with pytest.raises(PluginError, match="clusters is 0"):
        build([pool_of("a")], [[1.0]], clusters=0)


def test_stored_arrays_that_do_not_fit_together_are_refused():
    arrays = build([pool_of("a", "b")], [[1.0, 2.0]]).to_arrays()
    with pytest.raises(DataError, match="'quality'"):
        FrozenSignals.from_arrays({name: array for name, array in arrays.items() if name != "quality"})
    with pytest.raises(DataError, match="'ids'"):
        FrozenSignals.from_arrays({name: array for name, array in arrays.items() if name != "ids"})
    twice = arrays | {"ids": arrays["ids"][[0, 0]]}
    with pytest.raises(DataError, match="twice"):
        FrozenSignals.from_arrays(twice)


def test_extra_examples_move_no_cluster():
    pool, extra = pool_of("a", "b", "c", "d"), pool_of("x", "b", "y")
    points = [[2.0, 0.0], [1.0, 0.1], [3.0, 0.0], [0.0, 5.0]]
    plain = build([pool], [[1.0, 2.0, 3.0, 4.0]], [np.array(points)])
    columns = {"embedding": np.array([[0.1, 9.0], [0.0, 1.0], [7.0, 0.2]]), "base_loss": [2.5, 9.0, 0.5]}
    frozen = plain.extended(extra, columns | {"quality": [0.1, 0.2, 0.3]})
    assert frozen.ids == ("a", "b", "c", "d", "x", "y")  # b keeps its row
    for name in COLUMNS:
        np.testing.assert_array_equal(frozen.lookup(pool, [name])[name], plain.lookup(pool, [name])[name])
    rows = frozen.lookup(extra, COLUMNS)
    assert rows["cluster"].tolist() == [1, 0, 0]
    np.testing.assert_allclose(rows["difficulty"], [0.5, 0.375, 0.0])  # two, (b's own), none of four losses below
    np.testing.assert_allclose(rows["quality"], np.float32([0.1, 1 / 3, 0.3]))
    with pytest.raises(DataError, match="'base_loss' has 1 rows for 3 examples"):
        plain.extended(extra, columns | {"base_loss": [1.0]})


class Engine:
    """Losses, embeddings and gradients from the token ids; counts the examples of every call."""

    def __init__(self):
        self.calls = []
        self.shift = 0.0

    def __call__(self, pool, names):
        self.calls.append((tuple(names), len(pool)))
        total = np.array([float(ids.sum()) for ids in pool.input_ids]) + self.shift
        wide = np.stack([total, -total, total**2], axis=1)
        return {name: wide if name in ("embedding", "grad_sketch") else total for name in names}


def candidates(n=12):
    examples = tuple(Example(sample_id=f"id{row}", prompt="p", response="r") for row in range(n))
    ones = np.ones(n, dtype=np.int64)
    return Pool(examples, tuple(np.array([1, row + 1]) for row in range(n)), ones, ones)


def source_of(engine, **options):
    return SignalSource(engine, base=nullcontext, clusters=3, **options)


def test_live_signals_share_a_pass_and_base_signals_are_computed_once():
    engine, pool = Engine(), candidates()
    source = source_of(engine)
    signals = source(pool.take(range(4)), ("loss", "el2n", "base_loss", "embedding", "quality"))
    assert engine.calls == [(("loss",), 4), (("embedding",), 4), (("loss", "el2n"), 4)]
    engine.shift = 1.0
    again = source(pool.take(range(6)), ("loss", "base_loss"))
    assert engine.calls[3:] == [(("loss",), 2), (("loss",), 6)]
    np.testing.assert_array_equal(again["base_loss"][:4], signals["base_loss"])
    np.testing.assert_array_equal(again["loss"][:4], signals["loss"] + 1)
    assert {column.dtype for column in signals.columns.values()} == {np.dtype("float32")}


@pytest.mark.parametrize("known", [False, True])
def test_quality_has_one_scale_for_all_candidates(known):
    examples = [Example(f"e{row}", "a question", "an answer", quality=None if row == 5 else 0.1) for row in range(6)]
    pool = dataclasses.replace(candidates(6), examples=tuple(examples))
    offered = [pool.take([0, 1]), pool.take([2, 5])]
    options = {"candidates": None, "rated": lambda: False} if known else {"candidates": lambda: [pool]}
    source, stream = source_of(Engine(), **options), source_of(Engine())
    rules = rule_scores(examples[:2])
    assert not np.allclose(rules, 0.1)
    for part in offered:
        np.testing.assert_array_equal(source(part, ["quality"])["quality"], rules)
    np.testing.assert_allclose(stream(offered[0], ["quality"])["quality"], 0.1)
    rated = source_of(Engine(), candidates=lambda: [pool.take(range(5))])
    np.testing.assert_allclose(rated(offered[0], ["quality"])["quality"], 0.1)


def test_clusters_and_difficulty_are_fitted_over_all_candidates():
    engine, pool = Engine(), candidates()
    source = source_of(engine, candidates=lambda: [pool])
    part = source(pool.take([11, 0]), ("difficulty", "cluster"))
    np.testing.assert_allclose(part["difficulty"], [11.5 / 12, 0.5 / 12])
    assert part["cluster"].dtype == np.int64
    assert len(engine.calls) == 1
    source(pool, ("difficulty", "embedding", "base_loss"))
    assert len(engine.calls) == 1


def test_a_stream_or_a_lost_base_is_refused_with_the_fix():
    pool = candidates()
    with pytest.raises(PluginError, match="'cluster' is fitted over all.*stream.*Use a dataset with a length"):
        source_of(Engine())(pool, ("cluster",))
    full = SignalSource(Engine(), candidates=lambda: [pool])
    with pytest.raises(PluginError, match="'embedding'.*no base is left.*Train an adapter"):
        full(pool, ("embedding",))
    full.prepare(("loss",))
    assert full.frozen is None
    full.prepare(("embedding",))
    assert full(pool, ("embedding", "cluster", "base_loss"))["cluster"].shape == (12,)


@pytest.mark.parametrize(("name", "items"), [("future_proxy", "proxy"), ("target_gradient", "target")])
def test_context_is_measured_again_every_few_steps(name, items):
    engine, pool, three = Engine(), candidates(), candidates(3)
    with pytest.raises(RecipeError, match=f"Pass {items}_dataset= to the trainer"):
        source_of(engine)(pool, (name,))
    source = source_of(engine, **{items: lambda: three}, proxy_refresh=2)
    source.begin_stage()
    values = []
    for source.step in range(5):
        engine.shift += 1
        values.append(float(source(pool, (name,))[name][0]))
    assert values == [4.0, 4.0, 6.0, 6.0, 8.0]  # mean total of the proxy items: 3, and the shift
    assert getattr(source, f"{items}_passes") == source.proxy_passes + source.target_passes == 3
    resumed = source_of(engine, **{items: lambda: three}, proxy_refresh=2)
    resumed.begin_stage()
    resumed.load_state_dict(source.state_dict())
    resumed.step = 5
    assert float(resumed(pool, (name,))[name][0]) == 8.0
    source.end_stage()
    engine.shift = 0.0
    assert float(source(pool, (name,))[name][0]) == 3.0


def test_the_first_choice_of_a_stage_is_read_from_the_cache(tmp_path):
    pool = candidates()
    options = {"cache": SignalCache(tmp_path / "c"), "fingerprint": lambda: "untouched"}
    for calls in (1, 0):
        engine = Engine()
        source = source_of(engine, **options)
        source.begin_stage(first=pool)
        source(pool, ("loss",))
        assert len(engine.calls) == calls
        source.step = 1
        source(pool, ("loss",))
        assert len(engine.calls) == calls + 1


def test_a_cached_alignment_is_that_of_todays_groups(tmp_path):
    class Aligning(Engine):
        def measure_directions(self, pool, weights, name, preconditioner=None):
            self.shift = float(weights[:, 0] @ np.arange(len(pool)))

    def column(skills, cache):
        pool = candidates()
        items = pool.take(range(len(skills)))
        examples = tuple(dataclasses.replace(e, skill=s) for e, s in zip(items.examples, skills, strict=True))
        options = {"cache": cache, "fingerprint": lambda: "untouched"} if cache else {}
        proxy = dataclasses.replace(items, examples=examples)
        source = source_of(engine := Aligning(), proxy=lambda: proxy, **options)
        source.begin_stage(first=pool)
        return source(pool, ["future_alignment"])["future_alignment"], len(engine.calls)

    cache = SignalCache(tmp_path / "c")
    for skills in ("aaaaaaaa", "aaaaaabb"):
        expected, _ = column(skills, None)
        for calls in (1, 0):
            found, made = column(skills, cache)
            np.testing.assert_array_equal(found, expected)
            assert made == calls
    np.testing.assert_array_equal(column("bbbbbbbb", cache)[0], column("aaaaaaaa", None)[0])


def test_halves_of_the_proxy_weigh_groups_alike():
    skills = ["a", "a", "a", "a", "b", "c"]
    examples = tuple(Example(f"id{row}", "p", "r", skill=skill) for row, skill in enumerate(skills))
    ones = np.ones(6, dtype=np.int64)
    pool = Pool(examples, tuple(np.array([1, 2]) for _ in skills), ones, ones)
    # a: rows 0, 2 against 1, 3; b and c have one item, in the first and in the second half
    first = [1 / 4, 0, 1 / 4, 0, 1 / 2, 0]
    second = [0, 1 / 4, 0, 1 / 4, 0, 1 / 2]
    np.testing.assert_allclose(half_weights(pool).T, [first, second])
