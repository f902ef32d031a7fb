from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longgame.errors import PluginError, ResumeError
from longgame.selection.algorithms.directions import SketchBuffer


@given(size=st.integers(1, 7), pushes=st.lists(st.integers(0, 10), max_size=8))
def test_it_holds_the_last_pushed_and_survives_saving(size: int, pushes: list[int]) -> None:
    buffer, everything = SketchBuffer(size), np.zeros((0, 1), dtype=np.float32)
    for number, k in enumerate(pushes):
        new = np.arange(k, dtype=np.float32)[:, None] + 100 * number
        buffer.push(new)
        everything = np.concatenate([everything, new])
        restored = SketchBuffer(size)
        restored.load_state_dict(buffer.state_dict())
        buffer = restored
    expected = everything[-size:] if len(everything) else everything
    assert sorted(buffer.state_dict()["sketches"].ravel().tolist()) == sorted(expected.ravel().tolist())
    assert len(buffer) == len(expected)


def test_mean_distance_by_hand() -> None:
    buffer = SketchBuffer(2)
    assert buffer.mean_distance(np.ones((1, 2))).tolist() == [0.0]
    buffer.push(np.array([[9.0, 9.0], [0.0, 0.0], [0.0, 8.0]]))  # the first is gone
    assert buffer.mean_distance(np.array([[0.0, 4.0], [6.0, 8.0]])).tolist() == [4.0, 8.0]


def test_another_width_or_size_is_refused() -> None:
    buffer = SketchBuffer(3)
    buffer.push(np.ones((5, 2)))
    with pytest.raises(PluginError, match="width 4 came after ones of width 2"):
        buffer.push(np.ones((1, 4)))
    with pytest.raises(ResumeError, match="buffer_size is 2"):
        SketchBuffer(2).load_state_dict(buffer.state_dict())
