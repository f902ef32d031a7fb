import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from longgame.seeding import generator, stream_seed


def test_a_stream_is_known_by_its_name_and_not_by_what_was_drawn_before():
    first = generator(3, "select", 2).random(4)
    generator(3, "other").random(100)
    assert np.array_equal(first, generator(3, "select", 2).random(4))


@given(st.integers(0, 2**31), st.lists(st.one_of(st.text(max_size=5), st.integers()), min_size=1, max_size=3))
def test_streams_of_different_names_differ_and_fit_into_63_bits(seed, path):
    assert stream_seed(seed, *path) != stream_seed(seed, *path, "x")
    assert 0 <= stream_seed(seed, *path) < 2**63


def test_a_number_and_its_text_are_different_names():
    assert stream_seed(0, 1) != stream_seed(0, "1")


def test_the_values_are_the_same_on_every_machine():
    assert (
        stream_seed(0, "select", 1)
        == int.from_bytes(__import__("hashlib").sha256(b"0\x1fstr:select\x1fint:1").digest()[:8], "big") >> 1
    )
