"""Conditions side by side; a mean over orders counts seeds, never orders."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from longgame.audit.store import records_table
from longgame.errors import DataError
from longgame.metrics.comparisons import Across
from longgame.metrics.scorecard import Scorecard
from longgame.recipe import MetricSpec

LONG = {  # selector → seed → final score on the first and second task of the walk, under two orders
    "random": {0: ((50, 60), (52, 58)), 1: ((48, 62), (54, 56)), 2: ((51, 63), (50, 60))},
    "loss": {0: ((60, 62), (58, 66)), 1: ((57, 66), (60, 64)), 2: ((61, 64), (59, 69))},
}


def card(place, tasks, drop=()):
    rows = []
    for selector, seeds in LONG.items():
        for seed, orders in seeds.items():
            if (selector, seed) in drop:
                continue
            first, second = orders[place]
            R = [[10, 10], [first + 5, 20], [first, second]]
            for stage, row in enumerate(R):
                for task, value in zip(tasks, row, strict=True):
                    rows.append(
                        {
                            "trial": f"{selector}-s{seed}",
                            "selector": selector,
                            "seed": seed,
                            "kind": "score",
                            "stage": stage,
                        }
                        | {"task": task, "task_kind": "stage", "scorer": "token_accuracy", "value": value}
                    )
    return Scorecard.build(
        records_table(rows),
        tasks=tasks,
        ood=(),
        primary=dict.fromkeys(tasks, "token_accuracy"),
        metric_spec=MetricSpec(),
        threshold=0.9,
    )  # fmt: skip


@pytest.fixture(scope="module")
def across():
    cards = {"": card(0, ("a", "b")), "order=2-1": card(1, ("b", "a"))}
    return Across.build(cards, {"order=*": ["", "order=2-1"]})


def row(across, condition, selector, metric="current"):
    table = across.summary
    found = table[(table.condition == condition) & (table.selector == selector) & (table.metric == metric)]
    return found[found["view"] == "primary"].iloc[0]


def current(selector, place=None):
    """Current score of each seed by hand: mean of R[1,1] and R[2,2]; over both orders where no place is given."""
    places = (0, 1) if place is None else (place,)
    return np.array(
        [np.mean([(orders[p][0] + 5 + orders[p][1]) / 2 for p in places]) for orders in LONG[selector].values()]
    )


@pytest.mark.parametrize(("condition", "place"), [("", 0), ("order=2-1", 1), ("order=*", None)])
def test_a_condition_s_row_is_its_own_paired_comparison_over_seeds(across, condition, place):
    mine, base = current("loss", place), current("random", place)
    found = row(across, condition, "loss")
    assert found["n"] == 3
    assert found["mean"] == pytest.approx(mine.mean())
    assert found["sd"] == pytest.approx(mine.std(ddof=1))
    assert found["diff_vs_reference"] == pytest.approx((mine - base).mean())
    assert found["p"] == pytest.approx(ttest_rel(mine, base).pvalue)


def test_every_condition_and_mean_has_verdicts(across):
    verdicts = across.verdicts[across.verdicts["view"] == "primary"]
    assert list(verdicts["condition"]) == ["", "order=2-1", "order=*"]
    assert (verdicts["selector"] == "loss").all()
    own = across.cards[""].verdicts.set_index(["view", "selector"]).verdict
    assert verdicts.iloc[0]["verdict"] == own["primary", "loss"]


def test_a_seed_that_one_order_lacks_has_no_mean():
    cards = {"": card(0, ("a", "b")), "order=2-1": card(1, ("b", "a"), drop={("loss", 1)})}
    across = Across.build(cards, {"order=*": ["", "order=2-1"]})
    found = row(across, "order=*", "loss")
    keep = [0, 2]
    assert found["n"] == 2
    assert found["mean"] == pytest.approx(current("loss")[keep].mean())
    assert row(across, "order=*", "random")["n"] == 3


def test_a_bootstrap_that_was_asked_for_stands_beside_the_mean_over_orders_too():
    cards = {"": card(0, ("a", "b")), "order=2-1": card(1, ("b", "a"))}
    across = Across.build(cards, {"order=*": ["", "order=2-1"]}, bootstrap=1000)
    found = row(across, "order=*", "loss")
    assert found["boot_low"] <= found["diff_vs_reference"] <= found["boot_high"]
    assert found["boot_low"] < found["boot_high"]


def test_identical_orders_average_to_themselves():
    one = card(0, ("a", "b"))
    across = Across.build({"": one, "order=2-1": one}, {"order=*": ["", "order=2-1"]})
    parts = {
        name: part.drop(columns="condition").reset_index(drop=True)
        for name, part in across.summary.groupby("condition")
    }
    key = ["view", "metric", "selector"]
    same = [parts[name].sort_values(key).reset_index(drop=True) for name in ("", "order=*")]
    pd.testing.assert_frame_equal(*same, check_dtype=False)


def test_nothing_to_tell_is_an_error():
    with pytest.raises(DataError, match="no scorecard"):
        Across.build({}, {})
    with pytest.raises(DataError, match="order=2-1, which have no scorecard"):
        Across.build({"": card(0, ("a", "b"))}, {"order=*": ["", "order=2-1"]})
