"""The catalog: totals and shares of costs, and the page that lists every metric."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from longgame.metrics.catalog import METRICS, metrics_table, record_metrics, shown_in
from longgame.metrics.matrix import stage_spread

NAN = float("nan")


def test_costs_are_sums_and_shares_of_sums():
    found = record_metrics(
        {
            ("cost", "score_flops"): np.array([[NAN, 1.0, 3.0], [NAN, 0.0, 0.0]]),
            ("cost", "train_flops"): np.array([[NAN, 2.0, 6.0], [NAN, 5.0, 5.0]]),
            ("cost", "select_seconds"): np.array([[NAN, 1.0, 1.0], [NAN, 2.0, 0.0]]),
            ("cost", "train_seconds"): np.array([[NAN, 4.0, 4.0], [NAN, 0.0, 0.0]]),
            ("diagnostic", "quality"): np.ones((2, 3)),
        }
    )
    assert found["score_flops"].tolist() == [4, 0]
    assert found["flops_share"].tolist() == [0.5, 0]
    np.testing.assert_array_equal(found["seconds_share"], [0.25, NAN])  # a share of nothing is none
    assert found["quality"].tolist() == [1, 1]


def test_a_run_without_flops_has_shares_of_time_only():
    tables = {("cost", name): np.array([[NAN, 1.0]]) for name in ("select_seconds", "train_seconds")}
    assert set(record_metrics(tables)) == {"select_seconds", "train_seconds", "seconds_share"}


@pytest.mark.parametrize(("current", "sd"), [([50.0, 54.0, 58.0], 4.0), ([50.0, NAN, 58.0], NAN), ([50.0], NAN)])
def test_stability_over_stages_is_the_sample_sd(current, sd):
    T = len(current)
    R = np.full((T + 1, T), NAN)
    R[np.arange(1, T + 1), np.arange(T)] = current
    found = float(stage_spread(R))
    assert found == pytest.approx(float(pd.Series(current).std(ddof=1, skipna=False)), nan_ok=True)
    assert found == pytest.approx(sd, nan_ok=True)


@pytest.mark.parametrize(("final", "median"), [([3.0, 9.0, 5.0], 5.0), ([3.0, NAN, 5.0], 4.0), ([NAN, NAN, NAN], NAN)])
def test_median_task_is_over_measured_tasks(final, median):
    R = np.full((1, 4, 4), 50.0)  # 3 stages and an OOD set
    R[:, :, :3] = np.where(np.isnan(final), NAN, 7.0)
    R[0, 3, :3] = final
    view = SimpleNamespace(R=R)
    assert METRICS["median_task"].function(view)[0] == pytest.approx(median, nan_ok=True)


def test_every_score_has_a_function_and_every_metric_a_table():
    assert all((metric.function is not None) == (metric.group == "score") for metric in METRICS.values())
    hidden = {name for name, metric in METRICS.items() if not metric.tables}
    assert all(name.endswith("_own") for name in hidden)
    assert shown_in("main")[:3] == ("current", "ends", "immediate_gain")


def test_the_metrics_page_lists_the_catalog():
    page = Path(__file__).parents[2] / "docs/metrics.md"
    table = metrics_table()
    assert table in page.read_text(encoding="utf-8"), f"put this table under `All metrics` of docs/metrics.md:\n{table}"
