from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from longgame.errors import PluginError
from longgame.selection.budget import rank_scale, scale, z_scale

COLUMNS = hnp.arrays(np.float64, st.integers(1, 40), elements=st.integers(-5, 5).map(float))


def test_ranks_share_the_middle_of_a_tie() -> None:
    # ranks 1, 2.5, 2.5, 4 of 4 → (2r − 5) / 3
    assert rank_scale(np.array([0.0, 7.0, 7.0, 1e9])).tolist() == [-1.0, 0.0, 0.0, 1.0]


@given(
    column=hnp.arrays(np.float32, st.integers(2, 60), elements=st.sampled_from([-np.inf, -1.5, -0.0, 0.0, 2.0, 9.0]))
)
def test_ranks_are_those_of_counting_the_smaller_and_the_equal(column: np.ndarray) -> None:
    less, same = (column[:, None] > column).sum(axis=1), (column[:, None] == column).sum(axis=1)
    middle = less + (same + 1) / 2
    assert rank_scale(column).tolist() == ((2 * middle - (len(column) + 1)) / (len(column) - 1)).tolist()


def test_z_of_two_values_is_plus_and_minus_one() -> None:
    assert z_scale(np.array([3.0, 5.0])) == pytest.approx([-1.0, 1.0])


@pytest.mark.parametrize("how", ["rank", "z"])
@given(column=COLUMNS)
def test_mean_is_zero_and_order_is_kept(how: str, column: np.ndarray) -> None:
    scaled = scale(column, how)
    assert abs(scaled.mean()) < 1e-9
    assert (np.sign(column[:, None] - column) == np.sign(np.round(scaled[:, None] - scaled, 12))).all()


@pytest.mark.parametrize("how", ["rank", "z"])
@given(value=st.floats(-(2.0**90), 2.0**90, width=32), n=st.integers(1, 9))
def test_a_constant_column_gives_exact_zeros(how: str, value: float, n: int) -> None:
    assert scale(np.full(n, value, dtype=np.float32), how).tolist() == [0.0] * n


def test_an_outlier_moves_z_but_not_ranks() -> None:
    column = np.array([1.0, 2.0, 3.0, 4.0])
    heavy = np.array([1.0, 2.0, 3.0, 4e6])
    assert np.array_equal(rank_scale(column), rank_scale(heavy))
    assert z_scale(heavy)[2] < 0 < z_scale(column)[2]


@pytest.mark.parametrize("how", ["rank", "z"])
def test_what_is_no_number_has_no_place_in_an_order(how: str) -> None:
    with pytest.raises(PluginError, match="2 of 4 values .* are NaN"):
        scale(np.array([1.0, np.nan, 3.0, np.nan]), how)
