"""Rows of a dataset as pools: token counts, ids by content, shards that equal the whole."""

import numpy as np
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


FAULTS = [
    *(
        ("quality", value, "no number from 0 to 1")
        for value in ("good", "0.5", float("nan"), float("inf"), 7.0, [1], True)
    ),
    *(("skill", value, "which is no text") for value in (3, ["math"])),
    *(
        ("longgame_weight", value, "no finite number above 0")
        for value in ("2", float("nan"), 0, -1.0, True, [1], 1e300, 1e-320, 10**400)
    ),
    *(
        (name, value, "no whole numbers")
        for name in ("input_ids", "labels")
        for value in ("x", ["a", "b"], None, [2**70])
    ),
]


@pytest.mark.parametrize(("name", "value", "message"), FAULTS)
def test_a_faulty_value_of_a_candidate_is_named(name, value, message):
    candidate = {"sample_id": "a", "input_ids": [5, 6], "labels": [-100, 6]}
    with pytest.raises(DataError, match=f"candidate a has .*{message}"):
        pool_of([candidate | {name: value}])


def test_numbers_of_any_width_are_read():
    candidate = {"sample_id": "a", "input_ids": [5, 6], "quality": np.float32(0.5), "longgame_weight": np.float32(2)}
    pool = pool_of([candidate])
    assert (pool.examples[0].quality, pool.info["longgame_weight"].tolist()) == (0.5, [2.0])
