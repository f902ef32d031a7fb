import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longgame.data.examples import Example, Pool
from longgame.signals.engine import batches
from support.signals import random_pool

CPU = torch.device("cpu")


def test_positions_and_targets_of_two_examples_by_hand():
    examples = tuple(Example(sample_id=key, prompt="p", response="r") for key in "ab")
    pool = Pool(examples, (np.array([5, 6, 7, 8]), np.array([1, 2, 3])), np.array([2, 0]), np.array([2, 3]))
    (batch,) = batches(pool, 9, 100, CPU)
    assert batch.rows.tolist() == [1, 0]
    assert batch.input_ids.tolist() == [[1, 2, 3, 9], [5, 6, 7, 8]]
    assert batch.counts.tolist() == [2, 2]
    assert batch.example.tolist() == [0, 0, 1, 1]
    assert batch.position.tolist() == [0, 1, 1, 2]
    assert batch.rank.tolist() == [0, 1, 0, 1]
    assert batch.target.tolist() == [2, 3, 7, 8]
    assert batch.starts.tolist() == [0, 2]


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 40), longest=st.integers(4, 90), budget=st.integers(1, 600), seed=st.integers(0, 50))
def test_each_example_stands_once_within_budget_and_padding(n, longest, budget, seed):
    pool = random_pool(n, 4, longest, seed)
    rows = []
    for batch in batches(pool, 0, budget, CPU):
        size, width = batch.input_ids.shape
        assert size == 1 or size * width <= budget
        assert size * width - batch.lengths.sum() <= 256
        assert width == batch.lengths.max()
        rows += batch.rows.tolist()
        for row, ids, length in zip(batch.rows, batch.input_ids, batch.lengths, strict=True):
            np.testing.assert_array_equal(ids[:length], pool.input_ids[row])
    assert sorted(rows) == list(range(n))
