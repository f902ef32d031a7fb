"""Entropy, concentration and token-weighted means."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from longgame.errors import DataError, NumericalError
from longgame.metrics import diagnostics
from longgame.seeding import generator


def test_entropy_equals_hand_values():
    assert diagnostics.capability_entropy(np.full(8, 100)) == pytest.approx(2.0794415)  # ln 8
    assert diagnostics.capability_entropy(np.array([0, 500, 0])) == 0
    # shares 1/2, 1/4, 1/4: ½ ln 2 + ½ ln 4 = 1.5 ln 2
    assert diagnostics.capability_entropy(np.array([50, 25, 25, 0])) == pytest.approx(1.5 * np.log(2))


def test_entropy_of_nothing_is_unmeasured_and_negative_counts_are_refused():
    assert np.isnan(diagnostics.capability_entropy(np.zeros(8)))
    with pytest.raises(DataError, match="-1"):
        diagnostics.capability_entropy(np.array([-1, 2]))


@given(hnp.arrays(np.int64, st.integers(1, 10), elements=st.integers(0, 1000)), st.integers(1, 50))
def test_entropy_lies_between_0_and_ln_clusters_and_ignores_the_total(counts, factor):
    if counts.sum() == 0:
        return
    entropy = diagnostics.capability_entropy(counts)
    assert 0 <= entropy <= np.log(len(counts)) + 1e-12
    assert diagnostics.capability_entropy(counts * factor) == pytest.approx(entropy)


def test_concentration_equals_hand_values():
    assert diagnostics.selection_concentration(np.array([[1.0, 2.0], [-2.0, -4.0]])) == pytest.approx(1)
    assert diagnostics.selection_concentration(np.eye(4)) == pytest.approx(1 / 4)
    # M = diag(9 + 1, 4)/3: λ_max / tr = 10/14
    assert diagnostics.selection_concentration(np.array([[3.0, 0], [1, 0], [0, 2]])) == pytest.approx(10 / 14)
    # ε is added to the trace 14/3
    assert diagnostics.selection_concentration(np.array([[3.0, 0], [1, 0], [0, 2]]), eps=1.0) == pytest.approx(10 / 17)


@pytest.mark.parametrize("shape", [(5, 12), (12, 5), (1, 7), (7, 1), (6, 6)])
def test_concentration_is_the_squared_top_singular_value_share_on_both_sides(shape):
    g = generator(0, "g", *shape).standard_normal(shape)
    singular = np.linalg.svd(g, compute_uv=False)
    assert diagnostics.selection_concentration(g) == pytest.approx(singular[0] ** 2 / (singular**2).sum())


@given(hnp.arrays(float, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.integers(-9, 9).map(float)))
def test_concentration_lies_in_its_bounds_and_does_not_depend_on_scale(g):
    if not g.any():
        assert np.isnan(diagnostics.selection_concentration(g))
        return
    share = diagnostics.selection_concentration(g)
    assert 1 / min(g.shape) - 1e-9 <= share <= 1
    assert diagnostics.selection_concentration(g * 1e-7) == pytest.approx(share)


def test_concentration_of_the_gram_matrix_equals_that_of_the_updates():
    updates = generator(1).standard_normal((6, 40))
    gram = updates @ updates.T
    assert diagnostics.update_concentration(gram) == pytest.approx(diagnostics.selection_concentration(updates))
    assert np.isnan(diagnostics.update_concentration(np.zeros((3, 3))))
    assert np.isnan(diagnostics.update_concentration(np.empty((0, 0))))


def test_concentration_refuses_what_is_not_finite_or_not_a_gram_matrix():
    with pytest.raises(NumericalError, match="row 1"):
        diagnostics.selection_concentration(np.array([[1.0], [np.nan]]))
    with pytest.raises(NumericalError):
        diagnostics.update_concentration(np.array([[np.inf]]))
    with pytest.raises(DataError, match="symmetric"):
        diagnostics.update_concentration(np.array([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(DataError, match="square"):
        diagnostics.update_concentration(np.ones((2, 3)))


def test_means_are_weighted_by_tokens_by_hand():
    tokens = np.array([10, 30])
    assert diagnostics.mean_difficulty(np.array([0.2, 0.6]), tokens) == pytest.approx(0.5)  # (2 + 18)/40
    assert diagnostics.mean_quality(np.array([1.0, 0.0]), tokens) == pytest.approx(0.25)
    assert diagnostics.noisy_share(np.array([False, True]), tokens) == pytest.approx(0.75)


def test_an_unknown_value_makes_the_mean_unknown():
    assert np.isnan(diagnostics.noisy_share(np.array([1.0, np.nan]), np.array([1, 1])))
    assert np.isnan(diagnostics.token_weighted_mean(np.array([]), np.array([])))
    with pytest.raises(DataError, match=r"\(2,\) values"):
        diagnostics.token_weighted_mean(np.array([1.0, 2.0]), np.array([1]))
