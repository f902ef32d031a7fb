"""Methods of the texts, each against a slow implementation or numbers worked out by hand."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longgame.data.examples import Example, ExamplesOnDisk, Pool, with_unique_ids
from longgame.errors import DataError, RecipeError
from longgame.selection.base import build_selector
from longgame.selection.budget import gumbel_by_id
from longgame.selection.methods.dedup_exact import ExactDedupSelector
from longgame.selection.methods.dsir import DSIRSelector
from longgame.signals import texts
from longgame.signals.source import SignalSource
from longgame.signals.texts import BUCKETS, HashedTexts, ImportanceRatios, ngram_buckets, text_of


def pool_of(*responses: str, prompt: str = "say") -> Pool:
    examples = with_unique_ids(Example.make(prompt, response) for response in responses)
    ones = np.ones(len(examples), dtype=np.int64)
    return Pool(examples, (np.zeros(0, dtype=np.int64),) * len(examples), ones, ones)


def source(pool: Pool, target: Pool | None = None) -> SignalSource:
    return SignalSource(lambda *_: {}, candidates=lambda: [pool], target=lambda: target)


def words_of(text: str) -> list[str]:
    return re.findall(r"[\w\x80-\U0010ffff]+|[^\w\s\x80-\U0010ffff]+", text.lower())


def slow_ratios(targets, raws):
    """The paper's formula with n-grams as keys: equal to the hashed one where no two share a bucket."""

    def grams(text):
        words = words_of(text)
        return Counter([(word,) for word in words] + list(itertools.pairwise(words)))

    def shares(many):
        total = sum((grams(text) for text in many), Counter())
        return {gram: count / total.total() for gram, count in total.items()}

    target, raw = shares(targets), shares(raws)
    return [
        sum(
            count * (math.log(target.get(gram, 0) + 1e-8) - math.log(raw.get(gram, 0) + 1e-8))
            for gram, count in grams(text).items()
        )
        for text in raws
    ]


def test_dsir_ratio_equals_the_slow_formula() -> None:
    raw = pool_of("the cat sat", "a dog, a dog!", "Nothing", "über-groß 42", "x = y_1 + 2;")
    target = pool_of("the dog sat", "The cat; the cat")
    ratios, counts = ImportanceRatios(target.examples, [raw]).of(raw)
    expected = slow_ratios(map(text_of, target.examples), list(map(text_of, raw.examples)))
    assert ratios == pytest.approx(expected, rel=1e-9)
    assert counts.tolist() == [2 * len(words_of(text_of(example))) - 1 for example in raw.examples]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.sampled_from("aB_9 .,\n\té中\u00a0"), max_size=12), min_size=1, max_size=8))
def test_ngrams_of_a_batch_are_those_of_each_text(batch) -> None:
    buckets, words = ngram_buckets(batch)
    assert words.tolist() == [len(words_of(text)) for text in batch]
    pairs = np.maximum(words - 1, 0)
    edges, behind = np.cumsum([0, *words]), words.sum() + np.cumsum([0, *pairs])
    for row, text in enumerate(batch):
        alone = ngram_buckets([text])[0]
        parts = buckets[edges[row] : edges[row + 1]], buckets[behind[row] : behind[row + 1]]
        assert np.concatenate(parts).tolist() == alone.tolist()


def test_ngrams_spread_over_all_buckets() -> None:
    buckets, _ = ngram_buckets([" ".join(map(str, range(200_000)))])
    counts = np.bincount(buckets, minlength=BUCKETS)
    assert abs(counts.var() / counts.mean() - 1) < 0.1  # Poisson


def test_dsir_drops_no_short_row() -> None:
    # published code leaves out texts of fewer than 100 tokens
    pool = pool_of("ok", "yes indeed", " ".join(f"word{number}" for number in range(500)))
    signals = source(pool, pool_of("ok"))(pool, DSIRSelector().requires)
    selection = DSIRSelector(sample=False).select(pool, signals, None, int(pool.costs.sum()), None)
    assert sorted(selection.rows.tolist()) == [0, 1, 2]
    assert selection.rows[0] == 0


def test_dsir_normalized_ratio_does_not_grow_with_length(world) -> None:
    scene = world([1] * 3, dsir_ratio=[-10.0, -20.0, -5.0], ngram_count=[10, 20, 2])
    assert scene.select(DSIRSelector(sample=False), 3).scores["ratio"] == pytest.approx([-32 / 3, -32 / 3, -80 / 3])
    plain = scene.select(DSIRSelector(normalize=False, sample=False), 3)
    assert plain.scores["ratio"].tolist() == [-10, -20, -5]
    even = world([1] * 2, dsir_ratio=[-1.0, 2.0], ngram_count=[7, 7])
    assert even.select(DSIRSelector(sample=False), 2).scores["ratio"].tolist() == [-1, 2]


def test_dsir_draw_is_gumbel_top_k_and_seeded(world) -> None:
    scene = world([1] * 4, dsir_ratio=[0.0, 1.0, 2.0, -1.0], ngram_count=[5, 5, 5, 5])
    selection = scene.select(DSIRSelector(), 2, seed=3)
    expected = selection.scores["ratio"] + gumbel_by_id(scene.pool.ids, np.random.default_rng(3))
    assert selection.scores["score"].tolist() == expected.tolist()
    firsts = Counter(scene.picks(DSIRSelector(), 1, seed=seed) for seed in range(4000))
    weights = np.exp([0.0, 1.0, 2.0, -1.0])
    assert [firsts[name] / 4000 for name in "abcd"] == pytest.approx((weights / weights.sum()).tolist(), abs=0.03)


