"""The score-matrix metrics against hand arithmetic, and what NaN does to them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from longgame.errors import DataError
from longgame.metrics import matrix
from longgame.recipe import MetricSpec

NAN = float("nan")

# Three stages, two OOD sets. Rows: before, after stage 1, 2, 3.
R = np.array(
    [
        [10.0, 20.0, 30.0, 40.0, 50.0],
        [60.0, 25.0, 28.0, 42.0, 48.0],
        [66.0, 70.0, 35.0, 44.0, 46.0],
        [50.0, 64.0, 80.0, 45.0, 47.0],
    ]
)

HAND = {
    # (60 + 70 + 80) / 3
    matrix.current_score: 70.0,
    # U = 60−10, 70−25, 80−35 = 50, 45, 45; mean 140/3
    matrix.mean_immediate_gain: 140 / 3,
    # (50 + 64 + 80) / 3
    matrix.final_score: 194 / 3,
    # F_1 = max(60, 66) − 50 = 16, F_2 = 70 − 64 = 6; mean 11
    matrix.forgetting: 11.0,
    # j=2: R[1,2] − R[0,2] = 25−20 = 5; j=3: R[2,3] − R[0,3] = 35−30 = 5; mean 5
    matrix.forward_transfer: 5.0,
    # j=1: 50−60 = −10; j=2: 64−70 = −6; mean −8
    matrix.backward_transfer: -8.0,
    # mean 64.667; deviations −14.667, −0.667, 15.333; squares 215.11, 0.444, 235.11; /3 = 150.222
    matrix.capability_imbalance: np.sqrt(450.666666666 / 3),
    matrix.worst_task: 50.0,
    # (45 + 47) / 2
    matrix.ood_score: 46.0,
}


@pytest.mark.parametrize("metric", HAND, ids=lambda metric: metric.__name__)
def test_metric_equals_hand_value(metric):
    assert metric(R) == pytest.approx(HAND[metric])


def test_gain_and_forgetting_equal_hand_values():
    np.testing.assert_allclose(matrix.immediate_gain(R), [50, 45, 45])
    np.testing.assert_allclose(matrix.forgetting_per_task(R), [16, 6])


def test_forgetting_from_the_first_score_ignores_a_later_peak():
    # F_1 = 60 − 50 = 10, F_2 = 70 − 64 = 6; mean 8
    np.testing.assert_allclose(matrix.forgetting_per_task(R, "first"), [10, 6])
    assert matrix.forgetting(R, "first") == pytest.approx(8)
    assert matrix.forgetting(R, "first") == -matrix.backward_transfer(R)


def test_forgetting_is_negative_when_later_stages_help():
    helped = R.copy()
    helped[3, :2] = [70, 75]  # F_1 = 66 − 70, F_2 = 70 − 75
    np.testing.assert_allclose(matrix.forgetting_per_task(helped), [-4, -5])


@pytest.mark.parametrize("metric", HAND, ids=lambda metric: metric.__name__)
def test_leading_axes_hold_independent_matrices(metric):
    other = R[:, ::-1] * 0.5
    np.testing.assert_allclose(metric(np.stack([[R], [other]])), [[metric(R)], [metric(other)]])


@pytest.mark.parametrize("column", range(3))
def test_a_stage_column_nobody_measured_is_left_out(column):
    without = R.copy()
    without[:, column] = NAN
    kept = [j for j in range(3) if j != column]
    assert matrix.current_score(without) == pytest.approx(np.mean([R[j + 1, j] for j in kept]))
    assert matrix.final_score(without) == pytest.approx(R[3, kept].mean())
    assert matrix.worst_task(without) == R[3, kept].min()
    assert matrix.capability_imbalance(without) == pytest.approx(R[3, kept].std())
    assert matrix.ood_score(without) == matrix.ood_score(R)
    lost = {0: 16, 1: 6}
    assert matrix.forgetting(without) == pytest.approx(np.mean([lost[j] for j in kept if j in lost]))


def test_column_of_one_selector_counts_for_all():
    without = R.copy()
    without[:, 1] = NAN
    np.testing.assert_array_equal(matrix.current_score(np.stack([R, without])), [70, NAN])


CELLS = {
    matrix.current_score: (2, 1),
    matrix.mean_immediate_gain: (1, 1),
    matrix.final_score: (3, 0),
    matrix.forgetting: (2, 0),
    matrix.forward_transfer: (1, 1),
    matrix.backward_transfer: (1, 0),
    matrix.capability_imbalance: (3, 1),
    matrix.worst_task: (3, 2),
    matrix.ood_score: (3, 4),
}


@pytest.mark.parametrize("metric", CELLS, ids=lambda metric: metric.__name__)
def test_missing_cell_makes_only_its_metrics_nan(metric):
    holed = R.copy()
    holed[CELLS[metric]] = NAN
    assert np.isnan(metric(holed))
    needed_nowhere = R.copy()
    needed_nowhere[1, 3] = NAN  # an OOD score in the middle of the run
    assert metric(needed_nowhere) == metric(R)


def test_without_row_0_only_what_needs_it_is_nan():
    headless = R.copy()
    headless[0] = NAN
    assert np.isnan(matrix.forward_transfer(headless))
    assert np.isnan(matrix.mean_immediate_gain(headless))
    np.testing.assert_array_equal(matrix.immediate_gain(headless), [NAN, 45, 45])
    assert np.isnan(matrix.forgetting(headless))  # from the best score ever
    assert matrix.forgetting(headless, "best") == matrix.forgetting(R, "best")
    for metric in set(HAND) - {matrix.forward_transfer, matrix.mean_immediate_gain, matrix.forgetting}:
        assert metric(headless) == metric(R)


def test_single_stage_has_no_transfer_or_forgetting():
    single = np.array([[10.0, 40.0], [60.0, 42.0]])
    for metric in (
        matrix.forgetting,
        matrix.forward_transfer,
        matrix.backward_transfer,
        matrix.capability_imbalance,
    ):
        assert np.isnan(metric(single))
    assert matrix.forgetting_per_task(single).shape == (0,)
    assert matrix.current_score(single) == matrix.final_score(single) == matrix.worst_task(single) == 60
    assert matrix.mean_immediate_gain(single) == 50
    assert matrix.ood_score(single) == 42


def test_without_ood_columns_the_ood_score_is_nan():
    assert np.isnan(matrix.ood_score(R[:, :3]))


def test_a_wrong_shape_or_reference_is_refused():
    with pytest.raises(DataError, match=r"\(4, 2\)"):
        matrix.current_score(R[:, :2])
    with pytest.raises(DataError, match="Did you mean 'best'"):
        matrix.forgetting(R, "bets")  # type: ignore[arg-type]


scores = st.floats(0, 100, allow_nan=False, width=32)
matrices = st.integers(1, 5).flatmap(
    lambda T: st.integers(0, 2).flatmap(lambda extra: hnp.arrays(float, (T + 1, T + extra), elements=scores))
)


@given(matrices, st.floats(-50, 50))
def test_adding_a_constant_moves_levels_not_differences(R, shift):
    def same(metric, by):
        np.testing.assert_allclose(metric(R + shift), metric(R) + by, atol=1e-9)

    for metric in (matrix.forgetting, matrix.backward_transfer, matrix.forward_transfer, matrix.mean_immediate_gain):
        same(metric, 0.0)
    same(matrix.capability_imbalance, 0.0)
    for metric in (matrix.current_score, matrix.final_score, matrix.worst_task, matrix.ood_score):
        same(metric, shift)


@given(matrices)
def test_bounds_between_metrics(R):
    if len(R) > 2:
        assert matrix.capability_imbalance(R) >= 0
        assert matrix.forgetting(R) >= matrix.forgetting(R, "first") - 1e-9
    assert matrix.worst_task(R) <= matrix.final_score(R) + 1e-9


@given(matrices)
def test_forgetting_equals_a_plain_loop_over_the_definition(R):
    T = len(R) - 1
    for reference, start in (("best-ever", lambda j: 0), ("best", lambda j: j)):
        loop = [max(R[i, j - 1] for i in range(start(j), T)) - R[T, j - 1] for j in range(1, T)]
        np.testing.assert_array_equal(matrix.forgetting_per_task(R, reference), loop)
    np.testing.assert_array_equal(matrix.forgetting_per_task(R), matrix.forgetting_per_task(R, "best-ever"))


def test_best_ever_counts_what_was_lost_before_the_task_s_stage():
    """Task 2 stands at 80 before any stage; stage 1 costs 30, its own stage gives back 20, stage 3 costs 5."""
    R = np.array([[10.0, 80, 10], [60, 50, 20], [55, 70, 20], [50, 65, 60]])
    np.testing.assert_allclose(matrix.forgetting_per_task(R), [10, 15])
    np.testing.assert_allclose(matrix.forgetting_per_task(R, "best"), [10, 5])
    assert matrix.forgetting(R) == pytest.approx(12.5)
    assert MetricSpec().forgetting_reference == "best-ever"


def test_imbalance_leaves_out_a_task_on_which_nobody_scores():
    R = np.array([[[0.0, 0, 0], [20, 0, 0], [20, 40, 0], [10, 40, 0]]])
    scale = matrix.best_seen(R)
    np.testing.assert_array_equal(scale, [20, 40, 0])
    assert matrix.capability_imbalance(R, scale)[0] == pytest.approx(np.std([10 / 20, 40 / 40]))
    assert matrix.gain_imbalance(R)[0] == pytest.approx(np.std([10, 40, 0]))
    assert np.isnan(matrix.capability_imbalance(R, np.array([20.0, 0, np.nan]))).all()
