import copy

import numpy as np
import pytest

from longgame.data.examples import Example, Pool
from longgame.errors import DataError


def pool(names, **info):
    n = len(names)
    tokens = tuple(np.arange(row + 1) for row in range(n))
    return Pool(
        tuple(Example(name, "p", "r") for name in names), tokens, np.arange(n), np.ones(n, dtype=np.int64), info
    )


def test_a_joined_pool_holds_both_row_by_row():
    left, right = pool("ab", value=np.array([1, 2]), world="w"), pool("cde", value=np.array([3, 4, 5]), world="w")
    joined = left.join(right)
    assert joined.ids == ("a", "b", "c", "d", "e")
    assert joined.info["value"].tolist() == [1, 2, 3, 4, 5]
    assert joined.info["world"] == "w"
    assert joined.tokens.tolist() == [*left.tokens, *right.tokens]
    assert joined.input_ids[3] is right.input_ids[1]
    part = joined.take([4, 0])
    assert (part.ids, part.info["value"].tolist()) == (("e", "a"), [5, 1])


def test_joining_an_empty_pool_changes_nothing():
    left, none = pool("ab", value=np.array([1, 2])), pool("ab", value=np.array([1, 2])).take([])
    assert left.join(none) is left
    assert none.join(left).ids == left.ids
    assert none.join(left).info["value"].tolist() == [1, 2]


def test_pools_that_share_an_id_or_differ_in_kind_are_not_joined():
    with pytest.raises(DataError, match="a sample_id twice"):
        pool("ab").join(pool("bc"))
    with pytest.raises(DataError, match="no 'value'"):
        pool("ab", value=np.array([1, 2])).join(pool("c"))


def test_a_copy_of_a_pool_is_the_pool():
    left = pool("ab")
    assert copy.deepcopy({"pool": left})["pool"] is left