def test_dsir_ratios_are_fitted_over_all_candidates() -> None:
    pool, target = pool_of("a b c", "a b", "c d e f", "g"), pool_of("a b d")
    everything, _ = ImportanceRatios(target.examples, [pool]).of(pool)
    fitted = source(pool, target)
    for rows in ([0], [2, 1], [3, 0, 1, 2]):
        part = fitted(pool.take(rows), ("dsir_ratio",))["dsir_ratio"]
        assert part.tolist() == everything[rows].astype(np.float32).tolist()
    other = pool_of("a b c d")  # replayed: of no candidate
    assert np.isfinite(fitted(other, ("dsir_ratio",))["dsir_ratio"]).all()


def test_dsir_texts_are_read_in_bounded_memory(monkeypatch) -> None:
    pool, target = pool_of(*(f"text number {row} of many" for row in range(50))), pool_of("text number 7")
    expected = ImportanceRatios(target.examples, [pool]).of(pool)
    monkeypatch.setattr(texts, "_BATCH_ROWS", 7)
    monkeypatch.setattr(texts, "_IN_MEMORY", 64)
    reads = []

    def read(rows):
        reads.append(len(rows))
        return iter([pool.examples[row] for row in rows])

    on_disk = replace(pool, examples=ExamplesOnDisk(pool.ids, read, 0))
    ratios, counts = ImportanceRatios(target.examples, [on_disk]).of(on_disk)
    assert (ratios.tolist(), counts.tolist()) == (expected[0].tolist(), expected[1].tolist())
    assert [rows for rows in reads if rows] == [50]


def test_dsir_of_texts_hashed_before_is_that_of_the_candidates() -> None:
    everything = pool_of(*(f"row {row} of {row % 5}" for row in range(30)))
    places = np.asarray([2, 3, 11, 12, 29])
    part, target = everything.take(places), pool_of("row 3 of 4")
    expected = ImportanceRatios(target.examples, [part]).of(part)
    for batch in (4, 4096):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(texts, "_BATCH_ROWS", batch)
            hashed = HashedTexts.of(everything.examples)
            ratios, counts = ImportanceRatios(target.examples, [part], hashed, places).of(part)
        assert (ratios.tolist(), counts.tolist()) == (expected[0].tolist(), expected[1].tolist())


def test_texts_that_are_missing_are_named() -> None:
    bare = Pool((Example("a", "", ""),), (np.zeros(1, dtype=np.int64),), np.ones(1), np.ones(1))
    for name in ("dsir_ratio", "exact_group"):
        with pytest.raises(DataError, match="carry none"):
            source(bare, pool_of("a"))(bare, (name,))


def test_exact_groups_are_of_equal_turns() -> None:
    pool = pool_of("a", "b", "a", "a ", "B")
    groups = source(pool)(pool, ("exact_group",))["exact_group"]
    assert groups.dtype == np.int64
    assert groups[0] == groups[2]
    assert len(set(groups.tolist())) == 4


def test_near_groups_do_not_depend_on_the_order() -> None:
    long = "it was the best of times it was the worst of times it was the age of wisdom and of foolishness"
    pool = pool_of(long, "something else", long + " indeed", "other words", long.replace("best", "finest"))
    groups = source(pool)(pool, ("near_group",))["near_group"]
    assert len(set(groups[[0, 2]].tolist())) == 1
    order = np.asarray([4, 1, 2, 0, 3])
    turned = pool.take(order)
    assert source(turned)(turned, ("near_group",))["near_group"].tolist() == groups[order].tolist()


@pytest.mark.parametrize("by", ["random", "quality"])
def test_dedup_keeps_the_first_of_each_group(world, by) -> None:
    scene = world([1] * 5, exact_group=[0, 0, 1, 1, 2], quality=[0.1, 0.4, 0.3, 0.2, 0.0])
    for seed in range(5):
        selection = scene.select(ExactDedupSelector(by), 3, seed=seed)
        assert sorted(scene.signals["exact_group"][selection.rows].tolist()) == [0, 1, 2]
        duplicates = selection.scores["duplicate"].astype(bool)
        assert selection.scores["score"][duplicates].max() < selection.scores["score"][~duplicates].min()
        if by == "quality":
            assert scene.names(selection) == "bce"
    assert len(scene.select(ExactDedupSelector(by, "never"), 5).rows) == 3


def test_dedup_learns_what_has_no_grade_after_all_others(world) -> None:
    scene = world([1] * 4, exact_group=[0, 0, 1, 2], quality=[0.4, np.nan, np.nan, 0.0])
    selection = scene.select(ExactDedupSelector("quality"), 3)
    assert scene.names(selection) == "adc"


def test_dedup_of_rounds_learns_a_group_once(world) -> None:
    selector = ExactDedupSelector(rejected="never")
    first = world([1] * 2, ["a", "b"], exact_group=[0, 1])
    second = world([1] * 3, ["c", "d", "e"], exact_group=[1, 2, 0])
    assert len(first.select(selector, 1).rows) == 1
    left = {0, 1, 2} - selector._learned
    picked = second.select(selector, 3)
    assert {int(second.signals["exact_group"][row]) for row in picked.rows} == left
    selector.begin_stage()
    assert len(second.select(selector, 3).rows) == 3


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("dsir", {"normalize": "yes"}),
        ("dsir", {"sample": 1}),
        ("dedup-exact", {"by": "embedding"}),
        ("dedup-minhash", {"by": "qualty"}),
        ("dedup-minhash", {"rejected": "first"}),
    ],
)
def test_text_methods_refuse_values_out_of_range(name, parameters) -> None:
    with pytest.raises(RecipeError, match=next(iter(parameters))):
        build_selector(name, parameters)
