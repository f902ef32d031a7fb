"""A tokenised dataset in shards is the pool that it is as a whole."""

import numpy as np
import pytest
from datasets import Dataset

from longgame.errors import DataError
from longgame.seeding import generator
from longgame.signals.store import stream_signals
from longgame.training.candidates import content_ids, dataset_pools, pool_of


def rows(n=23, seed=0):
    rng = generator(seed, "rows")
    made = []
    for row in range(n):
        ids = rng.integers(1, 50, rng.integers(4, 9)).tolist()
        made.append({"input_ids": ids, "labels": [-100, -100, *ids[2:]], "sample_id": f"r{row}", "note": "x"})
    return made


def on_disk(tmp_path, made):
    Dataset.from_list(made).save_to_disk(tmp_path / "d")
    return Dataset.load_from_disk(tmp_path / "d")


@pytest.mark.parametrize("size", [1, 7, 23, 100])
def test_shards_hold_the_same_examples_in_the_same_order_as_the_whole(tmp_path, size):
    made = rows()
    whole = pool_of(made)
    pools = list(dataset_pools(on_disk(tmp_path, made), size))
    assert [len(pool) for pool in pools[:-1]] == [size] * (len(pools) - 1)
    assert tuple(name for pool in pools for name in pool.ids) == whole.ids
    np.testing.assert_array_equal(np.concatenate([pool.prompt_tokens for pool in pools]), whole.prompt_tokens)
    for mine, theirs in zip((ids for pool in pools for ids in pool.input_ids), whole.input_ids, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_ids_by_content_count_copies_over_all_shards(tmp_path):
    made = [{key: row[key] for key in ("input_ids", "labels")} for row in rows(9)]
    made += made[:3] + made[:1]
    pools = list(dataset_pools(on_disk(tmp_path, made), 4))
    ids = [name for pool in pools for name in pool.ids]
    assert ids == content_ids(made)
    assert ids[9:] == [f"{ids[0]}#2", f"{ids[1]}#2", f"{ids[2]}#2", f"{ids[0]}#3"]


def test_a_dataset_streams_into_a_store(tmp_path):
    made = rows()

    def engine(pool, names):
        return {name: np.array([ids.sum() for ids in pool.input_ids], dtype=np.float32) for name in names}

    store = stream_signals(engine, dataset_pools(on_disk(tmp_path, made), 5), ["loss"], tmp_path / "s", fingerprint="f")
    np.testing.assert_array_equal(store.column("loss"), [sum(row["input_ids"]) for row in made])
    assert tuple(store.ids) == tuple(row["sample_id"] for row in made)


def test_what_is_no_pool_is_refused(tmp_path):
    with pytest.raises(DataError, match="empty"):
        next(dataset_pools(Dataset.from_list([])))
    with pytest.raises(DataError, match="rows is 0"):
        next(dataset_pools(Dataset.from_list(rows()), 0))
    with pytest.raises(DataError, match="no 'input_ids'"):
        next(dataset_pools(Dataset.from_list([{"text": "a"}])))
