"""Rows of a dataset as pools: token counts, ids by content, shards that equal the whole."""

import pytest

from longgame.errors import DataError
from longgame.training.candidates import pool_of


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
