"""Rows of a dataset as pools: token counts, ids by content, shards that equal the whole."""

import numpy as np
import pytest
from datasets import Dataset

from longgame.errors import DataError
from longgame.seeding import generator
from longgame.signals.store import stream_signals
from longgame.training.candidates import content_ids, dataset_pools, pool_of


def rows(n=23, seed=0):
    rng = generator(seed, "rows")
    features = []
    for row in range(n):
        ids = rng.integers(1, 50, rng.integers(4, 9)).tolist()
        features.append({"input_ids": ids, "labels": [-100, -100, *ids[2:]], "sample_id": f"r{row}", "note": "x"})
    return features


def on_disk(tmp_path, features):
    Dataset.from_list(features).save_to_disk(tmp_path / "d")
    return Dataset.load_from_disk(tmp_path / "d")


@pytest.mark.parametrize("size", [1, 7, 23, 100])
def test_shards_equal_the_whole_dataset_in_order(tmp_path, size):
    features = rows()
    together = pool_of(features)
    pools = list(dataset_pools(on_disk(tmp_path, features), size))
    assert [len(pool) for pool in pools[:-1]] == [size] * (len(pools) - 1)
    assert tuple(name for pool in pools for name in pool.ids) == together.ids
    np.testing.assert_array_equal(np.concatenate([pool.prompt_tokens for pool in pools]), together.prompt_tokens)
    for mine, theirs in zip((ids for pool in pools for ids in pool.input_ids), together.input_ids, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_ids_by_content_count_copies_over_all_shards(tmp_path):
    features = [{key: row[key] for key in ("input_ids", "labels")} for row in rows(9)]
    features += features[:3] + features[:1]
    pools = list(dataset_pools(on_disk(tmp_path, features), 4))
    ids = [name for pool in pools for name in pool.ids]
    assert ids == content_ids(features)
    assert ids[9:] == [f"{ids[0]}#2", f"{ids[1]}#2", f"{ids[2]}#2", f"{ids[0]}#3"]


def test_a_dataset_streams_into_a_store(tmp_path):
    features = rows()

    def engine(pool, names):
        return {name: np.array([ids.sum() for ids in pool.input_ids], dtype=np.float32) for name in names}

    store = stream_signals(
        engine, dataset_pools(on_disk(tmp_path, features), 5), ["loss"], tmp_path / "s", fingerprint="f"
    )
    np.testing.assert_array_equal(store.column("loss"), [sum(row["input_ids"]) for row in features])
    assert tuple(store.ids) == tuple(row["sample_id"] for row in features)


def test_dataset_pools_refuse_unusable_datasets(tmp_path):
    with pytest.raises(DataError, match="empty"):
        next(dataset_pools(Dataset.from_list([])))
    with pytest.raises(DataError, match="rows is 0"):
        next(dataset_pools(Dataset.from_list(rows()), 0))
    with pytest.raises(DataError, match="no 'input_ids'"):
        next(dataset_pools(Dataset.from_list([{"text": "a"}])))


def test_padding_is_not_counted_as_tokens():
    padded = {
        "sample_id": "a",
        "input_ids": [5, 6, 7, 0, 0],
        "labels": [-100, 6, 7, -100, -100],
        "attention_mask": [1, 1, 1, 0, 0],
    }
    text = {"sample_id": "b", "input_ids": [5, 6, 7]}
    pool = pool_of([padded, text])
    assert pool.tokens.tolist() == [3, 3]
    assert pool.prompt_tokens.tolist() == [1, 1]
    assert pool.response_tokens.tolist() == [2, 2]
    with pytest.raises(DataError, match="candidate c has no token to learn"):
        pool_of([{"sample_id": "c", "input_ids": [5, 6], "labels": [5, -100]}])
